"""In which layer a change between two runs arises.

Layers contain each other: a packet in layer veth goes through the program of layer bpf, a request in layer http through
both. What becomes slower in one becomes slower, if diluted, in those around it, and never in those within. So a change
arises in the innermost layer that shows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab import results
from lab.compare import BASELINES, Change, Outcome

LAYERS = {
    "bpf": "the program itself",
    "veth": "the packet's way around the program: driver, redirection, links",
    "http": "what only connections use: handshakes, agents, servers, clients",
}
"""from the innermost: what can make it slower"""


@dataclass(frozen=True)
class Attribution:
    """Where a contender became worse, or better, in one cell."""

    contender: str
    params: Mapping[str, Any]
    outcome: Outcome
    layer: str
    evidence: Sequence[Change]
    """the changes in that layer"""
    unknown: Sequence[str]
    """layers within it about which nothing is known: it may arise there as well"""

    def __str__(self) -> str:
        seen = ", ".join(f"{one.metric}{_size(one)}" for one in self.evidence)
        text = f"{self.contender} is {self.outcome} in layer {self.layer} ({LAYERS[self.layer]}): {seen}"
        unknown = " and ".join(self.unknown)
        return f"{text}; it may arise further in, nothing is known about {unknown}" if unknown else text


def _size(change: Change) -> str:
    return f" {change.change.value - 1:+.0%}" if change.is_ratio else ""


def attribute(changes: Sequence[Change]) -> list[Attribution]:
    """For each contender, in each cell, the innermost layer in which something became worse, and likewise better.

    A layer within it is cleared if nothing that was measured there is inconclusive. Baselines are not attributed: they
    change with the machine, or with the lab.
    """
    subjects = dict.fromkeys((change.contender, results.cell_text(change.params)) for change in changes)
    found: list[Attribution] = []
    for contender, params in subjects:
        if contender.partition("#")[0] not in BASELINES:
            mine = [one for one in changes if (one.contender, results.cell_text(one.params)) == (contender, params)]
            found += _innermost(mine, Outcome.WORSE)
            found += _innermost(mine, Outcome.BETTER)
    return found


def _innermost(changes: Sequence[Change], outcome: Outcome) -> Iterator[Attribution]:
    layers = list(LAYERS)
    for number, layer in enumerate(layers):
        evidence = [one for one in changes if one.layer == layer and one.outcome is outcome]
        if evidence:
            unknown = [within for within in layers[:number] if not _cleared(within, changes)]
            yield Attribution(evidence[0].contender, evidence[0].params, outcome, layer, evidence, unknown)
            return


def _cleared(layer: str, changes: Sequence[Change]) -> bool:
    seen = {one.outcome for one in changes if one.layer == layer}
    return bool(seen) and not seen & {Outcome.INCONCLUSIVE, Outcome.NOT_JUDGED}
