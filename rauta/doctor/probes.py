"""Packets to many hosts at once, and what comes back: TCP connections, and pings of two sizes.

From the calling thread's network namespace. Whoever has not answered after a second does not.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import selectors
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address

__all__ = ["SECONDS", "connect", "echo"]

SECONDS = 1.0
_AT_ONCE = 256
"""sockets that are open at a time"""
_ICMP = struct.Struct(">BBHHH")  # RFC 792: type, code, checksum, identifier, sequence number
_ECHO, _ECHO_REPLY = 8, 0
_IP_BYTES = 20
_IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE = 10, 3  # linux/in.h: never fragmented, whatever is known of the path

Place = tuple[IPv4Address, int]


def connect(places: Iterable[Place], seconds: float = SECONDS) -> dict[Place, str]:
    """Opens a TCP connection to each address and port, and closes it: what was wrong, empty if nothing."""
    waiting = list(dict.fromkeys(places))
    found: dict[Place, str] = {}
    for start in range(0, len(waiting), _AT_ONCE):
        found |= _connect(waiting[start : start + _AT_ONCE], seconds)
    return found


def _connect(places: Sequence[Place], seconds: float) -> dict[Place, str]:
    found = dict.fromkeys(places, f"no answer within {seconds:g} s")
    with contextlib.ExitStack() as undo:
        selector = undo.enter_context(selectors.DefaultSelector())
        for place in places:
            sock = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            number = sock.connect_ex((str(place[0]), place[1]))
            if number == errno.EINPROGRESS:
                selector.register(sock, selectors.EVENT_WRITE, place)
            else:
                found[place] = os.strerror(number) if number else ""
        for key in _ready(selector, seconds):
            sock = key.fileobj  # type: ignore[assignment]
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            found[key.data] = os.strerror(number) if number else ""
            selector.unregister(sock)
    return found


def echo(
    addresses: Iterable[IPv4Address], sizes: Sequence[int], seconds: float = SECONDS
) -> dict[IPv4Address, set[int]]:
    """Pings each address (RFC 792) with IPv4 packets of these sizes, in bytes, that nobody may fragment: which came
    back.

    OSError without CAP_NET_RAW."""
    found: dict[IPv4Address, set[int]] = {address: set() for address in addresses}
    identifier, missing = secrets.randbits(16), len(found) * len(sizes)
    if not missing:
        return found
    with contextlib.ExitStack() as undo:
        sock = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE)
        selector = undo.enter_context(selectors.DefaultSelector())
        selector.register(sock, selectors.EVENT_READ)
        for address in found:
            for number, size in enumerate(sizes):
                with contextlib.suppress(OSError):  # no way there, or larger than the link allows: nothing comes back
                    sock.sendto(_echo_request(identifier, number, size), (str(address), 0))
        for _ in _ready(selector, seconds):
            for sender, number in _replies(sock, identifier):
                if sender in found and number < len(sizes) and sizes[number] not in found[sender]:
                    found[sender].add(sizes[number])
                    missing -= 1
            if not missing:
                break
    return found


def _ready(selector: selectors.BaseSelector, seconds: float) -> Iterator[selectors.SelectorKey]:
    """The sockets that are ready, as they become so, until none is left or the time is over."""
    deadline = time.monotonic() + seconds
    while selector.get_map() and (left := deadline - time.monotonic()) > 0:
        for key, _ in selector.select(left):
            yield key


def _replies(sock: socket.socket, identifier: int) -> Iterator[tuple[IPv4Address, int]]:
    """Who has answered, and to which of the pings of this identifier."""
    with contextlib.suppress(BlockingIOError):
        while True:
            packet, (sender, _) = sock.recvfrom(65535)
            header = (packet[0] & 15) * 4
            if len(packet) < header + _ICMP.size:
                continue
            kind, _, _, whose, number = _ICMP.unpack_from(packet, header)
            if (kind, whose) == (_ECHO_REPLY, identifier):
                yield IPv4Address(sender), number


def _echo_request(identifier: int, number: int, size: int) -> bytes:
    payload = bytes(size - _IP_BYTES - _ICMP.size)
    total = (_ECHO << 8) + identifier + number  # of a message that is zero but for these
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return _ICMP.pack(_ECHO, 0, ~total & 0xFFFF, identifier, number) + payload
