"""What counts as good enough: intervals within bounds, and that nothing unproven or disturbed ever passes or fails."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lab.histogram import Histogram
from lab.samples import Better, Quantity, Sample
from lab.scenario import Target, Valid
from lab.units import Quantity as Figure
from lab.verdict import Evidence, Exit, Outcome, Validity, Verdict, decided, exit_code, judge, validity

RATE = Quantity("requests/s", Better.HIGHER)
TIME = Quantity("ns", Better.LOWER)
LATENCY = Quantity("us", Better.LOWER)
LIMITS = Valid(steal=None, foreign_cpu=None)
STEADY = [100.0, 101, 99, 100, 102, 98, 100, 101]


def rounds(values: list[float], **fields: Any) -> list[Sample]:
    return [Sample(value, **fields) for value in values]


def scaled(factor: float) -> list[float]:
    return [factor * value for value in STEADY]


def verdict(
    samples: dict[str, list[float]], quantity: Quantity = RATE, *, evidence: dict[str, Any] | None = None, **target: Any
) -> Verdict:
    """Judge a target on the measure ``m``; its samples are valid and undisturbed unless ``evidence`` says otherwise."""
    bounds = {name: Figure.parse(target.pop(name)) for name in ("min", "max") if name in target}
    one = Target(metric=target.pop("metric", "m.median"), of=target.pop("of", "a"), **bounds, **target)
    given = Evidence(quantity, {name: rounds(values) for name, values in samples.items()}, planned=8, limits=LIMITS)
    return judge(one, replace(given, **(evidence or {})))


# ---- bounds and intervals -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "bounds", "outcome"),
    [
        (0.9, {"min": 0.75}, Outcome.PASS),
        (0.6, {"min": 0.75}, Outcome.FAIL),
        (0.9, {"max": 0.95, "min": 0.8}, Outcome.PASS),
        (0.9, {"max": 0.8}, Outcome.FAIL),
    ],
)
def test_a_ratio_passes_or_fails_with_its_whole_interval(
    factor: float, bounds: dict[str, float], outcome: Outcome
) -> None:
    found = verdict({"a": scaled(factor), "b": STEADY}, ratio_to="b", **bounds)
    assert (found.outcome, found.terms, found.unit) == (outcome, "a ÷ b", "")
    assert found.measured == pytest.approx(factor)
    assert (found.own, found.baseline, found.figures_unit) == (factor * 100, 100, "requests/s")


def test_a_bound_within_the_interval_decides_nothing() -> None:
    wide = [60.0, 70, 80, 90, 65, 85, 75, 72]
    found = verdict({"a": wide, "b": [100.0] * 8}, ratio_to="b", min=0.75)
    assert found.outcome is Outcome.INCONCLUSIVE
    assert "a bound lies within the interval" in found.reason
    assert not decided(found)


def test_a_difference_is_judged_in_the_measure_s_unit() -> None:
    found = verdict({"a": [value + 150 for value in STEADY], "b": STEADY}, TIME, over="b", max="0.2us")
    assert (found.outcome, found.measured, found.maximum, found.unit) == (Outcome.PASS, 150, pytest.approx(200), "ns")


def test_a_contender_by_itself() -> None:
    assert verdict({"a": STEADY}, min="1k").outcome is Outcome.FAIL
    assert verdict({"a": STEADY}, min=90).outcome is Outcome.PASS


def test_pairing_takes_drift_out() -> None:
    drift = [100.0, 200, 50, 400, 100, 300, 25, 80]
    found = verdict({"a": [0.8 * value for value in drift], "b": drift}, ratio_to="b", min=0.79, max=0.81)
    assert found.outcome is Outcome.PASS


def test_a_quantile_of_all_latencies() -> None:
    def latencies(us: int) -> list[Sample]:
        return rounds([us] * 8, histogram=Histogram({us * 1000: 95, 10 * us * 1000: 5}))

    evidence = {"samples": {"a": latencies(60), "b": latencies(50)}}
    found = verdict({}, LATENCY, evidence=evidence, metric="m.p99", over="b", max="200us")
    assert found.outcome is Outcome.PASS
    assert found.measured == pytest.approx(100, rel=0.01)
    assert found.own == pytest.approx(600, rel=0.01)


def test_another_quantity_of_the_samples() -> None:
    samples = {"a": rounds(STEADY, quantities={"cpu": 12.0}), "b": rounds(STEADY, quantities={"cpu": 10.0})}
    found = verdict({}, LATENCY, evidence={"samples": samples}, metric="m.cpu.median", ratio_to="b", max=1.1)
    assert (found.outcome, found.measured) == (Outcome.FAIL, pytest.approx(1.2))


def test_cells_are_compared_with_each_other() -> None:
    evidence = {"baseline": rounds(STEADY)}
    found = verdict({"a": scaled(1.1)}, evidence=evidence, against={"routes": 1}, max=1.2)
    assert (found.outcome, found.terms) == (Outcome.PASS, "a ÷ a at routes 1")
    assert verdict({"a": STEADY}, against={"routes": 1}, max=1.2).outcome is Outcome.NOT_MEASURED


# ---- what keeps a verdict from being made --------------------------------------------------------------


def test_a_disturbed_sample_neither_passes_nor_fails() -> None:
    flagged = [*rounds(STEADY[:-1]), Sample(100, flags=("other programs used 90% of a CPU (limit 5%)",))]
    for bound in (0.5, 2.0):
        found = verdict({}, evidence={"samples": {"a": flagged, "b": rounds(STEADY)}}, ratio_to="b", min=bound)
        assert found.outcome is Outcome.INCONCLUSIVE
        assert "a, round 8: other programs used 90% of a CPU" in found.reason


def test_an_invalid_sample_makes_a_target_not_valid() -> None:
    wrong = [*rounds(STEADY[:-1]), Sample(100, valid=False, reason="wrk saw errors: 3 status")]
    found = verdict({}, evidence={"samples": {"a": wrong, "b": rounds(STEADY)}}, ratio_to="b", min=0.5)
    assert (found.outcome, found.reason) == (Outcome.NOT_VALID, "a, round 8: wrk saw errors: 3 status")


def test_too_few_rounds_are_not_valid() -> None:
    assert verdict({"a": STEADY[:7]}, min=90).reason == "a: only 7 of 8 rounds"
    found = verdict({"a": STEADY[:5]}, evidence={"planned": 5}, min=90)
    assert (found.outcome, found.reason) == (Outcome.NOT_VALID, "5 rounds make no interval, 6 do")


def test_twice_the_work_must_give_the_same() -> None:
    limits = Valid(steal=None, foreign_cpu=None, n_vs_2n=0.05)
    for factor, outcome in ((1.02, Outcome.PASS), (1.3, Outcome.NOT_VALID)):
        evidence = {"limits": limits, "doubled": {"a": rounds(scaled(factor)[:3])}}
        found = verdict({"a": STEADY}, evidence=evidence, min=90)
        assert found.outcome is outcome
    assert "twice the work changes the result by 30.0% (limit 5%)" in found.reason


def test_a_wide_interval_is_inconclusive_where_the_scenario_says_so() -> None:
    wide = [80.0, 120, 85, 115, 90, 110, 95, 105]
    limits = Valid(steal=None, foreign_cpu=None, ci_half_width=0.05)
    samples = {"a": wide, "b": [100.0] * 8}
    assert verdict(samples, ratio_to="b", min=0.5).outcome is Outcome.PASS
    found = verdict(samples, evidence={"limits": limits}, ratio_to="b", min=0.5)
    assert found.outcome is Outcome.INCONCLUSIVE
    assert "(limit 5%)" in found.reason


def test_too_few_rounds_are_not_valid_whatever_the_floor() -> None:
    evidence = {"planned": 5, "floor": 1e9}
    found = verdict({"a": STEADY[:5], "b": STEADY[:5]}, evidence=evidence, over="b", max=200)
    assert found.outcome is Outcome.NOT_VALID


@pytest.mark.parametrize(
    ("floor", "target", "outcome"),
    [
        (0.3, {"ratio_to": "b", "min": 0.75}, Outcome.NOT_RESOLVABLE),
        (0.2, {"ratio_to": "b", "min": 0.75}, Outcome.PASS),
        (250.0, {"over": "b", "max": 200}, Outcome.NOT_RESOLVABLE),
        (150.0, {"over": "b", "max": 200}, Outcome.PASS),
        (1e9, {"min": 90}, Outcome.PASS),
    ],
)
def test_what_two_of_the_same_differ_by_cannot_be_resolved(
    floor: float, target: dict[str, Any], outcome: Outcome
) -> None:
    found = verdict({"a": STEADY, "b": STEADY}, evidence={"floor": floor}, **target)
    assert found.outcome is outcome
    assert found.floor == floor


def test_two_means_must_agree() -> None:
    def walled(own: float, wall: float) -> list[Sample]:
        return [Sample(own + noise / 10, quantities={"wall": wall + noise / 10}) for noise in STEADY]

    for wall, outcome in ((310.0, Outcome.PASS), (400.0, Outcome.NOT_VALID)):
        samples = {"a": walled(250, wall), "b": walled(100, 150)}
        found = verdict({}, TIME, evidence={"samples": samples, "means": "wall"}, over="b", max="200ns")
        assert found.outcome is outcome, found
    assert "two means disagree: 150 ns, but wall says 250 ns" in found.reason


def test_what_was_not_measured_says_so() -> None:
    found = verdict({"a": STEADY}, ratio_to="b", min=0.5)
    assert (found.outcome, found.reason) == (Outcome.NOT_MEASURED, "no samples of b")


def test_outliers_are_told() -> None:
    assert verdict({"a": [*STEADY[:-1], 500]}, min=90).outliers == (8,)


# ---- the whole run ------------------------------------------------------------------------------------


def test_a_run_is_valid_noisy_or_invalid() -> None:
    assert validity({"m of a": rounds(STEADY)}, []) == (Validity.VALID, ())
    noisy = {"m of a": [*rounds(STEADY), Sample(1, flags=("steal",))]}
    assert validity(noisy, []) == (Validity.NOISY, ("m of a, round 9: steal",))
    wrong = {"m of a": [Sample(1, valid=False, reason="no answer", flags=("steal",))]}
    assert validity(wrong, []) == (Validity.INVALID, ("m of a, round 1: no answer",))
    assert validity({}, [verdict({"a": STEADY[:7]}, min=90)])[0] is Validity.INVALID


@pytest.mark.parametrize(
    ("checks", "outcomes", "code"),
    [
        ([True], [], Exit.PASSED),
        ([True], [Outcome.PASS, Outcome.NOT_MEASURED, Outcome.NOT_RESOLVABLE], Exit.PASSED),
        ([True, False], [Outcome.PASS], Exit.FAILED),
        ([True], [Outcome.FAIL, Outcome.NOT_VALID], Exit.FAILED),
        ([True], [Outcome.PASS, Outcome.NOT_VALID], Exit.NOT_VALID),
        ([True], [Outcome.PASS, Outcome.INCONCLUSIVE], Exit.NOT_VALID),
    ],
)
def test_exit_codes(checks: list[bool], outcomes: list[Outcome], code: Exit) -> None:
    assert exit_code(checks, outcomes) is code
