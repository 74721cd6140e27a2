"""Health checks from the router's host, and a router that does as they say (docs/health.md says how).

Servers are killed and stopped, cables pulled. What is in flight, or comes until a backend has left, may fail, and is
counted; nothing after that.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from e2e.bench import HOST, Bench, Conversation, bench, eventually, request
from e2e.test_failures import cut_off, router_of
from lab.servers import content
from lab.topology import Host, spare_namespace
from rauta.checks.health import Checker, Transition, detection_seconds
from rauta.checks.probing import Outcome, Result, Target, probe
from rauta.config import Cluster
from rauta.network.namespaces import entered
from rauta.router import Router
from rauta.standing import Standing

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root"),
    pytest.mark.usefixtures("may_repeat"),
]

FILE = Path(__file__).parent / "data" / "health.yaml"
BODY = content(13)
SECONDS = 15.0
"""for whatever a test waits for"""
BUSY = 1.0
"""seconds: a machine that is busy has a check done again"""
LOAD_SECONDS, CONNECTIONS = 3, 16
ERROR_SECONDS = 2.0


class Watched:
    """A checker in a thread of the router's host, and what a daemon does when it hears of a transition."""

    def __init__(self, router: Router, host: Host, clusters: Sequence[Cluster]) -> None:
        self.told: list[tuple[Transition, float]] = []
        """and when, by the monotonic clock"""
        self._router, self._host, self._clusters = router, host, clusters
        self.checker = Checker(clusters, self._changed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)

    def _changed(self, transition: Transition) -> None:
        router, before = self._router, self._router.standing.down_in(self._router.config)
        router.stand(Standing.of_checks(self.checker.states()))
        for name in router.standing.down_in(router.config) - before:
            router.probe_down(name)
        self.told.append((transition, time.monotonic()))

    def _run(self) -> None:
        with self._host.entered():
            self._task = self._loop.create_task(self.checker.run())
            try:
                self._loop.run_until_complete(self._task)
            except asyncio.CancelledError:
                pass
            finally:
                self._loop.close()

    @contextmanager
    def running(self) -> Iterator[None]:
        """In the end all is up again, and all weights are as they were."""
        self._thread.start()
        try:
            eventually(lambda: all(state.successes for state in self.checker.states().values()), "checks", SECONDS)
            yield
        finally:
            self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join()
            self._router.stand(Standing())

    @property
    def all_well(self) -> bool:
        """By what has been told, and done."""
        return all({one.backend: one.healthy for one, _ in self.told}.values())

    def wait_for(self, backend: str, *, healthy: bool, host_answers: bool = True) -> tuple[Transition, float]:
        """The newest transition, once it says so."""

        def is_so() -> bool:
            wanted = (backend, healthy, host_answers)
            return any((one.backend, one.healthy, one.host_answers) == wanted for one, _ in self.told[-1:])

        eventually(is_so, f"{backend} to be {'' if healthy else 'un'}healthy; told: {self.told}", SECONDS)
        return self.told[-1]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench("rauta", tmp_path_factory.mktemp("logs"), FILE) as one:
        yield one


@pytest.fixture
def watched(shop: Bench) -> Iterator[Watched]:
    one = Watched(router_of(shop), shop.network.hosts["router"], shop.scenario.routing.config.clusters)
    with one.running():
        yield one


@dataclass(frozen=True)
class Load:
    """What wrk says of its requests."""

    requests: int
    errors: int

    @classmethod
    def of(cls, said: str) -> Load:
        (requests,) = re.findall(r"(\d+) requests in", said)
        sockets = re.findall(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", said)
        statuses = re.findall(r"Non-2xx or 3xx responses: (\d+)", said)
        return cls(int(requests), sum(map(int, (*(sockets[0] if sockets else ()), *statuses))))


@contextmanager
def load(shop: Bench) -> Iterator[list[Load]]:
    """wrk on /web for some seconds; at the end what it says is in the list."""
    address, port = shop.vip("shop")
    argv = [
        "wrk",
        "-t1",
        f"-c{CONNECTIONS}",
        f"-d{LOAD_SECONDS}s",
        "-H",
        f"Host: {HOST}",
        f"http://{address}:{port}/web",
    ]
    process = shop.client.start(argv, name="wrk")
    said: list[Load] = []
    yield said
    eventually(lambda: process.poll() is not None, "wrk to end", LOAD_SECONDS + SECONDS)
    said.append(Load.of(process.output()))


def signalled(host: Host, number: signal.Signals) -> float:
    """A signal to all processes of the host's server; says when."""
    for process in host._processes:
        os.killpg(process.pid, number)
    return time.monotonic()


def requests_of(shop: Bench, backend: str, count: int = 12) -> int:
    """How many of some new connections are answered by that backend; all are answered."""
    answered = 0
    for _ in range(count):
        with shop.connected() as connection:
            answer = connection.ask("/web")
            assert (answer.status, answer.body) == (200, BODY)
            answered += answer.backend == backend
    return answered


def bound(shop: Bench, cluster: str) -> float:
    """fall × interval, and what a busy machine takes."""
    (health,) = (one.health for one in shop.scenario.routing.config.clusters if one.name == cluster)
    assert health is not None
    assert detection_seconds(health) == health.fall * health.interval
    return health.fall * health.interval + BUSY


def test_clients_lose_nothing_but_what_was_in_flight_when_a_server_is_killed(shop: Bench, watched: Watched) -> None:
    host = shop.network.hosts["web-1"]
    with load(shop) as during:
        eventually(lambda: shop.running.counters()["ROUTED_NEXT"] > 1000, "load")
        killed = signalled(host, signal.SIGKILL)
        transition, at = watched.wait_for("web-1", healthy=False)
    assert at - killed < bound(shop, "web")
    assert transition.reason == "Connection refused"
    with load(shop) as after:
        pass
    assert requests_of(shop, "web-1") == 0
    host.stop_all()
    with load(shop) as coming_back:
        scratch = shop.network.run.scratch / "web-1-again"
        scratch.mkdir()
        shop.scenario.servers["web"].start(host, "web", scratch)
        watched.wait_for("web-1", healthy=True)
    print(f"\nleft after {at - killed:.2f} s; {during[0]}, {after[0]}, {coming_back[0]}")
    assert after[0].errors == 0
    assert coming_back[0].errors == 0
    # What was in flight; and until web-1 has left, every other connection that a client opens instead is refused, too.
    assert 0 < during[0].errors <= 8 * CONNECTIONS
    eventually(lambda: requests_of(shop, "web-1") > 0, "requests to the backend that is back")


def test_a_server_that_hangs_leaves_and_its_idle_connections_are_handed_over(shop: Bench, watched: Watched) -> None:
    host = shop.network.hosts["web-1"]
    with idle(shop, "web-1") as connection:
        stopped = signalled(host, signal.SIGSTOP)
        try:
            transition, at = watched.wait_for("web-1", healthy=False)
            assert at - stopped < bound(shop, "web")
            assert transition.reason == "no answer within 0.2 s"
            assert connection.ask("/web").backend == "web-2"
        finally:
            signalled(host, signal.SIGCONT)
    watched.wait_for("web-1", healthy=True)


@contextmanager
def idle(shop: Bench, backend: str) -> Iterator[Conversation]:
    """A connection that this backend has answered a request on."""
    for _ in range(50):
        with shop.connected() as connection:
            if connection.ask("/web").backend == backend:
                yield connection
                return
    raise AssertionError(f"no connection is {backend}'s")


def test_a_host_that_is_cut_off_is_down_and_its_connections_go_on(shop: Bench, watched: Watched) -> None:
    with idle(shop, "web-1") as resting, idle(shop, "web-1") as waiting:
        with cut_off(shop, "web-1"):
            cut = time.monotonic()
            waiting.sock.sendall(request("/web"))
            transition, at = watched.wait_for("web-1", healthy=False, host_answers=False)
            assert at - cut < bound(shop, "web") + 0.5  # one check may have connected before
            assert transition.reason == "no answer to SYN within 0.2 s"
            waiting.sock.settimeout(ERROR_SECONDS)
            with pytest.raises(ConnectionResetError):
                waiting.sock.recv(1)
            assert resting.ask("/web").backend == "web-2"
            with load(shop) as meanwhile:
                pass
            assert meanwhile[0].errors == 0
        watched.wait_for("web-1", healthy=True)
    eventually(lambda: requests_of(shop, "web-1") > 0, "requests to the backend that is back")


def test_a_server_that_hangs_on_a_host_that_is_then_cut_off(shop: Bench, watched: Watched) -> None:
    host = shop.network.hosts["web-1"]
    signalled(host, signal.SIGSTOP)
    try:
        watched.wait_for("web-1", healthy=False)
        with cut_off(shop, "web-1"):
            watched.wait_for("web-1", healthy=False, host_answers=False)
        watched.wait_for("web-1", healthy=False)
    finally:
        signalled(host, signal.SIGCONT)
    watched.wait_for("web-1", healthy=True)


def test_a_cluster_of_which_none_is_healthy(shop: Bench, watched: Watched) -> None:
    """`api` refuses, `web` keeps all: they answer as well as they can."""
    signalled(shop.network.hosts["api-1"], signal.SIGSTOP)
    stopped = [shop.network.hosts[name] for name in ("web-1", "web-2")]
    try:
        with cut_off(shop, "api-1"):
            watched.wait_for("api-1", healthy=False, host_answers=False)
            with shop.connected() as connection:
                assert connection.ask("/api").status == 503
            for host in stopped:
                signalled(host, signal.SIGSTOP)
            sick = {host.name for host in stopped}
            eventually(lambda: {one.backend for one, _ in watched.told} >= sick, "none of web to be healthy", SECONDS)
            weights = router_of(shop).config.clusters[0].weights()
            assert weights == {"web-1": 1, "web-2": 1}
    finally:
        for host in (*stopped, shop.network.hosts["api-1"]):
            signalled(host, signal.SIGCONT)
    eventually(lambda: watched.all_well, f"all to be well; told: {watched.told}", SECONDS)
    with shop.connected() as connection:
        assert connection.ask("/api").status == 200


def test_hosts_that_nobody_knows_the_way_to(shop: Bench) -> None:
    """No route; and nobody who answers to ARP, which the kernel gives up after three seconds."""

    def checked(host: Host, address: str, timeout: float) -> Outcome:
        with host.entered():
            return asyncio.run(probe(Target(address, 8080, b"", frozenset(), timeout)))

    with spare_namespace(shop.network.run, "nowhere") as namespace, entered(namespace):
        nowhere = asyncio.run(probe(Target("198.18.0.99", 8080, b"", frozenset(), 5.0)))
    assert (nowhere.result, nowhere.error) == (Result.SILENT, "Network is unreachable")
    nobody = checked(shop.network.hosts["router"], "198.18.0.99", 10.0)
    assert (nobody.result, nobody.error) == (Result.SILENT, "No route to host")
    assert nobody.seconds < 9
