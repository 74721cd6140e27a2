"""Entries of a map go over to a new one whose layout is another: what an upgrade needs when it cannot reuse the map.

What a member is, its name says: members of that name take its value, those that the new layout has not are dropped,
and new ones are zero. Arrays are cut, or end in zeros. An integer may become wider or narrower, as long as its value
fits. A member that became something else altogether (a struct, say, of an integer) counts as dropped and new.

The layouts come from BTF, the old one's from the kernel's copy (Map.from_pin), so no version has to know its
predecessors. They are compiled into a list of byte ranges once: a range a struct where nothing changed.

The new map must not be in use yet. What programs write into the old one meanwhile, the new one may lack. Entries are
streamed: no more than a megabyte of each map is held at a time.
"""

from __future__ import annotations

import logging
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rauta.bpf import BpfError, BpfObject, Map, MapType
from rauta.bpf.layout import ArrayLayout, BytesLayout, IntLayout, Layout, StructLayout, same_layout
from rauta.errors import RautaError

__all__ = ["adopt", "migrate", "migrate_all", "migrate_flows"]

logger = logging.getLogger(__name__)

BATCH_BYTES = 1 << 20  # of keys and values, read at a time

_PER_CPU = {MapType.PERCPU_ARRAY, MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH}
_ARRAYS = {MapType.ARRAY, MapType.PERCPU_ARRAY}
_MIGRATED = _PER_CPU | _ARRAYS | {MapType.HASH, MapType.LRU_HASH}
_STABLE_READS = 100  # of a set that is being written to; a writer is done within a microsecond
_HASH_BITS = (1 << 64) - 1
_MULTIPLIER = 0x9E3779B97F4A7C15  # bpf/contract.h, mix()


def adopt(obj: BpfObject, names: Iterable[str], earlier: Mapping[str, Map]) -> dict[str, Map]:
    """Has an object, before it is loaded, go on with earlier maps of these names, sized and laid out as its own.

    Returns those that are not: `migrate_all` copies them once it is loaded.
    """
    left = {}
    for name in names:
        if (old := earlier.get(name)) is None:
            continue
        try:
            if old.max_entries == obj.maps[name].max_entries:
                obj.reuse(name, old)
            else:
                left[name] = old
        except BpfError as error:
            logger.info("map %s is migrated: %s", name, error.happened)
            left[name] = old
    return left


def migrate_all(obj: BpfObject, left: Mapping[str, Map], flow_key: int) -> None:
    """Copies what `adopt` has left."""
    for name, old in left.items():
        new = obj.maps[name]
        if name == "flows":
            migrate_flows(old, new, flow_key, new.max_entries)
        else:
            migrate(old, new)


def migrate(old: Map, new: Map) -> int:
    """Copies all entries of a map into a new one of the same type; returns how many.

    HASH, LRU_HASH, ARRAY and their per-CPU kinds. Where the layouts are the same, bytes are copied as they are. What an
    array has beyond the new one's end is dropped; of an LRU map, who was used last is not kept. RautaError if the types
    differ, if there is no BTF to tell the members, if a value does not fit any more, or (BpfError) if the new map is
    full.
    """
    tried = f"migrating {old!r} to {new!r}"
    if old.type != new.type or old.type not in _MIGRATED:
        happened = f"from {old.type.name} to {new.type.name} there is no way"
        raise RautaError(tried, happened, "Fill the new map afresh.")
    keys = _conversion(old.key_layout, new.key_layout, old.key_size, new.key_size, tried)
    values = _conversion(old.value_layout, new.value_layout, old.value_size, new.value_size, tried)
    if old.type in _PER_CPU:
        values = values.padded()
    copied = 0
    for old_keys, old_values, found in old.raw_batches(_entries(old)):
        count = min(found, max(0, new.max_entries - copied)) if old.type in _ARRAYS else found
        if count:
            cpus = len(old_values) // (found * values.old_size)
            new.update_raw(keys.column(old_keys, count), values.column(old_values, count * cpus), count)
        copied += count
    return copied


def _entries(old: Map) -> int:
    return max(1, BATCH_BYTES // (old.key_size + old.value_size))


# ---- from one layout to another ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Integer:
    """An integer that became another one."""

    old: IntLayout
    old_at: int
    new: IntLayout
    new_at: int
    path: str


@dataclass(frozen=True)
class _Conversion:
    """How the bytes of one layout become those of another: ranges (from, to, length), and integers of other sizes."""

    old_size: int
    new_size: int
    ranges: tuple[tuple[int, int, int], ...]
    integers: tuple[_Integer, ...] = ()
    tried: str = field(default="", compare=False)

    def padded(self) -> _Conversion:
        """For values side by side that the kernel pads to 8 bytes."""
        unchanged = self._unchanged
        old_size, new_size = (size + 7 & ~7 for size in (self.old_size, self.new_size))
        ranges = ((0, 0, old_size),) if unchanged else self.ranges
        return _Conversion(old_size, new_size, ranges, self.integers, self.tried)

    def column(self, data: bytes, count: int) -> bytes:
        """The first `count` of keys or values side by side."""
        if self._unchanged:
            return data[: count * self.old_size]
        result = bytearray(count * self.new_size)
        for index in range(count):
            self.copy(data, index * self.old_size, result, index * self.new_size)
        return bytes(result)

    def copy(self, data: bytes, old_base: int, result: bytearray, new_base: int) -> None:
        """Converts one value into a zeroed buffer. RautaError if an integer does not fit."""
        for old_at, new_at, length in self.ranges:
            start = old_base + old_at
            result[new_base + new_at : new_base + new_at + length] = data[start : start + length]
        for one in self.integers:
            value = one.old.unpack_from(data, old_base + one.old_at)
            try:
                one.new.pack_into(result, new_base + one.new_at, value)
            except ValueError as misfit:
                raise RautaError(self.tried, f"{one.path}: {misfit}", "Fill the new map afresh.") from None

    @property
    def _unchanged(self) -> bool:
        return self.ranges == ((0, 0, self.old_size),) and self.old_size == self.new_size


def _conversion(old: Layout | None, new: Layout | None, old_size: int, new_size: int, tried: str) -> _Conversion:
    """Between two layouts; without them, between as many bytes."""
    if old is None or new is None:
        if old_size != new_size:
            happened = f"{old_size} bytes became {new_size}, and no BTF says what they are"
            raise RautaError(tried, happened, "Fill the new map afresh.")
        return _Conversion(old_size, new_size, ((0, 0, old_size),))
    steps = list(_steps(old, new, 0, 0, new.name))
    integers = tuple(step for step in steps if isinstance(step, _Integer))
    ranges = _merged(step for step in steps if not isinstance(step, _Integer))
    return _Conversion(old_size, new_size, ranges, integers, tried)


def _steps(old: Layout, new: Layout, old_at: int, new_at: int, path: str) -> Iterator[tuple[int, int, int] | _Integer]:
    if same_layout(old, new):
        yield old_at, new_at, old.size
    elif isinstance(old, StructLayout) and isinstance(new, StructLayout):
        for name, member in new.members.items():
            was = old.members.get(name)
            if was is not None:
                offsets = old_at + was.offset, new_at + member.offset
                yield from _steps(was.layout, member.layout, *offsets, f"{path}.{name}")
    elif isinstance(old, ArrayLayout) and isinstance(new, ArrayLayout):
        for index in range(min(old.length, new.length)):
            offsets = old_at + index * old.element.size, new_at + index * new.element.size
            yield from _steps(old.element, new.element, *offsets, f"{path}[{index}]")
    elif isinstance(old, BytesLayout) and isinstance(new, BytesLayout):
        yield old_at, new_at, min(old.size, new.size)
    elif isinstance(old, IntLayout) and isinstance(new, IntLayout):
        yield _Integer(old, old_at, new, new_at, path)


def _merged(ranges: Iterator[tuple[int, int, int]]) -> tuple[tuple[int, int, int], ...]:
    """Neighbours in both layouts become one."""
    merged: list[tuple[int, int, int]] = []
    for old_at, new_at, length in ranges:
        if merged:
            old_start, new_start, before = merged[-1]
            if (old_start + before, new_start + before) == (old_at, new_at):
                merged[-1] = old_start, new_start, before + length
                continue
        merged.append((old_at, new_at, length))
    return tuple(merged)


# ---- the flow table ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """A flow on its way to its new set: how long it was not used, in what its old set has taken in since."""

    age: int
    tag: int
    flow: bytes


def migrate_flows(old: Map, new: Map, flow_key: int, new_sets: int) -> int:
    """Copies the router's flows (contract.h, struct flow_set) into an empty table of `new_sets` sets; returns how many.

    `flow_key` is that of both tables' programs. Sets are read until two readings agree, so no entry is half of one flow
    and half of another while the old program goes on. But the copy does not follow it: a connection that has sent
    another request meanwhile hangs, as the new program drops what comes next as out of order. So take the old program
    off first, and the clients send again what they sent in between.

    Into as many sets of as many ways, each set goes as it is. Otherwise each entry goes to its own set, which takes ten
    times as long: of more than there are ways, those used last are kept; entries of another key, which no packet would
    find, are left out. RautaError if one of the maps is no flow table of that size.
    """
    tried = f"migrating {old!r} to {new!r}, {new_sets} sets"
    table, sets = _Table(old, tried), _Table(new, tried)
    if new_sets > new.max_entries:
        raise RautaError(tried, f"the new table has {new.max_entries} sets", "Size it before it is loaded.")
    if new_sets == old.max_entries and table.ways == sets.ways:
        return _migrate_sets(table, new, tried)
    convert = _conversion(table.flow, sets.flow, table.flow.size, sets.flow.size, tried)
    waiting: dict[int, list[_Entry]] = defaultdict(list)
    kept = done = 0
    for batch, count in table.stable_batches():
        for index in range(count):
            for hash, entry in table.entries(batch, index * old.value_size, flow_key, convert):
                if _set_number(hash, old.max_entries) == done + index:
                    waiting[_set_number(hash, new_sets)].append(entry)
        done += count
        # Sets follow each other as the hashes do: those before this one get nothing any more.
        complete = -(-(done << 32) // old.max_entries) * new_sets >> 32
        kept += sets.put({number: waiting.pop(number) for number in sorted(waiting) if number < complete})
    return kept


def _migrate_sets(table: _Table, new: Map, tried: str) -> int:
    convert = _conversion(table.layout, new.value_layout, table.layout.size, new.value_size, tried)
    kept = done = 0
    for batch, count in table.stable_batches():
        numbers = struct.pack(f"={count}I", *range(done, done + count))
        new.update_raw(numbers, convert.column(batch, count), count)
        kept += table.count(batch)
        done += count
    return kept


def _as_struct(layout: Layout | None) -> StructLayout:
    if not isinstance(layout, StructLayout):
        raise TypeError
    return layout


def _as_array(layout: Layout) -> ArrayLayout:
    if not isinstance(layout, ArrayLayout):
        raise TypeError
    return layout


class _Table:
    """A map of flow sets, whatever else its version has in them."""

    def __init__(self, table: Map, tried: str) -> None:
        try:
            self.layout = _as_struct(table.value_layout)
            of_set = self.layout.members
            self._lock, self._clock, self._used, self._tag = (of_set[n] for n in ("lock", "clock", "used", "tag"))
            self._flows_at, flows = of_set["flow"].offset, _as_array(of_set["flow"].layout)
            self.ways, self.flow = flows.length, _as_struct(flows.element)
            self._tuple = self.flow.members["tuple"]
        except (KeyError, TypeError):
            happened = f"{table!r} is no flow table"
            raise RautaError(tried, happened, "Its values must be of struct flow_set (contract.h).") from None
        self._map = table

    def stable_batches(self) -> Iterator[tuple[bytes, int]]:
        """The sets side by side, each as two readings in a row found it."""
        entries, size = max(1, BATCH_BYTES // self.layout.size), self.layout.size
        first = 0
        for (_, batch, count), (_, again, _) in zip(
            self._map.raw_batches(entries), self._map.raw_batches(entries), strict=True
        ):
            if batch != again or any(self._is_locked(batch, at) for at in range(0, len(batch), size)):
                batch = b"".join(
                    self._stable(first + at // size, batch, again, at) for at in range(0, len(batch), size)
                )
            yield batch, count
            first += count

    def count(self, batch: bytes) -> int:
        """The entries of the sets side by side."""
        tags = (
            self._tag.layout.unpack_from(batch, at + self._tag.offset) for at in range(0, len(batch), self.layout.size)
        )
        return sum(len(row) - row.count(0) for row in tags)

    def _stable(self, number: int, batch: bytes, again: bytes, at: int) -> bytes:
        size = self.layout.size
        before, now = batch[at : at + size], again[at : at + size]
        for _ in range(_STABLE_READS):
            if before == now and not self._is_locked(now, 0):
                return now
            before, now = now, self._map.lookup_raw(number) or now
        return bytes(size)  # a writer that never ends: without these flows rather than with halves of them

    def _is_locked(self, data: bytes, at: int) -> bool:
        return bool(self._lock.layout.unpack_from(data, at + self._lock.offset))

    def entries(self, data: bytes, base: int, flow_key: int, convert: _Conversion) -> Iterator[tuple[int, _Entry]]:
        """The flows of a set by their hash, converted."""
        tags = self._tag.layout.unpack_from(data, base + self._tag.offset)
        if not any(tags):
            return
        clock = self._clock.layout.unpack_from(data, base + self._clock.offset)
        used = self._used.layout.unpack_from(data, base + self._used.offset)
        for way, tag in enumerate(tags):
            at = base + self._flows_at + way * self.flow.size
            hash = _flow_hash(flow_key, self._tuple.layout.unpack_from(data, at + self._tuple.offset)) if tag else 0
            if tag and tag == (hash >> 24 & 0xFFFFFFFF) | 1:
                flow = bytearray(convert.new_size)
                convert.copy(data, at, flow, 0)
                yield hash, _Entry(clock - used[way] & 0xFF, tag, bytes(flow))

    def put(self, sets: dict[int, list[_Entry]]) -> int:
        """Writes whole sets, as if their flows had come one by one, those not used for longest first."""
        values = b"".join(self._set(entries) for entries in sets.values())
        if sets:
            self._map.update_raw(struct.pack(f"={len(sets)}I", *sets), values, len(sets))
        return sum(min(len(entries), self.ways) for entries in sets.values())

    def _set(self, entries: list[_Entry]) -> bytes:
        newest = sorted(entries, key=lambda entry: entry.age)[: self.ways]
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


def _set_number(hash: int, sets: int) -> int:
    return (hash & 0xFFFFFFFF) * sets >> 32


def _flow_hash(flow_key: int, four: dict[str, int]) -> int:
    """contract.h's flow_hash() of a struct tuple as it lies in memory."""
    hash = _mix(flow_key, four["client"] | four["server"] << 32)
    return _mix(hash, four["client_port"] | four["server_port"] << 16)


def _mix(hash: int, word: int) -> int:
    hash = (hash ^ word) * _MULTIPLIER & _HASH_BITS
    return hash ^ hash >> 29
