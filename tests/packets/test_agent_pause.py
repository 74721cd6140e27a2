"""What stands in for the agent while its maps go over: connections wait both ways, and nothing else notices."""

from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from packets import oracle
from packets.bench import TC_ACT_SHOT, TC_PASSES, Agent, throwaway_namespace
from packets.conftest import ROUTERS, ROUTERS_MASK
from packets.frames import BACKEND_MAC, LOCAL, LOCAL_PORT, ROUTER_MAC, VIP, VIP_PORT, Connection, carried, request
from packets.test_agent_egress import Response
from packets.test_agent_moves import frame_of, order

HEAD = request("/")
ALICE = Connection()
DIRECT = Connection(server=LOCAL, server_port=LOCAL_PORT)
ASK_PORT = 4789
ETHER = Ether(src=ROUTER_MAC, dst=BACKEND_MAC)


def datagram(port: int, address: str = LOCAL) -> bytes:
    return bytes(ETHER / IP(src="198.19.0.1", dst=address) / UDP(sport=9, dport=port) / bytes(64))


WAITS = {
    "what a router sends": carried(ALICE.data(HEAD), opens=True),
    "an order": frame_of(order()),
    "a question": datagram(ASK_PORT),
    "a direct SYN": bytes(DIRECT.syn()),
    "a direct request": bytes(DIRECT.data(HEAD)),
}
PASSES = {
    "another port": bytes(Connection(server=LOCAL, server_port=LOCAL_PORT + 1).data(HEAD)),
    "another address": bytes(Connection(server="198.18.0.99", server_port=LOCAL_PORT).data(HEAD)),
    "a datagram": datagram(ASK_PORT + 1),
    "a datagram to another address": datagram(ASK_PORT, "198.18.0.99"),
    "no IPv4": bytes(12) + b"\x08\x06" + bytes(46),
}


@pytest.fixture(scope="module")
def pausing() -> Iterator[Agent]:
    constants = {"ask_address": oracle.be32(LOCAL), "ask_port": oracle.be16(ASK_PORT)}
    with throwaway_namespace():
        agent = Agent(ROUTERS, ROUTERS_MASK, {(VIP, VIP_PORT): (LOCAL, LOCAL_PORT)}, **constants)
        with agent.object:
            yield agent


@pytest.mark.parametrize("frame", WAITS.values(), ids=WAITS)
def test_what_is_of_connections_comes_again(pausing: Agent, frame: bytes) -> None:
    assert pausing.run("rauta_pause_in", frame, "AGENT_DROP_PAUSED")[0] == TC_ACT_SHOT


@pytest.mark.parametrize("frame", PASSES.values(), ids=PASSES)
def test_everything_else_is_passed(pausing: Agent, frame: bytes) -> None:
    code, output = pausing.run("rauta_pause_in", frame, "AGENT_PASS")
    assert code in TC_PASSES
    assert output == frame


def test_what_servers_say_is_said_again(pausing: Agent) -> None:
    for flags in ("PA", "A", "FA", "R", "SA"):
        assert pausing.run("rauta_pause_out", Response(flags).frame(), "AGENT_EGRESS_PAUSED")[0] == TC_ACT_SHOT


@pytest.mark.parametrize(
    "frame",
    [Response().frame(port=LOCAL_PORT + 1), Response().frame("198.18.0.99"), *list(PASSES.values())[2:]],
    ids=["another port", "another address", *list(PASSES)[2:]],
)
def test_others_speak_on(pausing: Agent, frame: bytes) -> None:
    code, output = pausing.run("rauta_pause_out", frame, "AGENT_EGRESS_PASS")
    assert code in TC_PASSES
    assert output == frame
