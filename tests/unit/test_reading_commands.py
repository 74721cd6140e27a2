"""history, export and the commands that read what runs have left, through the command line."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from kept_runs import MACHINE, kept, latency
from typer.testing import CliRunner, Result

from lab import export, history, results
from lab.cli import app
from lab.errors import UsageError
from lab.kept import Kept, all_kept
from lab.samples import Sample


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs are kept; it is empty. Tables are as wide as they like."""
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr("lab.display.PIPED_WIDTH", 300)
    return tmp_path


def lab(*argv: str) -> Result:
    return CliRunner().invoke(app, argv, catch_exceptions=False)


def program(value: float) -> dict[str, Any]:
    return {"program": {"rauta": [value + n for n in range(6)], "xdp-tx": [55.0] * 6}}


# ---- export -------------------------------------------------------------------------------------------


def test_csv_has_a_row_for_each_number(folder: Path) -> None:
    kept(folder, "one", [{"latency": {"rauta": [latency(250), latency(260)]}}])
    rows = list(csv.DictReader(io.StringIO(export.export("one"))))
    assert len(rows) == 6
    assert [float(row["value"]) for row in rows if not row["quantity"]] == [250.0, 260.0]
    assert {row["generator"] for row in rows} == {""}


def test_json_has_null_for_what_is_no_number(folder: Path) -> None:
    spoiled = Sample(math.nan, valid=False, reason="died", quantities={"p99": math.inf})
    params = [{"routes": 1}]
    kept(folder, "one", [{"latency": {"rauta": [spoiled]}}], params=params)
    kept(folder, "two", [{"latency": {"rauta": [latency(250)]}}])
    text = export.export(["one", "two"], form="json")
    rows = json.loads(text, parse_constant=pytest.fail)
    assert [row["value"] for row in rows] == [None, None, 250.0, 250.0, 20_000.0]
    assert [row["param_routes"] for row in rows] == [1.0, 1.0, None, None, None]
    assert [row["requests"] for row in rows][:3] == [None, None, 1000.0]


def test_metrics_are_exported_with_their_intervals(folder: Path) -> None:
    kept(folder, "one", [program(180)])
    (row, _) = json.loads(export.export("one", what="metrics", form="json"))
    assert (row["contender"], row["statistic"], row["value"]) == ("rauta", "median", 182.5)
    assert row["low"] < row["value"] < row["high"]


def test_a_file_is_written_in_the_form_of_its_suffix(folder: Path, tmp_path: Path) -> None:
    kept(folder, "one", [program(180)])
    for name in ("x.csv", "x.json"):
        assert lab("export", "one", "-o", str(tmp_path / name)).exit_code == 0
    assert (tmp_path / "x.csv").read_text() == export.export("one") == lab("export", "one").stdout
    assert json.loads((tmp_path / "x.json").read_text()) == json.loads(lab("export", "one", "--format", "json").stdout)


@pytest.mark.parametrize(("name", "why"), [("x.txt", ".txt"), ("no/such/folder/x.csv", "existing folder")])
def test_a_file_that_cannot_be_written_is_said(folder: Path, tmp_path: Path, name: str, why: str) -> None:
    kept(folder, "one", [program(180)])
    done = lab("export", "one", "-o", str(tmp_path / name))
    assert done.exit_code == 2
    assert why in done.stderr


@pytest.mark.parametrize("wrong", [("--what", "logs"), ("--format", "xml")], ids=" ".join)
def test_export_knows_what_it_does_not_know(folder: Path, wrong: tuple[str, str]) -> None:
    kept(folder, "one", [program(180)])
    done = lab("export", "one", *wrong)
    assert done.exit_code == 2
    assert f"{wrong[1]}" in done.stderr


# ---- history ------------------------------------------------------------------------------------------


def test_history_goes_from_old_to_new(folder: Path) -> None:
    dirty = {**MACHINE, "git": {"revision": "f" * 40, "dirty": True}}
    kept(folder, "20260101-a", [program(180)])
    kept(folder, "20260102-b", [program(200)], environment=dirty)
    points = history.history("program.median", all_kept(), of="rauta")
    assert [(one.run, one.value, one.revision, one.unit) for one in points] == [
        ("20260101-a", 182.5, "0123456789ab", "ns"),
        ("20260102-b", 202.5, "ffffffffffff+", "ns"),
    ]
    assert all(one.low is not None and one.low < one.value for one in points)
    shown = lab("history", "program").stdout
    assert shown.index("0123456789ab") < shown.index("ffffffffffff+")
    assert "182 [180, 185] ns" in shown
    assert "xdp-tx" in shown


def test_history_knows_quantiles_and_quantities(folder: Path) -> None:
    kept(folder, "one", [{"latency": {"rauta": [latency(250)] * 6}}])
    for metric in ("latency", "latency.median", "latency.p99", "latency.p99.median", "latency.p99.9"):
        (point,) = history.history(metric, all_kept())
        assert point.value == pytest.approx(250, rel=1e-2)


def test_history_has_the_verdicts_about_the_metric(folder: Path) -> None:
    run = kept(folder, "one", [program(180)])
    verdict = {"metric": "program.median", "of": "rauta", "cell": {}, "terms": "rauta − xdp-tx", "unit": "ns"}
    other = {**verdict, "metric": "syn.median", "measured": None, "outcome": "not measured"}
    content = {**run.content, "verdicts": [{**verdict, "measured": 127.5, "outcome": "pass"}, other]}
    (rauta, reference) = history.history("program.median", [Kept(run.folder, content)])
    assert rauta.verdicts == ("rauta − xdp-tx 127.5 ns: pass",)
    assert reference.verdicts == ()


def test_history_of_one_scenario(folder: Path) -> None:
    kept(folder, "one", [program(180)])
    kept(folder, "two", [program(180)], scenario="frames")
    assert {one.run for one in history.history("program", all_kept(), scenario="frames")} == {"two"}


def test_history_names_what_there_is(folder: Path) -> None:
    kept(folder, "one", [program(180)])
    with pytest.raises(UsageError, match=r"'programme'(.|\n)*There are: program\."):
        history.history("programme", all_kept())
    with pytest.raises(UsageError, match="of envoy"):
        history.history("program", all_kept(), of="envoy")


# ---- compare ------------------------------------------------------------------------------------------


def test_compare_shows_what_changed_and_where(folder: Path) -> None:
    kept(folder, "1-before", [program(180)])
    kept(folder, "2-after", [program(230)])
    done = lab("compare", "1-before", "2-after")
    assert done.exit_code == 0
    assert "128 [125, 130]" in done.stdout
    assert "+39.2% [" in done.stdout
    assert "1 worse, 1 unchanged" in done.stdout
    assert "rauta is worse in layer bpf (the program itself): program +39%" in done.stdout
    assert " unchanged" not in done.stdout.split("1 worse")[0]
    assert " unchanged" in lab("compare", "1-before", "2-after", "--all").stdout.split("1 worse")[0]


def test_compare_holds_several_runs_against_the_first(folder: Path) -> None:
    for name, value in (("1", 180), ("2", 230), ("3", 182)):
        kept(folder, name, [program(value)])
    shown = lab("compare", "1", "2", "3").stdout
    assert shown.count("before: 1\n") == 2
    assert shown.count("is worse in layer bpf") == 1


def test_compare_refuses_unlike_machines_unless_forced(folder: Path) -> None:
    kept(folder, "1", [program(180)])
    kept(folder, "2", [program(230)], environment={**MACHINE, "python": "3.13"})
    refused = lab("compare", "1", "2")
    assert refused.exit_code == 3
    assert "python differs (3.11.2 and 3.13)" in refused.stderr
    forced = lab("compare", "1", "2", "--force")
    assert forced.exit_code == 0
    assert "nothing is judged: python differs (3.11.2 and 3.13)" in forced.stderr
    assert "2 not judged" in forced.stdout
    assert "worse" not in forced.stdout


@pytest.mark.parametrize(
    "wrong", [["1"], ["1", "none"], ["1", "1", "--resolution", "x"], ["1", "1", "--resolution", "0"]]
)
def test_compare_says_what_is_wrong_with_its_arguments(folder: Path, wrong: list[str]) -> None:
    kept(folder, "1", [program(180)])
    assert lab("compare", *wrong).exit_code == 2


# ---- the files that people read -----------------------------------------------------------------------


def test_a_run_is_kept_for_reference(folder: Path) -> None:
    kept(folder, "one", [program(180)])
    assert lab("keep", "last").stdout.strip() == str(folder / "reference/one")
    assert (folder / "reference/one/run.json").is_file()


def test_a_report_table_is_markdown(folder: Path) -> None:
    kept(folder, "one", [program(180)])
    assert lab("report-table", "one").stdout.startswith("|  | unit | rauta | xdp-tx |\n| --- |")


def test_claims_says_whether_its_files_are_current(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lab("claims", "--check").exit_code == 0
    monkeypatch.setattr("lab.ledger.stale", lambda: [Path("docs/claims.md")])
    done = lab("claims", "--check")
    assert done.exit_code == 1
    assert "not current: docs/claims.md" in done.stderr
