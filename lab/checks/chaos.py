"""Something is done to the contender again and again, and its clients do not notice: see ``lab.chaos``."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from lab.chaos import Asked, Blow, Clients, Flap, Kill, KillServer, LinkDown, Reload, Rotate, Window, asking
from lab.checks.base import CheckBase
from lab.interfaces import CheckResult, Context
from rauta.units import Duration

if TYPE_CHECKING:
    from lab.contenders.service import RunningService

Kind = Literal["kill-router", "kill-agents", "reload", "rotate", "flap", "kill-server", "link-down"]
Path = Annotated[str, Field(pattern="^/")]

NEEDED: Mapping[str, Sequence[str]] = {
    "reload": ("live",),
    "flap": ("backend",),
    "kill-server": ("backend", "within"),
    "link-down": ("within",),
}
"""fields without which a kind is nothing"""


class Chaos(CheckBase):
    """While clients ask, something is done ``times`` times, on the average ``every`` so many seconds; then ``may_fail``
    requests may have failed, none of them unless said so.

    ``kill-router``, ``kill-agents``: a process gets SIGKILL and is started again. ``reload``: the route of the path
    ``live`` goes to the next of its clusters, and no request that is sent after that is answered by the one before.
    ``rotate``: cookie keys have changed. ``flap``: the server of ``backend`` says that it is not well, then that it is.
    ``kill-server``: it gets SIGKILL and is started again; requests may fail ``within`` so long after it. ``link-down``:
    the router's interface is down for so many seconds (``down``); requests then fail until ``within`` after it is up.

    ``paths``: what is asked for, and which clusters may answer. ``kept`` clients keep their connections, ``fresh`` make
    one for each request; each waits ``pause`` between two requests, and has failed after ``patience``. ``wrk``: so many
    connections of wrk besides, which never pause.
    """

    chaos: Kind
    times: Annotated[int, Field(ge=1, le=100_000)]
    every: Duration = 0.5
    paths: Annotated[dict[Path, str | tuple[str, ...]], Field(min_length=1)]
    kept: Annotated[int, Field(ge=0, le=1000)] = 12
    fresh: Annotated[int, Field(ge=0, le=1000)] = 4
    wrk: Annotated[int, Field(ge=0, le=1000)] = 0
    pause: Duration = 0.01
    patience: Annotated[Duration, Field(gt=0, le=60)] = 5.0
    may_fail: Annotated[int, Field(ge=0)] = 0
    live: Path | None = None
    backend: str | None = None
    down: Annotated[Duration, Field(gt=0, le=60)] = 2.0
    within: Annotated[Duration, Field(gt=0, le=60)] | None = None
    only: Literal["rauta-run"] = "rauta-run"

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        for name in NEEDED.get(self.chaos, ()):
            if getattr(self, name) is None:
                raise ValueError(f"{self.chaos} needs `{name}`")
        if self.live is not None and len(self._clusters().get(self.live, ())) < 2:
            raise ValueError(f"the path {self.live} needs two clusters or more in `paths`, to go from one to the other")
        return self

    def _clusters(self) -> dict[str, tuple[str, ...]]:
        return {path: (some,) if isinstance(some, str) else some for path, some in self.paths.items()}

    @property
    def title(self) -> str:
        """What is done, how often."""
        return f"{self.chaos} {self.times} times, {self.may_fail or 'no'} request fails"

    def run(self, context: Context) -> CheckResult:
        """Strike, and judge what the clients have seen."""
        blow, rng = self._blow(context), random.Random(f"{context.seed}{self.chaos}")
        paths = self._clusters()
        to = context.running.target(next(iter(paths.values()))[0])
        asked = Asked(self.kept, self.fresh, self.wrk, self.pause, self.patience)
        windows = []
        with asking(context.network, context.scenario, to, paths, asked) as clients:
            for _ in range(self.times):
                time.sleep(rng.uniform(0, 2 * self.every))
                windows.append(blow.strike(rng))
            time.sleep(rng.uniform(0, 2 * self.every))
            clients.end()
        context.requests.sent += clients.report["requests"]
        return self._judged(clients, blow, [window for window in windows if window is not None])

    def _blow(self, context: Context) -> Blow:
        running: RunningService = context.running  # type: ignore[assignment]  # `only` says so
        network, scratch = context.network, context.network.run.scratch
        if self.chaos == "kill-router":
            return Kill(running.routers)
        if self.chaos == "kill-agents":
            return Kill(list(running.agents.values()))
        if self.chaos == "rotate":
            return Rotate([*running.routers, *running.agents.values()])
        if self.live is not None:
            return Reload(running, self.live, self._clusters()[self.live])
        if self.backend is None:
            return LinkDown(network.router, self.down, self.within or 0)
        host = network.hosts[self.backend]
        if self.chaos == "flap":
            return Flap(running, host, scratch)
        return KillServer(running, host, scratch, context.scenario, host.role, self.within or 0)

    def _judged(self, clients: Clients, blow: Blow, windows: Sequence[Window]) -> CheckResult:
        report = clients.report
        outside = [one for one in report["failures"] if not _within(one["began"], one["began"] + one["took"], windows)]
        inside = len(report["failures"]) - len(outside)
        failed = report["failed"] - inside
        errors = {kind: count for kind, count in clients.wrk_report.get("errors", {}).items() if count}
        seen = self._seen(clients, inside)
        if failed > self.may_fail:
            first = f"{outside[0]['path']}: {outside[0]['happened']}" if outside else "more than are told"
            return self.failed_with(f"{failed:,} requests failed, the first one {first}", seen)
        if errors and not windows:
            said = ", ".join(f"{count} {kind}" for kind, count in errors.items())
            return self.failed_with(f"wrk saw errors: {said}", seen)
        if isinstance(blow, Reload) and (stale := _stale(clients, blow, self.live or "")):
            return self.failed_with(stale, seen)
        if isinstance(blow, LinkDown) and not inside:
            return self.failed_with("no request failed while the link was down: it was not", seen)
        return self.passed(seen)

    def failed_with(self, wrong: str, seen: str) -> CheckResult:
        """It is not true, and what else was seen."""
        return self.failed(f"{wrong}; {seen}")

    def _seen(self, clients: Clients, inside: int) -> str:
        report = clients.report
        more = clients.wrk_report.get("requests", 0)
        expected = f", {inside:,} failed as they must" if inside else ""
        return (
            f"{self.times} times; {report['requests'] + more:,} requests{expected}; "
            f"slowest answer {report['slowest'] * 1000:,.0f} ms"
        )


def _within(began: float, ended: float, windows: Sequence[Window]) -> bool:
    return any(began <= until and ended >= since for since, until in windows)


def _stale(clients: Clients, reload: Reload, live: str) -> str:
    """What is wrong with the answers to the path whose route has changed; empty if nothing."""
    answers = [(began, ended, cluster) for began, ended, path, cluster in clients.records if path == live and cluster]
    stale = [one for one in answers if one[2] not in reload.allowed(one[0], one[1])]
    if not stale:
        return "" if {one[2] for one in answers} == set(reload.clusters) else "one of the clusters never answered"
    began, _, cluster = stale[0]
    since = began - max(done for _, (_, done) in reload.loaded if done <= began)
    late = f"{cluster} to one sent {since * 1000:,.1f} ms after the route had left it"
    return f"{len(stale):,} of {len(answers):,} answers came from an older generation, the first one by {late}"
