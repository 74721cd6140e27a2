"""Every kind of network carries every kind of contender: real clients, real answers, through each of its ways."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from e2e.bench import FILE
from lab import bench, plan, scenario, state
from lab.bench import Bench
from lab.clients import CLIENTS, Request
from lab.scenario import Scenario

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

QUICKSTART = scenario.FOLDER / "quickstart.yaml"
KINDS = ("one-armed", "two-armed", "direct")
CONTENDERS = ("direct", "rauta", "nginx", "haproxy", "envoy", "nftables")


@contextmanager
def built(logs: Path, *overrides: str) -> Iterator[Bench]:
    """The quickstart's network, with its servers."""
    cell: Scenario = scenario.load(QUICKSTART, overrides=overrides)
    with ExitStack() as stack:
        run = state.create("topology")
        stack.callback(run.sweep)
        one = stack.enter_context(bench.built(bench.groups([cell])[0], run, logs, 0))
        for _ in bench.start_servers(one, run.scratch):
            pass
        yield one


def asked(one: Bench, contender: str, path: str, cluster: str, client: str = "client") -> str:
    """Who answers a request from a client through a contender."""
    with one.running(contender) as running:
        address, port = running.target(cluster)
        answer = CLIENTS["curl"](one.network.hosts[client], Request(address, port, f"http://shop.test{path}"))
    assert answer.status == 200
    return answer.backend


@pytest.mark.parametrize("kind", KINDS)
def test_each_contender_serves_in_each_kind(kind: str, tmp_path: Path) -> None:
    with built(tmp_path, f"topology.kind={kind}") as one:
        for contender in CONTENDERS:
            assert asked(one, contender, "/api/x", "api") == "api-1", contender
            assert asked(one, contender, "/", "web") in ("web-1", "web-2"), contender


@pytest.mark.parametrize("kind", ["one-armed", "two-armed"])
def test_several_clients_take_turns_with_several_routers(kind: str, tmp_path: Path) -> None:
    hosts = "topology.hosts={client: 2, router: 2, web: 2, api: 1}"
    with built(tmp_path, f"topology.kind={kind}", hosts) as one:
        assert [host.name for host in one.network.clients] == ["client-1", "client-2"]
        with one.running("rauta") as running:
            address, port = running.target("web")
            for client in one.network.clients:
                for _ in range(20):
                    answer = CLIENTS["http.client"](client, Request(address, port, "http://shop.test/"))
                    assert answer.status == 200
            routed = [router.requests_routed for router in running.routers]  # type: ignore[attr-defined]
        assert routed == [20, 20]
        assert asked(one, "direct", "/", "web", "client-2") == "web-1"


def test_the_drawing_shows_each_kind() -> None:
    two = plan.draw(scenario.load(QUICKSTART, overrides=["topology.kind=two-armed"]))
    assert "fabric: front" in two
    assert "fabric: back" in two
    assert sum(line.startswith("router") for line in two.splitlines()) == 2
    straight = plan.draw(scenario.load(QUICKSTART, overrides=["topology.kind=direct"]))
    assert "fabric" not in straight
    lossy = "topology.links={client: {delay: 5ms, loss: 1%, rate: 100mbit}}"
    assert "100 Mbit/s, 5 ms, loss 1.000%" in plan.draw(scenario.load(QUICKSTART, overrides=[lossy]))


def test_networks_of_two_cells_exist_side_by_side(tmp_path: Path) -> None:
    cells = scenario.load_cells(FILE, overrides=["params={mtu: [1500, 1400]}", "topology.link={mtu: '${mtu}'}"])
    run = state.create("cells")
    try:
        groups = bench.groups(cells)
        assert [len(group) for group in groups] == [1, 1]
        with ExitStack() as stack:
            benches = [
                stack.enter_context(bench.built(group, run, tmp_path, number)) for number, group in enumerate(groups)
            ]
            namespaces = [host.namespace for one in benches for host in one.network.hosts.values()]
            assert len(set(namespaces)) == len(namespaces)
            assert set(namespaces) < set(run.namespaces())
    finally:
        run.sweep()
    assert run.namespaces() == []
