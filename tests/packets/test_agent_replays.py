"""The agent's ingress, and connections that have had their socket: whatever holds the tuple, none opens again.

That egress notes them takes a socket that sends: tests/e2e/test_replays.py.
"""

from dataclasses import replace
from typing import Any

import pytest

from packets import oracle
from packets.bench import CONSUMED_SETS, Agent
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
from packets.sockets import established, listening, waiting

pytestmark = pytest.mark.usefixtures("server_address")

ALICE = Connection()
LOCAL_TUPLE = Tuple(CLIENT, ALICE.port, LOCAL, LOCAL_PORT)
HEAD = request("/")
FIRST = ALICE.data(HEAD)
REPLAY = carried(FIRST, opens=True)
NEWER = ALICE.reopened(ALICE.isn + 5_000_000)
OLDER = ALICE.reopened(ALICE.isn - 5_000_000)


def print_of(connection: Connection) -> int:
    four = replace(LOCAL_TUPLE, client_port=connection.port)
    return oracle.fingerprint(four, connection.isn, connection.cookie)


def refuse(agent: Agent, connection: Connection) -> None:
    """Where nobody listens the kernel refuses: the shortest way for a connection to be over."""
    segment = connection.data(HEAD)
    agent.passes("ingress", carried(segment, opens=True), "AGENT_NO_LISTENER", delivered(segment))


# ---- a replay -------------------------------------------------------------------------------------------


def test_a_listener_gets_no_second_connection(agent: Agent) -> None:
    agent.consume(LOCAL_TUPLE, ALICE)
    with listening():
        agent.drops("ingress", REPLAY, "AGENT_DROP_REPLAYED")
    assert agent.mapping(LOCAL_TUPLE) is None


@pytest.mark.parametrize("state", [MAPPING_OPEN, MAPPING_OPENING, MAPPING_CLEARING])
def test_whatever_the_tuple_still_says(agent: Agent, state: int) -> None:
    agent.consume(LOCAL_TUPLE, ALICE)
    agent.put_mapping(LOCAL_TUPLE, ALICE, state)
    with listening():
        agent.drops("ingress", REPLAY, "AGENT_DROP_REPLAYED")


@pytest.mark.parametrize("state", [MAPPING_OPEN, MAPPING_OPENING, MAPPING_CLEARING])
def test_a_newer_connections_socket_is_not_cleared(agent: Agent, state: int) -> None:
    agent.consume(LOCAL_TUPLE, ALICE)
    agent.put_mapping(LOCAL_TUPLE, NEWER, state)
    before = agent.mapping(LOCAL_TUPLE)
    with established(NEWER):
        agent.drops("ingress", REPLAY, "AGENT_DROP_REPLAYED")
    assert agent.mapping(LOCAL_TUPLE) == before


def test_nor_what_it_leaves_in_time_wait(agent: Agent) -> None:
    agent.consume(LOCAL_TUPLE, ALICE)
    with waiting(ALICE):
        agent.drops("ingress", REPLAY, "AGENT_DROP_REPLAYED")
    assert agent.mapping(LOCAL_TUPLE) is None


def test_a_connection_that_has_had_no_socket_clears_time_wait(agent: Agent) -> None:
    """The control for the test above."""
    agent.consume(LOCAL_TUPLE, OLDER)
    with waiting(ALICE) as expected:
        agent.passes("ingress", REPLAY, "AGENT_CLEARING", clearing(FIRST, expected))


@pytest.mark.parametrize("server", [(SECOND_VIP, SECOND_VIP_PORT), None], ids=["another VIP's", "a direct one"])
def test_other_sockets_stay_as_they_are(agent: Agent, server: tuple[str, int] | None) -> None:
    agent.consume(LOCAL_TUPLE, ALICE)
    if server:
        agent.put_mapping(LOCAL_TUPLE, replace(NEWER, server=server[0], server_port=server[1]))
    with established(NEWER):
        agent.drops("ingress", REPLAY, "AGENT_DROP_REPLAYED")


def test_what_went_round_is_looked_at_again(agent: Agent) -> None:
    """Its replay may have opened the connection while it was under way."""
    agent.consume(LOCAL_TUPLE, ALICE)
    agent.put_mapping(LOCAL_TUPLE, ALICE, MAPPING_CLEARING)
    with listening():
        agent.drops("ingress", delivered(FIRST), "AGENT_DROP_REPLAYED", mark=MARK_MAGIC | MARK_OPENS | 1)


def test_later_packets_are_none(agent: Agent) -> None:
    """As ever: the kernel refuses what is not of a living connection."""
    agent.consume(LOCAL_TUPLE, ALICE)
    agent.put_mapping(LOCAL_TUPLE, ALICE)
    later = ALICE.ack(len(HEAD))
    agent.passes("ingress", carried(later), "AGENT_DELIVERED", delivered(later))


# ---- no replay ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [MAPPING_OPEN, MAPPING_OPENING])
def test_the_very_connections_socket_gets_its_first_request_again(agent: Agent, state: int) -> None:
    agent.consume(LOCAL_TUPLE, ALICE)
    agent.put_mapping(LOCAL_TUPLE, ALICE, state)
    with established(ALICE):
        agent.passes("ingress", REPLAY, "AGENT_OPENED_ALREADY", delivered(FIRST))


@pytest.mark.parametrize("known", [None, NEWER], ids=["forgotten", "about to be cleared"])
def test_also_if_no_map_says_whose_it_is(agent: Agent, known: Connection | None) -> None:
    """The socket's own numbers do."""
    agent.consume(LOCAL_TUPLE, ALICE)
    if known:
        agent.put_mapping(LOCAL_TUPLE, known, MAPPING_CLEARING)
    with established(ALICE):
        agent.passes("ingress", REPLAY, "AGENT_OPENED_ALREADY", delivered(FIRST))


STRANGERS = {
    "another client number": {"connection": ALICE, "expected": ALICE.start + 1},
    "another cookie": {"connection": replace(ALICE, options=replace(ALICE.options, wscale=3))},
}


@pytest.mark.parametrize("socket", STRANGERS.values(), ids=STRANGERS)
def test_both_of_them_count(agent: Agent, socket: dict[str, Any]) -> None:
    agent.consume(LOCAL_TUPLE, ALICE)
    with established(**socket):
        agent.drops("ingress", REPLAY, "AGENT_DROP_REPLAYED")


OTHERS = {
    "another client number": NEWER,
    "another port": replace(ALICE, port=ALICE.port + 1),
    "other options": replace(ALICE, options=replace(ALICE.options, wscale=3)),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_another_connection_is_none(agent: Agent, other: Connection) -> None:
    """Which gets its socket, or would if this were no test run."""
    agent.consume(LOCAL_TUPLE, ALICE)
    with listening():
        agent.drops("ingress", carried(other.data(HEAD), opens=True), "AGENT_DROP_REFUSED")


def test_what_the_kernel_has_not_taken_is_not_consumed(agent: Agent) -> None:
    """A full accept queue drops without a word, and the request comes again."""
    with listening():
        for _ in range(2):
            agent.drops("ingress", REPLAY, "AGENT_DROP_REFUSED")
    assert agent.consumed() == []


# ---- what is remembered ---------------------------------------------------------------------------------


def test_a_refused_connection_is(agent: Agent) -> None:
    """And refused as often as it comes, while nobody listens."""
    for _ in range(3):
        refuse(agent, ALICE)
        assert agent.consumed() == [print_of(ALICE)]
    with listening():
        agent.drops("ingress", REPLAY, "AGENT_DROP_REPLAYED")


@pytest.mark.parametrize("state", [MAPPING_OPENING, MAPPING_CLEARING])
def test_so_is_one_that_makes_way_for_another_before_it_has_opened(agent: Agent, state: int) -> None:
    agent.put_mapping(LOCAL_TUPLE, ALICE, state)
    with listening():
        agent.drops("ingress", carried(NEWER.data(HEAD), opens=True), "AGENT_DROP_REFUSED")
    assert agent.consumed() == [print_of(ALICE)]


def test_a_retransmission_makes_way_for_nothing(agent: Agent) -> None:
    agent.put_mapping(LOCAL_TUPLE, ALICE, MAPPING_OPENING)
    with listening():
        agent.drops("ingress", REPLAY, "AGENT_DROP_REFUSED")
    assert agent.consumed() == []


def test_the_oldest_of_a_set_is_forgotten_first(agent: Agent) -> None:
    """Each set keeps its last seven, in the order in which they came."""
    came: list[list[int]] = [[] for _ in range(CONSUMED_SETS)]
    for port in range(41000, 41000 + 20 * CONSUMED_SETS):
        connection = Connection(port=port)
        refuse(agent, connection)
        came[oracle.consumed_place(print_of(connection), CONSUMED_SETS)].append(print_of(connection))
        assert agent.consumed() == sorted(one for its in came for one in its[-oracle.CONSUMED_WAYS :])
    assert all(len(its) > 2 * oracle.CONSUMED_WAYS for its in came)


def test_the_hand_may_wrap(agent: Agent) -> None:
    empty = {"fingerprint": [0] * oracle.CONSUMED_WAYS}
    for number in range(CONSUMED_SETS):
        agent.object.maps["consumed"].update(number, {"hand": 0xFFFF_FFFF} | empty)
    connections = [Connection(port=port) for port in range(41000, 41000 + 2 * CONSUMED_SETS)]
    for connection in connections:
        refuse(agent, connection)
    assert agent.consumed() == sorted(map(print_of, connections))
