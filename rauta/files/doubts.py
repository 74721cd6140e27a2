"""What is allowed in a configuration, but probably not what was meant: warnings, each with its place.

A mistake (rauta.files.references) contradicts something, and the file is refused. A doubt is about a file that works as
it says: `rauta check` prints it, and `--strict` makes it count. The bar is that a person who meant it would have
written it otherwise, or not at all; a drained backend or a VIP without the prefix "/" is nothing to doubt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

from rauta.config import Cluster, Config, Route, Vip
from rauta.files import paths
from rauta.files.mistakes import Location, Mistake

__all__ = ["Doubt", "doubts"]

_ALL_METHODS = frozenset(get_args(get_args(Route.model_fields["method"].annotation)[0]))
_HTTPS = 443
_ANY_ADDRESS = "0.0.0.0"


@dataclass(frozen=True, slots=True)
class Doubt:
    """One warning. `path` leads to it through the file's mappings and lists; `advice` says what to look at."""

    path: Location
    problem: str
    advice: str

    @property
    def field(self) -> str:
        """The path as text: vips[0].routes[1].prefix."""
        return Mistake(self.path, "").field

    def __str__(self) -> str:
        return f"{self.field}: {self.problem} ({self.advice})"


def doubts(config: Config) -> Iterator[Doubt]:
    """Everything that is doubtful, VIPs first."""
    clusters = {cluster.name: cluster for cluster in config.clusters}
    for number, vip in enumerate(config.vips):
        where: Location = ("vips", number)
        yield from _vip(config, vip, where)
        yield from _drained(vip, clusters, where)
        yield from _covered_methods(vip, where)
        yield from _lonely_hosts(vip, where)
    used = {route.cluster for vip in config.vips for route in vip.routes}
    for number, cluster in enumerate(config.clusters):
        yield from _cluster(cluster, cluster.name in used, ("clusters", number))
    yield from _metrics(config)


# ---- VIPs and routes --------------------------------------------------------------------------------------


def _vip(config: Config, vip: Vip, where: Location) -> Iterator[Doubt]:
    if not vip.routes:
        gets = {404: "a 404", "reset": "a reset", "fallback": "the fallback"}[vip.no_route]
        yield Doubt((*where, "routes"), f"has no routes: every request gets {gets}", "add one, or remove the VIP")
    if vip.port == _HTTPS and config.fallback is None:
        problem = "is the port of HTTPS, and TLS is reset where there is no fallback"
        yield Doubt((*where, "port"), problem, "RAUTA routes HTTP/1 without TLS")


def _drained(vip: Vip, clusters: dict[str, Cluster], where: Location) -> Iterator[Doubt]:
    """Routes to where nobody serves."""
    for index, route in enumerate(vip.routes):
        if not any(clusters[route.cluster].weights().values()):
            problem = f"{route.cluster} has no backend with any weight: every request of the route gets a 503"
            yield Doubt((*where, "routes", index, "cluster"), problem, "give one of its backends a weight above 0")


def _covered_methods(vip: Vip, where: Location) -> Iterator[Doubt]:
    """Routes for any method, where each method has a route of its own."""
    methods: dict[tuple[str | None, str | None, str], set[str]] = {}
    for route in vip.routes:
        if route.method is not None:
            methods.setdefault((route.host, route.exact, route.path), set()).add(route.method)
    for index, route in enumerate(vip.routes):
        if route.method is None and methods.get((route.host, route.exact, route.path), set()) >= _ALL_METHODS:
            problem = "matches nothing: each method has a route of its own for this host and path"
            yield Doubt((*where, "routes", index), problem, "remove it, or one of those")


def _lonely_hosts(vip: Vip, where: Location) -> Iterator[Doubt]:
    """Hosts that routes for more hosts do not count for, though these would take what the host's own leave."""
    whole = {route.host for route in vip.routes if route.prefix == "/" and route.method is None}
    seen: set[str] = set()
    for index, route in enumerate(vip.routes):
        host = route.host
        if host is None or host in seen:
            continue
        seen.add(host)
        wider = next((name for name in _wider(vip, host) if name in whole), host)
        if host not in whole and wider != host:
            whose = "any host" if wider is None else wider
            problem = f"{host} has no route for the prefix / of its own, and that of {whose} does not count for it"
            advice = f"a host that is named has its own routes only; add {{host: {host!r}, prefix: /, cluster: …}}"
            yield Doubt((*where, "routes", index, "host"), problem, advice)


def _wider(vip: Vip, host: str) -> list[str | None]:
    """Who else's routes a request for this host might be meant for: wildcards that fit, the longest first, and any."""
    name = host.removeprefix("*")
    wildcards = {route.host for route in vip.routes if route.host is not None and route.host.startswith(paths.WILDCARD)}
    fitting = [one for one in wildcards if one != host and name.endswith(one.removeprefix("*"))]
    return [*sorted(fitting, key=len, reverse=True), None]


# ---- clusters, and where figures are served ---------------------------------------------------------------


def _cluster(cluster: Cluster, used: bool, where: Location) -> Iterator[Doubt]:
    if not used:
        yield Doubt((*where, "name"), f"no route leads to {cluster.name}", "add one, or remove the cluster")
    first: dict[tuple[object, int], str] = {}
    for index, backend in enumerate(cluster.backends):
        other = first.setdefault((backend.address, backend.port), backend.name)
        if other != backend.name:
            problem = f"{backend.address}:{backend.port} is {other}, too, which so gets the share of both"
            yield Doubt((*where, "backends", index, "address"), problem, "one name for one server, and a weight")


def _metrics(config: Config) -> Iterator[Doubt]:
    """Ports that could not both be listened on if a router and an agent share a host, as they do with a fallback."""
    metrics = config.metrics
    if metrics is None:
        return
    if metrics.agents is not None and _collide(metrics.listen, metrics.agents):
        problem = f"port {metrics.agents[1]} is also the router's, and only one of them gets it on a host with both"
        yield Doubt(("metrics", "agents"), problem, "another port for the agents")
    for name, port in config.fallback_ports().items():
        if metrics.listen[1] == port:
            problem = f"port {port} is that of the VIP {name} at the fallback, on the same host"
            yield Doubt(("metrics", "listen"), problem, "another port")


def _collide(one: tuple[str, int], other: tuple[str, int]) -> bool:
    return one[1] == other[1] and (one[0] == other[0] or _ANY_ADDRESS in (one[0], other[0]))
