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
import struct
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
from lab.checks.state import ESTABLISHED, sockets
from lab.topology import Host

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

FILE = Path(__file__).parent / "data" / "lossy.yaml"
LONG = bool(os.environ.get("RAUTA_LONG"))
REQUESTS = int(os.environ.get("RAUTA_REQUESTS", 100_000 if LONG else 4_000))
SEED = int(os.environ.get("RAUTA_SEED", 1))
CLIENTS = 64
KEPT = 50
"""requests of a connection, at most"""
LEAVING = 0.2
"""of all connections, which their client aborts"""
PATIENCE = 60.0
"""seconds for an answer: what takes longer hangs"""
LATEST = 5.0
"""seconds after which a frame comes again, at most"""
REPLAYED = 0.02
"""of all frames"""
ABORT = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
NO_DELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
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
    left: int = 0
    """requests whose client went away at once"""
    aborted: set[int] = field(default_factory=set)
    """its ports"""
    moves: int = 0
    """answers by another backend than the one before on the connection"""
    errors: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class Asked:
    """A request to a signing server. ``size``: of the answer; ``pause``: milliseconds before it."""

    number: int
    method: str
    cluster: str
    size: int
    pause: int
    body: bytes

    @property
    def target(self) -> str:
        return f"/{self.cluster}/{self.number}?size={self.size}&pause={self.pause}"

    def head(self, *headers: str) -> bytes:
        return request(self.target, *headers, method=self.method, body=self.body).removesuffix(self.body)

    def send(self, connection: Conversation, random: Random) -> None:
        """In one go; the body in pieces; or when the server has said that it wants it."""
        way = random.choice(["at once", "in pieces", "expected"]) if self.body else "at once"
        if way == "at once":
            connection.sock.sendall(self.head() + self.body)
        elif way == "in pieces":
            connection.sock.sendall(self.head())
            step = len(self.body) // random.randint(1, 4) + 1
            for start in range(0, len(self.body), step):
                time.sleep(random.choice([0, 0.002]))
                connection.sock.sendall(self.body[start : start + step])
        else:
            connection.sock.sendall(self.head("Expect: 100-continue"))
            assert interim(connection).startswith(b"HTTP/1.1 100 ")
            connection.sock.sendall(self.body)


def interim(connection: Conversation) -> bytes:
    """An answer without a body, and not a byte more."""
    said = b""
    while not said.endswith(b"\r\n\r\n"):
        more = connection.sock.recv(1)
        if not more:
            raise http.client.RemoteDisconnected(repr(said))
        said += more
    return said


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
                with self.lossy.connected(options=[NO_DELAY]) as connection:
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
        with self.seen.lock:
            number = next(self.numbers, None) if self.random.random() < LEAVING else None
        if number is not None:
            self._leave(connection, number)
        return True

    def _one(self, connection: Conversation, number: int) -> tuple[str, float]:
        one = self._drawn(number)
        began = time.monotonic()
        one.send(connection, self.random)
        answer = connection.answer(one.method)
        seconds = time.monotonic() - began
        proof = signing.digest(one.method, one.target, one.body)
        expected = (200, proof, b"" if one.method == "HEAD" else signing.signed(proof, one.size))
        got = (answer.status, answer.headers.get("x-digest"), answer.body)
        if got != expected or answer.backend not in self.clusters[one.cluster]:
            self.seen.wrong.append(f"{one.method} {one.target}: {answer.status} by {answer.backend!r}")
        return answer.backend, seconds

    def _drawn(self, number: int) -> Asked:
        random = self.random
        method, cluster = random.choice(["GET", "GET", "HEAD", "POST", "PUT"]), random.choice(ROUTES)
        size = round(10 ** random.uniform(0, 4.7 if random.random() < 0.2 else 3)) - 1
        pause = random.randint(1, 100) if random.random() < 0.1 else 0
        body = random.randbytes(round(10 ** random.uniform(0, 4.3))) if method in ("POST", "PUT") else b""
        return Asked(number, method, cluster, size, pause, body)

    def _leave(self, connection: Conversation, number: int) -> None:
        """Ask once more, and do not wait for the answer."""
        with self.seen.lock:
            self.seen.left += 1
            self.seen.aborted.add(connection.port)
        connection.sock.sendall(self._drawn(number).head())
        time.sleep(self.random.uniform(0, 0.02))
        connection.sock.setsockopt(*ABORT)


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
    lost = sum(faults.counters()["lost"] for faults in lossy.network.faults.values())
    with signing.signing(lossy.network, ROUTES, tmp_path):
        with replayer.running() if late else ExitStack():
            seen = load(lossy, REQUESTS, seed=2 * SEED + late)
        lost = sum(faults.counters()["lost"] for faults in lossy.network.faults.values()) - lost
        print(f"{seen.answered} answered, {seen.left} left, {seen.moves} moves, slowest {seen.slowest:.1f} s")
        print(f"{dict(seen.errors)}; {lost} frames lost; replayed {dict(replayer.sent)}; {grown}")
        executed = Counter(signing.executed(tmp_path))
        assert not seen.wrong, seen.wrong[:5]
        assert not {what: times for what, times in executed.items() if times > 1}
        assert not seen.errors
        assert lost > REQUESTS / 20
        assert grown["AGENT_HANDED_ON"] < 2 * grown["FORWARDED_MOVING"] + REQUESTS / 20, grown
        assert seen.answered + seen.left == REQUESTS
        assert seen.answered <= executed.total() <= REQUESTS
        assert seen.moves > REQUESTS / 3
        nothing_is_left(lossy, seen.aborted)


def nothing_is_left(lossy: Bench, aborted: set[int]) -> None:
    """No backend has a connection whose client has closed it. A reset that was lost is never sent again."""
    hosts = [lossy.network.hosts[name] for cluster in ROUTES for name in lossy.network.clusters[cluster]]

    def left() -> set[int]:
        remote = {one.remote for host in hosts for one in sockets(host) if one.state == ESTABLISHED}
        return {port for address, port in remote if address == lossy.client.address} - aborted

    eventually(lambda: not left(), "all connections to be gone", PATIENCE)
