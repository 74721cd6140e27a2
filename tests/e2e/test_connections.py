"""What passes on the client's wire: only ever packets of the VIP, however a connection ends, and after its end."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from e2e.bench import Bench, eventually, request
from e2e.wire import Capture, Endpoint, Packet, capture, send
from lab.checks.state import sockets

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root"),
    pytest.mark.usefixtures("nothing_is_sent_twice"),
]

TIME_WAIT = "06"
ABORT = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
"""set on a socket, makes its close a reset"""


# ---- ends of a connection to the VIP `strict`, whose cluster `quiet` is there for this -----------------


def the_client_closes(routed: Bench) -> int:
    with routed.connected(routed.vip("strict")) as connection:
        assert connection.ask("/api/x").backend == "quiet-1"
        assert connection.ask("/api/y").backend == "quiet-1"
    return connection.port


def the_client_says_nothing(routed: Bench) -> int:
    with routed.connected(routed.vip("strict")) as connection:
        pass
    return connection.port


def the_client_aborts(routed: Bench) -> int:
    with routed.connected(routed.vip("strict")) as connection:
        assert connection.ask("/api/x").backend == "quiet-1"
        connection.sock.setsockopt(*ABORT)
    return connection.port


def the_server_closes(routed: Bench) -> int:
    with routed.connected(routed.vip("strict")) as connection:
        assert connection.ask("/api/x", "Connection: close").backend == "quiet-1"
        assert connection.ended()
    return connection.port


def the_server_dies(routed: Bench) -> int:
    with routed.connected(routed.vip("strict")) as connection:
        assert connection.ask("/api/x").backend == "quiet-1"
        routed.network.hosts["quiet-1"].stop_all()
        assert connection.ended()
        connection.sock.sendall(request("/api/x"))
        eventually(lambda: not routed.sockets_of("quiet-1", connection.port), "the backend's socket to be gone")
    return connection.port


def nobody_listens(routed: Bench) -> int:
    routed.network.hosts["quiet-1"].stop_all()
    with routed.connected(routed.vip("strict")) as connection:
        connection.sock.sendall(request("/api/x"))
        with pytest.raises(ConnectionResetError):
            connection.sock.recv(1)
    return connection.port


def nothing_is_routed(routed: Bench) -> int:
    with routed.connected(routed.vip("strict")) as connection:
        connection.sock.sendall(request("/nowhere"))
        with pytest.raises(ConnectionResetError):
            connection.sock.recv(1)
    return connection.port


@pytest.fixture
def quiet_again(routed: Bench) -> Iterator[None]:
    """A server in the cluster `quiet`, whatever the test did to it."""
    yield
    routed.network.hosts["quiet-1"].stop_all()
    routed.restart_server("quiet")


def wait_for_the_end(routed: Bench, port: int) -> None:
    """Until neither side of a connection to `strict` has anything left to say."""

    def over() -> bool:
        left = [one for one in sockets(routed.client) if one.local[1] == port] + routed.sockets_of("quiet-1", port)
        return {one.state for one in left} <= {TIME_WAIT}

    eventually(over, f"the connection of port {port} to be over on both sides")


def strangers(wire: Capture, vip: Endpoint) -> list[Packet]:
    """What came from anywhere else than the VIP."""
    return [packet for packet in wire.received() if packet.source != vip]


@pytest.mark.usefixtures("quiet_again")
@pytest.mark.parametrize(
    "end",
    [
        the_client_closes,
        the_client_says_nothing,
        the_client_aborts,
        the_server_closes,
        the_server_dies,
        nobody_listens,
        nothing_is_routed,
    ],
)
def test_the_client_hears_nobody_but_the_vip(routed: Bench, end: Callable[[Bench], int]) -> None:
    with capture(routed.client) as wire:
        wait_for_the_end(routed, end(routed))
        assert strangers(wire, routed.vip("strict")) == []
        flags = [packet.flags for packet in wire.received()]
        assert flags[0] == "SA"
        assert any("F" in flag or "R" in flag for flag in flags) or end is the_client_aborts, flags


@pytest.mark.usefixtures("quiet_again")
@pytest.mark.parametrize("end", [the_client_closes, the_client_aborts, the_server_closes])
def test_nor_when_everything_is_sent_once_more(routed: Bench, end: Callable[[Bench], int]) -> None:
    """By the network, or by somebody who listened: what old packets provoke comes from the VIP, and leaves nothing."""
    with capture(routed.client) as wire:
        port = end(routed)
        wait_for_the_end(routed, port)
        heard = len(wire.received())
        for packet in wire.sent():
            send(routed.client, packet.raw)
        eventually(lambda: len(wire.received()) > heard, "an answer to the packets that were sent once more")
        wait_for_the_end(routed, port)
        assert strangers(wire, routed.vip("strict")) == []


def test_a_reset_connections_port_is_free_for_the_other_cluster(routed: Bench) -> None:
    """The first one's backend was told nothing: what it still holds must not be in the way, in either direction."""
    with routed.connected() as connection:
        assert connection.ask("/api/x").backend == "api-1"
        grown = routed.growth()
        connection.sock.sendall(request("/api//x"))  # which the router does not route
        with pytest.raises(ConnectionResetError):
            connection.sock.recv(1)
        port = connection.port
    assert grown["TX_BAD_REQUEST"] == 1, grown
    for path, cluster in (("/web", "web"), ("/api/x", "api")):
        with routed.connected(port=port) as connection:
            answer = connection.ask(path)
            assert (answer.status, answer.backend in routed.network.clusters[cluster]) == (200, True)
            connection.sock.setsockopt(*ABORT)


def test_connections_do_not_mix(routed: Bench) -> None:
    """Many at once, each with requests for its own cluster, in turn."""
    paths = {"/api/x": "api", "/web": "web"}
    with ExitStack() as stack:
        connections = [(stack.enter_context(routed.connected()), path) for path in [*paths] * 25]
        for _ in range(5):
            for connection, path in connections:
                assert connection.ask(path).backend in routed.network.clusters[paths[path]]
        for connection, path in connections:
            assert any(routed.established(name, connection.port) for name in routed.network.clusters[paths[path]])
