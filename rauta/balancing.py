"""The map `clusters` of a loaded router: a Maglev table for each cluster that there is, replaced as a whole.

A table takes 131 kB of the kernel's memory, and only clusters that exist have one. The new table of a cluster is a new
inner map: it is filled first, and then put in the old one's place, so that each packet sees the one or the other. When
the call that does this returns, no packet sees the old one any more (the kernel waits for those that do).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from rauta import maglev, tables
from rauta.bpf import Map, MapType
from rauta.config import MAX_WEIGHT, Cluster, Config
from rauta.contract import MAGLEV_PACKED, SLOTS_PER_ENTRY
from rauta.errors import RautaError

__all__ = ["Balancer", "reweighted"]

_TABLE = (MapType.ARRAY, "maglev", 4, 2 * SLOTS_PER_ENTRY, MAGLEV_PACKED)  # struct maglev_table in bpf/balance.h


class Balancer:
    """Fills and changes the Maglev tables of a router. Clusters are numbered as in its configuration."""

    def __init__(self, clusters: Map, indices: Mapping[str, int]) -> None:
        """`clusters` is the loaded map; `indices` says which number each backend has in the map `backends`."""
        self._clusters = clusters
        self._indices = indices

    def fill(self, clusters: Sequence[tuple[int, Cluster]]) -> None:
        """Gives clusters, each with its number, their fresh tables."""
        if not clusters:
            return
        with maglev.Builder() as builder:
            for first in range(0, len(clusters), maglev.MAX_TABLES):
                some = clusters[first : first + maglev.MAX_TABLES]
                with ExitStack() as stack:  # each has a descriptor until it is in its place
                    made = [stack.enter_context(Map.create(*_TABLE)) for _ in some]
                    weights = (cluster.weights() for _, cluster in some)
                    builder.build_into(list(zip(made, weights, strict=True)), self._indices)
                    numbers = (number for number, _ in some)
                    self._clusters.update_batch(zip(numbers, made, strict=True))  # one call: it waits for packets

    def replace(self, number: int, before: Cluster, after: Cluster) -> None:
        """Gives a cluster the table that follows from its present one, see `maglev.replacement`."""
        weights = after.weights()
        with maglev.Builder() as builder:
            fresh = builder.build(weights, self._indices)
        allowed = maglev.allowance(before.weights(), weights)
        following = maglev.replacement(self.table(number), fresh, allowed)
        with Map.create(*_TABLE) as table:
            table.write_array(tables.maglev_values(following))
            self._clusters.update(number, table)

    def table(self, number: int) -> maglev.Table:
        """The table that a cluster has now: the backend's number by slot. RautaError if there is no such cluster."""
        id = self._clusters.lookup(number)
        if id is None:
            raise RautaError("reading a Maglev table", f"there is no cluster number {number}", "They count from 0.")
        with Map.by_id(id, *_TABLE) as table:
            return tables.maglev_table(table.read_array())


def reweighted(config: Config, name: str, weights: Mapping[str, int]) -> tuple[int, Cluster, Cluster]:
    """A cluster's number, and the cluster before and after some of its backends got other weights, by name.

    RautaError if there is no such cluster or backend, or a weight is none.
    """
    tried = f"changing weights in cluster {name!r}"
    numbers = {cluster.name: number for number, cluster in enumerate(config.clusters)}
    if name not in numbers:
        raise RautaError(tried, "there is no such cluster", f"The configuration has: {', '.join(numbers) or 'none'}.")
    before = config.clusters[numbers[name]]
    known = before.weights()
    for backend, weight in weights.items():
        if backend not in known:
            raise RautaError(tried, f"it has no backend {backend!r}", f"It has: {', '.join(known) or 'none'}.")
        if type(weight) is not int or not 0 <= weight <= MAX_WEIGHT:
            raise RautaError(tried, f"{weight!r} is no weight", f"A weight is a whole number, 0 to {MAX_WEIGHT}.")
    backends = (one.model_copy(update={"weight": weights.get(one.name, one.weight)}) for one in before.backends)
    return numbers[name], before, before.model_copy(update={"backends": tuple(backends)})
