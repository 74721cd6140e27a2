"""Entries of the router's maps go over to the next version's, whose structs are others, and its programs find them."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import pytest

from packets import bench, oracle
from packets.bench import FLOW_SETS, Router, entry
from packets.frames import Connection, request
from rauta import loading
from rauta.bpf import BpfObject, Map, describe_difference
from rauta.errors import RautaError
from rauta.migration import migrate, migrate_flows

HEAD = request("/")
SOURCES = Path(loading.__file__).parents[1] / "bpf"
CHANGES = (
    ("\t__u32 cluster;\t\t/* index; the newest", "\t__u16 added;\n\t__u16 cluster;\t\t/*"),  # struct flow: no larger,
    ("\t__u64 packets[VERDICT_COUNT];", "\t__u64 since;\n\t__u64 packets[VERDICT_COUNT];"),  # as the stack is full
    ("\t__u32 lock;\t\t/* not 0: somebody", "\t__u64 generation;\n\t__u32 lock;\t\t/*"),  # struct flow_set
)


@pytest.fixture(scope="module")
def next_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ingress.bpf.c compiled with a contract.h that has a member more in three structs, and one that is narrower."""
    clang = shutil.which("clang-19") or shutil.which("clang")
    if clang is None:
        pytest.skip("needs clang")
    folder = tmp_path_factory.mktemp("next-version")
    shutil.copytree(SOURCES, folder / "bpf")
    contract = folder / "bpf" / "contract.h"
    text = contract.read_text()
    for before, after in CHANGES:
        assert text.count(before) == 1
        text = text.replace(before, after)
    contract.write_text(text)
    headers = f"/usr/include/{sysconfig.get_config_var('MULTIARCH')}"
    flags = ["-O2", "-g", "-target", "bpf", "-mcpu=v3", "-I", headers, "-I", folder / "bpf"]
    subprocess.run([clang, *flags, "-c", folder / "bpf" / "ingress.bpf.c", "-o", folder / "ingress.bpf.o"], check=True)
    return folder / "ingress.bpf.o"


@pytest.fixture
def upgraded(next_version: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Router]]:
    """`upgraded(sets)`: a router of the next version, with so many sets in its flow table."""
    with ExitStack() as undo:

        def load(sets: int) -> Router:
            with monkeypatch.context() as patch:
                patch.setattr(loading, "open_object", lambda _: BpfObject.open(next_version))
                patch.setattr(bench, "FLOW_SETS", sets)
                loaded = Router()
            undo.enter_context(loaded.object)
            return loaded

        yield load


def migrated(old: Router, new: Router, sets: int) -> int:
    return migrate_flows(old.object.maps["flows"], new.object.maps["flows"], oracle.FLOW_KEY, sets)


def flow_maps(old: Router, new: Router) -> tuple[Map, Map]:
    return old.object.maps["flows"], new.object.maps["flows"]


def test_sets_that_stay_keep_their_order(router: Router, upgraded: Callable[[int], Router]) -> None:
    """Who was silent for the longest time must go, also if he was so under the old program."""
    connections = neighbours(oracle.FLOW_WAYS + 1)
    for connection in connections[:-1]:
        router.opens(connection.data(HEAD), "web")
    for connection in (*connections[:3], *connections[4:-1]):
        router.forwards(connection.ack(len(HEAD)), "FORWARDED", router.backend_of("web", connection))
    new = upgraded(FLOW_SETS)
    assert migrated(router, new, FLOW_SETS) == oracle.FLOW_WAYS
    new.opens(connections[-1].data(HEAD), "web")
    assert [new.flow(connection) is None for connection in connections] == [n == 3 for n in range(9)]


@pytest.mark.parametrize("sets", [1, 5, FLOW_SETS, 3 * FLOW_SETS + 1, 512])
def test_connections_go_on_with_the_next_version(router: Router, upgraded: Callable[[int], Router], sets: int) -> None:
    connections = [Connection(port) for port in range(2000, 2006)]
    for connection in connections:
        router.opens(connection.data(HEAD), "web")
    new = upgraded(sets)
    old_map, new_map = flow_maps(router, new)
    assert old_map.value_layout is not None
    assert new_map.value_layout is not None
    assert describe_difference(old_map.value_layout, new_map.value_layout) == "struct flow_set.lock: offset 0 became 8"
    assert migrated(router, new, sets) == len(connections) == new.flows()
    for connection in connections:
        backend = router.backend_of("web", connection)
        new.forwards(connection.ack(len(HEAD)), "FORWARDED", backend)
        new.forwards(connection.data(HEAD), "FORWARDED_AGAIN", backend, opens=True)


def test_a_migrated_flow_has_all_that_it_had(
    router: Router, upgraded: Callable[[int], Router], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = Connection()
    router.opens(connection.data(HEAD), "web")
    new = upgraded(64)
    assert migrated(router, new, 64) == 1
    before = router.flow(connection)
    monkeypatch.setattr(bench, "FLOW_SETS", 64)
    assert before is not None
    assert new.flow(connection) == before | {"added": 0}


def test_the_copy_does_not_follow_the_old_program(router: Router, upgraded: Callable[[int], Router]) -> None:
    """Why the old program has to be taken off first."""
    stays, goes_on = Connection(2000), Connection(2001)
    for connection in (stays, goes_on):
        router.opens(connection.data(HEAD), "web")
    new = upgraded(FLOW_SETS)
    assert migrated(router, new, FLOW_SETS) == 2
    backend = router.backend_of("web", goes_on)
    router.forwards(goes_on.later(HEAD, len(HEAD)), "ROUTED_NEXT", backend)
    new.drops(goes_on.later(HEAD, 2 * len(HEAD), 600), "DROP_OUT_OF_ORDER")
    new.forwards(stays.later(HEAD, len(HEAD)), "ROUTED_NEXT", router.backend_of("web", stays))


def neighbours(count: int) -> list[Connection]:
    """Connections that share one set of the old table."""
    connections = map(Connection, range(1024, 65535))
    return list(islice((one for one in connections if oracle.flow_place(one.tuple, FLOW_SETS)[0] == 3), count))


def test_of_too_many_flows_those_used_last_are_kept(router: Router, upgraded: Callable[[int], Router]) -> None:
    """Two full sets become one. Afterwards the new table's own rule holds: the one used last goes last."""
    first = neighbours(oracle.FLOW_WAYS)
    connections = map(Connection, range(1024, 65535))
    others = (one for one in connections if oracle.flow_place(one.tuple, FLOW_SETS)[0] == 2)
    second = list(islice(others, oracle.FLOW_WAYS))
    for connection in [*first, *second]:
        router.opens(connection.data(HEAD), "web")
    for connection in [*first[4:], *second[4:]]:  # used since the youngest came
        router.forwards(connection.ack(len(HEAD)), "FORWARDED", router.backend_of("web", connection))
    new = upgraded(FLOW_SETS // 2)
    assert migrated(router, new, FLOW_SETS // 2) == oracle.FLOW_WAYS == new.flows()
    for connection in [*first[4:], *second[4:]]:
        new.forwards(connection.ack(len(HEAD)), "FORWARDED", router.backend_of("web", connection))
    for connection in [*first[:4], *second[:4]]:
        new.drops(connection.ack(len(HEAD)), "DROP_NO_FLOW")


@pytest.mark.parametrize("sets", [FLOW_SETS, 2 * FLOW_SETS])
def test_a_set_that_somebody_left_locked_is_left_out(
    router: Router, upgraded: Callable[[int], Router], sets: int
) -> None:
    there, locked = Connection(2000), neighbours(1)[0]
    for connection in (there, locked):
        router.opens(connection.data(HEAD), "web")
    flows = router.object.maps["flows"]
    number, _ = oracle.flow_place(locked.tuple, FLOW_SETS)
    flows.update(number, flows.lookup(number) | {"lock": 1})
    new = upgraded(sets)
    assert migrated(router, new, sets) == 1 == new.flows()
    new.forwards(there.ack(len(HEAD)), "FORWARDED", router.backend_of("web", there))


def test_entries_that_no_packet_would_find_are_left_out(router: Router, upgraded: Callable[[int], Router]) -> None:
    connection = Connection()
    router.put_flow(connection, **entry(connection.data(HEAD), "web", "web-1"))
    new = upgraded(FLOW_SETS + 1)
    old_map, new_map = flow_maps(router, new)
    assert migrate_flows(old_map, new_map, oracle.FLOW_KEY ^ 1, FLOW_SETS + 1) == 0 == new.flows()
    assert migrate_flows(old_map, new_map, oracle.FLOW_KEY, FLOW_SETS + 1) == 1 == new.flows()


def test_what_is_no_flow_table_is_refused(router: Router, upgraded: Callable[[int], Router]) -> None:
    new = upgraded(FLOW_SETS)
    old_map, new_map = flow_maps(router, new)
    with pytest.raises(RautaError, match="'backends' ARRAY 4096 entries> is no flow table"):
        migrate_flows(router.object.maps["backends"], new_map, oracle.FLOW_KEY, FLOW_SETS)
    with pytest.raises(RautaError, match=f"the new table has {FLOW_SETS} sets"):
        migrate_flows(old_map, new_map, oracle.FLOW_KEY, FLOW_SETS + 1)


def test_counters_go_on_with_the_next_version(router: Router, upgraded: Callable[[int], Router]) -> None:
    router.opens(Connection(2001).data(HEAD), "web")
    new = upgraded(FLOW_SETS)
    before = router.counters()
    assert sum(before) > 0
    assert (
        migrate(router.object.maps["verdicts"], new.object.maps["verdicts"]) == new.object.maps["verdicts"].max_entries
    )
    assert new.counters() == before
    new.opens(Connection(2002).data(HEAD), "web")
    assert sum(new.counters()) == sum(before) + 1
