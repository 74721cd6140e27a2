"""The histogram of the program's times: bounds, quantiles, sums of histograms."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from rauta.contract import FIRST_BYTE_BUCKETS, LATENCY_BUCKETS
from rauta.latency import BOUNDS, FIRST_BYTE_BOUNDS, Histogram

NS = 1e-9


def histogram(counts: dict[int, int], total: float = 0.0) -> Histogram:
    """With so many times in those buckets."""
    return Histogram(tuple(counts.get(bucket, 0) for bucket in range(LATENCY_BUCKETS)), total)


def test_there_are_four_buckets_an_octave_up_to_any_time() -> None:
    assert BOUNDS[:5] == pytest.approx([20 * NS, 24 * NS, 28 * NS, 32 * NS, 40 * NS])
    assert len(BOUNDS) == LATENCY_BUCKETS
    assert BOUNDS[-1] == math.inf
    assert BOUNDS[-2] == pytest.approx(7 * 2**21 * NS)
    assert all(after / before <= 1.25 + 1e-9 for before, after in pairwise(BOUNDS[:-1]))


def test_count_and_mean() -> None:
    assert histogram({}).count == 0
    assert histogram({}).mean is None
    assert histogram({3: 2, 8: 1}, 150 * NS).count == 3
    assert histogram({3: 2, 8: 1}, 150 * NS).mean == pytest.approx(50 * NS)


@pytest.mark.parametrize(
    ("share", "ns"),
    [(0, 64), (0.5, 80), (0.25, 72), (0.75, 96), (1, 112)],
)
def test_a_quantile_lies_within_its_bucket(share: float, ns: float) -> None:
    """Four times from 64 ns to 80 ns, and four from 80 ns to 112 ns in two buckets."""
    assert histogram({8: 4, 9: 2, 10: 2}).quantile(share) == pytest.approx(ns * NS)


def test_quantiles_at_the_ends_of_the_scale() -> None:
    """The first bucket begins at nothing; the last has no end, so its beginning is all that is known."""
    assert histogram({0: 2}).quantile(0.5) == pytest.approx(10 * NS)
    assert histogram({LATENCY_BUCKETS - 1: 1}).quantile(0.99) == BOUNDS[-2]
    assert histogram({}).quantile(0.5) is None


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_no_such_quantile(share: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        histogram({0: 1}).quantile(share)


def test_histograms_add_up() -> None:
    both = histogram({1: 2}, 44 * NS) + histogram({1: 1, 5: 1}, 66 * NS)
    assert both == histogram({1: 3, 5: 1}, 110 * NS)


# ---- other bounds ---------------------------------------------------------------------------------------


def test_the_buckets_of_first_bytes_double_from_64_us() -> None:
    assert FIRST_BYTE_BOUNDS[:3] == pytest.approx([64e-6, 128e-6, 256e-6])
    assert len(FIRST_BYTE_BOUNDS) == FIRST_BYTE_BUCKETS
    assert FIRST_BYTE_BOUNDS[-2:] == (pytest.approx(33.554432), math.inf)


def test_quantiles_go_by_the_histograms_own_bounds() -> None:
    times = Histogram((0, 4, *[0] * (FIRST_BYTE_BUCKETS - 3), 4), 1.0, FIRST_BYTE_BOUNDS)
    assert times.quantile(0.25) == pytest.approx(96e-6)
    assert times.quantile(0.99) == pytest.approx(33.554432)


def test_a_histogram_of_cpus_keeps_its_bounds() -> None:
    cpus = [{"sum": 5_000_000, "bucket": [1, 0, 2]}, {"sum": 7_000_000, "bucket": [0, 1, 0]}]
    assert Histogram.of_cpus(cpus, (1.0, 2.0, math.inf)) == Histogram((1, 1, 2), 0.012, (1.0, 2.0, math.inf))


def test_only_histograms_of_the_same_bounds_add_up() -> None:
    one = Histogram((1, 2), 3.0, (1.0, math.inf))
    assert one + one == Histogram((2, 4), 6.0, (1.0, math.inf))
    with pytest.raises(ValueError, match="different bounds"):
        one + Histogram((1, 2), 3.0, (2.0, math.inf))
