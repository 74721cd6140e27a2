"""Kept runs as pandas frames: what notebooks, exports and people's own scripts work on."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lab import results
from lab.columns import PARAMETER
from lab.environment import REPOSITORY
from lab.errors import UsageError

Runs: TypeAlias = str | Path | Iterable[str | Path]
CATEGORIES = ("run", "scenario", "cell", "contender", "measure", "layer", "quantity", "unit", "better", "instrument")
"""columns whose texts repeat"""


class LeftOut(UserWarning):
    """A run that a pattern found cannot be read. The message names it, and says why."""


def load(runs: Runs = "results/*") -> pd.DataFrame:
    """All samples of runs; see ``lab.load``."""
    found = [_samples(folder, content) for folder, content in select(runs)]
    tables = [table for table, _ in found]
    frame: pd.DataFrame = pa.concat_tables([results.SCHEMA.empty_table(), *tables]).to_pandas()
    frame = frame.astype({"requests": "float64"} | dict.fromkeys(CATEGORIES, "category"))
    parameters = pd.concat([pd.DataFrame(index=[]), *(values for _, values in found)], ignore_index=True)
    for name in parameters.columns:
        frame[PARAMETER + name] = _column(parameters[name])
    return frame


def metrics(runs: Runs = "results/*") -> pd.DataFrame:
    """The figures of runs with their intervals: one row for each statistic of each metric."""
    rows = []
    for _, content in select(runs):
        for metric in content["metrics"]:
            common = {"run": content["id"], "scenario": content["scenario"]["name"], "started": content["started"]}
            named = {name: value for name, value in metric.items() if name not in ("cell", "median", "low", "high")}
            quantiles = named.pop("quantiles", {})
            common |= {"cell": results.cell_text(metric["cell"])} | named
            rows.append(common | {"statistic": "median", "value": metric["median"], **_ends(metric)})
            for statistic, figure in quantiles.items():
                rows.append(common | {"statistic": statistic, "value": figure["value"], **_ends(figure)})
    return pd.DataFrame(rows).astype({"value": "float64", "low": "float64", "high": "float64"} if rows else {})


def _ends(figure: dict[str, Any]) -> dict[str, Any]:
    return {"low": figure["low"], "high": figure["high"]}


def select(runs: Runs) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The runs that are meant, each once, with the content of their run.json.

    Raises:
        UsageError: as ``lab.load``.
    """
    items = [runs] if isinstance(runs, str | Path) else list(runs)
    seen = set()
    for item in items:
        for folder, named in _folders(str(item)):
            content = _content(folder, named)
            if content is not None and content["id"] not in seen:
                seen.add(content["id"])
                yield folder, content


def _folders(item: str) -> Iterator[tuple[Path, bool]]:
    """Folders of runs, and whether it was just this one that was asked for."""
    if not any(sign in item for sign in "*?["):
        inside = _inside(Path(item)) if Path(item).is_dir() else []
        yield from ((folder, False) for folder in inside) if inside else [(results.find(item), True)]
        return
    matches = _matches(item)
    if not matches:
        raise UsageError(f"looking for runs in {item}", "there are none", "`python -m lab list` shows all.")
    for match in matches:
        yield from ((folder, False) for folder in _inside(match) or [match] if (folder / "run.json").is_file())


def _inside(path: Path) -> list[Path]:
    """The runs in a folder that is none itself."""
    return [] if (path / "run.json").is_file() else sorted(found.parent for found in path.glob("*/run.json"))


def _matches(pattern: str) -> list[Path]:
    """What a pattern finds from the working directory, or else from the repository's root."""
    if Path(pattern).is_absolute():
        return sorted(Path("/").glob(pattern.lstrip("/")))
    return sorted(Path.cwd().glob(pattern)) or sorted(REPOSITORY.glob(pattern))


def _content(folder: Path, named: bool) -> dict[str, Any] | None:
    try:
        return results.read(folder)
    except UsageError as error:
        if named:
            raise
        warnings.warn(f"left out: {error}", LeftOut, stacklevel=6)
        return None


def _samples(folder: Path, content: dict[str, Any]) -> tuple[pa.Table, pd.DataFrame]:
    """The rows of a run's finished rounds, and for each the values of its cell's parameters."""
    path = folder / "samples.parquet"
    table = pq.read_table(path, schema=results.SCHEMA) if path.is_file() else results.SCHEMA.empty_table()
    table = table.filter(pa.compute.less_equal(table["round"], content["rounds"]["done"]))
    resolved = content["scenario"]["resolved"]
    params = {
        results.cell_text(cell): {str(name): value for name, value in one.get("params", {}).items()}
        for cell, one in zip(content["cells"], resolved, strict=True)
    }
    return table, pd.DataFrame([params[cell] for cell in table["cell"].to_pylist()], index=range(len(table)))


def _column(values: pd.Series[Any]) -> pd.Series[Any]:
    """A parameter's values as floats if all are numbers, else as a category of texts."""
    known = values.dropna()
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        return values.astype("float64")
    return values.map(str, na_action="ignore").astype("category")
