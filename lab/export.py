"""Kept runs for other programs: CSV or JSON of their samples, or of their figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pandas as pd

from lab import frames, results
from lab.errors import UsageError
from lab.frames import Runs

What = Literal["samples", "metrics"]
Form = Literal["csv", "json"]


def export(runs: Runs, *, what: What = "samples", form: Form = "csv") -> str:
    """Samples (lab.columns), or metrics with their intervals, as text.

    JSON is a list of objects, one a row, with null for what is missing or no number; in CSV such a field is empty.
    """
    frame = frames.load(runs) if what == "samples" else frames.metrics(runs)
    if form == "csv":
        return frame.to_csv(index=False)
    return json.dumps(_records(frame), indent=1, allow_nan=False) + "\n"


def _records(frame: pd.DataFrame) -> list[dict[str, object]]:
    plain = frame.astype(object).where(frame.notna(), None)
    return [results.finite(record) for record in plain.to_dict(orient="records")]


def write(path: Path, runs: Runs, *, what: What = "samples") -> None:
    """The same into a file; its suffix, .csv or .json, says in which form.

    Raises:
        UsageError: another suffix, or the file cannot be written.
    """
    tried = f"exporting to {path}"
    forms: dict[str, Form] = {".csv": "csv", ".json": "json"}
    if path.suffix not in forms:
        raise UsageError(tried, f"the suffix {path.suffix!r} says nothing", f"Use one of {', '.join(forms)}.")
    text = export(runs, what=what, form=forms[path.suffix])
    try:
        path.write_text(text)
    except OSError as error:
        raise UsageError(tried, str(error.strerror), "Name a file in an existing folder.") from error
