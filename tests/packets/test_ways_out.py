"""Several interfaces: what goes to a backend leaves through the one that leads there, and answers go back."""

import pytest

from packets.bench import BACKENDS, INGRESS, Router, entry
from packets.frames import Connection, Segment, request

ALICE = Connection()
HEAD = request("/")
OTHER = INGRESS + 6
OTHER_MAC = "02:00:00:00:02:07"

LATER: dict[str, tuple[Segment, str, bool]] = {
    "next request": (ALICE.later(HEAD, len(HEAD)), "ROUTED_NEXT", False),
    "retransmission": (ALICE.data(HEAD), "FORWARDED_AGAIN", True),
    "acknowledgement": (ALICE.ack(len(HEAD)), "FORWARDED", False),
    "padded acknowledgement": (ALICE.ack(len(HEAD), options=b"", padding=bytes(6)), "FORWARDED", False),
    "end": (ALICE.fin(len(HEAD)), "FORWARDED_CLOSE", False),
    "reset": (ALICE.rst(len(HEAD)), "FORWARDED_CLOSE", False),
}
later = pytest.mark.parametrize(("segment", "verdict", "opens"), LATER.values(), ids=LATER)


def known(router: Router) -> None:
    """A connection that web-1 has."""
    router.put_flow(ALICE, **entry(ALICE.data(HEAD), "web", "web-1"))


def test_a_first_request_leaves_through_the_interface_that_leads_to_its_backend(router: Router) -> None:
    segment = ALICE.data(HEAD)
    backend = router.backend_of("web", ALICE)
    router.lead(backend, OTHER, OTHER_MAC)
    router.redirects(segment, "ROUTED_FIRST", backend, OTHER_MAC, opens=True)
    assert router.flow(ALICE) == entry(segment, "web", backend)


@later
def test_so_does_what_follows(router: Router, segment: Segment, verdict: str, opens: bool) -> None:
    known(router)
    router.lead("web-1", OTHER, OTHER_MAC)
    router.redirects(segment, verdict, "web-1", OTHER_MAC, opens=opens)


@later
@pytest.mark.parametrize("interface", [0, INGRESS])
def test_what_leaves_as_it_came_is_turned_round(
    router: Router, segment: Segment, verdict: str, opens: bool, interface: int
) -> None:
    known(router)
    router.lead("web-1", interface, OTHER_MAC)
    router.forwards(segment, verdict, "web-1", opens=opens)


def test_each_backend_has_its_own_way(router: Router) -> None:
    """Also one packet after the other."""
    router.lead("api-1", OTHER, OTHER_MAC)
    for port in range(40000, 40008, 2):
        router.opens(Connection(port=port).data(HEAD), "web")
        router.redirects(
            Connection(port=port + 1).data(request("/api")), "ROUTED_FIRST", "api-1", OTHER_MAC, opens=True
        )


@pytest.fixture
def elsewhere(router: Router) -> Router:
    """All backends are behind another interface."""
    for backend in BACKENDS:
        router.lead(backend, OTHER, OTHER_MAC)
    return router


def test_what_the_router_says_itself_goes_back(elsewhere: Router) -> None:
    elsewhere.greets(ALICE.syn())
    elsewhere.answers(ALICE.data(request("//")), "TX_BAD_REQUEST", "400 Bad Request")
    known(elsewhere)
    upload = request("/", "Content-Length: 1500", method="POST") + b"b" * 1500
    elsewhere.finds_too_big(Connection(port=41000).data(upload))
    elsewhere.resets(ALICE.later(request("/drained"), len(HEAD)), "TX_UNAVAILABLE")


def test_what_is_dropped_leaves_nowhere(elsewhere: Router) -> None:
    elsewhere.put_flow(ALICE, **entry(ALICE.data(HEAD), "web", "web-1", body=2000))
    elsewhere.drops(ALICE.data(b"b", len(HEAD) + 2001), "DROP_OUT_OF_ORDER")
    elsewhere.drops(ALICE.data(b"b" * 1500, len(HEAD), ip={"flags": 0}), "DROP_TOO_BIG")
