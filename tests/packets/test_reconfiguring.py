"""A router goes from one configuration to another: what it routes by then, and what packets see on the way.

After each single write that a change makes, every kind of request is run through the program: it must be routed as the
old configuration says or as the new one does, and once it has been routed by the new one, never by the old one again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from itertools import count, pairwise
from typing import Any

import pytest

from packets import oracle
from packets.bench import BACKENDS, CLUSTERS, RESETTING_PORT, RESETTING_VIP, XDP_TX
from packets.frames import ETHERNET_HEADER, VIP, VIP_PORT, Connection, request
from packets.observed import configuration, loaded, member
from rauta import tables
from rauta.bpf import Map
from rauta.config import Capacity, Config
from rauta.errors import RautaError
from rauta.ids import Ids, route_name
from rauta.router import Router

NAMES = {backend.address: name for name, backend in BACKENDS.items()}
HOSTS = (None, "shop.test", "api.test", "*.test", "*.shop.test")
PATHS = ("/", "/a", "/a/b", "/a/b/c", "/b", "/b/c")
ASKED_HOSTS = ("shop.test", "api.test", "x.shop.test", "y.test", "other.example")
ASKED_PATHS = ("/", "/a", "/a/x", "/a/b", "/a/b/c", "/a/b/c/d", "/b", "/b/c/d", "/c")
PORTS = {"shop": (VIP, VIP_PORT), "strict": (RESETTING_VIP, RESETTING_PORT)}
Probe = tuple[str, str, str, str]
"""VIP, host, path, method"""

PROBES: list[Probe] = [
    (vip, host, path, method)
    for vip in PORTS
    for host in ASKED_HOSTS
    for path in ASKED_PATHS
    for method in ("GET", "POST")
]
_ports = count()


def asked(router: Router, probe: Probe) -> str:
    """Who gets a request, by name; or what the router does with it instead."""
    vip, host, path, method = probe
    address, port = PORTS[vip]
    number = next(_ports)
    client = f"198.18.{4 + number // 60000 % 200}.9"
    connection = Connection(port=5000 + number % 60000, client=client, server=address, server_port=port)
    done = router.object.programs["rauta_ingress"].test_run(
        bytes(connection.data(request(path, host=host, method=method)))
    )
    outer = done.data[ETHERNET_HEADER : ETHERNET_HEADER + 20]
    if done.retval == XDP_TX and outer[9] == 4:
        return NAMES[".".join(map(str, outer[16:20]))]
    return f"{done.retval}"


def with_routes(config: Config, vip: str, routes: Iterable[dict[str, Any]]) -> Config:
    """The same with other routes in a VIP."""
    raw = config.model_dump(mode="json")
    for one in raw["vips"]:
        if one["name"] == vip:
            one["routes"] = list(routes)
    return Config.model_validate(raw)


def drawn_routes(rng: random.Random, most: int, vip: str = "shop") -> list[dict[str, Any]]:
    """Some routes to clusters of one backend each, so that a decision is seen in who gets the request."""
    routes = {}
    for _ in range(rng.randrange(most + 1)):
        host, path = rng.choice(HOSTS), rng.choice(PATHS)
        kind, method = rng.choice(("exact", "prefix", "prefix")), rng.choice((None, None, "GET", "POST"))
        cluster = rng.choice(POOLS[vip])
        routes[host, kind, path, method] = {"host": host, kind: path, "method": method, "cluster": cluster}
    return list(routes.values())


def drawn(rng: random.Random, most: int) -> dict[str, list[dict[str, Any]]]:
    """For each VIP."""
    return {vip: drawn_routes(rng, most, vip) for vip in PORTS}


SINGLE = [f"only-{name}" for name in BACKENDS]
POOLS = {"shop": SINGLE[::2], "strict": SINGLE[1::2]}
"""A port of a backend belongs to one VIP."""


def world(routes: dict[str, list[dict[str, Any]]], **changes: Any) -> Config:
    """The bench's configuration, with a cluster for each backend alone."""
    base = configuration().model_dump(mode="json")
    base["clusters"] += [{"name": f"only-{name}", "backends": [member(name, 1)]} for name in BACKENDS]
    for vip in base["vips"]:
        vip["routes"] = routes.get(vip["name"], [])
    return Config.model_validate(base | changes)


def a_bit_different(rng: random.Random, config: Config) -> Config:
    """One route more, less, or to another cluster: what operators do most."""
    raw = config.model_dump(mode="json")
    vip = rng.choice(raw["vips"])
    routes, pool = vip["routes"], POOLS[vip["name"]]
    kind = rng.randrange(3)
    if kind == 0 or not routes:
        new = drawn_routes(rng, 1, vip["name"]) or [{"prefix": "/", "cluster": pool[0]}]
        named = [(one.get("host"), one.get("exact"), one.get("prefix"), one.get("method")) for one in routes]
        key = (new[0].get("host"), new[0].get("exact"), new[0].get("prefix"), new[0].get("method"))
        if key not in named:
            routes.append(new[0])
    elif kind == 1:
        routes.pop(rng.randrange(len(routes)))
    else:
        routes[rng.randrange(len(routes))]["cluster"] = rng.choice(pool)
    return Config.model_validate(raw)


@pytest.fixture
def router() -> Iterator[Router]:
    with loaded(world({"shop": [{"prefix": "/", "cluster": SINGLE[0]}]})) as one:
        yield one


def change(router: Router, config: Config) -> None:
    router.apply(router.plan(config))


def decisions(router: Router, probes: Iterable[Probe] = PROBES) -> dict[Probe, str]:
    return {probe: asked(router, probe) for probe in probes}


def stands(router: Router) -> None:
    """The maps hold what the configuration says, and nothing else; numbers aside."""
    vips, hosts, paths = (dict(_entries(router.object.maps[name])) for name in ("vips", "hosts", "paths"))
    expected = tables.router_tables(router.config, router.keys.route_key, router.ids)
    assert len(vips) == len(expected.vips)
    assert len(hosts) == len(expected.hosts)
    assert len(paths) == len(expected.paths)
    sets: dict[int, int] = {}
    for key, value in expected.vips:
        there = vips[tuple(_full(router, "vips", key).values())]
        for number, other in (("names", "names"), ("any_host", "any_host")):
            sets.setdefault(value.get(number, 0) + (1000 if number == "names" else 0), there[other])
        same = {name: there[name] for name in value if name not in ("names", "any_host")}
        assert same == {name: value[name] for name in same}
    for key, value in expected.hosts:
        there = hosts[key["hash"], sets[1000 + key["names"]], key["length"], key["kind"]]
        sets[value["id"]] = there["id"]
        assert there["shapes"] == value["shapes"]
        assert there["name"].rstrip(b"\0") == value["name"]
    for key, value in expected.paths:
        there = paths[key["hash"], sets[key["host"]], key["length"], key["kind"]]
        assert (there["route"], there["path"].rstrip(b"\0")) == (value["route"], value["path"])


def _entries(a_map: Map) -> Iterator[tuple[tuple[int, ...], dict[str, Any]]]:
    return ((tuple(key.values()), value) for key, value in a_map.items_batch())


def _full(router: Router, name: str, key: dict[str, int]) -> dict[str, int]:
    layout = router.object.maps[name].key_layout
    assert layout is not None
    return dict(layout.unpack(layout.pack(key)))


# ---- what it comes to -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_after_each_of_many_changes_the_maps_hold_just_that_configuration(router: Router, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(25):
        config = world(drawn(rng, 12)) if rng.random() < 0.4 else a_bit_different(rng, router.config)
        change(router, config)
        stands(router)


def test_and_routes_as_a_router_that_has_started_with_it(router: Router) -> None:
    rng = random.Random(7)
    for _ in range(6):
        change(router, world(drawn(rng, 10)))
    with loaded(router.config) as fresh:
        assert decisions(router) == decisions(fresh)


def test_a_vip_comes_moves_and_goes(router: Router) -> None:
    base = router.config
    raw = base.model_dump(mode="json")
    other = {"name": "new", "address": "198.18.100.90", "port": 81, "routes": [{"prefix": "/", "cluster": SINGLE[1]}]}
    for vips in (
        [*raw["vips"], other],
        [*raw["vips"], other | {"port": 82}],
        [other | {"address": "198.18.100.91"}, *raw["vips"][1:]],
        [raw["vips"][0] | {"port": 8080}, raw["vips"][1] | {"address": VIP, "port": VIP_PORT}],
        raw["vips"],
    ):
        change(router, Config.model_validate(raw | {"vips": vips}))
        stands(router)


@pytest.mark.parametrize("flows", [1024, 8192], ids=["the same table", "a larger one"])
def test_the_next_process_goes_on_with_flows_and_counters_under_another_configuration(
    router: Router, flows: int
) -> None:
    """The same connection, on a backend that is not configured any more; more routes than there was room for."""
    head, gone = request("/"), SINGLE[0].removeprefix("only-")
    connection = Connection(port=4321)
    router.object.programs["rauta_ingress"].test_run(bytes(connection.data(head)))
    raw = world({"shop": [{"prefix": f"/{n}", "cluster": SINGLE[2]} for n in range(3000)]}).model_dump(mode="json")
    raw["clusters"] = [one for one in raw["clusters"] if gone not in [x["name"] for x in one["backends"]]]
    config = Config.model_validate(raw | {"flows": flows})
    with Router.load(config, router.keys, ids=router.ids, earlier=router.object.maps) as following:
        stands(following)
        done = following.object.programs["rauta_ingress"].test_run(bytes(connection.ack(len(head), acked=100)))
        assert done.data[ETHERNET_HEADER + 16 :][:4] == oracle.be32(BACKENDS[gone].address).to_bytes(4, "little")
        grown = {name: n for name, n in following.counters().items() if n}
        assert grown == {"ROUTED_FIRST": 1, "FORWARDED": 1}


# ---- what packets see on the way ------------------------------------------------------------------------


class _Writes:
    """Calls `after` behind each single entry that is written to, or deleted from, a router's maps of routes."""

    def __init__(self, router: Router, after: Callable[[], None] = lambda: None) -> None:
        self._router, self._after = router, after
        self.number = 0
        writer = router._routing._writer
        writer._maps = {name: _Watched(one, self) for name, one in writer._maps.items()}  # type: ignore[misc]

    def done(self) -> None:
        self.number += 1
        self._after()


class _Watched:
    """A map whose writes come one by one."""

    def __init__(self, a_map: Map, writes: _Writes) -> None:
        self._map, self._writes = a_map, writes

    def update(self, key: Any, value: Any) -> None:
        self._map.update(key, value)
        self._writes.done()

    def update_batch(self, entries: Iterable[tuple[Any, Any]]) -> None:
        for key, value in entries:
            self.update(key, value)

    def delete_batch(self, keys: Iterable[Any]) -> None:
        for key in keys:
            self._map.delete(key)
            self._writes.done()


@pytest.mark.parametrize("seed", range(6))
def test_each_request_is_routed_by_the_old_configuration_or_by_the_new_one(router: Router, seed: int) -> None:
    rng = random.Random(100 + seed)
    change(router, world(drawn(rng, 8)))
    probes = rng.sample(PROBES, 24)
    seen: list[dict[Probe, str]] = []
    writes = _Writes(router, lambda: seen.append(decisions(router, probes)))
    for step in range(8):
        new = world(drawn(rng, 8)) if step % 2 else a_bit_different(rng, router.config)
        old = decisions(router, probes)
        seen.clear()
        change(router, new)
        final = decisions(router, probes)
        for probe in probes:
            history = [old[probe], *(one[probe] for one in seen), final[probe]]
            changes = [b for a, b in pairwise(history) if a != b]
            assert changes in ([], [final[probe]]), (probe, history)
    assert writes.number > 8


def test_routes_and_backends_that_change_together_change_at_once(router: Router) -> None:
    """Two clusters swap their backends, and two routes their clusters: each path keeps its backend throughout."""
    one, two = list(BACKENDS)[:2]
    probes: list[Probe] = [("shop", "shop.test", "/a", "GET"), ("shop", "shop.test", "/b", "GET")]

    def swapped(first: str, second: str, a: str, b: str) -> Config:
        raw = world({}).model_dump(mode="json")
        raw["vips"][0]["routes"] = [{"prefix": "/a", "cluster": a}, {"prefix": "/b", "cluster": b}]
        raw["clusters"] += [
            {"name": "x", "backends": [member(first, 1)]},
            {"name": "y", "backends": [member(second, 1)]},
        ]
        return Config.model_validate(raw)

    change(router, swapped(one, two, "x", "y"))
    assert list(decisions(router, probes).values()) == [one, two]
    seen: list[dict[Probe, str]] = []
    _Writes(router, lambda: seen.append(decisions(router, probes)))
    change(router, swapped(two, one, "y", "x"))
    seen.append(decisions(router, probes))
    assert [list(moment.values()) for moment in seen] == [[one, two]] * len(seen)


def test_one_route_more_or_to_another_cluster_is_one_write(router: Router) -> None:
    writes = _Writes(router)
    routes = [{"prefix": "/", "cluster": SINGLE[0]}]
    for changed, expected in (
        ([*routes, {"prefix": "/a", "cluster": SINGLE[1]}], 2),  # the first of its depth: where to look comes first
        ([*routes, {"prefix": "/a", "cluster": SINGLE[1]}, {"prefix": "/b", "cluster": SINGLE[1]}], 1),
        ([*routes, {"prefix": "/a", "cluster": SINGLE[2]}, {"prefix": "/b", "cluster": SINGLE[1]}], 1),
    ):
        before = writes.number
        change(router, with_routes(router.config, "shop", changed))
        assert writes.number - before == expected


# ---- numbers --------------------------------------------------------------------------------------------


def test_counters_stay_with_their_routes(router: Router) -> None:
    first = {"prefix": "/a", "cluster": SINGLE[1]}
    change(router, with_routes(router.config, "shop", [first]))
    for _ in range(3):
        asked(router, ("shop", "shop.test", "/a", "GET"))
    change(router, with_routes(router.config, "shop", [{"prefix": "/new", "cluster": SINGLE[0]}, first]))
    asked(router, ("shop", "shop.test", "/a", "GET"))
    assert {one.route.path: one.requests for one in router.requests_by_route()} == {"/new": 0, "/a": 4}


def test_a_backend_that_is_gone_keeps_its_connections_and_its_number_until_they_end(router: Router) -> None:
    name = next(iter(BACKENDS))
    change(router, with_routes(router.config, "shop", [{"prefix": "/", "cluster": f"only-{name}"}]))
    connection, head = Connection(port=4321), request("/")
    run = router.object.programs["rauta_ingress"].test_run
    run(bytes(connection.data(head)))
    raw = router.config.model_dump(mode="json")
    raw["clusters"] = [
        {**cluster, "backends": [one for one in cluster["backends"] if one["name"] != name]}
        for cluster in raw["clusters"]
        if cluster["name"] != f"only-{name}"
    ]
    raw["vips"][0]["routes"] = [{"prefix": "/", "cluster": SINGLE[1]}]
    number = router.ids.backend(router.config, name)
    change(router, Config.model_validate(raw))
    assert name not in router.config.backends()
    acknowledgement = run(bytes(connection.ack(len(head), acked=100)))
    assert acknowledgement.data[ETHERNET_HEADER + 16 :][:4] == oracle.be32(BACKENDS[name].address).to_bytes(4, "little")
    router.retire()
    assert (name, BACKENDS[name].address) in router.ids.backends
    run(bytes(connection.fin(len(head))))
    assert router.retire().backends == {(name, BACKENDS[name].address): number}
    assert router.object.maps["backends"].lookup(number)["address"] == 0
    assert router.names.backends.get(number) is None


def test_numbers_are_the_smallest_free_ones_and_stay() -> None:
    config = world({"shop": [{"prefix": path, "cluster": SINGLE[0]} for path in ("/a", "/b", "/c")]})
    ids = Ids().following(config)
    assert list(ids.routes.values()) == [0, 1, 2]
    less = with_routes(config, "shop", [{"prefix": "/c", "cluster": SINGLE[0]}, {"prefix": "/d", "cluster": SINGLE[0]}])
    both = ids.following(less)
    vip = less.vips[0]
    assert [both.routes[route_name(vip, route)] for route in vip.routes] == [2, 3]
    again = both.without(both.gone(less)).following(config)
    assert [again.routes[route_name(vip, route)] for route in config.vips[0].routes] == [0, 1, 2]


def test_all_routes_may_be_others_at_each_reload(router: Router) -> None:
    """Their numbers are free again when they are needed, also before somebody has called `retire`."""
    for turn in range(4):
        change(
            router,
            with_routes(router.config, "shop", [{"prefix": f"/{turn}-{n}", "cluster": SINGLE[0]} for n in range(900)]),
        )
    stands(router)


def test_the_next_process_may_have_room_for_fewer_routes(router: Router) -> None:
    """Those whose numbers it has no place for begin to count anew."""
    many = [{"prefix": f"/{n}", "cluster": SINGLE[0]} for n in range(1000)]
    change(router, with_routes(router.config, "shop", many))
    few = with_routes(router.config, "shop", many[-3:]).model_copy(update={"capacity": Capacity(routes=5, hosts=5)})
    with Router.load(few, router.keys, ids=router.ids, earlier=router.object.maps) as following:
        stands(following)
        following.object.maps["backends"].update_batch(router.object.maps["backends"].items_batch())
        asked(following, ("shop", "shop.test", "/999", "GET"))
        assert [one.requests for one in following.requests_by_route()] == [0, 0, 1]
        following.retire()


def test_what_has_no_room_or_takes_a_restart_is_refused_and_nothing_changes(router: Router) -> None:
    before = decisions(router, PROBES[:20])
    many = [{"prefix": f"/{number}", "cluster": SINGLE[0]} for number in range(1025)]
    with pytest.raises(RautaError, match=r"1025 routes.*room for 1024\nSet capacity.routes to 1025"):
        change(router, with_routes(router.config, "shop", many))
    with pytest.raises(RautaError, match="flows, recovery cannot change while the router runs"):
        change(router, router.config.model_copy(update={"flows": 4096, "recovery": {"port": 1}}))
    assert decisions(router, PROBES[:20]) == before
    assert set(CLUSTERS) <= {cluster.name for cluster in router.config.clusters}
