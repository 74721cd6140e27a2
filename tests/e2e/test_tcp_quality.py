"""A routed connection's TCP is as good as a straight one's (docs/tcp.md): what its socket knows of the path when it
opens and after the first answer, that it sends nothing twice for nothing, and how soon it sends again what was lost.

The server is this test's own, so that it can ask the kernel about a connection at the moment at which it gets it
(TCP_INFO, tcp(7)). Straight connections go to the same server, by its own address.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from e2e.bench import FILE, SECONDS, Bench, bench, eventually, request
from e2e.wire import Loser, losing
from lab.errors import LabError
from lab.interfaces import Setup
from lab.measure import Download, FirstSeconds
from lab.measure.download import COUNTED, NO_METRICS
from lab.samples import Sample
from lab.servers.nginx import set_congestion

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

SERVER, PORT = "quiet-1", 8080
Way = Literal["direct", "rauta"]
DELAY = 0.025
"""seconds, of the far client's cable, in each direction"""
TRIP = 2 * DELAY
TICK = 0.01
"""seconds: the longest tick of a kernel (CONFIG_HZ=100), which is what its timers are rounded up to"""
SLACK = 0.025
"""seconds that a shared machine may be late"""
SHORTEST_TIMEOUT, TIMEOUT_UNMEASURED, PROBE_UNMEASURED = 0.2, 3.0, 1.0
"""seconds: the kernel's TCP_RTO_MIN, TCP_TIMEOUT_FALLBACK (RFC 6298, 5.7) and TCP_TIMEOUT_INIT (include/net/tcp.h)"""
LONGEST_FIRST_TRIP = 0.333
"""seconds: what is still taken for a round trip, and not for a client that had nothing to say; contract.h"""
FLIGHT, SEGMENT = 10, 1460
"""segments that leave before anything is acknowledged (RFC 6928), and their bytes, timestamps included"""
TIMESTAMPS = 12
"""bytes of a segment that the option takes"""
FREE_PORT = 2000
"""of the client's: below what the kernel chooses"""
REQUEST = request("/api/x")
NEEDLESS = ("Tcp.RetransSegs", "TcpExt.TCPLossProbes", "TcpExt.TCPTimeouts", "TcpExt.TCPDSACKRecv")

with_and_without_timestamps = pytest.mark.parametrize("timestamps", [True, False], ids=["timestamps", "none"])


@dataclass(frozen=True)
class Info:
    """What a socket knows, in seconds: its timeout, the round trip (0: nothing was measured), the least of those."""

    timeout: float
    trip: float
    least: float

    @classmethod
    def of(cls, sock: socket.socket) -> Info:
        """From struct tcp_info (include/uapi/linux/tcp.h)."""
        raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        return cls(*(struct.unpack_from("=I", raw, at)[0] / 1e6 for at in (8, 68, 148)))


@dataclass(frozen=True)
class Exchange:
    """A request and its answer, as the server's socket saw them; ``seconds``: until the client had the answer."""

    opened: Info
    answered: Info
    seconds: float
    congestion: str


@dataclass(frozen=True)
class Line:
    """A network with a server in it, and the client's cable, which can lose a segment."""

    bench: Bench
    listener: socket.socket
    loser: Loser

    def exchange(
        self, way: Way, size: int, *, congestion: str = "cubic", wait: float = 0, lost: int = 0, port: int = 0
    ) -> Exchange:
        """A new connection with one request, and an answer of so many bytes; the server closes first.

        Args:
            way: by which it goes.
            size: of the answer; not more than the two kernels take while nobody reads.
            congestion: the server's congestion control.
            wait: seconds for which the client says nothing at first.
            lost: number of the answer's segment that is lost.
            port: the client's; 0 for any.
        """
        server = self.bench.network.hosts[SERVER]
        to = (server.address, PORT) if way == "direct" else self.bench.vip("strict")
        self.listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
        with self.bench.connected(to, port=port) as client:
            time.sleep(wait)
            client.sock.sendall(REQUEST)
            accepted, _ = self.listener.accept()
            with accepted:
                accepted.settimeout(SECONDS)
                opened = Info.of(accepted)
                received(accepted, len(REQUEST))
                self.loser.lose(lost)
                began = time.perf_counter()
                accepted.sendall(bytes(size))
                received(client.sock, size)
                seconds = time.perf_counter() - began
                eventually(lambda: unacknowledged(accepted) == 0, "the client's acknowledgement")
                return Exchange(opened, Info.of(accepted), seconds, congestion_of(accepted))

    @contextmanager
    def timestamps(self, on: bool) -> Iterator[None]:
        """Whether the client offers them."""
        before = self.bench.client.sysctl("net.ipv4.tcp_timestamps", str(int(on)))
        yield
        self.bench.client.sysctl("net.ipv4.tcp_timestamps", before)


def received(sock: socket.socket, size: int) -> None:
    """Read so many bytes."""
    while size:
        got = len(sock.recv(size))
        assert got, "the connection has ended"
        size -= got


def congestion_of(sock: socket.socket) -> str:
    """The name of a socket's congestion control."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()


def unacknowledged(sock: socket.socket) -> int:
    """How many segments of a socket are (tcpi_unacked)."""
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    count: int = struct.unpack_from("=I", raw, 24)[0]
    return count


@contextmanager
def line(logs: Path, delay: float) -> Iterator[Line]:
    """``delay``: seconds, of the client's cable in each direction."""
    overrides = [f"topology.links={{client: {{delay: {delay * 1e3:g}ms}}}}"] if delay else []
    with bench("rauta", logs, FILE, *overrides) as one, losing(one.client) as loser:
        server = one.network.hosts[SERVER]
        server.stop_all()
        # Or what the kernel remembers of a client's last connection would help the next one.
        server.sysctl("net.ipv4.tcp_no_metrics_save", "1")
        with server.entered():
            listener = socket.create_server((str(server.address), PORT))
        with listener:
            listener.settimeout(SECONDS)
            yield Line(one, listener, loser)


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    with line(tmp_path_factory.mktemp("logs"), DELAY) as one:
        yield one


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    with line(tmp_path_factory.mktemp("logs"), 0) as one:
        yield one


def flight(timestamps: bool) -> int:
    """Bytes of an answer that leaves at once."""
    return FLIGHT * (SEGMENT - TIMESTAMPS * timestamps)


def timeout(trip: float) -> float:
    """After the first measurement: the round trip and four times its half, or the kernel's least (RFC 6298, 2.2)."""
    return trip + max(2 * trip, SHORTEST_TIMEOUT)


# ---- what the socket knows ------------------------------------------------------------------------------


def test_a_new_socket_knows_the_round_trip(far: Line) -> None:
    straight, routed = far.exchange("direct", 100), far.exchange("rauta", 100)
    assert TRIP <= straight.opened.trip <= TRIP + SLACK
    assert TRIP <= routed.opened.trip <= TRIP + TICK + SLACK
    for seen in (straight.opened, routed.opened):
        assert timeout(seen.trip) <= seen.timeout <= timeout(seen.trip) + TICK


def test_also_a_short_one(near: Line) -> None:
    """To a millisecond, which is the clock of timestamps; a busy machine makes it longer."""
    seen = [near.exchange("rauta", 100).opened.trip for _ in range(10)]
    assert min(seen) == 0.001
    assert max(seen) <= SLACK


def test_also_where_an_old_socket_had_to_go_first(near: Line) -> None:
    """The request then goes round in the agent, and has no outer header any more."""
    before = near.bench.growth()
    seen = [near.exchange("rauta", 100, port=FREE_PORT).opened for _ in range(3)]
    assert before["AGENT_CLEARING"] == 2
    assert all(0.001 <= one.trip <= TICK + SLACK for one in seen)


def test_what_it_takes_for_the_least_round_trip_is_never_less_than_that(far: Line) -> None:
    """Or BBR would believe it for ten seconds, and keep too little under way."""
    for _ in range(5):
        assert far.exchange("rauta", 100).opened.least >= TRIP


@pytest.mark.parametrize("congestion", ["cubic", "bbr"])
@with_and_without_timestamps
def test_after_the_first_answer_it_knows_as_much_as_a_straight_one(
    far: Line, timestamps: bool, congestion: str
) -> None:
    with far.timestamps(timestamps):
        seen = [far.exchange(way, 100, congestion=congestion).answered for way in ("direct", "rauta")]
    for one in seen:
        assert TRIP <= one.least <= one.trip <= TRIP + SLACK
        assert one.timeout <= timeout(TRIP + SLACK) + TICK


def test_without_timestamps_it_knows_nothing_and_says_so(far: Line) -> None:
    """As the kernel's own sockets from cookies do: nothing is better than something wrong."""
    with far.timestamps(False):
        opened = far.exchange("rauta", 100).opened
    assert opened.trip == 0
    assert opened.timeout == TIMEOUT_UNMEASURED


def test_a_client_that_says_nothing_at_first_is_not_taken_for_a_distant_one(near: Line) -> None:
    seen = near.exchange("rauta", 100, wait=LONGEST_FIRST_TRIP + SLACK)
    assert seen.opened.trip == 0
    assert 0 < seen.answered.trip < SLACK
    assert seen.answered.timeout <= timeout(SLACK) + TICK


# ---- what it sends again --------------------------------------------------------------------------------


@pytest.mark.parametrize("congestion", ["cubic", "bbr"])
@with_and_without_timestamps
def test_where_nothing_is_lost_nothing_is_sent_twice(far: Line, timestamps: bool, congestion: str) -> None:
    server = far.bench.network.hosts[SERVER]
    before = server.tcp_counters()
    with far.timestamps(timestamps):
        far.exchange("rauta", 4 * flight(timestamps), congestion=congestion)
        far.exchange("rauta", 100, congestion=congestion)
    after = server.tcp_counters()
    assert {name: after[name] - before[name] for name in NEEDLESS} == dict.fromkeys(NEEDLESS, 0)


@pytest.mark.parametrize("congestion", ["cubic", "bbr"])
def test_the_end_of_the_first_answer_comes_again_as_soon_as_on_a_straight_connection(
    far: Line, congestion: str
) -> None:
    straight, routed = (
        far.exchange(way, flight(True), congestion=congestion, lost=FLIGHT).seconds for way in ("direct", "rauta")
    )
    assert far.loser.has_lost
    assert routed <= 1.1 * straight + SLACK


def test_without_timestamps_as_soon_as_the_kernel_would_without_a_measurement(far: Line) -> None:
    with far.timestamps(False):
        seconds = far.exchange("rauta", flight(False), lost=FLIGHT).seconds
    assert far.loser.has_lost
    assert seconds <= PROBE_UNMEASURED + TRIP + TICK + SLACK


def test_but_sooner_if_the_client_has_been_here_before(far: Line) -> None:
    """The kernel remembers round trips (tcp_metrics(8)), also of routed connections."""
    server = far.bench.network.hosts[SERVER]
    server.sysctl(NO_METRICS, "0")
    try:
        with far.timestamps(False):
            far.exchange("rauta", flight(False))
            seen = far.exchange("rauta", 100, lost=1)
    finally:
        server.sysctl(NO_METRICS, "1")
        server.run(["ip", "tcp_metrics", "flush"], timeout=SECONDS)
    assert seen.opened.trip == 0
    assert seen.opened.timeout <= timeout(TRIP + SLACK) + TICK
    assert far.loser.has_lost
    assert seen.seconds <= seen.opened.timeout + DELAY + SLACK


@with_and_without_timestamps
def test_the_whole_answer_lost_comes_again(far: Line, timestamps: bool) -> None:
    """A single segment: its probe waits for an acknowledgement that may be delayed."""
    with far.timestamps(timestamps):
        straight, routed = (far.exchange(way, 100, lost=1).seconds for way in ("direct", "rauta"))
    assert far.loser.has_lost
    assert routed <= (1.1 * straight if timestamps else PROBE_UNMEASURED + TRIP) + TICK + SLACK


# ---- what the lab measures of it ------------------------------------------------------------------------


def sample(line: Line, model: Download | FirstSeconds) -> Sample:
    """One, through the router."""
    with ExitStack() as stack:
        instrument = model.open(Setup(line.bench.network, line.bench.scenario, stack))
        return instrument.sample("rauta", line.bench.running, nullcontext())


def download(**fields: object) -> Download:
    return Download.model_validate({"layer": "http", "tool": "download", "cluster": "api", "path": "/api/x", **fields})


def first_seconds(**fields: object) -> FirstSeconds:
    model = {"layer": "http", "tool": "first-seconds", "cluster": "api", "path": "/api/download", **fields}
    return FirstSeconds.model_validate(model)


def test_a_download_that_lost_something_is_counted_and_waited_for(near: Line) -> None:
    """The FIN behind it arrives, and so the server learns of the loss at once, without a probe."""
    near.loser.lose(3)
    seen = sample(near, download(rate=20, duration="500ms", connections=5))
    assert seen.valid, seen.reason
    assert near.loser.has_lost
    # The warm-up of the scenario is part of what the servers have done.
    assert seen.requests == round(20 * (0.5 + near.bench.scenario.plan.warmup))
    counted = {name: seen.quantities[name] * seen.requests for name in COUNTED}
    assert counted == pytest.approx({"resent": 1, "probes": 0, "timeouts": 0, "needless": 0})


def test_what_comes_in_the_first_seconds_is_counted_from_the_first_syn_on(far: Line) -> None:
    """In six round trips: the handshake, and then two, four ... times the first ten segments."""
    seen = sample(far, first_seconds(connections=2, duration="320ms", mark="100kB"))
    assert seen.valid, seen.reason
    assert FLIGHT * SEGMENT < seen.value * 0.32 < 2**6 * FLIGHT * SEGMENT
    assert 4 * TRIP < seen.quantities["mark"] / 1e3 < 0.32
    assert {name: seen.quantities[name] for name in COUNTED} == dict.fromkeys(COUNTED, 0)


def test_a_download_that_is_over_too_soon_is_no_sample(near: Line) -> None:
    seen = sample(near, first_seconds(connections=1, duration="300ms"))
    assert not seen.valid
    assert "the server closed after" in seen.reason


def test_servers_forget_their_clients_only_while_they_are_measured(near: Line) -> None:
    server = near.bench.network.hosts["api-1"]
    assert server.sysctl(NO_METRICS) == "0"
    with ExitStack() as stack:
        download(rate=1).open(Setup(near.bench.network, near.bench.scenario, stack))
        assert server.sysctl(NO_METRICS) == "1"
    assert server.sysctl(NO_METRICS) == "0"


@pytest.mark.parametrize("way", ["direct", "rauta"])
def test_a_servers_congestion_control_can_be_chosen(near: Line, way: Way) -> None:
    server = near.bench.network.hosts[SERVER]
    for name in ("bbr", "cubic"):
        set_congestion(server, name)
        assert near.exchange(way, 100, congestion="reno").congestion == name
    with pytest.raises(LabError, match="there is no 'fastest' here"):
        set_congestion(server, "fastest")
