"""Agents move a connection: the old backend's obeys a router's order, the new one's goes on with it.

docs/handover.md says why. Sockets are real ones, made established by TCP_REPAIR. What the agent sends besides, and what
it sends round through ingress, is heard on the loopback. That the new socket opens, test_follow.py shows.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from packets import oracle
from packets.bench import TC_ACT_REDIRECT, TC_ACT_SHOT, Agent
from packets.frames import (
    BACKEND_MAC,
    CLIENT,
    LOCAL,
    LOCAL_PORT,
    ROUTER_MAC,
    SECOND_VIP,
    SECOND_VIP_PORT,
    VIP,
    VIP_PORT,
    Connection,
    Segment,
    carried,
    carried_packet,
    clearing,
    delivered,
    ethernet,
    ordered,
    request,
    shimmed,
)
from packets.oracle import (
    MAPPING_CLEARING,
    MAPPING_MOVED,
    MAPPING_OPEN,
    MAPPING_OPENING,
    MARK_LATER,
    MARK_MAGIC,
    MARK_RESET,
    SHIM_LIFETIME,
    Shim,
    Tuple,
)
from packets.sockets import SO_TCP, TCP_RECV_QUEUE, TCP_REPAIR_QUEUE, listening, waiting
from packets.test_agent_asks import carry, established
from packets.test_agent_egress import Response

pytestmark = pytest.mark.usefixtures("server_address")

ALICE = Connection()
LOCAL_TUPLE = Tuple(CLIENT, ALICE.port, LOCAL, LOCAL_PORT)
ROUTER, TARGET = "198.19.0.77", "198.18.0.13"
"""the outer source of the router's packets, and the address of the new backend"""
HEAD = request("/")
API = request("/api", "Content-Length: 900", method="POST")
ASKS = ALICE.later(API, len(HEAD))
"""the request that is to move the connection"""
HANDED_ON_TTL = 32  # of the 64 that a router gives
TCP_TIMESTAMP = 24  # include/uapi/linux/tcp.h
PACKET_OUTGOING = 4

RESTING = {
    "request": ALICE.start,
    "sent": ASKS.ack,
    "asked": 1,
    "answered": 1,
    "options": ALICE.cookie & 0xFF,
    "origin": ALICE.cookie,
}
"""of the mapping: one request, and its answer, which the client has got"""
TOMBSTONE = RESTING | {"target": oracle.be32(TARGET), "request": ASKS.seq, "clock": 0x1234_5678, "age": 7}


def order(segment: Segment = ASKS, kind: int = oracle.SHIM_MOVE, **changes: Any) -> Shim:
    """A router's order to hand the connection over to TARGET with that segment; `changes` are under its tag."""
    made = Shim(
        kind=kind,
        four=segment.connection.tuple,
        seq=segment.seq,
        ack=segment.ack,
        source=ROUTER,
        destination=LOCAL,
        first=oracle.be32(TARGET),
        second=ALICE.cookie,
        time=oracle.shim_time(),
    )
    return replace(made, **changes)


def adoption(segment: Segment = ASKS, **changes: Any) -> Shim:
    """What the old backend's agent says to the one on this host: go on with the connection."""
    said = {"first": 0x1234_5678, "second": ALICE.cookie, "options": ALICE.cookie & 0xFF, "trip": 7}
    return order(segment, oracle.SHIM_ADOPT, **said | changes)


def frame_of(shim: Shim, segment: Segment = ASKS, outer_id: int = 0) -> bytes:
    """As it reaches this host."""
    return ordered(segment, shim, ROUTER_MAC, BACKEND_MAC, outer_id)


@contextmanager
def resting(
    agent: Agent, *, carries: bool = True, received: int = ASKS.seq, sent: int = ASKS.ack, **fields: int
) -> Iterator[socket.socket]:
    """The connection's socket, with nothing under way; `fields` of its mapping are to differ.

    Only the map has that, or the socket `carries` it itself.
    """
    with established(received=received, sent=sent) as sock:
        if carries:
            carry(agent, sock, **RESTING | fields)
        else:
            agent.put_mapping(LOCAL_TUPLE, ALICE, **RESTING | fields)
        yield sock


@pytest.fixture
def wire() -> Iterator[socket.socket]:
    """Hears all that goes through the loopback."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as sock:
        sock.bind(("lo", 0x0003))
        yield sock


def heard(wire: socket.socket) -> tuple[list[bytes], list[bytes]]:
    """What has been sent since; and what has come in by itself, as the agent sends it round."""
    sent, came = [], []
    while select.select([wire], [], [], 0.05)[0]:
        frame, where = wire.recvfrom(65535)
        (sent if where[2] == PACKET_OUTGOING else came).append(frame)
    return sent, [frame for frame in came if frame not in sent]


def notice(segment: Segment = ASKS, *, moved: Segment = ASKS, epoch: int = 0, time: int) -> bytes:
    """The frame that tells the router which request has moved the connection, in answer to an order with `segment`."""
    numbers = {"seq": moved.seq, "ack": moved.ack, "first": moved.seq, "second": moved.ack}
    said = order(segment, oracle.SHIM_MOVED, source=LOCAL, destination=ROUTER, flags=epoch, time=time, **numbers)
    return ordered(segment, said, BACKEND_MAC, ROUTER_MAC)


def shim_of(frame: bytes) -> tuple[int, int, int]:
    """Of a frame with a shim: its time, the round trip, and the first number."""
    number = [int.from_bytes(frame[34 + at : 34 + at + size], "little") for at, size in ((4, 2), (6, 2), (8, 4))]
    return number[0], number[1], number[2]


def tells(wire: socket.socket, segment: Segment = ASKS, **said: Any) -> list[bytes]:
    """Of all that has been sent, it is just the notice; what has come in."""
    sent, came = heard(wire)
    assert len(sent) == 1
    expected = notice(segment, time=shim_of(sent[0])[0], **said)
    assert sent[0].hex(" ") == expected.hex(" ")
    assert (oracle.shim_time() - shim_of(sent[0])[0]) & 0xFFFF <= 2
    return came


def obeys(
    agent: Agent, shim: Shim, verdict: str = "AGENT_ORDERED", *, segment: Segment = ASKS, epoch: int = 0, **known: int
) -> tuple[int, int]:
    """The order goes on to TARGET as the one to go on; what that says of the round trip and the clock.

    `known` is what it is to say in any case.
    """
    code, output = agent.run("rauta_agent_ingress", frame_of(shim, segment), verdict)
    when, trip, clock = shim_of(output)
    assert (oracle.shim_time() - when) & 0xFFFF <= 1
    said = {"first": clock, "trip": trip, "second": ALICE.cookie, "options": ALICE.cookie & 0xFF} | known
    flags = epoch | shim.flags & oracle.SHIM_HEAD
    expected = replace(shim, kind=oracle.SHIM_ADOPT, destination=TARGET, time=when, flags=flags, **said)
    assert goes_out(code, output) == shimmed(segment.packet, expected).hex(" ")
    return trip, clock


def goes_out(code: int, output: bytes) -> str:
    """The packet that goes out again. The MAC addresses are the kernel's to fill in, as it knows its neighbours."""
    assert (code, output[12:14]) == (TC_ACT_REDIRECT, b"\x08\x00")
    return output[14:].hex(" ")


def state_of(agent: Agent, sock: socket.socket) -> Any:
    return agent.object.maps["connections"].lookup(sock.fileno())


# ---- an order is carried out ----------------------------------------------------------------------------


@pytest.mark.parametrize("carries", [True, False])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_connection_at_rest_is_handed_over(agent: Agent, wire: socket.socket, carries: bool, method: str) -> None:
    segment = ALICE.later(request("/api", method=method), len(HEAD))
    shim = order(segment, flags=oracle.SHIM_HEAD if method == "HEAD" else 0)
    with resting(agent, carries=carries) as sock:
        trip, clock = obeys(agent, shim, segment=segment)
        assert tells(wire, segment, moved=segment) == [frame_of(shim, segment)]
        if carries:
            assert state_of(agent, sock)["state"] == MAPPING_MOVED
    tombstone = agent.mapping(LOCAL_TUPLE)
    assert tombstone is not None
    numbers = {"request": segment.seq, "sent": segment.ack, "heads": int(method == "HEAD"), "clock": clock, "age": trip}
    expected = RESTING | numbers | {"state": MAPPING_MOVED, "isn": ALICE.isn, "cookie": ALICE.cookie}
    expected |= {"target": oracle.be32(TARGET), "vip": oracle.be32(VIP), "vip_port": oracle.be16(VIP_PORT)}
    assert {name: tombstone[name] for name in expected} == expected


@pytest.mark.parametrize("head", [0, oracle.SHIM_HEAD])
@pytest.mark.parametrize("route", [0x3F_FFFF, 0x2A_0000, 0x15_1234, 0x5678], ids=hex)
def test_what_an_order_says_of_the_route_goes_on_with_it(
    agent: Agent, wire: socket.socket, route: int, head: int
) -> None:
    """To the new backend, when it is carried out and when it comes again; nothing of it is in the notice's shim."""
    flags = head | oracle.brief_flags(route)
    with resting(agent):
        for verdict in ("AGENT_ORDERED", "AGENT_ORDERED_AGAIN"):
            frame = frame_of(order(flags=flags), outer_id=route & 0xFFFF)
            code, output = agent.run("rauta_agent_ingress", frame, verdict)
            when, trip, clock = shim_of(output)
            said = {"first": clock, "trip": trip, "second": ALICE.cookie, "options": ALICE.cookie & 0xFF}
            adopted = order(kind=oracle.SHIM_ADOPT, destination=TARGET, time=when, flags=flags, **said)
            assert goes_out(code, output) == shimmed(ASKS.packet, adopted, id=route & 0xFFFF).hex(" ")
    notices, _ = heard(wire)
    assert [frame[36] for frame in notices] == [0, 0]


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("used", [0, 1])
def test_either_key_is_understood_and_the_newer_is_used(
    agent: Agent, wire: socket.socket, epoch: int, used: int
) -> None:
    keys = {"key": [list(key) for key in oracle.COOKIE_KEYS]}
    agent.object.maps["cookie_keys"].update(0, keys | {"epoch": used})
    try:
        with resting(agent):
            obeys(agent, order(flags=epoch), epoch=used)
        tells(wire, epoch=used)
    finally:
        agent.object.maps["cookie_keys"].update(0, keys | {"epoch": 0})


@pytest.mark.parametrize("start", [0, 0xFFFF_FFFF, 0x7FFF_FFFF], ids=hex)
def test_numbers_may_wrap(agent: Agent, wire: socket.socket, start: int) -> None:
    segment = replace(ASKS, seq=start, ack=start)
    with resting(agent, received=start, sent=start) as sock:
        carry(agent, sock, **RESTING | {"sent": start})
        obeys(agent, order(segment), segment=segment)
    tells(wire, segment, moved=segment)


@pytest.mark.parametrize("counted", [(0, 0), (200, 200)], ids=str)
def test_so_may_the_counts(agent: Agent, counted: tuple[int, int]) -> None:
    with resting(agent, asked=counted[0], answered=counted[1]):
        obeys(agent, order())


def test_it_goes_on_with_the_sockets_clock(agent: Agent) -> None:
    """Milliseconds, from wherever the socket has them begin."""
    begin = 0xFFFF_FF00
    with resting(agent) as sock:
        sock.setsockopt(SO_TCP, TCP_TIMESTAMP, begin.to_bytes(4, "little"))
        earliest = time.monotonic_ns()
        _, clock = obeys(agent, order())
        elapsed = (time.monotonic_ns() - earliest) // 1_000_000 + 2
    assert (clock - begin) & 0xFFFF_FFFF <= elapsed + 10


def test_a_round_trip_that_was_never_measured_is_not_known(agent: Agent) -> None:
    with resting(agent):
        trip, _ = obeys(agent, order())
    assert trip == 0


def test_what_has_moved_here_moves_on(agent: Agent, wire: socket.socket) -> None:
    """Known by the numbers of the request that moved it here, and by the handshake's cookie for ever."""
    identity = {"isn": ALICE.isn + 5000, "cookie": 0xABCD_0123, "options": 0x7C, "moved": 1}
    with resting(agent) as sock:
        carry(agent, sock, **RESTING | identity)
        shim = order(second=0xABCD_0123)
        obeys(agent, shim, options=0x7C)
    tells(wire)


def test_the_clone_becomes_the_end_of_the_old_socket(agent: Agent) -> None:
    """At exactly the number that this expects."""
    mark = MARK_MAGIC | MARK_RESET | 1
    agent.passes("ingress", frame_of(order()), "AGENT_MOVED", clearing(ASKS, ASKS.seq), mark=mark)


@pytest.mark.usefixtures("device_sums")
def test_the_sum_that_a_device_has_made_of_the_packet_stays_right(agent: Agent) -> None:
    """Or the kernel blames the device ("hw csum failure") for what the agent has taken off and rewritten."""
    program = agent.object.programs["rauta_agent_ingress"]
    assert program.test_run(frame_of(adoption()), checksum_complete=True).data == delivered(ASKS)
    agent.put_mapping(LOCAL_TUPLE, ALICE, **RESTING)
    assert program.test_run(frame_of(order()), checksum_complete=True).data == delivered(ASKS)
    with resting(agent, pinned=1):
        ended = program.test_run(frame_of(order()), checksum_complete=True)
    assert ended.data == clearing(ASKS, ASKS.seq)


# ---- it has to be at rest -------------------------------------------------------------------------------

BUSY: dict[str, dict[str, int]] = {
    "a byte before it is missing": {"received": ASKS.seq - 1 & 0xFFFFFFFF},
    "it has been received already": {"received": ASKS.seq + len(API) & 0xFFFFFFFF},
    "the server has written more": {"sent_by_socket": ASKS.ack + 1},
    "the client has got more": {"sent_by_socket": ASKS.ack - 1},
    "more has left": {"sent": ASKS.ack + 1},
    "less has left": {"sent": ASKS.ack - 1},
    "a request has no answer": {"asked": 2},
    "many have none": {"asked": 0},
    "it has not opened": {"state": MAPPING_OPENING},
    "it is being cleared": {"state": MAPPING_CLEARING},
}


@pytest.mark.parametrize("carries", [True, False])
@pytest.mark.parametrize("change", BUSY.values(), ids=BUSY)
def test_until_it_is_at_rest_nothing_happens(
    agent: Agent, wire: socket.socket, change: dict[str, int], carries: bool
) -> None:
    fields = dict(change)
    numbers = {"received": fields.pop("received", ASKS.seq), "sent": fields.pop("sent_by_socket", ASKS.ack)}
    with established(**numbers) as sock:
        if carries:
            carry(agent, sock, **RESTING | fields)
        else:
            agent.put_mapping(LOCAL_TUPLE, ALICE, **RESTING | fields)
        before = agent.mapping(LOCAL_TUPLE), state_of(agent, sock)
        agent.drops("ingress", frame_of(order()), "AGENT_DROP_BUSY")
        assert (agent.mapping(LOCAL_TUPLE), state_of(agent, sock)) == before
    assert heard(wire) == ([], [])


def test_nor_while_it_is_being_moved(agent: Agent, wire: socket.socket) -> None:
    """By another CPU: the map has no tombstone yet."""
    with resting(agent, state=MAPPING_MOVED):
        agent.drops("ingress", frame_of(order()), "AGENT_DROP_BUSY")
    assert heard(wire) == ([], [])


def test_nor_before_the_server_has_read_everything(agent: Agent, wire: socket.socket) -> None:
    """A body, which would be lost with the socket."""
    with resting(agent, received=ASKS.seq - 10) as sock:
        sock.setsockopt(SO_TCP, TCP_REPAIR_QUEUE, TCP_RECV_QUEUE)
        sock.send(b"b" * 10)
        agent.drops("ingress", frame_of(order()), "AGENT_DROP_BUSY")
        assert state_of(agent, sock)["state"] == MAPPING_OPEN
    assert heard(wire) == ([], [])


def test_nor_if_something_has_come_behind_it(agent: Agent) -> None:
    """Which the socket has acknowledged."""
    with resting(agent) as sock:
        sock.setsockopt(SO_TCP, TCP_REPAIR_QUEUE, TCP_RECV_QUEUE)
        sock.send(b"b" * 10)
        agent.drops("ingress", frame_of(order()), "AGENT_DROP_BUSY")


def test_the_next_request_is_not_the_one(agent: Agent) -> None:
    """Whose order says only that the one before it has not been heard to be done."""
    early = ALICE.later(HEAD, len(HEAD) + len(API), acked=600)
    with resting(agent) as sock:
        agent.drops("ingress", frame_of(order(early), early), "AGENT_DROP_BUSY")
        assert state_of(agent, sock)["state"] == MAPPING_OPEN


# ---- what cannot move -----------------------------------------------------------------------------------


@pytest.mark.parametrize("carries", [True, False])
def test_a_connection_whose_answers_cannot_be_followed_ends(agent: Agent, wire: socket.socket, carries: bool) -> None:
    """Its socket by a reset, and the request goes round behind that, for the kernel to refuse."""
    with resting(agent, carries=carries, pinned=1, asked=2):
        agent.passes("ingress", frame_of(order()), "AGENT_UNMOVABLE", clearing(ASKS, ASKS.seq))
        assert heard(wire) == ([], [delivered(ASKS)])
    agent.put_mapping(LOCAL_TUPLE, ALICE)
    mark = MARK_MAGIC | MARK_LATER | 1
    agent.passes("ingress", delivered(ASKS), "AGENT_DELIVERED", delivered(ASKS), mark=mark)


@pytest.mark.parametrize("missing", [1, 1000])
def test_not_before_the_socket_would_believe_the_reset(agent: Agent, wire: socket.socket, missing: int) -> None:
    """A piece of the request before is still under way. The socket would live on, and the request wait in its queue
    for that piece: the server would get what another route's backend has to answer."""
    with resting(agent, pinned=1, received=ASKS.seq - missing):
        agent.drops("ingress", frame_of(order()), "AGENT_DROP_BUSY")
    assert heard(wire) == ([], [])


@pytest.mark.parametrize("listens", [True, False])
def test_without_a_socket_the_kernel_says_that_it_is_closed(agent: Agent, listens: bool) -> None:
    agent.put_mapping(LOCAL_TUPLE, ALICE, **RESTING)
    if listens:
        with listening():
            agent.passes("ingress", frame_of(order()), "AGENT_CLOSED", delivered(ASKS))
    else:
        agent.passes("ingress", frame_of(order()), "AGENT_CLOSED", delivered(ASKS))


def test_so_it_does_from_time_wait(agent: Agent) -> None:
    with waiting(ALICE):
        agent.put_mapping(LOCAL_TUPLE, ALICE, **RESTING)
        agent.passes("ingress", frame_of(order()), "AGENT_CLOSED", delivered(ASKS))


# ---- by nobody who may order it -------------------------------------------------------------------------


def refuses(agent: Agent, frame: bytes, verdict: str = "AGENT_DROP_ORDER", **socket_fields: int) -> None:
    with resting(agent, **socket_fields) as sock:
        before = state_of(agent, sock)
        agent.drops("ingress", frame, verdict)
        assert state_of(agent, sock) == before
    assert agent.mapping(LOCAL_TUPLE) is None


@pytest.mark.parametrize("at", range(oracle.SHIM_SIZE))
def test_no_byte_of_an_order_may_be_changed(agent: Agent, at: int) -> None:
    frame = bytearray(frame_of(order()))
    frame[34 + at] ^= 0x04
    refuses(agent, bytes(frame))


INNER = 14 + 20 + oracle.SHIM_SIZE
BONDS = {
    "another router": 14 + 15,
    "another client": INNER + 15,
    "another port of the client": INNER + 21,
    "another request": INNER + 27,
    "another acknowledgement": INNER + 31,
}


@pytest.mark.parametrize("at", BONDS.values(), ids=BONDS)
def test_nor_what_it_is_about(agent: Agent, at: int) -> None:
    frame = bytearray(frame_of(order()))
    frame[at] ^= 0x01
    refuses(agent, bytes(frame))


OTHER_AGENT = order(destination="198.18.0.12")
FORGED = {
    "another agent's": ethernet(ROUTER_MAC, BACKEND_MAC, shimmed(ASKS.packet, OTHER_AGENT, dst=LOCAL)),
    "a notice": frame_of(order(kind=oracle.SHIM_MOVED)),
    "a question": frame_of(order(kind=oracle.ASK_WHOSE)),
    "another version": frame_of(order(version=2)),
    "no version": frame_of(order(version=0)),
    "another connection's": frame_of(order(second=ALICE.cookie ^ 1 << 8)),
    "with cookies' key": ethernet(
        ROUTER_MAC,
        BACKEND_MAC,
        shimmed(ASKS.packet, order())[:20] + order().sealed(oracle.COOKIE_KEYS) + ASKS.packet,
    ),
}


@pytest.mark.parametrize("frame", FORGED.values(), ids=FORGED)
def test_others_are_dropped(agent: Agent, frame: bytes) -> None:
    refuses(agent, frame)


@pytest.mark.parametrize("late", [SHIM_LIFETIME + 2, -SHIM_LIFETIME - 2, 1 << 15])
def test_so_are_those_of_another_time(agent: Agent, late: int) -> None:
    for kind in (oracle.SHIM_MOVE, oracle.SHIM_ADOPT):
        refuses(agent, frame_of(order(kind=kind, time=oracle.shim_time() - late)))


@pytest.mark.parametrize("late", [SHIM_LIFETIME - 2, 2 - SHIM_LIFETIME])
def test_for_a_minute_they_are_good(agent: Agent, late: int) -> None:
    with resting(agent):
        obeys(agent, order(time=oracle.shim_time() - late))


@pytest.mark.parametrize("other", [{"server": SECOND_VIP}, {"server_port": SECOND_VIP_PORT}], ids=str)
def test_another_vips_socket_is_another_connection(agent: Agent, other: dict[str, Any]) -> None:
    with established(received=ASKS.seq, sent=ASKS.ack) as sock:
        carry(agent, sock, replace(ALICE, **other), **RESTING | {"cookie": ALICE.cookie})
        agent.drops("ingress", frame_of(order()), "AGENT_DROP_ORDER")


def test_what_no_mapping_knows_is_no_connection(agent: Agent) -> None:
    agent.drops("ingress", frame_of(order()), "AGENT_DROP_ORDER")
    with established(received=ASKS.seq, sent=ASKS.ack):
        agent.drops("ingress", frame_of(order()), "AGENT_DROP_ORDER")
    agent.put_mapping(LOCAL_TUPLE, ALICE, cookie=ALICE.cookie ^ 1 << 8)
    agent.drops("ingress", frame_of(order()), "AGENT_DROP_ORDER")


def test_only_routers_may_order(agent: Agent) -> None:
    for kind in (oracle.SHIM_MOVE, oracle.SHIM_ADOPT):
        refuses(agent, frame_of(order(kind=kind, source="198.18.0.77")), "AGENT_DROP_SOURCE")


NOT_SERVED: dict[str, tuple[Segment, dict[str, str]]] = {
    "another host": (ASKS, {"destination": "198.18.0.12"}),
    "another VIP": (replace(ASKS, connection=replace(ALICE, server="198.18.100.99")), {}),
    "another port": (replace(ASKS, connection=replace(ALICE, server_port=81)), {}),
}


@pytest.mark.parametrize(("segment", "changes"), NOT_SERVED.values(), ids=NOT_SERVED)
def test_what_is_not_served_here_is_dropped(agent: Agent, segment: Segment, changes: dict[str, str]) -> None:
    refuses(agent, frame_of(order(segment, **changes), segment), "AGENT_DROP_NOT_SERVED")


MALFORMED = {
    "no payload": frame_of(order(ALICE.ack(len(HEAD), acked=300)), ALICE.ack(len(HEAD), acked=300)),
    "cut off in the shim": frame_of(order())[: 34 + 23],
    "cut off in the packet": frame_of(order())[:-1],
    "a fragment": ethernet(ROUTER_MAC, BACKEND_MAC, shimmed(ASKS.packet, order(), flags="MF")),
    "options outside": ethernet(ROUTER_MAC, BACKEND_MAC, shimmed(ASKS.packet, order(), options=b"\1" * 4)),
    "options inside": frame_of(order(), replace(ASKS, ip={"options": b"\1" * 4})),
    "a fragment inside": frame_of(order(), replace(ASKS, ip={"flags": "MF"})),
    "another protocol inside": frame_of(order(), replace(ASKS, ip={"proto": 17})),
    "TCP header too small": frame_of(order(), replace(ASKS, tcp={"dataofs": 4})),
}


@pytest.mark.parametrize("frame", MALFORMED.values(), ids=MALFORMED)
def test_malformed_orders_are_dropped(agent: Agent, frame: bytes) -> None:
    refuses(agent, frame, "AGENT_DROP_MALFORMED")


# ---- the tombstone --------------------------------------------------------------------------------------


def bury(agent: Agent, **fields: int) -> None:
    """The connection has moved with ASKS."""
    agent.put_mapping(LOCAL_TUPLE, ALICE, MAPPING_MOVED, **TOMBSTONE | fields)


def test_the_same_order_again_is_carried_out_again(agent: Agent, wire: socket.socket) -> None:
    with resting(agent):
        first = obeys(agent, order())
        heard(wire)
        for _ in range(2):
            assert obeys(agent, order(), "AGENT_ORDERED_AGAIN") == first
            assert tells(wire) == []


def test_what_it_says_is_what_the_tombstone_says(agent: Agent, wire: socket.socket) -> None:
    """Not what the order does, which may name somebody else by now: the request has been executed where it went."""
    bury(agent, heads=1)
    before = agent.mapping(LOCAL_TUPLE)
    shim = order(first=oracle.be32("198.18.0.14"), flags=oracle.SHIM_HEAD)
    obeys(agent, shim, "AGENT_ORDERED_AGAIN", first=0x1234_5678, trip=7)
    assert tells(wire) == []
    assert agent.mapping(LOCAL_TUPLE) == before


OTHERS = {
    "the next request": ALICE.later(HEAD, len(HEAD) + len(API), acked=600),
    "the same with another acknowledgement": replace(ASKS, ack=ASKS.ack + 1),
    "an older one": ALICE.later(HEAD, 0),
}


@pytest.mark.parametrize("segment", OTHERS.values(), ids=OTHERS)
def test_of_any_other_it_only_says_what_moved(agent: Agent, wire: socket.socket, segment: Segment) -> None:
    bury(agent)
    before = agent.mapping(LOCAL_TUPLE)
    agent.drops("ingress", frame_of(order(segment), segment), "AGENT_DROP_BUSY")
    assert tells(wire, segment) == []
    assert agent.mapping(LOCAL_TUPLE) == before


LATE = {
    "acknowledgement": ALICE.ack(len(HEAD) + len(API), acked=300),
    "part of the body": ALICE.later(b"b" * 900, len(HEAD) + len(API)),
    "odd length": ALICE.later(b"b" * 333, len(HEAD) + len(API)),
    "full segment": ALICE.later(b"b" * 1404, len(HEAD) + len(API)),
    "end": ALICE.fin(len(HEAD) + len(API)),
    "reset": ALICE.rst(len(HEAD) + len(API)),
    "type of service": ALICE.ack(len(HEAD), ip={"tos": 0xB9, "id": 0, "ttl": 1}),
}


@pytest.mark.parametrize("beyond", [0, oracle.OUTER_ID_BEYOND])
@pytest.mark.parametrize("segment", LATE.values(), ids=LATE)
def test_later_packets_are_handed_on(agent: Agent, segment: Segment, beyond: int) -> None:
    """As if the router had sent them where the connection is now, but for a time to live of half as much."""
    bury(agent)
    frame = carried(segment, id=oracle.outer_id(ALICE.cookie, opens=False) | beyond)
    code, output = agent.run("rauta_agent_ingress", frame, "AGENT_HANDED_ON")
    expected = carried_packet(segment.packet, ASKS.ack - 1, dst=TARGET, tos=segment.packet[1], ttl=HANDED_ON_TTL)
    assert goes_out(code, output) == expected[14:].hex(" ")


@pytest.mark.parametrize("ttl", [1, HANDED_ON_TTL - 1, HANDED_ON_TTL])
def test_and_not_twice(agent: Agent, ttl: int) -> None:
    """Two backends, each of which takes the other for the connection's owner, would send it to and fro."""
    bury(agent)
    frame = carried(LATE["acknowledgement"], id=oracle.outer_id(ALICE.cookie, opens=False), ttl=ttl)
    agent.drops("ingress", frame, "AGENT_DROP_UNOPENED")


def test_what_has_come_a_long_way_from_the_router_is(agent: Agent) -> None:
    bury(agent)
    frame = carried(LATE["acknowledgement"], id=oracle.outer_id(ALICE.cookie, opens=False), ttl=HANDED_ON_TTL + 1)
    code, _ = agent.run("rauta_agent_ingress", frame, "AGENT_HANDED_ON")
    assert code == TC_ACT_REDIRECT


@pytest.mark.parametrize("head", [0, oracle.OUTER_ID_HEAD])
def test_but_no_request(agent: Agent, head: int) -> None:
    """It has been routed to this backend, not to that one."""
    bury(agent)
    hint = oracle.outer_id(ALICE.cookie, opens=False) | oracle.OUTER_ID_REQUEST | head
    agent.drops("ingress", carried(OTHERS["the next request"], id=hint), "AGENT_DROP_BUSY")


@pytest.mark.parametrize("segment", LATE.values(), ids=LATE)
def test_nor_what_is_of_another_connection(agent: Agent, segment: Segment) -> None:
    bury(agent, cookie=ALICE.cookie ^ 1 << 31)
    agent.drops("ingress", carried(segment), "AGENT_DROP_UNOPENED")


@pytest.mark.parametrize("segment", [LATE["part of the body"], LATE["end"]], ids=["body", "end"])
@pytest.mark.parametrize("carries", [True, False])
def test_what_lies_behind_an_order_is_not_for_the_old_socket(agent: Agent, segment: Segment, carries: bool) -> None:
    """It has been acknowledged, then, and is lost with it."""
    frame = carried(segment, id=oracle.outer_id(ALICE.cookie, opens=False) | oracle.OUTER_ID_BEYOND)
    with resting(agent, carries=carries):
        agent.drops("ingress", frame, "AGENT_DROP_BUSY")
        agent.passes("ingress", carried(segment), "AGENT_DELIVERED", delivered(segment))


@pytest.mark.parametrize("flags", ["A", "PA", "FA", "R", "RA"])
def test_what_the_server_still_sends_is_dropped(agent: Agent, flags: str) -> None:
    """The client would take it for the other's."""
    bury(agent)
    for payload in (b"", b"HTTP/1.1 408 Request Timeout\r\n\r\n"):
        agent.drops("egress", Response(flags, payload).frame(), "AGENT_EGRESS_MUTED")


# ---- an order to go on ----------------------------------------------------------------------------------


def adopted(agent: Agent) -> dict[str, int]:
    """What the map says of the connection, by what a new one needs."""
    mapping = agent.mapping(LOCAL_TUPLE)
    assert mapping is not None
    return mapping


NEW = {
    "vip": oracle.be32(VIP),
    "vip_port": oracle.be16(VIP_PORT),
    "isn": ASKS.seq - 1,
    "cookie": ASKS.ack - 1,
    "age": 7,
    "moved": 1,
    "is_new": 0,
    "request": ASKS.seq,
    "sent": ASKS.ack,
    "left": 0,
    "heads": 0,
    "asked": 1,
    "answered": 0,
    "pinned": 0,
    "options": ALICE.cookie & 0xFF,
    "clock": 0x1234_5678,
    "origin": ALICE.cookie,
}
"""of the mapping, once the connection goes on here"""


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_listener_may_get_the_connection(agent: Agent, method: str) -> None:
    """The kernel makes none in a test run: it is asked, and refuses."""
    head = int(method == "HEAD")
    with listening():
        frame = frame_of(adoption(flags=oracle.SHIM_HEAD * head))
        agent.drops("ingress", frame, "AGENT_DROP_REFUSED")
    mapping = adopted(agent)
    expected = NEW | {"heads": head, "state": MAPPING_OPENING}
    assert {name: mapping[name] for name in expected} == expected


def test_where_nobody_listens_the_kernel_refuses_it(agent: Agent) -> None:
    agent.passes("ingress", frame_of(adoption()), "AGENT_NO_LISTENER", delivered(ASKS))
    mapping = adopted(agent)
    expected = NEW | {"state": MAPPING_OPEN}
    assert {name: mapping[name] for name in expected} == expected
    assert agent.consumed() == [oracle.fingerprint(LOCAL_TUPLE, ASKS.seq - 1, ASKS.ack - 1)]
    with listening():
        agent.drops("ingress", frame_of(adoption()), "AGENT_DROP_REPLAYED")


IDENTITY = {"isn": ASKS.seq - 1, "cookie": ASKS.ack - 1}


@pytest.mark.parametrize("state", [MAPPING_OPEN, MAPPING_OPENING])
def test_a_duplicate_goes_to_the_socket_that_it_opened(agent: Agent, state: int) -> None:
    agent.put_mapping(LOCAL_TUPLE, ALICE, state, **NEW)
    with established(received=ASKS.after, sent=ASKS.ack):
        agent.passes("ingress", frame_of(adoption()), "AGENT_OPENED_ALREADY", delivered(ASKS))


def test_and_once_that_is_gone_nowhere(agent: Agent) -> None:
    agent.consume(LOCAL_TUPLE, replace(ALICE, isn=ASKS.seq - 1))  # another cookie
    with listening():
        agent.drops("ingress", frame_of(adoption()), "AGENT_DROP_REFUSED")
    agent.reset()
    agent.passes("ingress", frame_of(adoption()), "AGENT_NO_LISTENER", delivered(ASKS))
    agent.object.maps["mappings"].clear()
    with listening():
        agent.drops("ingress", frame_of(adoption()), "AGENT_DROP_REPLAYED")


@pytest.mark.parametrize("later", [0, 1, 5000, 1 << 30])
@pytest.mark.parametrize("state", [MAPPING_MOVED, MAPPING_OPEN, MAPPING_OPENING])
def test_an_order_from_before_the_connection_was_here_is_late(agent: Agent, later: int, state: int) -> None:
    """It has gone to another backend and come back, or moved on, since."""
    agent.put_mapping(LOCAL_TUPLE, ALICE, state, **TOMBSTONE | {"request": ASKS.seq + later})
    before = agent.mapping(LOCAL_TUPLE)
    with listening():
        agent.drops("ingress", frame_of(adoption()), "AGENT_DROP_REPLAYED")
    assert agent.mapping(LOCAL_TUPLE) == before


@pytest.mark.parametrize("later", [0, 1, 5000])
def test_so_is_that_which_brought_it_here_before_it_moved_on(agent: Agent, later: int) -> None:
    bury(agent, **IDENTITY | {"moved": 1, "request": ASKS.seq + later})
    before = agent.mapping(LOCAL_TUPLE)
    with listening():
        agent.drops("ingress", frame_of(adoption()), "AGENT_DROP_REPLAYED")
    assert agent.mapping(LOCAL_TUPLE) == before


def test_one_that_brings_it_back_is_not(agent: Agent) -> None:
    bury(agent, request=ASKS.seq - 1)
    with listening():
        agent.drops("ingress", frame_of(adoption()), "AGENT_DROP_REFUSED")
    assert adopted(agent)["isn"] == ASKS.seq - 1


OLDER = {
    "another connection's": {"origin": ALICE.cookie ^ 1 << 8},
    "another VIP's": {"vip": oracle.be32(SECOND_VIP)},
}


@pytest.mark.parametrize("fields", OLDER.values(), ids=OLDER)
def test_what_else_the_tuple_remembers_refuses_nothing(agent: Agent, fields: dict[str, int]) -> None:
    bury(agent, **{"request": ASKS.seq + 5000} | fields)
    with listening():
        agent.drops("ingress", frame_of(adoption()), "AGENT_DROP_REFUSED")


def test_an_older_connections_socket_is_cleared(agent: Agent, wire: socket.socket) -> None:
    expected = 0x2233_4455
    agent.put_mapping(LOCAL_TUPLE, ALICE.reopened(ALICE.isn - 5_000_000), origin=1)
    with established(received=expected, sent=1):
        agent.passes("ingress", frame_of(adoption()), "AGENT_CLEARING", clearing(ASKS, expected))
    assert heard(wire) == ([], [delivered(ASKS)])
    mark = MARK_MAGIC | oracle.MARK_OPENS | 1
    with listening():
        agent.drops("ingress", delivered(ASKS), "AGENT_DROP_REFUSED", mark=mark)
    mapping = adopted(agent)
    assert {name: mapping[name] for name in NEW} == NEW


def test_a_socket_that_is_not_the_agents_is_left_alone(agent: Agent) -> None:
    with established(received=1, sent=1):
        agent.drops("ingress", frame_of(adoption()), "AGENT_DROP_CONFLICT")


def echoed(agent: Agent, shim: Shim, echo: int) -> tuple[int, int] | None:
    """The timestamps that the listener would get to see, of a request that echoes that."""
    options = b"\x01\x01\x08\x0a" + (5).to_bytes(4, "big") + echo.to_bytes(4, "big")
    segment = replace(ASKS, options=options)
    with listening():
        code, output = agent.run("rauta_agent_ingress", frame_of(shim, segment), "AGENT_DROP_REFUSED")
    assert code == TC_ACT_SHOT
    said = oracle.parse_timestamps(output[54:66])
    assert said is not None
    seen = replace(segment, options=options[:8] + said[1].to_bytes(4, "big"))
    assert output.hex(" ") == delivered(seen).hex(" ")  # with a right checksum
    return said


CLOCKS = {
    "behind the old socket's clock": (1000, 900, 1000),
    "far behind": (1000, 1000 - (1 << 30), 1000),
    "at it": (1000, 1000, 1000),
    "ahead of it": (1000, 1001, 1001),
    "no clock": (0, 900, 900),
}


@pytest.mark.parametrize(("clock", "echo", "becomes"), CLOCKS.values(), ids=CLOCKS)
def test_what_the_client_echoes_is_set_forward_to_the_old_sockets_clock(
    agent: Agent, clock: int, echo: int, becomes: int
) -> None:
    """The new socket's clock begins there, so that the client sees none go back."""
    said = echoed(agent, adoption(first=clock & 0xFFFF_FFFF), echo & 0xFFFF_FFFF)
    assert said == (5, becomes & 0xFFFF_FFFF)


@pytest.mark.parametrize("trip", [0, oracle.LONGEST_TRIP_MS + 1, 0xFFFF])
def test_where_the_round_trip_is_not_known_the_kernel_gets_no_echo(agent: Agent, trip: int) -> None:
    assert echoed(agent, adoption(first=1000, trip=trip), 900) == (5, 0)
