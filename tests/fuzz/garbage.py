"""Frames from a source of random choices: a client's segments, most of them damaged somewhere between Ethernet and the
payload, and the same as they reach a backend's host, and leave it.

Everything is packed by hand, with the checksums right before the damage: what a program changes must keep them so.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from ipaddress import IPv4Address
from random import Random

from packets import oracle
from packets.bench import BACKENDS
from packets.frames import (
    BACKEND_MAC,
    CLIENT,
    CLIENT_MAC,
    LOCAL,
    LOCAL_PORT,
    ROUTER_MAC,
    SECOND_VIP,
    SECOND_VIP_PORT,
    VIP,
    VIP_PORT,
    Connection,
    syn_options,
    timestamps,
)

from fuzz.heads import Heads, world

IPV4, VLAN, SERVICE_VLAN, IPV6, ARP = 0x0800, 0x8100, 0x88A8, 0x86DD, 0x0806
TCP, UDP, ICMP, IPIP = 6, 17, 1, 4
FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32
SHORTEST, LONGEST = 14, 2200  # bytes of a frame that BPF_PROG_TEST_RUN takes ...
SHORTEST_PACKETS = {IPV4: 20, IPV6: 40}  # ... for a tc program with this much behind Ethernet
ROUTER_OUTER = "198.19.0.77"
CONNECTIONS = (
    *(Connection(port=30000 + number) for number in range(8)),
    *(Connection(port=30100 + number, options=oracle.SynOptions(mss=1000), epoch=number & 1) for number in range(4)),
    Connection(port=30200, isn=0xFFFFFFF0),
    Connection(port=30201, isn=0xFFFFFFFF, options=oracle.SynOptions(wscale=15, sack=True)),
)
_FLAGS = (
    SYN,
    ACK,
    ACK | PSH,
    FIN | ACK,
    FIN | ACK | PSH,
    RST,
    RST | ACK,
    SYN | ACK,
    SYN | FIN,
    SYN | RST,
    FIN,
    PSH,
    0,
    URG | ACK,
    0xFF,
    0xC2,
)


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def pseudo_header(source: bytes, destination: bytes, length: int) -> bytes:
    """What TCP's checksum covers besides the segment."""
    return source + destination + struct.pack(">HH", TCP, length & 0xFFFF)


class Frames:
    """An endless supply of frames, good and bad."""

    def __init__(self, random: Random) -> None:
        """`random` makes all choices."""
        self._random = random
        self._heads = Heads(random, world(0))
        self._sent: dict[int, int] = {}

    def to_router(self) -> bytes:
        """What comes in at the router."""
        if self._random.random() < 0.03:
            return self._bytes(SHORTEST, 200)
        frame = self._ethernet(self._packet(), CLIENT_MAC, ROUTER_MAC)
        return self._damaged(frame) if self._random.random() < 0.3 else frame[:LONGEST]

    def to_backend(self) -> bytes:
        """What comes in at the host of a backend."""
        chance = self._random.random
        packet = self._packet()
        if chance() < 0.9:
            cookie = self._random.choice(CONNECTIONS).cookie
            number = oracle.outer_id(cookie, opens=chance() < 0.5) if chance() < 0.9 else self._random.randrange(65536)
            fields = {
                "protocol": IPIP,
                "number": number,
                "source": ROUTER_OUTER if chance() < 0.95 else CLIENT,
                "destination": LOCAL,
            }
            packet = self._ip(packet, fields)
        frame = self._ethernet(packet, ROUTER_MAC, BACKEND_MAC)
        return _long_enough(self._damaged(frame) if chance() < 0.2 else frame[:LONGEST])

    def from_backend(self) -> bytes:
        """What a server's host sends."""
        connection = self._random.choice(CONNECTIONS)
        segment = self._segment(connection, LOCAL, CLIENT, LOCAL_PORT, connection.port)
        frame = self._ethernet(self._ip(segment, {"source": LOCAL, "destination": CLIENT}), BACKEND_MAC, ROUTER_MAC)
        return _long_enough(self._damaged(frame) if self._random.random() < 0.2 else frame[:LONGEST])

    # ---- layers ----------------------------------------------------------------------------------------

    def _packet(self) -> bytes:
        if self._random.random() < 0.1:
            return self._icmp_error()
        connection = self._random.choice(CONNECTIONS)
        server, port = (
            (VIP, VIP_PORT)
            if self._random.random() < 0.9
            else self._random.choice(
                ((SECOND_VIP, SECOND_VIP_PORT), (VIP, 81), (VIP, 0), (LOCAL, LOCAL_PORT), ("198.18.100.99", 80))
            )
        )
        segment = self._segment(connection, CLIENT, server, connection.port, port)
        return self._ip(segment, {"source": CLIENT, "destination": server})

    def _icmp_error(self) -> bytes:
        """About a packet of a VIP's to a client, or about one that was encapsulated on its way to a backend."""
        choose, below = self._random.choice, self._random.randrange
        connection = choose(CONNECTIONS)
        if below(2):
            about, to = self._segment(connection, VIP, CLIENT, VIP_PORT, connection.port), VIP
            about = self._ip(about, {"source": VIP, "destination": CLIENT})
        else:
            to = oracle.outer_source(connection.tuple, "198.19.0.0", "255.255.255.0")
            about = self._segment(connection, CLIENT, VIP, connection.port, VIP_PORT)
            about = self._ip(about, {"source": CLIENT, "destination": VIP})
            backend = choose(list(BACKENDS.values())).address
            about = self._ip(about, {"source": to, "destination": backend, "protocol": IPIP})
        kind, code = choose(((3, 4), (3, 4), (3, 4), (below(20), below(6))))
        mtu = choose((68, 576, 1400, 1480, 0, 67, 88, 65535))
        excerpt = about[: choose((28, 48, 68, 576, 1500, below(100)))]
        icmp = bytearray(struct.pack(">BBHHH", kind, code, 0, 0, mtu) + excerpt)
        icmp[2:4] = checksum(bytes(icmp)).to_bytes(2, "big")
        return self._ip(bytes(icmp), {"source": "198.18.0.254", "destination": to, "protocol": ICMP})

    def _segment(
        self, connection: Connection, source: str, destination: str, source_port: int, destination_port: int
    ) -> bytes:
        """TCP, as the connection would say it next, or not at all."""
        choose, chance = self._random.choice, self._random.random
        flags = choose(_FLAGS) if chance() < 0.3 else choose((ACK, ACK | PSH, ACK | PSH, SYN, FIN | ACK))
        payload = b"" if flags & SYN or chance() < 0.3 else self._payload()
        seq, ack = self._numbers(connection, flags, len(payload))
        options = self._options(connection, flags)
        offset = 5 + len(options) // 4 if chance() < 0.95 else self._random.randrange(16)
        header = struct.pack(
            ">HHIIBBHHH",
            source_port,
            destination_port,
            seq & 0xFFFFFFFF,
            ack & 0xFFFFFFFF,
            offset << 4,
            flags,
            502,
            0,
            0,
        )
        segment = bytearray(header + options + payload)
        covered = pseudo_header(IPv4Address(source).packed, IPv4Address(destination).packed, len(segment)) + segment
        segment[16:18] = checksum(covered).to_bytes(2, "big")
        return bytes(segment)

    def _numbers(self, connection: Connection, flags: int, length: int) -> tuple[int, int]:
        """Those of a handshake; or of what follows the last data, as if there had been an answer; or any."""
        choose, wild = self._random.choice, self._random.getrandbits(32)
        if flags & (SYN | ACK) == SYN:
            return connection.isn, 0
        at, acked = choose(
            ((0, 0), (0, 0), (self._sent.get(connection.port, 0), choose((0, 300))), (choose((0, -1, 1, 100)), 0))
        )
        if length:
            self._sent[connection.port] = at + length
        if self._random.random() < 0.1:
            at, acked = choose(((wild, acked), (at, wild), (at, -1), (at, 1)))
        return connection.start + at, connection.cookie + 1 + acked

    def _options(self, connection: Connection, flags: int) -> bytes:
        kind = self._random.random()
        if kind < 0.1:
            return self._random.randbytes(4 * self._random.randrange(11))
        if kind < 0.2:
            return b""
        return syn_options(connection.options) if flags & SYN else timestamps(self._random.getrandbits(32), 0x0A0B0C0D)

    def _payload(self) -> bytes:
        kind = self._random.random()
        if kind < 0.6:
            return self._heads.draw()
        if kind < 0.7:
            return self._random.choice((b"G", b"GET ", b"OPTIONS", b"x", b"\x16\x03\x01", b"PRI * HTTP/2.0\r\n", b"\0"))
        return self._bytes(0, self._random.choice((8, 100, 1400, 1500)))

    def _ip(self, payload: bytes, fields: dict[str, int | str]) -> bytes:
        """IPv4, in one of five cases with a field that is not as it should be. Its checksum is right."""
        chance, below = self._random.random, self._random.randrange
        version, words, options, flags, protocol = 4, 5, b"", 0x4000, int(fields.get("protocol", TCP))
        length = 20 + len(payload)
        match below(40):
            case 0:
                version = below(16)
            case 1:
                words = below(16)
            case 2 | 3:
                options = self._random.randbytes(4 * below(11))
                words, length = 5 + len(options) // 4, length + len(options)
            case 4 | 5:
                length = self._random.choice((0, 1, 19, 20, 39, 40, 41, length - 1, length + 1, below(65536)))
            case 6:
                flags = self._random.choice((0x2000, 0x1, 0x1FFF, 0x8000, 0x6000, 0))
            case 7:
                protocol = self._random.choice((UDP, ICMP, IPIP, TCP, 0, 255))
        service, life = (0 if chance() < 0.9 else below(256)), (64 if chance() < 0.9 else below(256))
        ends = IPv4Address(fields["source"]).packed + IPv4Address(fields["destination"]).packed
        number = int(fields.get("number", 0x4D5A))
        start = struct.pack(">BBHHH", version << 4 | words, service, length & 0xFFFF, number, flags)
        header = bytearray(start + struct.pack(">BBH", life, protocol, 0) + ends + options)
        header[10:12] = checksum(bytes(header)).to_bytes(2, "big")
        return bytes(header) + payload

    def _ethernet(self, packet: bytes, source: str, destination: str) -> bytes:
        chance, choose = self._random.random, self._random.choice
        tags = b""
        if chance() < 0.15:
            tags = b"".join(
                struct.pack(">HH", choose((VLAN, SERVICE_VLAN)), self._random.randrange(65536))
                for _ in range(choose((1, 1, 2, 3)))
            )
        kind = IPV4 if chance() < 0.98 else choose((IPV6, ARP, VLAN, 0, 0xFFFF))
        padding = b"" if chance() < 0.8 else self._bytes(1, 60)
        return oracle.mac(destination) + oracle.mac(source) + tags + kind.to_bytes(2, "big") + packet + padding

    # ---- damage ----------------------------------------------------------------------------------------

    def _damaged(self, frame: bytes) -> bytes:
        below = self._random.randrange
        match below(4):
            case 0:
                frame = frame[: below(len(frame) + 1)]
            case 1:
                frame += self._bytes(1, 300)
            case 2:
                changed = bytearray(frame)
                for _ in range(self._random.choice((1, 1, 2, 8))):
                    changed[below(min(len(frame), 80))] = below(256)
                frame = bytes(changed)
            case 3:
                at = below(len(frame))
                frame = frame[:at] + frame[at + self._random.choice((1, 2, 4, 20)) :]
        return frame[:LONGEST].ljust(SHORTEST, b"\0")

    def _bytes(self, shortest: int, longest: int) -> bytes:
        return self._random.randbytes(self._random.randint(shortest, longest))


def _long_enough(frame: bytes) -> bytes:
    kind = int.from_bytes(frame[12:14], "big")
    return frame.ljust(SHORTEST + SHORTEST_PACKETS.get(kind, 0), b"\0")


def without_tags(frame: bytes) -> tuple[bytes, bytes]:
    """A frame without its VLAN tags (two at most, as the router takes them), and the tags."""
    end = 12
    while end < 20 and frame[end : end + 2] in (b"\x81\x00", b"\x88\xa8") and len(frame) >= end + 4:
        end += 4
    return frame[:12] + frame[end:], frame[12:end]


def is_icmp(frame: bytes) -> bool:
    """Whether it is ICMP in IPv4."""
    bare, _ = without_tags(frame)
    return bare[12:14] == b"\x08\x00" and bare[23:24] == bytes([ICMP])


def known_as(frame: bytes, targets: Sequence[tuple[str, int]]) -> bool:
    """Whether it is beyond doubt an unfragmented TCP segment in IPv4 to one of these."""
    bare, _ = without_tags(frame)
    packet = bare[14:]
    if bare[12:14] != b"\x08\x00" or len(packet) < 20 or packet[0] >> 4 != 4 or packet[0] & 15 < 5:
        return False
    ports = packet[(packet[0] & 15) * 4 :][:4]
    if packet[9] != TCP or int.from_bytes(packet[6:8], "big") & 0x3FFF or len(ports) < 4:
        return False
    return (str(IPv4Address(packet[16:20])), int.from_bytes(ports[2:], "big")) in targets
