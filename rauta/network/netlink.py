"""Questions to the kernel over netlink(7): a request goes out, the messages of the answer come back.

The families that use it: rtnetlink (rauta.network.rtnetlink), sock_diag and generic netlink (rauta.doctor).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

__all__ = ["ask", "attribute", "attributes"]

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
_ERROR, _DONE = 2, 3  # NLMSG_*
_REQUEST, _DUMP = 0x001, 0x300  # NLM_F_*
_ATTRIBUTE_TYPE = 0x3FFF  # NLA_TYPE_MASK
_BUFFER = 1 << 16  # bytes; the kernel's dumps come in messages of at most 32 KB


def ask(family: int, kind: int, body: bytes, *, dump: bool = False) -> Iterator[bytes]:
    """Sends a request of a netlink family, in the calling thread's network namespace.

    Yields the bodies of the answer's messages: one, or as many as a dump has. OSError as the kernel gives it.
    """
    flags = _REQUEST | (_DUMP if dump else 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, family) as kernel:
        kernel.sendto(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body, (0, 0))
        while True:
            for what, message in _messages(kernel.recv(_BUFFER)):
                if what == _ERROR:
                    number = -struct.unpack_from("=i", message)[0]
                    raise OSError(number, os.strerror(number))
                if what == _DONE:
                    return
                yield message
            if not dump:
                return


def attribute(kind: int, value: bytes) -> bytes:
    """An attribute, padded to four bytes."""
    whole = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value
    return whole.ljust(_aligned(len(whole)), b"\0")


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and value of each attribute in a message, or in an attribute that holds others."""
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        yield kind & _ATTRIBUTE_TYPE, data[_ATTRIBUTE.size : length]
        data = data[_aligned(max(length, _ATTRIBUTE.size)) :]


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each message in what one recv() brought."""
    while len(data) >= _HEADER.size:
        length, what, _, _, _ = _HEADER.unpack_from(data)
        yield what, data[_HEADER.size : length]
        data = data[_aligned(length) :]


def _aligned(length: int) -> int:
    return length + 3 & ~3
