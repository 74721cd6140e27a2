"""Ethernet, IPv4 and the TCP header: what is none of the router's business passes, what it cannot handle is dropped."""

import random

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether

from packets.bench import XDP_DROP, XDP_PASS, XDP_TX, Router, entry
from packets.frames import (
    CLIENT,
    CLIENT_MAC,
    ETHERNET_HEADER,
    ROUTER_MAC,
    VIP,
    VIP_PORT,
    Connection,
    ethernet,
    ip_packet,
    request,
)

ALICE = Connection()
FIRST = ALICE.data(request("/"))
WITHOUT_HEADER = ETHERNET_HEADER + 20 + 4  # the shortest frame in which the ports are readable
ETHER = Ether(src=CLIENT_MAC, dst=ROUTER_MAC)

# ---- not IPv4 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(ETHER / ARP(pdst=VIP, psrc=CLIENT, hwsrc=CLIENT_MAC), id="ARP"),
        pytest.param(ETHER / IPv6(src="2001:db8::1", dst="2001:db8::2") / UDP(), id="IPv6"),
        pytest.param(ethernet(CLIENT_MAC, ROUTER_MAC, b"", 0x86DD), id="header alone"),
        pytest.param(ethernet(CLIENT_MAC, ROUTER_MAC, FIRST.packet, 0x0608), id="0x0800 is not 0x0608"),
        pytest.param(ethernet(CLIENT_MAC, ROUTER_MAC, FIRST.packet, 0x0008), id="0x0800 read the wrong way round"),
    ],
)
def test_other_ethertypes_pass(router: Router, frame: bytes) -> None:
    router.passes(frame, "PASS_NOT_IPV4")


# ---- truncated ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", range(ETHERNET_HEADER, WITHOUT_HEADER))
def test_a_frame_that_ends_before_the_ports_passes(router: Router, length: int) -> None:
    router.passes(bytes(FIRST)[:length], "PASS_TRUNCATED")


@pytest.mark.parametrize("length", [38, 41, 42, 46, 47, 48, 53, 54, 55, 65, 66, 67, 70, len(bytes(FIRST)) - 1])
def test_a_frame_that_is_shorter_than_its_packet_is_dropped(router: Router, length: int) -> None:
    router.drops(bytes(FIRST)[:length], "DROP_MALFORMED")


def test_a_frame_that_ends_in_the_ip_options_passes(router: Router) -> None:
    segment = ALICE.ack(ip={"options": b"\x01" * 40})
    router.passes(bytes(segment)[: ETHERNET_HEADER + 60 + 3], "PASS_TRUNCATED")
    router.drops(bytes(segment)[: ETHERNET_HEADER + 60 + 4], "DROP_IP_OPTIONS")


# ---- somebody else's ------------------------------------------------------------------------------------


@pytest.mark.parametrize("packet", [UDP(sport=53, dport=VIP_PORT), ICMP(), UDP(dport=VIP_PORT) / bytes(1400)])
def test_other_protocols_to_a_vip_pass(router: Router, packet: object) -> None:
    router.passes(ETHER / IP(src=CLIENT, dst=VIP) / packet, "PASS_NOT_TCP")


def test_ipip_to_a_vip_passes(router: Router) -> None:
    router.passes(ETHER / IP(src=CLIENT, dst=VIP, proto=4) / IP(FIRST.packet), "PASS_NOT_TCP")


@pytest.mark.parametrize(
    ("address", "port"),
    [(VIP, 81), (VIP, 0), (VIP, 20480), (VIP, 8000), ("198.18.100.81", 80), ("80.100.18.198", 80), ("198.18.0.2", 80)],
)
@pytest.mark.parametrize("kind", ["syn", "data", "rst"])
def test_other_addresses_and_ports_pass(router: Router, address: str, port: int, kind: str) -> None:
    stranger = Connection(server=address, server_port=port)
    segments = {"syn": stranger.syn(), "data": stranger.data(request("/")), "rst": stranger.rst()}
    router.passes(segments[kind], "PASS_NOT_VIP")


def test_what_comes_from_a_vip_passes(router: Router) -> None:
    packet = ip_packet({"src": VIP, "dst": CLIENT}, {"sport": VIP_PORT, "dport": 40000, "flags": "A"})
    router.passes(ethernet(CLIENT_MAC, ROUTER_MAC, packet), "PASS_NOT_VIP")


# ---- fragments and IP options ---------------------------------------------------------------------------

FRAGMENTS = {
    "first": {"flags": "MF"},
    "middle": {"flags": "MF", "frag": 185},
    "last": {"flags": 0, "frag": 370},
    "smallest offset": {"flags": "DF", "frag": 1},
    "highest bit of the offset": {"flags": 0, "frag": 0x1000},
}


@pytest.mark.parametrize("header", FRAGMENTS.values(), ids=FRAGMENTS)
@pytest.mark.parametrize("port", [VIP_PORT, 4444], ids=["VIP's port", "other port"])
def test_fragments_to_a_vip_are_dropped(router: Router, header: dict[str, object], port: int) -> None:
    router.drops(ALICE.data(request("/"), ip=header, tcp={"dport": port}), "DROP_FRAGMENT")


def test_fragments_of_other_protocols_to_a_vip_are_dropped(router: Router) -> None:
    router.drops(ETHER / IP(src=CLIENT, dst=VIP, flags="MF") / UDP() / bytes(64), "DROP_FRAGMENT")


@pytest.mark.parametrize("header", FRAGMENTS.values(), ids=FRAGMENTS)
def test_fragments_to_others_pass(router: Router, header: dict[str, object]) -> None:
    router.passes(Connection(server="198.18.0.2").data(request("/"), ip=header), "PASS_NOT_VIP")


def test_the_reserved_flag_makes_no_fragment(router: Router) -> None:
    router.opens(ALICE.data(request("/"), ip={"flags": 0x4}), "web")


@pytest.mark.parametrize("length", [4, 8, 40])
def test_ip_options_to_a_vip_are_dropped(router: Router, length: int) -> None:
    for segment in (ALICE.syn(), ALICE.data(request("/")), ALICE.rst()):
        changed = ALICE.data(segment.payload, flags=segment.flags, ip={"options": b"\x01" * length})
        router.drops(changed, "DROP_IP_OPTIONS")


def test_ip_options_to_others_pass(router: Router) -> None:
    router.passes(Connection(server_port=81).ack(ip={"options": b"\x01" * 4}), "PASS_NOT_VIP")


# ---- lengths that contradict each other -----------------------------------------------------------------


@pytest.mark.parametrize("total", [0, 19, 20, 39, len(FIRST.packet) + 1, 0xFFFF])
def test_a_wrong_total_length_is_dropped(router: Router, total: int) -> None:
    router.drops(ALICE.data(FIRST.payload, ip={"len": total}), "DROP_MALFORMED")


@pytest.mark.parametrize("words", range(5))
def test_a_tcp_header_below_five_words_is_dropped(router: Router, words: int) -> None:
    router.drops(ALICE.data(FIRST.payload, tcp={"dataofs": words}), "DROP_MALFORMED")
    router.drops(ALICE.syn().connection.data(b"", flags="S", tcp={"dataofs": words}), "DROP_MALFORMED")


@pytest.mark.parametrize("words", [6, 9, 15])
def test_a_tcp_header_beyond_the_packet_is_dropped(router: Router, words: int) -> None:
    segment = ALICE.ack(options=b"", padding=bytes(46), tcp={"dataofs": words})
    router.drops(segment, "DROP_MALFORMED")


# ---- TCP flags ------------------------------------------------------------------------------------------

IMPOSSIBLE_FLAGS = ["", "F", "P", "FP", "FPU", "SA", "SPA", "SF", "SFA", "SR", "SRA", "UA", "UPA", "FUA", "SU", "EC"]


@pytest.mark.parametrize("flags", IMPOSSIBLE_FLAGS)
def test_flags_that_no_client_sends_are_dropped(router: Router, flags: str) -> None:
    router.drops(ALICE.data(request("/"), flags=flags), "DROP_FLAGS")
    assert router.flows() == 0


@pytest.mark.parametrize("flags", IMPOSSIBLE_FLAGS)
def test_they_are_dropped_on_an_open_connection_too(router: Router, flags: str) -> None:
    router.put_flow(ALICE, **entry(FIRST, "web", "web-1"))
    router.drops(ALICE.data(b"body", flags=flags), "DROP_FLAGS")


# ---- whatever comes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_any_damaged_packet_leaves_by_exactly_one_door(router: Router, seed: int) -> None:
    """Return code and counter agree on where it went, and no output is longer than input, headers and answer allow."""
    rng = random.Random(seed)
    codes = {name: code_of(number) for name, number in router.verdicts.items()}
    for _ in range(100):
        frame = bytearray(rng.choice([bytes(FIRST), bytes(ALICE.syn()), bytes(ALICE.fin())]))
        for _ in range(rng.randint(1, 4)):
            frame[rng.randrange(12, len(frame))] = rng.choice([0, 1, 0xFF, rng.randrange(256)])
        frame = frame[: rng.choice([len(frame), rng.randint(14, len(frame))])]
        before = router.rows()
        done = router.object.programs["rauta_ingress"].test_run(bytes(frame))
        ((vip, verdict), count), *others = router.grown_by_vip(before).items()
        assert vip in router.counted_for(bytes(frame), verdict), frame.hex(" ")
        assert (count, others, done.retval) == (1, [], codes[verdict]), frame.hex(" ")
        if done.retval != XDP_TX:
            assert done.data == bytes(frame)


def code_of(verdict: int) -> int:
    """The return code that the range of a verdict stands for."""
    return XDP_PASS if verdict < 16 else XDP_DROP if verdict < 64 else XDP_TX
