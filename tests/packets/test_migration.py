"""Entries of the router's maps go over to the next version's, whose structs are others, and its programs find them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import pytest

from packets import bench, oracle
from packets.bench import FLOW_SETS, Router, entry
from packets.frames import Connection, request
from packets.next_version import next_version
from rauta import loading
from rauta.bpf import BpfObject, Map, describe_difference
from rauta.errors import RautaError
from rauta.upgrade.flow_copy import FlowCopy
from rauta.upgrade.migration import migrate

HEAD = request("/")
CHANGES = (
    ("\t__u32 cluster;\t\t/* index; the newest", "\t__u16 added;\n\t__u16 cluster;\t\t/*"),  # struct flow: no larger,
    ("\t__u64 packets[VERDICT_COUNT];", "\t__u64 since;\n\t__u64 packets[VERDICT_COUNT];"),  # as the stack is full
    ("\t__u32 lock;\t\t/* not 0: somebody", "\t__u64 generation;\n\t__u32 lock;\t\t/*"),  # struct flow_set
)


@pytest.fixture(scope="module")
def upgraded_object(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ingress.bpf.c with a member more in three structs, and one that is narrower."""
    return next_version("ingress", CHANGES, tmp_path_factory.mktemp("next-version"))


@pytest.fixture
def upgraded(upgraded_object: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Router]]:
    """`upgraded(sets)`: a router of the next version, with so many sets in its flow table."""
    with ExitStack() as undo:

        def load(sets: int) -> Router:
            with monkeypatch.context() as patch:
                patch.setattr(loading, "open_object", lambda _: BpfObject.open(upgraded_object))
                patch.setattr(bench, "FLOW_SETS", sets)
                loaded = Router()
            undo.enter_context(loaded.object)
            return loaded

        yield load


def migrated(old: Router, new: Router, sets: int) -> int:
    return copied(*flow_maps(old, new), oracle.FLOW_KEY, sets)


def copied(old: Map, new: Map, flow_key: int, sets: int) -> int:
    with FlowCopy(old, new, flow_key, sets) as copy:
        return copy.follow()


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


@pytest.mark.parametrize("sets", [FLOW_SETS, 3 * FLOW_SETS + 1, 3])
def test_what_changes_meanwhile_follows(router: Router, upgraded: Callable[[int], Router], sets: int) -> None:
    """One goes on, one is new, one is closed, one gives way."""
    goes_on, closes, opens, *_ = connections = [Connection(port) for port in range(2000, 2008)]
    for connection in (goes_on, closes):
        router.opens(connection.data(HEAD), "web")
    new = upgraded(sets)
    with FlowCopy(*flow_maps(router, new), oracle.FLOW_KEY, sets) as copy:
        assert copy.follow() == 2
        assert copy.follow() == 0
        backend = router.backend_of("web", goes_on)
        router.forwards(goes_on.later(HEAD, len(HEAD)), "ROUTED_NEXT", backend)
        new.drops(goes_on.later(HEAD, 2 * len(HEAD), 600), "DROP_OUT_OF_ORDER")  # the copy is what it was
        router.forwards(closes.fin(len(HEAD)), "FORWARDED_CLOSE", router.backend_of("web", closes))
        router.opens(opens.data(HEAD), "web")
        assert copy.follow() >= 3
        same_flows(router, new, connections, sets)
        new.forwards(goes_on.later(HEAD, 2 * len(HEAD), 600), "ROUTED_NEXT", backend)
        number, _ = oracle.flow_place(closes.tuple, FLOW_SETS)
        router.object.maps["flows"].update(number, {})
        copy.follow()
    assert flow_of(new, closes, sets) is None


@pytest.mark.parametrize("sets", [FLOW_SETS, 2 * FLOW_SETS - 1])
def test_nothing_is_lost_of_what_packets_change_all_the_time(
    router: Router, upgraded: Callable[[int], Router], sets: int
) -> None:
    """Packets on another CPU, round after round; the last round comes when they have ended."""
    connections = [Connection(port, isn) for isn in (1000, 500_000) for port in range(2000, 2024)]
    first = [bytes(connection.data(HEAD)) for connection in connections]
    later = [bytes(one.later(HEAD, n * len(HEAD), 100 * n)) for n in range(1, 100) for one in connections[:24]]
    newer = [bytes(one.later(HEAD, n * len(HEAD), 100 * n)) for n in range(1, 20) for one in connections[24:]]
    program = router.object.programs["rauta_ingress"]

    def packets() -> None:
        for frame in (*first[:24], *later, *first[24:], *newer):
            program.test_run(frame)

    new = upgraded(sets)
    thread = threading.Thread(target=packets)
    thread.start()
    written = []
    with FlowCopy(*flow_maps(router, new), oracle.FLOW_KEY, sets) as copy:
        while thread.is_alive():
            written.append(copy.follow())
        thread.join()
        copy.follow()
    assert sum(count > 0 for count in written) > 2
    assert router.flows() == 24
    assert {flow["isn"] for one in connections[24:] if (flow := router.flow(one))} == {500_000}
    same_flows(router, new, connections[24:], sets)


def same_flows(old: Router, new: Router, connections: list[Connection], sets: int) -> None:
    """Both tables say the same of them, and have none besides."""
    assert new.flows() == old.flows()
    for connection in connections:
        before = flow_of(old, connection, FLOW_SETS)
        assert flow_of(new, connection, sets) == (before if before is None else before | {"added": 0})


def flow_of(router: Router, connection: Connection, sets: int) -> dict[str, object] | None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "FLOW_SETS", sets)
        return router.flow(connection)


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
    assert copied(old_map, new_map, oracle.FLOW_KEY ^ 1, FLOW_SETS + 1) == 0 == new.flows()
    assert copied(old_map, new_map, oracle.FLOW_KEY, FLOW_SETS + 1) == 1 == new.flows()


def test_what_is_no_flow_table_is_refused(router: Router, upgraded: Callable[[int], Router]) -> None:
    new = upgraded(FLOW_SETS)
    old_map, new_map = flow_maps(router, new)
    with pytest.raises(RautaError, match="'backends' ARRAY 4096 entries> is no flow table"):
        copied(router.object.maps["backends"], new_map, oracle.FLOW_KEY, FLOW_SETS)
    with pytest.raises(RautaError, match=f"the new table has {FLOW_SETS} sets"):
        copied(old_map, new_map, oracle.FLOW_KEY, FLOW_SETS + 1)


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
