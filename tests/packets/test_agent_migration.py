"""What the agent knows of connections goes over to the next version's maps, whose struct mapping is another."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from packets.bench import Agent
from packets.frames import CLIENT, LOCAL, LOCAL_PORT, Connection, carried, delivered, request
from packets.next_version import next_version
from packets.oracle import Tuple
from rauta.bpf import BpfObject
from rauta.errors import RautaError
from rauta.upgrade import migration

CHANGES = (
    (
        "\t__be32 vip;\n\t__be16 vip_port;\n\t__u16 state;",
        "\t__u64 added;\n\t__be16 vip_port;\n\t__be32 vip;\n\t__u16 state;",
    ),
    ("\t__u16 age;\t\t/* of the handshake", "\t__u32 age;\t\t/* of the handshake"),
)
NARROWED = (("\t__u32 heads;\t\t/*", "\t__u16 heads;\t\t/*"),)
SOCKETS = 300
ALICE = Connection()
LOCAL_TUPLE = Tuple(CLIENT, ALICE.port, LOCAL, LOCAL_PORT)
HEAD = request("/")


@pytest.fixture(scope="module")
def upgraded_object(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """agent.bpf.c with struct mapping in another order, with a member more, and one that is wider."""
    return next_version("agent", CHANGES, tmp_path_factory.mktemp("next-version"))


Upgraded = Callable[[Path], tuple[BpfObject, migration.Migration]]


@pytest.fixture
def upgraded(agent: Agent) -> Iterator[Upgraded]:
    """`upgraded(object)`: that of the next version, loaded, and what has to be copied for it."""
    with ExitStack() as undo:

        def load(path: Path) -> tuple[BpfObject, migration.Migration]:
            after = undo.enter_context(BpfObject.open(path))
            after.maps["consumed"].set_max_entries(agent.object.maps["consumed"].max_entries)
            left = migration.adopt(after, ("mappings", "connections", "consumed", "verdicts"), agent.object.maps)
            assert left.keys() == {"mappings", "connections"}
            after.load()
            return after, undo.enter_context(migration.Migration(after, left))

        yield load


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    with ExitStack() as undo:
        yield [undo.enter_context(socket.socket()) for _ in range(SOCKETS)]


def known(number: int) -> dict[str, int]:
    """Nothing in it is zero, and each is another."""
    return {
        "vip": number * 65537,
        "vip_port": number,
        "state": 1 + number % 4,
        "isn": 0xFFFFFFFF - number,
        "cookie": number << 8,
        "age": 0xFFFF - number,
        "is_new": 1,
        "moved": 2,
        "target": number + 7,
        "first": number << 40,
        "left": number << 33,
        "request": number * 3,
        "sent": number * 5,
        "heads": 0xF0F0F0F0 ^ number,
        "asked": number & 0xFF,
        "answered": number + 1 & 0xFF,
        "pinned": 1,
        "options": 0xA5,
        "clock": number * 7,
        "origin": number * 9,
        "asked_at": number << 35,
        "route": number * 11,
    }


def carries(obj: BpfObject, sock: socket.socket) -> dict[str, Any] | None:
    found: dict[str, Any] | None = obj.maps["connections"].lookup(sock.fileno())
    return found


def test_every_socket_carries_what_it_carried(
    agent: Agent, upgraded: Upgraded, upgraded_object: Path, sockets: list[socket.socket]
) -> None:
    """Then once more, as after a pause: what has changed, has come and has gone."""
    *there, silent, late = sockets
    for number, sock in enumerate(there, 1):
        agent.object.maps["connections"].update(sock.fileno(), known(number))
    after, migrating = upgraded(upgraded_object)
    assert migrating.copy() == len(there)
    assert [carries(after, sock) for sock in there] == [known(n) | {"added": 0} for n in range(1, len(there) + 1)]
    assert carries(after, silent) is None
    agent.object.maps["connections"].update(there[4].fileno(), known(77) | {"asked": 200})
    agent.object.maps["connections"].update(late.fileno(), known(78))
    there.pop(9).close()
    assert migrating.copy() == len(there) + 1
    assert carries(after, there[4]) == known(77) | {"asked": 200, "added": 0}
    assert carries(after, late) == known(78) | {"added": 0}


def test_mappings_go_over_too_and_those_that_are_gone_do_not_stay(
    agent: Agent, upgraded: Upgraded, upgraded_object: Path
) -> None:
    other = Tuple(CLIENT, ALICE.port + 1, LOCAL, LOCAL_PORT)
    agent.put_mapping(LOCAL_TUPLE, ALICE)
    agent.put_mapping(other, ALICE)
    after, migrating = upgraded(upgraded_object)
    assert migrating.copy() == 2
    agent.object.maps["mappings"].delete(other.key)
    assert migrating.copy() == 1
    assert after.maps["mappings"].lookup(other.key) is None
    assert after.maps["mappings"].lookup(LOCAL_TUPLE.key) == agent.mapping(LOCAL_TUPLE) | {"added": 0}  # type: ignore[operator]


def test_the_next_version_goes_on_with_a_connection(agent: Agent, upgraded: Upgraded, upgraded_object: Path) -> None:
    agent.put_mapping(LOCAL_TUPLE, ALICE)
    after, migrating = upgraded(upgraded_object)
    migrating.copy()
    for key, value in agent.object.maps["services"].items():
        after.maps["services"].update(key, value)
    later = ALICE.data(b"b" * 99, len(HEAD))
    assert after.programs["rauta_agent_ingress"].test_run(carried(later)).data == delivered(later)


def test_what_cannot_go_over_is_refused_before_anything_is_loaded(
    agent: Agent, tmp_path: Path, sockets: list[socket.socket]
) -> None:
    """A member that became narrower may hold too much on some socket; nobody could say so in time."""
    agent.object.maps["connections"].update(sockets[0].fileno(), known(1))
    with BpfObject.open(next_version("agent", NARROWED, tmp_path)) as after:
        with pytest.raises(RautaError, match=r"heads: .* became .*\nIts connections cannot go over. Drain the backend"):
            migration.adopt(after, ("connections",), agent.object.maps)
        assert not after.programs["rauta_carry"].loaded
