"""Encapsulation: the packet as it came, behind an outer header whose source spreads the load."""

import random
from collections.abc import Iterator

import pytest

from packets import oracle
from packets.bench import Router, entry
from packets.frames import Connection, Segment, request
from packets.oracle import Route

ALICE = Connection()
HEAD = request("/")
ROOM = oracle.PATH_MTU - 20  # for the inner packet


@pytest.fixture(scope="module", params=[("198.19.128.0", "255.255.128.0"), ("198.19.7.40", "255.255.255.255")])
def other_network(request: pytest.FixtureRequest) -> Iterator[Router]:
    router = Router(*request.param)
    with router.object:
        yield router


# ---- which backend, which source ------------------------------------------------------------------------


@pytest.mark.parametrize("port", [1, 255, 256, 1024, 32768, 65535, *random.Random(2).sample(range(1024, 65535), 18)])
def test_each_port_has_its_backend_and_its_outer_source(router: Router, port: int) -> None:
    router.opens(Connection(port=port).data(HEAD), "web")


@pytest.mark.parametrize("client", ["10.0.0.1", "1.0.0.10", "255.255.255.254", "128.0.0.1", "172.16.200.7", "8.8.8.8"])
def test_so_has_each_client(router: Router, client: str) -> None:
    router.opens(Connection(client=client).data(HEAD), "web")


def test_weights_decide_how_often_a_backend_is_chosen(router: Router) -> None:
    router.route(Route("skewed", prefix="/"))
    connections = [Connection(port=port) for port in random.Random(3).sample(range(1024, 65535), 60)]
    for connection in connections:
        router.opens(connection.data(HEAD), "skewed")
    chosen = [router.backend_of("skewed", connection) for connection in connections]
    assert chosen.count("large") > chosen.count("middle") > chosen.count("tiny")


def test_sources_come_from_the_configured_network(other_network: Router) -> None:
    """A wider one, and a single address."""
    for port in random.Random(4).sample(range(1024, 65535), 16):
        other_network.opens(Connection(port=port).data(HEAD), "web")


def test_all_packets_of_a_connection_have_the_same_source_and_backend(router: Router) -> None:
    backend = router.backend_of("web", ALICE)
    router.forwards(ALICE.data(HEAD), "ROUTED_FIRST", backend, opens=True)
    router.forwards(ALICE.ack(len(HEAD), acked=300), "FORWARDED", backend)
    router.forwards(ALICE.data(HEAD, len(HEAD), acked=300), "ROUTED_NEXT", backend)
    router.forwards(ALICE.fin(2 * len(HEAD), acked=600), "FORWARDED_CLOSE", backend)


# ---- the outer header -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tos", [0, 1, 2, 3, 0x10, 0x2E << 2, 0xFF])
def test_the_type_of_service_is_copied(router: Router, tos: int) -> None:
    router.opens(ALICE.data(HEAD, ip={"tos": tos}), "web")


@pytest.mark.parametrize("ip", [{"ttl": 1}, {"ttl": 255}, {"flags": 0}, {"id": 0}, {"id": 0xFFFF}], ids=str)
def test_nothing_else_is_copied(router: Router, ip: dict[str, int]) -> None:
    router.opens(ALICE.data(HEAD, ip=ip), "web")


def test_only_the_first_request_opens(router: Router) -> None:
    backend = router.backend_of("web", ALICE)
    router.forwards(ALICE.data(HEAD), "ROUTED_FIRST", backend, opens=True)
    router.forwards(ALICE.data(HEAD), "FORWARDED_AGAIN", backend, opens=True)
    router.forwards(ALICE.later(HEAD, len(HEAD)), "ROUTED_NEXT", backend, opens=False)
    router.forwards(ALICE.later(HEAD, len(HEAD)), "FORWARDED_AGAIN", backend, opens=False)


# ---- the inner packet -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tcp", [{"chksum": 0x1234}, {"reserved": 7}, {"urgptr": 9}, {"window": 0}], ids=str)
def test_the_packet_is_left_as_it_is(router: Router, tcp: dict[str, int]) -> None:
    router.opens(ALICE.data(HEAD, tcp=tcp), "web")


def test_a_wrong_checksum_stays_wrong(router: Router) -> None:
    router.opens(ALICE.data(HEAD, ip={"chksum": 0xBAD}, tcp={"chksum": 0xBAD}), "web")


@pytest.mark.parametrize("padding", [1, 2, 6, 18, 46])
def test_padding_is_cut_off(router: Router, padding: int) -> None:
    router.put_flow(ALICE, **entry(ALICE.data(HEAD), "web", "web-1"))
    router.forwards(ALICE.ack(len(HEAD), options=b"", padding=b"\xee" * padding), "FORWARDED", "web-1")
    router.opens(Connection(port=50001).data(HEAD, padding=b"\xee" * padding), "web")


# ---- size -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 64, 100, 1000, ROOM - 52 - 1, ROOM - 52])
def test_segments_of_any_length_are_carried(router: Router, length: int) -> None:
    head = request("/", "Content-Length: 100000", method="POST")
    router.put_flow(ALICE, **entry(ALICE.data(head), "web", "web-2", body=100_000))
    router.forwards(ALICE.data(b"b" * length, len(head), flags="A"), "FORWARDED", "web-2")


@pytest.mark.parametrize("length", [ROOM - 52 + 1, ROOM - 52 + 20])
def test_of_what_would_exceed_the_path_its_client_is_told(router: Router, length: int) -> None:
    """And dropped where nobody asked: a packet that may be fragmented."""
    head = request("/", "Content-Length: 100000", method="POST")
    router.put_flow(ALICE, **entry(ALICE.data(head), "web", "web-2", body=100_000))
    router.finds_too_big(ALICE.data(b"b" * length, len(head), flags="A"))
    router.drops(ALICE.data(b"b" * length, len(head), flags="A", ip={"flags": 0}), "DROP_TOO_BIG")


@pytest.mark.parametrize("excess", [0, 1])
def test_so_is_a_first_request_that_is_too_big(router: Router, excess: int) -> None:
    head = request("/", "Content-Length: 5000", method="POST")
    segment = ALICE.data(head + b"b" * (ROOM - 52 + excess - len(head)))
    assert len(segment.packet) == ROOM + excess
    if excess:
        router.finds_too_big(segment)
    else:
        router.opens(segment, "web")


LATER = {
    "acknowledgement": ALICE.ack(len(HEAD)),
    "retransmission": ALICE.data(HEAD),
    "next request": ALICE.later(HEAD, len(HEAD)),
    "end": ALICE.fin(len(HEAD)),
    "reset": ALICE.rst(len(HEAD)),
}


# ---- what is dropped leaves the flow table as it was: or its bytes to come would count as a body --------

BIG_POST = request("/", "Content-Length: 100000", method="POST")
BIG_POST += b"b" * (ROOM - 52 + 1 - len(BIG_POST))


def test_a_first_request_that_is_too_big_makes_no_entry(router: Router) -> None:
    router.finds_too_big(ALICE.data(BIG_POST))
    assert router.flows() == 0


def test_it_does_not_replace_an_older_connections_entry(router: Router) -> None:
    """Which would forward what comes at the older one's numbers."""
    before = entry(ALICE.data(HEAD), "web", "web-1")
    router.put_flow(ALICE, **before)
    router.finds_too_big(ALICE.reopened(ALICE.isn + 5000).data(BIG_POST))
    assert router.flow(ALICE) == before
    router.orders(ALICE.later(request("/api"), len(HEAD)), "ROUTED_MOVED", "web-1", "api-1")


def test_a_later_request_that_is_too_big_does_not_become_the_newest(router: Router) -> None:
    before = entry(ALICE.data(HEAD), "web", "web-1")
    router.put_flow(ALICE, **before)
    router.finds_too_big(ALICE.later(BIG_POST, len(HEAD)))
    assert router.flow(ALICE) == before
    router.orders(ALICE.later(request("/api"), len(HEAD)), "ROUTED_MOVED", "web-1", "api-1")


def test_an_end_that_is_too_big_closes_nothing(router: Router) -> None:
    body = b"b" * (ROOM - 52 + 1)
    before = entry(ALICE.data(HEAD), "web", "web-1", body=len(body))
    router.put_flow(ALICE, **before)
    router.finds_too_big(ALICE.fin(len(HEAD), payload=body))
    assert router.flow(ALICE) == before


def test_a_first_request_for_a_backend_that_is_gone_makes_no_entry(router: Router) -> None:
    router.retire(router.backend_of("web", ALICE))
    router.drops(ALICE.data(HEAD), "DROP_NO_BACKEND")
    assert router.flows() == 0


@pytest.mark.parametrize("segment", LATER.values(), ids=LATER)
def test_what_follows_a_backend_that_is_gone_is_dropped(router: Router, segment: Segment) -> None:
    before = entry(ALICE.data(HEAD), "web", "web-1")
    router.put_flow(ALICE, **before)
    router.retire("web-1")
    router.drops(segment, "DROP_NO_BACKEND")
    assert router.flow(ALICE) == before
