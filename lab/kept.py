"""A kept run as the reading commands see it: run.json, and its samples by cell, measure and contender."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lab import results
from lab.errors import UsageError
from lab.results import Described, Taken
from lab.samples import Better, Quantity, Sample


@dataclass(frozen=True)
class Kept:
    """A run that is over. ``content``: of run.json."""

    folder: Path
    content: Mapping[str, Any]

    @classmethod
    def find(cls, name: str) -> Kept:
        """By its path, its id, a part of it, or ``last``.

        Raises:
            UsageError: there is none, there are several, or it cannot be read.
        """
        return cls.read(results.find(name))

    @classmethod
    def read(cls, folder: Path) -> Kept:
        """From its folder. UsageError: see lab.results.read."""
        return cls(folder, results.read(folder))

    @property
    def id(self) -> str:
        """The run's id."""
        return str(self.content["id"])

    @property
    def environment(self) -> Mapping[str, Any]:
        """Where it took place: see lab.environment."""
        found: Mapping[str, Any] = self.content["environment"]
        return found

    @property
    def cells(self) -> Sequence[Mapping[str, Any]]:
        """All fields of the scenario in each cell of its matrix."""
        found: Sequence[Mapping[str, Any]] = self.content["scenario"]["resolved"]
        return found

    def params(self, cell: int) -> Mapping[str, Any]:
        """Values of all parameters in a cell, those that don't vary, too."""
        found: Mapping[str, Any] = self.cells[cell].get("params", {})
        return found

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        """Of the finished rounds."""
        path = self.folder / "samples.parquet"
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist() if path.is_file() else []
        return [row for row in rows if row["round"] <= self.content["rounds"]["done"]]

    @cached_property
    def taken(self) -> list[Taken]:
        """All samples of the finished rounds, in the order in which they were taken."""
        return list(results.restored(self._rows, self.content["cells"], self.content["rounds"]["done"]))

    @cached_property
    def measures(self) -> Mapping[tuple[int, str], Described]:
        """What was measured, by cell and name: only where there are samples."""
        layers: dict[tuple[int, str], tuple[str, str]] = {}
        quantities: dict[tuple[int, str], dict[str, Quantity]] = {}
        numbers = {results.cell_text(cell): number for number, cell in enumerate(self.content["cells"])}
        for row in self._rows:
            key = numbers[row["cell"]], row["measure"]
            layers[key] = row["layer"], row["instrument"]
            quantities.setdefault(key, {})[row["quantity"]] = Quantity(row["unit"], Better(row["better"]))
        return {key: Described(*layers[key], quantities[key]) for key in layers}

    def samples(self, cell: int, measure: str, scale: int = 1) -> dict[str, list[Sample]]:
        """A measure's samples by contender or reference, one a round."""
        found: dict[str, list[Sample]] = {}
        for one in self._index.get((cell, measure, scale), ()):
            found.setdefault(one.contender, []).append(one.sample)
        return found

    def by_round(self, cell: int, measure: str, contender: str) -> dict[int, Sample]:
        """One contender's samples of a measure by the number of their round."""
        return {one.round: one.sample for one in self._index.get((cell, measure, 1), ()) if one.contender == contender}

    @cached_property
    def _index(self) -> Mapping[tuple[int, str, int], Sequence[Taken]]:
        found: dict[tuple[int, str, int], list[Taken]] = {}
        for one in self.taken:
            found.setdefault((one.cell, one.measure, one.scale), []).append(one)
        return found


def all_kept() -> list[Kept]:
    """Every run that can be read, oldest first."""
    found = []
    for folder in results.folders():
        with suppress(UsageError):
            found.append(Kept.read(folder))
    return found
