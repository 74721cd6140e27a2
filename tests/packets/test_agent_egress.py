"""The agent's egress: what belongs to a translated connection leaves in the VIP's name, and nothing else is touched."""

from dataclasses import dataclass
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
    LOCAL,
    LOCAL_PORT,
    ROUTER_MAC,
    SECOND_LOCAL_PORT,
    SECOND_VIP,
    SECOND_VIP_PORT,
    Connection,
    ethernet,
    ip_packet,
    timestamps,
)
from packets.oracle import MAPPING_CLEARING, MAPPING_OPEN, MAPPING_OPENING, Tuple

ALICE = Connection()
LOCAL_TUPLE = Tuple(CLIENT, ALICE.port, LOCAL, LOCAL_PORT)
ETHER = Ether(src=BACKEND_MAC, dst=ROUTER_MAC)
BODY = b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\nHello, world!"


@dataclass(frozen=True)
class Response:
    """A segment of the server to a client, as its kernel sends it, and as it must leave."""

    flags: str = "PA"
    payload: bytes = BODY
    options: bytes = timestamps(1, 2)
    client: str = CLIENT
    port: int = ALICE.port
    seq: int = 0xCAFE0001

    def frame(self, address: str = LOCAL, port: int = LOCAL_PORT) -> bytes:
        """From that address and port."""
        ip: dict[str, Any] = {"src": address, "dst": self.client, "id": 77, "flags": "DF", "ttl": 64, "tos": 2}
        tcp: dict[str, Any] = {
            "sport": port,
            "dport": self.port,
            "seq": self.seq,
            "ack": 0x10000001,
            "flags": self.flags,
            "window": 509,
            "dataofs": 5 + len(self.options) // 4,
        }
        return ethernet(BACKEND_MAC, ROUTER_MAC, ip_packet(ip, tcp, self.options + self.payload))


def unchanged(agent: Agent, frame: bytes) -> None:
    agent.passes("egress", frame, "AGENT_EGRESS_PASS", frame)


# ---- translated -----------------------------------------------------------------------------------------

RESPONSES = {
    "response": Response(),
    "acknowledgement": Response("A", b""),
    "without options": Response("A", b"", b""),
    "odd length": Response(payload=b"x" * 777),
    "full segment": Response("A", b"x" * 1448),
    "end": Response("FA", b""),
    "response and end": Response("FPA"),
    "reset": Response("R", b"", b""),
    "reset and acknowledgement": Response("RA", b"", b""),
}


@pytest.mark.parametrize("response", RESPONSES.values(), ids=RESPONSES)
def test_what_a_known_connection_sends_leaves_in_the_vips_name(agent: Agent, response: Response) -> None:
    agent.put_mapping(LOCAL_TUPLE, ALICE)
    expected = response.frame(ALICE.server, ALICE.server_port)
    agent.passes("egress", response.frame(), "AGENT_EGRESS_TRANSLATED", expected)


@pytest.mark.parametrize("state", [MAPPING_OPEN, MAPPING_OPENING, MAPPING_CLEARING])
def test_in_whatever_state_the_mapping_is(agent: Agent, state: int) -> None:
    """The local address must not leak, least of all while sockets change."""
    agent.put_mapping(LOCAL_TUPLE, ALICE, state)
    expected = Response().frame(ALICE.server, ALICE.server_port)
    agent.passes("egress", Response().frame(), "AGENT_EGRESS_TRANSLATED", expected)


def test_each_connection_has_its_own_name(agent: Agent) -> None:
    second = Connection(server=SECOND_VIP, server_port=SECOND_VIP_PORT)
    agent.put_mapping(LOCAL_TUPLE, ALICE)
    agent.put_mapping(Tuple(CLIENT, second.port, LOCAL, SECOND_LOCAL_PORT), second)
    for connection, local_port in ((ALICE, LOCAL_PORT), (second, SECOND_LOCAL_PORT)):
        expected = Response().frame(connection.server, connection.server_port)
        agent.passes("egress", Response().frame(port=local_port), "AGENT_EGRESS_TRANSLATED", expected)


def test_checksums_are_right_for_every_value(agent: Agent) -> None:
    for port in (1, 255, 256, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, *range(3000, 3040)):
        response = Response(client=f"172.{port % 251}.0.{port % 254 + 1}", port=port, seq=port * 65_521)
        agent.put_mapping(Tuple(response.client, port, LOCAL, LOCAL_PORT), ALICE)
        expected = response.frame(ALICE.server, ALICE.server_port)
        agent.passes("egress", response.frame(), "AGENT_EGRESS_TRANSLATED", expected)


# ---- left alone -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", ["SA", "SAEC"])
def test_a_syn_ack_is_never_translated(agent: Agent, flags: str) -> None:
    """The agent's connections start after the handshake: a SYN-ACK answers somebody who came directly."""
    agent.put_mapping(LOCAL_TUPLE, ALICE)
    unchanged(agent, Response(flags, b"").frame())


STRANGERS = {
    "another client": Response(client="198.18.0.3").frame(),
    "another port of the client": Response(port=ALICE.port + 1).frame(),
    "another local port": Response().frame(port=LOCAL_PORT + 1),
    "another local address": Response().frame(address="198.18.0.12"),
    "from the VIP already": Response().frame(ALICE.server, ALICE.server_port),
}


@pytest.mark.parametrize("frame", STRANGERS.values(), ids=STRANGERS)
def test_other_connections_are_not_translated(agent: Agent, frame: bytes) -> None:
    agent.put_mapping(LOCAL_TUPLE, ALICE)
    unchanged(agent, frame)


FOREIGN = {
    "ARP": ETHER / ARP(pdst=CLIENT, psrc=LOCAL, hwsrc=BACKEND_MAC),
    "IPv6": ETHER / IPv6(src="2001:db8::2", dst="2001:db8::1") / TCP(sport=LOCAL_PORT, dport=ALICE.port, flags="A"),
    "UDP on the same ports": ETHER
    / IP(src=LOCAL, dst=CLIENT)
    / UDP(sport=LOCAL_PORT, dport=ALICE.port)
    / Raw(bytes(40)),
    "ICMP": ETHER / IP(src=LOCAL, dst=CLIENT) / ICMP(),
    "first fragment": ETHER
    / IP(src=LOCAL, dst=CLIENT, flags="MF")
    / TCP(sport=LOCAL_PORT, dport=ALICE.port, flags="A"),
    "later fragment": ETHER / IP(src=LOCAL, dst=CLIENT, frag=99) / TCP(sport=LOCAL_PORT, dport=ALICE.port, flags="A"),
    "truncated": ETHER / IP(src=LOCAL, dst=CLIENT, proto=6) / Raw(Response().frame()[34:46]),
}


@pytest.mark.parametrize("frame", FOREIGN.values(), ids=FOREIGN)
def test_other_protocols_are_not_translated(agent: Agent, frame: bytes) -> None:
    agent.put_mapping(LOCAL_TUPLE, ALICE)
    unchanged(agent, bytes(frame))


def test_what_the_server_sends_as_a_client_is_not_translated(agent: Agent) -> None:
    """The same four numbers, the other way round."""
    agent.put_mapping(LOCAL_TUPLE, ALICE)
    packet = IP(src=CLIENT, dst=LOCAL) / TCP(sport=ALICE.port, dport=LOCAL_PORT, flags="A")
    unchanged(agent, bytes(ETHER / packet))
    assert agent.mapping(LOCAL_TUPLE) is not None
    assert oracle.address_of(agent.mapping(LOCAL_TUPLE)["vip"]) == ALICE.server  # type: ignore[index]
