"""What Prometheus gets, read by prometheus_client; and what is written for it: reference, alerts, dashboard."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML

from rauta.latency import BOUNDS, FIRST_BYTE_BOUNDS, Histogram
from rauta.prometheus import families
from rauta.prometheus.text import Family, Table, otel_to_prometheus, resource_labels

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/rauta.rules.yml"
CASES = ROOT / "deploy/prometheus/rauta.rules.test.yml"
DASHBOARD = ROOT / "deploy/grafana/rauta.json"
ALL = (*families.ROUTER, *families.AGENT, *families.BOTH)
REQUESTS = Family("requests_total", "counter", "Requests.", ("vip", "route"))
TIMES = Family("times_seconds", "histogram", "Times.", ("class",))
texts = st.text(st.characters(codec="utf-8", exclude_characters="\r"))


def read(text: str) -> list[tuple[str, dict[str, str], float]]:
    return [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]


# ---- the format -------------------------------------------------------------------------------------------


@given(texts, texts, st.integers(0, 1 << 53))  # a reader has doubles
def test_any_label_comes_back_as_it_was(vip: str, route: str, count: int) -> None:
    """Whichever way it is written."""
    expected = [("requests_total", {"vip": vip, "route": route}, float(count))]
    assert read(REQUESTS.text({(vip, route): count})) == expected
    assert read(Table(REQUESTS, [(vip, route)]).text([count])) == expected


def test_both_ways_of_writing_say_the_same() -> None:
    labels = [("shop", str(number)) for number in range(5)]
    values = [3, 0, 1 << 63, 7, 9]
    assert Table(REQUESTS, labels).text(values) == REQUESTS.text(dict(zip(labels, values, strict=True)))


def test_a_table_wants_a_value_for_each_series() -> None:
    table = Table(REQUESTS, [("a", "b"), ("c", "d")])
    for values in ([], [1], [1, 2, 3]):
        with pytest.raises(TypeError):
            table.text(values)


def test_a_series_wants_all_labels() -> None:
    with pytest.raises(ValueError, match=r"zip\(\)"):
        REQUESTS.begin(("shop",))


@pytest.mark.parametrize("number", [0, 1, 1.5, 1e-9, 1 << 62, math.inf, 1795682540.683])
def test_numbers_come_back_as_they_were(number: float) -> None:
    assert read(Family("one", "gauge", "One.").one(number)) == [("one", {}, number)]


def test_a_help_may_say_anything() -> None:
    text = Family("one", "gauge", "a \\ b\nc % d").one(1)
    assert [family.documentation for family in text_string_to_metric_families(text)] == ["a \\ b\nc % d"]
    assert Table(Family("one", "gauge", "100 %", ("a",)), [("%s",)]).text([1]).endswith('one{a="%s"} 1\n')


def test_a_histogram_counts_up() -> None:
    times = Histogram((1, 0, 2), 0.25, (0.1, 0.2, math.inf))
    assert TIMES.histograms({("x",): times}) == (
        "# HELP times_seconds Times.\n# TYPE times_seconds histogram\n"
        'times_seconds_bucket{class="x",le="0.1"} 1\n'
        'times_seconds_bucket{class="x",le="0.2"} 1\n'
        'times_seconds_bucket{class="x",le="+Inf"} 3\n'
        'times_seconds_sum{class="x"} 0.25\ntimes_seconds_count{class="x"} 3\n'
    )


@pytest.mark.parametrize("bounds", [BOUNDS, FIRST_BYTE_BOUNDS])
def test_bounds_are_written_without_what_floats_leave_behind(bounds: tuple[float, ...]) -> None:
    text = TIMES.histogram(("x",), Histogram((0,) * len(bounds), 0.0, bounds))
    written = re.findall('le="([^"]*)"', text)
    assert [float(bound) for bound in written] == pytest.approx(list(bounds), rel=1e-11)
    assert max(len(re.sub(r"e.*|^[0.]*|\.", "", bound)) for bound in written) <= 10


# ---- OpenTelemetry ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("k8s.pod.name", "k8s_pod_name"),
        ("service.name", "service_name"),
        ("already_fine", "already_fine"),
        ("a..b--c", "a_b_c"),
        ("8ball", "_8ball"),
        ("größe", "gr_e"),
        ("http.request.header/x", "http_request_header_x"),
    ],
)
def test_names_of_opentelemetry_become_those_of_prometheus(name: str, label: str) -> None:
    assert otel_to_prometheus(name) == label


@given(st.text(min_size=1))
def test_any_name_becomes_a_label(name: str) -> None:
    assert re.fullmatch("[a-zA-Z_][a-zA-Z0-9_]*", otel_to_prometheus(name))


def test_resources_are_labels() -> None:
    assert resource_labels("k8s.pod.name=web-1,service.name=rauta%20one, team = net ") == {
        "k8s_pod_name": "web-1",
        "service_name": "rauta one",
        "team": "net",
    }
    assert resource_labels("a.b=2,a_b=1") == {"a_b": "2;1"}
    assert resource_labels("") == resource_labels("no list") == resource_labels("=x") == {}


def test_resources_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.node.name=node-7")
    assert resource_labels() == {"k8s_node_name": "node-7"}
    monkeypatch.delenv("OTEL_RESOURCE_ATTRIBUTES")
    assert resource_labels() == {}


# ---- names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ALL, ids=lambda family: family.name)
def test_names_are_by_the_rules(family: Family) -> None:
    """https://prometheus.io/docs/practices/naming/: base units, `_total` for what counts up, no name in a label."""
    assert re.fullmatch("(rauta|process)(_[a-z0-9]+)+", family.name)
    assert (family.kind == "counter") == family.name.endswith("_total")
    assert not re.search(
        "_(ms|us|ns|milliseconds|microseconds|minutes|kb|mb|percent|count|sum|bucket)(_|$)", family.name
    )
    if family.kind == "histogram":
        assert family.name.endswith("_seconds")
    assert all(re.fullmatch("[a-z_]+", label) and label not in ("le", "job", "instance") for label in family.labels)
    assert family.help.endswith(".")
    assert (family.series == "1") == (not family.labels or family is families.BUILD)


def test_each_family_is_there_once() -> None:
    assert len({family.name for family in ALL}) == len(ALL)


def test_the_reference_is_current() -> None:
    """python -m rauta.prometheus.families > docs/PROMETHEUS_METRICS.md"""
    assert (ROOT / "docs/PROMETHEUS_METRICS.md").read_text() == families.reference()


# ---- alerts and dashboard ---------------------------------------------------------------------------------


def promtool(*arguments: str) -> str:
    tool = shutil.which("promtool") or pytest.skip("needs promtool (Debian: prometheus)")
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def alerts() -> list[dict[str, Any]]:
    groups = YAML(typ="safe").load(RULES)["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def test_prometheus_takes_the_rules() -> None:
    assert "SUCCESS" in promtool("check", "rules", str(RULES))


def test_alerts_fire_when_they_should() -> None:
    """Each has a case."""
    assert "SUCCESS" in promtool("test", "rules", str(CASES))
    tested = [one["alertname"] for case in YAML(typ="safe").load(CASES)["tests"] for one in case["alert_rule_test"]]
    assert set(tested) == {alert["alert"] for alert in alerts()}


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_says_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert len(alert["annotations"]["description"]) > len(alert["annotations"]["summary"]) > 20


def test_prometheus_takes_the_dashboards_queries(tmp_path: Path) -> None:
    """As rules, with Grafana's variables filled in."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    assert len(queries) > 25
    filled = [
        query.replace("$__rate_interval", "1m").replace("$router", "r").replace("$backend", "b") for query in queries
    ]
    assert not any("$" in query for query in filled)
    rules = [{"record": f"query:number{number}", "expr": query} for number, query in enumerate(filled)]
    file = tmp_path / "queries.json"
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    promtool("check", "rules", str(file))


def test_the_dashboards_panels_do_not_overlap() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    covered = [
        (x, y)
        for at in (panel["gridPos"] for panel in panels)
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(covered) == len(set(covered))
    assert all(x < 24 for x, _ in covered)
    assert len({panel["id"] for panel in panels}) == len(panels)
