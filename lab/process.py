"""The one gateway to other programs: starts, logs and ends them.

A child is born in the network namespace and on the CPUs of the thread that starts it, so entering a namespace is all
that "run this over there" takes; ``ip netns exec`` is not used because it remounts /sys and hides bpffs.

``setpriv --pdeathsig`` makes the kernel end a child when the *thread* that started it ends (prctl(2),
PR_SET_PDEATHSIG): start what must outlive a helper thread in the main one. Where that is too late, because the lab
was killed before setpriv ran, or does not reach, because a worker has lost its leader, ``state.clean`` finds them by
their namespace.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lab.errors import CommandError, NotReady

POLL_SECONDS = 0.005
STOP_SECONDS = 3.0
READY_SECONDS = 10.0
LOGGED_CHARACTERS = 4000
"""of each stream of a finished command in the log; the caller gets all of it"""


@dataclass(frozen=True)
class Completed:
    """A program that has ended. Output that is not UTF-8 survives in ``stdout`` as surrogate escapes."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def raw(self) -> bytes:
        """Standard output as it came."""
        return self.stdout.encode(errors="surrogateescape")


def wait_until(condition: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Poll ``condition`` until it holds.

    Raises:
        NotReady: it did not within ``seconds``; ``what`` says what was waited for.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise NotReady(f"waited {seconds:g} s for {what}, in vain")
        time.sleep(POLL_SECONDS)


def raise_open_files_limit() -> None:
    """Let this process and its children open as many files as the machine allows: a load generator needs thousands."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _wrapped(argv: Sequence[str], cpus: Sequence[int] | None) -> list[str]:
    pinned = ["taskset", "--cpu-list", ",".join(map(str, cpus))] if cpus else []
    return ["setpriv", "--pdeathsig", "KILL", *pinned, *argv]


def _end_group(child: subprocess.Popen[bytes], seconds: float) -> None:
    """End a child and all that it started, gently first. The child leads its own process group."""
    if child.returncode is not None:
        return  # reaped: its number may be somebody else's by now
    os.killpg(child.pid, signal.SIGTERM)
    with suppress(NotReady):
        wait_until(lambda: _has_ended(child.pid), seconds=seconds, what="it to end")
    os.killpg(child.pid, signal.SIGKILL)  # what else is in the group; the unreaped leader keeps the number ours
    child.wait()


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    cpus: Sequence[int] | None = None,
    check: bool = True,
    input: str | bytes | None = None,
    log: Path | None = None,
) -> Completed:
    """Run a program to its end in the calling thread's network namespace.

    Args:
        argv: program and arguments.
        timeout: seconds after which it is ended.
        cpus: numbers of the CPUs it may use; None for those of the caller.
        check: whether a return code other than 0 is an error.
        input: its standard input.
        log: file to which one JSON line about the run is appended.

    Raises:
        CommandError: it could not be started, did not finish in time or, with ``check``, failed.
    """
    data = input.encode() if isinstance(input, str) else input
    started = time.monotonic()
    try:
        child = subprocess.Popen(
            _wrapped(argv, cpus),
            stdin=subprocess.DEVNULL if data is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise CommandError(f"could not start {argv[0]}: {error}") from error
    with child:
        try:
            out, err = child.communicate(data, timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise CommandError(f"{' '.join(argv)} did not finish within {timeout:g} s") from error
        finally:
            if child.returncode is None:
                _end_group(child, seconds=0.2)
    done = Completed(tuple(argv), child.returncode, _text(out), _text(err), time.monotonic() - started)
    if log is not None:
        _log(log, done)
    if check and done.returncode:
        said = (done.stderr or done.stdout).strip()[-1000:]
        raise CommandError(f"{' '.join(argv)} ended with {done.returncode}: {said or 'it said nothing'}")
    return done


def _text(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")


def _log(path: Path, done: Completed) -> None:
    entry = {
        "argv": done.argv,
        "returncode": done.returncode,
        "seconds": round(done.seconds, 4),
        "stdout": done.stdout[:LOGGED_CHARACTERS],
        "stderr": done.stderr[:LOGGED_CHARACTERS],
    }
    with path.open("a", encoding="ascii") as file:
        file.write(json.dumps(entry) + "\n")


class Process:
    """A program in the background. Its output goes to ``log``; ``stop`` ends it and everything it started."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        name: str,
        log: Path,
        cpus: Sequence[int] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start ``argv`` in the calling thread's network namespace.

        Raises:
            CommandError: it could not be started.
        """
        self.argv = tuple(argv)
        self.name = name
        self.log = log
        with log.open("ab") as output:
            output.write(f"$ {' '.join(argv)}\n".encode())
            output.flush()
            self._begin = output.tell()
            try:
                self._child = subprocess.Popen(
                    _wrapped(argv, cpus),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env=None if environment is None else {**os.environ, **environment},
                )
            except OSError as error:
                raise CommandError(f"could not start {name} ({argv[0]}): {error}") from error

    @property
    def pid(self) -> int:
        """Its process id, which is also its process group's."""
        return self._child.pid

    def poll(self) -> int | None:
        """The return code, or None while it runs."""
        return self._child.poll()

    def wait_ready(self, ready: Callable[[], bool], seconds: float = READY_SECONDS) -> None:
        """Poll ``ready`` until it holds.

        Raises:
            CommandError: the program ended instead.
            NotReady: it did not become ready in time.
        """

        def ended_or_ready() -> bool:
            return self.poll() is not None or ready()

        wait_until(ended_or_ready, seconds=seconds, what=f"{self.name} to become ready (its output: {self.log})")
        if self.poll() is not None:
            raise CommandError(
                f"{self.name} ended with {self.poll()} before it was ready; it said: {self.output()[-1000:]}"
            )

    def output(self) -> str:
        """What it has said so far, both streams."""
        return _text(self.log.read_bytes()[self._begin :])

    def kill(self) -> None:
        """SIGKILL to it and everything it started, and wait until it is gone. Harmless when it has ended."""
        if self._child.returncode is None:
            os.killpg(self.pid, signal.SIGKILL)
            self._child.wait()

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """End it and everything it started: SIGTERM, and SIGKILL after ``seconds``. Harmless when it has ended."""
        _end_group(self._child, seconds)
