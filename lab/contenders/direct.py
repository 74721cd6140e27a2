"""No router at all: the client connects to the first backend of the cluster itself.

``direct`` has the offload settings that XDP forces on the others, so that it can be compared with RAUTA like for like;
``direct-offloads`` has those that Linux has by default.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from lab.contenders.settings import NoSettings
from lab.interfaces import Layer

if TYPE_CHECKING:
    from lab.scenario import Scenario
    from lab.topology import Network


@dataclass(frozen=True)
class Direct:
    """The contender ``direct`` or ``direct-offloads``."""

    name: Literal["direct", "direct-offloads"] = "direct"
    layers: frozenset[Layer] = frozenset({"veth", "http"})
    settings: type[BaseModel] = NoSettings

    def start(self, network: Network, scenario: Scenario, stack: ExitStack) -> RunningDirect:
        """There is nothing to start, only the settings."""
        if self.name == "direct":
            stack.enter_context(network.ready_for_xdp())
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


CONTENDERS = (Direct(), Direct("direct-offloads"))
