"""What a page for Prometheus says of many routes, backends and flows, and how much reading it takes."""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from packets.observed import KEYS, configuration, loaded
from rauta.agent import Agent
from rauta.bpf import Map, possible_cpus
from rauta.checks.health import Checker
from rauta.config import Config
from rauta.fingerprints import fingerprint, route_label
from rauta.flows import count_flows, flows
from rauta.ids import route_name
from rauta.latency import BOUNDS, Histogram
from rauta.observation import Observation
from rauta.prometheus import agent as agent_metrics
from rauta.prometheus import router as router_metrics
from rauta.prometheus.counting import first_totals
from rauta.prometheus.router import Health
from rauta.router import Router

MANY = 10_000
FLOWS = 131_072


def many_routes(flows: int = FLOWS) -> Config:
    raw = configuration().model_dump(mode="json", exclude_unset=True) | {"flows": flows}
    raw["vips"][0]["routes"] = [
        {"host": f"h{number // 100}.test", "prefix": f"/r{number}", "cluster": "web"} for number in range(MANY)
    ]
    return Config.model_validate(raw)


@pytest.fixture(scope="module")
def largest() -> Iterator[Router]:
    """A router with ten thousand routes, each with another count on each CPU."""
    with loaded(many_routes(), observation=Observation(labels=True)) as router:
        counts = ((number, [number << cpu for cpu in range(possible_cpus())]) for number in range(MANY))
        router.object.maps["route_requests"].update_batch(counts)
        yield router


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many system calls have read from which map."""
    counted: Counter[str] = Counter()

    def watched(name: str) -> None:
        real: Callable[..., Any] = getattr(Map, name)

        def counting(self: Map, *args: Any) -> Any:
            found = real(self, *args)
            if name == "lookup_raw":
                counted[self.name] += 1
                return found
            return (counted.update([self.name]) or batch for batch in found)

        monkeypatch.setattr(Map, name, counting)

    for name in ("_raw_batches", "lookup_raw"):
        watched(name)
    return counted


def page(router: Router) -> str:
    """All that the packet path is asked for."""
    health = Checker(router.config.clusters, lambda _: None)
    written = router_metrics.Written(router, router.config, router.ids)
    return router_metrics.figures(router, written, Health(health.states(), health.counters()))


def test_ten_thousand_routes_have_their_numbers(largest: Router, reads: Counter[str]) -> None:
    """Each its own, summed over CPUs; with one system call for all of them, and a few dozen for the page."""
    text = page(largest)
    assert reads["route_requests"] == 1
    assert reads["backend_requests"] == 1
    assert reads["flows"] == FLOWS / 8 / 512
    assert sum(reads.values()) < 60
    families = {one.name: one for one in text_string_to_metric_families(text)}
    found = {sample.labels["route"]: sample.value for sample in families["rauta_requests"].samples}
    vip = largest.config.vips[0]
    cpus = (1 << possible_cpus()) - 1
    wanted = {
        route_label(route_name(vip, route)): largest.ids.routes[route_name(vip, route)] * cpus for route in vip.routes
    }
    assert {label: found[label] for label in wanted} == wanted
    assert len(found) == len(families["rauta_route_info"].samples) == MANY + len(largest.config.vips[1].routes)


def test_what_a_scrape_costs_is_printed(largest: Router, capsys: pytest.CaptureFixture[str]) -> None:
    """No bound: the machine's other users decide. What is bounded is the reading, above."""
    health = Checker(largest.config.clusters, lambda _: None)
    said = Health(health.states(), health.counters())
    written = router_metrics.Written(largest, largest.config, largest.ids)
    took = []
    for _ in range(9):
        began = time.perf_counter(), time.thread_time()
        text = router_metrics.figures(largest, written, said).encode()
        took.append((time.perf_counter() - began[0], time.thread_time() - began[1]))
    wall, cpu = (sorted(column)[4] * 1e3 for column in zip(*took, strict=True))
    with capsys.disabled():
        print(f"\n{MANY} routes, {FLOWS} flows: {len(text) / 1e6:.1f} MB, {cpu:.1f} ms of CPU, {wall:.1f} ms in all")
    assert text.count(b"\nrauta_requests_total{") > MANY


# ---- the flow table ---------------------------------------------------------------------------------------


def fill(router: Router, entries: int, seed: int) -> None:
    """Puts flows of any state into ways of any sets, and leaves free ways that are not blank."""
    rng = random.Random(seed)
    table = router.object.maps["flows"]
    states = list(router.object.btf.enum("flow_state").values())
    for number in rng.sample(range(table.max_entries), min(entries, table.max_entries)):
        value = table.lookup(number)
        for way in range(8):
            value["flow"][way]["state"] = rng.choice(states)
            value["flow"][way]["tuple"]["client"] = rng.randrange(1, 1 << 32)
            value["tag"][way] = rng.choice((0, rng.randrange(1 << 31) * 2 + 1)) if number % 3 else 0x100 | 1
        table.update(number, value)


@pytest.mark.parametrize("seed", range(3))
def test_flows_are_counted_as_they_are(seed: int) -> None:
    """Against a reader that looks at each entry."""
    with loaded(many_routes(8192)) as router:
        fill(router, 300, seed)
        table, states = router.object.maps["flows"], router.object.btf.enum("flow_state")
        sets = [value for _, value in table.items_batch()]
        used = [flow["state"] for one in sets for flow, tag in zip(one["flow"], one["tag"], strict=True) if tag]
        expected = {name.removeprefix("FLOW_").lower(): used.count(number) for name, number in states.items()}
        counted = count_flows(router.object)
        assert counted.by_state == expected
        assert counted.full_sets == sum(all(one["tag"]) for one in sets) > 0
        assert (counted.sets, counted.read) == (1024, 1024)


def test_of_a_large_table_the_beginning_counts_for_all() -> None:
    with loaded(many_routes(16384)) as router:
        fill(router, 2048, 7)
        whole, part = count_flows(router.object), count_flows(router.object, 1024)
        assert (whole.read, part.read, part.sets) == (2048, 1024, 2048)
        assert sum(part.by_state.values()) == pytest.approx(sum(whole.by_state.values()), rel=0.1)
        assert sum(whole.by_state.values()) > 5000


def test_an_empty_table_has_no_flows() -> None:
    with loaded(many_routes(8192)) as router:
        counted = count_flows(router.object)
        assert (set(counted.by_state.values()), counted.full_sets) == ({0}, 0)
        assert list(flows(router.object)) == []


def test_counters_beyond_what_is_asked_for_are_left_alone(largest: Router) -> None:
    counts = largest.object.maps["route_requests"]
    cpus = (1 << possible_cpus()) - 1
    assert first_totals(counts, 3)[:3] == [0, cpus, 2 * cpus]
    assert first_totals(counts, 17_000)[MANY - 1 : MANY + 1] == [(MANY - 1) * cpus, 0]


def test_times_are_told_by_octaves() -> None:
    """As many as there are, whichever bucket they are in."""
    times = Histogram(tuple(range(len(BOUNDS))), 1.5)
    told = router_metrics.by_octaves(times)
    assert (told.count, told.sum) == (times.count, times.sum)
    assert all(bound in BOUNDS for bound in told.bounds)
    for bound, count in zip(told.bounds, told.counts, strict=True):
        below = sum(n for one, n in zip(BOUNDS, times.counts, strict=True) if one <= bound)
        assert sum(told.counts[: told.bounds.index(bound) + 1]) == below, count
    ratios = {round(b / a, 6) for a, b in zip(told.bounds, told.bounds[1:-1], strict=False)}
    assert ratios == {2.0}


# ---- agents -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    with Agent.load(many_routes(), KEYS, "web-1") as one:
        yield one


def figures_of(agent: Agent, number: int) -> list[dict[str, Any]]:
    """Of each CPU the same: that many requests, answers and times."""
    length = 21
    one = {"requests": number, "statuses": [0, 0, number, 0, 0, 0], "sum": number * 1000, "bucket": [0] * length}
    one["bucket"][2] = number
    return [one] * possible_cpus()


def test_an_agent_tells_those_routes_that_it_has_had_requests_of(agent: Agent) -> None:
    """And writes those again that have changed, no others; what is for no known route is always there."""
    vip = agent.config.vips[0]
    names = [route_name(vip, route) for route in vip.routes]
    cpus, map = possible_cpus(), agent.object.maps["figures"]
    map.update_batch((fingerprint(names[number]), figures_of(agent, number)) for number in range(100))
    teller = agent_metrics.Routes("web-1", agent)
    families = {one.name: one for one in text_string_to_metric_families(teller.text(agent))}
    told = {sample.labels["route"]: sample.value for sample in families["rauta_agent_requests"].samples}
    assert told == {"unknown": 0} | {route_label(names[number]): number * cpus for number in range(1, 100)}
    first = {
        (sample.name.rpartition("_")[2], sample.labels.get("le")): sample.value
        for sample in families["rauta_agent_time_to_first_byte_seconds"].samples
        if sample.labels["route"] == route_label(names[7])
    }
    assert first["bucket", "0.000128"] == 0
    assert first["bucket", "0.000256"] == first["bucket", "+Inf"] == first["count", None] == 7 * cpus
    assert first["sum", None] == pytest.approx(7e-6 * cpus)
    map.update(fingerprint(names[8]), figures_of(agent, 1000))
    again = teller.text(agent)
    assert re.search(f'route="{route_label(names[8])}",backend="web-1"}} {1000 * cpus}\n', again)
    assert f'route="{route_label(names[7])}",backend="web-1"}} {7 * cpus}\n' in again


def test_what_an_agents_scrape_costs_is_printed(agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    vip = agent.config.vips[0]
    tags = [fingerprint(route_name(vip, route)) for route in vip.routes[:1000]]
    took = []
    teller = agent_metrics.Routes("web-1", agent)
    for turn in range(5):
        agent.object.maps["figures"].update_batch((tag, figures_of(agent, turn + 1)) for tag in tags)
        began = time.thread_time()
        changed = teller.text(agent)
        middle = time.thread_time()
        assert teller.text(agent) == changed
        took.append((middle - began, time.thread_time() - middle))
    fresh, same = (sorted(column)[2] * 1e3 for column in zip(*took, strict=True))
    with capsys.disabled():
        print(f"\n{MANY} routes at an agent, 1000 with requests: {fresh:.0f} ms of CPU if all are new, else {same:.0f}")
