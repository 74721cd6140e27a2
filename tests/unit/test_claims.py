"""The claims ledger: what runs make of claims, and that what people read is what the runs say."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from kept_runs import MACHINE, kept, latency, record

from lab import claims, ledger, results, scenario, tables
from lab.agreement import quantities
from lab.claims import Claim, Finding, Status
from lab.environment import REPOSITORY
from lab.errors import UsageError
from lab.judging import floor_key
from lab.kept import Kept, all_kept
from lab.samples import Sample
from lab.verdict import Exit
from rauta.files.document import DocumentError

CLAIMS = claims.read(REPOSITORY / ledger.CLAIMS)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs are kept; it is empty."""
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    return tmp_path


def claim(*tests: Mapping[str, Any], **fields: Any) -> Claim:
    """One about quickstart."""
    wanted = {
        "id": "one",
        "claim": "It is so.",
        "source": "mission",
        "asked": "< 1",
        "scenario": "quickstart",
        **fields,
    }
    return Claim.model_validate({**wanted, "tests": tests})


def found(*tests: Mapping[str, Any], **fields: Any) -> Finding:
    (finding,) = claims.findings([claim(*tests, **fields)], all_kept())
    return finding


def program(value: float = 180.0, spread: float = 5.0) -> dict[str, Any]:
    """Six rounds over a bare program of 55 ns."""
    return {"program": {"rauta": [value - spread + 0.4 * spread * n for n in range(6)], "xdp-tx": [55.0] * 6}}


OVER = {"metric": "program.median", "over": "xdp-tx"}


# ---- what becomes of a claim --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bound", "status"),
    [
        ({"max": "200ns"}, Status.CONFIRMED),
        ({"max": "0.2us"}, Status.CONFIRMED),
        ({"max": "110ns"}, Status.REFUTED),
        ({"max": "125ns"}, Status.INCONCLUSIVE),
        ({"min": "100ns", "max": "200ns"}, Status.CONFIRMED),
        ({"min": "200ns"}, Status.REFUTED),
    ],
    ids=str,
)
def test_the_interval_decides(folder: Path, bound: dict[str, str], status: Status) -> None:
    kept(folder, "1", [program()])
    finding = found({**OVER, **bound})
    assert finding.status is status
    assert finding.verdicts[0].measured == pytest.approx(125)


def test_without_a_run_nothing_is_measured(folder: Path) -> None:
    assert found({**OVER, "max": "1ns"}).status is Status.NOT_MEASURED
    kept(folder, "1", [program()], scenario="another")
    assert found({**OVER, "max": "1ns"}).status is Status.NOT_MEASURED


@pytest.mark.parametrize(
    ("test", "why"),
    [
        ({"metric": "program.p99.median", "max": 1}, "no program.p99.median"),
        ({"metric": "keepalive.median", "max": 1}, "no keepalive.median"),
        ({"metric": "program.median", "of": "envoy", "max": "1ns"}, "no samples of envoy"),
        ({"metric": "program.median", "at": {"routes": 7}, "max": "1ns"}, "no program.median"),
    ],
    ids=str,
)
def test_what_a_run_lacks_is_not_measured(folder: Path, test: dict[str, Any], why: str) -> None:
    kept(folder, "1", [program()])
    finding = found(test)
    assert finding.status is Status.NOT_MEASURED
    assert why in finding.verdicts[0].reason


def test_all_tests_must_hold(folder: Path) -> None:
    kept(folder, "1", [program()])
    good, bad, open_ = ({**OVER, "max": bound} for bound in ("200ns", "1ns", "125ns"))
    absent = {"metric": "syn.median", "max": "1ns"}
    assert found(good, good).status is Status.CONFIRMED
    assert found(good, bad, open_).status is Status.REFUTED
    assert found(good, open_).status is Status.INCONCLUSIVE
    assert found(good, absent).status is Status.NOT_MEASURED


def test_all_cells_must_hold(folder: Path) -> None:
    kept(folder, "1", [program(), program(300)], params=[{"routes": 1}, {"routes": 65536}])
    test = {**OVER, "max": "200ns"}
    assert found(test).status is Status.REFUTED
    assert found({**test, "at": {"routes": 1}}).status is Status.CONFIRMED
    scaled = {"metric": "program.median", "at": {"routes": 65536}, "against": {"routes": 1}}
    assert found({**scaled, "max": 1.2}).status is Status.REFUTED
    assert found({**scaled, "max": 2}).verdicts[0].measured == pytest.approx(300 / 180, rel=0.01)


@pytest.mark.parametrize(
    "spoiled", [Sample(180, flags=("steal 9 %",)), Sample(180, valid=False, reason="lost")], ids=["noisy", "invalid"]
)
def test_a_spoiled_sample_is_neither_confirmation_nor_refutation(folder: Path, spoiled: Sample) -> None:
    samples = program()
    samples["program"]["rauta"][2] = spoiled
    kept(folder, "1", [samples])
    assert {found({**OVER, "max": bound}).status for bound in ("1ns", "900ns")} == {Status.INCONCLUSIVE}


def test_what_a_machine_lacks_decides_nothing(folder: Path) -> None:
    kept(folder, "1", [program()])
    finding = found({**OVER, "max": "1ns"}, needs="a NIC")
    assert finding.status is Status.NOT_RESOLVABLE
    assert finding.verdicts[0].measured is not None


@pytest.mark.parametrize("own", [True, False], ids=["the run's own pairs", "a run of noise"])
def test_below_the_floor_nothing_is_resolved(folder: Path, own: bool) -> None:
    run = kept(folder, "2-run", [program()])
    key = floor_key(run.cells[0]["measure"]["program"], "program.median", "difference")
    pair = [{"key": key, "floor": 150.0}]
    noise = run if own else kept(folder, "1-noise", [program()])
    content = dict(noise.content) | {"floors": pair} | ({} if own else {"kind": "noise"})
    others = [] if own else [run]
    (finding,) = claims.findings([claim({**OVER, "max": "110ns"})], [Kept(noise.folder, content), *others])
    assert finding.run is not None
    assert finding.run.id == "2-run"
    assert finding.status is Status.NOT_RESOLVABLE


def test_another_machines_floor_does_not_count(folder: Path) -> None:
    run = kept(folder, "2-run", [program()])
    key = floor_key(run.cells[0]["measure"]["program"], "program.median", "difference")
    elsewhere = kept(folder, "1-noise", [program()], environment={**MACHINE, "python": "3.13"})
    content = {**elsewhere.content, "kind": "noise", "floors": [{"key": key, "floor": 150.0}]}
    (finding,) = claims.findings([claim({**OVER, "max": "110ns"})], [Kept(elsewhere.folder, content), run])
    assert finding.status is Status.REFUTED


def test_the_newest_run_with_figures_counts(folder: Path) -> None:
    kept(folder, "1", [program(300)])
    kept(folder, "2", [program(180)])
    kept(folder, "3-no-timing", [{}])
    assert found({**OVER, "max": "200ns"}).run == Kept.find("2")


def test_a_mistake_in_the_file_has_its_line(tmp_path: Path) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text("claims:\n  - id: one\n    claim: x\n    nonsense: 1\n")
    with pytest.raises(DocumentError, match=r"claims.yaml:4: claims\[0\].nonsense"):
        claims.read(path)


# ---- the claims that are made -------------------------------------------------------------------------


def test_each_claim_has_a_name_of_its_own() -> None:
    assert len({one.id for one in CLAIMS}) == len(CLAIMS) >= 20


@pytest.mark.parametrize("one", CLAIMS, ids=lambda one: one.id)
def test_a_claims_tests_are_measured_by_its_scenario(one: Claim) -> None:
    """Where the scenario has been written: each test names a measure, a quantity, contenders and cells of it."""
    if not (scenario.FOLDER / f"{one.scenario}.yaml").is_file():
        assert ledger.generated()[ledger.PAGE].count(f"{one.scenario} (not written yet)")
        return
    cells = scenario.load_cells(scenario.find(one.scenario))
    for test in one.tests:
        fitting = [cell for cell in cells if test.applies_to(cell.params) and test.measure in cell.measure]
        assert fitting, f"no cell of {one.scenario} has {test.metric}"
        measure = fitting[0].measure[test.measure]
        subjects = measure.subjects(fitting[0].contenders)
        assert {test.of, test.ratio_to, test.over} - {None} <= set(subjects)
        known = {"": measure.quantity, **quantities(measure, fitting[0].background)}
        unit = "" if test.is_ratio else known[test.quantity].unit
        assert [bound.in_unit(unit) for bound in (test.min, test.max) if bound is not None]


# ---- what people read ---------------------------------------------------------------------------------


def test_what_people_read_is_current() -> None:
    assert ledger.stale() == [], "python -m lab claims"


TWO_CLAIMS = """
claims:
  - id: against-nginx
    claim: It is faster.
    source: ours
    asked: ≥ 2.5 × nginx
    scenario: comparison
    tests: [{metric: keepalive.median, ratio_to: nginx, min: 2.5}]
  - id: bears-loss
    claim: It bears loss.
    source: ours
    asked: ≥ 0.9
    scenario: never-written
    note: Of frames.
    tests: [{metric: keepalive.median, ratio_to: direct, min: 0.9}]
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a README, two claims and a run of `comparison`."""
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results/reference")
    (tmp_path / "docs").mkdir()
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab/claims.yaml").write_text(TWO_CLAIMS)
    (tmp_path / "README.md").write_text(
        "# X\n<!-- claims -->\nold\n<!-- /claims -->\ntext\n<!-- comparison -->\n<!-- /comparison -->\nend\n"
    )
    samples = {
        **program(),
        "keepalive": {"rauta": [60e3, 61e3, 62e3, 60e3, 61e3, 62e3], "nginx": [20e3] * 6, "direct": [80e3] * 6},
    }
    kept(results.FOLDER, "20260101-comparison", [samples], scenario="comparison")
    return tmp_path


def test_files_are_written_once_and_then_current(root: Path) -> None:
    assert ledger.stale(root) == [Path("docs/claims.md"), Path("README.md")]
    assert ledger.write(root) == [Path("docs/claims.md"), Path("README.md")]
    assert ledger.stale(root) == []
    assert ledger.write(root) == []
    readme = (root / "README.md").read_text()
    assert "old" not in readme
    assert readme.startswith("# X\n<!-- claims -->\n2 claims: 1 confirmed, 1 not measured yet.")
    assert readme.endswith("<!-- /comparison -->\nend\n")
    assert "2.5 × nginx | 3.05 [3, 3.1] | **confirmed**" in readme


def test_a_change_of_a_run_or_a_page_makes_them_stale(root: Path) -> None:
    ledger.write(root)
    page = root / "docs/claims.md"
    page.write_text(page.read_text().replace("confirmed", "denied", 1))
    assert ledger.stale(root) == [Path("docs/claims.md")]
    ledger.write(root)
    shutil.rmtree(root / "results/reference/20260101-comparison")
    assert ledger.stale(root) == [Path("docs/claims.md"), Path("README.md")]
    assert "Not measured yet: `python -m lab run comparison`" in ledger.generated(root)[Path("README.md")]


def test_a_readme_without_markers_is_refused(root: Path) -> None:
    (root / "README.md").write_text("<!-- claims -->\n<!-- /claims -->\n")
    with pytest.raises(UsageError, match=r"updating README.md(.|\n)*comparison"):
        ledger.write(root)


def test_the_page_says_how_each_claim_was_tested(root: Path) -> None:
    page = ledger.generated(root)[ledger.PAGE]
    for name in ("against-nginx", "bears-loss"):
        assert f"### {name}\n" in page
        assert f"[{name}](#{name})" in page
    assert "- Tested by never-written (not written yet): `python -m lab run never-written`\n- Of frames.\n" in page
    assert "run 20260101-comparison (VALID)" in page
    assert "from 61,000 and 20,000 requests/s, 6 rounds: pass" in page


def test_the_comparison_has_a_row_for_each_metric_and_a_column_for_each_contender(root: Path) -> None:
    table = tables.comparison_table(Kept.read(results.FOLDER / "20260101-comparison")).split("\n\n")[0]
    rows: Sequence[Sequence[str]] = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[0] == ["", "unit", "rauta", "direct", "xdp-tx", "nginx"]
    by_name = {row[0]: row for row in rows}
    assert by_name["program"] == ["program", "ns", "180 [175, 185]", "–", "55 [55, 55]<br>+125 [120, 130]", "–"]
    assert by_name["keepalive"][2] == "61,000 [60,000, 62,000]"
    assert by_name["keepalive"][3] == "80,000 [80,000, 80,000]<br>× 0.762 [0.75, 0.775]"
    assert list(by_name).index("program") < list(by_name).index("keepalive")


def test_an_invalid_figure_is_not_shown(folder: Path) -> None:
    samples = {"keepalive": {"rauta": [60e3] * 6, "nginx": [*[20e3] * 5, Sample(1, valid=False, reason="errors")]}}
    table = tables.comparison_table(kept(folder, "1", [samples]))
    assert "| keepalive | requests/s | 60,000 [60,000, 60,000] | – |" in table


def test_latencies_have_a_row_for_each_quantile(folder: Path) -> None:
    samples = {
        "latency": {
            "rauta": [latency(200)] * 6,
            "nginx": [latency(800)] * 6,
            "envoy": [latency(1600)] * 5 + [Sample(0, valid=False)],
        }
    }
    rows = tables.comparison_table(kept(folder, "1", [samples])).splitlines()
    (p50,) = (row for row in rows if row.startswith("| latency p50 |"))
    assert p50 == "| latency p50 | us | 200 [200, 200] | 800 [800, 800]<br>× 0.25 [0.25, 0.25] | – |"
    assert sum(row.startswith("| latency p99 |") for row in rows) == 1
    assert not any(row.startswith("| latency |") for row in rows)


def test_a_run_without_a_finished_round_has_no_table(folder: Path) -> None:
    made = record("1", [program()])
    made.order = []
    made.folder.mkdir()
    made.save(Exit.INTERRUPTED)
    with pytest.raises(UsageError, match="no finished round"):
        tables.comparison_table(Kept.find("1"))


def test_links_of_the_page_lead_somewhere() -> None:
    page = (REPOSITORY / ledger.PAGE).read_text()
    for part in page.split("](../")[1:]:
        assert (REPOSITORY / part.split(")")[0]).is_file()
