"""The load generators against servers that count, freeze, fail, and answer wrongly."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from statistics import mean, pvariance
from typing import Any

import pytest

from e2e.bench import SECONDS, Bench, bench
from e2e.load import (
    CLOSED_PORT,
    LARGE,
    At,
    Conduct,
    Counting,
    Target,
    always,
    counting,
    generate,
    odd,
    read_request,
    wait_for_log,
    wrong,
)
from lab.interfaces import Setup
from lab.measure import OpenLoop, Search, Wrk
from lab.measure.open_loop import SATURATED, TOOL, OpenLoopInstrument
from lab.samples import Sample
from lab.topology import Host

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nHello"
MS = 1_000_000
"""ns"""
PATIENT = 5.0
"""seconds"""


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench("direct", tmp_path_factory.mktemp("logs")) as one:
        yield one


@pytest.fixture
def server(direct: Bench, tmp_path: Path) -> Iterator[Counting]:
    with counting(direct.network.hosts["api-1"], tmp_path) as one:
        yield one


@pytest.fixture
def client(direct: Bench) -> Host:
    return direct.client


@pytest.fixture
def misbehaving(direct: Bench) -> Iterator[Callable[[Conduct], Target]]:
    with ExitStack() as stack:
        yield lambda conduct: stack.enter_context(odd(direct.network.hosts["api-1"], conduct))


def open_loop(client: Host, target: Target, *, clients: int = 1, scale: int = 1, **fields: object) -> Sample:
    """A sample without warm-up."""
    model = OpenLoop.model_validate({"layer": "http", "tool": "open-loop", "cluster": "api", **fields})
    assert isinstance(model.rate, float)
    instrument = OpenLoopInstrument(model, [client] * clients, 0.0, model.rate)
    return instrument.sample("direct", At(target), nullcontext(), scale=scale)


def wrk(direct: Bench, target: Target, *, scale: int = 1, **fields: object) -> Sample:
    """A sample after the warm-up that the scenario's plan asks for."""
    model = Wrk.model_validate({"layer": "http", "tool": "wrk", "cluster": "api", **fields})
    with ExitStack() as stack:
        instrument = model.open(Setup(direct.network, direct.scenario, stack))
        return instrument.sample("direct", At(target), nullcontext(), scale=scale)


def above(sample: Sample, ns: int) -> int:
    """How many latencies are above a bound."""
    assert sample.histogram is not None
    return sum(count for value, count in sample.histogram.counts().items() if value > ns)


# ---- every request once, at the intended rate -------------------------------------------------------------


@pytest.mark.parametrize("arrivals", ["constant", "poisson"])
@pytest.mark.parametrize("flags", [(), ("--close",)], ids=["keep-alive", "close"])
def test_every_request_is_sent_and_answered_once(
    client: Host, server: Counting, arrivals: str, flags: tuple[str, ...]
) -> None:
    report = generate(
        client, server.target, *flags, rate=1000, warmup=0.3, duration=1, arrivals=arrivals, connections=8
    )
    assert wrong(report) == {}
    assert report["answered"] == report["intended"] == report["sent"] == sum(n for _, n in report["histogram"])
    assert report["intended"] == pytest.approx(1000, abs=1 if arrivals == "constant" else 150)
    wait_for_log(server, report["requests"])
    assert Counter(one.status for one in server.logged()) == {200: report["requests"]}
    assert report["requests"] == pytest.approx(1.3 * report["intended"], rel=0.1)
    connections = {one.connection for one in server.logged()}
    assert len(connections) == (report["requests"] if flags else 8)


@pytest.mark.parametrize("rate", [200, 5000])
def test_the_achieved_rate_is_the_intended_one(client: Host, server: Counting, rate: int) -> None:
    sample = open_loop(client, server.target, rate=rate, duration="2s")
    assert (sample.valid, sample.reason) == (True, "")
    assert sample.quantities["rate"] == pytest.approx(rate, rel=0.01)
    assert sample.requests == sample.details["intended"] == pytest.approx(2 * rate, abs=1)
    wait_for_log(server, sample.requests)
    times = [one.time for one in server.logged()]
    assert len(times) / (max(times) - min(times)) == pytest.approx(rate, rel=0.03)


def test_a_sample_twice_as_long_has_twice_the_requests(client: Host, server: Counting) -> None:
    one, two = (open_loop(client, server.target, rate=500, duration="400ms", scale=scale) for scale in (1, 2))
    assert (one.requests, two.requests) == (200, 400)


def test_several_clients_share_the_rate_and_the_connections(client: Host, server: Counting) -> None:
    sample = open_loop(client, server.target, clients=3, rate=1500, duration="1s", connections=8)
    assert sample.valid
    assert sample.histogram is not None
    assert sample.histogram.count == sample.requests == pytest.approx(1500, abs=3)
    assert sample.quantities["rate"] == pytest.approx(1500, rel=0.01)
    wait_for_log(server, sample.requests)
    assert len({one.connection for one in server.logged()}) == 8


def test_requests_wait_for_a_free_connection_and_are_not_skipped(
    client: Host, misbehaving: Callable[[Conduct], Target]
) -> None:
    """4 connections, 20 ms an answer: 200/s at most. Asked for 400/s, half of the time is a queue, and the server's."""
    target = misbehaving(always(GOOD, pause=0.02))
    sample = open_loop(client, target, rate=400, duration="500ms", connections=4)
    assert sample.details["intended"] == sample.details["answered"] == 200
    assert sample.quantities["rate"] == pytest.approx(185, abs=20)
    assert sample.quantities["max"] > 400_000
    assert sample.value > 150_000
    assert sample.generator is not None
    assert sample.generator < SATURATED


def test_constant_slots_are_as_many_as_the_rate_says_and_random_ones_vary_as_they_should(client: Host) -> None:
    """No answer is needed to count slots: nobody listens there."""

    def slots(arrivals: str, seed: int) -> int:
        report = generate(
            client, (client.address, CLOSED_PORT), rate=10_000, duration=0.01, drain=0, arrivals=arrivals, seed=seed
        )
        return int(report["intended"])

    assert {slots("constant", seed) for seed in range(3)} == {100}
    counts = [slots("poisson", seed) for seed in range(60)]
    assert counts[:5] == [slots("poisson", seed) for seed in range(5)]
    assert mean(counts) == pytest.approx(100, abs=4)
    assert pvariance(counts) / mean(counts) == pytest.approx(1, abs=0.4)
    assert all(a != b for a, b in zip(counts[:8:2], counts[1:8:2], strict=True)), "seeds side by side differ"


# ---- what is sent and what comes back ---------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 10_000, 1_000_000])
def test_bodies_are_uploaded_whole(client: Host, server: Counting, size: int) -> None:
    sample = open_loop(client, server.target, rate=50, duration="400ms", body=size, connections=4)
    assert (sample.valid, sample.reason) == (True, "")
    wait_for_log(server, 20)
    assert [one.method for one in server.logged()] == ["POST"] * 20
    head = f"POST / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: {size}\r\n\r\n"
    assert {one.received for one in server.logged()} == {len(head) + size}


def test_large_answers_are_read_whole(client: Host, server: Counting) -> None:
    sample = open_loop(client, server.target, rate=20, duration="500ms", path="/large", connections=4)
    assert (sample.valid, sample.reason) == (True, "")
    wait_for_log(server, 10)
    assert all(one.sent > LARGE for one in server.logged())
    assert len({one.connection for one in server.logged()}) <= 4


def test_a_server_that_closes_now_and_then_is_asked_again_on_new_connections(client: Host, server: Counting) -> None:
    report = generate(client, server.target, rate=500, duration=0.4, connections=4, path="/ten")
    assert (wrong(report), report["answered"]) == ({}, 200)
    wait_for_log(server, 200)
    assert set(Counter(one.connection for one in server.logged()).values()) == {10}


@pytest.mark.parametrize(
    "pieces",
    [
        [GOOD[:3], GOOD[3:30], GOOD[30:]],
        [GOOD[:-5], GOOD[-5:]],
        [b"HTTP/1.0 200 OK\r\ncontent-length:5\r\nConnection: keep-alive\r\n\r\nHello"],
        [b"HTTP/1.1 200 OK\r\nX-Content-Length: 99\r\nCONTENT-LENGTH: 0\r\n\r\n"],
    ],
    ids=["head-in-pieces", "body-apart", "http-1.0", "empty"],
)
def test_answers_are_understood(client: Host, misbehaving: Callable[[Conduct], Target], pieces: list[bytes]) -> None:
    target = misbehaving(always(*pieces, pause=0.002 if len(pieces) > 1 else 0))
    report = generate(client, target, rate=50, duration=0.2, connections=2)
    assert (wrong(report), report["answered"]) == ({}, 10)


def test_a_connection_that_was_closed_while_idle_costs_no_request(
    client: Host, misbehaving: Callable[[Conduct], Target]
) -> None:
    def once(connection: Any) -> None:
        read_request(connection)
        connection.sendall(GOOD)

    report = generate(client, misbehaving(once), rate=20, duration=0.5, connections=1)
    assert (wrong(report), report["answered"]) == ({}, 10)


# ---- what goes wrong is counted ---------------------------------------------------------------------------


def test_a_closed_port_is_an_error_for_each_request(client: Host) -> None:
    sample = open_loop(client, (client.address, CLOSED_PORT), rate=1000, duration="300ms")
    assert not sample.valid
    assert sample.reason == "of 300 requests at 1,000/s: 300 connect"
    assert (sample.details["errors connect"], sample.details["answered"], sample.requests) == (300, 0, None)
    assert sample.histogram is not None
    assert sample.histogram.count == 300


def test_a_status_other_than_200_is_an_error(client: Host, server: Counting) -> None:
    sample = open_loop(client, server.target, rate=1000, duration="300ms", path="/error")
    assert not sample.valid
    assert "300 status" in sample.reason
    assert sample.requests == 300


def test_a_server_that_dies_is_errors_from_then_on(client: Host, server: Counting) -> None:
    dies = threading.Timer(0.5, server.process.stop)
    dies.start()
    sample = open_loop(client, server.target, rate=1000, duration="1s")
    dies.join()
    assert not sample.valid
    errors = {name: int(count) for name, count in sample.details.items() if name.startswith("errors ")}
    assert errors.keys() <= {"errors connect", "errors broken"}
    assert errors["errors connect"] > 200
    assert int(sample.details["answered"]) + sum(errors.values()) == sample.details["intended"] == 1000
    assert len(server.logged()) == sample.details["answered"] > 200


def test_no_answer_is_given_up_in_time(client: Host, misbehaving: Callable[[Conduct], Target]) -> None:
    def silent(connection: Any) -> None:
        while True:
            read_request(connection)

    target = misbehaving(silent)
    report = generate(client, target, rate=20, duration=0.5, timeout=0.3, drain=1, connections=20)
    assert wrong(report) == {"timeout": 10}
    assert min(value for value, _ in report["histogram"]) >= 300 * MS
    report = generate(client, target, rate=20, duration=0.5, timeout=9, drain=0.5, connections=1)
    assert wrong(report) == {"unanswered": 10}, "one that was sent, and those that waited for it"
    assert max(value for value, _ in report["histogram"]) >= 950 * MS


MALFORMED = {
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked-and-length": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "no-length": b"HTTP/1.1 200 OK\r\n\r\n",
    "length-of-words": b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\n",
    "length-and-more": b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nHello",
    "negative-length": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nHello",
    "too-much": GOOD + b", world!",
    "not-http": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "endless-head": b"HTTP/1.1 200 OK\r\nX: " + 9_000 * b"x",
}


@pytest.mark.parametrize("answer", MALFORMED.values(), ids=MALFORMED)
def test_what_it_cannot_delimit_is_refused(
    client: Host, misbehaving: Callable[[Conduct], Target], answer: bytes
) -> None:
    report = generate(client, misbehaving(always(answer)), rate=50, duration=0.2, connections=1, timeout=1)
    assert wrong(report) == {"malformed": 10}


def test_an_answer_that_comes_before_the_upload_is_over_does_not_keep_it_spinning(
    client: Host, misbehaving: Callable[[Conduct], Target]
) -> None:
    """The server answers at once, and reads no further."""
    ended = threading.Event()

    def early(connection: Any) -> None:
        connection.recv(1000)
        connection.sendall(GOOD)
        ended.wait(PATIENT)

    report = generate(client, misbehaving(early), rate=10, duration=0.2, connections=2, body=50_000_000, timeout=0.5)
    ended.set()
    assert wrong(report) == {"timeout": 2}
    assert report["cpu"] < 0.5


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["127.0.0.1"],
        ["localhost", "80"],
        ["127.0.0.1", "0"],
        ["127.0.0.1", "70000"],
        ["127.0.0.1", "80", "more"],
        *(
            [*words, "127.0.0.1", "80"]
            for words in (
                ["--rate", "fast"],
                ["--rate", "0"],
                ["--rate", "1k"],
                ["--rate", "nan"],
                ["--arrivals", "uniform"],
                ["--connections", "0"],
                ["--duration", "-1"],
                ["--body", "-1"],
                ["--unknown"],
                ["--path", "/" + 4000 * "x"],
            )
        ),
    ],
    ids=lambda words: " ".join(words)[:30] or "nothing",
)
def test_what_it_does_not_understand_is_refused(arguments: list[str]) -> None:
    done = subprocess.run([TOOL, *arguments], capture_output=True, text=True, timeout=10, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "open_loop [options] ADDRESS PORT" in done.stderr


def test_help_says_all_options() -> None:
    done = subprocess.run([TOOL, "--help"], capture_output=True, text=True, timeout=10, check=True)
    assert "--arrivals KIND" in done.stdout
    assert done.stderr == ""


# ---- a frozen server, and a generator that cannot ----------------------------------------------------------


def test_a_frozen_server_shows_in_an_open_loop_and_hides_in_a_closed_one(
    direct: Bench, client: Host, server: Counting
) -> None:
    rate = 1000
    with server.frozen(after=0.5, seconds=1.0):
        sample = open_loop(client, server.target, rate=rate, duration="2.5s")
    assert (sample.valid, sample.details["answered"]) == (True, 2.5 * rate)
    assert sample.histogram is not None
    assert 900_000 <= sample.quantities["max"] <= 2_000_000
    assert above(sample, 100 * MS) == pytest.approx(0.9 * rate, rel=0.2), "everyone who came while it hung"
    assert sample.histogram.quantile(0.8) > 100 * MS
    assert sample.generator is not None
    assert sample.generator < SATURATED, "it was not the generator's fault"

    with server.frozen(after=0.5, seconds=1.0):
        latencies = closed_loop(direct, server.target, seconds=2.5)
    assert len(latencies) > 1000
    assert latencies[-1] >= 0.9
    assert latencies[int(0.99 * len(latencies))] < 0.1, "who asks only when he was answered has noticed it once"


def closed_loop(direct: Bench, target: Target, seconds: float) -> list[float]:
    """Latencies in seconds, ascending, of a client that sends its next request when the last is answered."""
    latencies = []
    with direct.connected(target) as connection:
        end = time.monotonic() + seconds
        while (began := time.monotonic()) < end:
            connection.ask("/")
            latencies.append(time.monotonic() - began)
    return sorted(latencies)


def test_a_generator_that_cannot_is_flagged(client: Host, server: Counting) -> None:
    """More a second than anything could send, although connections are free."""
    sample = open_loop(client, server.target, rate="5M", duration="200ms", connections=10_000)
    assert not sample.valid
    assert any("the generator" in flag for flag in sample.flags), (sample.flags, sample.details)


def test_a_generator_whose_cpu_others_use_is_flagged(client: Host, server: Counting) -> None:
    with subprocess.Popen(["taskset", "-c", str(client.cpus[0]), sys.executable, "-c", "while True: pass"]) as hog:
        try:
            sample = open_loop(client, server.target, rate=2000, duration="1s")
        finally:
            hog.kill()
    assert any("sent" in flag and "late" in flag for flag in sample.flags), (sample.flags, sample.details)


# ---- wrk --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [0.3, 1.2])
def test_wrk_measures_fractions_of_a_second_rightly(direct: Bench, server: Counting, asked: float) -> None:
    sample = wrk(direct, server.target, duration=f"{asked}s", connections=8)
    assert (sample.valid, sample.reason) == (True, "")
    seconds = float(sample.details["seconds"])
    assert 0.95 * asked <= seconds < asked + 0.3, "wrk looks every 100 ms whether it is to end"
    assert sample.requests is not None
    assert sample.value == pytest.approx(sample.requests / seconds, rel=0.001)
    logged = server.logged()
    counted = [one for one in logged if one.time > logged[-1].time - seconds]
    assert sample.requests == pytest.approx(len(counted), rel=0.05)
    assert sample.generator is not None
    assert 0.02 < sample.generator <= 1


def test_wrk_warms_up_on_request_and_scales(direct: Bench, server: Counting) -> None:
    one = wrk(direct, server.target, duration="300ms", scale=2)
    assert float(one.details["seconds"]) >= 0.57
    assert one.requests is not None
    assert len(server.logged()) > one.requests + 32, "there was a warm-up, which does not count"


def test_wrk_is_started_again_if_its_first_packet_is_lost(direct: Bench, server: Counting) -> None:
    """It connects once before it starts, and whoever ends it meanwhile gets no report."""
    chain = "type filter hook output priority 0; tcp flags syn quota until 60 bytes drop\n"
    rules = f"table inet lossy {{\nchain out {{\n{chain}}}\n}}\n"
    direct.client.run(["nft", "-f", "-"], input=rules, timeout=SECONDS)
    try:
        sample = wrk(direct, server.target, duration="300ms")
    finally:
        direct.client.run(["nft", "delete table inet lossy"], timeout=SECONDS)
    assert sample.valid, sample.reason


def test_wrk_opens_a_connection_for_each_request(direct: Bench, server: Counting) -> None:
    sample = wrk(direct, server.target, duration="300ms", connections=4, close=True)
    assert sample.valid
    assert set(Counter(one.connection for one in server.logged()).values()) == {1}


def test_errors_that_wrk_sees_make_its_sample_invalid(direct: Bench, server: Counting) -> None:
    sample = wrk(direct, server.target, duration="200ms", path="/error")
    assert not sample.valid
    assert "status" in sample.reason


def test_wrk_against_a_closed_port_is_an_invalid_sample(direct: Bench) -> None:
    sample = wrk(direct, (direct.network.hosts["api-1"].address, CLOSED_PORT), duration="200ms")
    assert not sample.valid
    assert "refused" in sample.reason


# ---- the search -------------------------------------------------------------------------------------------


def search(direct: Bench, target: Target, **fields: object) -> Sample:
    model = Search.model_validate({"layer": "http", "tool": "search", "cluster": "api", **fields})
    with ExitStack() as stack:
        instrument = model.open(Setup(direct.network, direct.scenario, stack))
        return instrument.sample("direct", At(target), nullcontext())


def test_the_search_finds_what_a_server_can_do(direct: Bench, misbehaving: Callable[[Conduct], Target]) -> None:
    """4 connections, 20 ms an answer: somewhat below 200/s; above, the queue grows by the second."""
    target = misbehaving(always(GOOD, pause=0.02))
    sample = search(direct, target, rate=50, connections=4, duration="800ms", p99="< 120ms", resolution="10%")
    assert (sample.valid, sample.reason) == (True, "")
    assert 130 <= sample.value <= 230
    assert sample.quantities["p99"] < 120_000
    assert sample.quantities["trials"] >= 4


def test_the_search_says_when_no_rate_holds(direct: Bench, server: Counting) -> None:
    sample = search(direct, server.target, rate=1000, duration="50ms", p99="< 10ms", path="/error")
    assert (sample.valid, sample.value) == (False, 0.0)
    assert "no rate down to" in sample.reason
