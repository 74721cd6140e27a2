"""Watches the machine while something is timed: whose CPU time it was, what was lost, and whether anybody disturbed.

Whose CPU time a packet costs cannot be told from processes alone: the kernel does its receive work (softirq) on the
time of whoever runs just then, the load generator's as often as the server's. So CPU time a request is given twice:
``cpu`` is all time in which the machine's CPUs were not idle, which nothing escapes; ``cpu-client``, ``cpu-router`` and
``cpu-servers`` are what the processes of these hosts were charged, softirq included, which shows where it went roughly.

Processes are told apart by their network namespaces. *Ours* are those in the run's namespaces, this process and its
children; kernel threads work for everybody; whatever else used CPU time is *foreign* and makes a sample noisy. A
process's time is that of all its threads, and of children that it has waited for, so a load generator that starts and
ends within one watch is counted, through the lab itself (proc(5), stat: utime, stime, cutime, cstime).

A thread looks every 100 ms and keeps the time series. Times are seconds of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from lab import namespaces
from lab.samples import CPU_QUANTITIES

if TYPE_CHECKING:
    from lab.topology import Host

INTERVAL = 0.1
"""seconds between two looks"""
PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")
_KTHREAD = 0x00200000
"""PF_KTHREAD (include/linux/sched.h), in field 9 of stat"""
SERIES: Mapping[str, str] = {
    "time": "seconds, CLOCK_MONOTONIC",
    "label": "what was being timed; empty between samples",
    "busy": "CPUs' worth of work, of all CPUs",
    "softirq": "CPUs' worth of softirq work",
    "steal": "CPUs' worth that the hypervisor took",
    "retransmits": "TCP segments sent again by all hosts since the last look",
    "drops": "frames dropped or with errors at all hosts' interfaces since the last look",
    "rx_packets": "frames received by all hosts since the last look",
    "rx_bytes": "bytes received by all hosts since the last look",
}
"""columns of the time series, and their units"""


class Limits(Protocol):
    """What is too much, as shares; None for no limit."""

    @property
    def steal(self) -> float | None: ...  # noqa: D102 the class says it

    @property
    def foreign_cpu(self) -> float | None: ...  # noqa: D102


@dataclass(frozen=True)
class Times:
    """CPU time of the whole machine since it started, in seconds over all CPUs (proc(5), /proc/stat)."""

    busy: float
    softirq: float
    steal: float
    total: float

    @classmethod
    def read(cls, proc: Path = PROC) -> Times:
        """Now."""
        fields = [int(text) / TICKS for text in (proc / "stat").read_text().split("\n", 1)[0].split()[1:9]]
        user, nice, system, idle, iowait, irq, softirq, steal = fields
        busy = user + nice + system + irq + softirq
        return cls(busy, softirq, steal, busy + idle + iowait + steal)


@dataclass(frozen=True)
class Processes:
    """CPU seconds of processes: by host, the lab's own with its ended children, and each foreign one by pid."""

    hosts: Mapping[str, float]
    lab: float
    foreign: Mapping[int, float]


@dataclass(frozen=True)
class Usage:
    """What happened during a watch."""

    seconds: float
    steal: float
    """share of all CPU time, 0 to 1"""
    foreign: float
    """CPU time of others, as a share of one CPU"""
    busy: float
    """seconds in which CPUs worked, over all of them"""
    softirq: float
    """of these, in softirq"""
    hosts: Mapping[str, float]
    """CPU seconds charged to the processes of each role: client, router, servers"""

    def flags(self, limits: Limits) -> tuple[str, ...]:
        """What disturbed, in words; empty if nothing did."""
        found = []
        if limits.steal is not None and self.steal >= limits.steal:
            found.append(f"the hypervisor took {self.steal:.1%} of the CPU time (limit {limits.steal:.0%})")
        if limits.foreign_cpu is not None and self.foreign >= limits.foreign_cpu:
            found.append(f"other programs used {self.foreign:.0%} of a CPU (limit {limits.foreign_cpu:.0%})")
        return tuple(found)

    def per_request(self, requests: int) -> dict[str, float]:
        """CPU time a request in us, by the names of CPU_QUANTITIES."""
        seconds = {"cpu": self.busy, **{f"cpu-{role}": spent for role, spent in self.hosts.items()}}
        return {name: 1e6 * seconds.get(name, 0.0) / requests for name in CPU_QUANTITIES}


class Watch:
    """Around what is timed; ``usage`` is known afterwards."""

    usage: Usage

    def __init__(self, monitor: Monitor, label: str) -> None:
        self._monitor = monitor
        self._label = label

    def __enter__(self) -> Self:
        self._monitor.label = self._label
        self._processes = self._monitor.processes()
        self._times, self._start = Times.read(), time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        times, seconds = Times.read(), time.monotonic() - self._start
        processes = self._monitor.processes()
        self._monitor.label = ""
        self.usage = _usage(seconds, (self._times, times), (self._processes, processes))


def _usage(seconds: float, times: tuple[Times, Times], processes: tuple[Processes, Processes]) -> Usage:
    before, after = times
    total = after.total - before.total
    first, last = processes
    # The kernel tells whole ticks: the last one of each process may have begun long before the watch.
    foreign = sum(max(0.0, spent - first.foreign.get(pid, 0.0) - 1 / TICKS) for pid, spent in last.foreign.items())
    hosts = {role: last.hosts[role] - first.hosts.get(role, 0.0) for role in last.hosts}
    hosts["client"] = hosts.get("client", 0.0) + last.lab - first.lab
    return Usage(
        seconds=seconds,
        steal=(after.steal - before.steal) / total if total else 0.0,
        foreign=foreign / seconds if seconds else 0.0,
        busy=after.busy - before.busy,
        softirq=after.softirq - before.softirq,
        hosts=hosts,
    )


@dataclass
class Monitor:
    """Watches for as long as it is entered. ``hosts``: whose processes and interfaces are those of the run."""

    hosts: Sequence[Host]
    proc: Path = PROC
    label: str = ""
    """what is being timed"""
    _series: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in SERIES})
    _stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._roles = {
            inode: host.role if host.role in ("client", "router") else "servers"
            for host in self.hosts
            if (inode := namespaces.inode(host.namespace))
        }

    @contextmanager
    def watching(self) -> Iterator[Self]:
        """Keep the time series meanwhile."""
        thread = threading.Thread(target=self._look_again_and_again, name="monitor", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()

    def watch(self, label: str = "") -> Watch:
        """A context for something that is timed; in the series it has this label."""
        return Watch(self, label)

    def series(self) -> Mapping[str, Sequence[Any]]:
        """The time series so far, by column; see SERIES."""
        length = min(map(len, self._series.values()))  # a row may be half written
        return {name: values[:length] for name, values in self._series.items()}

    def processes(self) -> Processes:
        """The CPU time of every process so far."""
        hosts = dict.fromkeys(("client", "router", "servers"), 0.0)
        foreign: dict[int, float] = {}
        lab = 0.0
        for entry in self.proc.glob("[0-9]*"):
            with suppress(OSError, IndexError, ValueError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                pid, own = int(entry.name), (int(fields[11]) + int(fields[12])) / TICKS
                if pid == os.getpid():
                    lab = own + (int(fields[13]) + int(fields[14])) / TICKS
                    continue
                if int(fields[6]) & _KTHREAD or own == 0:
                    continue
                role = self._roles.get((entry / "ns/net").stat().st_ino)
                if role:
                    hosts[role] += own
                elif int(fields[1]) != os.getpid():
                    foreign[pid] = own
        return Processes(hosts, lab, foreign)

    def _look_again_and_again(self) -> None:
        last_times, last_counters, last = Times.read(self.proc), self._counters(), time.monotonic()
        while not self._stop.wait(INTERVAL):
            times, counters, now = Times.read(self.proc), self._counters(), time.monotonic()
            seconds = now - last
            row = {
                "time": now,
                "label": self.label,
                "busy": (times.busy - last_times.busy) / seconds,
                "softirq": (times.softirq - last_times.softirq) / seconds,
                "steal": (times.steal - last_times.steal) / seconds,
                **{name: value - last_counters[name] for name, value in counters.items()},
            }
            for name, value in row.items():
                self._series[name].append(value)
            last_times, last_counters, last = times, counters, now

    def _counters(self) -> dict[str, int]:
        """Sums over all hosts; /proc/PID/net of a process in a namespace would need one there, so this enters them."""
        found = dict.fromkeys(("retransmits", "drops", "rx_packets", "rx_bytes"), 0)
        for host in self.hosts:
            with suppress(OSError), host.entered():
                found["retransmits"] += _retransmitted()
                for line in Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]:
                    received_bytes, packets, errors, drops, *rest = map(int, line.partition(":")[2].split())
                    found["rx_bytes"] += received_bytes
                    found["rx_packets"] += packets
                    found["drops"] += errors + drops + rest[6] + rest[7]
        return found


def _retransmitted() -> int:
    names, values = (
        line.split()[1:]
        for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()
        if line.startswith("Tcp:")
    )
    return int(dict(zip(names, values, strict=True))["RetransSegs"])
