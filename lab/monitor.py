"""Watches the machine while something is timed: whose CPU time it was, what was lost, and whether anybody disturbed.

Whose CPU time a packet costs cannot be told from processes alone: the kernel does its receive work (softirq) on the
time of whoever runs just then, the load generator's as often as the server's. So CPU time a request is given twice:
``cpu`` is all time in which the machine's CPUs were not idle, which nothing escapes; ``cpu-client``, ``cpu-router`` and
``cpu-servers`` are what the processes of these hosts were charged, softirq included, which shows where it went roughly.

Processes are told apart by their network namespaces. *Ours* are those in the run's namespaces, this process and its
children; kernel threads work for everybody; whatever else used CPU time is *foreign* and makes a sample noisy. A
process's time is that of all its threads, to the nanosecond (clock_getcpuclockid(3); /proc/PID/stat has 10 ms, which
thirty idle neighbours can pass at once). What has started *and* ended between two looks is in nobody's list: of the
lab's own tools it is in getrusage(2)'s RUSAGE_CHILDREN, of others in their parents' cutime and cstime (proc(5), stat).

A thread looks every 100 ms and keeps the time series. It holds the hosts' files in /proc/net open, which stay those of
the namespace that they were opened in, and reads those of the network in use only (``attend``): a matrix may have a
dozen networks, and to enter all their namespaces ten times a second would take several per cent of a CPU.

Times are seconds of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
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
_READ_BYTES = 1 << 16
"""more than a host's file in /proc/net has"""
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
COUNTERS = ("retransmits", "drops", "rx_packets", "rx_bytes")
"""those of the hosts"""


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
class Foreign:
    """A process that has nothing to do with the run: CPU seconds of its ``own``, and of children it ``waited`` for."""

    parent: int
    own: float
    waited: float = 0.0

    @property
    def total(self) -> float:
        """Both."""
        return self.own + self.waited


@dataclass(frozen=True)
class Processes:
    """CPU seconds of processes: of the run's hosts by role, and each foreign one by pid."""

    hosts: Mapping[str, float]
    foreign: Mapping[int, Foreign]


def foreign_seconds(first: Mapping[int, Foreign], last: Mapping[int, Foreign]) -> float:
    """CPU seconds that foreign processes used between two looks, those included that began or ended meanwhile.

    When a process has ended, its parent's ``waited`` grows by all that it ever used. What it had used before the first
    look is taken off again, from its next of kin who still lives. If nobody waited for it, that may hide some of what
    that one used, which is why each counts at least as nothing.
    """
    grown = {pid: one.total - (first[pid].total if pid in first else 0.0) for pid, one in last.items()}
    for pid in first.keys() - last.keys():
        heir = pid
        while heir in first and heir not in last:
            heir = first[heir].parent
        if heir in grown:
            grown[heir] -= first[pid].total
    return sum(max(0.0, seconds) for seconds in grown.values())


@dataclass(frozen=True)
class _Look:
    """What the thread sees. ``counters``: of each host, by namespace."""

    time: float
    times: Times
    counters: Mapping[str, Mapping[str, int]]

    def since(self, last: _Look) -> dict[str, float | int]:
        """A row of the series, but for its label."""
        seconds = self.time - last.time
        return {
            "time": self.time,
            "busy": (self.times.busy - last.times.busy) / seconds,
            "softirq": (self.times.softirq - last.times.softirq) / seconds,
            "steal": (self.times.steal - last.times.steal) / seconds,
            **{name: self._grown(name, last) for name in COUNTERS},
        }

    def _grown(self, name: str, last: _Look) -> int:
        return sum(now[name] - last.counters[namespace][name] for namespace, now in self.counters.items())


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
        self._times, self._lab, self._start = Times.read(self._monitor.proc), _of_the_lab(), time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds, lab, times = time.monotonic() - self._start, _of_the_lab(), Times.read(self._monitor.proc)
        processes = self._monitor.processes()
        self._monitor.label = ""
        self.usage = _usage(seconds, lab - self._lab, (self._times, times), (self._processes, processes))


def _usage(seconds: float, lab: float, times: tuple[Times, Times], processes: tuple[Processes, Processes]) -> Usage:
    """``lab``: CPU seconds of the lab itself and of tools that have ended: what it starts to be timed is on clients."""
    before, after = times
    total = after.total - before.total
    first, last = processes
    foreign = foreign_seconds(first.foreign, last.foreign)
    hosts = {role: last.hosts[role] - first.hosts[role] for role in last.hosts}
    hosts["client"] += lab
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
    """Watches for as long as it is entered.

    Args:
        hosts: whose processes and interfaces are those of the run.
        fabrics: what connects them, and who attacks them. What runs there, such as a delay line, is no host's and not
            foreign either.
        proc: where proc(5) is mounted.
    """

    hosts: Sequence[Host]
    fabrics: Sequence[Host] = ()
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
        self.attend(self.hosts)
        self._fabrics = {namespaces.inode(fabric.namespace) for fabric in self.fabrics}

    @contextmanager
    def watching(self) -> Iterator[Self]:
        """Keep the time series meanwhile."""
        with ExitStack() as stack:
            files = {host.namespace: _net_files(host, stack) for host in self.hosts}
            arguments = (files, self._look(files, {}))
            thread = threading.Thread(target=self._look_again_and_again, args=arguments, name="monitor", daemon=True)
            thread.start()
            try:
                yield self
            finally:
                self._stop.set()
                thread.join()

    def attend(self, hosts: Iterable[Host]) -> None:
        """Read only these hosts' counters from now on. What others do meanwhile counts when they are read again."""
        self._attended = frozenset(host.namespace for host in hosts)

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
        foreign: dict[int, Foreign] = {}
        for entry in self.proc.glob("[0-9]*"):
            pid = int(entry.name)
            with suppress(OSError, IndexError):  # it has ended
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if pid == os.getpid() or int(fields[6]) & _KTHREAD:
                    continue
                own, namespace = cpu_seconds(pid), (entry / "ns/net").stat().st_ino
                if role := self._roles.get(namespace):
                    hosts[role] += own
                elif namespace not in self._fabrics and (parent := int(fields[1])) != os.getpid():
                    foreign[pid] = Foreign(parent, own, waited=(int(fields[13]) + int(fields[14])) / TICKS)
        return Processes(hosts, foreign)

    def _look(self, files: _Files, known: Mapping[str, Mapping[str, int]]) -> _Look:
        """``known``: the last counters of all hosts, where there are some."""
        read = self._attended if known else files.keys()
        counters = {**known, **{namespace: _counters(*files[namespace]) for namespace in read}}
        return _Look(time.monotonic(), Times.read(self.proc), counters)

    def _look_again_and_again(self, files: _Files, last: _Look) -> None:
        due = last.time + INTERVAL
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            look = self._look(files, last.counters)
            for name, value in {"label": self.label, **look.since(last)}.items():
                self._series[name].append(value)
            last, due = look, max(due + INTERVAL, look.time)  # after a delay go on from there, without a burst


def cpu_seconds(pid: int) -> float:
    """CPU time of all of a process's threads. OSError if there is no such process."""
    return time.clock_gettime(~pid << 3 | 2)  # as clock_getcpuclockid(3) makes it (CPUCLOCK_SCHED)


def _of_the_lab() -> float:
    """CPU seconds of this process and of children that it has waited for, with theirs."""
    both = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


_Files = Mapping[str, tuple[int, int]]
"""descriptors of net/dev and net/snmp of each host, by namespace"""


def _net_files(host: Host, stack: ExitStack) -> tuple[int, int]:
    """A host's net/dev and net/snmp, to be read again and again from anywhere; closed with the stack."""

    def opened(name: str) -> int:
        # /proc/net would be that of the process's first thread, wherever this one is.
        descriptor = os.open(f"/proc/thread-self/net/{name}", os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        return descriptor

    with host.entered():
        return opened("dev"), opened("snmp")


def _counters(dev: int, snmp: int) -> dict[str, int]:
    """Of one host, by the names of COUNTERS."""
    found = dict.fromkeys(COUNTERS, 0)
    found["retransmits"] = _retransmitted(os.pread(snmp, _READ_BYTES, 0).decode())
    for line in os.pread(dev, _READ_BYTES, 0).decode().splitlines()[2:]:
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            continue  # what a host says to itself crosses no link
        received_bytes, packets, errors, drops, *rest = map(int, numbers.split())
        found["rx_bytes"] += received_bytes
        found["rx_packets"] += packets
        found["drops"] += errors + drops + rest[6] + rest[7]
    return found


def _retransmitted(snmp: str) -> int:
    names, values = (line.split(" ") for line in snmp.split("\n") if line.startswith("Tcp:"))
    return int(values[names.index("RetransSegs")])
