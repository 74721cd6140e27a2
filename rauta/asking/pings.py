"""Are the agents there, have they these keys, and what time is it with them?

A ping is a question like those about lost flows (docs/recovery.md), and the agent answers it as it does those: in BPF,
on the spot, sealed. An answer proves that an agent runs on that host, is reached, answers for that address, and has the
key of that epoch. Silence does not say which of these is missing: whoever could be told would know more about an agent
than a stranger should.

Orders to hand a connection over carry the time (bpf/shim.h), so the answer does, too: by the clock TAI, which does not
jump at leap seconds. How far it is off is known to within half the round trip.
"""

from __future__ import annotations

import contextlib
import secrets
import selectors
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from rauta import tables
from rauta.bpf import Btf
from rauta.bpf.layout import StructLayout
from rauta.contract import ASK_VERSION
from rauta.keys import CookieKeys
from rauta.network import rtnetlink
from rauta.siphash import siphash

__all__ = ["EPOCHS", "SECONDS", "Pong", "ping"]

EPOCHS = (0, 1)
SECONDS = 1.0
"""how long answers are waited for"""
_LARGEST = 2048
_SEALED_BYTES = 64
_NS = 1_000_000_000


@dataclass(frozen=True)
class Pong:
    """An agent's answer.

    `ahead`: seconds by which its clock is ahead of this host's; `accuracy`: by how much that may be wrong, either way.
    """

    ahead: float
    accuracy: float


@dataclass(frozen=True)
class _Waiting:
    """A ping that is under way: to whom, under which epoch's key, over which four numbers, since when (TAI, ns)."""

    address: IPv4Address
    epoch: int
    between: Mapping[str, int]
    sent: int


class _Calls:
    """Pings and pongs as bytes."""

    def __init__(self, btf: Btf, keys: CookieKeys) -> None:
        ask, between = btf.struct("ask"), btf.struct("tuple")
        if not isinstance(ask, StructLayout):
            raise TypeError("struct ask is no struct")
        self._ask, self._between, self._keys = ask, between, keys.ask_keys
        self._kinds = btf.enum("ask_kind")
        self._tag = ask.members["tag"].offset

    def question(self, nonce: int, waiting: _Waiting) -> bytes:
        """A sealed ping."""
        fields = {"version": ASK_VERSION, "kind": self._kinds["ASK_PING"], "epoch": waiting.epoch, "nonce": nonce}
        return self._sealed(self._ask.pack(fields), waiting)

    def nonce(self, answer: bytes) -> int | None:
        """Which ping a datagram claims to answer; None if it is no answer at all."""
        if len(answer) != self._ask.size:
            return None
        return int(self._ask.unpack(answer)["nonce"])

    def pong(self, answer: bytes, waiting: _Waiting, now: int) -> Pong | None:
        """What an answer says, if it is sealed: `now` is when it came (TAI, ns)."""
        fields: dict[str, Any] = self._ask.unpack(answer)
        if fields["kind"] != self._kinds["ASK_PONG"] or fields["epoch"] != waiting.epoch:
            return None
        if self._sealed(answer, waiting) != answer:
            return None
        theirs = fields["isn"] * _NS + fields["cookie"]
        return Pong((theirs - (waiting.sent + now) / 2) / _NS, (now - waiting.sent) / 2 / _NS)

    def _sealed(self, ask: bytes, waiting: _Waiting) -> bytes:
        """With its tag, as contract.h defines it."""
        said = ask[: self._tag]
        tag = siphash(
            self._keys[waiting.epoch], (said + self._between.pack(waiting.between)).ljust(_SEALED_BYTES, b"\0")
        )
        return said + self._ask.pack({"tag": tag})[self._tag :]


def ping(
    addresses: Iterable[IPv4Address], port: int, keys: CookieKeys, btf: Btf, *, seconds: float = SECONDS
) -> dict[IPv4Address, dict[int, Pong]]:
    """Asks the agents at these addresses, all at once, under the key of each epoch; what each one has answered.

    From the calling thread's network namespace. `btf` is that of one of RAUTA's objects. It returns as soon as all have
    answered, and after `seconds` at the latest.
    """
    calls = _Calls(btf, keys)
    waiting: dict[int, _Waiting] = {}
    found: dict[IPv4Address, dict[int, Pong]] = {address: {} for address in addresses}
    with contextlib.ExitStack() as undo:
        sockets: dict[IPv4Address, socket.socket] = {}
        selector = undo.enter_context(selectors.DefaultSelector())
        for address in found:
            with contextlib.suppress(OSError):  # no way there: no answer
                _put(calls, waiting, _socket_towards(address, sockets, selector, undo), (address, port))
        deadline = time.monotonic() + seconds
        while waiting and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                _take(calls, waiting, sock, port, found)
    return found


def _socket_towards(
    address: IPv4Address,
    sockets: dict[IPv4Address, socket.socket],
    selector: selectors.BaseSelector,
    undo: contextlib.ExitStack,
) -> socket.socket:
    """One for each of this host's own addresses from which the kernel's routes lead to others: the seal covers it."""
    own = rtnetlink.route_to(address).source or IPv4Address("0.0.0.0")
    if own not in sockets:
        sock = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
        sock.bind((str(own), 0))
        selector.register(sock, selectors.EVENT_READ)
        sockets[own] = sock
    return sockets[own]


def _put(calls: _Calls, waiting: dict[int, _Waiting], sock: socket.socket, to: tuple[IPv4Address, int]) -> None:
    own, own_port = sock.getsockname()
    between = {
        "client": tables.be32(IPv4Address(own)),
        "server": tables.be32(to[0]),
        "client_port": tables.be16(own_port),
        "server_port": tables.be16(to[1]),
    }
    for epoch in EPOCHS:
        nonce = secrets.randbits(64)
        one = _Waiting(to[0], epoch, between, time.clock_gettime_ns(time.CLOCK_TAI))
        sock.sendto(calls.question(nonce, one), (str(to[0]), to[1]))
        waiting[nonce] = one


def _take(
    calls: _Calls,
    waiting: dict[int, _Waiting],
    sock: socket.socket,
    port: int,
    found: Mapping[IPv4Address, dict[int, Pong]],
) -> None:
    """All that has come in on a socket."""
    with contextlib.suppress(OSError):  # nothing more
        while True:
            answer, sender = sock.recvfrom(_LARGEST)
            now = time.clock_gettime_ns(time.CLOCK_TAI)
            nonce = calls.nonce(answer)
            one = waiting.get(nonce) if nonce is not None else None
            if nonce is None or one is None or sender != (str(one.address), port):
                continue
            pong = calls.pong(answer, one, now)
            if pong is not None:
                found[one.address][one.epoch] = pong
                del waiting[nonce]
