"""Requests a second with wrk: a closed loop, every connection sends its next request when the last is answered.

So it measures capacity. Its latencies are those of a system under full load, and while the server hangs it asks
nobody: what wrk 4 says of such a pause is an estimate of its own (wrk.c, stats_correct). They are kept as details only;
open_loop.py measures latency.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from lab import environment
from lab.errors import CommandError
from lab.interfaces import Instrument, Running, Setup, Watch
from lab.measure.load import PATIENCE_SECONDS, Load, on_all, shares, target, widen_ports
from lab.samples import Better, Quantity, Sample

if TYPE_CHECKING:
    from lab.topology import Host

REPORT = Path(__file__).parent / "wrk_report.lua"
ALTERNATE = Path(__file__).parent / "wrk_alternate.lua"
LONGER_THAN_ANYTHING = "1h"
"""wrk counts whole seconds; an interrupt ends it when its time is over, in good order"""
TRIES = 5
"""wrk connects once before it starts, and an interrupt then just kills it: that happens where packets are lost"""
ENDED_UNREADY = (128 + signal.SIGINT, 128 + signal.SIGKILL, -signal.SIGKILL)
UNREACHABLE = "unable to connect"
"""what wrk says, and ends, when nobody listens"""


class Wrk(Load):
    """wrk, from every client."""

    layer: Literal["http"]
    tool: Literal["wrk"]
    threads: Annotated[int, Field(ge=1, le=64)] = 1
    unit: Literal["requests/s"] = "requests/s"

    @property
    def quantity(self) -> Quantity:
        """Its rate."""
        return Quantity(self.unit, Better.HIGHER)

    @property
    def quantities(self) -> Mapping[str, Quantity]:
        """None of its own."""
        return {}

    @property
    def has_histogram(self) -> bool:
        """No: a closed loop's latencies are no distribution of anything that users see."""
        return False

    @property
    def instrument(self) -> str:
        """wrk and its version."""
        return f"wrk {environment.tool_version('wrk')}"

    @property
    def depends_on(self) -> Sequence[str]:
        """Nothing."""
        return ()

    def subjects(self, contenders: Sequence[str]) -> Sequence[str]:
        """All of them that answer requests."""
        return answering(contenders)

    def open(self, setup: Setup) -> Instrument:
        """Widens the clients' range of ports, for as long as the run takes."""
        widen_ports(setup.network.clients, setup.stack)
        return _WrkInstrument(self, setup.network.clients, setup.scenario.plan.warmup)


def answering(contenders: Sequence[str]) -> list[str]:
    """Those contenders that answer requests."""
    from lab.contenders import find  # contenders know topology, which knows this module's models

    return [name for name in contenders if "http" in find(name).layers]


@dataclass(frozen=True)
class _WrkInstrument:
    model: Wrk
    clients: Sequence[Host]
    warmup: float

    def sample(self, subject: str, running: Running | None, watch: Watch, *, scale: int = 1) -> Sample:
        address, port = target(running, subject, self.model.cluster)
        url = f"http://{address}:{port}{self.model.path}"
        try:
            if self.warmup:
                on_all(self.clients, partial(self._run, url, self.warmup))
            with watch:
                reports = on_all(self.clients, partial(self._run, url, scale * self.model.duration))
        except CommandError as error:
            if UNREACHABLE not in str(error):
                raise
            return Sample(0.0, valid=False, reason=f"wrk is {UNREACHABLE}{str(error).partition(UNREACHABLE)[2]}")
        return _judged(reports, self.model.threads)

    def _run(self, url: str, seconds: float, number: int, client: Host) -> dict[str, Any]:
        connections = shares(self.model.connections, len(self.clients))[number]
        threads = min(self.model.threads, connections)
        argv = [
            "timeout",
            "--preserve-status",
            "--signal=INT",
            "--kill-after=1",
            f"{seconds:g}",
            "wrk",
            f"-t{threads}",
            f"-c{connections}",
        ]
        alternate = self.model.alternate
        argv += [f"-d{LONGER_THAN_ANYTHING}", "-s", str(ALTERNATE if alternate else REPORT)]
        argv += ["-H", f"Host: {self.model.host}"]
        argv += ["-H", "Connection: close"] if self.model.close else []
        argv += [url, "--", alternate] if alternate else [url]
        for _ in range(TRIES):
            done = client.run(argv, timeout=seconds + PATIENCE_SECONDS, check=False)
            if done.returncode == 0:
                report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
                return report
            if done.returncode not in ENDED_UNREADY:
                break
        raise CommandError(f"wrk ended with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")


def _judged(reports: Sequence[Mapping[str, Any]], threads: int) -> Sample:
    """Errors of any kind make it invalid: what was measured is then something else than was asked for."""
    rate = sum(one["requests"] / one["duration_us"] * 1e6 for one in reports if one["duration_us"])
    requests = sum(one["requests"] for one in reports)
    errors: dict[str, int] = {}
    for one in reports:
        for kind, count in one["errors"].items():
            errors[kind] = errors.get(kind, 0) + count
    seconds = max(one["duration_us"] for one in reports) / 1e6
    details = {"requests": requests, "seconds": round(seconds, 4), **reports[0]["latency_us"]}
    generator = max(one["cpu_us"] / one["duration_us"] / threads for one in reports) if seconds else None
    reason = ""
    if wrong := {kind: count for kind, count in errors.items() if count}:
        reason = "wrk saw errors: " + ", ".join(f"{count} {kind}" for kind, count in wrong.items())
    elif not requests:
        reason = "wrk got no answer at all"
    return Sample(
        rate,
        valid=not reason,
        reason=reason,
        requests=requests or None,
        generator=generator,
        details=details,
    )
