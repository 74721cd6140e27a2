"""Network namespaces with names, as `ip netns` knows them.

Made without a child process, which could be half-way when a signal ends its parent's patience: a thread leaves for a
new namespace, gives it a name, and ends.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pyroute2 import netns

from lab.errors import LabError
from lab.signals import deferred

FOLDER = Path("/run/netns")
_CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


def in_new_one(action: Callable[[], None]) -> None:
    """Do something in a new network namespace, which ends with it unless the action gives it a name.

    Raises:
        OSError: the kernel refuses; or whatever the action raises.
    """
    failure: list[BaseException] = []

    def thread() -> None:
        try:
            if _libc.unshare(_CLONE_NEWNET) != 0:
                number = ctypes.get_errno()
                raise OSError(number, f"unshare: {os.strerror(number)}")
            action()
        except BaseException as error:  # whatever it is belongs to the caller
            failure.append(error)

    with deferred():
        worker = threading.Thread(target=thread)
        worker.start()
        worker.join()
    if failure:
        raise failure[0]


def create(name: str) -> None:
    """Make a namespace.

    Raises:
        LabError: there is one of that name, or the kernel refuses.
    """
    try:
        in_new_one(lambda: netns.attach(name, "thread-self"))
    except OSError as error:
        advice = "Make them as root, outside containers."
        raise LabError(f"making the network namespace {name}", str(error), advice) from error


def remove(name: str) -> None:
    """Take a namespace's name away; what it holds goes with its last process. Harmless when there is none."""
    with suppress(FileNotFoundError):
        netns.remove(name)


def inode(name: str) -> int | None:
    """The number by which /proc/PID/ns/net shows a namespace, for as long as it exists; None if it does not."""
    try:
        return (FOLDER / name).stat().st_ino
    except FileNotFoundError:
        return None
