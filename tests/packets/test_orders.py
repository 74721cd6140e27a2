"""The router moves a connection: its orders to the backend that has it, what goes by that one, and when all is done.

docs/handover.md says why. What the agents make of it is in test_agent_moves.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from packets import oracle
from packets.bench import BACKENDS, INDEX, XDP_DROP, XDP_TX, Router, entry
from packets.frames import (
    BACKEND_MAC,
    ROUTER_MAC,
    Connection,
    Segment,
    ethernet,
    icmp_error,
    ip_packet,
    ordered,
    outer_packet,
    request,
    shimmed,
)
from packets.oracle import (
    FIRST_MOVED,
    FIRST_NOT,
    FLOW_CLOSING,
    FLOW_MOVING,
    FLOW_OPEN,
    MAX_ORDERS,
    SHIM_LIFETIME,
    SYN_MOVED,
    Route,
    Shim,
)
from packets.test_flow_table import lock

ALICE = Connection()
HEAD = request("/")
API = request("/api", "Content-Length: 3000", method="POST")
AFTER_HEAD, AFTER_API = len(HEAD), len(HEAD) + len(API) + 3000
ASKS = ALICE.later(API, AFTER_HEAD)
"""the request that moves the connection, from web-1 to api-1"""
OTHER_INTERFACE, OTHER_MAC = 77, "02:00:00:00:00:77"


def known(router: Router, backend: str = "web-1", **changes: int) -> dict[str, int]:
    """A connection whose only request so far is HEAD; what its entry says."""
    made = entry(ALICE.data(HEAD), "web", backend, **changes)
    router.put_flow(ALICE, **made)
    return made


def ordered_entry(segment: Segment = ASKS, *, mover: str = "web-1", **changes: int) -> dict[str, int]:
    """The entry once a segment has moved the connection from `mover` to api-1, as far as the router can know."""
    head = segment.payload.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    body = 3000 if head == API else 0
    made = entry(segment, "api", "api-1", head=head, body=body, first=FIRST_MOVED, state=FLOW_MOVING)
    return made | {"mover": BACKENDS[mover].index, "body_seq": ALICE.start + AFTER_HEAD} | changes


def moving(router: Router, **changes: int) -> dict[str, int]:
    """ASKS has gone to web-1 as an order; what the entry says."""
    made = ordered_entry(**changes)
    router.put_flow(ALICE, **made)
    return made


def moved(router: Router, **changes: int) -> dict[str, int]:
    """And web-1 has said that it is done; what the entry says. The handshake's number is kept with the SYN's."""
    numbers = {"state": FLOW_OPEN, "isn": ASKS.seq - 1, "cookie": ASKS.ack - 1, "request_ack": ASKS.ack}
    numbers |= {"syn_isn": ALICE.isn, "syn_seen": SYN_MOVED}
    return moving(router, **numbers | changes)


def notice(router: Router, segment: Segment = ASKS, mover: str = "web-1", **changes: Any) -> Shim:
    """What an agent says when it has moved the connection with that segment; `changes` are under its tag."""
    said = Shim(
        kind=oracle.SHIM_MOVED,
        four=segment.connection.tuple,
        seq=segment.seq,
        ack=segment.ack,
        source=BACKENDS[mover].address,
        destination=oracle.outer_source(segment.connection.tuple, *router.outer),
        first=segment.seq,
        second=segment.ack,
        time=oracle.shim_time(),
    )
    return replace(said, **changes)


def says(shim: Shim, segment: Segment = ASKS) -> bytes:
    """The frame in which it comes to the router."""
    return ordered(segment, shim, BACKEND_MAC, ROUTER_MAC)


# ---- the order ------------------------------------------------------------------------------------------


REQUESTS = {
    "GET": ALICE.later(request("/api"), AFTER_HEAD),
    "HEAD": ALICE.later(request("/api", method="HEAD"), AFTER_HEAD),
    "with a body": ASKS,
    "with some of the body": ALICE.later(API + b"b" * 700, AFTER_HEAD),
    "with padding": ALICE.later(request("/api"), AFTER_HEAD, padding=b"p" * 9),
    "without options": ALICE.later(request("/api"), AFTER_HEAD, options=b""),
    "type of service": ALICE.later(request("/api"), AFTER_HEAD, ip={"tos": 0xB9}),
    "an answer of which all but a byte is missing": ALICE.later(request("/api"), AFTER_HEAD, acked=1),
    "the client's end": ALICE.later(request("/api"), AFTER_HEAD, flags="FPA"),
}


@pytest.mark.parametrize("segment", REQUESTS.values(), ids=REQUESTS)
def test_a_request_for_another_backend_is_an_order_to_the_one_that_has_the_connection(
    router: Router, segment: Segment
) -> None:
    known(router)
    router.orders(segment, "ROUTED_MOVED", "web-1", "api-1")
    assert router.flow(ALICE) == ordered_entry(segment)
    assert router.flows() == 1


def test_the_order_goes_to_whom_it_has_not_whom_it_would_have(router: Router) -> None:
    backend = router.other_backend("web", ALICE)
    known(router, backend)
    router.orders(ASKS, "ROUTED_MOVED", backend, "api-1")


def test_it_names_the_one_that_maglev_names(router: Router) -> None:
    router.put_flow(ALICE, **entry(ALICE.data(request("/api")), "api", "api-1"))
    segment = ALICE.later(HEAD, len(request("/api")))
    router.orders(segment, "ROUTED_MOVED", "api-1", router.backend_of("web", ALICE))


@pytest.mark.parametrize("epoch", [0, 1])
def test_each_epochs_key_is_used(router: Router, epoch: int) -> None:
    known(router)
    router.set_cookie_keys(oracle.COOKIE_KEYS, epoch)
    router.orders(ASKS, "ROUTED_MOVED", "web-1", "api-1", epoch=epoch)


def test_it_calls_the_connection_by_what_its_backend_knows_it_by(router: Router) -> None:
    """One that has moved before: by the request that moved it."""
    known(router, isn=ALICE.isn + 5_000, cookie=0xABCD_0123, first=FIRST_NOT)
    router.orders(ASKS, "ROUTED_MOVED", "web-1", "api-1", cookie=0xABCD_0123)


@pytest.mark.parametrize("isn", [0xFFFFFFFF - len(HEAD), 0xFFFFFFFF - len(HEAD) - 1, 0xFFFFFFFF])
def test_numbers_may_wrap(router: Router, isn: int) -> None:
    connection = Connection(isn=isn)
    router.put_flow(connection, **entry(connection.data(HEAD), "web", "web-1"))
    router.orders(connection.later(API, AFTER_HEAD), "ROUTED_MOVED", "web-1", "api-1")
    router.drops(says(notice(router, connection.later(API, AFTER_HEAD))), "DROP_NOTICE")
    flow = router.flow(connection)
    assert flow is not None
    assert (flow["state"], flow["isn"]) == (FLOW_OPEN, isn + len(HEAD) & 0xFFFFFFFF)


def test_it_leaves_through_the_interface_that_leads_to_its_backend(router: Router) -> None:
    known(router)
    router.lead("web-1", OTHER_INTERFACE, OTHER_MAC)
    router.orders(ASKS, "ROUTED_MOVED", "web-1", "api-1", source_mac=OTHER_MAC)
    router.orders(ASKS, "FORWARDED_ORDER", "web-1", "api-1", source_mac=OTHER_MAC)


TAGS = {"one": b"\x81\x00\x00\x07", "two": b"\x88\xa8\x0f\xfe\x81\x00\x00\x07"}


@pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
def test_vlan_tags_stay(router: Router, tags: bytes) -> None:
    known(router)
    earliest = oracle.shim_time()
    for verdict in ("ROUTED_MOVED", "FORWARDED_ORDER"):
        frame = bytes(ASKS)
        code, output = router.run("rauta_ingress", frame[:12] + tags + frame[12:], verdict)
        said = int.from_bytes(output[38 + len(tags) : 40 + len(tags)], "little")
        assert said in (earliest, oracle.shim_time())
        shim = router.order(ASKS, "web-1", "api-1", time=said)
        expected = ordered(ASKS, shim, ROUTER_MAC, BACKENDS["web-1"].mac)
        assert (code, output.hex(" ")) == (XDP_TX, (expected[:12] + tags + expected[12:]).hex(" "))
    frame = says(notice(router))
    frame = frame[:12] + tags + frame[12:]
    assert router.run("rauta_ingress", frame, "DROP_NOTICE") == (XDP_DROP, frame)
    assert router.flow(ALICE) == moved(router) | {"answer": 1}


ROOM = oracle.PATH_MTU - 20 - oracle.SHIM_SIZE - 20 - 32
"""bytes of payload, behind timestamps, for which there is room in front"""


def test_the_announced_segment_size_leaves_room_for_it(router: Router) -> None:
    known(router)
    segment = ALICE.later(API.ljust(ROOM, b"b"), AFTER_HEAD)
    assert len(segment.packet) == oracle.ROUTER_MSS + 40
    router.orders(segment, "ROUTED_MOVED", "web-1", "api-1")


@pytest.mark.parametrize("more", [1, 24])
def test_a_larger_one_is_dropped_and_orders_nothing(router: Router, more: int) -> None:
    """No client may send it."""
    before = known(router)
    router.drops(ALICE.later(API.ljust(ROOM + more, b"b"), AFTER_HEAD), "DROP_TOO_BIG")
    assert router.flow(ALICE) == before


# ---- what moves, and what stays -------------------------------------------------------------------------


def stays(router: Router, segment: Segment, backend: str) -> None:
    router.forwards(segment, "ROUTED_NEXT", backend)
    flow = router.flow(ALICE)
    assert flow is not None
    assert (flow["backend"], flow["state"], flow["first"]) == (BACKENDS[backend].index, FLOW_OPEN, FIRST_NOT)


def test_another_weight_moves_nobody(router: Router) -> None:
    known(router)
    router.weigh("web", web_1=1, web_2=1000)
    stays(router, ALICE.later(HEAD, AFTER_HEAD), "web-1")


def test_without_a_weight_its_connections_move_at_their_next_request(router: Router) -> None:
    known(router)
    router.weigh("web", web_1=0, web_2=1)
    segment = ALICE.later(HEAD, AFTER_HEAD)
    router.orders(segment, "ROUTED_MOVED", "web-1", "web-2")
    expected = ordered_entry(segment) | {"cluster": INDEX["web"], "backend": BACKENDS["web-2"].index}
    assert router.flow(ALICE) == expected


def test_so_do_those_of_a_backend_that_has_left_the_cluster(router: Router) -> None:
    known(router)
    router.weigh("web", web_2=1)
    router.orders(ALICE.later(HEAD, AFTER_HEAD), "ROUTED_MOVED", "web-1", "web-2")


def test_a_cluster_without_any_weight_keeps_what_it_has(router: Router) -> None:
    known(router)
    router.weigh("web", web_1=0, web_2=0)
    stays(router, ALICE.later(HEAD, AFTER_HEAD), "web-1")


def test_it_gets_nothing_from_other_clusters(router: Router) -> None:
    before = known(router)
    router.resets(ALICE.later(request("/drained"), AFTER_HEAD), "TX_UNAVAILABLE")
    assert router.flow(ALICE) == before


def test_a_backend_of_both_clusters_keeps_it(router: Router) -> None:
    """Though Maglev would name another one. From then on it is the new cluster's."""
    known(router)
    router.weigh("api", api_1=1000, web_1=1)
    stays(router, ASKS, "web-1")
    assert router.flow(ALICE) == entry(
        ASKS, "api", "web-1", body=3000, first=FIRST_NOT, body_seq=ALICE.start + AFTER_HEAD
    )
    router.weigh("api", api_1=0, web_1=0)
    stays(router, ALICE.later(request("/api"), AFTER_API, acked=600), "web-1")


def test_another_name_of_the_same_host_is_no_other_backend(router: Router) -> None:
    known(router)
    value = {"address": oracle.be32(BACKENDS["web-1"].address), "next_hop": oracle.mac(BACKENDS["api-1"].mac)}
    router.object.maps["backends"].update(BACKENDS["api-1"].index, value)
    stays(router, ASKS, "web-1")


def test_what_has_moved_moves_back(router: Router) -> None:
    before = moved(router, answer=MAX_ORDERS)
    router.weigh("web", web_1=1, web_2=0)
    segment = ALICE.later(HEAD, AFTER_API, acked=600)
    router.orders(segment, "ROUTED_MOVED", "api-1", "web-1", cookie=ASKS.ack - 1)
    made = entry(segment, "web", "web-1", first=FIRST_MOVED, state=FLOW_MOVING)
    kept = ("isn", "cookie", "syn_isn", "syn_seen")
    numbers = {name: before[name] for name in kept} | {"mover": BACKENDS["api-1"].index}
    assert router.flow(ALICE) == made | numbers | {"body_seq": ASKS.seq + len(API)}


# ---- the request again, while it moves ------------------------------------------------------------------


def test_the_request_again_is_the_order_again(router: Router) -> None:
    before = moving(router)
    router.orders(ASKS, "FORWARDED_ORDER", "web-1", "api-1")
    assert router.flow(ALICE) == before | {"answer": 1}


def test_it_says_what_it_acknowledges_by_then(router: Router) -> None:
    """The number with which the new backend's socket begins."""
    before = moving(router)
    router.orders(ALICE.later(API, AFTER_HEAD, acked=900), "FORWARDED_ORDER", "web-1", "api-1")
    assert router.flow(ALICE) == before | {"answer": 1}


CHANGES: dict[str, Callable[[Router], None]] = {
    "another route": lambda router: router.route(Route("web", prefix="/")),
    "no route": lambda router: router.route(),
    "other weights": lambda router: router.weigh("api", web_2=1),
    "no weight": lambda router: router.weigh("api", api_1=0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_it_is_never_routed_anew(router: Router, change: Callable[[Router], None]) -> None:
    """Two backends would execute it."""
    known(router)
    router.orders(ASKS, "ROUTED_MOVED", "web-1", "api-1")
    change(router)
    router.orders(ASKS, "FORWARDED_ORDER", "web-1", "api-1")


def test_a_head_stays_one(router: Router) -> None:
    known(router)
    segment = ALICE.later(request("/api", method="HEAD"), AFTER_HEAD)
    for verdict in ("ROUTED_MOVED", "FORWARDED_ORDER", "FORWARDED_ORDER"):
        router.orders(segment, verdict, "web-1", "api-1")


def test_after_so_many_the_client_is_told(router: Router) -> None:
    known(router)
    router.orders(ASKS, "ROUTED_MOVED", "web-1", "api-1")
    for _ in range(MAX_ORDERS):
        router.orders(ASKS, "FORWARDED_ORDER", "web-1", "api-1")
    for _ in range(2):
        router.resets(ASKS, "TX_RESET_UNMOVED")
    assert router.flow(ALICE) == ordered_entry(answer=MAX_ORDERS)


CHANGED = {"another head": b"PUT" + API[3:], "a part": API[:-1], "its beginning": API[:4]}


@pytest.mark.parametrize("payload", CHANGED.values(), ids=CHANGED)
def test_another_in_its_place_orders_nothing(router: Router, payload: bytes) -> None:
    before = moving(router)
    router.drops(ALICE.later(payload, AFTER_HEAD), "DROP_CHANGED")
    assert router.flow(ALICE) == before


# ---- what else comes meanwhile --------------------------------------------------------------------------

BEFORE = {
    "acknowledgement at the request": ALICE.ack(AFTER_HEAD, acked=300),
    "acknowledgement before it": ALICE.ack(AFTER_HEAD - 1, acked=300),
    "acknowledgement behind it": ALICE.ack(AFTER_HEAD + len(API), acked=600),
    "acknowledgement behind its body": ALICE.ack(AFTER_API, acked=600),
    "reset behind it": ALICE.rst(AFTER_API),
    "reset with a payload": replace(ALICE.rst(AFTER_API), payload=b"sorry"),
}
BEYOND = {
    "first part of the body": ALICE.later(b"b" * 1400, AFTER_HEAD + len(API)),
    "a byte of it": ALICE.later(b"b", AFTER_HEAD + len(API) + 1400),
    "its end": ALICE.later(b"b" * 1400, AFTER_API - 1400),
    "its end with the client's": ALICE.fin(AFTER_API - 7, payload=b"b" * 7, ack=ASKS.ack),
    "the client's end": ALICE.fin(AFTER_API, ack=ASKS.ack),
}


@pytest.mark.parametrize("segment", BEFORE.values(), ids=BEFORE)
def test_acknowledgements_go_to_the_backend_that_has_it(router: Router, segment: Segment) -> None:
    """Which may still be answering, and can go on only with them."""
    before = moving(router)
    router.forwards(segment, "FORWARDED_MOVING", "web-1")
    assert router.flow(ALICE) == before


@pytest.mark.parametrize("segment", BEYOND.values(), ids=BEYOND)
def test_what_lies_behind_the_request_is_only_for_the_other(router: Router, segment: Segment) -> None:
    """Where it would wait in the old one's queue, acknowledged, and be lost with its socket."""
    before = moving(router)
    router.forwards(segment, "FORWARDED_MOVING", "web-1", beyond=True)
    assert router.flow(ALICE) == before


def test_the_body_of_the_request_before_is_not(router: Router) -> None:
    post = request("/", "Content-Length: 3000", method="POST")
    at = len(post) + 3000
    segment = ALICE.later(request("/api"), at)
    made = entry(segment, "api", "api-1", first=FIRST_MOVED, state=FLOW_MOVING, body_seq=ALICE.start + len(post))
    router.put_flow(ALICE, **made | {"mover": BACKENDS["web-1"].index})
    router.forwards(ALICE.data(b"b" * 1400, len(post)), "FORWARDED_MOVING", "web-1")
    router.forwards(ALICE.data(b"b" * 1400, at - 1400), "FORWARDED_MOVING", "web-1")
    router.drops(ALICE.data(b"b" * 8, at - 7), "DROP_CHANGED")


EARLY = {
    "of the new backend": request("/api"),
    "of the old one": HEAD,
    "without route": request("/x", host="closed.test"),
    "no request at all": b"x",
}


@pytest.mark.parametrize("payload", EARLY.values(), ids=EARLY)
def test_the_next_request_asks_only_whether_the_connection_has_moved(router: Router, payload: bytes) -> None:
    """It is not routed: its number is not the one that moves, so the old backend repeats what it said, and no more."""
    before = moving(router)
    router.orders(ALICE.later(payload, AFTER_API, acked=600), "FORWARDED_EARLY", "web-1", "api-1")
    assert router.flow(ALICE) == before


def test_what_is_behind_that_goes_nowhere(router: Router) -> None:
    before = moving(router)
    router.drops(ALICE.later(HEAD, AFTER_API + 1, acked=600), "DROP_OUT_OF_ORDER")
    router.resets(ALICE.later(b"b" + HEAD, AFTER_API - 1, acked=600), "TX_RESET_PIPELINED")
    assert router.flow(ALICE) == before


def test_the_first_request_again_goes_nowhere(router: Router) -> None:
    before = moving(router)
    router.drops(ALICE.data(HEAD), "DROP_CHANGED")
    assert router.flow(ALICE) == before


def test_a_new_connection_of_the_clients_replaces_it(router: Router) -> None:
    moving(router)
    newer = ALICE.reopened(ALICE.isn + 5_000_000)
    router.greets(newer.syn())
    router.opens(newer.data(HEAD), "web")
    assert router.flow(ALICE) == entry(newer.data(HEAD), "web", router.backend_of("web", newer))


def too_big(about: int = 300) -> tuple[bytes, bytes]:
    """ "Fragmentation needed" about what a backend has sent, and the frame in which it comes."""
    ip = {"src": ALICE.server, "dst": ALICE.client, "flags": "DF"}
    tcp = {"sport": ALICE.server_port, "dport": ALICE.port, "seq": ALICE.cookie + 1 + about & 0xFFFFFFFF, "flags": "A"}
    error = icmp_error(ip_packet(ip, tcp, bytes(1400)), {"src": "198.18.77.7", "dst": ALICE.server}, mtu=1300)
    return error, ethernet(ROUTER_MAC, ROUTER_MAC, error)


def test_of_packets_that_are_too_big_the_one_that_answers_hears(router: Router) -> None:
    """Or its answer could never end, and the connection never move."""
    before = moving(router)
    error, frame = too_big()
    source = oracle.outer_source(ALICE.tuple, *router.outer)
    expected = ethernet(ROUTER_MAC, BACKENDS["web-1"].mac, outer_packet(error, BACKENDS["web-1"], source, ALICE.cookie))
    router.sends(frame, "FORWARDED_ICMP", expected)
    assert router.flow(ALICE) == before


def test_and_once_it_has_moved_the_other(router: Router) -> None:
    moved(router)
    error, frame = too_big()
    source = oracle.outer_source(ALICE.tuple, *router.outer)
    expected = outer_packet(error, BACKENDS["api-1"], source, ASKS.ack - 1)
    router.sends(frame, "FORWARDED_ICMP", ethernet(ROUTER_MAC, BACKENDS["api-1"].mac, expected))


# ---- what cannot be done --------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", ["web-1", "api-1"])
@pytest.mark.parametrize(
    ("prepare", "segment"),
    [(known, ASKS), (moving, ASKS), (moving, ALICE.later(HEAD, AFTER_API, acked=600)), (moved, ASKS)],
    ids=["order", "order again", "next request", "order after it has moved"],
)
def test_no_order_from_or_to_a_backend_that_is_gone(
    router: Router, gone: str, prepare: Callable[[Router], dict[str, int]], segment: Segment
) -> None:
    before = prepare(router)
    router.retire(gone)
    code, _ = router.run("rauta_ingress", segment, "DROP_NO_BACKEND")
    assert code == XDP_DROP
    assert router.flow(ALICE) == before


def test_what_goes_by_a_backend_that_is_gone_goes_nowhere(router: Router) -> None:
    moving(router)
    router.retire("web-1")
    router.drops(ALICE.ack(AFTER_API, acked=600), "DROP_NO_BACKEND")


@pytest.mark.parametrize("prepare", [known, moving])
def test_nothing_is_ordered_that_cannot_be_noted(router: Router, prepare: Callable[[Router], dict[str, int]]) -> None:
    before = prepare(router)
    lock(router, ALICE)
    code, _ = router.run("rauta_ingress", ASKS, "DROP_NO_ROOM")
    assert code == XDP_DROP
    assert router.flow(ALICE) == before


def test_a_notice_that_cannot_be_noted_is_lost(router: Router) -> None:
    before = moving(router)
    lock(router, ALICE)
    router.drops(says(notice(router)), "DROP_NO_ROOM")
    assert router.flow(ALICE) == before


# ---- it has moved ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("orders", [0, 3])
def test_the_old_backends_word_ends_it(router: Router, orders: int) -> None:
    moving(router, answer=orders)
    router.drops(says(notice(router)), "DROP_NOTICE")
    now = router.flow(ALICE)
    assert now == moved(router, answer=orders)


def test_it_says_which_transmission_of_the_request_it_was(router: Router) -> None:
    """The acknowledgement in that is the number before the new backend's first."""
    moving(router)
    segment = ALICE.later(API, AFTER_HEAD, acked=900)
    router.drops(says(notice(router, segment), segment), "DROP_NOTICE")
    assert router.flow(ALICE) == moved(router, cookie=segment.ack - 1, request_ack=segment.ack)


def test_what_packet_it_comes_with_does_not_matter(router: Router) -> None:
    """It may be in answer to the next request."""
    expected = moved(router)
    moving(router)
    router.drops(says(notice(router), ALICE.later(HEAD, AFTER_API, acked=600)), "DROP_NOTICE")
    assert router.flow(ALICE) == expected


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("late", [0, SHIM_LIFETIME - 2, 2 - SHIM_LIFETIME])
def test_it_is_good_for_a_minute_under_either_key(router: Router, epoch: int, late: int) -> None:
    moving(router)
    said = notice(router, flags=epoch, time=oracle.shim_time() - late)
    router.drops(says(said), "DROP_NOTICE")
    assert router.flow(ALICE) == moved(router)


def refuses(router: Router, frame: bytes, verdict: str = "DROP_NOTICE_FORGED") -> None:
    before = moving(router)
    router.drops(frame, verdict)
    assert router.flow(ALICE) == before


@pytest.mark.parametrize("late", [SHIM_LIFETIME + 2, -SHIM_LIFETIME - 2, 1 << 15])
def test_and_no_longer(router: Router, late: int) -> None:
    refuses(router, says(notice(router, time=oracle.shim_time() - late)))


@pytest.mark.parametrize("at", range(oracle.SHIM_SIZE))
def test_no_byte_of_it_may_be_changed(router: Router, at: int) -> None:
    frame = bytearray(says(notice(router)))
    frame[34 + at] ^= 0x04
    refuses(router, bytes(frame))


OUTER_SOURCE, OUTER_DESTINATION, INNER = 14 + 12, 14 + 16, 14 + 20 + oracle.SHIM_SIZE
BONDS = {
    "from another agent": OUTER_SOURCE + 3,
    "to another router": OUTER_DESTINATION + 3,
    "another client": INNER + 15,
    "another VIP": INNER + 19,
    "another port of the client": INNER + 21,
    "another port of the VIP": INNER + 23,
}


@pytest.mark.parametrize("at", BONDS.values(), ids=BONDS)
def test_it_is_one_agents_to_one_router_about_one_connection(router: Router, at: int) -> None:
    frame = bytearray(says(notice(router)))
    frame[at] ^= 0x04
    refuses(router, bytes(frame))


FORGED: dict[str, dict[str, Any]] = {
    "an order": {"kind": oracle.SHIM_MOVE},
    "an order to go on": {"kind": oracle.SHIM_ADOPT},
    "a question": {"kind": oracle.ASK_WHOSE},
    "another version": {"version": 2},
    "no version": {"version": 0},
}


@pytest.mark.parametrize("changes", FORGED.values(), ids=FORGED)
def test_other_words_are_no_notice(router: Router, changes: dict[str, Any]) -> None:
    refuses(router, says(notice(router, **changes)))


def test_nor_is_what_is_sealed_with_another_key(router: Router) -> None:
    said = notice(router)
    for keys in (oracle.COOKIE_KEYS, oracle.ASK_KEYS[::-1]):
        header = shimmed(ASKS.packet, said)[:20]
        refuses(router, ethernet(BACKEND_MAC, ROUTER_MAC, header + said.sealed(keys) + ASKS.packet))


NUMBERS = {
    "of the next request": {"first": ASKS.seq + 1},
    "of the request before": {"first": ALICE.start},
}


@pytest.mark.parametrize("numbers", NUMBERS.values(), ids=NUMBERS)
def test_about_another_request_it_says_nothing(router: Router, numbers: dict[str, int]) -> None:
    refuses(router, says(notice(router, seq=numbers["first"], **numbers)), "DROP_NOTICE")


@pytest.mark.parametrize("state", [FLOW_OPEN, FLOW_CLOSING, oracle.FLOW_RECOVERED, oracle.FLOW_ANSWERED])
def test_nor_when_nothing_moves(router: Router, state: int) -> None:
    """Also the same once more."""
    for before in (moved(router, state=state), moving(router, state=state)):
        router.put_flow(ALICE, **before)
        router.drops(says(notice(router)), "DROP_NOTICE")
        assert router.flow(ALICE) == before


def test_nor_of_an_unknown_connection(router: Router) -> None:
    router.drops(says(notice(router)), "DROP_NOTICE")
    assert router.flows() == 0


@pytest.mark.parametrize("length", [0, 24, 44, 63])
def test_what_is_cut_off_is_none(router: Router, length: int) -> None:
    refuses_nothing = says(notice(router))[: 34 + length]
    before = moving(router)
    router.passes(refuses_nothing, "PASS_NOT_TCP")
    assert router.flow(ALICE) == before


def test_what_is_for_another_host_is_the_kernels(router: Router) -> None:
    before = moving(router)
    router.passes(says(notice(router, destination="198.18.0.2")), "PASS_NOT_TCP")
    assert router.flow(ALICE) == before


# ---- afterwards -----------------------------------------------------------------------------------------

STRAIGHT: dict[str, tuple[Segment, str]] = {
    "acknowledgement": (ALICE.ack(AFTER_HEAD + len(API), acked=600), "FORWARDED"),
    "body": (ALICE.later(b"b" * 1400, AFTER_HEAD + len(API)), "FORWARDED"),
    "end of the body": (ALICE.later(b"b" * 1400, AFTER_API - 1400), "FORWARDED"),
    "the request again, when its answer has begun": (ALICE.later(API, AFTER_HEAD, acked=600), "FORWARDED_AGAIN"),
    "next request": (ALICE.later(request("/api"), AFTER_API, acked=600), "ROUTED_NEXT"),
    "reset": (ALICE.rst(AFTER_API), "FORWARDED_CLOSE"),
    "end": (ALICE.fin(AFTER_API), "FORWARDED_CLOSE"),
}


@pytest.mark.parametrize(("segment", "verdict"), STRAIGHT.values(), ids=STRAIGHT)
def test_everything_goes_straight_to_the_new_backend(router: Router, segment: Segment, verdict: str) -> None:
    moved(router)
    router.forwards(segment, verdict, "api-1", cookie=ASKS.ack - 1)


def test_but_the_request_again_goes_by_the_old_one(router: Router) -> None:
    """The new one may not have had it, and could not know it from a stray."""
    before = moved(router)
    for _ in range(MAX_ORDERS + 1):
        router.orders(ASKS, "FORWARDED_ORDER", "web-1", "api-1", cookie=ASKS.ack - 1)
    assert router.flow(ALICE) == before


def test_the_next_request_leaves_the_old_one_out(router: Router) -> None:
    moved(router)
    segment = ALICE.later(request("/api"), AFTER_API, acked=600)
    router.forwards(segment, "ROUTED_NEXT", "api-1", cookie=ASKS.ack - 1)
    flow = router.flow(ALICE)
    assert flow is not None
    assert flow["first"] == FIRST_NOT
    router.forwards(segment, "FORWARDED_AGAIN", "api-1", cookie=ASKS.ack - 1)


def test_one_that_acknowledges_nothing_of_the_answer_waits(router: Router) -> None:
    """Of the new backend's, that is."""
    before = moved(router)
    router.drops(ALICE.later(request("/api"), AFTER_API), "DROP_PIPELINED")
    assert router.flow(ALICE) == before


def test_the_connections_first_request_again_goes_nowhere(router: Router) -> None:
    """Its cookie is valid for ever."""
    before = moved(router)
    router.drops(ALICE.data(HEAD), "DROP_REPLAYED")
    assert router.flow(ALICE) == before


# ---- the old backend's host is down ---------------------------------------------------------------------


@pytest.mark.parametrize("segment", REQUESTS.values(), ids=REQUESTS)
def test_the_next_request_goes_on_without_it(router: Router, segment: Segment) -> None:
    """And a late duplicate of the connection's first request is still known for what it is."""
    known(router)
    router.take_down("web-1")
    router.adopts(segment, "ROUTED_MOVED", "api-1")
    numbers = {"isn": segment.seq - 1, "cookie": segment.ack - 1, "syn_isn": ALICE.isn, "syn_seen": SYN_MOVED}
    state = FLOW_CLOSING if "F" in segment.flags else FLOW_OPEN
    adopted = ordered_entry(segment, state=state) | numbers
    assert router.flow(ALICE) == adopted
    router.drops(ALICE.data(HEAD), "DROP_REPLAYED")
    assert router.flow(ALICE) == adopted


@pytest.mark.parametrize("acked", [300, 900])
def test_so_does_one_that_was_to_move(router: Router, acked: int) -> None:
    """It has not been executed, or where it goes now. From then on everything goes there: nobody will give notice."""
    moving(router)
    router.take_down("web-1")
    segment = ALICE.later(API, AFTER_HEAD, acked=acked)
    router.adopts(segment, "FORWARDED_ORDER", "api-1")
    assert router.flow(ALICE) == moved(router, cookie=segment.ack - 1, request_ack=segment.ack)
    body = ALICE.later(b"b" * 1400, AFTER_HEAD + len(API), acked=acked)
    router.forwards(body, "FORWARDED", "api-1", cookie=segment.ack - 1)
    router.adopts(segment, "FORWARDED_ORDER", "api-1", cookie=segment.ack - 1)


@pytest.mark.parametrize("payload", EARLY.values(), ids=EARLY)
def test_but_the_request_behind_that_does_not(router: Router, payload: bytes) -> None:
    """It has not been routed to where the other goes, and whether that has arrived only the old backend could say."""
    before = moving(router)
    router.take_down("web-1")
    router.resets(ALICE.later(payload, AFTER_API, acked=600), "TX_RESET_DOWN")
    assert router.flow(ALICE) == before


def test_nothing_else_of_a_move_goes_to_it(router: Router) -> None:
    before = moving(router)
    router.take_down("web-1")
    for segment in (*BEFORE.values(), *BEYOND.values()):
        router.drops(segment, "DROP_DOWN")
    assert router.flow(ALICE) == before


WAITING = {
    "the request again": ALICE.data(HEAD),
    "an acknowledgement of nothing new": ALICE.ack(AFTER_HEAD),
    "the client's end": ALICE.fin(AFTER_HEAD, ack=ASKS.ack),
}
OTHERS = {
    "an acknowledgement": ALICE.ack(AFTER_HEAD, acked=300),
    "a reset": ALICE.rst(AFTER_HEAD),
}


def test_who_waits_for_its_answer_is_told(router: Router) -> None:
    before = known(router)
    router.take_down("web-1")
    for segment in WAITING.values():
        router.resets(segment, "TX_RESET_DOWN")
    for segment in OTHERS.values():
        router.drops(segment, "DROP_DOWN")
    assert router.flow(ALICE) == before
