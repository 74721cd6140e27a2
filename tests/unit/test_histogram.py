"""Histograms of latencies: three digits everywhere, quantiles as defined, and nothing lost in merging or keeping."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.histogram import DIGITS, HIGHEST, LOWEST, Histogram

RESOLUTION = 10**-DIGITS
SHARES = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 0.9, 0.99, 0.999, 1.0]), st.floats(0, 1))
LATENCIES = st.one_of(st.integers(LOWEST, 10**6), st.integers(LOWEST, 10**9), st.integers(LOWEST, HIGHEST))
MANY = st.lists(LATENCIES, min_size=1, max_size=200)


def of(values: Sequence[int]) -> Histogram:
    return Histogram(Counter(values))


def exact_quantile(values: Sequence[int], share: float) -> int:
    """The smallest value that at least so many of all do not exceed."""
    return sorted(values)[max(ceil(share * len(values) - 1e-9), 1) - 1]


@given(MANY, SHARES)
def test_a_quantile_is_that_of_the_values_to_three_digits(values: list[int], share: float) -> None:
    assert of(values).quantile(share) == pytest.approx(exact_quantile(values, share), rel=RESOLUTION)


@pytest.mark.parametrize("value", [1_234, 20_345, 98_765, 512_345, 1_000_001, 999_999_999])
def test_values_below_a_millisecond_have_three_digits_too(value: int) -> None:
    assert of([value]).quantile(0.5) == pytest.approx(value, rel=RESOLUTION)


def test_a_quantile_is_never_exceeded_by_more_than_the_rest() -> None:
    """Where rounding to the nearest rank, as HdrHistogram does, would give the value below."""
    assert of([1_000, 2_000, 3_000, 4_000, 5_000]).quantile(0.25) == pytest.approx(2_000, rel=RESOLUTION)
    assert of(range(1_000, 61_000, 1_000)).quantile(0.99) == pytest.approx(60_000, rel=RESOLUTION)


@given(MANY)
def test_the_mean_is_that_of_the_values(values: list[int]) -> None:
    assert of(values).mean == pytest.approx(sum(values) / len(values), rel=RESOLUTION)


@given(st.lists(MANY, min_size=1, max_size=4))
def test_merged_is_one_of_all_values_together(parts: list[list[int]]) -> None:
    merged = Histogram.merged(map(of, parts))
    together = of([value for part in parts for value in part])
    assert merged.counts() == together.counts()
    assert merged.encode() == together.encode()


def test_merging_leaves_the_parts_alone() -> None:
    one, other = of([1_000]), of([2_000])
    Histogram.merged([one, other])
    assert (one.count, other.count) == (1, 1)


@given(MANY)
def test_counts_make_the_same_histogram_again(values: list[int]) -> None:
    one = of(values)
    assert Histogram(one.counts()).counts() == one.counts()
    assert sum(one.counts().values()) == one.count == len(values)
    assert list(one.counts()) == sorted(one.counts())


@given(MANY)
def test_text_makes_the_same_histogram_again(values: list[int]) -> None:
    one = of(values)
    again = Histogram.decode(one.encode())
    assert again.counts() == one.counts()
    assert again.encode() == one.encode()
    assert (again.count, again.mean) == (one.count, one.mean)
    assert [again.quantile(share) for share in (0.0, 0.5, 1.0)] == [one.quantile(share) for share in (0.0, 0.5, 1.0)]


@given(MANY, MANY)
def test_one_that_was_kept_can_be_merged(kept: list[int], fresh: list[int]) -> None:
    merged = Histogram.merged([Histogram.decode(of(kept).encode()), of(fresh)])
    assert merged.counts() == of(kept + fresh).counts()


def test_one_that_was_kept_coarser_can_be_merged() -> None:
    """Results of before have a lowest value of 1 us, and resolve 512 ns up to a millisecond."""
    from hdrh.histogram import HdrHistogram

    coarse = HdrHistogram(1_000, HIGHEST, DIGITS)
    coarse.record_value(100_000, 3)
    merged = Histogram.merged([Histogram.decode(coarse.encode().decode()), of([200_000])])
    assert merged.count == 4
    assert merged.quantile(0.5) == pytest.approx(100_000, abs=512)
    assert merged.quantile(1) == pytest.approx(200_000, rel=RESOLUTION)


@pytest.mark.parametrize(("value", "kept"), [(0, LOWEST), (-5, LOWEST), (10 * HIGHEST, HIGHEST)])
def test_what_is_out_of_range_counts_at_its_end(value: int, kept: int) -> None:
    one = of([value])
    assert one.count == 1
    assert one.quantile(0.5) == pytest.approx(kept, rel=RESOLUTION)


def test_counts_of_millions_stay_exact() -> None:
    one = Histogram({20_000: 3_000_000_001, 30_000: 1})
    again = Histogram.decode(Histogram.merged([one, one]).encode())
    assert again.count == 6_000_000_004
    assert list(again.counts().values()) == [6_000_000_002, 2]


@pytest.mark.parametrize("empty", [Histogram(), Histogram.merged([]), Histogram.decode(Histogram().encode())])
def test_nothing_has_neither_quantile_nor_mean(empty: Histogram) -> None:
    assert (empty.count, empty.counts(), empty.mean, empty.quantile(0.5)) == (0, {}, 0.0, 0.0)
