"""The replayer: sends any number of frames of many connections through an XDP program, or out of an interface.

Live frames (BPF_PROG_TEST_RUN with BPF_F_TEST_XDP_LIVE_FRAMES) go through the kernel's XDP path one after the other, as
from a NIC. They come round as the program under test left them, so ``replay`` (lab/bpf/instruments.bpf.c) writes each
anew and then calls that program.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from lab.interfaces import Frame
from rauta import tables
from rauta.bpf import BpfObject, Program, xdp_context
from rauta.config import Vip
from rauta.keys import CookieKeys

MODES: Mapping[Frame, int] = {"first-request": 0, "next-request": 1, "syn": 2, "later": 3, "flood": 4}
COOKIE_OPTIONS = 7 << 4 | 1 << 3 | 3 << 1
"""window scale 7, SACK, MSS 1460; the epoch is added"""
FLOOD_PORTS = 61_440
"""of each address that a flood comes from, from 2048 on"""
SALT = 97_000_003
"""between the initial sequence numbers of two samples"""
TCP_OPTIONS: Sequence[tuple[str, Any]] = [("NOP", None), ("NOP", None), ("Timestamp", (1, 1))]
SYN_OPTIONS: Sequence[tuple[str, Any]] = [
    ("MSS", 1460),
    ("SAckOK", b""),
    ("Timestamp", (1, 0)),
    ("NOP", None),
    ("WScale", 7),
]
BATCH = 64
"""frames that the kernel passes on at a time, as a driver's poll does"""


@dataclass(frozen=True)
class Sent:
    """What a replay came to. ``program``: ns a frame by the kernel's run-time statistics, if they were on, of the
    replayer with the program under test; ``wall``: ns a frame on the wall clock, of everything but setting up (the
    duration that BPF_PROG_TEST_RUN gives, whole ns).
    """

    frames: int
    failed: int
    program: float
    wall: float


@dataclass
class Replayer:
    """Instruments, loaded, and the request that is sent to a VIP."""

    instruments: BpfObject
    vip: Vip
    request: bytes
    source: str
    """address of the first client"""
    macs: tuple[str, str]
    """destination and source"""
    flows: int
    salts: Iterator[int] = field(default_factory=lambda: count(1))
    """numbers that make a sample's connections its own"""
    _keys: CookieKeys | None = None

    def renew(self) -> int:
        """A salt for a sample's connections, so that they are not those of an earlier one."""
        return next(self.salts) * SALT & 0xFFFFFFFF

    def aim(self, program: Program, keys: CookieKeys | None) -> None:
        """Call this program from now on. ``keys``: those with which it makes cookies."""
        self.instruments.maps["under_test"].update(0, program)
        self._keys = keys
        if keys is not None:
            self.instruments.maps["cookie_keys"].update(0, tables.cookie_keys_entry(keys))

    def send(self, frame: Frame, frames: int, salt: int, *, interface: str) -> Sent:
        """Send frames as if they arrived at an interface of the calling thread's namespace."""
        data = self._frame(frame)
        replay = self.instruments.programs["replay"]
        self.instruments.maps["replays"].update(0, self._settings(data, frame, salt))
        context = xdp_context(len(data), ingress_ifindex=socket.if_nametoindex(interface))
        before = replay.info()
        done = replay.run_live_frames(data, ctx=context, repeat=frames, batch_size=BATCH)
        after = replay.info()
        made = self.instruments.maps["replays"].lookup(0)
        failed = made["failed"] + frames - made["position"]
        return Sent(frames, failed, (after.run_time_ns - before.run_time_ns) / frames, done.duration_ns)

    def _settings(self, data: bytes, frame: Frame, salt: int) -> dict[str, Any]:
        return {
            "mode": MODES[frame],
            "length": len(data),
            "payload": len(self.request),
            "options": COOKIE_OPTIONS | (self._keys.epoch if self._keys else 0),
            "salt": salt,
            "flows": self.flows,
            "ports": FLOOD_PORTS,
            "frame": data,
        }

    def _frame(self, frame: Frame) -> bytes:
        """A frame as a client with timestamps sends it; its connection and numbers are the replayer's."""
        opens = frame in ("syn", "flood")
        payload = Raw(self.request) if frame in ("first-request", "next-request") else b""
        flags = {"syn": "S", "flood": "S", "later": "A"}.get(frame, "PA")
        built = (
            Ether(dst=self.macs[0], src=self.macs[1])
            / IP(src=self.source, dst=str(self.vip.address), flags="DF")
            / TCP(dport=self.vip.port, flags=flags, window=502, options=list(SYN_OPTIONS if opens else TCP_OPTIONS))
        )
        return bytes(built / payload if payload else built)


def request(line: str, host: str) -> bytes:
    """A request without a body. ``line``: method and target."""
    return f"{line} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


@contextmanager
def on_one_cpu() -> Iterator[None]:
    """Keeps the calling thread where it is: live frames run where the system call does."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
