"""Traces at the agent: the request that arrives, the first byte of its answer that leaves, and what is told of both.

Sockets are real, frames are not on any wire. What a listener makes of a first request is tested end to end: a test run
can make no socket.
"""

from __future__ import annotations

import itertools
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from typing import Any

import pytest

from packets import oracle
from packets.bench import throwaway_namespace
from packets.frames import CLIENT, LOCAL, LOCAL_PORT, VIP, VIP_PORT, Connection, Segment, carried, request
from packets.observed import KEYS, configuration, loaded, run
from packets.oracle import OUTER_ID_REQUEST, Tuple
from packets.test_agent_asks import carry, established
from packets.test_agent_egress import Response
from packets.test_follow import EMPTY, GO_ON, HELLO, answer
from packets.test_traces import SPAN, TRACE
from rauta.agent import Agent
from rauta.errors import RautaError
from rauta.observation import Observation
from rauta.tracing.traces import TraceCounts, TraceReader

ALICE = Connection()
LOCAL_TUPLE = Tuple(CLIENT, ALICE.port, LOCAL, LOCAL_PORT)
HEAD = request("/")
NEXT = ALICE.later(HEAD, len(HEAD))
"""a later request, which acknowledges 300 bytes of the answer before it"""
KEY = int.from_bytes(KEYS.trace_secret[:8], "little")
MANY = 1_000_000
ONE_IN = 4
RESTING = {"request": ALICE.start, "sent": NEXT.ack, "asked": 1, "answered": 1, "origin": ALICE.cookie}


@contextmanager
def agent_in_its_namespace(**settings: int) -> Iterator[Agent]:
    """The agent of `web-1`, as its users load it, where the server's address is, and the client's."""
    with throwaway_namespace():
        for command in (f"address add {LOCAL}/32 dev lo", f"address add {CLIENT}/32 dev lo", "link set lo up"):
            subprocess.run(["ip", *command.split()], check=True)
        with Agent.load(configuration(), KEYS, "web-1", **settings) as agent:
            yield agent


@pytest.fixture(scope="module")
def loaded_agent() -> Iterator[Agent]:
    """An agent that traces everything."""
    with agent_in_its_namespace(traces_one_in=1, traces_rate=MANY) as agent:
        yield agent


@pytest.fixture
def agent(loaded_agent: Agent) -> Agent:
    for name in ("mappings", "under_way"):
        loaded_agent.object.maps[name].clear()
    return loaded_agent


@pytest.fixture
def reader(agent: Agent) -> Iterator[TraceReader]:
    """Of the agent's traces, of which there are none yet."""
    with TraceReader(agent) as reader:
        assert reader.poll(0) == []
        yield reader


@contextmanager
def resting(agent: Agent, *, received: int = NEXT.seq, **fields: int) -> Iterator[socket.socket]:
    """A connection's socket that waits for a request; `fields` of its mapping are to differ."""
    with established(received=received, sent=NEXT.ack) as sock:
        carry(agent, sock, **RESTING | fields)  # type: ignore[arg-type]
        mapping = {"vip": oracle.be32(VIP), "vip_port": oracle.be16(VIP_PORT), "state": oracle.MAPPING_OPEN}
        mapping |= {"isn": ALICE.isn, "cookie": ALICE.cookie} | RESTING | fields
        agent.object.maps["mappings"].update(LOCAL_TUPLE.key, mapping)
        yield sock


def comes(agent: Agent, segment: Segment = NEXT, *, starts: bool = True) -> None:
    """As the router sends it: a request `starts` in it, or none does."""
    said = oracle.outer_id(segment.connection.cookie, opens=False) | (OUTER_ID_REQUEST if starts else 0)
    agent.object.programs["rauta_agent_ingress"].test_run(carried(segment, id=said))


def leaves(agent: Agent, payload: bytes, at: int = 0, flags: str = "PA") -> None:
    """Bytes of the server, so far behind the place where the answer to NEXT begins."""
    response = Response(flags, payload, seq=NEXT.ack + at & 0xFFFFFFFF)
    agent.object.programs["rauta_agent_egress"].test_run(response.frame())


def under_way(agent: Agent) -> dict[str, Any] | None:
    """What is known of the request that waits for its answer."""
    found: dict[str, Any] | None = agent.object.maps["under_way"].lookup(LOCAL_TUPLE.key)
    return found


# ---- what is told ---------------------------------------------------------------------------------------


def test_an_answer_is_told_when_its_first_byte_leaves(agent: Agent, reader: TraceReader) -> None:
    earliest = time.time_ns()
    with resting(agent):
        comes(agent)
        assert reader.poll(0) == []
        leaves(agent, HELLO)
    (trace,) = reader.poll(0)
    slack = 1_000_000  # ns: the clocks are read one after the other
    assert trace.answered_ns is not None
    assert earliest - slack <= trace.time_ns < trace.answered_ns <= time.time_ns() + slack
    assert (trace.client, trace.client_port) == (IPv4Address(CLIENT), ALICE.port)
    assert (trace.server, trace.server_port, trace.vip) == (IPv4Address(VIP), VIP_PORT, "shop")
    assert (trace.method, trace.status, trace.backend) == ("GET", 200, "web-1")
    assert (trace.verdict, trace.route) == (None, None)


def test_once(agent: Agent, reader: TraceReader) -> None:
    """Not with the rest of the answer, nor when it is sent again."""
    with resting(agent):
        comes(agent)
        for payload, at in ((HELLO[:20], 0), (HELLO[20:], 20), (HELLO, 0)):
            leaves(agent, payload, at)
    assert len(reader.poll(0)) == 1
    assert under_way(agent) is None


def test_that_of_the_request_and_not_what_comes_before_it(agent: Agent, reader: TraceReader) -> None:
    """Acknowledgements, the answer before once more, and what is behind."""
    with resting(agent):
        comes(agent)
        leaves(agent, b"", flags="A")
        leaves(agent, HELLO, -len(HELLO))
        leaves(agent, HELLO, 1)
        leaves(agent, HELLO, -5_000_000)
        assert reader.poll(0) == []
        leaves(agent, HELLO[-3:] + answer("Content-Length: 0", status="404 Not Found"), -3)  # in one segment with it
    assert [trace.status for trace in reader.poll(0)] == [404]


@pytest.mark.parametrize("state", [{}, {"pinned": 1}])
def test_also_where_answers_are_not_followed_any_more(agent: Agent, reader: TraceReader, state: dict[str, int]) -> None:
    """After one in chunks, say."""
    with resting(agent, **state):
        comes(agent)
        leaves(agent, answer("Transfer-Encoding: chunked"))
    assert [trace.status for trace in reader.poll(0)] == [200]


HINTS = answer("Link: </a>", status="103 Early Hints")
INTERIM: dict[str, tuple[list[bytes], int | None]] = {
    "go on, and nothing yet": ([GO_ON], None),
    "go on": ([GO_ON, HELLO], 200),
    "go on, with the answer": ([GO_ON + EMPTY], 200),
    "go on, with half of it": ([GO_ON + HELLO[:30], HELLO[30:]], 200),
    "several": ([HINTS, HINTS + GO_ON, answer(status="500 Internal Server Error")], 500),
    "other protocols": ([answer(status="101 Switching Protocols")], 101),
    "a server of HTTP/1.0": ([answer(status="302 Found", version="HTTP/1.0")], 302),
    "no reason": ([b"HTTP/1.1 200\r\n\r\n"], 200),
    "only so much": ([b"HTTP/1.1 200"], 200),
}


@pytest.mark.parametrize(("pieces", "status"), INTERIM.values(), ids=INTERIM)
def test_an_interim_answer_is_none(agent: Agent, reader: TraceReader, pieces: list[bytes], status: int | None) -> None:
    with resting(agent):
        comes(agent)
        for piece, at in zip(pieces, itertools.accumulate((len(piece) for piece in pieces), initial=0), strict=False):
            leaves(agent, piece, at)
    assert [trace.status for trace in reader.poll(0)] == ([] if status is None else [status])
    assert (under_way(agent) is not None) is (status is None)


STRANGE = {
    "the middle of the answer before, whose end the client has not waited for": b"HTTP is all that a body says",
    "less than a status": b"HTTP/1.1 20",
    "no status": b"HTTP/1.1 abc OK\r\n\r\n",
    "a status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "a letter in it": b"HTTP/1.1 2O0 OK\r\n\r\n",
    "a letter at its end": b"HTTP/1.1 20O OK\r\n\r\n",
    "a version of two digits": b"HTTP/1.12200 OK\r\n\r\n",
    "one that begins with 0": b"HTTP/1.1 099 OK\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.2p1",
    "the next one": b"HTTP/2.0 200 OK\r\n\r\n",
    "an interim head without an end": b"HTTP/1.1 100 Continue\r\n",
    "too many interim ones": GO_ON * 5,
}


@pytest.mark.parametrize("payload", STRANGE.values(), ids=STRANGE)
def test_what_does_not_begin_like_an_answer_is_not_told_but_counted(
    agent: Agent, reader: TraceReader, payload: bytes
) -> None:
    before = reader.counts()
    with resting(agent):
        comes(agent)
        leaves(agent, payload)
        leaves(agent, HELLO)
    assert reader.poll(0) == []
    assert reader.counts() == TraceCounts(before.told, before.limited, before.lost + 1)


# ---- what is a request ----------------------------------------------------------------------------------


def test_bodies_and_acknowledgements_are_no_requests(agent: Agent) -> None:
    with resting(agent):
        comes(agent, ALICE.later(b"", len(HEAD)), starts=False)
        comes(agent, ALICE.later(b"some body", len(HEAD)), starts=False)
    assert under_way(agent) is None


@pytest.mark.usefixtures("one_cpu")
def test_nor_is_a_body_behind_its_request(agent: Agent) -> None:
    """What is known of a packet is not known of the next one on its CPU."""
    with resting(agent):
        comes(agent)
        comes(agent, ALICE.later(b"some body", 2 * len(HEAD)), starts=False)
    found = under_way(agent)
    assert found is not None
    assert found["trace"]["seq"] == NEXT.seq


def test_nor_is_what_has_overtaken_something_or_is_here_already(agent: Agent) -> None:
    with resting(agent, received=NEXT.seq - 1):
        comes(agent)
    with resting(agent, received=NEXT.after):
        comes(agent)
    assert under_way(agent) is None


def test_of_a_request_that_comes_again_the_first_time_counts(agent: Agent) -> None:
    """The socket has not had it yet, when it does."""
    with resting(agent):
        comes(agent)
        first = under_way(agent)
        comes(agent)
        assert first is not None
        assert under_way(agent) == first


def test_the_next_one_takes_its_place(agent: Agent, reader: TraceReader) -> None:
    """The client has asked something else meanwhile, on a connection of the same numbers."""
    with resting(agent):
        comes(agent)
    other = ALICE.later(request("/other", method="DELETE"), len(HEAD) + 77)
    with resting(agent, received=other.seq):
        comes(agent, other)
        leaves(agent, HELLO)
    assert [trace.method for trace in reader.poll(0)] == ["DELETE"]


@pytest.mark.parametrize("size", [len(HEAD) - 4, 1000, 1388])
def test_as_much_is_kept_as_a_head_can_be_long(agent: Agent, size: int) -> None:
    with resting(agent):
        segment = ALICE.later(HEAD[:-4] + b"x" * (size - len(HEAD) + 4), len(HEAD))
        comes(agent, segment)
    found = under_way(agent)
    assert found is not None
    assert found["trace"]["head_length"] == size
    assert bytes(found["head"])[:size] == segment.payload


def test_and_no_more(agent: Agent) -> None:
    """However long the packet is: the kernel may have made one of several."""
    with resting(agent):
        comes(agent, ALICE.later(HEAD + b"x" * 2000, len(HEAD)))
    found = under_way(agent)
    assert found is not None
    assert found["trace"]["head_length"] == len(found["head"]) == 1440


# ---- the router's and the agent's half --------------------------------------------------------------------


def test_both_halves_are_of_one_trace(agent: Agent, reader: TraceReader) -> None:
    """The router's is above the agent's. Neither has told the other anything."""
    with loaded(observation=Observation(traces_one_in=1)) as router, TraceReader(router) as routers:
        run(router, ALICE.data(HEAD), NEXT)
        _, routed = routers.poll(0)
    with resting(agent):
        comes(agent)
        leaves(agent, HELLO)
    (answered,) = reader.poll(0)
    assert answered.trace_id == routed.trace_id
    assert (routed.parent_id, answered.parent_id) == (None, routed.span_id)
    assert answered.span_id != routed.span_id
    assert routed.time_ns < answered.time_ns


def test_in_the_clients_own_trace_too(agent: Agent, reader: TraceReader) -> None:
    segment = ALICE.later(request("/", f"traceparent: 00-{TRACE}-{SPAN}-01"), len(HEAD))
    with loaded(observation=Observation(traces_one_in=1)) as router, TraceReader(router) as routers:
        run(router, ALICE.data(HEAD), segment)
        _, routed = routers.poll(0)
    with resting(agent):
        comes(agent, segment)
        leaves(agent, HELLO)
    (answered,) = reader.poll(0)
    assert answered.trace_id == routed.trace_id == int(TRACE, 16)
    assert (routed.parent_id, answered.parent_id) == (int(SPAN, 16), routed.span_id)


def test_if_the_client_does_not_record_its_own_neither_half_is_told(agent: Agent, reader: TraceReader) -> None:
    with resting(agent):
        comes(agent, ALICE.later(request("/", f"traceparent: 00-{TRACE}-{SPAN}-00"), len(HEAD)))
        leaves(agent, HELLO)
    assert (reader.poll(0), reader.declined) == ([], 1)


# ---- which and how many ---------------------------------------------------------------------------------


def requests_that_wait(agent: Agent, segments: list[Segment]) -> list[int]:
    """The numbers of those that are traced, as each comes to a socket that waits for it."""
    found = []
    for segment in segments:
        with resting(agent, received=segment.seq):
            comes(agent, segment)
        waiting = under_way(agent)
        found += [] if waiting is None else [waiting["trace"]["seq"]]
        agent.object.maps["under_way"].clear()
    return found


def test_those_are_traced_that_the_router_traces() -> None:
    """One in four, by the same hash, of the tuple with the VIP."""
    segments = [ALICE.later(HEAD, n * len(HEAD)) for n in range(1, 300)]
    named = [one.seq for one in segments if oracle.is_traced(ALICE.tuple, one.seq, KEY, ONE_IN)]
    with agent_in_its_namespace(traces_one_in=ONE_IN, traces_rate=MANY) as agent:
        assert requests_that_wait(agent, segments) == named
    assert 40 < len(named) < 110


def test_off_nothing_is_kept_and_there_is_nothing_to_read() -> None:
    with agent_in_its_namespace() as agent:
        assert requests_that_wait(agent, [NEXT]) == []
        with pytest.raises(RautaError, match=r"this program traces nothing\nLoad it with traces_one_in"):
            TraceReader(agent)


@pytest.mark.usefixtures("one_cpu")
def test_no_more_are_traced_than_the_rate_allows_and_the_others_are_counted() -> None:
    segments = [ALICE.later(HEAD, n * len(HEAD)) for n in range(1, 300)]
    with agent_in_its_namespace(traces_one_in=1, traces_rate=20) as agent:
        begun = time.monotonic()
        waited = requests_that_wait(agent, segments)
        allowed = 20 + 20 * (time.monotonic() - begun) + 2
        with TraceReader(agent) as reader:
            counts = reader.counts()
    assert 20 <= len(waited) <= allowed
    assert counts == TraceCounts(0, len(segments) - len(waited), 0)
