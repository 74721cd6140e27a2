"""From a run's samples to its verdicts, its metrics and its validity; also while it runs, to know when to stop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lab.agreement import quantities
from lab.matrix import label
from lab.results import Record
from lab.samples import QUANTILES, Sample
from lab.scenario import Scenario, Target
from lab.verdict import Evidence, Outcome, Verdict, decided, disturbed, figure, judge, validity

WALL = "wall"
"""the second means of lab.measure.program"""
Floors = Mapping[str, float]
"""how far A/A pairs are apart, by ``floor_key``"""


def floor_key(measure: Mapping[str, Any], metric: str, terms: str) -> str:
    """What a floor is valid for: the measure's settings but its duration, the statistic, and ratio or difference."""
    settings = ", ".join(f"{name}={value}" for name, value in sorted(measure.items()) if name != "duration")
    return f"{metric.partition('.')[2]} {terms} ({settings})"


def judge_all(cells: Sequence[Scenario], record: Record, floors: Floors) -> list[Verdict]:
    """Verdicts for all targets, in the order of the scenario, each in all cells that it applies to."""
    found = []
    for index in range(len(cells[0].targets)):
        for number, cell in enumerate(cells):
            target = cell.targets[index]
            if target.applies_to(cell.params) and target.measure in cell.measure:
                found.append(judge(target, _evidence(cells, number, target, record, floors)))
    return found


def _evidence(cells: Sequence[Scenario], number: int, target: Target, record: Record, floors: Floors) -> Evidence:
    cell = cells[number]
    measure = cell.measure[target.measure]
    described = record.measures.get((number, target.measure))
    known = described.quantities if described else {"": measure.quantity, **quantities(measure)}
    terms = "ratio" if target.is_ratio else "difference"
    baseline = None
    if target.baseline is not None:
        wanted = {**cell.params, **target.baseline}
        for other, one in enumerate(cells):
            if one.params == wanted:
                baseline = record.samples(other, target.measure).get(target.of)
    return Evidence(
        quantity=known[target.quantity],
        samples=record.samples(number, target.measure),
        planned=cell.plan.rounds,
        limits=cell.valid,
        baseline=baseline,
        doubled=record.samples(number, target.measure, scale=2),
        floor=floors.get(floor_key(measure.model_dump(mode="json"), target.metric, terms)),
        cell=dict(cell.cell),
        means=WALL if measure.layer == "bpf" and WALL in measure.quantities else "",
    )


def enough(cells: Sequence[Scenario], record: Record, floors: Floors) -> bool:
    """Whether more rounds would change no verdict."""
    return all(decided(verdict) for verdict in judge_all(cells, record, floors))


def conclude(cells: Sequence[Scenario], record: Record, floors: Floors) -> list[Outcome]:
    """Put verdicts, metrics and validity into the record.

    Returns:
        the outcomes of all targets.
    """
    record.verdicts = judge_all(cells, record, floors)
    record.metrics = list(_metrics(record))
    series = dict(_series(cells, record))
    record.validity, record.reasons = validity(series, record.verdicts)
    return [verdict.outcome for verdict in record.verdicts]


def _series(cells: Sequence[Scenario], record: Record) -> Iterator[tuple[str, list[Sample]]]:
    for number, name in record.measures:
        for contender, samples in record.samples(number, name).items():
            where = f" at {label(cells[number].cell)}" if cells[number].cell else ""
            yield f"{name} of {contender}{where}", samples


def _metrics(record: Record) -> Iterator[dict[str, Any]]:
    for (number, name), described in record.measures.items():
        for contender, samples in record.samples(number, name).items():
            for quantity, meaning in described.quantities.items():
                whole = [one for one in samples if not quantity or quantity in one.quantities]
                if whole:
                    estimate = figure(whole, "median", quantity)
                    yield {
                        "cell": dict(record.cells[number]),
                        "measure": name,
                        "quantity": quantity,
                        "contender": contender,
                        "unit": meaning.unit,
                        "better": str(meaning.better),
                        "layer": described.layer,
                        "instrument": described.instrument,
                        "rounds": estimate.rounds,
                        "median": estimate.value,
                        "low": estimate.low,
                        "high": estimate.high,
                        "disturbed": len(disturbed({contender: whole})),
                        **_quantiles(samples if not quantity else (), meaning.unit),
                    }


def _quantiles(samples: Sequence[Sample], unit: str) -> dict[str, Any]:
    """Of all latencies, with intervals; nothing where there are no histograms."""
    if not samples or any(one.histogram is None for one in samples):
        return {}
    found: dict[str, Any] = {}
    for name in QUANTILES:
        estimate = figure(samples, name, unit=unit)
        found[name] = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {"quantiles": found}
