"""Which backends get requests: the configuration's weights, less those who are drained, unhealthy or down.

    drained      an operator wants it empty: nothing new goes there, connections move at their next request
    unhealthy    its checks fail, but its host answers: the same
    down         its host does not answer: connections move without its help, and who waits for it is reset

A cluster of which nobody would be left does what its health check's `all_fail` says: `keep` its unhealthy backends as
if they were healthy (when all checks fail at once, the checks are the likelier culprit), or `refuse` requests with 503.
A cluster without health checks does not care for those of others, and refuses
if all are down. Drained backends stay drained in any case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from rauta.config import Cluster, Config

if TYPE_CHECKING:
    from rauta.checks.health import BackendHealth

__all__ = ["Standing"]


@dataclass(frozen=True)
class Standing:
    """Backends by name that get no requests, and why."""

    drained: frozenset[str] = frozenset()
    unhealthy: frozenset[str] = frozenset()
    down: frozenset[str] = frozenset()

    @classmethod
    def of_checks(cls, states: Mapping[str, BackendHealth], drained: frozenset[str] = frozenset()) -> Self:
        """By what checks say of each backend, and who is drained."""
        unhealthy = {name: state for name, state in states.items() if not state.healthy}
        down = (name for name, state in unhealthy.items() if not state.host_answers)
        return cls(drained, frozenset(unhealthy), frozenset(down))

    def cluster(self, cluster: Cluster) -> Cluster:
        """The cluster with the weights that its backends have now."""
        weights = {name: 0 if name in self.drained else weight for name, weight in cluster.weights().items()}
        out = self.down if cluster.health is None else self.down | self.unhealthy
        fit = {name: 0 if name in out else weight for name, weight in weights.items()}
        keeps = cluster.health is not None and cluster.health.all_fail == "keep"
        if not any(fit.values()) and any(weights.values()) and keeps:
            fit = weights
        backends = (one.model_copy(update={"weight": fit[one.name]}) for one in cluster.backends)
        return cluster.model_copy(update={"backends": tuple(backends)})

    def config(self, config: Config) -> Config:
        """The configuration with the weights that its backends have now."""
        return config.model_copy(update={"clusters": tuple(map(self.cluster, config.clusters))})

    def down_in(self, config: Config) -> frozenset[str]:
        """Whose connections go on without them: who is down, and gets no requests in any cluster."""
        used = {
            backend.name for cluster in self.config(config).clusters for backend in cluster.backends if backend.weight
        }
        return frozenset(self.down & config.backends().keys()) - used
