"""What the lab can tell apart: nothing where there is nothing (A/A), and a slower program where there is one.

These take a few minutes, because they measure. What they ask is that of a believable instrument, not of a fast machine:
ratios and shares, each from interleaved rounds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import attribution, compare, results, run, scenario, statistics
from lab.environment import REPOSITORY
from lab.kept import Kept
from lab.run import Options
from lab.scenario import Scenario
from rauta import loading
from rauta.bpf import BpfObject

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

FILE = Path(__file__).parent / "data" / "sensitivity.yaml"
INTERVALS, ROUNDS = 20, 8
"""A/A intervals, and rounds in each"""
CONFIDENCE = 0.95
HALF_WIDTHS = {"program": 0.03, "keepalive": 0.05}
"""of their intervals, at most, at the median: program cost and a ratio of requests/s"""
COMPILE = ("clang-19", "-O2", "-g", "-target", "bpf", "-mcpu=v3")
PROGRAM = "{layer: bpf, frame: first-request, connections: 256}"
KEEPALIVE = "{layer: http, tool: wrk, path: /api/x, cluster: polite, connections: 16, duration: 150ms}"

Execute = Callable[..., Kept]


@pytest.fixture
def execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Execute:
    """Run a scenario in this process, and keep it in a folder of the test's own."""
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")

    def _execute(*overrides: str, kind: str = "run") -> Kept:
        cells: tuple[Scenario, ...] = scenario.load_cells(FILE, overrides=overrides)
        content = run.execute(cells, Options(kind=kind), run.Silent(), lambda _: None)
        assert content["error"] is None, content["error"]
        return Kept.read(tmp_path / "results" / content["id"])

    return _execute


def values(kept: Kept, measure: str, contender: str) -> list[float]:
    return [sample.value for sample in kept.samples(0, measure)[contender]]


def test_two_of_the_same_are_the_same(execute: Execute) -> None:
    """Eighteen of twenty 95 % intervals contain 1, and they are narrow enough to say something."""
    rounds = INTERVALS * ROUNDS
    kept = execute(
        f"plan.rounds={rounds}",
        "contenders=[rauta, 'rauta#2', direct, 'direct#2', xdp-tx]",
        f"measure={{program: {PROGRAM}, keepalive: {KEEPALIVE}}}",
        "plan.max_time=10m",
    )
    for measure, contender in (("program", "rauta"), ("keepalive", "direct"), ("keepalive", "rauta")):
        own, other = (values(kept, measure, name) for name in (contender, f"{contender}#2"))
        found = [
            statistics.ratio(own[first : first + ROUNDS], other[first : first + ROUNDS], confidence=CONFIDENCE)
            for first in range(0, rounds, ROUNDS)
        ]
        widths = sorted(one.half_width or 1.0 for one in found)
        assert sum(one.contains(1) for one in found) >= 18, (measure, contender, found)
        assert widths[INTERVALS // 2] <= HALF_WIDTHS[measure], (measure, contender, widths)


def slower(folder: Path, turns: int) -> Path:
    """The router's program, compiled with so many readings of the clock before anything else."""
    sources = folder / "bpf"
    shutil.copytree(REPOSITORY / "bpf", sources)
    text = (sources / "ingress.bpf.c").read_text()
    head = "int rauta_ingress(struct xdp_md *ctx)\n{\n"
    assert text.count(head) == 1
    delay = "\t__u64 spent = 0;\n\n" + "\tspent += bpf_ktime_get_ns();\n" * turns + '\tasm volatile("" ::"r"(spent));\n'
    (sources / "ingress.bpf.c").write_text(text.replace(head, head + delay))
    target = folder / "ingress.bpf.o"
    flags = [f"-D__TARGET_ARCH_{'x86' if os.uname().machine == 'x86_64' else 'arm64'}"]
    flags += [f"-I/usr/include/{os.uname().machine}-linux-gnu", f"-I{sources}"]
    argv = [*COMPILE, *flags, "-c", str(sources / "ingress.bpf.c"), "-o", str(target)]
    subprocess.run(argv, check=True, timeout=60)
    return target


def seed(monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
    original = loading.open_object

    def opened(name: str) -> Any:
        return BpfObject.open(target) if name == "ingress" else original(name)

    monkeypatch.setattr(loading, "open_object", opened)


def test_a_slower_program_is_found_and_its_layer_named(
    execute: Execute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """About a fifth slower, by two readings of the clock: worse in layer bpf, and that is where it arises."""
    before = execute()
    again = execute()
    seed(monkeypatch, slower(tmp_path, turns=2))
    after = execute()
    cost = statistics.median(values(after, "program", "rauta")) / statistics.median(values(before, "program", "rauta"))
    assert 1.1 <= cost <= 1.4, "the seed is not what it was meant to be"
    found = [one for one in attribution.attribute(compare.compare(before, after).changes) if one.contender == "rauta"]
    assert [(str(one.outcome), one.layer) for one in found] == [("worse", "bpf")], list(map(str, found))
    unseeded = attribution.attribute(compare.compare(before, again).changes)
    assert not [str(one) for one in unseeded if one.layer == "bpf"]
