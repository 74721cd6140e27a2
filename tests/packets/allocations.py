"""Counts what the kernel allocates while the calling thread runs: objects of slab and pages, by its own tracepoints.

Counted are the thread's own, with what interrupts do on its time (perf_event_open(2)): nothing of the machine is
changed, and nobody else's allocations count but for a few of interrupts that have nothing to do with it. The numbers of
tracepoints are in tracefs, which is mounted for a moment in a mount namespace of its own.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

TRACEPOINTS = ("kmem/kmalloc", "kmem/kmem_cache_alloc", "kmem/mm_page_alloc")
PERF_TYPE_TRACEPOINT = 2
PERF_FLAG_FD_CLOEXEC = 8
ATTRIBUTES = struct.Struct("=IIQQQQQ80x")
"""struct perf_event_attr (linux/perf_event.h): type, size, config, sample_period, sample_type, read_format, flags"""
_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}


class Allocations:
    """Of the thread since this was made: ``count`` says how many so far."""

    def __init__(self, counters: list[int]) -> None:
        self._counters = counters

    def count(self) -> int:
        """All of them."""
        return sum(int.from_bytes(os.read(counter, 8), "little") for counter in self._counters)


@contextmanager
def counted(folder: Path) -> Iterator[Allocations]:
    """Count this thread's, while inside. ``folder``: an empty one."""
    with ExitStack() as stack:
        counters = [_open(number) for number in _numbers(folder)]
        for counter in counters:
            stack.callback(os.close, counter)
        yield Allocations(counters)


@cache
def _numbers(folder: Path) -> list[int]:
    files = " ".join(f"{folder}/events/{name}/id" for name in TRACEPOINTS)
    argv = ["unshare", "--mount", "sh", "-ec", f"mount -t tracefs none {folder}; cat {files}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=10)
    return [int(line) for line in done.stdout.split()]


def _open(tracepoint: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    attributes = ATTRIBUTES.pack(PERF_TYPE_TRACEPOINT, ATTRIBUTES.size, tracepoint, 0, 0, 0, 0)
    this_thread, any_cpu, no_group = 0, -1, -1
    found = int(
        libc.syscall(
            _PERF_EVENT_OPEN[platform.machine()], attributes, this_thread, any_cpu, no_group, PERF_FLAG_FD_CLOEXEC
        )
    )
    if found < 0:
        raise OSError(ctypes.get_errno(), f"perf_event_open: {os.strerror(ctypes.get_errno())}")
    return found
