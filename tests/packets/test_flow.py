"""Known connections: what a segment is, its sequence number says, and a request is routed however late it comes."""

from typing import Any

import pytest

from packets.bench import Router, entry
from packets.frames import Connection, request
from packets.oracle import FLOW_CLOSING, Route

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


def test_a_retransmission_goes_where_the_request_went(router: Router) -> None:
    """Not where Maglev would send it now."""
    backend = router.other_backend("web", ALICE)
    before = known(router, backend)
    router.forwards(ALICE.data(HEAD), "FORWARDED_AGAIN", backend, opens=True)
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


def test_a_late_duplicate_of_the_first_request_goes_nowhere(router: Router) -> None:
    """Its cookie is valid for ever: it must not look like a new connection, or a POST would run twice."""
    second = ALICE.later(HEAD, AFTER_HEAD)
    made = entry(second, "web", "web-1", first=0, body_seq=ALICE.data(HEAD).after)
    router.put_flow(ALICE, **made)
    router.drops(ALICE.data(HEAD), "DROP_CHANGED")
    assert router.flow(ALICE) == made


# ---- retransmissions that say something else ------------------------------------------------------------

LONG = request("/public", "Cookie: " + "c" * 600, "Content-Length: 300", method="POST")
BODY = b"b" * 300

CHANGED = {
    "another path": HEAD.replace(b"/", b"/admin", 1)[: len(HEAD)],
    "another method": b"PUT / HTTP/1.1" + HEAD[14:],
    "another host": HEAD.replace(b"shop", b"stop"),
    "its first byte": b"H" + HEAD[1:],
    "its last byte": HEAD[:-1] + b"x",
    "an added byte": HEAD[:-4] + b"\r\nX",
    "its beginning alone": HEAD[:-1],
    "one byte of it": HEAD[:1],
    "the rest of another": b"POST",
}


@pytest.mark.parametrize("payload", CHANGED.values(), ids=CHANGED)
def test_what_was_not_routed_is_not_forwarded_in_its_place(router: Router, payload: bytes) -> None:
    """A bypass otherwise: the router sees one request, whose checksum is wrong, and the backend another."""
    before = known(router)
    router.drops(ALICE.data(payload), "DROP_CHANGED")
    assert router.flow(ALICE) == before


@pytest.mark.parametrize("at", range(0, len(LONG), 7))
def test_whichever_byte_of_the_head_it_is(router: Router, at: int) -> None:
    router.put_flow(ALICE, **entry(ALICE.data(LONG), "web", "web-1", body=300))
    changed = LONG[:at] + bytes([LONG[at] ^ 0x80]) + LONG[at + 1 :]
    router.drops(ALICE.data(changed), "DROP_CHANGED")
    router.drops(ALICE.data(changed + BODY), "DROP_CHANGED")


def test_two_changes_do_not_make_up_for_each_other(router: Router) -> None:
    """In the hash of routes they do: top bits of two words, under any key."""
    router.put_flow(ALICE, **entry(ALICE.data(LONG), "web", "web-1", body=300))
    changed = bytearray(LONG)
    for at, bits in ((103, 0x80), (111, 0x80), (108, 0x04)):
        changed[at] ^= bits
    router.drops(ALICE.data(bytes(changed)), "DROP_CHANGED")


@pytest.mark.parametrize(("at", "end"), [(1, len(HEAD)), (len(HEAD) - 1, len(HEAD)), (5, 6)])
def test_no_piece_of_the_head_is_forwarded_by_itself(router: Router, at: int, end: int) -> None:
    """Not even if it is the same: only the whole can be compared."""
    before = known(router)
    router.drops(ALICE.data(HEAD[at:end], at), "DROP_CHANGED")
    assert router.flow(ALICE) == before


@pytest.mark.parametrize("at", [len(LONG) - 1, len(LONG) - 4, 1])
def test_nor_with_the_body_behind_it(router: Router, at: int) -> None:
    router.put_flow(ALICE, **entry(ALICE.data(LONG), "web", "web-1", body=300))
    router.drops(ALICE.data((LONG + BODY)[at:], at), "DROP_CHANGED")
    router.drops(ALICE.fin(at, payload=(LONG + BODY)[at:]), "DROP_CHANGED")


def test_a_body_may_change_behind_the_same_head(router: Router) -> None:
    """No route depends on it."""
    router.put_flow(ALICE, **entry(ALICE.data(LONG), "web", "web-1", body=300))
    router.forwards(ALICE.data(LONG + bytes(300)), "FORWARDED_AGAIN", "web-1", opens=True)
    router.forwards(ALICE.data(bytes(300), len(LONG)), "FORWARDED", "web-1")


@pytest.mark.parametrize("start", range(1, 9))
def test_heads_of_every_length_are_compared_to_their_ends(router: Router, start: int) -> None:
    head = request("/" + "x" * start)
    router.opens(ALICE.data(head), "web")
    router.drops(ALICE.data(head[:-1] + b"\0"), "DROP_CHANGED")
    router.drops(ALICE.data(head[:-1]), "DROP_CHANGED")
    router.forwards(ALICE.data(head), "FORWARDED_AGAIN", router.backend_of("web", ALICE), opens=True)


def test_the_longest_head_is_compared_to_its_end(router: Router) -> None:
    head = request("/", "X: " + "x" * 1300)
    router.opens(ALICE.data(head), "web")
    router.drops(ALICE.data(head[:-6] + b"y" + head[-5:]), "DROP_CHANGED")
    router.forwards(ALICE.data(head), "FORWARDED_AGAIN", router.backend_of("web", ALICE), opens=True)


def between(router: Router) -> tuple[dict[str, int], int]:
    """A connection whose newest request is HEAD, behind POST and its body; where HEAD began."""
    made = entry(ALICE.later(HEAD, AFTER_POST), "web", "web-1", first=0, body_seq=ALICE.data(POST).after)
    router.put_flow(ALICE, **made)
    return made, AFTER_POST


def test_the_body_of_the_request_before_may_come_again(router: Router) -> None:
    """Its answer may have come before its end."""
    before, newest = between(router)
    router.forwards(ALICE.data(b"b" * 1400, len(POST)), "FORWARDED", "web-1")
    router.forwards(ALICE.data(b"b", newest - 1), "FORWARDED", "web-1")
    assert router.flow(ALICE) == before


@pytest.mark.parametrize(
    ("at", "length"), [(len(POST) - 1, 5), (0, 4), (0, len(POST)), (AFTER_POST - 1, 2), (-700, 21)]
)
def test_but_nothing_of_its_head_or_into_the_next(router: Router, at: int, length: int) -> None:
    before, _ = between(router)
    router.drops(ALICE.data((POST + b"b" * 3000 + HEAD)[max(at, 0) :][:length], at), "DROP_CHANGED")
    assert router.flow(ALICE) == before


@pytest.mark.parametrize("acked", [0, -1, -1000])
@pytest.mark.parametrize("payload", [HEAD, request("/api"), b"x"], ids=["same cluster", "another", "no request"])
def test_a_request_waits_until_the_answer_before_it_has_begun(router: Router, acked: int, payload: bytes) -> None:
    """The client sends it again, as it would had it been lost. It may not make the one before it forgotten."""
    before = known(router)
    router.drops(ALICE.data(payload, AFTER_HEAD, acked=acked), "DROP_PIPELINED")
    assert router.flow(ALICE) == before


def test_one_byte_of_it_is_enough(router: Router) -> None:
    known(router)
    router.forwards(ALICE.data(HEAD, AFTER_HEAD, acked=1), "ROUTED_NEXT", "web-1")


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


def test_a_body_that_consists_of_request_heads_is_a_body_wherever_it_is_split(router: Router) -> None:
    """Its heads name another cluster: one byte too few before the next request's place, and the connection moved."""
    body = request("/api/x") * 2 + request("/api/y", "Content-Length: 9", method="POST")
    head = request("/", f"Content-Length: {len(body)}", method="POST")
    for split in range(len(body)):
        connection = Connection(port=20_000 + split)
        backend = router.backend_of("web", connection)
        router.opens(connection.data(head + body[:split]), "web")
        router.forwards(connection.data(body[split:], len(head) + split), "FORWARDED", backend)
        router.object.maps["flows"].clear()


def test_a_keepalive_probe_on_a_known_connection_is_forwarded(router: Router) -> None:
    known(router)
    router.forwards(ALICE.ack(AFTER_HEAD - 1, acked=500), "FORWARDED", "web-1")


def test_unless_it_has_a_byte_of_its_own_in_the_head(router: Router) -> None:
    """RFC 1122, 4.2.3.6, lets a probe have one; but it would stand in the place of what was routed."""
    known(router)
    router.drops(ALICE.data(b"\0", AFTER_HEAD - 1, acked=500), "DROP_CHANGED")


def test_everything_works_across_the_end_of_the_number_space(router: Router) -> None:
    connection = Connection(isn=0xFFFFFFFF - len(POST) - 1500)
    segment = connection.data(POST)
    router.opens(segment, "web")
    backend = router.backend_of("web", connection)
    assert router.flow(connection) == entry(segment, "web", backend, body=3000)
    router.forwards(connection.data(b"b" * 1400, len(POST)), "FORWARDED", backend)
    router.forwards(connection.data(b"b" * 1400, len(POST) + 1400), "FORWARDED", backend)
    router.forwards(connection.data(b"b" * 200, len(POST) + 2800), "FORWARDED", backend)
    router.forwards(connection.later(HEAD, AFTER_POST), "ROUTED_NEXT", backend)


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
    assert router.flow(ALICE) == entry(segment, "web", "web-1", body=7, first=0, body_seq=segment.seq)


def test_it_stays_with_its_backend(router: Router) -> None:
    """Maglev would send a new connection elsewhere."""
    backend = router.other_backend("web", ALICE)
    known(router, backend)
    router.forwards(ALICE.later(HEAD, AFTER_HEAD), "ROUTED_NEXT", backend)


def test_many_requests_follow_each_other(router: Router) -> None:
    router.opens(ALICE.data(HEAD), "web")
    for number in range(1, 12):
        segment = ALICE.data(HEAD, number * len(HEAD), acked=number * 200)
        router.forwards(segment, "ROUTED_NEXT", router.backend_of("web", ALICE))
        assert router.flow(ALICE) == entry(segment, "web", router.backend_of("web", ALICE), first=0)


def test_the_body_of_the_next_request_may_start_with_it(router: Router) -> None:
    known(router)
    segment = ALICE.later(POST + b"b" * 500, AFTER_HEAD)
    router.forwards(segment, "ROUTED_NEXT", "web-1")
    assert router.flow(ALICE) == entry(segment, "web", "web-1", head=POST, body=3000, first=0)


def test_the_next_request_of_another_cluster_moves_the_connection(router: Router) -> None:
    """test_orders.py has what follows."""
    known(router)
    router.orders(ALICE.later(request("/api"), AFTER_HEAD, acked=9), "ROUTED_MOVED", "web-1", "api-1")


def test_also_behind_a_body(router: Router) -> None:
    posting(router)
    router.orders(ALICE.later(request("/api"), AFTER_POST), "ROUTED_MOVED", "web-1", "api-1")


def test_what_was_reset_is_reset_again_and_never_forwarded(router: Router) -> None:
    known(router)
    for _ in range(3):
        router.resets(ALICE.later(request("/drained"), AFTER_HEAD), "TX_UNAVAILABLE")


def test_a_route_that_has_changed_counts_for_the_next_request(router: Router) -> None:
    known(router)
    router.route(Route("api", prefix="/"))
    router.orders(ALICE.later(HEAD, AFTER_HEAD), "ROUTED_MOVED", "web-1", "api-1")


def test_the_next_request_with_the_clients_end_is_routed_and_closing(router: Router) -> None:
    known(router)
    segment = ALICE.later(HEAD, AFTER_HEAD, flags="FPA")
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
    router.resets(ALICE.later(HEAD + behind, AFTER_HEAD), "TX_RESET_PIPELINED")


@pytest.mark.parametrize("behind", [b"\r\n", b"G", request("/api")])
def test_a_retransmission_with_a_request_behind_it_is_not_forwarded(router: Router, behind: bytes) -> None:
    """A bypass, if it were: the first request binds the connection, the second one rides behind its retransmission."""
    known(router)
    router.resets(ALICE.data(HEAD + behind), "TX_RESET_PIPELINED")


@pytest.mark.parametrize("payload", [b"\r\n", b"x", b"body of nothing", b"get / HTTP/1.1\r\n\r\n", b"\0"])
def test_what_is_no_request_where_one_must_start_is_reset(router: Router, payload: bytes) -> None:
    known(router)
    router.resets(ALICE.later(payload, AFTER_HEAD), "TX_RESET_NOT_HTTP")


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
