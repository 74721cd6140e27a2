"""A connection whose flow entry is gone goes on; what belongs to nobody opens nothing, and costs what was stated.

Two routers, real agents, real servers; docs/recovery.md.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from e2e.bench import HOST, Bench, Conversation, bench, eventually, request
from e2e.wire import capture, segment, send
from lab.checks.state import sockets
from lab.clients import short
from lab.contenders.rauta import RunningRauta
from lab.servers import content
from rauta.asking.asks import LOST_BURST
from rauta.asking.questions import RESET_SECONDS
from rauta.asking.recovery import Recovery
from rauta.router import Router

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

FILE = Path(__file__).parent / "data" / "recovery.yaml"
BODY, SIZE = content(13), 24_000_000
BACKENDS = ("web-1", "web-2", "api-1")
FLOW_RECOVERED = 4
SMALL_BUFFER = (socket.SOL_SOCKET, socket.SO_RCVBUF, 200_000)
"""so that a client that does not read soon has the server wait"""
FREE_PORT = 1999
"""of the client's, which nobody uses"""
PIECE = 1 << 20


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench("rauta", tmp_path_factory.mktemp("logs"), FILE) as one:
        yield one


def running(routed: Bench) -> RunningRauta:
    assert isinstance(routed.running, RunningRauta)
    return routed.running


def flows(routed: Bench, router: int = 0) -> dict[int, dict[str, Any]]:
    """The entries of a router\'s flow table, by the client\'s port."""
    sets = [one for _, one in running(routed).routers[router].object.maps["flows"].items_batch()]
    entries = [(tag, flow) for one in sets for tag, flow in zip(one["tag"], one["flow"], strict=True)]
    return {socket.ntohs(flow["tuple"]["client_port"]): flow for tag, flow in entries if tag}


def is_recovered(routed: Bench, port: int, router: int = 0) -> bool:
    flow = flows(routed, router).get(port)
    return flow is not None and flow["state"] == FLOW_RECOVERED


# ---- downloads ------------------------------------------------------------------------------------------


class Download:
    """A download of SIZE bytes that is read piece by piece."""

    def __init__(self, connection: Conversation) -> None:
        self.connection = connection
        self.body = bytearray()
        connection.sock.sendall(request("/api/download"))
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.sock.recv(1)
        assert f"Content-Length: {SIZE}\r\n".encode() in head

    def read(self, size: int) -> None:
        """So many bytes more."""
        end = len(self.body) + size
        while len(self.body) < end:
            piece = self.connection.sock.recv(min(PIECE, end - len(self.body)))
            assert piece, f"it ended after {len(self.body)} bytes"
            self.body += piece

    def finish(self) -> None:
        """The rest, and that it is what the server has sent."""
        self.read(SIZE - len(self.body))
        assert self.body == content(SIZE)

    def went_on_with(self, routed: Bench, router: int) -> None:
        """On the same connection, so nobody has reset it: thanks to an entry that this router has recovered."""
        self.finish()
        assert is_recovered(routed, self.connection.port, router)
        assert running(routed).routers[router].counters()["DROP_ASKED"] > 0
        assert running(routed).recoveries[router].counters()["flows_recovered"] > 0


@contextmanager
def downloading(routed: Bench) -> Iterator[Download]:
    """One in mid-stream."""
    with routed.connected(options=[SMALL_BUFFER]) as connection:
        download = Download(connection)
        download.read(PIECE)
        assert connection.port in flows(routed)
        yield download


VISITS = 2000
FIRST_PORTS = range(2000, 32_000, VISITS)
"""of visitors: below what the kernel chooses, and none twice, as long as a last acknowledgement may be lost"""


def visit(routed: Bench, first_port: int) -> dict[str, Any]:
    """Many short connections of real requests."""
    address, port = routed.vip("shop")
    plan = {"address": str(address), "port": port, "host": HOST, "path": "/web", "expected": BODY.decode()}
    plan |= {"first_port": first_port, "ports": VISITS, "count": VISITS, "concurrency": 64, "post_every": 0, "body": 0}
    argv = [sys.executable, str(Path(short.__file__)), json.dumps(plan | {"seconds": 5})]
    report: dict[str, Any] = json.loads(routed.client.run(argv, timeout=60).stdout)
    return report


def test_one_whose_entry_was_evicted_goes_on(routed: Bench) -> None:
    """Its client pauses, so that it is the one that was not used lately, and thousands of others come."""
    with downloading(routed) as download:
        ports = iter(FIRST_PORTS)
        while download.connection.port in flows(routed):
            report = visit(routed, next(ports))
            assert (report["answered"], report["failed"]) == (VISITS, 0), report
        download.went_on_with(routed, 0)


@contextmanager
def way_of_the_client(routed: Bench, router: str) -> Iterator[None]:
    """The client\'s packets to the VIP go to that router, as after a change in the network."""
    (vip, _), hosts = routed.vip("shop"), routed.network.hosts

    def lead(to: str) -> None:
        argv = ["ip", "route", "replace", f"{vip}/32", "via", str(hosts[to].address), "dev", "eth0", "onlink"]
        routed.client.run(argv, timeout=5)

    lead(router)
    try:
        yield
    finally:
        lead("router-1")


def test_one_whose_packets_come_to_another_router_goes_on(routed: Bench) -> None:
    with downloading(routed) as download:
        download.read(8 * PIECE)
        assert download.connection.port not in flows(routed, 1)
        with way_of_the_client(routed, "router-2"):
            download.went_on_with(routed, 1)


def test_one_whose_router_was_replaced_goes_on(routed: Bench) -> None:
    """By one with an empty table and the same keys."""
    one, host = running(routed), routed.network.router
    with downloading(routed) as download, ExitStack() as undo:
        download.read(8 * PIECE)
        router = undo.enter_context(Router.load(one.config, one.router.keys))
        assert isinstance(one.routers, list)
        assert isinstance(one.recoveries, list)
        one.recoveries[0].close()
        one.routers[0].close()
        with host.entered():
            router.attach(*routed.network.interfaces(host), mode="native")
            recovery = undo.enter_context(Recovery(router))
        one.routers[0], one.recoveries[0] = router, recovery
        undo.pop_all()
        download.went_on_with(routed, 0)


# ---- what may not go on ---------------------------------------------------------------------------------


def test_an_upload_is_reset_and_nothing_of_it_is_delivered(routed: Bench) -> None:
    """Nobody knows whether its next bytes are a body or a request."""
    half = bytes(50_000)
    with routed.connected() as connection:
        connection.sock.sendall(request("/api/x", f"Content-Length: {2 * len(half)}", method="POST") + half)
        eventually(lambda: unacknowledged(connection.sock) == 0, "the first half to arrive")
        delivered = routed.growth()
        running(routed).router.object.maps["flows"].clear()
        connection.sock.sendall(half)
        with pytest.raises(ConnectionResetError):
            connection.sock.recv(1)
        assert delivered["TX_RESET_RECOVERED"] > 0
        assert delivered["FORWARDED"] == 0


def test_what_overtakes_a_first_request_harms_it_not(routed: Bench) -> None:
    """Everybody denies the connection, which has no socket yet; its client is healthy."""
    with capture(routed.client) as wire, routed.connected() as connection:
        hello = next(packet for packet in wire.received() if packet.flags == "SA")
        grown = routed.growth()
        ahead = segment(
            hello.destination, hello.source, "PA", seq=hello.ack + 100, ack=hello.seq + 1, payload=b"b" * 99
        )
        send(routed.client, ahead)
        eventually(lambda: grown["flows_denied"] == 1, "all backends to deny it")
        assert connection.ask("/api/x", method="POST", body=b"b" * 999).status == 200
        assert grown["clients_reset"] == 0


SIOCOUTQ = 0x5411
"""linux/sockios.h: bytes that are not acknowledged yet"""


def unacknowledged(sock: socket.socket) -> int:
    return int(struct.unpack("i", fcntl.ioctl(sock, SIOCOUTQ, bytes(4)))[0])


def test_a_client_whom_nobody_knows_is_reset_once(routed: Bench) -> None:
    """When it says the same some seconds later; by then its first request would have come again, if it had one."""
    mine, vip, seq, ack = (routed.client.address, FREE_PORT), routed.vip("shop"), 1_000_000, 2_000_000
    with capture(routed.client) as wire:
        grown, started = routed.growth(), time.monotonic()

        def nudge() -> bool:
            denied = grown["flows_denied"]
            send(routed.client, segment(mine, vip, "A", seq=seq, ack=ack))
            eventually(lambda: grown["flows_denied"] > denied, "all backends to deny it")
            return grown["clients_reset"] > 0

        eventually(nudge, "the reset", seconds=2 * RESET_SECONDS)
        assert time.monotonic() - started >= RESET_SECONDS
        eventually(lambda: bool(wire.received()), "it to arrive")
        (reset,) = wire.received()
        assert (reset.source, reset.destination, reset.flags, reset.seq, reset.payload) == (vip, mine, "R", ack, b"")
    assert FREE_PORT not in flows(routed)


# ---- a flood --------------------------------------------------------------------------------------------

FLOOD = 120_000
FRESH = 100
FLOODING_NETWORK = b"\xc6\x13\x80\x00"
"""198.19.128.0, of which the flood uses 2^15 addresses that nobody has"""


class Flood(threading.Thread):
    """Segments in mid-connection that belong to nobody, from random places; their checksums are wrong, too."""

    def __init__(self, routed: Bench) -> None:
        super().__init__()
        address, port = routed.vip("shop")
        self.packet = bytearray(segment((routed.client.address, 1), (address, port), "A", seq=0, payload=b"\0" * 8))
        with routed.client.entered():
            self.sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self.to = (str(address), 0)
        self.sent = 0

    def run(self) -> None:
        dice = random.Random(7)
        with self.sock:
            while self.sent < FLOOD:
                numbers, flags = dice.randbytes(12), dice.choice((0x10, 0x18, 0x11, 0x19))
                source = (int.from_bytes(FLOODING_NETWORK, "big") | dice.getrandbits(15)).to_bytes(4, "big")
                self.packet[12:16], self.packet[20:22] = source, numbers[:2]
                self.packet[24:32], self.packet[33] = numbers[2:10], flags
                self.sock.sendto(self.packet, self.to)
                self.sent += 1


def connections_of(routed: Bench) -> set[tuple[str, Any]]:
    """All that the backends have with somebody else than this client."""
    found = {(name, one.remote) for name in BACKENDS for one in sockets(routed.network.hosts[name])}
    return {(name, remote) for name, remote in found if remote[0] != routed.client.address}


def test_a_flood_of_strangers_opens_nothing_and_costs_what_was_stated(routed: Bench) -> None:
    recovery = running(routed).config.recovery
    assert recovery is not None
    running(routed).router.object.maps["flows"].clear()
    others = connections_of(routed)
    grown, started, served = routed.growth(), time.monotonic(), 0
    flood = Flood(routed)
    flood.start()
    mine = set()
    with routed.connected() as kept:
        while flood.is_alive():
            assert kept.ask("/api/x").body == BODY
            served += 1
            if len(mine) < FRESH:  # of more, so small a table forgets some
                with routed.connected() as fresh:
                    assert fresh.ask("/web").body == BODY
                    mine.add(fresh.port)
        mine.add(kept.port)
    flood.join()
    eventually(lambda: grown["DROP_ASKED"] + grown["DROP_NO_FLOW"] >= FLOOD, "the flood to be counted")
    allowed = LOST_BURST + recovery.rate * (time.monotonic() - started) + 1
    assert LOST_BURST <= grown["DROP_ASKED"] <= allowed
    eventually(lambda: grown["segments_lost"] == grown["DROP_ASKED"], "the questions to be put")
    assert grown["AGENT_ASK_ANSWERED"] <= len(BACKENDS) * grown["flows_asked"]
    assert (grown["flows_recovered"], grown["clients_reset"], grown["AGENT_OPENED"]) == (0, 0, len(mine))
    assert set(flows(routed)) <= mine
    assert connections_of(routed) == others
    assert served > 20
