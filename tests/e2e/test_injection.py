"""Somebody who knows a connection's addresses and ports, but sees none of its packets, sends into it while it is busy.

Thousands of segments with random numbers, of every kind: the transfer ends intact, and the flow entry is as it was.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from e2e.bench import Bench, Conversation, eventually, request
from e2e.wire import segment
from lab.contenders.rauta import RunningRauta
from lab.servers import content

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

FORGED = 3000
UPLOAD = content(400_000)
LONG = content(5_000_000)
LATER = request("/web")
"""of another cluster than the connection's"""
KINDS: dict[str, tuple[str, bytes]] = {
    "RST": ("R", b""),
    "RST and ACK": ("RA", b""),
    "FIN": ("FA", b""),
    "SYN": ("S", b""),
    "a request": ("PA", LATER),
    "a request and FIN": ("FPA", LATER),
    "data": ("PA", b"x" * 1000),
    "an acknowledgement": ("A", b""),
}
FIELDS = ("isn", "cookie", "request_seq", "next_request_seq", "request_ack", "backend", "cluster", "state", "first")
"""of the flow entry: who it is, where it goes, and where its next request starts"""


def flow_of(routed: Bench, connection: Conversation) -> dict[str, Any]:
    """What the router knows of a connection, but for the SYN that it may have noted."""
    assert isinstance(routed.running, RunningRauta)
    sets = [one for _, one in routed.running.router.object.maps["flows"].items_batch()]
    entries = [flow for one in sets for tag, flow in zip(one["tag"], one["flow"], strict=True) if tag]
    (found,) = [flow for flow in entries if socket.ntohs(flow["tuple"]["client_port"]) == connection.port]
    return {name: found[name] for name in FIELDS}


def inject(routed: Bench, connection: Conversation, flags: str, payload: bytes, seed: int) -> None:
    """Sends FORGED segments of a kind on the connection's tuple, and waits until the router has seen them all."""
    random = Random(seed)
    mine, vip = (routed.client.address, connection.port), routed.vip("shop")
    before = seen(routed)
    with routed.client.entered():
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with sock:
        template = bytearray(segment(mine, vip, flags, seq=0, payload=payload))
        for _ in range(FORGED):
            sock.sendto(numbered(template, random.getrandbits(32), random.getrandbits(32)), (str(vip[0]), 0))
    eventually(lambda: seen(routed) >= before + FORGED, "the forged segments to be counted")


def seen(routed: Bench) -> int:
    """Packets that have left the router's program."""
    assert isinstance(routed.running, RunningRauta)
    return sum(routed.running.router.counters().values())


def numbered(template: bytearray, seq: int, ack: int) -> bytes:
    """The packet with other numbers, and a checksum that is right again (RFC 1624: ~(~sum + ~old + new))."""
    packet = bytearray(template)
    packet[24:28], packet[28:32] = seq.to_bytes(4, "big"), ack.to_bytes(4, "big")
    words = (seq >> 16, seq & 0xFFFF, ack >> 16, ack & 0xFFFF)
    total = (~int.from_bytes(packet[36:38], "big") & 0xFFFF) + sum(words)  # the template's numbers are 0
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    packet[36:38] = (~total & 0xFFFF).to_bytes(2, "big")
    return bytes(packet)


def download(connection: Conversation, meanwhile: Callable[[], None]) -> None:
    """A large answer, with a pause in its midst."""
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 50_000)
    connection.sock.sendall(request("/api/download"))
    assert connection.sock.recv(1, socket.MSG_PEEK)
    meanwhile()
    answer = connection.answer()
    assert (answer.status, answer.backend, answer.body == LONG) == (200, "api-1", True)


def upload(connection: Conversation, meanwhile: Callable[[], None]) -> None:
    """A large body, with a pause in its midst; the server says how much has come."""
    head = request("/api/x", f"Content-Length: {len(UPLOAD)}", method="POST")
    half = len(UPLOAD) // 2
    connection.sock.sendall(head + UPLOAD[:half])
    meanwhile()
    connection.sock.sendall(UPLOAD[half:])
    answer = connection.answer("POST")
    assert (answer.status, answer.backend, answer.headers["x-received"]) == (200, "api-1", str(len(UPLOAD)))


@pytest.mark.parametrize("transfer", [download, upload])
@pytest.mark.parametrize("kind", KINDS)
def test_a_blind_attacker_changes_nothing(
    routed: Bench, transfer: Callable[[Conversation, Callable[[], None]], None], kind: str
) -> None:
    flags, payload = KINDS[kind]
    with routed.connected() as connection:
        assert connection.ask("/api/x").backend == "api-1"

        def attack() -> None:
            before = flow_of(routed, connection)
            inject(routed, connection, flags, payload, seed=len(kind))
            assert flow_of(routed, connection) == before

        grown = routed.growth()
        transfer(connection, attack)
        assert connection.ask("/api/x").backend == "api-1"
        assert (grown["ROUTED_FIRST"], grown["ROUTED_NEXT"]) == (0, 2), grown
