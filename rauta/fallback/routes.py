"""The routes of a VIP as a proxy's configuration has to say them: in the order in which the router tries them.

The router (bpf/route.h) looks at the host name first, then for the exact path, then for prefixes from the longest to
"/"; at each, a route for the request's method comes before one for any.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rauta.config import Config, Route, Vip
from rauta.files import paths

__all__ = ["HostRoutes", "by_host", "cluster_names", "is_drained", "vip_names"]

_ByMethod = dict[str | None, str]


@dataclass(frozen=True)
class HostRoutes:
    """The routes for one host name of a VIP."""

    routes: Sequence[Route]
    """in the order in which they are tried, if each is compared with the request by itself"""
    _exact: dict[str, _ByMethod] = field(default_factory=dict, repr=False)
    _prefix: dict[str, _ByMethod] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, routes: Sequence[Route]) -> HostRoutes:
        """Of one host name's routes, in any order."""
        found = cls(sorted(routes, key=lambda one: (one.exact is None, -len(one.path), one.method is None)))
        for route in found.routes:
            by_path = found._prefix if route.exact is None else found._exact
            by_path.setdefault(route.path, {})[route.method] = route.cluster
        return found

    def choices(self, path: str, *, below: bool = False) -> list[tuple[str | None, str]]:
        """Method (None: any) and cluster of the routes that requests for a path may take; the first that fits counts.

        `below`: for all paths that begin with this one and a slash, but those that another route names. Nothing comes
        behind a route for any method; if none is for any, requests with other methods have no route.
        """
        found: dict[str | None, str] = {}
        for candidates in self._candidates(path, below):
            for method in sorted(candidates, key=lambda one: one is None):
                found.setdefault(method, candidates[method])
            if None in found:
                break
        return list(found.items())

    def _candidates(self, path: str, below: bool) -> Iterator[_ByMethod]:
        if not below and path in self._exact:
            yield self._exact[path]
        segments = paths.segments(path)
        for depth in range(len(segments), -1, -1):
            prefix = "".join(f"/{segment}" for segment in segments[:depth]) or "/"
            if prefix in self._prefix and (prefix != "/" or depth == 0):
                yield self._prefix[prefix]


def by_host(vip: Vip) -> dict[str | None, HostRoutes]:
    """A VIP's routes by host name; those for any host, under None, are always there and come first."""
    found: dict[str | None, list[Route]] = {None: []}
    for route in vip.routes:
        found.setdefault(route.host, []).append(route)
    return {host: HostRoutes.of(routes) for host, routes in found.items()}


def cluster_names(config: Config) -> dict[str, str]:
    """What the clusters are called in a proxy's configuration, by their names.

    With their numbers, because nginx takes names for the same that differ in the case of letters only.
    """
    return {cluster.name: f"cluster-{number}-{cluster.name}" for number, cluster in enumerate(config.clusters)}


def vip_names(config: Config) -> dict[str, str]:
    """Likewise the VIPs."""
    return {vip.name: f"vip-{number}-{vip.name}" for number, vip in enumerate(config.vips)}


def is_drained(config: Config, cluster: str) -> bool:
    """Whether no backend of the cluster of that name has any weight."""
    return not any(backend.weight for one in config.clusters if one.name == cluster for backend in one.backends)
