"""`rauta run` and `rauta agent` as processes: requests stay with their routes through reloads and restarts of each."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from e2e.bench import Bench, bench, eventually
from lab.contenders.service import Part, RunningService
from rauta.config import Config, Metrics, Route
from rauta.figures import RouteFigures
from rauta.processes.takedown import attached_ids

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

LISTEN = ("127.0.0.1", 9477)
Counts = Counter[str]
"""requests by the route's path, "" where it is not known"""


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Its router labels."""
    with bench("rauta-run", tmp_path_factory.mktemp("logs")) as one:
        running = service(one)
        running.write(running.config.model_copy(update={"metrics": Metrics(listen=LISTEN)}))
        restart(*running.agents.values(), *running.routers)
        yield one


def service(one: Bench) -> RunningService:
    assert isinstance(one.running, RunningService)
    return one.running


def restart(*parts: Part) -> None:
    """One after the other, each without a word of warning."""
    for part in parts:
        part.kill()
        part.start()


def counted(one: Bench) -> Counts:
    """Over all agents, as their maps have it."""
    running, found = service(one), Counts()
    for agent in running.agents.values():
        with agent.host.entered():
            attached = attached_ids([agent.host.interface])
        with agent.instance.pinned("agent", attached) as maps:
            for route in RouteFigures(maps, running.config, by_route=True).read():
                found[route.route.path if route.route else ""] += route.requests
    return +found


def grows(one: Bench, before: Counts, *paths: str) -> Counts:
    """By requests for these on one connection, each counted for the route of the path's beginning."""
    routed = one.growth()
    with one.connected() as conversation:
        for path in paths:
            assert conversation.ask(path).status == 200
    expected = before + Counts(f"/{path.split('/')[1]}" for path in paths)
    assert routed["requests_routed"] == len(paths)
    eventually(lambda: counted(one) == expected, f"{expected}, not {counted(one)}")
    return expected


def with_first(config: Config, *paths: str, without: Sequence[str] = ()) -> Config:
    """Other routes in front of those of `shop`."""
    shop, *others = config.vips
    new = tuple(Route(host="shop.test", prefix=path, cluster="web") for path in paths)
    kept = tuple(route for route in shop.routes if route.path not in without)
    return config.model_copy(update={"vips": (shop.model_copy(update={"routes": new + kept}), *others)})


def test_counts_outlive_each_process_and_all_of_them(labelled: Bench) -> None:
    """Requests move the connection from backend to backend, so orders tell routes as well as labels do."""
    running = service(labelled)
    there = grows(labelled, counted(labelled), "/web/a", "/api/a", "/web/b", "/api/b", "/api/c")
    for parts in (running.routers, [*running.agents.values()], [*running.routers, *running.agents.values()]):
        restart(*parts)
        assert counted(labelled) == there
        there = grows(labelled, there, "/api/d", "/web/d", "/web/e")
    assert "" not in there


def test_routes_keep_their_counts_when_others_come_and_go(labelled: Bench) -> None:
    """Numbers of a router are not places in the file from the first change on."""
    running = service(labelled)
    config, there = running.config, grows(labelled, counted(labelled), "/web/a", "/api/a")
    running.reload(with_first(config, "/first", "/second"))
    there = grows(labelled, there, "/first/a", "/api/b", "/second/a", "/second/b", "/web/b")
    restart(*running.agents.values())
    running.reload(with_first(config, "/third", "/second", without=["/api"]))
    del there["/first"], there["/api"]
    there = grows(labelled, there, "/third/a", "/second/c", "/web/c")
    restart(*running.routers, *running.agents.values())
    there = grows(labelled, there, "/third/b", "/web/d")
    running.reload(config)
    del there["/third"], there["/second"]
    grows(labelled, there, "/api/e", "/web/e")
