"""What the agent counts by route: requests as they come, answers as they leave, and how long the first byte took.

The sockets are real, as in test_follow.py, and the agent sits on the loopback. Times are set into the past, so that no
test measures any.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from packets import oracle
from packets.bench import TC_ACT_SHOT, TC_PASSES, Agent, throwaway_namespace
from packets.conftest import ROUTERS, ROUTERS_MASK
from packets.frames import (
    BACKEND_MAC,
    CLIENT,
    LOCAL,
    LOCAL_PORT,
    ROUTER_MAC,
    VIP,
    VIP_PORT,
    Connection,
    Segment,
    carried_packet,
    clearing,
    delivered,
    ordered,
    request,
)
from packets.oracle import MAPPING_OPENING, OUTER_ID_REQUEST, Tuple, label
from packets.sockets import SO_TCP, TCP_REPAIR, listening
from packets.test_agent_asks import established
from packets.test_agent_moves import adoption, state_of
from packets.test_follow import EMPTY, GO_ON, HELLO, NEXT, answer, arrives, grows, serving, talking
from rauta.agent import Agent as Loaded
from rauta.agent import AgentRoute
from rauta.bpf import BpfObject, attach_tc, skb_context
from rauta.config import Config
from rauta.ids import route_name
from rauta.keys import Keys
from rauta.latency import FIRST_BYTE_BOUNDS

ALICE = Connection()
LOCAL_TUPLE = Tuple(CLIENT, ALICE.port, LOCAL, LOCAL_PORT)
HEAD = request("/")
FIRST = ALICE.data(HEAD)
ROUTES = 3
MINE, UNKNOWN = 1, None
"""the number of the route that these tests are about, and that of none"""
SECOND = 1_000_000_000
COUNTED = Config.model_validate(
    {
        "version": 1,
        "encapsulation": {"source": "198.19.0.0/24"},
        "vips": [
            {
                "name": "shop",
                "address": VIP,
                "port": VIP_PORT,
                "routes": [{"prefix": f"/{number}", "cluster": "web"} for number in range(ROUTES)],
            }
        ],
        "clusters": [{"name": "web", "backends": [{"name": "web-1", "address": LOCAL, "port": LOCAL_PORT}]}],
    }
)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def loaded() -> Iterator[Agent]:
    with throwaway_namespace():
        for command in (f"address add {LOCAL}/32 dev lo", "link set lo up", f"route add {CLIENT}/32 dev lo"):
            subprocess.run(["ip", *command.split()], check=True)
        agent = Agent(ROUTERS, ROUTERS_MASK, {(VIP, VIP_PORT): (LOCAL, LOCAL_PORT)}, routes=ROUTES)
        lo, programs = socket.if_nametoindex("lo"), agent.object.programs
        with (
            agent.object,
            attach_tc(lo, programs["rauta_agent_egress"], "egress"),
            attach_tc(lo, programs["rauta_agent_ingress"], "ingress"),
        ):
            yield agent


@pytest.fixture
def live(loaded: Agent) -> Agent:
    """An agent on the loopback that knows a few routes."""
    loaded.reset()
    loaded.forget_figures(ROUTES)
    return loaded


@pytest.fixture
def wire(live: Agent) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as sock:
        sock.bind(("lo", 3))
        sock.settimeout(0.05)
        yield sock


@dataclass(frozen=True)
class Figures:
    """What there is of one route: requests, answers by status, times by bucket; all zeros left out."""

    requests: int = 0
    statuses: tuple[tuple[str, int], ...] = ()
    times: tuple[tuple[int, int], ...] = ()


def figures(agent: Agent) -> dict[int | None, Figures]:
    """By the number of the route, as users get it; those without anything left out."""
    reader = Loaded(agent.object, COUNTED, lambda _: [], Keys.generate(), "web-1")
    (vip,) = COUNTED.vips
    reader.tags = {route_name(vip, route): 1 + number for number, route in enumerate(vip.routes)}
    told = reader.requests_by_route()
    assert [one.route for one in told] == [*vip.routes, None]
    assert [one.vip for one in told] == ["shop"] * ROUTES + [""]
    found = {number if one.route else UNKNOWN: plain(one) for number, one in enumerate(told)}
    return {number: one for number, one in found.items() if one != Figures()}


def plain(one: AgentRoute) -> Figures:
    assert one.ttfb.bounds == FIRST_BYTE_BOUNDS
    statuses = tuple((name, count) for name, count in one.statuses.items() if count)
    return Figures(one.requests, statuses, tuple((n, count) for n, count in enumerate(one.ttfb.counts) if count))


def labelled(
    segment: Segment = NEXT, route: int = MINE, hint: int = OUTER_ID_REQUEST, said: bytes | None = None, **outer: Any
) -> bytes:
    """As it comes from a router that labels."""
    packet = (label(route) if said is None else said) + segment.packet
    cookie = segment.connection.cookie
    identification = oracle.outer_id(cookie, opens=False) | hint
    return carried_packet(packet, cookie, **{"proto": oracle.SHIM_PROTOCOL, "id": identification} | outer)


def first(route: int = MINE, segment: Segment = FIRST, **outer: Any) -> bytes:
    """The same of a first request."""
    return labelled(segment, route, id=oracle.outer_id(ALICE.cookie, opens=True, age=40), **outer)


# ---- requests -------------------------------------------------------------------------------------------


def test_a_first_request_is_counted_once(live: Agent, wire: socket.socket) -> None:
    """However often it comes; and keeps the time of the first."""
    with listening() as listener:
        before = live.counters()
        arrives(wire, first())
        accepted, _ = listener.accept()
        with accepted:
            opened = live.mapping(LOCAL_TUPLE)
            assert opened is not None
            assert (opened["route"], 0 < opened["asked_at"] <= time.monotonic_ns()) == (MINE + 1, True)
            for _ in range(2):
                arrives(wire, first(route=2))
            grown = grows(live, before, "AGENT_OPENED_ALREADY")
            assert live.mapping(LOCAL_TUPLE) == opened
            assert accepted.recv(9999) == HEAD
            accepted.setsockopt(SO_TCP, TCP_REPAIR, 1)
    assert grown["AGENT_OPENED"] == 1
    assert figures(live) == {MINE: Figures(requests=1)}


def test_one_that_the_server_had_no_room_for_keeps_its_time(live: Agent) -> None:
    """Nobody listens here, which is the same: the mapping is there, and the request comes again."""
    live.put_mapping(LOCAL_TUPLE, ALICE, MAPPING_OPENING, asked_at=77, route=MINE + 1)
    live.passes("ingress", first(route=2), "AGENT_NO_LISTENER", delivered(FIRST))
    mapping = live.mapping(LOCAL_TUPLE)
    assert mapping is not None
    assert (mapping["asked_at"], mapping["route"]) == (77, MINE + 1)
    assert figures(live) == {}


def test_another_connections_first_request_is_another(live: Agent) -> None:
    live.put_mapping(LOCAL_TUPLE, ALICE.reopened(ALICE.isn - 9), asked_at=77, route=3)
    live.passes("ingress", first(), "AGENT_NO_LISTENER", delivered(FIRST))
    assert figures(live) == {MINE: Figures(requests=1)}


def test_it_is_one_while_an_old_socket_is_cleared(live: Agent) -> None:
    """And when it has gone round."""
    live.put_mapping(LOCAL_TUPLE, ALICE, isn=0)
    with established(received=0x2233_4455):
        before = live.counters()
        assert fate(live, first()) == clearing(FIRST, 0x2233_4455)
        grown = grows(live, before, "AGENT_DROP_ATTEMPTS")  # this one stays, as it is under repair
    assert grown["AGENT_CLEARING"] == oracle.MAX_ATTEMPTS
    mark = oracle.MARK_MAGIC | oracle.MARK_OPENS | 1
    live.passes("ingress", delivered(FIRST), "AGENT_NO_LISTENER", delivered(FIRST), mark=mark)
    assert figures(live) == {MINE: Figures(requests=1)}


def test_a_later_request_is_counted_once(live: Agent) -> None:
    with serving(live) as sock:
        for route in (MINE, 2, 2):
            live.passes("ingress", labelled(route=route), "AGENT_DELIVERED", delivered(NEXT))
        state = state_of(live, sock)
    assert (state["route"], 0 < state["asked_at"] <= time.monotonic_ns()) == (MINE + 1, True)
    assert figures(live) == {MINE: Figures(requests=1)}


def test_without_a_label_its_route_is_not_known(live: Agent) -> None:
    """Whatever the one before said, or the kernel has left where the agent keeps it meanwhile."""
    with serving(live, route=MINE + 1) as sock:
        frame = carried_packet(NEXT.packet, ALICE.cookie, id=oracle.outer_id(ALICE.cookie, opens=False) | 2)
        live.passes("ingress", frame, "AGENT_DELIVERED", delivered(NEXT))
        assert state_of(live, sock)["route"] == 0
    opening = carried_packet(FIRST.packet, ALICE.cookie, opens=True)
    live.object.programs["rauta_agent_ingress"].test_run(opening, ctx=skb_context(cb=[MINE + 1] * 5))
    mapping = live.mapping(LOCAL_TUPLE)
    assert mapping is not None
    assert mapping["route"] == 0
    live.passes("ingress", opening, "AGENT_NO_LISTENER", delivered(FIRST))
    assert figures(live) == {UNKNOWN: Figures(requests=2)}


@pytest.mark.parametrize("route", [ROUTES, ROUTES + 1, 4_194_303, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFE, 0xFFFF_FFFF])
def test_a_route_that_there_is_not_is_not_known(live: Agent, route: int) -> None:
    """Of another configuration's router, or nobody's."""
    with serving(live):
        live.passes("ingress", labelled(route=route), "AGENT_DELIVERED", delivered(NEXT))
    assert figures(live) == {UNKNOWN: Figures(requests=1)}


def test_the_last_route_is_known(live: Agent) -> None:
    with serving(live):
        live.passes("ingress", labelled(route=ROUTES - 1), "AGENT_DELIVERED", delivered(NEXT))
    assert figures(live) == {ROUTES - 1: Figures(requests=1)}


def test_what_has_overtaken_something_is_counted_when_it_comes_again(live: Agent) -> None:
    with serving(live, received=NEXT.seq - 1):
        live.drops("ingress", labelled(), "AGENT_DROP_EARLY")
    assert figures(live) == {}


def test_a_label_makes_no_request_of_anything(live: Agent) -> None:
    with serving(live):
        live.passes("ingress", labelled(hint=0), "AGENT_DELIVERED", delivered(NEXT))
    assert figures(live) == {}


def test_requests_of_a_pinned_connection_are_counted(live: Agent) -> None:
    """Their answers are not."""
    with serving(live, pinned=1, asked=1, answered=1) as sock:
        for _ in range(2):
            live.passes("ingress", labelled(), "AGENT_DELIVERED", delivered(NEXT))
        assert state_of(live, sock)["asked"] == 1
    assert figures(live) == {MINE: Figures(requests=1)}


@pytest.mark.parametrize(
    ("said", "route"), [(0, UNKNOWN), (1, 0), (MINE + 1, MINE), (ROUTES + 1, UNKNOWN), (0xFFFF, UNKNOWN)]
)
def test_a_request_that_moved_here_is_counted(live: Agent, said: int, route: int | None) -> None:
    """By the outer identification of the order; once."""
    segment = ALICE.later(request("/api"), len(HEAD))
    frame = ordered(segment, adoption(segment), ROUTER_MAC, BACKEND_MAC, said)
    for _ in range(2):
        live.passes("ingress", frame, "AGENT_NO_LISTENER", delivered(segment))
        live.object.maps["consumed"].clear()
    assert figures(live) == {route: Figures(requests=1)}


# ---- labels that nobody may believe ---------------------------------------------------------------------


def fate(agent: Agent, frame: bytes) -> bytes | None:
    """What the server gets of it; None if nothing."""
    done = agent.object.programs["rauta_agent_ingress"].test_run(frame)
    assert done.retval in (*TC_PASSES, TC_ACT_SHOT)
    return None if done.retval == TC_ACT_SHOT else done.data


def test_only_a_label_is_one(live: Agent) -> None:
    """Of all versions and kinds; the others are no orders either."""
    with serving(live):
        for version in range(256):
            for kind in (*range(0, 256, 5), *range(14, 25)):
                got = fate(live, labelled(said=label(MINE, version, kind)))
                is_one = (version, kind) == (oracle.SHIM_VERSION, oracle.SHIM_LABEL)
                assert got == (delivered(NEXT) if is_one else None), (version, kind)
    assert figures(live) == {MINE: Figures(requests=1)}


def test_reserved_bytes_are_not_looked_at(live: Agent) -> None:
    with serving(live):
        said = bytes([1, 19, 0xFF, 0xFF]) + MINE.to_bytes(4, "little")
        live.passes("ingress", labelled(said=said), "AGENT_DELIVERED", delivered(NEXT))


def test_a_label_comes_from_routers_only(live: Agent) -> None:
    with serving(live):
        live.drops("ingress", labelled(src="198.19.1.77"), "AGENT_DROP_SOURCE")
        live.drops("ingress", labelled(src=CLIENT), "AGENT_DROP_SOURCE")
    assert figures(live) == {}


def test_nothing_that_is_cut_off_is_read(live: Agent) -> None:
    """At every byte, up to the inner TCP header's end."""
    whole = labelled()
    with serving(live):
        for length in range(14 + 20, 14 + 20 + 8 + 40):
            assert fate(live, whole[:length]) in (None, whole[:length])
    assert figures(live) == {}


@pytest.mark.parametrize("outer", [{"ihl": 6}, {"ihl": 4}, {"ihl": 15}, {"flags": "MF"}, {"frag": 1}], ids=str)
def test_outer_headers_that_no_router_writes_are_dropped(live: Agent, outer: dict[str, Any]) -> None:
    with serving(live):
        assert fate(live, labelled(**outer)) is None
    assert figures(live) == {}


def test_behind_a_label_comes_no_other(live: Agent) -> None:
    with serving(live):
        live.drops("ingress", labelled(said=label(MINE) * 2), "AGENT_DROP_MALFORMED")
        live.drops("ingress", labelled(said=label(MINE)[:4]), "AGENT_DROP_MALFORMED")


def test_a_label_proves_nothing(live: Agent) -> None:
    """Whose packet it is, and whether it may open a connection, is as it is without."""
    elsewhere = Connection(server="198.18.100.99").data(HEAD)
    live.drops("ingress", labelled(elsewhere), "AGENT_DROP_NOT_SERVED")
    live.drops("ingress", first(dst="198.18.0.99"), "AGENT_DROP_NOT_SERVED")
    forged = ALICE.data(HEAD, ack=FIRST.ack ^ 1 << 20)
    live.drops("ingress", first(segment=forged), "AGENT_DROP_COOKIE")
    live.drops("ingress", labelled(), "AGENT_DROP_UNOPENED")
    assert figures(live) == {}


# ---- answers --------------------------------------------------------------------------------------------


@contextmanager
def asked(agent: Agent, ago: float, **fields: int) -> Iterator[socket.socket]:
    """The server's socket; its request came so many seconds ago."""
    at = time.monotonic_ns() - int(ago * SECOND)
    with talking(agent, **{"asked_at": at, "route": MINE + 1} | fields) as sock:
        yield sock


def said(agent: Agent, pieces: Sequence[bytes], **fields: int) -> dict[int | None, Figures]:
    """What is counted once the server has sent these, each by itself, five seconds after the request."""
    with asked(agent, 5, **fields) as sock:
        for piece in pieces:
            sock.send(piece)
        assert state_of(agent, sock)["asked_at"] == 0
    return figures(agent)


FIVE = ((oracle.first_byte_bucket(5 * SECOND), 1),)
CHUNKS = answer("Transfer-Encoding: chunked")

ANSWERS: dict[str, tuple[list[bytes], dict[str, int]]] = {
    "200": ([HELLO], {"2xx": 1}),
    "in pieces": ([HELLO[:-13], HELLO[-13:-5], HELLO[-5:]], {"2xx": 1}),
    "204": ([answer(status="204 No Content")], {"2xx": 1}),
    "304": ([answer(status="304 Not Modified")], {"3xx": 1}),
    "404": ([answer("Content-Length: 3", status="404 Not Found", body=b"abc")], {"4xx": 1}),
    "500": ([answer("Content-Length: 0", status="500 Internal Server Error")], {"5xx": 1}),
    "another protocol": ([answer("Upgrade: x", status="101 Switching Protocols")], {"1xx": 1}),
    "go on first": ([GO_ON, HELLO], {"1xx": 1, "2xx": 1}),
    "go on with it": ([GO_ON * 2 + HELLO], {"1xx": 2, "2xx": 1}),
    "go on with chunks": ([GO_ON + CHUNKS, b"0\r\n\r\n"], {"1xx": 1, "2xx": 1}),
    "chunks": ([CHUNKS, b"5\r\nHello\r\n", b"0\r\n\r\n"], {"2xx": 1}),
    "until the end": ([answer(status="404 Not Found", body=b"abc"), b"def"], {"4xx": 1}),
    "HTTP/1.0": ([answer("Content-Length: 3", status="503 Later", body=b"abc", version="HTTP/1.0")], {"5xx": 1}),
    "a head in two pieces": ([HELLO[:20], HELLO[20:]], {"2xx": 1}),
    "its status just so": ([HELLO[:10], HELLO[10:]], {"2xx": 1}),
    "and not": ([HELLO[:9], HELLO[9:]], {"unread": 1}),
    "a byte": ([HELLO[:1], HELLO[1:]], {"unread": 1}),
    "6xx": ([answer("Content-Length: 0", status="600 What")], {"unread": 1}),
    "0xx": ([answer("Content-Length: 0", status="099 What")], {"unread": 1}),
    "another version": ([answer(version="HTTP/2.0")], {"unread": 1}),
    "no HTTP": ([b"SSH-2.0-OpenSSH_9.9\r\n"], {"unread": 1}),
    "two answers": ([HELLO, HELLO], {"2xx": 1}),
}


@pytest.mark.parametrize(("pieces", "statuses"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_is_counted_where_it_begins(live: Agent, pieces: list[bytes], statuses: dict[str, int]) -> None:
    """Once, and its time as well; whether its end can be told or not. What follows one without an end is not read."""
    assert said(live, pieces) == {MINE: Figures(0, tuple(statuses.items()), FIVE)}


def test_an_interim_answer_is_not_what_was_waited_for(live: Agent) -> None:
    with asked(live, 5) as sock:
        sock.send(GO_ON)
        assert state_of(live, sock)["asked_at"] != 0
    assert figures(live) == {MINE: Figures(0, (("1xx", 1),))}


@pytest.mark.parametrize("ago", [2.5, 5.0, 10.0, 20.0, 40.0, 70.0, 1000.0])
def test_the_time_is_that_since_the_request(live: Agent, ago: float) -> None:
    """None of these is near the end of its bucket; from 33.6 s on there is only one."""
    with asked(live, ago) as sock:
        sock.send(HELLO)
    (counted,) = figures(live).values()
    ((bucket, times),) = counted.times
    assert times == 1
    assert bucket == oracle.first_byte_bucket(int(ago * SECOND))
    total = sum(cpu["sum"] for cpu in live.object.maps["figures"].lookup(MINE + 1))
    assert ago * SECOND <= total < (ago + 1) * SECOND


def test_an_answer_without_a_time_is_counted_all_the_same(live: Agent) -> None:
    """The agent has not seen the request come."""
    with talking(live, route=MINE + 1) as sock:
        sock.send(HELLO)
    assert figures(live) == {MINE: Figures(0, (("2xx", 1),))}


@pytest.mark.parametrize("route", [0, ROUTES + 1, 0xFFFF_FFFF])
def test_an_answers_route_may_be_unknown(live: Agent, route: int) -> None:
    assert said(live, [HELLO], route=route) == {UNKNOWN: Figures(0, (("2xx", 1),), FIVE)}


def test_what_nobody_asked_for_is_no_answer(live: Agent) -> None:
    with talking(live, route=MINE + 1, asked=7, answered=7) as sock:
        sock.send(answer("Content-Length: 0", "Connection: close", status="408 Request Timeout"))
    assert figures(live) == {}


def test_a_head_requests_answer_is_one(live: Agent) -> None:
    assert said(live, [HELLO[:-13]], heads=1) == {MINE: Figures(0, (("2xx", 1),), FIVE)}


def test_what_the_kernel_sends_again_counts_once(live: Agent, wire: socket.socket) -> None:
    with asked(live, 5) as sock:
        sock.send(EMPTY)
        deadline, times = time.monotonic() + 5, 0
        while times < 2 and time.monotonic() < deadline:
            try:
                times += wire.recvfrom(65535)[1][2] == socket.PACKET_OUTGOING
            except TimeoutError:
                continue
        assert times == 2
    assert figures(live) == {MINE: Figures(0, (("2xx", 1),), FIVE)}


def test_a_connections_requests_and_answers_from_the_first_on(live: Agent, wire: socket.socket) -> None:
    """Two routes on one connection; nothing is set from outside."""
    with listening() as listener:
        arrives(wire, first())
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.recv(9999) == HEAD
            accepted.send(HELLO)
            arrives(wire, labelled(ALICE.data(HEAD, len(HEAD), len(HELLO)), route=2))
            assert accepted.recv(9999) == HEAD
            accepted.send(answer("Content-Length: 0", status="404 Not Found"))
            accepted.setsockopt(SO_TCP, TCP_REPAIR, 1)
    counted = figures(live)
    assert {number: (one.requests, one.statuses, sum(n for _, n in one.times)) for number, one in counted.items()} == {
        MINE: (1, (("2xx", 1),), 1),
        2: (1, (("4xx", 1),), 1),
    }


# ---- buckets --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def figuring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BpfObject]:
    clang = shutil.which("clang-19") or pytest.skip("needs clang-19")
    target = tmp_path_factory.mktemp("objects") / "figuring.bpf.o"
    source = Path(__file__).parent / "bpf/figuring.bpf.c"
    headers = (f"-I/usr/include/{sysconfig.get_config_var('MULTIARCH')}", f"-I{ROOT / 'bpf'}")
    flags = ("-O2", "-g", "-Wall", "-Werror", "-Wno-unused-function", "-target", "bpf", "-mcpu=v3")
    subprocess.run([clang, *flags, *headers, "-c", source, "-o", target], check=True)
    with BpfObject.open(target) as obj:
        obj.load()
        yield obj


def test_each_bucket_is_twice_the_one_before(figuring: BpfObject) -> None:
    """At both sides of every bound, and beyond the last."""
    bounds = [oracle.FIRST_BYTE_UNIT << shift for shift in range(40)]
    for ns in sorted({0, 1, (1 << 64) - 1} | {ns for bound in bounds for ns in (bound - 1, bound)}):
        bucket = figuring.programs["bucket"].test_run(ns.to_bytes(8, "little") + bytes(6)).retval
        assert bucket == oracle.first_byte_bucket(ns), ns
        if bucket < oracle.FIRST_BYTE_BUCKETS - 1:
            assert ns * 1e-9 < FIRST_BYTE_BOUNDS[bucket] * (1 + 1e-12)
