"""What changed between two runs, metric by metric; lab.attribution says in which layer it arises.

Two runs were not made in the same minutes, so their figures are compared *in terms of what they were measured beside*:
a program's time as the difference to the bare program of the same round, everything else as the ratio to ``direct`` (or
to a bare program) of the same round, where a run has such a baseline. What slowed the machine down slowed both. The
medians of the two runs are then compared by an unpaired bootstrap.

A change is judged against a *resolution* r: the smallest change that matters, 5 % unless asked for otherwise, or the
machine's floor (lab.noise) where that is larger. The interval of the change lies

* wholly beyond 1 + r (or below 1 / (1 + r)): it is *better* or *worse*;
* wholly within: it is *unchanged*, which is a finding, too;
* across a bound: *inconclusive*. So is what was disturbed, what was not valid, and latency at another load.

Testing whether the interval holds 1 would not do: with enough rounds it never does, since two runs of the same program
differ by a percent or two in where their memory lies.

Runs whose environments differ are refused (lab.comparable). Who insists gets both figures, and no judgement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from lab import comparable, results, statistics
from lab.comparable import Difference
from lab.errors import NotComparable
from lab.judging import Floors, floor_key
from lab.kept import Kept
from lab.samples import QUANTILES, Better, Quantity, Sample
from lab.statistics import Estimate
from rauta.units import SECONDS

RESOLUTION = 0.05
CONFIDENCE = 0.95
BASELINES = ("direct", "xdp-tx", "xdp-drop")
"""what others are measured beside, in the order of preference"""
GENERATORS_OWN = ("late",)
"""quantities that tell of the load generator, not of what was measured"""
TAILS = tuple(name for name in QUANTILES if name != "p50")
"""quantiles of each round's latencies, compared like quantities; the median is the measure's own"""
LOAD = "rate"
"""the quantity of open-loop measures that says at which load a latency was measured"""


class Outcome(StrEnum):
    """What became of a metric."""

    BETTER = "better"
    WORSE = "worse"
    CHANGED = "changed"
    UNCHANGED = "unchanged"
    INCONCLUSIVE = "inconclusive"
    NOT_JUDGED = "not judged"


@dataclass(frozen=True)
class Change:
    """One metric in both runs. ``terms``: what is compared, such as "rauta", "rauta − xdp-tx" or "rauta ÷ direct"."""

    measure: str
    quantity: str
    contender: str
    params: Mapping[str, Any]
    layer: str
    better: Better
    terms: str
    unit: str
    """of ``before`` and ``after``; empty for a ratio"""
    before: Estimate
    after: Estimate
    change: Estimate
    """``after`` ÷ ``before``, or their difference"""
    is_ratio: bool
    resolution: float
    """smallest change that counts, as a share"""
    outcome: Outcome
    reason: str = ""

    @property
    def metric(self) -> str:
        """Measure and quantity."""
        return ".".join(filter(None, (self.measure, self.quantity)))


@dataclass(frozen=True)
class Comparison:
    """Two runs, metric by metric."""

    first: str
    second: str
    environments: Sequence[Difference]
    """in what they differ; nothing is judged then"""
    changes: Sequence[Change]
    not_compared: Mapping[str, str] = field(default_factory=dict)
    """by metric, why not: in what its identity differs, or that only one run has it"""


@dataclass(frozen=True)
class _Key:
    """What makes two metrics candidates for a comparison."""

    measure: str
    quantity: str
    contender: str
    params: str

    def __str__(self) -> str:
        where = "" if self.params == "{}" else f" at {self.params}"
        return f"{'.'.join(filter(None, (self.measure, self.quantity)))} of {self.contender}{where}"


@dataclass(frozen=True)
class _Series:
    """A metric in one run."""

    kept: Kept
    cell: int
    layer: str
    meaning: Quantity
    identity: Mapping[str, Any]


def compare(
    first: Kept, second: Kept, *, resolution: float = RESOLUTION, floors: Floors | None = None, force: bool = False
) -> Comparison:
    """Compare a run with an earlier one.

    Args:
        first: the earlier.
        second: the later.
        resolution: smallest change that matters, as a share.
        floors: of this machine, see lab.noise.
        force: where the environments differ, put the figures side by side without judging them.

    Raises:
        NotComparable: the environments differ, or no metric is the same in both; every differing field is named.
    """
    if not force:
        comparable.refuse(first.content, second.content)
    environments = comparable.differences(first.environment, second.environment)
    before, after = _series(first), _series(second)
    not_compared = {str(key): f"only in {first.id}" for key in before if key not in after}
    not_compared |= {str(key): f"only in {second.id}" for key in after if key not in before}
    changes = []
    for key in (key for key in before if key in after):
        found = list(comparable.differing("", before[key].identity, after[key].identity))
        if found:
            not_compared[str(key)] = "; ".join(map(str, found))
            continue
        change = _change(key, before[key], after[key], resolution, floors or {})
        changes.append(replace(change, outcome=Outcome.NOT_JUDGED, reason="") if environments else change)
    if not changes:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in not_compared.items()) or "nothing was measured"
        raise NotComparable(f"comparing {first.id} with {second.id}", f"no metric is the same: {reasons}")
    return Comparison(first.id, second.id, environments, changes, not_compared)


def _series(kept: Kept) -> dict[_Key, _Series]:
    found = {}
    for (cell, measure), described in kept.measures.items():
        params = results.cell_text(kept.params(cell))
        for contender, samples in kept.samples(cell, measure).items():
            identity = comparable.identity(kept.cells[cell], measure, contender, described)
            quantities = dict.fromkeys(TAILS, described.quantities[""]) | dict(described.quantities)
            for name, meaning in quantities.items():
                known = any(_value(sample, name, meaning.unit) is not None for sample in samples)
                if known and name not in GENERATORS_OWN:
                    meant = {"unit": meaning.unit, "better": str(meaning.better), **identity}
                    series = _Series(kept, cell, described.layer, meaning, meant)
                    found[_Key(measure, name, contender, params)] = series
    return found


# ---- one metric ---------------------------------------------------------------------------------------


def _change(key: _Key, before: _Series, after: _Series, resolution: float, floors: Floors) -> Change:
    sign, baseline = _terms(key, before, after)
    values = [_values(key, series, sign, baseline) for series in (before, after)]
    estimates = [_estimate(found) for found in values]
    is_ratio = all(value > 0 for found in values for value in found)
    compare_ = statistics.unpaired_ratio if is_ratio else statistics.unpaired_difference
    enough = all(values)
    change = compare_(values[1], values[0], confidence=CONFIDENCE) if enough else _estimate([])
    resolution = max(resolution, _floor(key, before, sign, estimates, floors))
    outcome, reason = _judged(change, estimates, is_ratio, resolution, before.meaning.better)
    if problem := _problem(key, before, after, resolution, baseline):
        outcome, reason = Outcome.INCONCLUSIVE, problem
    return Change(
        measure=key.measure,
        quantity=key.quantity,
        contender=key.contender,
        params=before.kept.params(before.cell),
        layer=before.layer,
        better=before.meaning.better,
        terms=f"{key.contender} {sign} {baseline}" if baseline else key.contender,
        unit="" if sign == "÷" else before.meaning.unit,
        before=estimates[0],
        after=estimates[1],
        change=change,
        is_ratio=is_ratio,
        resolution=resolution,
        outcome=outcome,
        reason=reason,
    )


def _terms(key: _Key, before: _Series, after: _Series) -> tuple[str, str]:
    """How a metric is compared with its baseline, and with which; two empty texts: by itself."""
    present = [set(series.kept.samples(series.cell, key.measure)) for series in (before, after)]
    both = present[0] & present[1] - {key.contender}
    reference = before.identity["measure"].get("reference")
    if reference in both:
        return "−", str(reference)
    if key.contender.partition("#")[0] in BASELINES:
        return "", ""
    for name in BASELINES:
        if name in both and all(_all_positive(key, series, name) for series in (before, after)):
            return "÷", name
    return "", ""


def _all_positive(key: _Key, series: _Series, contender: str) -> bool:
    samples = series.kept.by_round(series.cell, key.measure, contender).values()
    found = [_value(sample, key.quantity, series.meaning.unit) for sample in samples]
    return all(value is not None and value > 0 for value in found)


def _value(sample: Sample, quantity: str, unit: str) -> float | None:
    """One of a sample's numbers; None if it has none of that name."""
    if not quantity:
        return sample.value
    if quantity in sample.quantities or quantity not in TAILS or sample.histogram is None:
        return sample.quantities.get(quantity)
    return sample.histogram.quantile(QUANTILES[quantity]) * SECONDS["ns"] / SECONDS[unit]


def _values(key: _Key, series: _Series, sign: str, baseline: str) -> list[float]:
    """A value for each round, in the terms of the comparison."""
    mine = _by_round(key, series, key.contender)
    if not baseline:
        return list(mine.values())
    beside = _by_round(key, series, baseline)
    pairs = [(mine[number], beside[number]) for number in mine if number in beside]
    return [value / other if sign == "÷" else value - other for value, other in pairs]


def _by_round(key: _Key, series: _Series, contender: str) -> dict[int, float]:
    samples = series.kept.by_round(series.cell, key.measure, contender).items()
    found = ((number, _value(one, key.quantity, series.meaning.unit)) for number, one in samples)
    return {number: value for number, value in found if value is not None}


def _estimate(values: Sequence[float]) -> Estimate:
    return statistics.single(values, confidence=CONFIDENCE) if values else Estimate(float("nan"), None, None, 0)


def _floor(key: _Key, series: _Series, sign: str, estimates: Sequence[Estimate], floors: Floors) -> float:
    """How far A/A pairs are apart in this metric, as a share; 0 if unknown."""
    settings = series.kept.cells[series.cell]["measure"][key.measure]
    metric = ".".join(filter(None, (key.measure, key.quantity, "median")))
    found = floors.get(floor_key(settings, metric, "difference" if sign == "−" else "ratio"), 0.0)
    return found / abs(estimates[0].value) if sign == "−" and estimates[0].value else found


def _judged(
    change: Estimate, estimates: Sequence[Estimate], is_ratio: bool, resolution: float, better: Better
) -> tuple[Outcome, str]:
    if change.low is None or change.high is None:
        return Outcome.INCONCLUSIVE, f"{change.rounds} rounds make no interval, {statistics.FEWEST_ROUNDS} do"
    magnitude = max(abs(one.value) for one in estimates)
    high = 1 + resolution if is_ratio else resolution * magnitude
    low = 1 / high if is_ratio else -high
    if low <= change.low and change.high <= high:
        return Outcome.UNCHANGED, ""
    if change.low <= high and low <= change.high:
        return Outcome.INCONCLUSIVE, f"the interval reaches across ± {resolution:.0%}"
    if better is Better.NEITHER:
        return Outcome.CHANGED, ""
    return (Outcome.BETTER if (change.low > high) == (better is Better.HIGHER) else Outcome.WORSE), ""


def _problem(key: _Key, before: _Series, after: _Series, resolution: float, baseline: str) -> str:
    """Why nothing can be said about a metric; empty if something can."""
    for series in (before, after):
        for contender in filter(None, (key.contender, baseline)):
            for number, sample in series.kept.by_round(series.cell, key.measure, contender).items():
                if not sample.valid or sample.flags:
                    what = sample.reason if not sample.valid else "; ".join(sample.flags)
                    return f"{series.kept.id}, {contender}, round {number}: {what}"
    loads = [_loads(key, series) for series in (before, after)]
    if key.quantity != LOAD and all(loads):
        first, second = map(statistics.median, loads)
        if not first / (1 + resolution) <= second <= first * (1 + resolution):
            return f"at different loads: {first:,.0f} and {second:,.0f} requests/s"
    return ""


def _loads(key: _Key, series: _Series) -> list[float]:
    samples = series.kept.by_round(series.cell, key.measure, key.contender).values()
    return [sample.quantities[LOAD] for sample in samples if LOAD in sample.quantities]
