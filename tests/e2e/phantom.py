"""A client without a kernel: its TCP is what a test says, segment by segment.

It has an address that no kernel owns. Its packets leave through a raw socket of the client's host; what comes back is
seen on the wire there, and goes no further, so that nobody resets what the test has in hand. Backends know the address
by a static neighbour.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any

from scapy.layers.inet import IP, TCP
from scapy.packet import Raw

from e2e.bench import SECONDS, Bench, eventually
from e2e.wire import Capture, Endpoint, Packet, capture, send

ADDRESS = IPv4Address("198.18.0.250")
ISN = 0x5000_0000
WINDOW = 64_000
HEAD_END = b"\r\n\r\n"


@dataclass
class Phantom:
    """A connection of the phantom's. Numbers of segments count from the connection's first byte."""

    bench: Bench
    wire: Capture
    vip: Endpoint
    port: int
    seen: int = field(default=0, init=False)
    """packets that came before this connection"""
    cookie: int = field(default=0, init=False)
    """the server's initial number"""
    sent: int = field(default=0, init=False)
    """where acknowledgements stand: how much of its own it has sent"""
    acked: int = field(default=0, init=False)
    """bytes of the server's that were acknowledged"""

    def __post_init__(self) -> None:
        self.seen = len(self.wire.received())

    def send(
        self,
        flags: str,
        payload: bytes = b"",
        *,
        at: int = 0,
        window: int = WINDOW,
        ip: dict[str, Any] | None = None,
        tcp: dict[str, Any] | None = None,
    ) -> None:
        """A segment; `ip` and `tcp` are further fields of scapy's headers."""
        send(self.bench.client, self.packet(flags, payload, at=at, window=window, ip=ip, tcp=tcp))

    def packet(
        self,
        flags: str,
        payload: bytes = b"",
        *,
        at: int = 0,
        window: int = WINDOW,
        ip: dict[str, Any] | None = None,
        tcp: dict[str, Any] | None = None,
    ) -> bytes:
        """It as an IPv4 packet."""
        numbers = {"seq": (ISN + 1 + at) % (1 << 32), "ack": (self.cookie + 1 + self.acked) % (1 << 32)}
        if "S" in flags:
            numbers = {"seq": ISN, "ack": 0}
        header = IP(**{"src": str(ADDRESS), "dst": str(self.vip[0]), "flags": "DF"} | (ip or {}))
        segment = TCP(sport=self.port, dport=self.vip[1], flags=flags, window=window, **numbers | (tcp or {}))
        return bytes(header / segment / Raw(payload))

    def greet(self, payload: bytes = b"", *, flags: str = "S", options: Sequence[Any] = (("MSS", 1460),)) -> Packet:
        """The handshake's first two packets; the SYN-ACK. Its options are `options_of` it."""
        self.send(flags, payload, tcp={"options": list(options)})
        eventually(lambda: bool(self.received("SA")), "the SYN-ACK")
        hello = self.received("SA")[-1]
        self.cookie = hello.seq
        return hello

    def received(self, flags: str = "") -> list[Packet]:
        """What has come so far for this connection; only packets with all these flags."""
        packets = self.wire.received()[self.seen :]
        return [one for one in packets if one.destination == (ADDRESS, self.port) and set(flags) <= set(one.flags)]

    def data(self) -> bytes:
        """What the server has said so far, in order and without gaps; acknowledges nothing."""
        said = b""
        segments = [((one.seq - self.cookie - 1) % (1 << 32), one.payload) for one in self.received() if one.payload]
        for at, payload in sorted(segments):
            if at <= len(said) < at + len(payload):
                said = said[:at] + payload
        return said

    def acknowledge(self) -> None:
        """All that has come so far."""
        self.acked = len(self.data())
        self.send("A", at=self.sent)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The answer's status, fields and body, once all of it has come: acknowledged as it comes."""

        def complete() -> bool:
            if len(self.data()) > self.acked:
                self.acknowledge()
            head, end, body = self.data().partition(HEAD_END)
            return bool(end) and len(body) >= int(fields_of(head).get("content-length", "0"))

        eventually(complete, f"the answer to port {self.port}: {self.received()}", SECONDS)
        head, _, body = self.data().partition(HEAD_END)
        return int(head.split()[1]), fields_of(head), body

    def was_reset(self) -> bool:
        """Whether any packet so far is a reset."""
        return bool(self.received("R"))


def fields_of(head: bytes) -> dict[str, str]:
    """The header fields of an answer by lower-case name."""
    lines = head.decode().split("\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def options_of(packet: Packet) -> dict[str, Any]:
    """The TCP options of a packet by scapy's names."""
    return dict(IP(packet.raw)[TCP].options)


def fragments(packet: bytes, size: int) -> list[bytes]:
    """An IPv4 packet in fragments that carry so many bytes each, a multiple of 8."""
    header, rest = packet[:20], packet[20:]
    pieces = []
    for at in range(0, len(rest), size):
        more = at + size < len(rest)
        piece = bytearray(header + rest[at : at + size])
        struct.pack_into("!H", piece, 2, len(piece))
        struct.pack_into("!H", piece, 6, (0x2000 if more else 0) | at // 8)
        struct.pack_into("!H", piece, 10, 0)  # the kernel fills the checksum of what a raw socket sends
        pieces.append(bytes(piece))
    return pieces


@contextmanager
def phantoms(routed: Bench) -> Iterator[Capture]:
    """Backends know the phantom's address as long as this lasts; the packets on the client's wire."""
    neighbour = [str(ADDRESS), "dev", "eth0"]
    backends = [routed.network.hosts[name] for names in routed.network.clusters.values() for name in names]
    for backend in backends:
        mac = routed.client.mac
        backend.run(["ip", "neigh", "replace", *neighbour, "lladdr", mac, "nud", "permanent"], timeout=SECONDS)
    try:
        with capture(routed.client) as wire:
            yield wire
    finally:
        for backend in backends:
            backend.run(["ip", "neigh", "del", *neighbour], timeout=SECONDS)
