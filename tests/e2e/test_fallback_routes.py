"""The fallback decides as the router does: each proxy is asked what the real XDP program was asked."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

import pytest
from packets import frames

from e2e import proxied
from e2e.proxied import Site, configuration, site
from rauta import fallback, tables
from rauta.config import Config
from rauta.keys import Keys
from rauta.router import Router

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

ROUTES = [
    {"prefix": "/", "cluster": "web"},
    {"prefix": "/api", "cluster": "api"},
    {"prefix": "/api/v1", "cluster": "old"},
    {"prefix": "/api/v1", "method": "POST", "cluster": "web"},
    {"prefix": "/api/v1/x", "method": "DELETE", "cluster": "api"},
    {"exact": "/api/only", "method": "GET", "cluster": "web"},
    {"exact": "/api/slash/", "cluster": "old"},
    {"exact": "/", "method": "PUT", "cluster": "api"},
    {"prefix": "/drained", "cluster": "drained"},
    {"prefix": "/drained/post", "method": "POST", "cluster": "drained"},
    {"prefix": "/drained/post", "cluster": "old"},
    {"prefix": "/half/drained", "method": "POST", "cluster": "old"},
    {"prefix": "/half/drained", "cluster": "drained"},
    # What a proxy's configuration must not take for its own.
    {"prefix": "/a!b$c&d'e(f)*g+h,i;j=k:l@m", "cluster": "api"},
    {"exact": "/q%22uote", "cluster": "api"},
    {"prefix": "/it's", "cluster": "old"},
    {"prefix": "/%7Bb%7D", "cluster": "old"},
    {"prefix": "/$uri", "cluster": "api"},
    {"prefix": "/%5Bpath%5D", "cluster": "api"},
    {"prefix": "/sp%20ace", "cluster": "api"},
    {"prefix": "/caf%C3%A9", "cluster": "old"},
    {"prefix": "/~user", "cluster": "api"},
    {"prefix": "/.well-known", "cluster": "old"},
    {"prefix": "/Case", "cluster": "api"},
    {"prefix": "/%3Ca%3E%7C%5E%60", "cluster": "api"},
    # Hosts.
    {"host": "shop.test", "prefix": "/api", "cluster": "web"},
    {"host": "shop.test", "exact": "/health", "cluster": "old"},
    {"host": "methods.test", "prefix": "/", "method": "GET", "cluster": "web"},
    {"host": "methods.test", "prefix": "/", "method": "HEAD", "cluster": "api"},
    {"host": "methods.test", "prefix": "/deep/er", "method": "POST", "cluster": "old"},
    {"host": "*.shop.test", "prefix": "/", "cluster": "old"},
    {"host": "*.eu.shop.test", "prefix": "/", "cluster": "api"},
    {"host": "www.eu.shop.test", "prefix": "/", "cluster": "web"},
    {"host": "_", "prefix": "/", "cluster": "old"},
    {"host": "_dmarc.shop.test", "prefix": "/x", "cluster": "web"},
    {"host": "a-" + "b" * 60 + "." + "c" * 63 + "." + "d" * 63 + "." + "e" * 60, "prefix": "/", "cluster": "api"},
]
CONFIG = configuration(
    [
        {"name": "shop", "routes": ROUTES},
        {"name": "strict", "no_route": "reset", "routes": [{"host": "shop.test", "prefix": "/open", "cluster": "two"}]},
        {"name": "open", "no_route": "fallback", "routes": [{"exact": "/open", "cluster": "three"}]},
    ],
    {"web": 11, "api": 21, "old": 31, "drained": 41, "two": 51, "three": 61},
)
PATHS = sorted({str(route.get("prefix") or route.get("exact")) for route in ROUTES})
HOSTS = sorted({str(route["host"]).replace("*", "any") for route in ROUTES if "host" in route})
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")
ENDS = ("", "/", "/x", "x", "/x/y", "?a=/api", "/?b", "/only", "/x/y/z/")


@dataclass(frozen=True)
class Decision:
    """Where a request goes: to the backend with that address, or nowhere, with that status (0: closed at once)."""

    backend: str
    status: int = 200


class Asked:
    """The XDP program with the configuration, and nobody who could answer."""

    def __init__(self, router: Router) -> None:
        self.router = router
        indices = router.ids.backend_indices(router.config)
        entries = [
            (indices[name], tables.backend_entry(one, bytes(6))) for name, one in router.config.backends().items()
        ]
        router.object.maps["backends"].update_batch(entries)
        self.ports = itertools.count(1024)

    def decide(self, vip: str, head: bytes) -> Decision:
        """About a connection's first request."""
        one = next(each for each in self.router.config.vips if each.name == vip)
        keys = self.router.keys.cookies.by_epoch
        connection = frames.Connection(port=next(self.ports), server=str(one.address), server_port=one.port, keys=keys)
        before = self.router.counters()
        done = self.router.object.programs["rauta_ingress"].test_run(bytes(connection.data(head)))
        now = self.router.counters()
        (verdict,) = (name for name, count in now.items() if count != before[name])
        if verdict == "ROUTED_FIRST":
            return Decision(str(IPv4Address(done.data[30:34])))
        return Decision("", {"TX_NO_ROUTE": 404, "TX_RESET_NO_ROUTE": 0, "TX_UNAVAILABLE": 503}[verdict])


@pytest.fixture(scope="module")
def xdp() -> Iterator[Asked]:
    """Without the fallback: the router then says what it would hand over for want of a route."""
    without = Config.model_validate(
        CONFIG.model_dump() | {"fallback": None, "vips": [_with_404(v) for v in CONFIG.vips]}
    )
    with Router.load(without, Keys.generate()) as router:
        yield Asked(router)


def _with_404(vip: object) -> dict[str, object]:
    """What the fallback says where XDP leaves it to it."""
    fields = vip.model_dump()  # type: ignore[attr-defined]
    return fields | {"no_route": 404 if fields["no_route"] == "fallback" else fields["no_route"]}


@pytest.fixture(scope="module", params=fallback.KINDS)
def proxy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(request.param, CONFIG, tmp_path_factory.mktemp("proxied")) as one:
        yield one


def decided(proxy: Site, vip: str, heads: list[bytes]) -> list[Decision]:
    """By the proxy, each on a connection of its own."""
    found = []
    for head in heads:
        answers = proxied.replies(_without_bodies(head, proxy.raw(head, vip)))
        (answer,) = answers or [proxied.Reply(0, b"")]
        found.append(Decision(answer.backend, answer.status))
    return found


def _without_bodies(head: bytes, stream: bytes) -> bytes:
    return stream.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if head.startswith(b"HEAD ") else stream


def head(method: str, host: str, target: str) -> bytes:
    return frames.request(target, method=method, host=host)


def requests(seed: int, count: int) -> list[bytes]:
    """Requests for all that the routes name, and for what lies beside it."""
    chance = random.Random(seed)
    beside = ["other.test", "test", "xshop.test", "shop.test.other", "a.b.eu.shop.test", "eu.shop.test"]
    found = []
    for _ in range(count):
        host = chance.choice([*HOSTS, *beside, *["other.test"] * 10])
        host = chance.choice([host, host.upper(), f"{host}.", f"{host}:80", f"{host}.:8080"])
        path = chance.choice(PATHS).rstrip("/") + chance.choice(ENDS)
        found.append(head(chance.choice(METHODS), host, path if path.startswith("/") else f"/{path}"))
    return found


def test_of_everything_that_routes_name(proxy: Site, xdp: Asked) -> None:
    """The proxy's answers to HEAD have no body: who gave them is in the backends' log."""
    heads = [one for one in requests(7, 700) if not one.startswith(b"HEAD ")]
    expected = [xdp.decide("shop", one) for one in heads]
    found = decided(proxy, "shop", heads)
    assert {one.status for one in expected} == {200, 404, 503}
    assert len({one.backend for one in expected}) == 4
    assert [(a, b, c) for a, b, c in zip(heads, expected, found, strict=True) if b != c] == []


def test_head_has_routes_of_its_own(proxy: Site) -> None:
    proxy.seen()
    proxy.raw(head("HEAD", "methods.test", "/deep"))
    proxy.raw(head("GET", "methods.test", "/deep"))
    assert [(one.method, one.address) for one in proxy.seen()] == [("HEAD", "198.18.0.21"), ("GET", "198.18.0.11")]


@pytest.mark.parametrize("vip", ["strict", "open"])
def test_what_no_route_names_gets_the_vips_answer(proxy: Site, xdp: Asked, vip: str) -> None:
    heads = [head("GET", "shop.test", path) for path in ("/open", "/open/x", "/", "/closed")]
    expected = [xdp.decide(vip, one) for one in heads]
    assert decided(proxy, vip, heads) == expected
    assert {one.status for one in expected} == {200, 0 if vip == "strict" else 404}


def test_without_a_host_the_routes_for_any_count(proxy: Site, xdp: Asked) -> None:
    old = frames.request("/api/x", host=None, version="HTTP/1.0")
    assert decided(proxy, "shop", [old]) == [xdp.decide("shop", old)]
    proxy.seen()
    assert decided(proxy, "shop", [old]) == [Decision("198.18.0.21")]
    (seen,) = proxy.seen()
    assert seen.host == "198.18.100.80"  # somebody has to be asked, and that is whom the client has asked
