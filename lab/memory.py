"""How much memory the kernel has in use for packets, sockets and BPF.

Two numbers. What the maps of some programs take, the kernel says for each map, exactly (``memlock`` in its fdinfo;
Linux 6.4 and later count what a map holds, and not what it might). What else a packet could leave behind (sockets,
requests for them, routes, the packet itself) is slab that cannot be reclaimed: a number of the whole machine, which
moves by megabytes with whatever else goes on there.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rauta.bpf import BpfObject


def of_maps(objects: Iterable[BpfObject]) -> int:
    """Bytes that the maps of some objects take."""
    return sum(_memlock(one.fd) for obj in objects for one in obj.maps.values())


def of_slab(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes of slab that cannot be reclaimed."""
    fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
    return int(fields["SUnreclaim"].split()[0]) * 1024


def _memlock(fd: int) -> int:
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("memlock:"))
