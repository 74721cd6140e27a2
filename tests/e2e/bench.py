"""The network of the end-to-end tests (data/network.yaml), and a client that is nothing but a TCP socket.

Real clients (curl, http.client) prove that real requests work; what only some clients do, such as closing half a
connection or saying nothing, takes a socket of one's own.
"""

from __future__ import annotations

import http.client
import os
import secrets
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from lab import contenders, scenario, state, topology
from lab.checks.state import ESTABLISHED, Socket, sockets
from lab.clients import Answer, Request
from lab.interfaces import Context, Requests, Running
from lab.process import wait_until
from lab.scenario import Scenario
from lab.topology import Host, Network

FILE = Path(__file__).parent / "data" / "network.yaml"
HOST = "shop.test"
SECONDS = 5.0
"""for whatever a test waits for; each of these things takes milliseconds unless it is said there"""

RETRANSMISSIONS = ("Tcp.RetransSegs", "TcpExt.TCPSynRetrans")


def request(path: str, *headers: str, method: str = "GET", host: str = HOST, body: bytes = b"") -> bytes:
    """A request as it goes over the wire."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


class Conversation:
    """A connection of the client's. Reading and writing fail after SECONDS; nothing hangs."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.port: int = sock.getsockname()[1]

    def ask(self, path: str, *headers: str, method: str = "GET", body: bytes = b"") -> Answer:
        """One request and its answer."""
        self.sock.sendall(request(path, *headers, method=method, body=body))
        return self.answer(method)

    def answer(self, method: str = "GET") -> Answer:
        """The next answer. OSError or HTTPException if there is none."""
        with http.client.HTTPResponse(self.sock, method=method) as response:
            response.begin()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, headers, response.read())

    def ended(self) -> bool:
        """Whether the server has closed it, as it should (False: it has said something more)."""
        return self.sock.recv(1) == b""


@dataclass(frozen=True)
class Growth:
    """How much counters have grown, by name, since this was made."""

    running: Running
    before: Mapping[str, int]

    def __getitem__(self, name: str) -> int:
        return self.running.counters()[name] - self.before[name]

    def __repr__(self) -> str:
        now = self.running.counters()
        return repr({name: now[name] - before for name, before in self.before.items() if now[name] > before})


@dataclass(frozen=True)
class Bench:
    """A network with servers, and one contender in it."""

    network: Network
    scenario: Scenario
    running: Running
    contender: str

    @property
    def client(self) -> Host:
        """Where conversations start."""
        return self.network.client

    def vip(self, name: str) -> tuple[IPv4Address, int]:
        """Address and port of a VIP."""
        one = next(vip for vip in self.scenario.routing.config.vips if vip.name == name)
        return one.address, one.port

    def to(self, vip: str, path: str, *, host: str = HOST, method: str = "GET", seconds: float = SECONDS) -> Request:
        """A request for the real clients."""
        address, port = self.vip(vip)
        return Request(address, port, f"http://{host}{path}", method, seconds)

    @contextmanager
    def connected(
        self,
        to: tuple[IPv4Address, int] | None = None,
        *,
        port: int = 0,
        options: Sequence[tuple[int, int, int]] = (),
    ) -> Iterator[Conversation]:
        """A connection from the client, by default to the VIP `shop`.

        Args:
            to: address and port.
            port: the client's own; 0 for any.
            options: socket options (level, name, value), set before connecting.
        """
        address, server_port = to or self.vip("shop")
        with self.client.entered():
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        with sock:
            sock.settimeout(SECONDS)
            for level, name, value in options:
                sock.setsockopt(level, name, value)
            if port:
                sock.bind((str(self.client.address), port))
            sock.connect((str(address), server_port))
            yield Conversation(sock)

    def growth(self) -> Growth:
        """Of the contender's counters, from now on."""
        return Growth(self.running, dict(self.running.counters()))

    def retransmissions(self) -> list[int]:
        """How many segments and SYNs the client has sent again so far."""
        counters = self.client.tcp_counters()
        return [counters[name] for name in RETRANSMISSIONS]

    def sockets_of(self, backend: str, port: int) -> list[Socket]:
        """A backend's sockets whose other end is that port of the client's."""
        remote = (self.client.address, port)
        return [one for one in sockets(self.network.hosts[backend]) if one.remote == remote]

    def established(self, backend: str, port: int) -> bool:
        """Whether the backend has an established connection with that port of the client's."""
        return any(one.state == ESTABLISHED for one in self.sockets_of(backend, port))

    def wait_until_gone(self, backend: str, port: int) -> None:
        """Until a backend has no socket left whose other end is that port of the client's."""
        eventually(lambda: not self.sockets_of(backend, port), f"the socket on {backend} of port {port} to be gone")

    def context(self) -> Context:
        """What a check of the lab needs."""
        started_with = {name: host.tcp_counters() for name, host in self.network.hosts.items()}
        counters = dict(self.running.counters())
        return Context(
            self.network,
            self.scenario,
            self.contender,
            self.running,
            seed=7,
            started_with={**started_with, self.contender: counters},
            requests=Requests(),
        )

    def restart_server(self, cluster: str) -> None:
        """Start the servers of a cluster, after their host's `stop_all`."""
        _start_servers(self.network, self.scenario, [cluster])


@contextmanager
def bench(contender: str, logs: Path, file: Path = FILE, *overrides: str) -> Iterator[Bench]:
    """A scenario's network, its servers, and a contender; all undone at the end.

    ``logs``: a folder for what programs say; ``overrides``: of the scenario's fields, as ``--set`` takes them.
    """
    one = scenario.load(file, overrides=overrides)
    with ExitStack() as stack:
        stack.enter_context(_pinned(one.topology.cpus.client))
        run = state.create("e2e")
        stack.callback(run.sweep)
        network = stack.enter_context(topology.build(one, run, logs))
        _start_servers(network, one, one.servers)
        running = contenders.find(contender).start(network, one, stack)
        yield Bench(network, one, running, contender)


@contextmanager
def _pinned(cpus: Iterable[int]) -> Iterator[None]:
    """The calling process on these CPUs, none: on any: its sockets are the client's."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(cpus) or allowed)
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _start_servers(network: Network, one: Scenario, clusters: Iterable[str]) -> None:
    for cluster in clusters:
        for host in network.servers(cluster):
            scratch = network.run.scratch / f"{host.name}-{secrets.token_hex(2)}"
            scratch.mkdir()
            one.servers[cluster].start(host, cluster, scratch)


def eventually(condition: Callable[[], bool], what: str, seconds: float = SECONDS) -> None:
    """Wait until a condition holds; NotReady, with ``what``, if it does not in time."""
    wait_until(condition, seconds=seconds, what=what)
