"""Cables with the faults of real ones: rate, delay, loss, duplication, reordering.

Conditions hold in each direction of a cable, between a host and the switch. What makes them, since netem is in few
small kernels:

* *loss* and *duplicate*: a tc program on the switch's end (lab/bpf/link.bpf.c), at ingress and egress, each frame by
  itself at random. Its counters say exactly what it did.
* *delay* and *reorder*: no qdisc that honours departure times is needed, and BPF cannot hold a packet: a small program
  (lab/tools/delay_line.c) joins the two halves of the cable. It resolves SHORTEST_DELAY. A frame that is to overtake is
  not held; so, as with netem, reordering takes a delay.
* *rate*: the kernel's token bucket (tbf) at both ends. What XDP sends passes by any qdisc; on its way from the switch
  to the next host it meets the next one.

A frame of the wire is what conditions are about, so where there are any, segmentation and checksum offloads are off on
all hosts: otherwise 64 kB at a time would be lost.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from lab.environment import REPOSITORY
from lab.process import Process, wait_until
from rauta.bpf import BpfObject, TcAttachment, attach_tc

if TYPE_CHECKING:
    from lab.scenario import Link
    from lab.topology import Host

PROGRAM = REPOSITORY / "lab" / "objects" / "link.bpf.o"
DELAY_LINE = REPOSITORY / "lab" / "objects" / "delay_line"
SHORTEST_DELAY = 200e-6
"""seconds: several times what a sleeping program's wake-up takes on a small virtual machine"""
SECONDS = 10.0
QUEUE_SECONDS = 0.05
"""how long a frame may wait for its turn at a limited rate, before the queue is full"""
_EVENTS = ("seen", "lost", "duplicated")
_OFFLOADS = ("tx", "tso", "gso", "gro")


@dataclass(frozen=True)
class Cable:
    """A host's cable. ``port``: the fabric's interface at its end; with a delay, ``joint`` is the one that goes on."""

    host: Host
    interface: str
    link: Link
    port: str
    joint: str | None = None


@dataclass(frozen=True)
class Faults:
    """What is done to one cable."""

    program: BpfObject

    def counters(self) -> Mapping[str, int]:
        """Frames of both directions so far: seen, lost, duplicated."""
        return {name: sum(self.program.maps["events"].lookup(number)) for number, name in enumerate(_EVENTS)}


@contextmanager
def conditioned(fabric: Host, cables: Sequence[Cable]) -> Iterator[dict[str, Faults]]:
    """Give cables their conditions for as long as this is entered.

    Args:
        fabric: where the switch's ends are.
        cables: all; if any has conditions, the offloads of all hosts are turned off.

    Yields:
        the faults of each cable that loses or doubles frames, by host.
    """
    faults: dict[str, Faults] = {}
    with ExitStack() as undo:
        if any(cable.link.conditions for cable in cables):
            for cable in cables:
                words = [word for name in _OFFLOADS for word in (name, "off")]
                cable.host.run(["ethtool", "-K", cable.interface, *words], timeout=SECONDS)
        for cable in cables:
            if cable.link.rate is not None:
                _limit(cable.host, cable.interface, cable.link.rate)
                _limit(fabric, cable.port, cable.link.rate)
            if cable.link.loss or cable.link.duplicate:
                faults[cable.host.name] = _faulty(fabric, cable, undo)
        _delay(fabric, cables, undo)
        yield faults


def _faulty(fabric: Host, cable: Cable, undo: ExitStack) -> Faults:
    program = undo.enter_context(BpfObject.open(PROGRAM))
    program.rodata["loss"] = _probability(cable.link.loss)
    program.rodata["duplicate"] = _probability(cable.link.duplicate)
    program.load()
    index = _index(fabric, cable.joint or cable.port)
    for name, direction in (("link_from_host", "ingress"), ("link_to_host", "egress")):
        with fabric.entered():
            attachment = attach_tc(index, program.programs[name], direction)  # type: ignore[arg-type]
        undo.callback(_detach, fabric, attachment)
    return Faults(program)


def _probability(share: float) -> int:
    return min(round(share * 2**32), 2**32 - 1)


def _index(host: Host, interface: str) -> int:
    with host.entered():
        return socket.if_nametoindex(interface)


def _detach(host: Host, attachment: TcAttachment) -> None:
    with host.entered():
        attachment.detach()


def _limit(host: Host, interface: str, rate: float) -> None:
    """``rate``: bits a second."""
    burst = max(round(rate / 8 / 250), 10_000)  # bytes that a tick of the slowest timer lets through
    argv = ["tc", "qdisc", "replace", "dev", interface, "root", "tbf", "rate", f"{rate:.0f}bit", "burst", f"{burst}b"]
    host.run([*argv, "latency", f"{QUEUE_SECONDS * 1000:.0f}ms"], timeout=SECONDS)


def _delay(fabric: Host, cables: Sequence[Cable], undo: ExitStack) -> None:
    """One program for all cables with the same delay."""
    groups: dict[tuple[float, float], list[str]] = {}
    for cable in cables:
        if cable.joint is not None:
            groups.setdefault((cable.link.delay, cable.link.reorder), []).extend((cable.port, f"{cable.joint}-l"))
    for (delay, reorder), interfaces in groups.items():
        argv = [str(DELAY_LINE), f"{delay * 1e6:g}", f"{reorder:g}", *interfaces]
        line = fabric.start(argv, name="delay-line")
        undo.callback(line.stop)
        wait_until(partial(_joined, line), seconds=SECONDS, what="the delay line to join its cables")


def _joined(line: Process) -> bool:
    return "joined" in line.output()
