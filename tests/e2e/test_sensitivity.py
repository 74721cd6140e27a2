"""Two of the same are the same: the lab finds no difference where there is none (A/A), and says so narrowly.

This takes a few minutes, because it measures: twenty intervals from a hundred rounds or so. What it asks is that of a
believable instrument, not of a fast machine. (That it finds differences where there are some: test_slowdown.py.)
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, stdev

import pytest
from scipy.stats import t as student

from lab import results, run, scenario, statistics
from lab.kept import Kept
from lab.run import Options

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

FILE = Path(__file__).parent / "data" / "sensitivity.yaml"
LONG = bool(os.environ.get("RAUTA_LONG"))
"""`make test-long`: every pair, the program that the verifier takes longest for, and longer samples"""
INTERVALS, ROUNDS = 20, 8 if LONG else 6
"""A/A intervals, and rounds in each"""
STRIDE = ROUNDS if LONG else ROUNDS // 2
"""rounds from an interval's first to the next one's: in the short form each round is in two of them"""
CONFIDENCE = 0.95
PROGRAM = "measure={program: {layer: bpf, frame: first-request, connections: 256}}"
KEEPALIVE = f"measure.keepalive.duration={500 if LONG else 250}ms"
PAIRS = {
    "program": ("rauta" if LONG else "xdp-l4", PROGRAM, 0.03),
    "keepalive": ("direct", KEEPALIVE, 0.05),
    **({"keepalive of rauta": ("rauta", KEEPALIVE, 0.05)} if LONG else {}),
}
"""what is measured twice in each round, how, and how wide the intervals' halves may be, at the median"""
NOISE_FACTOR = 2.0
"""How much wider than by Student's t on the same rounds they may be where the machine itself is too noisy for that:
medians of a few values use less of them than means do, and assume less."""

Execute = Callable[..., Kept]


@pytest.fixture
def execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Execute:
    """Run a scenario in this process, and keep it in a folder of the test's own."""
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")

    def _execute(options: Options, *overrides: str) -> Kept:
        cells = scenario.load_cells(FILE, overrides=overrides)
        content = run.execute(cells, options, run.Silent(), lambda _: None)
        assert content["error"] is None, content["error"]
        return Kept.read(tmp_path / "results" / content["id"])

    return _execute


def values(kept: Kept, measure: str, contender: str) -> list[float]:
    return [sample.value for sample in kept.samples(0, measure)[contender]]


@pytest.mark.parametrize("pair", PAIRS)
def test_two_of_the_same_are_the_same(execute: Execute, pair: str) -> None:
    """Eighteen of twenty 95 % intervals contain 1, and they are narrow enough to say something.

    On a machine that gives the same program 10 % more or less from one moment to the next, no interval can be narrow
    and right: there they are to be as narrow as that allows.
    """
    (name, setting, limit), measure, rounds = PAIRS[pair], pair.split()[0], (INTERVALS - 1) * STRIDE + ROUNDS
    contenders = f"contenders=[{name}, '{name}#2', xdp-tx]"
    kept = execute(Options(only=(measure,)), setting, contenders, f"plan.rounds={rounds}", "plan.max_time=10m")
    own, other = (values(kept, measure, one) for one in (name, f"{name}#2"))
    starts = range(0, INTERVALS * STRIDE, STRIDE)
    found = [
        statistics.ratio(own[first : first + ROUNDS], other[first : first + ROUNDS], confidence=CONFIDENCE)
        for first in starts
    ]
    assert sum(one.contains(1) for one in found) >= 18, found
    widths = [one.half_width or 1.0 for one in found]
    noise = [half_by_student(own[first : first + ROUNDS], other[first : first + ROUNDS]) for first in starts]
    assert median(widths) <= max(limit, NOISE_FACTOR * median(noise)), (sorted(widths), sorted(noise))


def half_by_student(own: Sequence[float], other: Sequence[float]) -> float:
    """Half the width of a 95 % interval on the mean ratio of paired values."""
    ratios = [math.log(one / another) for one, another in zip(own, other, strict=True)]
    return float(student.ppf((1 + CONFIDENCE) / 2, len(ratios) - 1)) * stdev(ratios) / math.sqrt(len(ratios))
