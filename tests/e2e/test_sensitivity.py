"""Two of the same are the same: the lab finds no difference where there is none (A/A), and says so narrowly.

This takes a few minutes, because it measures: twenty intervals, each from rounds of its own. What it asks is that of a
believable instrument, not of a fast machine. (That it finds differences where there are some: test_slowdown.py.)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import results, run, scenario, statistics
from lab.kept import Kept
from lab.run import Options

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

FILE = Path(__file__).parent / "data" / "sensitivity.yaml"
INTERVALS, ROUNDS = 20, 8
"""A/A intervals, and rounds in each"""
CONFIDENCE = 0.95
HALF_WIDTHS = {"program": 0.03, "keepalive": 0.05}
"""of their intervals, at most, at the median: program cost and a ratio of requests/s"""
PROGRAM = "{layer: bpf, frame: first-request, connections: 256}"
KEEPALIVE = "{layer: http, tool: wrk, path: /api/x, cluster: polite, connections: 16, duration: 150ms}"

Execute = Callable[..., Kept]


@pytest.fixture
def execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Execute:
    """Run a scenario in this process, and keep it in a folder of the test's own."""
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")

    def _execute(*overrides: str) -> Kept:
        cells = scenario.load_cells(FILE, overrides=overrides)
        content = run.execute(cells, Options(), run.Silent(), lambda _: None)
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
        "contenders=[rauta, 'rauta#2', xdp-tx]",
        f"measure={{program: {PROGRAM}, keepalive: {KEEPALIVE}}}",
        "plan.max_time=10m",
    )
    for measure, limit in HALF_WIDTHS.items():
        own, other = (values(kept, measure, name) for name in ("rauta", "rauta#2"))
        found = [
            statistics.ratio(own[first : first + ROUNDS], other[first : first + ROUNDS], confidence=CONFIDENCE)
            for first in range(0, rounds, ROUNDS)
        ]
        widths = sorted(one.half_width or 1.0 for one in found)
        assert sum(one.contains(1) for one in found) >= 18, (measure, found)
        assert widths[INTERVALS // 2] <= limit, (measure, widths)
