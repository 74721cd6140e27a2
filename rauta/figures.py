"""What an agent has counted by route (bpf/figures.h), and for which routes it counts at all.

The map `figures` has an entry for each route of the configuration by its fingerprint (rauta.fingerprints), and one more
for requests of which no route is known. So a count belongs to its route whatever becomes of the others, and a process
that starts again on the same map needs to know nothing else. Connections remember fingerprints, too: an answer to a
request whose route has gone meanwhile finds no entry, and counts as not known.

All entries are made when the object is loaded (BPF_F_NO_PREALLOC would save those that the configuration has no route
for, but then the kernel refuses new per-CPU memory after some ten thousand in a row).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

from rauta.bpf import GracePeriod, Map, possible_cpus
from rauta.bpf.layout import Layout, StructLayout, same_layout
from rauta.capacity import capacity, require_room
from rauta.config import Config, Route
from rauta.fingerprints import UNKNOWN, briefs, fingerprints
from rauta.ids import route_name
from rauta.latency import FIRST_BYTE_BOUNDS, Histogram

__all__ = ["STATUSES", "AgentRoute", "RouteFigures"]

STATUSES = ("unread", "1xx", "2xx", "3xx", "4xx", "5xx")
"""what answers are counted by, in the order of `struct route_figures`"""

_WORD, _NS = 8, 1e-9
_KEY, _BRIEF = struct.Struct("=Q"), struct.Struct("=I")
_BATCH = 2048  # entries read or written at a time: about a megabyte with two CPUs
_NO_STATUSES: Mapping[str, int] = MappingProxyType(dict.fromkeys(STATUSES, 0))
_NO_TIMES = Histogram((0,) * len(FIRST_BYTE_BOUNDS), 0.0, FIRST_BYTE_BOUNDS)

_Counted: TypeAlias = tuple[str, Route, int]
"""VIP, route, fingerprint"""


@dataclass(frozen=True)
class AgentRoute:
    """What an agent has counted of one route of a VIP, or of requests whose route it does not know (`route` is None).

    `statuses` are answers by "1xx" to "5xx", and "unread" where an answer has begun whose status could not be read;
    interim ones are 1xx, besides the answer that follows. `ttfb` has the times from a request's first segment, as it
    passed the agent, to the first byte of its answer, with `latency.FIRST_BYTE_BOUNDS`. Both lack what the agent could
    not follow: see docs/observability.md.
    """

    vip: str
    route: Route | None
    requests: int
    statuses: Mapping[str, int]
    ttfb: Histogram


class RouteFigures:
    """The maps `figures` and `briefs` of an agent; nobody else writes to them but its programs.

    `by_route`: whether it counts by route at all; without, everything is of no known route, and takes no room.
    """

    def __init__(self, maps: Mapping[str, Map], config: Config, *, by_route: bool) -> None:
        """`maps` are an object's, loaded or not."""
        self._figures, self._briefs = maps["figures"], maps["briefs"]
        self._by_route = by_route
        self._routes = self._counted(config)

    def size(self, config: Config) -> None:
        """Gives the maps room for as many routes as the configuration is to have, before the object is loaded."""
        room = capacity(config).routes if self._by_route else 0
        self._figures.set_max_entries(1 + room)
        self._briefs.set_max_entries(1 + room)

    def take_over(self, old: Map) -> None:
        """Goes on with the counts of a map of another size, of the routes that there are now.

        One of another layout is left alone.
        """
        if old.type != self._figures.type or not (
            _same(old.key_layout, self._figures.key_layout) and _same(old.value_layout, self._figures.value_layout)
        ):
            return
        wanted = self._wanted()
        for key, value in _entries(old):
            if key in wanted:
                self._figures.update(key, value)

    def require_room(self, config: Config) -> None:
        """RautaError if another configuration has too many routes."""
        if self._by_route:
            require_room(config, "agent", routes=self._figures.max_entries - 1)

    def follow(self, config: Config) -> None:
        """Goes on with the routes of a configuration: new ones begin at 0, what was counted of others is gone.

        While packets flow: no program counts for a route what it has begun to count for another.
        """
        self._routes = self._counted(config)
        wanted = self._wanted()
        there = {key for key, _ in _entries(self._figures)}
        short = briefs(wanted)
        shorts: dict[int, int] = dict(self._briefs.items_batch())
        outdated = {one for one, whose in shorts.items() if short.get(one) != whose}
        gone = there - wanted
        self._figures.delete_batch(map(_KEY.pack, gone))
        self._briefs.delete_batch(map(_BRIEF.pack, outdated))
        if gone or outdated:
            with GracePeriod() as grace:
                grace.wait()
        self._add([_KEY.pack(one) for one in wanted - there])
        self._briefs.update_batch((one, whose) for one, whose in short.items() if shorts.get(one) != whose)

    def read(self) -> list[AgentRoute]:
        """By route in the order of the configuration; last, what no route is known of."""
        members, width = _members(self._figures), self._figures.value_size // _WORD
        found = {
            key: {name: words[at] for name, at in members.items()}
            for key, value in self.raw()
            for words in (_totals(value, width),)
        }
        routes = [_summed(vip, route, found.get(one) if one else None) for vip, route, one in self._routes]
        return [*routes, _summed("", None, found.get(UNKNOWN))]

    def raw(self) -> Iterator[tuple[int, bytes]]:
        """What is not 0, by fingerprint or UNKNOWN: the `struct route_figures` of all CPUs side by side."""
        nothing = bytes(_stride(self._figures) * possible_cpus())
        return ((key, value) for key, value in _entries(self._figures) if value != nothing)

    def _counted(self, config: Config) -> list[_Counted]:
        routes = [(vip, route) for vip in config.vips for route in vip.routes] if self._by_route else []
        known = fingerprints(route_name(vip, route) for vip, route in routes)
        return [(vip.name, route, known.get(route_name(vip, route), UNKNOWN)) for vip, route in routes]

    def _wanted(self) -> set[int]:
        return {UNKNOWN, *(one for _, _, one in self._routes)}

    def _add(self, keys: Sequence[bytes]) -> None:
        zeros = bytes(_stride(self._figures) * possible_cpus())
        for at in range(0, len(keys), _BATCH):
            some = keys[at : at + _BATCH]
            self._figures.update_raw(b"".join(some), zeros * len(some), len(some))


def _same(old: Layout | None, new: Layout | None) -> bool:
    return old is not None and new is not None and same_layout(old, new)


def _stride(table: Map) -> int:
    return table.value_size + 7 & ~7  # kernel/bpf/syscall.c, bpf_map_value_size


def _entries(table: Map) -> Iterator[tuple[int, bytes]]:
    """Fingerprints, and the values of all CPUs as they lie in memory."""
    size = _stride(table) * possible_cpus()
    for keys, values, count in table.raw_batches(_BATCH):
        for number in range(count):
            yield _KEY.unpack_from(keys, number * _KEY.size)[0], values[number * size : (number + 1) * size]


def _summed(vip: str, route: Route | None, words: Mapping[str, Sequence[int]] | None) -> AgentRoute:
    if words is None:
        return AgentRoute(vip, route, 0, _NO_STATUSES, _NO_TIMES)
    return AgentRoute(
        vip,
        route,
        requests=words["requests"][0],
        statuses=dict(zip(STATUSES, words["statuses"], strict=True)),
        ttfb=Histogram(tuple(words["bucket"]), words["sum"][0] * _NS, FIRST_BYTE_BOUNDS),
    )


def _members(table: Map) -> dict[str, slice]:
    """Where `struct route_figures` has what, in words: it consists of __u64 and arrays of them."""
    if not isinstance(table.value_layout, StructLayout):
        raise TypeError(f"map '{table.name}' holds no struct")
    members = table.value_layout.members.items()
    return {name: slice(one.offset // _WORD, (one.offset + one.layout.size) // _WORD) for name, one in members}


def _totals(value: bytes, width: int) -> list[int]:
    """The words of all CPUs, added up: `width` of them each."""
    words = memoryview(value).cast("Q").tolist()
    return [sum(words[place::width]) for place in range(width)]
