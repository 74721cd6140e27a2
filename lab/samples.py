"""What an instrument hands over: one sample, and how its numbers are to be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab.histogram import Histogram


class Better(StrEnum):
    """Which direction of a quantity is the good one."""

    HIGHER = "higher"
    LOWER = "lower"
    NEITHER = "neither"


QUANTILES: Mapping[str, float] = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
"""of all latencies of a measure with histograms, as shares"""
STATISTICS = ("median", "mean", "min", "max", *QUANTILES)
"""what a metric may end in: over rounds, or a quantile"""


@dataclass(frozen=True)
class Quantity:
    """What a number means. ``unit``: as in ``requests/s``, ``ns``, ``us/request``."""

    unit: str
    better: Better


CPU_QUANTITIES: Mapping[str, Quantity] = {
    name: Quantity("us/request", Better.LOWER) for name in ("cpu", "cpu-client", "cpu-router", "cpu-servers")
}
"""CPU time a request, which every sample of layer http has: of the whole machine, and of the processes of each role"""


@dataclass(frozen=True)
class Sample:
    """One round's result of one measure for one contender or reference."""

    value: float
    """the measure's own quantity, in its unit; of a histogram its median"""
    valid: bool = True
    reason: str = ""
    """why it is not valid"""
    quantities: Mapping[str, float] = field(default_factory=dict)
    """what was measured besides, by the names that the measure declares"""
    histogram: Histogram | None = None
    """all latencies, in ns, where the measure is one of latency"""
    requests: int | None = None
    """how many requests were made while the machine was watched, warm-up included: CPU time is divided by it"""
    generator: float | None = None
    """how busy the generator's busiest thread was, as a share of the time, 0 to 1"""
    flags: tuple[str, ...] = ()
    """what makes it noisy, in words: the machine was disturbed, or the generator was the limit"""
    details: Mapping[str, float | int | str] = field(default_factory=dict)
    """whatever the instrument said besides, for people"""
