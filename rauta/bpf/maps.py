"""BPF maps as typed tables.

Keys and values are what their BTF layout packs (rauta.bpf.layout); raw bytes of the exact size are taken everywhere
too. Without BTF, keys of array types are integers and everything else comes back as bytes, and goes in as bytes or an
unsigned integer.

Per-CPU maps hold one value for each possible CPU: reading gives the list, writing takes a list or one value for all of
them. Maps of file descriptors (maps in maps, program arrays) take a Map, a Program or a descriptor, and give back the
kernel's id.

Every call that the kernel refuses raises BpfError with its `errno`; values that do not fit raise ValueError.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import weakref
from array import array
from collections.abc import Iterable, Iterator, Mapping
from ctypes import byref, c_uint32
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rauta.bpf import _lib, _pinned
from rauta.bpf.layout import Buffer, BytesLayout, IntLayout, Layout, Misfit, Value
from rauta.errors import BpfError

__all__ = ["BPF_ANY", "BPF_EXIST", "BPF_NOEXIST", "Map", "MapType"]

BPF_ANY, BPF_NOEXIST, BPF_EXIST = 0, 1, 2

BATCH_ENTRIES = 16384  # entries read per system call; bounds the buffer, not the map


class MapType(IntEnum):
    """enum bpf_map_type (linux/bpf.h)."""

    UNSPEC = 0
    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERF_EVENT_ARRAY = 4
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    STACK_TRACE = 7
    CGROUP_ARRAY = 8
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    HASH_OF_MAPS = 13
    DEVMAP = 14
    SOCKMAP = 15
    CPUMAP = 16
    XSKMAP = 17
    SOCKHASH = 18
    CGROUP_STORAGE = 19
    REUSEPORT_SOCKARRAY = 20
    PERCPU_CGROUP_STORAGE = 21
    QUEUE = 22
    STACK = 23
    SK_STORAGE = 24
    DEVMAP_HASH = 25
    STRUCT_OPS = 26
    RINGBUF = 27
    INODE_STORAGE = 28
    TASK_STORAGE = 29
    BLOOM_FILTER = 30
    USER_RINGBUF = 31
    CGRP_STORAGE = 32
    ARENA = 33
    INSN_ARRAY = 34


_PER_CPU = {MapType.PERCPU_ARRAY, MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH}
_VALUE_ARRAYS = {MapType.ARRAY, MapType.PERCPU_ARRAY}  # their entries always exist: clearing writes zeros
_INDEXED = _VALUE_ARRAYS | {
    MapType.PROG_ARRAY,
    MapType.PERF_EVENT_ARRAY,
    MapType.CGROUP_ARRAY,
    MapType.ARRAY_OF_MAPS,
    MapType.DEVMAP,
    MapType.SOCKMAP,
    MapType.CPUMAP,
    MapType.XSKMAP,
    MapType.REUSEPORT_SOCKARRAY,
}
_OF_MAPS = {MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS}
_DESCRIPTORS = {MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS, MapType.PROG_ARRAY}
_INDEX = IntLayout("__u32", 4)
_NO_BATCH = {-errno.EINVAL, -errno.EOPNOTSUPP, -_lib.ENOTSUPP}  # kernels before 5.6, and map types without it


@dataclass(frozen=True)
class _RawLayout(Layout):
    """A key or value without BTF: bytes out; bytes or an unsigned integer in."""

    number: IntLayout = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "number", IntLayout(self.name, self.size))

    def pack_into(self, buffer: bytearray, offset: int, value: Value) -> None:
        self.number.pack_into(buffer, offset, value)

    def unpack_from(self, data: Buffer, offset: int) -> Any:
        return bytes(data[offset : offset + self.size])


@dataclass(frozen=True)
class _DescriptorLayout(Layout):
    """The value of a map of maps or programs: a descriptor in (or what has one), an id out."""

    def pack_into(self, buffer: bytearray, offset: int, value: Value) -> None:
        _INDEX.pack_into(buffer, offset, getattr(value, "fd", value))

    def unpack_from(self, data: Buffer, offset: int) -> Any:
        return _INDEX.unpack_from(data, offset)


@dataclass(frozen=True)
class _PerCpuLayout(Layout):
    """One value for each possible CPU, each padded to 8 bytes (kernel/bpf/syscall.c, bpf_map_value_size)."""

    value: Layout
    stride: int

    def pack_into(self, buffer: bytearray, offset: int, value: Value) -> None:
        cpus = self.size // self.stride
        values = value if isinstance(value, list) else [value] * cpus
        if len(values) != cpus:
            raise Misfit(f"has {len(values)} values for {cpus} possible CPUs")
        for cpu, item in enumerate(values):
            _put(self.value, buffer, offset + cpu * self.stride, item)

    def unpack_from(self, data: Buffer, offset: int) -> Any:
        return [self.value.unpack_from(data, at) for at in range(offset, offset + self.size, self.stride)]


def _put(layout: Layout, buffer: bytearray, offset: int, value: Value) -> None:
    """Packs a value, or copies it when it is bytes already. The bytes must be all of it, or the layout one of bytes."""
    if not isinstance(value, (bytes, bytearray, memoryview)) or isinstance(layout, BytesLayout):
        layout.pack_into(buffer, offset, value)
    elif len(value) == layout.size:
        buffer[offset : offset + layout.size] = value
    elif isinstance(layout, _PerCpuLayout):
        layout.pack_into(buffer, offset, value)
    else:
        raise Misfit(f"{layout.name} is {layout.size} bytes, not {len(value)}")


def _per_cpu(layout: Layout) -> _PerCpuLayout:
    stride = layout.size + 7 & ~7
    return _PerCpuLayout(f"{layout.name} per CPU", stride * _lib.possible_cpus(), layout, stride)


class Map:
    """One map: of an object (BpfObject.maps), made by `Map.create`, or opened by its id or pin.

    `key_size` and `value_size` are bytes of one key and of one CPU's value; `key_layout` and `value_layout` their
    types, None where the object says none. Sizes are settled when the object is loaded; table operations need a loaded
    object.
    """

    def __init__(
        self,
        name: str,
        type: MapType,
        key_size: int,
        value_size: int,
        max_entries: int,
        *,
        key_layout: Layout | None = None,
        value_layout: Layout | None = None,
        owner: object = None,
        handle: int | None = None,
    ) -> None:
        """For this package: users get maps from BpfObject.maps, Map.create, Map.by_id or Map.from_pin.

        `owner` keeps the object behind `handle` alive.
        """
        self.name = name
        self.type = type
        self.key_size = key_size
        self.value_size = value_size
        self.max_entries = max_entries
        self.key_layout = key_layout
        self.value_layout = value_layout
        self._owner = owner
        self._handle = handle
        self._reused = False
        self._fd = -1
        self._finalizer: weakref.finalize[..., Any] | None = None
        self._key = key_layout or (_INDEX if type in _INDEXED else _RawLayout("key", key_size))
        value = value_layout or _RawLayout("value", value_size)
        if type in _DESCRIPTORS:
            value = _DescriptorLayout("descriptor", value_size)
        self._value = _per_cpu(value) if type in _PER_CPU else value

    @classmethod
    def create(
        cls,
        type: MapType,
        name: str,
        key_size: int,
        value_size: int,
        max_entries: int,
        flags: int = 0,
        *,
        key_layout: Layout | None = None,
        value_layout: Layout | None = None,
        inner: Map | None = None,
    ) -> Self:
        """A new map (bpf_map_create), for instance the inner map of a map in map. Sizes in bytes, flags BPF_F_*.

        `inner`: of a map of maps, one like those that it will hold.
        The caller closes it; a map of maps that holds it keeps it alive in the kernel. BpfError when the kernel
        refuses.
        """
        made = cls(
            name, MapType(type), key_size, value_size, max_entries, key_layout=key_layout, value_layout=value_layout
        )
        options = _lib.MapCreateOpts(map_flags=flags, inner_map_fd=inner.fd if inner else 0)
        short_name = name.encode()[:15]  # BPF_OBJ_NAME_LEN
        made._fd = _lib.check(
            _lib.libbpf().bpf_map_create(made.type, short_name, key_size, value_size, max_entries, byref(options)),
            f"creating map '{name}' ({made.type.name}, {max_entries} entries of {key_size} + {value_size} bytes)",
            "Creating maps needs root, or CAP_BPF and CAP_NET_ADMIN.",
        )
        made._finalizer = weakref.finalize(made, os.close, made._fd)
        return made

    @classmethod
    def by_id(cls, id: int, type: MapType, name: str, key_size: int, value_size: int, max_entries: int) -> Self:
        """A map that the kernel has already, by its id, for instance an inner map by what its outer map says.

        Everything but the id must be as it was when the map was made. The caller closes it. BpfError if it is gone.
        """
        found = cls(name, MapType(type), key_size, value_size, max_entries)
        found._fd = _lib.check(_lib.libbpf().bpf_map_get_fd_by_id(id), f"opening map {id}, '{name}'")
        found._finalizer = weakref.finalize(found, os.close, found._fd)
        return found

    @classmethod
    def from_pin(cls, path: str | os.PathLike[str]) -> Self:
        """The map that is pinned there, typed by the kernel's copy of its BTF: as it was made, whoever made it.

        `name` is the kernel's, which has 15 characters at most. The caller closes it. BpfError if there is no map.
        """
        fd = _pinned.opened(path, "map")
        try:
            info = _pinned.map_info(fd)
            found = cls(
                info.name,
                MapType(info.type),
                info.key_size,
                info.value_size,
                info.max_entries,
                key_layout=info.key_layout,
                value_layout=info.value_layout,
            )
        except BaseException:
            os.close(fd)
            raise
        found._fd = fd
        found._finalizer = weakref.finalize(found, os.close, fd)
        return found

    def __repr__(self) -> str:
        return f"<Map {self.name!r} {self.type.name} {self.max_entries} entries>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def fd(self) -> int:
        """The file descriptor; BpfError before the object is loaded and after it is closed."""
        if self._fd < 0:
            raise BpfError(
                f"using map '{self.name}'",
                "it has no descriptor",
                "Load the object first, and use its maps before it is closed.",
            )
        return self._fd

    def close(self) -> None:
        """Gives up a map of its own. Maps of an object are closed with the object: nothing happens."""
        if self._finalizer is not None:
            self._finalizer()
            self._fd = -1

    @property
    def id(self) -> int:
        """The number that the kernel and bpftool know the map by."""
        return _pinned.map_info(self.fd).id

    def pin(self, path: str | os.PathLike[str], *, replace: bool = False) -> None:
        """Has the map outlive its object and this process, at a path in a bpffs (rauta.upgrade.pins) whose names have
        no dots.

        With `replace`, it takes the place of what is pinned there, if anything is, in one step; without, BpfError.
        """
        _pinned.pin(self.fd, path, f"map '{self.name}'", replace=replace)

    def memory(self) -> int:
        """Bytes that the kernel holds for the map now, with the maps that a map of maps leads to."""
        inner = _inner_maps(self) if self.type in _OF_MAPS else ()
        return _memory_of(self.fd, self.name) + sum(inner)

    def set_max_entries(self, count: int) -> None:
        """Sizes the map; only before the object is loaded."""
        if self._handle is None:
            raise BpfError(f"sizing map '{self.name}'", "it exists already", "Set max_entries before load().")
        if self._reused:
            happened = f"an existing map of {self.max_entries} entries is reused for it"
            raise BpfError(f"sizing map '{self.name}'", happened, "Set max_entries of maps that are made anew only.")
        _lib.check(
            _lib.libbpf().bpf_map__set_max_entries(self._handle, count), f"sizing map '{self.name}' to {count} entries"
        )
        self.max_entries = count

    # ---- one entry -------------------------------------------------------------------------------------

    def lookup(self, key: Value) -> Any:
        """The value at a key, or None when there is none."""
        value = self.lookup_raw(key)
        return None if value is None else self._value.unpack_from(value, 0)

    def lookup_raw(self, key: Value) -> bytes | None:
        """The same as bytes, as `raw_batches` gives them."""
        value = ctypes.create_string_buffer(self._value.size)
        result = _lib.libbpf().bpf_map_lookup_elem(self.fd, self._packed(self._key, "key", key), value)
        if result == -errno.ENOENT:
            return None
        _lib.check(result, f"looking up {key!r} in map '{self.name}'")
        return value.raw

    def update(self, key: Value, value: Any, flags: int = BPF_ANY) -> None:
        """Sets the value at a key. `flags`: BPF_NOEXIST only adds, BPF_EXIST only replaces."""
        result = _lib.libbpf().bpf_map_update_elem(
            self.fd, self._packed(self._key, "key", key), self._packed(self._value, "value", value), flags
        )
        _lib.check(result, f"setting {key!r} in map '{self.name}'", self._update_advice(result))

    def delete(self, key: Value) -> bool:
        """Takes a key out; False when it was not there."""
        result = _lib.libbpf().bpf_map_delete_elem(self.fd, self._packed(self._key, "key", key))
        if result == -errno.ENOENT:
            return False
        _lib.check(result, f"deleting {key!r} from map '{self.name}'")
        return True

    def sum(self, key: Value) -> int:
        """A per-CPU integer added up over all possible CPUs; 0 when the key is absent. TypeError for other values."""
        if not isinstance(self._value, _PerCpuLayout) or not isinstance(self._value.value, IntLayout):
            raise TypeError(f"map '{self.name}' does not hold one integer per CPU")
        return sum(self.lookup(key) or ())

    # ---- all entries -----------------------------------------------------------------------------------

    def keys(self) -> Iterator[Any]:
        """Every key, one system call each.

        Where other writers delete meanwhile, the walk may start again and repeat keys.
        """
        return (self._key.unpack_from(key, 0) for key in self._raw_keys())

    def items(self) -> Iterator[tuple[Any, Any]]:
        """Every key with its value, two system calls each; entries deleted meanwhile are left out."""
        for key in self.keys():
            value = self.lookup(key)
            if value is not None:
                yield key, value

    def items_batch(self) -> list[tuple[Any, Any]]:
        """Every key with its value, many per system call (bpf_map_lookup_batch).

        Map types without batches are read one entry at a time.
        """
        entries: list[tuple[Any, Any]] = []
        try:
            for keys, values, count in self._raw_batches():
                entries += zip(
                    self._column(self._key, keys, count), self._column(self._value, values, count), strict=True
                )
        except _NoBatch:
            return list(self.items())
        return entries

    def lookup_batch(self) -> list[tuple[Any, Any]]:
        """The same as `items_batch`, under libbpf's name."""
        return self.items_batch()

    def dump(self) -> bytes:
        """All values of an array side by side, as they lie in memory; but locks are read as 0.

        TypeError for other maps: their entries have no place.
        """
        if self.type not in _VALUE_ARRAYS:
            raise TypeError(f"map '{self.name}' is no array")
        return b"".join(values[: count * self._value.size] for _, values, count in self._raw_batches())

    def update_batch(self, items: Iterable[tuple[Value, Any]] | Mapping[Any, Any], flags: int = BPF_ANY) -> None:
        """Sets many entries in one system call; one by one where the map type has no batches.

        Not atomic: when it fails, the entries before the one that failed are set, and the BpfError says how many.
        """
        entries = list(items.items() if isinstance(items, Mapping) else items)
        if not entries:
            return
        keys = self._packed_column(self._key, "key", [key for key, _ in entries])
        values = self._packed_column(self._value, "value", [value for _, value in entries])
        count, options = c_uint32(len(entries)), _lib.MapBatchOpts(elem_flags=flags)
        result = _lib.libbpf().bpf_map_update_batch(self.fd, keys, values, byref(count), byref(options))
        if result in _NO_BATCH:
            for key, value in entries:
                self.update(key, value, flags)
            return
        _lib.check(
            result,
            f"setting entry {count.value + 1} of {len(entries)} in map '{self.name}'",
            self._update_advice(result),
        )

    def delete_batch(self, keys: Iterable[Value]) -> int:
        """Takes many keys out, and says how many were there."""
        wanted = list(keys)
        return self._delete_raw(self._packed_column(self._key, "key", wanted), len(wanted))

    def clear(self) -> None:
        """Takes every entry out. Arrays of values are overwritten with zeros, since their entries always exist."""
        if self.type in _VALUE_ARRAYS:
            zeros = bytes(self._value.size)
            self.update_batch((index, zeros) for index in range(self.max_entries))
            return
        keys = list(self._raw_keys()) if self.type in _DESCRIPTORS else self._all_raw_keys()
        self._delete_raw(b"".join(keys), len(keys))

    # ---- many entries, as bytes ------------------------------------------------------------------------

    def raw_batches(self, entries: int) -> Iterator[tuple[bytes, bytes, int]]:
        """All keys and values as they lie in memory, side by side, and how many: so many entries at a time, about.

        Of a per-CPU map, a value is those of all possible CPUs, each padded to 8 bytes. BpfError if the map type has no
        batches.
        """
        try:
            for keys, values, count in self._raw_batches(entries):
                yield keys[: count * self._key.size], values[: count * self._value.size], count
        except _NoBatch:
            raise BpfError(f"reading map '{self.name}'", f"a map of type {self.type.name} has no batches") from None

    def update_raw(self, keys: bytes, values: bytes, count: int) -> None:
        """Sets so many entries, as `raw_batches` gives them; see `update_batch`."""
        done = c_uint32(count)
        result = _lib.libbpf().bpf_map_update_batch(self.fd, keys, values, byref(done), None)
        _lib.check(
            result,
            f"setting entry {done.value + 1} of {count} in map '{self.name}'",
            self._update_advice(result),
        )

    # ---- all of an array, as bytes ---------------------------------------------------------------------

    def read_array(self) -> bytes:
        """The values of an array side by side, from the first to the last."""
        return b"".join(values[: count * self._value.size] for _, values, count in self._raw_batches())

    def write_array(self, values: bytes) -> None:
        """Sets all values of an array in one system call. ValueError if these are not as many bytes as it holds."""
        if len(values) != self.max_entries * self._value.size:
            raise ValueError(f"{self!r} holds {self.max_entries * self._value.size} bytes, not {len(values)}")
        count = c_uint32(self.max_entries)
        _lib.check(
            _lib.libbpf().bpf_map_update_batch(self.fd, _indices(self.max_entries), values, byref(count), None),
            f"setting all of map '{self.name}'",
        )

    # ---- bytes -----------------------------------------------------------------------------------------

    def _packed(self, layout: Layout, role: str, value: Value) -> bytes:
        return self._packed_column(layout, role, [value])

    def _packed_column(self, layout: Layout, role: str, values: list[Any]) -> bytes:
        """Keys or values side by side, as the batch calls want them."""
        size = layout.size
        if all(isinstance(value, bytes) and len(value) == size for value in values):
            return b"".join(values)
        buffer = bytearray(size * len(values))
        for index, value in enumerate(values):
            try:
                _put(layout, buffer, index * size, value)
            except Misfit as misfit:
                raise misfit.within(f"{role} of map '{self.name}'") from None
        return bytes(buffer)

    @staticmethod
    def _column(layout: Layout, data: bytes, count: int) -> Iterator[Any]:
        return (layout.unpack_from(data, index * layout.size) for index in range(count))

    def _raw_keys(self) -> Iterator[bytes]:
        library, key = _lib.libbpf(), ctypes.create_string_buffer(self._key.size)
        previous: bytes | None = None
        while (result := library.bpf_map_get_next_key(self.fd, previous, key)) != -errno.ENOENT:
            _lib.check(result, f"walking through map '{self.name}'")
            previous = key.raw
            yield previous

    def _all_raw_keys(self) -> list[bytes]:
        size = self._key.size
        with contextlib.suppress(_NoBatch):
            return [
                keys[at : at + size] for keys, _, count in self._raw_batches() for at in range(0, count * size, size)
            ]
        return list(self._raw_keys())

    def _raw_batches(self, entries: int | None = None) -> Iterator[tuple[bytes, bytes, int]]:
        """Keys and values side by side, with their number.

        The position is opaque: a bucket of a hash, a key of an array.
        """
        library, room = _lib.libbpf(), min(self.max_entries, entries or BATCH_ENTRIES) or 1
        position: Any = None
        while True:
            keys = ctypes.create_string_buffer(room * self._key.size)
            values = ctypes.create_string_buffer(room * self._value.size)
            following = ctypes.create_string_buffer(max(8, self._key.size))
            count = c_uint32(room)
            result = library.bpf_map_lookup_batch(self.fd, position, following, keys, values, byref(count), None)
            if result == -errno.ENOSPC:  # a bucket that holds more than there is room for
                room *= 2
                continue
            if position is None and result in _NO_BATCH:
                raise _NoBatch
            if result != -errno.ENOENT:
                _lib.check(result, f"reading map '{self.name}'")
            yield keys.raw, values.raw, count.value
            if result == -errno.ENOENT:
                return
            position = following

    def _delete_raw(self, keys: bytes, total: int) -> int:
        """Batches stop at the first absent key: go on behind it."""
        size, library = self._key.size, _lib.libbpf()
        position = deleted = 0
        while position < total:
            count = c_uint32(total - position)
            result = library.bpf_map_delete_batch(self.fd, keys[position * size :], byref(count), None)
            if result in _NO_BATCH:
                return deleted + sum(self.delete(keys[at * size : (at + 1) * size]) for at in range(position, total))
            if result != -errno.ENOENT:
                _lib.check(result, f"deleting {total} entries from map '{self.name}'")
            deleted += count.value
            position += count.value + (result == -errno.ENOENT)
        return deleted

    def _update_advice(self, result: int) -> str:
        match -result:
            case errno.E2BIG:
                return f"The map holds at most {self.max_entries} entries."
            case errno.EEXIST:
                return "The key is there already, and BPF_NOEXIST says not to replace it."
            case errno.ENOENT:
                return "The key is not there, and BPF_EXIST says only to replace."
            case _:
                return ""


def _memory_of(fd: int, name: str) -> int:
    """What the kernel says about a descriptor of a map (kernel/bpf/syscall.c, bpf_map_show_fdinfo)."""
    for line in Path(f"/proc/thread-self/fdinfo/{fd}").read_text().splitlines():
        field, _, value = line.partition(":")
        if field == "memlock":
            return int(value)
    raise BpfError(f"measuring map '{name}'", "the kernel does not say what memory it takes", "Mount /proc.")


def _inner_maps(outer: Map) -> Iterator[int]:
    """The memory of each map in a map of maps, however often it is in there."""
    for id in {id for _, id in outer.items()}:
        fd = _lib.libbpf().bpf_map_get_fd_by_id(id)
        if fd == -errno.ENOENT:  # replaced since it was looked up
            continue
        _lib.check(fd, f"measuring map {id} in '{outer.name}'")
        try:
            yield _memory_of(fd, outer.name)
        finally:
            os.close(fd)


@functools.lru_cache(maxsize=4)
def _indices(count: int) -> bytes:
    """The keys of an array of that many entries, side by side. Many arrays of one size are filled one by one."""
    return array("I", range(count)).tobytes()


class _NoBatch(Exception):
    """This kernel has no batch operations for this map type."""
