"""What bpf/contract.h says, computed a second time: cookies, keyed hashes, Maglev tables and the contents of maps.

Written from the contract's text (and, for Maglev, from the essay at the top of rauta/maglev.py); it shares no code
with bpf/ or rauta/, and prefers the obvious way to the fast one. Addresses are dotted strings here, and turn into the
__be32 integers of the contract only in `be32`. Integers are those of a little-endian machine.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address
from typing import Any

Entry = tuple[dict[str, Any], dict[str, Any]]
"""Key and value of a map, by the names of contract.h."""

# ---- the numbers of contract.h --------------------------------------------------------------------------

ROUTER_MSS = 1416
ROUTER_WSCALE = 7
ROUTER_WINDOW = 29200
PATH_MTU = 1500
OUTER_ID_OPENS, OUTER_ID_CONNECTION = 0x0001, 0xFFF8
OUTER_ID_NEW, OUTER_ID_FIRST_HEAD = 0x8000, 0x4000
OUTER_ID_REQUEST, OUTER_ID_HEAD, OUTER_ID_BEYOND = 0x0002, 0x0004, 0x0004
AGE_LONG, LONGEST_TRIP_MS = 0x1FFF, 333
COOKIE_MSS_VALUES = (536, 1220, 1400, 1460)
COOKIE_NO_WSCALE = 15
MAX_WSCALE = 14  # RFC 7323, 2.3: a larger shift counts as 14
ROUTE_CLUSTER_BITS = 10
MAX_PATH = 256
MAX_PREFIX_DEPTH = 30
SHAPE_EXACT = 0x80000000
FLOW_WAYS = 8
CONSUMED_WAYS = 7
MAGLEV_SLOTS = 65537
MAGLEV_PACKED = 16385
NO_BACKEND = 0xFFFF
MEMBER_WORDS = 64
FALLBACK_BACKEND = 4095
ONE_SPELLING = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/"
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
NO_ROUTE_404, NO_ROUTE_RESET, NO_ROUTE_FALLBACK = 0, 1, 2
BACKEND_LOCAL = 0xFFFFFFFF
PATH_EXACT, PATH_PREFIX = 0, 1
HOST_EXACT, HOST_WILDCARD = 0, 1
FLOW_OPEN, FLOW_CLOSING, FLOW_ANSWERED, FLOW_RECOVERED, FLOW_FALLBACK, FLOW_MOVING = 1, 2, 3, 4, 5, 6
FIRST_NOT, FIRST_OPENS, FIRST_MOVED = 0, 1, 2
SYN_NONE, SYN_NEWEST, SYN_MOVED = 0, 1, 2
MAX_ORDERS = 9
SHIM_PROTOCOL, SHIM_VERSION, SHIM_LIFETIME = 253, 1, 60
SHIM_MOVE, SHIM_ADOPT, SHIM_MOVED, SHIM_LABEL = 16, 17, 18, 19
SHIM_EPOCH, SHIM_HEAD = 1, 2
SHIM_SIZE = 24
LABEL_SIZE = 8
FIRST_BYTE_UNIT, FIRST_BYTE_BUCKETS = 64_000, 21
ASK_VERSION = 1
ASK_WHOSE, ASK_MINE, ASK_NOT_MINE, ASK_PING, ASK_PONG = 1, 2, 3, 4, 5
ASK_SEQ_REACH, ASK_ACK_REACH = 1 << 23, 1 << 30
ANSWER_REFUSED, ANSWER_NOT_MINE, ANSWER_RECOVERED, ANSWER_LATE = 0, 1, 2, 3
MAPPING_OPEN, MAPPING_CLEARING, MAPPING_OPENING, MAPPING_MOVED = 1, 2, 3, 4
MARK_MAGIC, MARK_OPENS, MARK_LATER, MARK_RESET = 0x52410000, 0x200, 0x400, 0x800
MAX_ATTEMPTS = 3

# ---- the secrets of these tests -------------------------------------------------------------------------

COOKIE_KEYS = ((0x0706050403020100, 0x0F0E0D0C0B0A0908), (0x243F6A8885A308D3, 0x13198A2E03707344))
ROUTE_KEY = 0xA4093822299F31D0
FLOW_KEY = 0x082EFA98EC4E6C89
CONSUMED_KEY = (0x452821E638D01377, 0xBE5466CF34E90C6C)
ASK_KEYS = ((0x452821E638D01377, 0xBE5466CF34E90C6C), (0xC0AC29B7C97C50DD, 0x3F84D5B5B5470917))
DIGEST_KEYS = [int.from_bytes(hashlib.sha256(b"%d" % number).digest()[:8], "little") for number in range(514)]

_64_BITS = (1 << 64) - 1


def be32(address: str) -> int:
    """An IPv4 address as the __be32 that stands in memory."""
    return int.from_bytes(IPv4Address(address).packed, "little")


def be16(port: int) -> int:
    """A port as the __be16 that stands in memory."""
    return int.from_bytes(port.to_bytes(2, "big"), "little")


def mac(address: str) -> bytes:
    """The six bytes of a MAC address."""
    return bytes.fromhex(address.replace(":", ""))


def address_of(value: int) -> str:
    """The dotted form of a __be32."""
    return str(IPv4Address(value.to_bytes(4, "little")))


def named_vip(frame: bytes) -> dict[str, int] | None:
    """`struct vip_key` of whom a frame with IPv4 is for, whatever VLAN tags it has; None if that is cut off.

    An ICMP error is for whom the TCP packet in it came from; or went to, if it is encapsulated in there.
    """
    start = 14
    while frame[start - 2 : start] in (b"\x81\x00", b"\x88\xa8"):
        start += 4
    header, rest = _split_ip(frame[start:])
    address, port = header[16:20], rest[2:4]
    if header[9:10] == b"\x01":
        header, rest = _split_ip(rest[8:])
        address, port = header[12:16], rest[0:2]
        labelled = header[9:10] == b"\xfd" and rest[1:2] == bytes([SHIM_LABEL])
        if header[9:10] == b"\x04" or labelled:
            header, rest = _split_ip(rest[LABEL_SIZE if labelled else 0 :])
            address, port = header[16:20], rest[2:4]
    if len(address) < 4 or len(port) < 2:
        return None
    return {"address": int.from_bytes(address, "little"), "port": int.from_bytes(port, "little"), "reserved": 0}


def _split_ip(packet: bytes) -> tuple[bytes, bytes]:
    length = 4 * (packet[0] & 0x0F) if packet else 0
    return packet[:length], packet[length:]


# ---- the digest of a request head -----------------------------------------------------------------------


def head_digest(head: bytes) -> int:
    """What the router remembers of a request head: contract.h on head_digest(head)."""
    return _multilinear(head, 0) >> 32 | _multilinear(head, 2) & 0xFFFFFFFF_00000000


def _multilinear(head: bytes, shift: int) -> int:
    total = 0
    for at in range(0, len(head), 8):
        word, key = head[at : at + 8].ljust(8, b"\0"), DIGEST_KEYS[at // 4 + shift :]
        low, high = int.from_bytes(word[:4], "little"), int.from_bytes(word[4:], "little")
        total += (key[0] + low) * (key[1] + high)
    return total & _64_BITS


# ---- SipHash and cookies --------------------------------------------------------------------------------


def siphash24(k0: int, k1: int, message: bytes) -> int:
    """SipHash-2-4 (Aumasson and Bernstein, INDOCRYPT 2012, section 2): 64 bits."""
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]
    padded = message + bytes(-(len(message) + 1) % 8) + bytes([len(message) % 256])
    for start in range(0, len(padded), 8):
        word = int.from_bytes(padded[start : start + 8], "little")
        v[3] ^= word
        _sip_rounds(v, 2)
        v[0] ^= word
    v[2] ^= 0xFF
    _sip_rounds(v, 4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def _sip_rounds(v: list[int], count: int) -> None:
    """SipRound as the paper's figure 2.1 draws it."""
    for _ in range(count):
        v[0], v[2] = (v[0] + v[1]) & _64_BITS, (v[2] + v[3]) & _64_BITS
        v[1], v[3] = _rotated(v[1], 13) ^ v[0], _rotated(v[3], 16) ^ v[2]
        v[0] = _rotated(v[0], 32)
        v[2], v[0] = (v[2] + v[1]) & _64_BITS, (v[0] + v[3]) & _64_BITS
        v[1], v[3] = _rotated(v[1], 17) ^ v[2], _rotated(v[3], 21) ^ v[0]
        v[2] = _rotated(v[2], 32)


def _rotated(value: int, bits: int) -> int:
    return (value << bits | value >> 64 - bits) & _64_BITS


@dataclass(frozen=True)
class Tuple:
    """The four numbers of a connection, as in the packets that the client sends."""

    client: str
    client_port: int
    server: str
    server_port: int

    @property
    def key(self) -> dict[str, int]:
        """`struct tuple`."""
        return {
            "client": be32(self.client),
            "server": be32(self.server),
            "client_port": be16(self.client_port),
            "server_port": be16(self.server_port),
        }


@dataclass(frozen=True)
class SynOptions:
    """What a SYN offers; None for what it does not."""

    mss: int | None = None
    wscale: int | None = None
    sack: bool = False
    tsval: int | None = None


def cookie_options(options: SynOptions, epoch: int) -> int:
    """The low byte of a cookie: what the router keeps of the client's options."""
    fitting = [index for index, value in enumerate(COOKIE_MSS_VALUES) if options.mss and value <= options.mss]
    wscale = COOKIE_NO_WSCALE if options.wscale is None else min(options.wscale, MAX_WSCALE)
    return epoch | max(fitting, default=0) << 1 | options.sack << 3 | wscale << 4


def cookie(four: Tuple, isn: int, option_byte: int, keys: Sequence[tuple[int, int]] = COOKIE_KEYS) -> int:
    """The sequence number of the SYN-ACK for a client's initial sequence number."""
    k0, k1 = keys[option_byte & 1]
    message = (
        IPv4Address(four.client).packed
        + IPv4Address(four.server).packed
        + four.client_port.to_bytes(2, "big")
        + four.server_port.to_bytes(2, "big")
        + isn.to_bytes(4, "little")
        + bytes([option_byte])
    )
    return (siphash24(k0, k1, message) & 0xFFFFFF) << 8 | option_byte


def fingerprint(local: Tuple, isn: int, cookie: int) -> int:
    """What the agent remembers of a connection that has had its socket; the tuple has the server's own address."""
    message = (
        IPv4Address(local.client).packed
        + IPv4Address(local.server).packed
        + local.client_port.to_bytes(2, "big")
        + local.server_port.to_bytes(2, "big")
        + isn.to_bytes(4, "little")
        + cookie.to_bytes(4, "little")
    )
    return siphash24(*CONSUMED_KEY, message) or 1


def consumed_place(fingerprint: int, sets: int) -> int:
    """The set that remembers it."""
    return (fingerprint >> 32) * sets >> 32


def tcp_options(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and data of each option, as Linux walks through them (net/ipv4/tcp_input.c, tcp_parse_options).

    A length that cannot be ends the walk; what came before counts.
    """
    while raw and raw[0] != 0:
        if raw[0] == 1:
            raw = raw[1:]
            continue
        if len(raw) < 2 or raw[1] < 2 or raw[1] > len(raw):
            return
        yield raw[0], raw[2 : raw[1]]
        raw = raw[raw[1] :]


def parse_syn_options(raw: bytes) -> SynOptions:
    """What a SYN offers. Of repeated options the last counts; MSS 0, or a length that is not its kind's, does not."""
    found: dict[str, Any] = {}
    for kind, data in tcp_options(raw):
        match kind, len(data):
            case 2, 2 if any(data):
                found["mss"] = int.from_bytes(data, "big")
            case 3, 1:
                found["wscale"] = data[0]
            case 4, 0:
                found["sack"] = True
            case 8, 8:
                found["tsval"] = int.from_bytes(data[:4], "big")
    return SynOptions(**found)


def parse_timestamps(raw: bytes) -> tuple[int, int] | None:
    """TSval and TSecr in the options of any segment, or None."""
    found = [data for kind, data in tcp_options(raw) if kind == 8 and len(data) == 8]
    return (int.from_bytes(found[-1][:4], "big"), int.from_bytes(found[-1][4:], "big")) if found else None


def outer_id(
    cookie: int, *, opens: bool, age: int = 0, new: bool = False, request: bytes = b"", beyond: bool = False
) -> int:
    """The identification in the outer header of a connection's packets.

    Of a first request it says the age, and whether the router knows of no earlier one; of a later one, that `request`
    starts there; of what lies `beyond` a request that is being moved, just that.
    """
    head = request.startswith(b"HEAD ")
    if opens:
        return (OUTER_ID_NEW if new else 0) | (OUTER_ID_FIRST_HEAD if head else 0) | age << 1 | OUTER_ID_OPENS
    hints = (OUTER_ID_REQUEST | (OUTER_ID_HEAD if head else 0)) if request else OUTER_ID_BEYOND if beyond else 0
    return cookie >> 16 & OUTER_ID_CONNECTION | hints


# ---- keyed hashes ---------------------------------------------------------------------------------------


def mix(h: int, word: int) -> int:
    """One step of the keyed hash of names, paths and flows."""
    h = (h ^ word) * 0x9E3779B97F4A7C15 & _64_BITS
    return h ^ h >> 29


def words_hash(text: bytes, h: int = ROUTE_KEY) -> int:
    """The hash of a name: its words of eight bytes, the last one padded with zeros."""
    for start in range(0, len(text), 8):
        h = mix(h, int.from_bytes(text[start : start + 8].ljust(8, b"\0"), "little"))
    return h


def path_hash(path: bytes) -> int:
    """The hash of an exact path or a prefix: each segment is a name that ends in a slash."""
    h = ROUTE_KEY
    for segment in path.split(b"/")[1:]:
        h = words_hash(segment + b"/", h)
    return h


def flow_hash(four: Tuple) -> int:
    """The hash that picks a connection's Maglev slot, outer source, and place in the flow table."""
    key = four.key
    h = mix(FLOW_KEY, key["client"] | key["server"] << 32)
    return mix(h, key["client_port"] | key["server_port"] << 16)


def is_traced(four: Tuple, seq: int, key: int, one_in: int) -> bool:
    """Is the request that starts there traced, where one in so many is?"""
    fields = four.key
    h = mix(key, fields["client"] | fields["server"] << 32)
    h = mix(mix(h, fields["client_port"] | fields["server_port"] << 16 | seq << 32), 0)
    return h >> 32 < (1 << 32) // one_in


def outer_source(four: Tuple, network: str, mask: str) -> str:
    """The source address of the packets that carry a connection to its backend."""
    return address_of(be32(network) | flow_hash(four) & ~be32(mask) & 0xFFFFFFFF)


def flow_place(four: Tuple, sets: int) -> tuple[int, int]:
    """Where the flow table keeps a connection: number of the set, tag."""
    h = flow_hash(four)
    return (h & 0xFFFFFFFF) * sets >> 32, h >> 24 & 0xFFFFFFFF | 1


# ---- asks -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ask:
    """`struct ask`, and who asks whom: `between` goes from the router's address and port to the agent's."""

    four: Tuple
    seq: int
    ack: int
    between: Tuple
    nonce: int = 0x1122334455667788
    kind: int = ASK_WHOSE
    isn: int = 0
    cookie: int = 0
    next: int = 0
    version: int = ASK_VERSION
    epoch: int = 0
    reserved: bytes = bytes(5)

    def __bytes__(self) -> bytes:
        return self.sealed(ASK_KEYS)

    def sealed(self, keys: Sequence[tuple[int, int]]) -> bytes:
        """With its tag under one of these keys."""
        said = bytes([self.version, self.kind, self.epoch]) + self.reserved + self.nonce.to_bytes(8, "little")
        said += tuple_bytes(self.four)
        for number in (self.seq, self.ack, self.isn, self.cookie, self.next):
            said += (number & 0xFFFFFFFF).to_bytes(4, "little")
        tag = siphash24(*keys[self.epoch & 1], said + tuple_bytes(self.between) + bytes(4))
        return said + tag.to_bytes(8, "little")


@dataclass(frozen=True)
class Shim:
    """`struct shim`, and what its tag says besides: of which connection it is, which numbers, from whom to whom.

    `seq` and `ack` are those of the packet inside, or what a SHIM_MOVED says itself; `source` and `destination` are the
    outer addresses. `first` of a SHIM_MOVE is an address as it stands in memory.
    """

    kind: int
    four: Tuple
    seq: int
    ack: int
    source: str
    destination: str
    first: int
    second: int
    time: int
    flags: int = 0
    options: int = 0
    trip: int = 0
    version: int = SHIM_VERSION

    def __bytes__(self) -> bytes:
        return self.sealed(ASK_KEYS)

    def sealed(self, keys: Sequence[tuple[int, int]]) -> bytes:
        """With its tag under one of these keys."""
        said = bytes([self.version, self.kind, self.flags, self.options])
        said += (
            (self.time & 0xFFFF).to_bytes(2, "little")
            + self.trip.to_bytes(2, "little")
            + _words(self.first, self.second)
        )
        bond = tuple_bytes(self.four) + _words(self.seq, self.ack)
        bond += IPv4Address(self.source).packed + IPv4Address(self.destination).packed + bytes(4)
        return said + siphash24(*keys[self.flags & SHIM_EPOCH], said + bond).to_bytes(8, "little")


def label(route: int, version: int = SHIM_VERSION, kind: int = SHIM_LABEL) -> bytes:
    """`struct label`: the tag of a request's route; in these tests, its number + 1."""
    return bytes([version, kind, 0, 0]) + _words(route + 1 & 0xFFFF_FFFF)


def shim_time() -> int:
    """What the time in a shim is just now: TAI, seconds, modulo 2^16."""
    return int(time.clock_gettime(time.CLOCK_TAI)) & 0xFFFF


def _words(*numbers: int) -> bytes:
    return b"".join((number & 0xFFFFFFFF).to_bytes(4, "little") for number in numbers)


def tuple_bytes(four: Tuple) -> bytes:
    """`struct tuple` in memory."""
    addresses = IPv4Address(four.client).packed + IPv4Address(four.server).packed
    return addresses + four.client_port.to_bytes(2, "big") + four.server_port.to_bytes(2, "big")


# ---- Maglev ---------------------------------------------------------------------------------------------


@cache
def _preferences(name: str) -> tuple[int, int]:
    digest = hashlib.blake2b(name.encode(), digest_size=16, person=b"rauta maglev").digest()
    return int.from_bytes(digest[:8], "little") % 65537, int.from_bytes(digest[8:], "little") % 65536 + 1


def maglev_table(weights: Mapping[str, int]) -> list[str | None]:
    """The name of the backend behind each of the 65537 slots; None in all of them if nobody has a weight."""
    names = sorted((name for name in weights if weights[name]), key=str.encode)
    table: list[str | None] = [None] * MAGLEV_SLOTS
    if not names:
        return table
    preference, turns = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    left, round_number, heaviest = MAGLEV_SLOTS, 0, max(weights.values())
    while True:
        for name in names:
            if round_number * weights[name] < turns[name] * heaviest:
                continue
            turns[name] += 1
            offset, skip = _preferences(name)
            while table[slot := (offset + preference[name] * skip) % MAGLEV_SLOTS] is not None:
                preference[name] += 1
            table[slot] = name
            left -= 1
            if not left:
                return table
        round_number += 1


def maglev_slot(four: Tuple) -> int:
    """The slot of a connection."""
    return (flow_hash(four) >> 32) * MAGLEV_SLOTS >> 32


def maglev_entries(table: Sequence[str | None], indices: Mapping[str, int]) -> list[tuple[int, bytes]]:
    """A table as the entries of an inner map of `clusters`: four slots each, the last one filled up with NO_BACKEND."""
    slots = [NO_BACKEND if name is None else indices[name] for name in table]
    slots += [NO_BACKEND] * (4 * MAGLEV_PACKED - len(slots))
    packed = b"".join(slot.to_bytes(2, "little") for slot in slots)
    return [(entry, packed[8 * entry : 8 * entry + 8]) for entry in range(MAGLEV_PACKED)]


# ---- routes ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Route:
    """A route to a cluster: exactly one of `prefix` and `exact`; None for any host, any method."""

    cluster: str
    prefix: str | None = None
    exact: str | None = None
    host: str | None = None
    method: str | None = None

    @property
    def kind(self) -> int:
        """enum path_kind."""
        return PATH_EXACT if self.prefix is None else PATH_PREFIX

    @property
    def path(self) -> bytes:
        """The path as the map `paths` holds it: the prefix "/" is empty."""
        return self.exact.encode() if self.exact is not None else (self.prefix or "").removesuffix("/").encode()


@dataclass(frozen=True)
class Vip:
    """An address and port with its routes; `fallback`: whether there is one."""

    address: str
    port: int
    routes: Sequence[Route]
    no_route: int = NO_ROUTE_404
    fallback: bool = False


def vip_key(address: str, port: int) -> dict[str, int]:
    """`struct vip_key`."""
    return {"address": be32(address), "port": be16(port)}


def route_tables(vips: Sequence[Vip], clusters: Mapping[str, int]) -> dict[str, list[Entry]]:
    """The contents of the maps `vips`, `hosts` and `paths`; VIPs and hosts are numbered from 1 as they come."""
    tables: dict[str, list[Entry]] = {"vips": [], "hosts": [], "paths": []}
    host_id = route_number = 0
    for number, vip in enumerate(vips, start=1):
        found = {id(route): route_number + place for place, route in enumerate(vip.routes)}
        route_number += len(vip.routes)
        wildcards = {route.host.count(".") for route in vip.routes if route.host and route.host[0] == "*"}
        value: dict[str, Any] = {
            "id": number,
            "names": number,
            "no_route": vip.no_route,
            "wildcards": sum(1 << n for n in wildcards),
        }
        value["fallback"] = int(vip.fallback)
        value["strict"] = int(any(set(route.path) - set(ONE_SPELLING) for route in vip.routes))
        for host in dict.fromkeys(route.host for route in vip.routes):
            host_id += 1
            routes = [route for route in vip.routes if route.host == host]
            if host is None:
                value |= {"any_host": host_id, "any_host_shapes": shapes(routes)}
            else:
                name = host.encode().lstrip(b"*")
                kind = HOST_WILDCARD if host[0] == "*" else HOST_EXACT
                key = {"hash": words_hash(name), "names": number, "length": len(name), "kind": kind}
                tables["hosts"].append((key, {"id": host_id, "shapes": shapes(routes), "name": name}))
            tables["paths"] += path_entries([(found[id(route)], route) for route in routes], host_id, clusters)
        tables["vips"].append((vip_key(vip.address, vip.port), value))
    tables["vips"] += [(vip_key(address, 0), {}) for address in dict.fromkeys(vip.address for vip in vips)]
    return tables


def shapes(routes: Iterable[Route]) -> int:
    """`host.shapes`: which depths its prefixes have, and whether it has exact paths."""
    return sum({1 << route.path.count(b"/") if route.kind == PATH_PREFIX else SHAPE_EXACT for route in routes})


def path_entries(routes: Sequence[tuple[int, Route]], host_id: int, clusters: Mapping[str, int]) -> list[Entry]:
    """The entries of one host in the map `paths`, of its routes with their numbers."""
    entries: list[Entry] = []
    for kind, path in dict.fromkeys((route.kind, route.path) for _, route in routes):
        by_method = [0] * (1 + len(METHODS))
        for number, route in routes:
            if (route.kind, route.path) == (kind, path):
                method = 1 + METHODS.index(route.method) if route.method else 0
                by_method[method] = (number + 1) << ROUTE_CLUSTER_BITS | clusters[route.cluster]
        key = {"hash": path_hash(path), "host": host_id, "length": len(path), "kind": kind}
        entries.append((key, {"route": by_method, "path": path}))
    return entries


# ---- observation ----------------------------------------------------------------------------------------


def first_byte_bucket(ns: int) -> int:
    """The bucket that counts a time to an answer's first byte: the first one whose bound is more, or the last."""
    bounds = [FIRST_BYTE_UNIT << bucket for bucket in range(FIRST_BYTE_BUCKETS - 1)]
    return next((bucket for bucket, bound in enumerate(bounds) if ns < bound), FIRST_BYTE_BUCKETS - 1)


def latency_bucket(ns: int) -> int:
    """The bucket that counts a time: the last one whose least time is not more; the first counts shorter ones, too."""
    least = [(4 + step) << octave - 2 for octave in range(4, 24) for step in range(4)]
    return max([bucket for bucket, at_least in enumerate(least) if at_least <= ns], default=0)
