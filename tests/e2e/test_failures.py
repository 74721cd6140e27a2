"""A backend's host that is cut off: idle connections go on elsewhere, and who waits for an answer gets an error."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pyroute2 import IPRoute

from e2e.bench import Bench, request
from lab.contenders.rauta import RunningRauta
from lab.servers import content
from lab.topology import FABRIC
from rauta.network.namespaces import entered
from rauta.router import Router

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root"),
    pytest.mark.usefixtures("may_repeat"),
]

BODY = content(13)
ERROR_SECONDS = 2.0


def router_of(routed: Bench) -> Router:
    assert isinstance(routed.running, RunningRauta)
    return routed.running.router


@contextmanager
def cut_off(routed: Bench, backend: str) -> Iterator[None]:
    """The host's cable is pulled, and put back in the end."""
    with entered(routed.network.run.prefix + FABRIC), IPRoute() as kernel:
        (port,) = kernel.link_lookup(ifname=backend)
        kernel.link("set", index=port, state="down")
        try:
            yield
        finally:
            kernel.link("set", index=port, state="up")


@contextmanager
def failed(routed: Bench, backend: str) -> Iterator[None]:
    """The same, and the router has been told."""
    router = router_of(routed)
    with cut_off(routed, backend):
        router.set_down(backend)
        try:
            yield
        finally:
            router.set_down(backend, down=False)


def test_an_idle_connection_goes_on_elsewhere_at_its_next_request(routed: Bench) -> None:
    with routed.connected() as connection:
        first = connection.ask("/web").backend
        with failed(routed, first):
            grown = routed.growth()
            answers = [connection.ask("/web") for _ in range(3)]
            assert {answer.body for answer in answers} == {BODY}
            assert {answer.backend for answer in answers} == set(routed.network.clusters["web"]) - {first}
            assert (grown["ROUTED_MOVED"], grown["ROUTED_NEXT"], grown["AGENT_ADOPTED"]) == (1, 2, 1), grown


def test_a_new_connection_goes_elsewhere(routed: Bench) -> None:
    backend = next(iter(routed.network.clusters["web"]))
    with failed(routed, backend):
        for _ in range(8):
            with routed.connected() as connection:
                assert connection.ask("/web").backend != backend


def test_whoever_waits_for_an_answer_gets_an_error_soon(routed: Bench) -> None:
    with routed.connected() as connection:
        backend = connection.ask("/web").backend
        with cut_off(routed, backend):
            connection.sock.sendall(request("/web"))
            router = router_of(routed)
            router.set_down(backend)
            try:
                began = time.monotonic()
                with routed.network.hosts["router"].entered():
                    assert router.probe_down(backend) >= 1
                with pytest.raises(ConnectionResetError):
                    connection.sock.recv(1)
                assert time.monotonic() - began < ERROR_SECONDS
            finally:
                router.set_down(backend, down=False)


def test_an_idle_connection_survives_the_probe(routed: Bench) -> None:
    with routed.connected() as connection:
        backend = connection.ask("/web").backend
        with failed(routed, backend):
            grown = routed.growth()
            with routed.network.hosts["router"].entered():
                router_of(routed).probe_down(backend)
            answer = connection.ask("/web")
            assert answer.body == BODY
            assert answer.backend != backend
            assert grown["TX_RESET_DOWN"] == 0, grown


def test_whoever_has_a_part_of_an_answer_gets_an_error_when_the_backend_is_given_up(routed: Bench) -> None:
    with routed.connected() as connection:
        assert connection.ask("/api/x").backend == "api-1"
        connection.sock.sendall(request("/api/download"))
        connection.sock.recv(1000)
        with failed(routed, "api-1"), routed.network.hosts["router"].entered():
            router_of(routed).probe_down("api-1")
            connection.sock.settimeout(0.5)
            with pytest.raises(TimeoutError):  # more than what was under way does not come
                read_all(connection.sock)
            assert router_of(routed).give_up("api-1") >= 1
            with pytest.raises(ConnectionResetError):
                connection.sock.recv(1)


def read_all(sock: socket.socket) -> None:
    """Until its end."""
    while sock.recv(1 << 20):
        pass


def test_a_backend_that_is_back_gets_connections_again(routed: Bench) -> None:
    backends = routed.network.clusters["web"]
    with failed(routed, next(iter(backends))):
        pass
    seen = set()
    for _ in range(40):
        with routed.connected() as connection:
            seen.add(connection.ask("/web").backend)
    assert seen == set(backends)


def test_a_servers_process_that_ends_is_an_ordinary_close(routed: Bench) -> None:
    """Its kernel ends the idle connections; a new one, once the router has been told, is answered elsewhere."""
    with routed.connected() as connection:
        backend = connection.ask("/web").backend
        routed.network.hosts[backend].stop_all()
        try:
            assert connection.sock.recv(1) == b""
            router_of(routed).set_down(backend)
            with routed.connected(port=connection.port + 1) as another:
                assert another.ask("/web").body == BODY
        finally:
            router_of(routed).set_down(backend, down=False)
            for name in routed.network.clusters["web"]:
                routed.network.hosts[name].stop_all()
            routed.restart_server("web")
