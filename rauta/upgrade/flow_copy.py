"""The flow table goes over to one of another size or layout, while packets change it.

As a running virtual machine moves to another host (Clark et al., NSDI '05): what is there is copied first, then what
has changed meanwhile, which takes less time each round; at last, while nothing uses either table, the little that is
left. docs/upgrades.md says how the router does that, what it costs, and why nothing else is as safe.

`FlowCopy` has what the old table said last in an unnamed file in memory, outside of the process. Each round reads the
old table, and rebuilds those sets of the new one that sets which differ lead to. What a set of the new table holds is
a function of the old one's sets that share its hashes, so a round depends on none before it; and what a round has read
while somebody was writing, the last one reads again.

Into as many sets of as many ways, each set goes as it is. Otherwise each entry goes to its own set, which takes ten
times as long: of more than there are ways, those used last are kept; entries of another key, which no packet would
find, are left out.
"""

from __future__ import annotations

import os
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

from rauta.bpf import Map
from rauta.bpf.layout import ArrayLayout, Layout, StructLayout
from rauta.errors import RautaError
from rauta.upgrade.conversion import Conversion, conversion

__all__ = ["FlowCopy"]

_BATCH_BYTES = 1 << 19  # of sets, read or written at a time
_HASHES = 1 << 32  # of which a set has its share
_HASH_BITS = (1 << 64) - 1
_TUPLE, _TUPLE_OFFSETS = struct.Struct("=QI"), [0, 4, 8, 10]  # struct tuple, in the words that flow_hash() mixes in
_MULTIPLIER = 0x9E3779B97F4A7C15  # bpf/contract.h, mix()


class FlowCopy:
    """A copy of a router's flow table (contract.h, struct flow_set) that follows it. `close` it afterwards."""

    def __init__(self, old: Map, new: Map, flow_key: int, new_sets: int | None = None) -> None:
        """Into an empty table that nothing uses yet, of `new_sets` sets: all that it has, unless its program uses less.

        `flow_key` is that of both tables' programs. RautaError if one of the maps is no flow table of that size.
        """
        self._tried = f"migrating {old!r} to {new!r}"
        self._from, self._to = _Table(old, self._tried), _Table(new, self._tried)
        self._new_sets = new.max_entries if new_sets is None else new_sets
        if self._new_sets > new.max_entries:
            raise RautaError(self._tried, f"the new table has {new.max_entries} sets", "Size it before it is loaded.")
        self._old, self._new, self._flow_key = old, new, flow_key
        self._whole = self._new_sets == old.max_entries and self._from.ways == self._to.ways
        self._sets = self._conversion(self._from.layout, self._to.layout)
        self._flow = self._conversion(self._from.flow, self._to.flow)
        self._seen = os.memfd_create("flows")
        os.ftruncate(self._seen, old.max_entries * self._from.layout.size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives up what is needed to follow; safe to repeat."""
        if self._seen >= 0:
            os.close(self._seen)
            self._seen = -1

    def follow(self) -> int:
        """Brings the new table to where the old one is; returns how many entries had to be written.

        Entries are whole, and all of them there, if no program was at the old table meanwhile. A set that somebody has
        locked is left empty.
        """
        written, step = 0, max(1, _BATCH_BYTES // max(self._from.layout.size, self._to.layout.size))
        changed = list(self._changed(step))
        spans = (_span(first, end, self._old.max_entries, self._new_sets) for first, end in changed)
        for first, end in _merged(spans):
            for number in range(first, end, step):
                written += self._rebuild(number, min(end, number + step))
        return written

    def _conversion(self, old: StructLayout, new: StructLayout) -> Conversion:
        return conversion(old, new, old.size, new.size, self._tried)

    def _changed(self, step: int) -> Iterator[tuple[int, int]]:
        """From where to where sets differ from what was seen last; now they are seen."""
        size, first = self._from.layout.size, 0
        for _, batch, count in self._old.raw_batches(step):
            before = os.pread(self._seen, len(batch), first * size)
            if batch != before:
                os.pwrite(self._seen, batch, first * size)
                for index in range(count):
                    at = index * size
                    if batch[at : at + size] != before[at : at + size]:
                        yield first + index, first + index + 1
            first += count

    def _read(self, first: int, end: int) -> bytes:
        """Sets as they were seen last, without those that are locked."""
        size = self._from.layout.size
        data = os.pread(self._seen, (end - first) * size, first * size)
        locked = [at for at in range(0, len(data), size) if self._from.is_locked(data, at)]
        if not locked:
            return data
        sets = bytearray(data)
        for at in locked:
            sets[at : at + size] = bytes(size)
        return bytes(sets)

    def _rebuild(self, first: int, end: int) -> int:
        """Writes sets of the new table; returns how many entries they have."""
        numbers = struct.pack(f"={end - first}I", *range(first, end))
        if self._whole:
            data = self._read(first, end)
            self._new.update_raw(numbers, self._sets.column(data, end - first), end - first)
            return self._from.count(data)
        waiting: dict[int, list[_Entry]] = defaultdict(list)
        start, stop = _span(first, end, self._new_sets, self._old.max_entries)
        data, size = self._read(start, stop), self._from.layout.size
        for number in range(start, stop):
            for hash, entry in self._from.entries(data, (number - start) * size, self._flow_key, self._flow):
                if _set_number(hash, self._old.max_entries) == number:
                    waiting[_set_number(hash, self._new_sets)].append(entry)
        self._new.update_raw(
            numbers, b"".join(self._to.packed(waiting.get(number, ())) for number in range(first, end)), end - first
        )
        return sum(min(len(waiting.get(number, ())), self._to.ways) for number in range(first, end))


@dataclass(frozen=True, slots=True)
class _Entry:
    """A flow on its way to its new set: how long it was not used, in what its old set has taken in since."""

    age: int
    tag: int
    flow: bytes


class _Table:
    """A map of flow sets, whatever else its version has in them."""

    def __init__(self, table: Map, tried: str) -> None:
        try:
            self.layout = _as_struct(table.value_layout)
            of_set = self.layout.members
            self._lock, self._clock, self._used, self._tag = (of_set[n] for n in ("lock", "clock", "used", "tag"))
            self._flows_at, flows = of_set["flow"].offset, _as_array(of_set["flow"].layout)
            self.ways, self.flow = flows.length, _as_struct(flows.element)
            self._tuple_at = self.flow.members["tuple"].offset
            if [one.offset for one in _as_struct(self.flow.members["tuple"].layout).members.values()] != _TUPLE_OFFSETS:
                raise TypeError
        except (KeyError, TypeError):
            happened = f"{table!r} is no flow table"
            raise RautaError(tried, happened, "Its values must be of struct flow_set (contract.h).") from None
        self._empty = bytes(self.layout.size)

    def count(self, data: bytes) -> int:
        """The entries of the sets side by side."""
        tags = (
            self._tag.layout.unpack_from(data, at + self._tag.offset) for at in range(0, len(data), self.layout.size)
        )
        return sum(len(row) - row.count(0) for row in tags)

    def is_locked(self, data: bytes, at: int) -> bool:
        """Whether somebody writes, or wrote, to the set there."""
        lock = at + self._lock.offset
        return any(data[lock : lock + self._lock.layout.size])

    def entries(self, data: bytes, base: int, flow_key: int, convert: Conversion) -> Iterator[tuple[int, _Entry]]:
        """The flows of a set by their hash, converted."""
        tags = self._tag.layout.unpack_from(data, base + self._tag.offset)
        if not any(tags):
            return
        clock = self._clock.layout.unpack_from(data, base + self._clock.offset)
        used = self._used.layout.unpack_from(data, base + self._used.offset)
        for way, tag in enumerate(tags):
            if not tag:
                continue
            at = base + self._flows_at + way * self.flow.size
            hash = _flow_hash(flow_key, *_TUPLE.unpack_from(data, at + self._tuple_at))
            if tag == (hash >> 24 & 0xFFFFFFFF) | 1:
                flow = convert.column(data[at : at + self.flow.size], 1)
                yield hash, _Entry(clock - used[way] & 0xFF, tag, flow)

    def packed(self, entries: Iterable[_Entry]) -> bytes:
        """A whole set, as if its flows had come one by one, those not used for longest first."""
        newest = sorted(entries, key=lambda entry: entry.age)[: self.ways]
        if not newest:
            return self._empty
        value: dict[str, Any] = {
            "clock": 2 * len(newest),
            "used": bytes(2 * number + 1 for number in range(len(newest))),
            "tag": [entry.tag for entry in reversed(newest)] + [0] * (self.ways - len(newest)),
        }
        data = bytearray(self.layout.pack(value))
        for way, entry in enumerate(reversed(newest)):
            at = self._flows_at + way * self.flow.size
            data[at : at + self.flow.size] = entry.flow
        return bytes(data)


def _as_struct(layout: Layout | None) -> StructLayout:
    if not isinstance(layout, StructLayout):
        raise TypeError
    return layout


def _as_array(layout: Layout) -> ArrayLayout:
    if not isinstance(layout, ArrayLayout):
        raise TypeError
    return layout


def _span(first: int, end: int, sets: int, others: int) -> tuple[int, int]:
    """Which sets of a table of `others` share hashes with those of a table of `sets`, from where to where."""
    lowest, highest = -(-first * _HASHES // sets), -(-end * _HASHES // sets) - 1
    return _set_number(lowest, others), _set_number(highest, others) + 1


def _merged(spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Spans in order, those that touch in one."""
    first = end = 0
    for start, stop in spans:
        if start > end:
            if end > first:
                yield first, end
            first = start
        end = stop
    if end > first:
        yield first, end


def _set_number(hash: int, sets: int) -> int:
    return (hash & _HASHES - 1) * sets >> 32


def _flow_hash(flow_key: int, addresses: int, ports: int) -> int:
    """contract.h's flow_hash() of a struct tuple as it lies in memory."""
    return _mix(_mix(flow_key, addresses), ports)


def _mix(hash: int, word: int) -> int:
    hash = (hash ^ word) * _MULTIPLIER & _HASH_BITS
    return hash ^ hash >> 29
