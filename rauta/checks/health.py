"""Active health checks: which backends are healthy, and since when.

    checker = Checker(config.clusters, changed)
    await checker.run()             until it is cancelled; `changed` is called in the same thread

Each backend of a cluster with `health` is checked (rauta.checks.probing) on the address and port that it serves on. A
backend of several clusters with the same settings is checked once; with different ones, once by each. It is unhealthy
if any of them says so: it has one name and one state. Whom that does not suit gives it another name in the other
cluster.

*Timing.* Each check has a beat, `interval`, that starts at a random moment of the first one, so that a thousand
backends are not checked at once. A check begins up to half the jitter before or after its beat: it never drifts, and
two begin `interval` apart, give or take the jitter. Two checks of one backend by one setting never overlap. After a
failure the next ones come sooner, at equal distances such that the last of `fall` is over within fall × interval of the
begin of the last success: a backend that stops answering is called unhealthy within fall × interval, the timeout
included. Where timeouts are too long for that, checks follow each other without a pause; `detection_seconds` says what
is promised then.

*What says nothing of a backend* is not counted: a timeout while this process was not running for a quarter of it (a
stalled event loop, a machine without CPU), which is checked again at once; and what this host could not even try, for
lack of ports or descriptors, say.

*A new backend is healthy* until checks say otherwise: a router that starts would else turn away everybody for `rise`
checks, and where checks themselves are in trouble, for ever.

*Whether the host answers* is believed at once if it does, but only after `fall` checks without any sign of it if it
does not: one lost SYN must not cost the connections of a host that is there.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeAlias

from rauta.checks.probing import Outcome, Result, Target, probe
from rauta.config import Backend, Cluster, Health

__all__ = [
    "MAX_SOCKETS",
    "BackendHealth",
    "Checker",
    "Counters",
    "Transition",
    "detection_seconds",
]

MAX_SOCKETS = 512
"""checks under way at once; a process has 1,024 descriptors unless it asks for more"""

_BEAT = 0.05  # seconds between two looks at how late the event loop is
_LATE_SHARE = 0.25  # of the timeout
_SHORTEST = 0.25  # of the interval, from one failure to the next check
_COMPLAINT_SECONDS = 60.0
_MARGIN = 0.05  # of the interval, between the end of the last of `fall` failures and fall × interval

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Transition:
    """A backend has become healthy or unhealthy, or its host has stopped or begun to answer while it is unhealthy.

    `reason`: what the last check said; `at`: seconds by the wall clock.
    """

    backend: str
    healthy: bool
    reason: str
    host_answers: bool
    at: float


@dataclass(frozen=True, slots=True)
class BackendHealth:
    """What is known of a backend. `since`: when it became what it is (healthy or not), seconds by the wall clock.

    `successes`, `failures`: on end, of the setting that is worst off; `error`: what its last failure said, and
    `latency`: how many seconds the newest check took, None before the first one.
    """

    healthy: bool
    since: float
    successes: int
    failures: int
    error: str
    latency: float | None
    host_answers: bool


@dataclass(frozen=True, slots=True)
class Counters:
    """What has been counted since the start: checks by result, and transitions by backend and whether to healthy."""

    checks: Mapping[Result, int]
    transitions: Mapping[tuple[str, bool], int]


def detection_seconds(health: Health) -> float:
    """Within how many seconds a backend that answers no check any more is called unhealthy.

    fall × interval if timeouts leave room for it. It takes an event loop that runs, and no more checks under way than
    sockets.
    """
    on_end = health.interval * (1 + health.jitter) + health.fall * health.timeout
    return max(health.fall * health.interval, on_end)


_Key: TypeAlias = tuple[str, str, int, Health]


@dataclass(eq=False, slots=True)
class _Check:
    """A backend by one setting: its history, and when it is checked next. Times are the event loop's."""

    name: str
    health: Health
    target: Target
    healthy: bool = True
    host_answers: bool = True
    successes: int = 0
    failures: int = 0
    silences: int = 0
    error: str = ""
    latency: float | None = None
    ended: float = 0.0
    """when the newest check was over"""
    good: float = 0.0
    """when the last success began; at first, an interval before the first check"""
    due: float = 0.0
    """the beat"""
    timer: asyncio.TimerHandle | None = None
    task: asyncio.Task[None] | None = None
    gone: bool = False

    def inherit(self, other: _Check) -> None:
        """The history of the same backend by a setting that there was before."""
        self.healthy, self.host_answers = other.healthy, other.host_answers
        self.successes, self.failures, self.silences = other.successes, other.failures, other.silences
        self.error, self.latency, self.ended = other.error, other.latency, other.ended

    def note(self, outcome: Outcome, began: float) -> None:
        """Counts what says something of the backend."""
        self.latency, self.ended = outcome.seconds, began + outcome.seconds
        if outcome.result is Result.SUCCESS:
            self.successes, self.failures, self.good = self.successes + 1, 0, began
        else:
            self.successes, self.failures, self.error = 0, self.failures + 1, outcome.error
        self.silences = self.silences + 1 if outcome.result is Result.SILENT else 0
        if self.silences == 0 or self.silences >= self.health.fall:
            self.host_answers = self.silences == 0
        if self.failures >= self.health.fall:
            self.healthy = False
        elif self.successes >= self.health.rise:
            self.healthy = True

    def stop(self) -> None:
        """No check any more, nor one that is under way."""
        self.gone = True
        if self.timer is not None:
            self.timer.cancel()
        if self.task is not None:
            self.task.cancel()


@dataclass(slots=True)
class _Backend:
    """A backend by all its settings, as the last transition told it."""

    place: tuple[str, int]
    since: float
    checks: list[_Check] = field(default_factory=list)
    healthy: bool = True
    host_answers: bool = True

    def state(self) -> BackendHealth:
        """To be shown."""
        worst = _worst(self.checks)
        newest = max(self.checks, key=lambda check: check.ended)
        counted = (worst.successes, worst.failures, worst.error)
        return BackendHealth(self.healthy, self.since, *counted, newest.latency, self.host_answers)


class _Lateness:
    """How late an event loop has been, in all: seconds for which it ran nothing that was due."""

    def __init__(self) -> None:
        self.total = 0.0
        self._handle: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on."""
        self._next(loop, loop.time())

    def stop(self) -> None:
        """No more."""
        if self._handle is not None:
            self._handle.cancel()

    def _next(self, loop: asyncio.AbstractEventLoop, now: float) -> None:
        self._handle = loop.call_at(now + _BEAT, self._look, loop, now + _BEAT)

    def _look(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        now = loop.time()
        self.total += now - due
        self._next(loop, now)


class Checker:
    """Checks the backends of clusters. Not thread-safe: everything happens in the thread of `run`.

    `changed` is called with each transition. If it raises, that is logged, and checking goes on. `clock` is the wall
    clock, `sockets` how many checks may be under way at once: further ones wait. `unhealthy`: the backends that are not
    healthy at first, by name, as an earlier Checker has found, and of each whether its host answers.
    """

    def __init__(
        self,
        clusters: Sequence[Cluster],
        changed: Callable[[Transition], None],
        *,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.time,
        sockets: int = MAX_SOCKETS,
        unhealthy: Mapping[str, bool] = MappingProxyType({}),
    ) -> None:
        self._changed = changed
        self._rng = rng or random.Random()
        self._clock = clock
        self._sockets = sockets
        self._checks: dict[_Key, _Check] = {}
        self._backends: dict[str, _Backend] = {}
        self._tasks: asyncio.TaskGroup | None = None  # while it runs
        self._under_way = 0
        self._waiting: deque[_Check] = deque()
        self._lateness = _Lateness()
        self._quiet_until = 0.0
        self._results: Counter[Result] = Counter()
        self._transitions: Counter[tuple[str, bool]] = Counter()
        self._unhealthy = unhealthy
        self.reconfigure(clusters)
        self._unhealthy = MappingProxyType({})

    async def run(self) -> None:
        """Checks until it is cancelled; then there is no task, timer or socket left. May run again after that."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as self._tasks:
            try:
                self._lateness.start(loop)
                for check in self._checks.values():
                    self._enter(check)
                await loop.create_future()  # for ever
            finally:
                self._tasks = None
                self._lateness.stop()
                self._waiting.clear()
                for check in self._checks.values():
                    if check.timer is not None:
                        check.timer.cancel()

    def reconfigure(self, clusters: Sequence[Cluster]) -> None:
        """Checks the backends of these clusters from now on.

        One that stays keeps its state, also if its settings change; a new one is healthy; one that is gone, or not
        checked any more, is forgotten. If that was unhealthy but is still in a cluster, there is a transition: healthy.
        So there is if it has moved to another address or port, which makes it a new one.
        """
        wanted = _wanted(clusters)
        before, self._checks = self._checks, {}
        for key, backend in wanted.items():
            self._checks[key] = before.get(key) or self._new(key, backend, before)
        for key in before.keys() - wanted.keys():
            before[key].stop()
            self._waiting = deque(check for check in self._waiting if check is not before[key])
        self._regroup({name for cluster in clusters for name in cluster.weights()})

    def states(self) -> Mapping[str, BackendHealth]:
        """Of each backend that is checked, by name."""
        return {name: backend.state() for name, backend in self._backends.items()}

    def counters(self) -> Counters:
        """Those of backends that are gone are forgotten, too."""
        return Counters({result: self._results[result] for result in Result}, dict(self._transitions))

    def _new(self, key: _Key, backend: Backend, before: Mapping[_Key, _Check]) -> _Check:
        *_, health = key
        check = _Check(backend.name, health, Target.of(backend, health))
        others = [other for known, other in before.items() if known[:3] == key[:3]]
        if others:
            check.inherit(_worst(others))
        elif (host_answers := self._unhealthy.get(backend.name)) is not None:
            check.healthy, check.host_answers = False, host_answers
            check.failures, check.error = health.fall, "unhealthy when an earlier router ended"
        if self._tasks is not None:
            self._enter(check)
        return check

    def _regroup(self, present: Collection[str]) -> None:
        """Groups the checks by backend, and tells of those that were unhealthy and are not the same any more."""
        before, self._backends = self._backends, {}
        for check in self._checks.values():
            if check.name not in self._backends:
                self._backends[check.name] = self._group(check.name, check.target, before.get(check.name))
            self._backends[check.name].checks.append(check)
        self._transitions = Counter({key: count for key, count in self._transitions.items() if key[0] in present})
        for name, known in before.items():
            if known.healthy or name not in present:
                continue
            if name not in self._backends:
                self._tell(Transition(name, True, "not checked any more", True, self._clock()))
            elif self._backends[name].place != known.place:
                self._tell(Transition(name, True, "has another address or port now", True, self._clock()))
        for name in tuple(self._backends):
            self._judge(name, "the setting that said otherwise is gone")

    def _group(self, name: str, target: Target, known: _Backend | None) -> _Backend:
        if known is not None and known.place == (target.address, target.port):
            return _Backend(known.place, known.since, healthy=known.healthy, host_answers=known.host_answers)
        place, answers = (target.address, target.port), self._unhealthy.get(name)
        return _Backend(place, self._clock(), healthy=answers is None, host_answers=answers is not False)

    def _judge(self, name: str, reason: str) -> None:
        """A transition, if a backend's checks say something else than the last one did."""
        backend = self._backends[name]
        healthy = all(check.healthy for check in backend.checks)
        host_answers = any(check.host_answers for check in backend.checks)
        turned = healthy != backend.healthy
        if not turned and host_answers == backend.host_answers:
            return
        now = self._clock()
        backend.healthy, backend.host_answers = healthy, host_answers
        backend.since = now if turned else backend.since
        self._tell(Transition(name, healthy, reason, host_answers, now), turned=turned)

    def _tell(self, transition: Transition, *, turned: bool = True) -> None:
        state = "healthy" if transition.healthy else "unhealthy"
        host = "" if transition.host_answers else ", and its host does not answer"
        logger.info("backend %s is %s: %s%s", transition.backend, state, transition.reason, host)
        if turned:
            self._transitions[transition.backend, transition.healthy] += 1
        try:
            self._changed(transition)
        except Exception:
            logger.exception("what follows from this could not be done")

    # ---- while it runs ------------------------------------------------------------------------------------

    def _enter(self, check: _Check) -> None:
        """Its first check comes within one interval, and counts as if one before that had succeeded."""
        interval = check.health.interval
        check.good = asyncio.get_running_loop().time() + (self._rng.random() - 1) * interval
        check.due = check.good + interval
        self._set_timer(check, check.due)

    def _set_timer(self, check: _Check, begin: float) -> None:
        check.timer = asyncio.get_running_loop().call_at(begin, self._begin, check)

    def _begin(self, check: _Check) -> None:
        check.timer = None
        if self._under_way >= self._sockets:
            self._waiting.append(check)
        elif self._tasks is not None:
            self._under_way += 1
            check.task = self._tasks.create_task(self._check(check))
            check.task.add_done_callback(lambda _: self._over(check))

    def _over(self, check: _Check) -> None:
        check.task = None
        self._under_way -= 1
        if self._waiting:
            self._begin(self._waiting.popleft())

    async def _check(self, check: _Check) -> None:
        """One check, and what follows from it; then the next one is due."""
        loop = asyncio.get_running_loop()
        began, late = loop.time(), self._lateness.total
        outcome = _fair(await probe(check.target), self._lateness.total - late, check.target.timeout)
        self._results[outcome.result] += 1
        if outcome.result.counts:
            check.note(outcome, began)
            self._judge(check.name, outcome.error or f"checks on end that succeeded: {check.successes}")
        elif outcome.result is Result.LOCAL:
            self._complain(check, outcome, loop.time())
        if not check.gone and self._tasks is not None:
            offset = check.health.jitter * (self._rng.random() - 0.5)
            self._set_timer(check, _begin_after(check, outcome.result, began, loop.time(), offset))

    def _complain(self, check: _Check, outcome: Outcome, now: float) -> None:
        """All checks may have the same trouble, and have it again and again: it is told once in a while."""
        if now >= self._quiet_until:
            self._quiet_until = now + _COMPLAINT_SECONDS
            logger.warning("backend %s could not be checked, nor others perhaps: %s", check.name, outcome.error)


def _wanted(clusters: Iterable[Cluster]) -> dict[_Key, Backend]:
    """What is to be checked, by what tells checks apart: not by what a cluster does when all fail."""
    wanted: dict[_Key, Backend] = {}
    for cluster in clusters:
        if cluster.health is not None:
            setting = cluster.health.model_copy(update={"all_fail": "keep"})
            for backend in cluster.backends:
                wanted.setdefault((backend.name, str(backend.address), backend.port, setting), backend)
    return wanted


def _worst(checks: Iterable[_Check]) -> _Check:
    return min(checks, key=lambda check: (check.healthy, -check.failures, check.successes))


def _fair(outcome: Outcome, late: float, timeout: float) -> Outcome:
    """The outcome; LATE if the time was over, but nothing had been running for a good part of it (`late` seconds)."""
    over = outcome.seconds - timeout
    if outcome.result is Result.SUCCESS or over < 0 or max(late, over) < _LATE_SHARE * timeout:
        return outcome
    return replace(outcome, result=Result.LATE)


def _begin_after(check: _Check, result: Result, began: float, now: float, offset: float) -> float:
    """When the next check begins, after one that has begun at `began`; `offset`: what jitter adds, of the interval."""
    interval = check.health.interval
    if result is Result.LATE:
        return now
    if result.counts and check.healthy and check.failures:
        last = check.good + check.health.fall * interval - check.health.timeout - _MARGIN * interval
        pause = (last - began) / (check.health.fall - check.failures)
        check.due = max(now, began + min(interval, max(pause, _SHORTEST * interval)))
        return check.due
    check.due += interval
    if check.due + interval <= now:  # there was no CPU or no socket for it: those beats are not made up for
        check.due += (now - check.due) // interval * interval
    return max(now, check.due + offset * interval)
