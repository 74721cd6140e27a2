"""Floods: ``flooder.py PLAN``, a JSON object of what lab.flood knows.

Sends live frames (lab/bpf/instruments.bpf.c, REPLAY_FLOOD) out of an interface until SIGTERM, or for so many seconds at
most. All runs on one CPU, which it takes for itself, and is this process's CPU time. At the end it prints what it has
sent, as JSON. Run in a namespace by lab.flood.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import sys
from types import FrameType
from typing import Any

from rauta.bpf import BpfError, BpfObject, xdp_context

AT_ONCE = 100_000_000
"""turns of one call of BPF_PROG_TEST_RUN, most of which find that no frame is due: some ten seconds. Between two calls
the kernel takes 10 to 50 ms to tidy up and to make ready"""
BATCH = 32
"""frames that the kernel passes on at a time: no more would be in one ring on their way"""


class Ended(Exception):
    """Somebody has said so, or the time is over."""


def main() -> None:
    """Flood, and report."""
    plan = json.loads(sys.argv[1])
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with BpfObject.open(plan["instruments"]) as instruments:
        instruments.load()
        instruments.maps["under_test"].update(0, instruments.programs["xdp_tx"])
        instruments.maps["replays"].update(0, {**plan["replay"], "frame": bytes.fromhex(plan["replay"]["frame"])})
        try:
            for number in (signal.SIGTERM, signal.SIGALRM):
                signal.signal(number, end)
            signal.setitimer(signal.ITIMER_REAL, plan["seconds"])
            while True:
                flood(instruments, plan)
        except Ended:
            for number in (signal.SIGTERM, signal.SIGALRM):
                signal.signal(number, signal.SIG_IGN)
            made = instruments.maps["replays"].lookup(0)
            print(json.dumps({"sent": made["position"], "failed": made["failed"]}), flush=True)


def end(_number: int, _frame: FrameType | None) -> None:
    """Cuts the system call short, too."""
    raise Ended


def flood(instruments: BpfObject, plan: dict[str, Any]) -> None:
    """One call."""
    frame = bytes.fromhex(plan["replay"]["frame"])
    context = xdp_context(len(frame), ingress_ifindex=socket.if_nametoindex(plan["interface"]))
    try:
        instruments.programs["replay"].run_live_frames(frame, ctx=context, repeat=AT_ONCE, batch_size=BATCH)
    except BpfError as error:
        if error.errno != errno.EINTR:
            raise


if __name__ == "__main__":
    main()
