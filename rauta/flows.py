"""The flow table of a router, read: who is connected to what."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any, NamedTuple

from rauta import tables
from rauta.bpf import BpfObject
from rauta.bpf.layout import ArrayLayout, IntLayout, Layout, StructLayout
from rauta.contract import ROUTE_CLUSTER_BITS
from rauta.segments import Connection

__all__ = ["LIVE", "Flow", "ShortFlow", "flows", "short_flows", "state_names"]

LIVE = frozenset({"FLOW_OPEN", "FLOW_MOVING", "FLOW_RECOVERED", "FLOW_FALLBACK"})
"""The states of connections that have not been closed by their clients."""

_EMPTY = bytes(8)
_CLUSTER_MASK = (1 << ROUTE_CLUSTER_BITS) - 1
_BATCH_BYTES = 1 << 16  # of the table that are read at a time
_SHORT = ("client", "server", "client_port", "server_port", "backend", "cluster", "state")


@dataclass(frozen=True, slots=True)
class Flow:
    """One entry: `struct flow` by its members' names. Tables of another process or CPU: it may be gone by now."""

    fields: Mapping[str, Any]
    state: str

    @property
    def connection(self) -> Connection:
        """Its client, VIP and ports, as in memory."""
        named = self.fields["tuple"]
        return named["client"], named["server"], named["client_port"], named["server_port"]

    @property
    def client(self) -> tuple[IPv4Address, int]:
        """Address and port."""
        named = self.fields["tuple"]
        return tables.address(named["client"]), socket.ntohs(named["client_port"])

    @property
    def server(self) -> tuple[IPv4Address, int]:
        """Address and port of the VIP."""
        named = self.fields["tuple"]
        return tables.address(named["server"]), socket.ntohs(named["server_port"])

    @property
    def backend(self) -> int:
        """Its number."""
        return int(self.fields["backend"])

    @property
    def cluster(self) -> int:
        """Its number; that of the route is above it, if requests are labelled."""
        return int(self.fields["cluster"]) & _CLUSTER_MASK


class ShortFlow(NamedTuple):
    """What one wants to know of most entries: addresses and ports as in memory, numbers, and `enum flow_state`."""

    client: int
    server: int
    client_port: int
    server_port: int
    backend: int
    cluster: int
    state: int


def short_flows(ingress: BpfObject) -> Iterator[ShortFlow]:
    """As `flows`, ten times as fast, and with no more than a piece of the table in memory: to count and to search."""
    flow_set, ways = _layouts(ingress)
    codec, first, width = _short_codec(ways.layout.element), ways.offset, ways.layout.size
    size = flow_set.size
    for _, table, count in ingress.maps["flows"].raw_batches(_BATCH_BYTES // size):
        for start in range(first, count * size, size):
            for client, server, client_port, server_port, backend, cluster, state in codec.iter_unpack(
                table[start : start + width]
            ):
                if client or server:
                    yield ShortFlow(client, server, client_port, server_port, backend, cluster & _CLUSTER_MASK, state)


def state_names(ingress: BpfObject) -> dict[int, str]:
    """The names of `enum flow_state`, FLOW_OPEN and so on, by number."""
    return {number: name for name, number in ingress.btf.enum("flow_state").items()}


def _layouts(ingress: BpfObject) -> tuple[StructLayout, _Ways]:
    flow_set = ingress.btf.struct("flow_set")
    if not isinstance(flow_set, StructLayout):
        raise TypeError("struct flow_set is no struct")
    ways = flow_set.members["flow"]
    if not isinstance(ways.layout, ArrayLayout):
        raise TypeError("flow_set.flow is no array")
    return flow_set, _Ways(ways.offset, ways.layout)


class _Ways(NamedTuple):
    """Where the entries of a set are in it."""

    offset: int
    layout: ArrayLayout


def _short_codec(flow: Layout) -> struct.Struct:
    """Of `struct flow`, the members of a ShortFlow, which stand there in this order."""
    assert isinstance(flow, StructLayout)
    four = flow.members["tuple"]
    assert isinstance(four.layout, StructLayout)
    places = {name: (four.offset + one.offset, one.layout) for name, one in four.layout.members.items()}
    places |= {name: (one.offset, one.layout) for name, one in flow.members.items()}
    template, at = "=", 0
    for name in _SHORT:
        offset, layout = places[name]
        assert isinstance(layout, IntLayout), name
        assert layout.codec is not None, name
        template += f"{offset - at}x{layout.codec.format[1:]}"
        at = offset + layout.size
    return struct.Struct(f"{template}{flow.size - at}x")


def flows(ingress: BpfObject) -> Iterator[Flow]:
    """All entries of a router's flow table, as they are read: each one at one moment, not all at the same."""
    flow_set, ways = _layouts(ingress)
    element, states = ways.layout.element, state_names(ingress)
    size, width, first = flow_set.size, ways.layout.size, ways.offset
    nothing = bytes(size)
    for _, sets, count in ingress.maps["flows"].raw_batches(_BATCH_BYTES // size):
        for start in range(0, count * size, size):
            if sets[start : start + size] == nothing:
                continue
            for at in range(start + first, start + first + width, element.size):
                if sets[at : at + len(_EMPTY)] != _EMPTY:
                    fields = element.unpack_from(sets, at)
                    yield Flow(fields, states.get(fields["state"], str(fields["state"])))
