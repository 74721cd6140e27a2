"""Networks that stay: a keeper in the background builds one, holds it, and undoes it when told to.

The keeper is `up --foreground` in a session of its own. A network that is up thus has a living owner like any run:
`clean` does not touch it, and if the keeper is killed, `clean` removes what it left.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lab import state
from lab.environment import REPOSITORY
from lab.errors import LabError, UsageError
from lab.process import wait_until
from lab.state import Run

UP_SECONDS = 60.0
DOWN_SECONDS = 20.0


def start(file: Path, profile: str | None, overrides: Sequence[str], contenders: Sequence[str]) -> Run:
    """Start a keeper and wait until its network is up.

    Raises:
        LabError: it ended instead; the message is what it said.
        NotReady: it did not come up in time.
    """
    run = Run(state.new_name())
    argv = [sys.executable, "-m", "lab", "up", str(file), "--foreground", "--name", run.name]
    argv += ["--profile", profile] if profile else []
    argv += [word for override in overrides for word in ("--set", override)]
    argv += [word for contender in contenders for word in ("--contender", contender)]
    with tempfile.TemporaryFile("w+") as said:
        keeper = subprocess.Popen(
            argv, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
        )

        def up_or_ended() -> bool:
            owner = run.owner()
            return keeper.poll() is not None or (owner is not None and owner.held)

        try:
            wait_until(up_or_ended, seconds=UP_SECONDS, what=f"the network {run.name} to come up")
        except BaseException:
            keeper.terminate()
            keeper.wait()
            raise
        if keeper.poll() is not None:
            said.seek(0)
            raise LabError(
                said.read().strip().removeprefix("lab: ") or f"the keeper of {file} ended with {keeper.poll()}"
            )
    keeper.returncode = 0  # it lives on: not a child to be reaped here
    return run


def find(name: str | None) -> Run:
    """A living run by its name; without one, the only network that is up to stay.

    Raises:
        UsageError: there is none, or it is not clear which.
    """
    alive = {run.name: owner for run in state.runs() if (owner := run.owner()) is not None and owner.lives}
    found = [one for one, owner in alive.items() if (one == name if name else owner.held)]
    if len(found) == 1:
        return Run(found[0])
    tried = f"looking for the network {name!r}" if name else "looking for a network that is up"
    if found:
        raise UsageError(tried, "there are several", f"Name one of them: {', '.join(found)}.")
    advice = f"There are: {', '.join(alive)}." if alive else "`python -m lab up FILE` makes one."
    raise UsageError(tried, "there is none", advice)


def namespace(run: Run, host: str) -> str:
    """The namespace of one of its hosts.

    Raises:
        UsageError: there is no such host.
    """
    if host not in run.hosts():
        raise UsageError(f"looking for the host {host!r}", "the network has none", f"It has: {', '.join(run.hosts())}.")
    return run.prefix + host


def stop(run: Run) -> None:
    """Tell a network's keeper to undo it, and wait until that is done.

    Raises:
        NotReady: the keeper does not come to an end.
    """
    owner = run.owner()
    if owner is not None and owner.lives:
        with suppress(ProcessLookupError):
            os.kill(owner.pid, signal.SIGTERM)
        wait_until(lambda: not owner.lives, seconds=DOWN_SECONDS, what=f"the keeper of {run.name} to undo it")
    if run.owner() is not None:
        run.sweep()
