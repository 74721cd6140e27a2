"""The numbers by which the packet path knows VIPs, clusters, backends and routes.

Flow entries, counters and other hosts' figures carry them, so a number stays with what it stands for from one
configuration to the next, and across restarts. What is gone keeps its number until nothing can mention it any more: a
connection of a removed backend must never be taken for one of the backend that comes next.

    ids = Ids().following(config)        of a first configuration: VIPs from 1, everything else from 0, in the file's
                                         order; backends in the order of their names
    ids = ids.following(changed)         what is new gets the smallest free numbers, nothing else changes
    ids = ids.without(retired)           what is not mentioned any more gives its number back
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TypeAlias, TypeVar

from rauta.config import Backend, Config, Route, Vip
from rauta.contract import FALLBACK_BACKEND, MAX_BACKENDS, MAX_CLUSTERS, MAX_VIPS
from rauta.errors import RautaError

__all__ = ["BackendName", "Ids", "Names", "RouteName", "backend_name", "route_label", "route_name", "route_tags"]

RouteName: TypeAlias = tuple[str, str | None, str, str, str | None]
"""VIP, host, "exact" or "prefix", path, method: what no two routes of a configuration share."""

BackendName: TypeAlias = tuple[str, str]
"""Name and address: one name at another address is another host."""

_Name = TypeVar("_Name", bound=Hashable)

_SHORT_TAGS = 0xFFFF  # the greatest that an order has room for
_LONG_TAGS = (1 << 32) - 1


def route_name(vip: Vip, route: Route) -> RouteName:
    """Whose requests the route is for; which cluster gets them may change."""
    return vip.name, route.host, "exact" if route.exact is not None else "prefix", route.path, route.method


def route_label(name: RouteName) -> str:
    """What a route is called in figures, on whichever host: twelve hexadecimal digits of a hash of its name.

    Two of 10,000 routes are called the same with a probability of 2e-7.
    """
    text = "\0".join("" if part is None else part for part in name)  # no part has a zero byte, or is empty
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def route_tags(config: Config) -> dict[RouteName, int]:
    """What packets to agents call each route (`struct label`), from 1: no two the same, at most 65,535 if that can be.

    They follow from the set of routes alone. So whoever has the same configuration knows them, whatever he had before;
    and a route keeps its tag when others come and go, unless their hashes are in each other's way.
    """
    by_label = sorted((route_label(name), name) for name in _route_names(config))
    room = _SHORT_TAGS if 2 * len(by_label) <= _SHORT_TAGS else _LONG_TAGS
    taken: set[int] = set()
    tags = {}
    for label, name in by_label:
        tag = int(label, 16) % room
        while tag in taken:
            tag = (tag + 1) % room
        taken.add(tag)
        tags[name] = tag + 1
    return tags


def backend_name(backend: Backend) -> BackendName:
    """Which host."""
    return backend.name, str(backend.address)


@dataclass(frozen=True)
class Ids:
    """Numbers by name; some of the names may be gone."""

    vips: Mapping[str, int] = field(default_factory=dict)
    clusters: Mapping[str, int] = field(default_factory=dict)
    backends: Mapping[BackendName, int] = field(default_factory=dict)
    routes: Mapping[RouteName, int] = field(default_factory=dict)

    def following(self, config: Config, routes: int | None = None) -> Ids:
        """The numbers of this configuration, and of all that had one before.

        `routes`: how many routes there may be numbers for. RautaError if they do not suffice.
        """
        has_fallback = config.fallback is not None
        return Ids(
            vips=_following(self.vips, (vip.name for vip in config.vips), 1, MAX_VIPS + 1, "VIPs"),
            clusters=_following(self.clusters, (one.name for one in config.clusters), 0, MAX_CLUSTERS, "clusters"),
            backends=_following(
                self.backends,
                map(backend_name, config.backends().values()),
                0,
                FALLBACK_BACKEND if has_fallback else MAX_BACKENDS,
                "backends",
            ),
            routes=_following(
                self.routes,
                (route_name(vip, route) for vip in config.vips for route in vip.routes),
                0,
                routes,
                "routes",
            ),
        )

    def renewed(self, clusters: Iterable[str]) -> Ids:
        """With other numbers for these clusters."""
        numbers = dict(self.clusters)
        for name in clusters:
            numbers[name] = _free(numbers, 0, MAX_CLUSTERS, "clusters")
        return replace(self, clusters=numbers)

    def gone(self, config: Config) -> Ids:
        """What has a number, but is not in the configuration."""
        now = Ids().following(config)
        return Ids(
            vips=_left(self.vips, now.vips),
            clusters=_left(self.clusters, now.clusters),
            backends=_left(self.backends, now.backends),
            routes=_left(self.routes, now.routes),
        )

    def without(self, gone: Ids) -> Ids:
        """What is named there gives its numbers back."""
        return Ids(
            vips=_left(self.vips, gone.vips),
            clusters=_left(self.clusters, gone.clusters),
            backends=_left(self.backends, gone.backends),
            routes=_left(self.routes, gone.routes),
        )

    def backend(self, config: Config, name: str) -> int:
        """The number of a backend of the configuration. RautaError if there is no backend of that name."""
        backends = config.backends()
        if name not in backends:
            known = ", ".join(backends) or "none"
            raise RautaError(f"looking for backend {name!r}", "there is none of that name", f"There are: {known}.")
        return self.backends[backend_name(backends[name])]

    def backend_indices(self, config: Config) -> dict[str, int]:
        """The numbers of the configuration's backends by name alone."""
        return {name: self.backends[backend_name(backend)] for name, backend in config.backends().items()}


@dataclass(frozen=True)
class Names:
    """What the numbers stand for; backends that are gone, but may still have connections, too."""

    vips: Mapping[int, str]
    clusters: Mapping[int, str]
    backends: Mapping[int, str]
    routes: Mapping[int, Route]

    @classmethod
    def of(cls, config: Config, ids: Ids) -> Names:
        """Of a configuration, by the numbers that it has."""
        return cls(
            vips={number: name for name, number in ids.vips.items()},
            clusters={number: name for name, number in ids.clusters.items()},
            backends={number: name for (name, _), number in ids.backends.items()},
            routes={ids.routes[route_name(vip, route)]: route for vip in config.vips for route in vip.routes},
        )


def _route_names(config: Config) -> Iterator[RouteName]:
    return (route_name(vip, route) for vip in config.vips for route in vip.routes)


def _following(
    before: Mapping[_Name, int], names: Iterable[_Name], first: int, end: int | None, what: str
) -> dict[_Name, int]:
    numbers = dict(before)
    taken, candidates = set(numbers.values()), count(first)
    for name in names:
        if name in numbers:
            continue
        number = next(candidate for candidate in candidates if candidate not in taken)
        numbers[name] = _within(number, end, what)
    return numbers


def _free(numbers: Mapping[_Name, int], first: int, end: int, what: str) -> int:
    taken = set(numbers.values())
    return _within(next(number for number in count(first) if number not in taken), end, what)


def _within(number: int, end: int | None, what: str) -> int:
    if end is not None and number >= end:
        raise RautaError(
            f"numbering {what}",
            f"all numbers below {end} are taken, by what is there or was there a moment ago",
            "Wait until connections of what was removed have ended, or restart with room for more (`capacity`).",
        )
    return number


def _left(numbers: Mapping[_Name, int], others: Container[_Name]) -> dict[_Name, int]:
    return {name: number for name, number in numbers.items() if name not in others}
