"""The agent: bpf/agent.bpf.c with a backend's services in its maps, on the backend's own interface.

    with Agent.load(load_config("shop.yaml"), keys, backend="web-1") as agent:
        agent.attach("eth0")

The router's own host has the same agent, for the fallback: rauta.router loads and attaches it.

Everything is in the maps before the programs are attached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, TypeAlias

from rauta import keyslots, loading, tables
from rauta.bpf import (
    BpfObject,
    Direction,
    GracePeriod,
    Map,
    Program,
    TcAttachment,
    attach_tc,
    attached_tc_id,
    program_name,
)
from rauta.config import Config, Route
from rauta.errors import RautaError
from rauta.keys import Keys
from rauta.latency import FIRST_BYTE_BOUNDS, Histogram
from rauta.migration import adopt, migrate_all

__all__ = ["Agent", "AgentRoute"]

_SYNCOOKIES = Path("/proc/sys/net/ipv4/tcp_syncookies")
_STATUSES = ("unread", "1xx", "2xx", "3xx", "4xx", "5xx")  # by their place in `struct route_figures`
_UNKNOWN: tuple[str, Route | None] = ("", None)


@dataclass(frozen=True)
class AgentRoute:
    """What an agent has counted of one route of a VIP, or of requests whose route it was not told (`route` is None).

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


_CARRIED = ("mappings", "connections", "consumed", "verdicts")
"""the maps that hold what packets have left there; all others say what the configuration does"""

Services: TypeAlias = Callable[[Config], list[tables.Entry]]
"""The entries of the map `services` for a host, of any configuration."""


class Agent(loading.Loaded):
    """A loaded agent, made by `load`. `keys` are those in its maps."""

    def __init__(self, obj: BpfObject, config: Config, services: Services, keys: Keys) -> None:
        """For `load`. `services`: what a configuration says for this host."""
        super().__init__(obj)
        self._slots = keyslots.KeySlots(obj, keys)
        self.config = config
        self._services = services
        self.made_clsact = False
        self._back = ExitStack()
        self._routes = tuple((vip.name, route) for vip in config.vips for route in vip.routes)

    @classmethod
    def load(
        cls, config: Config, keys: Keys, backend: str, *, earlier: Mapping[str, Map] = MappingProxyType({})
    ) -> Self:
        """Loads the programs and fills their maps for the host of the backend of that name: all VIPs that lead to it.

        Of `keys` it uses the cookie keys and the agents' secret. `earlier` are the maps of an agent that this one is to
        take the place of, see `attach`: connections and counters go on. RautaError if there is no such backend;
        RautaError or LoadError say what the machine lacks (the agent needs Linux 6.9), or what the verifier said.
        """
        address = config.backends()[backend].address if backend in config.backends() else None
        return cls._load(config, keys, partial(_services_of, backend, address), address, earlier)

    @classmethod
    def load_fallback(
        cls, config: Config, keys: Keys, address: IPv4Address, *, earlier: Mapping[str, Map] = MappingProxyType({})
    ) -> Self:
        """Likewise for the router's own host, where a fallback listens on that address: all VIPs.

        RautaError if the configuration has no fallback, or uses that address for something else.
        """
        return cls._load(config, keys, partial(tables.fallback_services, address=address), None, earlier)

    @classmethod
    def _load(
        cls, config: Config, keys: Keys, services: Services, asked_at: IPv4Address | None, earlier: Mapping[str, Map]
    ) -> Self:
        entries = services(config)
        agent = cls(loading.open_object("agent"), config, services, keys)
        try:
            routers = config.encapsulation.source
            agent.object.rodata["routers_prefix"] = tables.be32(routers.network_address)
            agent.object.rodata["routers_mask"] = tables.be32(routers.netmask)
            agent.object.rodata["consumed_key"] = keys.consumed_key
            agent.object.rodata["digest_keys"] = keys.first_keys
            if config.recovery is not None and asked_at is not None:
                agent.object.rodata["ask_address"] = tables.be32(asked_at)
                agent.object.rodata["ask_port"] = tables.be16(config.recovery.port)
            agent.object.maps["figures"].set_max_entries(1 + len(agent._routes))
            left = adopt(agent.object, _CARRIED, earlier)
            agent.object.load()
            migrate_all(agent.object, left, 0)
            if (served := earlier.get("services")) is not None:  # who does not lead here any more may have connections
                agent.object.maps["services"].update_batch(served.items_batch())
            agent._slots.fill()
            agent._serve(entries)
        except BaseException:
            agent.close()
            raise
        return agent

    @property
    def keys(self) -> Keys:
        """Its secrets, as they are in its maps."""
        return self._slots.keys

    def set_keys(self, keys: Keys) -> None:
        """Gives it other cookie keys while packets flow: see `rauta.keyslots`. The agents' secret stays.

        RautaError if `keys` have another one, which would take what it remembers of connections from it; BpfError if
        the kernel refuses. Then it may be called again.
        """
        if keys.agent_secret != self.keys.agent_secret:
            raise keyslots.other_installation("the agent")
        self._slots.exchange(keys.cookies)

    def reconfigure(self, config: Config) -> None:
        """Goes on with another configuration, while packets flow.

        A VIP that does not lead here any more keeps its place, for connections that it has here, until another one
        needs it. RautaError if the configuration has no such backend any more, or needs another agent: then nothing
        has changed.
        """
        changed = [
            name for name in ("encapsulation", "recovery") if getattr(config, name) != getattr(self.config, name)
        ]
        if changed:
            raise RautaError(
                "changing an agent's configuration",
                f"{', '.join(changed)} cannot change while it runs",
                "Restart the agent: it takes its connections over.",
            )
        self._serve(self._services(config))
        self.config = config

    def _serve(self, services: Sequence[tables.Entry]) -> None:
        """Writes what is new or different; what has changed hands is not used again under a program's eyes."""
        there = {_vip(key): (key, value) for key, value in self.object.maps["services"].items_batch()}
        wanted = {_vip(key): (key, value) for key, value in services}
        new = [entry for vip, entry in wanted.items() if vip not in there]
        with GracePeriod() as grace:
            if len(there) + len(new) > self.object.maps["services"].max_entries:
                self.object.maps["services"].delete_batch(key for vip, (key, _) in there.items() if vip not in wanted)
                grace.wait()
            self.object.maps["services"].update_batch(new)
            for vip in wanted.keys() & there.keys():
                key, value = wanted[vip]
                if there[vip][1] != there[vip][1] | value:
                    self.object.maps["services"].update(key, value)
                    grace.wait()

    def attach(
        self, interface: str, *, replace: bool = False, made_clsact: bool = False
    ) -> tuple[TcAttachment, TcAttachment]:
        """Attaches to both directions of an interface of the calling thread's network namespace: (ingress, egress).

        `replace`: an agent's programs that are attached there give way, without a packet in between that sees none;
        `made_clsact` is then what it said.

        Egress comes first and goes last, so that no reply leaves with the local address. RautaError if there is no such
        interface or if tcp_syncookies is off in this namespace; AttachError if the kernel refuses.
        """
        _require_syncookies(interface)
        index = loading.interface_index(interface)
        egress = self._attach_one(index, "egress", replace, made_clsact)
        ingress = self._attach_one(index, "ingress", replace, made_clsact)
        self.made_clsact |= ingress.made_clsact
        return ingress, egress

    def go_back(self) -> None:
        """Undoes what `attach` has done, for a start that fails: programs whose place was taken come back.

        In the network namespace of the interfaces.
        """
        self._back.close()

    def stay(self) -> None:
        """There is no going back: the programs whose place was taken are given up."""
        self._back.pop_all()

    def leave(self) -> None:
        """Ends with this process, but leaves everything as it is: packets go on. Safe to repeat."""
        self._undo.pop_all()
        self.object.close()

    def _attach_one(self, index: int, direction: Direction, replace: bool, made_clsact: bool) -> TcAttachment:
        program = self.object.programs[f"rauta_agent_{direction}"]
        present = attached_tc_id(index, direction) if replace else None
        ours = present if present and program_name(present) == program.info().name else False
        earlier = Program.from_id(ours) if ours else None
        attachment = attach_tc(index, program, direction, replace=ours, made_clsact=made_clsact)
        if earlier is None:
            self._back.callback(attachment.detach)
        else:
            self._back.callback(attach_tc, index, earlier, direction, replace=program, made_clsact=made_clsact)
        self._undo_here(attachment.detach)
        return attachment

    def requests_by_route(self) -> list[AgentRoute]:
        """What has come and was answered, by route in the order of the configuration; last, what no route is known of.

        A router tells routes only if it is loaded with `Observation(labels=True)`, and both must have the same
        configuration.
        """
        unknown, *known = (
            value for _, value in sorted(self.object.maps["figures"].items_batch(), key=lambda one: one[0])
        )
        routes = (*self._routes, _UNKNOWN)
        return [_figures(vip, route, value) for (vip, route), value in zip(routes, (*known, unknown), strict=True)]

    def _vips(self) -> int:
        return 0

    def _counts(self, verdict: str) -> bool:
        return loading.is_agent_verdict(verdict)


def _figures(vip: str, route: Route | None, per_cpu: Sequence[Mapping[str, Any]]) -> AgentRoute:
    counts = (sum(cpus) for cpus in zip(*(cpu["statuses"] for cpu in per_cpu), strict=True))
    return AgentRoute(
        vip,
        route,
        requests=sum(cpu["requests"] for cpu in per_cpu),
        statuses=dict(zip(_STATUSES, counts, strict=True)),
        ttfb=Histogram.of_cpus(per_cpu, FIRST_BYTE_BOUNDS),
    )


def _services_of(backend: str, address: IPv4Address | None, config: Config) -> list[tables.Entry]:
    """RautaError if the backend is not where it was."""
    services = tables.services(config, backend)
    if config.backends()[backend].address != address:
        raise RautaError(
            f"changing the configuration of the agent of {backend!r}",
            f"its address is no longer {address}",
            "Start an agent for the new one.",
        )
    return services


def _vip(key: Mapping[str, int]) -> tuple[int, int]:
    return key["address"], key["port"]


def _require_syncookies(interface: str) -> None:
    """Without them the kernel makes no socket from a cookie (net/core/filter.c, bpf_sk_assign_tcp_reqsk)."""
    tried = f"attaching the agent to {interface}"
    if not _SYNCOOKIES.exists():
        raise RautaError(tried, f"{_SYNCOOKIES} is missing", "Use a kernel built with CONFIG_SYN_COOKIES=y.")
    if _SYNCOOKIES.read_text().strip() == "0":
        advice = "Set it to 1 there: sysctl -w net.ipv4.tcp_syncookies=1"
        raise RautaError(tried, "net.ipv4.tcp_syncookies is 0 in this network namespace", advice)
