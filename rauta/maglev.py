"""Weighted Maglev hashing: which backend of a cluster serves which of the 65537 slots.

The method is Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI '16, section 3.4,
with weights by turns as in Envoy's maglev_lb.cc. The table of a router that starts is a function of names and weights
alone: neither the order in which the backends are given nor anything that happened before matters, so that independent
routers agree. It is defined here completely enough to be written again without reading the code.

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
share of M to within about one slot.

A table that is in use is replaced so that few slots change hands (`replacement`): at most d * M + M / 100, where d is
the total variation distance between the old shares and the new, half the sum of |old - new| over all backends. That
is 1 % of the slots more than any table with the new shares must move.

* The fresh table of the new weights is put in its place if it keeps to that. It does when one backend comes, goes, is
  drained or gets another weight: at 100 backends it moves 0.3 to 0.7 % of the slots more than d, and hardly ever over
  1 %, where one weight is far above the others. So a router that has lived through such changes has the table of one
  that starts now.
* When many weights change at once it does not, and no function of the weights alone could for all changes: it would be
  two parties drawing from their own distributions without a word between them, and whatever they do, there are
  distributions at a distance of d with which they differ in about 2d / (1 + d) of all cases (Bavarian et al.,
  "Optimality of Correlated Sampling Strategies", Theory of Computing 16, 2020). Then the new table comes from the old
  one: a slot stays where it is unless its backend has more than its new share, and what is left of the allowance brings
  slots to the owner that the fresh table names.

What the second case costs: until then equal routers, one of which starts again, disagree on the slots in which its
fresh table and the repaired one differ; after all weights of 100 backends were drawn anew, on about one in ten. A
connection whose packets go to another router in mid-flight must find its backend by its flow entry, or by asking, as
any connection must after a change of weights. New connections do not care. Each further change, also one that changes
nothing, heals 1 % of the slots.

Rejected: repeating a backend in B as often as its weight says (weights 1000 and 999 would make a table of 1999
entries); ranking backends for each slot (weighted rendezvous): 65537 * len(B) hashes, and shares that are only right
on average; pairs of backend and slot in the order of a score, each backend up to its share: half as many needless
moves for one change, but no fewer for many, and no longer what the paper describes. Building in Python: forty
milliseconds a table, so a minute for 1,024 clusters. The kernel does it in two (bpf/maglev.bpf.c).
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from hashlib import blake2b
from types import TracebackType
from typing import Self, TypeAlias

from rauta import loading
from rauta.bpf import BpfError, BpfObject, Map
from rauta.contract import MAGLEV_SLOTS, MAX_BACKENDS

__all__ = ["MAX_TABLES", "Builder", "Table", "allowance", "build_table", "replacement"]

Table: TypeAlias = "array[int]"
"""Who serves slot s, for each of the 65537: an unsigned 16-bit integer."""

MAX_TABLES = 64  # TARGETS in bpf/maglev.bpf.c
_PERSON = b"rauta maglev"
_SPARE_SLOTS = MAGLEV_SLOTS // 100
_TURNS_PER_RUN = 1 << 20  # looked at in one run of the program: some ten milliseconds at most


def build_table(weights: Mapping[str, int]) -> Table:
    """The Maglev table of a cluster, given the weight of each backend by name: 65537 unsigned 16-bit integers.

    Slot s holds the index, in `sorted(weights)`, of the backend that serves s; NO_BACKEND throughout if no weight is
    above 0. ValueError if a weight is negative, or if there are more backends than a router can have. Takes root.
    """
    with Builder() as builder:
        return builder.build(weights, {name: index for index, name in enumerate(sorted(weights))})


class Builder:
    """Builds tables, one after the other: bpf/maglev.bpf.c in the kernel. Ends with `close`, or with the context."""

    def __init__(self) -> None:
        """RautaError or LoadError say what the machine lacks."""
        with ExitStack() as undo:
            self._object: BpfObject = undo.enter_context(loading.open_object("maglev"))
            self._object.load()
            self.close = undo.pop_all().close

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def build(self, weights: Mapping[str, int], indices: Mapping[str, int]) -> Table:
        """The fresh table of these weights; slots hold `indices[name]`. ValueError as `build_table`."""
        self._fill(weights, indices)
        return array("H", self._object.maps["tables"].read_array())[:MAGLEV_SLOTS]

    def build_into(self, tables: Sequence[tuple[Map, Mapping[str, int]]], indices: Mapping[str, int]) -> None:
        """The same into the inner maps of a router, at most MAX_TABLES, of which each comes with its weights."""
        targets, deliver = self._object.maps["targets"], self._object.programs["deliver"]
        targets.update_batch((target, table) for target, (table, _) in enumerate(tables))
        for target, (table, weights) in enumerate(tables):
            self._fill(weights, indices)
            if not deliver.call(target.to_bytes(4, sys.byteorder))[0]:
                raise BpfError(f"filling {table!r}", "the builder does not have it")

    def _fill(self, weights: Mapping[str, int], indices: Mapping[str, int]) -> None:
        if len(weights) > MAX_BACKENDS or any(weight < 0 for weight in weights.values()):
            raise ValueError(f"a Maglev table takes at most {MAX_BACKENDS} backends, and no weight below 0")
        names, maps = sorted(name for name in weights if weights[name]), self._object.maps
        maps["tables"].write_array(b"\xff" * maps["tables"].value_size)
        if not names:
            return
        maps["preferences"].update_batch((turn, _preference(name, weights, indices)) for turn, name in enumerate(names))
        filling = {"backends": len(names), "heaviest": max(weights.values()), "rounds": _TURNS_PER_RUN // len(names)}
        maps["fillings"].update(0, filling)
        while not self._object.programs["fill"].call()[0]:
            pass


def _preference(name: str, weights: Mapping[str, int], indices: Mapping[str, int]) -> dict[str, int]:
    """A backend, as the program wants it: the start of its permutation of the slots, and its weight."""
    digest = blake2b(name.encode(), digest_size=16, person=_PERSON).digest()
    offset = int.from_bytes(digest[:8], "little") % MAGLEV_SLOTS
    skip = int.from_bytes(digest[8:], "little") % (MAGLEV_SLOTS - 1) + 1
    return {"slot": offset, "skip": skip, "weight": weights[name], "backend": indices[name]}


# ---- replacing a table ----------------------------------------------------------------------------------


def allowance(before: Mapping[str, int], after: Mapping[str, int]) -> int:
    """How many slots may change hands when weights by name change: the distance of the shares, and 1 % of the slots.

    All, if one of them has no weight at all.
    """
    old, new = sum(before.values()), sum(after.values())
    if not (old and new):
        return MAGLEV_SLOTS
    difference = sum(abs(before.get(name, 0) * new - after.get(name, 0) * old) for name in {**before, **after})
    return MAGLEV_SLOTS * difference // (2 * old * new) + _SPARE_SLOTS


def replacement(previous: Table, fresh: Table, allowed: int) -> Table:
    """The table to put in the place of `previous`: `fresh`, if no more than `allowed` slots differ.

    Else one in which each backend has as many slots as in `fresh`, and no more than `allowed` have changed hands, or
    as few as possible if that is more. Both tables hold indices of the same numbering.
    """
    differing = [slot for slot in range(len(fresh)) if previous[slot] != fresh[slot]]
    if len(differing) <= allowed:
        return fresh[:]
    table = previous[:]
    moved = _hand_over(table, fresh, differing)
    for circle in _circles(table, fresh):
        moved += len(circle)
        if moved > allowed:
            break
        for slot in circle:
            table[slot] = fresh[slot]
    return table


def _hand_over(table: Table, fresh: Table, differing: list[int]) -> int:
    """Gives each backend its share with as few moves as possible, and says how many these were.

    First slots go from a backend that has too many to the one that should have them, if that has too few; then to
    any that has too few, in the order of the indices.
    """
    surplus = Counter(table)
    surplus.subtract(fresh)
    moved = 0
    for slot in differing:
        if surplus[table[slot]] > 0 > surplus[fresh[slot]]:
            _move(table, slot, fresh[slot], surplus)
            moved += 1
    lacking = iter([backend for backend in sorted(surplus) for _ in range(-surplus[backend])])
    for slot in differing:
        if surplus[table[slot]] > 0:
            _move(table, slot, next(lacking), surplus)
            moved += 1
    return moved


def _move(table: Table, slot: int, backend: int, surplus: Counter[int]) -> None:
    surplus[table[slot]] -= 1
    surplus[backend] += 1
    table[slot] = backend


def _circles(table: Table, fresh: Table) -> Iterator[list[int]]:
    """Slots, some at a time, that can get the owners of `fresh` together without changing anybody's share.

    Everybody has his share already, so whoever gives a slot away gets another one: a walk from backend to backend along
    the slots that one has and the next one should have comes back to where it has been.
    """
    leaving: dict[int, list[int]] = {}
    for slot in range(len(fresh)):
        if table[slot] != fresh[slot]:
            leaving.setdefault(table[slot], []).append(slot)
    path: list[int] = []
    place: dict[int, int] = {}  # of backends on the path, which leads on from there
    for start in sorted(leaving):
        at = start
        while path or leaving.get(at):
            if at in place:
                circle = path[place[at] :]
                del path[place[at] :]
                place = {backend: index for backend, index in place.items() if index < len(path)}
                yield circle
                continue
            place[at] = len(path)
            path.append(leaving[at].pop())
            at = fresh[path[-1]]
