"""The maps `vips`, `hosts` and `paths` of a loaded router, brought from one configuration to the next under traffic.

A packet looks its VIP up, in it the host name, and of that the path: three maps, and several entries of each. No packet
may find a mixture that no configuration has said. So what changes decides how:

    one path of one host    its entry is written or deleted, and that is all
    one host of a VIP       its paths are written anew, as another set; then the one entry that leads there is replaced
    more of a VIP           all its host names are written anew likewise; then the VIP's entry is replaced

In each case a single write makes the change, and a packet sees all of it or none. What nothing leads to any more is
deleted once no program can be reading it: the kernel uses a deleted or replaced element again at once, under the eyes
of a program that has just found it (rauta.bpf.grace). For the same reason a map gets no new element right after it has
lost one.

Several VIPs change one after the other; a packet is for one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rauta import tables
from rauta.bpf import GracePeriod, Map
from rauta.config import Config, Vip
from rauta.ids import Ids, route_name
from rauta.tables import Entry, HostRoutes, Numbers, VipRoutes

__all__ = ["Numbered", "Routing"]

_MAPS = ("paths", "hosts", "vips")


@dataclass(frozen=True)
class Numbered:
    """A configuration, and the numbers of what is in it."""

    config: Config
    ids: Ids


@dataclass(frozen=True)
class _Sets:
    """The numbers of a VIP's sets: that of its host names, and those of the paths of each host."""

    names: int
    hosts: Mapping[str | None, int]


class _Writer:
    """Writes into the three maps, and waits where it must: between losing an element and giving out another one."""

    def __init__(self, maps: Mapping[str, Map]) -> None:
        self._maps = {name: maps[name] for name in _MAPS}
        self._lost: set[str] = set()
        self._grace: GracePeriod | None = None

    def add(self, name: str, entries: Iterable[Entry]) -> None:
        """Entries whose keys are new."""
        self._ready(name)
        self._maps[name].update_batch(entries)

    def replace(self, name: str, entry: Entry) -> None:
        """One entry, whose key there may be already."""
        self._ready(name)
        self._maps[name].update(*entry)
        self._lost.add(name)

    def delete(self, name: str, keys: Iterable[Mapping[str, int]]) -> None:
        """Entries that nothing leads to any more."""
        keys = list(keys)
        if keys:
            self._maps[name].delete_batch(keys)
            self._lost.add(name)

    def settle(self) -> None:
        """Returns when no packet is routed by what was replaced or deleted before."""
        if self._lost:
            with GracePeriod() as grace:
                grace.wait()
            self._lost.clear()

    def _ready(self, name: str) -> None:
        if name in self._lost:
            self.settle()


class Routing:
    """Keeps the three maps of a router as its configuration says; nobody else writes to them."""

    def __init__(self, maps: Mapping[str, Map], route_key: int) -> None:
        self._writer = _Writer(maps)
        self._route_key = route_key
        self._numbers = Numbers()
        self._sets: dict[str, _Sets] = {}

    def fill(self, now: Numbered) -> None:
        """Writes a whole configuration into empty maps."""
        entries = _addresses(now.config)
        entries += [tables.vip_entry(vip, now.config, self._written(vip, now), now.ids) for vip in now.config.vips]
        self._writer.add("vips", entries)

    def apply(self, before: Numbered, after: Numbered) -> None:
        """Goes from one configuration to the next. When it returns, no packet is routed by the old one."""
        olds = {vip.name: vip for vip in before.config.vips}
        self._put_vips(_addresses(after.config), known := _vip_keys(before.config))
        leftovers: list[VipRoutes] = []
        for vip in after.config.vips:
            leftovers += self._apply_vip(olds.get(vip.name), vip, before, after)
        self._writer.settle()
        self._delete_vips(known, _vip_keys(after.config))
        self._writer.settle()
        for name in olds.keys() - {vip.name for vip in after.config.vips}:
            leftovers.append(self._read(olds[name], before))
            del self._sets[name]
        self._forget(leftovers)

    def check(self, before: Numbered, after: Numbered) -> None:
        """HashCollision if two names of a VIP, or two paths of a host, would be one in the configuration to come."""
        olds = {vip.name: vip for vip in before.config.vips}
        for vip in after.config.vips:
            hosts = tables.by_host(vip)
            old = olds.get(vip.name)
            changed = list(hosts) if old is None else _differing(old, vip, before, after)
            for host in (host for host in changed if host in hosts):
                routes = tables.host_routes(vip, hosts[host], after.config, self._route_key, after.ids, 0)
                tables.check_unique((), routes.paths)
            named = [host for host in hosts if host is not None]
            nothing = HostRoutes(0, 0, [])
            tables.check_unique([tables.host_entry(host, 0, nothing, self._route_key) for host in named], ())

    # ---- one VIP ---------------------------------------------------------------------------------------

    def _apply_vip(self, old: Vip | None, new: Vip, before: Numbered, after: Numbered) -> list[VipRoutes]:
        """What the VIP's entry led to, if it leads to something else now."""
        if old is None:
            self._writer.replace("vips", tables.vip_entry(new, after.config, self._written(new, after), after.ids))
            return []
        hosts = _differing(old, new, before, after)
        attributes = self._attributes(old, before) != self._attributes(new, after)
        if attributes and not hosts:
            self._writer.replace("vips", tables.vip_entry(new, after.config, self._read(new, after), after.ids))
        elif len(hosts) == 1 and not attributes and hosts[0] in _hosts_of(old) & _hosts_of(new):
            return self._apply_host(hosts[0], old, new, before, after)
        elif hosts:
            gone = self._read(old, before)
            self._writer.replace("vips", tables.vip_entry(new, after.config, self._written(new, after), after.ids))
            return [gone]
        return []

    def _attributes(self, vip: Vip, at: Numbered) -> Entry:
        """What the VIP's entry says besides where its routes are."""
        return tables.vip_entry(vip, at.config, VipRoutes(self._sets[vip.name].names, {}), at.ids)

    def _written(self, vip: Vip, now: Numbered) -> VipRoutes:
        """A VIP's routes, in the maps as sets of their own that nothing leads to yet."""
        routes = tables.vip_routes(vip, now.config, self._route_key, now.ids, self._numbers)
        self._writer.add("paths", [entry for host in routes.hosts.values() for entry in host.paths])
        self._writer.add("hosts", tables.host_entries(routes, self._route_key))
        self._sets[vip.name] = _Sets(routes.names, {host: one.id for host, one in routes.hosts.items()})
        return routes

    def _read(self, vip: Vip, at: Numbered) -> VipRoutes:
        """A VIP's routes as they stand in the maps."""
        sets = self._sets[vip.name]
        hosts = {
            host: tables.host_routes(vip, routes, at.config, self._route_key, at.ids, sets.hosts[host])
            for host, routes in tables.by_host(vip).items()
        }
        return VipRoutes(sets.names, hosts)

    # ---- one host --------------------------------------------------------------------------------------

    def _apply_host(self, host: str | None, old: Vip, new: Vip, before: Numbered, after: Numbered) -> list[VipRoutes]:
        sets = self._sets[new.name]
        number = sets.hosts[host]
        was, becomes = (
            tables.host_routes(vip, tables.by_host(vip)[host], at.config, self._route_key, at.ids, number)
            for vip, at in ((old, before), (new, after))
        )
        changed = _changed_paths(was, becomes)
        if len(changed) == 1:
            self._apply_path(host, new, after, was, becomes, changed[0])
            return []
        number, self._numbers.paths = self._numbers.paths, self._numbers.paths + 1
        routes = tables.by_host(new)[host]
        fresh = tables.host_routes(new, routes, after.config, self._route_key, after.ids, number)
        self._writer.add("paths", fresh.paths)
        self._sets[new.name] = _Sets(sets.names, {**sets.hosts, host: number})
        self._lead(host, new, after, fresh)
        return [VipRoutes(sets.names, {None: was})]  # as if of no name: the host's own entry stays

    def _apply_path(
        self,
        host: str | None,
        vip: Vip,
        after: Numbered,
        was: HostRoutes,
        becomes: HostRoutes,
        key: tuple[int, ...],
    ) -> None:
        """Shapes say where to look: before the first path of a kind is there, and until after the last one is gone."""
        new = _by_key(becomes).get(key)
        if becomes.shapes & ~was.shapes:
            self._lead(host, vip, after, HostRoutes(becomes.id, was.shapes | becomes.shapes, becomes.paths))
        if new is None:
            self._writer.delete("paths", [_by_key(was)[key][0]])
        elif key in _by_key(was):
            self._writer.replace("paths", new)
        else:
            self._writer.add("paths", [new])
        if was.shapes & ~becomes.shapes:
            self._lead(host, vip, after, becomes)

    def _lead(self, host: str | None, vip: Vip, after: Numbered, routes: HostRoutes) -> None:
        """Has the entry of a host, or of the VIP for any host, lead to these routes."""
        sets = self._sets[vip.name]
        if host is not None:
            self._writer.replace("hosts", tables.host_entry(host, sets.names, routes, self._route_key))
            return
        others = {name: HostRoutes(number, 0, []) for name, number in sets.hosts.items()}
        whole = VipRoutes(sets.names, {**others, None: routes})
        self._writer.replace("vips", tables.vip_entry(vip, after.config, whole, after.ids))

    # ---- the rest --------------------------------------------------------------------------------------

    def _forget(self, leftovers: Iterable[VipRoutes]) -> None:
        """Deletes what no packet can find any more."""
        self._writer.settle()
        for routes in leftovers:
            self._writer.delete("hosts", (key for key, _ in tables.host_entries(routes, self._route_key)))
            self._writer.delete("paths", (key for host in routes.hosts.values() for key, _ in host.paths))
        self._writer.settle()

    def _put_vips(self, entries: Iterable[Entry], there: Iterable[Mapping[str, int]]) -> None:
        """Entries of `vips`; `there`: whose keys it has already."""
        known = {_identity(key) for key in there}
        entries = list(entries)
        self._writer.add("vips", [entry for entry in entries if _identity(entry[0]) not in known])
        for entry in entries:
            if _identity(entry[0]) in known and entry[0]["port"]:
                self._writer.replace("vips", entry)

    def _delete_vips(self, there: Iterable[Mapping[str, int]], kept: Iterable[Mapping[str, int]]) -> None:
        keys = set(map(_identity, kept))
        self._writer.delete("vips", (key for key in there if _identity(key) not in keys))


def _identity(key: Mapping[str, int]) -> tuple[int, int]:
    return key["address"], key["port"]


def _hosts_of(vip: Vip) -> set[str | None]:
    return {route.host for route in vip.routes}


def _vip_keys(config: Config) -> list[Mapping[str, int]]:
    """The keys of `vips` that a configuration has."""
    vips = [tables.vip_key(vip.address, vip.port) for vip in config.vips]
    return [*vips, *(key for key, _ in _addresses(config))]


def _addresses(config: Config) -> list[Entry]:
    """The entries that say which addresses are VIPs."""
    return [(tables.vip_key(address, 0), {}) for address in dict.fromkeys(vip.address for vip in config.vips)]


def _differing(old: Vip, new: Vip, before: Numbered, after: Numbered) -> list[str | None]:
    """The hosts, None for any, whose routes are not the same: to a cluster of another number counts, too."""
    if old.routes == new.routes and before.ids.clusters == after.ids.clusters:
        return []
    olds, news = (
        {
            host: {route_name(vip, route): at.ids.clusters[route.cluster] for route in routes}
            for host, routes in tables.by_host(vip).items()
        }
        for vip, at in ((old, before), (new, after))
    )
    return [host for host in {**olds, **news} if olds.get(host) != news.get(host)]


def _by_key(routes: HostRoutes) -> dict[tuple[int, ...], Entry]:
    return {tuple(entry[0].values()): entry for entry in routes.paths}


def _changed_paths(was: HostRoutes, becomes: HostRoutes) -> list[tuple[int, ...]]:
    old, new = _by_key(was), _by_key(becomes)
    return [key for key in {**old, **new} if old.get(key) != new.get(key)]
