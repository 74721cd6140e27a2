"""The router on the flow of a connection that moves, or has moved: what does not depend on an agent's word."""

import pytest

from packets.bench import BACKENDS, Router, entry
from packets.frames import Connection, request
from packets.oracle import FIRST_MOVED, FLOW_MOVING, SYN_MOVED, SYN_NEWEST

ALICE = Connection()
HEAD = request("/")
SECOND = request("/api")
LATER = ALICE.later(SECOND, len(HEAD))


def moved(router: Router, **changes: int) -> dict[str, int]:
    """The second request has moved the connection."""
    made = entry(LATER, "api", "api-1", first=FIRST_MOVED, isn=LATER.seq - 1, cookie=LATER.ack - 1)
    made |= {"syn_seen": SYN_MOVED, "syn_isn": ALICE.isn, "options": ALICE.cookie & 0xFF} | changes
    router.put_flow(ALICE, **made)
    return made


@pytest.mark.parametrize("state", [1, 2], ids=["open", "closing"])
def test_its_first_request_again_opens_nothing(router: Router, state: int) -> None:
    before = moved(router, state=state)
    router.drops(ALICE.data(HEAD), "DROP_REPLAYED")
    assert router.flow(ALICE) == before


def test_nor_does_its_syn_again_make_it_a_new_connections(router: Router) -> None:
    before = moved(router)
    router.greets(ALICE.syn())
    assert router.flow(ALICE) == before
    router.drops(ALICE.data(HEAD), "DROP_REPLAYED")


def test_a_newer_syn_is_noted_and_its_first_request_opens_a_connection(router: Router) -> None:
    moved(router)
    newer = ALICE.reopened(ALICE.isn - 5_000_000)  # from a client that draws its numbers
    router.greets(newer.syn())
    flow = router.flow(ALICE)
    assert flow is not None
    assert (flow["syn_seen"], flow["syn_isn"]) == (SYN_NEWEST, newer.isn)
    router.opens(newer.data(HEAD), "web")


def test_while_it_moves_a_bare_acknowledgement_is_the_old_backends_wherever_it_stands(router: Router) -> None:
    """A client that has sent the next request already acknowledges the answer before from behind that request."""
    moved(
        router,
        state=FLOW_MOVING,
        mover=BACKENDS["web-1"].index,
        isn=ALICE.isn,
        cookie=ALICE.cookie,
        syn_seen=0,
        syn_isn=0,
    )
    router.forwards(ALICE.ack(len(HEAD) + len(SECOND), 500), "FORWARDED_MOVING", "web-1")
