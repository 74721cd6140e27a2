"""lab.load and lab.kept: kept runs come back as they were written, as a tidy frame, and as samples."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kept_runs import PROGRAM, kept, latency, record

import lab
from lab import frames, results
from lab.columns import COLUMNS
from lab.environment import REPOSITORY
from lab.errors import UsageError
from lab.frames import LeftOut
from lab.histogram import Histogram
from lab.kept import Kept, all_kept
from lab.samples import Sample
from lab.verdict import Exit

TEXT = st.text(st.characters(codec="utf-8", exclude_characters=";"), max_size=20)
NUMBERS = st.floats(-1e15, 1e15)
SAMPLES = st.builds(
    Sample,
    value=NUMBERS,
    valid=st.booleans(),
    reason=TEXT,
    quantities=st.fixed_dictionaries({}, optional={"p99": NUMBERS, "rate": NUMBERS}),
    requests=st.none() | st.integers(0, 2**40),
    generator=st.none() | st.floats(0, 1),
    flags=st.lists(TEXT.filter(bool), max_size=2).map(tuple),
    details=st.dictionaries(TEXT, NUMBERS | st.integers(-(2**53), 2**53) | TEXT, max_size=3),
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs are kept; it is empty."""
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    return tmp_path


@given(samples=st.lists(SAMPLES, min_size=1, max_size=4), data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_samples_come_back_as_they_were(folder: Path, samples: list[Sample], data: st.DataObject) -> None:
    name = f"run-{len(list(folder.iterdir()))}"
    found = kept(folder, name, [{"latency": {"rauta": samples}}])
    assert found.samples(0, "latency") == {"rauta": samples}
    assert found.by_round(0, "latency", "rauta") == dict(enumerate(samples, 1))


def test_histograms_come_back(folder: Path) -> None:
    (sample,) = kept(folder, "one", [{"latency": {"rauta": [latency(250)]}}]).samples(0, "latency")["rauta"]
    assert isinstance(sample.histogram, Histogram)
    assert sample.histogram.counts() == latency(250).histogram.counts()  # type: ignore[union-attr]


def test_what_was_measured_is_known_again(folder: Path) -> None:
    found = kept(folder, "one", [{"program": {"rauta": [1.0], "xdp-tx": [2.0]}}])
    assert found.measures == {(0, "program"): PROGRAM}


def test_unfinished_rounds_do_not_count(folder: Path) -> None:
    made = record("one", [{"program": {"rauta": [1.0, 2.0, 3.0]}}])
    made.order = made.order[:2]
    made.folder.mkdir()
    made.save(Exit.INTERRUPTED)
    assert [one.value for one in Kept.find("one").samples(0, "program")["rauta"]] == [1.0, 2.0]
    assert list(lab.load("one").value) == [1.0, 2.0]


def test_a_frame_has_the_documented_columns(folder: Path) -> None:
    kept(folder, "one", [{"latency": {"rauta": [latency(250)]}}])
    frame = lab.load("one")
    assert list(frame.columns) == list(COLUMNS)
    documentation = lab.load.__doc__ or ""
    assert [
        name
        for name, (_, meaning) in COLUMNS.items()
        if f"{name} " not in documentation or meaning not in documentation
    ] == []


def test_a_frame_of_nothing_has_the_same_types(folder: Path) -> None:
    kept(folder, "empty", [{}])
    kept(folder, "full", [{"latency": {"rauta": [latency(250)]}}])
    kinds = [lab.load(name).drop(columns=list(frames.CATEGORIES)).dtypes.to_dict() for name in ("empty", "full")]
    assert kinds[0] == kinds[1]
    assert all(isinstance(lab.load("empty")[name].dtype, pd.CategoricalDtype) for name in frames.CATEGORIES)


def test_each_number_has_a_row(folder: Path) -> None:
    kept(folder, "one", [{"latency": {"rauta": [latency(250), latency(260)], "direct": [latency(90)]}}])
    frame = lab.load("one")
    own = frame[(frame.quantity == "") & (frame.contender == "rauta")]
    assert list(own["value"]) == [250.0, 260.0]
    assert set(frame.quantity) == {"", "p99", "rate"}
    assert frame.histogram.notna().sum() == 3
    assert frame.requests.dtype == "float64"


def test_parameters_are_columns(folder: Path) -> None:
    params = [{"routes": 1, "frame": "syn"}, {"routes": 65536, "frame": "syn"}]
    kept(folder, "one", [{"program": {"rauta": [1.0]}}, {"program": {"rauta": [2.0]}}], params=params)
    kept(folder, "two", [{"program": {"rauta": [3.0]}}])
    frame = lab.load(["one", "two"])
    assert list(frame.param_routes[:2]) == [1.0, 65536.0]
    assert math.isnan(frame.param_routes[2])
    assert frame.param_frame.dtype == "category"


def test_runs_are_found_by_pattern_folder_id_and_last(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("20260101-a", "20260102-b"):
        kept(folder, name, [{"program": {"rauta": [1.0]}}])
    (folder / "reference").mkdir()
    (folder / "20260101-a").rename(folder / "reference/20260101-a")
    monkeypatch.chdir(folder.parent)
    both = {"20260101-a", "20260102-b"}
    assert set(lab.load(f"{folder.name}/*").run) == both
    assert set(lab.load(folder).run) == {"20260102-b"}
    assert set(lab.load(str(folder / "reference")).run) == {"20260101-a"}
    assert set(lab.load("last").run) == {"20260102-b"}
    assert set(lab.load([folder / "20260102-b", "20260101", "last"]).run) == both
    assert [run.id for run in all_kept()] == sorted(both)


def test_a_run_that_is_meant_twice_is_loaded_once(folder: Path) -> None:
    kept(folder, "one", [{"program": {"rauta": [1.0]}}])
    assert len(lab.load(["one", "last", str(folder / "*")])) == 1


@pytest.mark.parametrize(
    ("content", "why"), [('{"format": 1}', "format 1"), ("{", "run.json"), ("[]", "something else")], ids=str
)
def test_an_unreadable_run_is_named(folder: Path, content: str, why: str) -> None:
    kept(folder, "good", [{"program": {"rauta": [1.0]}}])
    (folder / "bad").mkdir()
    (folder / "bad/run.json").write_text(content)
    with pytest.warns(LeftOut, match="bad/run.json"):
        frame = lab.load(str(folder / "*"))
    assert set(frame.run) == {"good"}
    with pytest.raises(UsageError, match=why):
        lab.load("bad")


def test_what_is_not_there_is_said(folder: Path) -> None:
    with pytest.raises(UsageError, match="nothing-of-this-name"):
        lab.load("nothing-of-this-name")
    with pytest.raises(UsageError, match="there are none"):
        lab.load(str(folder / "*"))


def test_metrics_are_a_frame_too(folder: Path) -> None:
    kept(folder, "one", [{"latency": {"rauta": [latency(250)] * 6}}])
    frame = frames.metrics("one").set_index(["quantity", "statistic"])
    assert frame.value["", "median"] == 250.0
    assert frame.value["", "p99"] == pytest.approx(250.0, rel=1e-2)
    assert frame.low["p99", "median"] == 250.0


def test_no_number_that_is_none_gets_into_json(folder: Path) -> None:
    bad = Sample(math.nan, valid=False, reason="died", details={"rate": math.inf})
    found = kept(folder, "one", [{"latency": {"rauta": [bad]}}])
    text = (found.folder / "run.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert json.loads(text)["metrics"][0]["median"] is None
    assert found.samples(0, "latency")["rauta"][0].details == {"rate": None}
    assert math.isnan(found.samples(0, "latency")["rauta"][0].value)


def test_importing_the_lab_costs_nothing() -> None:
    program = "import sys, lab; print(*{'pandas', 'pyarrow', 'numpy', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("\n", "")


def test_a_run_is_kept_for_reference_without_its_logs(folder: Path) -> None:
    found = kept(folder, "one", [{"program": {"rauta": [1.0]}}])
    found.folder.joinpath("logs").mkdir()
    target = results.keep(found.folder)
    assert sorted(path.name for path in target.iterdir()) == ["run.json", "samples.parquet"]
    assert results.folders() == [found.folder]
