"""What makes the lab's numbers believable, by whole runs as a user starts them: what is wrong is not timed, what is
disturbed decides nothing, what depends on how long one looks is not valid, and an interrupted run goes on.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet as pq
import pytest

from lab import results, state
from lab.environment import REPOSITORY
from lab.process import wait_until
from lab.results import FOLDER

SCENARIO = Path(__file__).parent / "data" / "measuring.yaml"
RUN_SECONDS = 120.0
ROUNDS = 6
INTERRUPTED_AFTER = 2
"""rounds, at least"""
ANYTHING = "targets=[{metric: rps.median, of: direct, min: 1}, {metric: rps.median, of: direct, max: 1}]"
"""a target that any machine reaches, and one that none does"""
OVERLOAD = [
    *("measure.latency.rate=400k", "measure.latency.duration=50ms", "measure.latency.connections=32"),
    "targets=[{metric: latency.p50, of: direct, max: 60s}]",
]
"""more than any server here answers: requests queue, and the longer it lasts, the longer they wait"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")


@pytest.fixture(autouse=True)
def results_of_these_runs_are_removed() -> Iterator[None]:
    before = set(FOLDER.glob(f"*-{SCENARIO.stem}-*"))
    yield
    for folder in set(FOLDER.glob(f"*-{SCENARIO.stem}-*")) - before:
        shutil.rmtree(folder)


def command(settings: Sequence[str], *words: str) -> list[str]:
    changes = [word for setting in settings for word in ("--set", setting)]
    return [sys.executable, "-m", "lab", "run", str(SCENARIO), "--json", *changes, *words]


def run(settings: Sequence[str], *words: str) -> dict[str, Any]:
    """Run it to its end: the content of run.json, whose exit code is the command's."""
    argv = command(settings, *words)
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)
    assert done.stdout, done.stderr
    content: dict[str, Any] = json.loads(done.stdout)
    assert (done.returncode, content["error"]) == (content["exit_code"], None), done.stderr
    return content


def samples(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All rows of its samples."""
    found: list[dict[str, Any]] = pq.read_table(FOLDER / content["id"] / "samples.parquet").to_pylist()
    return found


def outcomes(content: Mapping[str, Any]) -> list[str]:
    return [verdict["outcome"] for verdict in content["verdicts"]]


# ---- prove, then time -------------------------------------------------------------------------------------------


def test_a_wrong_answer_stops_the_timing_of_whoever_gave_it() -> None:
    """RAUTA is asked for what its routes send elsewhere."""
    wrong = ["checks.0.cluster=web", "checks.0.only=rauta"]
    target = "targets=[{metric: rps.median, of: rauta, ratio_to: direct, min: 0.01}]"
    content = run([*wrong, target], "--only", "rps", "--only", "program")
    assert (content["exit_code"], content["outcome"]) == (1, "failed")
    (failed,) = (check for check in content["checks"] if not check["passed"])
    assert (failed["contender"], "answered by api-1" in failed["detail"]) == ("rauta", True)
    timed = Counter((row["measure"], row["contender"]) for row in samples(content) if not row["quantity"])
    assert timed == {("rps", "direct"): 6, ("program", "xdp-tx"): 6}, "not in any layer"
    assert outcomes(content) == ["not measured"]
    assert not [metric for metric in content["metrics"] if metric["contender"] == "rauta"]
    assert list((FOLDER / content["id"] / "pcaps").glob("rauta-0*")), "its packets are kept"


def test_of_whoever_answers_well_it_does_not() -> None:
    content = run([], "--only", "rps", "--only", "program")
    assert content["exit_code"] == 0
    timed = Counter((row["measure"], row["contender"]) for row in samples(content) if not row["quantity"])
    assert timed == dict.fromkeys([("rps", "direct"), ("rps", "rauta"), ("program", "rauta"), ("program", "xdp-tx")], 6)


def test_interfaces_are_noted_of_each_contender_as_they_were_with_it() -> None:
    interfaces = run(["plan.timing=false"])["environment"]["interfaces"]
    assert {name: hosts["router"]["xdp"] for name, hosts in interfaces.items()} == {"direct": "none", "rauta": "native"}


def test_a_twin_passes_the_same_checks() -> None:
    check = "checks=[{equal: [rauta.requests_routed, client.requests], only: rauta}]"
    content = run(["contenders=[rauta, 'rauta#2']", check, "plan.timing=false", "targets=[]"])
    assert content["exit_code"] == 0
    assert {check["contender"] for check in content["checks"] if check["passed"]} == {"rauta", "rauta#2"}


# ---- disturbed ------------------------------------------------------------------------------------------------


@pytest.fixture
def hog() -> Iterator[None]:
    """A program of somebody else's that takes all of a CPU that it gets."""
    with subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) as process:
        yield
        process.kill()


@pytest.mark.usefixtures("hog")
def test_a_hog_makes_a_run_noisy_and_neither_good_nor_bad() -> None:
    content = run([ANYTHING, "valid.foreign_cpu=< 5%"], "--only", "rps", "--contender", "direct")
    assert outcomes(content) == ["inconclusive", "inconclusive"]
    assert (content["exit_code"], content["validity"]["state"]) == (3, "NOISY")
    assert all("other programs used" in reason for reason in content["validity"]["reasons"])
    assert all("other programs used" in verdict["reason"] for verdict in content["verdicts"])
    attempts = [json.loads(row["details"])["attempt"] for row in samples(content) if not row["quantity"]]
    assert attempts == [4] * 6, "each was taken again three times"


@pytest.mark.usefixtures("hog")
def test_without_a_limit_for_others_it_is_judged_all_the_same() -> None:
    """So it is the limit that keeps a disturbed run from passing, and from failing."""
    content = run([ANYTHING], "--only", "rps", "--contender", "direct")
    assert outcomes(content) == ["pass", "fail"]
    assert (content["exit_code"], content["validity"]["state"]) == (1, "VALID")


def test_a_generator_that_is_busy_all_the_time_is_flagged() -> None:
    settings = ["measure.latency.spin=1s", "targets=[{metric: latency.p50, of: direct, max: 60s}]"]
    content = run(settings, "--only", "latency", "--contender", "direct")
    assert outcomes(content) == ["inconclusive"]
    assert (content["exit_code"], content["validity"]["state"]) == (3, "NOISY")
    reasons = content["validity"]["reasons"]
    assert all("the generator" in reason for reason in reasons)  # busy, or late because of it
    assert any("was busy" in reason for reason in reasons)
    assert median(row["generator"] for row in samples(content)) > 0.9


def test_one_that_sleeps_most_of_the_time_is_not() -> None:
    settings = ["measure.latency.rate=100", "targets=[{metric: latency.p50, of: direct, max: 60s}]"]
    content = run(settings, "--only", "latency", "--contender", "direct")
    assert (outcomes(content), content["validity"]["state"]) == (["pass"], "VALID")
    assert all(row["generator"] < 0.5 for row in samples(content))


def test_the_limit_for_generators_is_the_scenarios() -> None:
    content = run(["valid.generator_cpu=< 1%", ANYTHING], "--only", "rps", "--contender", "direct")
    assert (outcomes(content), content["exit_code"]) == (["inconclusive", "inconclusive"], 3)
    assert all("(limit 1%)" in reason for reason in content["validity"]["reasons"])


# ---- N against 2 N ----------------------------------------------------------------------------------------------


def test_a_result_that_depends_on_how_long_one_looks_is_not_valid() -> None:
    content = run([*OVERLOAD, "valid.n_vs_2n=< 30%"], "--only", "latency", "--contender", "direct")
    (verdict,) = content["verdicts"]
    assert verdict["outcome"] == "not valid"
    assert "twice the work changes the result by" in verdict["reason"]
    assert (content["exit_code"], content["validity"]["state"]) == (3, "INVALID")
    scales = Counter(row["scale"] for row in samples(content) if not row["quantity"])
    assert scales == {1: 6, 2: 3}


def test_unless_nobody_asks() -> None:
    content = run(OVERLOAD, "--only", "latency", "--contender", "direct")
    assert (outcomes(content)[0] != "not valid", {row["scale"] for row in samples(content)}) == (True, {1})


# ---- interrupted, and resumed -----------------------------------------------------------------------------------


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts runs, and makes sure that none survives the test."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(settings: Sequence[str], *words: str) -> subprocess.Popen[bytes]:
        with (tmp_path / "said").open("w") as said:
            argv = command(settings, *words)
            processes.append(subprocess.Popen(argv, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=said))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()
    state.clean()


def folder_of(process: subprocess.Popen[bytes]) -> Path:
    """Where a run that is under way keeps its results."""

    def found() -> list[Path]:
        names = [one.name for one in state.runs() if (owner := one.owner()) and owner.pid == process.pid]
        return [folder for name in names for folder in FOLDER.glob(f"*-{name}")]

    wait_until(lambda: bool(found()) or process.poll() is not None, seconds=30, what="the run to begin")
    return found()[0]


def rounds_done(folder: Path) -> int:
    path = folder / "run.json"
    return int(json.loads(path.read_text())["rounds"]["done"]) if path.exists() else 0


def test_an_interrupted_run_goes_on_where_it_was(started: Callable[..., subprocess.Popen[bytes]]) -> None:
    choice = ([f"plan.rounds={ROUNDS}"], "--only", "rps", "--only", "latency")
    process = started(*choice)
    folder = folder_of(process)
    wait_until(lambda: rounds_done(folder) >= INTERRUPTED_AFTER, seconds=60, what="some rounds")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    before = results.read(folder)
    done = before["rounds"]["done"]
    assert (before["outcome"], INTERRUPTED_AFTER <= done < ROUNDS) == ("interrupted", True)
    kept = [row for row in samples(before) if row["round"] <= done]
    looks = pq.read_table(folder / "series.parquet").to_pylist()

    after = run(*choice, "--resume", before["id"])
    assert (after["id"], after["outcome"], after["started"]) == (before["id"], "passed", before["started"])
    assert after["rounds"] == {"done": ROUNDS, "planned": ROUNDS}
    assert after["duration"] > before["duration"]
    assert after["order"][:done] == before["order"]
    rows = samples(after)
    assert [row for row in rows if row["round"] <= done] == kept, "the same numbers, histograms and times"
    each = Counter((row["round"], row["measure"], row["contender"], row["quantity"]) for row in rows)
    assert set(each.values()) == {1}
    assert {row["round"] for row in rows} == set(range(1, ROUNDS + 1))
    series = pq.read_table(folder / "series.parquet").to_pylist()
    assert len(looks) > 1
    assert series[: len(looks)] == looks, "the time series goes on, too"
    assert series[len(looks)]["time"] > looks[-1]["time"]


def test_it_goes_on_only_as_the_run_that_it_was(started: Callable[..., subprocess.Popen[bytes]]) -> None:
    process = started([f"plan.rounds={ROUNDS}"], "--only", "rps")
    folder = folder_of(process)
    wait_until(lambda: rounds_done(folder) >= 1, seconds=60, what="a round")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    before = (folder / "run.json").read_bytes()
    argv = command([f"plan.rounds={ROUNDS}"], "--only", "latency", "--resume", folder.name)
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)
    assert (done.returncode, "it was another scenario" in done.stderr) == (2, True), done.stderr
    assert (folder / "run.json").read_bytes() == before
