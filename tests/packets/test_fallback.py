"""The fallback: what XDP does not route goes up to a proxy on the router's own host, whole, and stays there."""

import pytest

from packets import oracle
from packets.bench import CLOSED_HOST, FALLBACK, SHOP_ROUTES, XDP_DROP, XDP_TX, Router, entry
from packets.frames import Connection, Segment, acknowledgement_of, request
from packets.oracle import FLOW_CLOSING, FLOW_FALLBACK, FLOW_OPEN, Route

ALICE = Connection()
AGAIN = ALICE.reopened(isn=ALICE.isn + 10_000_000)
PAST = ALICE.reopened(isn=ALICE.isn - 10_000_000)
HEAD = request("/")
CHUNKED = request("/", "Transfer-Encoding: chunked", method="POST")


@pytest.fixture
def router(router: Router) -> Router:
    router.route(*SHOP_ROUTES, fallback=True)
    return router


def fallback_entry(segment: Segment, **changes: int) -> dict[str, int]:
    """The flow entry after the first segment of a connection that the fallback got."""
    made = entry(segment, "web", "web-1", head=b"")
    made |= {"backend": FALLBACK.index, "cluster": 0, "state": FLOW_FALLBACK, "digest": 0}
    return made | {"next_request_seq": 0, "body_seq": 0} | changes


def handed_over(router: Router, connection: Connection = ALICE, **changes: int) -> dict[str, int]:
    """A connection that the fallback has, since CHUNKED."""
    made = fallback_entry(connection.data(CHUNKED), **changes)
    router.put_flow(connection, **made)
    return made


# ---- reasons --------------------------------------------------------------------------------------------

REASONS = {
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "FALLBACK_TLS"),
    "TLS, two bytes of it": (b"\x16\x03", "FALLBACK_TLS"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "FALLBACK_HTTP2"),
    "another protocol": (b"SSH-2.0-OpenSSH_9.2\r\n", "FALLBACK_NOT_HTTP"),
    "a method of its own": (request("/", method="PROPFIND"), "FALLBACK_NOT_HTTP"),
    "a small method": (b"get / HTTP/1.1\r\nHost: shop.test\r\n\r\n", "FALLBACK_NOT_HTTP"),
    "an empty line first": (b"\r\n" + HEAD, "FALLBACK_NOT_HTTP"),
    "one byte": (b"G", "FALLBACK_HEAD"),
    "seven bytes": (b"OPTIONS", "FALLBACK_HEAD"),
    "a method alone": (b"GET ", "FALLBACK_HEAD"),
    "half a path": (b"GET /ap", "FALLBACK_HEAD"),
    "all but the last byte": (HEAD[:-1], "FALLBACK_HEAD"),
    "many lines": (request("/", *["a: b"] * 150), "FALLBACK_HEAD"),
    "a long path": (request("/" + "a" * 300), "FALLBACK_PATH"),
    "two hosts": (request("/", "Host: shop.test"), "FALLBACK_AMBIGUOUS"),
    "an empty segment": (request("//"), "FALLBACK_AMBIGUOUS"),
    "a hidden way up": (request("/api/%2e%2e/x"), "FALLBACK_AMBIGUOUS"),
    "length and encoding": (
        request("/", "Content-Length: 3", "Transfer-Encoding: chunked"),
        "FALLBACK_AMBIGUOUS",
    ),
    "chunks": (CHUNKED, "FALLBACK_ENCODED"),
    "chunks, and some of them": (CHUNKED + b"3\r\nabc\r\n", "FALLBACK_ENCODED"),
    "a huge body": (request("/", "Content-Length: 5000000000", method="PUT"), "FALLBACK_BODY"),
    "a WebSocket": (request("/", "Connection: Upgrade", "Upgrade: websocket"), "FALLBACK_UPGRADE"),
    "h2c": (request("/", "upgrade: h2c", "Connection: upgrade, http2-settings"), "FALLBACK_UPGRADE"),
    "a tunnel": (request("shop.test:443", method="CONNECT"), "FALLBACK_UPGRADE"),
    "two requests": (HEAD + HEAD, "FALLBACK_PIPELINED"),
    "half of a second one": (HEAD + b"G", "FALLBACK_PIPELINED"),
}
each_reason = pytest.mark.parametrize(("payload", "verdict"), REASONS.values(), ids=REASONS)


@each_reason
def test_what_is_not_routed_goes_to_the_fallback(router: Router, payload: bytes, verdict: str) -> None:
    segment = ALICE.data(payload)
    router.falls_back(segment, verdict, opens=True)
    assert router.flow(ALICE) == fallback_entry(segment)


def test_what_is_routed_does_not(router: Router) -> None:
    router.opens(ALICE.data(HEAD), "web")


@pytest.mark.parametrize("length", [1418, 1460, 1900])
def test_a_first_segment_may_be_longer_than_what_could_be_sent_on(router: Router, length: int) -> None:
    """It stays on this host."""
    router.falls_back(ALICE.data(b"\x16\x03" + b"x" * (length - 2)), "FALLBACK_TLS", opens=True)


def test_a_fin_may_come_along(router: Router) -> None:
    router.falls_back(ALICE.fin(payload=CHUNKED), "FALLBACK_ENCODED", opens=True)


def test_padding_is_cut_off(router: Router) -> None:
    router.falls_back(ALICE.data(b"G", padding=b"p" * 5), "FALLBACK_HEAD", opens=True)


@each_reason
@pytest.mark.parametrize("forgery", [{"acked": 1}, {"at": 7}], ids=["cookie", "place"])
def test_without_a_valid_cookie_nothing_is_opened(
    router: Router, payload: bytes, verdict: str, forgery: dict[str, int]
) -> None:
    """The proxy's sockets are no easier to have than a backend's."""
    done = router.object.programs["rauta_ingress"].test_run(bytes(ALICE.data(payload, **forgery)))
    assert done.retval in (XDP_DROP, XDP_TX)
    assert router.flow(ALICE) is None


def test_no_cluster_with_weight_is_the_routers_own_business(router: Router) -> None:
    router.answers(ALICE.data(request("/drained")), "TX_UNAVAILABLE", "503 Service Unavailable")


UNKNOWN = request("/unknown", host=CLOSED_HOST)


def test_without_a_route_the_vip_says_what_happens(router: Router) -> None:
    router.answers(ALICE.data(UNKNOWN), "TX_NO_ROUTE", "404 Not Found")
    router.route(*SHOP_ROUTES, no_route=oracle.NO_ROUTE_RESET, fallback=True)
    router.resets(Connection(port=50001).data(UNKNOWN), "TX_RESET_NO_ROUTE")
    router.route(*SHOP_ROUTES, no_route=oracle.NO_ROUTE_FALLBACK, fallback=True)
    router.falls_back(Connection(port=50002).data(UNKNOWN), "FALLBACK_NO_ROUTE", opens=True)


def test_a_fallback_that_is_gone_gets_nothing(router: Router) -> None:
    router.object.maps["backends"].update(FALLBACK.index, {"address": 0})
    router.drops(ALICE.data(CHUNKED), "DROP_NO_BACKEND")
    assert router.flow(ALICE) is None


def test_without_a_fallback_an_upgrade_is_not_implemented(router: Router) -> None:
    """Whatever follows the server's consent would be no requests any more."""
    router.route(*SHOP_ROUTES)
    router.answers(ALICE.data(REASONS["a WebSocket"][0]), "TX_NOT_IMPLEMENTED", "501 Not Implemented")


@pytest.mark.parametrize("line", ["Upgrade-Insecure-Requests: 1", "X-Upgrade: h2c", "Upgrad: x", "Connection: upgrade"])
def test_other_fields_are_no_upgrade(router: Router, line: str) -> None:
    router.opens(ALICE.data(request("/", line)), "web")


# ---- later packets --------------------------------------------------------------------------------------

LATER = {
    "acknowledgement": (ALICE.ack(at=90, acked=500), "FALLBACK_FORWARDED"),
    "more of the head": (ALICE.data(b"x" * 900, at=len(CHUNKED)), "FALLBACK_FORWARDED"),
    "far ahead": (ALICE.data(b"x", at=60_000), "FALLBACK_FORWARDED"),
    "another request": (ALICE.data(request("/api"), at=5000, acked=500), "FALLBACK_FORWARDED"),
    "where a request would start": (ALICE.data(HEAD, at=len(CHUNKED), acked=1), "FALLBACK_FORWARDED"),
    "FIN": (ALICE.fin(at=700, acked=500), "FALLBACK_CLOSE"),
    "FIN with data": (ALICE.fin(at=700, payload=b"x", acked=500), "FALLBACK_CLOSE"),
    "RST": (ALICE.rst(at=700), "FALLBACK_CLOSE"),
}


@pytest.mark.parametrize(("segment", "verdict"), LATER.values(), ids=LATER)
def test_everything_that_follows_goes_there_too(router: Router, segment: Segment, verdict: str) -> None:
    before = handed_over(router)
    router.falls_back(segment, verdict)
    assert router.flow(ALICE) == before


@pytest.mark.parametrize("payload", [CHUNKED, CHUNKED[:5], CHUNKED + b"x", request("/api")])
def test_the_first_data_again_may_open_the_socket(router: Router, payload: bytes) -> None:
    """Whatever it says: the proxy reads all of the connection, so there is nothing to slip past."""
    before = handed_over(router)
    router.falls_back(ALICE.data(payload), "FALLBACK_AGAIN", opens=True)
    assert router.flow(ALICE) == before


def test_a_later_request_that_is_not_routed_is_still_reset(router: Router) -> None:
    """Its connection is a backend's; only the first data of a connection can be given to somebody else."""
    router.put_flow(ALICE, **entry(ALICE.data(HEAD), "web", "web-1"))
    router.resets(ALICE.later(CHUNKED, len(HEAD)), "TX_LENGTH_REQUIRED")
    router.resets(ALICE.later(request("/", "Upgrade: h2c"), len(HEAD)), "TX_NOT_IMPLEMENTED")
    router.route(Route("web", prefix="/web"), no_route=oracle.NO_ROUTE_FALLBACK, fallback=True)
    router.resets(ALICE.later(request("/none"), len(HEAD)), "TX_RESET_ROUTE_CHANGED")


# ---- the port is used again -----------------------------------------------------------------------------


@pytest.mark.parametrize("again", [AGAIN, PAST], ids=["higher numbers", "lower numbers"])
@each_reason
def test_behind_a_syn_a_new_connection_is_known_by_its_cookie(
    router: Router, again: Connection, payload: bytes, verdict: str
) -> None:
    handed_over(router, syn_seen=1, syn_isn=again.isn)
    segment = again.data(payload)
    router.falls_back(segment, verdict, opens=True)
    assert router.flow(ALICE) == fallback_entry(segment)


def test_a_new_connections_request_is_routed_again(router: Router) -> None:
    handed_over(router)
    router.opens(AGAIN.data(HEAD), "web")


def test_the_handshake_of_a_new_connection_is_not_forwarded(router: Router) -> None:
    before = handed_over(router, syn_seen=1, syn_isn=AGAIN.isn)
    router.drops(AGAIN.ack(), "DROP_HANDSHAKE_ACK")
    probe = AGAIN.ack(at=-1)
    router.sends(probe, "TX_KEEPALIVE", acknowledgement_of(probe))
    router.drops(AGAIN.data(b"x", at=100), "DROP_OUT_OF_ORDER")
    assert router.flow(ALICE) == before


# ---- replays --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [FLOW_OPEN, FLOW_FALLBACK])
def test_an_earlier_connections_first_request_does_not_end_the_newer_one(router: Router, state: int) -> None:
    before = entry(ALICE.data(HEAD), "web", "web-1", state=state)
    router.put_flow(ALICE, **before)
    for isn in (ALICE.isn - 1, ALICE.isn - 10_000_000, ALICE.isn - (1 << 31) + 1):
        router.drops(ALICE.reopened(isn=isn & 0xFFFFFFFF).data(HEAD), "DROP_REPLAYED")
    assert router.flow(ALICE) == before


@pytest.mark.parametrize("state", [FLOW_OPEN, FLOW_FALLBACK])
@pytest.mark.parametrize("isn", [ALICE.isn - 1, ALICE.isn - 10_000_000])
def test_one_whose_syn_came_here_is_new_whatever_its_number(router: Router, state: int, isn: int) -> None:
    router.put_flow(ALICE, **entry(ALICE.data(HEAD), "web", "web-1", state=state, syn_seen=1, syn_isn=isn))
    router.opens(ALICE.reopened(isn=isn).data(HEAD), "web")


def test_behind_a_connection_that_has_closed_any_number_may_come(router: Router) -> None:
    router.put_flow(ALICE, **entry(ALICE.data(HEAD), "web", "web-1", state=FLOW_CLOSING))
    router.opens(PAST.data(HEAD), "web")


def test_the_next_number_is_newer_and_so_is_the_farthest(router: Router) -> None:
    for isn in (ALICE.isn + 1, ALICE.isn + (1 << 31) - 1):
        router.put_flow(ALICE, **entry(ALICE.data(HEAD), "web", "web-1"))
        router.opens(ALICE.reopened(isn=isn).data(HEAD), "web")
