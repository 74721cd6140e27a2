"""How connections end, and how their ports are used again: nothing of the old one gets in the new one's way."""

from __future__ import annotations

import os
import socket
import struct

import pytest

from e2e.bench import Bench, eventually
from e2e.wire import capture
from lab.contenders.rauta import RunningRauta
from lab.servers import content
from rauta import tables

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root"),
    pytest.mark.usefixtures("nothing_is_sent_twice"),
]

BODY = content(13)
SEGMENTS = content(5_000)
"""several segments"""
TIME_WAIT = "06"
TUPLE = ("client", "server", "client_port", "server_port")
"""struct tuple of bpf/contract.h"""
TCP_REPAIR = 19
"""include/uapi/linux/tcp.h; Python has no name for it. A socket under repair closes without a word."""
ABORT = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
"""set on a socket, makes its close a reset"""


def test_the_last_acknowledgement_of_a_long_connection_leaves_in_the_vips_name(routed: Bench) -> None:
    """Its mapping may long be evicted from the agent's map; in TIME_WAIT there is no socket any more to carry it."""
    assert isinstance(routed.running, RunningRauta)
    agent, server = routed.running.agents["api-1"], routed.network.hosts["api-1"].address
    with capture(routed.client) as wire:
        with routed.connected() as connection:
            for _ in range(3):  # from its second segment on the socket itself carries the translation
                assert connection.ask("/api/x").backend == "api-1"
            ends = tables.be32(routed.client.address), tables.be32(server)
            ports = tables.be16(connection.port), tables.be16(8080)
            assert agent.object.maps["mappings"].delete(dict(zip(TUPLE, ends + ports, strict=True)))
            assert connection.ask("/api/x", "Connection: close").body == BODY
            assert connection.ended()
            (servers,) = (packet for packet in wire.received() if "F" in packet.flags)
            eventually(
                lambda: any(one.ack == servers.after for one in wire.sent()), "the client to acknowledge the end"
            )
        eventually(lambda: any("F" in packet.flags for packet in wire.sent()), "the client's end")
        (end,) = (packet for packet in wire.sent() if "F" in packet.flags)
        eventually(lambda: any(one.ack == end.after for one in wire.received()), "the acknowledgement of it")
        assert {packet.source for packet in wire.received()} == {end.destination}


def test_a_port_can_be_used_again_as_soon_as_the_server_has_closed(routed: Bench) -> None:
    """Each time the backend still holds the last connection in TIME_WAIT; the POST's later segments may overtake."""
    grown = routed.growth()
    port = 0
    for number in range(50):
        with routed.connected(port=port) as connection:
            port = connection.port
            body = SEGMENTS if number % 2 else b""
            answer = connection.ask("/api/x", "Connection: close", method="POST" if body else "GET", body=body)
            assert (answer.status, answer.headers.get("x-received", "0")) == (200, str(len(body)))
            assert connection.ended()
        assert [one.state for one in routed.sockets_of("api-1", port)] == [TIME_WAIT]
    assert grown["AGENT_CLEARING"] == 49, grown


def test_a_client_that_died_may_come_back_on_its_port(routed: Bench) -> None:
    """The backend still holds the old connection, established: it ends for the new one's sake."""
    with routed.connected() as connection:
        connection.ask("/api/x")
        port = connection.port
        connection.sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    assert routed.established("api-1", port)
    grown = routed.growth()
    with routed.connected(port=port) as connection:
        assert connection.ask("/api/x", method="POST", body=SEGMENTS).headers["x-received"] == str(len(SEGMENTS))
    assert grown["AGENT_CLEARING"] == 1, grown


def test_a_clients_reset_reaches_the_backend(routed: Bench) -> None:
    with routed.connected() as connection:
        connection.ask("/api/x")
        port = connection.port
        assert routed.established("api-1", port)
        connection.sock.setsockopt(*ABORT)
    routed.wait_until_gone("api-1", port)


def test_a_clients_close_reaches_the_backend(routed: Bench) -> None:
    with routed.connected() as connection:
        connection.ask("/api/x")
        port = connection.port
        assert routed.established("api-1", port)
    routed.wait_until_gone("api-1", port)
