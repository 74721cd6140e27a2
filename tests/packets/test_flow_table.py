"""The flow table: sets of a few ways each, told apart by tag and tuple, with a clock that picks who must go."""

from itertools import islice

import pytest

from packets import oracle
from packets.bench import FLOW_SETS, RESETTING_PORT, RESETTING_VIP, Router, entry
from packets.frames import Connection, Segment, request

ALICE = Connection()
HEAD = request("/")


def known(router: Router, connection: Connection) -> None:
    """A connection that has sent its first request."""
    router.put_flow(connection, **entry(connection.data(HEAD), "web", "web-1"))


def neighbours(count: int) -> list[Connection]:
    """Connections that share one set of the flow table."""
    connections = map(Connection, range(1024, 65535))
    return list(islice((one for one in connections if oracle.flow_place(one.tuple, FLOW_SETS)[0] == 3), count))


def test_a_set_of_the_table_holds_as_many_flows_as_it_has_ways(router: Router) -> None:
    connections = neighbours(oracle.FLOW_WAYS)
    for connection in connections:
        router.opens(connection.data(HEAD), "web")
    for connection in connections:
        segment = connection.data(HEAD)
        assert router.flow(connection) == entry(segment, "web", router.backend_of("web", connection))
        router.forwards(connection.ack(len(HEAD)), "FORWARDED", router.backend_of("web", connection))


def test_one_more_takes_the_place_of_another(router: Router) -> None:
    connections = neighbours(oracle.FLOW_WAYS + 3)
    for connection in connections:
        router.opens(connection.data(HEAD), "web")
        router.forwards(connection.ack(len(HEAD)), "FORWARDED", router.backend_of("web", connection))
    assert router.flows() == oracle.FLOW_WAYS
    assert sum(router.flow(connection) is not None for connection in connections) == oracle.FLOW_WAYS


def test_the_one_that_was_used_since_the_hand_passed_is_spared(router: Router) -> None:
    """Bits of `used` and the place of `hand` are the set's clock; a spared one has lost its bit."""
    connections = neighbours(oracle.FLOW_WAYS + 3)
    for connection in connections[: oracle.FLOW_WAYS]:
        known(router, connection)
    number, _ = oracle.flow_place(connections[0].tuple, FLOW_SETS)
    flow_set = router.object.maps["flows"].lookup(number)
    router.object.maps["flows"].update(number, flow_set | {"hand": 6, "used": 0b01000001})
    for connection, gone in zip(connections[oracle.FLOW_WAYS :], (7, 1, 2), strict=True):
        router.opens(connection.data(HEAD), "web")
        assert router.flow(connections[gone]) is None
    assert router.flow(connections[6]) is not None
    assert router.flow(connections[0]) is not None


OTHERS = {
    "client": Connection(client="198.18.0.3"),
    "client port": Connection(port=ALICE.port + 1),
    "server": Connection(server=RESETTING_VIP),
    "server port": Connection(server_port=RESETTING_PORT),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_tag_that_two_tuples_share_does_not_mix_them_up(router: Router, other: Connection) -> None:
    known(router, ALICE)
    number, tag = oracle.flow_place(ALICE.tuple, FLOW_SETS)
    flow_set = router.object.maps["flows"].lookup(number)
    flow_set["flow"][flow_set["tag"].index(tag)]["tuple"] = other.tuple.key
    router.object.maps["flows"].update(number, flow_set)
    router.drops(ALICE.ack(len(HEAD)), "DROP_NO_FLOW")


def test_tuples_that_differ_in_one_number_are_different_flows(router: Router) -> None:
    known(router, ALICE)
    others: list[Segment] = [
        Connection(port=ALICE.port + 1).ack(len(HEAD)),
        Connection(client="198.18.0.3").ack(len(HEAD)),
    ]
    for segment in others:
        router.drops(segment, "DROP_NO_FLOW")


# ---- under pressure -------------------------------------------------------------------------------------

WAYS = oracle.FLOW_WAYS


def crowd(router: Router, connections: list[Connection]) -> None:
    """A connection after the other has its handshake and its first request, and never says anything more."""
    for connection in connections:
        router.opens(connection.data(HEAD), "web")


def say_something(router: Router, connection: Connection) -> None:
    """Whatever it is, it uses the entry."""
    router.forwards(connection.ack(len(HEAD)), "FORWARDED", router.backend_of("web", connection))


@pytest.mark.parametrize("busy", [1, 4, 7])
@pytest.mark.parametrize("before", [0, 3, WAYS])
def test_connections_in_use_outlive_any_number_that_are_not(router: Router, busy: int, before: int) -> None:
    """However many have come before them, wherever the hand is: each needs one packet in the time in which as many
    others come into its set as it has room for besides those in use.
    """
    connections = neighbours(before + busy + 3 * WAYS)
    crowd(router, connections[:before])
    ours, others = connections[before : before + busy], connections[before + busy :]
    crowd(router, ours)
    while others:
        for connection in ours:
            say_something(router, connection)
        crowd(router, others[: WAYS - busy])
        del others[: WAYS - busy]
    assert all(router.flow(connection) is not None for connection in ours)


def test_the_newest_of_connections_that_say_nothing_more_is_not_the_first_to_go(router: Router) -> None:
    """It has as long as the others had: until as many have come as there are ways."""
    connections = neighbours(3 * WAYS)
    for number, connection in enumerate(connections):
        crowd(router, [connection])
        assert all(router.flow(one) is not None for one in newest(connections, number))


def newest(connections: list[Connection], number: int) -> list[Connection]:
    """As many as a set has ways, up to the one with that number."""
    return connections[max(0, number + 1 - WAYS) : number + 1]


def test_where_all_are_in_use_each_has_its_turn(router: Router) -> None:
    """An attacker who sends a second packet for each connection has used its entry, too: then those in use go as well,
    but none of them before as many others have come as there are ways.
    """
    connections = neighbours(2 * WAYS + 3)
    for number, connection in enumerate(connections):
        crowd(router, [connection])
        say_something(router, connection)
        assert all(router.flow(one) is not None for one in newest(connections, number))
