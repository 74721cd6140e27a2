"""Samples and targets in, verdicts out.

Every number is a median (or another statistic) over rounds. Comparisons are paired: a ratio or a difference is taken
within each round, where contenders ran seconds apart, and the statistic is taken over those; slow drift of the
machine cancels out.

A verdict needs every round that was planned, each with a valid sample. A generator that saw an error answer or a broken
connection measured something else than was asked for: such a sample can make a target *not valid*, never *pass*.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING

from lab.samples import Sample

if TYPE_CHECKING:
    from lab.scenario import Target

STATISTICS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "median": statistics.median,
    "mean": statistics.fmean,
    "min": min,
    "max": max,
}


class Outcome(StrEnum):
    """What a check or a target came to."""

    PASS = "pass"
    FAIL = "fail"
    NOT_VALID = "not valid"
    NOT_MEASURED = "not measured"


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
    """of bounds, ``measured``, ``lowest`` and ``highest``; empty for a ratio"""
    minimum: float | None
    maximum: float | None
    origin: str
    outcome: Outcome
    reason: str = ""
    measured: float | None = None
    lowest: float | None = None
    """over the rounds"""
    highest: float | None = None
    rounds: int = 0
    own: float | None = None
    """the contender's own figure, in the measure's unit, where ``measured`` is a ratio or a difference ..."""
    baseline: float | None = None
    """... to this one"""


Rounds = Sequence[Sample]
"""one contender's samples of one measure, by round"""


def judge(target: Target, unit: str, samples: Mapping[str, Rounds], planned: int) -> Verdict:
    """Judge one target.

    Args:
        target: the target; its names are known to be right.
        unit: of the measure.
        samples: of the target's measure, by contender or reference; those that were not measured are absent.
        planned: how many rounds there should have been.
    """
    blank = _blank(target, unit)
    needed = [name for name in (target.of, target.ratio_to, target.over) if name is not None]
    if missing := [name for name in needed if name not in samples]:
        return replace(blank, reason=f"no samples of {', '.join(missing)}")
    if problem := _problem({name: samples[name] for name in needed}, planned):
        return replace(blank, outcome=Outcome.NOT_VALID, reason=problem)
    statistic = STATISTICS[target.statistic]
    rounds = [[sample.value for sample in samples[name]] for name in needed]
    values = _compared(target, *rounds)
    measured = statistic(values)
    low, high = blank.minimum, blank.maximum
    within = (low is None or measured >= low) and (high is None or measured <= high)
    compared = len(rounds) > 1
    return replace(
        blank,
        outcome=Outcome.PASS if within else Outcome.FAIL,
        measured=measured,
        lowest=min(values),
        highest=max(values),
        rounds=len(values),
        own=statistic(rounds[0]) if compared else None,
        baseline=statistic(rounds[1]) if compared else None,
    )


def _blank(target: Target, unit: str) -> Verdict:
    """A target's verdict before anything is known."""
    shown = "" if target.ratio_to else unit
    return Verdict(
        metric=target.metric,
        of=target.of,
        terms=_terms(target),
        unit=shown,
        minimum=None if target.min is None else target.min.in_unit(shown),
        maximum=None if target.max is None else target.max.in_unit(shown),
        origin=target.origin,
        outcome=Outcome.NOT_MEASURED,
    )


def _terms(target: Target) -> str:
    if target.ratio_to:
        return f"{target.of} ÷ {target.ratio_to}"
    return f"{target.of} − {target.over}" if target.over else target.of


def _problem(samples: Mapping[str, Rounds], planned: int) -> str:
    """Why these samples cannot support a verdict; empty if they can."""
    for name, rounds in samples.items():
        for number, sample in enumerate(rounds, 1):
            if not sample.valid:
                return f"{name}, round {number}: {sample.reason}"
            if sample.value <= 0:
                return f"{name}, round {number}: measured {sample.value:g}"
        if len(rounds) < planned:
            return f"{name}: only {len(rounds)} of {planned} rounds"
    return ""


def _compared(target: Target, own: Sequence[float], others: Sequence[float] = ()) -> list[float]:
    """Round by round: the contender's value, its ratio to the other's, or its difference."""
    if target.ratio_to:
        return [mine / other for mine, other in zip(own, others, strict=True)]
    if target.over:
        return [mine - other for mine, other in zip(own, others, strict=True)]
    return list(own)


def exit_code(checks: Iterable[bool], outcomes: Iterable[Outcome]) -> Exit:
    """A run's exit code: a failure outweighs what is not valid. What was not measured on purpose does not count.

    Args:
        checks: whether each check passed.
        outcomes: of the targets.
    """
    seen = set(outcomes)
    if not all(checks) or Outcome.FAIL in seen:
        return Exit.FAILED
    return Exit.NOT_VALID if Outcome.NOT_VALID in seen else Exit.PASSED
