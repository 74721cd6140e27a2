"""How fast things go in a running router: readings of its counters, and what lies between two of them.

Nothing is measured unless somebody asks; then he reads twice, or again and again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rauta.latency import Histogram
from rauta.router import Router

__all__ = ["Reading", "figures", "read"]

_DROPPED, _ANSWERED, _PASSED, _ROUTED = "DROP_", "TX_", "PASS_", "ROUTED_"


@dataclass(frozen=True)
class Reading:
    """Counters at a moment, `at`, in seconds by the monotonic clock. Requests by cluster and by backend."""

    at: float
    verdicts: Mapping[str, int]
    clusters: Mapping[str, int]
    backends: Mapping[str, int]
    times: Histogram

    def since(self, earlier: Reading) -> dict[str, Any]:
        """By the second, what came since then. Backends and clusters that are new count from their first reading.

        Few packets are timed: if none was meanwhile, the times are those of all that ever were.
        """
        seconds = self.at - earlier.at
        verdicts = _rates(earlier.verdicts, self.verdicts, seconds)
        times = self.times.since(earlier.times)
        times = times if times.count else self.times
        return {
            "seconds": seconds,
            "requests_per_second": _sum(verdicts, _ROUTED),
            "packets_per_second": sum(verdicts.values()),
            "avg_latency_us": _micro(times.mean),
            "p99_latency_us": _micro(times.quantile(0.99)),
            "clusters": _rates(earlier.clusters, self.clusters, seconds),
            "backends": _rates(earlier.backends, self.backends, seconds),
            "dropped": _named(verdicts, _DROPPED),
            "answered": _named(verdicts, _ANSWERED),
        }


def read(router: Router) -> Reading:
    """All counters; it takes milliseconds, or more with thousands of routes: in a thread, then."""
    clusters: Counter[str] = Counter({cluster.name: 0 for cluster in router.config.clusters})
    for one in router.requests_by_route():
        clusters[one.route.cluster] += one.requests
    return Reading(time.monotonic(), router.counters(), clusters, router.requests_by_backend(), _times(router))


def figures(router: Router) -> dict[str, Any]:
    """The most important figures since the program was loaded. Cheap."""
    verdicts, times = router.counters(), _times(router)
    return {
        "packets_processed": sum(verdicts.values()),
        "packets_routed": _sum(verdicts, _ROUTED),
        "packets_dropped": _sum(verdicts, _DROPPED),
        "packets_answered": _sum(verdicts, _ANSWERED),
        "packets_passed": _sum(verdicts, _PASSED),
        "avg_latency_us": _micro(times.mean),
        "p99_latency_us": _micro(times.quantile(0.99)),
        "fast_path_share": router.fast_path_share,
    }


def _times(router: Router) -> Histogram:
    return sum(router.latency().values(), start=Histogram.empty())


def _sum(verdicts: Mapping[str, Any], prefix: str) -> Any:
    return sum(number for name, number in verdicts.items() if name.startswith(prefix))


def _named(verdicts: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {name: number for name, number in verdicts.items() if number and name.startswith(prefix)}


def _rates(before: Mapping[str, int], after: Mapping[str, int], seconds: float) -> dict[str, float]:
    """A counter whose number has gone to somebody else begins at nothing again."""
    return {name: max(0, number - before.get(name, number)) / seconds for name, number in after.items()}


def _micro(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e6
