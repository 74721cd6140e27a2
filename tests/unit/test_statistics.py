"""Intervals hold what they promise: checked by simulation, as the docstring of lab.statistics says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lab import statistics
from lab.histogram import Histogram

Noise = Callable[[np.random.Generator, int], NDArray[np.float64]]
RUNS = 150
CONFIDENCE = 0.95


def normal(random: np.random.Generator, rounds: int) -> NDArray[np.float64]:
    return random.normal(0, 0.02, rounds)


def heavy_tailed(random: np.random.Generator, rounds: int) -> NDArray[np.float64]:
    """One round in ten is far off, as when a neighbour of the virtual machine is busy."""
    outlying = (random.random(rounds) < 0.1) * random.exponential(0.1, rounds) * random.choice([-1, 1], rounds)
    return random.normal(0, 0.02, rounds) + outlying


def skewed(random: np.random.Generator, rounds: int) -> NDArray[np.float64]:
    return random.exponential(0.03, rounds) - np.log(2) * 0.03


@pytest.mark.parametrize("rounds", [6, 10, 20])
@pytest.mark.parametrize("noise", [normal, heavy_tailed, skewed])
def test_a_ratio_s_interval_covers_the_true_one(noise: Noise, rounds: int) -> None:
    """Both contenders drift together, which pairing takes out, and are disturbed each by itself."""
    random, covered = np.random.default_rng(rounds), 0
    for _ in range(RUNS):
        drift = 100 * np.exp(np.cumsum(random.normal(0, 0.05, rounds)))
        own = drift * 0.8 * np.exp(noise(random, rounds))
        found = statistics.ratio(list(own), list(drift), confidence=CONFIDENCE)
        covered += found.contains(0.8)
    assert covered / RUNS >= 0.91


def test_two_of_the_same_differ_by_nothing_in_eighteen_of_twenty() -> None:
    random, containing = np.random.default_rng(1), 0
    for _ in range(20):
        own, other = (100 * np.exp(heavy_tailed(random, 10)) for _ in range(2))
        containing += statistics.ratio(list(own), list(other), confidence=CONFIDENCE).contains(1)
    assert containing >= 18


def test_a_difference_is_found_though_each_figure_drifts_by_more() -> None:
    drift = [100.0, 130, 160, 120, 90, 140, 150, 110]
    found = statistics.difference([value + 5 for value in drift], drift, confidence=CONFIDENCE)
    assert (found.value, found.low, found.high) == (5, 5, 5)


def test_fewer_than_six_rounds_make_no_interval() -> None:
    found = statistics.single([1, 2, 3, 4, 5], confidence=CONFIDENCE)
    assert (found.value, found.low, found.high, found.half_width) == (3, None, None, None)
    assert not found.contains(3)


@given(st.lists(st.floats(1, 1e6), min_size=6, max_size=30))
def test_an_interval_is_the_same_each_time_and_lies_within_the_rounds(values: list[float]) -> None:
    found = statistics.single(values, confidence=CONFIDENCE)
    assert found == statistics.single(values, confidence=CONFIDENCE)
    assert found.low is not None
    assert found.high is not None
    assert min(values) <= found.low <= found.value <= found.high <= max(values)


def test_more_confidence_takes_a_wider_interval() -> None:
    values = [10.0, 11, 12, 9, 10, 13, 8, 10, 11, 12]
    narrow, wide = (statistics.single(values, confidence=share) for share in (0.8, 0.99))
    assert wide.low is not None
    assert narrow.low is not None
    assert wide.low < narrow.low


# ---- quantiles ----------------------------------------------------------------------------------------


def latencies(random: np.random.Generator, shift: float = 0) -> Histogram:
    """Thousand latencies around 100 us, with a tail."""
    values = random.lognormal(np.log(100_000), 0.5, 1000) + shift
    return Histogram({int(value): 1 for value in values})


def test_a_quantile_is_that_of_all_rounds_together() -> None:
    rounds = [Histogram({1_000_000: 90, 9_000_000: 10}), Histogram({1_000_000: 99, 9_000_000: 1})] * 3
    assert statistics.quantile(rounds, 0.9, confidence=CONFIDENCE).value == pytest.approx(1e6, rel=0.001)
    assert statistics.quantile(rounds, 0.95, confidence=CONFIDENCE).value == pytest.approx(9e6, rel=0.001)


def test_the_interval_of_a_difference_of_quantiles_covers_the_true_one() -> None:
    random, covered = np.random.default_rng(3), 0
    for _ in range(25):
        own = [latencies(random, 10_000) for _ in range(8)]
        other = [latencies(random) for _ in range(8)]
        found = statistics.quantile_difference(own, other, 0.5, confidence=CONFIDENCE)
        covered += found.contains(10_000)
    assert covered >= 22


def test_a_ratio_of_quantiles_of_the_same_is_one() -> None:
    rounds = [latencies(np.random.default_rng(seed)) for seed in range(6)]
    found = statistics.quantile_difference(rounds, rounds, 0.99, confidence=CONFIDENCE, ratio=True)
    assert (found.value, found.low, found.high) == (1, 1, 1)


# ---- outliers -----------------------------------------------------------------------------------------


def test_outliers_are_named_and_move_nothing() -> None:
    values = [100.0, 101, 99, 100, 102, 98, 300]
    assert statistics.outliers(values) == [7]
    assert statistics.single(values, confidence=CONFIDENCE).value == 100


def test_the_only_one_that_differs_is_an_outlier() -> None:
    assert statistics.outliers([5.0] * 9 + [500]) == [10]


def test_an_even_run_has_no_outliers() -> None:
    assert statistics.outliers([5.0] * 10) == []
    assert statistics.outliers([1.0, 100]) == []
