"""Which cable goes where, for each kind of topology, and what each host knows of the way to the others.

* *one-armed*: everybody on one switch, the router too, as load balancers stand in data centres.

      client  198.18.0.1 ── eth0 ┐
      router  198.18.0.2 ── eth0 ┤ fabric: a Linux bridge in a namespace of its own
      web-1   198.18.0.11 ─ eth0 ┘

* *two-armed*: clients and the router's eth0 on `front`, the router's eth1 and the backends on `back`. The fabric is the
  plain gateway between the two, by which backends answer clients directly.

      client  198.19.64.1 ─ eth0 ┐ front                back ┌ eth0 ─ 198.18.0.11  web-1
      router  198.19.65.1 ─ eth0 ┘   └── .254 fabric .254 ───┴ eth1 ─ 198.18.0.2   router

* *direct*: no switch; a cable from every client and backend to the router, whose kernel forwards what XDP passes.

      client  198.18.0.1 ── eth0 ── client ┐ router ┌ web-1 ── eth0 ── 198.18.0.11  web-1

Where everybody is on one switch there may be an *attacker*, too, who has a whole network of addresses besides his own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lab.topology import Host
    from rauta.config import Config

SUBNET = IPv4Network("198.18.0.0/16")
"""of backends, and of everybody where there is one network"""
FRONT = IPv4Network("198.19.64.0/18")
FRONT_CLIENTS, FRONT_ROUTERS = IPv4Network("198.19.64.0/24"), IPv4Network("198.19.65.0/24")
EVERYTHING = IPv4Network("198.18.0.0/15")
"""that is used at all: RFC 2544's range"""
CLIENT_ADDRESS = IPv4Address("198.18.0.1")
ROUTER_ADDRESS = IPv4Address("198.18.0.2")
OTHERS = {"client": IPv4Network("198.18.200.0/24"), "router": IPv4Network("198.18.201.0/24")}
"""addresses of the second and further ones"""
ATTACKER_ADDRESS = IPv4Address("198.18.202.1")
CROWD = IPv4Network("198.19.128.0/17")
"""all of them the attacker's"""
FLOOD_MAC = "02:00:00:00:00:0f"
"""nobody's"""
SWITCHES = {"one-armed": {"switch": SUBNET}, "two-armed": {"front": FRONT, "back": SUBNET}, "direct": {}}
"""by kind: switches in the fabric, and the network on each"""
MAX_INTERFACE_NAME = 15
LOCAL_TABLE = 255
"""of routes (linux/rtnetlink.h)"""


def gateway(network: IPv4Network) -> IPv4Address:
    """The fabric's own address in a network."""
    return network.broadcast_address - 1


def mac(address: IPv4Address) -> str:
    """A locally administered MAC address, made from an IPv4 address so that captures are easy to read."""
    return "02:00:" + ":".join(f"{byte:02x}" for byte in address.packed)


@dataclass(frozen=True)
class Wire:
    """A cable from a host's interface. ``switch``: where its other end is plugged in; None: it is the router's."""

    host: Host
    interface: str
    address: IPv4Address
    network: IPv4Network
    switch: str | None
    port: str
    """name of the other end's interface, on the fabric or on the router"""


@dataclass(frozen=True)
class Way:
    """A route: to a network, over a gateway or straight, out of an interface; to one's own addresses by ``lo``."""

    to: IPv4Network
    over: IPv4Address | None
    interface: str

    def fields(self, index: int) -> dict[str, Any]:
        """For pyroute2. ``index``: of the interface. What leads to ``lo`` is the host's own."""
        if self.interface == "lo":
            return {"dst": str(self.to), "oif": index, "type": "local", "table": LOCAL_TABLE, "scope": 254}
        if self.over is None:
            return {"dst": str(self.to), "oif": index, "scope": 253}  # link
        return {"dst": str(self.to), "oif": index, "gateway": str(self.over), "flags": 4}  # onlink


def addresses(kind: str, role: str, number: int) -> IPv4Address:
    """The address of the client, router or attacker with a number, from 0: its eth0's, of a router its eth1's."""
    if role == "attacker":
        return ATTACKER_ADDRESS
    if role == "client":
        if kind == "two-armed":
            return FRONT_CLIENTS.network_address + number + 1
        return OTHERS[role].network_address + number + 1 if number else CLIENT_ADDRESS
    return OTHERS[role].network_address + number + 1 if number else ROUTER_ADDRESS


def wires(kind: str, hosts: Sequence[Host]) -> list[Wire]:
    """All cables of a network."""
    return [wire for host in hosts for wire in _of_host(kind, host, hosts)]


def _of_host(kind: str, host: Host, hosts: Sequence[Host]) -> Iterator[Wire]:
    name = host.name if len(host.name) < MAX_INTERFACE_NAME - 2 else f"p{host.address}"
    if kind == "one-armed":
        yield Wire(host, "eth0", host.address, SUBNET, "switch", name)
    elif kind == "direct":
        if host.role != "router":
            yield Wire(host, "eth0", host.address, IPv4Network(host.address), None, name)
    elif host.role == "router":
        routers = [one for one in hosts if one.role == "router"]
        front = FRONT_ROUTERS.network_address + 1 + routers.index(host)
        yield Wire(host, "eth0", front, FRONT, "front", name)
        yield Wire(host, "eth1", host.address, SUBNET, "back", f"{name}.1")
    else:
        side = "front" if host.role == "client" else "back"
        yield Wire(host, "eth0", host.address, FRONT if side == "front" else SUBNET, side, name)


def ways(kind: str, host: Host, cables: Sequence[Wire], config: Config) -> Iterator[Way]:
    """What a host knows beyond the networks on its cables."""
    if host.role == "router":
        if kind == "direct":
            yield from (Way(wire.network, None, wire.port) for wire in cables)
        return
    if kind == "direct":
        yield Way(EVERYTHING, ROUTER_ADDRESS, "eth0")
        return
    near = next(wire for wire in cables if wire.host is host)
    routers = [wire.address for wire in cables if wire.host.role == "router" and wire.switch == near.switch]
    yield Way(config.encapsulation.source, routers[0], "eth0")
    if host.role in ("client", "attacker"):
        clients = [wire.host for wire in cables if wire.host.role == host.role]
        own = routers[clients.index(host) % len(routers)]
        yield from (Way(IPv4Network(address), own, "eth0") for address in sorted({vip.address for vip in config.vips}))
    for name, network in SWITCHES[kind].items():
        if name != near.switch:
            yield Way(network, gateway(near.network), "eth0")
    if host.role == "attacker":
        yield Way(CROWD, None, "lo")
    elif any(wire.host.role == "attacker" for wire in cables):
        yield Way(CROWD, ATTACKER_ADDRESS, "eth0")
