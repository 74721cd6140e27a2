"""The agent's ingress where a socket holds the tuple: the very connection's, an old one that must go, or a stranger's.

The sockets are real ones: TCP_REPAIR (tcp(7), used by CRIU) makes them established without a handshake, and closes them
without a word. What the listener makes of a first request is tested end to end.
"""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from packets.bench import Agent
from packets.frames import (
    CLIENT,
    LOCAL,
    LOCAL_PORT,
    SECOND_VIP,
    SECOND_VIP_PORT,
    Connection,
    carried,
    clearing,
    delivered,
    request,
)
from packets.oracle import MAPPING_CLEARING, MAPPING_OPEN, MARK_MAGIC, MARK_OPENS, Tuple

ALICE = Connection()
LOCAL_TUPLE = Tuple(CLIENT, ALICE.port, LOCAL, LOCAL_PORT)
HEAD = request("/")
FIRST = ALICE.data(HEAD)
EXPECTED = 0x2233_4455  # the number that the old socket waits for

TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ = 19, 20, 21  # include/uapi/linux/tcp.h
TCP_RECV_QUEUE = 1
SO_TCP = socket.IPPROTO_TCP


@pytest.fixture(scope="module", autouse=True)
def local_address(loaded_agent: Agent) -> None:
    """The namespace has the server's address, and a way to the client."""
    for command in (f"address add {LOCAL}/32 dev lo", "link set lo up", f"route add {CLIENT}/32 dev lo"):
        subprocess.run(["ip", *command.split()], check=True)


@contextmanager
def established() -> Iterator[None]:
    """A socket on ALICE's tuple that expects the byte EXPECTED."""
    with socket.socket() as sock:
        sock.setsockopt(SO_TCP, TCP_REPAIR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((LOCAL, LOCAL_PORT))
        sock.setsockopt(SO_TCP, TCP_REPAIR_QUEUE, TCP_RECV_QUEUE)
        sock.setsockopt(SO_TCP, TCP_QUEUE_SEQ, EXPECTED)
        sock.connect((CLIENT, ALICE.port))
        yield


def test_the_first_request_again_goes_to_the_socket_that_it_opened(agent: Agent) -> None:
    agent.put_mapping(LOCAL_TUPLE, ALICE)
    with established():
        agent.passes("ingress", carried(FIRST, opens=True), "AGENT_OPENED_ALREADY", delivered(FIRST))


OLD = {
    "another client number": {"isn": ALICE.isn + 1},
    "another cookie": {"cookie": ALICE.cookie ^ 1 << 8},
    "both": {"isn": ALICE.isn - 77, "cookie": ALICE.cookie ^ 1 << 31},
}


@pytest.mark.parametrize("numbers", OLD.values(), ids=OLD)
def test_an_older_connections_socket_is_cleared(agent: Agent, numbers: dict[str, int]) -> None:
    """It is both initial numbers that tell connections apart: 24 bits of a cookie can be searched."""
    agent.put_mapping(LOCAL_TUPLE, ALICE, **numbers)
    with established():
        agent.passes("ingress", carried(FIRST, opens=True), "AGENT_CLEARING", clearing(FIRST, EXPECTED))


def test_as_long_as_that_has_not_opened_its_socket_is_an_older_ones(agent: Agent) -> None:
    """The request comes again while an old socket is being cleared: the map has the new connection already."""
    agent.put_mapping(LOCAL_TUPLE, ALICE, MAPPING_CLEARING)
    with established():
        agent.passes("ingress", carried(FIRST, opens=True), "AGENT_CLEARING", clearing(FIRST, EXPECTED))


@pytest.mark.usefixtures("device_sums")
def test_the_sum_that_a_device_has_made_of_the_packet_stays_right(agent: Agent) -> None:
    """Or the kernel blames the device ("hw csum failure") for what the agent has rewritten."""
    program = agent.object.programs["rauta_agent_ingress"]
    agent.put_mapping(LOCAL_TUPLE, ALICE)
    later = ALICE.data(b"b" * 99, len(HEAD))
    assert program.test_run(carried(later), checksum_complete=True).data == delivered(later)
    agent.put_mapping(LOCAL_TUPLE, ALICE, isn=0)
    with established():
        reset = program.test_run(carried(FIRST, opens=True), checksum_complete=True)
    assert reset.data == clearing(FIRST, EXPECTED)


@pytest.mark.parametrize("numbers", OLD.values(), ids=OLD)
def test_what_went_round_opens_only_its_own_connection(agent: Agent, numbers: dict[str, int]) -> None:
    agent.put_mapping(LOCAL_TUPLE, ALICE, **numbers)
    agent.drops("ingress", delivered(FIRST), "AGENT_DROP_UNOPENED", mark=MARK_MAGIC | MARK_OPENS | 1)


def test_it_opens_that(agent: Agent) -> None:
    """Or would, if somebody listened."""
    agent.put_mapping(LOCAL_TUPLE, ALICE)
    mark = MARK_MAGIC | MARK_OPENS | 1
    agent.passes("ingress", delivered(FIRST), "AGENT_NO_LISTENER", delivered(FIRST), mark=mark)


def test_a_socket_that_is_not_the_agents_is_left_alone(agent: Agent) -> None:
    with established():
        agent.drops("ingress", carried(FIRST, opens=True), "AGENT_DROP_CONFLICT")


def test_so_is_another_vips(agent: Agent) -> None:
    other = replace(ALICE, server=SECOND_VIP, server_port=SECOND_VIP_PORT)
    agent.put_mapping(LOCAL_TUPLE, other, state=MAPPING_OPEN)
    with established():
        agent.drops("ingress", carried(FIRST, opens=True), "AGENT_DROP_CONFLICT")


# ---- later packets --------------------------------------------------------------------------------------

LATER = ALICE.data(b"b" * 100, len(HEAD))


def test_a_socket_gets_its_later_packets_also_if_the_map_has_forgotten_it(agent: Agent) -> None:
    with established():
        agent.passes("ingress", carried(LATER), "AGENT_DELIVERED", delivered(LATER))


def test_where_only_a_listener_is_left_a_packet_of_the_old_connection_gets_its_reset(agent: Agent) -> None:
    agent.put_mapping(LOCAL_TUPLE, ALICE)
    with socket.create_server((LOCAL, LOCAL_PORT)):
        agent.passes("ingress", carried(LATER), "AGENT_DELIVERED", delivered(LATER))


def test_and_one_of_a_new_connection_none(agent: Agent) -> None:
    """It has overtaken its first request, or that was lost: the kernel would reset what is healthy."""
    agent.put_mapping(LOCAL_TUPLE, ALICE.reopened(ALICE.isn - 5_000_000))
    with socket.create_server((LOCAL, LOCAL_PORT)):
        agent.drops("ingress", carried(LATER), "AGENT_DROP_UNOPENED")
    agent.object.maps["mappings"].clear()
    with socket.create_server((LOCAL, LOCAL_PORT)):
        agent.drops("ingress", carried(LATER), "AGENT_DROP_UNOPENED")
