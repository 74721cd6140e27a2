"""The flow table of a router, read: who is connected to what."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from rauta import tables
from rauta.bpf import BpfObject
from rauta.bpf.layout import ArrayLayout, StructLayout
from rauta.contract import MAX_CLUSTERS
from rauta.segments import Connection

__all__ = ["LIVE", "Flow", "flows"]

LIVE = frozenset({"FLOW_OPEN", "FLOW_MOVING", "FLOW_RECOVERED", "FLOW_FALLBACK"})
"""The states of connections that have not been closed by their clients."""

_EMPTY = bytes(8)
_SETS = 256  # read at a time: a table may have millions of entries, and a daemon should stay small


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
        """Its number."""
        return int(self.fields["cluster"]) % MAX_CLUSTERS  # with labels, a route's word


def flows(ingress: BpfObject) -> Iterator[Flow]:
    """All entries of a router's flow table, as they are read: each one at one moment, not all at the same."""
    flow_set = ingress.btf.struct("flow_set")
    if not isinstance(flow_set, StructLayout):
        raise TypeError("struct flow_set is no struct")
    ways = flow_set.members["flow"]
    if not isinstance(ways.layout, ArrayLayout):
        raise TypeError("flow_set.flow is no array")
    element, states = ways.layout.element, {n: name for name, n in ingress.btf.enum("flow_state").items()}
    size, width, first = flow_set.size, ways.layout.size, ways.offset
    nothing = bytes(size)
    for _, sets, count in ingress.maps["flows"].raw_batches(_SETS):
        for start in range(0, count * size, size):
            if sets[start : start + size] == nothing:
                continue
            for at in range(start + first, start + first + width, element.size):
                if sets[at : at + len(_EMPTY)] != _EMPTY:
                    fields = element.unpack_from(sets, at)
                    yield Flow(fields, states.get(fields["state"], str(fields["state"])))
