"""One metric over all kept runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lab.errors import UsageError
from lab.kept import Kept
from lab.samples import STATISTICS


@dataclass(frozen=True)
class Point:
    """A metric's figure in one run, with its 95 % interval, and what the run's targets about it came to."""

    run: str
    scenario: str
    started: str
    """ISO 8601"""
    revision: str
    """the commit's first twelve digits; a plus sign after it: with changes"""
    cell: Mapping[str, Any]
    contender: str
    value: float
    low: float | None
    high: float | None
    unit: str
    verdicts: tuple[str, ...]
    """such as "rauta ÷ direct 0.791: pass" """


def history(metric: str, runs: Iterable[Kept], *, of: str | None = None, scenario: str | None = None) -> list[Point]:
    """A metric in all runs that have it, oldest first.

    Args:
        metric: measure[.quantity].statistic, as in targets; without a statistic it is the median.
        runs: where to look.
        of: only this contender.
        scenario: only of this scenario.

    Raises:
        UsageError: no run has it; the message lists what there is.
    """
    kept = [run for run in runs if scenario in (None, run.content["scenario"]["name"])]
    found = [point for run in kept for point in _points(run, metric) if of in (None, point.contender)]
    if not found:
        known = sorted({_name(entry) for run in kept for entry in run.content["metrics"]})
        advice = f"There are: {', '.join(known)}." if known else "No run has any figures."
        whose = f" of {of}" if of else ""
        raise UsageError(f"looking for the metric {metric!r}{whose}", "no kept run has it", advice)
    return sorted(found, key=lambda point: point.started)


def _name(entry: Mapping[str, Any]) -> str:
    return ".".join(filter(None, (entry["measure"], entry["quantity"])))


def _points(run: Kept, metric: str) -> Iterator[Point]:
    wanted, statistic = _split(metric)
    for entry in run.content["metrics"]:
        figures = {"median": {**entry, "value": entry["median"]}, **entry.get("quantiles", {})}
        if _name(entry) != wanted or statistic not in figures:
            continue
        figure = figures[statistic]
        yield Point(
            run=run.id,
            scenario=run.content["scenario"]["name"],
            started=run.content["started"],
            revision=_revision(run.environment["git"]),
            cell=entry["cell"],
            contender=entry["contender"],
            value=figure["value"],
            low=figure["low"],
            high=figure["high"],
            unit=entry["unit"],
            verdicts=tuple(_verdicts(run.content["verdicts"], f"{wanted}.{statistic}", entry)),
        )


def _split(metric: str) -> tuple[str, str]:
    """(measure and quantity, statistic); p99.9 has a point of its own."""
    for statistic in STATISTICS:
        if metric.endswith(f".{statistic}"):
            return metric.removesuffix(f".{statistic}"), statistic
    return metric, "median"


def _revision(git: Mapping[str, Any]) -> str:
    return f"{git['revision'][:12]}{'+' if git['dirty'] else ''}"


def _verdicts(verdicts: Iterable[Mapping[str, Any]], metric: str, entry: Mapping[str, Any]) -> Iterator[str]:
    for one in verdicts:
        if (one["metric"], one["of"], one["cell"]) == (metric, entry["contender"], entry["cell"]):
            measured = "" if one["measured"] is None else f" {one['measured']:.4g}"
            yield f"{one['terms']}{measured}{' ' if one['unit'] else ''}{one['unit']}: {one['outcome']}"
