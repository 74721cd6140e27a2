"""The latency histogram: what is timed, and in which bucket it is counted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from packets import oracle
from packets.bench import Router as Bench
from packets.frames import CLIENT_MAC, ROUTER_MAC, Connection, Segment, ethernet, request
from packets.observed import counted, loaded, run
from rauta.bpf import BpfObject
from rauta.contract import LATENCY_BUCKETS
from rauta.latency import BOUNDS
from rauta.observation import Observation
from rauta.router import Router

ALICE = Connection()
HEAD = request("/")
IPV6 = ethernet(CLIENT_MAC, ROUTER_MAC, bytes(46), ethertype=0x86DD)
STRAY = Connection(port=40009).ack(7)
ROOT = Path(__file__).parents[2]


# ---- buckets and classes, by the router's own functions -------------------------------------------------


@pytest.fixture(scope="module")
def observing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BpfObject]:
    clang = shutil.which("clang-19") or pytest.skip("needs clang-19")
    target = tmp_path_factory.mktemp("objects") / "observing.bpf.o"
    source = Path(__file__).parent / "bpf/observing.bpf.c"
    headers = (f"-I/usr/include/{sysconfig.get_config_var('MULTIARCH')}", f"-I{ROOT / 'bpf'}")
    flags = ("-O2", "-g", "-Wall", "-Werror", "-Wno-unused-function", "-target", "bpf", "-mcpu=v3")
    subprocess.run([clang, *flags, *headers, "-c", source, "-o", target], check=True)
    with BpfObject.open(target) as obj:
        obj.load()
        yield obj


def of(observing: BpfObject, function: str, number: int) -> int:
    return observing.programs[function].test_run(number.to_bytes(8, "little") + bytes(6)).retval


def test_times_are_counted_in_four_buckets_an_octave(observing: BpfObject) -> None:
    """At both sides of every bound, at the ends of the scale, and beyond."""
    octaves = [n << shift for shift in range(2, 64) for n in (4, 5, 6, 7)]
    times = {ns for bound in octaves for ns in (bound - 1, bound) if ns < 1 << 64}
    for ns in sorted({0, 1, (1 << 64) - 1} | times):
        assert of(observing, "bucket", ns) == oracle.latency_bucket(ns), ns


CLASSES = {
    "PASS_NOT_VIP": "PASSED",
    "DROP_FRAGMENT": "DROPPED",
    "DROP_HANDSHAKE_ACK": "DROPPED",
    "TX_SYN_ACK": "ANSWERED",
    "TX_DISCARDED": "ANSWERED",
    "ROUTED_FIRST": "ROUTED",
    "ROUTED_NEXT": "ROUTED",
    "FORWARDED": "FORWARDED",
    "FORWARDED_CLOSE": "FORWARDED",
}


@pytest.mark.parametrize(("verdict", "expected"), CLASSES.items())
def test_the_range_of_a_verdict_is_its_class(
    observing: BpfObject, loaded_router: Bench, verdict: str, expected: str
) -> None:
    classes = loaded_router.object.btf.enum("verdict_class")
    assert of(observing, "class", loaded_router.verdicts[verdict]) == classes[f"CLASS_{expected}"]


def test_what_lies_beyond_the_agents_is_the_fallbacks(observing: BpfObject, loaded_router: Bench) -> None:
    fallback = loaded_router.object.btf.enum("verdict_class")["CLASS_FALLBACK"]
    assert of(observing, "class", 224) == of(observing, "class", 255) == fallback


# ---- what is timed --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def timing() -> Iterator[Router]:
    """A router that times every packet."""
    with loaded(observation=Observation(latency_one_in=1)) as router:
        yield router


@pytest.fixture
def timed(timing: Router) -> Router:
    """It knows no connection, and has timed none."""
    timing.object.maps["flows"].clear()
    timing.object.maps["latency"].clear()
    return timing


def times(router: Router) -> dict[str, int]:
    """How many times were counted, by class."""
    return {name: histogram.count for name, histogram in router.latency().items() if histogram.count}


@pytest.mark.parametrize(
    ("segment", "expected"),
    [
        (IPV6, "passed"),
        (STRAY, "dropped"),
        (ALICE.syn(), "answered"),
        (ALICE.data(request("//")), "answered"),
        (ALICE.data(HEAD), "routed"),
    ],
    ids=["IPv6", "stray", "SYN", "refused", "request"],
)
def test_a_packet_is_timed_once_in_its_class(timed: Router, segment: Segment | bytes, expected: str) -> None:
    run(timed, segment)
    assert times(timed) == {expected: 1}
    histogram = timed.latency()[expected]
    bucket = histogram.counts.index(1)
    assert oracle.latency_bucket(round(histogram.sum * 1e9)) == bucket
    assert 1e-9 < histogram.sum < 1


def test_what_follows_a_request_is_of_a_class_of_its_own(timed: Router) -> None:
    run(timed, ALICE.data(HEAD), ALICE.ack(len(HEAD)), ALICE.data(HEAD), ALICE.later(HEAD, len(HEAD)))
    assert times(timed) == {"routed": 2, "forwarded": 2}


def test_sum_and_buckets_are_of_the_same_times(timed: Router) -> None:
    """Of many packets: the sum lies between what the buckets' bounds allow."""
    run(timed, *[STRAY] * 500)
    histogram = timed.latency()["dropped"]
    lower = (0.0, *BOUNDS)
    assert histogram.count == 500
    assert sum(count * lower[bucket] for bucket, count in enumerate(histogram.counts)) <= histogram.sum + 1e-12
    assert histogram.counts[-1] or histogram.sum <= sum(n * BOUNDS[b] for b, n in enumerate(histogram.counts) if n)
    assert len(histogram.counts) == LATENCY_BUCKETS


def test_no_packet_is_timed_where_it_is_off() -> None:
    with loaded(observation=Observation(latency_one_in=0)) as router:
        run(router, *[STRAY] * 50)
        assert times(router) == {}


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """Each CPU counts for itself."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    yield
    os.sched_setaffinity(0, allowed)


@pytest.mark.usefixtures("one_cpu")
def test_so_many_packets_are_timed_as_asked_for() -> None:
    """4,096 of 65,536; gaps are uniform over 1..31, so that the number's standard deviation is 36."""
    with loaded(observation=Observation(latency_one_in=16)) as router:
        router.object.programs["rauta_ingress"].test_run(bytes(STRAY), repeat=65_536)
        assert counted(router.counters()) == {"DROP_NO_FLOW": 65_536}
        assert abs(router.latency()["dropped"].count - 4096) < 250


@pytest.mark.usefixtures("one_cpu")
def test_kinds_that_take_turns_are_timed_alike() -> None:
    """Every eighth packet would always be of the same kind."""
    with loaded(observation=Observation(latency_one_in=8)) as router:
        run(router, *[STRAY, IPV6] * 2000)
        assert min(times(router).values()) > 150
        assert times(router).keys() == {"dropped", "passed"}
