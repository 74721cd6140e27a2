"""Clients that break the rules, or know them too well: each gets a clear answer at once, and nobody else notices."""

from __future__ import annotations

import os
import socket
import ssl
from pathlib import Path

import pytest

from e2e.bench import HOST, SECONDS, Bench, eventually, request
from e2e.wire import capture, segment, send
from lab.contenders.rauta import RunningRauta
from lab.servers import content

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root"),
    pytest.mark.usefixtures("nothing_is_sent_twice"),
]

BODY = content(13)
FREE_PORT = 2000
"""of the client's: below what the kernel chooses"""
FAR = 1 << 30
"""from any window, in bytes"""


def head(*lines: str) -> bytes:
    """A request's head, line by line."""
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def flow_ports(routed: Bench) -> set[int]:
    """The client's port of every entry in the router's flow table."""
    assert isinstance(routed.running, RunningRauta)
    sets = [one for _, one in routed.running.router.object.maps["flows"].items_batch()]
    entries = [(tag, flow) for one in sets for tag, flow in zip(one["tag"], one["flow"], strict=True)]
    return {socket.ntohs(flow["tuple"]["client_port"]) for tag, flow in entries if tag}


# ---- requests that are refused ------------------------------------------------------------------------

START = "GET /api/x HTTP/1.1"
NAMED = f"Host: {HOST}"
REFUSED = {
    "two hosts": (head(START, NAMED, NAMED), 400, "TX_BAD_REQUEST"),
    "two different hosts": (head(START, NAMED, "Host: elsewhere.test"), 400, "TX_BAD_REQUEST"),
    "no host": (head(START), 400, "TX_BAD_REQUEST"),
    "two lengths": (head(START, NAMED, "Content-Length: 1", "Content-Length: 2"), 400, "TX_BAD_REQUEST"),
    "a length that is none": (head(START, NAMED, "Content-Length: -1"), 400, "TX_BAD_REQUEST"),
    "length and encoding": (
        head("POST /api/x HTTP/1.1", NAMED, "Content-Length: 3", "Transfer-Encoding: chunked"),
        400,
        "TX_BAD_REQUEST",
    ),
    "folded line": (head(START, NAMED, "X: a", " b"), 400, "TX_BAD_REQUEST"),
    "space before colon": (head(START, NAMED, "Content-Length : 3"), 400, "TX_BAD_REQUEST"),
    "line feeds only": (head(START, NAMED).replace(b"\r", b""), 400, "TX_BAD_REQUEST"),
    "way up": (request("/api/../web"), 400, "TX_BAD_REQUEST"),
    "hidden way up": (request("/api/%2e%2e/web"), 400, "TX_BAD_REQUEST"),
    "proxy's target": (request("http://elsewhere.test/api/x"), 400, "TX_BAD_REQUEST"),
    "another version": (head("GET /api/x HTTP/3.0", NAMED), 400, "TX_BAD_REQUEST"),
    "upgrade": (request("/api/x", "Connection: Upgrade", "Upgrade: websocket"), 501, "TX_NOT_IMPLEMENTED"),
    "chunks": (head("POST /api/x HTTP/1.1", NAMED, "Transfer-Encoding: chunked"), 411, "TX_LENGTH_REQUIRED"),
    "huge body": (head("POST /api/x HTTP/1.1", NAMED, "Content-Length: 5000000000"), 413, "TX_BODY_TOO_LARGE"),
    "long path": (request("/api/" + "x" * 300), 414, "TX_URI_TOO_LONG"),
    "many lines": (head(START, NAMED, *["a: b"] * 150), 431, "TX_HEAD_TOO_LARGE"),
}


@pytest.mark.parametrize(("sent", "status", "verdict"), REFUSED.values(), ids=REFUSED)
def test_a_doubtful_request_is_refused(routed: Bench, sent: bytes, status: int, verdict: str) -> None:
    with routed.connected() as connection:
        grown = routed.growth()
        connection.sock.sendall(sent)
        answer = connection.answer()
        assert (answer.status, answer.backend) == (status, "")
        assert connection.ended()
    assert (grown[verdict], grown["requests_routed"]) == (1, 0), grown


@pytest.mark.parametrize(("sent", "status", "verdict"), REFUSED.values(), ids=REFUSED)
def test_a_later_one_is_reset(routed: Bench, sent: bytes, status: int, verdict: str) -> None:
    with routed.connected() as connection:
        assert connection.ask("/api/x").body == BODY
        grown = routed.growth()
        connection.sock.sendall(sent)
        with pytest.raises(ConnectionResetError):
            connection.sock.recv(1)
    assert (grown[verdict], grown["requests_routed"]) == (1, 0), grown


@pytest.mark.parametrize("size", [2_000, 10_000, 100_000])
def test_a_head_of_many_packets_is_refused_and_read_to_its_end(routed: Bench, size: int) -> None:
    """The client sends all of it before it listens. A reset for its later segments could destroy the answer."""
    grown = routed.growth()
    with routed.connected() as connection:
        connection.sock.sendall(head(START, NAMED, "X: " + "x" * size))
        assert connection.answer().status == 431
        assert connection.ended()
    assert (grown["TX_HEAD_TOO_LARGE"], grown["requests_routed"]) == (1, 0), grown


def test_curl_is_told_that_chunks_need_a_length(routed: Bench, tmp_path: Path) -> None:
    upload = tmp_path / "upload"
    upload.write_bytes(content(100_000))
    address, port = routed.vip("shop")
    argv = ["curl", "-sS", "--max-time", f"{SECONDS:g}", "-o", "/dev/null", "-w", "%{http_code}", "-T", str(upload)]
    chunked = ["-H", "Transfer-Encoding: chunked", "-H", "Expect:", "--connect-to", f"::{address}:{port}"]
    grown = routed.growth()
    done = routed.client.run([*argv, *chunked, f"http://{HOST}/api/x"], timeout=2 * SECONDS)
    assert done.stdout == "411"
    assert (grown["TX_LENGTH_REQUIRED"], grown["requests_routed"]) == (1, 0), grown


@pytest.mark.parametrize("kept", [False, True], ids=["first", "later"])
def test_requests_in_one_segment_are_reset(routed: Bench, kept: bool) -> None:
    with routed.connected() as connection:
        if kept:
            assert connection.ask("/api/x").body == BODY
        grown = routed.growth()
        connection.sock.sendall(request("/api/x") + request("/web"))
        with pytest.raises(ConnectionResetError):
            connection.sock.recv(1)
    assert (grown["TX_RESET_PIPELINED"], grown["requests_routed"]) == (1, 0), grown


def test_a_request_behind_a_body_is_reset(routed: Bench) -> None:
    """In the body's last segment: its bytes must not reach the backend as one more request."""
    with routed.connected() as connection:
        grown = routed.growth()
        connection.sock.sendall(head("POST /api/x HTTP/1.1", NAMED, "Content-Length: 5"))
        eventually(lambda: grown["ROUTED_FIRST"] == 1, "the head to be routed")
        connection.sock.sendall(b"12345" + request("/web"))
        with pytest.raises(ConnectionResetError):
            connection.sock.recv(1)
    assert (grown["TX_RESET_PIPELINED"], grown["requests_routed"]) == (1, 1), grown


# ---- not HTTP/1 -----------------------------------------------------------------------------------------


def test_tls_is_reset(routed: Bench) -> None:
    grown = routed.growth()
    with routed.connected() as connection, pytest.raises(ConnectionResetError):
        ssl.create_default_context().wrap_socket(connection.sock, server_hostname=HOST)
    assert (grown["TX_RESET_NOT_HTTP"], grown["requests_routed"]) == (1, 0), grown


@pytest.mark.parametrize("kept", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("sent", [b"SSH-2.0-x\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0" * 1400, b"G", b"get / "])
def test_so_is_whatever_else_is_not_http(routed: Bench, sent: bytes, kept: bool) -> None:
    with routed.connected() as connection:
        if kept:
            assert connection.ask("/api/x").body == BODY
        grown = routed.growth()
        connection.sock.sendall(sent)
        with pytest.raises(ConnectionResetError):
            connection.sock.recv(1)
    assert (grown["TX_RESET_NOT_HTTP"], grown["requests_routed"]) == (1, 0), grown


# ---- segments from nowhere ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "payload", "verdict"),
    [
        ("PA", request("/api/x"), "TX_RESET_COOKIE"),
        ("FPA", request("/api/x"), "TX_RESET_COOKIE"),
        ("PA", b"hello", "DROP_NO_FLOW"),
        ("A", b"", "DROP_NO_FLOW"),
        ("FA", b"", "DROP_NO_FLOW"),
        ("R", b"", "DROP_NO_FLOW"),
        ("SA", b"", "DROP_FLAGS"),
        ("SF", b"", "DROP_FLAGS"),
        ("", b"", "DROP_FLAGS"),
    ],
)
def test_a_segment_without_a_handshake_opens_nothing(routed: Bench, flags: str, payload: bytes, verdict: str) -> None:
    mine, vip = (routed.client.address, FREE_PORT), routed.vip("shop")
    with capture(routed.client) as wire:
        grown = routed.growth()
        send(routed.client, segment(mine, vip, flags, seq=1_000_000, ack=2_000_000, payload=payload))
        eventually(lambda: grown[verdict] == 1, f"the segment to be counted as {verdict}")
        if verdict.startswith("TX_RESET"):
            eventually(lambda: bool(wire.received()), "the reset")
            (reset,) = wire.received()
            assert (reset.source, reset.destination, reset.seq) == (vip, mine, 2_000_000)
            assert "R" in reset.flags
        else:
            assert wire.received() == []
    assert (grown["requests_routed"], grown["AGENT_OPENED"]) == (0, 0), grown
    assert FREE_PORT not in flow_ports(routed)


def test_so_many_of_them_do_not_matter(routed: Bench) -> None:
    """A flood of requests without cookies fills no table: an open connection goes on."""
    with routed.connected() as connection:
        assert connection.ask("/api/x").body == BODY
        before, grown = flow_ports(routed), routed.growth()
        for port in range(FREE_PORT, FREE_PORT + 500):
            mine = (routed.client.address, port)
            send(routed.client, segment(mine, routed.vip("shop"), "PA", seq=port, ack=port, payload=request("/api/x")))
        eventually(lambda: grown["TX_RESET_COOKIE"] == 500, "all of them to be refused")
        assert flow_ports(routed) == before
        assert connection.ask("/api/x").body == BODY


NEXT = request("/api/x")
"""what the connection in the next test asks for, again and again"""


@pytest.mark.parametrize(
    ("flags", "offset", "payload", "verdict"),
    [
        ("R", FAR, b"", "FORWARDED_CLOSE"),
        ("RA", FAR, b"", "FORWARDED_CLOSE"),
        ("FA", FAR, b"", "FORWARDED_CLOSE"),
        ("S", FAR, b"", "TX_SYN_ACK"),
        ("PA", FAR, request("/web"), "DROP_OUT_OF_ORDER"),
        ("PA", len(NEXT), request("/web"), "DROP_OUT_OF_ORDER"),  # where the request after the next one starts
        ("PA", 0, request("/web"), "DROP_PIPELINED"),  # where the next one starts, but the answer is not acknowledged
        ("PA", -10, b"x" * 10, "DROP_CHANGED"),  # over what was sent
        ("PA", -FAR, request("/web"), "DROP_CHANGED"),
    ],
)
def test_a_forged_segment_ends_no_connection(
    routed: Bench, flags: str, offset: int, payload: bytes, verdict: str
) -> None:
    """On the right addresses and ports, by somebody who does not see the numbers. What goes on to the backend, its
    kernel refuses.
    """
    with capture(routed.client) as wire, routed.connected() as connection:
        assert connection.ask("/api/x").backend == "api-1"
        last = next(packet for packet in wire.sent() if packet.payload == NEXT)
        grown = routed.growth()
        forged = segment(last.source, last.destination, flags, seq=last.after + offset, ack=last.ack, payload=payload)
        send(routed.client, forged)
        eventually(lambda: grown[verdict] > 0, f"the segment to be counted as {verdict}")
        for _ in range(3):
            answer = connection.ask("/api/x")
            assert (answer.status, answer.backend, answer.body) == (200, "api-1", BODY)
        assert (grown["ROUTED_NEXT"], grown["requests_routed"]) == (3, 3), grown


# ---- saying something else the second time --------------------------------------------------------------

ROUTED = request("/api/x", "X-Padding: 12345678")
IN_ITS_PLACE = {
    "another cluster's": [(0, request("/web", "X-Padding: 12345678"))],
    "another path of the same": [(0, request("/api/y", "X-Padding: 12345678"))],
    "another header": [(0, request("/api/x", "X-Padding: 12345679"))],
    "split": [(0, request("/api/y")[:20]), (20, request("/api/y", "X-Padding: 12345678")[20:])],
    "its end first": [(20, request("/web", "X-Padding: 123456781")[20:]), (0, request("/web")[:20])],
    "longer": [(0, request("/web", "X-Padding: 12345678") + b"GET")],
}


@pytest.mark.parametrize("again", IN_ITS_PLACE.values(), ids=IN_ITS_PLACE)
def test_what_was_routed_cannot_be_replaced(routed: Bench, again: list[tuple[int, bytes]]) -> None:
    """The router routes a request whose checksum is wrong. The backend drops it, and gets nothing in its place but it
    itself: this client's kernel sends that at last, and the connection is as good as any.
    """
    with capture(routed.client) as wire, routed.connected() as connection:
        hello = next(packet for packet in wire.received() if packet.flags == "SA")
        mine, theirs, seq, ack = hello.destination, hello.source, hello.ack, hello.seq + 1
        grown = routed.growth()
        wrong = bytearray(segment(mine, theirs, "PA", seq=seq, ack=ack, payload=ROUTED))
        wrong[36] ^= 0xFF  # of the checksum
        send(routed.client, bytes(wrong))
        eventually(lambda: grown["ROUTED_FIRST"] == 1, "the request with the wrong checksum to be routed")
        for at, payload in again:
            send(routed.client, segment(mine, theirs, "PA", seq=seq + at, ack=ack, payload=payload))
        eventually(lambda: grown["DROP_CHANGED"] + grown["TX_RESET_PIPELINED"] == len(again), "what was sent to count")
        if grown["TX_RESET_PIPELINED"]:
            return
        connection.sock.sendall(ROUTED)
        answer = connection.answer()
        assert (answer.status, answer.backend, answer.body) == (200, "api-1", BODY)
        assert (grown["FORWARDED_AGAIN"], grown["requests_routed"]) == (1, 1), grown
