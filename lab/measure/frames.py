"""Frames a second over real links, counted where they arrive. Never to be called requests: nobody answers them.

The replayer (lab/measure/replay.py) sends the first requests of ``flows`` connections, without their handshakes, out of
the client's interface as fast as it can. They cross the switch, whatever stands on the router's host, and the switch
again; a program on the backends' interfaces counts them and takes them away before their kernels see them. So this is
the data plane with its links, and nothing of servers and sockets.

Everything runs on one CPU: the sender's softirq carries a frame all the way. What is lost on the way, in the rings of
veth, is ``loss``. Bare programs are counted where their frames end: xdp-drop on the router's interface, by the very
program that drops them, xdp-tx where the switch gets them back.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from lab import topology
from lab.environment import source_revision
from lab.interfaces import Instrument, Running, Setup, Watch
from lab.measure.replay import Replayer, on_one_cpu, request
from lab.process import wait_until
from lab.samples import Better, Quantity, Sample
from rauta.bpf import BpfObject, attach_xdp
from rauta.config import Vip

if TYPE_CHECKING:
    from lab.scenario import Scenario
    from lab.topology import Host, Network

SETTLE_SECONDS = 2.0
"""until the last frame on its way has arrived or is lost"""
BARE = ("xdp-tx", "xdp-drop")
Place = tuple["Host", str]
"""a host and one of its interfaces"""


class Frames(BaseModel):
    """Frames a second. ``frames``: of a sample; ``flows``: connections that take turns, new ones in each sample."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layer: Literal["veth"]
    cluster: str
    request: Annotated[str, Field(pattern="^[A-Z]+ /")] = "GET /api/x"
    host: str = "shop.test"
    flows: Annotated[int, Field(ge=1, le=1_048_576)] = 1024
    frames: Annotated[int, Field(ge=1_000, le=10_000_000)] = 131_072
    unit: Literal["frames/s"] = "frames/s"

    @property
    def quantity(self) -> Quantity:
        """How many arrive a second."""
        return Quantity(self.unit, Better.HIGHER)

    @property
    def quantities(self) -> Mapping[str, Quantity]:
        """The share that does not arrive."""
        return {"loss": Quantity("share", Better.LOWER)}

    @property
    def has_histogram(self) -> bool:
        """No: a number a sample."""
        return False

    @property
    def instrument(self) -> str:
        """The replayer, by its source."""
        return f"replayer {source_revision('lab/bpf/instruments.bpf.c')} on Linux {os.uname().release}"

    @property
    def depends_on(self) -> Sequence[str]:
        """Nothing."""
        return ()

    @property
    def needs_contender(self) -> bool:
        """Frames go through one."""
        return True

    def subjects(self, contenders: Sequence[str]) -> Sequence[str]:
        """Those that pass frames on without ending connections."""
        from lab.contenders import find  # contenders know topology, which knows this module's models

        return [name for name in contenders if "veth" in find(name).layers]

    def seconds(self, warmup: float) -> float:
        """About."""
        return 0.5 + 4e-6 * self.frames

    def open(self, setup: Setup) -> Instrument:
        """Loads the instruments; they are attached only while a sample is taken."""
        sender, counter = (setup.stack.enter_context(BpfObject.open(topology.INSTRUMENTS)) for _ in range(2))
        sender.load()
        counter.load()
        return FramesInstrument(self, setup.network, setup.scenario, sender, counter)


@dataclass(frozen=True)
class FramesInstrument:
    """Two sets of instruments: one sends, one counts."""

    model: Frames
    network: Network
    scenario: Scenario
    sender: BpfObject
    counter: BpfObject
    salts: Iterator[int] = field(default_factory=lambda: count(1))
    """of its samples' connections: a contender that is sampled again must see new ones"""

    def sample(self, subject: str, running: Running | None, watch: Watch, *, scale: int = 1) -> Sample:
        """Send all frames and wait until the last has arrived."""
        assert running is not None
        frames = scale * self.model.frames
        replayer = self._replayer(subject, running)
        before = dict(running.counters())
        with ExitStack() as stack:
            for host, interface in self._pass_on(subject):
                stack.enter_context(_attached(host, interface, self.sender, "xdp_pass"))
            for host, interface in self._ends(subject):
                stack.enter_context(_attached(host, interface, self.counter, "xdp_count"))
            if subject == "xdp-tx":
                router = self.network.router
                stack.enter_context(_attached(router, router.interface, self.sender, "xdp_tx"))
            stack.enter_context(self.network.client.entered())
            stack.enter_context(on_one_cpu())
            start = self._arrived()
            with watch:
                sent = replayer.send("first-request", frames, replayer.renew(), interface=self.network.client.interface)
            arrived = self._settled() - start
        handled = running.counters().get("ROUTED_FIRST", 0) - before.get("ROUTED_FIRST", 0)
        reason = _wrong(sent.failed, arrived, frames, handled if "ROUTED_FIRST" in before else None)
        seconds = sent.wall * frames / 1e9
        return Sample(
            arrived / seconds,
            valid=not reason,
            reason=reason,
            quantities={"loss": 1 - arrived / frames},
            details={"frames": frames, "arrived": arrived, "seconds": round(seconds, 4), "flows": self.model.flows},
        )

    def _replayer(self, subject: str, running: Running) -> Replayer:
        """Sends from the client's own address to where the contender takes requests."""
        client = self.network.client
        address, port = running.target(self.model.cluster)
        hosts = {host.address: host for host in self.network.hosts.values()}
        to = hosts.get(address, self.network.router)
        vip = Vip.model_construct(name="target", address=address, port=port, no_route=404, routes=())
        payload = request(self.model.request, self.model.host)
        replayer = Replayer(
            self.sender, vip, payload, str(client.address), (to.mac, client.mac), self.model.flows, self.salts
        )
        replayer.aim(self.sender.programs["xdp_tx"], getattr(running, "cookie_keys", None))
        return replayer

    def _pass_on(self, _subject: str) -> list[Place]:
        """Where frames sent by XDP come out of a cable: there has to be a program (lab/topology.py says why)."""
        return [(self.network.fabric, self.network.port(self.network.client))]

    def _ends(self, subject: str) -> list[Place]:
        """Where frames are counted and taken away."""
        router = self.network.router
        match subject.partition("#")[0]:
            case "xdp-drop":
                return [(router, router.interface)]
            case "xdp-tx":
                return [(self.network.fabric, self.network.port(router))]
        return [(host, host.interface) for host in self.network.servers(self.model.cluster)]

    def _arrived(self) -> int:
        return sum(self.counter.maps["arrived"].lookup(0))

    def _settled(self) -> int:
        """How many have arrived once no more come."""
        seen = [-1]

        def quiet() -> bool:
            seen.append(self._arrived())
            return seen[-1] == seen[-2]

        wait_until(quiet, seconds=SETTLE_SECONDS, what="the last frames to arrive")
        return seen[-1]


def _wrong(failed: int, arrived: int, frames: int, handled: int | None) -> str:
    if failed:
        return f"{failed} of {frames} frames could not be made"
    if not arrived:
        return f"none of {frames} frames arrived"
    if handled is not None and handled < arrived:
        return f"{arrived} frames arrived, but only {handled} were routed"
    return ""


@contextmanager
def _attached(host: Host, interface: str, instruments: BpfObject, program: str) -> Iterator[None]:
    """An XDP program on an interface, in place of one that is there, which comes back."""
    with host.entered():
        attachment = attach_xdp(socket.if_nametoindex(interface), instruments.programs[program], mode="native")
    try:
        yield
    finally:
        with host.entered():
            attachment.detach()
