"""The flow table: sets of a few ways each, told apart by tag and tuple; who was silent for the longest time must go."""

from itertools import islice

import pytest

from packets import oracle
from packets.bench import BACKENDS, FLOW_SETS, RESETTING_PORT, RESETTING_VIP, XDP_DROP, Router, entry
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


def test_who_was_silent_for_the_longest_time_must_go(router: Router) -> None:
    """`used` says when, by the set's `clock`, which goes round at 256."""
    connections = neighbours(oracle.FLOW_WAYS + 4)
    for connection in connections[: oracle.FLOW_WAYS]:
        known(router, connection)
    number, _ = oracle.flow_place(connections[0].tuple, FLOW_SETS)
    flow_set = router.object.maps["flows"].lookup(number)
    router.object.maps["flows"].update(number, flow_set | {"clock": 4, "used": bytes([4, 3, 254, 252, 4, 0, 3, 250])})
    for connection, gone in zip(connections[oracle.FLOW_WAYS :], (7, 3, 2, 5), strict=True):
        router.opens(connection.data(HEAD), "web")
        assert router.flow(connections[gone]) is None
    assert all(router.flow(connections[kept]) is not None for kept in (0, 1, 4, 6))


def test_of_those_that_were_silent_equally_long_not_always_the_same_goes(router: Router) -> None:
    """Else a new connection would be the next one's victim, among others that are all in use."""
    connections = neighbours(2 * oracle.FLOW_WAYS)
    old, new = connections[: oracle.FLOW_WAYS], connections[oracle.FLOW_WAYS :]
    for connection in old:
        known(router, connection)
    for number, connection in enumerate(new):
        router.opens(connection.data(HEAD), "web")
        for one in connections[: oracle.FLOW_WAYS + number + 1]:
            if router.flow(one) is not None:
                say_something(router, one)
        assert all(router.flow(one) is not None for one in new[: number + 1])


def test_who_has_said_nothing_since_he_came_goes_before_those_who_have(router: Router) -> None:
    *connections, last = neighbours(oracle.FLOW_WAYS + 1)
    crowd(router, connections)
    for connection in connections[:-1]:
        say_something(router, connection)
    crowd(router, [last])
    assert [router.flow(connection) is not None for connection in connections] == [True] * 7 + [False]


def test_a_word_is_noted_once_for_each_new_neighbour(router: Router) -> None:
    """The set's cache line is written by the connections' packets only then."""
    one, other = neighbours(2)
    number, _ = oracle.flow_place(one.tuple, FLOW_SETS)
    crowd(router, [one])
    say_something(router, one)
    before = router.object.maps["flows"].dump()
    say_something(router, one)
    assert router.object.maps["flows"].dump() == before
    crowd(router, [other])
    say_something(router, one)
    flow_set = router.object.maps["flows"].lookup(number)
    assert (flow_set["clock"], flow_set["used"]) == (4, bytes([4, 3, 0, 0, 0, 0, 0, 0]))


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
    """A connection after the other has its handshake and its first request."""
    for connection in connections:
        router.opens(connection.data(HEAD), "web")


def say_something(router: Router, connection: Connection) -> None:
    """Whatever it is, it uses the entry."""
    flow = router.flow(connection)
    assert flow is not None
    backend = next(name for name, one in BACKENDS.items() if one.index == flow["backend"])
    router.forwards(connection.ack(len(HEAD)), "FORWARDED", backend)


@pytest.mark.parametrize("talkative", [False, True], ids=["silent others", "others that answer"])
@pytest.mark.parametrize("busy", [1, 4, 6])
@pytest.mark.parametrize("before", [0, 3])
def test_connections_in_use_outlive_any_number_of_others(
    router: Router, before: int, busy: int, talkative: bool
) -> None:
    """However many have come before them, and however much those say that come: each needs one packet in the time in
    which as many come into its set as it has room for besides those in use, less one.
    """
    connections = neighbours(before + busy + 2 * WAYS)
    crowd(router, connections[:before])
    ours, others = connections[before : before + busy], connections[before + busy :]
    crowd(router, ours)
    while others:
        for connection in ours:
            say_something(router, connection)
        for connection in others[: WAYS - busy - 1]:
            crowd(router, [connection])
            if talkative:
                say_something(router, connection)
        del others[: WAYS - busy - 1]
    assert all(router.flow(connection) is not None for connection in ours)


def test_the_newest_connection_is_not_the_first_to_go(router: Router) -> None:
    """It has as long as the others had: until as many have come as there are ways."""
    connections = neighbours(3 * WAYS)
    for number, connection in enumerate(connections):
        crowd(router, [connection])
        newest = connections[max(0, number + 1 - WAYS) : number + 1]
        assert all(router.flow(one) is not None for one in newest)


# ---- a set that another CPU is writing to ---------------------------------------------------------------

WRITERS = {
    "first request": (ALICE.reopened(ALICE.isn + 5000).data(HEAD), {}),
    "later request": (ALICE.later(HEAD, len(HEAD)), {}),
    "SYN": (ALICE.reopened(ALICE.isn + 5000).syn(), {}),
    "end": (ALICE.fin(at=len(HEAD), acked=300), {}),
    "more behind an answer": (
        ALICE.data(b"x", at=len(HEAD)),
        {"state": oracle.FLOW_ANSWERED},
    ),
    "first request that is answered": (ALICE.reopened(ALICE.isn + 5000).data(request("//")), {}),
}


@pytest.mark.parametrize(("segment", "changes"), WRITERS.values(), ids=WRITERS)
def test_what_cannot_be_noted_does_not_leave(router: Router, segment: Segment, changes: dict[str, int]) -> None:
    """It comes again. What left without being noted might be followed by what is then taken for something else."""
    before = entry(ALICE.data(HEAD), "web", "web-1", **changes)
    router.put_flow(ALICE, **before)
    lock(router, ALICE)
    code, _ = router.run("rauta_ingress", segment, "DROP_NO_ROOM")
    assert code == XDP_DROP
    assert router.flow(ALICE) == before


def test_who_only_reads_does_not_wait(router: Router) -> None:
    known(router, ALICE)
    lock(router, ALICE)
    router.forwards(ALICE.ack(at=len(HEAD), acked=300), "FORWARDED", "web-1")
    router.forwards(ALICE.data(HEAD), "FORWARDED_AGAIN", "web-1", opens=True)


def test_every_writer_unlocks(router: Router) -> None:
    number, _ = oracle.flow_place(ALICE.tuple, FLOW_SETS)
    for segment, changes in WRITERS.values():
        router.put_flow(ALICE, **entry(ALICE.data(HEAD), "web", "web-1", **changes))
        router.object.programs["rauta_ingress"].test_run(bytes(segment))
        assert router.object.maps["flows"].lookup(number)["lock"] == 0


def lock(router: Router, connection: Connection) -> None:
    """Leaves the set of a connection locked, as if a CPU had stopped while it wrote there."""
    number, _ = oracle.flow_place(connection.tuple, FLOW_SETS)
    flow_set = router.object.maps["flows"].lookup(number)
    router.object.maps["flows"].update(number, flow_set | {"lock": 1})
