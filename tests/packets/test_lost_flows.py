"""The router without an entry: what is asked about, how often; what an answer installs; what a recovered flow may do.

docs/recovery.md says why.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from packets import oracle
from packets.bench import BACKENDS, FLOW_SETS, RESETTING_PORT, RESETTING_VIP, Router, entry
from packets.frames import Connection, Segment, acknowledgement_of, request
from packets.oracle import FLOW_ANSWERED, FLOW_CLOSING, FLOW_OPEN, FLOW_RECOVERED, Ask, Tuple
from packets.test_flow_table import neighbours
from rauta.bpf import RingBuffer

ALICE = Connection()
HEAD = request("/")
AFTER = len(HEAD)
RATE, BURST = 1, 5
"""events a second, slow enough that none becomes due while a test runs, and events at once"""
INTERVAL = 1_000_000_000 // RATE

ASKER = Tuple("198.18.0.2", 45678, BACKENDS["web-1"].address, 21057)


@pytest.fixture(scope="module")
def loaded() -> Iterator[Router]:
    router = Router(lost_rate=RATE, lost_burst=BURST)
    with router.object:
        router.object.maps["ask_keys"].update(0, {"key": [list(key) for key in oracle.ASK_KEYS]})
        yield router


@pytest.fixture
def asking(loaded: Router) -> Router:
    """A router that asks: its bucket is full."""
    loaded.reset()
    loaded.object.maps["lost_bucket"].update(0, 0)
    return loaded


@pytest.fixture
def lost(asking: Router) -> Iterator[RingBuffer]:
    """What it asks about."""
    with RingBuffer(asking.object.maps["lost"]) as ring:
        ring.read()
        yield ring


def event(segment: Segment) -> bytes:
    numbers = segment.seq.to_bytes(4, "little") + segment.ack.to_bytes(4, "little")
    return oracle.tuple_bytes(segment.connection.tuple) + numbers


# ---- what is asked about --------------------------------------------------------------------------------

ABOUT = {
    "acknowledgement": ALICE.ack(AFTER, acked=5000),
    "acknowledgement without options": ALICE.ack(AFTER, acked=5000, options=b"", padding=bytes(6)),
    "keepalive probe": ALICE.ack(AFTER - 1, acked=5000),
    "probe with a byte": ALICE.data(b"\0", AFTER - 1, acked=5000, flags="A"),
    "end": ALICE.fin(AFTER),
    "data": ALICE.data(b"b" * 100, AFTER),
    "data that ends": ALICE.fin(AFTER, payload=b"b" * 100),
    "wrapped numbers": Connection(isn=0xFFFFFFFF).ack(AFTER, acked=0x90000000),
    "another VIP": Connection(server=RESETTING_VIP, server_port=RESETTING_PORT).ack(AFTER),
}


@pytest.mark.parametrize("segment", ABOUT.values(), ids=ABOUT)
def test_a_later_segment_without_an_entry_is_asked_about(asking: Router, lost: RingBuffer, segment: Segment) -> None:
    asking.drops(segment, "DROP_ASKED")
    assert lost.read() == [event(segment)]
    assert asking.flows() == 0


def test_a_reset_is_not(asking: Router, lost: RingBuffer) -> None:
    """Whoever sends one wants no answer."""
    for segment in (ALICE.rst(AFTER), ALICE.rst(AFTER, "RA")):
        asking.drops(segment, "DROP_NO_FLOW")
    assert lost.read() == []


def test_nor_is_what_is_answered_without_an_entry(asking: Router, lost: RingBuffer) -> None:
    asking.greets(ALICE.syn())
    asking.drops(ALICE.ack(), "DROP_HANDSHAKE_ACK")
    asking.sends(ALICE.ack(-1), "TX_KEEPALIVE", acknowledgement_of(ALICE.ack(-1)))
    asking.sends(ALICE.fin(), "TX_CLOSE", acknowledgement_of(ALICE.fin(), "FA"))
    asking.resets(ALICE.data(b"hello"), "TX_RESET_NOT_HTTP")
    asking.resets(ALICE.data(HEAD, AFTER, acked=300), "TX_RESET_COOKIE")
    asking.opens(ALICE.data(HEAD), "web")
    asking.forwards(ALICE.ack(AFTER), "FORWARDED", asking.backend_of("web", ALICE))
    assert lost.read() == []


def test_by_default_nobody_is_asked(router: Router) -> None:
    router.drops(ALICE.ack(AFTER), "DROP_NO_FLOW")
    with RingBuffer(router.object.maps["lost"]) as ring:
        assert ring.read() == []


# ---- how often ------------------------------------------------------------------------------------------


def test_a_burst_is_asked_about_and_no_more(asking: Router, lost: RingBuffer) -> None:
    segments = [Connection(port=port).ack(AFTER) for port in range(40000, 40000 + 3 * BURST)]
    for segment in segments[:BURST]:
        asking.drops(segment, "DROP_ASKED")
    for segment in segments[BURST:]:
        asking.drops(segment, "DROP_NO_FLOW")
    assert lost.read() == [event(segment) for segment in segments[:BURST]]


def drained(asking: Router, left: int) -> None:
    """The bucket holds so many, and half of one: time goes on."""
    missing = (BURST - left) * INTERVAL - INTERVAL // 2
    asking.object.maps["lost_bucket"].update(0, time.monotonic_ns() + missing)


@pytest.mark.parametrize("left", range(BURST))
def test_each_takes_one_out_of_the_bucket(asking: Router, lost: RingBuffer, left: int) -> None:
    drained(asking, left)
    for _ in range(left):
        asking.drops(ALICE.ack(AFTER), "DROP_ASKED")
    asking.drops(ALICE.ack(AFTER), "DROP_NO_FLOW")
    assert len(lost.read()) == left


def test_what_is_refused_takes_none(asking: Router) -> None:
    before = asking.counters()
    drained(asking, -5)
    bucket = asking.object.maps["lost_bucket"].lookup(0)
    asking.object.programs["rauta_ingress"].test_run(bytes(ALICE.ack(AFTER)), repeat=1000)
    assert asking.grown(before) == {"DROP_NO_FLOW": 1000}
    assert asking.object.maps["lost_bucket"].lookup(0) == bucket


def test_a_bucket_that_stood_for_long_holds_a_burst_and_no_more(asking: Router, lost: RingBuffer) -> None:
    asking.object.maps["lost_bucket"].update(0, 1)
    for _ in range(BURST):
        asking.drops(ALICE.ack(AFTER), "DROP_ASKED")
    asking.drops(ALICE.ack(AFTER), "DROP_NO_FLOW")
    assert len(lost.read()) == BURST


def test_over_time_it_is_the_rate(asking: Router) -> None:
    """In test runs of many packets each: a flood of a good second, in which one becomes due."""
    program, segment = asking.object.programs["rauta_ingress"], bytes(ALICE.ack(AFTER))
    before, started = asking.counters(), time.monotonic()
    while time.monotonic() - started < 1.1:
        program.test_run(segment, repeat=10_000)
    seconds = time.monotonic() - started
    grown = asking.grown(before)
    assert grown["DROP_NO_FLOW"] > 10_000
    assert BURST + 1 <= grown["DROP_ASKED"] <= BURST + RATE * seconds + 1


def test_where_nobody_reads_the_ring_fills_and_that_is_all(asking: Router) -> None:
    """The bucket is filled again and again; the ring buffer is not read, but for what other tests have left there."""
    with RingBuffer(asking.object.maps["lost"]) as ring:
        ring.read()
    room = asking.object.maps["lost"].max_entries // 32  # 20 bytes and the header, in steps of 8
    program, bucket = asking.object.programs["rauta_ingress"], asking.object.maps["lost_bucket"]
    before = asking.counters()
    for _ in range(room + 9):
        bucket.update(0, 0)
        program.test_run(bytes(ALICE.ack(AFTER)))
    grown = asking.grown(before)
    assert grown == {"DROP_ASKED": room - 1, "DROP_NO_FLOW": 10}
    with RingBuffer(asking.object.maps["lost"]) as ring:
        assert len(ring.read()) == grown["DROP_ASKED"]


# ---- questions and answers ------------------------------------------------------------------------------

LOST = ALICE.ack(AFTER, acked=5000)
QUESTION = Ask(ALICE.tuple, LOST.seq, LOST.ack, ASKER)
MINE = replace(QUESTION, kind=oracle.ASK_MINE, isn=ALICE.isn, cookie=ALICE.cookie, next=LOST.seq)
NOT_MINE = replace(QUESTION, kind=oracle.ASK_NOT_MINE)


def opening(backend: str = "web-1", between: Tuple = ASKER) -> bytes:
    """What `struct ask_call` says in front of the ask."""
    return oracle.tuple_bytes(between) + BACKENDS[backend].index.to_bytes(4, "little")


def take(router: Router, answer: bytes, backend: str = "web-1", between: Tuple = ASKER) -> int:
    """What becomes of an answer."""
    return router.object.programs["rauta_take_answer"].test_run(opening(backend, between) + answer).retval


def recovered(backend: str = "web-1", **changes: int) -> dict[str, int]:
    """The entry that MINE makes."""
    made = entry(ALICE.data(HEAD), "web", backend, state=FLOW_RECOVERED, first=0, digest=0, head_length=0)
    numbers = {"request_seq": LOST.seq, "next_request_seq": LOST.seq, "body_seq": LOST.seq, "request_ack": LOST.ack}
    return made | numbers | {"cluster": 0, "options": 0} | changes


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("kind", [oracle.ASK_WHOSE, oracle.ASK_MINE])
def test_a_question_is_sealed(asking: Router, epoch: int, kind: int) -> None:
    ask = bytes(replace(MINE, epoch=epoch, kind=kind))
    program = asking.object.programs["rauta_seal_ask"]
    assert program.call(opening() + ask[:-8] + b"whatever") == (0, opening() + ask)


@pytest.mark.parametrize("epoch", [0, 1])
def test_an_answer_makes_an_entry(asking: Router, epoch: int) -> None:
    assert take(asking, bytes(replace(MINE, epoch=epoch)), "web-2") == oracle.ANSWER_RECOVERED
    assert asking.flow(ALICE) == recovered("web-2")
    assert asking.flows() == 1


def test_it_makes_none_where_nobody_has_the_connection(asking: Router) -> None:
    assert take(asking, bytes(NOT_MINE)) == oracle.ANSWER_NOT_MINE
    assert asking.flows() == 0


FORGED = {
    "the question itself": bytes(QUESTION),
    "another version": bytes(replace(MINE, version=2)),
    "no version": bytes(replace(MINE, version=0)),
    "a ping": bytes(replace(MINE, kind=oracle.ASK_PING)),
    "a pong": bytes(replace(MINE, kind=oracle.ASK_PONG)),
    "another kind": bytes(replace(MINE, kind=6)),
    "no kind": bytes(replace(MINE, kind=0)),
    "the cookie's key": MINE.sealed(oracle.COOKIE_KEYS),
    "the other epoch's key": MINE.sealed(oracle.ASK_KEYS[::-1]),
    "no tag": bytes(MINE)[:-8] + bytes(8),
    "made of the question": bytes(QUESTION)[:1] + b"\2" + bytes(QUESTION)[2:],
    "made of a denial": bytes(NOT_MINE)[:1] + b"\2" + bytes(NOT_MINE)[2:],
}


@pytest.mark.parametrize("answer", FORGED.values(), ids=FORGED)
def test_a_forged_answer_makes_none(asking: Router, answer: bytes) -> None:
    assert take(asking, answer) == oracle.ANSWER_REFUSED
    assert asking.flows() == 0


def test_nor_does_a_part_of_one(asking: Router) -> None:
    for length in range(0, len(bytes(MINE)), 8):
        assert take(asking, bytes(MINE)[:length]) == oracle.ANSWER_REFUSED
    assert asking.flows() == 0


def test_a_set_that_stays_locked_gets_none(asking: Router) -> None:
    """By another CPU that writes to it. The connection will be asked about once more."""
    number, _ = oracle.flow_place(ALICE.tuple, FLOW_SETS)
    flow_set = asking.object.maps["flows"].lookup(number)
    asking.object.maps["flows"].update(number, flow_set | {"lock": 1})
    assert take(asking, bytes(MINE)) == oracle.ANSWER_LATE
    asking.object.maps["flows"].update(number, flow_set)
    assert asking.flows() == 0
    assert take(asking, bytes(MINE)) == oracle.ANSWER_RECOVERED


@pytest.mark.parametrize("at", range(len(bytes(MINE))))
def test_whichever_byte_of_it_was_changed(asking: Router, at: int) -> None:
    for answer in (bytearray(bytes(MINE)), bytearray(bytes(NOT_MINE))):
        answer[at] ^= 0x10
        assert take(asking, bytes(answer)) == oracle.ANSWER_REFUSED
    assert asking.flows() == 0


ELSEWHERE = {
    "another agent's": replace(ASKER, server=BACKENDS["web-2"].address),
    "from another port": replace(ASKER, server_port=21058),
    "to another router": replace(ASKER, client="198.18.0.3"),
    "to another port": replace(ASKER, client_port=45679),
}


@pytest.mark.parametrize("between", ELSEWHERE.values(), ids=ELSEWHERE)
def test_an_answer_is_one_agents_to_one_router(asking: Router, between: Tuple) -> None:
    assert take(asking, bytes(MINE), between=between) == oracle.ANSWER_REFUSED
    assert asking.flows() == 0


@pytest.mark.parametrize("state", [FLOW_OPEN, FLOW_CLOSING, FLOW_ANSWERED, FLOW_RECOVERED])
@pytest.mark.parametrize("isn", [ALICE.isn, ALICE.isn + 1])
def test_an_entry_that_is_there_by_then_stays(asking: Router, state: int, isn: int) -> None:
    """A new connection's, perhaps, whose first request came while the question was on its way."""
    before = entry(ALICE.data(HEAD), "web", "web-2", state=state, isn=isn)
    asking.put_flow(ALICE, **before)
    assert take(asking, bytes(MINE)) == oracle.ANSWER_LATE
    assert asking.flow(ALICE) == before
    assert asking.flows() == 1


def test_in_a_full_set_it_takes_a_place_as_any_flow_does(asking: Router) -> None:
    connections = neighbours(oracle.FLOW_WAYS + 1)
    for connection in connections[: oracle.FLOW_WAYS]:
        asking.opens(connection.data(HEAD), "web")
    newest = connections[-1]
    answer = replace(MINE, four=newest.tuple, isn=newest.isn, cookie=newest.cookie)
    assert take(asking, bytes(answer)) == oracle.ANSWER_RECOVERED
    assert asking.flows() == oracle.FLOW_WAYS
    asking.forwards(newest.ack(AFTER), "FORWARDED", "web-1")


# ---- what a recovered flow may do -----------------------------------------------------------------------


@pytest.fixture
def again(asking: Router) -> dict[str, int]:
    """The flow is recovered; what its entry says."""
    assert take(asking, bytes(MINE)) == oracle.ANSWER_RECOVERED
    return recovered()


BARE: dict[str, tuple[Segment, str]] = {
    "acknowledgement": (LOST, "FORWARDED"),
    "later acknowledgement": (ALICE.ack(AFTER, acked=1 << 30), "FORWARDED"),
    "keepalive probe": (ALICE.ack(AFTER - 1, acked=5000), "FORWARDED"),
    "end": (ALICE.fin(AFTER), "FORWARDED_CLOSE"),
    "reset": (ALICE.rst(AFTER), "FORWARDED_CLOSE"),
    "reset with a payload": (replace(ALICE.rst(AFTER), payload=b"sorry"), "FORWARDED_CLOSE"),
}


@pytest.mark.parametrize(("segment", "verdict"), BARE.values(), ids=BARE)
def test_what_carries_no_data_is_forwarded(
    asking: Router, again: dict[str, int], segment: Segment, verdict: str
) -> None:
    asking.forwards(segment, verdict, "web-1")
    assert asking.flow(ALICE) == again


NEW_DATA = {
    "the next request": ALICE.later(HEAD, AFTER),
    "one byte": ALICE.data(b"b", AFTER, acked=5000),
    "a body": ALICE.data(b"b" * 1400, AFTER + 2800, acked=5000),
    "with what is old": ALICE.data(b"bb", AFTER - 1, acked=5000),
    "the last that the window allows": ALICE.data(b"b", AFTER + oracle.ASK_SEQ_REACH - 1, acked=5000),
    "with the end": ALICE.fin(AFTER, payload=b"b"),
}


@pytest.mark.parametrize("segment", NEW_DATA.values(), ids=NEW_DATA)
def test_new_data_ends_the_connection(asking: Router, again: dict[str, int], segment: Segment) -> None:
    """It may be a request, or lie in a body: taken for the other, it would be a way round the routes."""
    asking.resets(segment, "TX_RESET_RECOVERED")
    assert asking.flow(ALICE) == again


FAR = {
    "beyond the window": (ALICE.data(b"b", AFTER + oracle.ASK_SEQ_REACH), "DROP_OUT_OF_ORDER"),
    "half way round": (ALICE.data(b"b", AFTER + (1 << 31) - 2), "DROP_OUT_OF_ORDER"),
    "farther": (ALICE.data(b"b", AFTER + (1 << 31) - 1), "DROP_CHANGED"),
    "the first request again": (ALICE.data(HEAD), "DROP_CHANGED"),
    "it, when its answer has begun": (ALICE.data(HEAD, acked=5000), "DROP_CHANGED"),
    "another in its place": (ALICE.data(b"PUT /" + HEAD[5:]), "DROP_CHANGED"),
    "its last byte": (ALICE.data(HEAD[-1:], AFTER - 1, acked=5000), "DROP_CHANGED"),
    "its last byte with the end": (ALICE.fin(AFTER - 1, payload=HEAD[-1:]), "DROP_CHANGED"),
}


@pytest.mark.parametrize(("segment", "verdict"), FAR.values(), ids=FAR)
def test_any_other_data_goes_nowhere(asking: Router, again: dict[str, int], segment: Segment, verdict: str) -> None:
    """Also not to the backend, where it could fill a place that another router's packets have left open."""
    asking.drops(segment, verdict)
    assert asking.flow(ALICE) == again


def test_the_backend_may_have_got_a_part_only(asking: Router) -> None:
    """In the midst of an upload. What it still waits for ends the connection, what it has does not."""
    assert take(asking, bytes(replace(MINE, next=LOST.seq - 100))) == oracle.ANSWER_RECOVERED
    asking.drops(ALICE.data(b"b" * 20, AFTER - 120), "DROP_CHANGED")
    asking.resets(ALICE.data(b"b" * 21, AFTER - 120), "TX_RESET_RECOVERED")


NEXT = ALICE.reopened(ALICE.isn + 10_000_000)


def test_a_new_connection_replaces_it(asking: Router, again: dict[str, int]) -> None:
    asking.greets(NEXT.syn())
    assert asking.flow(ALICE) == again | {"syn_seen": 1, "syn_isn": NEXT.isn}
    asking.drops(NEXT.ack(), "DROP_HANDSHAKE_ACK")
    asking.drops(NEXT.data(b"b", 500), "DROP_OUT_OF_ORDER")
    asking.opens(NEXT.data(request("/api")), "api")
    assert asking.flow(ALICE) == entry(NEXT.data(request("/api")), "api", "api-1")
    assert asking.flows() == 1


@pytest.mark.parametrize("changes", [{"acked": 1 << 8}, {"at": 1}], ids=str)
def test_one_without_a_valid_cookie_does_not(asking: Router, again: dict[str, int], changes: dict[str, Any]) -> None:
    asking.drops(NEXT.data(HEAD, **changes), "DROP_OUT_OF_ORDER")
    assert asking.flow(ALICE) == again


def test_it_is_asked_about_no_more(asking: Router, again: dict[str, int], lost: RingBuffer) -> None:
    asking.forwards(LOST, "FORWARDED", "web-1")
    assert lost.read() == []


@pytest.mark.parametrize(
    "other", [Connection(port=ALICE.port + 1), Connection(client="198.18.0.3")], ids=["port", "host"]
)
def test_no_other_tuple_has_gained_anything(asking: Router, again: dict[str, int], other: Connection) -> None:
    asking.drops(other.ack(AFTER, acked=5000), "DROP_ASKED")
    assert asking.flows() == 1
    assert asking.flow(ALICE) == again
