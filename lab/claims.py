"""The claims ledger: what was claimed, what was measured, and what that makes of the claim.

``lab/claims.yaml`` names for each claim the targets that would show it, and the scenario that measures them. Those
targets are judged here anew, by lab.verdict, on the samples of the scenario's newest run in ``results/reference/``; so
a claim need not be a target that a run passes or fails, and everything that keeps a verdict from being made, from
disturbed samples to the machine's floor, counts here as well.

lab.ledger writes docs/claims.md and README's tables from this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from lab import comparable, noise
from lab.judging import WALL, Floors, floor_key
from lab.kept import Kept
from lab.scenario import Target, Valid
from lab.verdict import Evidence, Outcome, Verdict, judge
from rauta.files.document import load_document


class Claim(BaseModel):
    """One claim; claims.yaml says what its fields mean."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    claim: str
    source: str
    asked: str
    scenario: str
    tests: Annotated[tuple[Target, ...], Field(min_length=1)]
    needs: str = ""
    note: str = ""


class Claims(BaseModel):
    """All of them, in the order in which they are shown."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    claims: tuple[Claim, ...]


class Status(StrEnum):
    """What became of a claim."""

    REFUTED = "refuted"
    INCONCLUSIVE = "inconclusive"
    NOT_RESOLVABLE = "not resolvable here"
    NOT_MEASURED = "not measured yet"
    CONFIRMED = "confirmed"


_STATUS: Mapping[Outcome, Status] = {
    Outcome.PASS: Status.CONFIRMED,
    Outcome.FAIL: Status.REFUTED,
    Outcome.INCONCLUSIVE: Status.INCONCLUSIVE,
    Outcome.NOT_VALID: Status.INCONCLUSIVE,
    Outcome.NOT_RESOLVABLE: Status.NOT_RESOLVABLE,
    Outcome.NOT_MEASURED: Status.NOT_MEASURED,
}


@dataclass(frozen=True)
class Finding:
    """A claim, and what it rests on. Without a run there are no verdicts."""

    claim: Claim
    run: Kept | None
    verdicts: Sequence[Verdict]

    @property
    def status(self) -> Status:
        """The first of Status that one of the verdicts asks for: a claim holds only if all of its tests do."""
        seen = {_STATUS[verdict.outcome] for verdict in self.verdicts} or {Status.NOT_MEASURED}
        found = next(status for status in Status if status in seen)
        return Status.NOT_RESOLVABLE if self.claim.needs and found is not Status.NOT_MEASURED else found


def read(path: Path) -> tuple[Claim, ...]:
    """All claims of a file such as lab/claims.yaml.

    Raises:
        DocumentError: with every mistake in the file, and its line.
    """
    return load_document(path).validate(Claims).claims


def findings(claims: Sequence[Claim], runs: Sequence[Kept]) -> list[Finding]:
    """What runs say about claims. ``runs``: oldest first."""
    return [_finding(claim, runs) for claim in claims]


def newest(scenario: str, runs: Sequence[Kept]) -> Kept | None:
    """The last run of a scenario that has figures. ``runs``: oldest first."""
    fitting = [run for run in runs if run.content["kind"] == "run" and run.content["scenario"]["name"] == scenario]
    return next((run for run in reversed(fitting) if run.content["metrics"]), None)


def _finding(claim: Claim, runs: Sequence[Kept]) -> Finding:
    run = newest(claim.scenario, runs)
    if run is None:
        return Finding(claim, None, ())
    floors = floors_of(run, runs)
    return Finding(claim, run, [verdict for target in claim.tests for verdict in _judged(target, run, floors)])


def floors_of(run: Kept, runs: Sequence[Kept]) -> Floors:
    """The floors of a run's machine: from its own A/A pairs, and from the newest of its runs of `noise`."""
    noises = [one for one in runs if one.content["kind"] == "noise"]
    fitting = [one for one in noises if not comparable.differences(one.environment, run.environment)]
    return {key: value for one in (*fitting, run) for key, value in noise.floors(one.content["floors"]).items()}


def _judged(target: Target, run: Kept, floors: Floors) -> list[Verdict]:
    """A target's verdicts, in each cell that it applies to; one that says so if there is none."""
    cells = [
        number
        for number in range(len(run.cells))
        if target.applies_to(run.params(number)) and (number, target.measure) in run.measures
    ]
    known = [number for number in cells if target.quantity in run.measures[number, target.measure].quantities]
    if not known:
        return [_not_measured(target)]
    return [judge(target, _evidence(target, run, number, floors)) for number in known]


def _not_measured(target: Target) -> Verdict:
    return Verdict(
        metric=target.metric,
        of=target.of,
        terms=target.of,
        unit="",
        minimum=None,
        maximum=None,
        confidence=target.confidence,
        origin=target.origin,
        outcome=Outcome.NOT_MEASURED,
        reason=f"the run has no {target.metric}",
    )


def _evidence(target: Target, run: Kept, number: int, floors: Floors) -> Evidence:
    cell = run.cells[number]
    baseline = None
    if target.baseline is not None:
        wanted = {**run.params(number), **target.baseline}
        others = [other for other in range(len(run.cells)) if run.params(other) == wanted]
        baseline = run.samples(others[0], target.measure).get(target.of) if others else None
    terms = "ratio" if target.is_ratio else "difference"
    return Evidence(
        quantity=run.measures[number, target.measure].quantities[target.quantity],
        samples=run.samples(number, target.measure),
        planned=cell["plan"]["rounds"],
        limits=Valid.model_validate(cell["valid"]),
        baseline=baseline,
        doubled=run.samples(number, target.measure, scale=2),
        floor=floors.get(floor_key(cell["measure"][target.measure], target.metric, terms)),
        cell=run.content["cells"][number],
        means=WALL if WALL in run.measures[number, target.measure].quantities else "",
    )
