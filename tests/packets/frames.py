"""A client's segments, and the frames that the router or the agent must answer with or pass on, made by scapy.

    alice = Connection(port=40001)                    what the client offered in its SYN decides about the answers
    segment = alice.data(request("/api"))             a Segment: bytes(segment) is its frame
    reset_of(segment), answer_to(segment, "404 Not Found"), encapsulated(segment, backend, source, cookie, opens=True)

TCP options are raw bytes here, so that malformed ones are written as easily as good ones; scapy computes lengths and
checksums. Sequence numbers wrap as on the wire.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from packets import oracle

CLIENT_MAC = "02:00:00:00:00:01"
ROUTER_MAC = "02:00:00:00:00:02"
BACKEND_MAC = "02:00:00:00:00:0b"
CLIENT = "198.18.0.1"
VIP, VIP_PORT = "198.18.100.80", 80
LOCAL, LOCAL_PORT = "198.18.0.11", 8080  # of the server behind the VIP, on the host of the agent
SECOND_VIP, SECOND_VIP_PORT, SECOND_LOCAL_PORT = "198.18.100.82", 8443, 9090

ETHERNET_HEADER = 14
HEADERS = ETHERNET_HEADER + 20 + 20  # in front of TCP options and payload, without IPv4 options
SHIM = ETHERNET_HEADER + 20  # where a shim is
TCP_WINDOW = 502  # of the client's segments after the SYN
ISN = 0x1000_0000
CLIENT_CLOCK = 0x0102_0304  # TSval of a client's segments
ECHOED_CLOCK = (time.monotonic_ns() // 10**6 + (1 << 31)) & 0xFFFFFFFF  # the TSecr that it echoes, long out of date
AGE = 40  # ms, of the handshake, as the router says where these tests are not about it


OFFERED = oracle.SynOptions(mss=1460, wscale=7, sack=True, tsval=CLIENT_CLOCK)  # as Linux does


# ---- the client -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Connection:
    """A connection that a client opens to a VIP: its four numbers, its initial sequence number, what its SYN offers."""

    port: int = 40000
    isn: int = ISN
    options: oracle.SynOptions = OFFERED
    epoch: int = 0
    client: str = CLIENT
    server: str = VIP
    server_port: int = VIP_PORT
    keys: tuple[tuple[int, int], ...] = oracle.COOKIE_KEYS

    @property
    def tuple(self) -> oracle.Tuple:
        """The four numbers."""
        return oracle.Tuple(self.client, self.port, self.server, self.server_port)

    @cached_property
    def cookie(self) -> int:
        """The initial sequence number of the server: what the router's SYN-ACK says."""
        return oracle.cookie(self.tuple, self.isn, oracle.cookie_options(self.options, self.epoch), self.keys)

    @property
    def window(self) -> int:
        """The window in what the router itself says after the handshake."""
        shift = 0 if self.options.wscale is None else oracle.ROUTER_WSCALE
        return oracle.ROUTER_WINDOW >> shift

    @property
    def start(self) -> int:
        """The sequence number of the first byte that the client sends."""
        return (self.isn + 1) & 0xFFFFFFFF

    def reopened(self, isn: int) -> Connection:
        """The next connection from the same port."""
        return replace(self, isn=isn)

    def syn(self, payload: bytes = b"", options: bytes | None = None, flags: str = "S") -> Segment:
        """The first segment; `options` as raw bytes, or what `self.options` says, as Linux would write it."""
        raw = syn_options(self.options) if options is None else options
        return Segment(self, flags, self.isn, 0, payload, raw, window=64240)

    def data(self, payload: bytes, at: int = 0, acked: int = 0, flags: str = "PA", **changes: Any) -> Segment:
        """A segment that starts `at` bytes after the connection's first, and acknowledges as many of the server's."""
        raw = timestamps(CLIENT_CLOCK + 1, ECHOED_CLOCK) if self.options.tsval is not None else b""
        made = Segment(self, flags, self.start + at & 0xFFFFFFFF, self.cookie + 1 + acked & 0xFFFFFFFF, payload, raw)
        return replace(made, **changes)

    def later(self, payload: bytes, at: int, acked: int = 300, **changes: Any) -> Segment:
        """What starts where a later request does: like it, it acknowledges some of the answer before it."""
        return self.data(payload, at, acked, **changes)

    def ack(self, at: int = 0, acked: int = 0, **changes: Any) -> Segment:
        """A bare acknowledgement."""
        return self.data(b"", at, acked, "A", **changes)

    def fin(self, at: int = 0, payload: bytes = b"", **changes: Any) -> Segment:
        """The client's end, behind a payload if there is one."""
        return self.data(payload, at, flags="FPA" if payload else "FA", **changes)

    def rst(self, at: int = 0, flags: str = "R", **changes: Any) -> Segment:
        """A reset; no options, as Linux sends it."""
        return self.data(b"", at, flags=flags, options=b"", **changes)


@dataclass(frozen=True)
class Segment:
    """One segment of a client. `ip` and `tcp` override single fields of scapy's headers, `padding` follows the packet.

    `bytes(segment)` is the Ethernet frame as it reaches the router.
    """

    connection: Connection
    flags: str
    seq: int
    ack: int
    payload: bytes = b""
    options: bytes = b""
    window: int = TCP_WINDOW
    ip: Mapping[str, Any] = field(default_factory=dict)
    tcp: Mapping[str, Any] = field(default_factory=dict)
    padding: bytes = b""

    @property
    def after(self) -> int:
        """The sequence number that follows it."""
        return self.seq + len(self.payload) + ("F" in self.flags) & 0xFFFFFFFF

    @cached_property
    def packet(self) -> bytes:
        """The IPv4 packet, without padding."""
        four = self.connection.tuple
        ip: dict[str, Any] = {"src": four.client, "dst": four.server, "id": 0x4D5A, "flags": "DF", "ttl": 61}
        tcp: dict[str, Any] = {
            "sport": four.client_port,
            "dport": four.server_port,
            "seq": self.seq,
            "ack": self.ack,
            "flags": self.flags,
            "window": self.window,
            "dataofs": 5 + len(self.options) // 4,
        }
        return ip_packet(ip | dict(self.ip), tcp | dict(self.tcp), self.options + self.payload)

    def __bytes__(self) -> bytes:
        return ethernet(CLIENT_MAC, ROUTER_MAC, self.packet) + self.padding


def request(
    target: str = "/", *headers: str, method: str = "GET", host: str | None = "shop.test", version: str = "HTTP/1.1"
) -> bytes:
    """A request head; `headers` are lines without their end."""
    lines = [f"{method} {target} {version}", *([f"Host: {host}"] if host is not None else []), *headers]
    return "".join(f"{line}\r\n" for line in lines).encode("latin-1") + b"\r\n"


# ---- wire -----------------------------------------------------------------------------------------------


def ip_packet(ip: Mapping[str, Any], tcp: Mapping[str, Any], rest: bytes = b"") -> bytes:
    """An IPv4 packet with a TCP header; `rest` is the options and the payload. Lengths and checksums are scapy's."""
    return bytes(IP(**ip) / TCP(**tcp) / Raw(rest))


def ethernet(source: str, destination: str, packet: bytes, ethertype: int = 0x0800) -> bytes:
    """An Ethernet frame, without padding."""
    return bytes(Ether(src=source, dst=destination, type=ethertype)) + packet


def icmp_error(
    about: bytes, ip: Mapping[str, Any], *, kind: int = 3, code: int = 4, mtu: int = 0, **fields: Any
) -> bytes:
    """An IPv4 packet with an ICMP error; `about` is the beginning of the packet that it is about.

    By default "fragmentation needed", for a link of that `mtu`.
    """
    icmp = {"type": kind, "code": code} | ({"nexthopmtu": mtu} if kind == 3 else {}) | fields
    return bytes(IP(**ip) / ICMP(**icmp) / Raw(about))


def timestamps(tsval: int, tsecr: int) -> bytes:
    """The timestamp option as everybody aligns it."""
    return b"\x01\x01\x08\x0a" + struct.pack(">II", tsval, tsecr)


def syn_options(options: oracle.SynOptions) -> bytes:
    """The options of a SYN in the order of Linux (net/ipv4/tcp_output.c, tcp_options_write)."""
    raw = b"" if options.mss is None else struct.pack(">BBH", 2, 4, options.mss)
    raw += _sack_and_timestamps(options.sack, options.tsval, 0)
    return raw + (b"" if options.wscale is None else bytes([1, 3, 3, options.wscale]))


def _sack_and_timestamps(sack: bool, tsval: int | None, tsecr: int) -> bytes:
    """SACK-permitted takes the place of the two no-operations in front of the timestamps."""
    if tsval is None:
        return b"\x01\x01\x04\x02" if sack else b""
    return (b"\x04\x02" if sack else b"\x01\x01") + timestamps(tsval, tsecr)[2:]


# ---- what the router answers ----------------------------------------------------------------------------


def reply(
    segment: Segment, flags: str, seq: int, ack: int, window: int, options: bytes = b"", payload: bytes = b""
) -> bytes:
    """A frame from the router to the client, in the VIP's name."""
    four = segment.connection.tuple
    ip = {"src": four.server, "dst": four.client, "tos": 0, "id": 0, "flags": "DF", "ttl": 64}
    tcp = {
        "sport": four.server_port,
        "dport": four.client_port,
        "seq": seq & 0xFFFFFFFF,
        "ack": ack & 0xFFFFFFFF,
        "flags": flags,
        "window": window,
        "urgptr": 0,
        "dataofs": 5 + len(options) // 4,
    }
    return ethernet(ROUTER_MAC, CLIENT_MAC, ip_packet(ip, tcp, options + payload))


def syn_ack_to(syn: Segment, tsval: int, epoch: int = 0) -> bytes:
    """The cookie SYN-ACK; `tsval` is the router's clock."""
    offered = oracle.parse_syn_options(syn.options)
    four, option_byte = syn.connection.tuple, oracle.cookie_options(offered, epoch)
    cookie = oracle.cookie(four, syn.seq, option_byte, syn.connection.keys)
    options = struct.pack(">BBH", 2, 4, oracle.ROUTER_MSS)
    options += _sack_and_timestamps(offered.sack, None if offered.tsval is None else tsval, offered.tsval or 0)
    options += b"" if offered.wscale is None else bytes([1, 3, 3, oracle.ROUTER_WSCALE])
    return reply(syn, "SA", cookie, syn.seq + 1, oracle.ROUTER_WINDOW, options)


def reset_of(segment: Segment) -> bytes:
    """The reset that a segment gets."""
    return reply(segment, "R", segment.ack, 0, 0)


def acknowledgement_of(segment: Segment, flags: str = "A", ack: int | None = None) -> bytes:
    """The answer to a keepalive probe (ACK) or to a FIN (ACK, or FIN and ACK): the number after it, or `ack`."""
    window = segment.connection.window
    return reply(segment, flags, segment.ack, segment.seq + 1 if ack is None else ack, window, _echo(segment))


def answer_to(segment: Segment, status: str) -> bytes:
    """The router's own HTTP answer, which also closes."""
    text = f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
    return reply(segment, "FPA", segment.ack, segment.after, segment.connection.window, _echo(segment), text)


def too_big(segment: Segment) -> bytes:
    """What the router says of a segment that has no room for the outer header: ICMP, about its first 40 bytes."""
    ip = {
        "src": segment.connection.server,
        "dst": segment.connection.client,
        "tos": 0,
        "id": 0,
        "flags": "DF",
        "ttl": 64,
    }
    return ethernet(ROUTER_MAC, CLIENT_MAC, icmp_error(segment.packet[:40], ip, mtu=oracle.PATH_MTU - 20))


def _echo(segment: Segment) -> bytes:
    """The timestamps of a segment, sent back the other way round."""
    echoed = oracle.parse_timestamps(segment.options)
    return b"" if echoed is None else timestamps(echoed[1], echoed[0])


# ---- what goes to a backend -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Backend:
    """Where encapsulated packets go: the host's address, and the next hop's MAC address."""

    index: int
    address: str
    mac: str


def delivered(segment: Segment, address: str = LOCAL, port: int = LOCAL_PORT) -> bytes:
    """What the agent makes of an encapsulated segment: as if the client had sent it to the local address and port."""
    packet = replace(segment, ip={"dst": address} | dict(segment.ip), tcp={"dport": port} | dict(segment.tcp)).packet
    return ethernet(ROUTER_MAC, BACKEND_MAC, packet)


def clearing(segment: Segment, seq: int) -> bytes:
    """What becomes of a delivered segment that makes an old socket go: a bare reset with the number that this expects.

    The total length says that nothing follows; what followed is left behind the packet, as padding.
    """
    frame = delivered(segment)
    ip = {"src": segment.connection.client, "dst": LOCAL, "id": 0x4D5A, "flags": "DF", "ttl": 61}
    tcp = {"sport": segment.connection.port, "dport": LOCAL_PORT, "seq": seq, "ack": 0, "flags": "R", "window": 0}
    return frame[:ETHERNET_HEADER] + ip_packet(ip, tcp) + frame[HEADERS:]


def carried(
    segment: Segment,
    *,
    opens: bool = False,
    source: str = "198.19.0.77",
    age: int = AGE,
    new: bool = False,
    **outer: Any,
) -> bytes:
    """An encapsulated segment as it reaches the backend's host; `outer` overrides fields of the outer IPv4 header."""
    said = oracle.outer_id(segment.connection.cookie, opens=opens, age=age, new=new)
    return carried_packet(segment.packet, segment.connection.cookie, source=source, **{"id": said} | outer)


def carried_packet(
    packet: bytes, cookie: int, *, opens: bool = False, source: str = "198.19.0.77", age: int = AGE, **outer: Any
) -> bytes:
    """The same of any packet, said to be of the connection with that cookie."""
    header: dict[str, Any] = {
        "src": source,
        "dst": LOCAL,
        "id": oracle.outer_id(cookie, opens=opens, age=age),
        "flags": "DF",
        "ttl": 64,
        "proto": 4,
    }
    return ethernet(ROUTER_MAC, BACKEND_MAC, bytes(IP(**header | outer) / Raw(packet)))


def encapsulated(
    segment: Segment,
    backend: Backend,
    source: str,
    cookie: int,
    *,
    opens: bool,
    mac: str = ROUTER_MAC,
    age: int | None = None,
    new: bool | None = None,
    starts: bool = False,
    beyond: bool = False,
    route: int | None = None,
) -> bytes:
    """The frame that carries a segment to a backend: the packet as it is, behind another IPv4 header.

    `cookie` is that of the connection which the router takes it to be of, `mac` the address of the interface that it
    leaves through. `age` is what a first request says of the handshake; None for what it says if it echoes
    ECHOED_CLOCK, or nothing; `new` whether the router knows of no earlier one, None if it depends on `opens` alone;
    `starts` whether a later request starts with the segment; `beyond` whether it lies behind one that is being moved;
    `route` the fingerprint that a label says.
    """
    if age is None:
        age = oracle.AGE_LONG if segment.options[:4] == timestamps(0, 0)[:4] else 0
    new = opens if new is None else new
    request = segment.payload if opens or starts else b""
    packet = outer_packet(
        segment.packet,
        backend,
        source,
        cookie,
        opens=opens,
        age=age,
        new=new,
        request=request,
        beyond=beyond,
        route=route,
    )
    return ethernet(mac, backend.mac, packet)


def ordered(segment: Segment, shim: oracle.Shim, source: str, destination: str, outer_id: int = 0) -> bytes:
    """The frame in which a shim stands in front of a client's packet; between these two MAC addresses."""
    return ethernet(source, destination, shimmed(segment.packet, shim, id=outer_id))


def shimmed(packet: bytes, shim: oracle.Shim | bytes, **outer: Any) -> bytes:
    """The IPv4 packet in which a shim stands in front of another one; `outer` is to differ in its header."""
    header: dict[str, Any] = {"tos": packet[1], "id": 0, "flags": "DF", "ttl": 64, "proto": oracle.SHIM_PROTOCOL}
    if isinstance(shim, oracle.Shim):
        header |= {"src": shim.source, "dst": shim.destination}
    return bytes(IP(**header | outer) / Raw(bytes(shim) + packet))


def outer_packet(
    packet: bytes,
    backend: Backend,
    source: str,
    cookie: int,
    *,
    opens: bool = False,
    age: int = 0,
    new: bool = False,
    request: bytes = b"",
    beyond: bool = False,
    route: int | None = None,
) -> bytes:
    """The IPv4 packet that carries another one to a backend."""
    label = b"" if route is None else oracle.label(route)
    outer = IP(
        src=source,
        dst=backend.address,
        tos=packet[1],
        id=oracle.outer_id(cookie, opens=opens, age=age, new=new, request=request, beyond=beyond),
        flags="DF",
        ttl=64,
        proto=oracle.SHIM_PROTOCOL if label else 4,
    )
    return bytes(outer / Raw(label + packet))
