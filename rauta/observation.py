"""What a router observes about its packets besides counting them, and how much of it: set when it is loaded.

Router.load(config, keys, observation=Observation(latency_one_in=64))
"""

from __future__ import annotations

from dataclasses import dataclass

from rauta.bpf import Rodata
from rauta.errors import RautaError

__all__ = ["Observation"]

MAX_ONE_IN = 1 << 20


@dataclass(frozen=True)
class Observation:
    """How much is observed. RautaError if a value is out of range.

    `latency_one_in`: one packet in so many is timed (`Router.latency`), on the average; 0 for none.
    """

    latency_one_in: int = 1024

    def __post_init__(self) -> None:
        _require("latency_one_in", self.latency_one_in, 0, MAX_ONE_IN)

    def set_constants(self, rodata: Rodata) -> None:
        """In an object that is not loaded yet."""
        rodata["latency_one_in"] = self.latency_one_in


def _require(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise RautaError(f"setting {name}", f"{value} is out of range", f"Allowed: {least} to {most}.")
