"""Scenario files: what is read, what the command line changes, and every mistake with its line, field and remedy."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lab import bench, plan, scenario
from lab.errors import UsageError
from lab.scenario import Scenario
from rauta.files.document import DocumentError

QUICKSTART = scenario.FOLDER / "quickstart.yaml"
SHOP = scenario.FOLDER / "routing" / "shop.yaml"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the quickstart and its routing file, to be spoilt."""
    (tmp_path / "routing").mkdir()
    (tmp_path / "quickstart.yaml").write_text(QUICKSTART.read_text())
    (tmp_path / "routing" / "shop.yaml").write_text(SHOP.read_text())
    return tmp_path


def spoil(path: Path, before: str, after: str) -> int:
    """Replace a text that occurs once; the number of the line where it was."""
    text = path.read_text()
    assert text.count(before) == 1, f"{before!r} occurs {text.count(before)} times"
    path.write_text(text.replace(before, after))
    return text[: text.index(before)].count("\n") + 1


def mistakes(path: Path) -> list[tuple[int, str]]:
    """Line and text of each mistake in a scenario file."""
    with pytest.raises(DocumentError) as caught:
        scenario.load(path)
    return [(line, str(mistake)) for line, mistake in caught.value.mistakes]


# ---- what is read -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", scenario.all_files(), ids=lambda path: path.stem)
def test_every_scenario_of_the_repository_is_valid(path: Path) -> None:
    one = scenario.load(path)
    assert one.version == 1
    assert one.name == path.stem
    assert "smoke" in one.profiles, "pytest lab/ runs the profile smoke of every scenario"
    assert not scenario.load(path, profile="smoke").plan.timing


def test_the_quickstart_says_what_it_means() -> None:
    one = scenario.load(QUICKSTART)
    assert one.contenders == ("direct", "rauta")
    assert one.topology.hosts["web"] == 2
    assert one.plan.warmup == pytest.approx(0.3)
    assert one.plan.max_time == 300
    assert [cluster.name for cluster in one.routing.config.clusters] == ["web", "api"]
    assert {target.origin for target in one.targets} == {"ours", "asked"}


def test_a_resolved_scenario_survives_json() -> None:
    resolved = json.loads(json.dumps(scenario.load(QUICKSTART).model_dump(mode="json")))
    assert resolved["plan"]["rounds"] == 10
    assert [target["max"] for target in resolved["targets"][-2:]] == ["5", "10 us"]


def test_the_schema_describes_every_section() -> None:
    schema = Scenario.model_json_schema()
    assert set(schema["properties"]) == set(Scenario.model_fields)
    assert schema["additionalProperties"] is False
    json.dumps(schema)


# ---- what the command line changes --------------------------------------------------------------------


def test_a_profile_changes_the_plan() -> None:
    one = scenario.load(QUICKSTART, profile="smoke")
    assert (one.plan.rounds, one.plan.timing, one.plan.seed) == (1, False, 7)
    assert one.profile == "smoke"


def test_an_unknown_profile_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="smoke"):
        scenario.load(QUICKSTART, profile="smok")


def test_overrides_reach_into_mappings_and_lists() -> None:
    one = scenario.load(QUICKSTART, overrides=["plan.rounds=3", "targets.0.min=0.5", "topology.cpus.client=[]"])
    assert one.plan.rounds == 3
    assert one.targets[0].min is not None
    assert one.targets[0].min.value == 0.5
    assert one.topology.cpus.client == ()


@pytest.mark.parametrize("override", ["plan.rounds", "=3", "targets.9.min=1", "claim.x=1", "plan.rounds=[1"])
def test_an_override_that_leads_nowhere_is_refused(override: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"--set {override}")):
        scenario.load(QUICKSTART, overrides=[override])


def test_an_override_is_validated_like_the_file() -> None:
    with pytest.raises(DocumentError, match=r"plan\.rounds: 0 is out of range \(allowed: 1 to 10000\)"):
        scenario.load(QUICKSTART, overrides=["plan.rounds=0"])


def test_choosing_contenders_keeps_the_targets() -> None:
    one = scenario.load(QUICKSTART, contenders=["rauta"])
    assert one.contenders == ("rauta",)
    assert len(one.targets) == 5
    with pytest.raises(UsageError, match="It has: direct, rauta"):
        scenario.load(QUICKSTART, contenders=["envoy"])


def test_parameters_are_filled_in_and_keep_their_type(folder: Path) -> None:
    path = folder / "quickstart.yaml"
    spoil(path, "contenders: [direct, rauta]", "contenders: [direct, rauta]\nparams: {rounds: 4, where: 'a lab'}")
    spoil(path, "{rounds: 10,", "{rounds: '${rounds}',")
    spoil(path, "RAUTA routes", "In ${where} RAUTA routes")
    spoil(path, "smoke: {rounds: 1, timing: off}", "smoke: {timing: off, params: {rounds: 2}}")
    one = scenario.load(path)
    assert one.plan.rounds == 4
    assert one.claim.startswith("In a lab RAUTA")
    assert scenario.load(path, profile="smoke").plan.rounds == 2
    assert scenario.load(path, overrides=["params.rounds=5"]).plan.rounds == 5


BACKGROUND = """\
params: {load: [none, cpu, both]}
background:
  - {cpu: 20%, at: {load: cpu}}
  - {cpu: 30%, at: {load: both}}
  - {idle: 7, cluster: api, at: {load: both}}
  - {slow_readers: 3, cluster: api}
measure:"""


def test_background_load_is_only_in_the_cells_that_it_names(folder: Path) -> None:
    path = folder / "quickstart.yaml"
    spoil(path, "measure:", BACKGROUND)
    cells = scenario.load_cells(path)
    assert [[type(load).__name__ for load in cell.background] for cell in cells] == [
        ["SlowReaders"],
        ["Cpu", "SlowReaders"],
        ["Cpu", "Idle", "SlowReaders"],
    ]
    assert len(bench.groups(cells)) == 3, "and each has a network of its own"


def test_what_a_load_says_can_be_judged_where_it_is(folder: Path) -> None:
    path = folder / "quickstart.yaml"
    spoil(path, "measure:", BACKGROUND)
    spoil(
        path,
        "metric: new-connection.median, of: rauta, ratio_to: direct",
        "metric: keepalive.load.median, at: {load: cpu}",
    )
    assert scenario.load(path).targets[1].applies_to({"load": "cpu"})
    spoil(path, "keepalive.load.median, at: {load: cpu}", "keepalive.load.median")
    assert any("no measure makes 'keepalive.load.median'" in text for _, text in mistakes(path))


def test_a_cell_that_a_load_names_must_be_there(folder: Path) -> None:
    path = folder / "quickstart.yaml"
    spoil(path, "measure:", BACKGROUND.replace("{load: cpu}", "{load: gpu}"))
    found = [text for _, text in mistakes(path)]
    assert found == ["background[0].at.load: no cell has the value 'gpu' (allowed: both, cpu, none)"]


# ---- mistakes -----------------------------------------------------------------------------------------

FLOOD = "background: [{syn_flood: 500k, cluster: api}]\nmeasure:"


@pytest.mark.parametrize(
    ("before", "after", "field", "words"),
    [
        ("claim: >-", "claims: >-", "claims", "unknown field, did you mean 'claim'?"),
        ("kind: one-armed", "kind: no-armed", "topology.kind", "(allowed: 'one-armed', 'two-armed' or 'direct')"),
        ("link: {mtu: 1500}", "link: {mtu: 1500, lost: 1%}", "topology.link.lost", "did you mean 'loss'?"),
        ("link: {mtu: 1500}", "link: {delay: 10us}", "topology.link.delay", "the delay line resolves 200us"),
        ("link: {mtu: 1500}", "link: {reorder: 1%}", "topology.link.reorder", "(allowed: a delay beside it)"),
        ("link: {mtu: 1500}", "links: {db: {loss: 1%}}", "topology.links.db", "(allowed: client, router, web, api)"),
        ("link: {mtu: 1500}", "link: {rate: 10}", "topology.link.rate", "(allowed: a number with kbit, mbit, gbit)"),
        (
            "web: 2, api: 1}",
            "web: 3, api: 1}",
            "topology.hosts.web",
            "the routing file has 2 in cluster 'web' (allowed: 2)",
        ),
        (
            "client: 1, router: 1,",
            "client: 150, router: 1,",
            "topology.hosts.client",
            "room for 100 (allowed: 1 to 100)",
        ),
        ("web: 2, api: 1}", "web: 2, api: 1, db: 1}", "topology.hosts.db", "(allowed: client, router, web, api)"),
        ("web: 2, api: 1}", "web: 2}", "topology.hosts", "'api' is missing (allowed: api: 1)"),
        ("web: 2, api: 1}", "web: 2, api: 1, attacker: 2}", "topology.hosts.attacker", "2 attackers"),
        ("web: {nginx: {port: 8080,", "web: {nginx: {port: 8000,", "servers.web", "(allowed: port: 8080)"),
        (
            "contenders: [direct, rauta]",
            "contenders: [direct, ruata]",
            "contenders[1]",
            "no contender is called 'ruata'",
        ),
        (
            "contenders: [direct, rauta]",
            "contenders: [rauta, rauta, direct]",
            "contenders[1]",
            "'rauta' is there twice",
        ),
        (
            "path: /, cluster: web, backend",
            "path: /, cluster: wbe, backend",
            "checks[2].cluster",
            "(allowed: web, api)",
        ),
        (
            "no_listener_on: router, only: rauta",
            "no_listener_on: router, only: envoy",
            "checks[5].only",
            "direct, rauta",
        ),
        ("warmup: 300ms", "warmup: 300", "plan.warmup", "not a duration (allowed: a number with ns, us, ms, s, m, h)"),
        (
            "metric: new-connection.median",
            "metric: new.median",
            "targets[1].metric",
            "keepalive.median, keepalive.mean",
        ),
        ("metric: new-connection.median", "metric: new-connection.p99", "targets[1].metric", "no measure makes"),
        (
            "program-next.median, of: rauta, ratio_to: xdp-tx",
            "program-next.median, over: direct",
            "targets[3].over",
            "(allowed: rauta, xdp-tx)",
        ),
        ("max: 10us", "max: 200", "targets[4].max", "(allowed: a duration such as 200ns)"),
        ("ratio_to: direct, min: 0.6", "ratio_to: direct, min: 75ns", "targets[0].min", "cannot bound a ratio"),
        ("min: 0.85, origin", "origin", "targets[1]", "has no bound (allowed: min, max or both)"),
        (
            "ratio_to: direct, min: 0.6",
            "ratio_to: direct, over: direct, min: 0.6",
            "targets[0].over",
            "ratio_to or over",
        ),
        ("measure:", FLOOD, "background[0].syn_flood", "no attacker to send it (allowed: topology.hosts: {attacker: 1"),
        ("measure:", FLOOD.replace("500k", "much"), "background[0].syn_flood", "'much' is not so many a second"),
        ("measure:", FLOOD.replace("api}", "db}"), "background[0].cluster", "(allowed: web, api)"),
        ("measure:", "background: [{cpu: 0%}]\nmeasure:", "background[0].cpu", "is out of range"),
        ("measure:", "background: [{noise: loud}]\nmeasure:", "background[0]", "idle, slow_readers, syn_flood, cpu"),
        ("measure:", "background: [{cpu: 5%, at: {x: 1}}]\nmeasure:", "background[0].at.x", "no `params`"),
        ("{rounds: 10,", "{rounds: '${cycles}',", "plan.rounds", "no parameter is called 'cycles'"),
        ("timing: off}", "timing: off, params: {x: 1}}", "profiles.smoke.params.x", "the scenario has no `params`"),
        (
            "timing: off}",
            "timing: off, contenders: [nginx]}",
            "profiles.smoke.contenders[0]",
            "(allowed: direct, rauta)",
        ),
    ],
)
def test_a_mistake_is_named_with_line_field_and_remedy(
    folder: Path, before: str, after: str, field: str, words: str
) -> None:
    path = folder / "quickstart.yaml"
    expected = spoil(path, before, after)
    found = [(line, text) for line, text in mistakes(path) if text.startswith(f"{field}:")]
    assert found, mistakes(path)
    assert words in found[0][1]
    assert found[0][0] == expected


def test_a_flood_is_for_who_counts_what_he_answers(folder: Path) -> None:
    path = folder / "quickstart.yaml"
    spoil(path, "measure:", FLOOD)
    spoil(path, "api: 1}", "api: 1, attacker: 1}")
    (found,) = [text for _, text in mistakes(path)]
    assert found == (
        "background[0].syn_flood: direct does not count the SYNs that it answers (allowed: contenders: [rauta])"
    )


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("name: web-1,", "name: router,", "the routing file has a backend called 'router'"),
        ("198.18.0.11", "198.18.0.1", "backend 'web-1' has the address of the client"),
        ("198.18.0.11", "10.0.0.1", "(allowed: one in 198.18.0.0/16)"),
        ("198.18.100.80", "198.18.0.2", "VIP 'shop' has the address of the router"),
    ],
)
def test_a_routing_file_that_the_lab_cannot_build_is_refused(folder: Path, before: str, after: str, words: str) -> None:
    spoil(folder / "routing" / "shop.yaml", before, after)
    found = [text for _, text in mistakes(folder / "quickstart.yaml") if text.startswith("routing.file:")]
    assert len(found) == 1
    assert words in found[0]


def test_a_mistake_in_the_routing_file_is_reported_with_its_own_lines(folder: Path) -> None:
    line = spoil(folder / "routing" / "shop.yaml", "{prefix: /api, cluster: api}", "{prefix: /api, cluster: apl}")
    with pytest.raises(DocumentError) as caught:
        scenario.load(folder / "quickstart.yaml")
    assert caught.value.path.name == "shop.yaml"
    assert [found for found, _ in caught.value.mistakes] == [line]


def test_a_missing_routing_file_is_reported_where_it_is_named(folder: Path) -> None:
    line = spoil(folder / "quickstart.yaml", "routing/shop.yaml", "routing/shop.yml")
    assert [found for found, _ in mistakes(folder / "quickstart.yaml")] == [line]


def test_all_mistakes_are_reported_at_once(folder: Path) -> None:
    path = folder / "quickstart.yaml"
    spoil(path, "mtu: 1500", "mtu: much")
    spoil(path, "contenders: [direct, rauta]", "contenders: [direct, rauta, telepathy]")
    spoil(path, "min: 0.6", "min: fast")
    spoil(path, "{keepalive: 1000, path: /api/x, cluster: api}", "{keepalive: 1000, path: /api/x, cluster: nowhere}")
    fields = [text.partition(":")[0] for _, text in mistakes(path)]
    assert {"topology.link.mtu", "contenders[2]", "targets[0].min", "checks[3].cluster"} <= set(fields)


def test_an_unknown_scenario_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="quickstart"):
        scenario.find("slowstart")


# ---- what would be done -------------------------------------------------------------------------------


def test_the_drawing_names_every_host_and_address() -> None:
    drawing = plan.draw(scenario.load(QUICKSTART))
    for words in (
        "client",
        "198.18.0.1",
        "router",
        "198.18.0.2",
        "web-1",
        "198.18.0.11",
        "api-1",
        "shop 198.18.100.80:80",
    ):
        assert words in drawing
    assert len(drawing.splitlines()) == 5


def test_an_attacker_stands_on_the_switch_that_everybody_is_on(folder: Path) -> None:
    path = folder / "quickstart.yaml"
    spoil(path, "web: 2, api: 1}", "web: 2, api: 1, attacker: 1}")
    drawing = plan.draw(scenario.load(path))
    assert "198.18.202.1" in drawing
    assert "attacks, from 198.19.128.0/17" in drawing
    line = spoil(path, "kind: one-armed", "kind: two-armed") + 1
    assert mistakes(path) == [
        (
            line,
            "topology.hosts.attacker: an attacker cannot be reached in a two-armed network (allowed: kind: one-armed)",
        )
    ]


def test_a_plan_without_timing_takes_less_time() -> None:
    smoke, whole = scenario.load_cells(QUICKSTART, profile="smoke"), scenario.load_cells(QUICKSTART)
    assert plan.seconds(smoke) < plan.seconds(whole)
    assert "no timing" in plan.steps(smoke)
