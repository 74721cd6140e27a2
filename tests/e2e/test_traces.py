"""Traces of real requests: a router, agents, servers and clients, and a collector that says what it has understood.

On `web` and `api` there is nginx, on `sign` and `stamp` there are servers that sign what they answer (e2e/signing.py).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from e2e import signing
from e2e.bench import HOST, SECONDS, Bench, bench, eventually, request
from e2e.collector import Collector, collecting
from lab.contenders.rauta import RunningRauta
from lab.servers import content
from rauta.agent import Agent
from rauta.loading import Loaded
from rauta.observation import Observation
from rauta.router import Router
from rauta.tracing.spans import Exporter
from rauta.tracing.traces import Trace, TraceReader

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

FILE = Path(__file__).parent / "data" / "moves.yaml"
SIGNERS = ("sign", "stamp")
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
EXPECT = "Expect: 100-continue"
RATE = 100_000
NS = 1_000_000_000


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A network of this module's own."""
    logs = tmp_path_factory.mktemp("executed")
    with bench("rauta", tmp_path_factory.mktemp("logs"), FILE) as one, signing.signing(one.network, SIGNERS, logs):
        yield one


@dataclass(frozen=True)
class Halves:
    """The readers of a router and of its agents, by backend."""

    router: TraceReader
    agents: Mapping[str, TraceReader]
    programs: Sequence[Loaded]

    def read(self, routed: int, answered: int) -> tuple[list[Trace], list[Trace]]:
        """So many of the router's, and of all agents', each in order of time; there are no more."""
        found: tuple[list[Trace], list[Trace]] = ([], [])

        def complete() -> bool:
            found[0].extend(self.router.poll(0))
            found[1].extend(trace for agent in self.agents.values() for trace in agent.poll(0))
            return len(found[0]) >= routed and len(found[1]) >= answered

        eventually(complete, f"{routed} and {answered} traces")
        assert (len(found[0]), len(found[1])) == (routed, answered)
        return sorted(found[0], key=lambda one: one.time_ns), sorted(found[1], key=lambda one: one.time_ns)

    @property
    def declined(self) -> int:
        """By all of them."""
        return self.router.declined + sum(agent.declined for agent in self.agents.values())


@contextmanager
def traced(routed: Bench, one_in: int) -> Iterator[Halves]:
    """Another router and other agents in the place of the network's, with the same keys, which trace."""
    running, network = routed.running, routed.network
    assert isinstance(running, RunningRauta)
    old, agents = running.router, {}
    for part in (old, *running.agents.values()):
        part.close()
    with ExitStack() as stack:
        for backend in running.agents:
            agent = Agent.load(old.config, old.keys, backend, traces_one_in=one_in, traces_rate=RATE)
            agents[backend] = stack.enter_context(agent)
            with network.hosts[backend].entered():
                agent.attach(network.hosts[backend].interface)
        observation = Observation(traces_one_in=one_in, traces_rate=RATE)
        router = stack.enter_context(Router.load(old.config, old.keys, observation=observation))
        with network.routers[0].entered():
            router.attach(*network.interfaces(network.routers[0]), mode="native")
        readers = {backend: stack.enter_context(TraceReader(agent)) for backend, agent in agents.items()}
        yield Halves(stack.enter_context(TraceReader(router)), readers, [router, *agents.values()])


@pytest.fixture(scope="module")
def tracing(routed: Bench) -> Iterator[Halves]:
    """Everything is traced. Whoever wants less comes after."""
    with traced(routed, 1) as halves:
        yield halves


@pytest.fixture
def halves(tracing: Halves) -> Halves:
    """With nothing to read yet."""
    tracing.read(0, 0)
    return tracing


def curl(routed: Bench, path: str, *arguments: str) -> str:
    """The status, and whatever else is asked for, of a request by curl."""
    address, port = routed.vip("shop")
    argv = ["curl", "-sS", "--max-time", f"{SECONDS:g}", "--connect-to", f"::{address}:{port}", "-o", "/dev/null"]
    argv += ["-w", "%{http_code}", *arguments, f"http://{HOST}{path}"]
    return routed.client.run(argv, timeout=SECONDS + 2).stdout


# ---- through to the collector ---------------------------------------------------------------------------


def collected(collector: Collector, routed: Sequence[Trace], answered: Sequence[Trace]) -> list[dict[str, Any]]:
    """What a collector understands, as a router's host and a backend's send it."""
    for service, traces in (("rauta-router", routed), ("rauta-agent", answered)):
        with Exporter(collector.endpoint, service=service, host="test") as exporter:
            exporter.offer(traces)
        assert exporter.counts().exported == len(traces)
    return collector.spans()


def test_a_request_becomes_two_spans_of_one_trace(routed: Bench, halves: Halves, tmp_path: Path) -> None:
    earliest = time.time_ns()
    assert curl(routed, "/api/orders?secret=1") == "200"
    latest = time.time_ns()
    with collecting(tmp_path) as collector:
        route, first_byte = collected(collector, *halves.read(1, 1))
    assert (route["name"], first_byte["name"]) == ("route", "first byte")
    assert route["trace"] == first_byte["trace"]
    assert (route["parent"], first_byte["parent"]) == ("", route["span"])
    assert earliest < route["start"] == route["end"] < first_byte["start"] < first_byte["end"] < latest
    assert route["resource"]["service.name"] == "rauta-router"
    assert first_byte["resource"]["service.name"] == "rauta-agent"
    common = {
        "http.request.method": "GET",
        "url.scheme": "http",
        "server.address": "198.18.100.80",
        "server.port": 80,
        "network.peer.address": str(routed.client.address),
        "network.peer.port": route["attributes"]["network.peer.port"],
        "rauta.vip": "shop",
        "rauta.backend": "api-1",
    }
    routing = {"http.route": "/api/*", "rauta.route": "* shop.test/api/*", "rauta.verdict": "ROUTED_FIRST"}
    assert route["attributes"] == common | routing
    assert first_byte["attributes"] == common | {"http.response.status_code": 200}


def test_the_clients_own_trace_goes_on(routed: Bench, halves: Halves, tmp_path: Path) -> None:
    """And the request reaches the server as the client has sent it."""
    assert curl(routed, "/api", "-H", f"traceparent: 00-{TRACE}-{SPAN}-01", "-H", "tracestate: rojo=1") == "200"
    with collecting(tmp_path) as collector:
        route, first_byte = collected(collector, *halves.read(1, 1))
    assert route["trace"] == first_byte["trace"] == TRACE
    assert (route["parent"], first_byte["parent"]) == (SPAN, route["span"])


def test_if_it_is_not_recorded_neither_is_ours(routed: Bench, halves: Halves) -> None:
    before = halves.declined
    assert curl(routed, "/api", "-H", f"traceparent: 00-{TRACE}-{SPAN}-00") == "200"
    eventually(lambda: halves.read(0, 0) == ([], []) and halves.declined == before + 2, "both halves to decline")


@pytest.mark.parametrize("value", [f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{SPAN}", "x" * 900])
def test_nonsense_begins_a_trace_of_its_own(routed: Bench, halves: Halves, value: str) -> None:
    assert curl(routed, "/api", "-H", f"traceparent: {value}") == "200"
    (route,), (first_byte,) = halves.read(1, 1)
    assert route.trace_id == first_byte.trace_id != int(TRACE, 16)
    assert (route.parent_id, first_byte.parent_id) == (None, route.span_id)


# ---- which request, which answer --------------------------------------------------------------------------


def pairs(routes: Sequence[Trace], answers: Sequence[Trace]) -> list[tuple[Trace, Trace]]:
    """Each request's halves, which are of one trace."""
    by_parent = {one.parent_id: one for one in answers}
    found = [(route, by_parent[route.span_id]) for route in routes]
    for route, answer in found:
        assert route.trace_id == answer.trace_id
        assert (route.client, route.client_port) == (answer.client, answer.client_port)
        assert answer.answered_ns is not None
        assert route.time_ns < answer.time_ns < answer.answered_ns
    return found


def test_each_request_of_a_connection_is_answered_where_it_went(routed: Bench, halves: Halves) -> None:
    """It goes from backend to backend."""
    paths = ["/api/1", "/sign/2", "/stamp/3?status=404", "/stamp/4", "/api/5", "/sign/6?status=503&size=9"]
    with routed.connected() as connection:
        statuses = [connection.ask(path).status for path in paths]
    assert statuses == [200, 200, 404, 200, 200, 503]
    found = pairs(*halves.read(6, 6))
    assert [(answer.backend, answer.status) for _, answer in found] == [
        *(("api-1", 200), ("sign-1", 200), ("stamp-1", 404), ("stamp-1", 200), ("api-1", 200), ("sign-1", 503))
    ]
    assert [route.backend for route, _ in found] == [answer.backend for _, answer in found]
    moved = "ROUTED_MOVED"
    assert [route.verdict for route, _ in found] == ["ROUTED_FIRST", moved, moved, "ROUTED_NEXT", moved, moved]
    assert len({route.trace_id for route, _ in found}) == 6


def test_until_the_server_says_something_nothing_has(routed: Bench, halves: Halves) -> None:
    with routed.connected() as connection:
        assert connection.ask("/sign/pause/1?pause=300").status == 200
    ((_, answer),) = pairs(*halves.read(1, 1))
    assert answer.answered_ns is not None
    assert answer.answered_ns - answer.time_ns >= 0.3 * NS


def test_an_interim_answer_is_not_the_first_byte(routed: Bench, halves: Halves) -> None:
    """The server waits for the body, which the client sends after that."""
    body = content(3000)
    with routed.connected() as connection:
        for turn in range(2):
            connection.sock.sendall(request(f"/sign/{turn}", EXPECT, method="PUT", body=body).removesuffix(body))
            said = b""
            while not said.endswith(b"\r\n\r\n"):
                said += connection.sock.recv(1)
            assert said.startswith(b"HTTP/1.1 100 ")
            time.sleep(0.2)
            connection.sock.sendall(body)
            assert connection.answer("PUT").status == 200
    found = pairs(*halves.read(2, 2))
    for _, answer in found:
        assert (answer.method, answer.status) == ("PUT", 200)
        assert answer.answered_ns is not None
        assert answer.answered_ns - answer.time_ns >= 0.2 * NS


def test_an_answer_in_chunks_does_not_hide_the_next_ones(routed: Bench, halves: Halves) -> None:
    """Though the agent cannot tell where it ends."""
    with routed.connected() as connection:
        for path in ("/sign/1?chunked=3&size=90", "/sign/2?chunked=2&size=9", "/sign/3?status=404", "/sign/4"):
            connection.ask(path)
    assert [answer.status for _, answer in pairs(*halves.read(4, 4))] == [200, 200, 404, 200]


def test_a_port_that_is_used_again_has_a_trace_for_each_connection(routed: Bench, halves: Halves) -> None:
    """The backend has the last one in TIME_WAIT: the request goes round while that is cleared."""
    port = 0
    for number in range(5):
        with routed.connected(port=port) as connection:
            port = connection.port
            assert connection.ask(f"/api/{number}", "Connection: close").status == 200
            assert connection.ended()
    found = pairs(*halves.read(5, 5))
    assert {(answer.client_port, answer.status, answer.backend) for _, answer in found} == {(port, 200, "api-1")}
    assert len({route.trace_id for route, _ in found}) == 5


def test_a_request_without_an_answer_has_only_the_routers_half(routed: Bench, halves: Halves) -> None:
    with routed.connected() as connection:
        connection.sock.sendall(request("/sign/never?pause=500"))
        (route,), _ = halves.read(1, 0)
    assert (route.verdict, route.backend) == ("ROUTED_FIRST", "sign-1")
    halves.read(0, 1)  # that server does not look whether anybody still listens


# ---- in a loop, and towards a collector that is not there -------------------------------------------------


def test_in_an_event_loop_traces_reach_the_collector_by_themselves(
    routed: Bench, halves: Halves, tmp_path: Path
) -> None:
    async def forward(collector: Collector, exporter: Exporter) -> None:
        loop = asyncio.get_running_loop()
        readers = [halves.router, *halves.agents.values()]
        for one in readers:
            loop.add_reader(one.fileno(), lambda one=one: exporter.offer(one.poll(0)))  # type: ignore[misc]
        for number in range(5):
            await asyncio.to_thread(curl, routed, f"/web/{number}")
        async with asyncio.timeout(SECONDS):
            while exporter.counts().exported < 10:
                await asyncio.sleep(0.01)
        for one in readers:
            loop.remove_reader(one.fileno())

    with collecting(tmp_path) as collector, Exporter(collector.endpoint, interval=0.05) as exporter:
        asyncio.run(forward(collector, exporter))
        spans = collector.spans()
    assert sorted(span["name"] for span in spans) == ["first byte"] * 5 + ["route"] * 5
    assert len({span["trace"] for span in spans}) == 5


def test_a_dead_collector_costs_spans_and_nothing_else(routed: Bench, halves: Halves) -> None:
    """Requests are answered, traces read, and what finds no room is counted."""
    exporter = Exporter("http://127.0.0.1:1/v1/traces", capacity=10, interval=0.05, timeout=60.0)
    with routed.connected() as connection:
        for number in range(200):
            assert connection.ask(f"/api/{number}").status == 200
            exporter.offer(halves.router.poll(0))
    exporter.offer(halves.read(0, 200)[1])
    exporter.close(0.1)
    counts = exporter.counts()
    assert (counts.exported, counts.failed + counts.dropped) == (0, 400)


# ---- one in so many; this takes the place of what traces everything ---------------------------------------


@pytest.fixture
def sampled(routed: Bench, tracing: Halves) -> Iterator[Halves]:
    for program in tracing.programs:
        program.close()
    with traced(routed, 4) as halves:
        yield halves


def test_router_and_agents_trace_the_same_requests(routed: Bench, sampled: Halves) -> None:
    """By whatever connections they come, wherever they go."""
    for _ in range(10):
        with routed.connected() as connection:
            for number in range(40):
                connection.ask(f"/{('api', 'sign', 'stamp')[number // 4 % 3]}/{number}")
    routes: list[Trace] = []
    answers: list[Trace] = []
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and (not routes or len(answers) < len(routes)):
        routes += sampled.router.poll(10)
        answers += [trace for agent in sampled.agents.values() for trace in agent.poll(0)]
    assert 50 <= len(routes) <= 150  # of 400; five standard deviations are 43
    assert len(answers) == len(routes)
    found = pairs(routes, answers)
    assert {answer.backend for _, answer in found} == {"api-1", "sign-1", "stamp-1"}
    assert {route.verdict for route, _ in found} >= {"ROUTED_NEXT", "ROUTED_MOVED"}
    assert all(route.backend == answer.backend for route, answer in found)
