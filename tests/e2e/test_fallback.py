"""What XDP does not route, through a proxy on the router's own host: nothing is lost, and nothing goes astray."""

from __future__ import annotations

import hashlib
import json
import os
import random
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from websockets.sync import client as websocket_client
from websockets.sync import server as websocket_server

from e2e.bench import HOST, SECONDS, Bench, Conversation, bench, eventually, request
from e2e.wire import Packet, capture
from lab.clients import Answer
from lab.servers import content
from rauta import fallback

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root"),
    pytest.mark.usefixtures("nothing_is_sent_twice"),
]

FILE = Path(__file__).parent / "data" / "fallback.yaml"
DOWNLOAD = content(5_000_000)
ENCODED = "Transfer-Encoding: chunked"
PORT = 8080
"""of the servers"""
KERNEL_LOG = Path("/dev/kmsg")
MISSED = ("TcpExt.TCPTimeouts", "TcpExt.TCPOFOQueue", "TcpExt.TCPFastRetrans", "Tcp.InCsumErrors")
"""counters that grow when something was lost, came in another order, or damaged"""


# ---- servers of the tests' own --------------------------------------------------------------------------


class Digest(BaseHTTPRequestHandler):
    """Answers with the length and the digest of the body that it was sent, however that was framed."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """The answer."""
        body = b"".join(self._chunks()) if self.headers.get("Transfer-Encoding") else self._whole()
        said = json.dumps({"length": len(body), "sha256": hashlib.sha256(body).hexdigest()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def _whole(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _chunks(self) -> Iterator[bytes]:
        """RFC 9112, 7.1, without extensions and trailers: no proxy adds any."""
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            assert self.rfile.readline() == b"\r\n"
        assert self.rfile.readline() == b"\r\n"

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


class DigestServer(ThreadingHTTPServer):
    """In the namespace of the thread that makes it."""

    daemon_threads = True
    request_queue_size = 128


def echo(connection: websocket_server.ServerConnection) -> None:
    """Sends every message back."""
    for message in connection:
        connection.send(message)


def serve_digests(routed: Bench, undo: ExitStack) -> None:
    host = routed.network.hosts["digest-1"]
    host.stop_all()
    with host.entered():
        server = undo.enter_context(DigestServer((str(host.address), PORT), Digest))
    _in_a_thread(server, undo, poll_interval=0.05)


def serve_websockets(routed: Bench, undo: ExitStack) -> None:
    host = routed.network.hosts["chat-1"]
    host.stop_all()
    with host.entered():
        listener = socket.create_server((str(host.address), PORT))
    _in_a_thread(websocket_server.serve(echo, sock=listener, max_size=None), undo)


def _in_a_thread(server: Any, undo: ExitStack, **options: float) -> None:
    thread = threading.Thread(target=server.serve_forever, kwargs=options)
    thread.start()
    undo.callback(thread.join)
    undo.callback(server.shutdown)


@pytest.fixture(scope="module", params=fallback.KINDS)
def routed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A network with each proxy as the fallback."""
    logs = tmp_path_factory.mktemp("logs")
    with bench("rauta", logs, FILE, f"settings.rauta.fallback={request.param}") as one, ExitStack() as undo:
        serve_digests(one, undo)
        serve_websockets(one, undo)
        yield one


@pytest.fixture
def nothing_is_lost(routed: Bench, may_repeat: None) -> Iterator[None]:
    """For much data to programs that may have to wait for a CPU: their kernel's acknowledgements do, too.

    Meanwhile the sender probes (RFC 8985, 7.2), which repeats a segment: that is all it may repeat, and none may be
    missed by whom it was sent to.
    """
    hosts = [routed.client, routed.network.router]
    before = [host.tcp_counters() for host in hosts]
    yield
    for host, counters in zip(hosts, before, strict=True):
        grown = {name: count - counters[name] for name, count in host.tcp_counters().items()}
        assert grown["Tcp.RetransSegs"] <= grown["TcpExt.TCPLossProbes"], host.name
        assert {name: grown[name] for name in MISSED} == dict.fromkeys(MISSED, 0), host.name


@pytest.fixture
def kind(routed: Bench) -> str:
    """The proxy."""
    return str(routed.scenario.settings["rauta"]["fallback"])


def padded(path: str, size: int, *headers: str) -> bytes:
    """A request whose head has that many bytes, most of them cookies of 3,000."""
    bare = len(request(path, *headers))
    lines = [f"Cookie: {'c' * 2990}"] * ((size - bare) // 3000)
    rest = size - len(request(path, *headers, *lines))
    return request(path, *headers, *lines, "X: " + "x" * (rest - len("X: \r\n")))


def chunked(body: bytes, size: int = 1000) -> bytes:
    """A body in chunks of that size."""
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def digest_of(answer: Answer) -> tuple[int, str]:
    said = json.loads(answer.body)
    return said["length"], said["sha256"]


def asked(connection: Conversation, data: bytes) -> Answer:
    connection.sock.sendall(data)
    return connection.answer()


# ---- heads ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1, 2, 7, 30])
def test_a_head_in_pieces_is_answered(routed: Bench, piece: int) -> None:
    grown, data = routed.growth(), request("/api/x", "Accept: */*")
    with routed.connected() as connection:
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(data), piece):
            connection.sock.sendall(data[at : at + piece])
        answer = connection.answer()
    assert (answer.status, answer.backend, answer.body) == (200, "api-1", content(13))
    assert (grown["FALLBACK_HEAD"], grown["ROUTED_FIRST"]) == (1, 0), grown


@pytest.mark.parametrize("size", [1_500, 10_000, 32_000])
def test_a_long_head_is_answered(routed: Bench, size: int) -> None:
    """The server takes as much: four buffers of 8 KB, as nginx has them by default. The last is one line too many."""
    grown = routed.growth()
    with routed.connected() as connection:
        answer = asked(connection, padded("/api/x", size))
    assert (answer.status, answer.backend) == (200, "api-1") if size < 32_000 else (400, "api-1")
    assert grown["FALLBACK_HEAD"] == 1, grown


def test_a_head_of_32_kb_reaches_the_server_whole(routed: Bench) -> None:
    with routed.connected() as connection:
        for line in (f"Cookie: {'c' * 31_900}", *[[f"X-{n}: {'x' * 90}" for n in range(95)]]):
            lines = [line] if isinstance(line, str) else line
            answer = asked(connection, request("/digest", *lines, method="POST", body=b"hello"))
            assert digest_of(answer) == (5, hashlib.sha256(b"hello").hexdigest())


def test_many_lines_are_answered(routed: Bench) -> None:
    grown = routed.growth()
    with routed.connected() as connection:
        assert asked(connection, request("/api/x", *["a: b"] * 180)).backend == "api-1"
    assert grown["FALLBACK_HEAD"] == 1, grown


@pytest.mark.parametrize("length", [257, 300, 4000])
def test_a_long_path_is_answered(routed: Bench, length: int) -> None:
    grown = routed.growth()
    with routed.connected() as connection:
        assert connection.ask("/api/" + "x" * (length - 5)).backend == "api-1"
        assert connection.ask("/apix/" + "x" * (length - 5)).status == 404
    assert grown["FALLBACK_PATH"] == 1, grown


# ---- bodies ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_is_lost")
@pytest.mark.parametrize("size", [0, 1, 1_000_000])
def test_curl_uploads_in_chunks(routed: Bench, tmp_path: Path, size: int) -> None:
    body, grown = random.Random(7).randbytes(size), routed.growth()
    file = tmp_path / "body"
    file.write_bytes(body)
    address, port = routed.vip("shop")
    argv = ["curl", "--silent", "--show-error", "--fail", "--max-time", "5", "-H", ENCODED, "--data-binary", f"@{file}"]
    done = routed.client.run(
        [*argv, "--resolve", f"{HOST}:{port}:{address}", f"http://{HOST}:{port}/digest/x"], timeout=2 * SECONDS
    )
    said = json.loads(done.stdout)
    assert (said["length"], said["sha256"]) == (size, hashlib.sha256(body).hexdigest())
    assert grown["FALLBACK_ENCODED"] == 1, grown


@pytest.mark.usefixtures("nothing_is_lost")
@pytest.mark.parametrize("gro", ["off", "on"])
def test_large_uploads_and_downloads_arrive_whole(routed: Bench, gro: str) -> None:
    """In turn on one connection; also where the kernel merges what the router has passed on."""
    router, grown = routed.network.router, routed.growth()
    router.run(["ethtool", "-K", router.interface, "gro", gro], timeout=SECONDS)
    body = random.Random(8).randbytes(5_000_000)
    with routed.connected() as connection:
        for size in (5_000_000, 1, 1415, 1417, 70_000):
            part = body[:size]
            head = request("/digest", ENCODED, method="POST")
            answer = asked(connection, head + chunked(part, size=30_011))
            assert digest_of(answer) == (size, hashlib.sha256(part).hexdigest())
            assert connection.ask("/api/download").body == DOWNLOAD
    router.run(["ethtool", "-K", router.interface, "gro", "off"], timeout=SECONDS)
    merged = grown["FALLBACK_FORWARDED"] > 2 * grown["AGENT_DELIVERED"]
    assert merged == (gro == "on"), grown


def test_an_upload_waits_to_be_asked_for(routed: Bench) -> None:
    """Expect: 100-continue (RFC 9110, 10.1.1)."""
    with routed.connected() as connection:
        connection.sock.sendall(request("/digest", ENCODED, "Expect: 100-continue", method="POST"))
        assert connection.sock.recv(1000, socket.MSG_PEEK).startswith(b"HTTP/1.1 100 ")
        with connection.sock.makefile("rb", buffering=0) as stream:
            while stream.readline() != b"\r\n":
                pass
        connection.sock.sendall(chunked(b"hello"))
        assert digest_of(connection.answer()) == (5, hashlib.sha256(b"hello").hexdigest())


@pytest.mark.usefixtures("nothing_is_lost")
def test_a_client_that_has_closed_its_half_gets_its_answer(routed: Bench) -> None:
    with routed.connected() as connection:
        connection.sock.sendall(request("/api/download", ENCODED, method="GET") + chunked(b""))
        connection.sock.shutdown(socket.SHUT_WR)
        assert connection.answer().body == DOWNLOAD
        assert connection.ended()


# ---- requests -------------------------------------------------------------------------------------------


def test_requests_in_one_segment_are_answered_in_order_by_their_clusters(routed: Bench) -> None:
    grown, paths = routed.growth(), ["/api/1", "/web/2", "/nowhere", "/api/3"]
    with routed.connected() as connection:
        connection.sock.sendall(b"".join(map(request, paths)))
        with connection.sock.makefile("rb") as stream:
            answers = [_next_answer(stream) for _ in paths]
    clusters = routed.network.clusters
    assert [answer.status for answer in answers] == [200, 200, 404, 200]
    assert [answers[0].backend, answers[3].backend] == ["api-1", "api-1"]
    assert answers[1].backend in clusters["web"]
    assert (grown["FALLBACK_PIPELINED"], grown["ROUTED_FIRST"]) == (1, 0), grown


def _next_answer(stream: Any) -> Answer:
    """http.client reads more than its answer: what follows would be lost."""
    status = int(stream.readline().split()[1])
    headers = {}
    while (line := stream.readline()) != b"\r\n":
        name, _, value = line.decode().partition(":")
        headers[name.lower()] = value.strip()
    return Answer(status, headers, stream.read(int(headers.get("content-length", 0))))


def test_a_connection_goes_on_from_cluster_to_cluster(routed: Bench) -> None:
    """What XDP would have reset: the fallback has the connection, and routes each request."""
    grown, clusters = routed.growth(), routed.network.clusters
    with routed.connected() as connection:
        assert asked(connection, padded("/api/x", 2_000)).backend == "api-1"
        for _ in range(20):
            assert connection.ask("/web/x").backend in clusters["web"]
            assert connection.ask("/api/x").backend == "api-1"
            assert connection.ask("/nowhere").status == 404
    assert (grown["FALLBACK_HEAD"], grown["ROUTED_NEXT"], grown["FALLBACK_AGAIN"]) == (1, 0, 0), grown


def test_two_hosts_are_refused(routed: Bench) -> None:
    grown = routed.growth()
    with routed.connected() as connection:
        answer = asked(connection, request("/api/x", "Host: other.test"))
        assert (answer.status, answer.backend) == (400, "")
    assert grown["FALLBACK_AMBIGUOUS"] == 1, grown


def test_length_and_encoding_together_hide_nothing(routed: Bench, kind: str) -> None:
    """nginx refuses, HAProxy believes the encoding and takes the length out (RFC 9112, 6.3)."""
    grown = routed.growth()
    with routed.connected() as connection:
        both = request("/digest", "Content-Length: 4", ENCODED, method="POST")
        answer = asked(connection, both + chunked(b"hello"))
        if kind == "nginx":
            assert answer.status == 400
        else:
            assert digest_of(answer) == (5, hashlib.sha256(b"hello").hexdigest())
    assert grown["FALLBACK_AMBIGUOUS"] == 1, grown


def test_a_path_that_servers_normalise_is_routed_by_what_it_becomes(routed: Bench) -> None:
    for path, status in (("/api/../web", 200), ("/web/%2e%2e/api/x", 200), ("/api/../nowhere", 404), ("/api%2fx", 400)):
        with routed.connected() as connection:
            answer = connection.ask(path)
        assert answer.status == status
        if status == 200:
            assert answer.backend.startswith("api" if "api/x" in path else "web")


def test_what_no_route_names_goes_to_the_fallback_where_the_vip_says_so(routed: Bench) -> None:
    grown = routed.growth()
    with routed.connected(routed.vip("open")) as connection:
        assert connection.ask("/nowhere").status == 404
        assert connection.ask("/api/x").backend == "open-1"
    with routed.connected() as connection:
        assert connection.ask("/nowhere").status == 404
    with routed.connected(routed.vip("strict")) as connection:
        connection.sock.sendall(request("/nowhere"))
        with pytest.raises(ConnectionResetError):
            connection.sock.recv(1)
    assert {name: grown[name] for name in ("FALLBACK_NO_ROUTE", "TX_NO_ROUTE", "TX_RESET_NO_ROUTE")} == {
        "FALLBACK_NO_ROUTE": 1,
        "TX_NO_ROUTE": 1,
        "TX_RESET_NO_ROUTE": 1,
    }


def test_at_the_fallback_a_vip_that_resets_closes(routed: Bench) -> None:
    with routed.connected(routed.vip("strict")) as connection:
        connection.sock.sendall(request("/nowhere", ENCODED, method="POST") + chunked(b"hello"))
        try:
            said = connection.sock.recv(1)
        except ConnectionResetError:
            said = b""
        assert said == b""
    with routed.connected(routed.vip("strict")) as connection:
        assert asked(connection, request("/api/x", ENCODED, method="POST") + chunked(b"hello")).backend == "strict-1"


# ---- other protocols ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_is_lost")
def test_a_websocket_works(routed: Bench) -> None:
    """A real client and a real server, in both directions, small and large, until they say goodbye."""
    grown = routed.growth()
    with routed.connected() as connection:
        with websocket_client.connect(
            f"ws://{HOST}/chat", sock=connection.sock, max_size=None, compression=None
        ) as one:
            for number in range(200):
                one.send(f"message {number}")
                assert one.recv(SECONDS) == f"message {number}"
            large = random.Random(9).randbytes(1_000_000)
            for part in (large, large[:1], large[: 1 << 16]):
                one.send(part)
                assert one.recv(SECONDS) == part
            assert one.ping().wait(SECONDS)
            one.close()
        assert one.close_code == 1000
    assert grown["FALLBACK_UPGRADE"] == 1, grown


def test_websockets_are_not_confused(routed: Bench) -> None:
    with ExitStack() as stack:
        connections = [stack.enter_context(routed.connected()) for _ in range(20)]
        chats = [
            stack.enter_context(websocket_client.connect(f"ws://{HOST}/chat/{n}", sock=connection.sock))
            for n, connection in enumerate(connections)
        ]
        for turn in range(5):
            for number, chat in enumerate(chats):
                chat.send(f"{number} {turn}")
            for number, chat in enumerate(chats):
                assert chat.recv(SECONDS) == f"{number} {turn}"


def test_an_upgrade_to_http2_is_not_offered(routed: Bench) -> None:
    grown = routed.growth()
    with routed.connected() as connection:
        answer = asked(connection, request("/api/x", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"))
        assert (answer.status, answer.backend) == (200, "api-1")
    assert grown["FALLBACK_UPGRADE"] == 1, grown


def test_tls_to_a_plain_vip_fails_at_once(routed: Bench) -> None:
    grown = routed.growth()
    context = ssl.create_default_context()
    with routed.connected() as connection, pytest.raises(ssl.SSLError):
        context.wrap_socket(connection.sock, server_hostname=HOST)
    assert grown["FALLBACK_TLS"] == 1, grown


def test_http2_gets_a_clear_answer(routed: Bench, kind: str) -> None:
    """HAProxy speaks it, nginx before 1.25.1 cannot on a port that speaks HTTP/1, too."""
    grown = routed.growth()
    address, port = routed.vip("shop")
    argv = ["curl", "--silent", "--http2-prior-knowledge", "--max-time", "5", "--resolve", f"{HOST}:{port}:{address}"]
    said = ["--write-out", "%{http_version} %{http_code} %header{x-backend}", "--output", "/dev/null"]
    done = routed.client.run([*argv, *said, f"http://{HOST}:{port}/api/x"], timeout=2 * SECONDS, check=False)
    assert done.seconds < SECONDS
    assert grown["FALLBACK_HTTP2"] == 1, grown
    if kind == "haproxy":
        assert (done.returncode, done.stdout) == (0, "2 200 api-1")
    else:
        assert done.returncode != 0


@pytest.mark.parametrize(
    "data", [b"SSH-2.0-x\r\n", b"\r\n\r\n\r\n\r\n\r\n", b"get / HTTP/1.1\r\nHost: shop.test\r\n\r\n"]
)
def test_nonsense_gets_an_answer_or_an_end(routed: Bench, data: bytes) -> None:
    grown = routed.growth()
    with routed.connected() as connection:
        connection.sock.sendall(data)
        connection.sock.shutdown(socket.SHUT_WR)
        said = connection.sock.recv(100)
    assert said == b"" or said.startswith((b"HTTP/1.1 400 ", b"<html>"))
    assert grown["FALLBACK_NOT_HTTP"] == 1, grown


def test_other_methods_are_routed(routed: Bench) -> None:
    """Those that XDP does not know, such as WebDAV's."""
    grown = routed.growth()
    with routed.connected() as connection:
        assert connection.ask("/api/x", method="PROPFIND").backend == "api-1"
    assert grown["FALLBACK_NOT_HTTP"] == 1, grown


# ---- connections ----------------------------------------------------------------------------------------


def test_a_port_is_used_again_whoever_had_it(routed: Bench) -> None:
    """In turn for the fast path and the fallback, with each side closing first."""
    port, grown = 33_333, routed.growth()
    for number in range(12):
        lines = ["Connection: close"] if number % 4 > 1 else []
        with routed.connected(port=port) as connection:
            if number % 2:
                answer = asked(connection, padded("/api/x", 3_000, *lines))
            else:
                answer = asked(connection, request("/web/x", *lines))
            assert answer.backend == "api-1" if number % 2 else answer.backend.startswith("web")
            if lines:
                assert connection.ended()
            else:
                connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert (grown["FALLBACK_HEAD"], grown["ROUTED_FIRST"]) == (6, 6), grown


def test_two_vips_share_a_clients_port(routed: Bench) -> None:
    """The fallback has a port for each VIP, so that these are different connections there, too."""
    again = [(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)]
    with (
        routed.connected(port=34_444, options=again) as one,
        routed.connected(routed.vip("open"), port=34_444, options=again) as other,
    ):
        for _ in range(3):
            assert asked(one, request("/api/x", ENCODED, method="POST") + chunked(b"1")).backend == "api-1"
            assert asked(other, request("/api/x", ENCODED, method="POST") + chunked(b"2")).backend == "open-1"


def test_the_client_hears_nobody_but_the_vip(routed: Bench) -> None:
    ports = set()
    with capture(routed.client) as wire:
        for lines in ([], ["Connection: close"]):
            with routed.connected() as connection:
                ports.add(connection.port)
                assert asked(connection, padded("/api/x", 3_000, *lines)).backend == "api-1"
                assert not lines or connection.ended()

        def heard() -> list[Packet]:
            return [packet for packet in wire.received() if packet.destination[1] in ports]

        eventually(lambda: sum("F" in packet.flags for packet in heard()) == 2, "both connections to end")
        assert {packet.source for packet in heard()} == {routed.vip("shop")}


def test_the_backend_is_told_who_the_client_is(routed: Bench) -> None:
    """It sees the router's address; the last one in X-Forwarded-For is the client's."""
    with routed.connected() as connection:
        assert asked(connection, padded("/api/x", 3_000)).backend == "api-1"
        connections = routed.network.hosts["api-1"].run(["ss", "-tnH", "sport", "=", str(PORT)], timeout=SECONDS).stdout
        assert str(routed.network.router.address) in connections
        assert str(routed.client.address) not in connections


def test_the_share_of_the_fast_path_is_known(routed: Bench) -> None:
    router = routed.running.router  # type: ignore[attr-defined]
    counters = router.counters()
    reasons = [name for name in counters if name.startswith("FALLBACK_")]
    reasons = [name for name in reasons if name not in ("FALLBACK_AGAIN", "FALLBACK_FORWARDED", "FALLBACK_CLOSE")]
    handed, kept = sum(counters[name] for name in reasons), counters["ROUTED_FIRST"]
    assert handed > 0
    with routed.connected() as connection:
        assert connection.ask("/api/x").backend == "api-1"
    assert router.fast_path_share == (kept + 1) / (kept + handed + 1)


@pytest.mark.usefixtures("nothing_is_lost")
def test_many_at_once_arrive_whole(routed: Bench) -> None:
    body = random.Random(10).randbytes(200_000)
    expected = (len(body), hashlib.sha256(body).hexdigest())
    head = request("/digest", ENCODED, method="POST")
    with ExitStack() as stack:
        connections = [stack.enter_context(routed.connected()) for _ in range(30)]
        senders = [threading.Thread(target=one.sock.sendall, args=(head + chunked(body),)) for one in connections]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        assert [digest_of(one.answer()) for one in connections] == [expected] * len(connections)


def test_no_kernel_had_anything_to_complain_of(routed: Bench) -> None:
    """Of all that these tests have sent."""
    wrong = {host.name: host.tcp_counters()["Tcp.InCsumErrors"] for host in routed.network.hosts.values()}
    assert set(wrong.values()) == {0}, wrong
    assert "hw csum failure" not in kernel_log()


def kernel_log() -> str:
    """All of it that is still there (kmsg's documentation: a read for each record, EAGAIN at the end)."""
    parts = []
    with KERNEL_LOG.open("rb", buffering=0) as log:
        os.set_blocking(log.fileno(), False)
        while (part := log.read(8192)) is not None:
            parts.append(part)
    return b"".join(parts).decode(errors="replace")
