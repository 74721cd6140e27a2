"""nftables DNAT on the router's host: what the kernel's own layer 4 does, for reference.

It sees no path, so it cannot route by one. Each cluster gets a port of the first VIP to itself, FIRST_PORT and up, and
``target`` says which; a client is sent to one of the cluster's backends by a hash of its address and port. Answers come
back through the router (masquerade), which the backends therefore take for the client.
"""

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
    from lab.topology import Host, Network
    from rauta.config import Cluster, Config

FIRST_PORT = 8000
TABLE = "rauta-lab"
SECONDS = 10.0
SYSCTLS = {"net.ipv4.ip_forward": "1", "net.ipv4.conf.all.send_redirects": "0"}


@dataclass(frozen=True)
class Nftables:
    """The contender ``nftables``."""

    name: str = "nftables"
    layers: frozenset[Layer] = frozenset({"veth", "http"})
    settings: type[BaseModel] = NoSettings

    def start(self, network: Network, scenario: Scenario, stack: ExitStack) -> RunningNftables:
        """Load the rules; they are deleted at the end."""
        config = scenario.routing.config
        for router in network.routers:
            interface_redirects = {f"net.ipv4.conf.{name}.send_redirects": "0" for name in network.interfaces(router)}
            for name, value in {**SYSCTLS, **interface_redirects}.items():
                stack.callback(router.sysctl, name, router.sysctl(name, value))
            stack.callback(_delete, router)
            router.run(["nft", "-f", "-"], input=rules(config), timeout=SECONDS)
        return RunningNftables(config)


@dataclass(frozen=True)
class RunningNftables:
    """The rules, loaded."""

    config: Config

    def target(self, cluster: str) -> tuple[IPv4Address, int]:
        """The cluster's own port of the first VIP."""
        names = [one.name for one in self.config.clusters]
        return self.config.vips[0].address, FIRST_PORT + names.index(cluster)

    def counters(self) -> Mapping[str, int]:
        """None."""
        return {}

    def programs(self) -> Mapping[str, Any]:
        """None."""
        return {}


def rules(config: Config) -> str:
    """The ruleset, for ``nft -f``."""
    address = config.vips[0].address
    lines = [
        f"        ip daddr {address} tcp dport {FIRST_PORT + number} {_destination(cluster)}"
        for number, cluster in enumerate(config.clusters)
    ]
    return (
        f"table ip {TABLE} {{\n"
        "    chain to-backends {\n        type nat hook prerouting priority dstnat;\n" + "\n".join(lines) + "\n    }\n"
        "    chain back {\n        type nat hook postrouting priority srcnat;\n        masquerade\n    }\n}\n"
    )


def _destination(cluster: Cluster) -> str:
    backends = [one for one in cluster.backends if one.weight]
    if len(backends) == 1:
        return f"dnat to {backends[0].address}:{backends[0].port}"
    choices = ", ".join(f"{number} : {one.address}" for number, one in enumerate(backends))
    return f"dnat to jhash ip saddr . tcp sport mod {len(backends)} map {{ {choices} }}:{backends[0].port}"


def _delete(router: Host) -> None:
    router.run(["nft", "delete", "table", "ip", TABLE], timeout=SECONDS, check=False)


CONTENDERS = (Nftables(),)
