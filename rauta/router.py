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
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

from rauta import asks, failing, loading, neighbours, offloads, tables
from rauta.agent import Agent
from rauta.balancing import Balancer, reweighted, without
from rauta.bpf import BpfObject, XdpAttachment, XdpMode, attach_xdp
from rauta.config import Config, Route
from rauta.contract import FLOW_WAYS
from rauta.errors import RautaError
from rauta.keys import Keys
from rauta.latency import Histogram
from rauta.observation import Observation
from rauta.sampling import Sampling

__all__ = ["EventCounts", "RouteRequests", "Router"]

_ROUTED = ("ROUTED_FIRST", "ROUTED_NEXT", "ROUTED_MOVED")
_FALLBACK = "FALLBACK_"
_FALLBACK_LATER = ("FALLBACK_AGAIN", "FALLBACK_FORWARDED", "FALLBACK_CLOSE")
_SPARE_ENTRIES = 64  # room in the maps of hosts and paths, beyond twice what the configuration has
_KEY_DRAWS = 8
_MONOTONIC_COARSE = 6  # include/uapi/linux/time.h: a clock that advances with the kernel's ticks
_DEFAULT_OBSERVATION = Observation()
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


class Router(loading.Loaded):
    """A loaded router. `config` is what it routes by; `keys` its secrets, the route key redrawn if need be.

    `observation` is what it observes, `sampling` which requests it traces.
    """

    backend: None = None  # an agent has one

    def __init__(self, obj: BpfObject, config: Config, keys: Keys, observation: Observation) -> None:
        """For `load`."""
        super().__init__(obj)
        self.config = config
        self.observation = observation
        self.sampling = Sampling()
        self.keys = keys
        self._attached = False
        self._down: frozenset[str] = frozenset()
        self._fallback_agent: Agent | None = None

    @classmethod
    def load(cls, config: Config, keys: Keys, *, observation: Observation = _DEFAULT_OBSERVATION) -> Self:
        """Loads the program and fills its maps, but for the next hops, which `attach` looks up.

        `observation` says what is timed and told besides the counters, which there are always. RautaError or LoadError
        say what the machine lacks, or what the verifier said.
        """
        content, keys = _hashed(config, keys)
        router = cls(loading.open_object("ingress"), config, keys, observation)
        try:
            router._set_constants()
            asks.prepare(router.object, config)
            observation.prepare(router.object)
            router.sampling = Sampling.prepare(
                router.object, keys.cookies, observation.traces_one_in, observation.traces_rate
            )
            router._size_maps(content)
            router.object.load()
            router._fill_maps(content)
        except BaseException:
            router.close()
            raise
        return router

    def attach(self, *interfaces: str, mode: XdpMode = "best-effort") -> tuple[XdpAttachment, ...]:
        """Resolves the backends' next hops, then attaches to interfaces of the calling thread's network namespace.

        `mode` is "native", "generic" or "best-effort" (native where the driver can); each attachment's `mode` is the
        one in use. A packet for a backend behind another interface than it came in on is redirected there; the driver
        of that one must be able to send for XDP (veth: its peer needs an XDP program, too). RautaError if there is no
        such interface, a backend cannot be reached through any of them, or this router is attached already; AttachError
        if the kernel refuses. Then it is attached nowhere.

        A fallback is to listen on the first interface's own address. An agent on all of them brings it its connections;
        that takes what every agent takes (Linux 6.9, tcp_syncookies).
        """
        tried = f"attaching to {', '.join(interfaces) or 'no interface'}"
        if self._attached:
            raise RautaError(tried, "this router is attached already", "Name all its interfaces at once.")
        if not interfaces:
            raise RautaError(tried, "packets must come in somewhere", 'Name one or more: attach("eth0")')
        indices = {loading.interface_index(interface): interface for interface in interfaces}
        self._fill_backends(list(indices))
        with ExitStack() as undo:
            if self.config.fallback is not None:
                self._attach_fallback(list(indices), undo)
            attachments = tuple(self._attach_one(index, name, mode, undo) for index, name in indices.items())
            self._undo_here(undo.pop_all().close)
        self._attached = True
        return attachments

    def _attach_one(self, index: int, interface: str, mode: XdpMode, undo: ExitStack) -> XdpAttachment:
        attachment = attach_xdp(index, self.object.programs["rauta_ingress"], mode)
        undo.callback(attachment.detach)
        if attachment.mode == "generic":
            undo.enter_context(offloads.gro_off(interface))
        return attachment

    def set_weights(self, cluster: str, weights: Mapping[str, int]) -> None:
        """Gives backends of a cluster other weights, by name, while packets flow; the others keep theirs.

        When this returns, new connections go by the new weights, and none to a backend of weight 0. Connections that
        there are stay where they are, but for a backend of weight 0: its own move at their next request, if another one
        of the cluster has a weight. `rauta.maglev` says which of the table's slots change hands. RautaError if there
        is no such cluster or backend, or a weight is none; then nothing has changed.
        """
        number, before, after = reweighted(self.config, cluster, weights)
        self._balancer().replace(number, without(before, self._down), without(after, self._down))
        clusters = (*self.config.clusters[:number], after, *self.config.clusters[number + 1 :])
        self.config = self.config.model_copy(update={"clusters": clusters})
        self._write_members()

    def set_down(self, backend: str, *, down: bool = True) -> None:
        """Says that a backend's host does not answer any more, or does again.

        Of one that is down, connections go on elsewhere at their next request. Whoever waits for the first byte of an
        answer gets a reset as soon as he says that he does: see `probe_down`. RautaError if no backend has that name.
        """
        indices = tables.backend_indices(self.config)
        if backend not in indices:
            known = ", ".join(indices) or "none"
            raise RautaError(f"setting {backend!r} down", "no backend has that name", f"There are: {known}.")
        before = self._down
        self._down = before | {backend} if down else before - {backend}
        for number, cluster in enumerate(self.config.clusters):
            if backend in cluster.weights():
                self._balancer().replace(number, without(cluster, before), without(cluster, self._down))
        self._write_members()  # first, so that no request goes to one that is known to be down
        value = self.object.maps["backends"].lookup(indices[backend])
        state = self._down_states["BACKEND_DOWN" if down else "BACKEND_UP"]
        self.object.maps["backends"].update(indices[backend], value | {"down": state})

    def give_up(self, backend: str) -> int:
        """Resets all connections that a backend which is down still has: whoever has not asked again by now.

        From the network namespace of the router's interfaces, `failing.GIVE_UP_SECONDS` after the failure or so.
        Returns how many clients were probed for that. RautaError if it is not down.
        """
        if backend not in self._down:
            raise RautaError(f"giving {backend!r} up", "it is not down", "Call set_down first.")
        index = tables.backend_indices(self.config)[backend]
        value = self.object.maps["backends"].lookup(index)
        self.object.maps["backends"].update(index, value | {"down": self._down_states["BACKEND_GIVEN_UP"]})
        return failing.probe(self.object, index)

    @property
    def _down_states(self) -> dict[str, int]:
        return self.object.btf.enum("backend_down")

    def probe_down(self, backend: str) -> int:
        """Has the clients of a backend that is down say what they wait for; see rauta.failing.

        From the network namespace of the router's interfaces. Returns how many connections were probed.
        """
        return failing.probe(self.object, tables.backend_indices(self.config)[backend])

    def _write_members(self) -> None:
        clusters = tuple(without(cluster, self._down) for cluster in self.config.clusters)
        up = self.config.model_copy(update={"clusters": clusters})
        self.object.maps["members"].update_batch(tables.members(up))

    def _attach_fallback(self, interfaces: Sequence[int], undo: ExitStack) -> None:
        """The fallback's place among the backends, and its agent."""
        backends = self.config.backends().values()
        address = neighbours.own_address(interfaces[0], (backend.address for backend in backends))
        agent = undo.enter_context(Agent.load_fallback(self.config, self.keys, address))
        for interface in interfaces:
            agent.attach(socket.if_indextoname(interface))
        entry = tables.local_backend_entry(address)
        self.object.maps["backends"].update(tables.fallback_index(self.config), entry)
        self._fallback_agent = agent
        undo.callback(self._forget_fallback)

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
        names = ("", *(vip.name for vip in self.config.vips))
        return {name: self._counted(vip) for vip, name in enumerate(names)}

    def requests_by_route(self) -> list[RouteRequests]:
        """How many requests were routed by each route, first and later ones, in the order of the configuration."""
        routes = [(vip.name, route) for vip in self.config.vips for route in vip.routes]
        counts = [sum(per_cpu) for _, per_cpu in self.object.maps["route_requests"].items_batch()]
        return [RouteRequests(vip, route, requests) for (vip, route), requests in zip(routes, counts, strict=False)]

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
        return len(self.config.vips)

    def _counts(self, verdict: str) -> bool:
        return loading.is_router_verdict(verdict)

    def _set_constants(self) -> None:
        source = self.config.encapsulation.source
        self.object.rodata["route_key"] = self.keys.route_key
        self.object.rodata["flow_key"] = self.keys.flow_key
        self.object.rodata["digest_keys"] = self.keys.digest_keys
        self.object.rodata["member_words"] = tables.member_words(self.config)
        self.object.rodata["flow_sets"] = _flow_sets(self.config)
        self.object.rodata["encapsulation_prefix"] = tables.be32(source.network_address)
        self.object.rodata["encapsulation_mask"] = tables.be32(source.netmask)
        self.object.rodata["tick_ms"] = math.ceil(time.clock_getres(_MONOTONIC_COARSE) * 1000)

    def _size_maps(self, content: tables.RouterTables) -> None:
        self.object.maps["flows"].set_max_entries(_flow_sets(self.config))
        words = len(self.config.clusters) * tables.member_words(self.config)
        self.object.maps["members"].set_max_entries(max(1, words))
        self.object.maps["route_requests"].set_max_entries(max(1, sum(len(vip.routes) for vip in self.config.vips)))
        for name, entries in (("hosts", content.hosts), ("paths", content.paths)):
            self.object.maps[name].set_max_entries(2 * len(entries) + _SPARE_ENTRIES)

    def _fill_maps(self, content: tables.RouterTables) -> None:
        maps = self.object.maps
        maps["cookie_keys"].update(0, tables.cookie_keys_entry(self.keys.cookies))
        maps["ask_keys"].update(0, tables.ask_keys_entry(self.keys.cookies))
        maps["paths"].update_batch(content.paths)
        maps["hosts"].update_batch(content.hosts)
        self._balancer().fill(self.config.clusters)
        maps["members"].update_batch(tables.members(self.config))
        maps["vips"].update_batch(content.vips)

    def _balancer(self) -> Balancer:
        return Balancer(self.object.maps["clusters"], tables.backend_indices(self.config))

    def _fill_backends(self, interfaces: Sequence[int]) -> None:
        """Where there is only one interface, packets leave as they came: the program need not compare."""
        backends = self.config.backends()
        hops = neighbours.next_hops((backend.address for backend in backends.values()), interfaces)
        sources = {interface: neighbours.hardware_address(interface) for interface in interfaces}
        indices = tables.backend_indices(self.config)
        entries = []
        for name, backend in backends.items():
            hop = hops[backend.address]
            interface = hop.interface if len(interfaces) > 1 else 0
            value = tables.backend_entry(backend, hop.mac, interface=interface, source=sources[hop.interface])
            entries.append((indices[name], value))
        self.object.maps["backends"].update_batch(entries)


def _handed_over(counters: Mapping[str, int]) -> list[str]:
    """The verdicts on the first data of connections that the fallback gets: its reasons."""
    return [name for name in counters if name.startswith(_FALLBACK) and name not in _FALLBACK_LATER]


def _flow_sets(config: Config) -> int:
    """The flow table is made of whole sets."""
    return -(-config.flows // FLOW_WAYS)


def _hashed(config: Config, keys: Keys) -> tuple[tables.RouterTables, Keys]:
    """The tables under the given route key, or under a fresh one if two entries collide."""
    for _ in range(_KEY_DRAWS):
        try:
            return tables.router_tables(config, keys.route_key), keys
        except tables.HashCollision:
            keys = keys.with_fresh_route_key()
    return tables.router_tables(config, keys.route_key), keys
