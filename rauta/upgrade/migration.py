"""What maps hold goes over to new ones of another size or layout: what an upgrade needs when it cannot reuse them.

rauta.upgrade.conversion says what becomes of a struct, rauta.upgrade.flow_copy how the flow table goes over, and
rauta.upgrade.carrying what the agent knows of connections. `migrate` copies any other map: the new one must not be in
use yet, and may lack what programs write into the old one meanwhile. Entries are streamed: no more than a megabyte of
each map is held at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Self

from rauta.bpf import BpfError, BpfObject, Map, MapType
from rauta.errors import RautaError
from rauta.upgrade import carrying
from rauta.upgrade.conversion import conversion
from rauta.upgrade.flow_copy import FlowCopy

__all__ = ["Migration", "adopt", "migrate"]

logger = logging.getLogger(__name__)

BATCH_BYTES = 1 << 20  # of keys and values, read at a time

_PER_CPU = {MapType.PERCPU_ARRAY, MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH}
_ARRAYS = {MapType.ARRAY, MapType.PERCPU_ARRAY}
_HASHES = {MapType.HASH, MapType.LRU_HASH}
_MIGRATED = _PER_CPU | _ARRAYS | _HASHES
_ROUNDS = 8  # at most, until copying takes about as long as it will


def adopt(obj: BpfObject, names: Iterable[str], earlier: Mapping[str, Map]) -> dict[str, Map]:
    """Has an object, before it is loaded, go on with earlier maps of these names, sized and laid out as its own.

    Returns those that are not: they are for a `Migration`, once it is loaded. RautaError if what the agent knows of
    connections cannot go over.
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
    for name, old in left.items():
        if name in carrying.CARRIED:
            carrying.prepare(obj, name, old)
    return left


class Migration:
    """What `adopt` has left, on its way into the maps of the object, which has been loaded since.

    The old maps must stay open. For an object without `flows`, `flow_key` does not matter.
    """

    def __init__(self, obj: BpfObject, left: Mapping[str, Map], flow_key: int = 0) -> None:
        """RautaError if there is no way from one of them to its new map. Copies nothing yet."""
        self._object = obj
        self._carried = {name: old for name, old in left.items() if name in carrying.CARRIED}
        apart = {"flows", *self._carried}
        self._pairs = [(old, obj.maps[name]) for name, old in left.items() if name not in apart]
        self._flows = None
        if (table := left.get("flows")) is not None:
            self._flows = FlowCopy(table, obj.maps["flows"], flow_key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def copy(self) -> int:
        """Brings the new maps to where the old ones are; returns how many entries had to be written.

        Exact when nothing uses either of them at the time. Of flows, only those in sets that have changed since the
        last time are written.
        """
        copied = 0
        for old, new in self._pairs:
            copied += migrate(old, new)
        for name, old in self._carried.items():
            if old.type in _HASHES:  # what has been deleted since the last time
                self._object.maps[name].clear()
            copied += carrying.carry(self._object, name, old)
        return copied + (self._flows.follow() if self._flows is not None else 0)

    def catch_up(self) -> None:
        """Copies until as little is left as will be: while packets change the old maps, that is never nothing."""
        before = self.copy()
        for _ in range(_ROUNDS):
            now = self.copy()
            if 2 * now > before:
                return
            before = now

    def close(self) -> None:
        """Safe to repeat."""
        if self._flows is not None:
            self._flows.close()


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
    keys = conversion(old.key_layout, new.key_layout, old.key_size, new.key_size, tried)
    values = conversion(old.value_layout, new.value_layout, old.value_size, new.value_size, tried)
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
