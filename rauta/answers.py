"""What a running router answers rautactl: a method a command, from its arguments to what JSON can say.

Figures by the second are measured when somebody asks, over a second: nothing runs for them otherwise.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

from rauta.control import Handler
from rauta.errors import RautaError
from rauta.events import Event
from rauta.flows import LIVE, Flow, flows
from rauta.ids import route_name
from rauta.latency import Histogram

if TYPE_CHECKING:
    from rauta.daemon import Daemon
    from rauta.health import BackendHealth
    from rauta.router import Router

__all__ = ["BACKEND_STATES", "Answers", "backend_state"]

BACKEND_STATES = ("healthy", "unchecked", "drained", "unhealthy", "down", "unreached")
_MEASURED_SECONDS = 1.0
_MOST_FLOWS = 1000
_DROPPED, _ANSWERED = "DROP_", "TX_"


class Answers:
    """The commands of a daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def handlers(self) -> dict[str, Handler]:
        """By name."""
        return {
            "status": self.status,
            "routes": self.routes,
            "backends": self.backends,
            "flows": self.flows,
            "metrics": self.metrics,
            "counters": self.counters,
            "explain": self.explain,
            "drain": self.drain,
            "undrain": self.undrain,
            "reload": self.reload,
            "events": self.events,
            "doctor": self.doctor,
        }

    # ---- what there is ---------------------------------------------------------------------------------

    async def status(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """The router in a few figures."""
        daemon, router = self._daemon, self._daemon.router
        states = daemon.health.states()
        config = router.config
        return {
            "instance": daemon.instance.name,
            "file": str(daemon.file.absolute()),
            "started": daemon.started,
            "generation": daemon.state.generation,
            "reloads": daemon.reloads,
            "error": daemon.error,
            "interfaces": [{"name": name, "mode": mode} for name, mode in daemon.modes.items()],
            "vips": [
                {"name": vip.name, "address": str(vip.address), "port": vip.port, "routes": len(vip.routes)}
                for vip in config.vips
            ],
            "clusters": len(config.clusters),
            "backends": len(config.backends()),
            "unhealthy": sorted(name for name, state in states.items() if not state.healthy),
            "drained": sorted(router.standing.drained),
            "unreached": sorted(router.unreached),
            "memory": {"maps": router.memory().total, "process": _resident()},
            "figures": self._figures(),
        }

    async def routes(self, _: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Each route, and how many requests it has had."""
        router = self._daemon.router
        return [
            {
                "id": router.ids.routes[route_name(vip, one.route)],
                "vip": one.vip,
                "host": one.route.host,
                "kind": "exact" if one.route.exact is not None else "prefix",
                "path": one.route.path,
                "method": one.route.method,
                "cluster": one.route.cluster,
                "requests": one.requests,
            }
            for one in await self._daemon.in_thread(router.requests_by_route)
            for vip in router.config.vips
            if vip.name == one.vip
        ]

    async def backends(self, _: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Each backend of each cluster: weight, health, flows, and requests a second, measured now."""
        daemon, router = self._daemon, self._daemon.router
        before, began = router.requests_by_backend(), time.monotonic()
        counted = await daemon.in_thread(self._flows_by_backend)
        await asyncio.sleep(max(0.0, _MEASURED_SECONDS - (time.monotonic() - began)))
        after, seconds = router.requests_by_backend(), time.monotonic() - began
        states = daemon.health.states()
        found = []
        for cluster, effective in zip(
            router.config.clusters, router.standing.config(router.config).clusters, strict=True
        ):
            weights = effective.weights()
            for backend in cluster.backends:
                name, state = backend.name, states.get(backend.name)
                found.append(
                    {
                        "cluster": cluster.name,
                        "name": name,
                        "address": str(backend.address),
                        "port": backend.port,
                        "weight": backend.weight,
                        "effective_weight": weights[name],
                        "state": backend_state(router, states, name),
                        "since": state.since if state else None,
                        "error": state.error if state else "",
                        "flows": counted[name],
                        "requests": after.get(name, 0),
                        "requests_per_second": (after.get(name, 0) - before.get(name, 0)) / seconds,
                    }
                )
        return found

    def _flows_by_backend(self) -> Counter[str]:
        names = self._daemon.router.names.backends
        live = (flow for flow in flows(self._daemon.router.object) if flow.state in LIVE)
        return Counter(names.get(flow.backend, "") for flow in live)

    async def flows(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The flow table: how many by state; those of a `client`, at most `limit`; the `top` clients."""
        client = _address(asked.get("client"))
        limit = min(int(asked.get("limit") or 50), _MOST_FLOWS)
        return await self._daemon.in_thread(lambda: self._read_flows(client, limit, int(asked.get("top") or 0)))

    def _read_flows(self, client: IPv4Address | None, limit: int, top: int) -> dict[str, Any]:
        states: Counter[str] = Counter()
        clients: Counter[IPv4Address] = Counter()
        found: list[dict[str, Any]] = []
        for flow in flows(self._daemon.router.object):
            states[flow.state] += 1
            address, _ = flow.client
            clients[address] += 1
            if (client is None or address == client) and len(found) < limit:
                found.append(self._flow(flow))
        return {
            "states": dict(states),
            "capacity": self._daemon.router.config.flows,
            "top": [{"client": str(address), "flows": number} for address, number in clients.most_common(top)],
            "flows": [] if top else found,
        }

    def _flow(self, flow: Flow) -> dict[str, Any]:
        names = self._daemon.router.names
        (client, client_port), (server, server_port) = flow.client, flow.server
        return {
            "client": f"{client}:{client_port}",
            "vip": f"{server}:{server_port}",
            "state": flow.state.removeprefix("FLOW_").lower(),
            "backend": names.backends.get(flow.backend, "fallback" if flow.state == "FLOW_FALLBACK" else ""),
            "cluster": names.clusters.get(flow.cluster, ""),
        }

    async def metrics(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """The most important figures; Prometheus gets all of them."""
        return self._figures()

    async def counters(self, _: Mapping[str, Any]) -> dict[str, int]:
        """How many packets have had each verdict, and `requests_routed`."""
        router, recovery = self._daemon.router, self._daemon.recovery
        agent = router.fallback_agent
        counters = {"requests_routed": router.requests_routed, **router.counters()}
        return counters | (agent.counters() if agent else {}) | (recovery.counters() if recovery else {})

    def _figures(self) -> dict[str, Any]:
        router = self._daemon.router
        counters, times = router.counters(), router.latency()
        whole = sum(times.values(), start=Histogram.empty())
        passed = sum(number for name, number in counters.items() if name.startswith("PASS_"))
        mean, p99 = whole.mean, whole.quantile(0.99)
        return {
            "packets_processed": sum(counters.values()),
            "packets_routed": router.requests_routed,
            "packets_dropped": sum(number for name, number in counters.items() if name.startswith(_DROPPED)),
            "packets_answered": sum(number for name, number in counters.items() if name.startswith(_ANSWERED)),
            "packets_passed": passed,
            "avg_latency_us": None if mean is None else mean * 1e6,
            "p99_latency_us": None if p99 is None else p99 * 1e6,
            "fast_path_share": router.fast_path_share,
        }

    # ---- what is done ----------------------------------------------------------------------------------

    async def explain(self, asked: Mapping[str, Any]) -> Any:
        """What the router does with a request, and why: by its present weights and keys."""
        from rauta.explain import explain_live

        return explain_live(self._daemon.router, asked)

    async def drain(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing new goes to a `backend`, and its connections move at their next request."""
        await self._daemon.set_drained(_named(asked), drained=True)
        return {"drained": sorted(self._daemon.router.standing.drained)}

    async def undrain(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The opposite."""
        await self._daemon.set_drained(_named(asked), drained=False)
        return {"drained": sorted(self._daemon.router.standing.drained)}

    async def reload(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """Reads the configuration file again."""
        return {"generation": await self._daemon.reload()}

    async def events(self, _: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """What becomes of packets, as far as it is told, from now on."""
        return self._events()

    async def _events(self) -> AsyncIterator[dict[str, Any]]:
        with self._daemon.told.subscribed() as queue:
            while True:
                yield event_fields(await queue.get())

    async def doctor(self, _: Mapping[str, Any]) -> Any:
        """What is wrong with this host, and on the way to the backends."""
        from rauta.doctor import examine

        router = self._daemon.router
        found = await asyncio.to_thread(lambda: examine(router.config, keys=router.keys.cookies))
        return [asdict(finding) for finding in found]


def backend_state(router: Router, states: Mapping[str, BackendHealth], name: str) -> str:
    """What a backend is, in a word (`BACKEND_STATES`); `states`: by its checks."""
    if name in router.standing.drained:
        return "drained"
    if name in router.unreached:
        return "unreached"
    if name not in states:
        return "unchecked"
    if states[name].healthy:
        return "healthy"
    return "unhealthy" if states[name].host_answers else "down"


def event_fields(event: Event) -> dict[str, Any]:
    """An event as JSON."""
    route = event.route
    return {
        "time_ns": event.time_ns,
        "client": f"{event.client}:{event.client_port}",
        "server": f"{event.server}:{event.server_port}",
        "verdict": event.verdict,
        "vip": event.vip,
        "route": None if route is None else f"{route.host or '*'} {route.path}",
        "cluster": None if route is None else route.cluster,
        "backend": event.backend,
        "cpu": event.cpu,
    }


def _named(asked: Mapping[str, Any]) -> str:
    name = asked.get("backend")
    if not isinstance(name, str):
        raise RautaError("draining", "no backend is named", "Say which: rautactl drain NAME")
    return name


def _address(text: Any) -> IPv4Address | None:
    try:
        return None if text is None else IPv4Address(text)
    except ValueError as error:
        raise RautaError("looking for a client", f"{text!r} is no IPv4 address") from error


def _resident() -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * 4096
