"""Servers and clients without a router: what RAUTA is measured against, and what the other tests rely on."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from e2e.bench import HOST, SECONDS, Bench, bench, eventually, request
from lab.checks.state import RETRANSMISSION, sockets
from lab.clients import CLIENTS, ClientName, NoAnswer, Request
from lab.servers import content

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

BODY = content(13)
LONG = content(5_000_000)
UPLOAD = content(100_000)
PATIENCE_SECONDS = 0.3
"""of a client that is not going to be answered"""
SPARE_PORT = 9090


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench("direct", tmp_path_factory.mktemp("logs")) as one:
        yield one


def to(direct: Bench, cluster: str, path: str) -> Request:
    address, port = direct.running.target(cluster)
    return Request(address, port, f"http://{HOST}{path}")


# ---- servers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cluster", "backend"), [("web", "web-1"), ("api", "api-1"), ("quiet", "quiet-1")])
def test_the_first_backend_of_a_cluster_answers_on_a_port_of_its_own(direct: Bench, cluster: str, backend: str) -> None:
    assert direct.running.target(cluster) == (direct.network.hosts[backend].address, 8081)
    assert direct.running.counters() == {}
    for port in (8080, 8081):
        with direct.connected((direct.network.hosts[backend].address, port)) as connection:
            answer = connection.ask("/")
            assert (answer.status, answer.backend, answer.body) == (200, backend, BODY)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("path", ["/", "/any/path?and=query", "/downloads"])
def test_every_path_has_the_same_body(direct: Bench, client: ClientName, path: str) -> None:
    answer = CLIENTS[client](direct.client, to(direct, "api", path))
    assert (answer.status, answer.backend, answer.body) == (200, "api-1", BODY)
    assert answer.headers["content-length"] == str(len(BODY))


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("path", ["/download", "/api/download", "/a/b/c/download"])
def test_but_those_that_end_in_download(direct: Bench, client: ClientName, path: str) -> None:
    answer = CLIENTS[client](direct.client, to(direct, "api", path))
    assert (answer.status, answer.backend, answer.body) == (200, "api-1", LONG)


def test_head_has_no_body(direct: Bench) -> None:
    with direct.connected(direct.running.target("api")) as connection:
        answer = connection.ask("/api/download", method="HEAD")
        assert (answer.body, answer.headers["content-length"]) == (b"", str(len(LONG)))
        assert connection.ask("/").body == BODY


def test_a_connection_carries_any_number_of_requests(direct: Bench) -> None:
    with direct.connected(direct.running.target("api")) as connection:
        assert all(connection.ask("/").body == BODY for _ in range(2000))


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("size", [1, 5_000, 100_000, 2_000_000])
def test_a_body_that_went_up_is_counted(direct: Bench, method: str, size: int) -> None:
    with direct.connected(direct.running.target("api")) as connection:
        answer = connection.ask("/any", method=method, body=content(size))
        assert (answer.status, answer.backend, answer.body) == (200, "api-1", BODY)
        assert answer.headers["x-received"] == str(size)
        assert connection.ask("/").body == BODY


def test_an_upload_is_answered_only_when_all_of_it_has_come(direct: Bench) -> None:
    whole = request("/any", method="POST", body=UPLOAD)
    with direct.connected(direct.running.target("api")) as connection:
        local = (direct.client.address, connection.port)
        connection.sock.sendall(whole[:-1])

        def all_acknowledged() -> bool:
            return all(one.timer != RETRANSMISSION for one in sockets(direct.client) if one.local == local)

        eventually(all_acknowledged, "the server's kernel to have all but the last byte")
        assert select.select([connection.sock], [], [], PATIENCE_SECONDS)[0] == []
        connection.sock.sendall(whole[-1:])
        assert connection.answer().headers["x-received"] == str(len(UPLOAD))


# ---- clients --------------------------------------------------------------------------------------------


def silence(accepted: socket.socket) -> None:
    accepted.recv(1)  # until the client has given up


def reset(accepted: socket.socket) -> None:
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def close(accepted: socket.socket) -> None:
    """Without unread data, or it would be a reset."""


def half_an_answer(accepted: socket.socket) -> None:
    accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\nRAUTA")


@contextmanager
def serving(direct: Bench, behaviour: Callable[[socket.socket], None]) -> Iterator[Request]:
    """A server that reads one request and then behaves in some way; the request to send to it."""
    (host,) = direct.network.servers("quiet")
    with host.entered():
        listener = socket.create_server((str(host.address), SPARE_PORT))
    listener.settimeout(SECONDS)

    def serve() -> None:
        with listener.accept()[0] as accepted:
            accepted.settimeout(SECONDS)
            accepted.recv(4096)
            behaviour(accepted)

    with listener, ThreadPoolExecutor(1) as pool:
        served = pool.submit(serve)
        yield Request(host.address, SPARE_PORT, f"http://{HOST}/", seconds=PATIENCE_SECONDS)
        served.result()


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("behaviour", [silence, reset, close, half_an_answer])
def test_a_client_tells_a_reset_from_other_ways_of_not_answering(
    direct: Bench, client: ClientName, behaviour: Callable[[socket.socket], None]
) -> None:
    with serving(direct, behaviour) as one, pytest.raises(NoAnswer) as caught:
        CLIENTS[client](direct.client, one)
    assert caught.value.reset == (behaviour is reset), caught.value
    assert str(one) in str(caught.value)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_refused_connection_is_no_answer(direct: Bench, client: ClientName) -> None:
    address = direct.network.hosts["quiet-1"].address
    with pytest.raises(NoAnswer, match=r"refused|Couldn't connect") as caught:
        CLIENTS[client](direct.client, Request(address, SPARE_PORT, f"http://{HOST}/"))
    assert not caught.value.reset
