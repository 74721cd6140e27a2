"""The rules that the router is compared with: docs/http.md and RFC 9112, by examples that are read off these texts."""

from dataclasses import replace
from typing import Any

import pytest
from packets.oracle import Route

from fuzz import judging
from fuzz.heads import world
from fuzz.judging import Case
from fuzz.reading import Refused, find_cluster, is_valid, read_head
from fuzz.swift import Outcome


def head(line: str = "GET /api HTTP/1.1", *fields: str, host: str | None = "shop.test") -> bytes:
    lines = [line, *([f"Host: {host}"] if host is not None else []), *fields, "", ""]
    return "\r\n".join(lines).encode("latin-1")


ROUTED = {
    "plain": head(),
    "without a host": head("GET / HTTP/1.0", host=None),
    "a body": head("PUT /x HTTP/1.1", "Content-Length: 5"),
    "some of it": head("PUT /x HTTP/1.1", "Content-Length: 5") + b"GET",
    "absolute": head("GET http://shop.test/api?x HTTP/1.1"),
    "absolute, in capitals": head("GET http://SHOP.test/ HTTP/1.1"),
    "asterisk": head("OPTIONS * HTTP/1.1"),
    "an empty host": head(host=""),
    "escapes": head("GET /a%20b%C3%A9%25 HTTP/1.1"),
    "odd bytes in the query": head('GET /?a"b\\c%2e/../ HTTP/1.1'),
    "tabs": head("GET / HTTP/1.1", "A:\tb\tc", host="\tshop.test \t"),
}
REFUSED = {
    "no end": head()[:-1],
    "another method": head("QUERY / HTTP/1.1"),
    "a small one": head("get / HTTP/1.1"),
    "a tunnel": head("CONNECT / HTTP/1.1"),
    "another version": head("GET / HTTP/1.2"),
    "no host": head(host=None),
    "two": head("GET / HTTP/1.1", "host: shop.test"),
    "another one in the target": head("GET http://stop.test/ HTTP/1.1"),
    "with a port": head("GET http://shop.test:80/ HTTP/1.1"),
    "without a path": head("GET http://shop.test HTTP/1.1"),
    "an asterisk": head("GET * HTTP/1.1"),
    "https": head("GET https://shop.test/ HTTP/1.1"),
    "an empty segment": head("GET /a//b HTTP/1.1"),
    "a way up": head("GET /a/../b HTTP/1.1"),
    "here": head("GET /a/. HTTP/1.1"),
    "an escaped letter": head("GET /%61 HTTP/1.1"),
    "an escaped slash": head("GET /a%2Fb HTTP/1.1"),
    "half an escape": head("GET /a%2 HTTP/1.1"),
    "a hash": head("GET /a?b#c HTTP/1.1"),
    "a long path": head(f"GET /{'a' * 256} HTTP/1.1"),
    "a space": head("GET /a b HTTP/1.1"),
    "a dot": head(host="."),
    "two of them": head(host="shop.test.."),
    "a letter of another alphabet": head(host="sh\xf6p.test"),
    "what is behind a port": head(host="shop.test:80x"),
    "chunks": head("PUT / HTTP/1.1", "Transfer-Encoding: chunked"),
    "an upgrade": head("GET / HTTP/1.1", "Upgrade: x"),
    "a sign": head("PUT / HTTP/1.1", "Content-Length: +5"),
    "two lengths": head("PUT / HTTP/1.1", "Content-Length: 5", "Content-Length: 5"),
    "no length": head("PUT / HTTP/1.1", "Content-Length:"),
    "a space before the colon": head("GET / HTTP/1.1", "A : b"),
    "a continued line": head("GET / HTTP/1.1", "A: b\r\n c"),
    "a bare line feed": head("GET / HTTP/1.1", "A: b\nc: d"),
    "a control": head("GET / HTTP/1.1", "A: \x01"),
    "the next request": head() + b"G",
    "too much": head("PUT / HTTP/1.1", f"Content-Length: {2**31 - 1}"),
}


@pytest.mark.parametrize("text", ROUTED.values(), ids=ROUTED)
def test_what_may_be_routed(text: bytes) -> None:
    request = read_head(text)
    assert request.host in ("shop.test", "")
    assert request.head_length == text.index(b"\r\n\r\n") + 4


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_what_may_not(text: bytes) -> None:
    with pytest.raises(Refused):
        read_head(text)


VALID = (
    head(),
    head("QUERY /a;b?c=%2F HTTP/1.1"),
    head("GET http://a.test HTTP/1.1"),
    head("CONNECT a.test:80 HTTP/1.1"),
    head("PUT / HTTP/1.1", "Transfer-Encoding: gzip, chunked"),
    head("GET /.//a/../ HTTP/1.1", host="[::1]:80"),
)
INVALID = (
    head("GET /a|b HTTP/1.1"),
    head("GET a HTTP/1.1"),
    head("CONNECT /a HTTP/1.1"),
    head("GET / HTTP/2.0"),
    head("GET / HTTP/1.1", "A(b): c"),
    head("PUT / HTTP/1.1", "Transfer-Encoding: gzip"),
    head("PUT / HTTP/1.1", "Transfer-Encoding: chunked", "Content-Length: 5"),
    head("PUT / HTTP/1.1", "Content-Length: 5", "Content-Length: 5"),
    head(host=None),
    head()[:-2],
)


def test_what_the_rfc_calls_valid() -> None:
    assert [is_valid(text) for text in VALID] == [True] * len(VALID)
    assert [is_valid(text) for text in INVALID] == [False] * len(INVALID)


ROUTES = (
    Route("any", prefix="/"),
    Route("api", prefix="/api"),
    Route("exact", exact="/api"),
    Route("post", prefix="/api", method="POST"),
    Route("shop", prefix="/", host="shop.test"),
    Route("wild", prefix="/", host="*.shop.test"),
    Route("wilder", prefix="/only", host="*.eu.shop.test"),
)


@pytest.mark.parametrize(
    ("method", "host", "path", "cluster"),
    [
        ("GET", "", b"/", "any"),
        ("GET", "", b"/api", "exact"),
        ("GET", "", b"/api/", "api"),
        ("POST", "", b"/api/x", "post"),
        ("POST", "", b"/api", "exact"),
        ("GET", "", b"/apix", "any"),
        ("GET", "shop.test", b"/api", "shop"),
        ("GET", "a.shop.test", b"/", "wild"),
        ("GET", ".shop.test", b"/", "any"),
        ("GET", "eu.shop.test", b"/", "wild"),
        ("GET", "a.b.eu.shop.test", b"/only", "wilder"),
        ("GET", "a.eu.shop.test", b"/other", None),
        ("OPTIONS", "", b"*", "any"),
    ],
)
def test_where_it_goes(method: str, host: str, path: bytes, cluster: str | None) -> None:
    assert find_cluster(ROUTES, method, host, path) == cluster


NONE = head("GET /none HTTP/1.1", host="none")
RIGHT = Outcome("routed", 0, "web", len(NONE), 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"cluster": "api"},
        {"head_length": len(NONE) - 1},
        {"body_length": 1},
    ],
    ids=str,
)
def test_a_router_that_follows_other_rules_is_told(wrong: dict[str, Any]) -> None:
    rules = read_head(NONE)
    assert not list(judging.judged_by_rules(Case(world(0), NONE, rules, RIGHT)))
    assert list(judging.judged_by_rules(Case(world(0), NONE, rules, replace(RIGHT, **wrong))))


def test_a_router_that_routes_what_may_not_be_is_told() -> None:
    assert list(judging.judged_by_rules(Case(world(0), NONE, Refused("why"), RIGHT)))


def test_so_is_one_that_looks_for_the_next_request_elsewhere() -> None:
    case, here, gone = Case(world(0), NONE, read_head(NONE), RIGHT), Outcome("routed", cluster="web"), Outcome("reset")
    there = Outcome("moved", cluster="api")
    assert not list(judging.judged_by_next(case, "web", gone, gone, here))
    assert not list(judging.judged_by_next(case, "api", gone, gone, there))
    assert not list(judging.judged_by_next(case, "drained", gone, gone, gone))
    for outcomes in ((here, gone, here), (gone, there, here), (gone, gone, gone), (gone, gone, there)):
        assert list(judging.judged_by_next(case, "web", *outcomes))
    for exactly in (here, gone, Outcome("moved", cluster="web")):
        assert list(judging.judged_by_next(case, "api", gone, gone, exactly))
