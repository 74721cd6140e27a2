"""The router tells agents the route of each request, if it is to: labels, byte for byte, and where there are none.

What an agent makes of them is in test_figures.py. All other tests of this folder run without labels.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from packets import oracle
from packets.bench import BACKENDS, Router, entry
from packets.frames import CLIENT_MAC, ROUTER_MAC, Connection, Segment, ethernet, request
from packets.observed import counted, loaded, run
from packets.oracle import FIRST_MOVED, FLOW_MOVING, Route
from packets.test_icmp import outer_of, tells_client, to_outer, told
from rauta.ids import route_tags
from rauta.observation import Observation

ALICE = Connection()
HEAD, API = request("/"), request("/api", method="POST")
SLASH, SLASH_API = 0, 1
"""numbers of these routes"""
NEXT = ALICE.later(HEAD, len(HEAD))
MOVES = ALICE.later(API, len(HEAD))
FULL = 1500 - 20 - 8
"""bytes of a packet that has just room for a label"""


@pytest.fixture(scope="module")
def loaded_labelling() -> Iterator[Router]:
    loaded_one = Router(labels=1)
    with loaded_one.object:
        yield loaded_one


@pytest.fixture
def labelling(loaded_labelling: Router) -> Router:
    """A router that labels."""
    loaded_labelling.reset()
    return loaded_labelling


def opened(router: Router, segment: Segment, route: int) -> str:
    """The first request of its connection, with a label: where it goes."""
    backend = router.backend_of("web", segment.connection)
    router.forwards(segment, "ROUTED_FIRST", backend, opens=True, route=route)
    return backend


# ---- what has a label -----------------------------------------------------------------------------------


def test_requests_have_and_nothing_else_has(labelling: Router) -> None:
    """First and later ones, and their retransmissions."""
    first = ALICE.data(HEAD)
    backend = opened(labelling, first, SLASH)
    labelling.forwards(first, "FORWARDED_AGAIN", backend, opens=True, route=SLASH)
    labelling.forwards(ALICE.ack(len(HEAD)), "FORWARDED", backend)
    post = request("/x", "Content-Length: 9", method="POST")
    later, body = ALICE.later(post, len(HEAD)), ALICE.data(b"b" * 9, len(HEAD) + len(post), acked=300)
    labelling.forwards(later, "ROUTED_NEXT", backend, route=SLASH)
    labelling.forwards(later, "FORWARDED_AGAIN", backend, route=SLASH)
    labelling.forwards(body, "FORWARDED", backend)
    labelling.forwards(ALICE.fin(len(HEAD) + len(post) + 9, acked=300), "FORWARDED_CLOSE", backend)
    labelling.forwards(ALICE.rst(len(HEAD) + len(post) + 9), "FORWARDED_CLOSE", backend)


def test_a_first_request_that_comes_again_with_the_end_has(labelling: Router) -> None:
    backend = opened(labelling, ALICE.data(HEAD), SLASH)
    labelling.forwards(ALICE.fin(payload=HEAD), "FORWARDED_CLOSE", backend, opens=True, route=SLASH)


@pytest.mark.parametrize("head", [HEAD, request("/x", method="HEAD"), request("/x?y")])
def test_it_says_which_route(labelling: Router, head: bytes) -> None:
    opened(labelling, ALICE.data(head), SLASH)


def test_routes_are_numbered_from_0(labelling: Router) -> None:
    routes = [Route("web", exact=f"/{number}") for number in range(300)]
    labelling.route(*routes)
    for number in (0, 1, 255, 256, 299):
        connection = Connection(port=41000 + number)
        opened(labelling, connection.data(request(f"/{number}")), number)
        again = connection.data(request(f"/{number}"))
        labelling.forwards(again, "FORWARDED_AGAIN", labelling.backend_of("web", connection), opens=True, route=number)


def test_a_retransmission_has_the_route_that_was_found_then(labelling: Router) -> None:
    backend = opened(labelling, ALICE.data(HEAD), SLASH)
    labelling.route(Route("api", prefix="/api"), Route("web", prefix="/"))
    labelling.forwards(ALICE.data(HEAD), "FORWARDED_AGAIN", backend, opens=True, route=SLASH)
    labelling.forwards(NEXT, "ROUTED_NEXT", backend, route=1)


def test_what_an_entry_without_a_number_is_about_has_none(labelling: Router) -> None:
    """Of a router that did not label."""
    labelling.put_flow(ALICE, **entry(ALICE.data(HEAD), "web", "web-1"))
    labelling.forwards(ALICE.data(HEAD), "FORWARDED_AGAIN", "web-1", opens=True)
    labelling.forwards(NEXT, "ROUTED_NEXT", "web-1", route=SLASH)


@pytest.mark.parametrize("excess", [0, 1, 8])
def test_what_has_no_room_goes_without(labelling: Router, excess: int) -> None:
    post = request("/", "Content-Length: 5000", method="POST")
    segment = ALICE.data(post + b"b" * (FULL + excess - 52 - len(post)))
    assert len(segment.packet) == FULL + excess
    backend = labelling.backend_of("web", ALICE)
    route = None if excess else SLASH
    labelling.forwards(segment, "ROUTED_FIRST", backend, opens=True, route=route)
    labelling.forwards(segment, "FORWARDED_AGAIN", backend, opens=True, route=route)


def test_a_full_segment_of_an_ordinary_client_has_room(labelling: Router) -> None:
    post = request("/", "Content-Length: 5000", method="POST")
    segment = ALICE.data(post + b"b" * (oracle.ROUTER_MSS - 12 - len(post)))
    assert len(segment.packet) == oracle.ROUTER_MSS + 40
    opened(labelling, segment, SLASH)


def test_the_fallback_gets_none(labelling: Router) -> None:
    """Neither what no route names, nor a request whose cluster has no backend."""
    labelling.route(Route("web", exact="/open"), no_route=oracle.NO_ROUTE_FALLBACK, fallback=True)
    labelling.falls_back(ALICE.data(HEAD), "FALLBACK_NO_ROUTE", opens=True)
    labelling.falls_back(ALICE.data(HEAD), "FALLBACK_AGAIN", opens=True)


def test_what_leaves_by_another_interface_has(labelling: Router) -> None:
    labelling.lead("web-1", 77, "02:00:00:00:00:77")
    labelling.put_flow(ALICE, **entry(ALICE.data(HEAD), "web", "web-1"))
    _, output = labelling.run("rauta_ingress", NEXT, "ROUTED_NEXT")
    expected = labelling.encapsulated(
        NEXT, "web-1", opens=False, mac="02:00:00:00:00:77", new=False, starts=True, route=SLASH
    )
    assert output == expected


# ---- orders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("down", [False, True])
def test_an_order_says_it_in_the_outer_identification(labelling: Router, down: bool) -> None:
    """Also one that the router gives in place of a backend that is down, and its repetitions."""
    labelling.put_flow(ALICE, **entry(ALICE.data(HEAD), "web", "web-1"))
    if not down:
        labelling.orders(MOVES, "ROUTED_MOVED", "web-1", "api-1", outer_id=SLASH_API + 1)
        labelling.orders(MOVES, "FORWARDED_ORDER", "web-1", "api-1", outer_id=SLASH_API + 1)
        return
    labelling.take_down("web-1")
    for verdict in ("ROUTED_MOVED", "FORWARDED_ORDER"):
        _, output = labelling.run("rauta_ingress", MOVES, verdict)
        assert output[18:20] == (SLASH_API + 1).to_bytes(2, "big")
        assert output[35] == oracle.SHIM_ADOPT


@pytest.mark.parametrize(("tag", "said"), [(65_535, 65_535), (65_536, 0), (0xFFFF_FFFF, 0), (0, 0)])
def test_of_a_tag_that_has_no_room_there_it_says_none(labelling: Router, tag: int, said: int) -> None:
    """Repeated from what the entry knows; a label has room for all."""
    number = 300
    cluster = (number + 1) << 10 | 1
    labelling.object.maps["route_tags"].update(number, tag)
    changes = {"first": FIRST_MOVED, "state": FLOW_MOVING, "mover": BACKENDS["web-1"].index, "cluster": cluster}
    labelling.put_flow(ALICE, **entry(MOVES, "api", "api-1") | changes)
    labelling.orders(MOVES, "FORWARDED_ORDER", "web-1", "api-1", outer_id=said)
    labelling.put_flow(ALICE, **entry(MOVES, "api", "api-1") | {"cluster": cluster, "first": 0})
    labelling.forwards(MOVES, "FORWARDED_AGAIN", "api-1", route=tag - 1 if tag else None)


def test_a_route_that_the_tables_do_not_know_has_none(labelling: Router) -> None:
    """Of an entry from a time when there were more."""
    cluster = 0xFFFF << 10 | 1
    labelling.put_flow(ALICE, **entry(MOVES, "api", "api-1") | {"cluster": cluster, "first": 0})
    labelling.forwards(MOVES, "FORWARDED_AGAIN", "api-1")


def test_the_cluster_is_still_known(labelling: Router) -> None:
    """Of one without weights, the backend stays: it is the same cluster."""
    backend = opened(labelling, ALICE.data(HEAD), SLASH)
    labelling.weigh("web", web_1=0, web_2=0)
    labelling.forwards(NEXT, "ROUTED_NEXT", backend, route=SLASH)


# ---- ICMP errors about them -----------------------------------------------------------------------------


def labelled(packet: bytes) -> bytes:
    return oracle.label(SLASH) + packet


@pytest.mark.parametrize("length", [28, 29, 60, 500])
@pytest.mark.parametrize("mtu", [96, 576, 1399])
def test_of_a_link_that_is_too_narrow_the_client_hears(labelling: Router, length: int, mtu: int) -> None:
    """Its packets are to have room for labels, too: or its next request would not fit again."""
    upload = ALICE.later(HEAD + b"b" * 1350, len(HEAD)).packet
    labelling.put_flow(ALICE, **entry(ALICE.data(HEAD), "web", "web-1"))
    about = outer_of(labelling, labelled(upload), proto=oracle.SHIM_PROTOCOL)[: 28 + length]
    tells_client(labelling, to_outer(labelling, about, mtu=mtu), told(upload[:length], mtu - 28))


def test_a_link_that_cannot_be_is_dropped(labelling: Router) -> None:
    labelling.put_flow(ALICE, **entry(ALICE.data(HEAD), "web", "web-1"))
    about = outer_of(labelling, labelled(NEXT.packet), proto=oracle.SHIM_PROTOCOL)
    for mtu in (95, len(about)):
        error = to_outer(labelling, about, mtu=mtu)
        labelling.drops(ethernet(CLIENT_MAC, ROUTER_MAC, error), "DROP_ICMP")


@pytest.mark.parametrize("kept", [20, 27, 28, 55])
def test_too_little_of_it_is_no_error_of_ours(labelling: Router, kept: int) -> None:
    labelling.put_flow(ALICE, **entry(ALICE.data(HEAD), "web", "web-1"))
    about = outer_of(labelling, labelled(NEXT.packet), proto=oracle.SHIM_PROTOCOL)[:kept]
    frame = ethernet(CLIENT_MAC, ROUTER_MAC, to_outer(labelling, about))
    if kept < 28:
        labelling.passes(frame, "PASS_NOT_TCP")
    else:
        labelling.drops(frame, "DROP_ICMP")


def test_a_router_without_labels_knows_none(router: Router) -> None:
    router.put_flow(ALICE, **entry(ALICE.data(HEAD), "web", "web-1"))
    about = outer_of(router, labelled(NEXT.packet), proto=oracle.SHIM_PROTOCOL)
    router.passes(ethernet(CLIENT_MAC, ROUTER_MAC, to_outer(router, about)), "PASS_NOT_TCP")


# ---- as its users load it -------------------------------------------------------------------------------


def test_requests_are_counted_for_the_backend_that_they_go_to() -> None:
    """One that moves for the new one. With labels or without; not what comes again, nor what is refused."""
    for labels in (False, True):
        with loaded(observation=Observation(labels=labels)) as router:
            first, moves = ALICE.data(HEAD), ALICE.later(request("/api"), len(HEAD))
            run(router, first, first, ALICE.ack(len(HEAD)), moves, moves)
            run(router, Connection(port=40004).data(request("/nowhere", host="closed.test")))
            by_backend = counted(router.requests_by_backend())
            assert set(by_backend) <= {"web-1", "web-2", "api-1"}
            assert (by_backend["api-1"], sum(by_backend.values())) == (1, router.requests_routed)
            assert router.requests_routed == 2
            assert set(router.requests_by_backend()) == set(router.config.backends())


def test_it_labels_only_if_it_is_told_to() -> None:
    for labels in (False, True):
        with loaded(observation=Observation(labels=labels)) as router:
            output = router.object.programs["rauta_ingress"].test_run(bytes(ALICE.data(HEAD))).data
            inner = ALICE.data(HEAD).packet
            assert output[23] == (oracle.SHIM_PROTOCOL if labels else 4)
            tags = {name: tag for name, tag in route_tags(router.config).items() if name[::3] == ("shop", "/")}
            (tag,) = tags.values()
            assert output[34:] == (oracle.label(tag - 1) if labels else b"") + inner
