"""Programs that the lab starts: what they say is kept, and none outlives its order to end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab.errors import CommandError, NotReady
from lab.process import Process, run, wait_until

STUBBORN = "trap '' TERM; echo started; while :; do sleep 0.05; done"


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_both_streams_and_the_return_code_are_kept(tmp_path: Path) -> None:
    log = tmp_path / "commands.jsonl"
    done = run(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout=5, check=False, log=log)
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 3)
    entry = json.loads(log.read_text())
    assert (entry["argv"][0], entry["returncode"], entry["stdout"]) == ("sh", 3, "out\n")


def test_bytes_that_are_no_text_survive() -> None:
    every = bytes(range(256))
    assert run(["cat"], timeout=5, input=every).raw == every


def test_a_failure_says_what_was_run_and_what_it_said() -> None:
    with pytest.raises(CommandError, match=r"sh -c .* ended with 4: no disk"):
        run(["sh", "-c", "echo no disk >&2; exit 4"], timeout=5)


def test_a_program_that_is_not_there_is_an_error() -> None:
    with pytest.raises(CommandError, match="no-such-program"):
        run(["no-such-program"], timeout=5)


def test_a_program_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    started = time.monotonic()
    with pytest.raises(CommandError, match=r"did not finish within 0\.3 s"):
        run(["sh", "-c", f"({STUBBORN}) & echo $$ $! > {pids}; wait"], timeout=0.3)
    assert time.monotonic() - started < 5
    for pid in pids.read_text().split():
        wait_until(lambda pid=pid: not is_alive(int(pid)), seconds=5, what="the program or its child to end")


@pytest.mark.parametrize("cpus", [[0], sorted(os.sched_getaffinity(0))])
def test_programs_run_on_the_cpus_that_they_are_given(cpus: list[int]) -> None:
    code = "import os; print(sorted(os.sched_getaffinity(0)))"
    assert run([sys.executable, "-c", code], timeout=5, cpus=cpus).stdout == f"{cpus}\n"


def test_stopping_ends_what_ignores_the_polite_signal(tmp_path: Path) -> None:
    process = Process(["sh", "-c", STUBBORN], name="stubborn", log=tmp_path / "log")
    process.wait_ready(lambda: "started" in process.output())
    process.stop(seconds=0.1)
    assert not is_alive(process.pid)
    process.stop()  # harmless


def test_stopping_ends_workers_that_outlive_their_leader(tmp_path: Path) -> None:
    process = Process(["sh", "-c", f"({STUBBORN}) & echo worker $!; wait"], name="leader", log=tmp_path / "log")
    process.wait_ready(
        lambda: "started" in process.output() and re.search(r"worker \d+\n", process.output()) is not None
    )
    worker = int(process.output().split("worker ")[1].split()[0])
    process.stop(seconds=0.1)
    wait_until(lambda: not is_alive(worker), seconds=5, what="the worker to end")


def test_a_program_that_ends_instead_of_becoming_ready_is_quoted(tmp_path: Path) -> None:
    process = Process(["sh", "-c", "echo address in use; exit 1"], name="server", log=tmp_path / "log")
    with pytest.raises(CommandError, match=r"server ended with 1 before it was ready; it said: .*address in use"):
        process.wait_ready(lambda: False)


def test_a_condition_that_never_holds_is_named() -> None:
    with pytest.raises(NotReady, match=r"waited 0\.02 s for the moon"):
        wait_until(lambda: False, seconds=0.02, what="the moon")


def test_programs_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from lab.process import Process
child = Process(["sh", "-c", "echo started; exec sleep 60"], name="sleep", log=Path({str(tmp_path / "log")!r}))
child.wait_ready(lambda: "started" in child.output())
print(child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert killed.returncode == -9
    wait_until(lambda: not is_alive(int(killed.stdout)), seconds=5, what="the orphan to end")
