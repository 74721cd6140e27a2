"""Which backend must a connection get? Worked out a second time, from the published definitions alone.

The Maglev table is built as rauta/maglev.py's description says (after Eisenbud et al., NSDI '16), and a flow hashed as
bpf/contract.h says, but nothing of their code is used: agreement with the packet path means something.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address

SLOTS = 65537
_MULTIPLIER = 0x9E3779B97F4A7C15
_WORD = 2**64 - 1


def table(weights: Mapping[str, int]) -> list[str]:
    """The name of the backend that serves each slot. ``weights``: by name; at least one above 0."""
    names = sorted((name for name, weight in weights.items() if weight > 0), key=str.encode)
    heaviest = max(weights[name] for name in names)
    wishes = {name: _wishes(name) for name in names}
    turns = dict.fromkeys(names, 0)
    slots: list[str | None] = [None] * SLOTS
    free, number = SLOTS, 0
    while free:
        for name in names:
            if number * weights[name] < turns[name] * heaviest or not free:
                continue
            turns[name] += 1
            slots[next(slot for slot in wishes[name] if slots[slot] is None)] = name
            free -= 1
        number += 1
    return [name for name in slots if name is not None]


def _wishes(name: str) -> Iterator[int]:
    """All slots, in the order in which a backend prefers them."""
    digest = hashlib.blake2b(name.encode(), digest_size=16, person=b"rauta maglev").digest()
    offset = int.from_bytes(digest[:8], "little") % SLOTS
    skip = int.from_bytes(digest[8:], "little") % (SLOTS - 1) + 1
    return ((offset + turn * skip) % SLOTS for turn in range(SLOTS))


def slot(flow_key: int, client: IPv4Address, client_port: int, vip: IPv4Address, vip_port: int) -> int:
    """The slot of a connection's 4-tuple, under the router's key."""
    addresses = int.from_bytes(client.packed + vip.packed, "little")
    ports = int.from_bytes(client_port.to_bytes(2, "big") + vip_port.to_bytes(2, "big"), "little")
    value = _mixed(_mixed(flow_key, addresses), ports)
    return (value >> 32) * SLOTS >> 32


def _mixed(value: int, word: int) -> int:
    value = (value ^ word) * _MULTIPLIER & _WORD
    return value ^ value >> 29
