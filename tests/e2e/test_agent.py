"""What nobody should send to a backend's agent, and servers that it cannot serve: nothing opens, it is counted."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address

import pytest
from packets import oracle
from packets.sockets import IPPROTO_MPTCP
from scapy.layers.inet import IP

from e2e.bench import SECONDS, Bench, eventually, request
from e2e.wire import Capture, Endpoint, capture, segment, send
from lab.contenders.rauta import RunningRauta
from lab.servers import content

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root"),
    pytest.mark.usefixtures("nothing_is_sent_twice"),
]

BODY = content(13)
PORT = 8080
ROUTER, STRANGER = "198.19.0.77", "198.19.1.77"
"""an outer source as the routers have it, and one just outside of their prefix"""
SHARED_PORT = (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
"""set on two sockets, lets them use one port for two servers"""
FREE_PORT, ISN = 2100, 77_000_000


def own(routed: Bench, backend: str) -> Endpoint:
    """Where a backend's server really listens."""
    return routed.network.hosts[backend].address, PORT


def first_request(routed: Bench, vip: Endpoint, port: int = FREE_PORT) -> bytes:
    """A first request with a valid cookie, as only its client and who has the keys can make it."""
    assert isinstance(routed.running, RunningRauta)
    four = oracle.Tuple(str(routed.client.address), port, str(vip[0]), vip[1])
    options = oracle.cookie_options(oracle.SynOptions(mss=1460), epoch=0)
    cookie = oracle.cookie(four, ISN, options, routed.running.cookie_keys.by_epoch)
    mine = (routed.client.address, port)
    return segment(mine, vip, "PA", seq=ISN + 1, ack=cookie + 1, payload=request("/api/x"))


def carry(routed: Bench, packet: bytes, backend: str, source: str) -> None:
    """Send it to a backend, encapsulated as a connection's first packet."""
    outer = IP(src=source, dst=str(routed.network.hosts[backend].address), id=1, flags="DF", proto=4)
    send(routed.client, bytes(outer / IP(packet)))


# ---- one port of the client's ---------------------------------------------------------------------------


@contextmanager
def also_serving(routed: Bench, vip: Endpoint, port: int) -> Iterator[None]:
    """The agent of api-1 has a port of its host for another VIP, as no configuration would say it."""
    assert isinstance(routed.running, RunningRauta)
    services = routed.running.agents["api-1"].object.maps["services"]
    key = oracle.vip_key(str(vip[0]), vip[1])
    services.update(key, oracle.vip_key(str(routed.network.hosts["api-1"].address), port))
    yield
    services.delete(key)


def answered_from(wire: Capture, port: int) -> set[Endpoint]:
    """Who has said something to a port of the client's."""
    return {packet.source for packet in wire.received() if packet.destination[1] == port}


def test_two_vips_of_one_host_may_have_the_same_client_port(routed: Bench) -> None:
    """On ports of their own, which the configuration sees to: each connection is answered in its VIP's name."""
    with capture(routed.client) as wire, routed.connected() as connection:
        assert connection.ask("/api/x").backend == "api-1"
        grown, strict = routed.growth(), routed.vip("strict")
        with also_serving(routed, strict, PORT + 1):
            carry(routed, first_request(routed, strict, connection.port), "api-1", ROUTER)
            eventually(lambda: any(one.source == strict and one.payload for one in wire.received()), "an answer")
        assert connection.ask("/api/x").backend == "api-1"
        assert (grown["AGENT_OPENED"], grown["AGENT_CLEARING"]) == (1, 0), grown
        assert answered_from(wire, connection.port) == {routed.vip("shop"), strict}


def test_on_one_port_of_the_servers_the_second_is_refused(routed: Bench) -> None:
    """Whoever says that, two configurations on their way to each other perhaps: the first one does not notice."""
    with capture(routed.client) as wire, routed.connected() as connection:
        assert connection.ask("/api/x").backend == "api-1"
        grown, strict = routed.growth(), routed.vip("strict")
        with also_serving(routed, strict, PORT):
            carry(routed, first_request(routed, strict, connection.port), "api-1", ROUTER)
            eventually(lambda: grown["AGENT_DROP_CONFLICT"] == 1, "the second one's request to be dropped")
        assert connection.ask("/api/x").backend == "api-1"
        assert (grown["AGENT_OPENED"], grown["AGENT_CLEARING"]) == (0, 0), grown
        assert answered_from(wire, connection.port) == {routed.vip("shop")}


@contextmanager
def knocking(routed: Bench, to: Endpoint, port: int) -> Iterator[socket.socket]:
    """A client that has sent a SYN from a port in use, and does not wait."""
    with routed.client.entered():
        sock = socket.socket()
    with sock:
        sock.setsockopt(*SHARED_PORT)
        sock.bind((str(routed.client.address), port))
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.connect((str(to[0]), to[1]))
        yield sock


@pytest.mark.usefixtures("may_repeat")
def test_a_direct_connection_waits_for_the_end_of_a_routed_one_on_its_port(routed: Bench) -> None:
    server = own(routed, "api-1")
    with routed.connected(options=[SHARED_PORT]) as connection:
        assert connection.ask("/api/x").backend == "api-1"
        grown = routed.growth()
        with knocking(routed, server, connection.port) as direct:
            eventually(lambda: grown["AGENT_PASS_SYN"] == 1, "the direct SYN to arrive")
            for _ in range(3):
                assert connection.ask("/api/x").backend == "api-1"
            connection.sock.close()
            routed.wait_until_gone("api-1", connection.port)
            direct.settimeout(SECONDS)
            direct.sendall(request("/api/x"))  # once connected: a SYN comes again after a second
            assert BODY in direct.recv(4096)
            assert direct.getpeername() == (str(server[0]), server[1])


@pytest.mark.usefixtures("may_repeat")
def test_a_routed_connection_waits_for_the_end_of_a_direct_one_on_its_port(routed: Bench) -> None:
    with routed.connected(own(routed, "api-1"), options=[SHARED_PORT]) as direct:
        assert direct.ask("/api/x").backend == "api-1"
        with routed.connected(port=direct.port, options=[SHARED_PORT]) as connection:
            grown = routed.growth()
            connection.sock.sendall(request("/api/x"))
            eventually(lambda: grown["AGENT_DROP_CONFLICT"] > 0, "the routed request to be dropped")
            for _ in range(3):
                assert direct.ask("/api/x").body == BODY
            direct.sock.close()
            assert connection.answer().body == BODY
    assert grown["AGENT_CLEARING"] == 0, grown


# ---- encapsulated by somebody else ----------------------------------------------------------------------


@pytest.mark.parametrize("source", [STRANGER, "198.18.255.255", "client"])
def test_only_routers_may_send_to_an_agent(routed: Bench, source: str) -> None:
    grown = routed.growth()
    packet = first_request(routed, routed.vip("strict"))
    carry(routed, packet, "quiet-1", str(routed.client.address) if source == "client" else source)
    eventually(lambda: grown["AGENT_DROP_SOURCE"] == 1, "the packet to be dropped")
    assert (grown["AGENT_OPENED"], routed.sockets_of("quiet-1", FREE_PORT)) == (0, [])


UNSERVED = {
    "another port of the VIP": ("strict", 81),
    "another VIP": ("shop", 80),
    "the server's own port": (None, PORT),
    "another port of the server": (None, PORT + 1),
}


@pytest.mark.parametrize(("vip", "port"), UNSERVED.values(), ids=UNSERVED)
def test_an_agent_opens_no_socket_but_for_its_vips(routed: Bench, vip: str | None, port: int) -> None:
    """The cookie is good, and there is a server behind some of these ports."""
    address: IPv4Address = routed.vip(vip)[0] if vip else routed.network.hosts["quiet-1"].address
    grown = routed.growth()
    carry(routed, first_request(routed, (address, port)), "quiet-1", ROUTER)
    eventually(lambda: grown["AGENT_DROP_NOT_SERVED"] == 1, "the packet to be dropped")
    assert (grown["AGENT_OPENED"], routed.sockets_of("quiet-1", FREE_PORT)) == (0, [])


def test_for_those_it_does(routed: Bench) -> None:
    """The control for the two tests above: an address of the routers is no secret, the cookie is what counts."""
    grown = routed.growth()
    carry(routed, first_request(routed, routed.vip("strict"), FREE_PORT + 1), "quiet-1", ROUTER)
    eventually(lambda: grown["AGENT_OPENED"] == 1, "the socket to open")


# ---- servers that listen with MPTCP ---------------------------------------------------------------------


@pytest.fixture
def without_server(routed: Bench) -> Iterator[Bench]:
    """The cluster `quiet`, behind the VIP `strict`, without nginx."""
    routed.network.hosts["quiet-1"].stop_all()
    yield routed
    routed.restart_server("quiet")


@pytest.mark.usefixtures("may_repeat")
def test_a_listener_with_mptcp_gets_nothing_and_it_is_said_why(without_server: Bench) -> None:
    """The kernel makes it no socket from a cookie."""
    server = without_server.network.hosts["quiet-1"]
    with server.entered(), socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((str(server.address), PORT))
        listener.listen()
        listener.setblocking(False)
        grown = without_server.growth()
        with without_server.connected(without_server.vip("strict")) as connection:
            connection.sock.sendall(request("/api/x"))
            eventually(lambda: grown["AGENT_DROP_MPTCP"] > 0, "the request to be dropped")
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert (grown["AGENT_OPENED"], grown["AGENT_DROP_REFUSED"]) == (0, 0), grown
