"""Two questions to the kernel over rtnetlink (rtnetlink(7)): where a packet would go, and who the neighbours are.

Asked in the calling thread's network namespace. pyroute2, which the lab uses, answers them too, but importing it takes
19 MB of resident memory, more than a third of what the control plane may have.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

__all__ = ["UNICAST", "Route", "neighbours", "route_to"]

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port
_ROUTE = struct.Struct("=8BI")  # struct rtmsg: family, destination's prefix length, ...; type is the eighth
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # struct ndmsg: family, interface, state, flags, type
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
_ERROR, _DONE = 2, 3  # NLMSG_*
_REQUEST, _DUMP = 0x001, 0x300  # NLM_F_*
_GET_ROUTE, _GET_NEIGHBOURS = 26, 30  # RTM_GETROUTE, RTM_GETNEIGH
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC = 1, 4, 5, 7
_NDA_DST, _NDA_LLADDR = 1, 2
_ATTRIBUTE_TYPE = 0x3FFF  # NLA_TYPE_MASK
_BUFFER = 1 << 16  # bytes; the kernel's dumps come in messages of at most 32 KB

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


def route_to(address: IPv4Address) -> Route:
    """The route that the kernel chooses for an address. OSError as the kernel gives it, ENETUNREACH for no route."""
    body = _ROUTE.pack(socket.AF_INET, 32, *bytes(7)) + _attribute(_RTA_DST, address.packed)
    message = next(_ask(_GET_ROUTE, _REQUEST, body))
    kind = _ROUTE.unpack_from(message)[7]
    found = dict(_attributes(message[_ROUTE.size :]))
    interface = int.from_bytes(found.get(_RTA_OIF, b""), sys.byteorder)
    return Route(kind, interface, _address(found.get(_RTA_GATEWAY)), _address(found.get(_RTA_PREFSRC)))


def neighbours(interface: int) -> dict[IPv4Address, bytes]:
    """The link-layer addresses that the neighbour table knows on the interface of that index."""
    known: dict[IPv4Address, bytes] = {}
    for message in _ask(_GET_NEIGHBOURS, _REQUEST | _DUMP, _NEIGHBOUR.pack(socket.AF_INET, 0, 0, 0, 0)):
        _, where, state, _, _ = _NEIGHBOUR.unpack_from(message)
        found = dict(_attributes(message[_NEIGHBOUR.size :]))
        if where == interface and state & _HAS_ADDRESS and found.get(_NDA_LLADDR):
            known[IPv4Address(found[_NDA_DST])] = found[_NDA_LLADDR]
    return known


def _address(value: bytes | None) -> IPv4Address | None:
    return IPv4Address(value) if value is not None else None


def _ask(kind: int, flags: int, body: bytes) -> Iterator[bytes]:
    """Sends a request and yields the bodies of the answer's messages: one, or as many as a dump has."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.sendto(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body, (0, 0))
        while True:
            for what, message in _messages(kernel.recv(_BUFFER)):
                if what == _ERROR:
                    number = -struct.unpack_from("=i", message)[0]
                    raise OSError(number, os.strerror(number))
                if what == _DONE:
                    return
                yield message
            if not flags & _DUMP:
                return


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each message in what one recv() brought."""
    while len(data) >= _HEADER.size:
        length, what, _, _, _ = _HEADER.unpack_from(data)
        yield what, data[_HEADER.size : length]
        data = data[_aligned(length) :]


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value  # values here are multiples of four bytes


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        yield kind & _ATTRIBUTE_TYPE, data[_ATTRIBUTE.size : length]
        data = data[_aligned(length) :]


def _aligned(length: int) -> int:
    return length + 3 & ~3
