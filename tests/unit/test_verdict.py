"""What counts as good enough: pairing by round, bounds and units, and that nothing unproven ever passes."""

from __future__ import annotations

from typing import Any

import pytest

from lab.samples import Sample
from lab.scenario import Target
from lab.units import Quantity
from lab.verdict import Exit, Outcome, exit_code, judge


def target(**fields: Any) -> Target:
    return Target.model_validate({"metric": "keepalive.median", **fields})


def rounds(*values: float) -> list[Sample]:
    return [Sample(value) for value in values]


def test_a_ratio_is_taken_within_each_round() -> None:
    # The machine doubles its speed in round 2. The medians' ratio, 200/200, would hide that each round says 0.8.
    samples = {"rauta": rounds(80, 200, 240), "direct": rounds(100, 250, 300)}
    verdict = judge(target(ratio_to="direct", min=0.75), "requests/s", samples, planned=3)
    assert verdict.outcome is Outcome.PASS
    assert verdict.measured == pytest.approx(0.8)
    assert (verdict.lowest, verdict.highest) == (pytest.approx(0.8), pytest.approx(0.8))
    assert (verdict.own, verdict.baseline) == (200, 250)
    assert verdict.unit == ""


def test_a_difference_keeps_the_unit_of_its_measure() -> None:
    samples = {"rauta": rounds(300, 310, 290), "xdp-tx": rounds(150, 180, 150)}
    verdict = judge(target(over="xdp-tx", max="200ns"), "ns", samples, planned=3)
    assert verdict.outcome is Outcome.PASS
    assert verdict.measured == 140
    assert (verdict.lowest, verdict.highest) == (130, 150)
    assert (verdict.unit, verdict.maximum) == ("ns", pytest.approx(200))


@pytest.mark.parametrize(
    ("bounds", "value", "outcome"),
    [
        ({"min": 0.75}, 0.75, Outcome.PASS),
        ({"min": 0.75}, 0.7499, Outcome.FAIL),
        ({"max": 3}, 3, Outcome.PASS),
        ({"max": 3}, 3.001, Outcome.FAIL),
        ({"min": 1, "max": 3}, 2, Outcome.PASS),
        ({"min": 1, "max": 3}, 4, Outcome.FAIL),
        ({"min": "1M"}, 999_999, Outcome.FAIL),
        ({"min": "1M"}, 1_000_000, Outcome.PASS),
    ],
)
def test_bounds_include_their_ends(bounds: dict[str, Any], value: float, outcome: Outcome) -> None:
    assert judge(target(**bounds), "requests/s", {"rauta": rounds(value)}, planned=1).outcome is outcome


def test_a_bound_in_another_unit_of_time_is_converted() -> None:
    samples = {"rauta": rounds(9_999)}
    assert judge(target(max="10us"), "ns", samples, planned=1).outcome is Outcome.PASS
    assert judge(target(max="9us"), "ns", samples, planned=1).outcome is Outcome.FAIL


def test_one_slow_round_does_not_decide_a_median() -> None:
    samples = {"rauta": rounds(100, 100, 1)}
    assert judge(target(min=90), "requests/s", samples, planned=3).outcome is Outcome.PASS
    slowest = judge(target(metric="keepalive.min", min=90), "requests/s", samples, planned=3)
    assert (slowest.outcome, slowest.measured) == (Outcome.FAIL, 1)


def test_a_sample_with_errors_is_never_a_pass() -> None:
    bad = Sample(1e9, valid=False, reason="3 answers were not 2xx")
    verdict = judge(target(min=1), "requests/s", {"rauta": [*rounds(5, 5), bad]}, planned=3)
    assert verdict.outcome is Outcome.NOT_VALID
    assert verdict.reason == "rauta, round 3: 3 answers were not 2xx"


def test_errors_of_the_contender_that_it_is_compared_with_count_too() -> None:
    bad = Sample(1.0, valid=False, reason="2 sockets timed out")
    verdict = judge(target(ratio_to="direct", min=0.75), "requests/s", {"rauta": rounds(5), "direct": [bad]}, planned=1)
    assert verdict.outcome is Outcome.NOT_VALID
    assert "direct, round 1: 2 sockets timed out" in verdict.reason


def test_a_measurement_of_nothing_is_not_valid() -> None:
    verdict = judge(target(max="10us"), "ns", {"rauta": rounds(0.0)}, planned=1)
    assert verdict.outcome is Outcome.NOT_VALID


def test_missing_rounds_are_not_valid() -> None:
    verdict = judge(target(min=1), "requests/s", {"rauta": rounds(5, 5)}, planned=10)
    assert (verdict.outcome, verdict.reason) == (Outcome.NOT_VALID, "rauta: only 2 of 10 rounds")


def test_what_was_not_measured_is_said() -> None:
    verdict = judge(target(ratio_to="direct", min=0.75), "requests/s", {"rauta": rounds(5)}, planned=1)
    assert (verdict.outcome, verdict.reason) == (Outcome.NOT_MEASURED, "no samples of direct")
    assert verdict.measured is None


@pytest.mark.parametrize(
    ("checks", "outcomes", "code"),
    [
        ([True, True], [Outcome.PASS, Outcome.PASS], Exit.PASSED),
        ([], [], Exit.PASSED),
        ([True], [Outcome.NOT_MEASURED], Exit.PASSED),
        ([True], [Outcome.PASS, Outcome.NOT_VALID], Exit.NOT_VALID),
        ([True], [Outcome.NOT_VALID, Outcome.FAIL], Exit.FAILED),
        ([False], [Outcome.PASS], Exit.FAILED),
        ([False], [Outcome.NOT_VALID], Exit.FAILED),
    ],
)
def test_exit_code(checks: list[bool], outcomes: list[Outcome], code: Exit) -> None:
    assert exit_code(checks, outcomes) is code


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [("10us", "ns", 10_000), ("0.5ms", "us", 500), ("1M", "requests/s", 1e6), (0.75, "", 0.75), ("200 ns", "ns", 200)],
)
def test_quantities_convert(text: object, unit: str, value: float) -> None:
    assert Quantity.parse(text).in_unit(unit) == pytest.approx(value)


@pytest.mark.parametrize(("text", "unit"), [("10us", "requests/s"), (5, "ns")])
def test_times_and_counts_do_not_mix(text: object, unit: str) -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        Quantity.parse(text).in_unit(unit)


@pytest.mark.parametrize("text", ["fast", "10 parsecs", "", None, True, [1]])
def test_what_is_no_quantity_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match=r"not a number with a unit|unknown unit"):
        Quantity.parse(text)
