"""When backends are checked, what follows from it, and what a cluster's weights are then.

The servers are real ones on loopback, the times those of the clock: what is asserted of times is either a bound of
which the documentation speaks, wide enough for a busy machine, or that something comes later than something else.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from itertools import pairwise
from typing import Any

import pytest

from rauta.checks import health
from rauta.checks.health import (
    Checker,
    Transition,
    detection_seconds,
)
from rauta.checks.probing import Outcome, Result
from rauta.config import Backend, Cluster, Health

FAST = {"http": "/health", "interval": "0.1s", "timeout": "0.1s", "rise": 2, "fall": 3}
SECONDS = 10.0
"""for whatever a test waits for"""
GOOD, BAD = b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 500 Oops\r\n\r\n"


class Server:
    """Answers checks as `answer` says, or not at all where that is None; notes when each one came."""

    def __init__(self, address: str) -> None:
        self.address, self.port = address, 0
        self.answer: bytes | None = GOOD
        self.came: list[float] = []
        self.open = self.most = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.came.append(time.monotonic())
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            await reader.readuntil(b"\r\n\r\n")
            if self.answer is not None:
                writer.write(self.answer)
            await reader.read()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listens meanwhile, each time on the same port."""
        server = await asyncio.start_server(self.serve, self.address, self.port, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield
            server.close()

    def backend(self, name: str = "one", weight: int = 1) -> Backend:
        """Itself; a configuration must have no address on loopback."""
        return Backend.model_construct(name=name, address=IPv4Address(self.address), port=self.port, weight=weight)


def cluster(*backends: Backend, name: str = "web", **changes: object) -> Cluster:
    return Cluster(name=name, health=Health.model_validate(FAST | changes), backends=backends)


@asynccontextmanager
async def running(checker: Checker) -> AsyncIterator[None]:
    """Checks meanwhile, and leaves nothing behind."""
    others = asyncio.all_tasks()
    task = asyncio.create_task(checker.run())
    await asyncio.sleep(0)
    try:
        yield
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not checker._waiting
        assert all(check.timer is None or check.timer.cancelled() for check in checker._checks.values())
        assert not [left for left in asyncio.all_tasks() - others if left.get_coro().__qualname__.startswith("Checker")]


async def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.005)


def within_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A test that needs an event loop."""

    def wrapped() -> None:
        asyncio.run(test())

    wrapped.__name__, wrapped.__doc__ = test.__name__, test.__doc__
    return wrapped


def said(told: list[Transition]) -> list[tuple[str, bool, bool]]:
    return [(one.backend, one.healthy, one.host_answers) for one in told]


# ---- from healthy to unhealthy and back -----------------------------------------------------------------


@within_a_loop
async def test_a_backend_is_unhealthy_after_so_many_failures_and_healthy_after_so_many_successes() -> None:
    server, told = Server("127.0.0.1"), list[Transition]()
    async with server.running():
        checker = Checker([cluster(server.backend())], told.append)
        async with running(checker):
            assert checker.states()["one"].healthy
            await eventually(lambda: checker.states()["one"].successes >= 2)
            assert not told
            server.answer = BAD
            await eventually(lambda: bool(told))
            state = checker.states()["one"]
            assert (state.healthy, state.failures, state.successes, state.error) == (False, 3, 0, "status 500")
            assert state.host_answers
            assert (state.since, told[0].reason) == (told[0].at, "status 500")
            assert abs(told[0].at - time.time()) < SECONDS
            server.answer = GOOD
            await eventually(lambda: len(told) == 2)
            state = checker.states()["one"]
            assert (state.healthy, state.failures, state.successes, state.error) == (True, 0, 2, "status 500")
            assert state.latency is not None
            assert 0 < state.latency < SECONDS
    assert said(told) == [("one", False, True), ("one", True, True)]
    counted = checker.counters()
    assert counted.transitions == {("one", False): 1, ("one", True): 1}
    assert counted.checks[Result.STATUS] >= 3
    assert counted.checks[Result.SUCCESS] >= 4


@within_a_loop
async def test_a_failure_or_two_are_none() -> None:
    server, told = Server("127.0.0.1"), list[Transition]()
    async with server.running():
        checker = Checker([cluster(server.backend(), fall=3)], told.append)
        async with running(checker):
            for _ in range(2):
                server.answer = BAD
                await eventually(lambda: checker.states()["one"].failures == 2)
                server.answer = GOOD
                await eventually(lambda: checker.states()["one"].successes >= 1)
    assert not told


@within_a_loop
async def test_a_server_that_is_gone_is_unhealthy_and_its_host_answers() -> None:
    server, told = Server("127.0.0.1"), list[Transition]()
    async with server.running():
        checker = Checker([cluster(server.backend())], told.append)
    async with running(checker):
        await eventually(lambda: bool(told))
        async with server.running():
            await eventually(lambda: len(told) == 2)
    assert said(told) == [("one", False, True), ("one", True, True)]
    assert told[0].reason == "Connection refused"
    assert told[1].reason == "checks on end that succeeded: 2"


@within_a_loop
async def test_detection_keeps_its_bound() -> None:
    """fall × interval from the moment at which the server hangs, for one that accepts and says nothing."""
    server, told = Server("127.0.0.1"), list[Transition]()
    settings = {"interval": "0.5s", "timeout": "0.25s", "fall": 3, "jitter": "0%"}
    async with server.running():
        checker = Checker([cluster(server.backend(), **settings)], told.append)
        async with running(checker):
            await eventually(lambda: checker.states()["one"].successes >= 1)
            server.answer = None
            hung = time.monotonic()
            await eventually(lambda: bool(told))
            took = time.monotonic() - hung
    assert told[0].reason == "no answer within 0.25 s"
    late = checker.counters().checks[Result.LATE]  # what the machine has kept from running is done again
    assert took < 3 * 0.5 + 0.25 * late + 1, late
    assert took > 2 * 0.25 + 0.25  # three timeouts do not overlap


@pytest.mark.parametrize(
    ("settings", "seconds"),
    [
        ({"interval": "2s", "timeout": "1s", "fall": 3}, 6.0),
        ({"interval": "2s", "timeout": "1.2s", "fall": 3}, 6.0),
        ({"interval": "2s", "timeout": "2s", "fall": 3}, 8.2),
        ({"interval": "2s", "timeout": "1s", "fall": 1}, 3.2),
        ({"interval": "2s", "timeout": "0.5s", "fall": 2, "jitter": "50%"}, 4.0),
    ],
    ids=str,
)
def test_the_bound_of_detection(settings: dict[str, object], seconds: float) -> None:
    assert detection_seconds(Health.model_validate(settings)) == pytest.approx(seconds)


@pytest.mark.parametrize("hangs", [True, False], ids=["all time out", "all are refused"])
@pytest.mark.parametrize("jitter", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("timeout", [0.05, 0.2, 0.5, 0.62, 1.0])
@pytest.mark.parametrize("fall", [1, 2, 3, 10])
def test_the_bound_holds_whatever_the_settings(fall: int, timeout: float, jitter: float, hangs: bool) -> None:
    """Without a clock: the checks one after the other, as late as jitter can have the first one begin."""
    settings = Health(interval=f"{1}s", timeout=f"{timeout}s", fall=fall, jitter=jitter)  # type: ignore[arg-type]
    check = health._Check("one", settings, health.Target("127.0.0.1", 1, b"", frozenset(), timeout))
    begins, began = [], 1 + jitter
    check.due = began
    for number in range(1, fall + 1):
        begins.append(began)
        now = began + (timeout if hangs or number == fall else 0.001)
        check.note(Outcome(Result.TIMEOUT if hangs else Result.REFUSED, "", now - began), began)
        assert check.healthy == (number < fall)
        if number < fall:
            following = health._begin_after(check, Result.TIMEOUT, began, now, jitter / 2)
            assert following >= now
            assert following - began + 1e-9 >= 0.25
            assert following - began <= 1 + 1e-9
            began = following
    assert now <= detection_seconds(settings) + 1e-9


# ---- times ----------------------------------------------------------------------------------------------


def test_checks_keep_their_beat() -> None:
    """Jitter moves a check, not those behind it; two are apart the interval, give or take the jitter."""
    rng = random.Random(1)
    settings = Health(interval="2s", jitter="20%")  # type: ignore[arg-type]
    check = health._Check("one", settings, health.Target("127.0.0.1", 1, b"", frozenset(), 1.0), due=5.0)
    begins = [5.0]
    for number in range(1, 1001):
        offset = settings.jitter * (rng.random() - 0.5)
        begins.append(health._begin_after(check, Result.SUCCESS, begins[-1], begins[-1] + 0.1, offset))
        assert abs(begins[-1] - (5.0 + 2 * number)) <= 0.2 + 1e-9
    gaps = [after - before for before, after in pairwise(begins)]
    assert all(1.6 - 1e-9 <= gap <= 2.4 + 1e-9 for gap in gaps)
    assert max(gaps) - min(gaps) > 0.4


def test_beats_that_were_missed_are_not_made_up_for() -> None:
    settings = Health(interval="2s", jitter=0)  # type: ignore[arg-type]
    check = health._Check("one", settings, health.Target("127.0.0.1", 1, b"", frozenset(), 1.0), due=5.0)
    assert health._begin_after(check, Result.SUCCESS, 5.0, 20.5, 0.0) == 20.5  # the one of 19
    assert health._begin_after(check, Result.SUCCESS, 20.5, 20.6, 0.0) == 21.0
    assert health._begin_after(check, Result.LOCAL, 21.0, 21.0, 0.0) == 23.0
    assert health._begin_after(check, Result.LATE, 23.0, 24.5, 0.0) == 24.5


@within_a_loop
async def test_first_checks_are_spread_over_an_interval() -> None:
    server = Server("127.0.0.1")
    async with server.running():
        backends = [server.backend(f"b{number}") for number in range(100)]
        checker = Checker([cluster(*backends, interval="1s")], lambda _: None, rng=random.Random(5))
        began = time.monotonic()
        async with running(checker):
            await eventually(lambda: len(server.came) >= 100)
    tenths = Counter(int((when - began) * 10) for when in server.came[:100])
    assert len(tenths) >= 5
    assert max(tenths.values()) <= 60


@within_a_loop
async def test_checks_of_a_backend_do_not_overlap_and_go_on_at_their_pace() -> None:
    server = Server("127.0.0.1")
    server.answer = None
    async with server.running():
        checker = Checker([cluster(server.backend(), jitter="50%")], lambda _: None)
        async with running(checker):
            await eventually(lambda: len(server.came) >= 12)
    assert server.most == 1


@within_a_loop
async def test_so_many_checks_are_under_way_at_once_and_no_more() -> None:
    server = Server("127.0.0.1")
    server.answer = None
    async with server.running():
        backends = [server.backend(f"b{number}") for number in range(30)]
        checker = Checker([cluster(*backends)], lambda _: None, sockets=4)
        async with running(checker):
            await eventually(lambda: len(server.came) >= 60)
            assert checker._waiting
            await eventually(lambda: all(state.failures for state in checker.states().values()))  # all have their turn
        assert server.most <= 5  # a server may notice the end of one after the begin of the next
        assert checker._under_way == 0


@within_a_loop
async def test_a_stalled_event_loop_is_no_failure_of_a_backend() -> None:
    """Every check is stalled beyond its timeout: if they counted, the backend would be unhealthy thrice over."""
    server, told = Server("127.0.0.1"), list[Transition]()
    server.answer = None
    async with server.running():
        checker = Checker([cluster(server.backend(), interval="0.2s", timeout="0.2s")], told.append)
        async with running(checker):
            while checker.counters().checks[Result.LATE] < 6:
                time.sleep(0.3)
                await asyncio.sleep(0.01)
            assert not told
            assert checker.states()["one"].failures < 3
            await eventually(lambda: bool(told))  # it runs again: it is the backend that hangs
    assert not told[0].healthy


def test_what_is_late() -> None:
    late = Outcome(Result.TIMEOUT, "no answer", 1.3)
    hung = Outcome(Result.TIMEOUT, "no answer", 1.01)
    assert health._fair(late, 0.0, 1.0).result is Result.LATE
    assert health._fair(hung, 0.0, 1.0) is hung
    assert health._fair(hung, 0.26, 1.0).result is Result.LATE
    refused = Outcome(Result.REFUSED, "refused", 0.9)
    assert health._fair(refused, 0.5, 1.0) is refused
    good = Outcome(Result.SUCCESS, "", 1.5)
    assert health._fair(good, 0.5, 1.0) is good


# ---- whether the host answers ---------------------------------------------------------------------------


def outcomes(check: health._Check, *results: Result) -> list[tuple[bool, bool]]:
    """Whether the backend is healthy, and its host answers, after each of these."""
    seen = []
    for number, result in enumerate(results):
        check.note(Outcome(result, result, 0.1), float(number))
        seen.append((check.healthy, check.host_answers))
    return seen


def test_a_host_is_believed_to_be_there_until_nothing_at_all_has_come_from_it() -> None:
    settings = Health(fall=2, rise=2)
    check = health._Check("one", settings, health.Target("127.0.0.1", 1, b"", frozenset(), 1.0))
    silent, refused, good = Result.SILENT, Result.REFUSED, Result.SUCCESS
    assert outcomes(check, silent, silent) == [(True, True), (False, False)]
    assert outcomes(check, silent, refused, silent) == [(False, False), (False, True), (False, True)]
    assert outcomes(check, silent) == [(False, False)]
    assert outcomes(check, good, good) == [(False, True), (True, True)]
    assert outcomes(check, refused, silent, silent) == [(True, True), (False, True), (False, False)]


class Scripted:
    """In the place of `probe`: results by the port that is checked, the last one for ever. No server can be silent on
    loopback; tests/e2e has hosts that are.
    """

    def __init__(self) -> None:
        self.result: dict[int, Result] = {}

    async def probe(self, target: health.Target) -> Outcome:
        result = self.result.get(target.port, Result.SUCCESS)
        return Outcome(result, "" if result is Result.SUCCESS else result.value, 0.001)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    scripted = Scripted()
    monkeypatch.setattr(health, "probe", scripted.probe)
    return scripted


def at(port: int, name: str = "one", weight: int = 1) -> Backend:
    return Backend(name=name, address=IPv4Address("198.18.0.11"), port=port, weight=weight)


def test_a_host_that_stops_or_begins_to_answer_is_a_transition(script: Scripted) -> None:
    async def test() -> None:
        told = list[Transition]()
        checker = Checker([cluster(at(1))], told.append)
        async with running(checker):
            for result in (Result.REFUSED, Result.SILENT, Result.REFUSED, Result.SUCCESS):
                script.result[1] = result
                count = len(told)
                await eventually(lambda count=count: len(told) > count)  # type: ignore[misc]
                since = checker.states()["one"].since
                assert since == (told[0].at if not told[-1].healthy else told[-1].at)
        assert said(told) == [("one", False, True), ("one", False, False), ("one", False, True), ("one", True, True)]
        assert checker.counters().transitions == {("one", False): 1, ("one", True): 1}

    asyncio.run(test())


def test_who_was_unhealthy_is_so_until_he_has_passed_and_it_is_not_told_twice(script: Scripted) -> None:
    """What an earlier Checker has found. A backend that is not known from then begins healthy."""

    async def test() -> None:
        told = list[Transition]()
        checker = Checker([cluster(at(1), at(2, "two"))], told.append, unhealthy={"one": False})
        states = checker.states()
        assert (states["one"].healthy, states["one"].host_answers) == (False, False)
        assert states["two"].healthy
        script.result[1] = Result.SILENT
        async with running(checker):
            await eventually(lambda: checker.counters().checks[Result.SILENT] >= 3)
            assert told == []
            script.result[1] = Result.SUCCESS
            await eventually(lambda: checker.states()["one"].healthy)
        assert said(told)[-1] == ("one", True, True)
        assert checker.counters().transitions == {("one", True): 1}

    asyncio.run(test())


# ---- several clusters, and changes ----------------------------------------------------------------------


@within_a_loop
async def test_a_backend_of_two_clusters_with_the_same_settings_is_checked_once() -> None:
    server = Server("127.0.0.1")
    async with server.running():
        one = server.backend()
        clusters = [cluster(one), cluster(one, name="api", all_fail="refuse")]
        checker = Checker(clusters, lambda _: None)
        assert len(checker._checks) == 1
        checker.reconfigure([*clusters, cluster(one, name="slow", interval="1s")])
        assert len(checker._checks) == 2
        assert len(checker.states()) == 1


@pytest.mark.parametrize("result", [Result.STATUS, Result.SILENT])
def test_with_different_settings_any_of_them_makes_it_unhealthy(script: Scripted, result: Result) -> None:
    """But it takes all of them to say that its host does not answer."""

    async def test() -> None:
        told = list[Transition]()
        strict, lenient = cluster(at(1), fall=2), cluster(at(1), name="api", fall=100)
        checker = Checker([strict, lenient], told.append)
        async with running(checker):
            script.result[1] = result
            await eventually(lambda: bool(told))
            state = checker.states()["one"]
            assert not state.healthy
            assert state.failures >= 2
            checker.reconfigure([lenient])
            assert said(told) == [("one", False, True), ("one", True, True)]
            assert told[1].reason == "the setting that said otherwise is gone"

    asyncio.run(test())


def test_who_stays_keeps_his_state_and_who_comes_is_healthy(script: Scripted) -> None:
    async def test() -> None:
        told = list[Transition]()
        checker = Checker([cluster(at(1))], told.append)
        script.result[1] = script.result[2] = Result.REFUSED
        async with running(checker):
            await eventually(lambda: bool(told))
            before = checker.states()["one"]
            checker.reconfigure([cluster(at(1), at(2, "two"))])
            after = checker.states()
            assert (after["one"].since, after["one"].failures) == (before.since, before.failures)
            assert after["two"].healthy
            checker.reconfigure([cluster(at(1), at(2, "two"), interval="0.2s")])  # another setting, the same backend
            assert not checker.states()["one"].healthy
            assert checker.states()["one"].since == before.since
            await eventually(lambda: len(told) == 2)
            script.result[1] = Result.SUCCESS
            await eventually(lambda: len(told) == 3)
        assert said(told) == [("one", False, True), ("two", False, True), ("one", True, True)]

    asyncio.run(test())


def test_who_goes_is_forgotten(script: Scripted) -> None:
    async def test() -> None:
        told = list[Transition]()
        checker = Checker([cluster(at(1), at(2, "two"))], told.append)
        script.result[1] = Result.REFUSED
        async with running(checker):
            await eventually(lambda: bool(told))
            checker.reconfigure([cluster(at(2, "two"))])
            assert checker.states().keys() == {"two"}
            assert checker.counters().transitions == {}
            checker.reconfigure([cluster(at(1), at(2, "two"))])
            assert checker.states()["one"].healthy
        assert said(told) == [("one", False, True)]

    asyncio.run(test())


@pytest.mark.parametrize("change", ["no health", "another port"])
def test_who_is_not_checked_any_more_or_has_moved_is_healthy_again(script: Scripted, change: str) -> None:
    async def test() -> None:
        told = list[Transition]()
        checker = Checker([cluster(at(1))], told.append)
        script.result[1] = Result.SILENT
        async with running(checker):
            await eventually(lambda: bool(told))
            if change == "no health":
                checker.reconfigure([Cluster(name="web", backends=(at(1),))])
                assert not checker.states()
            else:
                checker.reconfigure([cluster(at(2))])
                assert checker.states()["one"].healthy
        assert said(told) == [("one", False, False), ("one", True, True)]

    asyncio.run(test())


@within_a_loop
async def test_a_change_ends_the_check_that_is_under_way() -> None:
    server = Server("127.0.0.1")
    server.answer = None
    async with server.running():
        checker = Checker([cluster(server.backend(), interval="10s", timeout="10s")], lambda _: None)
        next(iter(checker._checks.values())).health = Health.model_validate(FAST)  # the first one comes soon
        async with running(checker):
            await eventually(lambda: server.open == 1)
            checker.reconfigure([])
            await eventually(lambda: server.open == 0)
            assert not checker._checks


def test_who_hears_of_a_transition_may_change_what_is_checked(script: Scripted) -> None:
    async def test() -> None:
        checker = Checker([cluster(at(1))], lambda _: checker.reconfigure([cluster(at(2, "two"))]))
        (first,) = checker._checks.values()
        script.result[1] = Result.REFUSED
        async with running(checker):
            await eventually(lambda: "two" in checker.states() and checker.states()["two"].successes > 1)
            assert checker.states().keys() == {"two"}
            assert (first.timer, first.task) == (None, None)

    asyncio.run(test())


@within_a_loop
async def test_it_may_run_again() -> None:
    server = Server("127.0.0.1")
    async with server.running():
        checker = Checker([cluster(server.backend())], lambda _: None)
        for _ in range(2):
            async with running(checker):
                count = len(server.came)
                await eventually(lambda count=count: len(server.came) > count + 1)  # type: ignore[misc]
        count = len(server.came)
        await asyncio.sleep(0.3)
        assert len(server.came) == count


def test_transitions_are_logged_and_an_error_of_who_hears_them_ends_nothing(
    script: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        def fail(_: Transition) -> None:
            raise RuntimeError("no router")

        checker = Checker([cluster(at(1))], fail)
        script.result[1] = Result.SILENT
        async with running(checker):
            await eventually(lambda: not checker.states()["one"].healthy)
            script.result[1] = Result.SUCCESS
            await eventually(lambda: checker.states()["one"].healthy)

    with caplog.at_level(logging.INFO, "rauta.checks.health"):
        asyncio.run(test())
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert told[0] == "backend one is unhealthy: silent, and its host does not answer"
    assert told[-1] == "backend one is healthy: checks on end that succeeded: 2"
    assert sum(record.levelno == logging.ERROR for record in caplog.records) == len(told)


def test_what_this_host_could_not_try_says_nothing_and_is_told_once(
    script: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        checker = Checker([cluster(at(1))], lambda _: None)
        script.result[1] = Result.LOCAL
        async with running(checker):
            await eventually(lambda: checker.counters().checks[Result.LOCAL] >= 5)
            assert checker.states()["one"].healthy

    asyncio.run(test())
    assert [record.getMessage() for record in caplog.records] == [
        "backend one could not be checked, nor others perhaps: local"
    ]
