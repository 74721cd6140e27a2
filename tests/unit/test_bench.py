"""Which cells share a network, and what a round's work is."""

from __future__ import annotations

from typing import Any

import pytest

from lab import bench, scenario
from lab.bench import Bench
from lab.rounds import jobs

QUICKSTART = scenario.FOLDER / "quickstart.yaml"


def benches(*overrides: str, healthy: tuple[str, ...] = ("direct", "rauta")) -> list[Bench]:
    cells = scenario.load_cells(QUICKSTART, overrides=overrides)
    network: Any = None  # nothing is built: only the plan is looked at
    return [Bench(network, group, list(healthy)) for group in bench.groups(cells)]


@pytest.mark.parametrize(
    ("overrides", "networks"),
    [
        (["params={n: [1, 2]}", "measure.keepalive.connections=${n}"], 1),
        (["params={n: [1, 2]}", "topology.link.loss=${n}%"], 2),
        (["params={n: [1, 2]}", "settings={nginx: {workers: '${n}'}}"], 2),
        (["params={n: [10, 20]}", "background=[{idle: '${n}', cluster: api}]"], 2),
        (["params={n: [10, 20]}", "routing.routes=${n}"], 2),
        (["params={n: [1, 2], m: [1, 2]}", "topology.link.loss=${n}%", "measure.keepalive.connections=${m}"], 2),
    ],
)
def test_cells_share_a_network_unless_something_about_it_differs(overrides: list[str], networks: int) -> None:
    assert len(benches(*overrides)) == networks


def test_a_contender_is_started_once_a_round_for_all_its_measures() -> None:
    (one,) = benches("params={n: [8, 32]}", "measure.keepalive.connections=${n}")
    work = [job for job in jobs([one]) if job.needs_contender]
    assert sorted(job.subject for job in work) == ["direct", "rauta"]
    assert [len(job.measures) for job in work] == [4, 4]  # keepalive and new-connection, in both cells


def test_whoever_failed_its_checks_is_not_timed_and_references_always_are() -> None:
    (one,) = benches(healthy=("direct",))
    assert {job.subject for job in jobs([one])} == {"direct", "xdp-tx"}
