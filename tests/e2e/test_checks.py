"""Checks and measures notice what they are there to notice: each passes where it should, and fails where it must.

A check that cannot fail proves nothing. What a failed one says must name what was expected and what was seen.
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
from contextlib import ExitStack, nullcontext
from ipaddress import IPv4Address
from typing import Any

import pytest
from pydantic import TypeAdapter

from e2e.bench import HOST, SECONDS, Bench
from lab.checks import Check, state
from lab.contenders.rauta import RunningRauta
from lab.errors import UsageError
from lab.interfaces import CheckResult, Context, Setup
from lab.measure import Measure
from lab.samples import Sample

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

NOBODY = IPv4Address("198.18.0.99")
SYN_SECONDS = 1.3
"""a SYN that is not answered is sent again after 1 s"""


@pytest.fixture
def context(routed: Bench) -> Context:
    return routed.context()


def check(context: Context, **fields: Any) -> CheckResult:
    """A check as a scenario would write it."""
    return TypeAdapter[Check](Check).validate_python(fields).run(context)


# ---- requests -------------------------------------------------------------------------------------------


def test_get(context: Context) -> None:
    clients = ("curl", "http.client")
    assert check(context, get=f"http://{HOST}/api/x", cluster="api", clients=clients).passed
    assert check(context, get=f"http://{HOST}/api/x", vip="strict", cluster="quiet", clients=clients).passed
    assert context.requests.sent == 4


@pytest.mark.parametrize(
    ("path", "cluster", "words"),
    [
        ("/api/x", "web", "answered by api-1, not by a backend of web"),
        ("/nowhere", "web", "status 404, not 200"),
        ("/api/download", "api", "a body of 5000000 bytes that is not the 13 bytes which were served"),
    ],
)
def test_get_fails(context: Context, path: str, cluster: str, words: str) -> None:
    for client in ("curl", "http.client"):
        result = check(context, get=f"http://{HOST}{path}", cluster=cluster, clients=(client,))
        assert (result.passed, result.detail) == (False, f"{client}: {words}")


def test_get_at_an_unknown_vip_names_the_mistake(context: Context) -> None:
    with pytest.raises(UsageError, match="'shopp'"):
        check(context, get=f"http://{HOST}/", cluster="web", vip="shopp")


def test_connections(context: Context) -> None:
    result = check(context, connections=100, path="/web", cluster="web", backend="maglev-oracle")
    assert result.passed, result.detail
    assert context.requests.sent == 100


def test_connections_fail_where_the_oracle_says_otherwise(context: Context) -> None:
    running = context.running
    assert isinstance(running, RunningRauta)
    keys = dataclasses.replace(running.router.keys, flow_key=running.flow_key ^ 1)

    class Mistaken(RunningRauta):
        @property
        def flow_key(self) -> int:
            return keys.flow_key

    mistaken = Mistaken(running.config, running.router, running.agents)
    wrong = dataclasses.replace(context, running=mistaken)
    result = check(wrong, connections=100, path="/web", cluster="web", backend="maglev-oracle")
    assert not result.passed
    assert "web-1" in result.detail
    assert "web-2" in result.detail


def test_keepalive(context: Context) -> None:
    assert check(context, keepalive=50, path="/api/x", cluster="api").passed
    assert context.requests.sent == 50
    result = check(context, keepalive=50, path="/nowhere", cluster="api")
    assert (result.passed, result.detail) == (False, "request 1: status 404, not 200")


def test_download(context: Context) -> None:
    assert check(context, download="/api/download", cluster="api", size="5MB").passed
    result = check(context, download="/api/x", cluster="api", size="5MB")
    assert (result.passed, "13 bytes" in result.detail) == (False, True)
    result = check(context, download="/api/download", cluster="api", size="6MB")
    assert (result.passed, "serve 5000000 bytes" in result.detail) == (False, True)


@pytest.mark.parametrize(
    ("path", "vip", "answer", "seen"),
    [
        ("/api/x", "shop", 404, "200 by api-1, not 404"),
        ("/nowhere", "strict", 404, "reset, not 404"),
        ("/nowhere", "shop", "reset", "404, not reset"),
    ],
)
def test_refused_fails(context: Context, path: str, vip: str, answer: int | str, seen: str) -> None:
    result = check(context, refused=f"http://{HOST}{path}", vip=vip, answer=answer, clients=("curl",))
    assert (result.passed, result.detail) == (False, f"curl: {seen}")


def test_refused(context: Context) -> None:
    for vip, answer in (("shop", 404), ("strict", "reset")):
        result = check(context, refused=f"http://{HOST}/nowhere", vip=vip, answer=answer, within="1s")
        assert result.passed, result.detail
    assert context.requests.sent == 0, "it must not reach a backend, so it does not count"


@pytest.mark.parametrize(("timestamps", "posts"), [(1, "0%"), (2, "50%"), (0, "10%")])
def test_reuse(context: Context, timestamps: int, posts: str) -> None:
    result = check(
        context, reuse=300, ports=100, timestamps=timestamps, path="/api/x", cluster="api", posts=posts, body="5kB"
    )
    assert result.passed, result.detail
    assert re.search(r"each port [23] to \d times", result.detail)
    assert context.requests.sent == 300
    assert check(context, equal=("rauta.requests_routed", "client.requests")).passed
    assert check(context, tcp_retransmits=0).passed


@pytest.mark.parametrize(("path", "reason"), [("/nowhere", "404"), ("/api/download", "5000000 bytes of another body")])
def test_reuse_fails(context: Context, path: str, reason: str) -> None:
    result = check(context, reuse=70, ports=70, path=path, cluster="api")
    assert not result.passed
    assert result.detail.startswith("0 answered (70: ")
    assert reason in result.detail


# ---- what the machines say ------------------------------------------------------------------------------


def test_no_listener_on(routed: Bench, context: Context) -> None:
    assert check(context, no_listener_on="router").passed
    with routed.network.router.entered():
        listener = socket.create_server(("198.18.0.2", 8080))
    with listener:
        result = check(context, no_listener_on="router")
    assert (result.passed, result.detail) == (False, "listening on ports [8080]")


def test_client_address_seen(routed: Bench, context: Context) -> None:
    result = check(context, client_address_seen="api")
    assert result.passed, result.detail
    assert result.detail.startswith(f"{routed.client.address}:")
    assert result.detail.endswith(" on api-1")


def test_equal(context: Context) -> None:
    check(context, keepalive=5, path="/api/x", cluster="api")
    numbers = ("rauta.requests_routed", "client.requests")
    assert check(context, equal=numbers).passed
    context.requests.sent += 1
    result = check(context, equal=numbers)
    assert (result.passed, result.detail) == (False, "5 and 6")


@pytest.mark.parametrize("name", ["rauta.requests", "direct.requests_routed", "client.answers"])
def test_equal_names_a_number_that_does_not_exist(context: Context, name: str) -> None:
    with pytest.raises(UsageError, match=r"rauta\.requests_routed"):
        check(context, equal=(name, "client.requests"))


def test_tcp_retransmits_sees_a_lost_syn(routed: Bench, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one that is still on its way to be lost when the check begins."""
    monkeypatch.setattr(state, "SETTLE_SECONDS", SYN_SECONDS)
    assert check(context, tcp_retransmits=0).passed
    interface = routed.client.interface
    neighbour = ["ip", "neighbour", "add", str(NOBODY), "lladdr", "02:00:00:00:00:99", "dev", interface]
    routed.client.run(neighbour, timeout=SECONDS)
    with routed.client.entered():
        lost = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with lost:
        assert lost.connect_ex((str(NOBODY), 80)) != 0
        result = check(context, tcp_retransmits=0)
    assert not result.passed
    assert "TcpExt.TCPSynRetrans: 1" in result.detail
    assert check(context, tcp_retransmits=1).passed


# ---- measures -------------------------------------------------------------------------------------------


def sample(routed: Bench, subject: str = "rauta", **fields: Any) -> Sample:
    """A sample of a measure as a scenario would write it, without warm-up."""
    measure = TypeAdapter[Measure](Measure).validate_python(fields)
    plan = routed.scenario.plan.model_copy(update={"warmup": 0.0})
    with ExitStack() as stack:
        instrument = measure.open(Setup(routed.network, routed.scenario.model_copy(update={"plan": plan}), stack))
        return instrument.sample(subject, routed.running, nullcontext())


WRK = {"layer": "http", "tool": "wrk", "host": HOST, "duration": "1s", "connections": 4}


@pytest.mark.parametrize("close", [False, True])
def test_wrk_counts_answered_requests(routed: Bench, close: bool) -> None:
    grown = routed.growth()
    one = sample(routed, **WRK, path="/api/x", cluster="api", close=close)
    assert one.valid, one.reason
    requests = int(one.details["requests"])
    assert one.value == pytest.approx(requests / float(one.details["seconds"]), rel=0.01)
    assert 0 <= grown["requests_routed"] - requests <= WRK["connections"]  # those on their way at the end
    assert (grown["ROUTED_FIRST"] > requests / 2) == close, grown


@pytest.mark.parametrize(("path", "cluster", "reason"), [("/nowhere", "api", "status"), ("/nowhere", "quiet", "read")])
def test_wrk_takes_no_error_for_an_answer(routed: Bench, path: str, cluster: str, reason: str) -> None:
    one = sample(routed, **WRK, path=path, cluster=cluster)
    assert not one.valid
    assert reason in one.reason


def test_wrk_notices_that_nobody_is_there(routed: Bench) -> None:
    (host,) = routed.network.servers("quiet")
    host.stop_all()
    try:
        one = sample(routed, **WRK, path="/api/x", cluster="quiet")
    finally:
        routed.restart_server("quiet")
    assert not one.valid


@pytest.mark.parametrize("frame", ["first-request", "next-request"])
def test_the_programs_cost_is_that_of_routed_requests(routed: Bench, frame: str) -> None:
    program = {"layer": "bpf", "frame": frame, "request": "GET /api/x"}
    bare, whole = (sample(routed, subject, **program) for subject in ("xdp-tx", "rauta"))
    assert bare.valid, bare.reason
    assert whole.valid, whole.reason
    assert whole.value > bare.value > 0
    assert whole.quantities["wall"] > bare.quantities["wall"] > 0
    assert 0 < bare.value < whole.value < 10_000


def test_frames_are_of_new_connections_each_time(routed: Bench) -> None:
    """Or the second sample would be one of retransmissions."""
    fields = {"layer": "veth", "cluster": "api", "flows": 2048, "frames": 2048}
    with ExitStack() as stack:
        measure = TypeAdapter[Measure](Measure).validate_python(fields)
        instrument = measure.open(Setup(routed.network, routed.scenario, stack))
        for _ in range(2):
            one = instrument.sample("rauta", routed.running, nullcontext())
            assert one.valid, one.reason
            assert one.details["arrived"] == 2048


def test_what_was_not_routed_is_not_judged(routed: Bench) -> None:
    one = sample(routed, layer="bpf", frame="first-request", request="GET /nowhere")
    assert not one.valid
    assert one.reason.startswith("0 of ")
