"""What ordinary proxies have in common: they own the VIPs on the router's host, and route as RAUTA does."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.contenders.building import own_address

if TYPE_CHECKING:
    from lab.scenario import Scenario
    from lab.topology import Network
    from rauta.config import Config, Route, Vip

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
        folder = network.run.scratch / f"{router.namespace}-{name}"
        folder.mkdir(exist_ok=True)
        started = router.start(argv(folder), name=name, ready=lambda: all(_accepts(vip) for vip in config.vips))
        stack.callback(started.stop)
    return RunningProxy(config)


def _accepts(vip: Vip) -> bool:
    try:
        socket.create_connection((str(vip.address), vip.port), timeout=CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def by_host(vip: Vip) -> dict[str | None, list[Route]]:
    """A VIP's routes by host name, None for any, each list in the order in which they are tried.

    Exact paths first, then longer prefixes before shorter ones; at each, routes for a method before those for any.
    """
    found: dict[str | None, list[Route]] = {None: []}
    for route in vip.routes:
        found.setdefault(route.host, []).append(route)
    for routes in found.values():
        routes.sort(key=lambda route: (route.exact is None, -len(route.path), route.method is None))
    return found


def matches(route: Route, path: str, exactly: bool) -> bool:
    """Whether a route is for a path, or with ``exactly`` false for everything below it."""
    if route.exact is not None:
        return exactly and route.exact == path
    prefix = route.path.rstrip("/")
    return path.rstrip("/") == prefix or path.startswith(prefix + "/") or not prefix
