"""The flow table: sets of a few ways each, told apart by tag and tuple, with a clock that picks who must go."""

from itertools import islice

import pytest

from packets import oracle
from packets.bench import FLOW_SETS, RESETTING_PORT, RESETTING_VIP, XDP_DROP, Router, entry
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
