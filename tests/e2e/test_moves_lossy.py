"""Connections that move while every cable loses, doubles and reorders frames: each answer is of a backend that the
route names, of the very request, and nothing is executed twice, by the servers' own logs. No client sees a reset.

Besides what the cables do, frames that were seen on any of them come again up to five seconds later: the client's
segments, what the router has encapsulated, orders and notices.

    RAUTA_LONG=1       a hundred thousand requests
    RAUTA_REQUESTS=n   so many
    RAUTA_SEED=n       other routes, methods and sizes
"""

from __future__ import annotations

import heapq
import http.client
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random

import pytest

from e2e import signing
from e2e.bench import Bench, Conversation, bench, eventually, request
from e2e.wire import ETH_P_ALL, ETH_P_IP, ETHERNET_HEADER, PACKET_HOST, PACKET_OUTGOING
from lab.topology import Host

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

FILE = Path(__file__).parent / "data" / "lossy.yaml"
LONG = bool(os.environ.get("RAUTA_LONG"))
REQUESTS = int(os.environ.get("RAUTA_REQUESTS", 100_000 if LONG else 4_000))
SEED = int(os.environ.get("RAUTA_SEED", 1))
CLIENTS = 64
KEPT = 200
"""requests of a connection, at most"""
PATIENCE = 60.0
"""seconds for an answer: what takes longer hangs"""
LATEST = 5.0
"""seconds after which a frame comes again, at most"""
REPLAYED = 0.02
"""of all frames"""
ROUTES = ("web", "api", "cart")
SHIM = 253
"""bpf/contract.h: SHIM_PROTOCOL"""


@pytest.fixture(scope="module")
def lossy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench("rauta", tmp_path_factory.mktemp("logs"), FILE) as one:
        yield one


@dataclass
class Seen:
    """What the clients have seen."""

    answered: int = 0
    moves: int = 0
    """answers by another backend than the one before on the connection"""
    errors: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class Asker:
    """A client: one connection after the other, each with requests to routes that are drawn."""

    lossy: Bench
    numbers: Iterator[int]
    seen: Seen
    random: Random
    clusters: dict[str, set[str]]

    def run(self) -> None:
        """Until the numbers run out, or something was wrong."""
        while not self.seen.wrong:
            try:
                with self.lossy.connected() as connection:
                    connection.sock.settimeout(PATIENCE)
                    if not self._ask(connection):
                        return
            except TimeoutError:
                self.seen.wrong.append(f"no answer within {PATIENCE:g} s")
            except (OSError, http.client.HTTPException) as error:
                with self.seen.lock:
                    self.seen.errors[repr(error)] += 1

    def _ask(self, connection: Conversation) -> bool:
        """Requests on one connection. False when there are no more."""
        before = ""
        for _ in range(self.random.randint(1, KEPT)):
            with self.seen.lock:
                number = next(self.numbers, None)
            if number is None:
                return False
            backend, seconds = self._one(connection, number)
            with self.seen.lock:
                self.seen.answered += 1
                self.seen.moves += before not in ("", backend)
                self.seen.slowest = max(self.seen.slowest, seconds)
            before = backend
        return True

    def _one(self, connection: Conversation, number: int) -> tuple[str, float]:
        method = self.random.choice(["GET", "GET", "HEAD", "POST", "PUT"])
        cluster = self.random.choice(ROUTES)
        size = round(10 ** self.random.uniform(0, 4.7 if self.random.random() < 0.2 else 3)) - 1
        target = f"/{cluster}/{number}?size={size}"
        body = self.random.randbytes(round(10 ** self.random.uniform(0, 4.3))) if method in ("POST", "PUT") else b""
        began = time.monotonic()
        connection.sock.sendall(request(target, method=method, body=body))
        answer = connection.answer(method)
        seconds = time.monotonic() - began
        proof = signing.digest(method, target, body)
        expected = (200, proof, b"" if method == "HEAD" else signing.signed(proof, size))
        got = (answer.status, answer.headers.get("x-digest"), answer.body)
        if got != expected or answer.backend not in self.clusters[cluster]:
            self.seen.wrong.append(f"{method} {target}: {answer.status} by {answer.backend!r}, {answer.headers}")
        return answer.backend, seconds


class Replayer:
    """Sends some of what passes on hosts' cables again, later, from where it came."""

    def __init__(self, lossy: Bench, random: Random) -> None:
        self.network, self.random = lossy.network, random
        self.sent: Counter[int] = Counter()
        """by IP protocol"""
        self._stop = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """While this lasts."""
        with ExitStack() as stack:
            names = [self.network.client.name, *(name for cluster in ROUTES for name in self.network.clusters[cluster])]
            taps = [(host, stack.enter_context(_tapped(host))) for host in map(self.network.hosts.__getitem__, names)]
            senders = {
                host.name: stack.enter_context(_sender(host)) for host in (*(h for h, _ in taps), self.network.router)
            }
            thread = threading.Thread(target=self._run, args=(taps, senders))
            thread.start()
            try:
                yield
            finally:
                self._stop.set()
                thread.join()

    def _run(self, taps: list[tuple[Host, socket.socket]], senders: dict[str, socket.socket]) -> None:
        due: list[tuple[float, int, str, bytes]] = []
        order = count()
        while not self._stop.is_set():
            for host, tap in taps:
                for outgoing, packet in _frames(tap):
                    if self.random.random() < REPLAYED and (sender := self._sender_of(host, packet, outgoing)):
                        late = time.monotonic() + self.random.uniform(0, LATEST)
                        heapq.heappush(due, (late, next(order), sender, packet))
            while due and due[0][0] <= time.monotonic():
                _, _, sender, packet = heapq.heappop(due)
                with suppress(OSError):
                    senders[sender].sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))
                    self.sent[packet[9]] += 1
            time.sleep(0.002)

    def _sender_of(self, host: Host, packet: bytes, outgoing: bool) -> str | None:
        """Who sends a packet again: the client what is its own, a backend what it tells others, and the router what it
        has encapsulated.
        """
        protocol = packet[9]
        if host.role == "client":
            return host.name if outgoing and protocol == socket.IPPROTO_TCP else None
        if protocol == SHIM and outgoing:
            return host.name
        return self.network.router.name if protocol in (socket.IPPROTO_IPIP, SHIM) and not outgoing else None


@contextmanager
def _tapped(host: Host) -> Iterator[socket.socket]:
    with host.entered():
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    with tap:
        tap.setblocking(False)
        tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
        with host.entered():
            tap.bind((host.interface, ETH_P_ALL))
        yield tap


@contextmanager
def _sender(host: Host) -> Iterator[socket.socket]:
    with host.entered():
        sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with sender:
        yield sender


def _frames(tap: socket.socket) -> Iterator[tuple[bool, bytes]]:
    """Whether it went out, and its IPv4 packet, of each that has passed."""
    with suppress(BlockingIOError):
        while True:
            frame, (_, _, kind, *_) = tap.recvfrom(1 << 16)
            if kind in (PACKET_HOST, PACKET_OUTGOING) and frame[12:14] == ETH_P_IP:
                length = int.from_bytes(frame[16:18], "big")
                yield kind == PACKET_OUTGOING, frame[ETHERNET_HEADER : ETHERNET_HEADER + length]


def load(lossy: Bench, requests: int, seed: int) -> Seen:
    """So many requests by all clients."""
    seen, numbers = Seen(), iter(range(requests))
    clusters = {name: set(lossy.network.clusters[name]) for name in ROUTES}
    askers = [Asker(lossy, numbers, seen, Random(seed * CLIENTS + one), clusters) for one in range(CLIENTS)]
    threads = [threading.Thread(target=asker.run) for asker in askers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


@pytest.mark.timeout(7200 if LONG else 300)
@pytest.mark.parametrize("late", [False, True], ids=["as the cables do", "and frames come again late"])
def test_lossy_cables_lose_no_request_and_execute_none_twice(lossy: Bench, tmp_path: Path, late: bool) -> None:
    replayer = Replayer(lossy, Random(SEED))
    grown = lossy.growth()
    with signing.signing(lossy.network, ROUTES, tmp_path):
        with replayer.running() if late else ExitStack():
            seen = load(lossy, REQUESTS, seed=2 * SEED + late)
        print(f"{seen.answered} answered, {seen.moves} moves, slowest {seen.slowest:.1f} s, {dict(seen.errors)}")
        print(f"{grown}; replayed {dict(replayer.sent)}")
        executed = Counter(signing.executed(tmp_path))
        assert not seen.wrong, seen.wrong[:5]
        assert not {what: times for what, times in executed.items() if times > 1}
        assert not seen.errors
        assert seen.answered == executed.total() == REQUESTS
        assert seen.moves > REQUESTS / 3
        nothing_is_left(lossy)


def nothing_is_left(lossy: Bench) -> None:
    """All clients have closed: no backend has a connection."""
    hosts = [name for cluster in ROUTES for name in lossy.network.clusters[cluster]]

    def established() -> list[object]:
        from lab.checks.state import ESTABLISHED, sockets

        return [
            one
            for name in hosts
            for one in sockets(lossy.network.hosts[name])
            if one.state == ESTABLISHED and one.remote[0] == lossy.client.address
        ]

    eventually(lambda: not established(), "all connections to be gone", PATIENCE)
