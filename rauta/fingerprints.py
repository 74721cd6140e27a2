"""Routes as routers and agents speak of them to each other: by fingerprints of their names.

A router's numbers stay with its routes while others come and go (rauta.ids), so nobody else can know them. A
fingerprint depends on nothing but the route itself: VIP, host, path, how that is meant, and method. Whoever reads a
configuration comes to the same one, whatever else is in it, before a reload and after. An agent whose configuration is
older or newer than the router's has a route or has it not; it never takes one for another, as it would if places in the
file were told. To which cluster the route leads may change: it stays the same route.

A label has room for all 48 bits, an order for the low 22, the brief (bpf/contract.h, struct label). Two routes of one
configuration that share a fingerprint have none, and likewise for briefs: what would name both names neither. Among
65,536 routes that happens to a fingerprint in one of 130,000 configurations, and to one brief in 65; among 1,000, to
one brief in 4,000.

What is left to chance: while two configurations differ, one may have a route and the other another one that agree in
all 48 or 22 bits. For each such pair, an order is taken wrongly with a probability of one in four million; a label,
one in 280 million million.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping

from rauta.contract import ROUTE_BRIEF_BITS
from rauta.ids import RouteName

__all__ = ["UNKNOWN", "brief", "briefs", "fingerprint", "fingerprints", "route_label"]

_BYTES = 6
UNKNOWN = 0
"""no route's"""


def fingerprint(name: RouteName) -> int:
    """48 bits, big-endian: BLAKE2b of the name's parts in UTF-8, a zero byte between them, nothing for None.

    No part has a zero byte in it or is empty, so no two names give the same bytes.
    """
    said = "\0".join("" if part is None else part for part in name)
    return int.from_bytes(hashlib.blake2b(said.encode(), digest_size=_BYTES).digest())


def route_label(name: RouteName) -> str:
    """The fingerprint as Prometheus gets it, from routers and agents alike."""
    return f"{fingerprint(name):0{2 * _BYTES}x}"


def fingerprints(names: Iterable[RouteName]) -> dict[RouteName, int]:
    """Of some routes, all different; without those that share one."""
    found = {name: fingerprint(name) for name in names}
    shared = Counter(found.values())
    return {name: one for name, one in found.items() if shared[one] == 1 and one != UNKNOWN}


def brief(fingerprint: int) -> int:
    """What an order says of it."""
    return fingerprint & (1 << ROUTE_BRIEF_BITS) - 1


def briefs(known: Iterable[int]) -> Mapping[int, int]:
    """Fingerprints by their briefs; without those that share one."""
    found = list(known)
    shared = Counter(map(brief, found))
    return {short: one for one in found if shared[short := brief(one)] == 1 and short != UNKNOWN}
