"""Questions to the kernel over rtnetlink(7): where a packet would go, who the neighbours are, what interfaces are.

Asked in the calling thread's network namespace. pyroute2, which the lab uses, answers them too, but importing it takes
19 MB of resident memory, more than a third of what the control plane may have.
"""

from __future__ import annotations

import socket
import struct
import sys
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Literal, TypeAlias

from rauta.network import netlink

__all__ = [
    "UNICAST",
    "Direction",
    "Filter",
    "Link",
    "Route",
    "XdpInUse",
    "addresses",
    "filters",
    "link",
    "neighbours",
    "route_to",
]

Direction: TypeAlias = Literal["ingress", "egress"]
XdpInUse: TypeAlias = Literal["native", "generic", "offloaded", "several"]

_ROUTE = struct.Struct("=8BI")  # struct rtmsg: family, destination's prefix length, ...; type is the eighth
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # struct ndmsg: family, interface, state, flags, type
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBi")  # struct ifaddrmsg: family, prefix length, flags, scope, index
_FILTER = struct.Struct("=BxxxiIII")  # struct tcmsg: family, interface, handle, parent, info
_GET_LINK, _GET_ADDRESSES, _GET_ROUTE, _GET_NEIGHBOURS, _GET_FILTERS = 18, 22, 26, 30, 46  # RTM_GET*
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC = 1, 4, 5, 7
_NDA_DST, _NDA_LLADDR = 1, 2
_IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_OPERSTATE, _IFLA_LINKINFO = 3, 4, 5, 16, 18
_IFLA_LINK_NETNSID, _IFLA_XDP, _IFLA_TARGET_NETNSID = 37, 43, 46
_IFLA_INFO_KIND, _IFLA_XDP_ATTACHED, _IFLA_XDP_PROG_ID = 1, 2, 4
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_TCA_KIND, _TCA_OPTIONS, _TCA_BPF_NAME = 1, 2, 7
_IFF_UP, _IF_OPER_DOWN, _IF_OPER_LOWER_DOWN = 1, 2, 3
_XDP_MODES: dict[int, XdpInUse] = {1: "native", 2: "generic", 3: "offloaded", 4: "several"}  # XDP_ATTACHED_*
_PARENTS = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}  # TC_H_CLSACT with TC_H_MIN_INGRESS, TC_H_MIN_EGRESS

UNICAST = 1  # RTN_UNICAST: a route to another host
_HAS_ADDRESS = 0x02 | 0x04 | 0x08 | 0x10 | 0x80  # NUD_REACHABLE, STALE, DELAY, PROBE, PERMANENT (linux/neighbour.h)


@dataclass(frozen=True, slots=True)
class Route:
    """How the kernel would send to an address: `kind` is RTN_* (UNICAST, local, blackhole), `interface` an index.

    `source`: the address of this host's that it would send from.
    """

    kind: int
    interface: int
    gateway: IPv4Address | None
    source: IPv4Address | None


@dataclass(frozen=True, slots=True)
class Link:
    """An interface: `kind` such as "veth", empty for a device of hardware; `mtu` in bytes.

    `running`: it is up, and what it is connected to as well. `xdp`: how a program runs there, None if there is none,
    and the program's id. `peer`: the index of the other end or lower device, 0 if there is none; `peer_namespace`: the
    number of the network namespace that it is in (ip-netns(8), list-id), None if it is in this one.
    """

    index: int
    name: str
    kind: str
    mtu: int
    up: bool
    running: bool
    xdp: XdpInUse | None
    xdp_program: int
    peer: int
    peer_namespace: int | None


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter of clsact: what kind it is ("bpf"), the BPF program's name, its priority and handle."""

    kind: str
    name: str
    priority: int
    handle: int


def route_to(address: IPv4Address) -> Route:
    """The route that the kernel chooses for an address. OSError as the kernel gives it, ENETUNREACH for no route."""
    body = _ROUTE.pack(socket.AF_INET, 32, *bytes(7)) + netlink.attribute(_RTA_DST, address.packed)
    message = next(netlink.ask(socket.NETLINK_ROUTE, _GET_ROUTE, body))
    kind = _ROUTE.unpack_from(message)[7]
    found = dict(netlink.attributes(message[_ROUTE.size :]))
    return Route(
        kind, _number(found.get(_RTA_OIF)), _address(found.get(_RTA_GATEWAY)), _address(found.get(_RTA_PREFSRC))
    )


def neighbours(interface: int) -> dict[IPv4Address, bytes]:
    """The link-layer addresses that the neighbour table knows on the interface of that index."""
    known: dict[IPv4Address, bytes] = {}
    body = _NEIGHBOUR.pack(socket.AF_INET, 0, 0, 0, 0)
    for message in netlink.ask(socket.NETLINK_ROUTE, _GET_NEIGHBOURS, body, dump=True):
        _, where, state, _, _ = _NEIGHBOUR.unpack_from(message)
        found = dict(netlink.attributes(message[_NEIGHBOUR.size :]))
        if where == interface and state & _HAS_ADDRESS and found.get(_NDA_LLADDR):
            known[IPv4Address(found[_NDA_DST])] = found[_NDA_LLADDR]
    return known


def link(index: int, namespace: int | None = None) -> Link:
    """The interface of that index, here or in the namespace that has that number here. OSError: there is none."""
    body = _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0)
    if namespace is not None:
        body += netlink.attribute(_IFLA_TARGET_NETNSID, namespace.to_bytes(4, sys.byteorder, signed=True))
    message = next(netlink.ask(socket.NETLINK_ROUTE, _GET_LINK, body))
    flags = _LINK.unpack_from(message)[3]
    found = dict(netlink.attributes(message[_LINK.size :]))
    info = dict(netlink.attributes(found.get(_IFLA_LINKINFO, b"")))
    xdp = dict(netlink.attributes(found.get(_IFLA_XDP, b"")))
    elsewhere = found.get(_IFLA_LINK_NETNSID)
    operational = _number(found.get(_IFLA_OPERSTATE)) not in (_IF_OPER_DOWN, _IF_OPER_LOWER_DOWN)
    return Link(
        index=index,
        name=_text(found.get(_IFLA_IFNAME)),
        kind=_text(info.get(_IFLA_INFO_KIND)),
        mtu=_number(found.get(_IFLA_MTU)),
        up=bool(flags & _IFF_UP),
        running=bool(flags & _IFF_UP) and operational,
        xdp=_XDP_MODES.get(_number(xdp.get(_IFLA_XDP_ATTACHED))),
        xdp_program=_number(xdp.get(_IFLA_XDP_PROG_ID)),
        peer=_number(found.get(_IFLA_LINK)),
        peer_namespace=None if elsewhere is None else int.from_bytes(elsewhere, sys.byteorder, signed=True),
    )


def addresses() -> list[tuple[IPv4Address, int]]:
    """This host's own IPv4 addresses, each with the index of the interface that has it."""
    found = []
    body = _ADDRESS.pack(socket.AF_INET, 0, 0, 0, 0)
    for message in netlink.ask(socket.NETLINK_ROUTE, _GET_ADDRESSES, body, dump=True):
        values = dict(netlink.attributes(message[_ADDRESS.size :]))
        local = values.get(_IFA_LOCAL, values.get(_IFA_ADDRESS))
        if local is not None:
            found.append((IPv4Address(local), int(_ADDRESS.unpack_from(message)[4])))
    return found


def filters(interface: int, direction: Direction) -> list[Filter]:
    """The filters that packets meet on the clsact qdisc of the interface of that index; none without one."""
    found = []
    body = _FILTER.pack(socket.AF_UNSPEC, interface, 0, _PARENTS[direction], 0)
    for message in netlink.ask(socket.NETLINK_ROUTE, _GET_FILTERS, body, dump=True):
        _, _, handle, _, info = _FILTER.unpack_from(message)
        values = dict(netlink.attributes(message[_FILTER.size :]))
        options = dict(netlink.attributes(values.get(_TCA_OPTIONS, b"")))
        if handle:
            found.append(Filter(_text(values.get(_TCA_KIND)), _text(options.get(_TCA_BPF_NAME)), info >> 16, handle))
    return found


def _address(value: bytes | None) -> IPv4Address | None:
    return IPv4Address(value) if value is not None else None


def _number(value: bytes | None) -> int:
    return int.from_bytes(value or b"", sys.byteorder)


def _text(value: bytes | None) -> str:
    return (value or b"").rstrip(b"\0").decode(errors="replace")
