"""Spans as a collector gets them, from an exporter that never waits for it, whatever the collector does."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from e2e.bench import eventually
from e2e.collector import PATH, Collector, collecting
from rauta.config import Route
from rauta.errors import RautaError
from rauta.tracing.spans import ExportCounts, Exporter
from rauta.tracing.traces import Trace

ROUTED = Trace(
    trace_id=0x4BF92F3577B34DA6A3CE929D0E0E4736,
    span_id=0x00F067AA0BA902B7,
    parent_id=None,
    time_ns=1_700_000_000_000_000_001,
    answered_ns=None,
    client=IPv4Address("198.18.0.1"),
    client_port=40000,
    server=IPv4Address("198.18.100.80"),
    server_port=80,
    vip="shop",
    method="GET",
    verdict="ROUTED_FIRST",
    route=Route(prefix="/api", cluster="api"),
    backend="api-1",
    status=None,
)
ANSWERED = replace(
    ROUTED,
    span_id=0xABC,
    parent_id=ROUTED.span_id,
    time_ns=ROUTED.time_ns + 100,
    answered_ns=ROUTED.time_ns + 5100,
    verdict=None,
    route=None,
    status=200,
)
QUICK = 0.05
"""seconds until a batch is sent that is not full"""
GENEROUS = 30.0
"""seconds, for what must not wait for a collector at all"""


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Collector]:
    with collecting(tmp_path) as one:
        yield one


def sent(collector: Collector, *traces: Trace, **settings: Any) -> list[dict[str, Any]]:
    """What arrives."""
    with Exporter(collector.endpoint, **settings) as exporter:
        exporter.offer(traces)
    assert exporter.counts() == ExportCounts(len(traces), 0, 0)
    return collector.spans()


COMMON = {
    "http.request.method": "GET",
    "url.scheme": "http",
    "server.address": "198.18.100.80",
    "server.port": 80,
    "network.peer.address": "198.18.0.1",
    "network.peer.port": 40000,
    "rauta.vip": "shop",
    "rauta.backend": "api-1",
}


# ---- what a span says -----------------------------------------------------------------------------------


def test_a_routers_span_is_a_point_at_the_root_of_its_trace(collector: Collector) -> None:
    (span,) = sent(collector, ROUTED, service="rauta-router", host="lb-1")
    resource = span.pop("resource")
    assert (resource["service.name"], resource["host.name"]) == ("rauta-router", "lb-1")
    assert span == {
        "scope": "rauta",
        "name": "route",
        "kind": "INTERNAL",
        "trace": "4bf92f3577b34da6a3ce929d0e0e4736",
        "span": "00f067aa0ba902b7",
        "parent": "",
        "start": ROUTED.time_ns,
        "end": ROUTED.time_ns,
        "attributes": COMMON | {"http.route": "/api/*", "rauta.route": "* */api/*", "rauta.verdict": "ROUTED_FIRST"},
        "status": "UNSET",
    }


def test_an_agents_span_lasts_until_the_first_byte_of_the_answer(collector: Collector) -> None:
    (span,) = sent(collector, ANSWERED)
    resource = span.pop("resource")
    assert (resource["service.name"], resource["host.name"]) == ("rauta", socket.gethostname())
    assert span == {
        "scope": "rauta",
        "name": "first byte",
        "kind": "SERVER",
        "trace": "4bf92f3577b34da6a3ce929d0e0e4736",
        "span": "0000000000000abc",
        "parent": "00f067aa0ba902b7",
        "start": ANSWERED.time_ns,
        "end": ANSWERED.answered_ns,
        "attributes": COMMON | {"http.response.status_code": 200},
        "status": "UNSET",
    }


@pytest.mark.parametrize(
    ("status", "said", "error"),
    [(404, "UNSET", None), (499, "UNSET", None), (500, "ERROR", "500"), (503, "ERROR", "503")],
)
def test_a_servers_error_is_an_error(collector: Collector, status: int, said: str, error: str | None) -> None:
    (span,) = sent(collector, replace(ANSWERED, status=status))
    assert (span["status"], span["attributes"].get("error.type")) == (said, error)


@pytest.mark.parametrize(
    ("route", "pattern", "label"),
    [
        (Route(prefix="/", cluster="web"), "/*", "* */*"),
        (Route(exact="/open", host="shop.test", cluster="web"), "/open", "* shop.test/open"),
        (Route(prefix="/api", method="POST", host="*.shop.test", cluster="web"), "/api/*", "POST *.shop.test/api/*"),
    ],
)
def test_a_route_is_called_what_the_configuration_calls_it(
    collector: Collector, route: Route, pattern: str, label: str
) -> None:
    (span,) = sent(collector, replace(ROUTED, route=route))
    assert (span["attributes"]["http.route"], span["attributes"]["rauta.route"]) == (pattern, label)


# ---- sending --------------------------------------------------------------------------------------------


def test_many_go_in_a_few_requests(collector: Collector) -> None:
    traces = [replace(ROUTED, span_id=number + 1) for number in range(1500)]
    spans = sent(collector, *traces)
    assert [int(span["span"], 16) for span in spans] == list(range(1, 1501))
    assert max(map(len, collector.requests())) <= 512
    assert len(collector.requests()) <= 4  # the first one may have gone before the others came


def test_a_few_go_after_a_while(collector: Collector) -> None:
    with Exporter(collector.endpoint, interval=QUICK) as exporter:
        exporter.offer([ROUTED])
        eventually(lambda: len(collector.spans()) == 1, "the first span to arrive")
        exporter.offer([ANSWERED])
        eventually(lambda: exporter.counts().exported == 2, "the second one to be counted")
    assert [span["name"] for span in collector.spans()] == ["route", "first byte"]


@pytest.mark.parametrize("status", [400, 404, 500])
def test_what_the_collector_does_not_want_has_failed(tmp_path: Path, status: int) -> None:
    with collecting(tmp_path, status) as collector:
        with Exporter(collector.endpoint) as exporter:
            exporter.offer([ROUTED, ANSWERED])
        assert exporter.counts() == ExportCounts(0, 2, 0)
        assert len(collector.spans()) == 2


@pytest.fixture
def silent() -> Iterator[str]:
    """A collector that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}{PATH}"


@pytest.fixture
def dead() -> str:
    """Nobody listens there."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}{PATH}"


@pytest.fixture(params=["silent", "dead"])
def unwilling(request: pytest.FixtureRequest) -> str:
    endpoint: str = request.getfixturevalue(request.param)
    return endpoint


def test_nobody_waits_for_a_collector_that_takes_nothing(unwilling: str) -> None:
    """Neither who offers nor who closes; and every trace is accounted for."""
    begun = time.monotonic()
    exporter = Exporter(unwilling, capacity=100, interval=QUICK, timeout=60.0)
    for _ in range(100):
        exporter.offer([ROUTED] * 50)
    exporter.close(0.1)
    assert time.monotonic() - begun < GENEROUS  # of the timeout's minute
    counts = exporter.counts()
    assert counts.exported == 0
    assert 5000 - 512 <= counts.failed + counts.dropped <= 5000  # but for what is under way
    assert counts.dropped >= 5000 - 100 - 512


def test_the_queue_takes_no_more_than_it_is_said_to(silent: str) -> None:
    exporter = Exporter(silent, capacity=10, interval=GENEROUS)
    exporter.offer([ROUTED] * 1000)
    assert exporter.counts() == ExportCounts(0, 0, 990)
    exporter.close(0.1)


def test_what_is_given_up_after_the_timeout_does_not_stop_what_comes_later(silent: str) -> None:
    with Exporter(silent, interval=QUICK, timeout=0.2) as exporter:
        exporter.offer([ROUTED])
        eventually(lambda: exporter.counts().failed == 1, "the first one to be given up")
        exporter.offer([ROUTED])
        eventually(lambda: exporter.counts().failed == 2, "the second one to be given up")


def test_once_the_collector_is_back_it_gets_what_comes_then(tmp_path: Path, dead: str) -> None:
    port = int(dead.partition(PATH)[0].rpartition(":")[2])
    with Exporter(dead, interval=QUICK, timeout=0.2) as exporter:
        exporter.offer([ROUTED])
        eventually(lambda: exporter.counts().failed == 1, "the first one to be given up")
        with collecting(tmp_path, port=port) as collector:
            exporter.offer([ANSWERED])
            eventually(lambda: exporter.counts().exported == 1, "the second one to arrive")
    assert [span["name"] for span in collector.spans()] == ["first byte"]


def test_closed_it_takes_nothing_more(collector: Collector) -> None:
    exporter = Exporter(collector.endpoint)
    exporter.close()
    exporter.offer([ROUTED])
    exporter.close()
    assert exporter.counts() == ExportCounts(0, 0, 1)


# ---- without OpenTelemetry --------------------------------------------------------------------------------


def test_nothing_of_it_is_imported_before_there_is_an_exporter() -> None:
    """It takes a fourth of the control plane's memory."""
    modules = "rauta.router, rauta.agent, rauta.tracing.traces, rauta.tracing.spans"
    heavy = "{name.partition('.')[0] for name in sys.modules} & {'opentelemetry', 'google', 'requests'}"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {modules}; print({heavy})"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_where_it_is_not_installed_one_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(
        RautaError, match=r"OpenTelemetry is not installed .*\nInstall it: pip install 'rauta\[traces\]'"
    ):
        Exporter("http://127.0.0.1:4318/v1/traces")
