"""A process of RAUTA that is killed at a certain step: ``dying.py POINT NUMBER ARGUMENTS...``.

POINT is a function, as ``rauta.bpf.maps:Map.pin``. When it is called for the NUMBERth time, from 1, the process gets
SIGKILL instead; with a minus, right after that call has returned. All else is `rauta ARGUMENTS...`.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from importlib import import_module
from operator import attrgetter
from typing import Any


def kill_at(point: str, number: int) -> None:
    """Replaces the function by one that counts."""
    module, _, path = point.partition(":")
    owner_path, _, name = path.rpartition(".")
    owner: Any = import_module(module)
    owner = attrgetter(owner_path)(owner) if owner_path else owner
    original = getattr(owner, name)
    calls = 0

    @functools.wraps(original)
    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments, **named)
        if calls == -number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, counted)


if __name__ == "__main__":
    kill_at(sys.argv[1], int(sys.argv[2]))
    from rauta.cli import main

    main(sys.argv[3:])
