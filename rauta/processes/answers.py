"""What a running router answers rautactl: a method a command, from its arguments to JSON (docs/rautactl.md has both).

Whoever asks gets figures by the second as they are measured meanwhile: nothing runs for them otherwise. What reads a
whole table does so in a thread, a piece at a time, and never two of them at once: packets, checks and other questions
do not wait for it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

from rauta.config import Cluster
from rauta.errors import RautaError
from rauta.events import Event
from rauta.ids import route_name
from rauta.loading import is_router_verdict
from rauta.processes import flowing, rates
from rauta.processes.asked import Asked
from rauta.processes.control import Handler
from rauta.processes.telling import Listener

if TYPE_CHECKING:
    from rauta.checks.health import BackendHealth
    from rauta.processes.daemon import Daemon
    from rauta.router import Router

__all__ = ["BACKEND_STATES", "Answers", "backend_state", "event_fields", "heard"]

Result = TypeVar("Result")

BACKEND_STATES = ("healthy", "unchecked", "drained", "unhealthy", "down", "unreached")
_MEASURED_SECONDS = 1.0
_MOST_FLOWS = 1000
_MOST_CLIENTS = 1000
_SHOWN_FLOWS = 50
_LEAST_INTERVAL, _MOST_INTERVAL = 0.1, 3600.0
_LOOK_SECONDS = 0.5  # between two looks at what was lost
_UNNAMED = "Say which backend: rautactl drain NAME"


class Answers:
    """The commands of a daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._reading = asyncio.Semaphore(1)

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
            "watch": self.watch,
            "events": self.events,
            "follow": self.follow,
            "doctor": self.doctor,
        }

    async def _read(self, what: Callable[[], Result]) -> Result:
        """Reads in a thread. It changes nothing, so that it need not wait for what does."""
        async with self._reading:
            return await asyncio.to_thread(what)

    # ---- what there is ---------------------------------------------------------------------------------

    async def status(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The router in a few figures."""
        Asked("status", asked)
        daemon, router = self._daemon, self._daemon.router
        states, config = daemon.health.states(), router.config
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
            "memory": {"maps": (await asyncio.to_thread(router.memory)).total, "process": _resident()},
            "figures": rates.figures(router),
        }

    async def routes(self, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Each route, and how many requests it has had. Of one `vip`, one `cluster`, `unused` ones: if they say so."""
        said = Asked("routes", asked, "vip", "cluster", "unused")
        config = self._daemon.router.config
        vip = _known("VIP", said.text("vip"), [one.name for one in config.vips])
        cluster = _known("cluster", said.text("cluster"), [one.name for one in config.clusters])
        unused = bool(said.whole("unused", default=0, least=0, most=1))
        return await self._read(lambda: self._routes(vip, cluster, unused))

    def _routes(self, vip: str | None, cluster: str | None, unused: bool) -> list[dict[str, Any]]:
        router = self._daemon.router
        vips, numbers = {one.name: one for one in router.config.vips}, router.ids.routes
        return [
            {
                "id": numbers[route_name(vips[one.vip], one.route)],
                "vip": one.vip,
                "host": one.route.host,
                "kind": "exact" if one.route.exact is not None else "prefix",
                "path": one.route.path,
                "method": one.route.method,
                "cluster": one.route.cluster,
                "requests": one.requests,
            }
            for one in router.requests_by_route()
            if vip in (None, one.vip) and cluster in (None, one.route.cluster) and not (unused and one.requests)
        ]

    async def backends(self, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Each backend of each cluster: weight, health, flows, and requests a second, measured now."""
        said = Asked("backends", asked, "cluster")
        router = self._daemon.router
        wanted = _known("cluster", said.text("cluster"), [one.name for one in router.config.clusters])
        before, began = router.requests_by_backend(), time.monotonic()
        counted = await self._read(lambda: flowing.live_by_backend(router))
        await asyncio.sleep(max(0.0, _MEASURED_SECONDS - (time.monotonic() - began)))
        after, seconds = router.requests_by_backend(), time.monotonic() - began
        return [
            {
                **fields,
                "flows": counted[fields["name"]],
                "requests": after.get(fields["name"], 0),
                "requests_per_second": (after.get(fields["name"], 0) - before.get(fields["name"], 0)) / seconds,
            }
            for fields in self._standing(wanted)
        ]

    def _standing(self, wanted: str | None = None) -> list[dict[str, Any]]:
        """Each backend of each cluster, or of the one that is wanted: who it is, and how it stands."""
        router = self._daemon.router
        both = zip(router.config.clusters, router.effective.clusters, strict=True)
        return [
            fields
            for configured, now in both
            if wanted in (None, configured.name)
            for fields in self._members(configured, now)
        ]

    def _members(self, configured: Cluster, now: Cluster) -> list[dict[str, Any]]:
        router, states = self._daemon.router, self._daemon.health.states()
        weights, numbers = now.weights(), router.ids.backend_indices(router.config)
        return [
            {
                "id": numbers[one.name],
                "cluster": configured.name,
                "name": one.name,
                "address": str(one.address),
                "port": one.port,
                "weight": one.weight,
                "effective_weight": weights[one.name],
                "state": backend_state(router, states, one.name),
                "since": states[one.name].since if one.name in states else None,
                "error": states[one.name].error if one.name in states else "",
            }
            for one in configured.backends
        ]

    async def flows(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The flow table: how many by state; those that are looked for, `limit` of them; the `top` clients of these."""
        said = Asked("flows", asked, "client", "backend", "state", "limit", "top")
        router = self._daemon.router
        wanted = flowing.Wanted.of(router, said.client(), said.text("backend"), said.text("state"))
        limit = said.whole("limit", default=_SHOWN_FLOWS, least=0, most=_MOST_FLOWS)
        top = said.whole("top", default=0, least=0, most=_MOST_CLIENTS)
        return await self._read(lambda: flowing.survey(router, wanted, limit, top))

    async def metrics(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The most important figures; Prometheus gets all of them."""
        Asked("metrics", asked)
        return rates.figures(self._daemon.router)

    async def counters(self, asked: Mapping[str, Any]) -> dict[str, int]:
        """How many packets have had each verdict, and `requests_routed`."""
        Asked("counters", asked)
        router, recovery = self._daemon.router, self._daemon.recovery
        agent = router.fallback_agent
        counters = {"requests_routed": router.requests_routed, **router.counters()}
        return counters | (agent.counters() if agent else {}) | (recovery.counters() if recovery else {})

    async def explain(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """What the router does with a request, and why: by its present weights and tables."""
        from rauta.explanation.live import explain_live

        said = Asked("explain", asked, "request", "headers", "vip", "client")
        request = said.needed("request", "Say which: rautactl explain 'GET http://host/path'")
        headers, vip, client = said.texts("headers"), said.text("vip"), said.client()
        return await self._read(lambda: explain_live(self._daemon.router, request, headers, vip=vip, client=client))

    async def doctor(self, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What is wrong with this host, and on the way to the backends."""
        from rauta.doctor import examine

        Asked("doctor", asked)
        router = self._daemon.router
        found = await asyncio.to_thread(
            examine, router.config, keys=router.keys.cookies, interfaces=router.config.interfaces
        )
        return [dataclasses.asdict(one) for one in found]

    # ---- what is done ----------------------------------------------------------------------------------

    async def drain(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing new goes to a `backend`, and its connections move at their next request."""
        await self._daemon.set_drained(Asked("drain", asked, "backend").needed("backend", _UNNAMED), drained=True)
        return {"drained": sorted(self._daemon.router.standing.drained)}

    async def undrain(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The opposite."""
        await self._daemon.set_drained(Asked("undrain", asked, "backend").needed("backend", _UNNAMED), drained=False)
        return {"drained": sorted(self._daemon.router.standing.drained)}

    async def reload(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Reads the configuration file again."""
        Asked("reload", asked)
        return {"generation": await self._daemon.reload()}

    # ---- what goes on ----------------------------------------------------------------------------------

    async def watch(self, asked: Mapping[str, Any]) -> AsyncIterator[Sequence[Any]]:
        """Requests, drops, times and health by the second, every `interval` seconds."""
        said = Asked("watch", asked, "interval")
        return self._watch(said.number("interval", default=1.0, least=_LEAST_INTERVAL, most=_MOST_INTERVAL))

    async def _watch(self, interval: float) -> AsyncGenerator[Sequence[Any], None]:
        router = self._daemon.router
        before = await self._read(lambda: rates.read(router))
        while True:
            await asyncio.sleep(interval)
            now = await self._read(lambda: rates.read(router))
            yield [self._seen(now.since(before))]
            before = now

    def _seen(self, between: dict[str, Any]) -> dict[str, Any]:
        backends = [
            {
                "cluster": one["cluster"],
                "name": one["name"],
                "state": one["state"],
                "weight": one["weight"],
                "effective_weight": one["effective_weight"],
                "requests_per_second": between["backends"].get(one["name"], 0.0),
            }
            for one in self._standing()
        ]
        clusters = [{"name": name, "requests_per_second": rate} for name, rate in between["clusters"].items()]
        return {
            "time": time.time(),
            "instance": self._daemon.instance.name,
            "generation": self._daemon.state.generation,
            "error": self._daemon.error,
            **between,
            "clusters": clusters,
            "backends": backends,
        }

    async def events(self, asked: Mapping[str, Any]) -> AsyncIterator[Sequence[Any]]:
        """What becomes of packets, as far as it is told: from now on, of one `verdict`, of one `client`."""
        said = Asked("events", asked, "verdict", "client")
        client, verdict = said.client(), self._verdict(said.text("verdict"))
        held = ExitStack()
        listener = held.enter_context(
            self._daemon.told.subscribed(
                lambda event: event.sampled and event.verdict.startswith(verdict) and _is_of(event, client)
            )
        )
        return _Held(heard(listener, lambda: listener.lost), held)

    async def follow(self, asked: Mapping[str, Any]) -> AsyncIterator[Sequence[Any]]:
        """All packets of a `client`, and what becomes of them."""
        client = Asked("follow", asked, "client").client()
        if client is None:
            raise RautaError("following a client", "none is named", "Say which: rautactl follow 198.18.0.7:40000")
        told, held = self._daemon.told, ExitStack()
        listener = held.enter_context(told.following(*client))
        return _Held(heard(listener, lambda: listener.lost + told.follow_lost), held)

    def _verdict(self, wanted: str | None) -> str:
        """What verdicts are to begin with."""
        if wanted is None:
            return ""
        names = [name for name in self._daemon.router.object.btf.enum("verdict") if is_router_verdict(name)]
        prefix = wanted.upper()
        if not any(name.startswith(prefix) for name in names):
            kinds = ", ".join(dict.fromkeys(f"{name.partition('_')[0]}" for name in names))
            advice = f"Say a whole one, or how it begins: {kinds}. `rautactl counters` has them all."
            raise RautaError(f"looking for verdict {wanted!r}", "there is none that begins so", advice)
        return prefix


class _Held(AsyncIterator[Sequence[Any]]):
    """Items, and what is held for them: given back by `aclose`, also if nobody has taken any."""

    def __init__(self, items: AsyncGenerator[Sequence[Any], None], held: ExitStack) -> None:
        self._items = items
        self._held = held

    async def __anext__(self) -> Sequence[Any]:
        return await anext(self._items)

    async def aclose(self) -> None:
        """Safe to repeat."""
        try:
            await self._items.aclose()
        finally:
            self._held.close()


async def heard(listener: Listener, lost: Callable[[], int]) -> AsyncGenerator[Sequence[Any], None]:
    """Events, and how many have been lost since that was said last."""
    said = 0
    while True:
        items = [event_fields(event) for event in await listener.some(_LOOK_SECONDS)]
        if (now := lost()) > said:
            items.append({"lost": now - said})
            said = now
        if items:
            yield items


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
    """An event as JSON. `time`: by the wall clock, in seconds, as it runs now."""
    route = event.route
    return {
        "time": (time.time_ns() - time.monotonic_ns() + event.time_ns) / 1e9,
        "time_ns": event.time_ns,
        "client": f"{event.client}:{event.client_port}",
        "server": f"{event.server}:{event.server_port}",
        "flags": event.flag_names,
        "seq": event.seq,
        "length": event.length,
        "method": event.method,
        "verdict": event.verdict,
        "vip": event.vip,
        "route": None if route is None else f"{route.host or '*'} {route.path}",
        "cluster": None if route is None else route.cluster,
        "backend": event.backend,
        "cpu": event.cpu,
    }


def _is_of(event: Event, client: tuple[Any, int] | None) -> bool:
    return client is None or (event.client == client[0] and client[1] in (0, event.client_port))


def _known(what: str, name: str | None, names: list[str]) -> str | None:
    """RautaError if a name is none of those that there are."""
    if name is not None and name not in names:
        there = ", ".join(names[:20]) or "none"
        raise RautaError(f"looking for {what} {name[:80]!r}", "there is none of that name", f"There are: {there}.")
    return name


def _resident() -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * 4096
