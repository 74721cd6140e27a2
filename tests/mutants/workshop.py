"""A copy of what the packet tests need, with one mistake in it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mutants.catalogue import ROOT, Mutant

COPIED = ("bpf", "rauta", "scripts", "tests/packets", "Makefile", "conftest.py", "pyproject.toml")
OBJECTS = tuple(f"rauta/objects/{source.stem}.o" for source in sorted((ROOT / "bpf").glob("*.bpf.c")))
SECONDS = 600  # for all packet tests; a mistake that makes them longer is noticed, too
KILLED, SURVIVED, REJECTED = "killed", "survived", "rejected"


@dataclass(frozen=True)
class Fate:
    """What became of a mutant: KILLED by a test, SURVIVED, or REJECTED by the compiler or the verifier."""

    kind: str
    by: str = ""


@contextmanager
def copied(root: Path = ROOT) -> Iterator[Path]:
    """A copy of a tree's relevant part, with its objects as new as there, so that make compiles only what changes."""
    with tempfile.TemporaryDirectory(prefix="rauta-mutant-") as name:
        folder = Path(name)
        for path in COPIED:
            if (root / path).is_dir():
                shutil.copytree(root / path, folder / path, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(root / path, folder / path)
        yield folder


def fate(mutant: Mutant | None, tests: tuple[str, ...] = ("",), root: Path = ROOT) -> Fate:
    """Tries a mutant, or nothing, with the packet tests that should notice first, then with `tests`: all of them."""
    with copied(root) as folder:
        first: list[str] = []
        if mutant is not None:
            file = folder / "bpf" / mutant.file
            file.write_text(mutant.applied_to(file.read_text()))
            first = mutant.first.split()
        if not _compiles(folder):
            return Fate(REJECTED, "the compiler")
        came = Fate(SURVIVED)
        for names in (first, list(tests)):
            if names and came.kind == SURVIVED:
                came = _tested(folder, [f"tests/packets/{name}" for name in names])
        return came


def _compiles(folder: Path) -> bool:
    """Warnings do not count: a mistake may well leave something unused."""
    argv = ["make", "--silent", "clang=clang-19 -w", *OBJECTS]
    return subprocess.run(argv, cwd=folder, capture_output=True, check=False, timeout=SECONDS).returncode == 0


def _tested(folder: Path, tests: list[str]) -> Fate:
    """A test that fails must fail again by itself: on a busy machine one may miss its time, and would kill anything."""
    passed_over: list[str] = []
    while True:
        done = _run(folder, *tests, *(f"--deselect={test}" for test in passed_over))
        if done is None:
            return Fate(KILLED, "the time it takes")
        if done.returncode == 0:
            return Fate(SURVIVED)
        if "LoadError" in done.stdout:
            return Fate(REJECTED, "the verifier")
        failed = re.search(r"^(?:FAILED|ERROR) (tests/packets/.+?)(?: - |$)", done.stdout, re.MULTILINE)
        if done.returncode != 1 or not failed:
            raise RuntimeError(f"the packet tests did not run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        again = _run(folder, failed[1])
        if again is None or again.returncode:
            return Fate(KILLED, failed[1].removeprefix("tests/packets/").partition("[")[0])
        passed_over.append(failed[1])


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str] | None:
    """pytest, up to the first failure; None if that takes too long."""
    argv = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "--tb=line", "-p", "no:cacheprovider", *arguments]
    try:
        return subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return None
