"""The agent follows answers as they leave, and requests as they come, and so knows when a connection is at rest.

The sockets are real, and send through the agent on the loopback: what it makes of an answer depends on whose it is. The
last tests let a connection leave one socket and begin another.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from packets import oracle
from packets.bench import Agent, throwaway_namespace
from packets.conftest import ROUTERS, ROUTERS_MASK
from packets.frames import (
    CLIENT,
    ECHOED_CLOCK,
    LOCAL,
    LOCAL_PORT,
    VIP,
    VIP_PORT,
    Connection,
    Segment,
    carried,
    delivered,
    request,
)
from packets.oracle import MAPPING_MOVED, MAPPING_OPEN, MAPPING_OPENING, OUTER_ID_HEAD, OUTER_ID_REQUEST, Tuple
from packets.sockets import SO_TCP, TCP_REPAIR, listening
from packets.test_agent_asks import carry, established
from packets.test_agent_moves import ASKS, RESTING, adoption, frame_of, order, state_of
from rauta.bpf import attach_tc

ALICE = Connection()
LOCAL_TUPLE = Tuple(CLIENT, ALICE.port, LOCAL, LOCAL_PORT)
HEAD = request("/")
FIRST_BYTE = ALICE.cookie + 1 & 0xFFFFFFFF
"""of the server's"""
TCP_REPAIR_WINDOW = 29  # include/uapi/linux/tcp.h
MSS = 1400
ASKED = {"request": ALICE.start, "sent": FIRST_BYTE, "asked": 1, "origin": ALICE.cookie}
"""of the mapping: the first request is here, and has no answer yet"""


@pytest.fixture(scope="module")
def loaded() -> Iterator[Agent]:
    with throwaway_namespace():
        for command in (f"address add {LOCAL}/32 dev lo", "link set lo up", f"route add {CLIENT}/32 dev lo"):
            subprocess.run(["ip", *command.split()], check=True)
        agent = Agent(ROUTERS, ROUTERS_MASK, {(VIP, VIP_PORT): (LOCAL, LOCAL_PORT)})
        lo, programs = socket.if_nametoindex("lo"), agent.object.programs
        with (
            agent.object,
            attach_tc(lo, programs["rauta_agent_egress"], "egress"),
            attach_tc(lo, programs["rauta_agent_ingress"], "ingress"),
        ):
            yield agent


@pytest.fixture
def live(loaded: Agent) -> Agent:
    """An agent on the loopback."""
    loaded.reset()
    return loaded


@pytest.fixture
def wire(live: Agent) -> Iterator[socket.socket]:
    """What leaves through the loopback, behind the agent."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as sock:
        sock.bind(("lo", 3))
        sock.settimeout(0.05)
        yield sock


@contextmanager
def talking(agent: Agent, *, carries: bool = True, **fields: int) -> Iterator[socket.socket]:
    """The server's socket of a connection whose first request is here; `fields` of its mapping are to differ."""
    with established(received=ALICE.start, sent=FIRST_BYTE, mss=MSS) as sock:
        window = struct.pack("=IIIII", ALICE.start, 1 << 20, 1 << 20, 65535, ALICE.start)
        sock.setsockopt(SO_TCP, TCP_REPAIR_WINDOW, window)
        if carries:
            carry(agent, sock, **ASKED | fields)
        else:
            agent.put_mapping(LOCAL_TUPLE, ALICE, **ASKED | fields)
        sock.setsockopt(SO_TCP, TCP_REPAIR, -1)  # off, without a window probe
        sock.setsockopt(SO_TCP, socket.TCP_NODELAY, 1)
        try:
            yield sock
        finally:
            sock.setsockopt(SO_TCP, TCP_REPAIR, 1)


def answer(*headers: str, status: str = "200 OK", body: bytes = b"", version: str = "HTTP/1.1") -> bytes:
    head = "".join(f"{line}\r\n" for line in (f"{version} {status}", "Server: test", *headers))
    return head.encode() + b"\r\n" + body


HELLO = answer("Content-Length: 13", body=b"Hello, world!")
GO_ON = answer(status="100 Continue")
EMPTY = answer("Content-Length: 0")


def follows(agent: Agent, pieces: Sequence[bytes], answered: int, left: int = 0, **fields: int) -> None:
    """The server sends these, each by itself: so many answers have ended then, and of the present one that is left."""
    with talking(agent, **fields) as sock:
        for piece in pieces:
            sock.send(piece)
        state = state_of(agent, sock)
    seen = {name: state[name] for name in ("answered", "left", "pinned", "sent")}
    sent = FIRST_BYTE + len(b"".join(pieces)) & 0xFFFFFFFF
    assert seen == {"answered": answered, "left": left, "pinned": 0, "sent": sent}


def pins(agent: Agent, pieces: Sequence[bytes], **fields: int) -> None:
    """The server sends these, and the connection will never move."""
    with talking(agent, **fields) as sock:
        for piece in pieces:
            sock.send(piece)
        assert state_of(agent, sock)["pinned"] != 0


# ---- answers that can be followed -----------------------------------------------------------------------

ENDED: dict[str, list[bytes]] = {
    "at once": [HELLO],
    "head and body": [HELLO[:-13], HELLO[-13:]],
    "in the middle of the body": [HELLO[:-5], HELLO[-5:]],
    "body byte by byte": [HELLO[:-3], *(HELLO[-3 + at :][:1] for at in range(3))],
    "without a body": [EMPTY],
    "lower case": [answer("content-length: 3", body=b"abc")],
    "upper case": [answer("CONTENT-LENGTH: 3", body=b"abc")],
    "no space": [answer("Content-Length:3", body=b"abc")],
    "tabs": [answer("Content-Length: \t 3", body=b"abc")],
    "leading zeros": [answer("Content-Length: 0003", body=b"abc")],
    "the last line": [answer("X: y", "Content-Length: 3", body=b"abc")],
    "names that only begin so": [answer("Content-Lengthy: 9", "Content-Length: 3", "Content-Len: 9", body=b"abc")],
    "a longer body than a segment": [answer("Content-Length: 9000", body=b"b" * 9000)],
    "a body that looks like an answer": [answer(f"Content-Length: {len(EMPTY)}", body=EMPTY)],
    "no content": [answer(status="204 No Content")],
    "no content with a length": [answer("Content-Length: 5", status="204 No Content")],
    "not modified": [answer("Content-Length: 5", status="304 Not Modified")],
    "chunks that do not come": [answer("Transfer-Encoding: chunked", status="304 Not Modified")],
    "not found": [answer("Content-Length: 3", status="404 Not Found", body=b"abc")],
    "no reason": [answer("Content-Length: 3", status="200 ", body=b"abc")],
    "go on first": [GO_ON, HELLO],
    "go on with it": [GO_ON + HELLO],
    "many words first": [answer("Link: </a>", status="103 Early Hints"), answer(status="102 Processing"), HELLO],
    "a head of 4,096 bytes": [
        answer("Content-Length: 0", "X: " + "x" * (4096 - len(answer("Content-Length: 0", "X: "))))
    ],
    "120 lines": [answer("Content-Length: 0", *(f"X-{n}: y" for n in range(118)))],
}


@pytest.mark.parametrize("pieces", ENDED.values(), ids=ENDED)
def test_an_answer_has_ended_where_its_body_ends(live: Agent, pieces: list[bytes]) -> None:
    follows(live, pieces, answered=1)


UNENDED: dict[str, tuple[list[bytes], int]] = {
    "nothing yet": ([], 0),
    "go on": ([GO_ON], 0),
    "go on, twice": ([GO_ON, GO_ON], 0),
    "its head": ([HELLO[:-13]], 13),
    "all but a byte": ([HELLO[:-1]], 1),
    "the largest that is understood": ([answer("Content-Length: 999999999999999", body=b"b" * 99)], 999999999999900),
}


@pytest.mark.parametrize(("pieces", "left"), UNENDED.values(), ids=UNENDED)
def test_until_then_it_has_not(live: Agent, pieces: list[bytes], left: int) -> None:
    """However empty all queues are."""
    follows(live, pieces, answered=0, left=left)


@pytest.mark.parametrize("pieces", [[HELLO[:-13]], [EMPTY], [answer("Transfer-Encoding: chunked")], [answer()]])
def test_to_a_head_request_there_is_no_body(live: Agent, pieces: list[bytes]) -> None:
    follows(live, pieces, answered=1, heads=1)


def test_each_answer_is_its_own_requests(live: Agent) -> None:
    """GET, HEAD, HEAD, GET."""
    follows(live, [HELLO, HELLO[:-13], HELLO[:-13], HELLO], answered=4, asked=4, heads=0b0110)


def test_also_when_the_counts_go_round(live: Agent) -> None:
    with talking(live, asked=1, answered=254, heads=1 << 31) as sock:
        for piece in (HELLO, HELLO[:-13], HELLO):
            sock.send(piece)
        state = state_of(live, sock)
    assert (state["answered"], state["pinned"]) == (1, 0)


@pytest.mark.parametrize("number", [2, 3, 4])
def test_some_answers_may_be_in_one_packet(live: Agent, number: int) -> None:
    follows(live, [HELLO * number], answered=number, asked=number)
    follows(live, [HELLO[:-5], HELLO[-5:] + HELLO * (number - 1) + HELLO[:-1]], number, 1, asked=number + 1)


def test_what_is_sent_again_counts_once(live: Agent, wire: socket.socket) -> None:
    """The client says nothing here, so the kernel repeats it; several small pieces perhaps as one."""
    pieces = [HELLO[:-13], HELLO[-13:-5], HELLO[-5:], HELLO[:-4]]
    with talking(live, asked=2) as sock:
        for piece in pieces:
            sock.send(piece)
        before = state_of(live, sock)
        deadline, times = time.monotonic() + 5, 0
        while times < len(pieces) + 1 and time.monotonic() < deadline:
            try:
                times += wire.recvfrom(65535)[1][2] == socket.PACKET_OUTGOING
            except TimeoutError:
                continue
        assert times == len(pieces) + 1
        after = state_of(live, sock)
    assert (before["answered"], before["left"], before["pinned"]) == (1, 4, 0)
    assert after == before


def test_it_is_followed_from_the_first_segment_on(live: Agent) -> None:
    """Which only the map knows, until the second."""
    with talking(live, carries=False, state=MAPPING_OPENING) as sock:
        sock.send(HELLO[:-13])
        mapping = live.mapping(LOCAL_TUPLE)
        assert mapping is not None
        assert (mapping["state"], mapping["left"], mapping["answered"]) == (MAPPING_OPEN, 13, 0)
        sock.send(HELLO[-13:])
        state = state_of(live, sock)
    assert (state["state"], state["left"], state["answered"], state["pinned"]) == (MAPPING_OPEN, 0, 1, 0)


def test_a_server_that_closes_has_answered(live: Agent) -> None:
    with talking(live, carries=False, state=MAPPING_OPEN) as sock:
        sock.sendmsg([HELLO], [], socket.MSG_MORE)
        sock.shutdown(socket.SHUT_WR)
        mapping = live.mapping(LOCAL_TUPLE)
    assert mapping is not None
    assert (mapping["answered"], mapping["pinned"]) == (1, 0)


# ---- answers that cannot --------------------------------------------------------------------------------

UNCLEAR: dict[str, list[bytes]] = {
    "chunks": [answer("Transfer-Encoding: chunked")],
    "chunks, spelled otherwise": [answer("TRANSFER-ENCODING : gzip,chunked", "Content-Length: 3", body=b"abc")],
    "chunks and a length": [answer("Content-Length: 3", "Transfer-Encoding: chunked", body=b"abc")],
    "no length": [answer(body=b"abc")],
    "two lengths": [answer("Content-Length: 3", "Content-Length: 4", body=b"abc")],
    "the same length twice": [answer("Content-Length: 3", "Content-Length: 3", body=b"abc")],
    "a list of lengths": [answer("Content-Length: 3, 3", body=b"abc")],
    "an empty length": [answer("Content-Length:", body=b"abc")],
    "a negative length": [answer("Content-Length: -3", body=b"abc")],
    "a length with a sign": [answer("Content-Length: +3", body=b"abc")],
    "a length in hexadecimal": [answer("Content-Length: 0x3", body=b"abc")],
    "a length with something behind it": [answer("Content-Length: 3 ", body=b"abc")],
    "a length in two": [answer("Content-Length: 1 3", body=b"Hello, world!")],
    "a length of 16 digits": [answer("Content-Length: 0000000000000003", body=b"abc")],
    "a space in front of the colon": [answer("Content-Length : 3", body=b"abc")],
    "a folded line": [answer("X: y", " Content-Length: 9", "Content-Length: 3", body=b"abc")],
    "a folded line with a tab": [answer("Content-Length: 3", "\t0", body=b"abc")],
    "a line that ends in LF alone": [b"HTTP/1.1 200 OK\nContent-Length: 3\r\n\r\nabc"],
    "the end in LF alone": [b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\nabc"],
    "the head in two pieces": [HELLO[:20], HELLO[20:]],
    "all but its last byte": [HELLO[:-14], HELLO[-14:]],
    "one byte": [HELLO[:1]],
    "a head of 4,097 bytes": [
        answer("Content-Length: 0", "X: " + "x" * (4097 - len(answer("Content-Length: 0", "X: "))))
    ],
    "200 lines": [answer("Content-Length: 0", *(f"X: {n}" for n in range(200)))],
    "HTTP/1.0": [answer("Content-Length: 3", body=b"abc", version="HTTP/1.0")],
    "another version": [answer("Content-Length: 3", body=b"abc", version="HTTP/2.0")],
    "no HTTP": [b"SSH-2.0-OpenSSH_9.9\r\n"],
    "no status": [answer("Content-Length: 3", status="OK", body=b"abc")],
    "a status of two digits": [answer("Content-Length: 3", status="20 OK", body=b"abc")],
    "a status below 100": [answer("Content-Length: 3", status="099 OK", body=b"abc")],
    "a status of letters": [answer("Content-Length: 3", status="2x0 OK", body=b"abc")],
    "another protocol": [answer("Upgrade: websocket", status="101 Switching Protocols")],
    "more than its length": [answer("Content-Length: 3", body=b"abcd")],
    "two answers to one request": [HELLO, HELLO],
    "two in one packet": [HELLO * 2],
    "go on, when all is answered": [HELLO, GO_ON],
}


@pytest.mark.parametrize("pieces", UNCLEAR.values(), ids=UNCLEAR)
def test_what_cannot_be_followed_pins_the_connection(live: Agent, pieces: list[bytes]) -> None:
    """Nothing is guessed."""
    pins(live, pieces)


def test_so_does_what_nobody_has_asked_for(live: Agent) -> None:
    pins(live, [answer("Content-Length: 0", "Connection: close", status="408 Request Timeout")], asked=7, answered=7)


def test_so_do_five_answers_in_one_packet(live: Agent) -> None:
    pins(live, [EMPTY * 5], asked=5)
    pins(live, [GO_ON * 4 + EMPTY], asked=1)


def test_a_head_requests_answer_with_a_body_does(live: Agent) -> None:
    pins(live, [HELLO], heads=1)


def test_so_does_a_gap(live: Agent) -> None:
    """The agent has not seen all: it was not there."""
    pins(live, [HELLO], sent=FIRST_BYTE - 10)


def test_once_pinned_it_stays_so_and_everything_leaves(live: Agent, wire: socket.socket) -> None:
    with talking(live, asked=3) as sock:
        for piece in (answer("Transfer-Encoding: chunked"), b"0\r\n\r\n", HELLO, HELLO):
            before = live.counters()
            sock.send(piece)
            assert live.grown(before) == {"AGENT_EGRESS_TRANSLATED": 1, "AGENT_PASS": 1}
            assert wire.recv(65535)[26:30] == socket.inet_aton(VIP)
            wire.recv(65535)
        assert state_of(live, sock)["pinned"] != 0


@pytest.mark.parametrize("carries", [True, False])
def test_of_a_connection_that_has_moved_nothing_leaves(live: Agent, wire: socket.socket, carries: bool) -> None:
    with talking(live, carries=carries, state=MAPPING_MOVED) as sock:
        before = live.counters()
        sock.send(HELLO)
        assert live.grown(before) == {"AGENT_EGRESS_MUTED": 1}
        with pytest.raises(TimeoutError):
            wire.recv(65535)


# ---- requests -------------------------------------------------------------------------------------------

NEXT = ALICE.later(HEAD, len(HEAD))
"""a later request, in order if the first is all that the server has got"""


@contextmanager
def serving(agent: Agent, *, carries: bool = True, received: int = NEXT.seq, **fields: int) -> Iterator[socket.socket]:
    """The server's socket; it has got what came before NEXT."""
    with established(received=received, sent=NEXT.ack) as sock:
        if carries:
            carry(agent, sock, **RESTING | fields)
        else:
            agent.put_mapping(LOCAL_TUPLE, ALICE, **RESTING | fields)
        yield sock


def hinted(segment: Segment = NEXT, hint: int = OUTER_ID_REQUEST) -> bytes:
    """As it comes from a router, which says what it is."""
    return carried(segment, id=oracle.outer_id(segment.connection.cookie, opens=False) | hint)


def counted(agent: Agent, sock: socket.socket) -> tuple[int, int, int]:
    state = state_of(agent, sock)
    return state["asked"], state["heads"], state["request"]


@pytest.mark.parametrize("hint", [0, OUTER_ID_HEAD])
def test_a_request_in_order_is_counted_once(live: Agent, hint: int) -> None:
    with serving(live) as sock:
        for _ in range(3):
            live.passes("ingress", hinted(hint=OUTER_ID_REQUEST | hint), "AGENT_DELIVERED", delivered(NEXT))
            assert counted(live, sock) == (2, 2 if hint else 0, NEXT.seq)


@pytest.mark.parametrize("asked", [0, 1, 31, 32, 33, 255])
def test_each_has_its_bit(live: Agent, asked: int) -> None:
    """Which its predecessor of long ago may have set."""
    place = 1 << asked % 32
    with serving(live, asked=asked, answered=asked, heads=0xFFFF_FFFF) as sock:
        live.passes("ingress", hinted(), "AGENT_DELIVERED", delivered(NEXT))
        assert counted(live, sock) == ((asked + 1) % 256, 0xFFFF_FFFF ^ place, NEXT.seq)
    with serving(live, asked=asked, answered=asked, heads=0) as sock:
        live.passes("ingress", hinted(hint=OUTER_ID_REQUEST | OUTER_ID_HEAD), "AGENT_DELIVERED", delivered(NEXT))
        assert counted(live, sock) == ((asked + 1) % 256, place, NEXT.seq)


def test_what_is_no_request_is_not_counted(live: Agent) -> None:
    with serving(live) as sock:
        live.passes("ingress", hinted(hint=0), "AGENT_DELIVERED", delivered(NEXT))
        assert counted(live, sock) == (1, 0, ALICE.start)


def test_nor_what_has_been_received(live: Agent) -> None:
    """Once more, of the network's making, or the client's."""
    with serving(live, received=NEXT.after) as sock:
        live.passes("ingress", hinted(), "AGENT_DELIVERED", delivered(NEXT))
        assert counted(live, sock) == (1, 0, ALICE.start)


@pytest.mark.parametrize("missing", [1, 1400, (1 << 31) - 1])
def test_what_has_overtaken_something_comes_again(live: Agent, missing: int) -> None:
    """Another request, perhaps, whose answer comes first."""
    with serving(live, received=NEXT.seq - missing & 0xFFFFFFFF) as sock:
        live.drops("ingress", hinted(), "AGENT_DROP_EARLY")
        assert counted(live, sock) == (1, 0, ALICE.start)
        live.passes("ingress", hinted(hint=0), "AGENT_DELIVERED", delivered(NEXT))


@pytest.mark.parametrize(("asked", "answered"), [(32, 0), (8, 232)])
def test_with_32_unanswered_one_more_waits(live: Agent, asked: int, answered: int) -> None:
    with serving(live, asked=asked, answered=answered) as sock:
        live.drops("ingress", hinted(), "AGENT_DROP_EARLY")
        assert counted(live, sock) == (asked, 0, ALICE.start)
    with serving(live, asked=asked - 1, answered=answered) as sock:
        live.passes("ingress", hinted(), "AGENT_DELIVERED", delivered(NEXT))
        assert counted(live, sock) == (asked, 0, NEXT.seq)


@pytest.mark.parametrize("asked", [1, 33, 200, 255])
def test_a_pinned_connections_requests_are_not_counted(live: Agent, asked: int) -> None:
    """Nor are its answers: it works as ever, however many requests there are."""
    with serving(live, asked=asked, answered=1, pinned=1) as sock:
        live.passes("ingress", hinted(), "AGENT_DELIVERED", delivered(NEXT))
        assert counted(live, sock)[0] == asked


def test_from_then_on_the_socket_carries_the_count(live: Agent) -> None:
    with serving(live, carries=False) as sock:
        live.passes("ingress", hinted(), "AGENT_DELIVERED", delivered(NEXT))
        state = state_of(live, sock)
    assert (state["asked"], state["request"], state["isn"]) == (2, NEXT.seq, ALICE.isn)


def test_a_request_of_a_connection_that_is_over_gets_its_reset(live: Agent) -> None:
    live.put_mapping(LOCAL_TUPLE, ALICE, **RESTING)
    live.passes("ingress", hinted(), "AGENT_DELIVERED", delivered(NEXT))
    with listening():
        live.passes("ingress", hinted(), "AGENT_DELIVERED", delivered(NEXT))


# ---- from one socket to the other -----------------------------------------------------------------------


def arrives(wire: socket.socket, frame: bytes) -> None:
    """At the loopback, which has no MAC address."""
    wire.send(bytes(12) + frame[12:])


def grows(agent: Agent, before: list[int], *verdicts: str) -> dict[str, int]:
    """By how much the counters have grown, once these have."""
    deadline = time.monotonic() + 5
    while (grown := agent.grown(before)) and time.monotonic() < deadline:
        if all(verdict in grown for verdict in verdicts):
            break
        time.sleep(0.01)
    return grown


def test_the_socket_that_a_connection_has_left_ends(live: Agent, wire: socket.socket) -> None:
    """And says nothing of it to the client."""
    with established(received=ASKS.seq, sent=ASKS.ack) as sock:
        carry(live, sock, **RESTING)
        sock.setsockopt(SO_TCP, TCP_REPAIR, -1)
        sock.settimeout(5)
        before = live.counters()
        arrives(wire, frame_of(order()))
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        grown = grows(live, before, "AGENT_ORDERED", "AGENT_MOVED")
    assert {name: grown.get(name, 0) for name in ("AGENT_ORDERED", "AGENT_MOVED")} == {
        "AGENT_ORDERED": 1,
        "AGENT_MOVED": 1,
    }
    assert "AGENT_EGRESS_TRANSLATED" not in grown


def test_one_that_cannot_move_ends_and_the_request_is_refused(live: Agent, wire: socket.socket) -> None:
    with established(received=ASKS.seq, sent=ASKS.ack) as sock:
        carry(live, sock, **RESTING | {"pinned": 1})
        live.put_mapping(LOCAL_TUPLE, ALICE, **RESTING | {"pinned": 1})
        sock.setsockopt(SO_TCP, TCP_REPAIR, -1)
        sock.settimeout(5)
        before = live.counters()
        arrives(wire, frame_of(order()))
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        grown = grows(live, before, "AGENT_UNMOVABLE", "AGENT_DELIVERED", "AGENT_EGRESS_TRANSLATED")
    expected = {"AGENT_UNMOVABLE": 1, "AGENT_DELIVERED": 1, "AGENT_EGRESS_TRANSLATED": 1}
    assert {name: grown.get(name, 0) for name in expected} == expected


INFO_OPTIONS, INFO_SCALES, INFO_RTT = 5, 6, 68  # offsets in struct tcp_info (include/uapi/linux/tcp.h)
TIMESTAMPS, SACK, WSCALE = 1, 2, 4

SYNS = {
    "all options": (oracle.SynOptions(mss=1460, wscale=9, sack=True, tsval=1), TIMESTAMPS | SACK | WSCALE),
    "no scale": (oracle.SynOptions(mss=1460, sack=True, tsval=1), TIMESTAMPS | SACK),
    "no selective acknowledgements": (oracle.SynOptions(mss=1220, wscale=0, tsval=1), TIMESTAMPS | WSCALE),
    "none": (oracle.SynOptions(), 0),
}


@pytest.mark.parametrize(("syn", "options"), SYNS.values(), ids=SYNS)
def test_the_socket_where_it_goes_on_has_its_options(
    live: Agent, wire: socket.socket, syn: oracle.SynOptions, options: int
) -> None:
    """And its clock, and goes on exactly where the other ended."""
    connection = Connection(options=syn)
    segment = connection.later(request("/api"), len(HEAD))
    clock = ECHOED_CLOCK + 5000 & 0xFFFF_FFFF  # the client has not seen the last of it
    with listening() as listener:
        before = live.counters()
        shim = adoption(segment, second=connection.cookie, options=connection.cookie & 0xFF, first=clock, trip=100)
        arrives(wire, frame_of(shim, segment))
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(5)
            assert accepted.recv(65535) == segment.payload
            info = accepted.getsockopt(SO_TCP, socket.TCP_INFO, 104)
            accepted.send(HELLO)
            state: Any = state_of(live, accepted) or live.mapping(LOCAL_TUPLE)
            said = heard_from_vip(wire)
            accepted.setsockopt(SO_TCP, TCP_REPAIR, 1)
    assert live.grown(before)["AGENT_ADOPTED"] == 1
    assert info[INFO_OPTIONS] & (TIMESTAMPS | SACK | WSCALE) == options
    if syn.wscale is not None:
        assert info[INFO_SCALES] == syn.wscale | oracle.ROUTER_WSCALE << 4
    assert (state["state"], state["answered"], state["pinned"]) == (MAPPING_OPEN, 1, 0)
    (data,) = [packet for packet in said if packet.endswith(HELLO)]
    assert int.from_bytes(data[24:28], "big") == segment.ack
    assert int.from_bytes(data[28:32], "big") == segment.after
    if options & TIMESTAMPS:
        stamps = oracle.parse_timestamps(data[40:52])
        assert stamps is not None
        assert 100 <= (stamps[0] - clock & 0xFFFF_FFFF) < 10_000
        assert stamps[1] == oracle.parse_timestamps(segment.options)[0]  # type: ignore[index]
        assert 99_000 <= int.from_bytes(info[INFO_RTT : INFO_RTT + 4], "little") <= 150_000


def heard_from_vip(wire: socket.socket) -> list[bytes]:
    """The packets that have left in the VIP's name."""
    packets = []
    while True:
        try:
            frame, where = wire.recvfrom(65535)
        except TimeoutError:
            return packets
        if where[2] == socket.PACKET_OUTGOING and frame[26:30] == socket.inet_aton(VIP):
            packets.append(frame[14:])
