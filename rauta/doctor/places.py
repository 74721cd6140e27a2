"""Where on this host things are, or should be: questions that several checks ask."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from rauta import tables
from rauta.doctor.findings import Subject
from rauta.loading import interface_index
from rauta.network import rtnetlink
from rauta.network.neighbours import own_address
from rauta.network.rtnetlink import Link

__all__ = [
    "ANY_CLIENT",
    "Service",
    "agent_address",
    "agent_links",
    "drops_source",
    "links",
    "services",
    "sysctl",
]

ANY_CLIENT = IPv4Address("203.0.113.1")
"""an address of nobody's (TEST-NET-3, RFC 5737): its route is the default route"""
_SYSCTLS = Path("/proc/sys")
_STRICT = 1


@dataclass(frozen=True)
class Service:
    """Where a server is to listen, and for which VIP."""

    vip: str
    address: IPv4Address
    port: int


def links(subject: Subject) -> list[Link]:
    """The interfaces that are named. RautaError if there is no such one."""
    return [rtnetlink.link(interface_index(name)) for name in subject.interfaces]


def agent_links(subject: Subject) -> list[Link]:
    """The interfaces that the agent is on: those named, or else those with its address."""
    if subject.interfaces:
        return links(subject)
    address = agent_address(subject)
    return [rtnetlink.link(index) for one, index in rtnetlink.addresses() if one == address]


def agent_address(subject: Subject) -> IPv4Address:
    """The address that the agent answers for: the backend's, or on a router's host that of the fallback."""
    if subject.backend is not None:
        return subject.known.backends()[subject.backend].address
    towards = [backend.address for backend in subject.known.backends().values()]
    return own_address(interface_index(subject.interfaces[0]), towards)


def services(subject: Subject) -> list[Service]:
    """What the agent delivers to: servers of the backend's host, or the fallback."""
    config = subject.known
    names = {(tables.be32(vip.address), tables.be16(vip.port)): vip.name for vip in config.vips}
    if subject.backend is not None:
        entries = tables.services(config, subject.backend)
    else:
        entries = tables.fallback_services(config, agent_address(subject))
    return [
        Service(names[key["address"], key["port"]], tables.address(value["address"]), socket.ntohs(value["port"]))
        for key, value in entries
    ]


def sysctl(name: str) -> str | None:
    """A sysctl of the calling thread's network namespace, such as "net/ipv4/tcp_sack"; None: there is none."""
    try:
        return (_SYSCTLS / name).read_text().strip()
    except FileNotFoundError:
        return None


def drops_source(interface: Link, source: IPv4Address) -> str:
    """Why the kernel drops packets from an address that come in on an interface (RFC 3704); empty: it does not.

    net/ipv4/fib_frontend.c: of the settings for all interfaces and for this one, the greater counts.
    """
    settings = [sysctl(f"net/ipv4/conf/{where}/rp_filter") for where in ("all", interface.name)]
    filtering = max(int(value or 0) for value in settings)
    if not filtering:
        return ""
    try:
        route = rtnetlink.route_to(source)
    except OSError:
        return f"rp_filter is {filtering}, and there is no route to {source}"
    if filtering == _STRICT and route.interface != interface.index:
        return f"rp_filter is {_STRICT}, and the route to {source} leaves through {_name(route.interface)}"
    return ""


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"interface {index}"
