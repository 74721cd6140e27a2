"""Links that are smaller than both ends know: each side learns it from the network, through the router.

    client ── gateway ── router ── hop ── server

Every host is a network apart, and forwards. The gateway may have a smaller link to the client, which the server's
answers do not fit on: its ICMP goes to the VIP, and from the router to the server's kernel. The hop may have one to the
server, which encapsulated packets do not fit on: its ICMP goes to the router, and from there to the client's kernel.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from itertools import pairwise

import pytest
from scapy.layers.inet import ICMP, IP, TCP

from e2e.bench import SECONDS, Growth, eventually, request
from e2e.wire import Capture, capture, segment, send
from lab import state, topology
from lab.process import run
from lab.servers import content
from lab.topology import Host
from rauta.agent import Agent
from rauta.bpf import BpfObject, attach_xdp
from rauta.config import load_config
from rauta.keys import Keys
from rauta.router import Router

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

VIP = (IPv4Address("198.18.100.80"), 80)
PORT = 8080
NAMES = ("client", "gateway", "router", "hop", "server")
LARGE = content(1_000_000)
TO_CLIENT, TO_SERVER = 1300, 1400
"""bytes that fit on the smaller links"""
TCPI_PMTU = 60
"""offset in struct tcp_info (include/uapi/linux/tcp.h)"""
FRAGMENTATION_NEEDED = (3, 4)

CONFIGURATION = f"""
version: 1
encapsulation: {{source: 198.19.0.0/24}}
vips: [{{name: shop, address: {VIP[0]}, port: {VIP[1]}, routes: [{{prefix: /, cluster: web}}]}}]
clusters: [{{name: web, backends: [{{name: server, address: 198.18.53.2, port: {PORT}}}]}}]
"""


@dataclass(frozen=True)
class Site:
    """The hosts by name, and what runs on two of them."""

    hosts: dict[str, Host]
    router: Router
    agent: Agent

    def counters(self) -> dict[str, int]:
        """Of both."""
        return {**self.router.counters(), **self.agent.counters()}

    def growth(self) -> Growth:
        """Of the counters, from now on."""
        return Growth(self, self.counters())  # type: ignore[arg-type]

    @contextmanager
    def smaller(self, host: str, destination: str, mtu: int) -> Iterator[None]:
        """A host's link to another one is smaller than anybody was told."""
        address = self.hosts[destination].address
        ip(self.hosts[host], f"route replace {address}/32 dev eth{'1' if host == 'hop' else '0'} mtu lock {mtu}")
        try:
            yield
        finally:
            ip(self.hosts[host], f"route del {address}/32")

    @contextmanager
    def conversation(self, answer: bytes = b"") -> Iterator[tuple[socket.socket, socket.socket, bytes]]:
        """The client's socket and the server's, and the request that opened it; the server has said `answer`."""
        with ExitStack() as stack:
            with self.hosts["server"].entered():
                listener = stack.enter_context(socket.create_server((str(self.hosts["server"].address), PORT)))
            with self.hosts["client"].entered():
                client = stack.enter_context(socket.socket())
            for one in (listener, client):
                one.settimeout(SECONDS)
            client.connect((str(VIP[0]), VIP[1]))
            client.sendall(request("/"))
            server = stack.enter_context(listener.accept()[0])
            server.settimeout(SECONDS)
            asked = server.recv(4096)
            if answer:
                server.sendall(answer)
                assert received(client, len(answer)) == answer
            yield client, server, asked


def ip(host: Host, command: str) -> None:
    host.run(["ip", *command.split()], timeout=SECONDS)


def received(sock: socket.socket, size: int) -> bytes:
    """So many bytes; fewer if no more come."""
    data = bytearray()
    while len(data) < size and (piece := sock.recv(size - len(data))):
        data += piece
    return bytes(data)


def path_mtu(sock: socket.socket) -> int:
    """What a socket's kernel takes the path's to be."""
    found: int = struct.unpack_from("I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 64), TCPI_PMTU)[0]
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    logs = tmp_path_factory.mktemp("site")
    (logs / "rauta.yaml").write_text(CONFIGURATION)
    with ExitStack() as undo:
        started = state.create("e2e")
        undo.callback(started.sweep)
        addresses = dict(zip(NAMES, map(IPv4Address, _addresses()), strict=True))
        hosts = {
            name: Host(name, name, undo.enter_context(topology.spare_namespace(started, name)), addresses[name], logs)
            for name in NAMES
        }
        instruments = undo.enter_context(BpfObject.open(topology.INSTRUMENTS))
        instruments.load()
        for number, (left, right) in enumerate(pairwise(NAMES)):
            _connect(hosts[left], hosts[right], number, instruments)
        _set_up_routes(hosts)
        config, keys = load_config(logs / "rauta.yaml"), Keys.generate()
        agent = undo.enter_context(Agent.load(config, keys, backend="server"))
        with hosts["server"].entered():
            agent.attach("eth0")
        router = undo.enter_context(Router.load(config, keys))
        with hosts["router"].entered():
            router.attach("eth0", "eth1", mode="native")
        yield Site(hosts, router, agent)


def _addresses() -> list[str]:
    """Of each host, on the cable to its left; of the client, on its only one."""
    return ["198.18.50.2", "198.18.50.1", "198.18.51.2", "198.18.52.2", "198.18.53.2"]


def _connect(left: Host, right: Host, number: int, instruments: BpfObject) -> None:
    """A cable between neighbours: eth0 leads towards the client. What XDP sends arrives only where XDP is, too."""
    network, near = f"198.18.{50 + number}", "eth0" if left.name == "client" else "eth1"
    with left.entered():
        run(
            ["ip", "link", "add", near, "type", "veth", "peer", "name", "eth0", "netns", right.namespace],
            timeout=SECONDS,
        )
    ends = (2, 1) if left.name == "client" else (1, 2)
    for host, interface, end in ((left, near, ends[0]), (right, "eth0", ends[1])):
        ip(host, f"address add {network}.{end}/24 dev {interface}")
        ip(host, f"link set {interface} up")
        host.run(["ethtool", "-K", interface, "tx", "off"], timeout=SECONDS)  # into XDP: finished checksums only
        for name in (interface, "all"):
            host.sysctl(f"net.ipv4.conf.{name}.rp_filter", "0")
        if "router" in (left.name, right.name) and host.name != "router":
            with host.entered():
                attach_xdp(socket.if_nametoindex(interface), instruments.programs["xdp_pass"], "native")


def _set_up_routes(hosts: dict[str, Host]) -> None:
    for host in hosts.values():
        host.sysctl("net.ipv4.ip_forward", "1")
        host.sysctl("net.ipv6.conf.all.disable_ipv6", "1")
    for name, way in {
        "client": ["default via 198.18.50.1"],
        "gateway": [f"{to} via 198.18.51.2" for to in (f"{VIP[0]}/32", "198.18.52.0/24", "198.18.53.0/24")],
        "router": ["198.18.50.0/24 via 198.18.51.1", "198.18.53.0/24 via 198.18.52.2"],
        "hop": [f"{to} via 198.18.52.1" for to in ("198.18.50.0/24", "198.18.51.0/24", "198.19.0.0/24")],
        "server": ["default via 198.18.53.1"],
    }.items():
        for route in way:
            ip(hosts[name], f"route add {route}")


@pytest.fixture(autouse=True)
def nothing_is_known(site: Site) -> None:
    """About any path."""
    for host in site.hosts.values():
        ip(host, "route flush cache")


# ---- learned --------------------------------------------------------------------------------------------


def test_a_server_learns_what_does_not_fit_on_the_way_to_the_client(site: Site) -> None:
    grown = site.growth()
    with site.smaller("gateway", "client", TO_CLIENT), site.conversation() as (client, server, _):
        assert path_mtu(server) == 1500
        with ThreadPoolExecutor(1) as pool:
            sent = pool.submit(server.sendall, LARGE)
            assert received(client, len(LARGE)) == LARGE
            sent.result()
        assert path_mtu(server) == TO_CLIENT
        assert grown["FORWARDED_ICMP"] == grown["AGENT_DELIVERED_ICMP"] > 0, grown
    assert grown["DROP_ICMP"] == grown["AGENT_DROP_ICMP"] == 0, grown


def largest(wire: Capture) -> int:
    """Length of the largest encapsulated packet."""
    return max(len(packet) for packet in wire.ipv4(socket.IPPROTO_IPIP))


def uploaded(client: socket.socket, server: socket.socket) -> bytes:
    """A large body in the client's next request, as it arrives."""
    upload = request("/", method="POST", body=LARGE)
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(client.sendall, upload)
        arrived = received(server, len(upload))
        sent.result()
    return arrived[-len(LARGE) :]


def test_a_client_learns_what_does_not_fit_on_the_way_to_the_server(site: Site) -> None:
    """Its packets are smaller than that, but not with the outer header."""
    grown = site.growth()
    with site.smaller("hop", "server", TO_SERVER), capture(site.hosts["server"]) as wire:
        with site.conversation(b"go on") as (client, server, _):
            assert path_mtu(client) == 1500
            assert uploaded(client, server) == LARGE
            assert path_mtu(client) == TO_SERVER - 20
        assert largest(wire) == TO_SERVER
    assert grown["TX_TOO_BIG"] > 0, grown
    assert grown["DROP_ICMP"] == 0, grown


def test_encapsulated_packets_fit_on_an_ordinary_link(site: Site) -> None:
    """The router's SYN-ACK has seen to that."""
    grown = site.growth()
    with capture(site.hosts["server"]) as wire, site.conversation(b"go on") as (client, server, _):
        assert uploaded(client, server) == LARGE
        assert 1400 < largest(wire) <= 1500
    assert grown["TX_TOO_BIG"] == grown["DROP_TOO_BIG"] == 0, grown


def test_a_client_that_sends_too_much_all_the_same_is_told(site: Site) -> None:
    """No kernel does so of itself."""
    client = site.hosts["client"]
    with capture(client) as wire, site.conversation(b"go on") as (sock, _, asked):
        first = next(packet for packet in wire.sent() if packet.payload == asked)
        body = request("/", method="POST", body=b"b" * 1400)
        big = segment(first.source, first.destination, "A", seq=first.after, ack=first.ack + 5, payload=body)
        assert len(big) > 1480
        grown = site.growth()
        send(client, big)
        eventually(lambda: len(wire.ipv4(socket.IPPROTO_ICMP)) == 1, "the router's answer")
        (told,) = map(IP, wire.ipv4(socket.IPPROTO_ICMP))
        assert (told.src, told[ICMP].type, told[ICMP].code, told[ICMP].nexthopmtu) == (str(VIP[0]), 3, 4, 1480)
        assert bytes(told[ICMP].payload)[20:40] == big[20:40]
        assert (grown["TX_TOO_BIG"], grown["DROP_TOO_BIG"]) == (1, 0), grown
        eventually(lambda: path_mtu(sock) == 1480, "its kernel to believe that")


# ---- forged ---------------------------------------------------------------------------------------------


def error(about: IP, mtu: int) -> bytes:
    """As a hop would send it, about the beginning of a packet."""
    hop = IP(src="198.18.51.1", dst=about.src)
    return bytes(hop / ICMP(type=3, code=4, nexthopmtu=mtu) / bytes(about)[:60])


def out_of_window(host: Host) -> int:
    """How often a kernel has refused an error for its sequence number."""
    return host.tcp_counters()["TcpExt.OutOfWindowIcmps"]


@pytest.mark.parametrize("offset", [1, -1, 1 << 16, 1 << 31, 0])
def test_a_server_believes_only_who_knows_the_number(site: Site, offset: int) -> None:
    """Whoever forges one sees addresses and ports, not sequence numbers. The last case is the control: it is right."""
    server = site.hosts["server"]
    with capture(site.hosts["client"]) as wire, site.conversation(b"said") as (sock, accepted, _):
        said = next(packet for packet in wire.received() if packet.payload == b"said")
        about = IP(said.raw)
        about[TCP].seq = (said.after + offset) % (1 << 32)
        before, grown = out_of_window(server), site.growth()
        send(site.hosts["gateway"], error(about, 600))
        eventually(lambda: grown["AGENT_DELIVERED_ICMP"] == 1, "the error to reach the server's kernel")
        if offset:
            eventually(lambda: out_of_window(server) == before + 1, "it to be refused")
            assert path_mtu(accepted) == 1500
        else:
            eventually(lambda: path_mtu(accepted) == 600, "it to be believed")
        accepted.sendall(LARGE[:5000])
        assert received(sock, 5000) == LARGE[:5000]


@pytest.mark.parametrize("offset", [1, 1 << 16, 1 << 31, 0])
def test_so_does_a_client(site: Site, offset: int) -> None:
    client = site.hosts["client"]
    with capture(site.hosts["server"]) as wire, site.conversation(b"said") as (sock, _, asked):
        carried = next(IP(packet) for packet in wire.ipv4(socket.IPPROTO_IPIP) if asked in packet)
        carried[TCP].seq = (carried[TCP].seq + len(asked) + offset) % (1 << 32)
        before, grown = out_of_window(client), site.growth()
        carried.len = 1476
        send(site.hosts["hop"], error(carried, 700))
        eventually(lambda: grown["TX_TOO_BIG"] == 1, "the error to go on to the client")
        if offset:
            eventually(lambda: out_of_window(client) == before + 1, "it to be refused")
            assert path_mtu(sock) == 1500
        else:
            eventually(lambda: path_mtu(sock) == 680, "it to be believed")


def test_an_error_about_nobodys_packet_gets_nowhere(site: Site) -> None:
    """Nor another error about somebody's: the connection goes on."""
    with capture(site.hosts["client"]) as wire, site.conversation(b"said") as (sock, accepted, _):
        said = next(packet for packet in wire.received() if packet.payload == b"said")
        strange = IP(said.raw)
        strange[TCP].dport += 1
        grown = site.growth()
        send(site.hosts["gateway"], error(strange, 600))
        for code in (0, 1, 2, 3):
            unreachable = IP(src="198.18.51.1", dst=said.source[0].exploded) / ICMP(type=3, code=code) / said.raw[:60]
            send(site.hosts["gateway"], bytes(unreachable))
        eventually(lambda: grown["DROP_ICMP"] == 5, "all of them to be dropped")
        accepted.sendall(b"more")
        assert sock.recv(4) == b"more"
        assert grown["FORWARDED_ICMP"] == 0, grown
