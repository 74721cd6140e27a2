"""Checks under a flood of SYNs (lab.flood), and of what it leaves: nothing."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Annotated, Literal

from pydantic import Field

from lab import memory
from lab.background import Metered, of_flood
from lab.checks.base import HOST, CheckBase
from lab.checks.state import sockets
from lab.flood import Flood, flooding
from lab.histogram import Histogram
from lab.interfaces import AnswersSyns, CheckResult, Context
from lab.measure.connect import SENT_AGAIN, TIMEOUT
from lab.measure.open_loop import generate, total_errors
from lab.process import wait_until
from lab.units import PerSecond, Size
from rauta.units import Duration

NEW_SYN_RECV = "0C"
SYN_RECV = "03"
"""states in /proc/net/tcp (include/net/tcp_states.h): half-open connections"""
LEAST_SHARE = 0.1
"""of the SYNs asked for: with fewer it was no flood. How many a machine can send is for a target to ask"""
TRIES = 5
"""of which the one with the least growth counts: what a flood takes it takes each time, what others do they do not"""


class SynFlood(CheckBase):
    """While so many SYNs a second come from anybody, new connections are all answered: ``rate`` of them a second.

    ``cluster``: the flood, too, goes where requests for this one go.
    """

    syn_flood: PerSecond
    cluster: str
    path: Annotated[str, Field(pattern="^/")] = "/"
    rate: Annotated[int, Field(ge=1, le=100_000)] = 500
    duration: Annotated[Duration, Field(gt=0, le=10)] = 1.0
    only: Literal["rauta"] = "rauta"

    @property
    def title(self) -> str:
        """Both rates."""
        return f"{self.rate:,} new connections/s during {self.syn_flood:,.0f} SYN/s"

    def run(self, context: Context) -> CheckResult:
        """Take the connections from the open-loop generator. What did not come in time has failed."""
        client, to = context.network.client, context.running.target(self.cluster)
        again = client.tcp_counters()[SENT_AGAIN]
        with flooding(context.network, context.running, self.cluster, self.syn_flood) as flood:
            metered = Metered(nullcontext(), [of_flood(flood)])
            with metered:
                report = generate(
                    client, to, self.duration, rate=self.rate, drain=TIMEOUT, timeout=TIMEOUT, host=HOST, path=self.path
                )
        rate = metered.figures["syns"]
        again = client.tcp_counters()[SENT_AGAIN] - again
        context.requests.sent += report["requests"]
        times = Histogram(dict(report["connecting"]))
        seen = (
            f"{report['answered']:,} of {report['intended']:,} answered at {rate:,.0f} SYN/s; "
            f"established after {times.quantile(0.5) / 1e3:,.0f} us, p99 {times.quantile(0.99) / 1e3:,.0f} us; "
            f"SYNs sent again: {again}"
        )
        if errors := total_errors([report]):
            return self.failed(f"{', '.join(f'{count} {kind}' for kind, count in errors.items())}; {seen}")
        if rate < LEAST_SHARE * self.syn_flood:
            return self.failed(f"that was no flood: {seen}")
        return self.passed(seen)


class FlowsOf(CheckBase):
    """The flow table has connections, and all of them are the clients' own."""

    flows_of: Literal["clients"]
    only: Literal["rauta"] = "rauta"

    @property
    def title(self) -> str:
        """Whose."""
        return "the flow table has only the clients' connections"

    def run(self, context: Context) -> CheckResult:
        """Look at every entry."""
        assert isinstance(context.running, AnswersSyns)
        known = {host.address for host in context.network.clients}
        found = context.running.flow_clients()
        strangers = {address: count for address, count in found.items() if address not in known}
        if strangers:
            some = ", ".join(map(str, list(strangers)[:3]))
            return self.failed(f"{sum(strangers.values()):,} entries of {len(strangers):,} others: {some} ...")
        return self.passed(f"{found.total():,} entries") if found else self.failed("there is none at all")


class MemoryConstant(CheckBase):
    """So many SYNs take no memory: none of the router's maps, on no host a half-open connection, and of the kernel's
    slab no more than this, which it moves by anyway. (The kernel's smallest object for a connection has over 200 bytes:
    those for 500,000 SYNs would be 100 MB.)

    ``cluster``: the flood goes where requests for this one go. ``rate``: a second.
    """

    memory_constant: Size
    syns: Annotated[int, Field(ge=1000, le=10_000_000)] = 500_000
    rate: PerSecond = 500_000
    cluster: str
    only: Literal["rauta"] = "rauta"

    @property
    def title(self) -> str:
        """The bound."""
        return f"{self.syns:,} SYNs take no memory (of the kernel's slab less than {self.memory_constant / 1e6:g} MB)"

    def run(self, context: Context) -> CheckResult:
        """Flood, and compare with before; again, if something has grown that may be somebody else's."""
        grown: list[int] = []
        for _ in range(TRIES):
            with flooding(context.network, context.running, self.cluster, self.rate) as flood:
                maps, kernel = self._maps(context), memory.of_slab()
                self._wait_for(flood)
                grown.append(memory.of_slab() - kernel)
                if (now := self._maps(context)) != maps:
                    return self.failed(f"the maps took {maps:,} bytes, then {now:,}")
                if half_open := self._half_open(context):
                    return self.failed(f"half-open connections: {half_open}")
            if grown[-1] <= self.memory_constant:
                return self.passed(f"maps {maps:,} bytes as before, the slab {grown[-1] / 1e6:+.2f} MB")
        return self.failed(f"the kernel's slab grew by {', '.join(f'{one / 1e6:.2f}' for one in grown)} MB")

    def _wait_for(self, flood: Flood) -> None:
        """Until that many more SYNs have been answered."""
        enough = flood.read()["syns"] + self.syns
        patience = self.syns / (LEAST_SHARE * self.rate)
        wait_until(lambda: flood.read()["syns"] >= enough, seconds=patience, what=f"{self.syns:,} SYNs to be answered")

    @staticmethod
    def _maps(context: Context) -> int:
        routers = context.running.routers  # type: ignore[attr-defined]  # only RunningRauta has them
        return memory.of_maps(router.object for router in routers)

    @staticmethod
    def _half_open(context: Context) -> dict[str, int]:
        states = {
            host.name: sum(one.state in (SYN_RECV, NEW_SYN_RECV) for one in sockets(host))
            for host in context.network.watched
        }
        return {name: count for name, count in states.items() if count}
