"""The client's wire: everything that passes on it, segments that no TCP of the client's would send, and lost ones.

A capture is a packet socket (packet(7)) in the client's namespace. Forged and replayed packets are sent through a raw
socket (raw(7)), which takes a whole IPv4 packet and leaves the next hop to the kernel.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address

from scapy.layers.inet import IP, TCP

from lab import links
from lab.topology import Host
from rauta.bpf import BpfObject, attach_tc

ETHERNET_HEADER = 14
ETH_P_ALL = 0x0003
ETH_P_IP = b"\x08\x00"
PACKET_HOST, PACKET_OUTGOING = 0, 4
"""what a frame is to this host (include/uapi/linux/if_packet.h); others are for somebody else, and were flooded"""
SO_RCVBUFFORCE = 33
"""include/uapi/asm-generic/socket.h; Python has no name for it"""
CAPTURE_BYTES = 32 << 20
LARGEST_PACKET = 1 << 16
FRAGMENT = 0x3FFF
"""more fragments, or an offset"""

Endpoint = tuple[IPv4Address, int]


@dataclass(frozen=True)
class Packet:
    """A TCP segment as it passed: ``flags`` in scapy's letters, ``raw`` the IPv4 packet."""

    outgoing: bool
    source: Endpoint
    destination: Endpoint
    flags: str
    seq: int
    ack: int
    payload: bytes
    raw: bytes

    @property
    def after(self) -> int:
        """The sequence number that follows it."""
        return (self.seq + len(self.payload) + ("S" in self.flags) + ("F" in self.flags)) % (1 << 32)


class Capture:
    """The TCP segments that a host has sent and received since this began, and its IPv4 packets of any protocol."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._packets: list[Packet] = []
        self._ipv4: list[bytes] = []

    def packets(self) -> list[Packet]:
        """All segments, in the order in which they passed."""
        self._read()
        return list(self._packets)

    def ipv4(self, protocol: int) -> list[bytes]:
        """All packets of a protocol, in either direction, from the IPv4 header on."""
        self._read()
        return [packet for packet in self._ipv4 if packet[9] == protocol]

    def _read(self) -> None:
        while True:
            try:
                frame, (_, _, kind, *_) = self._sock.recvfrom(LARGEST_PACKET + ETHERNET_HEADER)
            except BlockingIOError:
                return
            if kind not in (PACKET_HOST, PACKET_OUTGOING) or frame[12:14] != ETH_P_IP:
                continue
            length = int.from_bytes(frame[16:18], "big")
            self._ipv4.append(frame[ETHERNET_HEADER : ETHERNET_HEADER + length])
            if _is_tcp(frame):
                self._packets.append(_segment(frame, outgoing=kind == PACKET_OUTGOING))

    def sent(self) -> list[Packet]:
        """Those that the host has sent."""
        return [packet for packet in self.packets() if packet.outgoing]

    def received(self) -> list[Packet]:
        """Those that the host has received."""
        return [packet for packet in self.packets() if not packet.outgoing]


@contextmanager
def capture(host: Host) -> Iterator[Capture]:
    """Listen on a host's wire."""
    with host.entered():  # without a protocol it hears nothing until it is bound to the one interface
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    with sock:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, CAPTURE_BYTES)
        with host.entered():
            sock.bind((host.interface, ETH_P_ALL))
        yield Capture(sock)


def _is_tcp(frame: bytes) -> bool:
    """Whether an IPv4 frame has a whole segment: of fragments, hardly one has all of the TCP header."""
    whole = not int.from_bytes(frame[20:22], "big") & FRAGMENT
    return whole and frame[ETHERNET_HEADER + 9] == socket.IPPROTO_TCP


def _segment(frame: bytes, *, outgoing: bool) -> Packet:
    ip = IP(frame[ETHERNET_HEADER:])
    tcp = ip[TCP]
    header = 4 * (ip.ihl + tcp.dataofs)
    return Packet(
        outgoing,
        source=(IPv4Address(ip.src), tcp.sport),
        destination=(IPv4Address(ip.dst), tcp.dport),
        flags=str(tcp.flags),
        seq=tcp.seq,
        ack=tcp.ack,
        payload=frame[ETHERNET_HEADER + header : ETHERNET_HEADER + ip.len],
        raw=frame[ETHERNET_HEADER : ETHERNET_HEADER + ip.len],
    )


def segment(
    source: Endpoint, destination: Endpoint, flags: str, *, seq: int, ack: int = 0, payload: bytes = b""
) -> bytes:
    """An IPv4 packet with a TCP segment without options. Numbers wrap; ``flags`` in scapy's letters."""
    ip = IP(src=str(source[0]), dst=str(destination[0]), flags="DF")
    tcp = TCP(sport=source[1], dport=destination[1], flags=flags, seq=seq % (1 << 32), ack=ack % (1 << 32), window=502)
    return bytes(ip / tcp / payload)


def send(host: Host, packet: bytes) -> None:
    """Send an IPv4 packet from a host, whatever its addresses say."""
    with host.entered():
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with sock:
        sock.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))


class Loser:
    """What loses a segment on its way to a host."""

    def __init__(self, program: BpfObject) -> None:
        self._program = program

    def lose(self, number: int) -> None:
        """Of the segments with data that come in from now on, lose the one with this number, counted from 1."""
        self._program.maps["chosen"].update(0, number)

    @property
    def has_lost(self) -> bool:
        """Whether the one that was chosen last is gone."""
        return self._program.maps["chosen"].lookup(0) == 0


@contextmanager
def losing(host: Host) -> Iterator[Loser]:
    """Let a host lose segments that come in; a capture still hears them."""
    with BpfObject.open(links.PROGRAM) as program:
        program.load()
        chosen = program.programs["link_lose_segment"]
        with host.entered():
            attached = attach_tc(socket.if_nametoindex(host.interface), chosen, "ingress")
        try:
            yield Loser(program)
        finally:
            with host.entered():
                attached.detach()
