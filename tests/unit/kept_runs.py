"""Kept runs for tests: real run.json and samples.parquet, written by lab.results, of samples that the test chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from lab import judging, results
from lab.histogram import Histogram
from lab.kept import Kept
from lab.results import Described, Record, Taken
from lab.samples import CPU_QUANTITIES, Better, Quantity, Sample
from lab.verdict import Exit

MACHINE: dict[str, Any] = {
    "kernel": {"release": "6.18.1", "version": "#1", "machine": "x86_64"},
    "cpu": {"model": "a CPU", "online": 2, "hypervisor": "yes", "governor": "unknown"},
    "bpf": {"jit": "1", "jit_harden": "0", "stats": "0"},
    "mitigations": {"meltdown": "Not affected"},
    "tools": {"wrk": "4.1.0", "nginx": "1.22.1"},
    "sysctls": {"net.core.netdev_budget": "300"},
    "python": "3.11.2",
    "git": {"revision": "0123456789abcdef", "dirty": False},
}
PROGRAM = Described("bpf", "bpf_stats of Linux 6.18.1", {"": Quantity("ns", Better.LOWER)})
WRK = Described("http", "wrk 4.1.0", {"": Quantity("requests/s", Better.HIGHER), **CPU_QUANTITIES})
OPEN_LOOP = Described(
    "http",
    "open_loop 1",
    {
        "": Quantity("us", Better.LOWER),
        "p99": Quantity("us", Better.LOWER),
        "late": Quantity("us", Better.LOWER),
        "rate": Quantity("requests/s", Better.NEITHER),
    },
)
MEASURES = {
    "program": {"layer": "bpf", "frame": "first-request", "reference": "xdp-tx", "unit": "ns"},
    "keepalive": {"layer": "http", "tool": "wrk", "connections": 32, "duration": 1.0, "unit": "requests/s"},
    "latency": {"layer": "http", "tool": "open-loop", "rate": "20k", "duration": 1.0, "unit": "us"},
}
DESCRIBED = {"program": PROGRAM, "keepalive": WRK, "latency": OPEN_LOOP}

Values = Mapping[str, Mapping[str, Sequence[Sample | float]]]
"""samples, or just their values, by measure and contender"""


def resolved(**changes: Any) -> dict[str, Any]:
    """All fields of a scenario's cell, as far as anybody reads them."""
    return {
        "version": 1,
        "claim": "It works.",
        "params": {},
        "topology": {"kind": "one-armed", "cpus": {"client": [], "router": [], "servers": []}},
        "servers": {"web": {"nginx": {"port": 8080}}},
        "routing": {"file": "routing/shop.yaml"},
        "contenders": ["direct", "rauta"],
        "settings": {},
        "measure": deepcopy(MEASURES),
        "plan": {"rounds": 6, "timing": True},
        "valid": {"steal": 0.02, "foreign_cpu": 0.05, "generator_cpu": None, "ci_half_width": None, "n_vs_2n": None},
        **changes,
    }


def sample(value: float | Sample) -> Sample:
    """One with this value, if it is none already."""
    return value if isinstance(value, Sample) else Sample(float(value))


def record(
    name: str,
    cells: Sequence[Values],
    *,
    scenario: str = "quickstart",
    params: Sequence[Mapping[str, Any]] = ({},),
    environment: Mapping[str, Any] = MACHINE,
    described: Mapping[str, Described] = DESCRIBED,
    **changes: Any,
) -> Record:
    """A finished run with these samples. ``changes``: of the scenario's fields."""
    varying = [dict(one) for one in params]
    made = Record(
        id=name,
        scenario={
            "name": scenario,
            "file": f"scenarios/{scenario}.yaml",
            "profile": None,
            "resolved": [resolved(**{"params": one, **changes}) for one in varying],
        },
        cells=varying,
        seed=7,
        command=["python", "-m", "lab", "run", scenario],
        environment=deepcopy(dict(environment)),
        planned=6,
    )
    rounds = 0
    for cell, measures in enumerate(cells):
        for measure, contenders in measures.items():
            made.measures[cell, measure] = described[measure]
            for position, (contender, values) in enumerate(contenders.items()):
                rounds = max(rounds, len(values))
                for number, value in enumerate(values, 1):
                    taken = Taken(cell, number, position, contender, measure, 1, 1.7e9 + number, sample(value))
                    made.add_sample(taken)
    made.order = [["rauta", "direct"]] * rounds
    made.metrics = list(judging._metrics(made))
    return made


def kept(folder: Path, name: str, cells: Sequence[Values], **options: Any) -> Kept:
    """The same, written to ``folder``, which must be lab.results.FOLDER, and read again."""
    assert folder == results.FOLDER
    made = record(name, cells, **options)
    made.folder.mkdir(parents=True)
    made.save(Exit.PASSED)
    return Kept.read(made.folder)


def latency(microseconds: float, rate: float = 20_000.0) -> Sample:
    """A sample of a latency measure whose every request took as long."""
    histogram = Histogram({round(microseconds * 1000): 1000})
    return Sample(microseconds, quantities={"p99": microseconds, "rate": rate}, histogram=histogram, requests=1000)
