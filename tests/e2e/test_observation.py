"""What the router says about real traffic: requests by route and VIP, how long the program took, single packets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from e2e.bench import Bench
from rauta.events import EventReader
from rauta.observation import EventRates, Observation
from rauta.router import Router

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

WAIT_MS = 5000


@pytest.fixture(scope="module")
def talking(routed: Bench) -> Iterator[Router]:
    """Another router in the place of the network's, with the same keys: it times and tells everything."""
    old, host = routed.running.router, routed.network.routers[0]  # type: ignore[attr-defined]
    old.close()
    observation = Observation(latency_one_in=1, events=EventRates(rate=10_000, burst=1000))
    with Router.load(old.config, old.keys, observation=observation) as router:
        with host.entered():
            router.attach(*routed.network.interfaces(host), mode="native")
        yield router


def requests(router: Router) -> dict[tuple[str, str], int]:
    """By VIP and path."""
    return {(one.vip, one.route.path): one.requests for one in router.requests_by_route() if one.requests}


def test_a_connections_requests_are_counted_timed_and_told(routed: Bench, talking: Router) -> None:
    with EventReader(talking) as reader:
        with routed.connected() as connection:
            for number in range(20):
                connection.ask(f"/api/{number}")
        told = [event for event in reader.poll(WAIT_MS) if event.verdict.startswith("ROUTED")]
    assert requests(talking) == {("shop", "/api"): 20}
    of_vip = talking.counters_by_vip()["shop"]
    assert (of_vip["TX_SYN_ACK"], of_vip["ROUTED_FIRST"], of_vip["ROUTED_NEXT"]) == (1, 1, 19)
    routed_times = talking.latency()["routed"]
    assert routed_times.count == 20
    assert routed_times.mean is not None
    assert routed_times.mean < 1e-3
    assert [event.verdict for event in told] == ["ROUTED_FIRST"] + ["ROUTED_NEXT"] * 19
    assert {(event.client, event.client_port) for event in told} == {(routed.client.address, connection.port)}
    assert {(event.server, event.server_port, event.vip) for event in told} == {(*routed.vip("shop"), "shop")}
    assert {(event.route and event.route.path, event.backend) for event in told} == {("/api", "api-1")}
    assert [event.time_ns for event in told] == sorted(event.time_ns for event in told)


def test_a_request_that_no_route_names_is_counted_for_its_vip(routed: Bench, talking: Router) -> None:
    before = requests(talking)
    with EventReader(talking) as reader, routed.connected(routed.vip("strict")) as connection:
        connection.sock.sendall(b"GET /nowhere HTTP/1.1\r\nHost: shop.test\r\n\r\n")
        event = next(event for event in reader.poll(WAIT_MS) if event.verdict == "TX_RESET_NO_ROUTE")
    assert (event.vip, event.route, event.backend) == ("strict", None, None)
    assert event.client == IPv4Address(routed.client.address)
    assert talking.counters_by_vip()["strict"]["TX_RESET_NO_ROUTE"] == 1
    assert talking.counters_by_vip()["shop"]["TX_RESET_NO_ROUTE"] == 0
    assert requests(talking) == before
