"""What a process does to stay small."""

from __future__ import annotations

import ctypes

__all__ = ["share_one_arena"]

_M_ARENA_MAX = -8  # malloc.h


def share_one_arena() -> None:
    """Has all threads take their memory from one place, from now on.

    glibc gives each thread an arena of its own, of which it keeps up to a megabyte that the thread has needed once.
    Threads of a control plane hardly ever wait for each other's malloc. Another C library may know no such thing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
