"""No router at all: the client connects to the first backend of the cluster itself."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from lab.contenders.settings import NoSettings
from lab.interfaces import Layer

if TYPE_CHECKING:
    from lab.scenario import Scenario
    from lab.topology import Network


@dataclass(frozen=True)
class Direct:
    """The contender ``direct``."""

    name: str = "direct"
    layers: frozenset[Layer] = frozenset({"http"})
    settings: type[BaseModel] = NoSettings

    def start(self, network: Network, scenario: Scenario, stack: ExitStack) -> RunningDirect:
        """There is nothing to start."""
        return RunningDirect(network, scenario)


@dataclass(frozen=True)
class RunningDirect:
    """Where the servers are."""

    network: Network
    scenario: Scenario

    def target(self, cluster: str) -> tuple[IPv4Address, int]:
        """The first backend's own address, and the port that is kept for direct clients."""
        return self.network.servers(cluster)[0].address, self.scenario.servers[cluster].direct_port

    def counters(self) -> Mapping[str, int]:
        """None."""
        return {}

    def programs(self) -> Mapping[str, Any]:
        """None."""
        return {}
