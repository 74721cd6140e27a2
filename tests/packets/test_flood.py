"""Floods: 100,000 segments from anybody change nothing, cost nothing that stays, and are all counted.

They are live frames from the lab's replayer, whose numbers are drawn: the same in every run. The first tests are of the
replayer itself.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from lab.measure.replay import MODES, on_one_cpu
from lab.topology import INSTRUMENTS
from packets import oracle
from packets.allocations import counted
from packets.bench import Router, entry, throwaway_namespace
from packets.frames import CLIENT, ROUTER_MAC, VIP, Connection, Segment, request
from rauta.bpf import BpfObject, attach_xdp, xdp_context

MANY = 100_000
ANYBODY = IPv4Network("198.18.0.0/15")
PORTS = 61_440
HEAD = request("/")
NOBODY = Connection(client=str(ANYBODY.network_address))
"""the first of those that a flood comes from"""
SALT = 20_261_126

FLOODS: dict[str, tuple[Segment, str]] = {
    "SYNs": (NOBODY.syn(), "TX_SYN_ACK"),
    "SYNs with data": (NOBODY.syn(HEAD), "TX_SYN_ACK"),
    "bare acknowledgements": (NOBODY.ack(), "DROP_NO_FLOW"),
    "resets": (NOBODY.rst(), "DROP_NO_FLOW"),
    "ends": (NOBODY.fin(), "DROP_NO_FLOW"),
    "requests without a cookie": (NOBODY.data(HEAD), "TX_RESET_COOKIE"),
    "other data": (NOBODY.data(b"\x16\x03\x01" + bytes(300)), "DROP_NO_FLOW"),
    "SYN-ACKs": (NOBODY.data(b"", flags="SA"), "DROP_FLAGS"),
    "nothing in particular": (NOBODY.data(b"", flags=""), "DROP_FLAGS"),
}


@dataclass(frozen=True)
class Flooder:
    """The replayer, in front of the router's program, on an interface whose far end throws away what comes."""

    instruments: BpfObject
    interface: int

    def settings(self, segment: Segment, *, addresses: int, ports: int, salt: int = SALT) -> bytes:
        """Has the replayer send a segment, from so many addresses with so many ports each. Returns its frame."""
        frame = bytes(segment)
        value = {"mode": MODES["flood"], "length": len(frame), "salt": salt, "flows": addresses, "ports": ports}
        self.instruments.maps["replays"].update(0, value | {"frame": frame})
        return frame

    def send(
        self, segment: Segment, count: int = MANY, *, addresses: int = ANYBODY.num_addresses, ports: int = PORTS
    ) -> None:
        """Send that many."""
        frame = self.settings(segment, addresses=addresses, ports=ports)
        context = xdp_context(len(frame), ingress_ifindex=self.interface)
        with on_one_cpu():
            self.instruments.programs["replay"].run_live_frames(frame, ctx=context, repeat=count)
        made = self.instruments.maps["replays"].lookup(0)
        assert (made["position"], made["failed"]) == (count, 0)


@pytest.fixture(scope="module")
def cable() -> Iterator[int]:
    """The near end of a cable, in a namespace that the thread is in."""
    with throwaway_namespace():
        argv = ["ip", "link", "add", "near", "type", "veth", "peer", "name", "far"]
        subprocess.run(argv, check=True)
        for name in ("near", "far"):
            subprocess.run(["ip", "link", "set", name, "up"], check=True)
        yield socket.if_nametoindex("near")


@pytest.fixture(scope="module")
def instruments(cable: int) -> Iterator[BpfObject]:
    with BpfObject.open(INSTRUMENTS) as loaded:
        loaded.load()
        attach_xdp(socket.if_nametoindex("far"), loaded.programs["xdp_drop"], mode="native")
        yield loaded


@pytest.fixture
def flooder(cable: int, instruments: BpfObject, router: Router) -> Flooder:
    instruments.maps["under_test"].update(0, router.object.programs["rauta_ingress"])
    return Flooder(instruments, cable)


# ---- the replayer ---------------------------------------------------------------------------------------


def made(flooder: Flooder, segment: Segment, count: int, **settings: Any) -> list[Any]:
    """The frames that the replayer makes of a segment, one after the other."""
    frame = flooder.settings(segment, **settings)
    flooder.instruments.maps["under_test"].update(0, flooder.instruments.programs["xdp_tx"])
    return [Ether(flooder.instruments.programs["replay"].test_run(frame).data) for _ in range(count)]


def test_each_frame_of_a_flood_is_from_somebody_else_and_as_good_as_any(flooder: Flooder) -> None:
    frames = made(flooder, NOBODY.data(HEAD), 500, addresses=ANYBODY.num_addresses, ports=PORTS)
    assert all(IPv4Address(frame[IP].src) in ANYBODY for frame in frames)
    assert all(2048 <= frame[TCP].sport < 2048 + PORTS for frame in frames)
    assert len({frame[IP].src for frame in frames}) > 450
    for drawn in ("sport", "seq", "ack"):
        assert len({frame[TCP].getfieldval(drawn) for frame in frames}) > 450
    for frame in frames:
        assert bytes(frame[TCP].payload) == HEAD
        again = Ether(bytes(frame))
        del again[IP].chksum, again[TCP].chksum
        assert bytes(again) == bytes(frame), "checksums are right"


def test_a_flood_of_one_tuple_keeps_its_address_and_port(flooder: Flooder) -> None:
    frames = made(flooder, Connection().rst(), 100, addresses=1, ports=0)
    assert {(frame[IP].src, frame[TCP].sport) for frame in frames} == {(CLIENT, Connection().port)}
    assert len({frame[TCP].seq for frame in frames}) == 100


def test_what_acknowledges_nothing_still_does_not(flooder: Flooder) -> None:
    assert {frame[TCP].ack for frame in made(flooder, NOBODY.syn(), 50, addresses=7, ports=7)} == {0}


def test_a_flood_is_the_same_again_and_another_with_another_salt(flooder: Flooder) -> None:
    once, again, other = (
        [bytes(frame) for frame in made(flooder, NOBODY.syn(), 20, addresses=1000, ports=PORTS, salt=salt)]
        for salt in (1, 1, 2)
    )
    assert once == again
    assert not set(once) & set(other)


# ---- from anybody ---------------------------------------------------------------------------------------


def fill(router: Router) -> list[Connection]:
    """Some connections in the table, each in one of the states that an entry can have."""
    states = (oracle.FLOW_OPEN, oracle.FLOW_CLOSING, oracle.FLOW_ANSWERED, oracle.FLOW_FALLBACK)
    connections = [Connection(port=port) for port in range(40000, 40040)]
    for number, connection in enumerate(connections):
        state = states[number % len(states)]
        router.put_flow(connection, **entry(connection.data(HEAD), "web", "web-1", state=state))
    return connections


@pytest.mark.parametrize(("segment", "verdict"), FLOODS.values(), ids=FLOODS)
def test_the_flow_table_is_untouched_and_all_are_counted(
    router: Router, flooder: Flooder, segment: Segment, verdict: str
) -> None:
    fill(router)
    before, counters = router.object.maps["flows"].dump(), router.counters()
    flooder.send(segment)
    assert router.object.maps["flows"].dump() == before
    assert router.grown(counters) == {verdict: MANY}


@pytest.mark.parametrize(("segment", "verdict"), FLOODS.values(), ids=FLOODS)
def test_nothing_is_allocated_for_a_segment(
    router: Router, flooder: Flooder, tmp_path_factory: pytest.TempPathFactory, segment: Segment, verdict: str
) -> None:
    """A run takes pages and objects for itself, the same however long it is."""
    with counted(tracefs(tmp_path_factory)) as allocations:
        taken = []
        for count in (MANY // 50, MANY):
            before = allocations.count()
            flooder.send(segment, count)
            taken.append(allocations.count() - before)
    assert taken[0] > 0, "a run's own are seen"
    assert taken[1] - taken[0] < MANY // 100, taken


def test_what_is_allocated_for_each_frame_is_seen(flooder: Flooder, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Those that are passed up, to a kernel which has the address, and answers."""
    flooder.instruments.maps["under_test"].update(0, flooder.instruments.programs["xdp_pass"])
    for argv in (f"ip link set near address {ROUTER_MAC}", f"ip address add {VIP}/15 dev near"):
        subprocess.run(argv.split(), check=True)
    with counted(tracefs(tmp_path_factory)) as allocations:
        flooder.send(NOBODY.syn(), MANY // 50)
        assert allocations.count() >= MANY // 50


def tracefs(factory: pytest.TempPathFactory) -> Path:
    """A folder for it, the same for all."""
    folder = factory.getbasetemp() / "tracefs"
    folder.mkdir(exist_ok=True)
    return folder


# ---- in somebody else's name ----------------------------------------------------------------------------

ALICE = Connection()
SPOOFED: dict[str, tuple[Segment, set[str], set[str]]] = {
    "SYNs": (ALICE.syn(), {"TX_SYN_ACK"}, {"syn_isn", "syn_seen"}),
    "acknowledgements": (ALICE.ack(), {"FORWARDED"}, set()),
    "resets": (ALICE.rst(), {"FORWARDED_CLOSE"}, set()),
    "ends": (ALICE.fin(), {"FORWARDED_CLOSE"}, set()),
    "requests": (ALICE.data(HEAD), {"DROP_CHANGED", "DROP_OUT_OF_ORDER"}, set()),
    "other data": (ALICE.data(bytes(300)), {"DROP_CHANGED", "DROP_OUT_OF_ORDER"}, set()),
}


@pytest.mark.parametrize(("segment", "verdicts", "noted"), SPOOFED.values(), ids=SPOOFED)
def test_spoofed_segments_without_the_right_numbers_change_nothing_about_a_connection(
    router: Router, flooder: Flooder, segment: Segment, verdicts: set[str], noted: set[str]
) -> None:
    """On the very tuple of a connection that has its entry. A SYN is noted, and what comes of that is nothing, either:
    the connection goes on, test_port_reuse.py shows how.
    """
    router.put_flow(ALICE, **entry(ALICE.data(HEAD), "web", "web-1"))
    before, counters = router.flow(ALICE), router.counters()
    flooder.send(segment, addresses=1, ports=0)
    after, grown = router.flow(ALICE), router.grown(counters)
    assert before is not None
    assert after is not None
    assert {name for name, value in after.items() if value != before[name]} == noted
    assert grown.keys() == verdicts
    assert sum(grown.values()) == MANY
    router.forwards(ALICE.ack(len(HEAD)), "FORWARDED", "web-1")
    router.forwards(ALICE.later(HEAD, len(HEAD)), "ROUTED_NEXT", "web-1")
