"""A router's figures as Prometheus reads them: see rauta.prometheus.metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from rauta.fingerprints import route_label
from rauta.flows import count_flows
from rauta.ids import route_name
from rauta.latency import BOUNDS, Histogram
from rauta.loading import is_router_verdict
from rauta.processes.answers import BACKEND_STATES, backend_state
from rauta.prometheus import agent as agent_metrics
from rauta.prometheus import families
from rauta.prometheus.counting import first_totals, totals
from rauta.prometheus.text import Labels, Table

if TYPE_CHECKING:
    from rauta.checks.health import BackendHealth, Counters
    from rauta.config import Config, Route
    from rauta.ids import Ids
    from rauta.processes.daemon import Daemon
    from rauta.prometheus.metrics import CommonPart
    from rauta.router import Router

__all__ = ["Health", "RouterPage", "Written", "by_octaves", "figures"]

_ACTIONS = {
    "PASS_": "passed",
    "DROP_": "dropped",
    "TX_": "answered",
    "ROUTED_": "routed",
    "FORWARDED": "forwarded",
    "FALLBACK_": "fallback",
}
_NO_REFUSAL = {"TX_SYN_ACK", "TX_KEEPALIVE", "TX_CLOSE", "TX_DISCARDED", "TX_TOO_BIG"}
_FALLBACK_LATER = {"FALLBACK_AGAIN", "FALLBACK_FORWARDED", "FALLBACK_CLOSE"}
_UP = {"healthy", "unchecked", "drained"}
_OCTAVE = 4  # buckets of the program's times, of which Prometheus gets one
_ATTEMPTS = 100
_MOMENT = 0.001  # seconds


@dataclass(frozen=True)
class Health:
    """What the checks say."""

    states: Mapping[str, BackendHealth]
    counters: Counters


class RouterPage:
    """Makes the page of a router that runs; by one thread at a time."""

    def __init__(self, daemon: Daemon, common: CommonPart) -> None:
        self._daemon = daemon
        self._common = common
        self._written: Written | None = None

    def render(self, health: Health) -> bytes:
        """The page, as it is sent."""
        written, router = self._current(), self._daemon.router
        parts = (
            figures(router, written, health),
            families.INTERFACES.text(dict.fromkeys(self._daemon.modes.items(), 1)),
            self._recovery(),
            agent_metrics.packets(router.fallback_agent, "fallback") if router.fallback_agent else "",
            self._common.text(self._daemon, router),
        )
        return "".join(parts).encode()

    def _current(self) -> Written:
        """A reload sets the configuration, and then its numbers: whoever comes in between looks again."""
        router = self._daemon.router
        for _ in range(_ATTEMPTS):
            config, ids = router.config, router.ids
            if self._written is not None and self._written.config is config and self._written.ids is ids:
                return self._written
            try:
                self._written = Written(router, config, ids)
            except KeyError:
                time.sleep(_MOMENT)
        return Written(router, router.config, router.ids)

    def _recovery(self) -> str:
        recovery = self._daemon.recovery
        counts = recovery.counters() if recovery is not None else {}
        return "".join(families.RECOVERY[name].one(count) for name, count in counts.items())


def figures(router: Router, written: Written, health: Health) -> str:
    """What the packet path has counted, and what its tables hold."""
    return "".join(
        (
            written.counters(router),
            written.backends(router, health),
            _health(health),
            _times(router),
            _events(router),
            _tables(router, written.config),
        )
    )


class Written:
    """All series of one configuration, and where their values are. KeyError if one of them has no number there."""

    def __init__(self, router: Router, config: Config, ids: Ids) -> None:
        self.config, self.ids = config, ids
        routes = sorted(
            ((ids.routes[route_name(vip, route)], vip, route) for vip in config.vips for route in vip.routes),
            key=lambda one: one[0],
        )
        self._routes = [number for number, _, _ in routes]
        named = [(vip.name, route_label(route_name(vip, route)), route) for _, vip, route in routes]
        self._requests = Table(families.REQUESTS, ((vip, label, route.cluster) for vip, label, route in named))
        self._info = families.ROUTE_INFO.text({_route_info(*one): 1 for one in named})
        self._backends = ids.backend_indices(config)
        self._by_backend = Table(families.BACKEND_REQUESTS, ((name,) for name in self._backends))
        self._states = Table(
            families.BACKEND_STATE, ((name, state) for name in self._backends for state in BACKEND_STATES)
        )
        self._up = Table(families.BACKEND_UP, ((name,) for name in self._backends))
        members = [(cluster.name, one.name) for cluster in config.clusters for one in cluster.backends]
        self._weights = Table(families.BACKEND_WEIGHT, members)
        self._given = families.CONFIGURED_WEIGHT.text(
            {(cluster.name, one.name): one.weight for cluster in config.clusters for one in cluster.backends}
        )
        self._verdicts = _Verdicts(router, {vip.name: ids.vips[vip.name] for vip in config.vips})

    def counters(self, router: Router) -> str:
        """Packets and requests."""
        maps = router.object.maps
        by_route = first_totals(maps["route_requests"], max(self._routes, default=0) + 1)
        by_backend = first_totals(maps["backend_requests"], max(self._backends.values(), default=0) + 1)
        return "".join(
            (
                self._verdicts.text(router),
                self._requests.text([by_route[number] for number in self._routes]),
                self._info,
                self._by_backend.text([by_backend[number] for number in self._backends.values()]),
            )
        )

    def backends(self, router: Router, health: Health) -> str:
        """Their states and weights."""
        states = {name: backend_state(router, health.states, name) for name in self._backends}
        weights = [
            weight for cluster in self.config.clusters for weight in router.standing.cluster(cluster).weights().values()
        ]
        return "".join(
            (
                self._up.text([int(state in _UP) for state in states.values()]),
                self._states.text([int(one == state) for state in states.values() for one in BACKEND_STATES]),
                self._weights.text(weights),
                self._given,
            )
        )


def _route_info(vip: str, label: str, route: Route) -> Labels:
    match = "exact" if route.exact is not None else "prefix"
    return vip, label, route.host or "", match, route.path, route.method or "", route.cluster


class _Verdicts:
    """The families of what became of packets."""

    def __init__(self, router: Router, vips: Mapping[str, int]) -> None:
        verdicts = {name: n for name, n in router.object.btf.enum("verdict").items() if is_router_verdict(name)}
        self._rows = ["", *vips], [0, *vips.values()]
        self._numbers = list(verdicts.values())
        self._refusals = _reasons(verdicts, "TX_", _NO_REFUSAL)
        self._handed = _reasons(verdicts, "FALLBACK_", _FALLBACK_LATER)
        names = [(name.lower(), _action(name)) for name in verdicts]
        self._packets = Table(families.PACKETS, ((*name, vip) for vip in self._rows[0] for name in names))
        self._refused = Table(families.REFUSED, ((vip, reason) for vip in vips for reason in self._refusals))
        self._fallback = Table(families.FALLBACK, ((vip, reason) for vip in vips for reason in self._handed))

    def text(self, router: Router) -> str:
        """All VIPs', and those that no VIP is charged with."""
        counts, width = router.object.maps["verdicts"], router.object.maps["verdicts"].value_size // 8
        rows = [totals(counts.lookup_raw(number) or bytes(8 * width), width) for number in self._rows[1]]
        return "".join(
            (
                self._packets.text([row[number] for row in rows for number in self._numbers]),
                self._refused.text([row[number] for row in rows[1:] for number in self._refusals.values()]),
                self._fallback.text([row[number] for row in rows[1:] for number in self._handed.values()]),
            )
        )


def _reasons(verdicts: Mapping[str, int], prefix: str, others: set[str]) -> dict[str, int]:
    return {
        name.removeprefix(prefix).lower(): number
        for name, number in verdicts.items()
        if name.startswith(prefix) and name not in others
    }


def _action(verdict: str) -> str:
    return next(action for prefix, action in _ACTIONS.items() if verdict.startswith(prefix))


def _health(health: Health) -> str:
    counted = health.counters
    names = health.states
    transitions: dict[Labels, int] = {
        (name, "healthy" if healthy else "unhealthy"): counted.transitions.get((name, healthy), 0)
        for name in names
        for healthy in (True, False)
    }
    took: dict[Labels, float] = {(name,): state.latency for name, state in names.items() if state.latency is not None}
    return "".join(
        (
            families.CHECKS.text({(str(result),): count for result, count in counted.checks.items()}),
            families.TRANSITIONS.text(transitions),
            families.CHECK_SECONDS.text(took),
        )
    )


def _times(router: Router) -> str:
    return families.PROCESSING.histograms({(name,): by_octaves(one) for name, one in router.latency().items()})


def by_octaves(times: Histogram) -> Histogram:
    """The same times in buckets four times as wide, whose bounds double."""
    reached = list(accumulate(times.counts))[_OCTAVE - 1 :: _OCTAVE]
    counts = (after - before for before, after in zip((0, *reached), reached, strict=False))
    return Histogram(tuple(counts), times.sum, BOUNDS[_OCTAVE - 1 :: _OCTAVE])


def _events(router: Router) -> str:
    return families.EVENTS.text(
        {
            (name, outcome): count
            for name, counts in router.event_counts().items()
            for outcome, count in (("told", counts.told), ("limited", counts.limited), ("lost", counts.lost))
        }
    )


def _tables(router: Router, config: Config) -> str:
    """How full they are."""
    counted = count_flows(router.object)
    return "".join(
        (
            families.FLOWS.text({(state,): count for state, count in counted.by_state.items()}),
            families.FLOW_CAPACITY.one(config.flows),
            families.FLOW_SETS.one(counted.sets),
            families.FULL_SETS.one(counted.full_sets),
            families.ROUTES.one(sum(len(vip.routes) for vip in config.vips)),
            families.ROUTE_CAPACITY.one(router.object.maps["route_requests"].max_entries),
        )
    )
