"""The proxies that RAUTA is compared with do the same work: every one routes the same requests to the same backends.

(That RAUTA does is tests/e2e/test_routes.py, of the same network.)
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from e2e.bench import SECONDS, Bench, bench
from lab import contenders, scenario
from lab.clients import CLIENTS
from lab.contenders.proxy import ROUTER_SYSCTLS

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

FILE = Path(__file__).parent / "data" / "hosts.yaml"
PROXIES = ("nginx", "haproxy", "envoy")


@pytest.fixture(scope="module", params=PROXIES)
def proxied(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench(request.param, tmp_path_factory.mktemp("logs"), FILE) as one:
        yield one


@pytest.mark.parametrize(
    ("host", "path", "method", "backend"),
    [
        ("any.test", "/", "GET", "web-1"),
        ("any.test", "/api", "GET", "api-1"),
        ("any.test", "/api/", "GET", "api-1"),
        ("any.test", "/api/x/y?z=/", "GET", "api-1"),
        ("any.test", "/apix", "GET", "web-1"),  # prefixes are of whole segments
        ("any.test", "/api/only", "GET", "web-1"),  # exact before prefix
        ("any.test", "/api/only?a=b", "GET", "web-1"),
        ("any.test", "/api/only", "DELETE", "api-1"),  # the route is for GET: the next best for others
        ("any.test", "/api/only/not", "GET", "api-1"),
        ("any.test", "/v1", "GET", "web-1"),  # the same path, the other host's route
        ("api.test", "/v1/x", "GET", "api-1"),
        ("API.test", "/v1/x", "GET", "api-1"),
        ("a.wild.test", "/api", "GET", "web-1"),  # a wildcard's routes, not those for any host
        ("a.b.wild.test", "/", "GET", "web-1"),  # of any number of labels
        ("x.api.wild.test", "/", "GET", "api-1"),  # the longest wildcard
        ("X.Y.API.wild.test", "/", "GET", "api-1"),
        ("exact.api.wild.test", "/", "GET", "web-1"),  # an exact name before any
        ("api.wild.test", "/", "GET", "web-1"),  # something has to stand for the star
        ("wild.test", "/api", "GET", "api-1"),  # so these are any host's
        ("notwild.test", "/api", "GET", "api-1"),
    ],
)
def test_requests_go_where_rauta_sends_them(proxied: Bench, host: str, path: str, method: str, backend: str) -> None:
    answer = CLIENTS["curl"](proxied.client, proxied.to("shop", path, host=host, method=method))
    assert (answer.status, answer.backend) == (200, backend)


def test_a_host_with_routes_has_no_others(proxied: Bench) -> None:
    assert CLIENTS["curl"](proxied.client, proxied.to("shop", "/api", host="api.test")).status == 404


def test_a_drained_backend_gets_nothing(proxied: Bench) -> None:
    answers = [CLIENTS["http.client"](proxied.client, proxied.to("shop", "/", host="any.test")) for _ in range(50)]
    assert {answer.backend for answer in answers} == {"web-1"}


def test_a_cluster_of_drained_backends_is_unavailable(proxied: Bench) -> None:
    answer = CLIENTS["curl"](proxied.client, proxied.to("shop", "/drained", host="api.test"))
    assert (answer.status, answer.backend) in ((502, ""), (503, ""))


def test_a_connection_is_kept_for_the_next_request(proxied: Bench) -> None:
    with proxied.connected() as connection:
        assert [connection.ask(path, "X: y").status for path in ("/", "/api", "/")] == [200, 200, 200]


def test_nothing_is_left_of_it(tmp_path: Path) -> None:
    """Neither settings of the router's kernel, nor the VIP's address, nor the program."""
    with bench("direct", tmp_path, FILE) as one:
        router = one.network.router
        sysctls = {name: router.sysctl(name) for name in ROUTER_SYSCTLS}
        addresses = router.run(["ip", "-brief", "address"], timeout=SECONDS).stdout
        for name in PROXIES:
            with ExitStack() as stack:
                contenders.find(name).start(one.network, scenario.load(FILE), stack)
            assert {name: router.sysctl(name) for name in ROUTER_SYSCTLS} == sysctls
            assert router.run(["ip", "-brief", "address"], timeout=SECONDS).stdout == addresses
            with router.entered(), socket.socket() as probe:
                assert probe.connect_ex((str(one.vip("shop")[0]), 80))
