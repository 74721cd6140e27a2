"""Latency histograms that keep each value to three digits (HdrHistogram); quantiles of any rounds can be merged.

Values are ns. http://hdrhistogram.org describes the format; ``encode`` gives its compressed V2 encoding in base64,
which tools for other languages read, too. The layout of the counters is that of the hdrh package, which also writes and
reads; what is computed from all of them is done here, with numpy, because hdrh visits them one by one in Python.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from math import ceil

import numpy as np
import numpy.typing as npt
from hdrh.histogram import HdrHistogram

LOWEST, HIGHEST, DIGITS = 1, 3_600_000_000_000, 3
"""1 ns to an hour. A higher lowest value would cost digits: from 1 us on, 20 us would be known to 2.5 % only."""
ROUNDING = 1e-9
"""of a rank: 0.99 times 100 is not quite 99"""


class Histogram:
    """Latencies in ns."""

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
        """The smallest value in ns that at least so many of all values, 0 to 1, do not exceed; 0 if there are none."""
        if not self.count:
            return 0.0
        rank = max(ceil(share * self.count - ROUNDING), 1)
        return float(_highest()[np.searchsorted(np.cumsum(self._counters), rank)])

    @property
    def mean(self) -> float:
        """In ns; 0 if there are none. Values count as the middle of their counter's."""
        if not self.count:
            return 0.0
        top = _highest()
        bottom = np.concatenate([[0], top[:-1] + 1])
        return float(self._counters @ ((bottom + top) / 2)) / self.count

    def counts(self) -> dict[int, int]:
        """How many values there are of each kind, by ns, ascending."""
        (used,) = self._counters.nonzero()
        return dict(zip(_highest()[used].tolist(), self._counters[used].tolist(), strict=True))

    def encode(self) -> str:
        """As text."""
        return bytes(self._values.encode()).decode()

    @classmethod
    def decode(cls, text: str) -> Histogram:
        """From text, also of histograms that were kept with another lowest value."""
        one = cls()
        one._values.add(HdrHistogram.decode(text))
        return one

    @classmethod
    def merged(cls, histograms: Iterable[Histogram]) -> Histogram:
        """All values of several."""
        one = cls()
        for histogram in histograms:
            one._values.add(histogram._values)
        return one

    @property
    def _counters(self) -> npt.NDArray[np.int64]:
        """How many values each counter has seen, shape (counter); it shares the memory."""
        return np.ctypeslib.as_array(self._values.counts).view(np.int64)


@cache
def _highest() -> npt.NDArray[np.int64]:
    """The highest value in ns that each counter stands for, shape (counter)."""
    layout = HdrHistogram(LOWEST, HIGHEST, DIGITS)
    return np.array(
        [layout.get_highest_equivalent_value(layout.get_value_from_index(index)) for index in range(layout.counts_len)]
    )
