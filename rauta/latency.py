"""How long things take, as histograms in seconds: the router's program, and servers until they answer.

The program's (bpf/latency.h) is the wall time of a sample of all packets, between two readings of the clock: it
includes what one reading costs (20 to 40 ns), and whatever interrupted the program meanwhile. The servers'
(bpf/figures.h) is that of all requests which an agent could follow: from the first segment of a request, as it passes
the agent, to the first byte of its answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Self

from rauta.contract import FIRST_BYTE_BUCKETS, FIRST_BYTE_UNIT, LATENCY_BUCKETS, LATENCY_FIRST_OCTAVE

__all__ = ["BOUNDS", "FIRST_BYTE_BOUNDS", "Histogram"]

_STEPS = 4  # buckets an octave
_NS = 1e-9


def _least(bucket: int) -> float:
    """The shortest time that a bucket counts, in seconds; but for the first, which counts shorter ones, too."""
    octave, step = divmod(bucket, _STEPS)
    return (_STEPS + step) * 2.0 ** (octave + LATENCY_FIRST_OCTAVE - 2) * _NS


BOUNDS: tuple[float, ...] = (*map(_least, range(1, LATENCY_BUCKETS)), math.inf)
"""What the program's times in each bucket are less than, in seconds; the last bucket has no bound."""

FIRST_BYTE_BOUNDS: tuple[float, ...] = (
    *(FIRST_BYTE_UNIT * 2.0**bucket * _NS for bucket in range(FIRST_BYTE_BUCKETS - 1)),
    math.inf,
)
"""The same of the times to the first byte of an answer: 64 us, 128 us ... 33.6 s, and no bound."""


@dataclass(frozen=True)
class Histogram:
    """Times: how many by bucket, the sum of all in seconds, and what those of each bucket are less than."""

    counts: tuple[int, ...]
    sum: float
    bounds: tuple[float, ...] = BOUNDS

    @classmethod
    def of_cpus(cls, per_cpu: Iterable[Mapping[str, Any]], bounds: tuple[float, ...] = BOUNDS) -> Self:
        """The times of all CPUs, each given as the `struct latency` or `struct route_figures` that has these bounds."""
        cpus = list(per_cpu)
        counts = tuple(map(sum, zip(*(cpu["bucket"] for cpu in cpus), strict=True)))
        return cls(counts, sum(cpu["sum"] for cpu in cpus) * _NS, bounds)

    @classmethod
    def empty(cls) -> Self:
        """No times of the program yet."""
        return cls((0,) * len(BOUNDS), 0.0)

    def __add__(self, other: Histogram) -> Histogram:
        """Both together. ValueError if their bounds differ."""
        if self.bounds != other.bounds:
            raise ValueError("histograms of different bounds do not add up")
        counts = zip(self.counts, other.counts, strict=True)
        return Histogram(tuple(a + b for a, b in counts), self.sum + other.sum, self.bounds)

    def since(self, earlier: Histogram) -> Histogram:
        """The times that have come since an earlier reading of the same."""
        counts = zip(self.counts, earlier.counts, strict=True)
        return Histogram(tuple(now - before for now, before in counts), self.sum - earlier.sum, self.bounds)

    @property
    def count(self) -> int:
        """How many times there are."""
        return sum(self.counts)

    @property
    def mean(self) -> float | None:
        """In seconds, exact but for rounding; None if there are no times."""
        return self.sum / self.count if self.count else None

    def quantile(self, share: float) -> float | None:
        """The time, in seconds, that a share of the times (0 to 1) is not longer than; None if there are no times.

        Taken in proportion between the bounds of its bucket, so it is off by that one's width at most: a quarter of its
        value with `BOUNDS`, half of it or as much again with `FIRST_BYTE_BOUNDS`. Of the last bucket only the beginning
        is known. ValueError unless `share` is from 0 to 1.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"a quantile is a share from 0 to 1, not {share}")
        if not self.count:
            return None
        wanted, lowers = share * self.count, (0.0, *self.bounds)
        bucket, before = next(
            (bucket, total - count)
            for bucket, (total, count) in enumerate(zip(accumulate(self.counts), self.counts, strict=True))
            if count and total >= wanted
        )
        lower, upper = lowers[bucket], self.bounds[bucket]
        if upper == math.inf:
            return lower
        return lower + (upper - lower) * (wanted - before) / self.counts[bucket]
