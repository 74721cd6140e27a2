"""Connections through the router and the agents, to servers that know nothing of either."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from e2e.bench import HOST, SECONDS, Bench, Conversation, eventually, request
from e2e.wire import segment, send
from lab.checks.state import LISTEN, sockets
from lab.clients import CLIENTS, ClientName, NoAnswer
from lab.contenders.rauta import RunningRauta
from lab.process import run
from lab.servers import content
from lab.topology import FABRIC
from rauta.network.namespaces import entered

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root"),
    pytest.mark.usefixtures("nothing_is_sent_twice"),
]

PROBES = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]
"""keepalive probes each second; the third that is not answered ends the connection"""
PROBE_SECONDS = 10.0

BODY = content(13)
UPLOAD = content(100_000)
LONG = content(5_000_000)
SEGMENTS = content(5_000)
"""several segments"""

TIMESTAMPS, SACK, WINDOW_SCALING = 1, 2, 4
"""tcpi_options in struct tcp_info (include/uapi/linux/tcp.h)"""
TIME_WAIT = "06"
ABORT = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
"""set on a socket, makes its close a reset"""
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def flows(routed: Bench) -> set[tuple[int, int]]:
    """Client port and backend index of every entry in the router's flow table."""
    assert isinstance(routed.running, RunningRauta)
    table = routed.running.router.object.maps["flows"].items_batch()
    entries = [(tag, flow) for _, one in table for tag, flow in zip(one["tag"], one["flow"], strict=True)]
    return {(socket.ntohs(flow["tuple"]["client_port"]), flow["backend"]) for tag, flow in entries if tag}


def reset_by_peer(conversation: Conversation) -> bool:
    """Whether the connection was reset, and not closed; OSError if neither in time."""
    try:
        return conversation.sock.recv(1) == b"never"
    except ConnectionResetError:
        return True


@contextmanager
def sysctls(routed: Bench, *names: str) -> Iterator[None]:
    """The client without some features of TCP."""
    with ExitStack() as stack:
        for name in names:
            stack.callback(routed.client.sysctl, name, routed.client.sysctl(name, "0"))
        yield


# ---- requests and answers -------------------------------------------------------------------------------


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(("path", "cluster"), [("/web", "web"), ("/api/x?y=/web", "api")])
def test_each_path_reaches_its_cluster(routed: Bench, client: ClientName, path: str, cluster: str) -> None:
    grown = routed.growth()
    answer = CLIENTS[client](routed.client, routed.to("shop", path))
    assert (answer.status, answer.body) == (200, BODY)
    assert answer.backend in routed.network.clusters[cluster]
    assert (grown["ROUTED_FIRST"], grown["requests_routed"]) == (1, 1), grown


def test_requests_follow_each_other_on_one_connection(routed: Bench) -> None:
    grown = routed.growth()
    with routed.connected() as connection:
        for _ in range(100):
            answer = connection.ask("/api/x")
            assert (answer.status, answer.body, answer.backend) == (200, BODY, "api-1")
    assert (grown["ROUTED_FIRST"], grown["ROUTED_NEXT"]) == (1, 99), grown


def test_head_is_answered_without_a_body(routed: Bench) -> None:
    with routed.connected() as connection:
        for _ in range(2):
            answer = connection.ask("/api/x", method="HEAD")
            assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", str(len(BODY)))


def test_a_large_body_goes_up(routed: Bench) -> None:
    with routed.connected() as connection:
        for body in (UPLOAD, b"x", UPLOAD):  # the next request's place is counted from the length
            answer = connection.ask("/api/x", method="POST", body=body)
            assert (answer.status, answer.headers["x-received"]) == (200, str(len(body)))
        assert connection.ask("/api/x").body == BODY


def test_curl_sends_a_body_after_it_was_asked_to_go_on(routed: Bench, tmp_path: Path) -> None:
    upload = tmp_path / "upload"
    upload.write_bytes(UPLOAD)
    address, port = routed.vip("shop")
    argv = ["curl", "-sSi", "--max-time", f"{SECONDS:g}", "-H", "Expect: 100-continue", "--data-binary", f"@{upload}"]
    done = routed.client.run(
        [*argv, "--connect-to", f"::{address}:{port}", f"http://{HOST}/api/x"], timeout=2 * SECONDS
    )
    assert "HTTP/1.1 100 Continue" in done.stdout
    assert f"X-Received: {len(UPLOAD)}" in done.stdout


def test_a_large_answer_comes_down_intact(routed: Bench) -> None:
    answer = CLIENTS["curl"](routed.client, routed.to("shop", "/api/download"))
    assert answer.body == LONG


def test_many_large_answers_at_once(routed: Bench) -> None:
    def download(_: int) -> bytes:
        return CLIENTS["http.client"](routed.client, routed.to("shop", "/api/download")).body

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(download, range(16))) == {LONG}


# ---- what no route names --------------------------------------------------------------------------------


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(("host", "path"), [(HOST, "/nowhere"), (HOST, "/apix"), ("elsewhere.test", "/api/x")])
def test_the_router_itself_answers_404(routed: Bench, client: ClientName, host: str, path: str) -> None:
    grown = routed.growth()
    answer = CLIENTS[client](routed.client, routed.to("shop", path, host=host))
    assert (answer.status, answer.backend) == (404, "")
    assert (grown["TX_NO_ROUTE"], grown["requests_routed"]) == (1, 0), grown


@pytest.mark.parametrize("client", CLIENTS)
def test_or_resets_where_so_configured(routed: Bench, client: ClientName) -> None:
    grown = routed.growth()
    with pytest.raises(NoAnswer) as caught:
        CLIENTS[client](routed.client, routed.to("strict", "/nowhere"))
    assert caught.value.reset, caught.value
    assert (grown["TX_RESET_NO_ROUTE"], grown["requests_routed"]) == (1, 0), grown
    assert CLIENTS[client](routed.client, routed.to("strict", "/api/x")).backend == "quiet-1"


def test_a_connection_that_got_a_404_ends_in_order(routed: Bench) -> None:
    with routed.connected() as connection:
        assert connection.ask("/nowhere").status == 404
        assert connection.ended()
        port = connection.port
    local = (routed.client.address, port)
    eventually(
        lambda: all(one.local != local for one in sockets(routed.client)), f"the client's socket on {port} to be gone"
    )


def test_a_later_request_that_no_route_names_reaches_no_backend(routed: Bench) -> None:
    with routed.connected() as connection:
        assert connection.ask("/api/x").backend == "api-1"
        grown = routed.growth()
        connection.sock.sendall(request("/nowhere"))
        assert reset_by_peer(connection)
        assert (grown["TX_NO_ROUTE"], grown["requests_routed"]) == (1, 0), grown


def test_a_head_in_two_segments_is_refused(routed: Bench) -> None:
    grown = routed.growth()
    with routed.connected() as connection:
        connection.sock.sendall(request("/api/x")[:-10])
        assert connection.answer().status == 431
        assert connection.ended()
    assert grown["requests_routed"] == 0, grown


# ---- before the first request ---------------------------------------------------------------------------


def test_a_client_that_says_nothing_leaves_nothing(routed: Bench) -> None:
    grown = routed.growth()
    with routed.connected() as connection:
        port = connection.port
    local = (routed.client.address, port)
    eventually(
        lambda: {one.state for one in sockets(routed.client) if one.local == local} <= {TIME_WAIT},
        f"the close of port {port} to be complete",
    )
    assert (grown["TX_SYN_ACK"], grown["TX_CLOSE"], grown["AGENT_OPENED"]) == (1, 1, 0), grown
    assert port not in {client_port for client_port, _ in flows(routed)}
    assert not any(routed.sockets_of(name, port) for name in routed.network.clusters["api"])


def test_keepalive_probes_before_the_first_request_are_answered(routed: Bench) -> None:
    grown = routed.growth()
    with routed.connected(options=PROBES) as connection:
        eventually(lambda: grown["TX_KEEPALIVE"] > 3, "more probes than a dead connection survives", PROBE_SECONDS)
        assert connection.port not in {client_port for client_port, _ in flows(routed)}
        assert connection.ask("/api/x").body == BODY


def test_and_those_after_it_by_the_backend(routed: Bench) -> None:
    with routed.connected(options=PROBES) as connection:
        connection.ask("/api/x")
        grown = routed.growth()
        eventually(lambda: grown["FORWARDED"] > 3, "more probes than a dead connection survives", PROBE_SECONDS)
        assert grown["TX_KEEPALIVE"] == 0, grown
        assert connection.ask("/api/x").body == BODY


# ---- clients of all kinds -------------------------------------------------------------------------------

FEATURES = {
    "net.ipv4.tcp_timestamps": TIMESTAMPS,
    "net.ipv4.tcp_sack": SACK,
    "net.ipv4.tcp_window_scaling": WINDOW_SCALING,
}


@pytest.mark.parametrize(
    "without", [(), *((name,) for name in FEATURES), tuple(FEATURES)], ids=lambda names: "+".join(names) or "nothing"
)
def test_a_client_may_lack_options(routed: Bench, without: tuple[str, ...]) -> None:
    with sysctls(routed, *without), routed.connected() as connection:
        used = connection.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[5]
        assert {name for name, bit in FEATURES.items() if used & bit} == FEATURES.keys() - set(without)
        assert connection.ask("/api/x", method="POST", body=UPLOAD).headers["x-received"] == str(len(UPLOAD))
        assert connection.ask("/api/download").body == LONG


def test_the_backend_sees_the_client(routed: Bench) -> None:
    with routed.connected() as connection:
        backend = connection.ask("/web").backend
        (seen,) = routed.sockets_of(backend, connection.port)
    assert seen.local == (routed.network.hosts[backend].address, 8080)
    assert not [one for one in sockets(routed.network.router) if one.state == LISTEN]


# ---- beside it ------------------------------------------------------------------------------------------


def test_a_frame_for_another_host_is_none_of_an_agents_business(routed: Bench) -> None:
    """A switch that does not know where somebody is, floods: every host sees the request, one is meant."""
    meant = routed.network.hosts["api-1"]
    with entered(routed.network.run.prefix + FABRIC):
        run(["bridge", "fdb", "del", meant.mac, "dev", "api-1", "master"], timeout=SECONDS)
    grown = routed.growth()
    with routed.connected() as connection:
        assert connection.ask("/api/x").backend == "api-1"
    assert grown["AGENT_OPENED"] == 1, grown


def test_direct_connections_to_a_backend_work_beside_routed_ones(routed: Bench) -> None:
    own = (routed.network.hosts["api-1"].address, 8080)
    with routed.connected() as connection, routed.connected(own) as direct:
        for _ in range(3):
            assert connection.ask("/api/x").body == BODY
            assert direct.ask("/api/x").body == BODY
        assert direct.sock.getpeername() == (str(own[0]), own[1])


def test_direct_and_routed_connections_may_take_turns_on_one_port(routed: Bench) -> None:
    """What one leaves behind must not translate the other's packets."""
    own = (routed.network.hosts["api-1"].address, 8080)
    port = 0
    for to in (None, own, None, own):
        with routed.connected(to, port=port) as connection:
            assert connection.ask("/api/x").body == BODY
            port = connection.port
            connection.sock.setsockopt(*ABORT)
        routed.wait_until_gone("api-1", port)


@pytest.mark.usefixtures("may_repeat")
def test_a_direct_connection_may_meet_what_a_routed_one_left_in_time_wait(routed: Bench) -> None:
    """It takes a second SYN where the client's numbers for the two addresses happen to go backwards (RFC 6191)."""
    own = (routed.network.hosts["api-1"].address, 8080)
    with routed.connected() as connection:
        port = connection.port
        assert connection.ask("/api/x", "Connection: close").body == BODY
        assert connection.ended()
    assert [one.state for one in routed.sockets_of("api-1", port)] == [TIME_WAIT]
    with routed.connected(own, port=port) as connection:
        assert connection.ask("/api/x").body == BODY


# ---- servers of all kinds -------------------------------------------------------------------------------


@pytest.fixture
def without_server(routed: Bench) -> Iterator[Bench]:
    """The cluster `quiet`, behind the VIP `strict`, without nginx."""
    (host,) = routed.network.servers("quiet")
    host.stop_all()
    yield routed
    routed.restart_server("quiet")


@contextmanager
def listening(routed: Bench, backlog: int = 8) -> Iterator[socket.socket]:
    """A listener of our own there."""
    (host,) = routed.network.servers("quiet")
    with host.entered():
        listener = socket.create_server((str(host.address), 8080), backlog=backlog)
    with listener:
        listener.settimeout(SECONDS)
        yield listener


@contextmanager
def asked(routed: Bench) -> Iterator[Conversation]:
    """A connection to the VIP `strict` that has sent its request."""
    with routed.connected(routed.vip("strict")) as connection:
        connection.sock.sendall(request("/api/x"))
        yield connection


def test_a_backend_where_nobody_listens_resets(without_server: Bench) -> None:
    grown = without_server.growth()
    with asked(without_server) as connection:
        assert reset_by_peer(connection)
    assert grown["AGENT_NO_LISTENER"] == 1, grown


def test_a_forged_direct_syn_does_not_undo_a_translation(without_server: Bench) -> None:
    """To the server's own port, from the address and port of a client whose answer is still to come."""
    (server,) = without_server.network.servers("quiet")
    with listening(without_server) as listener, asked(without_server) as connection, listener.accept()[0] as accepted:
        assert accepted.recv(4096) == request("/api/x")
        grown = without_server.growth()
        forged = segment((without_server.client.address, connection.port), (server.address, 8080), "S", seq=1)
        send(without_server.client, forged)
        eventually(lambda: grown["AGENT_PASS_SYN"] == 1, "the SYN to arrive")
        accepted.sendall(OK)
        assert connection.answer().body == b"ok"


@pytest.mark.usefixtures("may_repeat")
def test_a_full_accept_queue_costs_time_and_nothing_else(without_server: Bench) -> None:
    """The kernel drops a first request for which there is no room. The client sends it again."""
    with ExitStack() as stack:
        listener = stack.enter_context(listening(without_server, backlog=1))
        before = without_server.retransmissions()
        connections = [stack.enter_context(asked(without_server)) for _ in range(4)]
        eventually(lambda: without_server.retransmissions() != before, "a request to be sent again")
        for _ in connections:
            accepted = stack.enter_context(listener.accept()[0])
            assert accepted.recv(4096) == request("/api/x")
            accepted.sendall(OK)
        for connection in connections:
            assert connection.answer().body == b"ok"


def test_a_half_closed_client_still_gets_a_long_answer(without_server: Bench) -> None:
    """Not from nginx, which takes half a close for a whole one. This server answers once the client has finished."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(LONG)
    with listening(without_server) as listener, asked(without_server) as connection:
        connection.sock.shutdown(socket.SHUT_WR)
        with listener.accept()[0] as accepted, ThreadPoolExecutor(1) as pool:
            assert accepted.recv(4096) == request("/api/x")
            assert accepted.recv(4096) == b""
            sent = pool.submit(accepted.sendall, head + LONG)
            assert connection.answer().body == LONG
            sent.result()
        assert connection.ended()


@pytest.mark.usefixtures("may_repeat")
def test_an_answer_of_the_router_never_takes_the_place_of_the_servers(without_server: Bench) -> None:
    """The server is still thinking when a bad request comes: the client would read a 400 as the answer to the first.
    Nothing is said of the second one before that answer has begun to arrive.
    """
    with listening(without_server) as listener, asked(without_server) as connection, listener.accept()[0] as accepted:
        assert accepted.recv(4096) == request("/api/x")
        grown = without_server.growth()
        connection.sock.sendall(request("/api//x"))
        eventually(lambda: grown["DROP_PIPELINED"] > 0, "the second request to wait")
        accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst")
        assert connection.answer().body == b"first"
        assert reset_by_peer(connection)


def test_a_server_may_reset(without_server: Bench) -> None:
    with listening(without_server) as listener, asked(without_server) as connection:
        with listener.accept()[0] as accepted:
            accepted.recv(4096)
            accepted.setsockopt(*ABORT)
        assert reset_by_peer(connection)
