"""Traces as OpenTelemetry spans, sent to a collector (OTLP over HTTP, protobuf), which may be slow, or not there.

    with TraceReader(router) as reader, Exporter("http://127.0.0.1:4318/v1/traces") as exporter:
        loop.add_reader(reader.fileno(), lambda: exporter.offer(reader.poll(0)))

A thread sends; whoever offers never waits for it. What is more than the queue has room for is dropped and counted, and
so is what the collector does not take. OpenTelemetry is imported when an exporter is made (the extra `traces`), and not
before: it takes more memory than all the rest.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rauta.errors import RautaError
from rauta.tracing.traces import Trace

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext

    from rauta.config import Route

__all__ = ["ExportCounts", "Exporter"]

CAPACITY = 2048  # traces that wait to be sent
BATCH = 512  # spans in a request to the collector
_LAST_WORDS = 0.5  # s: how long `close` waits for a sender that was told to stop
_SERVER_ERROR = 500

Attributes = dict[str, str | int]


@dataclass(frozen=True)
class ExportCounts:
    """What became of the traces that were offered, but for those that are waiting or under way.

    `exported`: the collector has them; `failed`: it could not be reached, or did not want them; `dropped`: there was no
    room for them, or no time when the exporter was closed.
    """

    exported: int
    failed: int
    dropped: int


class Exporter:
    """Sends what it is offered, until `close`.

    `service` becomes service.name, `host` (by default, this one's name) host.name. A batch is sent when it is full, or
    `interval` seconds after its first trace; it is given up after `timeout` seconds of trying. RautaError if
    OpenTelemetry is not installed.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        service: str = "rauta",
        host: str | None = None,
        capacity: int = CAPACITY,
        interval: float = 1.0,
        timeout: float = 5.0,
    ) -> None:
        self._interval, self._capacity = interval, capacity
        self._spans = _Spans(endpoint, service, host or socket.gethostname(), timeout)
        self._waiting: deque[Trace] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._exported = self._failed = self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def offer(self, traces: Iterable[Trace]) -> None:
        """Has these sent if there is room for them. Never waits."""
        with self._changed:
            for trace in traces:
                if self._closing or len(self._waiting) >= self._capacity:
                    self._dropped += 1
                else:
                    self._waiting.append(trace)
            self._changed.notify_all()

    def counts(self) -> ExportCounts:
        """What has become of what was offered."""
        with self._changed:
            return ExportCounts(self._exported, self._failed, self._dropped)

    def close(self, seconds: float = 2.0) -> None:
        """Sends what is waiting if that takes no longer than so, and half a second more; drops the rest. Repeatable."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(seconds)
        if not self._thread.is_alive():
            return
        with self._changed:
            self._dropped += len(self._waiting)
            self._waiting.clear()
        self._spans.stop()
        self._thread.join(_LAST_WORDS)

    def _run(self) -> None:
        while batch := self._next():
            sent = self._spans.send(batch)
            with self._changed:
                if sent:
                    self._exported += len(batch)
                else:
                    self._failed += len(batch)
        self._spans.stop()

    def _next(self) -> list[Trace]:
        """What is to be sent next; nothing: the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            self._changed.wait_for(lambda: len(self._waiting) >= BATCH or self._closing, self._interval)
            return [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]


class _Spans:
    """OpenTelemetry's part: spans with ids of ours, and the exporter that sends them."""

    def __init__(self, endpoint: str, service: str, host: str, timeout: float) -> None:
        try:
            from opentelemetry import trace as api
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import ReadableSpan
            from opentelemetry.sdk.trace.export import SpanExportResult
            from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        except ImportError as error:
            advice = "Install it: pip install 'rauta[traces]'"
            raise RautaError("exporting traces", f"OpenTelemetry is not installed ({error})", advice) from error
        self._api, self._make, self._success = api, ReadableSpan, SpanExportResult.SUCCESS
        self._resource = Resource.create({"service.name": service, "host.name": host})
        self._scope = InstrumentationScope("rauta", metadata.version("rauta"))
        self._exporter = OTLPSpanExporter(endpoint=endpoint, timeout=timeout)
        self._stopped = threading.Event()

    def send(self, traces: Sequence[Trace]) -> bool:
        """Whether the collector has taken them. Takes as long as the timeout, at most."""
        return self._exporter.export([self._span(trace) for trace in traces]) is self._success

    def stop(self) -> None:
        """Has `send` try no longer, from any thread; safe to repeat."""
        if not self._stopped.is_set():
            self._stopped.set()
            self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def _span(self, trace: Trace) -> ReadableSpan:
        routed, failed = trace.answered_ns is None, (trace.status or 0) >= _SERVER_ERROR
        kinds, status = self._api.SpanKind, self._api.Status
        return self._make(
            name="route" if routed else "first byte",
            context=self._context(trace.trace_id, trace.span_id),
            parent=None if trace.parent_id is None else self._context(trace.trace_id, trace.parent_id, remote=True),
            resource=self._resource,
            attributes=_attributes(trace),
            kind=kinds.INTERNAL if routed else kinds.SERVER,
            status=status(self._api.StatusCode.ERROR) if failed else status(self._api.StatusCode.UNSET),
            start_time=trace.time_ns,
            end_time=trace.time_ns if trace.answered_ns is None else trace.answered_ns,
            instrumentation_scope=self._scope,
        )

    def _context(self, trace: int, span: int, *, remote: bool = False) -> SpanContext:
        flags = self._api.TraceFlags(self._api.TraceFlags.SAMPLED)
        return self._api.SpanContext(trace, span, is_remote=remote, trace_flags=flags)


def _attributes(trace: Trace) -> Attributes:
    """By OpenTelemetry's semantic conventions for HTTP, and `rauta.…` where those have no word.

    Nothing of a client's own but its address: what it can make up has no end.
    """
    attributes: Attributes = {
        "http.request.method": trace.method,
        "url.scheme": "http",
        "server.address": str(trace.server),
        "server.port": trace.server_port,
        "network.peer.address": str(trace.client),
        "network.peer.port": trace.client_port,
        "rauta.vip": trace.vip,
    }
    if trace.backend is not None:
        attributes["rauta.backend"] = trace.backend
    if trace.verdict is not None:
        attributes["rauta.verdict"] = trace.verdict
    if trace.route is not None:
        attributes |= {"http.route": _pattern(trace.route), "rauta.route": _label(trace.route)}
    if trace.status is not None:
        attributes["http.response.status_code"] = trace.status
        if trace.status >= _SERVER_ERROR:
            attributes["error.type"] = str(trace.status)
    return attributes


def _pattern(route: Route) -> str:
    """The paths that a route matches: `/exact`, `/prefix/*`."""
    return route.exact or (route.prefix or "").rstrip("/") + "/*"


def _label(route: Route) -> str:
    """The whole route: `GET shop.test/api/*`; `*` for any method or host."""
    return f"{route.method or '*'} {route.host or '*'}{_pattern(route)}"
