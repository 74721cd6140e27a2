"""Samples and targets in, verdicts out.

A verdict rests on an interval, not on a figure: *pass* if the whole interval lies within the target's bounds, *fail* if
it lies wholly outside, *inconclusive* if a bound lies inside it. Three things keep a verdict from being made at all:

* *not valid*: a sample is wrong (the generator saw errors, the program counted other packets than were sent), twice the
  work gives another result, or there are too few rounds for an interval. What was measured is something else than was
  asked for.
* *inconclusive*, too, if samples stayed disturbed after retries (``Sample.flags``), or the interval is wider than the
  scenario allows. A disturbed machine makes a run NOISY, never slow: such a target neither passes nor fails.
* *not resolvable*: the machine's floor. Two runs of the same thing (A/A) differ by this much here; a target whose bound
  asks to tell smaller differences apart cannot be judged on this machine, whatever the interval says.

The three states are kept apart from pass and fail because they say something about the measurement, not about what was
measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Any

from lab import statistics
from lab.histogram import Histogram
from lab.samples import QUANTILES, Quantity, Sample
from lab.statistics import Estimate
from rauta.units import SECONDS

if TYPE_CHECKING:
    from lab.scenario import Target, Valid

MEANS_SHARE, MEANS_NS = 0.15, 20.0
"""how far two independent means may be apart, whichever is more, when their intervals do not overlap: in 40 samples of
four kinds of frame they were 4 to 11 ns apart"""

Rounds = Sequence[Sample]
"""one contender's samples of one measure, by round"""


class Outcome(StrEnum):
    """What a check or a target came to."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    NOT_RESOLVABLE = "not resolvable"
    NOT_VALID = "not valid"
    NOT_MEASURED = "not measured"


class Validity(StrEnum):
    """Whether a run's numbers are to be believed; apart from whether they are good."""

    VALID = "VALID"
    NOISY = "NOISY"
    INVALID = "INVALID"


class Exit(IntEnum):
    """Exit codes of the command line."""

    PASSED = 0
    FAILED = 1
    USAGE = 2
    NOT_VALID = 3
    INTERRUPTED = 130


@dataclass(frozen=True)
class Verdict:
    """A target, and what was measured. ``terms``: what is judged, such as "rauta" or "rauta ÷ direct"."""

    metric: str
    of: str
    terms: str
    unit: str
    """of bounds, ``measured``, ``low`` and ``high``; empty for a ratio"""
    minimum: float | None
    maximum: float | None
    confidence: float
    origin: str
    outcome: Outcome
    reason: str = ""
    measured: float | None = None
    low: float | None = None
    """of the interval ..."""
    high: float | None = None
    rounds: int = 0
    own: float | None = None
    """the contender's own figure, in the measure's unit, where ``measured`` is a ratio or a difference ..."""
    baseline: float | None = None
    """... to this one"""
    figures_unit: str = ""
    """of ``own`` and ``baseline``"""
    floor: float | None = None
    """how far A/A pairs are apart in this metric: from 1 for a ratio, from 0 for a difference"""
    outliers: tuple[int, ...] = ()
    """rounds that lie far from the others; they count like all"""
    disturbed: tuple[str, ...] = ()
    """what disturbed its samples, with the round"""
    cell: Mapping[str, Any] = field(default_factory=dict)
    """parameters of the cell that it is about"""


@dataclass(frozen=True)
class Evidence:
    """What a target is judged by."""

    quantity: Quantity
    samples: Mapping[str, Rounds]
    """of the target's measure, by contender or reference; those that were not measured are absent"""
    planned: int
    """how many rounds there should be, at least"""
    limits: Valid
    baseline: Rounds | None = None
    """the contender's own samples in another cell, where the target compares cells"""
    doubled: Mapping[str, Rounds] = field(default_factory=dict)
    """samples with twice the work, of the first rounds"""
    floor: float | None = None
    cell: Mapping[str, Any] = field(default_factory=dict)
    means: str = ""
    """the quantity that a second, independent means has measured besides; its difference must agree"""


def judge(target: Target, evidence: Evidence) -> Verdict:
    """Judge one target in one cell. The target's names are known to be right."""
    blank = _blank(target, evidence)
    needed = _needed(target, evidence)
    if missing := [name for name, rounds in needed.items() if not rounds]:
        return replace(blank, reason=f"no samples of {', '.join(missing)}")
    if problem := _problem(needed, evidence):
        return replace(blank, outcome=Outcome.NOT_VALID, reason=problem)
    estimate = _estimate(target, list(needed.values()), evidence.quantity.unit)
    judged = replace(_with_figures(blank, target, needed), measured=estimate.value, rounds=estimate.rounds)
    judged = replace(judged, low=estimate.low, high=estimate.high, disturbed=tuple(disturbed(needed)))
    if problem := _disagreement(target, evidence, estimate, list(needed.values())):
        return replace(judged, outcome=Outcome.NOT_VALID, reason=problem)
    outcome, reason = _outcome(judged, estimate, evidence.limits)
    return replace(judged, outcome=outcome, reason=reason)


def _blank(target: Target, evidence: Evidence) -> Verdict:
    """A target's verdict before anything is known."""
    unit = "" if target.is_ratio else evidence.quantity.unit
    return Verdict(
        metric=target.metric,
        of=target.of,
        terms=_terms(target),
        unit=unit,
        minimum=None if target.min is None else target.min.in_unit(unit),
        maximum=None if target.max is None else target.max.in_unit(unit),
        confidence=target.confidence,
        origin=target.origin,
        outcome=Outcome.NOT_MEASURED,
        figures_unit=evidence.quantity.unit,
        floor=evidence.floor,
        cell=evidence.cell,
    )


def _terms(target: Target) -> str:
    if target.baseline is not None:
        sign = "÷" if target.is_ratio else "−"
        return f"{target.of} {sign} {target.of} at {', '.join(f'{name} {v}' for name, v in target.baseline.items())}"
    if target.ratio_to:
        return f"{target.of} ÷ {target.ratio_to}"
    return f"{target.of} − {target.over}" if target.over else target.of


def _needed(target: Target, evidence: Evidence) -> dict[str, Rounds]:
    """The samples that a verdict rests on, by a name for each side, one for each round that both have."""
    sides: dict[str, Rounds] = {target.of: evidence.samples.get(target.of, ())}
    if target.baseline is not None:
        sides[f"{target.of} in the other cell"] = evidence.baseline or ()
    elif other := target.ratio_to or target.over:
        sides[other] = evidence.samples.get(other, ())
    rounds = min(map(len, sides.values()))
    return {name: samples[:rounds] for name, samples in sides.items()} if rounds else sides


def _problem(needed: Mapping[str, Rounds], evidence: Evidence) -> str:
    """Why these samples cannot support a verdict; empty if they can."""
    for name, rounds in needed.items():
        for number, sample in enumerate(rounds, 1):
            if not sample.valid:
                return f"{name}, round {number}: {sample.reason}"
        if len(rounds) < evidence.planned:
            return f"{name}: only {len(rounds)} of {evidence.planned} rounds"
        if (limit := evidence.limits.n_vs_2n) is not None and name in evidence.doubled:
            change = doubling(rounds, evidence.doubled[name])
            if change >= limit:
                return f"{name}: twice the work changes the result by {change:.1%} (limit {limit:.0%})"
    return ""


def doubling(rounds: Rounds, doubled: Rounds) -> float:
    """By which share a result changes when twice the work is done: the median over the rounds that have both."""
    pairs = zip(rounds, doubled, strict=False)
    return abs(statistics.median([twice.value / once.value for once, twice in pairs if once.value]) - 1)


def _values(target: Target, rounds: Rounds) -> list[float]:
    if not target.quantity:
        return [sample.value for sample in rounds]
    return [sample.quantities[target.quantity] for sample in rounds]


def _histograms(rounds: Rounds) -> list[Histogram]:
    return [sample.histogram for sample in rounds if sample.histogram is not None]


def _estimate(target: Target, sides: Sequence[Rounds], unit: str) -> Estimate:
    """What is judged, with its interval, in the quantity's unit or as a ratio."""
    confidence = target.confidence
    if target.statistic in QUANTILES:
        return _of_quantiles(target, [_histograms(side) for side in sides], unit)
    values = [_values(target, side) for side in sides]
    if len(values) == 1:
        return statistics.single(values[0], confidence=confidence, statistic=target.statistic)
    compare = statistics.ratio if target.is_ratio else statistics.difference
    return compare(values[0], values[1], confidence=confidence, statistic=target.statistic)


def _disagreement(target: Target, evidence: Evidence, estimate: Estimate, sides: Sequence[Rounds]) -> str:
    """What a second means says about a difference, if it says something else; empty if they agree."""
    if not evidence.means or target.over is None or target.quantity:
        return ""
    values = [[sample.quantities[evidence.means] for sample in side] for side in sides]
    other = statistics.difference(values[0], values[1], confidence=target.confidence)
    apart = abs(other.value - estimate.value)
    overlap = (
        None not in (other.low, other.high, estimate.low, estimate.high)
        and other.low <= estimate.high  # type: ignore[operator]
        and estimate.low <= other.high  # type: ignore[operator]
    )
    if overlap or apart <= max(MEANS_SHARE * abs(estimate.value), MEANS_NS):
        return ""
    unit = evidence.quantity.unit
    return f"two means disagree: {estimate.value:.0f} {unit}, but {evidence.means} says {other.value:.0f} {unit}"


def _of_quantiles(target: Target, sides: Sequence[Sequence[Histogram]], unit: str) -> Estimate:
    share, confidence = QUANTILES[target.statistic], target.confidence
    if len(sides) == 1:
        return statistics.quantile(sides[0], share, confidence=confidence).scaled(SECONDS["ns"] / SECONDS[unit])
    found = statistics.quantile_difference(sides[0], sides[1], share, confidence=confidence, ratio=target.is_ratio)
    return found if target.is_ratio else found.scaled(SECONDS["ns"] / SECONDS[unit])


def figure(samples: Rounds, statistic: str, quantity: str = "", unit: str = "", confidence: float = 0.95) -> Estimate:
    """One contender's own figure: a statistic over rounds, or a quantile of all latencies, with its interval."""
    if statistic in QUANTILES:
        found = statistics.quantile(_histograms(samples), QUANTILES[statistic], confidence=confidence)
        return found.scaled(SECONDS["ns"] / SECONDS[unit])
    values = [sample.quantities[quantity] if quantity else sample.value for sample in samples]
    return statistics.single(values, confidence=confidence, statistic=statistic)


def _with_figures(verdict: Verdict, target: Target, needed: Mapping[str, Rounds]) -> Verdict:
    """With both sides' own figures, and the rounds that are out of line."""
    own, *others = needed.values()
    far = statistics.outliers(_values(target, own))
    if not others:
        return replace(verdict, outliers=tuple(far))
    unit = verdict.figures_unit
    figures = [figure(side, target.statistic, target.quantity, unit).value for side in (own, others[0])]
    far += statistics.outliers(_values(target, others[0]))
    return replace(verdict, own=figures[0], baseline=figures[1], outliers=tuple(sorted(set(far))))


def disturbed(rounds: Mapping[str, Rounds]) -> list[str]:
    """What disturbed samples in spite of all retries: "direct, round 3: ..."."""
    return [
        f"{name}, round {number}: {'; '.join(sample.flags)}"
        for name, samples in rounds.items()
        for number, sample in enumerate(samples, 1)
        if sample.flags
    ]


def _outcome(verdict: Verdict, estimate: Estimate, limits: Valid) -> tuple[Outcome, str]:
    if estimate.low is None or estimate.high is None:
        return Outcome.NOT_VALID, f"{estimate.rounds} rounds make no interval, {statistics.FEWEST_ROUNDS} do"
    if verdict.floor is not None and (asked := _asked(verdict)) is not None and verdict.floor >= asked:
        floor = f"{verdict.floor:.1%}" if not verdict.unit else f"{verdict.floor:,.0f} {verdict.unit}"
        return Outcome.NOT_RESOLVABLE, f"A/A pairs differ by up to {floor} on this machine"
    if verdict.disturbed:
        return Outcome.INCONCLUSIVE, f"disturbed: {verdict.disturbed[0]}"
    if too_wide(estimate, verdict, limits):
        width = estimate.half_width or 0.0
        return Outcome.INCONCLUSIVE, f"the interval is ± {width:.1%} (limit {limits.ci_half_width:.0%})"
    low = -float("inf") if verdict.minimum is None else verdict.minimum
    high = float("inf") if verdict.maximum is None else verdict.maximum
    if low <= estimate.low and estimate.high <= high:
        return Outcome.PASS, ""
    if estimate.high < low or high < estimate.low:
        return Outcome.FAIL, ""
    return Outcome.INCONCLUSIVE, "a bound lies within the interval"


def _asked(verdict: Verdict) -> float | None:
    """The smallest difference that a comparison's bounds ask to tell apart; None for a contender's own figure."""
    if verdict.own is None:
        return None
    bounds = [bound for bound in (verdict.minimum, verdict.maximum) if bound is not None]
    return min(abs(bound) if verdict.unit else abs(bound - 1) for bound in bounds)


def too_wide(estimate: Estimate, verdict: Verdict, limits: Valid) -> bool:
    """Whether a ratio's interval is wider than the scenario allows. A difference near zero has no relative width."""
    limit, width = limits.ci_half_width, estimate.half_width
    return limit is not None and not verdict.unit and width is not None and width >= limit


def decided(verdict: Verdict) -> bool:
    """Whether more rounds would change nothing: the interval is narrow enough, and no bound lies within it."""
    if verdict.measured is None or verdict.low is None:
        return verdict.outcome in (Outcome.NOT_MEASURED, Outcome.NOT_RESOLVABLE)
    return verdict.outcome is not Outcome.INCONCLUSIVE or bool(verdict.disturbed)


def validity(samples: Mapping[str, Rounds], verdicts: Iterable[Verdict]) -> tuple[Validity, tuple[str, ...]]:
    """Whether a run is to be believed, and why not. (A wide interval is the target's matter: it is inconclusive.)

    Args:
        samples: all, by a name for each series.
        verdicts: all.
    """
    wrong = [
        f"{name}, round {number}: {one.reason}"
        for name, rounds in samples.items()
        for number, one in enumerate(rounds, 1)
        if not one.valid
    ]
    wrong += [f"{one.metric}: {one.reason}" for one in verdicts if one.outcome is Outcome.NOT_VALID]
    if wrong:
        return Validity.INVALID, tuple(dict.fromkeys(wrong))
    noisy = disturbed(samples)
    return (Validity.NOISY, tuple(noisy)) if noisy else (Validity.VALID, ())


def exit_code(checks: Iterable[bool], outcomes: Iterable[Outcome]) -> Exit:
    """A run's exit code: a failure outweighs what could not be decided. What was not measured on purpose, or cannot be
    resolved on this machine, does not count.

    Args:
        checks: whether each check passed.
        outcomes: of the targets.
    """
    seen = set(outcomes)
    if not all(checks) or Outcome.FAIL in seen:
        return Exit.FAILED
    return Exit.NOT_VALID if seen & {Outcome.NOT_VALID, Outcome.INCONCLUSIVE} else Exit.PASSED
