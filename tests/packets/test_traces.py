"""Traces at the router: which requests, what is told of them, how many at most, and what a hostile one can do."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address
from itertools import pairwise

import pytest

from packets import oracle
from packets.bench import RESETTING_PORT, RESETTING_VIP
from packets.frames import CLIENT, VIP, VIP_PORT, Connection, Segment, request
from packets.observed import KEYS, loaded, run
from rauta.bpf import RingBuffer
from rauta.errors import RautaError
from rauta.observation import Observation
from rauta.router import Router
from rauta.tracing.sampling import Sampling
from rauta.tracing.traces import Trace, TraceCounts, TraceReader

ALICE = Connection()
BOB = Connection(server=RESETTING_VIP, server_port=RESETTING_PORT)
HEAD = request("/")
KEY = int.from_bytes(KEYS.trace_secret[:8], "little")
MANY = 1_000_000
ONE_IN = 8
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PORTS, SEQ, ACK = 34, 38, 42  # offsets in a frame


@pytest.fixture(scope="module")
def tracing() -> Iterator[Router]:
    """A router that traces everything."""
    with loaded(observation=Observation(traces_one_in=1, traces_rate=MANY)) as router:
        yield router


Tell = Callable[..., list[Trace]]


@pytest.fixture
def told(tracing: Router) -> Iterator[Tell]:
    """`told(frames)`: the traces of them, at a router that knows no connection before the first one."""
    tracing.object.maps["flows"].clear()
    with TraceReader(tracing) as reader:
        assert reader.poll(0) == []

        def tell(*frames: Segment | bytes) -> list[Trace]:
            run(tracing, *frames)
            return reader.poll(0)

        yield tell


# ---- what is told ---------------------------------------------------------------------------------------


def test_a_request_is_told_with_its_route_and_its_backend(tracing: Router, told: Tell) -> None:
    earliest = time.time_ns()
    (trace,) = told(ALICE.data(HEAD))
    slack = 1_000_000  # ns: the clocks are read one after the other
    assert earliest - slack <= trace.time_ns <= time.time_ns() + slack
    assert (trace.client, trace.client_port) == (IPv4Address(CLIENT), ALICE.port)
    assert (trace.server, trace.server_port, trace.vip) == (IPv4Address(VIP), VIP_PORT, "shop")
    assert (trace.method, trace.verdict) == ("GET", "ROUTED_FIRST")
    assert trace.route == tracing.config.vips[0].routes[0]
    weights = {backend.name: backend.weight for backend in tracing.config.clusters[0].backends}
    assert trace.backend == oracle.maglev_table(weights)[oracle.maglev_slot(ALICE.tuple)]
    assert (trace.parent_id, trace.answered_ns, trace.status) == (None, None, None)
    assert 0 < trace.trace_id < 1 << 128
    assert 0 < trace.span_id < 1 << 64


def test_later_ones_and_those_that_move_the_connection_too(told: Tell) -> None:
    """Each is a trace of its own."""
    post = request("/api", "Content-Length: 5", method="POST")
    ends = len(HEAD) + len(post) + 5
    first, second, third = told(
        ALICE.data(HEAD), ALICE.later(post + b"hello", len(HEAD)), ALICE.later(request("/api"), ends, acked=600)
    )
    assert [one.verdict for one in (first, second, third)] == ["ROUTED_FIRST", "ROUTED_NEXT", "ROUTED_MOVED"]
    assert [one.method for one in (first, second, third)] == ["GET", "POST", "GET"]
    assert (third.backend, third.route and third.route.cluster) == ("api-1", "api")
    assert len({one.trace_id for one in (first, second, third)}) == 3
    assert len({one.span_id for one in (first, second, third)}) == 3


def test_what_is_no_request_for_a_backend_is_not(told: Tell) -> None:
    """Handshakes, bodies, retransmissions, ends; what is refused."""
    body = request("/", "Content-Length: 9", method="POST")
    first = ALICE.data(body + b"body")
    assert len(told(ALICE.syn(), ALICE.ack(), first)) == 1
    assert told(first, ALICE.data(b"rest!", len(body) + 4), ALICE.ack(len(body)), ALICE.fin(len(body) + 9)) == []
    refused = (request("//"), request("/drained"), b"\x16\x03\x01\x02\x00\x01", request("/nowhere"))
    strangers = [Connection(port=40100 + n, server=BOB.server, server_port=BOB.server_port) for n in range(4)]
    assert told(*(one.data(head) for one, head in zip(strangers, refused, strict=True))) == []


def test_the_head_is_told_and_nothing_behind_it(tracing: Router, told: Tell) -> None:
    """The ring buffer's record has no byte of the body, nor of the head before."""
    post = request("/api/orders?secret=1", "Content-Length: 6", method="POST")
    tracing.object.maps["flows"].clear()
    layout = tracing.object.btf.struct("trace")
    long = Connection(port=40001).data(request("/", f"X: {'x' * 900}"))
    with RingBuffer(tracing.object.maps["traces"]) as ring:
        run(tracing, long, ALICE.data(post + b"secret"))
        records = ring.read()
    assert [record[layout.size :] for record in records] == [long.payload, post]


def test_the_longest_head_that_is_routed_is_told_whole(told: Tell) -> None:
    """With the line that counts at its very end."""
    line = f"traceparent: 00-{TRACE}-{SPAN}-01"
    padding = 1428 - len(request("/", "X: ", line))  # 1,500 - 20 (outer header) - 20 - 32 (TCP, with timestamps)
    (trace,) = told(ALICE.data(request("/", f"X: {'x' * padding}", line)))
    assert (trace.trace_id, trace.parent_id) == (int(TRACE, 16), int(SPAN, 16))
    bare = Connection(port=40001, options=oracle.SynOptions(mss=1460, wscale=7))
    (trace,) = told(bare.data(request("/", f"X: {'x' * (padding + 12)}", line)))
    assert trace.trace_id == int(TRACE, 16)


# ---- traceparent ----------------------------------------------------------------------------------------


def test_a_request_that_is_part_of_a_trace_stays_in_it(told: Tell) -> None:
    (alone,) = told(ALICE.data(HEAD))
    (trace,) = told(ALICE.reopened(ALICE.isn + 9).data(request("/", f"Traceparent: 00-{TRACE}-{SPAN}-01")))
    assert (trace.trace_id, trace.parent_id) == (int(TRACE, 16), int(SPAN, 16))
    assert trace.span_id not in (alone.span_id, int(SPAN, 16))


def test_one_whose_parent_is_not_recorded_is_not(tracing: Router) -> None:
    tracing.object.maps["flows"].clear()
    with TraceReader(tracing) as reader:
        run(tracing, ALICE.data(request("/", f"traceparent: 00-{TRACE}-{SPAN}-00")))
        assert (reader.poll(0), reader.declined) == ([], 1)


HOSTILE = {
    "nothing": "traceparent: ",
    "zeros": f"traceparent: 00-{'0' * 32}-{SPAN}-01",
    "capitals": f"traceparent: 00-{TRACE.upper()}-{SPAN}-01",
    "too long": f"traceparent: 00-{TRACE}-{SPAN}-01{'0' * 800}",
    "two": f"traceparent: 00-{TRACE}-{SPAN}-01\r\ntraceparent: 00-{TRACE}-{SPAN}-01",
    "bytes that are no text": "traceparent: \xff\xfe\xe9",
}


@pytest.mark.parametrize("line", HOSTILE.values(), ids=HOSTILE)
def test_a_request_that_says_nonsense_is_traced_as_if_it_said_nothing(told: Tell, line: str) -> None:
    (plain,) = told(ALICE.data(HEAD))
    (trace,) = told(Connection(port=40001).data(request("/", line)))
    assert (plain.parent_id, trace.parent_id) == (None, None)
    assert trace.trace_id not in (0, int(TRACE, 16), plain.trace_id)


# ---- which and how many ---------------------------------------------------------------------------------


def frame_of(template: bytes, connection: Connection, seq: int, ack: int) -> bytes:
    """The same frame of another connection, or another place in it; nobody looks at the checksum."""
    frame = bytearray(template)
    struct.pack_into(">H", frame, PORTS, connection.port)
    struct.pack_into(">II", frame, SEQ, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF)
    return bytes(frame)


def traced(router: Router, frames: Sequence[bytes]) -> list[Trace]:
    """The traces of many, read as they come."""
    found: list[Trace] = []
    with TraceReader(router) as reader:
        for at in range(0, len(frames), 500):
            run(router, *frames[at : at + 500])
            found += reader.poll(0)
    return found


@pytest.fixture(scope="module")
def sampling() -> Iterator[Router]:
    """A router that traces one request in eight."""
    with loaded(observation=Observation(traces_one_in=ONE_IN, traces_rate=MANY)) as router:
        yield router


def test_of_ten_thousand_connections_those_are_traced_that_the_hash_names(sampling: Router) -> None:
    """Their share is one in eight, within five standard deviations of what chance would make of it."""
    connections = [Connection(port=10000 + n, isn=0x1000_0000 + 77 * n) for n in range(10_000)]
    template = bytes(ALICE.data(HEAD))
    before = sampling.requests_routed
    found = traced(sampling, [frame_of(template, one, one.start, one.cookie + 1) for one in connections])
    assert sampling.requests_routed == before + 10_000
    named = [one.port for one in connections if oracle.is_traced(one.tuple, one.start, KEY, ONE_IN)]
    assert [trace.client_port for trace in found] == named
    deviation = (10_000 * (1 / ONE_IN) * (1 - 1 / ONE_IN)) ** 0.5
    assert abs(len(named) - 10_000 / ONE_IN) <= 5 * deviation
    assert len({trace.trace_id for trace in found}) == len({trace.span_id for trace in found}) == len(found)


def test_along_one_connection_they_come_at_random(sampling: Router) -> None:
    """Requests of one length are as far from each other as the last ones: no rhythm may hide them, or pick them all."""
    number, template = 4000, bytes(ALICE.data(HEAD))
    numbers = [ALICE.start + n * len(HEAD) & 0xFFFFFFFF for n in range(number)]
    sampling.object.maps["flows"].clear()
    found = traced(
        sampling, [frame_of(template, ALICE, seq, ALICE.cookie + 1 + 300 * n) for n, seq in enumerate(numbers)]
    )
    chosen = [n for n, seq in enumerate(numbers) if oracle.is_traced(ALICE.tuple, seq, KEY, ONE_IN)]
    assert len(found) == len(chosen)
    assert abs(len(chosen) - number / ONE_IN) <= 5 * (number * (1 / ONE_IN) * (1 - 1 / ONE_IN)) ** 0.5
    gaps = [after - before for before, after in pairwise(chosen)]
    assert max(gaps) < 100  # (7/8)^100 is one in 600,000
    assert gaps.count(1) > len(gaps) / 16


def test_the_same_request_is_always_traced_or_never(sampling: Router) -> None:
    connections = [Connection(port=20000 + n) for n in range(200)]
    for _ in range(3):
        sampling.object.maps["flows"].clear()
        found = traced(sampling, [bytes(one.data(HEAD)) for one in connections])
        assert [trace.client_port for trace in found] == [
            one.port for one in connections if oracle.is_traced(one.tuple, one.start, KEY, ONE_IN)
        ]


def test_off_there_is_nothing_to_read() -> None:
    """Not even with events on, which note as much of a packet."""
    with loaded() as router:
        run(router, ALICE.data(HEAD))
        with RingBuffer(router.object.maps["traces"]) as ring:
            assert ring.read() == []
        with pytest.raises(RautaError, match=r"this program traces nothing\nLoad it with traces_one_in"):
            TraceReader(router)


@pytest.mark.usefixtures("one_cpu")
def test_no_more_are_told_than_the_rate_allows_and_the_others_are_counted() -> None:
    """After a silence, a second's worth at once."""
    template = bytes(ALICE.data(HEAD))
    connections = [Connection(port=10000 + n) for n in range(2000)]
    with loaded(observation=Observation(traces_one_in=1, traces_rate=50)) as router:
        begun = time.monotonic()
        found = traced(router, [frame_of(template, one, one.start, one.cookie + 1) for one in connections])
        allowed = 50 + 50 * (time.monotonic() - begun) + 2
        with TraceReader(router) as reader:
            counts = reader.counts()
    assert 50 <= len(found) == counts.told <= allowed
    assert counts == TraceCounts(counts.told, 2000 - counts.told, 0)


def test_what_finds_the_buffer_full_is_counted() -> None:
    template = bytes(ALICE.data(request("/", f"X: {'x' * 1000}")))
    connections = [Connection(port=10000 + n) for n in range(1200)]
    with loaded(observation=Observation(traces_one_in=1, traces_rate=MANY)) as router:
        run(router, *(frame_of(template, one, one.start, one.cookie + 1) for one in connections))
        with TraceReader(router) as reader:
            found, counts = reader.poll(0), reader.counts()
    assert 0 < len(found) == counts.told < 1200
    assert counts == TraceCounts(counts.told, 0, 1200 - counts.told)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"traces_one_in": -1}, "setting traces_one_in: -1 is out of range\nAllowed: 0 to 1048576."),
        ({"traces_one_in": (1 << 20) + 1}, "setting traces_one_in: 1048577 is out of range"),
        ({"traces_rate": 0}, "setting traces_rate: 0 is out of range\nAllowed: 1 to 1000000."),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(RautaError, match=message):
        Observation(**settings)


def test_no_key_shows() -> None:
    assert "id_key" not in repr(Sampling(1, 1, b"secret"))
