"""Known connections: what a segment is, its sequence number says, and a request is routed however late it comes."""

from dataclasses import replace
from typing import Any

import pytest

from packets import oracle
from packets.bench import Router, entry
from packets.frames import Connection, acknowledgement_of, request
from packets.oracle import FLOW_ANSWERED, FLOW_CLOSING, Route, SynOptions

ALICE = Connection()
HEAD = request("/")
POST = request("/", "Content-Length: 3000", method="POST")
AFTER_HEAD, AFTER_POST = len(HEAD), len(POST) + 3000


def known(router: Router, backend: str = "web-1", connection: Connection = ALICE, **changes: Any) -> dict[str, int]:
    """A connection whose newest request is HEAD; what its entry says."""
    made = entry(connection.data(HEAD), "web", backend, **changes)
    router.put_flow(connection, **made)
    return made


def posting(router: Router, backend: str = "web-1") -> dict[str, int]:
    """A connection in the middle of POST's body."""
    made = entry(ALICE.data(POST), "web", backend, body=3000)
    router.put_flow(ALICE, **made)
    return made


# ---- the first request ----------------------------------------------------------------------------------


@pytest.mark.parametrize("isn", [0, 0x12345678, 0xFFFFFFFE, 0xFFFFFFFF, 0xFFFFFFFF - len(HEAD)])
def test_the_first_request_makes_an_entry(router: Router, isn: int) -> None:
    segment = Connection(isn=isn).data(HEAD)
    router.opens(segment, "web")
    assert router.flow(segment.connection) == entry(segment, "web", router.backend_of("web", segment.connection))
    assert router.flows() == 1


def test_nothing_else_makes_one(router: Router) -> None:
    router.greets(ALICE.syn())
    for segment in (ALICE.ack(), ALICE.rst(), ALICE.ack(500), ALICE.data(b"x", 500)):
        router.object.programs["rauta_ingress"].test_run(bytes(segment))
    assert router.flows() == 0


def test_a_first_request_with_the_clients_end_is_routed_and_closing(router: Router) -> None:
    segment = ALICE.fin(payload=HEAD)
    router.opens(segment, "web")
    assert router.flow(ALICE) == entry(segment, "web", router.backend_of("web", ALICE), state=FLOW_CLOSING)


# ---- retransmissions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 5, len(HEAD) - 1, len(HEAD)])
def test_a_retransmission_goes_where_the_request_went(router: Router, length: int) -> None:
    """Not where Maglev would send it now, and also if it is cut differently."""
    backend = router.other_backend("web", ALICE)
    before = known(router, backend)
    router.forwards(ALICE.data(HEAD[:length]), "FORWARDED_AGAIN", backend, opens=True)
    assert router.flow(ALICE) == before


def test_a_retransmission_that_acknowledges_the_answer_opens_nothing(router: Router) -> None:
    """There is an answer, so there is a socket; and what it acknowledges is no cookie that the agent could check."""
    known(router)
    router.forwards(ALICE.data(HEAD, acked=300), "FORWARDED_AGAIN", "web-1", opens=False)


def test_a_retransmission_of_a_later_request_opens_nothing(router: Router) -> None:
    known(router, first=0)
    router.forwards(ALICE.data(HEAD), "FORWARDED_AGAIN", "web-1", opens=False)


def test_a_retransmission_may_take_some_of_the_body_along(router: Router) -> None:
    posting(router)
    router.forwards(ALICE.data(POST + b"b" * 900), "FORWARDED_AGAIN", "web-1", opens=True)


def test_a_retransmission_is_not_routed_anew(router: Router) -> None:
    known(router)
    router.route(Route("api", prefix="/"))
    router.forwards(ALICE.data(HEAD), "FORWARDED_AGAIN", "web-1", opens=True)


def test_a_late_duplicate_of_the_first_request_opens_nothing(router: Router) -> None:
    """Its cookie is valid for ever: it must not look like a new connection, or a POST would run twice."""
    first, second = ALICE.data(HEAD), ALICE.data(HEAD, AFTER_HEAD, acked=300)
    made = entry(first, "web", "web-1") | entry(second, "web", "web-1", first=0)
    router.put_flow(ALICE, **made)
    router.forwards(first, "FORWARDED", "web-1", opens=False)
    assert router.flow(ALICE) == made


# ---- acknowledgements and bodies ------------------------------------------------------------------------


@pytest.mark.parametrize("at", [AFTER_HEAD, AFTER_HEAD - 1, 0, -1, 1, -5000])
def test_a_bare_acknowledgement_is_forwarded_whatever_its_number(router: Router, at: int) -> None:
    before = known(router)
    router.forwards(ALICE.ack(at, acked=1000), "FORWARDED", "web-1")
    assert router.flow(ALICE) == before


def test_also_one_ahead_of_a_lost_segment(router: Router) -> None:
    known(router)
    router.forwards(ALICE.ack(AFTER_HEAD + 200, acked=1000), "FORWARDED", "web-1")


BODIES = {
    "first part": (len(POST), 1400),
    "second part": (len(POST) + 1400, 1400),
    "last byte": (AFTER_POST - 1, 1),
    "exactly to the end": (AFTER_POST - 1400, 1400),
}


@pytest.mark.parametrize(("at", "length"), BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("text", [b"b" * 1400, (b"GET /api HTTP/1.1\r\nHost: shop.test\r\n\r\n" * 40)[:1400]])
def test_the_body_is_forwarded_whatever_it_says(router: Router, at: int, length: int, text: bytes) -> None:
    before = posting(router)
    router.forwards(ALICE.data(text[:length], at), "FORWARDED", "web-1")
    assert router.flow(ALICE) == before


def test_a_keepalive_probe_on_a_known_connection_is_forwarded(router: Router) -> None:
    known(router)
    router.forwards(ALICE.ack(AFTER_HEAD - 1, acked=500), "FORWARDED", "web-1")
    router.forwards(ALICE.data(b"\0", AFTER_HEAD - 1, acked=500), "FORWARDED", "web-1")


def test_a_late_duplicate_from_before_the_request_is_forwarded(router: Router) -> None:
    known(router)
    router.forwards(ALICE.data(b"tail of an older body", -700), "FORWARDED", "web-1")


def test_everything_works_across_the_end_of_the_number_space(router: Router) -> None:
    connection = Connection(isn=0xFFFFFFFF - len(POST) - 1500)
    segment = connection.data(POST)
    router.opens(segment, "web")
    backend = router.backend_of("web", connection)
    assert router.flow(connection) == entry(segment, "web", backend, body=3000)
    router.forwards(connection.data(b"b" * 1400, len(POST)), "FORWARDED", backend)
    router.forwards(connection.data(b"b" * 1400, len(POST) + 1400), "FORWARDED", backend)
    router.forwards(connection.data(b"b" * 200, len(POST) + 2800), "FORWARDED", backend)
    router.forwards(connection.data(HEAD, AFTER_POST), "ROUTED_NEXT", backend)


def test_the_longest_body_can_be_followed_to_its_end(router: Router) -> None:
    size = 2_147_480_000
    head = request("/", f"Content-Length: {size}", method="POST")
    router.opens(ALICE.data(head), "web")
    backend = router.backend_of("web", ALICE)
    for at in (len(head), len(head) + size // 2, len(head) + size - 1400):
        router.forwards(ALICE.data(b"b" * 1400, at), "FORWARDED", backend)
    router.drops(ALICE.data(b"GET / HTTP/1.1", len(head) + size + 1), "DROP_OUT_OF_ORDER")


# ---- the next request -----------------------------------------------------------------------------------


def test_the_next_request_is_parsed_and_becomes_the_newest(router: Router) -> None:
    known(router)
    segment = ALICE.data(request("/x", "Content-Length: 7", method="PUT"), AFTER_HEAD, acked=512)
    router.forwards(segment, "ROUTED_NEXT", "web-1")
    assert router.flow(ALICE) == entry(segment, "web", "web-1", body=7, first=0)


def test_it_stays_with_its_backend(router: Router) -> None:
    """Maglev would send a new connection elsewhere."""
    backend = router.other_backend("web", ALICE)
    known(router, backend)
    router.forwards(ALICE.data(HEAD, AFTER_HEAD), "ROUTED_NEXT", backend)


def test_many_requests_follow_each_other(router: Router) -> None:
    router.opens(ALICE.data(HEAD), "web")
    for number in range(1, 12):
        segment = ALICE.data(HEAD, number * len(HEAD), acked=number * 200)
        router.forwards(segment, "ROUTED_NEXT", router.backend_of("web", ALICE))
        assert router.flow(ALICE) == entry(segment, "web", router.backend_of("web", ALICE), first=0)


def test_the_body_of_the_next_request_may_start_with_it(router: Router) -> None:
    known(router)
    segment = ALICE.data(POST + b"b" * 500, AFTER_HEAD)
    router.forwards(segment, "ROUTED_NEXT", "web-1")
    assert router.flow(ALICE) == entry(segment, "web", "web-1", head=POST, body=3000, first=0)


def test_the_next_request_of_another_cluster_resets_the_connection(router: Router) -> None:
    known(router)
    router.resets(ALICE.data(request("/api"), AFTER_HEAD, acked=9), "TX_RESET_ROUTE_CHANGED")


def test_also_behind_a_body(router: Router) -> None:
    posting(router)
    router.resets(ALICE.data(request("/api"), AFTER_POST), "TX_RESET_ROUTE_CHANGED")


def test_what_was_reset_is_reset_again_and_never_forwarded(router: Router) -> None:
    known(router)
    for _ in range(3):
        router.resets(ALICE.data(request("/api"), AFTER_HEAD), "TX_RESET_ROUTE_CHANGED")


def test_a_route_that_has_changed_counts_for_the_next_request(router: Router) -> None:
    known(router)
    router.route(Route("api", prefix="/"))
    router.resets(ALICE.data(HEAD, AFTER_HEAD), "TX_RESET_ROUTE_CHANGED")


def test_the_next_request_with_the_clients_end_is_routed_and_closing(router: Router) -> None:
    known(router)
    segment = ALICE.fin(AFTER_HEAD, payload=HEAD)
    router.forwards(segment, "ROUTED_NEXT", "web-1")
    assert router.flow(ALICE) == entry(segment, "web", "web-1", first=0, state=FLOW_CLOSING)


# ---- out of order, and more than one request at once ----------------------------------------------------


@pytest.mark.parametrize("ahead", [1, 100, 1460, 1 << 30])
@pytest.mark.parametrize("payload", [HEAD, b"body"], ids=["request", "body"])
def test_data_behind_a_gap_is_dropped(router: Router, ahead: int, payload: bytes) -> None:
    """The client sends it again, and then its place says whether it is a request."""
    before = known(router)
    router.drops(ALICE.data(payload, AFTER_HEAD + ahead), "DROP_OUT_OF_ORDER")
    assert router.flow(ALICE) == before


@pytest.mark.parametrize("excess", [1, 2, 37])
@pytest.mark.parametrize("body", [1, 1000])
def test_a_body_that_runs_into_the_next_request_resets_the_connection(router: Router, body: int, excess: int) -> None:
    posting(router)
    text = b"b" * body + request("/api")[:excess]
    router.resets(ALICE.data(text, AFTER_POST - body), "TX_RESET_PIPELINED")


@pytest.mark.parametrize("behind", [b"\r\n", b"G", HEAD, request("/api")])
def test_a_request_behind_the_next_one_resets_the_connection(router: Router, behind: bytes) -> None:
    known(router)
    router.resets(ALICE.data(HEAD + behind, AFTER_HEAD), "TX_RESET_PIPELINED")


@pytest.mark.parametrize("behind", [b"\r\n", b"G", request("/api")])
def test_a_retransmission_with_a_request_behind_it_is_not_forwarded(router: Router, behind: bytes) -> None:
    """A bypass, if it were: the first request binds the connection, the second one rides behind its retransmission."""
    known(router)
    router.resets(ALICE.data(HEAD + behind), "TX_RESET_PIPELINED")


@pytest.mark.parametrize("payload", [b"\r\n", b"x", b"body of nothing", b"get / HTTP/1.1\r\n\r\n", b"\0"])
def test_what_is_no_request_where_one_must_start_is_reset(router: Router, payload: bytes) -> None:
    known(router)
    router.resets(ALICE.data(payload, AFTER_HEAD), "TX_RESET_NOT_HTTP")


# ---- RST and FIN ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", ["R", "RA"])
def test_an_exact_reset_is_forwarded_and_closing(router: Router, flags: str) -> None:
    before = known(router)
    router.forwards(ALICE.rst(AFTER_HEAD, flags), "FORWARDED_CLOSE", "web-1")
    assert router.flow(ALICE) == before | {"state": FLOW_CLOSING}


def test_an_exact_end_is_forwarded_and_closing(router: Router) -> None:
    before = known(router)
    router.forwards(ALICE.fin(AFTER_HEAD), "FORWARDED_CLOSE", "web-1")
    assert router.flow(ALICE) == before | {"state": FLOW_CLOSING}


def test_an_end_behind_the_last_of_the_body_is_forwarded_and_closing(router: Router) -> None:
    before = posting(router)
    router.forwards(ALICE.fin(AFTER_POST - 100, payload=b"b" * 100), "FORWARDED_CLOSE", "web-1")
    assert router.flow(ALICE) == before | {"state": FLOW_CLOSING}


@pytest.mark.parametrize("at", [AFTER_HEAD - 1, AFTER_HEAD + 1, 0, AFTER_HEAD + 100_000, -1])
@pytest.mark.parametrize("kind", ["rst", "fin"])
def test_others_are_forwarded_and_change_nothing(router: Router, kind: str, at: int) -> None:
    """A forged RST or FIN must not retire somebody's flow."""
    before = known(router)
    router.forwards(getattr(ALICE, kind)(at), "FORWARDED_CLOSE", "web-1")
    assert router.flow(ALICE) == before


def test_a_closing_connection_still_acknowledges_a_long_response(router: Router) -> None:
    known(router, state=FLOW_CLOSING)
    router.forwards(ALICE.ack(AFTER_HEAD + 1, acked=5_000_000), "FORWARDED", "web-1")
    router.forwards(ALICE.fin(AFTER_HEAD), "FORWARDED_CLOSE", "web-1")
    router.forwards(ALICE.data(HEAD), "FORWARDED_AGAIN", "web-1", opens=True)


# ---- the port is used again -----------------------------------------------------------------------------

AGAIN = ALICE.reopened(isn=ALICE.isn + 10_000_000)
PAST = ALICE.reopened(isn=ALICE.isn - 10_000_000)


@pytest.mark.parametrize("state", [oracle.FLOW_OPEN, FLOW_CLOSING])
def test_a_syn_on_a_known_tuple_is_answered_and_remembered(router: Router, state: int) -> None:
    before = known(router, state=state)
    router.greets(AGAIN.syn())
    assert router.flow(ALICE) == before | {"syn_seen": 1, "syn_isn": AGAIN.isn}


def test_the_handshake_of_the_new_connection_is_not_forwarded_to_the_old_backend(router: Router) -> None:
    before = known(router, syn_seen=1, syn_isn=AGAIN.isn)
    router.drops(AGAIN.ack(), "DROP_HANDSHAKE_ACK")
    assert router.flow(ALICE) == before


def test_the_new_connection_may_wait_or_end_before_its_first_request(router: Router) -> None:
    before = known(router, syn_seen=1, syn_isn=AGAIN.isn)
    probe, fin = AGAIN.ack(at=-1), AGAIN.fin()
    router.sends(probe, "TX_KEEPALIVE", acknowledgement_of(probe))
    router.sends(fin, "TX_CLOSE", acknowledgement_of(fin, "FA"))
    assert router.flow(ALICE) == before


def test_acknowledgements_of_the_old_connection_still_are(router: Router) -> None:
    known(router, syn_seen=1, syn_isn=AGAIN.isn)
    router.forwards(ALICE.ack(AFTER_HEAD, acked=700), "FORWARDED", "web-1")
    router.forwards(AGAIN.ack(ack=AGAIN.cookie), "FORWARDED", "web-1", cookie=ALICE.cookie)
    router.forwards(AGAIN.ack(at=oracle.ROUTER_WINDOW + 1), "FORWARDED", "web-1", cookie=ALICE.cookie)


NEWER = pytest.mark.parametrize("again", [AGAIN, PAST], ids=["higher numbers", "lower numbers"])
STATES = pytest.mark.parametrize("state", [oracle.FLOW_OPEN, FLOW_CLOSING, FLOW_ANSWERED])


@NEWER
@STATES
@pytest.mark.parametrize("payload", [b"x", b"G", b"\x16\x03\x01hello", b"get / HTTP/1.1\r\n\r\n"])
def test_first_data_that_is_not_http_is_reset_as_on_a_tuple_of_its_own(
    router: Router, again: Connection, state: int, payload: bytes
) -> None:
    """Neither left waiting, nor forwarded as if it were the old connection's."""
    before = known(router, syn_seen=1, syn_isn=again.isn, state=state)
    router.resets(again.data(payload), "TX_RESET_NOT_HTTP")
    router.resets(again.fin(payload=payload), "TX_RESET_NOT_HTTP")
    assert router.flow(ALICE) == before


OVERTAKERS = {
    "body": {"payload": b"b" * 1000, "at": 500},
    "body that looks like a request": {"payload": request("/api"), "at": 500},
    "last byte of the window": {"payload": b"b", "at": oracle.ROUTER_WINDOW - 1},
    "acknowledgement": {"payload": b"", "at": 1},
    "end": {"payload": b"", "at": 500, "flags": "FA"},
    "end behind data": {"payload": b"b", "at": 500, "flags": "FPA"},
}


@NEWER
@STATES
@pytest.mark.parametrize("segment", OVERTAKERS.values(), ids=OVERTAKERS)
def test_what_overtakes_the_new_connections_first_request_waits(
    router: Router, again: Connection, state: int, segment: dict[str, Any]
) -> None:
    """At the old one's backend it would find nothing but a reset."""
    before = known(router, syn_seen=1, syn_isn=again.isn, state=state)
    router.drops(again.data(**segment), "DROP_OUT_OF_ORDER")
    assert router.flow(ALICE) == before


@STATES
def test_a_probe_with_a_byte_is_answered_before_the_first_request(router: Router, state: int) -> None:
    before = known(router, syn_seen=1, syn_isn=PAST.isn, state=state)
    probe = PAST.data(b"\0", at=-1, flags="A")
    router.sends(probe, "TX_KEEPALIVE", acknowledgement_of(probe))
    assert router.flow(ALICE) == before


def test_a_syn_that_came_twice_does_not_make_a_newer_connection(router: Router) -> None:
    """The entry then notes its own connection's number."""
    made = entry(ALICE.data(POST), "web", "web-1", body=3000, syn_seen=1, syn_isn=ALICE.isn)
    router.put_flow(ALICE, **made)
    router.forwards(ALICE.data(POST[:-1]), "FORWARDED_AGAIN", "web-1", opens=True)
    router.forwards(ALICE.data(b"b" * 1000, len(POST)), "FORWARDED", "web-1")
    router.forwards(ALICE.ack(len(POST)), "FORWARDED", "web-1")
    router.forwards(ALICE.data(HEAD, AFTER_POST), "ROUTED_NEXT", "web-1")


def test_a_reset_of_the_new_connection_is_never_answered(router: Router) -> None:
    before = known(router, syn_seen=1, syn_isn=AGAIN.isn)
    for at in (-1, 0):
        router.forwards(AGAIN.rst(at, "RA"), "FORWARDED_CLOSE", "web-1", cookie=ALICE.cookie)
    assert router.flow(ALICE) == before


def test_without_a_syn_nothing_is_taken_for_a_handshake(router: Router) -> None:
    known(router)
    router.forwards(AGAIN.ack(), "FORWARDED", "web-1", cookie=ALICE.cookie)


def test_a_forged_syn_cannot_swallow_acknowledgements(router: Router) -> None:
    """Its isn is one less than the number that the victim's acknowledgements carry."""
    known(router, syn_seen=1, syn_isn=ALICE.start + AFTER_HEAD - 1)
    router.forwards(ALICE.ack(AFTER_HEAD, acked=100), "FORWARDED", "web-1")


@NEWER
@STATES
def test_a_request_that_proves_a_new_connection_replaces_the_entry(
    router: Router, again: Connection, state: int
) -> None:
    known(router, router.other_backend("web", ALICE), state=state, syn_seen=1, syn_isn=again.isn)
    segment = again.data(HEAD)
    router.opens(segment, "web")
    assert router.flow(ALICE) == entry(segment, "web", router.backend_of("web", ALICE))
    assert router.flows() == 1


def test_the_new_connection_is_routed_by_its_own_request(router: Router) -> None:
    known(router)
    segment = AGAIN.data(request("/api"))
    router.opens(segment, "api")
    assert router.flow(ALICE) == entry(segment, "api", "api-1")


@pytest.mark.parametrize("state", [oracle.FLOW_OPEN, FLOW_ANSWERED])
def test_a_new_connection_may_have_the_old_ones_cookie(router: Router, state: int) -> None:
    """Only 24 bits of it are the hash's: it is both initial sequence numbers that tell connections apart."""
    known(router, router.other_backend("web", ALICE), state=state, cookie=AGAIN.cookie)
    segment = AGAIN.data(HEAD)
    router.opens(segment, "web")
    assert router.flow(ALICE) == entry(segment, "web", router.backend_of("web", ALICE))


OTHER_OPTIONS = replace(ALICE, options=replace(ALICE.options, sack=False))


@pytest.mark.parametrize("state", [oracle.FLOW_OPEN, FLOW_CLOSING, FLOW_ANSWERED])
def test_a_new_connection_may_have_the_old_ones_number(router: Router, state: int) -> None:
    """With other options its cookie differs: it is not a retransmission, and its request is routed like any other."""
    assert OTHER_OPTIONS.cookie != ALICE.cookie
    known(router, state=state)
    segment = OTHER_OPTIONS.data(request("/api"))
    router.opens(segment, "api")
    assert router.flow(ALICE) == entry(segment, "api", "api-1")


@pytest.mark.parametrize("payload", [b"G", b"x", HEAD[3:]])
def test_data_that_is_no_request_does_not_open_it(router: Router, payload: bytes) -> None:
    known(router)
    router.forwards(OTHER_OPTIONS.data(payload), "FORWARDED_AGAIN", "web-1", opens=False, cookie=ALICE.cookie)


def test_a_new_connection_may_start_where_the_newest_request_did(router: Router) -> None:
    known(router, isn=ALICE.isn - 1000, cookie=ALICE.cookie ^ 1 << 20, first=0)
    segment = ALICE.data(request("/api"))
    router.opens(segment, "api")
    assert router.flow(ALICE) == entry(segment, "api", "api-1")


def test_a_wrong_cookie_replaces_nothing(router: Router) -> None:
    before = known(router)
    router.drops(AGAIN.data(HEAD, acked=1 << 8), "DROP_OUT_OF_ORDER")
    assert router.flow(ALICE) == before


def test_a_retransmission_with_the_cookie_of_its_own_connection_is_one(router: Router) -> None:
    router.opens(ALICE.data(HEAD), "web")
    router.forwards(ALICE.data(HEAD), "FORWARDED_AGAIN", router.backend_of("web", ALICE), opens=True)
    assert router.flows() == 1


def test_no_timestamps_are_needed_for_any_of_it(router: Router) -> None:
    plain = Connection(options=SynOptions(mss=1460))
    router.greets(plain.syn())
    router.drops(plain.ack(), "DROP_HANDSHAKE_ACK")
    router.opens(plain.data(HEAD), "web")
    router.forwards(plain.data(HEAD, AFTER_HEAD), "ROUTED_NEXT", router.backend_of("web", plain))
