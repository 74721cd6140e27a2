"""What is kept of a run: ``results/RUN_ID/`` with run.json, samples.parquet, series.parquet and logs/.

``run.json`` is versioned. Format 2 has these fields:

    format        2
    id, started (ISO 8601, UTC), duration (seconds), command
    kind          run, or noise: A/A pairs, whose `floors` other runs are judged with
    scenario      name, file, profile, and `resolved`: all fields of each cell after profile, --set and defaults
    seed, rounds  how many rounds were finished, and `planned`
    outcome       passed, failed, not valid, interrupted or error;  exit_code;  error: what happened, if it ended in one
    validity      state: VALID, NOISY or INVALID;  reasons
    environment   see lab.environment;  programs: by contender, BPF programs with tag, sizes, verified instructions;
                  interfaces: by contender (and cell, where each has a network of its own) and host
    checks        in order: number (its place in the scenario), cell, contender, name, passed, detail, seconds
    metrics       by cell, measure, quantity and contender: unit, better, layer, instrument, rounds, the median
                  with its 95 % interval (low, high; null below six rounds); of histograms also p50 to p99.9
    capacities    by cell and measure: what others' rates are shares of, by contender
    order         by round: what was measured, in that order
    verdicts      one for each target and cell, see lab.verdict.Verdict
    floors        see lab.noise

``samples.parquet`` has a row for each number of each sample; lab.columns says what is in it. ``series.parquet`` is the
time series, see lab.monitor.SERIES.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lab import comparable
from lab.columns import COLUMNS
from lab.environment import REPOSITORY
from lab.errors import NotComparable, UsageError
from lab.histogram import Histogram
from lab.samples import Quantity, Sample
from lab.verdict import Exit, Validity, Verdict

FORMAT = 2
FOLDER = REPOSITORY / "results"
REFERENCE_FILES = ("run.json", "samples.parquet", "series.parquet")
"""what is committed of a reference run"""
OUTCOMES = {
    Exit.PASSED: "passed",
    Exit.FAILED: "failed",
    Exit.USAGE: "error",
    Exit.NOT_VALID: "not valid",
    Exit.INTERRUPTED: "interrupted",
}
SCHEMA = pa.schema([(name, pa.type_for_alias(kind)) for name, (kind, _) in COLUMNS.items()])
"""of samples.parquet"""


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
    cell: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Taken:
    """A sample, and when, where and of whom it was taken."""

    cell: int
    round: int
    position: int
    contender: str
    measure: str
    scale: int
    started: float
    sample: Sample


@dataclass(frozen=True)
class Described:
    """A measure of one cell, as results describe it."""

    layer: str
    instrument: str
    quantities: Mapping[str, Quantity]
    """by name; empty for its own"""


@dataclass
class Record:
    """A run while it happens; ``save`` writes what is known by then."""

    id: str
    scenario: dict[str, Any]
    """name, file, profile, resolved (by cell)"""
    cells: Sequence[Mapping[str, Any]]
    """the values of each cell that vary"""
    seed: int
    command: list[str]
    environment: dict[str, Any]
    kind: str = "run"
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    planned: int = 0
    checks: list[CheckRecord] = field(default_factory=list)
    taken: list[Taken] = field(default_factory=list)
    measures: dict[tuple[int, str], Described] = field(default_factory=dict)
    """by cell and name"""
    capacities: dict[int, dict[str, Mapping[str, float]]] = field(default_factory=dict)
    order: list[list[str]] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    floors: list[dict[str, Any]] = field(default_factory=list)
    validity: Validity = Validity.VALID
    reasons: tuple[str, ...] = ()
    error: str | None = None
    earlier: float = 0.0
    """seconds that a run took before it was resumed"""
    _clock: float = field(default_factory=time.monotonic)

    @property
    def folder(self) -> Path:
        """Where everything about the run is kept."""
        return FOLDER / self.id

    @property
    def logs(self) -> Path:
        """Where the logs of its programs are."""
        return self.folder / "logs"

    @property
    def rounds_done(self) -> int:
        """How many rounds were finished."""
        return len(self.order)

    def add_sample(self, taken: Taken) -> None:
        """A sample was taken."""
        self.taken.append(taken)

    def end_round(self, order: list[str]) -> None:
        """A round is finished, and what is known is written: from here a run can be resumed."""
        self.order.append(order)
        self.save(Exit.INTERRUPTED)

    def samples(self, cell: int, measure: str, scale: int = 1) -> dict[str, list[Sample]]:
        """A measure's samples of the finished rounds, by contender."""
        found: dict[str, list[Sample]] = {}
        for one in self.taken:
            if (one.cell, one.measure, one.scale) == (cell, measure, scale) and one.round <= self.rounds_done:
                found.setdefault(one.contender, []).append(one.sample)
        return found

    def save(self, code: Exit) -> dict[str, Any]:
        """Write ``run.json`` and ``samples.parquet``; earlier ones are replaced in one step.

        Returns:
            the content of run.json.
        """
        content: dict[str, Any] = {
            "format": FORMAT,
            "id": self.id,
            "kind": self.kind,
            "started": self.started.isoformat(timespec="seconds"),
            "duration": round(self.earlier + time.monotonic() - self._clock, 3),
            "command": self.command,
            "scenario": self.scenario,
            "seed": self.seed,
            "rounds": {"done": self.rounds_done, "planned": self.planned},
            "outcome": OUTCOMES[code],
            "exit_code": int(code),
            "error": self.error,
            "validity": {"state": str(self.validity), "reasons": list(self.reasons)},
            "environment": self.environment,
            "cells": [dict(cell) for cell in self.cells],
            "checks": [dataclasses.asdict(check) for check in self.checks],
            "metrics": self.metrics,
            "capacities": {str(cell): dict(found) for cell, found in self.capacities.items()},
            "order": self.order,
            "verdicts": [dataclasses.asdict(verdict) for verdict in self.verdicts],
            "floors": self.floors,
        }
        content = finite(content)
        _replace(self.folder / "samples.parquet", self.table())
        draft = self.folder / "run.json.new"
        draft.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
        draft.rename(self.folder / "run.json")
        return content

    def save_series(self, series: Mapping[str, Sequence[Any]]) -> None:
        """Write ``series.parquet``; of a run that was resumed, after what is there already."""
        path, table = self.folder / "series.parquet", pa.table(dict(series))
        if path.exists():
            table = pa.concat_tables([pq.read_table(path), table], promote_options="permissive")
        _replace(path, table)

    def table(self) -> pa.Table:
        """All samples, tidy: one row for each number."""
        rows = [row for taken in self.taken for row in self._rows(taken)]
        return pa.Table.from_pylist(rows, schema=SCHEMA)

    def _rows(self, taken: Taken) -> Iterator[dict[str, Any]]:
        described, sample = self.measures[taken.cell, taken.measure], taken.sample
        for name, value in {"": sample.value, **sample.quantities}.items():
            quantity = described.quantities[name]
            yield {
                "run": self.id,
                "scenario": self.scenario["name"],
                "started": taken.started,
                "cell": cell_text(self.cells[taken.cell]),
                "round": taken.round,
                "position": taken.position,
                "contender": taken.contender,
                "measure": taken.measure,
                "layer": described.layer,
                "quantity": name,
                "unit": quantity.unit,
                "better": str(quantity.better),
                "instrument": described.instrument,
                "scale": taken.scale,
                "value": value,
                "valid": sample.valid,
                "reason": sample.reason,
                "flags": "; ".join(sample.flags),
                "requests": sample.requests,
                "generator": sample.generator,
                "histogram": sample.histogram.encode() if sample.histogram and not name else None,
                "details": json.dumps(finite(sample.details), allow_nan=False),
            }

    def restore(self) -> None:
        """Take over the finished rounds of an earlier, interrupted run of the same id.

        Raises:
            UsageError: its scenario or seed was another one, or there is nothing to take over.
            NotComparable: the machine, its tools or the revision are not what they were.
        """
        before = read(self.folder)
        if before["scenario"]["resolved"] != self.scenario["resolved"] or before["seed"] != self.seed:
            advice = "Run it with the same file, --profile, --set, --contender and --seed, or without --resume."
            raise UsageError(f"resuming {self.id}", "it was another scenario, or another seed", advice)
        if found := comparable.differences(before["environment"], self.environment, comparable.SAME_RUN):
            raise NotComparable(f"resuming {self.id}", "; ".join(map(str, found)), "Start it anew, without --resume.")
        self.order = before["order"]
        self.earlier = before["duration"]
        self.started = datetime.fromisoformat(before["started"])
        self.capacities = {int(cell): found for cell, found in before["capacities"].items()}
        rows = pq.read_table(self.folder / "samples.parquet").to_pylist()
        self.taken = list(restored(rows, self.cells, self.rounds_done))


def restored(rows: Sequence[Mapping[str, Any]], cells: Sequence[Mapping[str, Any]], rounds: int) -> Iterator[Taken]:
    """The samples that rows of samples.parquet tell of.

    Args:
        rows: in the file's order.
        cells: of the run, in their order.
        rounds: how many were finished; samples of a later one are left out.
    """
    numbers = {cell_text(cell): number for number, cell in enumerate(cells)}
    groups: list[tuple[Mapping[str, Any], dict[str, float]]] = []
    for row in rows:
        if not row["quantity"]:
            groups.append((row, {}))
        else:
            groups[-1][1][row["quantity"]] = row["value"]
    for row, others in groups:
        if row["round"] <= rounds:
            where = numbers[row["cell"]], row["round"], row["position"], row["contender"], row["measure"]
            yield Taken(*where, row["scale"], row["started"], _sample(row, others))


def _sample(row: Mapping[str, Any], quantities: Mapping[str, float]) -> Sample:
    return Sample(
        value=row["value"],
        valid=row["valid"],
        reason=row["reason"],
        quantities=quantities,
        histogram=Histogram.decode(row["histogram"]) if row["histogram"] else None,
        requests=row["requests"],
        generator=row["generator"],
        flags=tuple(row["flags"].split("; ")) if row["flags"] else (),
        details=json.loads(row["details"]),
    )


def cell_text(cell: Mapping[str, Any]) -> str:
    """A cell as samples.parquet names it."""
    return json.dumps(dict(cell), sort_keys=True)


def finite(node: Any) -> Any:
    """The same for JSON, which has no numbers that are none: None in place of nan and infinity, lists for tuples."""
    if isinstance(node, Mapping):
        return {key: finite(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def _replace(path: Path, table: pa.Table) -> None:
    draft = path.with_name(path.name + ".new")
    pq.write_table(table, draft)
    draft.rename(path)


def new_id(scenario: str, run: str) -> str:
    """A run's id: when, what, and the short name that its namespaces carry."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{scenario}-{run}"


def name_in(run_id: str) -> str:
    """The short name in a run's id."""
    return run_id.rpartition("-")[2]


# ---- reading ------------------------------------------------------------------------------------------


def folders() -> list[Path]:
    """Every run that has been kept, the reference runs among them, each once, oldest first."""
    found = [path.parent for pattern in ("reference/*/run.json", "*/run.json") for path in FOLDER.glob(pattern)]
    return sorted({path.name: path for path in found}.values(), key=lambda path: path.name)


def all_runs() -> Iterator[dict[str, Any]]:
    """The content of run.json of every run that has been kept; unreadable ones, and other formats, are left out."""
    for folder in folders():
        try:
            yield read(folder)
        except UsageError:
            continue


def read(folder: Path) -> dict[str, Any]:
    """The content of one run's run.json.

    Raises:
        UsageError: it cannot be read, or is of a format that this version does not read.
    """
    path = folder / "run.json"
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"reading {path}", str(error), "`python -m lab list` shows what can be read.") from None
    found = content.get("format") if isinstance(content, dict) else "of something else"
    if found != FORMAT:
        raise UsageError(f"reading {path}", f"it has the format {found}", f"This version reads format {FORMAT}.")
    return dict(content)


def find(name: str) -> Path:
    """The folder of a kept run: its path, its id, a part of the id that no other has, or ``last``.

    Raises:
        UsageError: there is none, or there are several.
    """
    if (Path(name) / "run.json").is_file():
        return Path(name)
    known = folders()
    found = known[-1:] if name == "last" else [folder for folder in known if folder.name == name]
    found = found or [folder for folder in known if os.sep not in name and name in folder.name]
    if len(found) != 1:
        some = ", ".join(folder.name for folder in found[:5])
        what = f"there are {len(found)}: {some} ..." if found else "there is none"
        raise UsageError(f"looking for the run {name!r}", what, "`python -m lab list` shows all.")
    return found[0]


def keep(folder: Path) -> Path:
    """Copy a run to the reference runs, which are committed, without its logs and captures.

    Returns:
        where it is now.
    """
    target = FOLDER / "reference" / folder.name
    target.mkdir(parents=True, exist_ok=True)
    for name in REFERENCE_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    return target


def load(name: str) -> dict[str, Any]:
    """The content of a kept run's run.json; see ``find`` for its name."""
    return read(find(name))
