"""One health check: a TCP connection to a backend and, if asked for, one HTTP request; and what came of it.

    outcome = await probe(Target.of(backend, health))

Sockets are used directly, not asyncio's streams: what a hostile server says is bounded here, in bytes by `HEAD_BYTES`
and in time by the timeout, which counts from the first SYN to the end of the answer's head. Of the answer no more than
that head is read.

*Whether the host answers* is told apart from whether its server does, because it decides what becomes of connections
(docs/health.md). A refusal, a reset, nonsense, silence after connecting: somebody is there. No answer to the SYN may
mean that nobody is, but also that the server accepts no more and its queue is full. So, half way through the timeout,
an empty datagram goes to the host's discard port (RFC 863); its kernel says that nobody listens there, or the host is
as good as gone.

*Connections end with a reset* (SO_LINGER 0). A close in order would leave a socket in TIME_WAIT for a minute on the
side that closes first: 60,000 of them here, with a thousand backends checked every second; or on the server, which may
be out of ports by that. What is reset has been answered already.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import re
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from typing import Self

from rauta.config import Backend, Health

__all__ = ["HEAD_BYTES", "Outcome", "Result", "Target", "probe"]

HEAD_BYTES = 16384
"""of an answer's head, interim answers included; a longer one is malformed"""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, 0 seconds
_DISCARD_PORT = 9
_SWITCHING = 101
_START = b"HTTP/1."
_STATUS_LINE = re.compile(rb"HTTP/1\.[0-9] ([1-5][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*)?\r?\n")  # RFC 9112, 4
_HEAD_END = re.compile(rb"\n\r?\n")
_SILENT = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.ETIMEDOUT}
_LOCAL = {
    *(errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM),  # no room for another socket
    *(errno.EADDRNOTAVAIL, errno.EAGAIN),  # no port left
    *(errno.EPERM, errno.EACCES, errno.EINVAL),  # a filter of this host's own, a route that prohibits
}


class Result(StrEnum):
    """What came of a check."""

    SUCCESS = "success"
    REFUSED = "refused"
    """the connection: nobody listens"""
    RESET = "reset"
    """the connection ended before the head of an answer had"""
    TIMEOUT = "timeout"
    """the host is there, its server does not answer in time"""
    SILENT = "silent"
    """nothing from the host, or nobody knows the way to it"""
    STATUS = "status"
    """not one of the wanted ones"""
    MALFORMED = "malformed"
    """no answer of HTTP/1, or a head without end"""
    LATE = "late"
    """the time was over, but this process had not been running: says nothing of the backend"""
    LOCAL = "local"
    """this host could not even try: says nothing of the backend"""

    @property
    def counts(self) -> bool:
        """Whether it says anything of the backend."""
        return self not in (Result.LATE, Result.LOCAL)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a check, in words unless it succeeded, and how many seconds it took."""

    result: Result
    error: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Target:
    """What is checked, and how. `request` is sent, and one of `statuses` expected; b"": the connection will do."""

    address: str
    port: int
    request: bytes
    statuses: frozenset[int]
    timeout: float

    @classmethod
    def of(cls, backend: Backend, health: Health) -> Self:
        """A backend, by the settings of one of its clusters."""
        host = health.host or f"{backend.address}:{backend.port}"
        sent = _request(host, health.http) if health.http is not None else b""
        return cls(str(backend.address), backend.port, sent, frozenset(health.status), health.timeout)


def _request(host: str, path: str) -> bytes:
    lines = (f"GET {path} HTTP/1.1", f"Host: {host}", f"User-Agent: rauta-health/{_version()}", "Connection: close")
    return "\r\n".join((*lines, "", "")).encode()


@functools.cache
def _version() -> str:
    try:
        return metadata.version("rauta")
    except metadata.PackageNotFoundError:  # run from a clone
        return "0"


class _Failure(Exception):
    """A check that has failed: (result, what happened)."""


async def probe(target: Target) -> Outcome:
    """Checks a backend once, from the calling thread's network namespace. Leaves no socket behind, cancelled or not."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    result, error = Result.SUCCESS, ""
    try:
        await _attempt(target, loop)
    except _Failure as failure:
        result, error = failure.args
    except OSError as failure:
        result, error = _of_errno(failure), os.strerror(failure.errno or 0)
    return Outcome(result, error, loop.time() - began)


def _of_errno(error: OSError) -> Result:
    if error.errno in _SILENT:
        return Result.SILENT
    if error.errno in _LOCAL:
        return Result.LOCAL
    return Result.REFUSED if error.errno == errno.ECONNREFUSED else Result.RESET


async def _attempt(target: Target, loop: asyncio.AbstractEventLoop) -> None:
    """_Failure or OSError unless the backend passes."""
    connected = False
    with (
        socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock,
        _Question(target) as question,
    ):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        try:
            async with asyncio.timeout(target.timeout):
                await loop.sock_connect(sock, (target.address, target.port))
                connected = True
                question.withdraw()
                if target.request:
                    await loop.sock_sendall(sock, target.request)
                    await _expect(sock, target.statuses, loop)
        except TimeoutError:
            raise _timed_out(target, connected, question) from None


def _timed_out(target: Target, connected: bool, question: _Question) -> _Failure:
    within = f"within {target.timeout:g} s"
    if connected:
        return _Failure(Result.TIMEOUT, f"no answer {within}")
    if question.answered():
        return _Failure(Result.TIMEOUT, f"accepts no connection {within}")
    return _Failure(Result.SILENT, f"no answer to SYN {within}")


class _Question:
    """Half way through a check, has a host's kernel say that nobody listens on a port: it is there.

    Most checks are over by then.
    """

    def __init__(self, target: Target) -> None:
        self._address = target.address
        self._socket: socket.socket | None = None
        self._timer = asyncio.get_running_loop().call_later(target.timeout / 2, self._ask)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.withdraw()
        if self._socket is not None:
            self._socket.close()

    def withdraw(self) -> None:
        """It need not be asked any more."""
        self._timer.cancel()

    def _ask(self) -> None:
        with suppress(OSError):  # then there is no answer
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self._socket.connect((self._address, _DISCARD_PORT))
            self._socket.send(b"")

    def answered(self) -> bool:
        """The kernel's word is the error of the socket (udp(7))."""
        if self._socket is None:
            return False
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED


async def _expect(sock: socket.socket, wanted: frozenset[int], loop: asyncio.AbstractEventLoop) -> None:
    """Reads an answer's head; interim answers before it are passed over unless one of their statuses is wanted.

    _Failure if the status is another one, or there is no such head.
    """
    head = bytearray()
    budget = HEAD_BYTES
    while True:
        data = await loop.sock_recv(sock, budget)
        if not data:
            raise _Failure(Result.RESET, "closed before the head of an answer had ended")
        searched = max(0, len(head) - 2)
        head += data
        budget -= len(data)
        while (status := _taken(head, searched)) is not None:
            if status in wanted:
                return
            if status == _SWITCHING or status >= 200:
                raise _Failure(Result.STATUS, f"status {status}")
            searched = 0
        if budget == 0:
            raise _Failure(Result.MALFORMED, f"a head of more than {HEAD_BYTES} bytes")


def _taken(head: bytearray, searched: int) -> int | None:
    """Takes the first head away, and says its status; None if it has not ended. _Failure if it is none of HTTP/1."""
    if not head.startswith(_START[: len(head)]):
        raise _Failure(Result.MALFORMED, f"no answer of HTTP/1: {bytes(head[:16])!r}")
    end = _HEAD_END.search(head, searched)
    if end is None:
        return None
    line = _STATUS_LINE.match(head)
    if line is None:
        raise _Failure(Result.MALFORMED, f"no status line: {bytes(head[:32])!r}")
    status = int(line[1])
    del head[: end.end()]
    return status
