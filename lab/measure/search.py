"""The highest rate that a contender bears: latency stays under a bound, and (almost) nothing is lost.

The idea is that of RFC 2544's throughput test (section 26.1, the highest rate without loss) and of what became of it,
the non-drop and partial-drop rates (NDR, PDR) of TRex: loss tolerated is ``loss``, and a bound for p99 is added,
since a queue hides loss for a long time. The search halves the range in which the answer lies, on a logarithmic scale,
until that is no wider than ``resolution``; the rate that is reported has held twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import sqrt
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from lab.interfaces import Instrument, Running, Setup, Watch
from lab.measure.load import widen_ports
from lab.measure.open_loop import OpenLoop, OpenLoopInstrument
from lab.samples import Better, Quantity, Sample
from lab.units import Quantity as Figure
from rauta.units import Share

MAX_TRIALS = 30
CLIMB = 4.0
"""by which the rate grows until it is too high"""


def _bound(value: object) -> float:
    text = value.strip().removeprefix("<").strip() if isinstance(value, str) else value
    try:
        return Figure.parse(text).in_unit("us")
    except ValueError:
        raise ValueError(f"{value!r} is no bound (allowed: a duration such as < 10ms)") from None


class Search(OpenLoop):
    """The highest rate. ``p99``: bound of the latency; ``loss``: share that may fail; ``rate``: the first one tried."""

    tool: Literal["search"]  # type: ignore[assignment]
    p99: Annotated[float, BeforeValidator(_bound), Field(examples=["< 10ms"])]
    loss: Share = 0.0
    resolution: Share = 0.05
    rate: float = 5_000.0
    unit: Literal["requests/s"] = "requests/s"  # type: ignore[assignment]

    @property
    def quantity(self) -> Quantity:
        """The rate."""
        return Quantity(self.unit, Better.HIGHER)

    @property
    def quantities(self) -> Mapping[str, Quantity]:
        """What it took to find out."""
        return {"trials": Quantity("trials", Better.NEITHER), "p99": Quantity("us", Better.LOWER)}

    @property
    def has_histogram(self) -> bool:
        """No: each trial has another."""
        return False

    def seconds(self, warmup: float) -> float:
        """About ten trials."""
        return 10 * (warmup + self.duration)

    def open(self, setup: Setup) -> Instrument:
        """Widens the clients' range of ports."""
        widen_ports(setup.network.clients, setup.stack)
        instrument = OpenLoopInstrument(self, setup.network.clients, setup.scenario.plan.warmup, self.rate)
        return SearchInstrument(self, instrument)


@dataclass(frozen=True)
class SearchInstrument:
    """Finds the rate with an open-loop generator."""

    model: Search
    generator: OpenLoopInstrument

    def sample(self, subject: str, running: Running | None, watch: Watch, *, scale: int = 1) -> Sample:
        """All trials are watched as one; the CPU time a request is then that of no single rate, so it is not given."""
        trials: list[tuple[float, Sample]] = []
        with watch:
            found = self._found(subject, running, scale, trials)
        holding = [sample for rate, sample in trials if rate == found]
        tried = {f"{rate:,.0f}/s": round(_p99(sample), 1) for rate, sample in trials}
        if not found:
            return Sample(0.0, valid=False, reason=f"no rate down to {trials[-1][0]:,.0f}/s holds", details=tried)
        return Sample(
            found,
            quantities={"trials": len(trials), "p99": max(map(_p99, holding))},
            generator=max(sample.generator or 0.0 for sample in holding),
            flags=tuple(flag for sample in [*holding, *_lowest_above(found, trials)] for flag in sample.flags),
            details=tried,
        )

    def _found(
        self, subject: str, running: Running | None, scale: int, trials: list[tuple[float, Sample]]
    ) -> float | None:
        def holds(rate: float) -> bool:
            sample = self.generator.at(rate, subject, running, nullcontext(), scale=scale)
            trials.append((rate, sample))
            return _p99(sample) < self.model.p99 and _loss(sample) <= self.model.loss

        return bisected(holds, self.model.rate, self.model.resolution)


def _lowest_above(found: float, trials: Sequence[tuple[float, Sample]]) -> list[Sample]:
    """The trial that says why the answer is no higher: if the generator could not, the answer is the generator's."""
    above = [(rate, number) for number, (rate, _) in enumerate(trials) if rate > found]
    return [trials[min(above)[1]][1]] if above else []


def _p99(sample: Sample) -> float:
    """In us. What was not answered counts with the time that it had waited until the end."""
    return sample.histogram.quantile(0.99) / 1e3 if sample.histogram else float("inf")


def _loss(sample: Sample) -> float:
    intended = float(sample.details["intended"])
    return 1 - float(sample.details["answered"]) / intended if intended else 1.0


def bisected(holds: Callable[[float], bool], first: float, resolution: float) -> float | None:
    """The highest rate that holds, to within a share of itself.

    Args:
        holds: whether a rate does; asked at most MAX_TRIALS times.
        first: where to begin.
        resolution: the share.

    Returns:
        a rate that held twice; None if there is none down to a thousandth of the first.
    """
    low, high, rate, step = 0.0, float("inf"), first, CLIMB
    for _ in range(MAX_TRIALS):
        if holds(rate):
            if rate == low:
                return rate  # the second time
            low, step = rate, CLIMB
        else:
            step = CLIMB if not low else 1 + 2 * resolution if rate == low else step
            low, high = (low if rate > low else 0.0), rate
        if low and high <= low * (1 + resolution):
            rate = low
        elif low:
            rate = low * CLIMB if high == float("inf") else sqrt(low * high)
        else:
            rate = high / step
            step = min(CLIMB, step * step)  # near at first, where it held once, then further down
        if rate < first / 1000:
            return None
    return None
