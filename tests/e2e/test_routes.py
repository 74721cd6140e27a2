"""Which backend a request reaches: by its host, path and method, and by the weights of the cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.bench import Bench, bench, request
from lab.clients import CLIENTS, ClientName

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root"),
    pytest.mark.usefixtures("nothing_is_sent_twice"),
]

FILE = Path(__file__).parent / "data" / "hosts.yaml"


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A network of this module's own."""
    with bench("rauta", tmp_path_factory.mktemp("logs"), FILE) as one:
        yield one


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    ("host", "path", "backend"),
    [
        ("any.test", "/", "web-1"),
        ("any.test", "/api", "api-1"),
        ("any.test", "/api/x/y?z=/", "api-1"),
        ("any.test", "/apix", "web-1"),  # prefixes are of whole segments
        ("any.test", "/api/only", "web-1"),  # exact before prefix
        ("any.test", "/api/only/not", "api-1"),
        ("any.test", "/v1", "web-1"),  # the same path, the other host's route
        ("api.test", "/v1/x", "api-1"),
        ("API.test:80", "/v1/x", "api-1"),
        ("a.wild.test", "/api", "web-1"),  # a wildcard's routes, not those for any host
        ("a.b.wild.test", "/", "web-1"),  # of any number of labels
        ("x.api.wild.test", "/", "api-1"),  # the longest wildcard
        ("X.Y.API.wild.test", "/", "api-1"),
        ("exact.api.wild.test", "/", "web-1"),  # an exact name before any
        ("api.wild.test", "/", "web-1"),  # something has to stand for the star
        ("wild.test", "/api", "api-1"),  # so these are any host's
        ("notwild.test", "/api", "api-1"),
    ],
)
def test_the_most_specific_route_wins(routed: Bench, client: ClientName, host: str, path: str, backend: str) -> None:
    grown = routed.growth()
    answer = CLIENTS[client](routed.client, routed.to("shop", path, host=host))
    assert (answer.status, answer.backend) == (200, backend)
    assert (grown["ROUTED_FIRST"], grown["requests_routed"]) == (1, 1), grown


@pytest.mark.parametrize("client", CLIENTS)
def test_a_host_with_routes_has_no_others(routed: Bench, client: ClientName) -> None:
    grown = routed.growth()
    assert CLIENTS[client](routed.client, routed.to("shop", "/api", host="api.test")).status == 404
    assert (grown["TX_NO_ROUTE"], grown["requests_routed"]) == (1, 0), grown


def test_a_route_for_one_method_leaves_the_others_to_the_next_best(routed: Bench) -> None:
    for method, backend in (("GET", "web-1"), ("DELETE", "api-1")):
        answer = CLIENTS["curl"](routed.client, routed.to("shop", "/api/only", host="any.test", method=method))
        assert (answer.status, answer.backend) == (200, backend)


def test_http_1_0_needs_no_host(routed: Bench) -> None:
    with routed.connected() as connection:
        connection.sock.sendall(b"GET /api HTTP/1.0\r\n\r\n")
        assert connection.answer().backend == "api-1"
        assert connection.ended()


def test_a_drained_backend_gets_nothing(routed: Bench) -> None:
    answers = [CLIENTS["http.client"](routed.client, routed.to("shop", "/", host="any.test")) for _ in range(50)]
    assert {answer.backend for answer in answers} == {"web-1"}


@pytest.mark.parametrize("client", CLIENTS)
def test_a_cluster_of_drained_backends_is_unavailable(routed: Bench, client: ClientName) -> None:
    grown = routed.growth()
    answer = CLIENTS[client](routed.client, routed.to("shop", "/drained", host="api.test"))
    assert (answer.status, answer.backend) == (503, "")
    assert (grown["TX_UNAVAILABLE"], grown["requests_routed"]) == (1, 0), grown


def test_and_the_connection_ends(routed: Bench) -> None:
    with routed.connected() as connection:
        connection.sock.sendall(request("/drained", host="api.test"))
        assert connection.answer().status == 503
        assert connection.ended()
        assert not routed.sockets_of("drained-1", connection.port)
