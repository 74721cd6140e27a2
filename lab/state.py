"""What runs have created on this machine, so that nothing is left behind however a run ends.

Every run has a folder ``/run/rauta-lab/RUN/`` from before its first namespace until after its last:

    owner.json   pid and start time of the process that undoes the run; scenario; whether its network is there to stay
    scratch/     configuration and document roots of its servers

Namespaces carry the run's name, processes are found by the namespace they live in, so the folder's existence is all the
bookkeeping there is. ``Run.sweep`` removes whatever is there and may be called at any time, any number of times: at
the end of a run after its orderly undo, and by ``clean`` for runs whose owner no longer exists. A run whose owner
lives is never touched.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lab import namespaces
from lab.process import wait_until
from rauta.processes.instance import instances

ROOT = Path("/run/rauta-lab")
VANISH_SECONDS = 5.0


@dataclass(frozen=True)
class Owner:
    """Who undoes a run. ``started``: the process's start time, clock ticks since boot (proc(5), stat field 22)."""

    pid: int
    started: int
    scenario: str
    created: float
    """seconds since the epoch"""
    held: bool = False
    """whether its network is up, and stays so until somebody ends it"""

    @property
    def lives(self) -> bool:
        """Whether that very process is still there."""
        return start_time(self.pid) == self.started


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when there is no such process, or only its zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


@dataclass(frozen=True)
class Run:
    """One run's mark on the machine."""

    name: str

    @property
    def folder(self) -> Path:
        """The run's entry; there as long as anything of the run is."""
        return ROOT / self.name

    @property
    def scratch(self) -> Path:
        """For files that nobody needs afterwards."""
        return self.folder / "scratch"

    @property
    def prefix(self) -> str:
        """How the names of its namespaces start."""
        return f"rauta-{self.name}-"

    def owner(self) -> Owner | None:
        """None when the run is over."""
        try:
            return Owner(**json.loads((self.folder / "owner.json").read_text()))
        except FileNotFoundError:
            return None

    def namespaces(self) -> list[str]:
        """Those that exist, by their full names."""
        return sorted(path.name for path in namespaces.FOLDER.glob(f"{self.prefix}*"))

    def hosts(self) -> list[str]:
        """Names of its hosts, the fabric among them."""
        return [name.removeprefix(self.prefix) for name in self.namespaces()]

    def mark_held(self) -> None:
        """Its network is up, and stays."""
        owner = self.owner()
        assert owner is not None
        _write_owner(self.folder, replace(owner, held=True))

    def sweep(self) -> None:
        """Remove all that is left of the run: processes in its namespaces, the namespaces, its folder."""
        for name in self.namespaces():
            remove_with_inhabitants(name)
        for instance in instances():
            if instance.name.startswith(f"{self.name}-"):
                instance.remove()
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):
            ROOT.rmdir()  # the last one puts out the light


def new_name() -> str:
    """A run's short name, used in the names of namespaces: two runs at the same time never collide."""
    return secrets.token_hex(3)


def create(scenario: str, name: str | None = None) -> Run:
    """Register a run that the calling process will undo.

    The folder appears with its owner in it, in one step: whoever lists runs never sees one without.
    """
    run = Run(name or new_name())
    started = start_time(os.getpid())
    assert started is not None
    ROOT.mkdir(mode=0o755, parents=True, exist_ok=True)
    draft = ROOT / f".{os.getpid()}-{started}-{run.name}"
    (draft / "scratch").mkdir(parents=True)
    _write_owner(draft, Owner(os.getpid(), started, scenario, time.time()))
    draft.rename(run.folder)
    return run


def _write_owner(folder: Path, owner: Owner) -> None:
    draft = folder / "owner.json.new"
    draft.write_text(json.dumps(asdict(owner)))
    draft.rename(folder / "owner.json")


def runs() -> list[Run]:
    """All runs that have something on this machine, oldest first."""
    found = [Run(path.name) for path in ROOT.glob("[!.]*") if path.is_dir()]
    return sorted((run for run in found if run.owner()), key=lambda run: _created(run))


def _created(run: Run) -> float:
    owner = run.owner()
    return owner.created if owner else 0.0


def clean() -> list[str]:
    """Remove what dead runs left.

    Returns:
        names of the runs whose remains were removed.
    """
    removed = []
    for run in runs():
        owner = run.owner()
        if owner is not None and not owner.lives:
            run.sweep()
            removed.append(run.name)
    for draft in ROOT.glob(".*-*-*"):
        pid, started, _ = draft.name[1:].split("-")
        if start_time(int(pid)) != int(started):
            shutil.rmtree(draft, ignore_errors=True)
    with suppress(OSError):
        ROOT.rmdir()
    return removed


def remove_with_inhabitants(name: str) -> None:
    """Remove a namespace, and first who lives there: without its name nobody would find them any more.

    That may be a program that was started, but not yet noted, when a signal came.
    """
    end_processes_in([name])
    namespaces.remove(name)


def end_processes_in(names: list[str]) -> None:
    """SIGKILL every process that lives in one of these namespaces, and wait until they are gone.

    Raises:
        NotReady: one of them outlives SIGKILL (it hangs in the kernel).
    """
    inodes = {inode for name in names if (inode := namespaces.inode(name)) is not None}

    def none_left() -> bool:
        living = list(_processes_in(inodes))
        for pid in living:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not living

    wait_until(none_left, seconds=VANISH_SECONDS, what=f"the processes in {', '.join(names)} to end")


def _processes_in(inodes: set[int]) -> Iterator[int]:
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if (entry / "ns/net").stat().st_ino in inodes and int(entry.name) != os.getpid():
                yield int(entry.name)


@contextmanager
def creating_namespaces() -> Iterator[None]:
    """One run at a time: the first one on a machine also makes /run/netns a shared mount, in several steps."""
    lock = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
