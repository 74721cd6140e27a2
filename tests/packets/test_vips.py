"""Several VIPs: each has its own routes and its own answer to what no route names, and nothing of another's."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from packets import oracle
from packets.bench import INDEX, Router, entry
from packets.frames import Connection, request
from packets.oracle import NO_ROUTE_404, NO_ROUTE_RESET, Route, Vip

ONE, OTHER = "198.18.100.80", "198.18.100.90"
PORT, OTHER_PORT = 80, 8443
HOST, STAR = "shop.test", "*.stars.test"

VIPS = {
    "one:80": Vip(
        ONE,
        PORT,
        (
            Route("web", prefix="/shared", host=HOST),
            Route("web", prefix="/only-one-80", host=HOST),
            Route("web", exact="/exact-80", host=HOST, method="POST"),
        ),
        NO_ROUTE_404,
    ),
    "one:8443": Vip(
        ONE,
        OTHER_PORT,
        (
            Route("api", prefix="/shared", host=HOST),
            Route("api", prefix="/only-one-8443", host=HOST),
            Route("api", prefix="/", host=STAR),
        ),
        NO_ROUTE_RESET,
    ),
    "other:80": Vip(
        OTHER,
        PORT,
        (Route("skewed", prefix="/shared"), Route("skewed", prefix="/only-other-80")),
        NO_ROUTE_RESET,
    ),
    "other:8443": Vip(
        OTHER,
        OTHER_PORT,
        (
            Route("drained", prefix="/shared", host=HOST),
            Route("api", exact="/only-other-8443", host=HOST),
            Route("web", prefix="/", host="elsewhere.test"),
        ),
        NO_ROUTE_404,
    ),
}
SHARED = {"one:80": "web", "one:8443": "api", "other:80": "skewed", "other:8443": "drained"}
ASKED = {  # requests, and the VIPs that route them with their clusters
    "a path that all have": (request("/shared/x", host=HOST), SHARED),
    "a prefix of one:80": (request("/only-one-80/x", host=HOST), {"one:80": "web"}),
    "an exact path of one:80": (request("/exact-80", host=HOST, method="POST"), {"one:80": "web"}),
    "the same by another method": (request("/exact-80", host=HOST), {}),
    "a prefix of one:8443": (request("/only-one-8443", host=HOST), {"one:8443": "api"}),
    "a prefix of other:80, for any host": (request("/only-other-80", host=HOST), {"other:80": "skewed"}),
    "an exact path of other:8443": (request("/only-other-8443", host=HOST), {"other:8443": "api"}),
    "a wildcard of one:8443": (request("/x", host="a.stars.test"), {"one:8443": "api"}),
    "a host of other:8443": (request("/x", host="elsewhere.test"), {"other:8443": "web"}),
    "a path of none": (request("/none", host=HOST), {}),
    "a host of none": (request("/x", host="none.test"), {}),
}
PAIRS = list(itertools.product(VIPS, ASKED))


@pytest.fixture
def vips(router: Router) -> Router:
    """The router with these VIPs; its fixture puts its own back."""
    for name, entries in oracle.route_tables(list(VIPS.values()), INDEX).items():
        router.object.maps[name].clear()
        router.object.maps[name].update_batch(entries)
    return router


def to(vip: str, port: int = 40000, **changes: int) -> Connection:
    return Connection(port=port, server=VIPS[vip].address, server_port=VIPS[vip].port, **changes)


def refuses(router: Router, connection: Connection, head: bytes, vip: str) -> None:
    """As the VIP says."""
    if VIPS[vip].no_route == NO_ROUTE_404:
        router.answers(connection.data(head), "TX_NO_ROUTE", "404 Not Found")
    else:
        router.resets(connection.data(head), "TX_RESET_NO_ROUTE")


@pytest.mark.parametrize(("vip", "asked"), PAIRS)
def test_a_vip_has_its_own_routes_and_no_others(vips: Router, vip: str, asked: str) -> None:
    head, routed = ASKED[asked]
    match routed.get(vip):
        case None:
            refuses(vips, to(vip), head, vip)
        case "drained":
            vips.answers(to(vip).data(head), "TX_UNAVAILABLE", "503 Service Unavailable")
        case cluster:
            vips.opens(to(vip).data(head), cluster)


@pytest.mark.parametrize("vip", ["one:80", "one:8443", "other:80"])
@pytest.mark.parametrize("asked", ASKED)
def test_nor_for_a_later_request_on_a_connection(vips: Router, vip: str, asked: str) -> None:
    first, connection = request("/shared", host=HOST), to(vip)
    vips.opens(connection.data(first), SHARED[vip])
    backend = vips.backend_of(SHARED[vip], connection)
    head, routed = ASKED[asked]
    later = connection.later(head, at=len(first))
    if vip in routed:
        vips.forwards(later, "ROUTED_NEXT", backend)
    else:
        vips.resets(later, "TX_NO_ROUTE" if VIPS[vip].no_route == NO_ROUTE_404 else "TX_RESET_NO_ROUTE")


def test_one_client_port_may_have_connections_to_all_of_them_at_once(vips: Router) -> None:
    """Also with the same initial number. What one says, does and closes does not concern the others."""
    first = request("/shared", host=HOST)
    connections = {vip: to(vip) for vip in ("one:80", "one:8443", "other:80")}
    for vip, connection in connections.items():
        vips.greets(connection.syn())
        vips.opens(connection.data(first), SHARED[vip])
    assert vips.flows() == 3
    backends = {vip: vips.backend_of(SHARED[vip], connection) for vip, connection in connections.items()}
    vips.forwards(connections["one:80"].fin(len(first)), "FORWARDED_CLOSE", backends["one:80"])
    vips.greets(replace(connections["one:8443"], isn=7).syn())
    for vip in ("one:8443", "other:80"):
        vips.forwards(connections[vip].ack(len(first), acked=300), "FORWARDED", backends[vip])
        vips.forwards(connections[vip].later(first, at=len(first)), "ROUTED_NEXT", backends[vip])
    made = entry(connections["other:80"].data(first), "skewed", backends["other:80"])
    flow = vips.flow(connections["other:80"])
    assert flow is not None
    assert {name: flow[name] for name in ("isn", "cookie", "backend", "syn_seen", "state")} == {
        name: made[name] for name in ("isn", "cookie", "backend", "syn_seen", "state")
    }


@pytest.mark.parametrize(("owner", "vip"), list(itertools.permutations(VIPS, 2)))
def test_a_cookie_of_one_vip_opens_nothing_on_another(vips: Router, owner: str, vip: str) -> None:
    forged = replace(to(vip).data(request("/shared", host=HOST)), ack=to(owner).cookie + 1 & 0xFFFFFFFF)
    vips.resets(forged, "TX_RESET_COOKIE")
    assert vips.flows() == 0


@pytest.mark.parametrize(
    ("address", "port"), [(ONE, 81), (OTHER, 443), ("198.18.100.81", PORT), ("198.18.100.89", 8443)]
)
def test_an_address_or_a_port_alone_makes_no_vip(vips: Router, address: str, port: int) -> None:
    vips.passes(Connection(server=address, server_port=port).syn(), "PASS_NOT_VIP")


@pytest.mark.parametrize("address", [ONE, OTHER])
def test_fragments_to_any_of_the_addresses_are_dropped(vips: Router, address: str) -> None:
    fragment = Connection(server=address).data(request("/"), ip={"frag": 5})
    vips.drops(fragment, "DROP_FRAGMENT")
