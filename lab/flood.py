"""A SYN flood: so many SYNs a second to a VIP, from addresses and ports that are drawn anew for each.

The attacker is a host of its own (``topology.hosts.attacker``), on the switch as the clients are. His frames are live
frames that a helper process sends out of his interface (lab/clients/flooder.py), one after the other at a steady rate.
They come to the router by its own cable, behind and before the clients' frames in the same ring, and the router's
program meets them as it meets those. (To run the program itself on frames, as lab.measure.program does, would be
cheaper; but then nobody would have to wait for anybody.)

The helper takes a CPU for itself: a frame's whole way, and waiting for the next one's time. So what a flood does is to
be compared with what a program does that just takes a CPU (lab.background.Cpu).

The switch is the kernel's bridge for everybody else. For the flood a program on the attacker's port sends each frame
straight on to the router's port, and another one there takes the router's answers off the wire
(lab/bpf/flood.bpf.c): as packets of the kernel's they would cost 2.2 us of CPU time on the whole way, so 0.7 us, and
there is one machine for all. No answer gets further than the switch, wherever its address might lead; and the attacker
has a MAC address that is nobody's, which no host would take a frame for.

Addresses are those of ``wiring.CROWD``, which no host but the attacker has.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING

from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from lab import topology
from lab.errors import LabError
from lab.interfaces import AnswersSyns, Running
from lab.measure.replay import FLOOD_PORTS, MODES, SYN_OPTIONS
from lab.monitor import cpu_seconds
from lab.process import Process, wait_until
from lab.wiring import CROWD, FLOOD_MAC
from rauta.bpf import BpfObject, attach_xdp

if TYPE_CHECKING:
    from lab.topology import Host, Network

FLOODER = Path(__file__).parent / "clients" / "flooder.py"
OBJECT = Path(__file__).parent / "objects" / "flood.bpf.o"
SALT = 0x5A17
LONGEST_SECONDS = 120.0
"""a flood ends by itself after that"""
START_SECONDS = 20.0
ANSWERED = "TX_SYN_ACK"
"""the verdict of the router's program on a SYN"""


@dataclass
class Flood:
    """A flood that goes on. ``places``: what counts it in the switch."""

    process: Process
    running: AnswersSyns
    places: BpfObject
    sent: int | None = None
    """how many SYNs it came to, once it was stopped"""

    def read(self) -> Mapping[str, float]:
        """Numbers that only grow: SYNs that have come to the switch, SYNs that the router has answered (the clients'
        own among them), and CPU seconds that the flood has taken, waiting included.
        """
        answered = self.running.counters()[ANSWERED]
        return {"entered": self.entered, "syns": answered, "cpu": cpu_time(self.process)}

    @property
    def entered(self) -> int:
        """Frames that have come from the attacker to the switch."""
        return self._at("FLOOD_ENTERED")

    @property
    def ended(self) -> int:
        """Answers to it that the switch has taken off the wire."""
        return self._at("FLOOD_ENDED")

    def _at(self, place: str) -> int:
        return self.places.maps["flooded"].sum(self.places.btf.enum("place")[place])

    def strangers(self, clients: Iterable[Host]) -> int:
        """How many of the flow table's connections are of others than these clients."""
        known = {host.address for host in clients}
        return sum(count for address, count in self.running.flow_clients().items() if address not in known)

    def stop(self) -> None:
        """End it, if it was not stopped before. LabError if it has ended by itself, or could not make all its SYNs."""
        if self.sent is not None:
            return
        early = self.process.poll() is not None
        self.process.stop()
        said = [json.loads(line) for line in self.process.output().splitlines() if line.startswith("{")]
        if early or not said or said[-1]["failed"]:
            raise LabError("flooding", f"it ended early: {self.process.output()[-1000:] or 'without a word'}")
        self.sent = int(said[-1]["sent"])


def cpu_time(load: Process) -> float:
    """CPU seconds of a program that is still there; LabError if it is not."""
    try:
        return cpu_seconds(load.pid)
    except OSError as error:
        raise LabError(f"asking for the CPU time of {load.name}", "it has ended", load.output()[-1000:]) from error


@contextmanager
def flooding(
    network: Network, running: Running, cluster: str, rate: float, *, seconds: float = LONGEST_SECONDS
) -> Iterator[Flood]:
    """A flood, for as long as it is entered.

    Args:
        network: with an attacker.
        running: a contender that answers SYNs by XDP, and counts them.
        cluster: the flood goes where requests for this one go.
        rate: SYNs a second.
        seconds: after which it ends in any case; it must not come to that.

    Raises:
        LabError: it did not begin, or has ended before its time.
    """
    address, port = running.target(cluster)
    if not isinstance(running, AnswersSyns):
        raise LabError("flooding", f"{type(running).__name__} does not count what it answers")
    with ExitStack() as undo:
        places = undo.enter_context(_places(network))
        process = _started(network, address, port, rate, seconds)
        undo.callback(process.stop)
        flood = Flood(process, running, places)
        wait_until(lambda: _stands(flood), seconds=START_SECONDS, what="the flood to begin")
        yield flood
        flood.stop()


def _stands(flood: Flood) -> bool:
    if flood.process.poll() is not None:
        raise LabError("flooding", f"it ended early: {flood.process.output()[-1000:] or 'without a word'}")
    return flood.entered > 0


def _started(network: Network, address: IPv4Address, port: int, rate: float, seconds: float) -> Process:
    (attacker,) = network.attackers
    plan = {
        "instruments": str(topology.INSTRUMENTS),
        "interface": attacker.interface,
        "seconds": seconds,
        "replay": replay(syn(network.router, address, port)) | {"period": round(1e9 / rate)},
    }
    return attacker.start([sys.executable, str(FLOODER), json.dumps(plan)], name="flooder")


def syn(router: Host, address: IPv4Address, port: int) -> bytes:
    """A SYN as Linux sends it, from the first of the crowd."""
    frame = (
        Ether(dst=router.mac, src=FLOOD_MAC)
        / IP(src=str(CROWD.network_address), dst=str(address), flags="DF")
        / TCP(dport=port, flags="S", window=64240, options=list(SYN_OPTIONS))
    )
    return bytes(frame)


def replay(frame: bytes, salt: int = SALT) -> dict[str, int | str]:
    """What the replayer must know to send a frame from all of the crowd."""
    return {
        "mode": MODES["flood"],
        "length": len(frame),
        "salt": salt,
        "flows": CROWD.num_addresses,
        "ports": FLOOD_PORTS,
        "frame": frame.hex(),
    }


@contextmanager
def _places(network: Network) -> Iterator[BpfObject]:
    """The flood's way through the switch, and its end there."""
    fabric, (attacker,) = network.fabric, network.attackers
    with ExitStack() as undo:
        places = undo.enter_context(BpfObject.open(OBJECT))
        places.rodata["flood_mac"] = [*bytes.fromhex(FLOOD_MAC.replace(":", "")), 0, 0]
        with fabric.entered():
            places.rodata["router_port"] = socket.if_nametoindex(network.port(network.router))
            places.load()
            index = socket.if_nametoindex(network.port(attacker))
            entrance = attach_xdp(index, places.programs["flood_enters"], mode="native")
        undo.callback(topology.detach, fabric, entrance)
        undo.enter_context(network.instead_of_passing(network.router, places.programs["flood_ends"]))
        yield places
