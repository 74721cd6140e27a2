"""A run leaves the machine as it found it, however and whenever it ends; and runs do not get in each other's way.

The runs are real ones, as processes, ended by real signals at moments that they announce themselves: by their entry in
/run/rauta-lab, by their namespaces, and by the stages that they name on standard error.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from lab import namespaces, state
from lab.environment import REPOSITORY
from lab.process import wait_until
from lab.state import ROOT, Run

LONG = ["--contender", "direct", "--set", "plan.rounds=1000"]
MATRIX = [
    *("--set", "params={routes: [2, 3]}", "--set", "routing.routes=${routes}"),
    *("--set", "background=[{idle: 20, cluster: api, path: /api/x}]"),
    *("--set", "measure.keepalive.duration=300ms", "--set", "plan.rounds=1000", "--only", "keepalive"),
]
"""two networks, each with a contender that loads programs, and connections that stay open"""
HOSTS = 6
"""of one network, the fabric among them"""
RANDOM_SECONDS = 12.0
"""in which a run of MATRIX has built its networks, checked, and begun to measure"""
END_SECONDS = 20.0
MOMENT_SECONDS = 30.0

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")


def lab(*words: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "lab", *words]
    return subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False, env=env)


class Watched:
    """A run in the background, and what it has on this machine."""

    def __init__(self, folder: Path, *words: str) -> None:
        self._errors = folder / "stderr"
        with (folder / "stdout").open("w") as out, self._errors.open("w") as err:
            argv = [sys.executable, "-m", "lab", "run", "quickstart", *words]
            self.process = subprocess.Popen(argv, cwd=REPOSITORY, stdout=out, stderr=err)

    @property
    def run(self) -> Run | None:
        """Its entry; other runs may be there too."""
        mine = [run for run in state.runs() if (owner := run.owner()) is not None and owner.pid == self.process.pid]
        return mine[0] if mine else None

    def errors(self) -> str:
        return self._errors.read_text()

    def said(self, words: str) -> bool:
        return words in self.errors()

    def wait_for(self, moment: str) -> Run:
        """Let it run until a moment; its entry."""
        reached: dict[str, Callable[[], bool]] = {
            "entry": lambda: self.run is not None,
            "namespaces": lambda: self.run is not None and len(self.run.namespaces()) > 2,
            "servers": lambda: self.said("servers"),
            "checks": lambda: self.said("checks"),
            "rounds": lambda: self.said("rounds"),
            "second network": lambda: self.run is not None and len(self.run.namespaces()) > HOSTS + 2,
            "background": lambda: self.run is not None and any(map(is_holder, processes_of(self.run))),
        }
        wait_until(
            lambda: self.process.poll() is not None or reached[moment](),
            seconds=MOMENT_SECONDS,
            what=f"the moment {moment}",
        )
        assert self.process.poll() is None, self.errors()
        run = self.run
        assert run is not None
        return run

    def ended(self) -> int:
        return self.process.wait(END_SECONDS)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Watched]]:
    """Starts runs, and makes sure that none survives the test, whatever fails."""
    started: list[Watched] = []

    def one(*words: str) -> Watched:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(Watched(folder, *words))
        return started[-1]

    yield one
    for watched in started:
        watched.process.kill()
        watched.process.wait()
    state.clean()


def processes_of(run: Run) -> dict[int, int | None]:
    """The processes in a run's namespaces, with start times: neither pids nor inodes of dead namespaces stay unused."""
    inodes = {namespaces.inode(name) for name in run.namespaces()}
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (entry / "ns/net").stat().st_ino in inodes:
                found[int(entry.name)] = state.start_time(int(entry.name))
    return found


def is_holder(pid: int) -> bool:
    """Whether it is the program that holds a scenario's background connections."""
    with suppress(OSError):
        return b"holder.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def assert_nothing_left(run: Run, processes: Mapping[int, int | None]) -> None:
    assert run.namespaces() == []
    assert not run.folder.exists()
    assert [pid for pid, started in processes.items() if started and state.start_time(pid) == started] == []


def programs() -> set[int]:
    """Ids of all BPF programs on this machine."""
    listed = subprocess.run(["bpftool", "--json", "prog"], capture_output=True, check=True, timeout=30).stdout
    return {program["id"] for program in json.loads(listed)}


# ---- ends of all kinds --------------------------------------------------------------------------------


def test_a_successful_run_leaves_nothing_but_its_results() -> None:
    before = programs()
    done = lab("run", "quickstart", "--profile", "smoke", "--contender", "direct", "--json")
    assert done.returncode == 0, done.stderr
    kept = json.loads(done.stdout)
    assert (REPOSITORY / "results" / kept["id"] / "run.json").is_file()
    run = Run(kept["id"].rpartition("-")[2])
    assert run.namespaces() == []
    assert not run.folder.exists()
    wait_until(lambda: programs() <= before, seconds=END_SECONDS, what="the kernel to free the run's BPF programs")


@pytest.mark.parametrize(
    ("moment", "signum"),
    [
        ("entry", signal.SIGINT),
        ("namespaces", signal.SIGTERM),
        ("servers", signal.SIGHUP),
        ("checks", signal.SIGINT),
        ("rounds", signal.SIGTERM),
    ],
)
def test_an_interrupted_run_is_undone(start: Callable[..., Watched], moment: str, signum: signal.Signals) -> None:
    watched = start(*LONG)
    run = watched.wait_for(moment)
    processes = processes_of(run)
    watched.process.send_signal(signum)
    assert watched.ended() == 130
    assert_nothing_left(run, processes)


@pytest.mark.parametrize("moment", ["second network", "background"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_so_is_one_with_two_networks_and_background_load(
    start: Callable[..., Watched], moment: str, signum: signal.Signals
) -> None:
    watched = start(*MATRIX)
    run = watched.wait_for(moment)
    processes = processes_of(run)
    watched.process.send_signal(signum)
    assert watched.ended() == 130
    assert_nothing_left(run, processes)


@pytest.mark.parametrize("share", range(5))
def test_at_any_moment(start: Callable[..., Watched], share: int) -> None:
    """Moments that nobody has thought of: in every fifth of the time that it takes to get to the rounds, and on."""
    moment = RANDOM_SECONDS * (share + random.random()) / 5
    watched = start(*MATRIX)
    run = watched.wait_for("entry")
    begun = time.monotonic()
    wait_until(lambda: time.monotonic() > begun + moment, seconds=MOMENT_SECONDS, what="the moment")
    processes = processes_of(run)
    watched.process.send_signal(signal.SIGINT)
    assert watched.ended() == 130, f"interrupted after {moment:.6f} s: {watched.errors()}"
    assert_nothing_left(run, processes)


def test_an_impatient_user_cannot_cut_the_undoing_short(start: Callable[..., Watched]) -> None:
    watched = start(*LONG)
    run = watched.wait_for("checks")
    processes = processes_of(run)
    while watched.process.poll() is None and run.folder.exists():
        watched.process.send_signal(signal.SIGINT)
    assert watched.ended() == 130
    assert_nothing_left(run, processes)


def test_a_run_that_fails_half_way_is_undone(tmp_path: Path) -> None:
    broken = tmp_path / "nginx"
    broken.write_text("#!/bin/sh\nexit 7\n")
    broken.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = lab("run", "quickstart", "--profile", "smoke", "--contender", "direct", "--json", env=environment)
    assert done.returncode == 2
    kept = json.loads(done.stdout)
    assert (kept["outcome"], kept["checks"]) == ("error", [])
    assert "nginx" in kept["error"]
    run = Run(kept["id"].rpartition("-")[2])
    assert run.namespaces() == []
    assert not run.folder.exists()


@pytest.mark.parametrize("moment", ["entry", "namespaces", "checks", "rounds"])
def test_clean_removes_what_a_killed_run_left(start: Callable[..., Watched], moment: str) -> None:
    watched = start(*LONG)
    run = watched.wait_for(moment)
    watched.process.kill()
    watched.ended()
    processes = processes_of(run)
    assert run.folder.exists(), "SIGKILL leaves something to clean"
    done = lab("clean")
    assert done.returncode == 0, done.stderr
    assert run.name in done.stdout
    assert_nothing_left(run, processes)


# ---- several at once ----------------------------------------------------------------------------------


def test_clean_does_not_touch_a_living_run(start: Callable[..., Watched]) -> None:
    living, killed = start(*LONG), start(*LONG)
    kept, left = living.wait_for("checks"), killed.wait_for("checks")
    killed.process.kill()
    killed.ended()
    before = set(kept.namespaces())
    done = lab("clean")
    assert left.name in done.stdout
    assert kept.name not in done.stdout
    assert before <= set(kept.namespaces())
    assert living.process.poll() is None


def test_two_networks_coexist_and_go_one_by_one() -> None:
    names = []
    try:
        for _ in range(2):
            done = lab("up", "quickstart", "--contender", "direct")
            assert done.returncode == 0, done.stderr
            names.append(done.stdout.split()[0])
        first, second = map(Run, names)
        assert set(first.hosts()) == set(second.hosts()) == {"fabric", "client", "router", "web-1", "web-2", "api-1"}
        ambiguous = lab("shell", "client", "--", "true")
        assert (ambiguous.returncode, first.name in ambiguous.stderr) == (2, True)
        for name in names:
            answer = lab("shell", "--run", name, "client", "--", "curl", "-sS", "-i", "http://198.18.0.11:8080/")
            assert "200" in answer.stdout, answer.stderr
        assert lab("down", first.name).returncode == 0
        assert first.namespaces() == []
        assert second.namespaces() != []
        answer = lab("shell", "client", "--", "curl", "-sS", "-i", "http://198.18.0.11:8080/")
        assert "200" in answer.stdout, answer.stderr
    finally:
        for name in names:
            lab("down", name)
    assert second.namespaces() == []
    assert not second.folder.exists()


def test_a_mistake_creates_nothing(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("version: 1\nclaim: nothing\n")
    before = set(ROOT.glob("*"))
    done = lab("run", str(tmp_path / "bad.yaml"))
    assert done.returncode == 2
    assert "bad.yaml:1: topology: is missing" in done.stderr
    assert set(ROOT.glob("*")) <= before
