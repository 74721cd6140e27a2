"""TCP segments without data in a VIP's name, which the router's user space sends by a raw socket."""

from __future__ import annotations

import socket
import struct
import sys
from typing import TypeAlias

__all__ = ["ACK", "RST", "Connection", "segment"]

Connection: TypeAlias = tuple[int, int, int, int]
"""`struct tuple`: client, server, client port, server port, as the integers that stand in memory."""

RST, ACK = 0x04, 0x10

_IP_HEADER = struct.Struct("!BBHHHBBH4s4s")
_TCP_HEADER = struct.Struct("!HHIIBBHHH")
_PSEUDO_HEADER = struct.Struct("!4s4sBBH")
_TTL = 64
_DONT_FRAGMENT = 0x4000


def segment(connection: Connection, seq: int, ack: int, flags: int) -> bytes:
    """An IPv4 packet from a connection's server to its client.

    The kernel fills in the checksum of the IPv4 header when it is sent (raw(7)).
    """
    client, server, client_port, server_port = connection
    source, destination = (address.to_bytes(4, sys.byteorder) for address in (server, client))
    ports = (socket.ntohs(server_port), socket.ntohs(client_port))
    length = _TCP_HEADER.size
    pseudo = _PSEUDO_HEADER.pack(source, destination, 0, socket.IPPROTO_TCP, length)
    fields = (*ports, seq, ack, length // 4 << 4, flags, 0)
    check = _checksum(pseudo + _TCP_HEADER.pack(*fields, 0, 0))
    header = (0x45, 0, _IP_HEADER.size + length, 0, _DONT_FRAGMENT, _TTL, socket.IPPROTO_TCP, 0, source, destination)
    return _IP_HEADER.pack(*header) + _TCP_HEADER.pack(*fields, check, 0)


def _checksum(data: bytes) -> int:
    """RFC 1071, of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
