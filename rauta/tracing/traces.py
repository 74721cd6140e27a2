"""Traces: the requests that a router or an agent tells, one in so many, and how they hang together.

    router = Router.load(config, keys, observation=Observation(traces_one_in=1000))
    agent = Agent.load(config, keys, backend="web-1", traces_one_in=1000)
    with TraceReader(router) as reader, Exporter("http://127.0.0.1:4318/v1/traces") as exporter:  (rauta.tracing.spans)
        exporter.offer(reader.poll(1000))

A request has one trace with two spans: the router's, at the moment when it is routed, and below that the agent's, from
the request's arrival to the first byte of its answer. The ids of both are keyed hashes of what both see, or come from
the request's `traceparent`: nothing is sent from one to the other. docs/traces.md is the essay.
"""

from __future__ import annotations

import hashlib
import select
import socket
import struct
import time
from dataclasses import dataclass
from ipaddress import IPv4Address
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from rauta import tables
from rauta.bpf import RingBuffer
from rauta.bpf.layout import StructLayout
from rauta.contract import Method
from rauta.errors import RautaError
from rauta.tracing import traceparent

if TYPE_CHECKING:
    from rauta.agent import Agent
    from rauta.config import Route
    from rauta.router import Router

__all__ = ["Trace", "TraceCounts", "TraceReader"]

_TRACE_ID_BYTES, _SPAN_ID_BYTES = 16, 8
_TRACE, _ROUTER, _AGENT = b"rauta trace", b"rauta router", b"rauta agent"
_OTHER = "_OTHER"  # OpenTelemetry's name for a method that is not known
_METHODS = frozenset(method.name.encode() for method in Method) - {b"ANY"}


@dataclass(frozen=True, slots=True)
class Trace:
    """What a router or an agent tells of one request: a span, but for the words.

    Times are of the wall clock (Unix, ns). A router's: `time_ns` says when the request was routed, `verdict` how
    (ROUTED_FIRST, ROUTED_NEXT or ROUTED_MOVED), `route` and `backend` where to. An agent's: `time_ns` says when it
    arrived, `answered_ns` when the first byte of its answer left, and `status` what that answer begins with; `backend`
    is the agent's own. `parent_id` is None at the root of a trace.
    """

    trace_id: int
    span_id: int
    parent_id: int | None
    time_ns: int
    answered_ns: int | None
    client: IPv4Address
    client_port: int
    server: IPv4Address
    server_port: int
    vip: str
    method: str
    verdict: str | None
    route: Route | None
    backend: str | None
    status: int | None


@dataclass(frozen=True)
class TraceCounts:
    """Requests whose turn it was to be traced.

    `told`: those that were, read or not; `limited`: too many for the rate; `lost`: those that found the buffer full,
    and at an agent those whose answer does not begin like one.
    """

    told: int
    limited: int
    lost: int


class TraceReader:
    """The one reader of a router's or an agent's traces, until `close`. RautaError if it traces nothing.

    `declined` counts requests that are told but not returned: their `traceparent` says that they are not recorded.
    """

    def __init__(self, traced: Router | Agent) -> None:
        if not traced.sampling.one_in:
            advice = "Load it with traces_one_in: of Observation for a router, of Agent.load for an agent."
            raise RautaError("reading traces", "this program traces nothing", advice)
        layout = traced.object.btf.struct("trace")
        if not isinstance(layout, StructLayout):
            raise TypeError("struct trace is no struct")
        self._layout, self._id_key = layout, traced.sampling.id_key
        self._verdicts = {number: name for name, number in traced.object.btf.enum("verdict").items()}
        self._traced = traced
        self._own = traced.backend  # an agent's own; None: a router's records say which
        self._states = traced.object.maps["trace_states"]
        self._ring = RingBuffer(traced.object.maps["traces"])
        self.declined = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """A descriptor that is readable when traces are waiting, for `select` and event loops."""
        return self._ring.fileno()

    def poll(self, timeout_ms: int) -> list[Trace]:
        """Waits for traces, at most so long (0: not at all, -1: for ever), and returns all that are there."""
        waiting = select.poll()
        waiting.register(self._ring, select.POLLIN)
        waiting.poll(timeout_ms)
        records = self._ring.read()
        ahead = time.time_ns() - time.monotonic_ns()
        traces = [self._trace(record, ahead) for record in records]
        wanted = [trace for trace in traces if trace is not None]
        self.declined += len(traces) - len(wanted)
        return wanted

    def counts(self) -> TraceCounts:
        """How many requests were told, and how many might have been."""
        per_cpu = self._states.lookup(0)
        return TraceCounts(*(sum(cpu[name] for cpu in per_cpu) for name in ("told", "limited", "lost")))

    def close(self) -> None:
        """Stops reading; safe to repeat. Traces go on filling the buffer until it is full."""
        self._ring.close()

    def _trace(self, record: bytes, ahead: int) -> Trace | None:
        fields = self._layout.unpack(record[: self._layout.size])
        head = record[self._layout.size :][: fields["head_length"]]
        parent = traceparent.of_head(head)
        if parent is not None and not parent.sampled:
            return None
        four = fields["tuple"]
        client, server = tables.address(four["client"]), tables.address(four["server"])
        client_port, server_port = socket.ntohs(four["client_port"]), socket.ntohs(four["server_port"])
        said = client.packed + server.packed + struct.pack(">HHI", client_port, server_port, fields["seq"])
        return Trace(
            trace_id=self._id(_TRACE, said, _TRACE_ID_BYTES) if parent is None else parent.trace_id,
            time_ns=fields["time"] + ahead,
            client=client,
            client_port=client_port,
            server=server,
            server_port=server_port,
            vip=self._vip(server, server_port),
            method=_method(head),
            **(self._routed(fields, said, parent) if self._own is None else self._answered(fields, said, ahead)),
        )

    def _vip(self, address: IPv4Address, port: int) -> str:
        vips = self._traced.config.vips
        return next((vip.name for vip in vips if (vip.address, vip.port) == (address, port)), "")

    def _routed(self, fields: dict[str, Any], said: bytes, parent: traceparent.Parent | None) -> dict[str, Any]:
        """What only a router's record says."""
        names = cast("Router", self._traced).names
        return {
            "span_id": self._id(_ROUTER, said, _SPAN_ID_BYTES),
            "parent_id": None if parent is None else parent.span_id,
            "answered_ns": None,
            "verdict": self._verdicts.get(fields["verdict"]),
            "route": names.routes.get(fields["route"]),
            "backend": names.backends.get(fields["backend"]),
            "status": None,
        }

    def _answered(self, fields: dict[str, Any], said: bytes, ahead: int) -> dict[str, Any]:
        """What only an agent's record says: its parent is the router's span, whose id needs no telling."""
        return {
            "span_id": self._id(_AGENT, said, _SPAN_ID_BYTES),
            "parent_id": self._id(_ROUTER, said, _SPAN_ID_BYTES),
            "answered_ns": fields["answered"] + ahead,
            "verdict": None,
            "route": None,
            "backend": self._own,
            "status": fields["status"],
        }

    def _id(self, label: bytes, said: bytes, size: int) -> int:
        """Never 0, which would be no id."""
        return int.from_bytes(hashlib.blake2b(said, digest_size=size, key=self._id_key, person=label).digest()) or 1


def _method(head: bytes) -> str:
    word = head.partition(b" ")[0]
    return word.decode() if word in _METHODS else _OTHER
