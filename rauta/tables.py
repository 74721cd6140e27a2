"""From a configuration to the contents of the BPF maps: pure functions, no kernel.

Keys and values are dicts by the member names of bpf/contract.h, ready for `Map.update_batch`; addresses and ports in
them are integers whose bytes in memory are in network order. What the packet path looks up by hash (host names and
paths) is hashed here exactly as contract.h defines.
"""

from __future__ import annotations

import socket
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from itertools import count
from typing import Any, TypeAlias

from rauta import paths
from rauta.config import Backend, Config, Route, Vip
from rauta.contract import (
    BACKEND_LOCAL,
    MAGLEV_PACKED,
    MAGLEV_SLOTS,
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
from rauta.keys import CookieKeys

__all__ = [
    "Entry",
    "HashCollision",
    "Holder",
    "RouterTables",
    "address",
    "ask_keys_entry",
    "backend_entry",
    "backend_indices",
    "be16",
    "be32",
    "cookie_keys_entry",
    "fallback_index",
    "fallback_services",
    "flow_slot",
    "holders",
    "local_backend_entry",
    "maglev_table",
    "maglev_values",
    "member_words",
    "members",
    "path_hash",
    "path_route",
    "router_tables",
    "services",
    "vip_key",
    "words_hash",
]

Entry: TypeAlias = tuple[dict[str, Any], dict[str, Any]]
"""A key and a value."""

_Numbered: TypeAlias = tuple[int, Route]
"""A route and its number."""

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


def router_tables(config: Config, route_key: int) -> RouterTables:
    """The entries of `vips`, `hosts` and `paths`. HashCollision if two of them would be one under this key.

    VIPs are numbered from 1 in the file's order, and so are hosts over all VIPs; a VIP's routes without a host count
    as one host. Routes are numbered from 0 over all VIPs; a cluster's index is its place in the file.
    """
    tables = RouterTables()
    clusters = {cluster.name: index for index, cluster in enumerate(config.clusters)}
    host_ids, numbers = count(1), count()
    fallback = 0 if config.fallback is None else fallback_index(config) + 1
    for vip_id, vip in enumerate(config.vips, start=1):
        value = {"id": vip_id, "no_route": int(_NO_ROUTE[vip.no_route]), "wildcards": 0, "fallback": fallback}
        value["strict"] = int(any(paths.has_other_spellings(route.path) for route in vip.routes))
        for host, numbered in _by_host(vip, numbers).items():
            host_id, shapes = next(host_ids), _shapes(route for _, route in numbered)
            if host is None:
                value |= {"any_host": host_id, "any_host_shapes": shapes}
            else:
                name = host.removeprefix("*")
                kind = HostKind.EXACT if name == host else HostKind.WILDCARD
                if kind is HostKind.WILDCARD:
                    value["wildcards"] |= 1 << name.count(".")
                key = {"hash": words_hash(route_key, name), "vip": vip_id, "length": len(name), "kind": int(kind)}
                tables.hosts.append((key, {"id": host_id, "shapes": shapes, "name": name.encode()}))
            tables.paths.extend(_path_entries(numbered, host_id, clusters, route_key))
        tables.vips.append((vip_key(vip.address, vip.port), value))
    tables.vips.extend((vip_key(address, 0), {}) for address in dict.fromkeys(vip.address for vip in config.vips))
    _check_unique(tables.hosts, "host names", "name")
    _check_unique(tables.paths, "paths", "path")
    return tables


def path_route(number: int, cluster: int) -> int:
    """What `struct path` says of a route with that number to the cluster with that index; 0 would be none."""
    return (number + 1) << ROUTE_CLUSTER_BITS | cluster


def _by_host(vip: Vip, numbers: Iterator[int]) -> dict[str | None, list[_Numbered]]:
    """A VIP's routes, numbered, by their host name, None for any; hosts in the file's order."""
    routes: dict[str | None, list[_Numbered]] = {}
    for route, number in zip(vip.routes, numbers, strict=False):  # in this order: no number is taken in vain
        routes.setdefault(route.host, []).append((number, route))
    return routes


def _shapes(routes: Iterable[Route]) -> int:
    """Bit d is set if a prefix of d segments is among the routes ("/" has none), SHAPE_EXACT if an exact path is."""
    shapes = 0
    for route in routes:
        if route.prefix is None:
            shapes |= SHAPE_EXACT
        else:
            shapes |= 1 << (0 if route.prefix == "/" else len(paths.segments(route.prefix)))
    return shapes


def _path_entries(
    routes: Iterable[_Numbered], host: int, clusters: Mapping[str, int], route_key: int
) -> Iterator[Entry]:
    """One entry for each path of a host; routes that differ in their method only share it."""
    by_path: dict[tuple[PathKind, str], list[int]] = {}
    for number, route in routes:
        kind = PathKind.EXACT if route.exact is not None else PathKind.PREFIX
        by_method = by_path.setdefault((kind, route.path), [0] * len(Method))
        by_method[Method[route.method or "ANY"]] = path_route(number, clusters[route.cluster])
    for (kind, path), by_method in by_path.items():
        text = "" if (kind, path) == (PathKind.PREFIX, "/") else path
        hash = path_hash(route_key, text)
        yield (
            {"hash": hash, "host": host, "length": len(text), "kind": int(kind)},
            {"route": by_method, "path": text.encode()},
        )


def _check_unique(entries: list[Entry], what: str, name: str) -> None:
    seen: dict[tuple[Any, ...], bytes] = {}
    for key, value in entries:
        identity, text = tuple(key.values()), value[name]
        if identity in seen:
            happened = f"{seen[identity].decode()!r} and {text.decode()!r} have the same hash"
            raise HashCollision(f"hashing {what}", happened, "Draw another route key.")
        seen[identity] = text


# ---- clusters and backends ------------------------------------------------------------------------------


def backend_indices(config: Config) -> dict[str, int]:
    """A backend's index in the map `backends`, by name: its place in the order of names."""
    return {name: index for index, name in enumerate(config.backends())}


def backend_entry(backend: Backend, next_hop: bytes, *, interface: int = 0, source: bytes = bytes(6)) -> dict[str, Any]:
    """The value of a backend in the map `backends`.

    `next_hop` is the MAC address, 6 bytes, of its next hop; `interface` the index of the interface that leads there and
    `source` that one's MAC address. Without these, packets leave through the interface that they came in on.
    """
    return {"address": be32(backend.address), "next_hop": next_hop, "source": source, "interface": interface}


def fallback_index(config: Config) -> int:
    """The fallback's index in the map `backends`: behind all others."""
    return len(config.backends())


def local_backend_entry(address: IPv4Address) -> dict[str, Any]:
    """The value of the fallback in the map `backends`: this very host, under the address that its agent answers for."""
    return {"address": be32(address), "interface": BACKEND_LOCAL}


def member_words(config: Config) -> int:
    """How many 64-bit words of the map `members` a cluster has: one bit for each backend."""
    return -(-(len(config.backends()) + 1) // _WORD_OF_MEMBERS)


def members(config: Config) -> list[tuple[int, int]]:
    """The entries of `members`: bit b % 64 of entry cluster * member_words + b // 64 says that backend b is in it.

    A backend without weight is not: its connections move at their next request, if there is another one.
    """
    indices, words = backend_indices(config), member_words(config)
    found = []
    for number, cluster in enumerate(config.clusters):
        bits = sum(1 << indices[name] for name, weight in cluster.weights().items() if weight)
        mask = (1 << _WORD_OF_MEMBERS) - 1
        found += [(number * words + word, bits >> word * _WORD_OF_MEMBERS & mask) for word in range(words)]
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


def holders(config: Config) -> dict[tuple[int, int], list[Holder]]:
    """By a VIP's address and port as they stand in memory: each host once that its routes lead to, drained ones too."""
    indices = backend_indices(config)
    clusters = {cluster.name: cluster.backends for cluster in config.clusters}
    found = {}
    for vip in config.vips:
        names = dict.fromkeys(route.cluster for route in vip.routes)
        hosts: dict[IPv4Address, int] = {}
        for backend in (backend for name in names for backend in clusters[name]):
            hosts.setdefault(backend.address, indices[backend.name])
        found[be32(vip.address), be16(vip.port)] = [Holder(address, index) for address, index in hosts.items()]
    return found


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
