"""The monitor tells whose CPU time it was: real programs that really use it, beside whatever else this machine does.

Others may be busy here, too, so what must be seen is compared with the CPU time that the programs themselves say they
used, which is a lower bound; and what must not be seen is looked for by pid.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.monitor import SERIES, Foreign, Monitor, Times, Usage, foreign_seconds
from lab.process import wait_until
from lab.samples import CPU_QUANTITIES

SECONDS = 0.5
TOLERANCE = 0.02
"""seconds of CPU time: two ticks, in which the kernel tells that of children"""
BURN = "import time\nwhile time.process_time() < {seconds}: pass\n"
FOR_EVER = "print('on', flush=True)\nwhile True: pass"
ON_COMMAND = "input()\nwhile True: pass"
IN_A_THREAD = f"import threading\nthreading.Thread(target=exec, args=[{FOR_EVER!r}], daemon=True).start()\ninput()"
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, '-S', '-c', {FOR_EVER!r}], stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
child.wait()
print('ended', flush=True)
input()
"""
MANY = f"""
import subprocess, sys
print('on', flush=True)
while True: subprocess.run([sys.executable, '-S', '-c', {BURN.format(seconds=0.05)!r}])
"""


def cpu_seconds(pid: int) -> float:
    """Of all threads of a process so far, to the nanosecond."""
    return time.clock_gettime(~pid << 3 | 2)


@dataclass
class Program:
    """A Python program that nobody of the lab has started: its parent is a shell that waits for it."""

    shell: subprocess.Popen[str]

    @classmethod
    def start(cls, code: str) -> Program:
        words = [sys.executable, "-S", "-c", code]
        argv = ["sh", "-c", 'exec 3<&0; "$@" <&3 & echo $!; wait', "sh", *words]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        return cls(subprocess.Popen(argv, text=True, start_new_session=True, **pipes))  # a group to be ended

    def __post_init__(self) -> None:
        self.pid = int(self.said())

    def said(self) -> str:
        assert self.shell.stdout is not None
        return self.shell.stdout.readline()

    def tell(self) -> None:
        assert self.shell.stdin is not None
        self.shell.stdin.write("\n")
        self.shell.stdin.flush()

    def end(self) -> None:
        os.killpg(self.shell.pid, signal.SIGKILL)
        self.shell.communicate()


@pytest.fixture
def program() -> Iterator[Callable[[str], Program]]:
    """Starts programs, and ends them after the test."""
    started: list[Program] = []

    def one(code: str) -> Program:
        started.append(Program.start(code))
        return started[-1]

    yield one
    for each in started:
        each.end()


def stat(pid: int) -> list[str]:
    """Its fields from the third on (proc(5))."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def waited_for(pid: int) -> float:
    """CPU seconds of the children that a process has waited for, user time only."""
    return int(stat(pid)[13]) / os.sysconf("SC_CLK_TCK")


def until_used(pid: int, seconds: float) -> None:
    """Wait until a process has used so much CPU time."""
    wait_until(lambda: cpu_seconds(pid) >= seconds, seconds=60, what=f"process {pid} to use {seconds} s of CPU time")


# ---- whose CPU time ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """What the monitor saw of some processes, whoever else is busy here."""

    monitor: Monitor
    pids: frozenset[int]
    foreign: Mapping[int, Foreign]

    @classmethod
    def at(cls, *pids: int) -> Look:
        monitor = Monitor([])
        return cls(monitor, frozenset(pids), monitor.processes().foreign)

    def since(self, *new: int) -> float:
        """The seconds that they have used since, and those that are new."""
        pids, last = {*self.pids, *new}, self.monitor.processes().foreign
        first = {pid: one for pid, one in self.foreign.items() if pid in pids}
        return foreign_seconds(first, {pid: one for pid, one in last.items() if pid in pids})


def test_a_watch_sees_a_hog(program: Callable[[str], Program]) -> None:
    hog = program(FOR_EVER)
    assert hog.said() == "on\n"
    with Monitor([]).watch() as watch:
        before = cpu_seconds(hog.pid)
        until_used(hog.pid, before + SECONDS)
        used = cpu_seconds(hog.pid) - before
    assert watch.usage.foreign * watch.usage.seconds >= used - TOLERANCE
    assert watch.usage.busy >= used - 2 * TOLERANCE
    assert any("other programs used" in flag for flag in watch.usage.flags(Limits(0.02, 0.05)))


@pytest.mark.parametrize("code", [FOR_EVER, IN_A_THREAD], ids=["process", "thread"])
def test_a_hog_throughout_is_foreign(program: Callable[[str], Program], code: str) -> None:
    hog = program(code)
    assert hog.said() == "on\n"
    look, before = Look.at(hog.pid), cpu_seconds(hog.pid)
    until_used(hog.pid, before + SECONDS)
    used = cpu_seconds(hog.pid) - before
    assert used - TOLERANCE <= look.since() < 2 * used


def test_a_hog_that_begins_in_the_middle_is_foreign(program: Callable[[str], Program]) -> None:
    hog = program(ON_COMMAND)
    look = Look.at(hog.pid)
    hog.tell()
    until_used(hog.pid, SECONDS)
    assert look.since() >= SECONDS - TOLERANCE


def test_a_hog_that_is_started_in_the_middle_is_foreign(program: Callable[[str], Program]) -> None:
    look, hog = Look.at(), program(FOR_EVER)
    until_used(hog.pid, SECONDS)
    assert look.since(hog.pid) >= SECONDS


def test_a_hog_that_ends_in_the_middle_is_foreign_and_its_past_is_not(program: Callable[[str], Program]) -> None:
    parent = program(PARENT)
    hog = int(parent.said())
    until_used(hog, 2 * SECONDS)
    look, before = Look.at(parent.pid, hog), cpu_seconds(hog)
    until_used(hog, before + SECONDS)
    os.kill(hog, signal.SIGKILL)
    assert parent.said() == "ended\n"
    assert SECONDS - TOLERANCE <= look.since() < 2 * SECONDS


def test_many_that_each_last_but_a_moment_are_foreign(program: Callable[[str], Program]) -> None:
    """As of a compiler: most of them begin and end between two looks."""
    make = program(MANY)
    assert make.said() == "on\n"
    look, before = Look.at(make.pid), waited_for(make.pid)
    wait_until(lambda: waited_for(make.pid) >= before + SECONDS, seconds=60, what=f"children to use {SECONDS} s")
    assert look.since() >= SECONDS - TOLERANCE


def test_milliseconds_are_told(program: Callable[[str], Program]) -> None:
    """/proc/PID/stat has ticks of ten; those of thirty idle neighbours would be a third of a CPU."""
    one = program(f"input()\n{BURN.format(seconds=0.033)}\nprint('done', flush=True)\ninput()")
    wait_until(lambda: stat(one.pid)[0] == "S", seconds=20, what="it to wait for input")
    look, before = Look.at(one.pid), cpu_seconds(one.pid)
    one.tell()
    assert one.said() == "done\n"
    wait_until(lambda: stat(one.pid)[0] == "S", seconds=20, what="it to wait for input")
    assert look.since() == pytest.approx(cpu_seconds(one.pid) - before, abs=1e-4)


def test_the_labs_own_work_and_kernel_threads_are_not_foreign() -> None:
    ours = subprocess.Popen([sys.executable, "-S", "-c", FOR_EVER], stdout=subprocess.PIPE)
    try:
        foreign = Monitor([]).processes().foreign
    finally:
        ours.kill()
        ours.communicate()
    assert ours.pid not in foreign
    assert os.getpid() not in foreign
    assert 2 not in foreign, "kthreadd, the parent of ksoftirqd and kworkers"
    assert all(one.parent != 2 for one in foreign.values())


@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.3])
def test_a_child_that_is_short_lived_is_counted_within_10_ms(seconds: float) -> None:
    """A load generator starts and ends within one watch."""
    code = f"{BURN.format(seconds=seconds)}\nprint(time.process_time())"
    with Monitor([]).watch() as watch:
        before = time.process_time()
        done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
        own = time.process_time() - before
    startup = 0.01  # of CPU time after it has said how much it has used: the interpreter's end
    assert float(done.stdout) - 0.001 <= watch.usage.hosts["client"] - own <= float(done.stdout) + 0.01 + startup


# ---- accounts of foreign processes --------------------------------------------------------------------------


def test_what_an_ended_process_had_used_before_is_taken_off_its_parent() -> None:
    first = {10: Foreign(1, own=1.0), 11: Foreign(10, own=100.0)}
    last = {10: Foreign(1, own=1.5, waited=100.25)}
    assert foreign_seconds(first, last) == pytest.approx(0.75)


def test_a_whole_family_that_has_ended_is_taken_off_its_next_of_kin() -> None:
    first = {10: Foreign(1, own=0.0), 11: Foreign(10, own=5.0), 12: Foreign(11, own=7.0, waited=1.0)}
    last = {10: Foreign(1, own=0.0, waited=13.5)}
    assert foreign_seconds(first, last) == pytest.approx(0.5)


def test_one_for_whom_nobody_waited_hides_nobody_elses_work() -> None:
    first = {10: Foreign(1, own=1.0), 11: Foreign(10, own=100.0), 12: Foreign(1, own=2.0)}
    last = {10: Foreign(1, own=1.0), 12: Foreign(1, own=2.5)}
    assert foreign_seconds(first, last) == pytest.approx(0.5)


used = st.floats(0, 100)


@given(st.dictionaries(st.integers(2, 20), st.tuples(used, used)))
def test_who_lives_throughout_counts_with_what_he_used(processes: dict[int, tuple[float, float]]) -> None:
    first = {pid: Foreign(1, own=before) for pid, (before, _) in processes.items()}
    last = {pid: Foreign(1, own=before + more) for pid, (before, more) in processes.items()}
    assert foreign_seconds(first, last) == pytest.approx(sum(more for _, more in processes.values()))


# ---- the machine's time ---------------------------------------------------------------------------------------


def write_stat(folder: Path, **more: int) -> None:
    """/proc/stat with so many more ticks than the running machine's, by field."""
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    first, rest = Path("/proc/stat").read_text().split("\n", 1)
    label, *values = first.split()
    ticks = {name: 1000 + more.get(name, 0) for name in names}
    words = [label, *(str(ticks[name]) for name in names), *values[len(names) :]]
    (folder / "stat").write_text(" ".join(words) + "\n" + rest)


def watched(folder: Path, **more: int) -> Usage:
    write_stat(folder)
    with Monitor([], proc=folder).watch() as watch:
        write_stat(folder, **more)
    return watch.usage


def test_steal_is_a_share_of_all_cpu_time(tmp_path: Path) -> None:
    usage = watched(tmp_path, user=50, idle=120, iowait=20, steal=10)
    assert usage.steal == pytest.approx(0.05)
    assert usage.busy == pytest.approx(0.5)


def test_softirq_is_part_of_what_is_busy_and_waiting_is_not(tmp_path: Path) -> None:
    usage = watched(tmp_path, user=10, nice=10, system=10, irq=10, softirq=30, idle=100, iowait=500)
    assert (usage.busy, usage.softirq) == (pytest.approx(0.7), pytest.approx(0.3))


def test_time_goes_on() -> None:
    """The real file's fields are the ones that are meant: wall-clock time times CPUs, within the ticks of each."""
    started, first = time.monotonic(), Times.read()
    wait_until(lambda: time.monotonic() - started > SECONDS, seconds=10, what="half a second to pass")
    last, seconds = Times.read(), time.monotonic() - started
    assert last.total - first.total == pytest.approx(seconds * (os.cpu_count() or 1), rel=0.15)


@dataclass(frozen=True)
class Limits:
    steal: float | None
    foreign_cpu: float | None


def usage(steal: float = 0.0, foreign: float = 0.0) -> Usage:
    return Usage(1.0, steal, foreign, busy=1.5, softirq=0.5, hosts={"client": 0.2, "router": 0.0, "servers": 0.8})


def test_what_disturbed_is_said_in_words() -> None:
    limits = Limits(steal=0.02, foreign_cpu=0.05)
    assert usage(0.031, 0.45).flags(limits) == (
        "the hypervisor took 3.1% of the CPU time (limit 2%)",
        "other programs used 45% of a CPU (limit 5%)",
    )
    assert usage(0.019, 0.049).flags(limits) == ()
    assert usage(steal=0.02).flags(limits) != (), "a limit itself is too much"
    assert usage(foreign=0.05).flags(limits) != ()
    assert usage(1.0, 2.0).flags(Limits(None, None)) == ()


def test_cpu_time_a_request_is_in_microseconds() -> None:
    found = usage().per_request(1000)
    assert found.keys() == CPU_QUANTITIES.keys()
    assert found == pytest.approx({"cpu": 1500, "cpu-client": 200, "cpu-router": 0, "cpu-servers": 800})


# ---- the time series --------------------------------------------------------------------------------------------


def test_the_series_has_a_row_every_100_ms_with_what_was_timed() -> None:
    monitor = Monitor([])
    with monitor.watching():
        with monitor.watch("direct rps"):
            wait_until(lambda: len(monitor.series()["time"]) >= 10, seconds=20, what="ten looks")
        labelled = len(monitor.series()["time"])
        wait_until(lambda: len(monitor.series()["time"]) >= labelled + 3, seconds=20, what="three more looks")
    series = monitor.series()
    assert series.keys() == SERIES.keys()
    assert {len(values) for values in series.values()} == {len(series["time"])}
    gaps = sorted(after - before for before, after in zip(series["time"], series["time"][1:], strict=False))
    assert gaps[len(gaps) // 2] == pytest.approx(0.1, rel=0.1)
    assert set(series["label"][:10]) == {"direct rps"}
    assert series["label"][-1] == ""
    assert all(0 <= busy <= 2 * (os.cpu_count() or 1) for busy in series["busy"])


def test_its_thread_ends_with_it() -> None:
    with Monitor([]).watching():
        assert "monitor" in {thread.name for thread in threading.enumerate()}
    assert "monitor" not in {thread.name for thread in threading.enumerate()}
