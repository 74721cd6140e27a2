"""Per-request routing: one connection of a client, whose requests go to the backends that their routes name.

On `web` and `api` there is nginx, on `sign` and `stamp` there are servers that sign what they answer (e2e/signing.py).
RAUTA_LONG=1 lets connections be idle for a minute.
"""

from __future__ import annotations

import http.client
import os
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from e2e import signing
from e2e.bench import HOST, SECONDS, Bench, Conversation, bench, eventually, request
from e2e.wire import capture, segment, send
from lab.checks.state import ESTABLISHED, sockets
from lab.contenders.rauta import RunningRauta
from lab.servers import content
from rauta import tables
from rauta.router import Router

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root"),
    pytest.mark.usefixtures("nothing_is_sent_twice"),
]

FILE = Path(__file__).parent / "data" / "moves.yaml"
LONG = bool(os.environ.get("RAUTA_LONG"))
IDLE = 60.0 if LONG else 2.0
BODY = content(13)
DOWNLOAD = content(5_000_000)
SIGNERS = ("sign", "stamp")
TIME_WAIT = "06"
SEGMENT = 1448
"""bytes of data in a full one, with timestamps"""
NO_DELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
ABORT = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
"""set on a socket, makes its close a reset"""
PROBES = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2),
]
"""keepalive probes each second; the second that is not answered ends the connection"""


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the signing servers write what they have executed."""
    return tmp_path_factory.mktemp("executed")


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Iterator[Bench]:
    """A network of this module's own."""
    with bench("rauta", tmp_path_factory.mktemp("logs"), FILE) as one, signing.signing(one.network, SIGNERS, logs):
        yield one


@pytest.fixture
def router(routed: Bench) -> Iterator[Router]:
    """Whose weights may be changed: `web` gets its own back."""
    assert isinstance(routed.running, RunningRauta)
    yield routed.running.router
    routed.running.router.set_weights("web", {"web-1": 1, "web-2": 1})


@dataclass(frozen=True)
class Signed:
    """A request to a signing server, and what it has to be answered."""

    target: str
    method: str = "GET"
    body: bytes = b""
    size: int = 0

    def sent(self, *headers: str) -> bytes:
        return request(self.target, *headers, method=self.method, body=self.body)

    def check(self, connection: Conversation) -> None:
        """The next answer is this one's."""
        answer = connection.answer(self.method)
        proof = signing.digest(self.method, self.target, self.body)
        assert (answer.status, answer.headers["x-digest"]) == (200, proof)
        assert answer.backend == f"{self.target.split('/')[1]}-1"
        assert answer.body == (b"" if self.method == "HEAD" else signing.signed(proof, self.size))

    def ask(self, connection: Conversation) -> None:
        connection.sock.sendall(self.sent())
        self.check(connection)


def backends(routed: Bench) -> list[str]:
    return [name for cluster in routed.network.clusters.values() for name in cluster]


def wait_until_nothing_is_left(routed: Bench, port: int) -> None:
    """Of a connection: no socket on any backend, none on the client but in TIME_WAIT."""
    for name in backends(routed):
        routed.wait_until_gone(name, port)
    eventually(
        lambda: {one.state for one in sockets(routed.client) if one.local[1] == port} <= {TIME_WAIT},
        f"the client's socket on {port} to be gone",
    )


def holders(routed: Bench, port: int) -> list[str]:
    """The backends that have a socket of a port of the client's."""
    return [name for name in backends(routed) if routed.sockets_of(name, port)]


def reset_by_peer(connection: Conversation) -> bool:
    """Whether the connection was reset, and not closed; OSError if neither in time."""
    try:
        return connection.sock.recv(1) == b"never"
    except ConnectionResetError:
        return True


# ---- by path, host and method ---------------------------------------------------------------------------


def test_routes_alternate_on_one_connection(routed: Bench) -> None:
    grown = routed.growth()
    with routed.connected() as connection:
        for number in range(100):
            path, cluster = ("/api/x", "api") if number % 2 else ("/web", "web")
            answer = connection.ask(path)
            assert (answer.status, answer.body) == (200, BODY)
            assert answer.backend in routed.network.clusters[cluster]
    assert (grown["ROUTED_FIRST"], grown["ROUTED_MOVED"], grown["requests_routed"]) == (1, 99, 100), grown
    assert (grown["AGENT_ORDERED"], grown["AGENT_MOVED"], grown["AGENT_ADOPTED"]) == (99, 99, 99), grown


def test_hosts_alternate_on_one_connection(routed: Bench) -> None:
    turns = [("api.test", "api"), ("a.sign.test", "sign"), ("other.test", "stamp"), ("b.sign.test", "sign")]
    grown = routed.growth()
    with routed.connected() as connection:
        for number in range(40):
            host, cluster = turns[number % len(turns)]
            connection.sock.sendall(request("/same", host=host))
            assert connection.answer().backend == f"{cluster}-1"
    assert (grown["ROUTED_FIRST"], grown["ROUTED_MOVED"]) == (1, 39), grown


def test_methods_alternate_on_one_connection(routed: Bench) -> None:
    turns = [("GET", b"", "web"), ("POST", b"x" * 5000, "sign"), ("HEAD", b"", "api"), ("PUT", b"x", "stamp")]
    grown = routed.growth()
    with routed.connected() as connection:
        for number in range(40):
            method, body, cluster = turns[number % len(turns)]
            answer = connection.ask("/method/x", method=method, body=body)
            assert answer.status == 200
            assert answer.backend in routed.network.clusters[cluster]
    assert (grown["ROUTED_FIRST"], grown["ROUTED_MOVED"]) == (1, 39), grown


def test_a_connection_comes_back_to_where_it_was(routed: Bench) -> None:
    """Again and again, some requests at each place; never more than one backend has a socket of it."""
    with routed.connected() as connection:
        for turn in range(12):
            cluster = ("sign", "stamp", "sign", "api")[turn % 4]
            for number in range(3):
                assert connection.ask(f"/{cluster}/back/{turn}/{number}").backend == f"{cluster}-1"
                assert holders(routed, connection.port) == [f"{cluster}-1"]
        port = connection.port
    wait_until_nothing_is_left(routed, port)


def test_routes_within_a_cluster_move_nobody(routed: Bench) -> None:
    grown = routed.growth()
    with routed.connected() as connection:
        backend = connection.ask("/web").backend
        for number in range(20):
            path = f"/web/{number}" if number % 2 else "/method"
            assert connection.ask(path).backend == backend
    assert (grown["ROUTED_NEXT"], grown["ROUTED_MOVED"]) == (20, 0), grown


@pytest.mark.parametrize("path", ["/web", "/sign/first"])
def test_what_no_route_names_is_no_move(routed: Bench, path: str) -> None:
    """The router answers 404 or resets, as on a connection that has not moved."""
    with routed.connected(port=0) as connection:
        assert connection.ask("/api/x").status == 200
        assert connection.ask(path).status == 200
        grown = routed.growth()
        connection.sock.sendall(request("/nowhere"))
        assert reset_by_peer(connection)
        assert (grown["TX_NO_ROUTE"], grown["requests_routed"]) == (1, 0), grown
        port = connection.port
    wait_until_nothing_is_left(routed, port)


# ---- bodies and answers ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("may_repeat")
@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("size", [0, 1, SEGMENT, 100_000, 10_000_000])
def test_bodies_go_up_before_a_move_and_with_it(routed: Bench, method: str, size: int) -> None:
    """What exceeds a new socket's window is sent again."""
    body = content(size)
    always = ("Content-Length: 0",) if not size else ()
    with routed.connected() as connection:
        for turn in range(4):
            cluster = SIGNERS[turn % 2]
            one = Signed(f"/{cluster}/body/{turn}", method, body)
            connection.sock.sendall(one.sent(*always))
            one.check(connection)
        for cluster in ("api", "web", "api"):
            connection.sock.sendall(request(f"/{cluster}", *always, method=method, body=body))
            answer = connection.answer()
            assert (answer.status, answer.headers["x-received"]) == (200, str(size))
            assert answer.backend in routed.network.clusters[cluster]


@pytest.mark.usefixtures("may_repeat")
def test_a_body_may_take_its_time(routed: Bench) -> None:
    """In pieces, the first of them with the head, which moves the connection."""
    one, pieces = Signed("/stamp/slow", "POST", content(40_000)), 8
    head = one.sent().removesuffix(one.body)
    step = len(one.body) // pieces
    with routed.connected() as connection:
        Signed("/sign/before").ask(connection)
        connection.sock.sendall(head)
        for start in range(0, len(one.body), step):
            connection.sock.sendall(one.body[start : start + step])
            time.sleep(0.02)
        one.check(connection)
        Signed("/sign/after").ask(connection)


@pytest.mark.parametrize("size", [0, 1, SEGMENT - 200, SEGMENT, 100_000, 5_000_000, 50_000_000])
def test_answers_come_down_before_a_move_and_after_it(routed: Bench, size: int) -> None:
    with routed.connected() as connection:
        for turn in range(4):
            Signed(f"/{SIGNERS[turn % 2]}/answer/{turn}?size={size}", size=size).ask(connection)
        assert connection.ask("/api/download").body == DOWNLOAD
        Signed("/sign/last").ask(connection)


def test_answers_without_a_body_end_with_their_heads(routed: Bench) -> None:
    """HEAD, 204 and 304, also where they name a length."""
    with routed.connected() as connection:
        modified = connection.ask("/api/download", method="HEAD").headers["last-modified"]
        for turn in range(12):
            cluster = SIGNERS[turn % 2]
            head = connection.ask(f"/{cluster}/head?size=1000", method="HEAD")
            assert (head.backend, head.headers["content-length"], head.body) == (f"{cluster}-1", "1000", b"")
            status = (204, 304)[turn // 2 % 2]
            assert connection.ask(f"/{SIGNERS[1 - turn % 2]}/bare?status={status}").status == status
            unchanged = connection.ask("/api/download", f"If-Modified-Since: {modified}")
            assert (unchanged.status, unchanged.backend, unchanged.body) == (304, "api-1", b"")
            assert int(connection.ask("/api/download", method="HEAD").headers["content-length"]) == len(DOWNLOAD)


def test_every_status_may_be_followed_by_a_move(routed: Bench) -> None:
    with routed.connected() as connection:
        for turn, status in enumerate((200, 206, 301, 400, 404, 429, 500, 503)):
            answer = connection.ask(f"/{SIGNERS[turn % 2]}/status?status={status}&size=100")
            assert (answer.status, answer.backend) == (status, f"{SIGNERS[turn % 2]}-1")


# ---- 100-continue ---------------------------------------------------------------------------------------

EXPECT = "Expect: 100-continue"


def interim(connection: Conversation) -> bytes:
    """The server's word that it wants the body."""
    said = b""
    while not said.endswith(b"\r\n\r\n"):
        more = connection.sock.recv(1)
        assert more, said
        said += more
    return said


@pytest.mark.usefixtures("may_repeat")
def test_a_move_waits_for_the_answer_behind_an_interim_one(routed: Bench) -> None:
    """And a request that asks whether to go on moves the connection itself."""
    with routed.connected() as connection:
        for turn in range(6):
            one = Signed(f"/{SIGNERS[turn % 2]}/expect/{turn}", "PUT", content(30_000))
            connection.sock.sendall(one.sent(EXPECT).removesuffix(one.body))
            assert interim(connection).startswith(b"HTTP/1.1 100 ")
            time.sleep(0.05)
            connection.sock.sendall(one.body)
            one.check(connection)


def test_a_refused_expectation_is_an_answer(routed: Bench) -> None:
    """417, and the client sends the body all the same, as RFC 9110, 10.1.1, lets it; then the connection moves."""
    with routed.connected() as connection:
        for turn in range(4):
            one = Signed(f"/{SIGNERS[turn % 2]}/refused/{turn}?refuse=1", "POST", content(1000))
            connection.sock.sendall(one.sent(EXPECT).removesuffix(one.body))
            assert connection.answer().status == 417
            connection.sock.sendall(one.body)
        Signed("/sign/after").ask(connection)


def test_curl_asks_again_where_its_expectation_was_refused(routed: Bench, tmp_path: Path) -> None:
    """Behind a move. It may not go on with a connection on which a body is missing, and does not."""
    upload = tmp_path / "upload"
    upload.write_bytes(content(2000))
    address, port = routed.vip("shop")
    common = ["-sS", "--max-time", f"{SECONDS:g}", "--connect-to", f"::{address}:{port}", "-o", "/dev/null"]
    common += ["-w", "%{http_code} %header{x-backend}\n"]
    said = routed.client.run(
        [
            *("curl", *common, f"http://{HOST}/sign/curl"),
            *("--next", *common, "-H", EXPECT, "-T", str(upload), f"http://{HOST}/stamp/curl?refuse=1"),
            *("--next", *common, f"http://{HOST}/sign/curl"),
        ],
        timeout=3 * SECONDS,
    ).stdout.splitlines()
    assert said[0] == said[-1] == "200 sign-1"
    assert said[1].split()[1] == "stamp-1"


# ---- idle connections -----------------------------------------------------------------------------------


@pytest.mark.parametrize("probed", [False, True], ids=["silent", "probed"])
def test_a_connection_may_be_idle_between_moves(routed: Bench, probed: bool) -> None:
    """Probes of the client's, each second, are answered by whoever has the connection."""
    with routed.connected(options=PROBES if probed else ()) as connection:
        for path in ("/sign/idle/0", "/stamp/idle/1", "/sign/idle/2"):
            Signed(path).ask(connection)
            time.sleep(IDLE)
        Signed("/sign/idle/3").ask(connection)
        assert connection.ask("/web").status == 200


def test_the_old_backends_own_end_is_not_the_clients_business(routed: Bench) -> None:
    """Its server would close the idle connection a moment after the move. The client hears nothing of it."""
    with capture(routed.client) as wire, routed.connected() as connection:
        for turn in range(6):
            Signed(f"/{SIGNERS[turn % 2]}/closing/{turn}?idle=100").ask(connection)
        connection.ask("/api/x")
        time.sleep(0.5)
        assert holders(routed, connection.port) == ["api-1"]
        ends = [one.flags for one in wire.received() if one.destination[1] == connection.port]
        assert ends
        assert not [flags for flags in ends if "F" in flags or "R" in flags]
        Signed("/sign/closing/last").ask(connection)


@pytest.mark.usefixtures("may_repeat")
def test_a_server_that_closes_just_as_the_connection_is_to_move(routed: Bench, logs: Path) -> None:
    """Either the connection has moved, and the request is answered, or it has ended, and the request is nowhere."""
    outcomes: Counter[str] = Counter()
    for number in range(60):
        path = f"/stamp/race/{number}"
        with routed.connected() as connection:
            Signed(f"/sign/race/{number}?idle=20").ask(connection)
            time.sleep(0.018 + number % 10 * 0.0005)
            try:
                Signed(path).ask(connection)
                outcomes["moved"] += 1
            except (ConnectionError, http.client.RemoteDisconnected):
                outcomes["ended"] += 1
                assert f"GET {path}" not in signing.executed(logs)
            port = connection.port
        wait_until_nothing_is_left(routed, port)
    print(dict(outcomes))
    assert outcomes.total() == 60
    executed = Counter(signing.executed(logs))
    assert all(executed[f"GET /stamp/race/{number}"] <= 1 for number in range(60))


# ---- clients of all kinds -------------------------------------------------------------------------------

FEATURES = ("net.ipv4.tcp_timestamps", "net.ipv4.tcp_sack", "net.ipv4.tcp_window_scaling")


@pytest.mark.usefixtures("may_repeat")
@pytest.mark.parametrize("without", [*((name,) for name in FEATURES), FEATURES], ids="+".join)
def test_a_client_that_lacks_options_moves_like_any_other(routed: Bench, without: Sequence[str]) -> None:
    size = 300_000
    with ExitStack() as stack:
        for name in without:
            stack.callback(routed.client.sysctl, name, routed.client.sysctl(name, "0"))
        with routed.connected() as connection:
            for turn in range(8):
                target = f"/{SIGNERS[turn % 2]}/options/{turn}?size={size}"
                Signed(target, "POST", content(100_000), size).ask(connection)


@pytest.mark.usefixtures("may_repeat")
@pytest.mark.parametrize("together", [False, True], ids=["after it", "with it"])
def test_a_client_may_close_its_half_with_the_request_that_moves(routed: Bench, together: bool) -> None:
    one = Signed("/stamp/half?size=100000&pause=50", size=100_000)
    with routed.connected(options=[NO_DELAY]) as connection:
        Signed("/sign/half").ask(connection)
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, together)
        connection.sock.sendall(one.sent())
        connection.sock.shutdown(socket.SHUT_WR)
        one.check(connection)
        assert connection.ended()
        port = connection.port
    wait_until_nothing_is_left(routed, port)


@pytest.mark.usefixtures("may_repeat")
@pytest.mark.parametrize("end", ["close", "abort"])
@pytest.mark.parametrize("after", [0.01, 0.3])
def test_a_client_may_leave_while_its_request_waits_to_move(routed: Bench, logs: Path, end: str, after: float) -> None:
    """The old backend is still busy. What it was asked it may do; the other request is not executed twice."""
    path = f"leaving/{end}/{after}"
    with routed.connected(options=[NO_DELAY]) as connection:
        connection.sock.sendall(request(f"/sign/{path}?pause=500&size=1000"))
        time.sleep(0.005)
        connection.sock.sendall(request(f"/stamp/{path}"))
        time.sleep(after)
        if end == "abort":
            connection.sock.setsockopt(*ABORT)
        port = connection.port
    eventually(lambda: not holders(routed, port), f"no backend to have a socket of port {port}", 2 * SECONDS)
    assert signing.executed(logs).count(f"GET /stamp/{path}") <= 1


@pytest.mark.usefixtures("may_repeat")
def test_a_backend_where_nobody_listens_resets_what_would_move_there(routed: Bench) -> None:
    (host,) = routed.network.servers("api")
    host.stop_all()
    try:
        with routed.connected() as connection:
            Signed("/sign/nobody").ask(connection)
            grown = routed.growth()
            connection.sock.sendall(request("/api/x"))
            assert reset_by_peer(connection)
            assert grown["AGENT_NO_LISTENER"] == 1, grown
            port = connection.port
        wait_until_nothing_is_left(routed, port)
    finally:
        routed.restart_server("api")


# ---- nothing is left ------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["close", "abort", "Connection: close"])
def test_nothing_is_left_and_the_port_may_be_used_again(routed: Bench, end: str) -> None:
    """By connections that begin where the last one has been, and go the same ways."""
    port = 0
    for turn in range(6):
        with routed.connected(port=port, options=[(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)]) as connection:
            for number in range(5):
                Signed(f"/{SIGNERS[(turn + number) % 2]}/again/{turn}/{number}").ask(connection)
            port = connection.port
            if end == "abort":
                connection.sock.setsockopt(*ABORT)
            elif end != "close":
                one = Signed(f"/{SIGNERS[1 - turn % 2]}/again/{turn}/last")
                connection.sock.sendall(one.sent(end))
                one.check(connection)
                assert connection.ended()
        if end == "close":  # and so it is the client that waits in TIME_WAIT
            wait_until_nothing_is_left(routed, port)
            port = 0
        else:
            wait_until_none_is_established(routed, port)


def wait_until_none_is_established(routed: Bench, port: int) -> None:
    def established() -> list[str]:
        return [name for name in backends(routed) if routed.established(name, port)]

    eventually(lambda: not established(), f"no backend to have a connection of port {port}")


# ---- what would be a wrong delivery ---------------------------------------------------------------------


def test_two_requests_in_one_segment_reach_no_wrong_backend(routed: Bench, logs: Path) -> None:
    """Only the start of a segment is read as a request: such a connection ends, at its first backend and at others."""
    for number, moved in enumerate((False, True)):
        with routed.connected() as connection:
            Signed(f"/sign/one-go/{number}/0").ask(connection)
            if moved:
                Signed(f"/stamp/one-go/{number}/1").ask(connection)
            first, second = (Signed(f"/{cluster}/one-go/{number}/{cluster}") for cluster in reversed(SIGNERS))
            grown = routed.growth()
            connection.sock.sendall(first.sent() + second.sent())
            assert reset_by_peer(connection)
            assert grown["TX_RESET_PIPELINED"] == 1, grown
        assert not [line for line in signing.executed(logs) if line.endswith((f"/{number}/sign", f"/{number}/stamp"))]


class Stream:
    """The answers on a connection, one behind the other: nothing of the next one is read with one."""

    def __init__(self, connection: Conversation) -> None:
        self.file = connection.sock.makefile("rb")

    def check(self, one: Signed) -> None:
        """The next answer is this one's."""
        head = [self.file.readline()]
        while head[-1] not in (b"\r\n", b""):
            head.append(self.file.readline())
        proof = signing.digest(one.method, one.target, one.body)
        assert head[0] == b"HTTP/1.1 200 Signed\r\n"
        assert head[1:3] == [
            b"X-Backend: %s-1\r\n" % one.target.split("/")[1].encode(),
            b"X-Digest: %s\r\n" % proof.encode(),
        ]
        assert self.file.read(one.size) == signing.signed(proof, one.size)


@pytest.mark.usefixtures("may_repeat")
@pytest.mark.parametrize("pause", [0, 50, 400])
def test_a_request_ahead_of_an_answer_waits_for_its_backend(routed: Bench, pause: int) -> None:
    """Pipelined, in a segment of its own: it is sent again until the answer before it is out."""
    with routed.connected(options=[NO_DELAY]) as connection:
        stream = Stream(connection)
        for turn in range(4):
            query = f"?pause={pause}&size=5000"
            ahead = [Signed(f"/{cluster}/ahead/{pause}/{turn}{query}", size=5000) for cluster in SIGNERS]
            for one in ahead:
                connection.sock.sendall(one.sent())
                time.sleep(0.005)
            for one in ahead:
                stream.check(one)
        stream.file.close()
        port = connection.port
    wait_until_nothing_is_left(routed, port)


@pytest.mark.usefixtures("may_repeat")
@pytest.mark.parametrize("body", [b"", content(20_000)], ids=["a GET", "a POST"])
def test_nothing_moves_while_a_server_thinks_behind_an_interim_answer(routed: Bench, body: bytes) -> None:
    """Every queue is empty then, all that was said is acknowledged, and the next request is there."""
    with routed.connected(options=[NO_DELAY]) as connection:
        stream = Stream(connection)
        for turn in range(2):
            path = f"/{SIGNERS[turn]}/thinking/{len(body)}?pause=300&size=100"
            one = Signed(path, "PUT", content(3000), 100)
            after = Signed(f"/{SIGNERS[1 - turn]}/thinking/{len(body)}", "POST" if body else "GET", body)
            connection.sock.sendall(one.sent(EXPECT).removesuffix(one.body))
            assert stream.file.readline() == b"HTTP/1.1 100 Continue\r\n"
            assert stream.file.readline() == b"\r\n"
            connection.sock.sendall(one.body)
            time.sleep(0.05)
            connection.sock.sendall(after.sent())
            stream.check(one)
            stream.check(after)
        stream.file.close()
        port = connection.port
    wait_until_nothing_is_left(routed, port)


@pytest.mark.usefixtures("may_repeat")
@pytest.mark.parametrize("body", [b"", content(20_000)], ids=["a GET", "a POST"])
def test_nothing_moves_while_a_server_pauses_in_its_answer(routed: Bench, body: bytes) -> None:
    with routed.connected(options=[NO_DELAY]) as connection:
        stream = Stream(connection)
        for turn in range(2):
            one = Signed(f"/{SIGNERS[turn]}/pausing/{len(body)}?halt=300&size=2000", size=2000)
            after = Signed(f"/{SIGNERS[1 - turn]}/pausing/{len(body)}", "POST" if body else "GET", body)
            connection.sock.sendall(one.sent())
            time.sleep(0.1)
            connection.sock.sendall(after.sent())
            stream.check(one)
            stream.check(after)
        stream.file.close()
        port = connection.port
    wait_until_nothing_is_left(routed, port)


@pytest.mark.usefixtures("may_repeat")
def test_several_requests_ahead_reach_no_wrong_backend(routed: Bench, logs: Path) -> None:
    """A client that sends them again puts them into one segment (Linux does): then the connection ends."""
    with routed.connected(options=[NO_DELAY]) as connection:
        stream = Stream(connection)
        ahead = [
            Signed(f"/{SIGNERS[number % 2]}/several/{number}?pause=300&size=5000", size=5000) for number in range(4)
        ]
        for one in ahead:
            connection.sock.sendall(one.sent())
            time.sleep(0.005)
        with pytest.raises(ConnectionError):  # noqa: PT012
            for one in ahead:
                stream.check(one)
    executed = Counter(line for line in signing.executed(logs) if "/several/" in line)
    assert set(executed.values()) == {1}


@pytest.mark.usefixtures("may_repeat")
def test_a_request_ahead_of_a_long_answer_does_not_cut_it(routed: Bench) -> None:
    """The client reads slowly, and has asked another backend for the next thing long before it has read it all."""
    size = 3_000_000
    long, next_one = Signed(f"/sign/long?size={size}", size=size), Signed("/stamp/long")
    with routed.connected() as connection:
        Signed("/stamp/before").ask(connection)
        connection.sock.sendall(long.sent())
        time.sleep(0.1)
        connection.sock.sendall(next_one.sent())
        time.sleep(0.1)
        stream = Stream(connection)
        stream.check(long)
        stream.check(next_one)
        stream.file.close()
        port = connection.port
    wait_until_nothing_is_left(routed, port)


def test_behind_a_chunked_answer_there_is_a_reset_and_no_wrong_delivery(routed: Bench, logs: Path) -> None:
    with routed.connected() as connection:
        Signed("/stamp/chunked/0").ask(connection)
        for number in range(2):
            answer = connection.ask(f"/sign/chunked/{number}?chunked=3&size=3000")
            assert (answer.status, len(answer.body), answer.backend) == (200, 3000, "sign-1")
        Signed("/sign/chunked/same").ask(connection)
        grown = routed.growth()
        connection.sock.sendall(request("/stamp/chunked/other"))
        assert reset_by_peer(connection)
        assert (grown["AGENT_UNMOVABLE"], grown["AGENT_ADOPTED"]) == (1, 0), grown
        port = connection.port
    wait_until_nothing_is_left(routed, port)
    assert not [line for line in signing.executed(logs) if line.endswith("/chunked/other")]
    with routed.connected() as connection:
        Signed("/stamp/chunked/other").ask(connection)


@pytest.mark.usefixtures("may_repeat")
def test_nor_in_the_midst_of_one(routed: Bench, logs: Path) -> None:
    """The other route's request comes in a pause of the answer, where every queue is empty."""
    with routed.connected() as connection:
        connection.sock.sendall(request("/sign/pausing?chunked=4&size=4000"))
        time.sleep(0.12)
        connection.sock.sendall(request("/stamp/pausing"))
        with pytest.raises((ConnectionError, http.client.IncompleteRead)):
            connection.answer()
    assert "GET /stamp/pausing" not in signing.executed(logs)


# ---- weights --------------------------------------------------------------------------------------------


class Users:
    """Clients that ask on connections which they keep, `web` and others in turn, until they are told to stop."""

    def __init__(
        self, routed: Bench, paths: Sequence[str], number: int = 8, clusters: Sequence[str] | None = None
    ) -> None:
        self.routed, self.paths, self.clusters = routed, paths, clusters
        self.heard: list[tuple[float, float, str]] = []
        """of `web` alone: when it was asked, when the answer came, by whom"""
        self.errors: list[str] = []
        self.answers = 0
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self._run, args=(one,)) for one in range(number)]

    def _run(self, number: int) -> None:
        random = Random(number)
        try:
            with self.routed.connected() as connection:
                while not self.stop.is_set():
                    path = random.choice(self.paths)
                    began = time.monotonic()
                    answer = connection.ask(path)
                    clusters = self.clusters or [path.split("/")[1]]
                    assert (answer.status, answer.body) == (200, BODY)
                    assert answer.backend in [one for name in clusters for one in self.routed.network.clusters[name]]
                    self.answers += 1
                    if "web" in clusters:
                        self.heard.append((began, time.monotonic(), answer.backend))
        except BaseException as error:
            self.errors.append(repr(error))

    def __enter__(self) -> Users:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()
        assert not self.errors


def test_a_drained_backends_connections_move_at_their_next_request(routed: Bench, router: Router) -> None:
    with ExitStack() as stack:
        kept = [stack.enter_context(routed.connected()) for _ in range(20)]
        before = [connection.ask("/web").backend for connection in kept]
        assert set(before) == {"web-1", "web-2"}
        grown = routed.growth()
        router.set_weights("web", {"web-1": 0})
        for _ in range(3):
            assert {connection.ask("/web").backend for connection in kept} == {"web-2"}
        assert grown["ROUTED_MOVED"] == before.count("web-1"), grown
        router.set_weights("web", {"web-1": 1})  # which moves nobody back
        assert {connection.ask("/web").backend for connection in kept} == {"web-2"}
        assert grown["ROUTED_MOVED"] == before.count("web-1"), grown
        ports = [connection.port for connection in kept]
        assert not [port for port in ports if routed.sockets_of("web-1", port)]


@pytest.mark.usefixtures("may_repeat")
@pytest.mark.parametrize("paths", [["/web"], ["/web", "/api/x"]], ids=["web alone", "web and api"])
def test_draining_under_load_loses_no_request(routed: Bench, router: Router, paths: list[str]) -> None:
    """One backend of two, then the other, over and over: whoever is asked after the change is not the drained one."""
    drains: list[tuple[float, float, str]] = []
    with Users(routed, paths) as users:
        for turn in range(8):
            drained, other = ("web-1", "web-2") if turn % 2 else ("web-2", "web-1")
            router.set_weights("web", {drained: 0, other: 1})
            began = time.monotonic()
            time.sleep(0.1)
            drains.append((began, time.monotonic(), drained))
            router.set_weights("web", {drained: 1, other: 1})
    assert users.answers > 100
    for began, ended, drained in drains:
        meanwhile = [backend for asked, got, backend in users.heard if began <= asked and got <= ended]
        assert meanwhile
        assert drained not in meanwhile


DRAIN_SECONDS, DRAIN_CONNECTIONS = 3, 200


@pytest.mark.usefixtures("may_repeat")
def test_busy_connections_leave_a_drained_backend_within_a_request(routed: Bench, router: Router) -> None:
    address, port = routed.vip("shop")
    argv = ["wrk", "-t1", f"-c{DRAIN_CONNECTIONS}", f"-d{DRAIN_SECONDS}s", "-H", f"Host: {HOST}"]

    def busy(backend: str) -> int:
        return sum(one.state == ESTABLISHED for one in sockets(routed.network.hosts[backend]))

    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(routed.client.run, [*argv, f"http://{address}:{port}/web"], timeout=10 * DRAIN_SECONDS)
        eventually(lambda: busy("web-1") + busy("web-2") == DRAIN_CONNECTIONS, "all connections to be there")
        assert busy("web-1") > DRAIN_CONNECTIONS / 4
        grown = routed.growth()
        router.set_weights("web", {"web-1": 0})
        eventually(lambda: busy("web-1") == 0, "the drained backend to be empty", seconds=1)
        assert busy("web-2") == DRAIN_CONNECTIONS
        said = load.result().stdout
    assert not re.search("Socket errors|Non-2xx", said), said
    assert grown["TX_RESET_UNMOVED"] == 0, grown


@pytest.mark.usefixtures("may_repeat")
def test_requests_after_a_change_of_routes_follow_the_new_table(routed: Bench, router: Router) -> None:
    """`/switch` leads to web and to api by turns, while clients ask for it on connections that they keep."""
    changes: list[tuple[float, float, str]] = []
    with Users(routed, ["/switch"], clusters=("web", "api")) as users:
        for turn in range(20):
            cluster = ("api", "web")[turn % 2]
            lead(router, "/switch", cluster)
            began = time.monotonic()
            time.sleep(0.05)
            changes.append((began, time.monotonic(), cluster))
    assert users.answers > 100
    for began, ended, cluster in changes:
        meanwhile = {backend for asked, got, backend in users.heard if began <= asked and got <= ended}
        assert meanwhile
        assert meanwhile <= set(routed.network.clusters[cluster])


def lead(router: Router, prefix: str, cluster: str) -> None:
    """Another cluster for a route that there is: one entry, replaced as a whole."""
    config = router.config.model_copy(deep=True)
    vips = [
        vip.model_copy(
            update={
                "routes": tuple(
                    route.model_copy(update={"cluster": cluster}) if route.prefix == prefix else route
                    for route in vip.routes
                )
            }
        )
        for vip in config.vips
    ]
    router.apply(router.plan(config.model_copy(update={"vips": tuple(vips)})))


@pytest.mark.usefixtures("may_repeat")
def test_a_cluster_without_weights_keeps_whom_it_has(routed: Bench, router: Router) -> None:
    """And who comes to it from another is refused: there is nobody to move to."""
    with routed.connected() as connection, routed.connected() as other:
        backend = connection.ask("/web").backend
        assert other.ask("/api/x").backend == "api-1"
        router.set_weights("web", {"web-1": 0, "web-2": 0})
        assert connection.ask("/web").backend == backend
        grown = routed.growth()
        other.sock.sendall(request("/web"))
        assert reset_by_peer(other)
        assert (grown["requests_routed"], grown["TX_UNAVAILABLE"]) == (0, 1), grown


# ---- what comes late ------------------------------------------------------------------------------------

MAPPING_MOVED = 4
"""bpf/contract.h"""


def test_what_is_handed_on_is_not_handed_back(tmp_path: Path) -> None:
    """Two backends that each take the other for the connection's owner, as while an order between them is lost: what
    comes meanwhile goes from one to the other once.

    On cables with a delay: over bare ones the kernel's mark of an encapsulated packet stays with it from host to host,
    and forbids a second encapsulation.
    """
    with bench("rauta", tmp_path, FILE, "topology.link={mtu: 1500, delay: 500us}") as one:
        assert isinstance(one.running, RunningRauta)
        there = one.running.agents["api-1"].object.maps["mappings"]
        with one.connected() as connection:
            assert connection.ask("/sign").backend == "sign-1"
            assert connection.ask("/api/x").backend == "api-1"
            time.sleep(0.2)  # for the last acknowledgement
            key = {
                "client": tables.be32(one.client.address),
                "server": tables.be32(one.network.hosts["api-1"].address),
                "client_port": tables.be16(connection.port),
                "server_port": tables.be16(signing.PORT),
            }
            owner = there.lookup(key)
            back = {"state": MAPPING_MOVED, "target": tables.be32(one.network.hosts["sign-1"].address)}
            there.update(key, owner | back | {"sent": owner["cookie"] + 1 & 0xFFFFFFFF})
            grown = one.growth()
            send(one.client, segment((one.client.address, connection.port), one.vip("shop"), "A", seq=1))
            eventually(lambda: grown["AGENT_HANDED_ON"] > 0, "the segment to be handed on")
            time.sleep(0.2)
            assert (grown["AGENT_HANDED_ON"], grown["AGENT_DROP_UNOPENED"]) == (1, 1), grown
            there.update(key, owner)
            assert connection.ask("/api/x").backend == "api-1"
