"""A signal interrupts work, never its undoing, and is not lost where exceptions are swallowed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

from lab.process import wait_until
from lab.signals import AGAIN_SECONDS, SIGNALS, Interrupted, deferred, interruptible, noted, wait


@pytest.fixture(autouse=True)
def alarm_of_the_test_runner() -> Iterator[None]:
    """pytest-timeout uses the same timer: it is put back afterwards."""
    delay, interval = signal.setitimer(signal.ITIMER_REAL, 0)
    yield
    signal.setitimer(signal.ITIMER_REAL, delay, interval)


def tell(signum: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), signum)


def interrupted(work: Callable[[], object]) -> None:
    """Do some work that a signal interrupts."""
    with pytest.raises(Interrupted), noted(), interruptible():
        work()


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_interrupts_work(signum: signal.Signals) -> None:
    done = []

    def work() -> None:
        tell(signum)
        done.append("went on")

    interrupted(work)
    assert done == []


def test_handlers_are_as_before_afterwards() -> None:
    before = [signal.getsignal(signum) for signum in (*SIGNALS, signal.SIGALRM)]
    interrupted(tell)
    assert [signal.getsignal(signum) for signum in (*SIGNALS, signal.SIGALRM)] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_undoing_is_not_interrupted() -> None:
    done = []

    def undo() -> None:
        for _ in range(5):
            tell(signal.SIGTERM)
        done.append("undone")

    def run() -> None:
        with noted(), ExitStack() as stack, interruptible():
            stack.callback(undo)
            tell()

    with pytest.raises(Interrupted):
        run()
    assert done == ["undone"]


def test_undoing_within_the_work_is_not_interrupted_either() -> None:
    done = []

    def undo() -> None:
        tell(signal.SIGTERM)
        time.sleep(2.4 * AGAIN_SECONDS)  # reminders come meanwhile
        done.append("undone")

    def work() -> None:
        with ExitStack() as stack:
            stack.callback(undo)
            tell()

    interrupted(work)
    assert done == ["undone"]


def test_a_signal_while_a_success_is_undone_is_raised_afterwards() -> None:
    done = []

    def run() -> None:
        with noted(), ExitStack() as stack:
            stack.callback(lambda: done.append("undone"))
            stack.callback(tell)
            with interruptible():
                done.append("worked")

    with pytest.raises(Interrupted):
        run()
    assert done == ["worked", "undone"]


def test_a_signal_before_the_work_prevents_it() -> None:
    done = []

    def run() -> None:
        with noted():
            tell()
            with interruptible():
                done.append("begun")

    with pytest.raises(Interrupted):
        run()
    assert done == []


def test_a_swallowed_exception_is_raised_again() -> None:
    swallowed = []

    def work() -> None:
        try:
            tell()
        except Interrupted:
            swallowed.append(True)  # as a finalizer or a callback from C would
        wait_until(lambda: False, seconds=5, what="being reminded")

    interrupted(work)
    assert swallowed == [True]


def test_a_swallowed_exception_is_raised_at_the_end_of_the_work_at_the_latest() -> None:
    def work() -> None:
        with suppress(Interrupted):
            tell()

    interrupted(work)


def test_what_must_not_be_left_half_done_is_finished_first() -> None:
    done = []

    def work() -> None:
        with deferred():
            tell()
            done.append("finished")
        done.append("went on")

    interrupted(work)
    assert done == ["finished"]


def test_waiting_ends_with_a_signal_and_uses_it_up() -> None:
    """It comes from a thread: a fork's child may be so quick that its parent still runs what forking has it run, in
    callbacks that cannot raise.
    """
    teller = threading.Timer(0.2, tell)
    with noted(), interruptible():
        teller.start()
        wait()
    teller.join()


def test_a_forked_child_never_undoes_its_parents_work() -> None:
    undone = []
    with noted(), ExitStack() as stack:
        stack.callback(lambda: undone.append(os.getpid()))
        with interruptible():
            child = os.fork()
            if child == 0:
                tell(signal.SIGTERM)
                os._exit(0)
            _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGTERM
    assert undone == [os.getpid()]
