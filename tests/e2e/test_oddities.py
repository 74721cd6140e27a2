"""TCP as it is rarely spoken: the router drops what it does not read, answers what it must, and the request completes.

Segments come from a client without a kernel (phantom.py), where a kernel's own TCP would not send them; where it can be
asked to (sockets, sysctls), from a real one.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from itertools import count

import pytest
from scapy.layers.inet import IPOption

from e2e.bench import HOST, SECONDS, Bench, eventually, request
from e2e.phantom import ADDRESS, ISN, Phantom, fragments, options_of, phantoms
from e2e.wire import Capture, capture, send
from lab.contenders.rauta import RunningRauta
from lab.servers import content

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root"),
    pytest.mark.usefixtures("nothing_is_sent_twice"),
]

BODY = content(13)
UPLOAD = content(3000)
LONG = content(5_000_000)
GET = request("/api/x")
POST = request("/api/x", f"Content-Length: {len(UPLOAD)}", method="POST")
MOST = 1300
"""bytes in a segment"""
PORTS = count(3000)
TFO_COOKIE_REQUEST = (34, b"")
"""Fast Open (RFC 7413, 4.1.1)"""
ROUTER_MSS = 1416
FAST_OPEN_WITHOUT_COOKIE = "5"
"""net.ipv4.tcp_fastopen: as a client (1), with data although it has no cookie (4)"""


@pytest.fixture(scope="module")
def wire(routed: Bench) -> Iterator[Capture]:
    with phantoms(routed) as one:
        yield one


@pytest.fixture
def phantom(routed: Bench, wire: Capture) -> Phantom:
    """With the VIP `shop`, from a port of its own; nothing is sent yet."""
    return Phantom(routed, wire, routed.vip("shop"), next(PORTS))


def served(phantom: Phantom, sent: bytes, received: int = 0) -> None:
    """A request that is complete now is answered by the backend, which has received so much of a body; no reset."""
    phantom.sent = len(sent)
    status, fields, body = phantom.answer()
    assert (status, fields["x-backend"], body) == (200, "api-1", BODY)
    assert int(fields["x-received"] if received else 0) == received
    assert not phantom.was_reset()


def test_the_phantom_is_a_client_like_any_other(phantom: Phantom) -> None:
    phantom.greet()
    phantom.send("A")
    phantom.send("PA", GET)
    served(phantom, GET)


# ---- IPv4 -----------------------------------------------------------------------------------------------

OPTIONS = {
    "NOP": b"\x01\x01\x01\x00",
    "record route": b"\x07\x0b\x04" + bytes(8) + b"\x00",
    "router alert": b"\x94\x04\0\0",
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_packets_with_ip_options_are_dropped_and_those_without_go_on(
    routed: Bench, phantom: Phantom, options: bytes
) -> None:
    with_options = {"options": options_list(options)}
    grown = routed.growth()
    phantom.send("S", ip=with_options)
    eventually(lambda: grown["DROP_IP_OPTIONS"] == 1, "the SYN to be dropped")
    assert phantom.received() == []
    phantom.greet()
    phantom.send("PA", GET, ip=with_options)
    eventually(lambda: grown["DROP_IP_OPTIONS"] == 2, "the request to be dropped")
    phantom.send("PA", GET)
    served(phantom, GET)
    phantom.send("FA", at=len(GET), ip=with_options)
    eventually(lambda: grown["DROP_IP_OPTIONS"] == 3, "the end to be dropped")
    assert routed_ports(routed)[phantom.port] == "open"


def test_fragments_are_dropped_and_the_whole_goes_on(routed: Bench, phantom: Phantom) -> None:
    """As first request, and of one that is known: no part of it is taken for anything."""
    grown = routed.growth()
    phantom.greet()
    pieces = fragments(phantom.packet("PA", GET), 24)
    for piece in (*pieces, *reversed(pieces)):
        send(routed.client, piece)
    eventually(lambda: grown["DROP_FRAGMENT"] == 2 * len(pieces), "all fragments to be dropped")
    assert phantom.port not in routed_ports(routed)
    phantom.send("PA", GET)
    served(phantom, GET)
    later = request("/web")
    for piece in fragments(phantom.packet("PA", later, at=len(GET)), 16):
        send(routed.client, piece)
    phantom.send("PA", GET, at=len(GET))
    eventually(lambda: grown["ROUTED_NEXT"] == 1, "the next request, in one piece")
    assert grown["TX_RESET_ROUTE_CHANGED"] == 0


# ---- segments that overlap, and come in another order ------------------------------------------------


def test_segments_of_a_body_may_overlap(phantom: Phantom) -> None:
    phantom.greet()
    phantom.send("PA", POST)
    for start, end in ((0, 1000), (500, 1500), (500, 1200), (1499, 1501), (0, 1300), (1400, 2700), (2600, 3000)):
        phantom.send("A", UPLOAD[start:end], at=len(POST) + start)
    served(phantom, POST + UPLOAD, len(UPLOAD))


def test_they_may_overlap_the_head_if_they_repeat_all_of_it(routed: Bench, phantom: Phantom) -> None:
    grown = routed.growth()
    phantom.greet()
    phantom.send("PA", POST + UPLOAD[:500])
    phantom.send("PA", POST[10:] + UPLOAD[:900], at=10)
    eventually(lambda: grown["DROP_CHANGED"] == 1, "a piece of the head to be dropped")
    phantom.send("PA", POST + UPLOAD[:1000])
    for start in range(900, len(UPLOAD), MOST):
        phantom.send("A", UPLOAD[start : start + MOST], at=len(POST) + start)
    served(phantom, POST + UPLOAD, len(UPLOAD))
    assert grown["FORWARDED_AGAIN"] == 1, grown


def test_what_overtakes_the_first_request_is_dropped_and_not_reset(routed: Bench, phantom: Phantom) -> None:
    grown = routed.growth()
    phantom.greet()
    pieces = [(at, UPLOAD[at : at + MOST]) for at in range(0, len(UPLOAD), MOST)]
    for at, piece in pieces:
        phantom.send("A", piece, at=len(POST) + at)
    eventually(lambda: grown["DROP_NO_FLOW"] == len(pieces), "what came too early to be dropped")
    phantom.send("PA", POST)
    for at, piece in pieces:
        phantom.send("A", piece, at=len(POST) + at)
    served(phantom, POST + UPLOAD, len(UPLOAD))


def test_segments_of_a_body_may_come_in_any_order(phantom: Phantom) -> None:
    phantom.greet()
    phantom.send("PA", POST)
    for at in reversed(range(0, len(UPLOAD), 500)):
        phantom.send("A", UPLOAD[at : at + 500], at=len(POST) + at)
    served(phantom, POST + UPLOAD, len(UPLOAD))


@pytest.mark.parametrize("order", ["in order", "the second first"])
def test_a_head_in_two_segments_is_answered_in_any_order(routed: Bench, phantom: Phantom, order: str) -> None:
    """With 431, as `shop` has no fallback; neither reset nor left without an answer."""
    half = len(GET) // 2
    grown = routed.growth()
    phantom.greet()
    if order == "the second first":
        phantom.send("PA", GET[half:], at=half)
        eventually(lambda: grown["DROP_NO_FLOW"] == 1, "the second half to be dropped")
    phantom.send("PA", GET[:half])
    phantom.send("PA", GET[half:], at=half)
    phantom.sent = len(GET)
    status, fields, _ = phantom.answer()
    assert (status, fields["connection"]) == (431, "close")
    assert not phantom.was_reset()
    phantom.acked += 1  # its FIN
    phantom.send("FA", at=len(GET))
    eventually(lambda: grown["TX_CLOSE"] == 1, "the close to be acknowledged")


# ---- flags --------------------------------------------------------------------------------------------


def test_urgent_data_is_dropped_and_the_same_without_the_flag_goes_on(routed: Bench, phantom: Phantom) -> None:
    """Which bytes are in the stream and which beside it, servers disagree on."""
    grown = routed.growth()
    phantom.greet()
    phantom.send("PAU", GET, tcp={"urgptr": 5})
    phantom.send("SU")
    eventually(lambda: grown["DROP_FLAGS"] == 2, "urgent segments to be dropped")
    phantom.send("PA", GET)
    served(phantom, GET)
    phantom.send("PAU", GET, at=len(GET), tcp={"urgptr": 1})
    eventually(lambda: grown["DROP_FLAGS"] == 3, "an urgent request to be dropped")
    phantom.send("PA", GET, at=len(GET))
    eventually(lambda: grown["ROUTED_NEXT"] == 1, "the same request to be routed")
    assert not phantom.was_reset()


def test_ecn_is_not_offered_to_a_client_that_asks_for_it(routed: Bench) -> None:
    """A real one. Its packets are then marked as any others."""
    before = routed.client.sysctl("net.ipv4.tcp_ecn", "1")
    try:
        with capture(routed.client) as seen, routed.connected() as connection:
            assert connection.ask("/api/download").body == LONG
            mine = [packet for packet in seen.sent() if packet.source[1] == connection.port]
            theirs = [packet for packet in seen.received() if packet.destination[1] == connection.port]
    finally:
        routed.client.sysctl("net.ipv4.tcp_ecn", before)
    assert (mine[0].flags, theirs[0].flags) == ("SEC", "SA")
    assert {packet.raw[1] & 3 for packet in (*mine, *theirs)} == {0}


# ---- SYN with data --------------------------------------------------------------------------------------


def test_data_in_a_syn_is_not_acknowledged_and_may_come_again(phantom: Phantom) -> None:
    hello = phantom.greet(GET, options=[("MSS", 1460), TFO_COOKIE_REQUEST])
    assert hello.ack == ISN + 1
    assert options_of(hello).keys() == {"MSS"}
    phantom.send("PA", GET)
    served(phantom, GET)


@pytest.mark.usefixtures("may_repeat")
def test_a_client_with_fast_open_sends_its_request_again(routed: Bench) -> None:
    before = routed.client.sysctl("net.ipv4.tcp_fastopen", FAST_OPEN_WITHOUT_COOKIE)
    try:
        with capture(routed.client) as seen, routed.client.entered():
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            with sock:
                sock.settimeout(5)
                address, port = routed.vip("shop")
                assert sock.sendto(GET, socket.MSG_FASTOPEN, (str(address), port)) == len(GET)
                answer = b""
                while not answer.endswith(BODY):
                    answer += sock.recv(4096)
            sent = seen.sent()
    finally:
        routed.client.sysctl("net.ipv4.tcp_fastopen", before)
    assert (sent[0].flags, sent[0].payload) == ("S", GET)
    assert [packet.payload for packet in sent[1:] if packet.payload] == [GET]


# ---- windows and sizes --------------------------------------------------------------------------------


def test_a_client_whose_window_is_closed_gets_its_answer_when_it_opens(routed: Bench, phantom: Phantom) -> None:
    grown = routed.growth()
    phantom.greet()
    phantom.send("PA", GET, window=0)
    eventually(lambda: bool(phantom.received("A")[1:]), "the backend to acknowledge the request")
    assert phantom.data() == b""
    phantom.send("A", at=len(GET))
    served(phantom, GET)
    assert grown["ROUTED_FIRST"] == 1, grown


@pytest.mark.parametrize(
    ("mss", "most"),
    [(None, 536), (1, 536), (100, 536), (535, 536), (536, 536), (1219, 536), (1220, 1220), (9000, 1460)],
)
def test_a_client_may_name_any_segment_size(routed: Bench, phantom: Phantom, mss: int | None, most: int) -> None:
    """It gets segments of 536 bytes if it names fewer, as by Linux's own cookies: hosts take these. What the router
    takes is in the SYN-ACK.
    """
    hello = phantom.greet(options=[] if mss is None else [("MSS", mss)])
    assert options_of(hello)["MSS"] == ROUTER_MSS
    asked = request("/api/download")
    phantom.send("PA", asked)
    phantom.sent = len(asked)
    eventually(lambda: len(phantom.data()) > 4000, "some of a long answer")
    argv = ["ss", "-tinH", "dst", str(ADDRESS), "dport", "=", str(phantom.port)]
    shown = routed.network.hosts["api-1"].run(argv, timeout=SECONDS).stdout
    assert re.findall(r"\bmss:(\d+)", shown) == [str(most)], shown
    phantom.send("RA", at=len(asked))
    assert not phantom.was_reset()


@pytest.mark.parametrize("mss", [100, 536])
def test_so_may_a_real_one(routed: Bench, mss: int) -> None:
    """Whose own segments are then as small: a short request still fits into one."""
    with routed.connected(options=[(socket.IPPROTO_TCP, socket.TCP_MAXSEG, mss)]) as connection:
        head = f"GET /api/x HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
        for _ in range(3):
            connection.sock.sendall(head)
            answer = connection.answer()
            assert (answer.status, answer.body) == (200, BODY)


# ---- before the first request -----------------------------------------------------------------------


@pytest.mark.parametrize("garbage", [b"", b"\0"], ids=["without data", "with a byte"])
def test_keepalive_probes_before_the_first_request_are_answered_and_change_nothing(
    routed: Bench, phantom: Phantom, garbage: bytes
) -> None:
    grown = routed.growth()
    phantom.greet()
    phantom.send("A")
    for _ in range(3):
        phantom.send("A", garbage, at=-1)
    eventually(lambda: grown["TX_KEEPALIVE"] == 3, "the probes to be answered")
    assert {(one.seq, one.ack) for one in phantom.received("A")[1:]} == {(phantom.cookie + 1, ISN + 1)}
    assert phantom.port not in routed_ports(routed)
    phantom.send("PA", GET)
    served(phantom, GET)


# ---- half-close -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", ["FPA", "PA"], ids=["with the request", "behind it"])
def test_a_client_that_has_finished_gets_its_answer(phantom: Phantom, flags: str) -> None:
    """Also from a server that takes its time, see test_router.py."""
    phantom.greet()
    phantom.send(flags, GET)
    if "F" not in flags:
        phantom.send("FA", at=len(GET))
    served(phantom, GET + b"F")


def routed_ports(routed: Bench) -> dict[int, str]:
    """The phantom's ports that have a flow entry: whether they are open, closing or answered."""
    assert isinstance(routed.running, RunningRauta)
    table = routed.running.router.object.maps["flows"].items_batch()
    entries = [flow for _, one in table for tag, flow in zip(one["tag"], one["flow"], strict=True) if tag]
    mine = int.from_bytes(ADDRESS.packed, "little")
    return {
        socket.ntohs(flow["tuple"]["client_port"]): ("", "open", "closing", "answered")[flow["state"]]
        for flow in entries
        if flow["tuple"]["client"] == mine
    }


def options_list(raw: bytes) -> list[object]:
    """IPv4 options as scapy takes them."""
    return [IPOption(raw)]
