"""What ordinary proxies have in common: they own the VIPs on the router's host, and route as RAUTA does."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.contenders.building import own_address

if TYPE_CHECKING:
    from lab.scenario import Scenario
    from lab.topology import Host, Network
    from rauta.config import Config

CONNECT_SECONDS = 1.0
ROUTER_SYSCTLS = {
    # A proxy opens connections of its own to the backends; without these it runs out of ports.
    "net.ipv4.ip_local_port_range": "1024 65535",
    "net.ipv4.tcp_tw_reuse": "1",
    "net.core.somaxconn": "4096",
}


@dataclass(frozen=True)
class RunningProxy:
    """A proxy on the router's host that listens on the VIPs."""

    config: Config

    def target(self, cluster: str) -> tuple[IPv4Address, int]:
        """The first VIP that has a route to the cluster."""
        vip = next(vip for vip in self.config.vips if any(route.cluster == cluster for route in vip.routes))
        return vip.address, vip.port

    def counters(self) -> Mapping[str, int]:
        """None."""
        return {}

    def programs(self) -> Mapping[str, Any]:
        """None."""
        return {}


def start(
    network: Network, scenario: Scenario, stack: ExitStack, name: str, argv: Callable[[Path], Sequence[str]]
) -> RunningProxy:
    """Give every router's host the VIPs' addresses, start a proxy there and wait until it listens on all of them.

    ``argv``: writes the configuration into a folder of this host's own, and says what to start.
    """
    config = scenario.routing.config
    for router in network.routers:
        for sysctl, value in ROUTER_SYSCTLS.items():
            stack.callback(router.sysctl, sysctl, router.sysctl(sysctl, value))
        for address in sorted({vip.address for vip in config.vips}):
            own_address(router, address, stack)
        launch(network, router, stack, name, argv, [(vip.address, vip.port) for vip in config.vips])
    return RunningProxy(config)


def launch(
    network: Network,
    host: Host,
    stack: ExitStack,
    name: str,
    argv: Callable[[Path], Sequence[str]],
    endpoints: Iterable[tuple[IPv4Address, int]],
) -> None:
    """Start a proxy on a host and wait until it listens on all those addresses and ports; see ``start``."""
    folder = network.run.scratch / f"{host.namespace}-{name}"
    folder.mkdir(exist_ok=True)
    started = host.start(argv(folder), name=name, ready=lambda: all(_accepts(*one) for one in endpoints))
    stack.callback(started.stop)


def _accepts(address: IPv4Address, port: int) -> bool:
    try:
        socket.create_connection((str(address), port), timeout=CONNECT_SECONDS).close()
    except OSError:
        return False
    return True
