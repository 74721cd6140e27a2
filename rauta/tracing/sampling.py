"""Which requests are traced, and how many at most: the same on routers and agents (docs/traces.md).

A keyed hash of what both see of a request decides, so that neither has to tell the other. The key comes from the secret
that they share, and stays when cookie keys rotate. bpf/trace.h computes it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from rauta.bpf import BpfObject
from rauta.contract import TRACES_UNDER_WAY
from rauta.errors import RautaError
from rauta.keys import Keys

__all__ = ["Sampling"]

MAX_ONE_IN = 1 << 20
MAX_RATE = 1_000_000
RING_BYTES = 1 << 20  # of the ring buffer: some 2,000 requests with heads of 400 bytes
_SECOND = 1_000_000_000  # ns
_COARSE_CLOCK = 6  # CLOCK_MONOTONIC_COARSE (linux/time.h), which moves with the kernel's ticks
_KEY_BYTES = 8  # of trace_key; what follows it in the secret is the key of ids


@dataclass(frozen=True)
class Sampling:
    """One request in `one_in` is traced, on the average (0: none), and at most `rate` a second on each CPU.

    After a silence, a second's worth at once. `id_key` is for rauta.tracing.traces. RautaError if a value is out of
    range.
    """

    one_in: int = 0
    rate: int = 100
    id_key: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        _require("traces_one_in", self.one_in, 0, MAX_ONE_IN)
        _require("traces_rate", self.rate, 1, MAX_RATE)

    @classmethod
    def prepare(cls, obj: BpfObject, keys: Keys, one_in: int, rate: int) -> Sampling:
        """Sets constants and sizes of a router's or an agent's object that is not loaded yet."""
        secret = keys.trace_secret
        made = cls(one_in, rate, secret[_KEY_BYTES:])
        if not one_in:
            return made
        interval = _SECOND // rate
        obj.rodata["trace_key"] = int.from_bytes(secret[:_KEY_BYTES], "little")
        obj.rodata["trace_below"] = (1 << 32) // one_in
        obj.rodata["trace_interval"] = interval
        obj.rodata["trace_tick"] = round(time.clock_getres(_COARSE_CLOCK) * _SECOND)
        obj.rodata["trace_burst"] = (rate - 1) * interval
        obj.maps["traces"].set_max_entries(RING_BYTES)
        if "under_way" in obj.maps:
            obj.maps["under_way"].set_max_entries(TRACES_UNDER_WAY)
        return made


def _require(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise RautaError(f"setting {name}", f"{value} is out of range", f"Allowed: {least} to {most}.")
