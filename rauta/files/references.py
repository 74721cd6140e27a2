"""What the fields of a configuration must agree on with each other: names, listeners, routes, local ports.

These checks read the raw file, not the validated models: one mistyped port elsewhere must not hide an unknown cluster
here. So a value of the wrong kind is passed over in silence; the models in rauta.config report it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from itertools import chain
from typing import Any, TypeVar

from pydantic import BaseModel

from rauta.contract import MAX_BACKENDS, MAX_ROUTES
from rauta.files import paths
from rauta.files.mistakes import Location, Mistake
from rauta.units import SECONDS, split

__all__ = ["HEALTH_INTERVAL", "mistakes", "seconds"]

HEALTH_INTERVAL, MAX_TIMEOUT = 2.0, 60.0
"""seconds, where the file says nothing"""

Value = TypeVar("Value")

_MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class _Entry:
    """A mapping somewhere in the file, and the path to it."""

    path: Location
    fields: Mapping[str, Any]

    def each(self, name: str) -> list[_Entry]:
        """The mappings in the list that a field holds."""
        items = self.fields.get(name)
        items = items if isinstance(items, (list, tuple)) else []
        return [_Entry((*self.path, name, i), item) for i, item in enumerate(items) if isinstance(item, Mapping)]

    def inner(self, name: str) -> list[_Entry]:
        """The mapping that a field holds; none if it holds something else."""
        value = self.fields.get(name)
        return [_Entry((*self.path, name), value)] if isinstance(value, Mapping) else []

    def text(self, name: str) -> str | None:
        """A field's value if it is text."""
        value = self.fields.get(name)
        return value if isinstance(value, str) else None

    def address(self) -> IPv4Address | None:
        return _parsed(IPv4Address, self.fields.get("address"))

    def endpoint(self) -> tuple[IPv4Address, int] | None:
        """Address and port, if both can be read."""
        address, port = self.address(), self.fields.get("port")
        return (address, port) if address and isinstance(port, int) else None

    def mistake(self, name: str, problem: str, allowed: str) -> Mistake:
        return Mistake((*self.path, name) if name else self.path, problem, allowed)


def mistakes(data: Any) -> Iterator[Mistake]:
    """Every contradiction between the fields of a raw configuration (a mapping, or a model)."""
    data = _raw(data)
    if not isinstance(data, Mapping):
        return
    root = _Entry((), data)
    vips, clusters = root.each("vips"), root.each("clusters")
    yield from _repeated(vips, "name", lambda vip: vip.text("name"), "a name of its own for each VIP")
    yield from _repeated(clusters, "name", lambda cluster: cluster.text("name"), "a name of its own for each cluster")
    yield from _repeated(vips, "port", _Entry.endpoint, "one VIP for an address and port")
    for cluster in clusters:
        named = cluster.each("backends")
        yield from _repeated(named, "name", lambda backend: backend.text("name"), "each backend once in a cluster")
    for vip in vips:
        yield from _routes(vip)
    yield from _capacity(root, vips)
    yield from _interfaces(root)
    for cluster in clusters:
        yield from _health(cluster)
    yield from _unknown_clusters(vips, clusters)
    yield from _backends(clusters, MAX_BACKENDS - (root.fields.get("fallback") is not None))
    yield from _local_ports(vips, clusters)
    yield from _loops(root, vips, clusters)
    yield from _fallback(root, vips)


def _raw(data: Any) -> Any:
    """Models, which a program may pass instead of a file's mappings, as mappings of what was said of them."""
    if isinstance(data, BaseModel):
        return data.model_dump(exclude_unset=True)
    if isinstance(data, Mapping):
        return {key: _raw(value) for key, value in data.items()}
    return [_raw(item) for item in data] if isinstance(data, (list, tuple)) else data


def _parsed(parse: Callable[[Any], Value], value: Any) -> Value | None:
    """What `parse` makes of a value, or None if it refuses it. Numbers are no addresses here, but to ipaddress."""
    try:
        return None if isinstance(value, (int, float, type(None))) else parse(value)
    except (TypeError, ValueError):
        return None


def _where(path: Location) -> str:
    return Mistake(path, "").field


def _repeated(
    entries: Iterable[_Entry], field: str, key: Callable[[_Entry], Hashable | None], allowed: str
) -> Iterator[Mistake]:
    """Entries whose key an earlier one has already."""
    first: dict[Hashable, Location] = {}
    for entry in entries:
        value = key(entry)
        if value is None:
            continue
        if value in first:
            said = ":".join(map(str, value)) if isinstance(value, tuple) else repr(value)
            yield entry.mistake(field, f"{said} is taken by {_where(first[value])}", allowed)
        first.setdefault(value, entry.path)


def _routes(vip: _Entry) -> Iterator[Mistake]:
    """Routes with no path or two, and routes that say the same as an earlier one."""
    first: dict[Hashable, Location] = {}
    for route in vip.each("routes"):
        kinds = [kind for kind in ("exact", "prefix") if route.fields.get(kind) is not None]
        if len(kinds) != 1:
            problem = "has both `exact` and `prefix`" if kinds else "has neither `exact` nor `prefix`"
            yield route.mistake("", problem, "exactly one of them")
            continue
        key = _route_key(route, kinds[0])
        if key in first:
            yield route.mistake(
                "", f"names the same requests as {_where(first[key])}", "a host, path and method once in a VIP"
            )
        elif key is not None:
            first[key] = route.path


def _route_key(route: _Entry, kind: str) -> Hashable | None:
    """What a route matches, in the form in which routers compare it; None if a field of it is wrong."""
    path = _parsed(paths.exact_path if kind == "exact" else paths.prefix, route.text(kind))
    host = _host(route)
    if path is None or (host is None and route.fields.get("host") is not None):
        return None
    method = route.fields.get("method")
    return (host, kind, path, method) if isinstance(method, (str, type(None))) else None


def _capacity(root: _Entry, vips: Iterable[_Entry]) -> Iterator[Mistake]:
    """More routes or hosts than there are numbers for, or than the file itself says that there is room for."""
    routes = sum(len(vip.each("routes")) for vip in vips)
    hosts = sum(len({_host(route) for route in vip.each("routes")} - {None}) for vip in vips)
    if routes > MAX_ROUTES:
        yield root.mistake("vips", f"have {routes} routes", f"at most {MAX_ROUTES} in all VIPs")
    for capacity in root.inner("capacity"):
        for name, there in (("routes", routes), ("hosts", hosts)):
            room = capacity.fields.get(name)
            if isinstance(room, int) and 1 <= room < there:
                yield capacity.mistake(name, f"{room} is less than the file has", f"at least {there}, or leave it out")


def _host(route: _Entry) -> str | None:
    """A route's host in the form in which routers compare it; None for any, and for what is no host name."""
    return _parsed(paths.host_name, route.text("host"))


def _interfaces(root: _Entry) -> Iterator[Mistake]:
    """Interfaces that are named twice: a router attaches to each once."""
    named = root.fields.get("interfaces")
    seen: dict[str, int] = {}
    for index, name in enumerate(named if isinstance(named, (list, tuple)) else ()):
        if isinstance(name, str) and seen.setdefault(name, index) != index:
            where = ("interfaces", index)
            yield Mistake(where, f"{name!r} is taken by interfaces[{seen[name]}]", "each interface once")


def _health(cluster: _Entry) -> Iterator[Mistake]:
    """What is said of an HTTP check where the check is a TCP connection, and what no check could pass.

    Nor may a check be still under way when the next one is due.
    """
    for health in cluster.inner("health"):
        dumped = "http" in health.fields and health.fields.get("status") in ([200], (200,))  # a model's own default
        for name in ("host",) if dumped else ("host", "status"):
            if health.fields.get(name) is not None and health.fields.get("http") is None:
                remedy = "with `http: /path`; without it, a check is a TCP connection"
                yield health.mistake(name, "is for HTTP checks, and there is no `http`", remedy)
        if health.fields.get("status") in ([], ()):
            yield health.mistake("status", "names no status, so that every check fails", "at least one, such as [200]")
        if (host := health.text("host")) is not None and host.startswith(paths.WILDCARD):
            yield health.mistake("host", f"{host!r} names no single host", "a name without a wildcard")
        yield from _timeout(health)


def _timeout(health: _Entry) -> Iterator[Mistake]:
    timeout = seconds(health.fields.get("timeout", 0.0))
    interval = seconds(health.fields.get("interval", HEALTH_INTERVAL))
    if timeout is not None and interval is not None and interval < timeout <= MAX_TIMEOUT:
        problem = f"{timeout:g} s is longer than the interval, {interval:g} s"
        yield health.mistake("timeout", problem, f"at most {interval:g}s")


def seconds(duration: Any) -> float | None:
    """A duration as a file has it, or a model; None if it is none."""
    if isinstance(duration, float):
        return duration
    try:
        number, unit = split(duration)
    except ValueError:
        return None
    return number * SECONDS[unit] if unit in SECONDS else None


def _unknown_clusters(vips: Iterable[_Entry], clusters: Iterable[_Entry]) -> Iterator[Mistake]:
    names = {name: None for cluster in clusters if (name := cluster.text("name"))}  # many, in the file's order
    for route in chain.from_iterable(vip.each("routes") for vip in vips):
        name = route.text("cluster")
        if name is not None and name not in names:
            yield route.mistake(
                "cluster", f"no cluster is called {name!r}", ", ".join(names) or "define it under `clusters`"
            )


def _backends(clusters: Iterable[_Entry], limit: int) -> Iterator[Mistake]:
    """One name at two places, and more backends than the routers' tables hold: a fallback is one more there."""
    first: dict[str, tuple[Hashable, Location]] = {}
    for backend in chain.from_iterable(cluster.each("backends") for cluster in clusters):
        name, endpoint = backend.text("name"), backend.endpoint()
        if name is None or endpoint is None:
            continue
        known, where = first.setdefault(name, (endpoint, backend.path))
        if known != endpoint and where[:2] != backend.path[:2]:  # within one cluster it is a repeated name
            problem = f"{name!r} has another address or port in {_where(where)}"
            yield backend.mistake("name", problem, "the same address and port wherever a backend is named")
        elif len(first) == limit + 1 and where == backend.path:
            less = "" if limit == MAX_BACKENDS else ", one less with a fallback"
            yield backend.mistake("", f"is the backend number {len(first)}", f"at most {limit} in all clusters{less}")


def _local_ports(vips: Iterable[_Entry], clusters: Iterable[_Entry]) -> Iterator[Mistake]:
    """Agents translate a VIP's address and port to one local address and port, and back: neither way may be ambiguous.

    Two VIPs on one local port collide when a client uses its own port again. One VIP on two ports of a host leaves the
    agent to guess, because an encapsulated packet does not say which cluster it was routed to.
    """
    backends = {cluster.text("name"): cluster.each("backends") for cluster in clusters}
    vip_of: dict[tuple[IPv4Address, int], _Entry] = {}
    for vip in vips:
        port_of: dict[IPv4Address, int] = {}
        for route in _first_routes(vip):
            for address, port in filter(None, map(_Entry.endpoint, backends.get(route.text("cluster"), []))):
                other = vip_of.setdefault((address, port), vip)
                if other is not vip:
                    problem = f"{address}:{port} is already reached through {_where(other.path)}"
                    yield route.mistake("cluster", problem, "on each backend, a port of its own for each VIP")
                    break  # the cluster's other backends would say the same
                if port_of.setdefault(address, port) != port:
                    problem = (
                        f"{address} is reached on port {port}, but on {port_of[address]} by the same VIP elsewhere"
                    )
                    yield route.mistake("cluster", problem, "one port of a backend's address for all routes of a VIP")
                    break


def _first_routes(vip: _Entry) -> list[_Entry]:
    """The first route of a VIP to each cluster."""
    first: dict[str, _Entry] = {}
    for route in vip.each("routes"):
        name = route.text("cluster")
        if name is not None:
            first.setdefault(name, route)
    return list(first.values())


def _loops(root: _Entry, vips: Iterable[_Entry], clusters: Iterable[_Entry]) -> Iterator[Mistake]:
    """Addresses that play two parts: packets to them would come back to the router, or never reach it."""
    virtual = {address for vip in vips if (address := vip.address())}
    encapsulation = root.fields.get("encapsulation")
    source = encapsulation.get("source") if isinstance(encapsulation, Mapping) else None
    sources = _parsed(IPv4Network, source)
    backends = list(chain.from_iterable(cluster.each("backends") for cluster in clusters))
    for backend in backends:
        if backend.address() in virtual:
            yield backend.mistake("address", f"{backend.address()} is also a VIP", "the backend's own address")
    for entry in (*vips, *backends):
        address = entry.address()
        if sources and address and address in sources:
            yield entry.mistake("address", f"{address} is in encapsulation.source", f"an address outside {sources}")


def _fallback(root: _Entry, vips: list[_Entry]) -> Iterator[Mistake]:
    """VIPs that count on a fallback which is not there, or that would have no port at it."""
    fallback = root.fields.get("fallback")
    for vip in vips:
        if fallback is None and vip.fields.get("no_route") == "fallback":
            yield vip.mistake("no_route", "there is no `fallback`", "404 or reset; or add `fallback: {port: 8000}`")
    port = fallback.get("port") if isinstance(fallback, Mapping) else None
    if not isinstance(port, int) or port > _MAX_PORT:
        return
    last = port + len(vips) - 1
    if last > _MAX_PORT:
        problem = f"VIP number {len(vips)} would have port {last}"
        yield Mistake(("fallback", "port"), problem, f"at most {_MAX_PORT - len(vips) + 1} with {len(vips)} VIPs")
