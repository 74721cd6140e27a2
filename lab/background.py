"""Load that is there while something else is measured: connections that do nothing, clients that read slowly.

A scenario lists them under ``background``; a contender gets them after it has started, before its measures, and all of
it must still be there at the end, or the samples would not be what was asked for.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from lab.errors import LabError
from lab.interfaces import Running
from lab.process import Process, wait_until
from lab.units import Size

if TYPE_CHECKING:
    from lab.scenario import Scenario
    from lab.topology import Network

HOLDER = Path(__file__).parent / "clients" / "holder.py"
SECONDS_A_CONNECTION = 0.002
"""a generous estimate, for the deadline of the whole"""
START_SECONDS = 20.0


class _Held(BaseModel):
    """Connections that a helper process on the client's host keeps open."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cluster: str
    path: Annotated[str, Field(pattern="^/")] = "/"
    host: str = "shop.test"

    @contextmanager
    def _held(self, network: Network, running: Running, count: int, read: int) -> Iterator[None]:
        """``read``: bytes a second and connection, of an answer that stays unfinished; 0: one answer, then silence."""
        if not count:
            yield
            return
        address, port = running.target(self.cluster)
        argv = [sys.executable, str(HOLDER), str(address), str(port), self.host, self.path, str(count), str(read)]
        holder = network.client.start(argv, name="holder")
        try:
            patience = START_SECONDS + SECONDS_A_CONNECTION * count
            wait_until(lambda: _said(holder, "standing"), seconds=patience, what=f"{count} connections to stand")
            yield
            holder.stop()
            if lost := _lost(holder, count):
                raise LabError(f"holding {count} connections", f"{lost} of them ended early")
        finally:
            holder.stop()


def _lost(holder: Process, count: int) -> int:
    """How many connections have ended, as a holder that was stopped says; all of them if it says nothing."""
    said = [line for line in holder.output().splitlines() if line.startswith("{")]
    return int(json.loads(said[-1])["lost"]) if said else count


def _said(holder: Process, word: str) -> bool:
    if holder.poll() is not None:
        raise LabError("holding connections in the background", holder.output()[-1000:])
    return word in holder.output()


class Idle(_Held):
    """So many connections that have each had one answer and stay open without a word."""

    idle: Annotated[int, Field(ge=0, le=60_000)]

    @contextmanager
    def running(self, network: Network, running: Running, _scenario: Scenario) -> Iterator[None]:
        """While inside."""
        with self._held(network, running, self.idle, 0):
            yield


class SlowReaders(_Held):
    """So many clients that ask for something large and read it slowly. ``rate``: bytes a second of each."""

    slow_readers: Annotated[int, Field(ge=0, le=10_000)]
    rate: Size = 10_000

    @contextmanager
    def running(self, network: Network, running: Running, _scenario: Scenario) -> Iterator[None]:
        """While inside."""
        with self._held(network, running, self.slow_readers, self.rate):
            yield


Background = Idle | SlowReaders
