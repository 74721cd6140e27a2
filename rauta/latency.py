"""How long the router's program takes: the histogram that bpf/latency.h fills, as seconds.

Wall time of a sample of all packets, between two readings of the clock: it includes what one reading costs (20 to 40
ns), and whatever interrupted the program meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Self

from rauta.contract import LATENCY_BUCKETS, LATENCY_FIRST_OCTAVE

__all__ = ["BOUNDS", "Histogram"]

_STEPS = 4  # buckets an octave
_NS = 1e-9


def _least(bucket: int) -> float:
    """The shortest time that a bucket counts, in seconds; but for the first, which counts shorter ones, too."""
    octave, step = divmod(bucket, _STEPS)
    return (_STEPS + step) * 2.0 ** (octave + LATENCY_FIRST_OCTAVE - 2) * _NS


BOUNDS: tuple[float, ...] = (*map(_least, range(1, LATENCY_BUCKETS)), math.inf)
"""What the times of each bucket are less than, in seconds; the last bucket has no bound."""


@dataclass(frozen=True)
class Histogram:
    """Times: how many by bucket (see `BOUNDS`), and the sum of all in seconds."""

    counts: tuple[int, ...]
    sum: float

    @classmethod
    def of_cpus(cls, per_cpu: Iterable[Mapping[str, Any]]) -> Self:
        """The times of all CPUs, each given as its `struct latency`."""
        cpus = list(per_cpu)
        counts = tuple(map(sum, zip(*(cpu["bucket"] for cpu in cpus), strict=True)))
        return cls(counts, sum(cpu["sum"] for cpu in cpus) * _NS)

    def __add__(self, other: Histogram) -> Histogram:
        """Both together."""
        counts = zip(self.counts, other.counts, strict=True)
        return Histogram(tuple(a + b for a, b in counts), self.sum + other.sum)

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

        Taken in proportion between the bounds of its bucket, so it is off by a quarter of its value at most. Of the
        last bucket only the beginning is known. ValueError unless `share` is from 0 to 1.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"a quantile is a share from 0 to 1, not {share}")
        if not self.count:
            return None
        wanted, lowers = share * self.count, (0.0, *BOUNDS)
        bucket, before = next(
            (bucket, total - count)
            for bucket, (total, count) in enumerate(zip(accumulate(self.counts), self.counts, strict=True))
            if count and total >= wanted
        )
        lower, upper = lowers[bucket], BOUNDS[bucket]
        if upper == math.inf:
            return lower
        return lower + (upper - lower) * (wanted - before) / self.counts[bucket]
