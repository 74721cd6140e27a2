"""Latency histograms that keep each value to three digits (HdrHistogram); quantiles of any rounds can be merged.

Values are ns. http://hdrhistogram.org describes the format; ``encode`` gives its compressed V2 encoding in base64,
which tools for other languages read, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

import numpy as np
from hdrh.histogram import HdrHistogram

LOWEST, HIGHEST, DIGITS = 1_000, 3_600_000_000_000, 3
"""1 us to an hour"""


class Histogram:
    """Latencies in ns. Never changed once it is made."""

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        """Begin with so many values of each kind: ``counts`` by ns."""
        self._values = HdrHistogram(LOWEST, HIGHEST, DIGITS)
        for value, count in (counts or {}).items():
            self._values.record_value(min(max(value, LOWEST), HIGHEST), count)

    @property
    def count(self) -> int:
        """How many values there are."""
        return int(self._values.get_total_count())

    def quantile(self, share: float) -> float:
        """The value in ns that so many of all values, 0 to 1, do not exceed."""
        return float(self._values.get_value_at_percentile(100 * share))

    @property
    def mean(self) -> float:
        """In ns."""
        return float(self._values.get_mean_value())

    def counts(self) -> Mapping[int, int]:
        """How many values there are of each kind, by ns, ascending."""
        return self._counts

    @cached_property
    def _counts(self) -> dict[int, int]:
        values = self._values
        found = np.flatnonzero(np.ctypeslib.as_array(values.counts))
        return {
            int(values.get_highest_equivalent_value(values.get_value_from_index(int(index)))): int(values.counts[index])
            for index in found
        }

    def encode(self) -> str:
        """As text."""
        return bytes(self._values.encode()).decode()

    @classmethod
    def decode(cls, text: str) -> Histogram:
        """From text."""
        one = cls()
        one._values = HdrHistogram.decode(text)
        return one

    @classmethod
    def merged(cls, histograms: Iterable[Histogram]) -> Histogram:
        """All values of several."""
        one = cls()
        for histogram in histograms:
            one._values.add(histogram._values)
        return one
