"""Questions about a router's flow table: how many, whose, and where.

The table may have millions of entries, and is read whole for each of them; nothing is kept of it but what is asked for.
"""

from __future__ import annotations

import heapq
import socket
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rauta import tables
from rauta.contract import FALLBACK_BACKEND
from rauta.errors import RautaError
from rauta.flows import LIVE, ShortFlow, short_flows, state_names
from rauta.ids import Names
from rauta.processes.asked import ClientName
from rauta.router import Router

__all__ = ["Wanted", "flow_fields", "live_by_backend", "survey"]

_PARTS = 64
_SPREAD = 0x9E3779B1
_FALLBACK = "fallback"


@dataclass(frozen=True)
class Wanted:
    """Which entries: those of a client, of a backend, in some states; None if it does not matter. As in memory."""

    client: int | None = None
    port: int | None = None
    backend: int | None = None
    states: frozenset[int] | None = None

    @classmethod
    def of(cls, router: Router, client: ClientName | None, backend: str | None, state: str | None) -> Wanted:
        """By names. `state`: one of `enum flow_state`'s, as in "open", or "live". RautaError if there is none such."""
        return cls(
            client=tables.be32(client[0]) if client else None,
            port=tables.be16(client[1]) if client and client[1] else None,
            backend=_backend(router, backend) if backend else None,
            states=_states_of(router, state) if state else None,
        )

    def __contains__(self, flow: ShortFlow) -> bool:
        return (
            (self.client is None or flow.client == self.client)
            and (self.port is None or flow.client_port == self.port)
            and (self.backend is None or flow.backend == self.backend)
            and (self.states is None or flow.state in self.states)
        )


def survey(router: Router, wanted: Wanted, limit: int, top: int) -> dict[str, Any]:
    """All entries by state; of those that are wanted how many, the first ones, and the clients that have most."""
    states, names = state_names(router.object), router.names
    counts: Counter[int] = Counter()
    found: list[dict[str, Any]] = []
    parts = [array("I") for _ in range(_PARTS)] if top else []
    matching = 0
    for flow in short_flows(router.object):
        counts[flow.state] += 1
        if flow not in wanted:
            continue
        matching += 1
        if len(found) < limit:
            found.append(flow_fields(flow, names, states))
        if top:
            parts[(flow.client * _SPREAD >> 24) % _PARTS].append(flow.client)
    return {
        "capacity": router.config.flows,
        "states": {_short(states.get(state, str(state))): number for state, number in sorted(counts.items())},
        "matching": matching,
        "flows": found,
        "top": [{"client": str(tables.address(client)), "flows": number} for client, number in _most(parts, top)],
    }


def live_by_backend(router: Router) -> Counter[str]:
    """Connections that their clients have not closed, by the backend's name."""
    live, names = _states_of(router, "live"), router.names.backends
    numbers = Counter(flow.backend for flow in short_flows(router.object) if flow.state in live)
    counted: Counter[str] = Counter()
    for number, flows in numbers.items():
        counted[names.get(number, "")] += flows
    return counted


def _most(parts: Iterable[array[int]], top: int) -> list[tuple[int, int]]:
    """The values that are there most often, and how often. A value is in one part: only one is counted at a time."""
    best: list[tuple[int, int]] = []
    for part in parts:
        best = heapq.nlargest(top, [*best, *Counter(part).items()], key=lambda one: one[1])
    return best


def flow_fields(flow: ShortFlow, names: Names, states: dict[int, str]) -> dict[str, Any]:
    """A flow as JSON. `states`: the names of `enum flow_state`."""
    state = states.get(flow.state, str(flow.state))
    client, server = tables.address(flow.client), tables.address(flow.server)
    client_port, server_port = socket.ntohs(flow.client_port), socket.ntohs(flow.server_port)
    return {
        "client": f"{client}:{client_port}",
        "vip": f"{server}:{server_port}",
        "state": state.removeprefix("FLOW_").lower(),
        "backend": names.backends.get(flow.backend, "fallback" if state == "FLOW_FALLBACK" else None),
        "cluster": names.clusters.get(flow.cluster) if state != "FLOW_FALLBACK" else None,
    }


def _short(state: str) -> str:
    return state.removeprefix("FLOW_").lower()


def _states_of(router: Router, wanted: str) -> frozenset[int]:
    numbers = {number: _short(name) for number, name in state_names(router.object).items()}
    live = {_short(name) for name in LIVE}
    found = frozenset(number for number, name in numbers.items() if name in (live if wanted == "live" else {wanted}))
    if not found:
        there = ", ".join(["live", *numbers.values()])
        raise RautaError(f"looking for flows in state {wanted[:80]!r}", "there is no such state", f"States: {there}.")
    return found


def _backend(router: Router, name: str) -> int:
    """Also of one that is configured no more, but has connections; if several had the name, of the present one."""
    if name == _FALLBACK and router.config.fallback is not None:
        return FALLBACK_BACKEND
    if name not in router.config.backends():
        for number, one in router.names.backends.items():
            if one == name:
                return number
    return router.ids.backend(router.config, name)
