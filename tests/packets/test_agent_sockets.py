"""The agent's ingress where a socket holds the tuple: the very connection's, an old one that must go, or a stranger's.

What the listener makes of a first request is tested end to end: a test run can make no socket.
"""

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
from packets.oracle import MAPPING_CLEARING, MAPPING_OPEN, MAPPING_OPENING, MARK_MAGIC, MARK_OPENS, Tuple
from packets.sockets import IPPROTO_MPTCP, established, listening

ALICE = Connection()
LOCAL_TUPLE = Tuple(CLIENT, ALICE.port, LOCAL, LOCAL_PORT)
HEAD = request("/")
FIRST = ALICE.data(HEAD)
EXPECTED = 0x2233_4455  # the number that the old socket waits for

pytestmark = pytest.mark.usefixtures("server_address")


def test_the_first_request_again_goes_to_the_socket_that_it_opened(agent: Agent) -> None:
    agent.put_mapping(LOCAL_TUPLE, ALICE)
    with established(ALICE, expected=EXPECTED):
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
    with established(ALICE, expected=EXPECTED):
        agent.passes("ingress", carried(FIRST, opens=True), "AGENT_CLEARING", clearing(FIRST, EXPECTED))
    mapping = agent.mapping(LOCAL_TUPLE)  # what comes behind the request waits for the old socket's end
    assert mapping is not None
    assert (mapping["isn"], mapping["cookie"], mapping["state"]) == (ALICE.isn, ALICE.cookie, MAPPING_CLEARING)


def test_as_long_as_that_has_not_opened_its_socket_is_an_older_ones(agent: Agent) -> None:
    """The request comes again while an old socket is being cleared: the map has the new connection already."""
    agent.put_mapping(LOCAL_TUPLE, ALICE, MAPPING_CLEARING)
    with established(ALICE, expected=EXPECTED):
        agent.passes("ingress", carried(FIRST, opens=True), "AGENT_CLEARING", clearing(FIRST, EXPECTED))


@pytest.mark.usefixtures("device_sums")
def test_the_sum_that_a_device_has_made_of_the_packet_stays_right(agent: Agent) -> None:
    """Or the kernel blames the device ("hw csum failure") for what the agent has rewritten."""
    program = agent.object.programs["rauta_agent_ingress"]
    agent.put_mapping(LOCAL_TUPLE, ALICE)
    later = ALICE.data(b"b" * 99, len(HEAD))
    assert program.test_run(carried(later), checksum_complete=True).data == delivered(later)
    agent.put_mapping(LOCAL_TUPLE, ALICE, isn=0)
    with established(ALICE, expected=EXPECTED):
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
    with established(ALICE, expected=EXPECTED):
        agent.drops("ingress", carried(FIRST, opens=True), "AGENT_DROP_CONFLICT")


def test_so_is_another_vips(agent: Agent) -> None:
    other = replace(ALICE, server=SECOND_VIP, server_port=SECOND_VIP_PORT)
    agent.put_mapping(LOCAL_TUPLE, other, state=MAPPING_OPEN)
    with established(ALICE, expected=EXPECTED):
        agent.drops("ingress", carried(FIRST, opens=True), "AGENT_DROP_CONFLICT")


# ---- listeners ------------------------------------------------------------------------------------------


def test_a_listener_may_get_a_connection(agent: Agent) -> None:
    """The kernel makes none in a test run: it is asked, and refuses. It may have dropped it: nothing has opened yet."""
    agent.put_mapping(LOCAL_TUPLE, ALICE.reopened(ALICE.isn - 5_000_000))
    with listening():
        agent.drops("ingress", carried(FIRST, opens=True), "AGENT_DROP_REFUSED")
    mapping = agent.mapping(LOCAL_TUPLE)
    assert mapping is not None
    assert (mapping["isn"], mapping["state"]) == (ALICE.isn, MAPPING_OPENING)


def test_a_listener_with_mptcp_is_told_apart(agent: Agent) -> None:
    """The kernel makes it no socket from a cookie (net/core/filter.c), and many a server listens so without knowing."""
    try:
        with listening(IPPROTO_MPTCP):
            agent.drops("ingress", carried(FIRST, opens=True), "AGENT_DROP_MPTCP")
    except OSError as error:
        pytest.skip(f"this kernel has no MPTCP: {error}")
    assert agent.mapping(LOCAL_TUPLE) is None


# ---- later packets --------------------------------------------------------------------------------------

LATER = ALICE.data(b"b" * 100, len(HEAD))


def test_a_socket_gets_its_later_packets_also_if_the_map_has_forgotten_it(agent: Agent) -> None:
    with established(ALICE, expected=EXPECTED):
        agent.passes("ingress", carried(LATER), "AGENT_DELIVERED", delivered(LATER))


def test_where_only_a_listener_is_left_a_packet_of_the_old_connection_gets_its_reset(agent: Agent) -> None:
    agent.put_mapping(LOCAL_TUPLE, ALICE)
    with listening():
        agent.passes("ingress", carried(LATER), "AGENT_DELIVERED", delivered(LATER))


def test_and_one_of_a_new_connection_none(agent: Agent) -> None:
    """It has overtaken its first request, or that was lost: the kernel would reset what is healthy."""
    agent.put_mapping(LOCAL_TUPLE, ALICE.reopened(ALICE.isn - 5_000_000))
    with listening():
        agent.drops("ingress", carried(LATER), "AGENT_DROP_UNOPENED")
    agent.object.maps["mappings"].clear()
    with listening():
        agent.drops("ingress", carried(LATER), "AGENT_DROP_UNOPENED")
