"""Signals as exceptions, raised only where undoing is still to come.

A run must be undone whenever it is told to stop: by Ctrl-C, SIGTERM or SIGHUP, at any moment, also a second time
while it is being undone. An exception that a handler raises *inside* an undo would cut it short, and blocking signals
around each single undo leaves gaps between them. So it is the other way round: a signal is only noted, unless the
main thread is inside ``interruptible()``, and then it raises.

    with noted():                       # from here on no signal ends the process
        with ExitStack() as undo:       # runs outside interruptible(): nothing cuts it short
            with interruptible():
                ...                     # an Interrupted may appear between any two lines
        # leaving noted() raises Interrupted for a signal that came meanwhile

Two things can go wrong with an exception out of nowhere, and both do happen:

* It appears between a step and its registration for undoing. ``state.Run.sweep`` removes what such a step has created.
* It is swallowed, because it appeared in a place that cannot raise: a finalizer, a callback from C, a callback of
  asyncio (pyroute2 runs on it). So it is raised again twice a second until it is seen to unwind, or has arrived.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AGAIN_SECONDS = 0.5


class Interrupted(KeyboardInterrupt):
    """The run was told to stop. No ``Exception``: no handler for failures may swallow it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class _Switch:
    """Whether a signal raises now, the last one that came, and whether somebody still has to be told of it."""

    def __init__(self) -> None:
        self.armed = False
        self.pending: int | None = None
        self.process = os.getpid()

    def handle(self, signum: int, _frame: FrameType | None) -> None:
        if os.getpid() != self.process:
            os._exit(128 + signum)  # a fork's child, which must never undo what its parent did
        self.pending = signum
        if self.armed:
            signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS, AGAIN_SECONDS)
            self.raise_pending()

    def remind(self, _signum: int, _frame: FrameType | None) -> None:
        if self.armed:
            self.raise_pending()

    def raise_pending(self) -> None:
        """Raise, unless there is nothing to raise or it is on its way already."""
        if self.pending is not None and not _unwinding():
            raise Interrupted(self.pending)

    def settle(self) -> int | None:
        """Stop reminding. The signal that was pending, which is then done with."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        pending, self.pending = self.pending, None
        return pending


def _unwinding() -> bool:
    """Whether an Interrupted is being handled, by a ``finally`` or an ``__exit__``, in any frame below."""
    error = sys.exc_info()[1]
    while error is not None and not isinstance(error, Interrupted):
        error = error.__context__
    return error is not None


_switch = _Switch()


@contextmanager
def noted() -> Iterator[None]:
    """Note SIGINT, SIGTERM and SIGHUP instead of dying of them. Main thread only; SIGALRM is used up, too.

    Raises:
        Interrupted: on leaving, if a signal came that nobody has raised yet.
    """
    _switch.process = os.getpid()
    handlers = {**dict.fromkeys(SIGNALS, _switch.handle), signal.SIGALRM: _switch.remind}
    previous = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
    try:
        yield
    finally:
        pending = _switch.settle()
        for signum, handler in previous.items():
            signal.signal(signum, handler)
    if pending is not None:
        raise Interrupted(pending)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let a signal raise ``Interrupted`` here."""
    _switch.armed = True
    try:
        _switch.raise_pending()
        yield
        _switch.raise_pending()
    finally:
        _switch.armed = False


@contextmanager
def deferred() -> Iterator[None]:
    """Finish something short that cannot be left half done; a signal that comes meanwhile raises afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals never raise here
        return
    armed, _switch.armed = _switch.armed, False
    try:
        yield
    finally:
        _switch.armed = armed
        if armed:
            _switch.raise_pending()


def wait() -> None:
    """Wait for a signal, which is then done with. To be called where signals raise."""
    with suppress(Interrupted):
        while True:  # in slices: a signal that comes just before the call raises just after it
            select.select([], [], [], AGAIN_SECONDS)
    _switch.settle()
