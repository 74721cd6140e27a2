"""A port that is used again: the entry is the old connection's until the new one's first request proves itself."""

from dataclasses import replace
from typing import Any

import pytest

from packets import oracle
from packets.bench import Router, entry
from packets.frames import Connection, acknowledgement_of, request
from packets.oracle import FLOW_ANSWERED, FLOW_CLOSING, SynOptions

ALICE = Connection()
HEAD = request("/")
POST = request("/", "Content-Length: 3000", method="POST")
AFTER_HEAD, AFTER_POST = len(HEAD), len(POST) + 3000


def known(router: Router, backend: str = "web-1", **changes: Any) -> dict[str, int]:
    """A connection whose newest request is HEAD; what its entry says."""
    made = entry(ALICE.data(HEAD), "web", backend, **changes)
    router.put_flow(ALICE, **made)
    return made


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
    router.forwards(ALICE.data(POST), "FORWARDED_AGAIN", "web-1", opens=True)
    router.forwards(ALICE.data(b"b" * 1000, len(POST)), "FORWARDED", "web-1")
    router.forwards(ALICE.ack(len(POST)), "FORWARDED", "web-1")
    router.forwards(ALICE.later(HEAD, AFTER_POST), "ROUTED_NEXT", "web-1")


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
    router.drops(OTHER_OPTIONS.data(payload), "DROP_CHANGED")


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
    router.forwards(plain.later(HEAD, AFTER_HEAD), "ROUTED_NEXT", router.backend_of("web", plain))
