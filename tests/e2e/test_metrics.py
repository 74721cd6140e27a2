"""What routers and agents tell Prometheus: real processes, nginx and curl, and prometheus_client as the reader."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML

from e2e.bench import SECONDS, Bench, bench, eventually
from e2e.test_figures import curl, serve
from lab.contenders.service import RunningService
from lab.topology import Host
from rauta.config import Config, Route
from rauta.fingerprints import route_label
from rauta.prometheus import families
from rauta.prometheus.text import Family

FILE = Path(__file__).parent / "data" / "metered.network.yaml"
DEPLOYED = Path(__file__).parents[2] / "deploy"
ROUTER_PORT, AGENT_PORT = 9477, 9478
BACKENDS = ("web-1", "web-2", "api-1")
API = route_label(("shop", "shop.test", "prefix", "/api", None))
WEB = route_label(("shop", "shop.test", "prefix", "/web", None))
EARLIER = {"host": "shop.test", "prefix": "/earlier", "cluster": "web"}

Series = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(scope="module")
def metered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A network whose servers answer in several ways, and whose router and agents are processes with figures."""
    with bench("rauta-run", tmp_path_factory.mktemp("logs"), FILE) as one:
        for name in BACKENDS:
            serve(one.network.hosts[name], tmp_path_factory.mktemp(name))  # ends all else there
            service(one).agents[name].start()
        yield one


def service(one: Bench) -> RunningService:
    assert isinstance(one.running, RunningService)
    return one.running


@pytest.fixture(autouse=True)
def as_it_was(metered: Bench) -> Iterator[None]:
    """The configuration, after each test."""
    config = service(metered).config
    yield
    if service(metered).config is not config:
        service(metered).reload(config)


# ---- reading ----------------------------------------------------------------------------------------------


def fetched(host: Host, port: int, path: str = "/metrics", method: str = "GET") -> tuple[int, str, Mapping[str, str]]:
    """Status, text and fields."""
    asked = urllib.request.Request(f"http://{host.address}:{port}{path}", method=method)
    with host.entered():
        try:
            with urllib.request.urlopen(asked, timeout=SECONDS) as answer:
                return answer.status, answer.read().decode(), answer.headers
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode(), error.headers


def of_router(one: Bench) -> Series:
    return series(fetched(one.network.routers[0], ROUTER_PORT)[1])


def of_agent(one: Bench, name: str) -> Series:
    return series(fetched(one.network.hosts[name], AGENT_PORT)[1])


def series(text: str) -> Series:
    """Each one is there once."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
    assert len(found) == len(samples)
    return found


def value(of: Series, name: str, **labels: str) -> float:
    """Of all series that have these labels, together; at least one has them."""
    found = [number for (is_name, has), number in of.items() if is_name == name and labels.items() <= dict(has).items()]
    assert found, (name, labels)
    return sum(found)


def has(of: Series, **labels: str) -> bool:
    return any(labels.items() <= dict(has).items() for _, has in of)


def at_agents(one: Bench, name: str, **labels: str) -> float:
    """Of all agents; 0 where there is none of it yet."""
    return sum(
        number
        for backend in BACKENDS
        for (is_name, has), number in of_agent(one, backend).items()
        if is_name == name and labels.items() <= dict(has).items()
    )


# ---- the page ---------------------------------------------------------------------------------------------


def family_name(family: Family) -> str:
    """As prometheus_client's parser calls it."""
    return family.name.removesuffix("_total") if family.kind == "counter" else family.name


@pytest.mark.parametrize("part", ["router", "agent"])
def test_a_page_is_what_prometheus_reads_and_what_the_reference_says(metered: Bench, part: str) -> None:
    """Every family that it says, with the labels that it says, once; nothing else."""
    assert curl(metered, "/api/ok", "/web/ok") == [200, 200]
    host, port = {
        "router": (metered.network.routers[0], ROUTER_PORT),
        "agent": (metered.network.hosts["api-1"], AGENT_PORT),
    }[part]
    _, text, fields = fetched(host, port)
    assert fields["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    own = families.ROUTER if part == "router" else families.AGENT
    wanted = {family_name(one): one for one in (*own, *families.BOTH)}
    found = list(text_string_to_metric_families(text))
    assert sorted(one.name for one in found) == sorted(wanted)
    for one in found:
        family = wanted[one.name]
        assert (one.type, one.documentation) == (family.kind, family.help)
        assert one.samples or family is families.CHECK_SECONDS, one.name
        for sample in one.samples:
            assert set(sample.labels) - {"le"} == set(family.labels), one.name
    assert len(re.findall("^# HELP ", text, re.M)) == len(re.findall("^# TYPE ", text, re.M)) == len(found)


def test_histograms_add_up(metered: Bench) -> None:
    assert curl(metered, "/api/ok") == [200]
    for page in (of_router(metered), of_agent(metered, "api-1")):
        for (name, labels), number in page.items():
            if name.endswith("_bucket") and dict(labels)["le"] == "+Inf":
                rest = {label: text for label, text in labels if label != "le"}
                assert number == page[name.replace("_bucket", "_count"), frozenset(rest.items())]
                below = [
                    (float(dict(other)["le"]), count)
                    for (is_name, other), count in page.items()
                    if is_name == name and rest.items() <= dict(other).items()
                ]
                assert [count for _, count in sorted(below)] == sorted(count for _, count in below)


def test_other_requests_get_the_answers_that_they_should(metered: Bench) -> None:
    router = metered.network.routers[0]
    assert fetched(router, ROUTER_PORT, "/healthz")[:2] == (200, "OK\n")
    assert fetched(router, ROUTER_PORT, "/else")[0] == 404
    status, _, fields = fetched(router, ROUTER_PORT, method="POST")
    assert (status, fields["allow"]) == (405, "GET, HEAD")
    assert fetched(router, ROUTER_PORT, method="HEAD")[:2] == (200, "")


# ---- numbers ----------------------------------------------------------------------------------------------


def test_numbers_are_those_of_what_was_sent(metered: Bench) -> None:
    """By route, backend and status, at the router and at the agents; on one connection, which moves."""
    before, agents = of_router(metered), {name: of_agent(metered, name) for name in BACKENDS}
    asked = ["/api/ok", "/web/ok", "/web/missing", "/api/broken", "/api/ok", "/web/ok"]
    assert curl(metered, *asked) == [200, 200, 404, 500, 200, 200]
    assert curl(metered, "/nowhere") == [404]
    now = of_router(metered)

    def grown(name: str, **labels: str) -> float:
        return value(now, name, **labels) - value(before, name, **labels)

    assert grown("rauta_requests_total", vip="shop", route=API, cluster="api") == 3
    assert grown("rauta_requests_total", vip="shop", route=WEB, cluster="web") == 3
    assert grown("rauta_requests_total") == 6
    assert grown("rauta_backend_requests_total", backend="api-1") == 3
    assert grown("rauta_backend_requests_total") == 6
    assert grown("rauta_refused_requests_total", vip="shop", reason="no_route") == 1
    assert grown("rauta_packets_total", verdict="routed_first", action="routed", vip="shop") == 1
    assert grown("rauta_packets_total", verdict="tx_syn_ack", action="answered", vip="shop") == 2
    told = {name: of_agent(metered, name) for name in BACKENDS}
    for name in BACKENDS:
        came = total(told[name], "rauta_agent_requests_total") - total(agents[name], "rauta_agent_requests_total")
        assert came == grown("rauta_backend_requests_total", backend=name)

    def at_api(name: str, **labels: str) -> float:
        return total(told["api-1"], name, **labels) - total(agents["api-1"], name, **labels)

    api = {"vip": "shop", "route": API, "backend": "api-1"}
    assert at_api("rauta_agent_responses_total", **api, status="2xx") == 2
    assert at_api("rauta_agent_responses_total", **api, status="5xx") == 1
    assert at_api("rauta_agent_responses_total") == at_api("rauta_agent_time_to_first_byte_seconds_count") == 3
    assert 0 < at_api("rauta_agent_time_to_first_byte_seconds_sum", **api) < 3 * SECONDS


def total(of: Series, name: str, **labels: str) -> float:
    """0 if there is none."""
    return sum(
        number for (is_name, has), number in of.items() if is_name == name and labels.items() <= dict(has).items()
    )


def test_what_a_route_is_called_is_said(metered: Bench) -> None:
    info = {"route": API, "vip": "shop", "host": "shop.test", "match": "prefix", "path": "/api", "method": ""}
    assert value(of_router(metered), "rauta_route_info", **info, cluster="api") == 1


def test_counters_go_on_when_processes_are_killed(metered: Bench) -> None:
    """And packets meanwhile are counted."""
    before = of_router(metered)
    answers = at_agents(metered, "rauta_agent_responses_total", route=WEB, status="2xx")
    service(metered).routers[0].kill()
    for agent in service(metered).agents.values():
        agent.kill()
    assert curl(metered, "/web/ok", "/web/ok") == [200, 200]
    service(metered).routers[0].start()
    for agent in service(metered).agents.values():
        agent.start()
    assert curl(metered, "/web/ok") == [200]
    after = of_router(metered)
    for name in ("rauta_requests_total", "rauta_backend_requests_total"):
        assert value(after, name) == value(before, name) + 3
    assert at_agents(metered, "rauta_agent_responses_total", route=WEB, status="2xx") == answers + 3


def test_what_opentelemetry_calls_the_resource_is_told(metered: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the process' environment, as long as it says so."""
    (router,) = service(metered).routers
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=router-1,service.name=shop%20front")
    router.stop()
    router.start()
    try:
        assert value(of_router(metered), "target_info", k8s_pod_name="router-1", service_name="shop front") == 1
    finally:
        monkeypatch.undo()
        router.stop()
        router.start()
    assert not has(of_router(metered), k8s_pod_name="router-1")


# ---- another configuration --------------------------------------------------------------------------------


def changed(config: Config, *routes: Mapping[str, Any]) -> Config:
    """The same with other routes."""
    vip = config.vips[0].model_copy(update={"routes": tuple(map(Route.model_validate, routes))})
    return config.model_copy(update={"vips": (vip,)})


def routes_of(config: Config) -> list[dict[str, Any]]:
    return [route.model_dump(exclude_unset=True) for route in config.vips[0].routes]


def test_numbers_stay_with_their_routes(metered: Bench) -> None:
    """One more comes before them, one goes: at the router as at the agents. What is gone is not told any more."""
    config = service(metered).config
    api, web, _ = routes_of(config)
    gone = route_label(("shop", "shop.test", "prefix", "/web", "HEAD"))
    assert curl(metered, "/web/ok") == [200]
    before, answers = of_router(metered), at_agents(metered, "rauta_agent_responses_total", route=WEB)
    assert has(before, route=gone)
    service(metered).reload(changed(config, EARLIER, api, web))
    after = of_router(metered)
    for route in (API, WEB):
        assert value(after, "rauta_requests_total", route=route) == value(before, "rauta_requests_total", route=route)
    assert at_agents(metered, "rauta_agent_responses_total", route=WEB) == answers
    assert not has(after, route=gone)
    assert curl(metered, "/earlier/ok", "/web/ok", "/web/missing") == [200, 200, 404]
    earlier = route_label(("shop", "shop.test", "prefix", "/earlier", None))
    assert value(of_router(metered), "rauta_requests_total", route=earlier) == 1
    assert at_agents(metered, "rauta_agent_requests_total", route=earlier) == 1
    assert at_agents(metered, "rauta_agent_responses_total", route=WEB) == answers + 2


def test_an_agent_that_was_not_there_from_the_beginning_knows_the_routes(metered: Bench) -> None:
    """The router has numbered them by its history; whoever starts now has none."""
    config = service(metered).config
    api, web, head = routes_of(config)
    service(metered).reload(changed(config, EARLIER, web, head, api))
    agent = service(metered).agents["api-1"]
    agent.remove()
    agent.start()
    assert curl(metered, "/api/ok", "/web/ok", "/api/missing") == [200, 200, 404]
    told = of_agent(metered, "api-1")
    assert total(told, "rauta_agent_requests_total", route=API) == total(told, "rauta_agent_requests_total") == 2


def test_a_refused_configuration_is_seen(metered: Bench) -> None:
    """By who scrapes; and that it is over."""
    before = of_router(metered)
    file = service(metered).file
    good = file.read_text()
    try:
        file.write_text("version: 1\n")
        eventually(lambda: value(of_router(metered), "rauta_config_last_reload_successful") == 0, "it to be refused")
        failed = value(of_router(metered), "rauta_config_reloads_total", result="failure")
        assert failed == value(before, "rauta_config_reloads_total", result="failure") + 1
    finally:
        file.write_text(good)
    eventually(lambda: value(of_router(metered), "rauta_config_last_reload_successful") == 1, "it to be loaded")


def test_health_and_weights_are_told(metered: Bench) -> None:
    """A drained backend is up, and gets nothing."""
    service(metered).ask("drain", backend="web-1")
    try:
        page = of_router(metered)
        assert value(page, "rauta_backend_state", backend="web-1", state="drained") == 1
        assert value(page, "rauta_backend_state", backend="web-1") == 1
        assert value(page, "rauta_backend_up", backend="web-1") == 1
        assert value(page, "rauta_backend_weight", backend="web-1") == 0
        assert value(page, "rauta_backend_configured_weight", backend="web-1") == 1
    finally:
        service(metered).ask("undrain", backend="web-1")
    assert value(of_router(metered), "rauta_backend_weight", backend="web-1") == 1
    eventually(
        lambda: value(of_router(metered), "rauta_health_checks_total", result="success") > 0, "a check to succeed"
    )


def test_the_table_of_flows_is_told(metered: Bench) -> None:
    with metered.connected() as conversation:
        assert conversation.ask("/api/ok").status == 200
        page = of_router(metered)
        assert value(page, "rauta_flows", state="open") >= 1
    assert value(page, "rauta_flow_table_capacity") == service(metered).config.flows
    assert value(page, "rauta_flow_sets") == service(metered).config.flows / 8


# ---- traffic ----------------------------------------------------------------------------------------------


def test_scrapes_lose_no_packet(metered: Bench) -> None:
    """Three hundred requests on one connection, while others scrape the router without a pause."""
    before, pages, asked = of_router(metered), list[Series](), 300
    over = threading.Event()

    def scrape() -> None:
        while not over.is_set():
            pages.append(of_router(metered))

    scraping = threading.Thread(target=scrape)
    scraping.start()
    try:
        with metered.connected() as conversation:
            assert [conversation.ask("/web/ok").status for _ in range(asked)] == [200] * asked
    finally:
        over.set()
        scraping.join()
    after = of_router(metered)
    grown = {one: number - before[one] for one, number in after.items() if one[0] == "rauta_packets_total"}
    verdicts = {dict(labels)["verdict"]: dict(labels)["action"] for (_, labels), by in grown.items() if by}
    dropped = {verdict for verdict, action in verdicts.items() if action == "dropped"}
    assert dropped <= {"drop_handshake_ack"}
    assert value(after, "rauta_requests_total", route=WEB) == value(before, "rauta_requests_total", route=WEB) + asked
    counts = [value(page, "rauta_requests_total", route=WEB) for page in pages]
    assert counts == sorted(counts)
    assert len(pages) > 3


# ---- what reads it ----------------------------------------------------------------------------------------

NOT_OURS = {"up", "instance", "job", "le"}
SELECTOR = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(?:\{([^}]*)\})?")
MATCHER = re.compile(r'([a-z_]+)\s*(=~|!=|!~|=)\s*"([^"]*)"')
GROUPING = re.compile(r"\b(?:by|on|group_left|ignoring|without)\s*\(([^)]*)\)")


def queries() -> Iterator[str]:
    """Of the alerts and the dashboard, without the names of what rules record."""
    groups = YAML(typ="safe").load(DEPLOYED / "prometheus/rauta.rules.yml")["groups"]
    yield from (rule["expr"] for group in groups for rule in group["rules"])
    board = json.loads((DEPLOYED / "grafana/rauta.json").read_text())
    yield from (target["expr"] for panel in board["panels"] for target in panel.get("targets", ()))
    yield from (one["expr"] for one in board["annotations"]["list"])


def recorded() -> set[str]:
    groups = YAML(typ="safe").load(DEPLOYED / "prometheus/rauta.rules.yml")["groups"]
    return {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}


def test_alerts_and_dashboard_ask_for_what_there_is(metered: Bench) -> None:
    """Each name, each label, and each value that a query picks out, in what this router and these agents say."""
    assert curl(metered, "/api/ok", "/web/ok") == [200, 200]
    there: dict[str, dict[str, set[str]]] = {}
    for page in (of_router(metered), of_agent(metered, "api-1")):
        for name, labels in page:
            known = there.setdefault(name, {})
            for label, text in labels:
                known.setdefault(label, set()).add(text)
    asked = 0
    for query in queries():
        labels_used = {one for words in GROUPING.findall(query) for one in re.split(r"[,\s]+", words) if one}
        for name, matchers in SELECTOR.findall(query):
            if not re.match("rauta_|process_", name):
                continue
            asked += 1
            assert name in there, query
            for label, operator, text in MATCHER.findall(matchers):
                assert label in there[name] or label in NOT_OURS, query
                if label in NOT_OURS or "$" in text or text == "generic":  # as this router is not
                    continue
                alternatives = [text] if operator in ("=", "!=") else written_out(text)
                assert set(alternatives) <= there[name][label], query
        names = [name for name, _ in SELECTOR.findall(query) if name in there]
        assert names or any(one in query for one in recorded()) or "up{" in query, query
        known_labels = {label for name in names for label in there[name]}
        assert labels_used <= known_labels | NOT_OURS, query
    assert asked > 60


def written_out(pattern: str) -> list[str]:
    """The texts that a simple pattern stands for: alternatives, one group, or one set of digits."""
    if group := re.search(r"\(([^)]*)\)", pattern):
        return [pattern.replace(group[0], one) for one in group[1].split("|")]
    found = []
    for one in pattern.split("|"):
        digits = re.search(r"\[(\d+)\]", one)
        found += [one.replace(digits[0], digit) for digit in digits[1]] if digits else [one]
    return found


@pytest.mark.parametrize("part", ["router", "agent"])
def test_promtool_has_nothing_to_say(metered: Bench, part: str) -> None:
    """About names, units, types and helps."""
    tool = shutil.which("promtool") or pytest.skip("needs promtool (Debian: prometheus)")
    host, port = {
        "router": (metered.network.routers[0], ROUTER_PORT),
        "agent": (metered.network.hosts["api-1"], AGENT_PORT),
    }[part]
    text = fetched(host, port)[1]
    done = subprocess.run(
        [tool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
