"""A connection's first packet sent once more, late, by the network or by somebody who listened: its request is executed
once, by the server's own log. From the client's link it reaches the router; from the router's, encapsulated, the agent.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from e2e.bench import SECONDS, Bench, Conversation, Growth, eventually, request
from e2e.wire import Capture, Packet, capture, send
from lab.checks.state import sockets
from lab.contenders.rauta import RunningRauta
from lab.servers import content
from lab.servers.nginx import LOG
from rauta import tables

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

LATE = (0.0, 0.1, 1.0, 5.0)
"""seconds after the connections' end"""
PATIENCE = 10.0
SERVER = "quiet-1"
PORT = 8080
BODY = content(100)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
TIME_WAIT = "06"
MAPPING_CLEARING = 2
"""bpf/contract.h"""
ABORT = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
"""set on a socket, makes its close a reset"""


def executed(routed: Bench, path: str) -> int:
    """How many POSTs of a path the server's log has, over all its starts."""
    logs = routed.network.run.scratch.glob(f"{SERVER}-*/{LOG}")
    return sum(line.endswith(f" POST {path}") for log in logs for line in log.read_text().splitlines())


def post(path: str, *headers: str) -> bytes:
    return request(path, *headers, method="POST", body=BODY)


class First:
    """A connection's first request, as it passed on the client's link and, encapsulated, on the backend's."""

    def __init__(self, routed: Bench, path: str, clients: Capture, backends: Capture) -> None:
        self.routed = routed
        self.path = path
        wanted = f"POST {path} ".encode()
        self.segment: Packet = next(packet for packet in clients.sent() if packet.payload.startswith(wanted))
        self.carried = next(packet for packet in backends.ipv4(socket.IPPROTO_IPIP) if wanted in packet)

    def again_to_the_router(self) -> None:
        send(self.routed.client, self.segment.raw)

    def again_to_the_agent(self) -> None:
        send(self.routed.network.router, self.carried)

    @property
    def port(self) -> int:
        return self.segment.source[1]


@contextmanager
def captured(routed: Bench) -> Iterator[Callable[[str], First]]:
    """What finds a path's first packet afterwards."""
    with capture(routed.client) as clients, capture(routed.network.hosts[SERVER]) as backends:
        yield lambda path: First(routed, path, clients, backends)


def wait_for_the_end(routed: Bench, port: int) -> None:
    """Until neither side of a connection has anything left to say."""

    def over() -> bool:
        left = [one for one in sockets(routed.client) if one.local[1] == port] + routed.sockets_of(SERVER, port)
        return {one.state for one in left} <= {TIME_WAIT}

    eventually(over, f"the connection of port {port} to be over on both sides")


# ---- connections that are over --------------------------------------------------------------------------


def the_server_closes(connection: Conversation, path: str) -> None:
    assert connection.ask(path, "Connection: close", method="POST", body=BODY).backend == SERVER
    assert connection.ended()


def the_client_closes(connection: Conversation, path: str) -> None:
    assert connection.ask(path, method="POST", body=BODY).backend == SERVER


def the_client_closes_later(connection: Conversation, path: str) -> None:
    for number in range(3):
        target = path if number == 0 else f"/api/later/{number}"
        assert connection.ask(target, method="POST", body=BODY).backend == SERVER


def the_client_aborts(connection: Conversation, path: str) -> None:
    assert connection.ask(path, method="POST", body=BODY).backend == SERVER
    connection.sock.setsockopt(*ABORT)


ENDS = (the_server_closes, the_client_closes, the_client_closes_later, the_client_aborts)


def dropped(grown: Growth) -> int:
    """How many replays were dropped: by the agent, or by the router where the first request is not its newest."""
    return grown["AGENT_DROP_REPLAYED"] + grown["DROP_CHANGED"]


def test_a_request_is_executed_once_however_late_its_packet_comes_again(routed: Bench) -> None:
    with captured(routed) as first_of:
        paths = [f"/api/{end.__name__}" for end in ENDS]
        for end, path in zip(ENDS, paths, strict=True):
            with routed.connected(routed.vip("strict")) as connection:
                end(connection, path)
            wait_for_the_end(routed, connection.port)
        firsts = [first_of(path) for path in paths]
        ended, grown = time.monotonic(), routed.growth()
        for count, late in enumerate(LATE, start=1):
            eventually(lambda late=late: time.monotonic() >= ended + late, "the replay's time", PATIENCE)
            for first in firsts:
                first.again_to_the_router()
                first.again_to_the_agent()
            eventually(lambda count=count: dropped(grown) == 2 * len(ENDS) * count, "all of them to be dropped")
        assert (grown["AGENT_OPENED"], grown["AGENT_CLEARING"]) == (0, 0), grown
        assert grown["AGENT_DROP_REPLAYED"] >= len(ENDS) * len(LATE), grown
    assert [executed(routed, path) for path in paths] == [1] * len(paths)
    assert not [one for first in firsts for one in routed.sockets_of(SERVER, first.port) if one.state != TIME_WAIT]


def test_an_old_connections_first_packet_does_not_touch_the_newer_ones_on_its_port(routed: Bench) -> None:
    """Nor what the newer one leaves in TIME_WAIT."""
    with captured(routed) as first_of:
        with routed.connected(routed.vip("strict")) as connection:
            the_server_closes(connection, "/api/old")
        old = first_of("/api/old")
        with routed.connected(routed.vip("strict"), port=old.port) as connection:
            assert connection.ask("/api/new", method="POST", body=BODY).backend == SERVER
            grown = routed.growth()
            for count in range(1, 4):
                old.again_to_the_agent()
                eventually(lambda count=count: grown["AGENT_DROP_REPLAYED"] == count, "the old packet to be dropped")
                assert connection.ask("/api/new", method="POST", body=BODY).backend == SERVER
            assert connection.ask("/api/new", "Connection: close", method="POST", body=BODY).backend == SERVER
            assert connection.ended()
        old.again_to_the_agent()
        eventually(lambda: grown["AGENT_DROP_REPLAYED"] == 4, "the old packet to be dropped")
        assert grown["AGENT_CLEARING"] == 0, grown
        assert [one.state for one in routed.sockets_of(SERVER, old.port)] == [TIME_WAIT]
    assert (executed(routed, "/api/old"), executed(routed, "/api/new")) == (1, 5)


def test_a_retransmission_goes_to_the_socket_that_it_opened(routed: Bench) -> None:
    with captured(routed) as first_of, routed.connected(routed.vip("strict")) as connection:
        assert connection.ask("/api/alive", method="POST", body=BODY).backend == SERVER
        grown = routed.growth()
        first_of("/api/alive").again_to_the_router()
        first_of("/api/alive").again_to_the_agent()
        eventually(lambda: grown["AGENT_OPENED_ALREADY"] == 2, "both to be delivered")
        assert connection.ask("/api/alive/2", method="POST", body=BODY).backend == SERVER
    assert executed(routed, "/api/alive") == 1
    assert grown["AGENT_DROP_REPLAYED"] == 0, grown


# ---- connections that the server never answered ---------------------------------------------------------


@pytest.fixture
def without_server(routed: Bench) -> Iterator[Bench]:
    """The cluster `quiet`, behind the VIP `strict`, without nginx."""
    routed.network.hosts[SERVER].stop_all()
    yield routed
    routed.restart_server("quiet")


@contextmanager
def listening(routed: Bench, backlog: int = 8) -> Iterator[socket.socket]:
    """A listener of our own there."""
    host = routed.network.hosts[SERVER]
    with host.entered():
        listener = socket.create_server((str(host.address), PORT), backlog=backlog)
    with listener:
        listener.settimeout(SECONDS)
        yield listener


def reset_by_peer(connection: Conversation) -> bool:
    try:
        return connection.sock.recv(1) == b"never"
    except ConnectionResetError:
        return True


def nothing_comes(listener: socket.socket) -> bool:
    """Whether the accept queue is empty."""
    listener.settimeout(0)
    try:
        listener.accept()
    except BlockingIOError:
        return True
    return False


def test_what_was_refused_is_not_executed_later(without_server: Bench) -> None:
    """The client was told that its connection is reset. Until somebody listens, it is told so again and again."""
    with captured(without_server) as first_of:
        grown = without_server.growth()
        with without_server.connected(without_server.vip("strict")) as connection:
            connection.sock.sendall(post("/api/refused"))
            assert reset_by_peer(connection)
        refused = first_of("/api/refused")
        refused.again_to_the_agent()
        eventually(lambda: grown["AGENT_NO_LISTENER"] == 2, "it to be refused again")
        with listening(without_server) as listener:
            refused.again_to_the_agent()
            refused.again_to_the_router()
            eventually(lambda: grown["AGENT_DROP_REPLAYED"] == 2, "both to be dropped")
            assert nothing_comes(listener)


def test_a_server_that_only_resets_has_had_its_request(without_server: Bench) -> None:
    """The reset is all that ever leaves of that socket, and leaves when it has given its port back already."""
    with captured(without_server) as first_of, listening(without_server) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        with capture(without_server.client) as wire, without_server.connected(without_server.vip("strict")) as asking:
            grown = without_server.growth()
            asking.sock.sendall(post("/api/aborted"))
            with listener.accept()[0] as accepted:
                accepted.setsockopt(*ABORT)
            assert reset_by_peer(asking)
            assert [packet.flags for packet in wire.received()] == ["SA", "RA"]
        first_of("/api/aborted").again_to_the_agent()
        first_of("/api/aborted").again_to_the_router()
        eventually(lambda: grown["AGENT_DROP_REPLAYED"] == 2, "both to be dropped")
        assert nothing_comes(listener)


def test_what_the_accept_queue_had_no_room_for_may_come_again(without_server: Bench) -> None:
    """Nothing has been executed: it is no replay. Each is accepted once."""
    with ExitStack() as stack:
        listener = stack.enter_context(listening(without_server, backlog=0))
        grown = without_server.growth()
        connections = [stack.enter_context(without_server.connected(without_server.vip("strict"))) for _ in range(3)]
        for number, connection in enumerate(connections):
            connection.sock.sendall(post(f"/api/queued/{number}"))
        eventually(lambda: grown["AGENT_OPENED"] > len(connections), "a request to be sent again")
        asked = []
        for _ in connections:
            accepted = stack.enter_context(listener.accept()[0])
            asked.append(accepted.recv(4096))
            accepted.sendall(OK)
        for connection in connections:
            assert connection.answer().body == b"ok"
        assert sorted(asked) == [post(f"/api/queued/{number}") for number in range(3)]
        assert grown["AGENT_DROP_REPLAYED"] == 0, grown
        assert nothing_comes(listener)


def test_what_its_client_has_given_up_is_never_executed(without_server: Bench) -> None:
    """The accept queue had no room; then the client used its port for another connection. The old packet, late, would
    end that one."""
    vip = without_server.vip("strict")
    with ExitStack() as stack:
        first_of = stack.enter_context(captured(without_server))
        listener = stack.enter_context(listening(without_server, backlog=0))
        grown = without_server.growth()
        filler = stack.enter_context(without_server.connected(vip))
        filler.sock.sendall(post("/api/filler"))
        eventually(lambda: grown["AGENT_EGRESS_TRANSLATED"] > 0, "the accept queue to be full")
        with without_server.connected(vip) as given_up:
            given_up.sock.sendall(post("/api/given-up"))
            eventually(lambda: grown["AGENT_OPENED"] >= 2, "the request to be dropped by the kernel")
            given_up.sock.setsockopt(*ABORT)
        with without_server.connected(vip, port=given_up.port) as newer:
            newer.sock.sendall(post("/api/newer"))
            eventually(lambda: grown["AGENT_OPENED"] >= 3, "the newer request to be there")
            accepted = [stack.enter_context(listener.accept()[0]) for _ in range(2)]
            assert [one.recv(4096) for one in accepted] == [post("/api/filler"), post("/api/newer")]
            first_of("/api/given-up").again_to_the_agent()
            eventually(lambda: grown["AGENT_DROP_REPLAYED"] == 1, "the late packet to be dropped")
            accepted[1].sendall(OK)
            assert newer.answer().body == b"ok"
        assert nothing_comes(listener)


# ---- what an old socket still says ----------------------------------------------------------------------


@pytest.mark.parametrize("answers", [0, 2], ids=["not yet carrying its translation", "carrying it"])
def test_an_old_sockets_segments_are_not_the_newer_connections(without_server: Bench, answers: int) -> None:
    """The newer one's first request is here, and waits for the old socket's end. Meanwhile that has something to say,
    and closes: still in the VIP's name. It proves nothing about the newer one, and takes no entry from it.
    """
    assert isinstance(without_server.running, RunningRauta)
    agent = without_server.running.agents[SERVER].object
    with listening(without_server) as listener, without_server.connected(without_server.vip("strict")) as connection:
        grown = without_server.growth()
        connection.sock.sendall(post("/api/old"))
        with listener.accept()[0] as accepted:
            assert accepted.recv(4096) == post("/api/old")
            eventually(lambda: grown["AGENT_EGRESS_TRANSLATED"] == 1, "the request to be acknowledged")
            for _ in range(answers):
                accepted.sendall(OK)
                assert connection.answer().body == b"ok"
            key = {
                "client": tables.be32(without_server.client.address),
                "server": tables.be32(without_server.network.hosts[SERVER].address),
                "client_port": tables.be16(connection.port),
                "server_port": tables.be16(PORT),
            }
            newer = agent.maps["mappings"].lookup(key)
            newer |= {"isn": newer["isn"] + 1 & 0xFFFFFFFF, "state": MAPPING_CLEARING}
            agent.maps["mappings"].update(key, newer)
            accepted.sendall(OK)
            assert connection.answer().body == b"ok"
        assert connection.ended()
        assert agent.maps["mappings"].lookup(key) == newer
