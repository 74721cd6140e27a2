"""The router: bpf/ingress.bpf.c with a configuration in its maps, on one interface or several.

    with Router.load(load_config("shop.yaml"), Keys.generate()) as router:
        router.attach("eth0")           clients and backends on one network (one-armed)
        router.attach("eth0", "eth1")   or on several: clients may come in on each, backends be behind each

Everything is in the maps before the program is attached, so no packet meets a half-configured router. If the
configuration has a fallback, an agent comes with it, which takes the fallback's connections to the proxy: start that
first (rauta.fallback).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Self

from rauta import failing, keyslots, loading, tables
from rauta.agent import Agent
from rauta.asking import asks
from rauta.balancing import Balancer, reweighted
from rauta.bpf import (
    BpfObject,
    GracePeriod,
    Map,
    Program,
    XdpAttachment,
    XdpMode,
    attach_xdp,
    attached_xdp_id,
    possible_cpus,
    program_name,
)
from rauta.capacity import capacity, require_room
from rauta.config import Backend, Cluster, Config, Route
from rauta.contract import FALLBACK_BACKEND, FLOW_WAYS, MEMBER_WORDS
from rauta.errors import RautaError
from rauta.flows import LIVE, flows
from rauta.ids import Ids, Names, RouteName, route_name
from rauta.keys import Keys
from rauta.latency import Histogram
from rauta.maglev import Table
from rauta.network import neighbours, offloads
from rauta.network.neighbours import NextHop
from rauta.observation import Observation
from rauta.routing import Numbered, Routing
from rauta.standing import Standing
from rauta.tracing.sampling import Sampling
from rauta.upgrade.migration import Migration, adopt

__all__ = ["EventCounts", "Plan", "RouteRequests", "Router"]

_PROGRAM, _PAUSE = "rauta_ingress", "rauta_pause"
_ROUTED = ("ROUTED_FIRST", "ROUTED_NEXT", "ROUTED_MOVED")
_FALLBACK = "FALLBACK_"
_FALLBACK_LATER = ("FALLBACK_AGAIN", "FALLBACK_FORWARDED", "FALLBACK_CLOSE")
_FRAME = ("flows", "capacity", "encapsulation", "recovery", "fallback", "interfaces", "mode", "metrics", "traces")
_CARRIED = ("flows", "verdicts", "route_requests", "backend_requests", "latency", "event_states")
"""the maps that hold what packets have left there; all others say what the configuration does"""
_ALL_FIT, _NO_IDS = Standing(), Ids()
_KEY_DRAWS = 8
_MONOTONIC_COARSE = 6  # include/uapi/linux/time.h: a clock that advances with the kernel's ticks
_DEFAULT_OBSERVATION = Observation()
_RESENT_SECONDS = 120.0  # TCP has sent a request six times again by then, and may have its route told each time
_CLASS = "CLASS_"


@dataclass(frozen=True)
class RouteRequests:
    """The requests that went to a backend by one route of a VIP."""

    vip: str
    route: Route
    requests: int


@dataclass(frozen=True)
class EventCounts:
    """Packets whose turn it was to become events.

    `told`: those that did, read or not; `limited`: too many for the rate; `lost`: those that found the buffer full.
    """

    told: int
    limited: int
    lost: int


@dataclass(frozen=True)
class Plan:
    """A change of configuration that has been checked: `ids` are the numbers that it will use."""

    after: Numbered
    before: Numbered
    hops: Mapping[str, NextHop]


class Router(loading.Loaded):
    """A loaded router. `config` is what it routes by, `observation` what it observes.

    `room` is how many routes and hosts its maps hold, `ids` are its numbers, `standing` says which backends get no
    requests, `sampling` which requests it traces.
    """

    backend: None = None  # an agent has one

    def __init__(
        self, obj: BpfObject, config: Config, keys: Keys, observation: Observation, ids: Ids, standing: Standing
    ) -> None:
        """For `load`."""
        super().__init__(obj)
        self.config = config
        self.observation = observation
        self.sampling = Sampling()
        self.room = capacity(config)
        self.ids = ids
        self.standing = standing
        self._slots = keyslots.KeySlots(obj, keys)
        self._routing = Routing(obj.maps, keys.route_key)
        self._interfaces: tuple[int, ...] = ()
        self._unreached: frozenset[str] = frozenset()
        self._names: Names | None = None
        self._told: dict[int, dict[str, int]] = {}
        self._gone_since: dict[RouteName, float] = {}
        self._fallback_agent: Agent | None = None
        self._migration: Migration | None = None

    @classmethod
    def load(
        cls,
        config: Config,
        keys: Keys,
        *,
        observation: Observation = _DEFAULT_OBSERVATION,
        standing: Standing = _ALL_FIT,
        ids: Ids = _NO_IDS,
        earlier: Mapping[str, Map] = MappingProxyType({}),
    ) -> Self:
        """Loads the program and fills its maps, but for the next hops, which `attach` looks up.

        `observation` says what is timed and told besides the counters, which there are always. `earlier` are the maps
        of a router that this one is to take the place of, and `ids` its numbers: connections and counters go on. That
        one may be attached until this one is (`attach(replace=True)`); in between, packets are routed by the old
        configuration. Its flow key must be the same, and its maps stay open until then. RautaError or LoadError say
        what the machine lacks, or what the verifier said.
        """
        keys = _collision_free(config, keys)
        ids = _numbered(ids, config)
        router = cls(loading.open_object("ingress"), config, keys, observation, ids, standing)
        try:
            router._set_constants()
            asks.prepare(router.object, config)
            observation.prepare(router.object)
            router.sampling = Sampling.prepare(router.object, keys, observation.traces_one_in, observation.traces_rate)
            router._size_maps()
            left = adopt(router.object, _CARRIED, earlier)
            router.object.programs[_PAUSE].set_autoload("flows" in left)
            router.object.load()
            if left:
                router._migration = Migration(router.object, left, keys.flow_key)
                router._undo.callback(router._migration.close)
                router._migration.copy()
            router._fill_maps(earlier.get("backends"))
        except BaseException:
            router.close()
            raise
        return router

    def attach(
        self,
        *interfaces: str,
        mode: XdpMode = "best-effort",
        strict: bool = True,
        replace: bool = False,
        earlier: Mapping[str, Map] = MappingProxyType({}),
        made_clsact: bool = False,
        prepared: Callable[[Agent], None] = lambda _: None,
    ) -> tuple[XdpAttachment, ...]:
        """Resolves the backends' next hops, then attaches to interfaces of the calling thread's network namespace.

        `mode` is "native", "generic" or "best-effort" (native where the driver can); each attachment's `mode` is the
        one in use. A packet for a backend behind another interface than it came in on is redirected there; the driver
        of that one must be able to send for XDP (veth: its peer needs an XDP program, too). `replace`: a router's
        program that is attached there gives way, without a packet in between that sees none; if its flow table is of
        another size or layout, all packets of connections are dropped for some milliseconds in between
        (docs/upgrades.md). RautaError if there is no such interface, a backend cannot be reached through any of them
        (unless `strict` is False: then it gets no requests until `refresh_hops` finds it), or this router is attached
        already; AttachError if the kernel refuses. Then it is attached nowhere, and programs that have given way are
        back.

        A fallback is to listen on the first interface's own address. An agent on all of them brings it its connections;
        that takes what every agent takes (Linux 6.9, tcp_syncookies). `earlier` and `made_clsact` are about the agent
        that gives way; `prepared` is called with the new one before anything is attached.

        If the earlier router's flow table has another size or layout, it is copied while every packet on the interfaces
        is dropped, so that none changes a copied entry: clients send again what they sent in between. `earlier` of
        `load` must be open until then.
        """
        tried = f"attaching to {', '.join(interfaces) or 'no interface'}"
        if self._interfaces:
            raise RautaError(tried, "this router is attached already", "Name all its interfaces at once.")
        if not interfaces:
            raise RautaError(tried, "packets must come in somewhere", 'Name one or more: attach("eth0")')
        indices = {loading.interface_index(interface): interface for interface in interfaces}
        self._fill_backends(tuple(indices), strict)
        with ExitStack() as undo, ExitStack() as back:
            if self.config.fallback is not None:
                agent = self._load_fallback(indices, undo, earlier)
                prepared(agent)
                back.callback(agent.go_back)
                if replace:
                    agent.take_over(*indices.values(), made_clsact=made_clsact)
                for interface in indices.values():
                    agent.attach(interface, replace=replace, made_clsact=made_clsact)
            self._bring_over(indices, mode, undo, back)
            attachments = tuple(self._attach_one(*one, mode, undo, back, replace) for one in indices.items())
            back.pop_all()
            self._undo_here(undo.pop_all().close)
        if self._fallback_agent is not None:
            self._fallback_agent.stay()
        self._interfaces = tuple(indices)
        return attachments

    def leave(self) -> None:
        """Ends with this process, but leaves everything as it is: packets go on. Safe to repeat."""
        self._undo.pop_all()
        if self._fallback_agent is not None:
            self._fallback_agent.leave()
        self.object.close()

    def _attach_one(
        self, index: int, interface: str, mode: XdpMode, undo: ExitStack, back: ExitStack, replace: bool
    ) -> XdpAttachment:
        """`undo` is for the end of this router, `back` for a start that fails."""
        program = self.object.programs[_PROGRAM]
        ours = _attached(index) if replace else None
        earlier = Program.from_id(ours) if ours else None
        attachment = attach_xdp(index, program, mode, replace=ours)
        undo.callback(attachment.detach)
        if earlier is not None:
            back.callback(_put_back, index, program, earlier)
        if attachment.mode == "generic":
            undo.enter_context(offloads.gro_off(interface))
        return attachment

    @property
    def keys(self) -> Keys:
        """Its secrets: the cookie keys that are in its maps, the route key redrawn if need be."""
        return self._slots.keys

    def set_keys(self, keys: Keys) -> None:
        """Gives the router other cookie keys while packets flow, and its fallback's agent before: see `rauta.keyslots`.

        From any thread. The keys of hashes stay what they are. RautaError if the flow key of `keys` is another: its
        flows live by that; BpfError if the kernel refuses. Then it may be called again.
        """
        if keys.flow_key != self.keys.flow_key:
            raise keyslots.other_installation("the router")
        agent = self._fallback_agent
        if agent is not None:
            agent.set_keys(keys)
        self._slots.exchange(keys.cookies)

    def _bring_over(self, interfaces: Iterable[int], mode: XdpMode, undo: ExitStack, back: ExitStack) -> None:
        """What the earlier router's program has written since `load`: the last of it while neither program is on."""
        if self._migration is None:
            return
        self._migration.catch_up()
        pause = self.object.programs[_PAUSE]
        for index in interfaces:
            if pause.loaded and (present := _attached(index)) is not None:
                earlier = Program.from_id(present)
                undo.callback(attach_xdp(index, pause, mode, replace=present).detach)
                back.callback(_put_back, index, pause, earlier)
        with GracePeriod() as grace:
            grace.wait()
        self._migration.copy()
        self._migration.close()
        self._migration = None

    # ---- another configuration -------------------------------------------------------------------------

    def plan(self, config: Config) -> Plan:
        """Checks whether this router can go on with another configuration, and looks up what that takes.

        In the network namespace of its interfaces. RautaError says what takes a restart, or has no room; nothing has
        changed then.
        """
        _require_same_frame(self.config, config)
        require_room(config, "router", routes=self.room.routes, hosts=self.room.hosts)
        ids = self._following(config).renewed(_renewed_clusters(self.config, config))
        before, after = Numbered(self.config, self.ids), Numbered(config, ids)
        self._routing.check(before, after)
        known = self.config.backends()
        new = {name: one for name, one in config.backends().items() if known.get(name) != one}
        found = neighbours.next_hops((one.address for one in new.values()), self._interfaces, strict=False)
        return Plan(after, before, {name: found[one.address] for name, one in new.items() if one.address in found})

    def _following(self, config: Config) -> Ids:
        """Numbers for a configuration; at times that takes those which `retire` would have freed later."""
        try:
            return self.ids.following(config, 2 * self.room.routes)
        except RautaError:
            self.retire()
            return self.ids.following(config, 2 * self.room.routes)

    def apply(self, plan: Plan) -> None:
        """Goes on with the configuration that has been planned. When it returns, no packet is routed by the old one.

        Each packet is routed by the one or the other. Backends come before what leads to them, and stay after it: a
        connection that they have goes on until its next request, see `retire`.
        """
        config, ids = plan.after.config, plan.after.ids
        missing = config.backends().keys() - self.config.backends().keys() - plan.hops.keys()
        self._unreached = (self._unreached & config.backends().keys()) | missing
        self._write_backends(config, ids, plan.hops)
        before, now = self._effective(), self._effective(config)
        self._write_clusters(Numbered(before, self.ids), Numbered(now, ids))
        self._write_told(ids)
        self._routing.apply(plan.before, plan.after)
        self.config, self.ids, self._names = config, ids, None
        self._write_down()
        if self._fallback_agent is not None:
            self._fallback_agent.reconfigure(config)

    def retire(self) -> Ids:
        """What is not configured any more, and mentioned by no connection, gives its number back.

        Returns those numbers. Reads the whole flow table, but only if there is such a thing.
        """
        gone = self.ids.gone(self.config)
        if gone.backends or gone.clusters:
            live = {(flow.backend, flow.cluster) for flow in flows(self.object) if flow.state in LIVE}
            backends, clusters = {backend for backend, _ in live}, {cluster for _, cluster in live}
            gone = Ids(
                gone.vips,
                {name: number for name, number in gone.clusters.items() if number not in clusters},
                {name: number for name, number in gone.backends.items() if number not in backends},
                gone.routes,
            )
        gone = replace(gone, routes=self._untold(gone.routes))
        self._clear(gone)
        self.ids, self._names = self.ids.without(gone), None
        if gone.routes:
            self._write_told(self.ids)  # briefs that these shared are others' alone now
        return gone

    def _untold(self, gone: Mapping[RouteName, int]) -> Mapping[RouteName, int]:
        """Routes that agents hear no more of: those that flows keep, but whose requests are not sent again by now."""
        if not self.observation.labels:
            return gone
        now = time.monotonic()
        self._gone_since = {name: self._gone_since.get(name, now) for name in gone}
        return {name: number for name, number in gone.items() if now - self._gone_since[name] >= _RESENT_SECONDS}

    def _clear(self, gone: Ids) -> None:
        """Their counters, and what led to them, so that whoever gets the number next begins at nothing."""
        maps, words = self.object.maps, range(MEMBER_WORDS)
        for number in gone.clusters.values():
            maps["clusters"].delete(number)
            maps["members"].update_batch((number * MEMBER_WORDS + word, 0) for word in words)
        maps["backends"].update_batch((number, {}) for number in gone.backends.values())
        zeros = bytes(maps["verdicts"].value_size)
        for number in gone.vips.values():
            maps["verdicts"].update(number, [zeros] * possible_cpus())
        maps["backend_requests"].update_batch((number, 0) for number in gone.backends.values())
        maps["route_requests"].update_batch((number, 0) for number in gone.routes.values())

    # ---- backends come and go --------------------------------------------------------------------------

    def set_weights(self, cluster: str, weights: Mapping[str, int]) -> None:
        """Gives backends of a cluster other weights, by name, while packets flow; the others keep theirs.

        When this returns, new connections go by the new weights, and none to a backend of weight 0. Connections that
        there are stay where they are, but for a backend of weight 0: its own move at their next request, if another one
        of the cluster has a weight. `rauta.maglev` says which of the table's slots change hands. RautaError if there
        is no such cluster or backend, or a weight is none; then nothing has changed.
        """
        number, _, after = reweighted(self.config, cluster, weights)
        before = self.standing.cluster(self.config.clusters[number])
        clusters = (*self.config.clusters[:number], after, *self.config.clusters[number + 1 :])
        self.config = self.config.model_copy(update={"clusters": clusters})
        effective = self._effective()
        self._balancer(self.config, self.ids).replace(self.ids.clusters[cluster], before, effective.clusters[number])
        self.object.maps["members"].update_batch(tables.members(effective, self.ids, {cluster}))

    def stand(self, standing: Standing) -> None:
        """Says which backends get no requests, and why, while packets flow: see rauta.standing.

        Connections that they have move at their next request. Of one that is down, whoever waits for the first byte of
        an answer gets a reset as soon as he says that he does: see `probe_down`.
        """
        before = self._effective()
        self.standing = standing
        self._write_clusters(Numbered(before, self.ids), Numbered(self._effective(), self.ids))
        self._write_down()  # last, so that no request goes to one that is known to be down

    def set_down(self, backend: str, *, down: bool = True) -> None:
        """Says that a backend's host does not answer any more, or does again: see `stand`.

        RautaError if no backend has that name.
        """
        self.ids.backend(self.config, backend)
        now = self.standing.down
        self.stand(replace(self.standing, down=now | {backend} if down else now - {backend}))

    def give_up(self, backend: str) -> int:
        """Resets all connections that a backend which is down still has: whoever has not asked again by now.

        From the network namespace of the router's interfaces, `failing.GIVE_UP_SECONDS` after the failure or so.
        Returns how many clients were probed for that. RautaError if it is not down.
        """
        if backend not in self.standing.down_in(self.config):
            raise RautaError(f"giving {backend!r} up", "it is not down", "Call set_down first.")
        index = self.ids.backend(self.config, backend)
        self._write_state(index, "BACKEND_GIVEN_UP")
        return failing.probe(self.object, index)

    def probe_down(self, backend: str) -> int:
        """Has the clients of a backend that is down say what they wait for; see rauta.failing.

        From the network namespace of the router's interfaces. Returns how many connections were probed.
        """
        return failing.probe(self.object, self.ids.backend(self.config, backend))

    def refresh_hops(self) -> list[str]:
        """Looks the next hops up again, in the network namespace of the interfaces, and has packets follow them.

        Returns the names of the backends that are reached in another way than before, or were not reached at all.
        Whoever does not answer keeps his last one.
        """
        backends = self.config.backends()
        found = neighbours.next_hops((one.address for one in backends.values()), self._interfaces, strict=False)
        entries, values = self.object.maps["backends"], {}
        for name, backend in backends.items():
            number, hop = self.ids.backend(self.config, name), found.get(backend.address)
            if hop is None:
                continue
            now, value = entries.lookup(number), self._backend_value(backend, hop)
            if value != {field: now[field] for field in value}:
                values[name] = (number, now | value)
        entries.update_batch(values.values())
        if came := self._unreached & values.keys():
            before = self._effective()
            self._unreached -= came
            self._write_clusters(Numbered(before, self.ids), Numbered(self._effective(), self.ids))
        return list(values)

    @property
    def names(self) -> Names:
        """What the numbers in maps and events stand for now."""
        if self._names is None:
            self._names = Names.of(self.config, self.ids)
        return self._names

    @property
    def unreached(self) -> frozenset[str]:
        """Backends to which no way has been found yet, by name."""
        return self._unreached

    def table(self, cluster: str) -> Table:
        """The Maglev table of a cluster: the backend's number (see `names`) by slot."""
        return self._balancer(self.config, self.ids).table(self.ids.clusters[cluster])

    @property
    def effective(self) -> Config:
        """The configuration with the weights that backends have now: `standing`, and whom no way leads to."""
        return self._effective()

    def _effective(self, config: Config | None = None) -> Config:
        """The configuration with the weights that backends have now."""
        config = self.config if config is None else config
        return replace(self.standing, drained=self.standing.drained | self._unreached).config(config)

    def _write_clusters(self, before: Numbered, after: Numbered) -> None:
        """The tables and members of clusters that are not what they were."""
        olds = {cluster.name: cluster for cluster in before.config.clusters}
        balancer = self._balancer(after.config, after.ids)
        fresh, changed = [], []
        for cluster in after.config.clusters:
            old, number = olds.get(cluster.name), after.ids.clusters[cluster.name]
            if old is None or before.ids.clusters[cluster.name] != number:
                fresh.append((number, cluster))
            elif old.weights() != cluster.weights() or _addresses(old) != _addresses(cluster):
                balancer.replace(number, old, cluster)
                changed.append(cluster.name)
        balancer.fill(fresh)
        names = {*changed, *(cluster.name for _, cluster in fresh)}
        self.object.maps["members"].update_batch(tables.members(after.config, after.ids, names))

    def _write_told(self, ids: Ids) -> None:
        """What agents are told of routes, before packets find them; of those that are gone, too. If it labels."""
        if self.observation.labels:
            told = tables.told_routes(ids.routes)
            self.object.maps["told_routes"].update_batch(
                (number, value) for number, value in told.items() if self._told.get(number) != value
            )
            self._told = told

    def _balancer(self, config: Config, ids: Ids) -> Balancer:
        return Balancer(self.object.maps["clusters"], ids.backend_indices(config))

    def _write_down(self) -> None:
        down = self.standing.down_in(self.config)
        states, backends = self.object.btf.enum("backend_down"), self.object.maps["backends"]
        for name, number in self.ids.backend_indices(self.config).items():
            now = backends.lookup(number)["down"]
            if (now != states["BACKEND_UP"]) != (name in down):
                self._write_state(number, "BACKEND_DOWN" if name in down else "BACKEND_UP")

    def _write_state(self, number: int, state: str) -> None:
        backends = self.object.maps["backends"]
        backends.update(number, backends.lookup(number) | {"down": self.object.btf.enum("backend_down")[state]})

    def _load_fallback(self, interfaces: Iterable[int], undo: ExitStack, earlier: Mapping[str, Map]) -> Agent:
        """The fallback's place among the backends, and its agent, which is yet to be attached."""
        backends = self.config.backends().values()
        address = neighbours.own_address(next(iter(interfaces)), (backend.address for backend in backends))
        agent = undo.enter_context(Agent.load_fallback(self.config, self.keys, address, earlier=earlier))
        self.object.maps["backends"].update(FALLBACK_BACKEND, tables.local_backend_entry(address))
        self._fallback_agent = agent
        undo.callback(self._forget_fallback)
        return agent

    def _forget_fallback(self) -> None:
        self._fallback_agent = None

    @property
    def fallback_agent(self) -> Agent | None:
        """The agent on this host that brings the fallback its connections, while there is one."""
        return self._fallback_agent

    @property
    def fast_path_share(self) -> float | None:
        """How many of the connections that said something were routed here, and not handed to the fallback: 0 to 1.

        By their first requests. None before the first one. What the router answered itself counts as neither.
        """
        counters = self.counters()
        routed, handed = counters["ROUTED_FIRST"], sum(counters[reason] for reason in _handed_over(counters))
        return routed / (routed + handed) if routed + handed else None

    @property
    def requests_routed(self) -> int:
        """Requests that went to a backend: the first ones of connections, and later ones."""
        counters = self.counters()
        return sum(counters[verdict] for verdict in _ROUTED)

    def counters_by_vip(self) -> dict[str, dict[str, int]]:
        """The same as `counters` by the name of the VIP that packets were for.

        What is passed, and fragments, which name no port, are for none: they are under the name "".
        """
        names = {0: ""} | {self.ids.vips[vip.name]: vip.name for vip in self.config.vips}
        return {name: self._counted(vip) for vip, name in names.items()}

    def requests_by_route(self) -> list[RouteRequests]:
        """How many requests were routed by each route, first and later ones, in the order of the configuration."""
        counts = [sum(per_cpu) for _, per_cpu in self.object.maps["route_requests"].items_batch()]
        return [
            RouteRequests(vip.name, route, counts[self.ids.routes[route_name(vip, route)]])
            for vip in self.config.vips
            for route in vip.routes
        ]

    def requests_by_backend(self) -> dict[str, int]:
        """How many requests went to each backend, by its name: first ones, later ones, and those that moved to it."""
        counts = self.object.maps["backend_requests"]
        return {name: sum(counts.lookup(index)) for name, index in self.ids.backend_indices(self.config).items()}

    def latency(self) -> dict[str, Histogram]:
        """How long the program took, by what became of the packet: a sample, see `Observation.latency_one_in`.

        The classes are passed, dropped, answered, routed, forwarded and fallback (`enum verdict_class`).
        """
        return {name: Histogram.of_cpus(per_cpu) for name, per_cpu in self._by_class("latency")}

    def event_counts(self) -> dict[str, EventCounts]:
        """How many packets became events, by class as in `latency`, and how many might have; all 0 where it is off."""
        return {
            name: EventCounts(*(sum(cpu[field] for cpu in per_cpu) for field in ("told", "limited", "lost")))
            for name, per_cpu in self._by_class("event_states")
        }

    def _by_class(self, name: str) -> Iterator[tuple[str, Any]]:
        """The entries of a map by the names of `enum verdict_class`."""
        classes = self.object.btf.enum("verdict_class")
        names = {number: name.removeprefix(_CLASS).lower() for name, number in classes.items()}
        return ((names[number], value) for number, value in self.object.maps[name].items_batch())

    def _vips(self) -> int:
        return max(self.ids.vips.values(), default=0)

    def _counts(self, verdict: str) -> bool:
        return loading.is_router_verdict(verdict)

    def _set_constants(self) -> None:
        source = self.config.encapsulation.source
        self.object.rodata["route_key"] = self.keys.route_key
        self.object.rodata["flow_key"] = self.keys.flow_key
        self.object.rodata["digest_keys"] = self.keys.digest_keys
        self.object.rodata["flow_sets"] = _flow_sets(self.config)
        self.object.rodata["encapsulation_prefix"] = tables.be32(source.network_address)
        self.object.rodata["encapsulation_mask"] = tables.be32(source.netmask)
        self.object.rodata["tick_ms"] = math.ceil(time.clock_getres(_MONOTONIC_COARSE) * 1000)

    def _size_maps(self) -> None:
        room = self.room
        self.object.maps["flows"].set_max_entries(_flow_sets(self.config))
        self.object.maps["route_requests"].set_max_entries(2 * room.routes)
        self.object.maps["hosts"].set_max_entries(2 * room.hosts)
        self.object.maps["paths"].set_max_entries(2 * room.routes)
        if self.observation.labels:
            self.object.maps["told_routes"].set_max_entries(2 * room.routes)

    def _fill_maps(self, earlier_backends: Map | None) -> None:
        maps, now = self.object.maps, Numbered(self._effective(), self.ids)
        self._slots.fill()
        balancer = self._balancer(self.config, self.ids)
        numbered = [(self.ids.clusters[cluster.name], cluster) for cluster in now.config.clusters]
        balancer.fill(numbered)
        maps["members"].update_batch(tables.members(now.config, self.ids))
        self._write_told(self.ids)
        self._routing.fill(Numbered(self.config, self.ids))
        if earlier_backends is not None:  # the ways to those that are gone, but have connections, and to all others
            numbers = {*self.ids.backends.values()}
            maps["backends"].update_batch((number, earlier_backends.lookup(number)) for number in sorted(numbers))

    def _fill_backends(self, interfaces: tuple[int, ...], strict: bool) -> None:
        self._interfaces = interfaces
        try:
            backends = self.config.backends()
            hops = neighbours.next_hops((one.address for one in backends.values()), interfaces, strict=strict)
            before = self._effective()
            found = {name: hops[one.address] for name, one in backends.items() if one.address in hops}
            found |= self._known_hops(backends.keys() - found.keys(), interfaces)
            self._unreached = frozenset(backends.keys() - found.keys())
            self._write_backends(self.config, self.ids, found)
            self._write_clusters(Numbered(before, self.ids), Numbered(self._effective(), self.ids))
            self._write_down()
        finally:
            self._interfaces = ()

    def _known_hops(self, names: Iterable[str], interfaces: tuple[int, ...]) -> dict[str, NextHop]:
        """The ways that an earlier router knew, to backends of these names that just now do not answer."""
        only, found = interfaces[0] if len(interfaces) == 1 else 0, {}
        for name in names:
            entry = self.object.maps["backends"].lookup(self.ids.backend(self.config, name))
            hop = NextHop(bytes(entry["next_hop"]), entry["interface"] or only)
            if any(hop.mac) and hop.interface in interfaces:
                found[name] = hop
        return found

    def _write_backends(self, config: Config, ids: Ids, hops: Mapping[str, NextHop]) -> None:
        """Those to which a way has been found; whether they are down stays."""
        entries = self.object.maps["backends"]
        backends = config.backends()
        numbers = {name: ids.backend(config, name) for name in hops}
        entries.update_batch(
            (number, entries.lookup(number) | self._backend_value(backends[name], hops[name]))
            for name, number in numbers.items()
        )

    def _backend_value(self, backend: Backend, hop: NextHop) -> dict[str, Any]:
        """Where there is only one interface, packets leave as they came: the program need not compare."""
        interface = hop.interface if len(self._interfaces) > 1 else 0
        return tables.backend_entry(
            backend, hop.mac, interface=interface, source=neighbours.hardware_address(hop.interface)
        )


def _attached(index: int) -> int | None:
    """The router's program on an interface, or that which an interrupted upgrade has left in its place."""
    present = attached_xdp_id(index)
    return present if present and program_name(present) in (_PROGRAM, _PAUSE) else None


def _put_back(index: int, program: Program, earlier: Program) -> None:
    """Has a program give its place to the one that had it before."""
    XdpAttachment.adopt(index, program).replace(earlier)


def _handed_over(counters: Mapping[str, int]) -> list[str]:
    """The verdicts on the first data of connections that the fallback gets: its reasons."""
    return [name for name in counters if name.startswith(_FALLBACK) and name not in _FALLBACK_LATER]


def _flow_sets(config: Config) -> int:
    """The flow table is made of whole sets."""
    return -(-config.flows // FLOW_WAYS)


def _collision_free(config: Config, keys: Keys) -> Keys:
    """The keys, with a fresh route key if two entries collide under theirs."""
    ids = Ids().following(config)
    for _ in range(_KEY_DRAWS):
        try:
            tables.router_tables(config, keys.route_key, ids)
        except tables.HashCollision:
            keys = keys.with_fresh_route_key()
        else:
            break
    return keys


def _addresses(cluster: Cluster) -> dict[str, Any]:
    return {backend.name: backend.address for backend in cluster.backends}


def _numbered(ids: Ids, config: Config) -> Ids:
    """The numbers of an earlier router, as far as there is room for them, and those of what is new."""
    room = 2 * capacity(config).routes
    known = {name: number for name, number in ids.routes.items() if number < room}
    try:
        return replace(ids, routes=known).following(config, room)
    except RautaError:
        gone = replace(ids, routes=known).gone(config).routes
        left = {name: number for name, number in known.items() if name not in gone}
        return replace(ids, routes=left).following(config, room)


def _renewed_clusters(before: Config, after: Config) -> set[str]:
    """Clusters that become others under their name, while routes change, too: they get new numbers.

    A packet whose route is the old one must find the old backends, and one whose route is new the new ones.
    """
    if before.vips == after.vips:
        return set()
    olds = {cluster.name: _addresses(cluster) for cluster in before.clusters}
    return {one.name for one in after.clusters if one.name in olds and olds[one.name] != _addresses(one)}


def _require_same_frame(before: Config, after: Config) -> None:
    """What programs and maps were made for."""
    changed = [name for name in _FRAME if getattr(before, name) != getattr(after, name)]
    if changed:
        raise RautaError(
            "changing the configuration",
            f"{', '.join(changed)} cannot change while the router runs",
            "Change them back, or restart it: `rauta run` takes the connections over.",
        )
