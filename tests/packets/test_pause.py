"""What takes the router's place while the flow table goes over: connections wait, and nothing else notices."""

from collections.abc import Iterator

import pytest

from packets.bench import XDP_DROP, XDP_PASS, Router, entry
from packets.frames import (
    BACKEND_MAC,
    CLIENT_MAC,
    ROUTER_MAC,
    VIP,
    Connection,
    Segment,
    ethernet,
    ordered,
    request,
)
from packets.test_icmp import answer, to_router, to_vip
from packets.test_orders import notice
from packets.test_vlan import tagged, tagged_so

ALICE = Connection()
HEAD = request("/")
OF_CONNECTIONS = {
    "a SYN": ALICE.syn(),
    "the handshake's last packet": ALICE.ack(),
    "a first request": ALICE.data(HEAD),
    "a later one": ALICE.later(HEAD, len(HEAD)),
    "an acknowledgement": ALICE.ack(len(HEAD), 500),
    "a reset": ALICE.rst(len(HEAD)),
    "a request with a forged cookie": ALICE.data(HEAD, acked=1),
}
OTHERS = {
    "no VIP": (ALICE.data(HEAD, ip={"dst": "198.18.100.99"}), "PASS_NOT_VIP"),
    "no TCP": (ALICE.data(HEAD, ip={"proto": 17}), "PASS_NOT_TCP"),
}


@pytest.fixture(scope="module")
def pausing() -> Iterator[Router]:
    loaded = Router(event_interval=0)
    with loaded.object:
        yield loaded


@pytest.mark.parametrize("segment", OF_CONNECTIONS.values(), ids=OF_CONNECTIONS)
def test_whatever_is_of_a_connection_comes_again(pausing: Router, segment: Segment) -> None:
    pausing.put_flow(ALICE, **entry(ALICE.data(HEAD), "web", "web-1"))
    before = pausing.object.maps["flows"].read_array()
    assert pausing.run("rauta_pause", segment, "DROP_PAUSED") == (XDP_DROP, bytes(segment))
    assert pausing.object.maps["flows"].read_array() == before


@pytest.mark.parametrize(("segment", "verdict"), OTHERS.values(), ids=OTHERS)
def test_everything_else_is_passed(pausing: Router, segment: Segment, verdict: str) -> None:
    assert pausing.run("rauta_pause", segment, verdict) == (XDP_PASS, bytes(segment))


def test_other_frames_too(pausing: Router) -> None:
    frame = ethernet(CLIENT_MAC, ROUTER_MAC, bytes(46), 0x0806)
    assert pausing.run("rauta_pause", frame, "PASS_NOT_IPV4") == (XDP_PASS, frame)


@tagged_so
def test_tags_change_nothing(pausing: Router, tags: bytes) -> None:
    segment, verdict = OTHERS["no VIP"]
    frame = tagged(bytes(segment), tags)
    assert pausing.run("rauta_pause", frame, verdict) == (XDP_PASS, frame)
    code, _ = pausing.run("rauta_pause", tagged(bytes(ALICE.data(HEAD)), tags), "DROP_PAUSED")
    assert code == XDP_DROP


def test_an_agents_notice_is_said_again(pausing: Router) -> None:
    segment = ALICE.later(HEAD, len(HEAD))
    frame = ordered(segment, notice(pausing, segment), BACKEND_MAC, ROUTER_MAC)
    assert pausing.run("rauta_pause", frame, "DROP_PAUSED") == (XDP_DROP, frame)


@pytest.mark.parametrize("destination", [VIP, "198.19.0.77"], ids=["to a VIP", "to where the router encapsulates from"])
def test_so_are_errors_of_a_network(pausing: Router, destination: str) -> None:
    frame = to_router(to_vip(answer()[:40], destination))
    before = pausing.counters()
    assert pausing.object.programs["rauta_pause"].test_run(frame).retval == XDP_DROP
    assert pausing.grown(before) == {"DROP_PAUSED": 1}
