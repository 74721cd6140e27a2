"""Following one client: all of its packets are told, and nobody else's more than before."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from packets import oracle
from packets.frames import CLIENT, VIP, VIP_PORT, Connection, Segment, request
from packets.observed import counted, loaded, run
from rauta.events import Event, EventReader
from rauta.observation import EventRates, Observation
from rauta.router import EventCounts, Router

ALICE = Connection()
BOB = Connection(client="198.18.0.9")
HEAD = request("/")
QUIET = EventRates(rate=1, burst=1, routed=0, dropped=0, answered=0, fallback=0)
"""nothing is an event unless its client is followed"""

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
EVENT_BYTES = 48
ROUTED, SAMPLED, FOLLOWED = 3, 1, 2


@pytest.fixture
def quiet() -> Iterator[Router]:
    with loaded(observation=Observation(events=QUIET)) as router:
        yield router


@pytest.fixture
def reader(quiet: Router) -> Iterator[EventReader]:
    with EventReader(quiet) as one:
        yield one


def raw(router: Router) -> list[bytes]:
    """The records of the ring buffer, as they lie there."""
    from rauta.bpf import RingBuffer

    with RingBuffer(router.object.maps["events"]) as ring:
        return ring.read()


def conversation() -> list[Segment]:
    """A connection with one request."""
    return [ALICE.syn(), ALICE.ack(), ALICE.data(HEAD), ALICE.ack(len(HEAD)), ALICE.data(HEAD), ALICE.fin(len(HEAD))]


def told(event: Event) -> tuple[str, str, int, str | None]:
    return event.flag_names, event.verdict, event.length, event.method


def test_every_packet_of_the_client_is_told(quiet: Router, reader: EventReader) -> None:
    """Those that are ordinary, too, though no class has any turn."""
    with reader.following(IPv4Address(CLIENT)):
        run(quiet, *conversation())
        events = reader.poll(0)
    data = ALICE.data(HEAD)
    assert [told(event) for event in events] == [
        ("SYN", "TX_SYN_ACK", 0, None),
        ("ACK", "DROP_HANDSHAKE_ACK", 0, None),
        ("PSH ACK", "ROUTED_FIRST", len(HEAD), "GET"),
        ("ACK", "FORWARDED", 0, None),
        ("PSH ACK", "FORWARDED_AGAIN", len(HEAD), None),
        ("FIN ACK", "FORWARDED_CLOSE", 0, None),
    ]
    assert {(event.client, event.client_port) for event in events} == {(IPv4Address(CLIENT), ALICE.port)}
    assert events[2].seq == data.seq
    assert [(event.sampled, event.followed) for event in events] == [(False, True)] * 6


def test_the_record_byte_for_byte(quiet: Router, reader: EventReader) -> None:
    reader.close()
    quiet.object.maps["follow"].update(0, {"client": oracle.be32(CLIENT), "port": 0, "enabled": 1})
    run(quiet, ALICE.data(HEAD))
    (record,) = raw(quiet)
    expected = (
        oracle.be32(CLIENT).to_bytes(4, "little")
        + oracle.be32(VIP).to_bytes(4, "little")
        + ALICE.port.to_bytes(2, "big")
        + VIP_PORT.to_bytes(2, "big")
        + (0).to_bytes(4, "little")  # the first route
        + backend_number(quiet).to_bytes(2, "little")
        + bytes([quiet.object.btf.enum("verdict")["ROUTED_FIRST"], quiet.ids.vips["shop"]])
    )
    after_cpu = (
        ALICE.data(HEAD).seq.to_bytes(4, "little")
        + len(HEAD).to_bytes(2, "little")
        + bytes([PSH | ACK, quiet.object.btf.enum("method")["METHOD_GET"]])
        + FOLLOWED.to_bytes(4, "little")
        + bytes(4)
    )
    assert len(record) == EVENT_BYTES
    assert record[8:28] == expected
    assert record[32:] == after_cpu


def backend_number(router: Router) -> int:
    weights = {backend.name: backend.weight for backend in router.config.clusters[0].backends}
    name = oracle.maglev_table(weights)[oracle.maglev_slot(ALICE.tuple)]
    assert name is not None
    return router.ids.backend(router.config, name)


def test_nobody_else_is_told(quiet: Router, reader: EventReader) -> None:
    with reader.following(IPv4Address(CLIENT)):
        run(quiet, BOB.syn(), BOB.data(HEAD))
        assert reader.poll(0) == []


def test_of_one_port_only_that_connection_is(quiet: Router, reader: EventReader) -> None:
    other = Connection(port=ALICE.port + 1)
    with reader.following(IPv4Address(CLIENT), ALICE.port):
        run(quiet, other.syn(), ALICE.syn(), other.data(HEAD))
        assert [event.client_port for event in reader.poll(0)] == [ALICE.port]


@pytest.mark.parametrize("port", [0, ALICE.port])
def test_afterwards_nothing_is(quiet: Router, reader: EventReader, port: int) -> None:
    with reader.following(IPv4Address(CLIENT), port):
        pass
    run(quiet, *conversation())
    assert reader.poll(0) == []
    assert quiet.object.maps["follow"].lookup(0)["enabled"] == 0


def test_a_new_router_follows_nobody(quiet: Router) -> None:
    assert quiet.object.maps["follow"].lookup(0) == {"client": 0, "port": 0, "enabled": 0, "reserved": 0, "lost": 0}


def test_what_is_no_well_formed_tcp_has_neither_flags_nor_length(quiet: Router, reader: EventReader) -> None:
    """Nor those of the packet before it."""
    with reader.following(IPv4Address(CLIENT)):
        run(quiet, ALICE.data(HEAD), ALICE.data(HEAD, tcp={"dataofs": 4}), ALICE.data(HEAD, ip={"flags": "MF"}))
        events = reader.poll(0)[1:]
    assert [(event.verdict, *told(event)[2:], event.flags, event.seq) for event in events] == [
        ("DROP_MALFORMED", 0, None, 0, 0),
        ("DROP_FRAGMENT", 0, None, 0, 0),
    ]


def test_the_method_is_the_requests(quiet: Router, reader: EventReader) -> None:
    """Not one that an earlier packet of the CPU's had."""
    post = request("/api", method="POST")
    with reader.following(IPv4Address(CLIENT)):
        run(quiet, ALICE.data(post), ALICE.ack(len(post)), ALICE.later(HEAD, len(post)))
        assert [event.method for event in reader.poll(0)] == ["POST", None, "GET"]


def test_what_is_told_anyway_is_told_once_and_says_both() -> None:
    """Counters of events are those of the packets whose turn it was."""
    everything = EventRates(rate=1_000_000, burst=100_000)
    with loaded(observation=Observation(events=everything)) as router, EventReader(router) as one:
        with one.following(IPv4Address(CLIENT)):
            run(router, ALICE.syn(), ALICE.data(HEAD))
            run(router, BOB.data(HEAD))
        events = one.poll(0)
        assert [(event.verdict, event.sampled, event.followed) for event in events] == [
            ("TX_SYN_ACK", False, True),
            ("ROUTED_FIRST", True, True),
            ("ROUTED_FIRST", True, False),
        ]
        counts = router.event_counts()
        assert counts["routed"] == EventCounts(told=2, limited=0, lost=0)
        assert counts["answered"] == EventCounts(0, 0, 0)


def test_no_rate_limits_what_is_followed_and_what_finds_no_room_is_counted(quiet: Router, reader: EventReader) -> None:
    with reader.following(IPv4Address(CLIENT)):
        quiet.object.programs["rauta_ingress"].test_run(bytes(ALICE.ack(7)), repeat=20_000)
        lost = reader.follow_lost
        assert lost > 10_000
        assert len(reader.poll(0)) + lost == 20_000
        assert counted(quiet.counters()) == {"DROP_NO_FLOW": 20_000}
        assert quiet.event_counts()["dropped"] == EventCounts(0, 0, 0)
    with reader.following(IPv4Address(CLIENT)):
        assert reader.follow_lost == 0


def test_a_refusal_is_told(quiet: Router, reader: EventReader) -> None:
    with reader.following(IPv4Address(CLIENT)):
        run(quiet, ALICE.data(request("//")))
        assert [told(event) for event in reader.poll(0)] == [("PSH ACK", "TX_BAD_REQUEST", len(request("//")), None)]


def test_events_and_their_followers_are_two_words() -> None:
    with loaded() as router:
        assert router.object.btf.enum("event_reason") == {"EVENT_SAMPLED": SAMPLED, "EVENT_FOLLOWED": FOLLOWED}
