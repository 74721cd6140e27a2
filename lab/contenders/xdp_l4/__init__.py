"""A small L4 balancer in XDP, added as anybody would add their own: docs/contenders.md goes through it step by step.

It forwards by MAC address (direct server return): the backends own the VIP on their loopback, and listen on their own
port. It reads no request, so only routing files with one cluster suit it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from lab.contenders import building
from lab.contenders.settings import NoSettings
from lab.interfaces import Frame, Layer
from rauta.bpf import BpfObject, Program, ProgramInfo

if TYPE_CHECKING:
    from lab.scenario import Scenario
    from lab.topology import Network
    from rauta.config import Config

SOURCE = Path(__file__).parent / "xdp_l4.bpf.c"


@dataclass(frozen=True)
class XdpL4:
    """The contender ``xdp-l4``."""

    name: str = "xdp-l4"
    layers: frozenset[Layer] = frozenset({"bpf", "veth", "http"})
    settings: type[BaseModel] = NoSettings

    def start(self, network: Network, scenario: Scenario, stack: ExitStack) -> RunningXdpL4:
        """Attach it on the router's host, and give the backends the VIP."""
        config = scenario.routing.config
        hosts = [network.hosts[backend.name] for backend in config.clusters[0].backends]
        for host in hosts:
            building.own_address(host, config.vips[0].address, stack)
        loaded = _loaded(config, [host.mac for host in hosts], stack)
        stack.enter_context(network.ready_for_xdp())
        building.attach(network.router, loaded.program, stack)
        return RunningXdpL4(config, loaded)

    def load(self, config: Config, stack: ExitStack) -> LoadedXdpL4:
        """The program by itself; it sends frames to nobody."""
        return _loaded(config, ["02:00:00:00:00:03"] * len(config.clusters[0].backends), stack)


@dataclass(frozen=True)
class LoadedXdpL4:
    """The program, with its backends."""

    object: BpfObject
    keys: None = None

    @property
    def program(self) -> Program:
        """The XDP program."""
        return self.object.programs["xdp_l4"]

    def handled(self, _frame: Frame) -> int:
        """It forwards every frame, whatever it says."""
        return self.object.maps["forwarded"].sum(0)


@dataclass(frozen=True)
class RunningXdpL4:
    """The program, attached."""

    config: Config
    loaded: LoadedXdpL4

    def target(self, _cluster: str) -> tuple[IPv4Address, int]:
        """The VIP, and the backends' port: nothing is translated."""
        return self.config.vips[0].address, self.config.clusters[0].backends[0].port

    def counters(self) -> Mapping[str, int]:
        """``forwarded``: frames."""
        return {"forwarded": self.loaded.object.maps["forwarded"].sum(0)}

    def programs(self) -> Mapping[str, ProgramInfo]:
        """The one it has."""
        return {"xdp_l4": self.loaded.program.info()}


def _loaded(config: Config, macs: list[str], stack: ExitStack) -> LoadedXdpL4:
    obj = stack.enter_context(BpfObject.open(building.compiled(SOURCE, stack)))
    obj.rodata["vip"] = building.be32(config.vips[0].address)
    obj.rodata["backend_count"] = len(macs)
    obj.load()
    for number, mac in enumerate(macs):
        obj.maps["backends"].update(number, bytes.fromhex(mac.replace(":", "")) + bytes(2))
    return LoadedXdpL4(obj)


CONTENDERS = (XdpL4(),)
