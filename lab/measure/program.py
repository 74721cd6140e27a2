"""What the router's program costs a packet, in ns, against a bare program that only returns XDP_TX.

Live frames (BPF_PROG_TEST_RUN with BPF_F_TEST_XDP_LIVE_FRAMES) go through the kernel's XDP path one after the other, as
from a NIC, and out again over a veth pair. They come round as the program under test left them, so the instrument
``replay`` (lab/bpf/instruments.bpf.c) writes the request anew each time and calls the program under test. The kernel's
run-time statistics of ``replay`` give the time of both; what the same replay costs in front of a bare XDP_TX is the
reference, and the difference is the router.

Requests come from ``connections`` client ports in turn. ``first-request``: each opens a new connection on its port, so
there is a cookie to check, a head to read, a route and a backend to find and an entry to write; the port's old entry is
replaced. ``next-request``: each is a further one on the connection that the port has. How many connections there are
matters: a thousand stay in the caches, tens of thousands do not, and then memory is what takes the time.

A sample is valid only if the program's own counter says that it routed exactly as many requests as there were frames.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pyroute2 import IPRoute
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from lab import topology
from lab.interfaces import Instrument, Running, Setup, Watch
from lab.samples import Better, Quantity, Sample
from rauta import tables
from rauta.bpf import BpfObject, attach_xdp, run_time_stats, xdp_context
from rauta.bpf import Program as BpfProgram
from rauta.keys import Keys
from rauta.namespaces import entered
from rauta.router import Router

if TYPE_CHECKING:
    from lab.topology import Network

FRAMES = 32_768
"""of a sample, at least; each connection has as many requests as any other, and at least two"""
MAX_CONNECTIONS = 32_768
COOKIE_OPTIONS = 7 << 4 | 1 << 3 | 3 << 1
"""window scale 7, SACK, MSS 1460; the epoch is added"""
SALT = 97_000_003
"""between the initial sequence numbers of two samples"""
BACKEND_MAC = b"\x02\x00\x00\x00\x00\x03"

Frame = Literal["first-request", "next-request"]
_MODES: Mapping[Frame, int] = {"first-request": 0, "next-request": 1}
_COUNTERS: Mapping[Frame, str] = {"first-request": "ROUTED_FIRST", "next-request": "ROUTED_NEXT"}


class Program(BaseModel):
    """ns a packet. ``request``: method and path; ``host``: its Host header; ``connections``: how many take turns."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layer: Literal["bpf"]
    frame: Frame = "first-request"
    request: Annotated[str, Field(pattern="^[A-Z]+ /")] = "GET /api/x"
    host: str = "shop.test"
    connections: Annotated[int, Field(ge=1, le=MAX_CONNECTIONS)] = 1024
    reference: Literal["xdp-tx"] = "xdp-tx"
    unit: Literal["ns"] = "ns"

    @property
    def quantity(self) -> Quantity:
        """Time a packet."""
        return Quantity(self.unit, Better.LOWER)

    @property
    def quantities(self) -> Mapping[str, Quantity]:
        """None besides."""
        return {}

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
        """It loads a router of its own, which no packet from outside can reach."""
        return False

    def subjects(self, contenders: Sequence[str]) -> Sequence[str]:
        """The router, and the bare program."""
        return ("rauta", self.reference)

    def seconds(self, warmup: float) -> float:
        """About."""
        return 0.2

    def open(self, setup: Setup) -> Instrument:
        """A namespace with a veth pair, the instruments, and a router with the scenario's routes."""
        stack = setup.stack
        namespace = stack.enter_context(_bench(setup.network, f"bench-{self.frame}-{self.connections}"))
        instruments = stack.enter_context(BpfObject.open(topology.INSTRUMENTS))
        instruments.load()
        with entered(namespace):
            attach_xdp(socket.if_nametoindex("far"), instruments.programs["xdp_drop"], mode="native")
        keys = Keys.generate()
        router = stack.enter_context(Router.load(setup.scenario.routing.config, keys))
        _point_backends(router)
        instruments.maps["cookie_keys"].update(0, tables.cookie_keys_entry(keys.cookies))
        return _Replayer(self, namespace, instruments, router)


@contextmanager
def _bench(network: Network, name: str) -> Iterator[str]:
    """A namespace with the two ends of a cable, `near` and `far`. What is attached there goes with it."""
    with topology.spare_namespace(network.run, name) as namespace:
        with entered(namespace), IPRoute() as netlink:
            netlink.link("add", ifname="near", kind="veth", peer={"ifname": "far"})
            for name in ("near", "far"):
                netlink.link("set", index=socket.if_nametoindex(name), state="up")
        yield namespace


def _point_backends(router: Router) -> None:
    """Next hops as `attach` would find them in a network."""
    backends = router.config.backends()
    indices = tables.backend_indices(router.config)
    router.object.maps["backends"].update_batch(
        (indices[name], tables.backend_entry(backend, BACKEND_MAC)) for name, backend in backends.items()
    )


@dataclass(frozen=True)
class _Replayer:
    model: Program
    namespace: str
    instruments: BpfObject
    router: Router
    samples: Iterator[int] = field(default_factory=lambda: count(1))

    def sample(self, subject: str, running: Running | None, watch: Watch, *, scale: int = 1) -> Sample:
        """One run over all frames, on one CPU."""
        frames = scale * self.model.connections * max(2, -(-FRAMES // self.model.connections))
        bare = subject == self.model.reference
        program = self.instruments.programs["xdp_tx"] if bare else self.router.object.programs["rauta_ingress"]
        counter = _COUNTERS[self.model.frame]
        salt = next(self.samples) * SALT
        with entered(self.namespace), _on_one_cpu(), run_time_stats():
            if not bare and self.model.frame == "next-request":
                self._replay(program, "first-request", self.model.connections, salt)
            before = self.router.counters()[counter]
            with watch:
                nanoseconds, failed = self._replay(program, self.model.frame, frames, salt)
            counted = self.router.counters()[counter] - before
        details = {"frames": frames, "connections": self.model.connections, "counted": counted}
        if failed or counted != (0 if bare else frames):
            reason = f"{counted} of {frames} frames were routed, {failed} could not be made"
            return Sample(nanoseconds, valid=False, reason=reason, details=details)
        return Sample(nanoseconds, details=details)

    def _replay(self, program: BpfProgram, frame: Frame, frames: int, salt: int) -> tuple[float, int]:
        """Sends frames through a program: (ns a frame by the kernel's statistics, how many could not be made)."""
        data = self._frame()
        replay = self.instruments.programs["replay"]
        self.instruments.maps["under_test"].update(0, program)
        self.instruments.maps["replays"].update(0, self._settings(data, frame, salt))
        before = replay.info()
        context = xdp_context(len(data), ingress_ifindex=socket.if_nametoindex("near"))
        replay.run_live_frames(data, ctx=context, repeat=frames)
        after = replay.info()
        failed = self.instruments.maps["replays"].lookup(0)["failed"] + frames - (after.run_cnt - before.run_cnt)
        return (after.run_time_ns - before.run_time_ns) / frames, failed

    def _settings(self, data: bytes, frame: Frame, salt: int) -> dict[str, Any]:
        return {
            "mode": _MODES[frame],
            "length": len(data),
            "payload": len(self._request()),
            "options": COOKIE_OPTIONS | self.router.keys.cookies.epoch,
            "salt": salt & 0xFFFFFFFF,
            "ports": self.model.connections,
            "frame": data,
        }

    def _request(self) -> bytes:
        return f"{self.model.request} HTTP/1.1\r\nHost: {self.model.host}\r\n\r\n".encode()

    def _frame(self) -> bytes:
        """The request as a client with timestamps sends it; ports and numbers are the replayer's."""
        vip = self.router.config.vips[0]
        options = [("NOP", None), ("NOP", None), ("Timestamp", (1, 1))]
        frame = (
            Ether(dst="02:00:00:00:00:02", src="02:00:00:00:00:01")
            / IP(src="198.18.0.1", dst=str(vip.address), flags="DF")
            / TCP(dport=vip.port, flags="PA", window=502, options=options)
            / Raw(self._request())
        )
        return bytes(frame)


@contextmanager
def _on_one_cpu() -> Iterator[None]:
    """Keeps the calling thread where it is: live frames run where the system call does."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
