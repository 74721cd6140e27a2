"""Events: what is told of a packet, how many packets are, and what becomes of those that are too many."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from typing import Any

import pytest

from packets import oracle
from packets.bench import RESETTING_PORT, RESETTING_VIP
from packets.frames import CLIENT, CLIENT_MAC, ROUTER_MAC, VIP, VIP_PORT, Connection, Segment, ethernet, request
from packets.observed import counted, loaded, run
from rauta.errors import RautaError
from rauta.events import Event, EventReader
from rauta.observation import EventRates, Observation
from rauta.router import EventCounts, Router

ALICE = Connection()
BOB = Connection(server=RESETTING_VIP, server_port=RESETTING_PORT)
HEAD = request("/")
IPV6 = ethernet(CLIENT_MAC, ROUTER_MAC, bytes(46), ethertype=0x86DD)
STRAY = Connection(port=40009).ack(7)
EVERYTHING = EventRates(rate=1_000_000, burst=100_000)


@pytest.fixture(scope="module")
def talking() -> Iterator[Router]:
    """A router that tells everything."""
    with loaded(observation=Observation(events=EVERYTHING)) as router:
        yield router


@pytest.fixture
def told(talking: Router) -> Iterator[Callable[..., list[Event]]]:
    """`told(frames)`: the events about them, of a router that knows no connection before the first one."""
    talking.object.maps["flows"].clear()
    with EventReader(talking) as reader:
        assert reader.poll(0) == []

        def tell(*frames: Segment | bytes) -> list[Event]:
            run(talking, *frames)
            return reader.poll(0)

        yield tell


Tell = Callable[..., list[Event]]


# ---- what is told ---------------------------------------------------------------------------------------


def test_a_routed_request_is_told_with_its_route_and_its_backend(talking: Router, told: Tell) -> None:
    earliest = time.monotonic_ns()
    (event,) = told(ALICE.data(HEAD))
    assert earliest <= event.time_ns <= time.monotonic_ns()
    assert (event.client, event.client_port) == (IPv4Address(CLIENT), ALICE.port)
    assert (event.server, event.server_port) == (IPv4Address(VIP), VIP_PORT)
    assert (event.verdict, event.vip) == ("ROUTED_FIRST", "shop")
    assert event.route == talking.config.vips[0].routes[0]
    assert event.backend == talking_backend(talking, ALICE)
    assert event.cpu in os.sched_getaffinity(0)


def talking_backend(router: Router, connection: Connection) -> str:
    """Whom Maglev names, by the oracle."""
    weights = {backend.name: backend.weight for backend in router.config.clusters[0].backends}
    name = oracle.maglev_table(weights)[oracle.maglev_slot(connection.tuple)]
    assert name is not None
    return name


def test_so_is_a_later_one(talking: Router, told: Tell) -> None:
    first, second = told(ALICE.data(HEAD), ALICE.later(HEAD, len(HEAD)))
    assert (second.verdict, second.route, second.backend) == ("ROUTED_NEXT", first.route, first.backend)


def test_a_request_for_another_cluster_is_told_with_its_own_route(talking: Router, told: Tell) -> None:
    """And no backend if it goes to none."""
    _, event = told(ALICE.data(HEAD), ALICE.later(request("/api", method="POST"), len(HEAD)))
    assert event.verdict == "ROUTED_NEXT"  # of the same cluster
    _, event = told(BOB.data(request("/open")), BOB.later(request("/drained"), len(request("/open"))))
    assert (event.verdict, event.vip, event.backend) == ("TX_UNAVAILABLE", "strict", None)
    assert event.route == talking.config.vips[1].routes[1]


def test_a_request_that_moves_its_connection_is_told_with_its_route_and_its_new_backend(
    talking: Router, told: Tell
) -> None:
    _, event = told(ALICE.data(HEAD), ALICE.later(request("/api"), len(HEAD)))
    assert (event.verdict, event.backend, event.route) == ("ROUTED_MOVED", "api-1", talking.config.vips[0].routes[1])


STRANGE = {
    "DROP_NO_FLOW": STRAY,
    "DROP_FLAGS": Connection(port=40009).data(HEAD, flags="SA"),
    "DROP_IP_OPTIONS": Connection(port=40009).data(HEAD, ip={"options": b"\1\1\1\0"}),
    "DROP_MALFORMED": Connection(port=40009).data(HEAD, tcp={"dataofs": 4}),
    "TX_NO_ROUTE": Connection(port=40009).data(request("/", host="closed.test")),
    "TX_BAD_REQUEST": Connection(port=40009).data(request("//")),
    "TX_RESET_NOT_HTTP": Connection(port=40009).data(b"\x16\x03\x01\x02\x00\x01"),
}


@pytest.mark.parametrize(("verdict", "segment"), STRANGE.items(), ids=STRANGE)
def test_what_is_dropped_answered_or_reset_is_told_without_a_route(told: Tell, verdict: str, segment: Segment) -> None:
    (event,) = told(segment)
    assert (event.verdict, event.vip, event.route, event.backend) == (verdict, "shop", None, None)
    assert (event.client, event.client_port, event.server_port) == (IPv4Address(CLIENT), 40009, VIP_PORT)


def test_of_a_request_that_is_too_big_route_and_backend_are_told(talking: Router, told: Tell) -> None:
    (event,) = told(ALICE.data(request("/", f"X: {'x' * 1400}")))
    assert (event.verdict, event.route) == ("TX_TOO_BIG", talking.config.vips[0].routes[0])
    assert event.backend == talking_backend(talking, ALICE)


def test_tags_are_no_part_of_what_is_told(talking: Router, told: Tell) -> None:
    """Also if they are cut: then nothing is known, not what an earlier packet was."""
    frame = bytes(ALICE.data(HEAD))
    first, cut = told(frame[:12] + b"\x81\x00\x00\x07" + frame[12:], frame[:12] + b"\x81\x00")
    assert (first.verdict, first.vip, first.client_port) == ("ROUTED_FIRST", "shop", ALICE.port)
    assert (cut.verdict, cut.vip, cut.route, cut.backend) == ("DROP_NO_ROOM", "", None, None)
    assert (cut.client, cut.client_port) == (IPv4Address("0.0.0.0"), 0)
    assert talking.counters_by_vip()[""]["DROP_NO_ROOM"] == 1


def test_a_fragment_has_no_ports_and_so_no_vip(told: Tell) -> None:
    (event,) = told(ALICE.data(HEAD, ip={"flags": "MF"}))
    assert (event.verdict, event.vip) == ("DROP_FRAGMENT", "")
    assert (event.client, event.client_port) == (IPv4Address(CLIENT), 0)
    assert (event.server, event.server_port) == (IPv4Address(VIP), 0)


@pytest.fixture
def with_fallback(talking: Router) -> Iterator[Router]:
    """The shop has one: the router's own host, as a backend of its own."""
    vips = talking.object.maps["vips"]
    local = {"address": oracle.be32("198.18.0.2"), "interface": oracle.BACKEND_LOCAL}
    talking.object.maps["backends"].update(oracle.FALLBACK_BACKEND, local)
    key = oracle.vip_key(VIP, VIP_PORT)
    before = vips.lookup(key)
    vips.update(key, before | {"fallback": 1})
    yield talking
    vips.update(key, before)


def test_a_connection_that_the_fallback_gets_is_told_once(with_fallback: Router, told: Tell) -> None:
    """Not every packet of it."""
    before = with_fallback.event_counts()["fallback"].told
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03"
    rest = (ALICE.data(hello), ALICE.ack(len(hello)), ALICE.data(b"more", len(hello)), ALICE.fin(len(hello) + 4))
    events = told(ALICE.data(hello), *rest)
    assert [(event.verdict, event.vip, event.route) for event in events] == [("FALLBACK_TLS", "shop", None)]
    assert with_fallback.event_counts()["fallback"].told == before + 1


def test_what_is_ordinary_is_not_told(told: Tell) -> None:
    """Handshakes, acknowledgements and bodies; and what is none of the router's business."""
    first = ALICE.data(HEAD)
    handshake = (ALICE.syn(), ALICE.ack(), ALICE.ack(-1), ALICE.fin())
    assert told(*handshake, IPV6) == []
    events = told(first, first, ALICE.ack(len(HEAD)), ALICE.fin(len(HEAD)))
    assert [event.verdict for event in events] == ["ROUTED_FIRST"]


# ---- how many are told ----------------------------------------------------------------------------------


def no_events(router: Router) -> dict[str, EventCounts]:
    return dict.fromkeys(router.event_counts(), EventCounts(0, 0, 0))


def test_nothing_is_told_unless_asked_for() -> None:
    with loaded() as router:
        run(router, ALICE.data(HEAD), STRAY)
        assert router.event_counts() == no_events(router)
        with pytest.raises(RautaError, match=r"this router tells no events\nLoad it with Observation\(events="):
            EventReader(router)


def flood(router: Router, seconds: float) -> None:
    """Packets to be dropped, as fast as they can be, for at least so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        router.object.programs["rauta_ingress"].test_run(bytes(STRAY), repeat=10_000)


@pytest.mark.usefixtures("one_cpu")
def test_a_flood_of_dropped_packets_is_told_at_the_rate_and_no_faster() -> None:
    """That the burst is a second's worth makes up for pauses of the flood.

    Every packet is told or limited, and counted as such; the reader gets what is told.
    """
    rates = EventRates(rate=200, burst=200)
    with loaded(observation=Observation(events=rates)) as router, EventReader(router) as reader:
        begun = time.monotonic()
        flood(router, 0.1)
        first = router.event_counts()["dropped"]
        flood(router, 1.5)
        counts = router.event_counts()["dropped"]
        allowed = 200 + 200 * (time.monotonic() - begun) + 2
        assert first.told >= 200
        assert first.told + 0.8 * 200 * 1.5 <= counts.told <= allowed
        assert counts.told + counts.limited == router.counters()["DROP_NO_FLOW"] > 20_000
        events = reader.poll(0)
        assert (len(events), counts.lost) == (counts.told, 0)
        assert {event.verdict for event in events} == {"DROP_NO_FLOW"}


@pytest.mark.usefixtures("one_cpu")
def test_a_flood_of_dropped_packets_hides_no_request() -> None:
    with loaded(observation=Observation(events=EventRates(rate=10, burst=5))) as router, EventReader(router) as reader:
        router.object.programs["rauta_ingress"].test_run(bytes(STRAY), repeat=10_000)
        run(router, *(Connection(port=port).data(HEAD) for port in range(41000, 41005)))
        assert [event.verdict for event in reader.poll(0)].count("ROUTED_FIRST") == 5
        assert router.event_counts()["routed"] == EventCounts(told=5, limited=0, lost=0)


@pytest.mark.usefixtures("one_cpu")
def test_one_of_so_many_packets_has_its_turn() -> None:
    """4,096 of 65,536 stray packets, as in the test of the times; of refused ones, none."""
    rates = EventRates(rate=1_000_000, burst=100_000, dropped=16, answered=0)
    with loaded(observation=Observation(events=rates)) as router, EventReader(router):
        router.object.programs["rauta_ingress"].test_run(bytes(STRAY), repeat=65_536)
        run(router, *(Connection(port=port).data(request("//")) for port in range(41000, 41050)))
        counts = router.event_counts()
        assert abs(counts["dropped"].told + counts["dropped"].lost - 4096) < 250
        assert counts["answered"] == EventCounts(0, 0, 0)


@pytest.mark.usefixtures("one_cpu")
def test_what_finds_no_room_is_counted_as_lost_and_slows_nothing() -> None:
    """Nobody reads: the buffer fills, and the packets' verdicts are the same."""
    with loaded(observation=Observation(events=EVERYTHING)) as router:
        router.object.programs["rauta_ingress"].test_run(bytes(STRAY), repeat=20_000)
        counts = router.event_counts()["dropped"]
        assert counted(router.counters()) == {"DROP_NO_FLOW": 20_000}
        assert counts.told + counts.lost == 20_000
        assert counts.lost > 10_000
        with EventReader(router) as reader:
            assert len(reader.poll(0)) == counts.told
            run(router, STRAY)
            assert len(reader.poll(0)) == 1


@pytest.mark.parametrize(
    ("settings", "name"), [({"rate": 0}, "rate"), ({"burst": 0}, "burst"), ({"dropped": -1}, "dropped")]
)
def test_rates_that_cannot_be(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(RautaError, match=f"setting {name}: .* is out of range"):
        EventRates(**settings)
