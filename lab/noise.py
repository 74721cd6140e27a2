"""This machine's floor: by how much two runs of the very same thing differ here.

A contender may take part twice, as ``direct`` and ``direct#2``; both are measured in every round like any two. Their
ratio should be 1 and their difference 0, and whatever else their interval holds is what this machine cannot tell from
nothing. ``python -m lab noise`` runs such pairs of all contenders of a scenario, without targets, and keeps the floors;
runs on a comparable machine with the same measures are judged with them. A run with pairs of its own uses those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from lab import comparable, judging, results, statistics
from lab.histogram import Histogram
from lab.results import Record
from lab.samples import QUANTILES, Sample
from lab.scenario import Scenario
from lab.statistics import Estimate
from rauta.units import SECONDS

CONFIDENCE = 0.95


def with_twins(scenario: Scenario) -> Scenario:
    """Every contender twice, and no targets."""
    names = tuple(twin for name in scenario.contenders for twin in (name, f"{name}#2"))
    found = scenario.model_copy(update={"contenders": names, "targets": ()})
    found.routing._config = scenario.routing.config
    return found


def pairs(cells: Sequence[Scenario], record: Record) -> list[dict[str, Any]]:
    """What every A/A pair of a run came to: by measure, quantity and statistic, its ratio and its difference."""
    return [
        found
        for number, cell in enumerate(cells)
        for name in cell.measure
        if (number, name) in record.measures
        for found in _of_measure(cell, name, number, record)
    ]


def _of_measure(cell: Scenario, name: str, number: int, record: Record) -> Iterator[dict[str, Any]]:
    samples = record.samples(number, name)
    described = record.measures[number, name]
    for first, second in combinations(samples, 2):
        if first.partition("#")[0] != second.partition("#")[0]:
            continue
        rounds = min(len(samples[first]), len(samples[second]))
        if rounds < statistics.FEWEST_ROUNDS:
            continue
        own, other = samples[first][:rounds], samples[second][:rounds]
        for quantity, meaning in described.quantities.items():
            for statistic, terms, found in _compared(own, other, quantity, meaning.unit):
                metric = ".".join(filter(None, (name, quantity, statistic)))
                yield {
                    "key": judging.floor_key(cell.measure[name].model_dump(mode="json"), metric, terms),
                    "cell": dict(cell.cell),
                    "contender": first.partition("#")[0],
                    "metric": metric,
                    "terms": terms,
                    "unit": "" if terms == "ratio" else meaning.unit,
                    "value": found.value,
                    "low": found.low,
                    "high": found.high,
                    "rounds": rounds,
                    "floor": _furthest(found, 1.0 if terms == "ratio" else 0.0),
                }


def _compared(
    own: Sequence[Sample], other: Sequence[Sample], quantity: str, unit: str
) -> Iterator[tuple[str, str, Estimate]]:
    """(statistic, ratio or difference, what it came to)."""
    values = [[one.quantities.get(quantity) if quantity else one.value for one in side] for side in (own, other)]
    first, second = ([value for value in side if value is not None] for side in values)
    if len(first) == len(second) == len(own):
        yield "median", "difference", statistics.difference(first, second, confidence=CONFIDENCE)
        if all(first) and all(second):
            yield "median", "ratio", statistics.ratio(first, second, confidence=CONFIDENCE)
    histograms = [_histograms(side) for side in (own, other)]
    if quantity or not all(len(side) == len(own) for side in histograms):
        return
    for name, share in QUANTILES.items():
        for ratio in (False, True):
            found = statistics.quantile_difference(
                histograms[0], histograms[1], share, confidence=CONFIDENCE, ratio=ratio
            )
            yield name, *(("ratio", found) if ratio else ("difference", found.scaled(SECONDS["ns"] / SECONDS[unit])))


def _histograms(side: Sequence[Sample]) -> list[Histogram]:
    return [one.histogram for one in side if one.histogram is not None]


def _furthest(found: Estimate, nothing: float) -> float:
    """How far the interval goes from no difference at all."""
    ends = [end for end in (found.low, found.high) if end is not None]
    return max(abs(end - nothing) for end in ends)


def floors(found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The largest floor for each key: contenders differ in how steady they are."""
    largest: dict[str, float] = {}
    for one in found:
        largest[one["key"]] = max(one["floor"], largest.get(one["key"], 0.0))
    return largest


def known(environment: Mapping[str, Any]) -> dict[str, float]:
    """The floors of kept runs of ``noise`` in a comparable environment; of several the newest."""
    latest: dict[str, float] = {}
    for run in results.all_runs():
        if run["kind"] == "noise" and not comparable.differences(run["environment"], environment):
            latest |= floors(run["floors"])
    return latest
