"""Downloads by clients that come for the first time: how long they take, and what the server's TCP did for them.

Each has a connection of its own, and the servers forget what they know of a client's path (tcp_no_metrics_save), so
that every one of them starts as a stranger's would. Two measures:

* *download*: at a fixed rate, open loop (lab.measure.open_loop); how long until the whole answer is there.
* *first-seconds*: some at once, of more than can come in so many seconds; how much has come by then, and how long the
  first part took.

Both count what the servers' kernels sent again, and why (/proc/net/netstat): ``probes`` of the tail, ``timeouts``, and
what was ``needless``, because the client had it already and says so (RFC 2883). On a line that loses nothing each of
them is a mistake about the path.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from lab.environment import source_revision
from lab.interfaces import Instrument, Running, Setup, Watch
from lab.measure.load import PATIENCE_SECONDS, Load, on_all, shares, target, widen_ports
from lab.measure.open_loop import OpenLoop, OpenLoopInstrument, resolved_rate
from lab.measure.wrk import answering
from lab.samples import Better, Quantity, Sample
from lab.units import Size
from rauta.units import Duration

if TYPE_CHECKING:
    from lab.topology import Host

CLIENT = Path(__file__).parent.parent / "clients" / "first_seconds.py"
SOURCE = "lab/clients/first_seconds.py"
LOSSES_SECONDS = 20.0
"""until a download is given up: a SYN that is lost three times takes 7 s"""
NO_METRICS = "net.ipv4.tcp_no_metrics_save"
COUNTED: Mapping[str, str] = {
    "resent": "Tcp.RetransSegs",
    "probes": "TcpExt.TCPLossProbes",
    "timeouts": "TcpExt.TCPTimeouts",
    "needless": "TcpExt.TCPDSACKRecvSegs",
}
"""quantities, and what they count"""
QUANTITIES = {name: Quantity("1/download", Better.LOWER) for name in COUNTED}


class Download(OpenLoop):
    """How long a whole answer takes on a connection of its own, at a rate."""

    tool: Literal["download"]  # type: ignore[assignment]
    close: Literal[True] = True

    @property
    def quantities(self) -> Mapping[str, Quantity]:
        """The generator's, and what was sent again."""
        return {**super().quantities, **QUANTITIES}

    @property
    def patience(self) -> float:
        """Long: what was lost comes again, and counts with the time that it took."""
        return LOSSES_SECONDS

    def open(self, setup: Setup) -> Instrument:
        """Widens the clients' range of ports, and has the servers forget."""
        servers = _strangers(setup, self.cluster)
        rate = resolved_rate(self.rate, setup.capacities)
        generator = OpenLoopInstrument(self, setup.network.clients, setup.scenario.plan.warmup, rate)
        return _DownloadInstrument(generator, servers)


@dataclass(frozen=True)
class _DownloadInstrument:
    generator: OpenLoopInstrument
    servers: Sequence[Host]

    def sample(self, subject: str, running: Running | None, watch: Watch, *, scale: int = 1) -> Sample:
        before = _counters(self.servers)
        sample = self.generator.sample(subject, running, watch, scale=scale)
        again = _each(before, _counters(self.servers), sample.requests or 1)
        return replace(sample, quantities={**sample.quantities, **again})


class FirstSeconds(Load):
    """How much comes in the first seconds. ``mark``: the part whose time is taken; ``duration``: how many seconds."""

    layer: Literal["http"]
    tool: Literal["first-seconds"]
    connections: Annotated[int, Field(ge=1, le=1000)] = 4
    duration: Duration = 2.0
    mark: Size = 1_000_000
    unit: Literal["B/s"] = "B/s"

    @property
    def quantity(self) -> Quantity:
        """Of one connection, from its first SYN on."""
        return Quantity(self.unit, Better.HIGHER)

    @property
    def quantities(self) -> Mapping[str, Quantity]:
        """When the part was there, and what was sent again."""
        return {"mark": Quantity("ms", Better.LOWER), **QUANTITIES}

    @property
    def has_histogram(self) -> bool:
        """No: there are only a few."""
        return False

    @property
    def instrument(self) -> str:
        """The client, by its source."""
        return f"first_seconds {source_revision(SOURCE)}"

    @property
    def depends_on(self) -> Sequence[str]:
        """Nothing."""
        return ()

    def subjects(self, contenders: Sequence[str]) -> Sequence[str]:
        """All that answer requests."""
        return answering(contenders)

    def seconds(self, warmup: float) -> float:
        """There is no warm-up: it is the first seconds that count."""
        return self.duration

    def open(self, setup: Setup) -> Instrument:
        """Widens the clients' range of ports, and has the servers forget."""
        return _FirstSecondsInstrument(self, setup.network.clients, _strangers(setup, self.cluster))


@dataclass(frozen=True)
class _FirstSecondsInstrument:
    model: FirstSeconds
    clients: Sequence[Host]
    servers: Sequence[Host]

    def sample(self, subject: str, running: Running | None, watch: Watch, *, scale: int = 1) -> Sample:
        """``scale``: so many groups of connections, one after the other; later seconds would be another thing."""
        to = target(running, subject, self.model.cluster)
        before = _counters(self.servers)
        with watch:
            reports = [one for _ in range(scale) for one in on_all(self.clients, partial(self._run, to))]
        downloads = [download for report in reports for download in report["downloads"]]
        wrong = [download["error"] for download in downloads if download["error"]]
        marks = [download["mark"] or self.model.duration for download in downloads]
        return Sample(
            sum(download["bytes"] for download in downloads) / len(downloads) / self.model.duration,
            valid=not wrong,
            reason=f"{len(wrong)} of {len(downloads)} downloads ended early: {wrong[0]}" if wrong else "",
            quantities={
                "mark": 1e3 * sum(marks) / len(marks),
                **_each(before, _counters(self.servers), len(downloads)),
            },
            requests=len(downloads),
            generator=max(report["cpu"] for report in reports),
            details={"without the part": sum(download["mark"] is None for download in downloads)},
        )

    def _run(self, to: tuple[Any, int], number: int, client: Host) -> dict[str, Any]:
        model = self.model
        plan = {
            "address": str(to[0]),
            "port": to[1],
            "host": model.host,
            "path": model.path,
            "connections": shares(model.connections, len(self.clients))[number],
            "seconds": model.duration,
            "mark": model.mark,
        }
        done = client.run([sys.executable, str(CLIENT), json.dumps(plan)], timeout=model.duration + PATIENCE_SECONDS)
        report: dict[str, Any] = json.loads(done.stdout)
        return report


def _strangers(setup: Setup, cluster: str) -> list[Host]:
    """The cluster's hosts, which from now on know nothing of a client that they have seen before."""
    widen_ports(setup.network.clients, setup.stack)
    servers = setup.network.servers(cluster)
    for host in servers:
        setup.stack.callback(host.sysctl, NO_METRICS, host.sysctl(NO_METRICS, "1"))
    return servers


def _counters(hosts: Sequence[Host]) -> dict[str, int]:
    counters = [host.tcp_counters() for host in hosts]
    return {name: sum(one.get(counter, 0) for one in counters) for name, counter in COUNTED.items()}


def _each(before: Mapping[str, int], after: Mapping[str, int], downloads: int) -> dict[str, float]:
    return {name: (after[name] - count) / downloads for name, count in before.items()}
