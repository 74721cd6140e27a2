"""Matrices of parameters: their cells, what targets may name in them, and made-up routes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import matrix, scenario
from lab.scenario import with_routes
from rauta.config import load_config
from rauta.files.document import DocumentError

QUICKSTART = scenario.FOLDER / "quickstart.yaml"
SHOP = scenario.FOLDER / "routing" / "shop.yaml"

scalars = st.one_of(st.integers(), st.booleans(), st.text(max_size=3))
params = st.dictionaries(st.text("abc", min_size=1), st.one_of(scalars, st.lists(scalars, max_size=3)), max_size=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A scenario with a matrix of two by two cells."""
    (tmp_path / "routing").mkdir()
    (tmp_path / "routing" / "shop.yaml").write_text(SHOP.read_text())
    text = QUICKSTART.read_text()
    text = text.replace("topology:", "params: {routes: [2, 100], connections: [8, 32], path: /api/x}\n\ntopology:", 1)
    text = text.replace("file: routing/shop.yaml", "file: routing/shop.yaml, routes: '${routes}'")
    text = text.replace("cluster: api, connections: 32, threads: 1,", "cluster: api, connections: '${connections}',")
    (tmp_path / "matrix.yaml").write_text(text)
    return tmp_path


def with_target(folder: Path, target: str) -> Path:
    path = folder / "matrix.yaml"
    path.write_text(path.read_text().replace("targets:\n", f"targets:\n  - {{{target}}}\n"))
    return path


def mistakes(path: Path) -> list[str]:
    with pytest.raises(DocumentError) as caught:
        scenario.load_cells(path)
    return [str(mistake) for _, mistake in caught.value.mistakes]


@given(params)
def test_cells_are_all_combinations_each_once(given_params: dict[str, object]) -> None:
    cells = matrix.combinations(given_params)
    expected = 1
    for value in given_params.values():
        expected *= len(value) if isinstance(value, list) else 1
    assert len(cells) == expected
    for cell in cells:
        assert cell.keys() == given_params.keys()
        for name, value in given_params.items():
            assert cell[name] in value if isinstance(value, list) else cell[name] is value


def test_every_cell_is_a_scenario_of_its_own(folder: Path) -> None:
    cells = scenario.load_cells(folder / "matrix.yaml")
    assert [dict(cell.cell) for cell in cells] == [
        {"routes": 2, "connections": 8},
        {"routes": 2, "connections": 32},
        {"routes": 100, "connections": 8},
        {"routes": 100, "connections": 32},
    ]
    assert [len(cell.routing.config.vips[0].routes) for cell in cells] == [2, 2, 100, 100]
    assert [cell.measure["keepalive"].connections for cell in cells] == [8, 32, 8, 32]  # type: ignore[union-attr]
    assert cells[0].params["path"] == "/api/x"


def test_set_and_profiles_choose_cells(folder: Path) -> None:
    path = folder / "matrix.yaml"
    assert len(scenario.load_cells(path, overrides=["params.routes=5"])) == 2
    path.write_text(path.read_text().replace("timing: off}", "timing: off, params: {routes: 2, connections: 8}}"))
    (cell,) = scenario.load_cells(path, profile="smoke")
    assert not cell.cell


def test_a_mistake_that_is_in_every_cell_is_reported_once(folder: Path) -> None:
    path = folder / "matrix.yaml"
    path.write_text(path.read_text().replace("contenders: [direct, rauta]", "contenders: [direct, ruata]"))
    assert len([text for text in mistakes(path) if text.startswith("contenders[1]")]) == 1


def test_a_parameter_needs_a_value(folder: Path) -> None:
    path = folder / "matrix.yaml"
    path.write_text(path.read_text().replace("routes: [2, 100]", "routes: []"))
    assert mistakes(path) == ["params: a list without values (allowed: at least one value)"]


def test_targets_name_cells(folder: Path) -> None:
    path = with_target(folder, "metric: program.median, at: {routes: 100}, against: {routes: 2}, max: 1.2")
    first, _, third, _ = scenario.load_cells(path)
    target = first.targets[0]
    assert not target.applies_to(first.params)
    assert target.applies_to(third.params)
    assert target.is_ratio


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("metric: program.median, at: {routes: 7}, max: 10us", "targets[0].at.routes: no cell has the value 7"),
        ("metric: program.median, against: {routs: 2}, max: 1.2", "targets[0].against.routs: no cell has the value 2"),
        ("metric: program.median, against: {routes: 2}, max: 10us", "cannot bound a ratio"),
        (
            "metric: program.median, ratio_to: xdp-tx, against: {routes: 2}, max: 2",
            "compared twice, there is ratio_to already",
        ),
        ("metric: keepalive.p99, max: 10us", "no measure makes 'keepalive.p99'"),
        ("metric: program.cpu.median, max: 10us", "no measure makes 'program.cpu.median'"),
        ("metric: program.median, confidence: 40%, max: 10us", "targets[0].confidence"),
    ],
)
def test_a_target_that_names_nothing_is_refused(folder: Path, target: str, words: str) -> None:
    assert any(words in text for text in mistakes(with_target(folder, target))), words


def test_a_metric_has_two_or_three_parts(folder: Path) -> None:
    path = with_target(folder, "metric: keepalive.cpu-servers.median, over: direct, of: rauta, max: 1")
    target = scenario.load(path).targets[0]
    assert (target.measure, target.quantity, target.statistic) == ("keepalive", "cpu-servers", "median")
    of_latency = target.model_copy(update={"metric": "latency.p99.9"})
    assert (of_latency.measure, of_latency.quantity, of_latency.statistic) == ("latency", "", "p99.9")


def test_made_up_routes_come_on_top_and_go_where_the_last_one_goes() -> None:
    config = load_config(SHOP)
    grown = with_routes(config, 65_536).vips[0].routes
    assert len(grown) == 65_536
    assert grown[:2] == config.vips[0].routes
    assert (grown[2].prefix, grown[-1].prefix) == ("/r/1", "/r/65534")
    assert {route.cluster for route in grown[2:]} == {"web"}
    assert with_routes(config, 1) == config


def test_a_contender_can_be_there_twice_under_a_label(folder: Path) -> None:
    path = folder / "matrix.yaml"
    path.write_text(path.read_text().replace("contenders: [direct, rauta]", "contenders: [direct, 'direct#2', rauta]"))
    assert scenario.load(path).contenders == ("direct", "direct#2", "rauta")
    path.write_text(path.read_text().replace("direct#2", "nobody#2"))
    assert any(text.startswith("contenders[1]: no contender is called 'nobody#2'") for text in mistakes(path))


def test_limits_and_confidence_are_shares(folder: Path) -> None:
    path = folder / "matrix.yaml"
    path.write_text(path.read_text().replace("plan:", 'valid: {steal: "< 3%", ci_half_width: 0.05}\nplan:'))
    assert scenario.load(path).valid.steal == pytest.approx(0.03)
    assert scenario.load(path).valid.foreign_cpu == pytest.approx(0.05)
    path.write_text(path.read_text().replace("< 3%", "< 300%"))
    assert any(text.startswith("valid.steal: '< 300%' is not a limit") for text in mistakes(path))
