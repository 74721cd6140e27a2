"""What an XDP program costs a frame, in ns, measured by two independent means.

Frames of ``connections`` connections in turn (lab/measure/replay.py) go through the program and out over a veth pair
whose far end drops them. How many there are matters: a thousand connections' entries stay in the caches, tens of
thousands do not, and then memory is what takes the time.

* The sample's value comes from the kernel's run-time statistics (kernel.bpf_stats_enabled), of the replayer with the
  program under test; what the same replayer costs in front of a bare program (``reference``) is measured alike, and the
  difference is the program.
* ``wall`` is the wall clock's time for as many frames again with the statistics off, divided by their number:
  everything that happens to a frame. Its difference to the reference's is the program's cost again, by a clock that
  the kernel's statistics have no part in.

A program is loaded anew for each sample. Where its code and its maps come to lie in memory makes it faster or slower by
some percent for as long as it is loaded: two loads of one program differ. Loaded once a run, that difference would be
in every round and look like a result; loaded anew, it is noise like any other, and the interval says how much.

A sample is valid only if the program itself counted as many frames handled as were sent. (But for one in a thousand: of
a million connections, some share a set of the flow table with more than it holds.)
"""

from __future__ import annotations

import os
import socket
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pyroute2 import IPRoute

from lab import topology
from lab.interfaces import Frame, HasProgram, Instrument, ProgramUnderTest, Running, Setup, Watch
from lab.measure.replay import Replayer, Sent, on_one_cpu, request
from lab.samples import Better, Quantity, Sample
from rauta.bpf import BpfObject, attach_xdp, run_time_stats
from rauta.config import Config
from rauta.network.namespaces import entered

if TYPE_CHECKING:
    from lab.topology import Network

RUNS = 3
"""of which a sample is the median"""
FRAMES = 32_768
"""of a run, at least; each connection has as many as any other, and at least four"""
CYCLES = 4
"""in which each connection has its turn, at least: after a first one its memory is in other caches than before"""
LOST = 0.001
"""share of the frames that the program may have handled otherwise, at most"""
MAX_CONNECTIONS = 1_048_576
FIRST_CLIENT = "198.18.0.1"
MACS = ("02:00:00:00:00:02", "02:00:00:00:00:01")


class Program(BaseModel):
    """ns a frame. ``request``: method and path; ``host``: its Host header; ``connections``: how many take turns."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layer: Literal["bpf"]
    frame: Frame = "first-request"
    request: Annotated[str, Field(pattern="^[A-Z]+ /")] = "GET /api/x"
    host: str = "shop.test"
    connections: Annotated[int, Field(ge=1, le=MAX_CONNECTIONS)] = 1024
    reference: Literal["xdp-tx", "xdp-drop"] = "xdp-tx"
    unit: Literal["ns"] = "ns"

    @property
    def quantity(self) -> Quantity:
        """Time a frame."""
        return Quantity(self.unit, Better.LOWER)

    @property
    def quantities(self) -> Mapping[str, Quantity]:
        """The other means."""
        return {"wall": Quantity("ns", Better.LOWER)}

    @property
    def has_histogram(self) -> bool:
        """No: a number a sample."""
        return False

    @property
    def instrument(self) -> str:
        """The kernel's own run-time statistics, of the running release."""
        return f"bpf_stats of Linux {os.uname().release}"

    @property
    def depends_on(self) -> Sequence[str]:
        """Nothing."""
        return ()

    @property
    def needs_contender(self) -> bool:
        """It loads programs of its own, which no packet from outside can reach."""
        return False

    def subjects(self, contenders: Sequence[str]) -> Sequence[str]:
        """Those with a program, and the reference."""
        own = [name for name in contenders if programmed(name) is not None]
        return own if self.reference in own or not own else [*own, self.reference]

    def seconds(self, warmup: float) -> float:
        """About."""
        return 0.2 + RUNS * 1e-6 * max(FRAMES, CYCLES * self.connections)

    def open(self, setup: Setup) -> Instrument:
        """A namespace with a veth pair, and the instruments."""
        stack, config = setup.stack, setup.scenario.routing.config
        namespace = stack.enter_context(_bench(setup.network))
        instruments = stack.enter_context(BpfObject.open(topology.INSTRUMENTS))
        instruments.load()
        with entered(namespace):
            attach_xdp(socket.if_nametoindex("far"), instruments.programs["xdp_drop"], mode="native")
        payload = request(self.request, self.host)
        replayer = Replayer(instruments, config.vips[0], payload, FIRST_CLIENT, MACS, self.connections)
        return ProgramInstrument(self, namespace, replayer, config)


def programmed(name: str) -> HasProgram | None:
    """The contender of that name if it has a program that can be measured by itself."""
    from lab.contenders import find  # contenders know topology, which knows this module's models

    contender = find(name)
    return contender if isinstance(contender, HasProgram) else None


@contextmanager
def _bench(network: Network) -> Iterator[str]:
    """A namespace with the two ends of a cable, `near` and `far`. What is attached there goes with it."""
    with topology.spare_namespace(network.run, "bench") as namespace:
        with entered(namespace), IPRoute() as netlink:
            netlink.link("add", ifname="near", kind="veth", peer={"ifname": "far"})
            for name in ("near", "far"):
                netlink.link("set", index=socket.if_nametoindex(name), state="up")
        yield namespace


@dataclass(frozen=True)
class ProgramInstrument:
    """All but the programs. ``config``: the scenario's routes, for them."""

    model: Program
    namespace: str
    replayer: Replayer
    config: Config

    def sample(self, subject: str, running: Running | None, watch: Watch, *, scale: int = 1) -> Sample:
        """The program loaded, runs with the statistics and without in turn, on one CPU."""
        contender = programmed(subject)
        assert contender is not None
        frames = scale * self.model.connections * max(CYCLES, -(-FRAMES // self.model.connections))
        counted: list[tuple[Sent, str]] = []
        walled: list[tuple[Sent, str]] = []
        with ExitStack() as stack:
            under_test = contender.load(self.config, stack)
            self.replayer.aim(under_test.program, under_test.keys)
            stack.enter_context(entered(self.namespace))
            stack.enter_context(on_one_cpu())
            stack.enter_context(watch)
            for _ in range(RUNS):
                with run_time_stats():
                    counted.append(self._sent(under_test, frames))
                walled.append(self._sent(under_test, frames))
        reason = next((wrong for _, wrong in (*counted, *walled) if wrong), "")
        return Sample(
            statistics.median(sent.program for sent, _ in counted),
            valid=not reason,
            reason=reason,
            quantities={"wall": statistics.median(sent.wall for sent, _ in walled)},
            details={
                "frames": frames,
                "connections": self.model.connections,
                "runs": ", ".join(f"{sent.program:.1f}" for sent, _ in counted),
            },
        )

    def _sent(self, under_test: ProgramUnderTest, frames: int) -> tuple[Sent, str]:
        """Sends frames of new connections: what came of it, and what is wrong with it."""
        frame, salt = self.model.frame, self.replayer.renew()
        if frame in ("next-request", "later"):
            self.replayer.send("first-request", self.model.connections, salt, interface="near")
        before = under_test.handled(frame)
        sent = self.replayer.send(frame, frames, salt, interface="near")
        after = under_test.handled(frame)
        if before is not None and after is not None and not (1 - LOST) * frames <= after - before <= frames:
            return sent, f"{after - before} of {frames} frames were handled as {frame}"
        return sent, f"{sent.failed} of {frames} frames could not be made" if sent.failed else ""
