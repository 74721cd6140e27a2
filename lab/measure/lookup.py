"""What one look-up in a Maglev table costs, in ns: the router's own code on a table as the router has it.

A program (lab/bpf/lookup.bpf.c) looks up some ten thousand times in a row; the same loop without the look-up is
measured alternately, and the difference, divided by their number, is a look-up. By default slots are drawn without
pattern from the whole table (128 kB: 65,537 slots of two bytes); ``hot`` stays near one of them. Each look-up's result
decides the next one's slot, so that they cannot overlap: what is measured is how long one takes, not how many are done
at once.

Before anything is timed, a walk is compared with one in Python over the same table.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from lab.environment import REPOSITORY
from lab.errors import LabError
from lab.interfaces import Instrument, Running, Setup, Watch
from lab.measure.replay import on_one_cpu
from lab.samples import Better, Quantity, Sample
from lab.statistics import median
from rauta.balancing import Balancer
from rauta.bpf import BpfObject, run_time_stats
from rauta.contract import MAGLEV_SLOTS
from rauta.ids import Ids
from rauta.maglev import Table

OBJECT = REPOSITORY / "lab" / "objects" / "lookup.bpf.o"
MULTIPLIER, INCREMENT, WORD = 6364136223846793005, 1442695040888963407, (1 << 64) - 1
"""of the walk, as in lookup.bpf.c"""
LOOKUPS = 65_536
RUNS = 9
"""of each loop in a sample; their medians count"""
PACKET = bytes(64)


class Lookup(BaseModel):
    """ns a look-up in the table of the routing file's first cluster."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layer: Literal["bpf"]
    lookup: Literal["maglev"]
    hot: bool = False
    lookups: Annotated[int, Field(ge=1_000, le=1_000_000)] = LOOKUPS
    unit: Literal["ns"] = "ns"

    @property
    def quantity(self) -> Quantity:
        """Time a look-up."""
        return Quantity(self.unit, Better.LOWER)

    @property
    def quantities(self) -> Mapping[str, Quantity]:
        """The loop around it."""
        return {"loop": Quantity("ns", Better.NEITHER)}

    @property
    def has_histogram(self) -> bool:
        """No: a number a sample."""
        return False

    @property
    def instrument(self) -> str:
        """The kernel's own run-time statistics, of the running release."""
        return f"bpf_stats of Linux {os.uname().release}"

    @property
    def depends_on(self) -> Sequence[str]:
        """Nothing."""
        return ()

    @property
    def needs_contender(self) -> bool:
        """It has a table of its own."""
        return False

    def subjects(self, contenders: Sequence[str]) -> Sequence[str]:
        """RAUTA's table."""
        return [name for name in contenders if name.partition("#")[0] == "rauta"]

    def seconds(self, warmup: float) -> float:
        """About."""
        return 0.1

    def open(self, setup: Setup) -> Instrument:
        """Loads the loops, and fills a table."""
        config, stack = setup.scenario.routing.config, setup.stack
        obj = stack.enter_context(BpfObject.open(OBJECT))
        obj.rodata["lookups"] = self.lookups
        obj.rodata["hot"] = int(self.hot)
        obj.load()
        ids = Ids().following(config)
        balancer = Balancer(obj.maps["clusters"], ids.backend_indices(config))
        balancer.fill([(0, config.clusters[0])])
        _prove(obj, balancer.table(0), self)
        return LookupInstrument(self, obj)


def _prove(obj: BpfObject, slots: Table, model: Lookup) -> None:
    """Walk once, from 0, and the same in Python. LabError if the program looks up something else."""
    obj.programs["with_lookup"].test_run(PACKET)
    seen = obj.maps["walks"].lookup(0)
    position = total = 0
    for _ in range(model.lookups):
        if not model.hot:
            position = (position * MULTIPLIER + INCREMENT) & WORD
        backend = slots[(position >> 32) * MAGLEV_SLOTS >> 32]
        total, position = total + backend, (position + backend) & WORD
    if (seen["hash"], seen["sum"]) != (position, total):
        raise LabError("walking through a Maglev table", f"the program found {seen}, not {position} and {total}")


@dataclass(frozen=True)
class LookupInstrument:
    """The two loops, loaded."""

    model: Lookup
    object: BpfObject

    def sample(self, subject: str, running: Running | None, watch: Watch, *, scale: int = 1) -> Sample:
        """Both loops in turn."""
        spent: dict[str, list[float]] = {"with_lookup": [], "without": []}
        with on_one_cpu(), run_time_stats(), watch:
            for _ in range(scale * RUNS):
                for name, found in spent.items():
                    found.append(self._run(name))
        each = {name: median(found) / self.model.lookups for name, found in spent.items()}
        return Sample(each["with_lookup"] - each["without"], quantities={"loop": each["without"]})

    def _run(self, name: str) -> float:
        """ns of one run of a loop."""
        program = self.object.programs[name]
        before = program.info()
        program.test_run(PACKET)
        return program.info().run_time_ns - before.run_time_ns
