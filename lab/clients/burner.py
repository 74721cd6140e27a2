"""Burns CPU time: ``burner.py SHARE``, of one CPU, 0 to 1, until SIGTERM.

Works for its share of every PERIOD and sleeps for the rest, on the CPU on which a flood (flooder.py) would run: so the
two can be compared. Prints "standing" when it begins. Run in a namespace by lab.background.
"""

from __future__ import annotations

import os
import signal
import sys
import time

PERIOD = 0.1
"""seconds"""


def main() -> None:
    """Until told to stop, which it notices between two periods."""
    share = float(sys.argv[1])
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    print("standing", flush=True)
    due = time.monotonic()
    while True:
        end = time.thread_time() + share * PERIOD
        while time.thread_time() < end:
            pass
        due = max(due + PERIOD, time.monotonic())
        if signal.sigtimedwait({signal.SIGTERM}, max(0.0, due - time.monotonic())) is not None:
            return


if __name__ == "__main__":
    main()
