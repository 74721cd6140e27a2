"""Latency at a fixed rate, open loop: from the time at which each request *should* have been sent.

The generator (lab/tools/open_loop.c) fixes when requests are due before the first is sent, and never puts one off: what
cannot be sent because no connection is free waits, and its latency counts the wait. So a server that hangs for a second
shows as a second's worth of slow requests, as its users would see it. All latencies are kept, in a histogram.

Whether the generator kept up is part of each sample. It is flagged if it had something to do nearly all the time, or
if it was late itself: if requests went out late although a connection was free, and that is a good part of the latency
at p99. A server that is slow or overrun is neither: then connections are not free, and the generator sleeps.

A rate can be a share of what contenders manage (``rate: 50% of slowest rps``, with ``rps`` a closed-loop measure of the
scenario, found out before the rounds): all contenders then get the same rate.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from lab.environment import REPOSITORY, source_revision
from lab.errors import LabError
from lab.histogram import Histogram
from lab.interfaces import Instrument, Running, Setup, Watch
from lab.measure.load import PATIENCE_SECONDS, Load, on_all, shares, target, widen_ports
from lab.measure.wrk import answering
from lab.samples import Better, Quantity, Sample
from lab.units import Quantity as Figure
from rauta.units import Duration

if TYPE_CHECKING:
    from lab.topology import Host

TOOL = REPOSITORY / "lab" / "objects" / "open_loop"
SOURCE = "lab/tools/open_loop.c"
SATURATED = 0.9
"""of the time, from which the generator itself may be what was measured"""
LATE_SECONDS, LATE_SHARE = 1e-3, 0.1
"""from which it sent too late: so much at p99, and so much of the latency at p99. Less is what waking up takes"""
_SHARE = re.compile(r"([0-9.]+)% of (\S+) ([a-z0-9-]+)")


def _rate(value: object) -> object:
    if isinstance(value, str) and _SHARE.fullmatch(value):
        return value
    try:
        figure = Figure.parse(value)
    except ValueError:
        figure = Figure(0, "")
    if figure.unit or figure.value <= 0:
        raise ValueError(f"{value!r} is no rate (allowed: requests a second such as 20k, or 50% of slowest MEASURE)")
    return figure.value


Rate = Annotated[float | str, BeforeValidator(_rate), Field(examples=["20k", "50% of slowest rps"])]


class OpenLoop(Load):
    """Latencies at a rate. ``spin``: the generator does not sleep so long before each request, so as to be on time."""

    layer: Literal["http"]
    tool: Literal["open-loop"]
    rate: Rate
    arrivals: Literal["constant", "poisson"] = "constant"
    body: Annotated[int, Field(ge=0, le=100_000_000)] = 0
    spin: Duration = 0.0
    unit: Literal["us"] = "us"

    @property
    def quantity(self) -> Quantity:
        """The median latency."""
        return Quantity(self.unit, Better.LOWER)

    @property
    def quantities(self) -> Mapping[str, Quantity]:
        """What a sample says besides."""
        return {
            "mean": Quantity("us", Better.LOWER),
            "max": Quantity("us", Better.LOWER),
            "late": Quantity("us", Better.LOWER),
            "rate": Quantity("requests/s", Better.NEITHER),
        }

    @property
    def has_histogram(self) -> bool:
        """All latencies."""
        return True

    @property
    def instrument(self) -> str:
        """The generator, by its source."""
        return f"open_loop {source_revision(SOURCE)}"

    @property
    def patience(self) -> float | None:
        """Seconds until a request is given up, and what is under way at the end; None: as the generator sees fit."""
        return None

    @property
    def depends_on(self) -> Sequence[str]:
        """The measure that the rate is a share of."""
        match = _SHARE.fullmatch(self.rate) if isinstance(self.rate, str) else None
        return (match[3],) if match else ()

    def subjects(self, contenders: Sequence[str]) -> Sequence[str]:
        """All that answer requests."""
        return answering(contenders)

    def open(self, setup: Setup) -> Instrument:
        """Widens the clients' range of ports, and finds the rate."""
        widen_ports(setup.network.clients, setup.stack)
        rate = resolved_rate(self.rate, setup.capacities)
        return OpenLoopInstrument(self, setup.network.clients, setup.scenario.plan.warmup, rate)


def resolved_rate(rate: float | str, capacities: Mapping[str, Mapping[str, float]]) -> float:
    """Requests a second: what is asked for, or a share of what was found before."""
    match = _SHARE.fullmatch(rate) if isinstance(rate, str) else None
    if match is None:
        return float(rate)
    share, whose, measure = match.groups()
    found = capacities[measure]
    if whose != "slowest" and whose not in found:
        raise LabError(f"finding the rate {rate!r}", f"{whose} was not measured", f"Known: {', '.join(found)}.")
    capacity = min(found.values()) if whose == "slowest" else found[whose]
    if capacity <= 0:
        raise LabError(f"finding the rate {rate!r}", f"{measure} was 0 for somebody: {dict(found)}")
    return float(share) / 100 * capacity


@dataclass(frozen=True)
class OpenLoopInstrument:
    """The generator, ready. ``rate``: requests a second of all clients together."""

    model: OpenLoop
    clients: Sequence[Host]
    warmup: float
    rate: float

    def sample(self, subject: str, running: Running | None, watch: Watch, *, scale: int = 1) -> Sample:
        """See lab.interfaces.Instrument."""
        return self.at(self.rate, subject, running, watch, scale=scale)

    def at(self, rate: float, subject: str, running: Running | None, watch: Watch, *, scale: int = 1) -> Sample:
        """A sample at another rate than the model's."""
        to = target(running, subject, self.model.cluster)
        with watch:
            reports = on_all(self.clients, partial(self._run, rate / len(self.clients), to, scale))
        return _judged(reports, rate)

    def _run(self, rate: float, to: tuple[Any, int], scale: int, number: int, client: Host) -> dict[str, Any]:
        model = self.model
        patience = {} if model.patience is None else {"timeout": model.patience, "drain": model.patience}
        return generate(
            client,
            to,
            scale * model.duration,
            close=model.close,
            rate=rate,
            arrivals=model.arrivals,
            connections=shares(model.connections, len(self.clients))[number],
            warmup=self.warmup,
            spin=model.spin,
            seed=1 + number,  # the same arrivals for every contender, others from each client
            host=model.host,
            path=model.path,
            body=model.body,
            **({} if model.alternate is None else {"alternate": model.alternate}),
            **patience,
        )


def generate(
    client: Host, to: tuple[Any, int], seconds: float, *, close: bool = True, **options: float | str
) -> dict[str, Any]:
    """What the generator says, run on a client for so many seconds. ``options``: its own; ``close`` is one, too."""
    words = [word for name, value in {**options, "duration": seconds}.items() for word in (f"--{name}", str(value))]
    argv = [str(TOOL), *words, *(["--close"] if close else []), str(to[0]), str(to[1])]
    patience = float(options.get("warmup", 0)) + float(options.get("drain", 0)) + PATIENCE_SECONDS
    report: dict[str, Any] = json.loads(client.run(argv, timeout=seconds + patience).stdout)
    return report


def total_errors(reports: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many requests went wrong, by the kinds that there were."""
    errors: dict[str, int] = {}
    for one in reports:
        for kind, count in one["errors"].items():
            if count:
                errors[kind] = errors.get(kind, 0) + count
    return errors


def _judged(reports: Sequence[Mapping[str, Any]], rate: float) -> Sample:
    """One sample of all clients. Whatever was not answered well makes it invalid."""
    histogram = Histogram.merged(Histogram(dict(one["histogram"])) for one in reports)
    errors = total_errors(reports)
    intended = sum(one["intended"] for one in reports)
    wrong = ", ".join(f"{count} {kind}" for kind, count in errors.items())
    p50, late = histogram.quantile(0.5) / 1e3, max(one["late"]["p50"] for one in reports) / 1e3
    busy = max(max(one["busy"], one["cpu"]) for one in reports)
    late_p99 = max(one["late"]["p99"] for one in reports) / 1e9
    answered = sum(one["answered"] for one in reports)
    return Sample(
        p50,
        valid=not wrong and intended > 0,
        reason=f"of {intended} requests at {rate:,.0f}/s: {wrong}" if wrong else "" if intended else "nothing was sent",
        quantities={
            "mean": histogram.mean / 1e3,
            "max": histogram.quantile(1) / 1e3,
            "late": late,
            "rate": answered / max(one["seconds"] for one in reports),
        },
        histogram=histogram,
        requests=sum(one["requests"] for one in reports) or None,
        generator=busy,
        flags=tuple(_too_slow(busy, late_p99, histogram.quantile(0.99) / 1e9)),
        details={
            "intended": intended,
            "answered": answered,
            "late p99 us": late_p99 * 1e6,
            "generator cpu": max(one["cpu"] for one in reports),
            **{f"errors {kind}": count for kind, count in errors.items()},
        },
    )


def _too_slow(busy: float, late: float, latency: float) -> Iterator[str]:
    """What the generator could not do; ``late`` and ``latency``: seconds at p99."""
    if busy >= SATURATED:
        yield f"the generator was busy {busy:.0%} of the time: it may be what was measured"
    if late >= LATE_SECONDS and late >= LATE_SHARE * latency:
        yield f"the generator sent {late * 1e3:.1f} ms late at p99, where the latency was {latency * 1e3:.1f} ms"
