"""Weights that change while real clients are served: new connections follow at once, those of a backend without weight
at their next request, and nothing else happens.

One thread opens connections as fast as it can, one keeps asking on connections that were there before, and wrk makes
load besides; the test changes weights. Each new connection must have gone to a backend that the table named which was
there at some time between its start and its answer.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from e2e.bench import HOST, Bench, Conversation, bench, eventually
from e2e.wire import Endpoint
from lab import oracle
from lab.contenders.rauta import RunningRauta
from lab.process import Process
from lab.servers import content
from rauta.maglev import Table
from rauta.router import Router

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

FILE = Path(__file__).parent / "data" / "weights.yaml"
CHANGES = 50
KEPT = 24
BODY = content(13)
DOWNLOAD = content(5_000_000)
NAMES = ["web-1", "web-2", "web-3", "web-4"]
"""in the order of the backends' numbers"""


@pytest.fixture(scope="module")
def weighed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench("rauta", tmp_path_factory.mktemp("logs"), FILE) as one:
        yield one


@pytest.fixture
def router(weighed: Bench) -> Router:
    """With the weights of the file."""
    assert isinstance(weighed.running, RunningRauta)
    one = weighed.running.router
    one.set_weights("web", {"web-1": 1, "web-2": 1, "web-3": 1, "web-4": 0})
    return one


@dataclass(frozen=True)
class Opened:
    """A new connection, or one that has moved: the client's port, who answered, and the time from before its start, or
    the request, to after the answer. ``before``: who had it.
    """

    port: int
    backend: str
    began: float
    ended: float
    before: str = ""


@dataclass
class Workers:
    """Threads that do something again and again until they are told to stop. The first error of any is raised then."""

    stop: threading.Event = field(default_factory=threading.Event)
    errors: list[BaseException] = field(default_factory=list)

    @contextmanager
    def running(self, *jobs: Callable[[], None]) -> Iterator[None]:
        """While this lasts, each job is done over and over in a thread of its own."""
        threads = [threading.Thread(target=self._repeat, args=(job,)) for job in jobs]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stop.set()
            for thread in threads:
                thread.join()
        if self.errors:
            raise self.errors[0]

    def _repeat(self, job: Callable[[], None]) -> None:
        try:
            while not self.stop.is_set() and not self.errors:
                job()
        except BaseException as error:
            self.errors.append(error)


@dataclass
class Tables:
    """Every table that there was, and from when on packets may have seen it, until when."""

    router: Router
    seen: list[tuple[float, Table]] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)

    def change(self, weights: dict[str, int]) -> None:
        """Gives the cluster other weights."""
        began = time.monotonic()
        self.router.set_weights("web", weights)
        self.ends.append(time.monotonic())
        self.note(began)

    def note(self, began: float) -> None:
        """Notes the present table."""
        self.seen.append((began, self.router.table("web")))

    def named(self, slot: int, began: float, ended: float) -> set[str]:
        """Whom the tables name that a packet between these times may have seen."""
        return {NAMES[table[slot]] for table in self._between(began, ended)}

    def without(self, name: str, began: float, ended: float) -> bool:
        """Whether a backend had no weight at some time between these."""
        return any(NAMES.index(name) not in set(table) for table in self._between(began, ended))

    def _between(self, began: float, ended: float) -> list[Table]:
        times = zip(self.seen, [*self.ends, float("inf")], strict=True)
        return [table for (start, table), end in times if start <= ended and began <= end]


def slot_of(weighed: Bench, port: int, vip: Endpoint) -> int:
    assert isinstance(weighed.running, RunningRauta)
    return oracle.slot(weighed.running.flow_key, weighed.client.address, port, *vip)


@contextmanager
def load(weighed: Bench, vip: Endpoint) -> Iterator[Process]:
    """wrk, on connections that it keeps."""
    argv = ["wrk", "-t1", "-c4", "-d1h", "-H", f"Host: {HOST}", f"http://{vip[0]}:{vip[1]}/wrk"]
    grown = weighed.growth()
    wrk = weighed.client.start(argv, name="wrk", cpus=[(os.cpu_count() or 1) - 1])
    try:
        eventually(lambda: grown["ROUTED_NEXT"] > 100, "wrk to ask")
        yield wrk
    finally:
        wrk.stop()


def draw(random: Random) -> dict[str, int]:
    """Weights of 0 to 5, not all of them 0."""
    weights = {name: random.choice([0, 0, 1, 2, 5]) for name in NAMES}
    return weights if any(weights.values()) else draw(random)


@pytest.mark.parametrize("seed", [1])
def test_weights_change_fifty_times_under_load(weighed: Bench, router: Router, seed: int) -> None:
    random, opened, moved, workers = Random(seed), list[Opened](), list[Opened](), Workers()
    tables, vip = Tables(router), weighed.vip("shop")
    tables.note(0)

    def open_one() -> None:
        began = time.monotonic()
        with weighed.connected() as connection:
            answer = connection.ask("/new", "Connection: close")
            ended = time.monotonic()
            assert (answer.status, answer.body) == (200, BODY)
            assert connection.ended()
        opened.append(Opened(connection.port, answer.backend, began, ended))

    with ExitStack() as stack:
        kept = [
            (connection := stack.enter_context(weighed.connected()), connection.ask("/").backend) for _ in range(KEPT)
        ]
        asked = iter(range(10**9))

        def ask_again() -> None:
            number = next(asked) % KEPT
            connection, backend = kept[number]
            began = time.monotonic()
            answer = connection.ask("/kept")
            assert (answer.status, answer.body) == (200, BODY)
            if answer.backend != backend:
                moved.append(Opened(connection.port, answer.backend, began, time.monotonic(), backend))
                kept[number] = connection, answer.backend

        wrk = stack.enter_context(load(weighed, vip))
        with workers.running(open_one, ask_again):
            for _ in range(CHANGES):
                tables.change(draw(random))
        for _ in kept:
            ask_again()
        for connection, backend in kept:
            assert connection.ask("/last").backend == backend
        os.kill(wrk.pid, signal.SIGINT)  # so that it reports
        eventually(lambda: wrk.poll() is not None, "wrk to end")
    assert re.search(r"^Requests/sec: *[1-9]", wrk.output(), re.MULTILINE), wrk.output()
    assert not re.search("Socket errors|Non-2xx", wrk.output()), wrk.output()
    assert len(opened) > CHANGES
    assert moved
    for one in moved:
        assert tables.without(one.before, one.began, one.ended), one
    for one in [*opened, *moved]:
        assert one.backend in tables.named(slot_of(weighed, one.port, vip), one.began, one.ended), one
    assert {one.backend for one in opened} == set(NAMES)


def test_a_drained_backend_gets_no_request_and_ends_no_answer(weighed: Bench, router: Router) -> None:
    """Not even the download that it is in the midst of."""
    with ExitStack() as stack:
        kept = [stack.enter_context(weighed.connected()) for _ in range(30)]
        on_web_1 = [connection for connection in kept if connection.ask("/").backend == "web-1"]
        busy: Conversation = on_web_1[0]
        busy.sock.sendall(b"GET /download HTTP/1.1\r\nHost: shop.test\r\n\r\n")
        router.set_weights("web", {"web-1": 0})
        for _ in range(100):
            with weighed.connected() as connection:
                assert connection.ask("/").backend in {"web-2", "web-3"}
        answer = busy.answer()
        assert (answer.backend, answer.body == DOWNLOAD) == ("web-1", True)
        for connection in on_web_1:
            assert connection.ask("/").backend in {"web-2", "web-3"}
        router.set_weights("web", {"web-1": 1})
        backends = set()
        for _ in range(100):
            with weighed.connected() as connection:
                backends.add(connection.ask("/").backend)
        assert backends == {"web-1", "web-2", "web-3"}


def test_a_cluster_that_is_drained_as_a_whole_says_so(weighed: Bench, router: Router) -> None:
    with weighed.connected() as kept:
        backend = kept.ask("/").backend
        router.set_weights("web", dict.fromkeys(NAMES, 0))
        with weighed.connected() as connection:
            assert connection.ask("/").status == 503
        assert kept.ask("/").backend == backend
