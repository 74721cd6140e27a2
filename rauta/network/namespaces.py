"""Entering a network namespace, for the calling thread only.

setns(2) and not `ip netns exec`: the latter also remounts /sys, which hides bpffs and the kernel's BTF.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rauta.errors import RautaError

__all__ = ["current", "entered", "path"]

_CLONE_NEWNET = 0x40000000
_NAMED = Path("/run/netns")
_OWN = Path("/proc/thread-self/ns/net")

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def entered(namespace: str | Path) -> Iterator[None]:
    """Puts the calling thread into a network namespace for as long as the context lasts, then back.

    `namespace` is a name as `ip netns` lists them, or, with a slash in it, a path such as /proc/PID/ns/net. Sockets
    and BPF attachments made inside stay in that namespace afterwards. RautaError if there is no such namespace or no
    permission.
    """
    there_is = path(namespace)
    with _opened(_OWN) as home, _opened(there_is) as there:
        _enter(there, there_is)
        try:
            yield
        finally:
            _enter(home, _OWN)


def path(namespace: str | Path) -> Path:
    """The file of a namespace, if there is one: by a name or path as for `entered`, or "" for the caller's own."""
    if not str(namespace):
        return _OWN
    return Path(namespace) if "/" in str(namespace) else _NAMED / namespace


@contextmanager
def current() -> Iterator[Path]:
    """The calling thread's network namespace, as a path that `entered` takes from any thread of this process.

    It stays valid, and keeps the namespace alive, for as long as the context lasts.
    """
    with _opened(_OWN) as descriptor:
        yield Path(f"/proc/self/fd/{descriptor}")


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise RautaError(
            f"opening the network namespace {path}", str(error.strerror), "`ip netns list` shows the named ones."
        ) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _enter(descriptor: int, path: Path) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise RautaError(f"entering the network namespace {path}", reason, "Run as root: this takes CAP_SYS_ADMIN.")
