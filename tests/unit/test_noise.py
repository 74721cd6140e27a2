"""The machine's floor: A/A pairs, what they reach from no difference, and which runs are judged with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from kept_runs import DESCRIBED, MACHINE, latency, record

from lab import judging, noise, results, scenario
from lab.results import Record
from lab.verdict import Exit

STEADY = [100.0, 101, 99, 100, 102, 98]
OTHER = [102.0, 99, 101, 100, 97, 103]


def doubled(**measures: dict[str, list[float]]) -> Record:
    return record("aa", [measures], environment=MACHINE)


def cells() -> list[scenario.Scenario]:
    one = scenario.load(scenario.FOLDER / "quickstart.yaml", overrides=["contenders=[direct, 'direct#2', rauta]"])
    program = one.measure["program"]
    return [one.model_copy(update={"measure": {"program": program, "keepalive": one.measure["keepalive"]}})]


def test_everybody_takes_part_twice_and_nothing_is_judged() -> None:
    one = noise.with_twins(scenario.load(scenario.FOLDER / "quickstart.yaml"))
    assert one.contenders == ("direct", "direct#2", "rauta", "rauta#2")
    assert not one.targets
    assert one.routing.config.vips


def test_a_pair_s_floor_is_how_far_its_interval_reaches() -> None:
    made = doubled(keepalive={"direct": STEADY, "direct#2": OTHER, "rauta": STEADY})
    found = {(one["metric"], one["terms"]): one for one in noise.pairs(cells(), made)}
    ratio = found["keepalive.median", "ratio"]
    assert ratio["low"] <= 1 <= ratio["high"]
    assert ratio["floor"] == max(abs(ratio["low"] - 1), abs(ratio["high"] - 1))
    difference = found["keepalive.median", "difference"]
    assert difference["floor"] == max(abs(difference["low"]), abs(difference["high"]))
    assert (difference["unit"], ratio["unit"]) == ("requests/s", "")
    assert {one["contender"] for one in found.values()} == {"direct"}


def test_quantiles_have_floors_of_their_own() -> None:
    samples = [latency(value) for value in STEADY]
    others = [latency(value) for value in OTHER]
    one = scenario.load(scenario.FOLDER / "latency.yaml")
    made = record("aa", [{"latency": {"direct": samples, "direct#2": others}}], described=DESCRIBED)  # type: ignore[dict-item]
    metrics = {found["metric"] for found in noise.pairs([one], made)}
    assert {"latency.median", "latency.p50", "latency.p99"} <= metrics


def test_too_few_rounds_have_no_floor() -> None:
    assert not noise.pairs(cells(), doubled(keepalive={"direct": STEADY[:5], "direct#2": OTHER[:5]}))


def test_of_several_contenders_the_least_steady_counts() -> None:
    found = [{"key": "k", "floor": 0.1}, {"key": "k", "floor": 0.3}, {"key": "l", "floor": 0.2}]
    assert noise.floors(found) == {"k": 0.3, "l": 0.2}


def test_a_floor_is_for_one_measure_as_it_is_set_whatever_its_length() -> None:
    wrk = {"layer": "http", "connections": 32, "duration": 1.0}
    key = judging.floor_key(wrk, "keepalive.median", "ratio")
    assert judging.floor_key({**wrk, "duration": 2.0}, "rps.median", "ratio") == key
    assert judging.floor_key({**wrk, "connections": 8}, "keepalive.median", "ratio") != key
    assert judging.floor_key(wrk, "keepalive.mean", "ratio") != key
    assert judging.floor_key(wrk, "keepalive.median", "difference") != key


def test_only_runs_of_noise_on_a_comparable_machine_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    for name, kind, kernel in (("a", "noise", "6.18.1"), ("b", "noise", "6.12.0"), ("c", "run", "6.18.1")):
        environment = {**MACHINE, "kernel": {**MACHINE["kernel"], "release": kernel}}
        made = record(name, [{"keepalive": {"direct": STEADY, "direct#2": OTHER}}], environment=environment)
        made.kind = kind
        made.floors = [{"key": name, "floor": 0.1}]
        made.folder.mkdir()
        made.save(Exit.PASSED)
    assert noise.known(MACHINE) == {"a": 0.1}
