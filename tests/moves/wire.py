"""What is under way between client, router and backends, and how it looks on the wire.

A packet is known by what it says. What differs from one run to the next, the time of a shim, its tag, a clock and a
round trip, is taken out where it leaves a program (its tag is checked first), and put in again where it enters one.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass
from ipaddress import IPv4Address

from packets import oracle
from packets.frames import BACKEND_MAC, CLIENT_MAC, ETHERNET_HEADER, ROUTER_MAC, VIP, VIP_PORT

IP_HEADER, SHIM = 20, 24
SHIM_MOVE, SHIM_ADOPT, SHIM_MOVED = 16, 17, 18
IPPROTO_IPIP, IPPROTO_TCP, IPPROTO_SHIM = 4, 6, 253
CLOCK, TRIP = 0x0A0B_0C0D, 1  # what an ADOPT says here
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16

_SHIM = struct.Struct("<BBBBHHIIQ")
_TAI = time.CLOCK_TAI


@dataclass(frozen=True)
class Packet:
    """To whom it goes ("router", "A", "B", "client"), and what it is, from the IPv4 header on."""

    to: str
    data: bytes

    def frame(self) -> bytes:
        """As it arrives, with a shim of just now."""
        source, destination = (CLIENT_MAC, ROUTER_MAC) if self.to == "router" else (ROUTER_MAC, BACKEND_MAC)
        header = oracle.mac(destination) + oracle.mac(source) + b"\x08\x00"
        return header + (_sealed(self.data) if self.data[9] == IPPROTO_SHIM else self.data)

    def __str__(self) -> str:
        return f"{_described(self.data)} to {self.to}"


class Forged(AssertionError):
    """A program has sent a shim whose tag is wrong."""


class Stray(AssertionError):
    """A program has sent something to nobody."""


def packet_of(frame: bytes, addresses: dict[str, str]) -> Packet:
    """What has left a program; `addresses`: names of the backends by address. Raises Forged and Stray."""
    data = frame[ETHERNET_HEADER:]
    data = data[: int.from_bytes(data[2:4], "big")]
    source, destination = (str(IPv4Address(data[at : at + 4])) for at in (12, 16))
    if data[9] == IPPROTO_SHIM:
        data = _unsealed(data)
    if data[9] == IPPROTO_TCP:
        if (source, int.from_bytes(data[20:22], "big")) != (VIP, VIP_PORT):
            raise Stray(f"{source} to {destination}: {_described(data)}")
        return Packet("client", plain(data))
    if data[9] in (IPPROTO_SHIM, IPPROTO_IPIP):
        return Packet(addresses.get(destination, "router"), data)
    raise Stray(f"protocol {data[9]} from {source} to {destination}: {data.hex()}")


def tcp_of(data: bytes) -> tuple[int, int, int, bytes]:
    """Sequence and acknowledgement number, flags and payload of an IPv4 packet with TCP."""
    seq, ack, offset, flags = struct.unpack_from(">IIBB", data, IP_HEADER + 4)
    return seq, ack, flags, data[IP_HEADER + (offset >> 4) * 4 :]


def plain(data: bytes) -> bytes:
    """A segment to the client without what does not matter here: identification, options, window, sums, PSH."""
    seq, ack, flags, payload = tcp_of(data)
    ip = data[:2] + (2 * IP_HEADER + len(payload)).to_bytes(2, "big") + bytes(2) + data[6:10] + bytes(2) + data[12:20]
    return ip + data[20:24] + struct.pack(">IIBB6x", seq, ack, 0x50, flags & ~PSH) + payload


def _tag(data: bytes, shim: tuple[int, ...]) -> int:
    inner = data[IP_HEADER + SHIM :]
    seq, ack, _, _ = tcp_of(inner)
    if shim[1] == SHIM_MOVED:
        seq, ack = shim[6], shim[7]
    bond = inner[12:20] + inner[20:24] + struct.pack("<II", seq, ack) + data[12:20] + bytes(4)
    return oracle.siphash24(*oracle.ASK_KEYS[shim[2] & 1], _SHIM.pack(*shim[:8], 0)[:16] + bond)


def _unsealed(data: bytes) -> bytes:
    shim = _SHIM.unpack_from(data, IP_HEADER)
    if _tag(data, shim) != shim[8]:
        raise Forged(_described(data))
    version, kind, flags, options, _, trip, first, second, _ = shim
    if kind == SHIM_ADOPT:
        trip, first = TRIP, CLOCK if first else 0
    plain = _SHIM.pack(version, kind, flags, options, 0, trip, first, second, 0)
    return data[:IP_HEADER] + plain + data[IP_HEADER + SHIM :]


def _sealed(data: bytes) -> bytes:
    version, kind, flags, options, _, trip, first, second, _ = _SHIM.unpack_from(data, IP_HEADER)
    now = int(time.clock_gettime(_TAI)) & 0xFFFF
    shim = (version, kind, flags, options, now, trip, first, second)
    return data[:IP_HEADER] + _SHIM.pack(*shim, _tag(data, shim)) + data[IP_HEADER + SHIM :]


def _described(data: bytes) -> str:
    said = ""
    if data[9] == IPPROTO_SHIM:
        kind = data[IP_HEADER + 1]
        said = {SHIM_MOVE: "MOVE ", SHIM_ADOPT: "ADOPT ", SHIM_MOVED: "MOVED "}.get(kind, f"shim {kind} ")
        inner = data[IP_HEADER + SHIM :]
    elif data[9] == IPPROTO_IPIP:
        said, inner = f"[{int.from_bytes(data[4:6], 'big'):04x}] ", data[IP_HEADER:]
    else:
        inner = data
    seq, ack, flags, payload = tcp_of(inner)
    letters = "".join(letter for letter, bit in zip("FSRPA", (FIN, SYN, RST, PSH, ACK), strict=True) if flags & bit)
    text = payload.split(b"\r")[0].decode("latin-1")
    return f"{said}{letters} seq {seq:x} ack {ack:x} {text!r}+{len(payload)}"
