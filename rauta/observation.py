"""What a router observes about its packets besides counting them, and how much of it: set when it is loaded.

Router.load(config, keys, observation=Observation(latency_one_in=64, events=EventRates(rate=10, dropped=100)))
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields

from rauta.bpf import BpfObject
from rauta.errors import RautaError
from rauta.tracing.sampling import Sampling

__all__ = ["EventRates", "Observation"]

MAX_ONE_IN = 1 << 20
MAX_RATE = 1_000_000
RING_BYTES = 1 << 18  # of the events' ring buffer: about 4,600 of them
_SECOND = 1_000_000_000  # ns
_COARSE_CLOCK = 6  # CLOCK_MONOTONIC_COARSE (linux/time.h), which moves with the kernel's ticks


@dataclass(frozen=True)
class EventRates:
    """How many packets become events. RautaError if a value is out of range.

    Of each class, one packet in so many has its turn, on the average (`routed`, `dropped`, `answered`, `fallback`; 0
    for none). Of these, `rate` a second become events, of each class and on each CPU; after a silence, at most `burst`
    at once. Time goes by the kernel's ticks (1 to 10 ms) here: a `burst` less than the rate allows in a tick lowers the
    rate.
    """

    rate: int = 100
    burst: int = 100
    routed: int = 1
    dropped: int = 1
    answered: int = 1
    fallback: int = 1

    def __post_init__(self) -> None:
        for one in fields(self):
            limited = one.name in ("rate", "burst")
            _require(one.name, getattr(self, one.name), 1 if limited else 0, MAX_RATE if limited else MAX_ONE_IN)


@dataclass(frozen=True)
class Observation:
    """How much is observed. RautaError if a value is out of range.

    `latency_one_in`: one packet in so many is timed (`Router.latency`), on the average; 0 for none. `events`: which
    packets are told to an `EventReader`; None for none. `labels`: whether requests tell the backends' agents their
    route (`Agent.requests_by_route`); all agents must be of a version that knows labels.
    `traces_one_in`: one request in so many is told to a
    `TraceReader`, on the average, and at most `traces_rate` a second on each CPU; 0 for none. Agents are to have the
    same `traces_one_in`, or traces have only one half.
    """

    latency_one_in: int = 1024
    events: EventRates | None = None
    labels: bool = False

    traces_one_in: int = 0
    traces_rate: int = 100

    def __post_init__(self) -> None:
        Sampling(self.traces_one_in, self.traces_rate)
        _require("latency_one_in", self.latency_one_in, 0, MAX_ONE_IN)

    def prepare(self, obj: BpfObject) -> None:
        """Sets constants and sizes of an object that is not loaded yet."""
        obj.rodata["latency_one_in"] = self.latency_one_in
        obj.rodata["labels"] = int(self.labels)
        if self.events is None:
            return
        interval = _SECOND // self.events.rate
        obj.rodata["event_interval"] = interval
        obj.rodata["event_tick"] = round(time.clock_getres(_COARSE_CLOCK) * _SECOND)
        obj.rodata["event_burst"] = (self.events.burst - 1) * interval
        classes = obj.btf.enum("verdict_class")
        one_in = [0] * classes["CLASS_COUNT"]
        for name in ("routed", "dropped", "answered", "fallback"):
            one_in[classes[f"CLASS_{name.upper()}"]] = getattr(self.events, name)
        obj.rodata["event_one_in"] = one_in
        obj.maps["events"].set_max_entries(RING_BYTES)


def _require(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise RautaError(f"setting {name}", f"{value} is out of range", f"Allowed: {least} to {most}.")
