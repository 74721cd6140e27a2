"""What is kept of a run: ``results/RUN_ID/`` with ``run.json`` and ``logs/``.

``run.json`` is versioned. Format 1 has these fields:

    format        1
    id, started (ISO 8601, UTC), duration (seconds), command
    scenario      name, file, profile, and `resolved`: all its fields after profile, --set and defaults
    seed
    outcome       passed, failed, not valid, interrupted or error;  exit_code;  error: what happened, if it ended in one
    environment   see lab.environment;  programs: by contender, BPF programs with tag, sizes, verified instructions
    checks        in order: number (its place in the scenario), contender, name, passed, detail, seconds
    samples       by measure: unit, layer, and `rounds` by contender or reference: value, valid, reason, details
    order         by round: what was measured, in that order
    verdicts      one for each target, see lab.verdict.Verdict
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lab.environment import REPOSITORY
from lab.errors import UsageError
from lab.samples import Sample
from lab.verdict import Exit, Verdict

FORMAT = 1
FOLDER = REPOSITORY / "results"
OUTCOMES = {
    Exit.PASSED: "passed",
    Exit.FAILED: "failed",
    Exit.USAGE: "error",
    Exit.NOT_VALID: "not valid",
    Exit.INTERRUPTED: "interrupted",
}


@dataclass(frozen=True)
class CheckRecord:
    """A check as it went for one contender. One that is about another contender has no record."""

    number: int
    """its place in the scenario, from 0"""
    contender: str
    name: str
    passed: bool
    detail: str
    seconds: float = 0.0


@dataclass
class Record:
    """A run while it happens; ``save`` writes what is known by then."""

    id: str
    scenario: dict[str, Any]
    seed: int
    command: list[str]
    environment: dict[str, Any]
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    checks: list[CheckRecord] = field(default_factory=list)
    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)
    """by measure, then contender or reference"""
    units: dict[str, str] = field(default_factory=dict)
    layers: dict[str, str] = field(default_factory=dict)
    order: list[list[str]] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    error: str | None = None
    _clock: float = field(default_factory=time.monotonic)

    @property
    def folder(self) -> Path:
        """Where everything about the run is kept."""
        return FOLDER / self.id

    @property
    def logs(self) -> Path:
        """Where the logs of its programs are."""
        return self.folder / "logs"

    def save(self, code: Exit) -> dict[str, Any]:
        """Write ``run.json``; an earlier one is replaced in one step.

        Returns:
            what was written.
        """
        content = {
            "format": FORMAT,
            "id": self.id,
            "started": self.started.isoformat(timespec="seconds"),
            "duration": round(time.monotonic() - self._clock, 3),
            "command": self.command,
            "scenario": self.scenario,
            "seed": self.seed,
            "outcome": OUTCOMES[code],
            "exit_code": int(code),
            "error": self.error,
            "environment": self.environment,
            "checks": [dataclasses.asdict(check) for check in self.checks],
            "samples": {name: self._samples_of(name) for name in self.samples},
            "order": self.order,
            "verdicts": [dataclasses.asdict(verdict) for verdict in self.verdicts],
        }
        draft = self.folder / "run.json.new"
        draft.write_text(json.dumps(content, indent=2) + "\n")
        draft.rename(self.folder / "run.json")
        return content

    def _samples_of(self, name: str) -> dict[str, Any]:
        rounds = {
            subject: [dataclasses.asdict(sample) for sample in samples]
            for subject, samples in self.samples[name].items()
        }
        return {"unit": self.units[name], "layer": self.layers[name], "rounds": rounds}


def new_id(scenario: str, run: str) -> str:
    """A run's id: when, what, and the short name that its namespaces carry."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{scenario}-{run}"


def all_runs() -> Iterator[dict[str, Any]]:
    """Every run that has been kept, oldest first; folders without a readable ``run.json`` are left out."""
    for path in sorted(FOLDER.glob("*/run.json")):
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and content.get("format") == FORMAT:
            yield content


def load(name: str) -> dict[str, Any]:
    """A kept run by its id, a part of it that no other has, or ``last``.

    Raises:
        UsageError: there is none, there are several, or it is of a format that this version does not read.
    """
    path = FOLDER / name / "run.json"
    if os.sep not in name and path.is_file():
        content: dict[str, Any] = json.loads(path.read_text())
        if content.get("format") != FORMAT:
            tried = f"reading {path}"
            raise UsageError(
                tried, f"it has the format {content.get('format')}", f"This version reads format {FORMAT}."
            )
        return content
    runs = list(all_runs())
    found = runs[-1:] if name == "last" else [run for run in runs if name in run["id"]]
    if len(found) != 1:
        what = (
            "there is none" if not found else f"there are {len(found)}: {', '.join(run['id'] for run in found[:5])} ..."
        )
        raise UsageError(f"looking for the run {name!r}", what, "`python -m lab list` shows all.")
    return found[0]
