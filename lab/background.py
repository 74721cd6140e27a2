"""Load that is there while something else is measured: connections that do nothing, clients that read slowly, a flood
of SYNs, a program that takes CPU time.

A scenario lists them under ``background``; a contender gets them after it has started, before its measures, and all of
it must still be there at the end, or the samples would not be what was asked for. With ``at``, one is there only in the
cells with these values of parameters.

What a load does while a sample is taken (how many SYNs, how much CPU time) is part of the sample, as further quantities
(``Metered``).
"""

from __future__ import annotations

import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from lab.errors import LabError
from lab.flood import Flood, cpu_time, flooding
from lab.interfaces import Running, Watch
from lab.process import Process, wait_until
from lab.samples import Better, Quantity
from lab.units import PerSecond, Size
from rauta.units import Share

if TYPE_CHECKING:
    from lab.scenario import Scenario
    from lab.topology import Network

CLIENTS = Path(__file__).parent / "clients"
HOLDER, BURNER = CLIENTS / "holder.py", CLIENTS / "burner.py"
SECONDS_A_CONNECTION = 0.002
"""a generous estimate, for the deadline of the whole"""
START_SECONDS = 20.0


class Load(BaseModel, ABC):
    """What goes on in the background. ``at``: only in the cells with these values of parameters; none: in all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at: dict[str, bool | int | float | str] = {}

    @property
    def quantities(self) -> Mapping[str, Quantity]:
        """What samples say about it."""
        return {}

    @abstractmethod
    def running(self, network: Network, running: Running, scenario: Scenario) -> AbstractContextManager[Standing]:
        """While inside. LabError if it does not begin, or is not all there at the end."""


def _nothing() -> Mapping[str, float]:
    return {}


@dataclass(frozen=True)
class Standing:
    """A load that is there.

    ``read``: numbers that only grow; ``figures``: the load's quantities, from how much those have grown in so many
    seconds.
    """

    read: Callable[[], Mapping[str, float]] = _nothing
    figures: Callable[[Mapping[str, float], float], Mapping[str, float]] = lambda _grown, _seconds: {}


@dataclass
class Metered(AbstractContextManager["Metered"]):
    """A watch, and what loads do while it is entered: ``figures`` is known afterwards."""

    watch: Watch
    loads: Sequence[Standing]
    figures: dict[str, float] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self.watch.__enter__()
        self._started, self._before = time.monotonic(), [load.read() for load in self.loads]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = time.monotonic() - self._started
        for load, before in zip(self.loads, self._before, strict=True):
            grown = {name: number - before[name] for name, number in load.read().items()}
            self.figures |= load.figures(grown, seconds)
        self.watch.__exit__(kind, error, trace)


class _Held(Load):
    """Connections that a helper process on the client's host keeps open."""

    cluster: str
    path: Annotated[str, Field(pattern="^/")] = "/"
    host: str = "shop.test"

    @contextmanager
    def _held(self, network: Network, running: Running, count: int, read: int) -> Iterator[Standing]:
        """``read``: bytes a second and connection, of an answer that stays unfinished; 0: one answer, then silence."""
        if not count:
            yield Standing()
            return
        address, port = running.target(self.cluster)
        argv = [sys.executable, str(HOLDER), str(address), str(port), self.host, self.path, str(count), str(read)]
        holder = network.client.start(argv, name="holder")
        try:
            patience = START_SECONDS + SECONDS_A_CONNECTION * count
            wait_until(lambda: _said(holder, "standing"), seconds=patience, what=f"{count} connections to stand")
            yield Standing()
            holder.stop()
            if lost := _lost(holder, count):
                raise LabError(f"holding {count} connections", f"{lost} of them ended early")
        finally:
            holder.stop()


def _lost(holder: Process, count: int) -> int:
    """How many connections have ended, as a holder that was stopped says; all of them if it says nothing."""
    said = [line for line in holder.output().splitlines() if line.startswith("{")]
    return int(json.loads(said[-1])["lost"]) if said else count


def _said(load: Process, word: str) -> bool:
    if load.poll() is not None:
        raise LabError(f"starting the background load {load.name}", load.output()[-1000:])
    return word in load.output()


class Idle(_Held):
    """So many connections that have each had one answer and stay open without a word."""

    idle: Annotated[int, Field(ge=0, le=60_000)]

    def running(self, network: Network, running: Running, scenario: Scenario) -> AbstractContextManager[Standing]:
        """While inside."""
        return self._held(network, running, self.idle, 0)


class SlowReaders(_Held):
    """So many clients that ask for something large and read it slowly. ``rate``: bytes a second of each."""

    slow_readers: Annotated[int, Field(ge=0, le=10_000)]
    rate: Size = 10_000

    def running(self, network: Network, running: Running, scenario: Scenario) -> AbstractContextManager[Standing]:
        """While inside."""
        return self._held(network, running, self.slow_readers, self.rate)


CPU = {"load": Quantity("CPUs", Better.NEITHER)}
"""how many CPUs' time a load's own program has taken, all that the kernel did for it included"""


class SynFlood(Load):
    """So many SYNs a second, from anybody; see lab.flood.

    A sample says how many a second the router has answered, and how large a share was lost before it. At the end the
    flow table may have nobody's connections but the clients'.
    """

    syn_flood: PerSecond
    cluster: str

    @property
    def quantities(self) -> Mapping[str, Quantity]:
        """Those of the SYNs, and the CPU time of all of it."""
        return {
            **CPU,
            "syns": Quantity("SYN/s", Better.NEITHER),
            "syn-loss": Quantity("share", Better.LOWER),
        }

    @contextmanager
    def running(self, network: Network, running: Running, scenario: Scenario) -> Iterator[Standing]:
        """While inside."""
        with flooding(network, running, self.cluster, self.syn_flood) as flood:
            yield of_flood(flood)
        if strangers := flood.strangers(network.clients):
            raise LabError("flooding", f"the flow table then had connections of {strangers} others than the clients")


def of_flood(flood: Flood) -> Standing:
    """A flood as a load."""

    def figures(grown: Mapping[str, float], seconds: float) -> Mapping[str, float]:
        return {
            "load": grown["cpu"] / seconds,
            "syns": grown["syns"] / seconds,
            "syn-loss": max(0.0, 1 - grown["syns"] / max(1, grown["entered"])),
        }

    return Standing(flood.read, figures)


class Cpu(Load):
    """A program that takes this share of one CPU, and does nothing else."""

    cpu: Annotated[Share, Field(gt=0)]

    @property
    def quantities(self) -> Mapping[str, Quantity]:
        """What it really got."""
        return CPU

    @contextmanager
    def running(self, network: Network, running: Running, scenario: Scenario) -> Iterator[Standing]:
        """While inside."""
        burner = network.fabric.start([sys.executable, str(BURNER), str(self.cpu)], name="burner")

        def read() -> Mapping[str, float]:
            return {"cpu": cpu_time(burner)}

        try:
            wait_until(lambda: _said(burner, "standing"), seconds=START_SECONDS, what="CPU time to be taken")
            yield Standing(read, lambda grown, seconds: {"load": grown["cpu"] / seconds})
            if burner.poll() is not None:
                raise LabError("taking CPU time", f"it ended early: {burner.output()[-1000:]}")
        finally:
            burner.stop()


_MODELS: dict[str, type[Load]] = {"idle": Idle, "slow_readers": SlowReaders, "syn_flood": SynFlood, "cpu": Cpu}


def _kind(load: Any) -> str | None:
    """The key that names the load, in a file's mapping or in a model."""
    if isinstance(load, Mapping):
        return next((name for name in _MODELS if name in load), None)
    return next((name for name, model in _MODELS.items() if isinstance(load, model)), None)


Background = Annotated[
    Annotated[Idle, Tag("idle")]
    | Annotated[SlowReaders, Tag("slow_readers")]
    | Annotated[SynFlood, Tag("syn_flood")]
    | Annotated[Cpu, Tag("cpu")],
    Discriminator(
        _kind,
        custom_error_type="background_kind",
        custom_error_message="is no load that the lab knows; one of its keys must be " + ", ".join(_MODELS),
    ),
]
