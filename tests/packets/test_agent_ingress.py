"""The agent's ingress: what routers send is unpacked and translated, if it is what it says; everything else is let by.

There is no socket in these tests' network namespace: how the agent opens and clears them is tested end to end.
"""

from dataclasses import replace
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from packets import oracle
from packets.bench import Agent
from packets.frames import (
    BACKEND_MAC,
    CLIENT,
    CLIENT_MAC,
    LOCAL,
    LOCAL_PORT,
    ROUTER_MAC,
    SECOND_LOCAL_PORT,
    SECOND_VIP,
    SECOND_VIP_PORT,
    Connection,
    Segment,
    carried,
    delivered,
    ethernet,
    request,
)
from packets.oracle import (
    MAPPING_CLEARING,
    MAPPING_OPEN,
    MAPPING_OPENING,
    MARK_LATER,
    MARK_MAGIC,
    MAX_ATTEMPTS,
    Tuple,
)

ALICE = Connection()
LOCAL_TUPLE = Tuple(CLIENT, ALICE.port, LOCAL, LOCAL_PORT)
DIRECT = Connection(server=LOCAL, server_port=LOCAL_PORT)
HEAD = request("/")
ETHER = Ether(src=CLIENT_MAC, dst=BACKEND_MAC)


def direct(segment: Segment) -> bytes:
    """A segment that comes without a router."""
    return ethernet(CLIENT_MAC, BACKEND_MAC, segment.packet) + segment.padding


# ---- none of its business -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(ETHER / ARP(pdst=LOCAL, psrc=CLIENT, hwsrc=CLIENT_MAC), id="ARP"),
        pytest.param(ETHER / IPv6(src="2001:db8::1", dst="2001:db8::2") / UDP(), id="IPv6"),
        pytest.param(ETHER / IPv6(src="2001:db8::1", dst="2001:db8::2") / TCP(flags="S"), id="IPv6 SYN"),
        pytest.param(ETHER / IP(src=CLIENT, dst=LOCAL) / UDP(sport=5, dport=8080), id="UDP"),
        pytest.param(ETHER / IP(src=CLIENT, dst=LOCAL) / ICMP(), id="ICMP"),
        pytest.param(ETHER / IP(src=CLIENT, dst=LOCAL, proto=47) / Raw(bytes(40)), id="GRE"),
        pytest.param(ETHER / IP(src=CLIENT, dst=LOCAL, flags="MF") / UDP() / Raw(bytes(64)), id="fragment"),
        pytest.param(direct(DIRECT.data(HEAD)), id="data"),
        pytest.param(direct(DIRECT.ack()), id="acknowledgement"),
        pytest.param(direct(DIRECT.syn(flags="SA")), id="SYN and ACK"),
        pytest.param(direct(DIRECT.fin()), id="FIN"),
        pytest.param(direct(DIRECT.rst()), id="RST"),
        pytest.param(direct(ALICE.data(HEAD)), id="to the VIP itself"),
    ],
)
def test_what_is_not_encapsulated_passes(agent: Agent, frame: bytes) -> None:
    agent.passes("ingress", frame, "AGENT_PASS", bytes(frame))


@pytest.mark.parametrize("flags", ["S", "SEC"])
def test_a_direct_syn_passes_and_takes_its_stale_mapping_away(agent: Agent, flags: str) -> None:
    """Or the server's answers to this client would be translated, and never understood."""
    other = replace(LOCAL_TUPLE, client_port=1)
    agent.put_mapping(LOCAL_TUPLE, ALICE)
    agent.put_mapping(other, ALICE)
    frame = direct(DIRECT.syn(flags=flags))
    agent.passes("ingress", frame, "AGENT_PASS_SYN", frame)
    assert agent.mapping(LOCAL_TUPLE) is None
    assert agent.mapping(other) is not None


def test_a_direct_syn_without_a_mapping_passes(agent: Agent) -> None:
    frame = direct(DIRECT.syn())
    agent.passes("ingress", frame, "AGENT_PASS_SYN", frame)


# ---- encapsulated, but not for us -----------------------------------------------------------------------


@pytest.mark.parametrize("source", ["198.19.1.77", "198.18.255.255", CLIENT, "77.0.19.198"])
def test_only_routers_may_encapsulate(agent: Agent, source: str) -> None:
    agent.put_mapping(LOCAL_TUPLE, ALICE)
    agent.drops("ingress", carried(ALICE.ack(), source=source), "AGENT_DROP_SOURCE")
    agent.drops("ingress", carried(ALICE.data(HEAD), opens=True, source=source), "AGENT_DROP_SOURCE")


@pytest.mark.parametrize("source", ["198.19.0.0", "198.19.0.255"])
def test_every_address_of_the_routers_may(agent: Agent, source: str) -> None:
    agent.put_mapping(LOCAL_TUPLE, ALICE)
    agent.passes("ingress", carried(ALICE.ack(), source=source), "AGENT_DELIVERED", delivered(ALICE.ack()))


STRANGERS = {
    "another port": Connection(server_port=81),
    "another address": Connection(server="198.18.100.99"),
    "the port of the second VIP": Connection(server_port=SECOND_VIP_PORT),
    "the local address and port": DIRECT,
}


@pytest.mark.parametrize("connection", STRANGERS.values(), ids=STRANGERS)
@pytest.mark.parametrize("opens", [True, False])
def test_a_vip_that_is_not_served_here_is_dropped(agent: Agent, connection: Connection, opens: bool) -> None:
    agent.put_mapping(LOCAL_TUPLE, connection)
    agent.drops("ingress", carried(connection.data(HEAD), opens=opens), "AGENT_DROP_NOT_SERVED")


@pytest.mark.parametrize("opens", [True, False])
def test_a_frame_for_another_host_that_a_switch_floods_is_dropped(agent: Agent, opens: bool) -> None:
    agent.put_mapping(LOCAL_TUPLE, ALICE)
    flooded = carried(ALICE.data(HEAD), opens=opens, dst="198.18.0.99")
    agent.drops("ingress", flooded, "AGENT_DROP_NOT_SERVED")


@pytest.mark.parametrize(
    ("protocol", "verdict"),
    [
        (UDP(sport=1, dport=80) / Raw(bytes(40)), "AGENT_DROP_MALFORMED"),
        (ICMP() / Raw(bytes(40)), "AGENT_DROP_ICMP"),
    ],
)
def test_other_protocols_are_not_unpacked(agent: Agent, protocol: object, verdict: str) -> None:
    """But for ICMP errors: test_agent_icmp.py."""
    inner = IP(src=CLIENT, dst=ALICE.server) / protocol
    frame = ethernet(ROUTER_MAC, BACKEND_MAC, bytes(IP(src="198.19.0.77", dst=LOCAL, proto=4) / inner))
    agent.drops("ingress", frame, verdict)


def test_ipip_in_ipip_is_not_unpacked(agent: Agent) -> None:
    frame = ethernet(
        ROUTER_MAC, BACKEND_MAC, bytes(IP(src="198.19.0.77", dst=LOCAL, proto=4) / IP(carried(ALICE.ack())[14:]))
    )
    agent.drops("ingress", frame, "AGENT_DROP_MALFORMED")


@pytest.mark.parametrize("outer", [{"flags": "MF"}, {"frag": 1}, {"options": b"\1" * 4}], ids=str)
def test_a_fragment_or_ip_options_outside_are_dropped(agent: Agent, outer: dict[str, Any]) -> None:
    agent.put_mapping(LOCAL_TUPLE, ALICE)
    agent.drops("ingress", carried(ALICE.ack(), **outer), "AGENT_DROP_MALFORMED")


MALFORMED = {
    "total length too small": ALICE.data(HEAD, ip={"len": 39}),
    "total length too large": ALICE.data(HEAD, ip={"len": 2000}),
    "IPv6 inside": ALICE.data(HEAD, ip={"version": 6}),
    "IPv4 header too small": ALICE.data(HEAD, ip={"ihl": 4}),
    "TCP header too small": ALICE.data(HEAD, tcp={"dataofs": 4}),
    "TCP header beyond the packet": ALICE.ack(options=b"", tcp={"dataofs": 15}),
    "IP options": ALICE.data(HEAD, ip={"options": b"\1" * 4}),
}


@pytest.mark.parametrize("segment", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("opens", [True, False])
def test_a_malformed_inner_packet_is_dropped(agent: Agent, segment: Segment, opens: bool) -> None:
    agent.put_mapping(LOCAL_TUPLE, ALICE)
    agent.drops("ingress", carried(segment, opens=opens), "AGENT_DROP_MALFORMED")


@pytest.mark.parametrize("length", [0, 1, 19, 20, 24, 39])
def test_a_truncated_inner_packet_is_dropped(agent: Agent, length: int) -> None:
    agent.put_mapping(LOCAL_TUPLE, ALICE)
    outer = IP(src="198.19.0.77", dst=LOCAL, proto=4)
    frame = ethernet(ROUTER_MAC, BACKEND_MAC, bytes(outer / Raw(ALICE.ack(options=b"").packet[:length])))
    agent.drops("ingress", frame, "AGENT_DROP_MALFORMED")


# ---- the first request ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bit", [0, 1, 3, 7, 8, 15, 31])
def test_a_first_request_with_a_wrong_cookie_is_dropped(agent: Agent, bit: int) -> None:
    forged = replace(ALICE.data(HEAD), ack=(ALICE.cookie ^ 1 << bit) + 1 & 0xFFFFFFFF)
    agent.drops("ingress", carried(forged, opens=True), "AGENT_DROP_COOKIE")
    assert agent.mapping(LOCAL_TUPLE) is None


@pytest.mark.parametrize("at", [1, -1, 5000])
def test_a_first_request_at_another_place_is_dropped(agent: Agent, at: int) -> None:
    agent.drops("ingress", carried(ALICE.data(HEAD, at=at), opens=True), "AGENT_DROP_COOKIE")


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_first_request_that_nobody_listens_for_goes_to_the_kernel(agent: Agent, epoch: int) -> None:
    """Which refuses it; the mapping is there so that the refusal leaves in the VIP's name."""
    connection = Connection(epoch=epoch)
    segment = connection.data(HEAD)
    agent.passes("ingress", carried(segment, opens=True), "AGENT_NO_LISTENER", delivered(segment))
    mapping = agent.mapping(LOCAL_TUPLE)
    assert mapping is not None
    assert {name: mapping[name] for name in ("vip", "vip_port", "isn", "cookie")} == {
        "vip": oracle.be32(connection.server),
        "vip_port": oracle.be16(connection.server_port),
        "isn": connection.isn,
        "cookie": connection.cookie,
    }


# ---- later packets --------------------------------------------------------------------------------------

LATER = {
    "acknowledgement": ALICE.ack(len(HEAD), acked=500),
    "acknowledgement without options": ALICE.ack(len(HEAD), options=b""),
    "request": ALICE.data(HEAD, len(HEAD), acked=500),
    "one byte": ALICE.data(b"b", len(HEAD)),
    "odd length": ALICE.data(b"b" * 999, len(HEAD)),
    "full segment": ALICE.data(b"b" * 1428, len(HEAD)),
    "end": ALICE.fin(len(HEAD)),
    "reset": ALICE.rst(len(HEAD)),
    "type of service": ALICE.ack(len(HEAD), ip={"tos": 0xB8, "id": 0, "ttl": 1}),
}
later = pytest.mark.parametrize("segment", LATER.values(), ids=LATER)


@later
def test_a_later_packet_of_a_known_connection_is_delivered(agent: Agent, segment: Segment) -> None:
    agent.put_mapping(LOCAL_TUPLE, ALICE)
    agent.passes("ingress", carried(segment), "AGENT_DELIVERED", delivered(segment))


OLDER = ALICE.reopened(ALICE.isn - 5_000_000)


@later
@pytest.mark.parametrize("state", [MAPPING_OPEN, MAPPING_CLEARING, MAPPING_OPENING])
def test_on_what_an_older_connection_left_it_is_dropped(agent: Agent, segment: Segment, state: int) -> None:
    """Its first request is not here yet, and where only the listener would get it the kernel would reset a healthy
    connection. The router says in the outer header which connection it means."""
    assert oracle.outer_id(OLDER.cookie, opens=False) != oracle.outer_id(ALICE.cookie, opens=False)
    agent.put_mapping(LOCAL_TUPLE, OLDER, state)
    agent.drops("ingress", carried(segment), "AGENT_DROP_UNOPENED")
    assert agent.mapping(LOCAL_TUPLE) is not None


@pytest.mark.parametrize("bit", range(3, 16))
def test_every_bit_of_the_outer_headers_hint_counts(agent: Agent, bit: int) -> None:
    agent.put_mapping(LOCAL_TUPLE, ALICE)
    other = oracle.outer_id(ALICE.cookie, opens=False) ^ 1 << bit
    agent.drops("ingress", carried(ALICE.ack(len(HEAD)), id=other), "AGENT_DROP_UNOPENED")


@later
def test_of_an_unknown_connection_it_is_dropped(agent: Agent, segment: Segment) -> None:
    agent.put_mapping(replace(LOCAL_TUPLE, client_port=ALICE.port + 1), ALICE)
    agent.drops("ingress", carried(segment), "AGENT_DROP_UNOPENED")


def test_every_port_and_address_is_translated_with_right_checksums(agent: Agent) -> None:
    """Checksums are corrected, not computed: carries and borrows show with many values."""
    for port in (1, 255, 256, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, *range(2000, 2040)):
        connection = Connection(port=port, client=f"10.{port % 251}.255.{port % 254 + 1}")
        segment = connection.ack(port * 65_521)
        agent.put_mapping(Tuple(connection.client, port, LOCAL, LOCAL_PORT), connection)
        agent.passes("ingress", carried(segment), "AGENT_DELIVERED", delivered(segment))


def test_each_vip_has_its_own_local_port(agent: Agent) -> None:
    connection = Connection(server=SECOND_VIP, server_port=SECOND_VIP_PORT)
    agent.put_mapping(Tuple(CLIENT, connection.port, LOCAL, SECOND_LOCAL_PORT), connection)
    expected = delivered(connection.ack(), port=SECOND_LOCAL_PORT)
    agent.passes("ingress", carried(connection.ack()), "AGENT_DELIVERED", expected)


def test_a_damaged_segment_stays_damaged(agent: Agent) -> None:
    """Its checksum is corrected for the new address as the old one was wrong: nobody may make it look right."""
    segment = ALICE.data(HEAD, len(HEAD))
    damaged = bytearray(carried(segment))
    damaged[-1] ^= 0xFF
    expected = bytearray(delivered(segment))
    expected[-1] ^= 0xFF
    agent.put_mapping(LOCAL_TUPLE, ALICE)
    agent.passes("ingress", bytes(damaged), "AGENT_DELIVERED", bytes(expected))


@pytest.mark.parametrize("outer", [{"ttl": 1}, {"tos": 3}, {"flags": 0}], ids=str)
def test_the_outer_header_leaves_no_trace(agent: Agent, outer: dict[str, Any]) -> None:
    agent.put_mapping(LOCAL_TUPLE, ALICE)
    agent.passes("ingress", carried(ALICE.ack(), **outer), "AGENT_DELIVERED", delivered(ALICE.ack()))


def test_delivery_leaves_the_mapping_alone(agent: Agent) -> None:
    agent.put_mapping(LOCAL_TUPLE, ALICE)
    before = agent.mapping(LOCAL_TUPLE)
    agent.passes("ingress", carried(ALICE.rst(len(HEAD))), "AGENT_DELIVERED", delivered(ALICE.rst(len(HEAD))))
    assert agent.mapping(LOCAL_TUPLE) == before


@later
@pytest.mark.parametrize("state", [MAPPING_OPENING, MAPPING_CLEARING])
def test_while_the_connection_is_opening_what_follows_goes_round_behind_its_first_request(
    agent: Agent, segment: Segment, state: int
) -> None:
    """A kernel that receives packets in lists shows a whole one to this program before TCP gets the first of them."""
    agent.put_mapping(LOCAL_TUPLE, ALICE, state)
    agent.goes_round(carried(segment), "AGENT_WAITING", delivered(segment), mark=MARK_MAGIC | MARK_LATER | 1)
    for times in range(1, MAX_ATTEMPTS):
        before, after = MARK_MAGIC | MARK_LATER | times, MARK_MAGIC | MARK_LATER | times + 1
        agent.goes_round(delivered(segment), "AGENT_WAITING", delivered(segment), marked=before, mark=after)


def test_but_not_for_ever(agent: Agent) -> None:
    """If the accept queue was full there is no socket to come: the kernel would reset a healthy connection."""
    agent.put_mapping(LOCAL_TUPLE, ALICE, MAPPING_OPENING)
    last = MARK_MAGIC | MARK_LATER | MAX_ATTEMPTS
    agent.drops("ingress", delivered(ALICE.ack(len(HEAD))), "AGENT_DROP_UNOPENED", mark=last)
    assert agent.mapping(LOCAL_TUPLE) is not None
