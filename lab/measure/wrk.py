"""Requests a second with wrk: a closed loop, every connection sends its next request when the last is answered.

So it measures capacity; its latencies are those of a system under full load, and are kept as details only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lab import environment
from lab.errors import LabError
from lab.interfaces import Instrument, Running, Setup, Watch
from lab.samples import Better, Quantity, Sample
from lab.units import Duration

if TYPE_CHECKING:
    from lab.topology import Host

REPORT = Path(__file__).parent / "wrk_report.lua"
PATIENCE_SECONDS = 10.0
"""beyond its duration, until wrk is given up"""

CLIENT_SYSCTLS = {
    # A client that closes first keeps each port in TIME_WAIT for a minute; a load generator would run out of them.
    "net.ipv4.ip_local_port_range": "1024 65535",
    "net.ipv4.tcp_tw_reuse": "1",
}


class Wrk(BaseModel):
    """wrk, from the client's host.

    ``close``: a new connection for each request. ``host``: the Host header, if it is not the address.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    layer: Literal["http"]
    tool: Literal["wrk"]
    path: Annotated[str, Field(pattern="^/")] = "/"
    host: str | None = None
    cluster: str
    connections: Annotated[int, Field(ge=1, le=10_000)] = 32
    threads: Annotated[int, Field(ge=1, le=64)] = 1
    duration: Duration = 1.0
    close: bool = False
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
        """No: a number a sample."""
        return False

    @property
    def instrument(self) -> str:
        """wrk and its version."""
        return f"wrk {environment.tool_version('wrk')}"

    @property
    def depends_on(self) -> Sequence[str]:
        """Nothing."""
        return ()

    @property
    def needs_contender(self) -> bool:
        """It sends requests through one."""
        return True

    def subjects(self, contenders: Sequence[str]) -> Sequence[str]:
        """All of them."""
        return contenders

    def seconds(self, warmup: float) -> float:
        """Warm-up and measurement."""
        return warmup + self.duration

    def open(self, setup: Setup) -> Instrument:
        """Widens the client's range of ports, for as long as the run takes."""
        client = setup.network.client
        for name, value in CLIENT_SYSCTLS.items():
            setup.stack.callback(client.sysctl, name, client.sysctl(name, value))
        return _WrkInstrument(self, client, setup.scenario.plan.warmup)


@dataclass(frozen=True)
class _WrkInstrument:
    model: Wrk
    client: Host
    warmup: float

    def sample(self, subject: str, running: Running | None, watch: Watch, *, scale: int = 1) -> Sample:
        if running is None:
            raise LabError(f"measuring {subject} with wrk", "it is not running", "Name contenders only.")
        address, port = running.target(self.model.cluster)
        url = f"http://{address}:{port}{self.model.path}"
        if self.warmup:
            # wrk counts in whole seconds; an interrupt ends it earlier.
            argv = ["timeout", "--signal=INT", f"{self.warmup:g}", *self._argv(url)]
            self.client.run(argv, timeout=self.warmup + PATIENCE_SECONDS, check=False)
        with watch:
            done = self.client.run(self._argv(url, scale), timeout=scale * self.model.duration + PATIENCE_SECONDS)
        return _judged(json.loads(done.stdout.splitlines()[-1]))

    def _argv(self, url: str, scale: int = 1) -> list[str]:
        model = self.model
        duration = f"-d{max(1, round(scale * model.duration))}s"
        argv = ["wrk", f"-t{model.threads}", f"-c{model.connections}", duration, "-s", str(REPORT)]
        if model.host is not None:
            argv += ["-H", f"Host: {model.host}"]
        if model.close:
            argv += ["-H", "Connection: close"]
        return [*argv, url]


def _judged(report: dict[str, Any]) -> Sample:
    """Errors of any kind make it invalid: what was measured is then something else than was asked for."""
    seconds = report["duration_us"] / 1e6
    rate = report["requests"] / seconds if seconds else 0.0
    errors = {kind: count for kind, count in report["errors"].items() if count}
    details = {"requests": report["requests"], "seconds": round(seconds, 4), **report["latency_us"]}
    if errors:
        reason = "wrk saw errors: " + ", ".join(f"{count} {kind}" for kind, count in errors.items())
        return Sample(rate, valid=False, reason=reason, details=details)
    if not report["requests"]:
        return Sample(0.0, valid=False, reason="wrk got no answer at all", details=details)
    return Sample(rate, details=details)
