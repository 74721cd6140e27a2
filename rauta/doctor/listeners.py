"""Who listens for TCP connections here, asked over sock_diag(7): /proc/net/tcp does not say who speaks MPTCP.

A listener made with IPPROTO_MPTCP is an ordinary one of TCP's to the kernel, with an upper protocol of that name
(net/mptcp/subflow.c). To see that name takes CAP_NET_ADMIN.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from rauta.network import netlink, rtnetlink

__all__ = ["Listener", "listeners"]

_NETLINK_SOCK_DIAG = 4  # linux/netlink.h
_SOCK_DIAG_BY_FAMILY = 20  # linux/sock_diag.h
_REQUEST = struct.Struct("=BBBxI48x")  # struct inet_diag_req_v2: family, protocol, extensions, states, identity
_ANSWER = struct.Struct("=BBxx2s2x16s16xIQ20x")  # struct inet_diag_msg: family, state, port, address, interface, cookie
_INFO, _MEMORY, _V6_ONLY, _UPPER = 2, 7, 11, 19  # INET_DIAG_INFO, _SKMEMINFO, _SKV6ONLY, _ULP_INFO
_WANTED = 1 << (_INFO - 1) | 1 << (_MEMORY - 1)  # the upper protocol comes with the former (net/ipv4/inet_diag.c)
_UPPER_NAME = 1  # INET_ULP_INFO_NAME
_MEMORY_RECEIVE_BUFFER = 4  # bytes: SK_MEMINFO_RCVBUF is the second number
_LISTEN = 1 << 10  # TCP_LISTEN, as a bit


@dataclass(frozen=True)
class Listener:
    """A listening socket. `interface`: the index of the one that it is bound to, 0 for all.

    `v4`: it takes IPv4 connections; one of IPv6 may, or may not. `receive_buffer`: bytes that new connections get.
    """

    address: IPv4Address | IPv6Address
    port: int
    interface: int
    v4: bool
    mptcp: bool
    receive_buffer: int

    @property
    def everywhere(self) -> bool:
        """Whether it listens on all of the host's addresses."""
        return self.address.is_unspecified

    def takes(self, address: IPv4Address) -> bool:
        """Whether a connection to that address of the host's, and this port, is this one's."""
        return self.v4 and (self.everywhere or self.address in (address, IPv6Address(f"::ffff:{address}")))

    def __str__(self) -> str:
        """As ss(8) writes it."""
        address = str(self.address) if self.address.version == 4 else f"[{self.address}]"
        bound = f"%{rtnetlink.link(self.interface).name}" if self.interface else ""
        return f"{address}{bound}:{self.port}"


def listeners() -> list[Listener]:
    """All listeners of the calling thread's network namespace. OSError if the kernel has no sock_diag for TCP."""
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        request = _REQUEST.pack(family, socket.IPPROTO_TCP, _WANTED, _LISTEN)
        for message in netlink.ask(_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, request, dump=True):
            found.append(_listener(message))
    return found


def _listener(message: bytes) -> Listener:
    family, _, port, address, interface, _ = _ANSWER.unpack_from(message)
    values = dict(netlink.attributes(message[_ANSWER.size :]))
    upper = dict(netlink.attributes(values.get(_UPPER, b"")))
    memory = values.get(_MEMORY, b"")
    is_v4 = family == socket.AF_INET
    return Listener(
        address=IPv4Address(address[:4]) if is_v4 else IPv6Address(address),
        port=int.from_bytes(port, "big"),
        interface=interface,
        v4=is_v4 or values.get(_V6_ONLY) == b"\0",
        mptcp=upper.get(_UPPER_NAME, b"").rstrip(b"\0") == b"mptcp",
        receive_buffer=struct.unpack_from("=I", memory, _MEMORY_RECEIVE_BUFFER)[0] if len(memory) >= 8 else 0,
    )
