"""What a connection's first data said: a router that has lost the flow's entry cannot have other data put in its place.

The router says with a first request whether it knows of no earlier one; then the agent compares.
"""

import pytest

from packets import oracle
from packets.bench import Agent, Router, entry
from packets.frames import CLIENT, LOCAL, LOCAL_PORT, Connection, Segment, carried, delivered, request
from packets.oracle import MAPPING_CLEARING, MAPPING_OPEN, MAPPING_OPENING, Tuple
from packets.sockets import established, listening

ALICE = Connection()
LOCAL_TUPLE = Tuple(CLIENT, ALICE.port, LOCAL, LOCAL_PORT)
HEAD = request("/")
FIRST = ALICE.data(HEAD)
EXPECTED = FIRST.after

served = pytest.mark.usefixtures("server_address")
states = pytest.mark.parametrize("state", [MAPPING_OPEN, MAPPING_OPENING])

OTHERS = {
    "another path": ALICE.data(HEAD.replace(b"/", b"/admin", 1)),
    "the same length": ALICE.data(HEAD.replace(b"GET", b"PUT")),
    "one byte more": ALICE.data(HEAD + b"x"),
    "its last byte": ALICE.data(HEAD[:-1] + b"x"),
    "its beginning": ALICE.data(HEAD[:8]),
    "a length that swallows all": ALICE.data(request("/", "Content-Length: 1000000000", method="POST")),
}
LENGTHS = [1, 7, 8, 9, 500, 1400]


def ended(agent: Agent, segment: Segment, expected: int = EXPECTED) -> None:
    """A first request that turns into a reset for the connection's own socket: a header with the number it expects."""
    _, output = agent.run("rauta_agent_ingress", carried(segment, opens=True, new=True), "AGENT_ENDING")
    tcp = output[34:54]
    assert (tcp[4:8], tcp[13]) == (expected.to_bytes(4, "big"), 0x04)
    assert output[16:18] == (40).to_bytes(2, "big")


# ---- the router -----------------------------------------------------------------------------------------


def test_the_router_says_whether_it_knows_of_an_earlier_one(router: Router) -> None:
    backend = router.backend_of("web", ALICE)
    router.sends(FIRST, "ROUTED_FIRST", router.encapsulated(FIRST, backend, opens=True, new=True))
    router.sends(FIRST, "FORWARDED_AGAIN", router.encapsulated(FIRST, backend, opens=True, new=False))
    router.object.maps["flows"].clear()
    router.sends(FIRST, "ROUTED_FIRST", router.encapsulated(FIRST, backend, opens=True, new=True))


def test_later_packets_say_whose_they_are_and_no_more(router: Router) -> None:
    router.put_flow(ALICE, **entry(FIRST, "web", "web-1"))
    router.forwards(ALICE.ack(at=len(HEAD), acked=300), "FORWARDED", "web-1")


# ---- the agent ------------------------------------------------------------------------------------------


@served
@states
@pytest.mark.parametrize("segment", OTHERS.values(), ids=OTHERS)
def test_other_data_ends_the_connection(agent: Agent, state: int, segment: Segment) -> None:
    """The socket has had one request, the router has routed another: what follows would be anybody's guess."""
    agent.put_mapping(LOCAL_TUPLE, ALICE, state, first=oracle.head_digest(HEAD))
    with established(ALICE, expected=EXPECTED):
        ended(agent, segment)
    assert agent.consumed() == [oracle.fingerprint(LOCAL_TUPLE, ALICE.isn, ALICE.cookie)]


@served
@states
def test_the_networks_own_duplicate_does_not(agent: Agent, state: int) -> None:
    agent.put_mapping(LOCAL_TUPLE, ALICE, state, first=oracle.head_digest(HEAD))
    with established(ALICE, expected=EXPECTED):
        agent.passes("ingress", carried(FIRST, opens=True, new=True), "AGENT_OPENED_ALREADY", delivered(FIRST))


@served
@pytest.mark.parametrize("segment", OTHERS.values(), ids=OTHERS)
def test_what_the_router_has_compared_itself_is_not_compared_again(agent: Agent, segment: Segment) -> None:
    """A retransmission may take some of the body along."""
    agent.put_mapping(LOCAL_TUPLE, ALICE, first=oracle.head_digest(HEAD))
    with established(ALICE, expected=EXPECTED):
        agent.passes("ingress", carried(segment, opens=True), "AGENT_OPENED_ALREADY", delivered(segment))


@served
@pytest.mark.parametrize("known", [{}, {"first": 0}])
def test_what_cannot_be_compared_ends_it_too(agent: Agent, known: dict[str, int]) -> None:
    """The map has forgotten the connection, perhaps because its client has crowded it out."""
    if known:
        agent.put_mapping(LOCAL_TUPLE, ALICE, **known)
    with established(ALICE):
        ended(agent, FIRST, ALICE.start)


@served
def test_behind_its_end_it_opens_no_more(agent: Agent) -> None:
    agent.put_mapping(LOCAL_TUPLE, ALICE, first=oracle.head_digest(HEAD))
    other = OTHERS["another path"]
    with established(ALICE, expected=EXPECTED):
        ended(agent, other)
    with listening():
        agent.drops("ingress", carried(other, opens=True, new=True), "AGENT_DROP_REPLAYED")


@served
def test_while_an_old_socket_goes_the_map_is_about_who_comes_next(agent: Agent) -> None:
    """The socket is the connection's own all the same, by its numbers."""
    agent.put_mapping(LOCAL_TUPLE, ALICE, MAPPING_CLEARING, first=oracle.head_digest(HEAD))
    with established(ALICE):
        agent.passes("ingress", carried(FIRST, opens=True, new=True), "AGENT_OPENED_ALREADY", delivered(FIRST))


@pytest.mark.parametrize("length", LENGTHS)
def test_the_mapping_keeps_the_digest(agent: Agent, length: int) -> None:
    segment = ALICE.data(b"x" * length)
    agent.passes("ingress", carried(segment, opens=True, new=True), "AGENT_NO_LISTENER", delivered(segment))
    mapping = agent.mapping(LOCAL_TUPLE)
    assert mapping is not None
    assert mapping["first"] == oracle.head_digest(b"x" * length)
