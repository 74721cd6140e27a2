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
