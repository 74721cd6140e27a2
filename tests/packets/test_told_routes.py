"""Router and agent agree on routes without agreeing on a configuration: each may be reloaded when it likes.

Requests go through the router's program, and what comes out of it through the agent's. Whatever the two have been told
in the meantime, an agent counts a request for the route that the router has counted it for, if it knows that one, and
for none otherwise.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

import pytest

from packets.bench import throwaway_namespace
from packets.frames import Connection, request
from packets.observed import KEYS, configuration, loaded, member
from rauta import router as router_module
from rauta.agent import Agent
from rauta.bpf import Map, MapType
from rauta.config import Config
from rauta.errors import RautaError
from rauta.figures import AgentRoute
from rauta.fingerprints import brief, fingerprint
from rauta.ids import RouteName, route_name
from rauta.observation import Observation
from rauta.router import Router

Counts = dict[RouteName | None, int]
"""requests by route, of those that there are; None: of no known one"""

PATHS = ("/", "/a", "/a/b", "/b", "/c")
HOSTS = (None, "shop.test", "*.test")
METHODS = (None, "POST")
ROUTES = [
    {"host": host, kind: path, "method": method}
    for host in HOSTS
    for path in PATHS
    for method in METHODS
    for kind in ("prefix", "exact")
]
ASKED = [
    request(path, host=host, method=method)
    for host in ("shop.test", "x.test", "other.example")
    for path in ("/", "/a", "/a/x", "/a/b", "/b/c", "/c")
    for method in ("GET", "POST")
]
LABELS = Observation(labels=True)


def world(routes: Iterable[dict[str, Any]], **changes: Any) -> Config:
    """All routes of the VIP `shop`, to one backend; the agents here are its."""
    fields = configuration().model_dump(mode="json", exclude_unset=True)
    fields["clusters"].append({"name": "only", "backends": [member("web-1", 1)]})
    shop, strict = fields["vips"]
    shop["routes"] = [{"cluster": "only"} | {name: one for name, one in route.items() if one} for route in routes]
    strict["routes"] = []
    return Config.model_validate(fields | changes)


def paths(*names: str) -> list[dict[str, Any]]:
    return [{"prefix": name} for name in names]


def named(config: Config) -> list[RouteName]:
    return [route_name(vip, route) for vip in config.vips for route in vip.routes]


def by_name(config: Config, counted: Iterable[AgentRoute]) -> Counts:
    """Those that are not 0."""
    counted = list(counted)
    assert [one.route for one in counted] == [*(route for vip in config.vips for route in vip.routes), None]
    found: Counts = {
        name: one.requests for name, one in zip((*named(config), None), counted, strict=True) if one.requests
    }
    return found


class Pair:
    """A router that labels and the agent of web-1, of which no program is attached: packets are run through both."""

    def __init__(self, router: Router, agent: Agent) -> None:
        self.router, self.agent = router, agent
        self._ports = count(5000)

    def reload(self, config: Config, *, router: bool = True, agent: bool = True) -> None:
        if router:
            self.router.apply(self.router.plan(config))
        if agent:
            self.agent.reconfigure(config)

    def connection(self) -> Connection:
        port = next(self._ports)
        return Connection(client=f"198.18.{4 + port // 60000}.9", port=port % 60000 + 1024)

    def route(self, segment: Any) -> bytes:
        """What leaves the router."""
        return self.router.object.programs["rauta_ingress"].test_run(bytes(segment)).data

    def deliver(self, frame: bytes) -> None:
        self.agent.object.programs["rauta_agent_ingress"].test_run(frame)

    def ask(self, *heads: bytes) -> None:
        """Each on a new connection."""
        for head in heads:
            self.deliver(self.route(self.connection().data(head)))

    def routed(self) -> Counts:
        names = named(self.router.config)
        return {name: one.requests for name, one in zip(names, self.router.requests_by_route(), strict=True)}

    def counted(self) -> Counts:
        return by_name(self.agent.config, self.agent.requests_by_route())


@pytest.fixture
def pair() -> Iterator[Pair]:
    config = world(paths("/"))
    with (
        throwaway_namespace(),
        loaded(config, observation=LABELS) as router,
        Agent.load(config, KEYS, "web-1") as agent,
    ):
        yield Pair(router, agent)


def name_of(path: str) -> RouteName:
    return "shop", None, "prefix", path, None


# ---- one side first -------------------------------------------------------------------------------------


def test_a_route_in_front_changes_no_others_counts(pair: Pair) -> None:
    """Whose side is reloaded first, and second."""
    expected: Counts = {}
    for first in ("router", "agent"):
        pair.reload(world(paths("/")))
        for changes in ({"router": first == "router", "agent": first == "agent"}, {}):
            pair.reload(world(paths("/a", "/")), **changes)
            pair.ask(request("/"), request("/"), request("/a"))
            one_has_it_not = pair.router.config != pair.agent.config
            new = name_of("/") if one_has_it_not and first == "agent" else None if one_has_it_not else name_of("/a")
            for name, times in ((name_of("/"), 2), (new, 1)):
                expected[name] = expected.get(name, 0) + times
            assert pair.counted() == expected
        del expected[name_of("/a")]
    assert sum(expected.values()) == 10


def test_places_do_not_matter(pair: Pair) -> None:
    pair.reload(world(paths("/", "/a", "/b")), router=False)
    pair.reload(world(paths("/b", "/", "/a")), agent=False)
    pair.ask(*[request("/")] * 3, *[request("/a")] * 2, request("/b"))
    assert pair.counted() == {name_of("/"): 3, name_of("/a"): 2, name_of("/b"): 1}


def test_where_a_route_leads_does_not_matter(pair: Pair) -> None:
    fields = pair.router.config.model_dump(mode="json", exclude_unset=True)
    fields["vips"][0]["routes"][0]["cluster"] = "web"
    pair.ask(request("/"))
    pair.reload(Config.model_validate(fields), router=False)
    pair.ask(request("/"))
    assert pair.counted() == {name_of("/"): 2}


def test_a_route_that_is_gone_begins_anew(pair: Pair) -> None:
    pair.reload(world(paths("/", "/a")))
    pair.ask(request("/a"), request("/a"), request("/"))
    pair.reload(world(paths("/")))
    assert pair.counted() == {name_of("/"): 1}
    pair.reload(world(paths("/a", "/")))
    pair.ask(request("/a"))
    assert pair.counted() == {name_of("/"): 1, name_of("/a"): 1}


def drawn_routes(seed: int) -> Iterator[list[dict[str, Any]]]:
    """Ten routes at a time, of which each time a few are others, in another order."""
    rng = random.Random(seed)
    routes = rng.sample(ROUTES, 10)
    while True:
        yield routes
        kept = [route for route in routes if rng.randrange(4)]
        new = [route for route in ROUTES if route not in kept]
        routes = kept + rng.sample(new, 10 - len(kept))
        rng.shuffle(routes)


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_reloaded_no_count_is_wrong(pair: Pair, seed: int) -> None:
    """Routes come, go and change places, on either side; what the agent counts is what the router does, or unknown."""
    rng, routes, told = random.Random(seed), drawn_routes(seed), 0
    expected: Counter[RouteName | None] = Counter()
    for _ in range(20):
        pair.reload(world(next(routes)), **rng.choice([{}, {"router": False}, {"agent": False}]))
        if rng.randrange(3) == 0:
            pair.router.retire()
        known = set(named(pair.agent.config))
        expected = Counter({name: n for name, n in expected.items() if name is None or name in known})
        before = pair.routed()
        pair.ask(*rng.sample(ASKED, 12))
        for name, now in pair.routed().items():
            expected[name if name in known else None] += now - before.get(name, 0)
            told += now - before.get(name, 0) if name in known else 0
        assert pair.counted() == {name: n for name, n in expected.items() if n}
    assert told > 60
    assert expected[None] > 20


# ---- what comes again -----------------------------------------------------------------------------------


def test_what_comes_again_has_the_route_that_was_found_then(pair: Pair) -> None:
    """Lost on its way to the agent; meanwhile its route goes, and others come."""
    pair.reload(world(paths("/", "/a")))
    lost = pair.connection().data(request("/a"))
    pair.route(lost)
    pair.reload(world(paths("/", "/b")), agent=False)
    pair.router.retire()
    pair.reload(world(paths("/", "/c", "/d")), agent=False)
    pair.router.retire()
    pair.deliver(pair.route(lost))
    assert pair.counted() == {name_of("/a"): 1}
    pair.reload(world(paths("/", "/c", "/d")))
    assert pair.counted() == {}


def test_numbers_come_back_once_nothing_is_sent_again(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.reload(world(paths("/", "/a")))
    number = pair.router.ids.routes[name_of("/a")]
    pair.reload(world(paths("/")))
    assert not pair.router.retire().routes
    monkeypatch.setattr(router_module, "_RESENT_SECONDS", 0.0)
    assert pair.router.retire().routes == {name_of("/a"): number}
    pair.reload(world(paths("/", "/b")))
    assert pair.router.ids.routes[name_of("/b")] == number
    pair.ask(request("/b"))
    assert pair.counted() == {name_of("/b"): 1}


def test_without_labels_they_come_back_at_once() -> None:
    with loaded(world(paths("/", "/a"))) as router:
        router.apply(router.plan(world(paths("/"))))
        assert router.retire().routes == {name_of("/a"): 1}


# ---- orders ---------------------------------------------------------------------------------------------


def with_api(routes: list[dict[str, Any]]) -> Config:
    """Some to a cluster of api-1 alone."""
    return world([{"cluster": "only" if route.get("prefix") == "/" else "api"} | route for route in routes])


def moved(pair: Pair, *heads: bytes) -> None:
    """Each on a connection that web-1 had, which is down: the router orders api-1 to go on."""
    first = request("/")
    for head in heads:
        connection = pair.connection()
        pair.router.set_down("web-1", down=False)
        pair.route(connection.data(first))
        pair.router.set_down("web-1")
        pair.deliver(pair.route(connection.later(head, len(first))))


@pytest.fixture
def moving() -> Iterator[Pair]:
    """The agent is that of api-1."""
    config = with_api(paths("/", "/a", "/b"))
    with (
        throwaway_namespace(),
        loaded(config, observation=LABELS) as router,
        Agent.load(config, KEYS, "api-1") as agent,
    ):
        yield Pair(router, agent)


def test_orders_say_routes_too(moving: Pair) -> None:
    moved(moving, request("/a"), request("/b"), request("/b"))
    moving.reload(with_api(paths("/c", "/b", "/")), agent=False)
    moved(moving, request("/b"), request("/c"))
    assert moving.counted() == {name_of("/a"): 1, name_of("/b"): 3, None: 1}
    moving.reload(with_api(paths("/c", "/b", "/")))
    moved(moving, request("/c"))
    assert moving.counted() == {name_of("/c"): 1, name_of("/b"): 3, None: 1}


def sharing_a_brief() -> tuple[str, str]:
    """Two paths."""
    seen: dict[int, str] = {}
    for number in count():
        path = f"/{number}"
        other = seen.setdefault(brief(fingerprint(name_of(path))), path)
        if other != path:
            return other, path
    raise AssertionError


def test_of_two_that_share_a_brief_orders_say_neither(moving: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as there are both, or an order about one that is gone may come again; labels say them all the same."""
    one, other = sharing_a_brief()
    moving.reload(with_api(paths("/", one, other)))
    moved(moving, request(one), request(other))
    assert moving.counted() == {None: 2}
    moving.ask(request(one), request(other), request(other))
    assert moving.counted() == {None: 2, name_of(one): 1, name_of(other): 2}
    moving.reload(with_api(paths("/", other)))
    moved(moving, request(other))
    assert moving.counted() == {None: 3, name_of(other): 2}
    monkeypatch.setattr(router_module, "_RESENT_SECONDS", 0.0)
    moving.router.retire()
    moved(moving, request(other))
    assert moving.counted() == {None: 3, name_of(other): 3}
    moving.reload(with_api(paths("/", one, other)), router=False)
    moved(moving, request(other))
    assert moving.counted() == {None: 4, name_of(other): 3}
    moving.reload(with_api(paths("/", other)), router=False)
    moving.reload(with_api(paths("/", one, other)), agent=False)
    moved(moving, request(one), request(other))
    assert moving.counted() == {None: 6, name_of(other): 3}


def test_of_two_that_share_a_fingerprint_nothing_is_said(pair: Pair) -> None:
    """Found among 36 million. They are counted under no route, as long as there are both."""
    one, other = "/7055648", "/19283717"
    assert fingerprint(name_of(one)) == fingerprint(name_of(other)) == 0x47CD_5FD1_52D6
    pair.reload(world(paths("/", one, other)))
    pair.ask(request(one), request(other), request("/"))
    assert pair.counted() == {None: 2, name_of("/"): 1}
    pair.reload(world(paths("/", one, other)))
    pair.reload(world(paths(other)))
    pair.ask(request(other))
    assert pair.counted() == {None: 3}


# ---- another process, and how many there may be ---------------------------------------------------------


def test_the_next_process_goes_on(pair: Pair) -> None:
    """Under a configuration that has changed in between."""
    pair.reload(world(paths("/", "/a", "/b")))
    pair.ask(request("/"), request("/a"), request("/a"), request("/b"))
    config = world(paths("/c", "/b", "/"))
    with Agent.load(config, KEYS, "web-1", earlier=pair.agent.object.maps) as agent:
        assert by_name(config, agent.requests_by_route()) == {name_of("/"): 1, name_of("/b"): 1}
        pair.agent = agent
        pair.reload(config, agent=False)
        pair.ask(request("/"), request("/c"))
        assert pair.counted() == {name_of("/"): 2, name_of("/b"): 1, name_of("/c"): 1}


@pytest.mark.parametrize("routes", [3, 3000])
def test_also_with_room_for_another_number(pair: Pair, routes: int) -> None:
    pair.reload(world(paths("/", "/a", "/b", "/c")))
    pair.ask(request("/"), request("/a"), request("/b"), request("/c"))
    config = world(paths("/c", "/a", "/"), capacity={"routes": routes})
    with Agent.load(config, KEYS, "web-1", earlier=pair.agent.object.maps) as agent:
        assert by_name(config, agent.requests_by_route()) == dict.fromkeys(named(config), 1)
        assert agent.object.maps["figures"].max_entries == 1 + routes


def test_a_map_that_was_made_otherwise_is_left_alone(pair: Pair) -> None:
    """Of a version that numbered routes."""
    config = world(paths("/"))
    with Map.create(MapType.PERCPU_ARRAY, "figures", 4, 232, 2) as old:
        old.update(1, [b"\x07" * 232] * len(old.lookup(0)))
        with Agent.load(config, KEYS, "web-1", earlier={"figures": old}) as agent:
            assert by_name(config, agent.requests_by_route()) == {}


def test_more_routes_than_there_is_room_for_are_refused(pair: Pair) -> None:
    few = world(paths("/", "/a", "/b"), capacity={"routes": 3})
    many = world(paths("/c", "/", "/a", "/b"), capacity={"routes": 4})
    with Agent.load(few, KEYS, "web-1") as agent:
        pair.agent = agent
        pair.ask(request("/"))
        with pytest.raises(RautaError, match=r"it has 4 routes, .* room for 3(?s:.*)capacity\.routes"):
            agent.reconfigure(many)
        assert agent.config == few
        pair.ask(request("/"))
        assert pair.counted() == {name_of("/"): 2}
        agent.reconfigure(world(paths("/c", "/d", "/"), capacity={"routes": 3}))
        pair.ask(request("/"))
        assert pair.counted() == {name_of("/"): 3}


def test_without_counts_by_route_all_are_of_none(pair: Pair) -> None:
    """And more routes take no room."""
    config = world(paths("/"))
    with Agent.load(config, KEYS, "web-1", by_route=False) as agent:
        pair.agent = agent
        pair.ask(request("/"), request("/"))
        assert [(one.vip, one.route, one.requests) for one in agent.requests_by_route()] == [("", None, 2)]
        pair.reload(world(paths("/", "/a", "/b", "/c")))
        pair.ask(request("/a"))
        assert [one.requests for one in agent.requests_by_route()] == [3]
        assert agent.object.maps["figures"].max_entries == 1
