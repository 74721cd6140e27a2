"""ICMP errors at the router: "fragmentation needed" reaches whoever has to send less, others get nowhere."""

import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import Ether

from packets import oracle
from packets.bench import BACKENDS, FALLBACK, XDP_PASS, XDP_REDIRECT, XDP_TX, Router, entry, throwaway_namespace
from packets.frames import (
    CLIENT,
    CLIENT_MAC,
    ROUTER_MAC,
    VIP,
    VIP_PORT,
    Connection,
    ethernet,
    icmp_error,
    ip_packet,
    outer_packet,
    request,
)
from rauta.bpf import xdp_context

ALICE = Connection()
HEAD = request("/")
HOP = "198.18.77.7"
"""whoever has the link that something does not fit on"""
WEB = BACKENDS["web-1"]
NEEDED = {"kind": 3, "code": 4}
OTHER_ERRORS = [
    (3, 0),
    (3, 1),
    (3, 3),
    (3, 5),
    (3, 13),
    (4, 0),
    (4, 4),
    (5, 1),
    (5, 4),
    (11, 0),
    (11, 1),
    (12, 0),
    (12, 4),
]
other_errors = pytest.mark.parametrize(("kind", "code"), OTHER_ERRORS)


def known(router: Router, connection: Connection = ALICE, **changes: int) -> dict[str, int]:
    """A connection that web-1 has: its entry."""
    made = entry(connection.data(HEAD), "web", "web-1", **changes)
    router.put_flow(connection, **made)
    return made


def to_router(packet: bytes, padding: bytes = b"") -> bytes:
    return ethernet(CLIENT_MAC, ROUTER_MAC, packet) + padding


# ---- about what a backend sent in the VIP's name --------------------------------------------------------


def answer(connection: Connection = ALICE, ip: dict[str, Any] | None = None, size: int = 1400) -> bytes:
    """A backend's packet as it is on its way to the client."""
    four = connection.tuple
    header = {"src": four.server, "dst": four.client, "id": 4711, "flags": "DF", "ttl": 60}
    tcp = {
        "sport": four.server_port,
        "dport": four.client_port,
        "seq": connection.cookie + 1 & 0xFFFFFFFF,
        "flags": "A",
    }
    return ip_packet(header | (ip or {}), tcp, b"x" * size)


def to_vip(about: bytes, destination: str = VIP, ip: dict[str, Any] | None = None, **icmp: Any) -> bytes:
    """A hop's error about that packet."""
    header = {"src": HOP, "dst": destination, "id": 99, "ttl": 57, "tos": 0xC0}
    return icmp_error(about, header | (ip or {}), **({"mtu": 1300} | icmp))


def reaches_backend(router: Router, error: bytes, padding: bytes = b"", connection: Connection = ALICE) -> None:
    """To web-1, behind another header, as everything of that connection."""
    source = oracle.outer_source(connection.tuple, *router.outer)
    packet = outer_packet(error, WEB, source, connection.cookie)
    router.sends(to_router(error, padding), "FORWARDED_ICMP", ethernet(ROUTER_MAC, WEB.mac, packet))


@pytest.mark.parametrize("length", [28, 29, 40, 52, 300, 548, 1424])
def test_the_flows_backend_hears_of_it(router: Router, length: int) -> None:
    """However much of the packet is in it: RFC 792 asks for 28 bytes, RFC 1812 for up to 548."""
    before = known(router)
    reaches_backend(router, to_vip(answer()[:length]))
    assert router.flow(ALICE) == before


@pytest.mark.parametrize("ip", [{"tos": 0}, {"tos": 0xFF}, {"ttl": 1}, {"flags": "DF"}, {"id": 0}], ids=str)
def test_the_error_goes_on_as_it_is(router: Router, ip: dict[str, Any]) -> None:
    known(router)
    reaches_backend(router, to_vip(answer()[:40], ip=ip))


@pytest.mark.parametrize("icmp", [{"mtu": 0}, {"mtu": 68}, {"mtu": 65535}, {"chksum": 0xBAD}, {"length": 9}], ids=str)
def test_what_it_says_is_the_backends_to_judge(router: Router, icmp: dict[str, int]) -> None:
    known(router)
    reaches_backend(router, to_vip(answer()[:40], **icmp))


@pytest.mark.parametrize("padding", [1, 6, 18])
def test_padding_is_cut_off(router: Router, padding: int) -> None:
    known(router)
    reaches_backend(router, to_vip(answer()[:28]), b"\xee" * padding)


@pytest.mark.parametrize("state", [oracle.FLOW_OPEN, oracle.FLOW_CLOSING])
def test_each_flow_has_its_backend(router: Router, state: int) -> None:
    for port in range(42000, 42010):
        connection = Connection(port=port, client=f"198.18.3.{port % 250}")
        known(router, connection, state=state)
        reaches_backend(router, to_vip(answer(connection)[:40]), connection=connection)


@other_errors
def test_other_errors_to_a_vip_are_dropped(router: Router, kind: int, code: int) -> None:
    """TCP needs none of them, and they may be forged."""
    known(router)
    router.drops(to_router(to_vip(answer()[:40], kind=kind, code=code)), "DROP_ICMP")


UNKNOWN = {
    "another port of the client": answer(replace(ALICE, port=ALICE.port + 1)),
    "another client": answer(replace(ALICE, client="198.18.0.9")),
    "what the client sent": ALICE.data(HEAD).packet,
    "from another address": answer(replace(ALICE, server="198.18.100.81", server_port=8000)),
    "another protocol": bytes(IP(src=VIP, dst=CLIENT) / UDP(sport=VIP_PORT, dport=ALICE.port) / bytes(64)),
    "IPv6": b"\x60" + answer()[1:],
    "a later fragment": answer(ip={"frag": 100, "flags": 0}),
    "a first fragment": answer(ip={"flags": "MF"}),
    "IP options": answer(ip={"options": b"\1" * 4}),
}


@pytest.mark.parametrize("about", UNKNOWN.values(), ids=UNKNOWN)
def test_what_belongs_to_no_flow_is_dropped(router: Router, about: bytes) -> None:
    known(router)
    router.drops(to_router(to_vip(about[:60])), "DROP_ICMP")


@pytest.mark.parametrize("length", [0, 8, 19, 20, 24, 27])
def test_an_excerpt_that_is_too_short_is_dropped(router: Router, length: int) -> None:
    known(router)
    error = to_vip(answer()[:length])
    router.drops(to_router(error), "DROP_ICMP")
    router.drops(to_router(error, answer()[length:40]), "DROP_ICMP")  # padding is not part of it


@pytest.mark.parametrize("length", [20, 27, 55, 69, 1000, 65535])
def test_a_total_length_that_cannot_be_is_dropped(router: Router, length: int) -> None:
    known(router)
    router.drops(to_router(to_vip(answer()[:40], ip={"len": length})), "DROP_ICMP")


def test_ip_options_in_an_error_are_dropped(router: Router) -> None:
    known(router)
    router.drops(to_router(to_vip(answer()[:40], ip={"options": b"\1" * 4})), "DROP_ICMP")


def test_an_error_that_is_itself_too_big_is_dropped_and_not_answered(router: Router) -> None:
    """An error is never answered with an error (RFC 1122, 3.2.2)."""
    known(router)
    reaches_backend(router, to_vip(answer()[:1452]))
    router.drops(to_router(to_vip(answer(size=1500)[:1453], ip={"flags": "DF"})), "DROP_ICMP")


def test_what_the_router_answered_itself_has_no_backend(router: Router) -> None:
    router.put_flow(ALICE, **entry(ALICE.data(HEAD), "web", "web-1", state=oracle.FLOW_ANSWERED) | {"backend": 0xFFFF})
    router.drops(to_router(to_vip(answer()[:40])), "DROP_ICMP")


def test_of_the_fallbacks_packets_its_own_host_hears(router: Router) -> None:
    router.put_flow(ALICE, **known(router) | {"backend": FALLBACK.index, "state": oracle.FLOW_FALLBACK})
    error = to_vip(answer()[:40])
    code, output = router.run("rauta_ingress", to_router(error), "FALLBACK_FORWARDED")
    source = oracle.outer_source(ALICE.tuple, *router.outer)
    expected = to_router(outer_packet(error, FALLBACK, source, ALICE.cookie))
    assert (code, output.hex(" ")) == (XDP_PASS, expected.hex(" "))


def test_a_backend_that_is_gone_hears_nothing(router: Router) -> None:
    known(router)
    router.retire("web-1")
    router.drops(to_router(to_vip(answer()[:40])), "DROP_NO_BACKEND")


@pytest.mark.parametrize("kind", [0, 8, 9, 10, 13, 14, 15, 16, 17, 18, 42, 255])
def test_what_is_no_error_passes(router: Router, kind: int) -> None:
    """Whether a VIP answers pings is its host's business, as ever."""
    known(router)
    for about in (b"", answer()[:40]):
        router.passes(to_router(to_vip(about, kind=kind, code=4)), "PASS_NOT_TCP")


@pytest.mark.parametrize("length", range(8))
def test_so_does_what_is_cut_off(router: Router, length: int) -> None:
    router.passes(to_router(to_vip(answer()[:40])[: 20 + length]), "PASS_NOT_TCP")


@pytest.mark.parametrize(("kind", "code"), [(3, 4), (3, 3), (11, 0)])
@pytest.mark.parametrize("port", [22, VIP_PORT + 1, 0])
def test_errors_about_the_addresss_other_services_are_the_kernels(
    router: Router, kind: int, code: int, port: int
) -> None:
    """As their packets are."""
    about = answer(replace(ALICE, server_port=port))
    router.passes(to_router(to_vip(about[:40], kind=kind, code=code)), "PASS_NOT_VIP")


@other_errors
def test_errors_to_others_pass(router: Router, kind: int, code: int) -> None:
    about = answer(replace(ALICE, server="198.18.0.2"))
    router.passes(to_router(to_vip(about[:40], "198.18.0.2", kind=kind, code=code)), "PASS_NOT_TCP")


# ---- about what the router encapsulated -----------------------------------------------------------------

UPLOAD = ALICE.data(b"b" * 1400, len(HEAD), flags="A")


def outer_of(router: Router, packet: bytes = UPLOAD.packet, connection: Connection = ALICE, **changes: Any) -> bytes:
    """A packet of a client's as it was on its way to web-1; `changes` to the outer header."""
    header = {
        "src": oracle.outer_source(connection.tuple, *router.outer),
        "dst": WEB.address,
        "flags": "DF",
        "proto": 4,
    }
    return bytes(IP(**{**header, "id": oracle.outer_id(connection.cookie, opens=False), "ttl": 61} | changes) / packet)


def to_outer(router: Router, about: bytes, connection: Connection = ALICE, **icmp: Any) -> bytes:
    """A hop's error about it."""
    destination = icmp.pop("destination", oracle.outer_source(connection.tuple, *router.outer))
    header = {"src": HOP, "dst": destination, "id": 98, "ttl": 55, "tos": 0xC0}
    return icmp_error(about, header | icmp.pop("ip", {}), **({"mtu": 1400} | icmp))


def told(packet: bytes, mtu: int, connection: Connection = ALICE, **icmp: Any) -> bytes:
    """The error that the client gets."""
    ip = {"src": connection.server, "dst": connection.client, "id": 0, "flags": "DF", "ttl": 64, "tos": 0}
    return icmp_error(packet, ip, mtu=mtu, **icmp)


def tells_client(router: Router, error: bytes, expected: bytes, padding: bytes = b"") -> None:
    router.sends(to_router(error, padding), "TX_TOO_BIG", ethernet(ROUTER_MAC, CLIENT_MAC, expected))


@pytest.mark.parametrize("length", [28, 29, 40, 41, 60, 300, 528, len(UPLOAD.packet)])
def test_the_client_hears_of_its_own_packet(router: Router, length: int) -> None:
    """For a link that is smaller by the outer header. Here nothing forwards: it goes back to who sent the error."""
    before = known(router)
    error = to_outer(router, outer_of(router)[: 20 + length])
    tells_client(router, error, told(UPLOAD.packet[:length], 1380))
    assert router.flow(ALICE) == before


@pytest.mark.parametrize("mtu", [88, 89, 576, 1300, 1471])
def test_for_any_link(router: Router, mtu: int) -> None:
    known(router)
    error = to_outer(router, outer_of(router)[:100], mtu=mtu)
    tells_client(router, error, told(UPLOAD.packet[:80], mtu - 20))


def test_and_any_flow(router: Router) -> None:
    for port in range(42000, 42020):
        connection = Connection(port=port, client=f"198.18.3.{port % 250}")
        known(router, connection)
        packet = connection.data(b"b" * (1300 + port % 7), len(HEAD), flags="A").packet
        error = to_outer(router, outer_of(router, packet, connection)[:120], connection, mtu=1300)
        tells_client(router, error, told(packet[:100], 1280, connection))


def test_while_the_connection_moves_it_is_the_old_backends(router: Router) -> None:
    """All packets but the order go by that one."""
    before = entry(ALICE.data(HEAD), "api", "api-1", state=oracle.FLOW_MOVING, mover=WEB.index)
    router.put_flow(ALICE, **before)
    tells_client(router, to_outer(router, outer_of(router)[:100]), told(UPLOAD.packet[:80], 1380))
    new = to_outer(router, outer_of(router, dst=BACKENDS["api-1"].address)[:100])
    router.drops(to_router(new), "DROP_ICMP")
    assert router.flow(ALICE) == before


@pytest.mark.parametrize("padding", [1, 6, 18])
def test_padding_does_not_go_to_the_client(router: Router, padding: int) -> None:
    known(router)
    error = to_outer(router, outer_of(router)[:48])
    tells_client(router, error, told(UPLOAD.packet[:28], 1380), b"\xee" * padding)


@pytest.mark.parametrize("tags", [b"\x81\x00\x00\x07", b"\x88\xa8\x0f\xfe\x81\x00\x00\x07"], ids=["one", "two"])
def test_vlan_tags_stay(router: Router, tags: bytes) -> None:
    known(router)
    error = to_router(to_outer(router, outer_of(router)[:60]))
    expected = ethernet(ROUTER_MAC, CLIENT_MAC, told(UPLOAD.packet[:40], 1380))
    router.sends(error[:12] + tags + error[12:], "TX_TOO_BIG", expected[:12] + tags + expected[12:])


def test_other_bytes_of_the_error_are_not_repeated(router: Router) -> None:
    """A length of the excerpt (RFC 4884), which is no longer what it was."""
    known(router)
    error = to_outer(router, outer_of(router)[:148], length=37, reserved=0xAB)
    tells_client(router, error, told(UPLOAD.packet[:128], 1380))


def test_a_wrong_checksum_of_an_error_stays_wrong(router: Router) -> None:
    """By just as much: the router makes nothing look right that somebody has damaged."""
    known(router)
    damaged = bytearray(to_outer(router, outer_of(router)[:100]))
    damaged[-1] ^= 0x55
    expected = bytearray(told(UPLOAD.packet[:80], 1380))
    expected[-1] ^= 0x55
    tells_client(router, bytes(damaged), bytes(expected))


@other_errors
def test_other_errors_about_what_was_encapsulated_are_dropped(router: Router, kind: int, code: int) -> None:
    known(router)
    router.drops(to_router(to_outer(router, outer_of(router)[:60], kind=kind, code=code)), "DROP_ICMP")


STRANGERS: dict[str, Any] = {
    "another port of the client": {"packet": replace(ALICE, port=ALICE.port + 1).ack().packet},
    "no VIP": {"packet": replace(ALICE, server_port=81).ack().packet},
    "what a backend sent": {"packet": answer()},
    "another protocol": {"packet": bytes(IP(src=CLIENT, dst=VIP) / UDP(sport=ALICE.port, dport=VIP_PORT) / bytes(99))},
    "IP options": {"packet": ALICE.ack(ip={"options": b"\1" * 4}).packet},
    "a fragment": {"packet": ALICE.ack(ip={"frag": 7}).packet},
    "another backend": {"dst": BACKENDS["web-2"].address},
    "another outer source": {"src": "198.19.0.1"},
}


@pytest.mark.parametrize("changes", STRANGERS.values(), ids=STRANGERS)
def test_what_was_not_encapsulated_here_is_dropped(router: Router, changes: dict[str, Any]) -> None:
    known(router)
    assert oracle.outer_source(ALICE.tuple, *router.outer) != "198.19.0.1"
    router.drops(to_router(to_outer(router, outer_of(router, **changes)[:100])), "DROP_ICMP")


def test_the_flows_own_outer_source_is_not_enough(router: Router) -> None:
    """Neither where it was sent from nor where the error goes may be another one."""
    known(router)
    router.drops(to_router(to_outer(router, outer_of(router)[:100], destination="198.19.0.1")), "DROP_ICMP")
    both = to_outer(router, outer_of(router, src="198.19.0.1")[:100], destination="198.19.0.1")
    router.drops(to_router(both), "DROP_ICMP")


@pytest.mark.parametrize("mtu", [0, 1, 20, 67, 87, 1472, 1473, 65535])
def test_a_link_that_cannot_be_is_dropped(router: Router, mtu: int) -> None:
    """Smaller than IPv4 allows, or large enough for what did not fit."""
    known(router)
    assert len(outer_of(router)) == 1472
    router.drops(to_router(to_outer(router, outer_of(router)[:60], mtu=mtu)), "DROP_ICMP")


@pytest.mark.parametrize("length", [20, 28, 40, 47])
def test_too_little_of_the_inner_packet_is_dropped(router: Router, length: int) -> None:
    """RFC 792's eight bytes are none of TCP's; routers send more (RFC 1812, 4.3.2.3)."""
    known(router)
    router.drops(to_router(to_outer(router, outer_of(router)[:length])), "DROP_ICMP")
    router.drops(to_router(to_outer(router, outer_of(router)[:length]), outer_of(router)[length:60]), "DROP_ICMP")


@pytest.mark.parametrize("length", [20, 75, 89, 1000])
def test_of_a_length_that_cannot_be_too(router: Router, length: int) -> None:
    known(router)
    router.drops(to_router(to_outer(router, outer_of(router)[:60], ip={"len": length})), "DROP_ICMP")


def test_and_with_ip_options(router: Router) -> None:
    known(router)
    router.drops(to_router(to_outer(router, outer_of(router)[:60], ip={"options": b"\1" * 4})), "DROP_ICMP")


PASSED: dict[str, Any] = {
    "TCP of the host's own": {"proto": 6},
    "IP options": {"options": b"\1" * 4},
    "IPv6": {"version": 6},
}


@pytest.mark.parametrize("changes", PASSED.values(), ids=PASSED)
def test_errors_about_what_a_host_with_such_an_address_sent_itself_pass(
    router: Router, changes: dict[str, Any]
) -> None:
    known(router)
    router.passes(to_router(to_outer(router, outer_of(router, **changes)[:60])), "PASS_NOT_TCP")


def test_so_do_those_about_nothing_and_pings(router: Router) -> None:
    router.passes(to_router(to_outer(router, outer_of(router)[:19])), "PASS_NOT_TCP")
    ping = Ether(src=CLIENT_MAC, dst=ROUTER_MAC) / IP(src=HOP, dst="198.19.0.7") / ICMP() / outer_of(router)
    router.passes(ping, "PASS_NOT_TCP")


def test_so_do_those_to_other_addresses(router: Router) -> None:
    known(router)
    for destination in ("198.19.1.0", "198.18.255.255", "198.18.0.2"):
        about = outer_of(router, src=destination)
        router.passes(to_router(to_outer(router, about[:60], destination=destination)), "PASS_NOT_TCP")


# ---- the way to the client ------------------------------------------------------------------------------

GATEWAY_MAC, IN_MAC, OUT_MAC = "02:00:00:00:05:01", "02:00:00:00:05:02", "02:00:00:00:05:03"
NETWORK = (
    "link add in type veth peer name in-peer",
    "link add out type veth peer name out-peer",
    f"link set in address {IN_MAC}",
    f"link set out address {OUT_MAC}",
    *(f"link set {name} up" for name in ("in", "in-peer", "out", "out-peer")),
    "address add 198.18.9.1/24 dev in",
    "address add 198.18.8.1/24 dev out",
    f"neighbour add 198.18.9.2 lladdr {GATEWAY_MAC} dev in nud permanent",
    f"neighbour add 198.18.8.2 lladdr {GATEWAY_MAC} dev out nud permanent",
)


@pytest.fixture(scope="module")
def host() -> Iterator[None]:
    """A namespace with two interfaces, in and out, and a neighbour on each."""
    with throwaway_namespace():
        for command in NETWORK:
            subprocess.run(["ip", *command.split()], check=True)
        yield


@pytest.mark.parametrize(
    ("forwards", "way", "leaves"),
    [(True, "out", True), (True, "in", False), (False, "out", False), (True, None, False)],
    ids=["another interface", "the same one", "a host that does not forward", "no route"],
)
@pytest.mark.usefixtures("host")
def test_where_the_host_forwards_its_routes_say_it(
    router: Router, forwards: bool, way: str | None, leaves: bool
) -> None:
    """Where it does not, or has none, it goes back to who sent the error: that is a router."""
    known(router)
    Path("/proc/sys/net/ipv4/ip_forward").write_text(str(int(forwards)))
    gateway = {"out": "198.18.8.2", "in": "198.18.9.2"}.get(way or "")
    route = f"add {CLIENT}/32 via {gateway}" if gateway else f"flush {CLIENT}/32"
    subprocess.run(["ip", "route", *route.replace("add", "replace").split()], check=True)
    frame = to_router(to_outer(router, outer_of(router)[:100]))
    context = xdp_context(len(frame), ingress_ifindex=socket.if_nametoindex("in"))
    code, output = router.run("rauta_ingress", frame, "TX_TOO_BIG", context)
    source, destination = ROUTER_MAC, CLIENT_MAC
    if forwards and way:
        destination = GATEWAY_MAC
        source = OUT_MAC if way == "out" else IN_MAC
    expected = ethernet(source, destination, told(UPLOAD.packet[:80], 1380))
    assert (code, output.hex(" ")) == (XDP_REDIRECT if leaves else XDP_TX, expected.hex(" "))
