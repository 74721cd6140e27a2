"""The flow table of a router, read: who is connected to what."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any, NamedTuple

from rauta import tables
from rauta.bpf import BpfObject
from rauta.bpf.layout import ArrayLayout, IntLayout, Layout, StructLayout
from rauta.contract import ROUTE_CLUSTER_BITS
from rauta.segments import Connection

__all__ = ["LIVE", "Flow", "FlowCounts", "ShortFlow", "count_flows", "flows", "short_flows", "state_names"]

LIVE = frozenset({"FLOW_OPEN", "FLOW_MOVING", "FLOW_RECOVERED", "FLOW_FALLBACK"})
"""The states of connections that have not been closed by their clients."""

_EMPTY = bytes(8)
_NONE = 0xFF  # in the place of a state, where there is no entry
_FREE = bytes([_NONE]) + bytes(255)  # by the low byte of a way's tag, which is odd if there is an entry
_SETS_AT_ONCE = 512
_TAG_LOW = 0 if sys.byteorder == "little" else 3
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


@dataclass(frozen=True)
class FlowCounts:
    """How many entries there are, by state as in `rauta_flows`' label, and how many sets have no room for another one.

    `read` of the `sets` were counted, and what they hold was scaled up to all.
    """

    by_state: Mapping[str, int]
    full_sets: int
    sets: int
    read: int


def count_flows(ingress: BpfObject, most: int = 16384) -> FlowCounts:
    """Counts a router's flow table, without unpacking it: 131,072 entries take some ten ms, in 0.3 MB at a time.

    At most so many sets are read (or a few more): whose flow is in which, a secret hash says, so the first ones are a
    fair sample of all.
    """
    table = ingress.maps["flows"]
    states = {name.removeprefix("FLOW_").lower(): n for name, n in ingress.btf.enum("flow_state").items()}
    tags, entries = (_bytes_of_ways(ingress, member) for member in ("tag", "flow"))
    counts, full, read = dict.fromkeys(states, 0), 0, 0
    for _, batch, count in table.raw_batches(_SETS_AT_ONCE):
        free = [batch[at :: table.value_size].translate(_FREE) for at in tags]
        found = _either(b"".join(batch[at :: table.value_size] for at in entries), b"".join(free))
        for name, number in states.items():
            counts[name] += found.count(number)
        some_free = free[0]
        for way in free[1:]:
            some_free = _either(some_free, way)
        full, read = full + some_free.count(0), read + count
        if read >= most:
            break
    scale = table.max_entries / read
    return FlowCounts(
        {name: round(count * scale) for name, count in counts.items()}, round(full * scale), table.max_entries, read
    )


def _bytes_of_ways(ingress: BpfObject, member: str) -> list[int]:
    """Where in a set the byte of each way is that says its state (`flow`), or whether there is an entry (`tag`)."""
    flow_set = ingress.btf.struct("flow_set")
    if not isinstance(flow_set, StructLayout):
        raise TypeError("struct flow_set is no struct")
    ways = flow_set.members[member]
    if not isinstance(ways.layout, ArrayLayout):
        raise TypeError(f"flow_set.{member} is no array")
    element = ways.layout.element
    within = element.members["state"].offset if isinstance(element, StructLayout) else _TAG_LOW
    return [ways.offset + way * element.size + within for way in range(ways.layout.length)]


def _either(one: bytes, other: bytes) -> bytes:
    """Byte by byte, whatever is set in either."""
    both = int.from_bytes(one, "little") | int.from_bytes(other, "little")
    return both.to_bytes(len(one), "little")
