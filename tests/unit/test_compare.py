"""lab.compare and lab.attribution: what changed between two runs, what is refused, and which layer it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kept_runs import DESCRIBED, MACHINE, MEASURES, PROGRAM, kept, latency, resolved

from lab import results
from lab.attribution import attribute
from lab.compare import Change, Comparison, Outcome, compare
from lab.errors import NotComparable
from lab.histogram import Histogram
from lab.judging import floor_key
from lab.kept import Kept
from lab.results import Described
from lab.samples import Better, Quantity, Sample

FRAMES = Described("veth", "replay", {"": Quantity("frames/s", Better.HIGHER)})
LAYERED = {**DESCRIBED, "frames": FRAMES}
WITH_FRAMES = {**MEASURES, "frames": {"layer": "veth", "unit": "frames/s"}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs are kept; it is empty."""
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    return tmp_path


def around(value: float, seed: int, spread: float = 0.01, rounds: int = 8) -> list[float]:
    """Values of a quiet machine."""
    return list(value * np.random.default_rng(seed).normal(1, spread, rounds))


def layers(program: float = 130.0, frames: float = 3e6, requests: float = 60e3, seed: int = 1) -> dict[str, Any]:
    """One run's samples in three layers. ``program``: ns over a bare XDP_TX."""
    return {
        "program": {"rauta": around(55 + program, seed), "xdp-tx": around(55, seed + 1)},
        "frames": {"rauta": around(frames, seed + 2), "xdp-tx": around(5e6, seed + 3)},
        "keepalive": {"rauta": around(requests, seed + 4), "direct": around(80e3, seed + 5)},
    }


def of(found: Comparison, measure: str, contender: str = "rauta", quantity: str = "") -> Change:
    (change,) = (
        one for one in found.changes if (one.measure, one.contender, one.quantity) == (measure, contender, quantity)
    )
    return change


def two(folder: Path, before: Mapping[str, Any], after: Mapping[str, Any], **options: Any) -> tuple[Kept, Kept]:
    options = {"described": LAYERED, "measure": WITH_FRAMES, **options}
    return kept(folder, "1-before", [before], **options), kept(folder, "2-after", [after], **options)


# ---- outcomes -----------------------------------------------------------------------------------------


def test_the_same_thing_twice_is_unchanged(folder: Path) -> None:
    found = compare(*two(folder, layers(seed=1), layers(seed=50)))
    assert {str(one.outcome) for one in found.changes} == {"unchanged"}
    assert attribute(found.changes) == []


@pytest.mark.parametrize(
    ("measure", "factor", "outcome"),
    [
        ("program", 1.2, Outcome.WORSE),
        ("program", 0.8, Outcome.BETTER),
        ("keepalive", 1.2, Outcome.BETTER),
        ("keepalive", 0.8, Outcome.WORSE),
    ],
)
def test_a_change_has_the_direction_of_its_quantity(
    folder: Path, measure: str, factor: float, outcome: Outcome
) -> None:
    changed = {"program": layers(program=130 * factor, seed=50), "keepalive": layers(requests=60e3 * factor, seed=50)}
    found = of(compare(*two(folder, layers(), changed[measure])), measure)
    assert found.outcome is outcome
    assert found.change.contains(factor)


def test_a_program_is_compared_over_the_bare_one(folder: Path) -> None:
    """20 % more of what the program itself costs; of the sum with the replayer it would be 14 %."""
    found = of(compare(*two(folder, layers(), layers(program=156, seed=50))), "program")
    assert (found.terms, found.unit) == ("rauta − xdp-tx", "ns")
    assert found.change.value == pytest.approx(1.2, abs=0.03)
    assert found.before.value == pytest.approx(130, abs=3)


def test_a_slower_machine_is_not_a_slower_router(folder: Path) -> None:
    slow = layers(seed=50)
    slow["keepalive"] = {name: [0.7 * value for value in values] for name, values in slow["keepalive"].items()}
    found = compare(*two(folder, layers(), slow))
    assert of(found, "keepalive").outcome is Outcome.UNCHANGED
    assert of(found, "keepalive").terms == "rauta ÷ direct"
    assert of(found, "keepalive", "direct").outcome is Outcome.WORSE
    assert attribute(found.changes) == []


def test_baselines_are_compared_by_themselves(folder: Path) -> None:
    run = {"frames": {name: around(3e6, seed) for seed, name in enumerate(("rauta", "direct", "xdp-tx", "direct#2"))}}
    found = compare(*two(folder, run, run))
    terms = {one.contender: one.terms for one in found.changes}
    assert terms == {"rauta": "rauta ÷ direct", "direct": "direct", "xdp-tx": "xdp-tx", "direct#2": "direct#2"}


def test_a_wide_interval_is_inconclusive(folder: Path) -> None:
    noisy = {"keepalive": {"rauta": around(60e3, 5, spread=0.3), "direct": around(80e3, 6)}}
    found = of(compare(*two(folder, layers(), noisy)), "keepalive")
    assert found.outcome is Outcome.INCONCLUSIVE
    assert "± 5%" in found.reason


def test_the_resolution_decides_what_matters(folder: Path) -> None:
    runs = two(folder, layers(), layers(requests=60e3 * 0.9, seed=50))
    assert of(compare(*runs, resolution=0.03), "keepalive").outcome is Outcome.WORSE
    assert of(compare(*runs, resolution=0.25), "keepalive").outcome is Outcome.UNCHANGED


def test_below_the_floor_nothing_has_changed(folder: Path) -> None:
    runs = two(folder, layers(), layers(program=156, seed=50))
    assert of(compare(*runs), "program").outcome is Outcome.WORSE
    floors = {floor_key(MEASURES["program"], "program.median", "difference"): 60.0}
    found = of(compare(*runs, floors=floors), "program")
    assert found.outcome is Outcome.UNCHANGED
    assert found.resolution == pytest.approx(60 / 130, rel=0.05)


def test_few_rounds_decide_nothing(folder: Path) -> None:
    few = {"program": {"rauta": [185.0] * 4, "xdp-tx": [55.0] * 4}}
    assert "4 rounds" in of(compare(*two(folder, few, few)), "program").reason


@pytest.mark.parametrize(
    ("spoiled", "why"),
    [
        (Sample(185, flags=("others used 45 % of a CPU",)), "others used"),
        (Sample(185, valid=False, reason="lost"), "lost"),
    ],
)
@pytest.mark.parametrize("whose", ["rauta", "xdp-tx"])
def test_what_is_disturbed_or_wrong_decides_nothing(folder: Path, spoiled: Sample, why: str, whose: str) -> None:
    after = layers(program=200, seed=50)
    after["program"][whose][3] = spoiled
    found = of(compare(*two(folder, layers(), after)), "program")
    assert found.outcome is Outcome.INCONCLUSIVE
    assert found.reason == f"2-after, {whose}, round 4: {found.reason.rpartition(': ')[2]}"
    assert why in found.reason


def test_latency_at_another_load_is_not_compared(folder: Path) -> None:
    before = {"latency": {"rauta": [latency(200, rate=20_000)] * 6}}
    after = {"latency": {"rauta": [latency(400, rate=30_000)] * 6}}
    found = compare(*two(folder, before, after))
    assert of(found, "latency").outcome is Outcome.INCONCLUSIVE
    assert "20,000 and 30,000 requests/s" in of(found, "latency").reason
    assert of(found, "latency", quantity="rate").outcome is Outcome.CHANGED


def test_the_tail_of_latencies_is_compared_round_by_round(folder: Path) -> None:
    """The median stays, the slowest twentieth becomes slower; how late the generator was is its own affair."""
    described = Described(
        "http", "open_loop 1", {"": Quantity("us", Better.LOWER), "late": Quantity("us", Better.LOWER)}
    )

    def run(tail: int, late: float) -> dict[str, Any]:
        histogram = Histogram({200_000: 950, tail: 50})
        return {"latency": {"rauta": [Sample(200.0, histogram=histogram, quantities={"late": late})] * 6}}

    options = {"described": {"latency": described}}
    found = compare(*two(folder, run(1_000_000, 1.0), run(2_000_000, 9.0), **options))
    assert {one.quantity: one.outcome for one in found.changes} == {
        "": Outcome.UNCHANGED,
        "p90": Outcome.UNCHANGED,
        "p99": Outcome.WORSE,
        "p99.9": Outcome.WORSE,
    }
    assert of(found, "latency", quantity="p99").change.value == pytest.approx(2, rel=0.01)
    assert of(found, "latency", quantity="p99").before.value == pytest.approx(1000, rel=0.01)


def losses(before: Sequence[float], after: Sequence[float]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    described = Described("veth", "replay", {"": Quantity("", Better.LOWER)})
    options = {"described": {"loss": described}, "measure": {"loss": {"layer": "veth"}}}
    return {"loss": {"rauta": before}}, {"loss": {"rauta": after}}, options


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        ([0.0] * 6, [0.0] * 6, Outcome.UNCHANGED),
        ([0.0] * 6, [0.01] * 6, Outcome.WORSE),
        ([0.01] * 6, [0.0] * 6, Outcome.BETTER),
        ([-1.0] * 6, [1.0] * 6, Outcome.WORSE),
    ],
)
def test_zeros_are_compared_by_difference(
    folder: Path, before: list[float], after: list[float], outcome: Outcome
) -> None:
    first, second, options = losses(before, after)
    found = of(compare(*two(folder, first, second, **options)), "loss")
    assert not found.is_ratio
    assert found.outcome is outcome


# ---- refusal ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field", ["kernel.release", "cpu.model", "mitigations.meltdown", "tools.wrk", "bpf.jit_harden"]
)
def test_unlike_machines_are_refused_by_name(folder: Path, field: str) -> None:
    other = deepcopy(MACHINE)
    part, name = field.split(".")
    was, other[part][name] = other[part][name], "another"
    runs = (kept(folder, "1", [layers_of_program()]), kept(folder, "2", [layers_of_program()], environment=other))
    with pytest.raises(NotComparable, match=rf"comparing 1 with 2(.|\n)*{field} differs \({was} and another\)"):
        compare(*runs)
    found = compare(*runs, force=True)
    assert [one.field for one in found.environments] == [field]
    assert {one.outcome for one in found.changes} == {Outcome.NOT_JUDGED}
    assert attribute(found.changes) == []


def layers_of_program() -> dict[str, Any]:
    return {"program": layers()["program"]}


def test_another_revision_is_what_one_compares(folder: Path) -> None:
    other = {**MACHINE, "git": {"revision": "f" * 40, "dirty": True}}
    runs = (kept(folder, "1", [layers_of_program()]), kept(folder, "2", [layers_of_program()], environment=other))
    assert compare(*runs).environments == []


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (
            {"measure": {"keepalive": {**MEASURES["keepalive"], "connections": 400}}},
            "measure.connections differs (32 and 400)",
        ),
        (
            {"topology": {**resolved()["topology"], "kind": "two-armed"}},
            "topology.kind differs (one-armed and two-armed)",
        ),
        ({"settings": {"rauta": {"flows": 5}}}, "contender.flows differs (None and 5)"),
        ({"servers": {"web": {"nginx": {"port": 80}}}}, "servers.web.nginx.port differs (8080 and 80)"),
        (
            {"described": {"keepalive": Described("http", "wrk 5", DESCRIBED["keepalive"].quantities)}},
            "instrument differs",
        ),
        (
            {"described": {"keepalive": Described("http", "wrk 4.1.0", {"": Quantity("bit/s", Better.HIGHER)})}},
            "unit differs",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unlike_metrics_are_not_compared_and_the_field_is_named(
    folder: Path, changes: dict[str, Any], field: str
) -> None:
    samples = {"keepalive": {"rauta": around(60e3, 1)}}
    first, second = kept(folder, "1", [samples]), kept(folder, "2", [samples], **changes)
    with pytest.raises(NotComparable) as refused:
        compare(first, second)
    assert f"keepalive of rauta: {field}" in str(refused.value)


def test_how_long_a_measure_takes_does_not_matter(folder: Path) -> None:
    samples = {"keepalive": {"rauta": around(60e3, 1)}}
    longer = {"keepalive": {**MEASURES["keepalive"], "duration": 5.0}}
    assert len(compare(kept(folder, "1", [samples]), kept(folder, "2", [samples], measure=longer)).changes) == 1


def test_cells_are_compared_by_their_parameters(folder: Path) -> None:
    one = {"program": {"rauta": around(100, 1)}}
    many = {"program": {"rauta": around(150, 2)}}
    matrix = kept(folder, "1", [one, many], params=[{"routes": 1}, {"routes": 65536}])
    single = kept(folder, "2", [many], params=[{"routes": 65536}])
    found = compare(matrix, single)
    assert [(change.params, change.outcome) for change in found.changes] == [({"routes": 65536}, Outcome.UNCHANGED)]
    assert found.not_compared == {'program of rauta at {"routes": 1}': "only in 1"}


# ---- attribution --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "layer"),
    [
        ({"program": 130 * 1.2, "frames": 2.7e6, "requests": 59e3}, "bpf"),
        ({"frames": 2.4e6, "requests": 55e3}, "veth"),
        ({"requests": 48e3}, "http"),
    ],
    ids=["bpf", "veth", "http"],
)
def test_a_slowdown_is_found_in_the_layer_where_it_arises(folder: Path, change: dict[str, float], layer: str) -> None:
    (found,) = attribute(compare(*two(folder, layers(), layers(seed=50, **change))).changes)
    assert (found.contender, found.outcome, found.layer, found.unknown) == ("rauta", Outcome.WORSE, layer, [])
    assert f"rauta is worse in layer {layer}" in str(found)


def test_a_layer_that_nobody_looked_at_is_not_cleared(folder: Path) -> None:
    before, after = layers(), layers(seed=50, requests=48e3)
    for run in (before, after):
        del run["frames"]
        run["program"]["rauta"][0] = Sample(185, flags=("steal 9 %",))
    (found,) = attribute(compare(*two(folder, before, after)).changes)
    assert (found.layer, found.unknown) == ("http", ["bpf", "veth"])
    assert "nothing is known about bpf and veth" in str(found)


def test_better_here_and_worse_there_are_two_findings(folder: Path) -> None:
    found = attribute(compare(*two(folder, layers(), layers(seed=50, program=100, requests=48e3))).changes)
    assert [(one.outcome, one.layer) for one in found] == [(Outcome.WORSE, "http"), (Outcome.BETTER, "bpf")]


def test_a_program_measure_is_described_as_in_the_lab() -> None:
    """What these tests are made of has the shape of the real measure."""
    from lab.measure import Program

    real = Program(layer="bpf")
    assert set(MEASURES["program"]) <= set(real.model_dump())
    assert (real.layer, real.quantity) == (PROGRAM.layer, PROGRAM.quantities[""])
