"""Weighted Maglev hashing: which backend of a cluster serves which of the 65537 slots.

The method is Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI '16, section 3.4,
with weights by turns as in Envoy's maglev_lb.cc. The table is a function of names and weights alone: neither the order
in which the backends are given nor anything that happened before matters, so that independent routers agree. It is
defined here completely enough to be written again without reading the code below.

Let M = 65537, and let B be the backends whose weight is above 0, sorted by their names' UTF-8 bytes.

1. Permutation. Of each backend, d = blake2b(name in UTF-8, digest_size=16, person=b"rauta maglev") (RFC 7693; unkeyed,
   no salt; the person string is zero-padded to 16 bytes). With d[0:8] and d[8:16] as little-endian integers,
       offset = d[0:8] mod M            skip = d[8:16] mod (M - 1) + 1
   and the backend's preferences are the slots (offset + j * skip) mod M for j = 0, 1, 2, ... M is prime, so each slot
   appears once.
2. Turns. Let W be the largest weight and t, at first 0, the number of turns that a backend has taken. In rounds
   r = 0, 1, 2, ... go through B in order; a backend of weight w takes one turn in round r if and only if
   r * w >= t * W. (So the heaviest takes one in each round, one of a third of its weight one in every third, and
   everybody one in round 0.)
3. A turn. The backend takes the first slot among its preferences that nobody has taken yet. When all M slots are taken,
   stop at once, also in the middle of a round.

The table's entries are indices into *all* the cluster's names, drained ones (weight 0) included, sorted by UTF-8
bytes. A cluster without a backend of weight above 0 has NO_BACKEND in every slot. At the end each backend holds its
share of M to within about one slot. When a backend leaves, its own slots go to the others, and few others change
hands.

Rejected: repeating a backend in B as often as its weight says (weights 1000 and 999 would make a table of 1999
entries), and ranking backends for each slot (weighted rendezvous): exact, but M * len(B) hashes.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b

from rauta.contract import MAGLEV_SLOTS, NO_BACKEND

__all__ = ["build_table"]

_PERSON = b"rauta maglev"


def build_table(weights: Mapping[str, int]) -> array[int]:
    """The Maglev table of a cluster, given the weight of each backend by name: 65537 unsigned 16-bit integers.

    Slot s holds the index, in `sorted(weights)`, of the backend that serves s; NO_BACKEND throughout if no weight is
    above 0. Takes about 0.1 s the first time. ValueError if a weight is negative or there are more names than 16 bits
    can count.
    """
    if len(weights) >= NO_BACKEND or any(weight < 0 for weight in weights.values()):
        raise ValueError(f"a Maglev table takes fewer than {NO_BACKEND} backends, and no weight below 0")
    return _built(tuple(sorted(weights.items())))[:]


@lru_cache(maxsize=16)
def _built(backends: tuple[tuple[str, int], ...]) -> array[int]:
    """Remembered, because many routers of the same configuration are loaded one after the other."""
    weights = dict(backends)
    table = array("H", [NO_BACKEND]) * MAGLEV_SLOTS
    names = list(weights)  # sorted by code points, which is the order of the UTF-8 bytes
    heaviest = max(weights.values(), default=0)
    position, skip = [0] * len(names), [0] * len(names)
    for index, name in enumerate(names):
        position[index], skip[index] = _preferences(name)

    # Entries (round of the next turn, index, turns taken): popping in order is going through the rounds in order.
    turns = [(0, index, 0) for index, name in enumerate(names) if weights[name] > 0]
    for _ in range(MAGLEV_SLOTS if turns else 0):
        _, index, taken = turns[0]
        slot, step = position[index], skip[index]
        while table[slot] != NO_BACKEND:
            slot += step
            if slot >= MAGLEV_SLOTS:
                slot -= MAGLEV_SLOTS
        table[slot] = index
        position[index] = slot
        due = -(-(taken + 1) * heaviest // weights[names[index]])  # the first round r with r * w >= t * W
        heapq.heapreplace(turns, (due, index, taken + 1))
    return table


def _preferences(name: str) -> tuple[int, int]:
    """Offset and skip of a backend's permutation of the slots."""
    digest = blake2b(name.encode(), digest_size=16, person=_PERSON).digest()
    offset = int.from_bytes(digest[:8], "little") % MAGLEV_SLOTS
    skip = int.from_bytes(digest[8:], "little") % (MAGLEV_SLOTS - 1) + 1
    return offset, skip
