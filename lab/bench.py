"""What a run has built: networks with their servers, and the cells of the matrix that use them.

Cells that differ only in what is measured share a network; where topology, servers, routing, settings, checks or
background load differ, each has its own. All of them exist at the same time, so that rounds can go from one to the
other: cells are compared as contenders are, interleaved.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lab import contenders, matrix, topology
from lab.interfaces import Instrument, Running
from lab.scenario import Scenario
from lab.state import Run
from lab.topology import Network

_OF_NO_CONSEQUENCE = {"claim", "params", "measure", "plan", "targets", "valid", "profiles"}
"""sections that say nothing about what is built"""


@dataclass
class Cell:
    """A combination of the scenario's parameters. ``scenario``: the scenario with these values."""

    number: int
    scenario: Scenario
    instruments: dict[str, Instrument] = field(default_factory=dict)
    """by measure, once they are open"""

    @property
    def label(self) -> str:
        """Its values in words; empty if there is no matrix."""
        return matrix.label(self.scenario.cell)


@dataclass
class Bench:
    """A network with its servers, and the cells that are measured there. ``scenario``: of the first of them."""

    network: Network
    cells: Sequence[Cell]
    healthy: list[str] = field(default_factory=list)
    """contenders that passed all their checks"""

    @property
    def scenario(self) -> Scenario:
        """What all its cells have in common."""
        return self.cells[0].scenario

    @property
    def label(self) -> str:
        """Its cells in words."""
        return self.cells[0].label if len(self.cells) == 1 else ""

    @contextmanager
    def running(self, contender: str) -> Iterator[Running]:
        """A contender, started here, and stopped at the end."""
        with ExitStack() as stack:
            yield contenders.find(contender).start(self.network, self.scenario, stack)


def groups(scenarios: Sequence[Scenario]) -> list[list[Cell]]:
    """Cells that can share a network, in the order of the matrix."""
    found: dict[str, list[Cell]] = {}
    for number, scenario in enumerate(scenarios):
        built = scenario.model_dump(mode="json", exclude=_OF_NO_CONSEQUENCE)
        found.setdefault(json.dumps(built, sort_keys=True), []).append(Cell(number, scenario))
    return list(found.values())


@contextmanager
def built(cells: Sequence[Cell], run: Run, logs: Path, number: int) -> Iterator[Bench]:
    """The network of some cells; ``number``: of the bench among the run's, from 0."""
    with topology.build(cells[0].scenario, run, logs, cell=number) as network:
        yield Bench(network, cells)


def start_servers(bench: Bench, scratch: Path) -> Iterator[str]:
    """Start all servers; yields each host's name as its turn comes. ``scratch``: a folder for their files."""
    for cluster, server in bench.scenario.servers.items():
        for host in bench.network.servers(cluster):
            yield host.name
            folder = scratch / host.namespace
            folder.mkdir()
            server.start(host, cluster, folder)


def programs(running: Running) -> dict[str, object]:
    """What is known of a contender's BPF programs, ready for JSON."""
    return {name: dataclasses.asdict(info) for name, info in running.programs().items()}
