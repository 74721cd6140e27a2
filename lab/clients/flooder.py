"""Floods: ``flooder.py PLAN``, a JSON object of what lab.flood knows.

Sends live frames (lab/bpf/instruments.bpf.c, REPLAY_FLOOD) out of an interface, ``rate`` a second for ``seconds``
seconds at most, in a burst every PERIOD: each call of BPF_PROG_TEST_RUN waits 10 to 50 ms for the kernel to make ready
and to tidy up, on no CPU. What a burst could not send in time, the next ones make up for, within bounds. All runs on
one CPU, and is this process's CPU time: the frames' whole way is.

Prints "standing" after the first burst, and on SIGTERM or at the end what it has sent, as JSON. Run in a namespace by
lab.flood.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from typing import Any

from rauta.bpf import BpfObject, xdp_context

PERIOD = 0.1
"""seconds"""
LARGEST = 4
"""bursts' worth of frames that one burst may make up for"""
BATCH = 64
"""frames that the kernel passes on at a time, as a driver's poll does"""


def main() -> None:
    """Flood until the time is over or somebody says so: between bursts, which a signal must not cut short."""
    plan = json.loads(sys.argv[1])
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with BpfObject.open(plan["instruments"]) as instruments:
        instruments.load()
        instruments.maps["under_test"].update(0, instruments.programs["xdp_tx"])
        instruments.maps["replays"].update(0, {**plan["replay"], "frame": bytes.fromhex(plan["replay"]["frame"])})
        _flood(instruments, plan)
        made = instruments.maps["replays"].lookup(0)
        print(json.dumps({"sent": made["position"], "failed": made["failed"]}), flush=True)


def _flood(instruments: BpfObject, plan: dict[str, Any]) -> None:
    frame = bytes.fromhex(plan["replay"]["frame"])
    context = xdp_context(len(frame), ingress_ifindex=socket.if_nametoindex(plan["interface"]))
    burst = max(1, round(plan["rate"] * PERIOD))
    started, sent = time.monotonic(), 0
    while (elapsed := time.monotonic() - started) < plan["seconds"]:
        owed = min(round(plan["rate"] * elapsed) + burst - sent, LARGEST * burst)
        if owed > 0:
            instruments.programs["replay"].run_live_frames(frame, ctx=context, repeat=owed, batch_size=BATCH)
        if not sent:
            print("standing", flush=True)
        sent += owed
        ahead = sent / plan["rate"] - (time.monotonic() - started)
        if signal.sigtimedwait({signal.SIGTERM}, max(0.0, ahead)) is not None:
            return


if __name__ == "__main__":
    main()
