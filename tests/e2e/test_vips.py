"""Several VIPs, two addresses with two ports each: real clients get each one's routes, and nothing of another's."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from e2e.bench import Bench, bench, request
from lab.clients import CLIENTS, ClientName, NoAnswer
from lab.servers import content

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

FILE = Path(__file__).parent / "data" / "vips.yaml"
BACKENDS = {"a-80": "one-1", "a-8443": "two-1", "b-80": "three-1", "b-8443": "four-1"}
RESETTING = {"a-8443", "b-80"}
PORT = 2000
"""of the client's: below what the kernel chooses"""
AGAIN = [(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)]
"""lets several sockets of the client have the same port, each to another place"""
DOWNLOAD = content(5_000_000)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench("rauta", tmp_path_factory.mktemp("logs"), FILE) as one:
        yield one


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("vip", BACKENDS)
@pytest.mark.parametrize("path", ["/shared", "/shared/x", *(f"/{name}" for name in BACKENDS)])
def test_a_vip_has_its_own_routes_and_its_own_default(several: Bench, client: ClientName, vip: str, path: str) -> None:
    asked = several.to(vip, path)
    if path.startswith(("/shared", f"/{vip}")):
        assert CLIENTS[client](several.client, asked).backend == BACKENDS[vip]
    elif vip in RESETTING:
        with pytest.raises(NoAnswer) as refused:
            CLIENTS[client](several.client, asked)
        assert refused.value.reset
    else:
        assert CLIENTS[client](several.client, asked).status == 404


def test_one_port_of_a_client_may_be_connected_to_all_of_them(several: Bench) -> None:
    """At once: requests in turn, downloads at the same time, and the end of one is not that of another."""
    with ExitStack() as stack:
        connections = {
            vip: stack.enter_context(several.connected(several.vip(vip), port=PORT, options=AGAIN)) for vip in BACKENDS
        }
        assert {connection.port for connection in connections.values()} == {PORT}
        for _ in range(5):
            for vip, connection in connections.items():
                assert connection.ask("/shared").backend == BACKENDS[vip]
        for connection in connections.values():
            connection.sock.sendall(request("/shared/download"))
        for vip, connection in connections.items():
            answer = connection.answer()
            assert (answer.backend, answer.body == DOWNLOAD) == (BACKENDS[vip], True)
        while connections:
            _, connection = connections.popitem()
            connection.sock.close()
            for vip, left in connections.items():
                assert left.ask("/shared").backend == BACKENDS[vip]


def test_a_path_of_another_vip_ends_a_kept_connection(several: Bench) -> None:
    grown = several.growth()
    with several.connected(several.vip("a-80")) as connection:
        assert connection.ask("/shared").backend == "one-1"
        connection.sock.sendall(request("/a-8443"))
        with pytest.raises(ConnectionResetError):
            connection.sock.recv(1)
    assert (grown["TX_NO_ROUTE"], grown["ROUTED_NEXT"]) == (1, 0), grown
