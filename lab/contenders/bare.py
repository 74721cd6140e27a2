"""Bare programs, ``xdp-tx`` and ``xdp-drop``: what a frame costs before anybody looks at it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from lab.contenders.settings import NoSettings
from lab.interfaces import Frame, Layer
from lab.topology import INSTRUMENTS
from rauta.bpf import BpfObject, Program

if TYPE_CHECKING:
    from lab.scenario import Scenario
    from lab.topology import Network
    from rauta.config import Config


@dataclass(frozen=True)
class Bare:
    """A contender that decides without looking. It cannot answer requests, so there is nothing to check."""

    name: Literal["xdp-tx", "xdp-drop"]
    layers: frozenset[Layer] = frozenset({"bpf", "veth"})
    settings: type[BaseModel] = NoSettings

    def start(self, network: Network, scenario: Scenario, stack: ExitStack) -> RunningBare:
        """Only the settings: whoever measures puts the program where its frames are counted."""
        return RunningBare(scenario.routing.config)

    def load(self, _config: Config, stack: ExitStack) -> BareProgram:
        """Its program."""
        instruments = stack.enter_context(BpfObject.open(INSTRUMENTS))
        instruments.load()
        return BareProgram(instruments.programs[self.name.replace("-", "_")])


@dataclass(frozen=True)
class RunningBare:
    """Frames for the VIPs go to the router's host."""

    config: Config

    def target(self, _cluster: str) -> tuple[IPv4Address, int]:
        """The first VIP."""
        return self.config.vips[0].address, self.config.vips[0].port

    def counters(self) -> Mapping[str, int]:
        """None."""
        return {}

    def programs(self) -> Mapping[str, Any]:
        """None."""
        return {}


@dataclass(frozen=True)
class BareProgram:
    """A program that keeps no books."""

    program: Program
    keys: None = None

    def handled(self, _frame: Frame) -> None:
        """Unknown: it does not count."""


CONTENDERS = (Bare("xdp-tx"), Bare("xdp-drop"))
