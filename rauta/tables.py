"""From a configuration to the contents of the BPF maps: pure functions, no kernel.

Keys and values are dicts by the member names of bpf/contract.h, ready for `Map.update_batch`; addresses and ports in
them are integers whose bytes in memory are in network order. What the packet path looks up by hash (host names and
paths) is hashed here exactly as contract.h defines.
"""

from __future__ import annotations

import socket
import sys
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any, TypeAlias

from rauta import fingerprints
from rauta.config import Backend, Config, Route, Vip
from rauta.contract import (
    BACKEND_LOCAL,
    MAGLEV_PACKED,
    MAGLEV_SLOTS,
    MEMBER_WORDS,
    NO_BACKEND,
    ROUTE_CLUSTER_BITS,
    SHAPE_EXACT,
    SLOTS_PER_ENTRY,
    HostKind,
    Method,
    NoRouteAnswer,
    PathKind,
)
from rauta.errors import RautaError
from rauta.files import paths
from rauta.ids import Ids, RouteName, route_name
from rauta.keys import CookieKeys

__all__ = [
    "Entry",
    "HashCollision",
    "Holder",
    "HostRoutes",
    "Numbers",
    "RouterTables",
    "VipRoutes",
    "address",
    "ask_keys_entry",
    "backend_entry",
    "be16",
    "be32",
    "by_host",
    "check_unique",
    "cookie_keys_entry",
    "fallback_services",
    "flow_slot",
    "holders",
    "host_entries",
    "host_entry",
    "host_routes",
    "local_backend_entry",
    "maglev_table",
    "maglev_values",
    "members",
    "path_hash",
    "path_route",
    "router_tables",
    "services",
    "told_routes",
    "vip_entry",
    "vip_key",
    "vip_routes",
    "words_hash",
]

Entry: TypeAlias = tuple[dict[str, Any], dict[str, Any]]
"""A key and a value."""

_MULTIPLIER = 0x9E3779B97F4A7C15
_WORD_BITS = (1 << 64) - 1
_WORD_BYTES = 8
_WORD_OF_MEMBERS = 64
_NO_ROUTE = {404: NoRouteAnswer.NOT_FOUND, "reset": NoRouteAnswer.RESET, "fallback": NoRouteAnswer.FALLBACK}


class HashCollision(RautaError):
    """Two configured host names or paths have the same hash under this route key: draw another key.

    With 64-bit hashes and 65,536 routes, about one key in 10^10 has that flaw.
    """


@dataclass(frozen=True)
class RouterTables:
    """What the router's maps hold, by the maps' names; Maglev tables and next hops are made apart, one at a time."""

    vips: list[Entry] = field(default_factory=list)
    hosts: list[Entry] = field(default_factory=list)
    paths: list[Entry] = field(default_factory=list)


# ---- addresses ------------------------------------------------------------------------------------------


def be32(address: IPv4Address) -> int:
    """An address as the __be32 that contract.h keeps: 198.18.0.1 is 0x010012c6 on a little-endian machine."""
    return int.from_bytes(address.packed, sys.byteorder)


def address(value: int) -> IPv4Address:
    """The address that a __be32 of contract.h stands for."""
    return IPv4Address(value.to_bytes(4, sys.byteorder))


def be16(port: int) -> int:
    """A port as the __be16 that contract.h keeps."""
    return socket.htons(port)


def vip_key(address: IPv4Address, port: int) -> dict[str, Any]:
    """The key of a VIP in the router's `vips` and the agents' `services`; port 0 stands for the address itself."""
    return {"address": be32(address), "port": be16(port)}


# ---- hashes ---------------------------------------------------------------------------------------------


def words_hash(route_key: int, name: str) -> int:
    """contract.h's words_hash() of a host name in lower case: 64 bits."""
    return _mix_words(route_key, name.encode())


def path_hash(route_key: int, path: str) -> int:
    """contract.h's path_hash() of an exact path, or of a prefix other than "/": 64 bits."""
    value = route_key
    for segment in paths.segments(path):
        value = _mix_words(value, f"{segment}/".encode())
    return value


def _mix_words(value: int, text: bytes) -> int:
    for start in range(0, len(text), _WORD_BYTES):
        word = int.from_bytes(text[start : start + _WORD_BYTES], "little")  # a short last word is padded with zeros
        value = _mix(value, word)
    return value


def flow_slot(flow_key: int, client: tuple[IPv4Address, int], vip: tuple[IPv4Address, int]) -> int:
    """The slot of a cluster's Maglev table that serves a connection: the upper half of contract.h's flow_hash().

    `client` and `vip`: address and port.
    """
    value = _mix(flow_key, be32(client[0]) | be32(vip[0]) << 32)
    value = _mix(value, be16(client[1]) | be16(vip[1]) << 16)
    return (value >> 32) * MAGLEV_SLOTS >> 32


def _mix(value: int, word: int) -> int:
    value = (value ^ word) * _MULTIPLIER & _WORD_BITS
    return value ^ value >> 29


# ---- routes ---------------------------------------------------------------------------------------------


@dataclass
class Numbers:
    """The next free numbers of sets of host names (`struct vip`, names) and of sets of paths (`struct host`, id)."""

    names: int = 1
    paths: int = 1


@dataclass(frozen=True)
class HostRoutes:
    """The routes of one host name of a VIP, or for any host: a set of paths of its own."""

    id: int
    shapes: int
    paths: list[Entry]


@dataclass(frozen=True)
class VipRoutes:
    """What a VIP's maps hold: by host name, None for any. `names` is the number of its set of host names."""

    names: int
    hosts: Mapping[str | None, HostRoutes]


def router_tables(config: Config, route_key: int, ids: Ids | None = None) -> RouterTables:
    """The entries of `vips`, `hosts` and `paths`. HashCollision if two of them would be one under this key.

    Hosts are numbered from 1 over all VIPs in the file's order; a VIP's routes without a host count as one host.
    """
    ids = Ids().following(config) if ids is None else ids
    tables, numbers = RouterTables(), Numbers()
    for vip in config.vips:
        routes = vip_routes(vip, config, route_key, ids, numbers)
        tables.hosts.extend(host_entries(routes, route_key))
        tables.paths.extend(entry for host in routes.hosts.values() for entry in host.paths)
        tables.vips.append(vip_entry(vip, config, routes, ids))
    tables.vips.extend((vip_key(address, 0), {}) for address in dict.fromkeys(vip.address for vip in config.vips))
    check_unique(tables.hosts, tables.paths)
    return tables


def vip_routes(vip: Vip, config: Config, route_key: int, ids: Ids, numbers: Numbers) -> VipRoutes:
    """The paths of a VIP's hosts, in sets whose numbers are taken from `numbers`."""
    numbers.names, names = numbers.names + 1, numbers.names
    hosts = {}
    for host, routes in by_host(vip).items():
        hosts[host] = host_routes(vip, routes, config, route_key, ids, numbers.paths)
        numbers.paths += 1
    return VipRoutes(names, hosts)


def host_routes(vip: Vip, routes: Sequence[Route], config: Config, route_key: int, ids: Ids, number: int) -> HostRoutes:
    """The routes of one host of a VIP, as the set of paths of that number."""
    numbered = [
        (kind, route.path, Method[route.method or "ANY"], path_route(ids.routes[name], ids.clusters[route.cluster]))
        for route in routes
        for name, kind in [(route_name(vip, route), PathKind.EXACT if route.exact is not None else PathKind.PREFIX)]
    ]
    return HostRoutes(number, _shapes(routes), list(_path_entries(numbered, number, route_key)))


def vip_entry(vip: Vip, config: Config, routes: VipRoutes, ids: Ids) -> Entry:
    """The entry of a VIP in the map `vips`."""
    wildcards = {host.count(".") for host in routes.hosts if host is not None and host.startswith("*")}
    value = {
        "id": ids.vips[vip.name],
        "names": routes.names,
        "no_route": int(_NO_ROUTE[vip.no_route]),
        "wildcards": sum(1 << labels for labels in wildcards),
        "fallback": int(config.fallback is not None),
        "strict": int(any(paths.has_other_spellings(route.path) for route in vip.routes)),
    }
    if (any_host := routes.hosts.get(None)) is not None:
        value |= {"any_host": any_host.id, "any_host_shapes": any_host.shapes}
    return vip_key(vip.address, vip.port), value


def host_entries(routes: VipRoutes, route_key: int) -> list[Entry]:
    """The entries of a VIP's host names in the map `hosts`."""
    return [host_entry(host, routes.names, one, route_key) for host, one in routes.hosts.items() if host is not None]


def host_entry(host: str, names: int, routes: HostRoutes, route_key: int) -> Entry:
    """The entry of one host name in a VIP's set of that number."""
    name = host.removeprefix("*")
    kind = HostKind.EXACT if name == host else HostKind.WILDCARD
    key = {"hash": words_hash(route_key, name), "names": names, "length": len(name), "kind": int(kind)}
    return key, {"id": routes.id, "shapes": routes.shapes, "name": name.encode()}


def by_host(vip: Vip) -> dict[str | None, list[Route]]:
    """A VIP's routes by their host name, None for any; hosts in the file's order."""
    routes: dict[str | None, list[Route]] = {}
    for route in vip.routes:
        routes.setdefault(route.host, []).append(route)
    return routes


def path_route(number: int, cluster: int) -> int:
    """What `struct path` says of a route with that number to the cluster with that index; 0 would be none."""
    return (number + 1) << ROUTE_CLUSTER_BITS | cluster


def _shapes(routes: Iterable[Route]) -> int:
    """Bit d is set if a prefix of d segments is among the routes ("/" has none), SHAPE_EXACT if an exact path is."""
    shapes = 0
    for route in routes:
        if route.prefix is None:
            shapes |= SHAPE_EXACT
        else:
            shapes |= 1 << (0 if route.prefix == "/" else len(paths.segments(route.prefix)))
    return shapes


def _path_entries(routes: Iterable[tuple[PathKind, str, Method, int]], host: int, route_key: int) -> Iterator[Entry]:
    """One entry for each path of a host; routes that differ in their method only share it."""
    by_path: dict[tuple[PathKind, str], list[int]] = {}
    for kind, path, method, route in routes:
        by_path.setdefault((kind, path), [0] * len(Method))[method] = route
    for (kind, path), by_method in by_path.items():
        text = "" if (kind, path) == (PathKind.PREFIX, "/") else path
        hash = path_hash(route_key, text)
        yield (
            {"hash": hash, "host": host, "length": len(text), "kind": int(kind)},
            {"route": by_method, "path": text.encode()},
        )


def check_unique(hosts: Iterable[Entry], paths: Iterable[Entry]) -> None:
    """HashCollision if two entries would be one."""
    _check_unique(hosts, "host names", "name")
    _check_unique(paths, "paths", "path")


def _check_unique(entries: Iterable[Entry], what: str, name: str) -> None:
    seen: dict[tuple[Any, ...], bytes] = {}
    for key, value in entries:
        identity, text = tuple(key.values()), value[name]
        if identity in seen:
            happened = f"{seen[identity].decode()!r} and {text.decode()!r} have the same hash"
            raise HashCollision(f"hashing {what}", happened, "Draw another route key.")
        seen[identity] = text


# ---- clusters and backends ------------------------------------------------------------------------------


def backend_entry(backend: Backend, next_hop: bytes, *, interface: int = 0, source: bytes = bytes(6)) -> dict[str, Any]:
    """The value of a backend in the map `backends`.

    `next_hop` is the MAC address, 6 bytes, of its next hop; `interface` the index of the interface that leads there and
    `source` that one's MAC address. Without these, packets leave through the interface that they came in on.
    """
    return {"address": be32(backend.address), "next_hop": next_hop, "source": source, "interface": interface}


def local_backend_entry(address: IPv4Address) -> dict[str, Any]:
    """The value of the fallback in the map `backends`: this very host, under the address that its agent answers for."""
    return {"address": be32(address), "interface": BACKEND_LOCAL}


def members(config: Config, ids: Ids, clusters: Collection[str] | None = None) -> list[tuple[int, int]]:
    """The entries of `members`: bit b % 64 of entry cluster * MEMBER_WORDS + b // 64 says that backend b is in it.

    A backend without weight is not: its connections move at their next request, if there is another one. All words of
    the configuration's clusters are there, or of those named only.
    """
    indices = ids.backend_indices(config)
    mask = (1 << _WORD_OF_MEMBERS) - 1
    found = []
    for cluster in config.clusters:
        if clusters is not None and cluster.name not in clusters:
            continue
        bits = sum(1 << indices[name] for name, weight in cluster.weights().items() if weight)
        first = ids.clusters[cluster.name] * MEMBER_WORDS
        found += [(first + word, bits >> word * _WORD_OF_MEMBERS & mask) for word in range(MEMBER_WORDS)]
    return found


def maglev_values(table: array[int]) -> bytes:
    """A Maglev table as the values of its inner map, `struct maglev_slots`, side by side.

    Slot s is the 16-bit integer s % 4 of value s // 4; what is left over in the last one is NO_BACKEND.
    """
    return (table + array("H", [NO_BACKEND] * (MAGLEV_PACKED * SLOTS_PER_ENTRY - len(table)))).tobytes()


def maglev_table(values: bytes) -> array[int]:
    """The Maglev table that an inner map holds."""
    return array("H", values)[:MAGLEV_SLOTS]


# ---- keys and agents ------------------------------------------------------------------------------------


def cookie_keys_entry(keys: CookieKeys) -> dict[str, Any]:
    """The one value of the map `cookie_keys`."""
    return {"key": [list(key) for key in keys.by_epoch], "epoch": keys.epoch}


def ask_keys_entry(keys: CookieKeys) -> dict[str, Any]:
    """The one value of the map `ask_keys`."""
    return {"key": [list(key) for key in keys.ask_keys]}


@dataclass(frozen=True)
class Holder:
    """A host that may hold connections of a VIP: its address, and the index of a backend there."""

    address: IPv4Address
    index: int


def holders(config: Config, ids: Ids) -> dict[tuple[int, int], list[Holder]]:
    """By a VIP's address and port as they stand in memory: each host once that its routes lead to, drained ones too."""
    indices = ids.backend_indices(config)
    clusters = {cluster.name: cluster.backends for cluster in config.clusters}
    found = {}
    for vip in config.vips:
        names = dict.fromkeys(route.cluster for route in vip.routes)
        hosts: dict[IPv4Address, int] = {}
        for backend in (backend for name in names for backend in clusters[name]):
            hosts.setdefault(backend.address, indices[backend.name])
        found[be32(vip.address), be16(vip.port)] = [Holder(address, index) for address, index in hosts.items()]
    return found


def told_routes(routes: Mapping[RouteName, int]) -> dict[int, dict[str, int]]:
    """The entries of `told_routes` for routes and their numbers: what a router that labels says of them to agents."""
    known = fingerprints.fingerprints(routes)
    unambiguous = set(fingerprints.briefs(known.values()).values())
    told = {number: known.get(name, fingerprints.UNKNOWN) for name, number in routes.items()}
    return {
        number: {"low": one & 0xFFFFFFFF, "high": one >> 32, "brief": int(one in unambiguous)}
        for number, one in told.items()
    }


def services(config: Config, backend_name: str) -> list[Entry]:
    """The entries of `services` for the host of a backend: each VIP that reaches its address, and the local port there.

    RautaError if no backend has that name.
    """
    backends = config.backends()
    if backend_name not in backends:
        known = ", ".join(backends) or "none"
        raise RautaError(
            "setting up an agent", f"no backend is called {backend_name!r}", f"The configuration has: {known}."
        )
    address = backends[backend_name].address
    local_ports = {
        cluster.name: backend.port
        for cluster in config.clusters
        for backend in cluster.backends
        if backend.address == address
    }
    return [
        (vip_key(vip.address, vip.port), {"address": be32(address), "port": be16(port)})
        for vip in config.vips
        for port in {local_ports[route.cluster] for route in vip.routes if route.cluster in local_ports}
    ]


def fallback_services(config: Config, address: IPv4Address) -> list[Entry]:
    """The entries of `services` for the router's own host: each VIP, and its port at the fallback on that address.

    RautaError if the configuration has no fallback, or uses that address for something else.
    """
    tried = "setting up the fallback"
    if config.fallback is None:
        raise RautaError(tried, "the configuration has no `fallback`", "Add `fallback: {port: 8000}`, or another port.")
    if taken := _part_of(config, address):
        raise RautaError(tried, f"the router's address {address} is {taken}", "Give the router an address of its own.")
    ports = config.fallback_ports()
    return [
        (vip_key(vip.address, vip.port), {"address": be32(address), "port": be16(ports[vip.name])})
        for vip in config.vips
    ]


def _part_of(config: Config, address: IPv4Address) -> str:
    """What else a configuration uses an address for; empty if nothing."""
    for vip in config.vips:
        if vip.address == address:
            return f"the VIP {vip.name}"
    for name, backend in config.backends().items():
        if backend.address == address:
            return f"the backend {name}"
    return "in encapsulation.source" if address in config.encapsulation.source else ""
