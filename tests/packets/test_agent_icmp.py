"""ICMP errors at the agent: "fragmentation needed" about what a server sent reaches its kernel, others do not."""

from dataclasses import replace
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP

from packets import oracle
from packets.bench import Agent
from packets.frames import (
    BACKEND_MAC,
    CLIENT,
    LOCAL,
    LOCAL_PORT,
    ROUTER_MAC,
    SECOND_LOCAL_PORT,
    SECOND_VIP,
    SECOND_VIP_PORT,
    Connection,
    carried_packet,
    ethernet,
    icmp_error,
    ip_packet,
)
from packets.oracle import MAPPING_CLEARING, MAPPING_OPEN, MAPPING_OPENING, Tuple
from packets.sockets import established, listening, waiting
from rauta.bpf import BpfError

pytestmark = pytest.mark.usefixtures("server_address")

ALICE = Connection()
LOCAL_TUPLE = Tuple(CLIENT, ALICE.port, LOCAL, LOCAL_PORT)
HOP = "198.18.77.7"
OTHER_ERRORS = [(3, 0), (3, 1), (3, 3), (3, 5), (3, 13), (4, 4), (5, 1), (11, 0), (12, 0), (8, 0), (0, 0), (3, 255)]


def sent(source: str = ALICE.server, port: int = ALICE.server_port, to: Connection = ALICE, **ip: Any) -> bytes:
    """A server's packet to a client, from that address and port."""
    header = {"src": source, "dst": to.client, "id": 4711, "flags": "DF", "ttl": 60}
    tcp = {"sport": port, "dport": to.port, "seq": to.cookie + 1 & 0xFFFFFFFF, "flags": "A"}
    return ip_packet(header | ip, tcp, b"x" * 1400)


def translated(about: bytes, to: Connection = ALICE) -> bytes:
    """The beginning of the same packet as the server's kernel has sent it; the checksum of TCP stays the wire's."""
    kernels = sent(LOCAL, LOCAL_PORT, to)
    return (kernels[:22] + about[22:])[: len(about)]


def error(about: bytes, destination: str = ALICE.server, ip: dict[str, Any] | None = None, **icmp: Any) -> bytes:
    """A hop's error."""
    header = {"src": HOP, "dst": destination, "id": 99, "ttl": 57, "tos": 0xC0}
    return icmp_error(about, header | (ip or {}), **({"mtu": 1300} | icmp))


def reaches_kernel(agent: Agent, about: bytes, to: Connection = ALICE, **changes: Any) -> None:
    expected = ethernet(ROUTER_MAC, BACKEND_MAC, error(translated(about, to), LOCAL, **changes))
    frame = carried_packet(error(about, **changes), to.cookie)
    agent.passes("ingress", frame, "AGENT_DELIVERED_ICMP", expected)


@pytest.fixture
def known(agent: Agent) -> Agent:
    agent.put_mapping(LOCAL_TUPLE, ALICE)
    return agent


# ---- delivered ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [28, 29, 36, 38, 40, 52, 300, 548, 1440])
def test_the_kernel_hears_of_its_own_packet(known: Agent, length: int) -> None:
    """As far as the hop has told it."""
    with established(ALICE):
        reaches_kernel(known, sent()[:length])


@pytest.mark.parametrize("state", [MAPPING_OPEN, MAPPING_OPENING])
def test_as_soon_as_it_has_a_socket(agent: Agent, state: int) -> None:
    agent.put_mapping(LOCAL_TUPLE, ALICE, state)
    with established(ALICE):
        reaches_kernel(agent, sent()[:40])


CHANGES: list[dict[str, Any]] = [
    {"mtu": 0},
    {"mtu": 68},
    {"mtu": 65535},
    {"ip": {"tos": 0, "ttl": 1, "flags": "DF"}},
    {"length": 9},
]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_what_it_says_is_the_kernels_to_judge(known: Agent, changes: dict[str, Any]) -> None:
    with established(ALICE):
        reaches_kernel(known, sent()[:40], **changes)


def test_checksums_are_right_for_every_value(agent: Agent) -> None:
    for port in (1, 255, 256, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, *range(3000, 3040)):
        bob = Connection(port=port, isn=port * 65_521)
        agent.put_mapping(replace(LOCAL_TUPLE, client_port=port), bob)
        with established(bob):
            reaches_kernel(agent, sent(to=bob)[: 28 + port % 40], bob, mtu=port)


def test_a_damaged_error_stays_damaged(known: Agent) -> None:
    """By just as much."""
    damaged = bytearray(carried_packet(error(sent()[:60]), ALICE.cookie))
    expected = bytearray(ethernet(ROUTER_MAC, BACKEND_MAC, error(translated(sent()[:60]), LOCAL)))
    damaged[-1] ^= 0x55
    expected[-1] ^= 0x55
    with established(ALICE):
        known.passes("ingress", bytes(damaged), "AGENT_DELIVERED_ICMP", bytes(expected))


def test_the_sum_that_a_device_has_made_of_the_packet_stays_right(known: Agent) -> None:
    program = known.object.programs["rauta_agent_ingress"]
    try:
        program.test_run(bytes(64), checksum_complete=True)
    except BpfError as problem:
        pytest.skip(f"this kernel cannot test that: {problem}")
    with established(ALICE):
        done = program.test_run(carried_packet(error(sent()[:99]), ALICE.cookie), checksum_complete=True)
    assert done.data == ethernet(ROUTER_MAC, BACKEND_MAC, error(translated(sent()[:99]), LOCAL))


# ---- dropped --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "code"), OTHER_ERRORS)
def test_other_icmp_is_dropped(known: Agent, kind: int, code: int) -> None:
    with established(ALICE):
        known.drops(
            "ingress", carried_packet(error(sent()[:40], kind=kind, code=code), ALICE.cookie), "AGENT_DROP_ICMP"
        )


STRANGERS = {
    "another port of the client": sent(to=replace(ALICE, port=ALICE.port + 1)),
    "another client": sent(to=replace(ALICE, client="198.18.0.3")),
    "what the client sent": ALICE.data(bytes(99)).packet,
    "of another address": sent("198.18.100.99"),
    "of the server's own address": sent(LOCAL, LOCAL_PORT),
    "another protocol": bytes(
        IP(src=ALICE.server, dst=CLIENT) / UDP(sport=ALICE.server_port, dport=ALICE.port) / bytes(64)
    ),
    "a later fragment": sent(frag=100, flags=0),
    "a first fragment": sent(flags="MF"),
    "IP options": sent(options=b"\1" * 4),
    "IPv6": b"\x60" + sent()[1:],
}


@pytest.mark.parametrize("about", STRANGERS.values(), ids=STRANGERS)
def test_what_is_of_no_connection_is_dropped(known: Agent, about: bytes) -> None:
    with established(ALICE):
        known.drops("ingress", carried_packet(error(about[:60]), ALICE.cookie), "AGENT_DROP_ICMP")


@pytest.mark.parametrize("bit", range(3, 16))
def test_so_is_what_is_of_another_connection_than_the_router_means(known: Agent, bit: int) -> None:
    other = oracle.outer_id(ALICE.cookie, opens=False) ^ 1 << bit
    with established(ALICE):
        known.drops("ingress", carried_packet(error(sent()[:40]), ALICE.cookie, id=other), "AGENT_DROP_ICMP")


def test_and_what_is_of_one_whose_socket_is_still_in_the_way(agent: Agent) -> None:
    newer = ALICE.reopened(ALICE.isn + 5_000_000)
    agent.put_mapping(LOCAL_TUPLE, newer, MAPPING_CLEARING)
    with established(ALICE):
        agent.drops("ingress", carried_packet(error(sent()[:40]), ALICE.cookie), "AGENT_DROP_ICMP")


def test_without_a_socket_there_is_nobody_to_hear_it(known: Agent) -> None:
    frame = carried_packet(error(sent()[:40]), ALICE.cookie)
    known.drops("ingress", frame, "AGENT_DROP_ICMP")
    with listening():
        known.drops("ingress", frame, "AGENT_DROP_ICMP")
    with waiting(ALICE):
        known.drops("ingress", frame, "AGENT_DROP_ICMP")


def test_a_direct_connections_socket_hears_nothing(agent: Agent) -> None:
    """What the network has to say about its packets, it says to the server itself."""
    with established(ALICE):
        agent.drops("ingress", carried_packet(error(sent()[:40]), ALICE.cookie), "AGENT_DROP_ICMP")


def test_nor_does_another_vips(agent: Agent) -> None:
    second = replace(ALICE, server=SECOND_VIP, server_port=SECOND_VIP_PORT)
    agent.put_mapping(LOCAL_TUPLE, second)
    agent.put_mapping(replace(LOCAL_TUPLE, server_port=SECOND_LOCAL_PORT), second)
    with established(ALICE):
        agent.drops("ingress", carried_packet(error(sent()[:40]), second.cookie), "AGENT_DROP_ICMP")


@pytest.mark.parametrize("port", [ALICE.server_port + 1, LOCAL_PORT, SECOND_VIP_PORT])
def test_a_vip_that_is_not_served_here_is_dropped(known: Agent, port: int) -> None:
    with established(ALICE):
        about = sent(port=port)[:40]
        known.drops("ingress", carried_packet(error(about), ALICE.cookie), "AGENT_DROP_NOT_SERVED")
        flooded = carried_packet(error(sent()[:40]), ALICE.cookie, dst="198.18.0.12")
        known.drops("ingress", flooded, "AGENT_DROP_NOT_SERVED")


def test_only_routers_may_send_errors(known: Agent) -> None:
    with established(ALICE):
        frame = carried_packet(error(sent()[:40]), ALICE.cookie, source=HOP)
        known.drops("ingress", frame, "AGENT_DROP_SOURCE")


@pytest.mark.parametrize("length", [0, 8, 20, 27])
def test_an_excerpt_that_is_too_short_is_dropped(known: Agent, length: int) -> None:
    with established(ALICE):
        short = carried_packet(error(sent()[:length]), ALICE.cookie)
        known.drops("ingress", short, "AGENT_DROP_ICMP")
        known.drops("ingress", short + sent()[length:40], "AGENT_DROP_ICMP")  # padding is not part of it


MALFORMED: dict[str, dict[str, Any]] = {
    "total length too small": {"len": 55},
    "total length too large": {"len": 69},
    "IP options": {"options": b"\1" * 4},
    "a later fragment": {"frag": 1},
    "a first fragment": {"flags": "MF"},
    "IPv6": {"version": 6},
}


@pytest.mark.parametrize("ip", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_error_is_dropped(known: Agent, ip: dict[str, Any]) -> None:
    with established(ALICE):
        known.drops("ingress", carried_packet(error(sent()[:40], ip=ip), ALICE.cookie), "AGENT_DROP_ICMP")
