"""Questions about the flow table: what packets have written there is counted, found and named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Any

import pytest

from packets.frames import CLIENT, VIP, VIP_PORT, Connection, request
from packets.observed import loaded, run
from rauta.errors import RautaError
from rauta.explanation.live import explain_live
from rauta.flows import flows, short_flows
from rauta.observation import Observation
from rauta.processes import flowing
from rauta.router import Router

HEAD = request("/")
PORTS = range(41000, 41040)
CROWD = [f"198.18.1.{number}" for number in range(1, 30)]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "labelled"])
def busy(request: pytest.FixtureRequest) -> Iterator[Router]:
    """40 connections of one client, one each of many, one that is closing, one that got a 404.

    Where requests are labelled, a flow's entry has the route's number above that of the cluster.
    """
    with loaded(observation=Observation(labels=request.param)) as router:
        run(router, *(Connection(port=port).data(HEAD) for port in PORTS))
        run(router, *(Connection(client=client).data(HEAD) for client in CROWD))
        run(router, Connection(port=42000).data(HEAD), Connection(port=42000).fin(len(HEAD)))
        run(router, Connection(port=42001).data(globals()["request"]("/", host="closed.test")))
        yield router


def survey(router: Router, limit: int = 1000, top: int = 0, **wanted: Any) -> dict[str, Any]:
    named = {"client": None, "backend": None, "state": None} | wanted
    return flowing.survey(router, flowing.Wanted.of(router, **named), limit, top)


def test_short_flows_are_the_flows(busy: Router) -> None:
    whole = Counter((*flow.connection, flow.backend, flow.cluster, flow.fields["state"]) for flow in flows(busy.object))
    assert len(whole) == len(PORTS) + len(CROWD) + 2
    short = [(one.client, one.server, one.client_port, one.server_port, one.backend, one.cluster, one.state)
             for one in short_flows(busy.object)]  # fmt: skip
    assert Counter(short) == whole


def test_all_by_state(busy: Router) -> None:
    answer = survey(busy)
    assert answer["states"] == {"open": len(PORTS) + len(CROWD), "closing": 1, "answered": 1}
    assert (answer["matching"], answer["capacity"]) == (len(PORTS) + len(CROWD) + 2, 1024)
    assert len(answer["flows"]) == answer["matching"]


def test_one_client_and_one_port(busy: Router) -> None:
    address = IPv4Address(CLIENT)
    assert survey(busy, client=(address, 0))["matching"] == len(PORTS) + 2
    (flow,) = survey(busy, client=(address, 41007))["flows"]
    assert (flow["client"], flow["vip"], flow["state"]) == (f"{CLIENT}:41007", f"{VIP}:{VIP_PORT}", "open")
    assert flow["cluster"] == busy.config.clusters[0].name
    assert flow["backend"] in busy.config.clusters[0].weights()


def test_what_the_router_answered_has_no_backend(busy: Router) -> None:
    (flow,) = survey(busy, state="answered")["flows"]
    assert (flow["client"], flow["backend"]) == (f"{CLIENT}:42001", None)


def test_of_a_backend(busy: Router) -> None:
    counted = flowing.live_by_backend(busy)
    assert sum(counted.values()) == len(PORTS) + len(CROWD)
    for name in busy.config.clusters[0].weights():
        assert survey(busy, backend=name, state="live")["matching"] == counted[name]


def test_the_limit_is_of_what_is_shown(busy: Router) -> None:
    answer = survey(busy, limit=3)
    assert len(answer["flows"]) == 3
    assert answer["matching"] == len(PORTS) + len(CROWD) + 2


def test_the_clients_that_have_most(busy: Router) -> None:
    answer = survey(busy, top=1000)
    assert answer["top"][0] == {"client": CLIENT, "flows": len(PORTS) + 2}
    assert {one["client"] for one in answer["top"][1:]} == set(CROWD)
    assert {one["flows"] for one in answer["top"][1:]} == {1}
    assert len(survey(busy, top=5)["top"]) == 5


@pytest.mark.parametrize(
    ("wanted", "said"),
    [({"state": "odd"}, "there is no such state"), ({"backend": "odd"}, "there is none of that name")],
)
def test_what_there_is_none_of(busy: Router, wanted: dict[str, str], said: str) -> None:
    with pytest.raises(RautaError, match=said):
        survey(busy, **wanted)


def test_a_cluster_keeps_its_number_while_a_flow_has_it(busy: Router) -> None:
    """Whether its entry has a label in it or not."""
    cluster = busy.ids.clusters[busy.config.clusters[0].name]
    assert {flow.cluster for flow in flows(busy.object) if flow.state == "FLOW_OPEN"} == {cluster}


# ---- explain ----------------------------------------------------------------------------------------------


def told_to(router: Router, port: int) -> dict[str, Any]:
    client = (IPv4Address(CLIENT), port)
    answer: dict[str, Any] = explain_live(router, "GET /", ["Host: shop.test"], vip="shop", client=client)["client"]
    return answer


def test_what_is_explained_is_what_packets_have_got(busy: Router) -> None:
    """By the real table: for each client the backend that its flow has."""
    for port in PORTS:
        answer = told_to(busy, port)
        assert answer["backend"] == answer["flow"]["backend"] == answer["flow"]["next"]


def test_a_flow_that_is_not_open_goes_nowhere(busy: Router) -> None:
    assert told_to(busy, 42000)["flow"]["next"] is None
    assert told_to(busy, 42001)["flow"]["state"] == "answered"
    assert told_to(busy, 43000)["flow"] is None
