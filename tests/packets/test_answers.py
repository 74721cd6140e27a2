"""The router's own answers: each one is whole, closes the connection, and leaves an entry that says so."""

from typing import Any

import pytest

from packets.bench import CLOSED_HOST, RESETTING_PORT, RESETTING_VIP, Router, entry
from packets.frames import Connection, Segment, acknowledgement_of, answer_to, request
from packets.oracle import FLOW_ANSWERED, NO_BACKEND, ROUTER_WINDOW, Route, SynOptions

ALICE = Connection()
HEAD = request("/")
UNKNOWN = request("/unknown", host=CLOSED_HOST)

ANSWERS = {
    "404": (UNKNOWN, "TX_NO_ROUTE", "404 Not Found"),
    "400": (request("//"), "TX_BAD_REQUEST", "400 Bad Request"),
    "411": (request("/", "Transfer-Encoding: chunked"), "TX_LENGTH_REQUIRED", "411 Length Required"),
    "413": (request("/", "Content-Length: 9999999999"), "TX_BODY_TOO_LARGE", "413 Content Too Large"),
    "414": (request("/" + "a" * 300), "TX_URI_TOO_LONG", "414 URI Too Long"),
    "431": (HEAD[:-1], "TX_HEAD_TOO_LARGE", "431 Request Header Fields Too Large"),
    "503": (request("/drained"), "TX_UNAVAILABLE", "503 Service Unavailable"),
}
NAMES = ("text", "verdict", "status")
each_answer = pytest.mark.parametrize(NAMES, ANSWERS.values(), ids=ANSWERS)
LATER_ANSWERS = {code: answer for code, answer in ANSWERS.items() if code != "503"}
each_later_answer = pytest.mark.parametrize(NAMES, LATER_ANSWERS.values(), ids=LATER_ANSWERS)

CLIENTS = {
    "everything": ALICE,
    "nothing": Connection(options=SynOptions()),
    "window scale": Connection(options=SynOptions(mss=1460, wscale=0)),
    "timestamps": Connection(options=SynOptions(mss=1460, tsval=1)),
    "every bit of the cookie": Connection(options=SynOptions(mss=1460, wscale=14, sack=True, tsval=1), epoch=1),
}


def fields(router: Router, connection: Connection, *names: str) -> dict[str, Any]:
    """Some fields of a connection's entry."""
    flow = router.flow(connection)
    assert flow is not None
    return {name: flow[name] for name in names}


# ---- the answer -----------------------------------------------------------------------------------------


@each_answer
@pytest.mark.parametrize("connection", CLIENTS.values(), ids=CLIENTS)
def test_every_client_gets_the_answer_whole(
    router: Router, connection: Connection, text: bytes, verdict: str, status: str
) -> None:
    router.answers(connection.data(text), verdict, status)


@each_answer
@pytest.mark.parametrize("isn", [ALICE.isn, 0xFFFFFFFF - 20])
def test_the_entry_says_that_it_was_answered(router: Router, isn: int, text: bytes, verdict: str, status: str) -> None:
    segment = Connection(isn=isn).data(text)
    router.answers(segment, verdict, status)
    names = ("isn", "cookie", "request_seq", "next_request_seq", "state", "backend", "first", "answer")
    assert fields(router, segment.connection, *names) == {
        "isn": isn,
        "cookie": segment.connection.cookie,
        "request_seq": segment.seq,
        "next_request_seq": segment.after,
        "state": FLOW_ANSWERED,
        "backend": NO_BACKEND,
        "first": 1,
        "answer": router.verdicts[verdict],
    }


def test_the_clients_end_is_acknowledged_with_the_request(router: Router) -> None:
    segment = ALICE.fin(payload=UNKNOWN)
    router.answers(segment, "TX_NO_ROUTE", "404 Not Found")
    assert fields(router, ALICE, "next_request_seq") == {"next_request_seq": segment.after}


def test_a_body_in_the_same_segment_is_acknowledged_with_the_request(router: Router) -> None:
    text = request("/unknown", "Content-Length: 5000", host=CLOSED_HOST, method="POST") + b"b" * 600
    router.answers(ALICE.data(text), "TX_NO_ROUTE", "404 Not Found")


def test_padding_is_not_acknowledged(router: Router) -> None:
    router.answers(ALICE.data(b"GET / HTTP/1.0\r\n", padding=b"\r\n"), *ANSWERS["431"][1:])


def test_a_short_request_gets_a_longer_answer(router: Router) -> None:
    router.answers(Connection(options=SynOptions()).data(b"GET "), *ANSWERS["431"][1:])


def test_a_long_request_gets_a_shorter_answer(router: Router) -> None:
    router.answers(ALICE.data(request("/", "Content-Length: x", "X: " + "x" * 1300)), *ANSWERS["400"][1:])


def test_a_request_without_timestamps_gets_an_answer_without(router: Router) -> None:
    router.answers(ALICE.data(UNKNOWN, options=b""), "TX_NO_ROUTE", "404 Not Found")


def test_a_reset_leaves_no_entry(router: Router) -> None:
    there = Connection(server=RESETTING_VIP, server_port=RESETTING_PORT)
    for _ in range(2):
        router.resets(there.data(request("/unknown")), "TX_RESET_NO_ROUTE")
    assert router.flows() == 0


# ---- a later request ------------------------------------------------------------------------------------


@each_later_answer
def test_a_later_request_is_reset_instead(router: Router, text: bytes, verdict: str, status: str) -> None:
    """The answer to the request before it may be under way: one by the router would be taken for it."""
    before = entry(ALICE.data(HEAD), "web", "web-1")
    router.put_flow(ALICE, **before)
    for _ in range(3):
        router.resets(ALICE.data(text, len(HEAD), acked=400), verdict)
    assert router.flow(ALICE) == before


def test_the_connection_may_go_on_if_the_client_does_not_believe_the_reset(router: Router) -> None:
    """As when somebody else has sent the request: a reset with a number that the client does not expect is ignored."""
    router.put_flow(ALICE, **entry(ALICE.data(HEAD), "web", "web-1"))
    router.resets(ALICE.later(UNKNOWN, len(HEAD)), "TX_NO_ROUTE")
    router.forwards(ALICE.data(HEAD, len(HEAD), acked=400), "ROUTED_NEXT", "web-1")


def test_a_later_request_for_another_cluster_without_weight_is_reset(router: Router) -> None:
    """There is nobody to move the connection to; on the next one the request gets its 503."""
    router.put_flow(ALICE, **entry(ALICE.data(HEAD), "web", "web-1"))
    router.resets(ALICE.later(request("/drained"), len(HEAD)), "TX_UNAVAILABLE")


def test_a_later_request_without_route_may_be_reset(router: Router) -> None:
    there = Connection(server=RESETTING_VIP, server_port=RESETTING_PORT)
    head = request("/open")
    router.opens(there.data(head), "web")
    router.resets(there.later(request("/unknown"), len(head)), "TX_RESET_NO_ROUTE")


# ---- what comes afterwards ------------------------------------------------------------------------------


def answered(router: Router, connection: Connection = ALICE, **fields: int) -> None:
    """A connection that got a 404; `fields` of its entry are to differ."""
    made = entry(connection.data(UNKNOWN), "web", "web-1", state=FLOW_ANSWERED)
    made |= {"backend": NO_BACKEND, "answer": router.verdicts["TX_NO_ROUTE"]}
    router.put_flow(connection, **made | fields)


AFTER = len(UNKNOWN)


@each_answer
def test_the_same_request_gets_the_same_answer_again(router: Router, text: bytes, verdict: str, status: str) -> None:
    for _ in range(3):
        router.answers(ALICE.data(text), verdict, status)
    assert router.flows() == 1


def test_a_retransmission_that_is_cut_differently_gets_it_too(router: Router) -> None:
    """What was acknowledged stays so."""
    first = ALICE.data(UNKNOWN)
    router.answers(first, "TX_NO_ROUTE", "404 Not Found")
    expected = answer_to(first, "404 Not Found")
    router.sends(ALICE.data(UNKNOWN[:20]), "TX_NO_ROUTE", expected)
    router.sends(ALICE.data(UNKNOWN + b"more"), "TX_NO_ROUTE", expected)


def test_also_if_the_routes_have_changed_meanwhile(router: Router) -> None:
    """Whatever the client gets now, it must not be left waiting."""
    router.answers(ALICE.data(UNKNOWN), "TX_NO_ROUTE", "404 Not Found")
    router.route(Route("web", prefix="/"))
    router.answers(ALICE.data(UNKNOWN), "TX_NO_ROUTE", "404 Not Found")


@pytest.mark.parametrize("connection", [ALICE, *CLIENTS.values()], ids=["first", *CLIENTS])
def test_the_clients_end_is_acknowledged(router: Router, connection: Connection) -> None:
    answered(router, connection)
    for _ in range(2):
        fin = connection.fin(AFTER, acked=1 + len("HTTP/1.1 404 Not Found"))
        router.sends(fin, "TX_CLOSE", acknowledgement_of(fin))


LATE: dict[str, Segment] = {
    "acknowledgement of the answer": ALICE.ack(AFTER, acked=66),
    "acknowledgement after the end": ALICE.ack(AFTER + 1, acked=67),
    "end at another place": ALICE.fin(AFTER + 1),
    "end before": ALICE.fin(AFTER - 1),
}


@pytest.mark.parametrize("segment", LATE.values(), ids=LATE)
def test_anything_else_is_dropped(router: Router, segment: Segment) -> None:
    answered(router)
    before = router.flow(ALICE)
    router.drops(segment, "DROP_ANSWERED")
    assert router.flow(ALICE) == before


MORE: dict[str, tuple[Segment, int]] = {
    "rest of the body": (ALICE.data(b"b" * 500, AFTER, acked=0), AFTER + 500),
    "its end": (ALICE.fin(AFTER, payload=b"b" * 500), AFTER + 501),
    "next request": (ALICE.data(HEAD, AFTER, acked=66), AFTER + len(HEAD)),
    "data behind a gap": (ALICE.data(HEAD, AFTER + 100), AFTER + 100 + len(HEAD)),
    "part of the request": (ALICE.data(UNKNOWN[5:], 5), AFTER),
}


@pytest.mark.parametrize(("segment", "acknowledged"), MORE.values(), ids=MORE)
def test_more_data_is_acknowledged_and_thrown_away(router: Router, segment: Segment, acknowledged: int) -> None:
    """A client that writes its whole body before it reads must get that far."""
    answered(router)
    until = ALICE.start + acknowledged & 0xFFFFFFFF
    router.sends(segment, "TX_DISCARDED", acknowledgement_of(segment, ack=until))
    assert fields(router, ALICE, "next_request_seq", "state") == {"next_request_seq": until, "state": FLOW_ANSWERED}


@pytest.mark.parametrize(("length", "advances"), [(1000, True), (1001, False)])
def test_no_further_than_the_window(router: Router, length: int, advances: bool) -> None:
    """What nobody was allowed to send is not acknowledged."""
    answered(router)
    segment = ALICE.data(b"b" * length, AFTER + ROUTER_WINDOW - 1000)
    until = ALICE.start + AFTER + (ROUTER_WINDOW if advances else 0)
    router.sends(segment, "TX_DISCARDED", acknowledgement_of(segment, ack=until))
    assert fields(router, ALICE, "next_request_seq") == {"next_request_seq": until}


@pytest.mark.parametrize("answer", ["PASS_NOT_IPV4", "DROP_NO_FLOW", "TX_RESET_NOT_HTTP", "ROUTED_FIRST"])
def test_what_is_no_answer_is_not_repeated(router: Router, answer: str) -> None:
    """Another CPU may have taken the entry's place in the table a moment ago, and with it what the answer was."""
    answered(router, answer=router.verdicts[answer])
    router.drops(ALICE.data(UNKNOWN), "DROP_ANSWERED")


@pytest.mark.parametrize("at", [AFTER, AFTER + 1, 0])
def test_a_reset_is_dropped(router: Router, at: int) -> None:
    answered(router)
    router.drops(ALICE.rst(at), "DROP_ANSWERED")


def test_a_new_connection_takes_the_tuple_over(router: Router) -> None:
    answered(router)
    again = ALICE.reopened(ALICE.isn + 5000)
    router.greets(again.syn())
    router.drops(again.ack(), "DROP_HANDSHAKE_ACK")
    segment = again.data(HEAD)
    router.opens(segment, "web")
    assert router.flow(again) == entry(segment, "web", router.backend_of("web", again))


def test_a_new_connection_may_be_answered_like_the_old_one(router: Router) -> None:
    answered(router)
    segment = ALICE.reopened(ALICE.isn + 5000).data(UNKNOWN)
    router.answers(segment, "TX_NO_ROUTE", "404 Not Found")
    assert fields(router, ALICE, "cookie", "state") == {"cookie": segment.connection.cookie, "state": FLOW_ANSWERED}
