"""What the data plane counts: the loaded router, asked after packets whose fate is known."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from packets.bench import RESETTING_PORT, RESETTING_VIP
from packets.frames import CLIENT_MAC, ROUTER_MAC, VIP, VIP_PORT, Connection, ethernet, request
from packets.observed import ROUTES, configuration, counted, loaded, run
from rauta.config import Config
from rauta.router import Router

ALICE = Connection()
BOB = Connection(server=RESETTING_VIP, server_port=RESETTING_PORT)


# ---- verdicts -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def counting() -> Iterator[Router]:
    """A router that has seen packets for both VIPs and for none."""
    with loaded() as router:
        run(router, ALICE.syn(), ALICE.data(request("/")), ALICE.ack(len(request("/"))), ALICE.ack(len(request("/"))))
        run(router, BOB.syn(), BOB.data(request("/nowhere")), BOB.data(request("/"), flags="SA"))
        run(router, ethernet(CLIENT_MAC, ROUTER_MAC, bytes(46), ethertype=0x86DD))
        run(router, Connection(server=VIP, server_port=VIP_PORT + 1).data(request("/")))
        run(router, ALICE.data(request("/"), ip={"flags": "MF"}))
        yield router


def test_verdicts_are_counted_for_the_vip_of_the_packet(counting: Router) -> None:
    by_vip = {vip: counted(counters) for vip, counters in counting.counters_by_vip().items()}
    assert by_vip == {
        "": {"PASS_NOT_IPV4": 1, "PASS_NOT_VIP": 1, "DROP_FRAGMENT": 1},
        "shop": {"TX_SYN_ACK": 1, "ROUTED_FIRST": 1, "FORWARDED": 2},
        "strict": {"TX_SYN_ACK": 1, "TX_RESET_NO_ROUTE": 1, "DROP_FLAGS": 1},
    }


def test_every_verdict_of_the_router_has_a_counter_for_every_vip(counting: Router) -> None:
    verdicts = counting.counters().keys()
    assert all(counters.keys() == verdicts for counters in counting.counters_by_vip().values())
    assert "ROUTED_FIRST" in verdicts
    assert not any(name.startswith(("AGENT_", "VERDICT_")) for name in verdicts)


def test_the_total_is_that_of_all_vips_and_none(counting: Router) -> None:
    assert counted(counting.counters()) == {
        "PASS_NOT_IPV4": 1,
        "PASS_NOT_VIP": 1,
        "DROP_FRAGMENT": 1,
        "DROP_FLAGS": 1,
        "TX_SYN_ACK": 2,
        "TX_RESET_NO_ROUTE": 1,
        "ROUTED_FIRST": 1,
        "FORWARDED": 2,
    }


def test_the_last_vip_of_as_many_as_there_may_be_is_counted() -> None:
    """Its id is the highest that the map has a row for."""
    one = configuration().model_dump(mode="json")
    shop = one["vips"][0] | {"routes": []}
    one["vips"] = [shop | {"name": f"vip-{number}", "port": 1000 + number} for number in range(64)]
    with loaded(Config.model_validate(one)) as router:
        run(router, Connection(server_port=1063).syn())
        assert {vip: counted(row) for vip, row in router.counters_by_vip().items() if counted(row)} == {
            "vip-63": {"TX_SYN_ACK": 1}
        }


# ---- routes ---------------------------------------------------------------------------------------------


def requests(router: Router) -> list[tuple[str, str, int]]:
    """VIP, path and requests of each route, in the order of the configuration."""
    return [(one.vip, one.route.path, one.requests) for one in router.requests_by_route()]


def test_requests_are_counted_for_their_route() -> None:
    """The first ones of connections, and later ones; not what is refused, or only belongs to a request."""
    head, carol = request("/"), Connection(port=40001)
    with loaded() as router:
        run(router, ALICE.data(head), ALICE.data(head), ALICE.ack(len(head)), ALICE.later(head, len(head)))
        run(router, carol.data(request("/api")), Connection(port=40002).data(request("/api", method="POST")))
        run(router, Connection(port=40003).data(request("/open", host="closed.test")))
        run(router, Connection(port=40004).data(request("/nowhere", host="closed.test")))
        run(router, BOB.data(request("/open")), BOB.data(request("/drained")))
        assert requests(router) == [
            ("shop", "/", 2),
            ("shop", "/api", 1),
            ("shop", "/api", 1),
            ("shop", "/open", 1),
            ("strict", "/open", 1),
            ("strict", "/drained", 0),
        ]
        assert [one.route.method for one in router.requests_by_route()][1:3] == [None, "POST"]
        assert sum(one.requests for one in router.requests_by_route()) == router.requests_routed == 6


def test_what_does_not_leave_for_a_backend_is_no_request_of_the_route() -> None:
    """Too big to be encapsulated; and a later request whose route's cluster has no weight. One that moves is one."""
    head = request("/")
    with loaded() as router:
        run(router, ALICE.data(request("/", f"X: {'x' * 1400}")))
        run(router, ALICE.data(head), ALICE.later(request("/api"), len(head)), ALICE.later(request("/api"), len(head)))
        there = Connection(server=RESETTING_VIP, server_port=RESETTING_PORT)
        run(router, there.data(request("/open")), there.later(request("/drained"), len(request("/open"))))
        verdicts = {"TX_TOO_BIG": 1, "ROUTED_FIRST": 2, "ROUTED_MOVED": 1, "FORWARDED_ORDER": 1, "TX_UNAVAILABLE": 1}
        assert counted(router.counters()) == verdicts
        assert [one.requests for one in router.requests_by_route()] == [1, 1, 0, 0, 1, 0]


def test_each_of_65536_routes_has_its_counter() -> None:
    routes = [{"prefix": f"/r/{number}", "cluster": "web"} for number in range(65_535)]
    config = configuration({"shop": [*routes, {"prefix": "/", "cluster": "api"}], "strict": ROUTES["strict"]})
    paths = ("/r/0", "/r/1023", "/r/1024", "/r/65534", "/r/65534/x", "/else")
    with loaded(config) as router:
        run(router, *(Connection(port=40000 + n).data(request(path)) for n, path in enumerate(paths)))
        counts = {number: one.requests for number, one in enumerate(router.requests_by_route()) if one.requests}
    assert counts == {0: 1, 1023: 1, 1024: 1, 65534: 2, 65535: 1}


def test_a_configuration_may_have_no_route() -> None:
    with loaded(configuration({"shop": [], "strict": []})) as router:
        run(router, ALICE.data(request("/")))
        assert router.requests_by_route() == []
        assert counted(router.counters()) == {"TX_NO_ROUTE": 1}
