"""A client that has its flow forgotten, and then says something else in the place of its first request."""

from __future__ import annotations

import os

import pytest
from scapy.layers.inet import IP, TCP
from scapy.packet import Raw

from e2e.bench import Bench, eventually, request
from e2e.wire import Packet, capture, send
from lab.contenders.rauta import RunningRauta
from lab.servers import content

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

LONGER = "X: " + "x" * 100
"""a header line that makes the first request longer than what comes in its place"""
SWALLOWS_ALL = request("/api/x", "Content-Length: 1000000000", method="POST")


def instead_of(first: Packet, payload: bytes) -> bytes:
    """The same segment with another payload."""
    packet = IP(first.raw)
    del packet.len, packet.chksum, packet[TCP].chksum
    packet[TCP].remove_payload()
    return bytes(packet / Raw(payload))


def forget_all_flows(routed: Bench) -> None:
    assert isinstance(routed.running, RunningRauta)
    routed.running.router.object.maps["flows"].clear()


def test_another_first_request_ends_the_connection(routed: Bench) -> None:
    """Otherwise the router would take /web for a part of the long body, and the server that /api leads to answer it."""
    with capture(routed.client) as wire, routed.connected() as connection:
        assert connection.ask("/api/x", LONGER).backend == "api-1"
        first = next(packet for packet in wire.sent() if packet.payload)
        forget_all_flows(routed)
        grown = routed.growth()
        send(routed.client, instead_of(first, SWALLOWS_ALL))
        eventually(lambda: grown["AGENT_ENDING"] == 1, "the agent to end the connection")
        connection.sock.sendall(request("/web/y"))
        with pytest.raises(ConnectionResetError):
            connection.sock.recv(1)
    assert grown["requests_routed"] == 1


def test_the_same_first_request_does_not(routed: Bench) -> None:
    """A late duplicate, by a router that has forgotten the flow: nobody is harmed."""
    with capture(routed.client) as wire, routed.connected() as connection:
        assert connection.ask("/api/x").body == content(13)
        first = next(packet for packet in wire.sent() if packet.payload)
        forget_all_flows(routed)
        grown = routed.growth()
        send(routed.client, first.raw)
        eventually(lambda: grown["AGENT_OPENED_ALREADY"] == 1, "the duplicate to be delivered")
        assert connection.ask("/api/x").body == content(13)
    assert grown["AGENT_ENDING"] == 0
