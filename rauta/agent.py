"""The agent: bpf/agent.bpf.c with a backend's services in its maps, on the backend's own interface.

    with Agent.load(load_config("shop.yaml"), keys, backend="web-1") as agent:
        agent.attach("eth0")

The router's own host has the same agent, for the fallback: rauta.router loads and attaches it.

Everything is in the maps before the programs are attached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Self

from rauta import loading, tables
from rauta.bpf import BpfObject, TcAttachment, attach_tc
from rauta.config import Config, Route
from rauta.errors import RautaError
from rauta.keys import Keys
from rauta.latency import FIRST_BYTE_BOUNDS, Histogram

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


class Agent(loading.Loaded):
    """A loaded agent, made by `load`."""

    def __init__(self, obj: BpfObject, routes: Sequence[tuple[str, Route]]) -> None:
        """For `load`. `routes` are those that it counts by, with their VIPs, in the order of their numbers."""
        super().__init__(obj)
        self._routes = tuple(routes)

    @classmethod
    def load(cls, config: Config, keys: Keys, backend: str) -> Self:
        """Loads the programs and fills their maps for the host of the backend of that name: all VIPs that lead to it.

        Of `keys` only the cookie keys are used. RautaError if there is no such backend; RautaError or LoadError say
        what the machine lacks (the agent needs Linux 6.9), or what the verifier said.
        """
        services = tables.services(config, backend)
        routes = [(vip.name, route) for vip in config.vips for route in vip.routes]
        return cls._load(config, keys, services, routes, asked_at=config.backends()[backend].address)

    @classmethod
    def load_fallback(cls, config: Config, keys: Keys, address: IPv4Address) -> Self:
        """Likewise for the router's own host, where a fallback listens on that address: all VIPs, and no routes.

        RautaError if the configuration has no fallback, or uses that address for something else.
        """
        return cls._load(config, keys, tables.fallback_services(config, address), ())

    @classmethod
    def _load(
        cls,
        config: Config,
        keys: Keys,
        services: Sequence[tables.Entry],
        routes: Sequence[tuple[str, Route]],
        asked_at: IPv4Address | None = None,
    ) -> Self:
        agent = cls(loading.open_object("agent"), routes)
        try:
            routers = config.encapsulation.source
            agent.object.rodata["routers_prefix"] = tables.be32(routers.network_address)
            agent.object.rodata["routers_mask"] = tables.be32(routers.netmask)
            agent.object.rodata["consumed_key"] = keys.cookies.consumed_key
            agent.object.rodata["digest_keys"] = keys.cookies.first_keys
            if config.recovery is not None and asked_at is not None:
                agent.object.rodata["ask_address"] = tables.be32(asked_at)
                agent.object.rodata["ask_port"] = tables.be16(config.recovery.port)
            agent.object.maps["figures"].set_max_entries(1 + len(routes))
            agent.object.load()
            agent.object.maps["cookie_keys"].update(0, tables.cookie_keys_entry(keys.cookies))
            agent.object.maps["ask_keys"].update(0, tables.ask_keys_entry(keys.cookies))
            agent.object.maps["services"].update_batch(services)
        except BaseException:
            agent.close()
            raise
        return agent

    def attach(self, interface: str) -> tuple[TcAttachment, TcAttachment]:
        """Attaches to both directions of an interface of the calling thread's network namespace: (ingress, egress).

        Egress comes first and goes last, so that no reply leaves with the local address. RautaError if there is no such
        interface or if tcp_syncookies is off in this namespace; AttachError if the kernel refuses.
        """
        _require_syncookies(interface)
        index = loading.interface_index(interface)
        egress = attach_tc(index, self.object.programs["rauta_agent_egress"], "egress")
        self._undo_here(egress.detach)
        ingress = attach_tc(index, self.object.programs["rauta_agent_ingress"], "ingress")
        self._undo_here(ingress.detach)
        return ingress, egress

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


def _require_syncookies(interface: str) -> None:
    """Without them the kernel makes no socket from a cookie (net/core/filter.c, bpf_sk_assign_tcp_reqsk)."""
    tried = f"attaching the agent to {interface}"
    if not _SYNCOOKIES.exists():
        raise RautaError(tried, f"{_SYNCOOKIES} is missing", "Use a kernel built with CONFIG_SYN_COOKIES=y.")
    if _SYNCOOKIES.read_text().strip() == "0":
        advice = "Set it to 1 there: sysctl -w net.ipv4.tcp_syncookies=1"
        raise RautaError(tried, "net.ipv4.tcp_syncookies is 0 in this network namespace", advice)
