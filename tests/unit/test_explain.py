"""What is said of a request: how it is put together, whom it goes to, and why routes are taken or not.

That the decision is the router's own is what tests/packets/test_explain.py compares.
"""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

import pytest

from lab import oracle
from rauta.config import Config
from rauta.errors import RautaError
from rauta.explanation.explain import Explanation, explain, find_vip, parse_request
from rauta.tables import flow_slot

ROUTES: list[dict[str, str]] = [
    {"prefix": "/", "cluster": "web"},
    {"prefix": "/api", "cluster": "api"},
    {"prefix": "/api", "method": "POST", "cluster": "web"},
    {"exact": "/api/health", "cluster": "web"},
    {"host": "shop.test", "prefix": "/shop", "cluster": "web"},
    {"host": "*.shop.test", "prefix": "/", "cluster": "api"},
    {"host": "*.test", "prefix": "/", "cluster": "web"},
]
CLUSTERS = [
    {
        "name": "web",
        "backends": [
            {"name": "web-1", "address": "198.18.0.11", "port": 8080, "weight": 3},
            {"name": "web-2", "address": "198.18.0.12", "port": 8080},
            {"name": "web-3", "address": "198.18.0.13", "port": 8080, "weight": 0},
        ],
    },
    {"name": "api", "backends": [{"name": "api-1", "address": "198.18.0.21", "port": 8080, "weight": 0}]},
    {"name": "admin", "backends": [{"name": "admin-1", "address": "198.18.0.31", "port": 8080}]},
]
SHOP = {"name": "shop", "address": "198.18.100.80", "port": 80, "routes": ROUTES}
ADMIN = {
    "name": "admin",
    "address": "198.18.100.81",
    "port": 8081,
    "routes": [{"prefix": "/a", "cluster": "admin"}],
    "no_route": "reset",
}


def configured(*vips: dict[str, Any], **fields: Any) -> Config:
    base = {"version": 1, "encapsulation": {"source": "198.19.0.0/24"}, "clusters": CLUSTERS}
    return Config.model_validate(base | {"vips": list(vips or (SHOP,))} | fields)


def told(request: str, *fields: str, config: Config | None = None, vip: str | None = None) -> Explanation:
    config, parsed = config or configured(), parse_request(request, fields)
    return explain(config, parsed.segment, vip=find_vip(config, parsed, vip))


# ---- requests -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "fields", "head"),
    [
        ("GET http://shop.test/a?b", [], b"GET /a?b HTTP/1.1\r\nHost: shop.test\r\n\r\n"),
        ("http://shop.test:81", [], b"GET / HTTP/1.1\r\nHost: shop.test:81\r\n\r\n"),
        ("PUT http://shop.test?b", [], b"PUT /?b HTTP/1.1\r\nHost: shop.test\r\n\r\n"),
        ("GET /a HTTP/1.0", ["A: b"], b"GET /a HTTP/1.0\r\nA: b\r\n\r\n"),
        ("GET /a b", ["Host: x"], b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("GET http://x/a", ["host: x"], b"GET http://x/a HTTP/1.1\r\nhost: x\r\n\r\n"),
        ("OPTIONS *", ["Host: x"], b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n"),
    ],
)
def test_a_request_is_sent_as_a_client_sends_it(request_: str, fields: list[str], head: bytes) -> None:
    assert parse_request(request_, fields).segment == head


@pytest.mark.parametrize("request_", ["", "GET ", "GET https://shop.test/", "https://shop.test/"])
def test_what_cannot_be_asked_for_is_refused(request_: str) -> None:
    with pytest.raises(RautaError, match="reading the request"):
        parse_request(request_)


def test_of_a_long_head_only_the_first_packet_is_read() -> None:
    said = told("GET http://other.test/", "A: " + "a" * 1400)
    assert (said.kind, said.status, said.verdict) == ("answer", 431, "TX_HEAD_TOO_LARGE")
    assert said.why == "the head does not end in its first packet"


# ---- VIPs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "fields", "named", "found"),
    [
        ("GET http://198.18.100.80/", [], None, "shop"),
        ("GET http://198.18.100.81:8081/", [], None, "admin"),
        ("GET /", ["Host: 198.18.100.81:8081"], None, "admin"),
        ("GET http://shop.test/", [], None, "shop"),
        ("GET http://shop.test:8081/", [], None, "admin"),
        ("GET /", [], "admin", "admin"),
        ("GET /", [], "198.18.100.80", "shop"),
        ("GET http://198.18.100.80/", [], "198.18.100.81:8081", "admin"),
    ],
)
def test_the_vip_is_named_or_follows_from_the_url(
    request_: str, fields: list[str], named: str | None, found: str
) -> None:
    assert find_vip(configured(SHOP, ADMIN), parse_request(request_, fields), named).name == found


@pytest.mark.parametrize(
    ("request_", "named", "said"),
    [
        ("GET /", None, "choosing the VIP that the request goes to: 2 would do"),
        ("GET http://shop.test:9/", None, "choosing the VIP that the request goes to: there is none such"),
        ("GET /", "other", "looking for the VIP 'other': there is none such"),
    ],
)
def test_where_it_is_not_clear_the_choice_is_named(request_: str, named: str | None, said: str) -> None:
    with pytest.raises(RautaError) as caught:
        find_vip(configured(SHOP, ADMIN), parse_request(request_), named)
    known = "Name one with --vip, of: shop (198.18.100.80:80), admin (198.18.100.81:8081)."
    assert str(caught.value) == f"{said}\n{known}"


def test_the_only_vip_is_whom_everything_goes_to() -> None:
    assert find_vip(configured(), parse_request("GET http://198.18.7.7:9/")).name == "shop"


# ---- decisions ------------------------------------------------------------------------------------------


def test_a_route_its_cluster_and_the_shares_of_its_backends() -> None:
    said = told("GET http://Other.example.:80/x?y=1")
    assert (said.kind, said.verdict, said.status, said.why) == ("route", "ROUTED_FIRST", None, "prefix /")
    assert said.route is not None
    assert (said.route.number, said.route.path) == (0, ("vips", 0, "routes", 0))
    assert (said.cluster, said.host, said.backend) == ("web", None, None)
    assert [(one.name, one.weight, one.share) for one in said.shares] == [
        ("web-1", 3, 0.75),
        ("web-2", 1, 0.25),
        ("web-3", 0, 0.0),
    ]
    assert said.head is not None
    assert (said.head.path, said.head.host, said.notes) == (
        "/x",
        "other.example",
        ("the query '?y=1' is not compared",),
    )


def test_candidates_come_in_the_order_of_precedence_with_their_reasons() -> None:
    said = told("POST http://other.example/api/health", "Content-Length: 0")
    assert [(one.found.index, one.outcome, one.why) for one in said.candidates] == [
        (4, "no match", "the host is not shop.test"),
        (5, "no match", "the host is not *.shop.test"),
        (6, "no match", "the host is not *.test"),
        (3, "taken", "exact /api/health"),
        (2, "behind", "prefix /api, method POST, but comes later"),
        (1, "behind", "prefix /api, but comes later"),
        (0, "behind", "prefix /, but comes later"),
    ]


def test_a_better_host_and_other_paths_and_methods_are_reasons() -> None:
    said = told("GET http://www.shop.test/apix")
    assert said.host == "*.shop.test"
    assert {one.found.index: one.why for one in said.candidates} == {
        4: "the host is not shop.test",
        5: "host *.shop.test, prefix /",
        6: "*.shop.test fits the host better, and only its routes count",
        **dict.fromkeys((0, 1, 2, 3), "*.shop.test has routes of its own, and no others count for it"),
    }
    others = {one.found.index: one.why for one in told("PUT http://other.example/api").candidates}
    assert others[2] == "the method is not POST"
    assert others[3] == "the path is not /api/health"
    assert {one.found.index: one.why for one in told("GET http://other.example/b").candidates}[1] == (
        "the path is not /api or below"
    )


@pytest.mark.parametrize(
    ("request_", "fields", "verdict", "status", "why"),
    [
        ("GET http://shop.test/", [], "TX_NO_ROUTE", 404, "no route of shop names it"),
        ("GET http://other/api", [], "TX_UNAVAILABLE", 503, "no backend of api has any weight"),
        ("GET http://other/a//b", [], "TX_BAD_REQUEST", 400, "the path has an empty segment"),
        ("GET http://other/%2e", [], "TX_BAD_REQUEST", 400, "the path holds '%2e', another spelling of '.'"),
        ("GET /", [], "TX_BAD_REQUEST", 400, "it has no Host, as HTTP/1.1 must"),
        ("GET /", ["Host: a", "Host: b"], "TX_BAD_REQUEST", 400, "it has two Hosts"),
        ("GET http://a/", ["Host: b"], "TX_BAD_REQUEST", 400, "the target names another host than the Host line"),
        ("GET /", ["Host : a"], "TX_BAD_REQUEST", 400, "the line 'Host : a' is no field: a name, a colon, a value"),
        ("GET /x HTTP/2.0", [], "TX_BAD_REQUEST", 400, "what follows the target is neither HTTP/1.1 nor HTTP/1.0"),
        ("GET http://a/" + "a" * 256, [], "TX_URI_TOO_LONG", 414, "the path has more than 256 bytes"),
        ("CONNECT a:80", [], "TX_NOT_IMPLEMENTED", 501, "CONNECT: what follows would be no requests"),
        ("GET http://a/", ["Upgrade: x"], "TX_NOT_IMPLEMENTED", 501, "Upgrade: what follows might be no requests"),
        ("BREW http://a/", [], "TX_RESET_NOT_HTTP", None, "it does not start with an HTTP/1 method and a space"),
    ],
)  # fmt: skip
def test_what_is_not_routed_gets_an_answer_or_a_reset(
    request_: str, fields: list[str], verdict: str, status: int | None, why: str
) -> None:
    said = told(request_, *fields)
    assert (said.verdict, said.status, said.why) == (verdict, status, why)
    assert said.kind == ("answer" if status else "reset")


def test_where_there_is_a_fallback_it_gets_what_is_refused() -> None:
    config = configured(SHOP | {"no_route": "fallback"}, fallback={"port": 8000})
    for request, verdict in (("GET http://a/..", "FALLBACK_AMBIGUOUS"), ("GET http://shop.test/", "FALLBACK_NO_ROUTE")):
        said = told(request, config=config)
        assert (said.kind, said.verdict, said.status) == ("fallback", verdict, None)


def test_a_route_of_a_later_vip_is_numbered_behind_those_of_earlier_ones() -> None:
    said = told("GET http://198.18.100.81:8081/a", config=configured(SHOP, ADMIN))
    assert said.route is not None
    assert (said.route.number, said.route.path) == (len(ROUTES), ("vips", 1, "routes", 0))
    assert told("GET http://198.18.100.81:8081/", config=configured(SHOP, ADMIN)).verdict == "TX_RESET_NO_ROUTE"


def test_the_slot_of_a_connection_is_the_labs() -> None:
    client, vip = IPv4Address("198.18.0.1"), IPv4Address("198.18.100.80")
    for port in range(1024, 1124):
        assert flow_slot(7 * port, (client, port), (vip, 80)) == oracle.slot(7 * port, client, port, vip, 80)
