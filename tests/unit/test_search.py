"""The search for the highest rate that holds: it finds it, confirms it, and comes to an end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.measure.search import MAX_TRIALS, bisected


@given(st.floats(10, 1e6), st.floats(100, 1e5), st.sampled_from([0.02, 0.05, 0.2]))
def test_it_finds_the_edge_and_has_seen_it_hold_twice(edge: float, first: float, resolution: float) -> None:
    asked: list[float] = []

    def holds(rate: float) -> bool:
        asked.append(rate)
        return rate <= edge

    found = bisected(holds, first, resolution)
    assert len(asked) <= MAX_TRIALS
    if edge < first / 200:
        assert found is None or found <= edge
    else:
        assert found is not None
        assert edge / (1 + resolution) / 1.001 <= found <= edge
        assert asked.count(found) == 2


def test_a_rate_that_holds_only_once_is_not_the_answer() -> None:
    seen: set[float] = set()

    def holds(rate: float) -> bool:
        lucky = rate not in seen and rate <= 600
        seen.add(rate)
        return lucky or rate <= 500

    found = bisected(holds, 100, 0.05)
    assert found is not None
    assert found <= 500


def test_nothing_holds() -> None:
    assert bisected(lambda _: False, 1000, 0.05) is None


@pytest.mark.parametrize("p99", ["10", "< 5%", "fast"])
def test_the_bound_is_a_duration(p99: str) -> None:
    from lab.measure import Search

    with pytest.raises(ValueError, match="is no bound"):
        Search(layer="http", tool="search", cluster="web", p99=p99)
