"""BTF, the type information that clang and the kernel attach to BPF objects, read in Python.

Format: Documentation/bpf/btf.rst in the Linux sources. Types are decoded when they are asked for; opening only notes
where each one starts, so that the kernel's own hundred thousand types cost little. Bitfields and floating point are
refused.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

from rauta.bpf import _lib
from rauta.bpf.layout import ArrayLayout, BytesLayout, IntLayout, Layout, Member, StructLayout
from rauta.errors import BpfError

__all__ = ["Btf"]

KERNEL_BTF = "/sys/kernel/btf/vmlinux"

_MAGIC = 0xEB9F
_HEADER = struct.Struct("=HBBIIIII")
_TYPE = struct.Struct("=III")  # name, info, size or type
_MEMBER = struct.Struct("=III")  # name, type, offset in bits
_ARRAY = struct.Struct("=III")  # element type, index type, length
_SECTION_VARIABLE = struct.Struct("=III")  # variable, offset, size
_INT = struct.Struct("=I")
_INT_SIGNED, _INT_BOOL = 1, 4
_POINTER_SIZE = 8  # of the BPF machine, whatever the host's is
_MAX_QUALIFIERS = 64  # typedefs of typedefs; more is a loop in damaged data


class _Kind(IntEnum):
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


_QUALIFIERS = {_Kind.TYPEDEF, _Kind.VOLATILE, _Kind.CONST, _Kind.RESTRICT, _Kind.TYPE_TAG}
_TRAILER = {_Kind.INT: 4, _Kind.ARRAY: 12, _Kind.VAR: 4, _Kind.DECL_TAG: 4}
_TRAILER_PER_ENTRY = {
    _Kind.STRUCT: 12,
    _Kind.UNION: 12,
    _Kind.ENUM: 8,
    _Kind.FUNC_PROTO: 8,
    _Kind.DATASEC: 12,
    _Kind.ENUM64: 12,
}


class _Type:
    """One type's record: struct btf_type and the offset of what follows it."""

    __slots__ = ("body", "entries", "flag", "kind", "name_offset", "size")

    def __init__(self, types: bytes, offset: int) -> None:
        self.name_offset, info, self.size = _TYPE.unpack_from(types, offset)
        self.kind = info >> 24 & 0x1F
        self.entries = info & 0xFFFF
        self.flag = bool(info >> 31)
        self.body = offset + _TYPE.size


class Btf:
    """The types of one BPF object or of the running kernel. `source` names it in errors."""

    def __init__(self, raw: bytes, source: str) -> None:
        """Reads a BTF blob; BpfError when it is none, or of another byte order."""
        self.source = source
        if len(raw) < _HEADER.size or _HEADER.unpack_from(raw)[0] != _MAGIC:
            raise BpfError(f"reading the BTF of {source}", "there is none", "Compile with clang -g -target bpf.")
        _, _, _, header, type_offset, type_size, string_offset, string_size = _HEADER.unpack_from(raw)
        self._types = raw[header + type_offset : header + type_offset + type_size]
        self._strings = raw[header + string_offset : header + string_offset + string_size]
        self._starts = self._index()
        self._layouts: dict[int, Layout] = {}

    @classmethod
    def from_object(cls, path: str | os.PathLike[str]) -> Btf:
        """The BTF of a BPF object file. Parsed through libbpf, which fills in the offsets of global variables."""
        handle = _lib.open_object(path)
        try:
            return cls(_lib.object_btf(handle), os.fspath(path))
        finally:
            _lib.libbpf().bpf_object__close(handle)

    @classmethod
    def from_kernel(cls) -> Btf:
        """The running kernel's types; BpfError when it was built without CONFIG_DEBUG_INFO_BTF."""
        try:
            return cls(Path(KERNEL_BTF).read_bytes(), "the kernel")
        except OSError as problem:
            raise BpfError(
                f"reading {KERNEL_BTF}",
                problem.strerror or str(problem),
                "The kernel needs CONFIG_DEBUG_INFO_BTF=y.",
                errno=problem.errno or 0,
            ) from problem

    def struct(self, name: str) -> Layout:
        """The layout of `struct name`, `union name` or the typedef `name`; BpfError when there is none."""
        return self.layout(self._find(name, _Kind.STRUCT, _Kind.UNION, _Kind.TYPEDEF))

    def enum(self, name: str) -> dict[str, int]:
        """The constants of `enum name`, in the order of the source; BpfError when there is none.

        clang keeps only the enums that the object uses as a type.
        """
        record = self._record(self._find(name, _Kind.ENUM, _Kind.ENUM64))
        return dict(self._constants(record))

    def layout(self, type_id: int) -> Layout:
        """The layout of a type by its BTF id; BpfError for what has none (void, functions, bitfields, floats)."""
        known = self._layouts.get(type_id)
        if known is None:
            known = self._layouts[type_id] = self._build(type_id)
        return known

    def variables(self, section: str) -> dict[str, tuple[int, Layout]]:
        """The global variables of a section (".rodata", ".data", ".bss"): offset in bytes and layout, by name.

        Empty when the object has no such section.
        """
        found = next(self._named(section, _Kind.DATASEC), None)
        return {} if found is None else dict(self._section_variables(self._record(found)))

    # ---- records ---------------------------------------------------------------------------------------

    def _index(self) -> array[int]:
        starts = array("I", [0])  # id 0 is void
        offset, unpack = 0, _TYPE.unpack_from
        while offset < len(self._types):
            starts.append(offset)
            info = unpack(self._types, offset)[1]
            kind = info >> 24 & 0x1F
            offset += _TYPE.size + _TRAILER.get(kind, 0) + _TRAILER_PER_ENTRY.get(kind, 0) * (info & 0xFFFF)
        return starts

    def _record(self, type_id: int) -> _Type:
        if not 0 < type_id < len(self._starts):
            raise BpfError(f"reading type {type_id} of {self.source}", "it has no such type")
        return _Type(self._types, self._starts[type_id])

    def _string(self, offset: int) -> str:
        return self._strings[offset : self._strings.index(b"\0", offset)].decode()

    def _named(self, name: str, kind: _Kind) -> Iterator[int]:
        """Ids of the types of this kind and name.

        A name may end another one's string, so every place it stands at counts.
        """
        wanted, places, place = name.encode() + b"\0", set(), -1
        while (place := self._strings.find(wanted, place + 1)) >= 0:
            places.add(place)
        for type_id in range(1, len(self._starts)):
            name_offset, info, _ = _TYPE.unpack_from(self._types, self._starts[type_id])
            if name_offset in places and info >> 24 & 0x1F == kind:
                yield type_id

    def _find(self, name: str, *kinds: _Kind) -> int:
        for kind in kinds:
            for type_id in self._named(name, kind):
                return type_id
        raise BpfError(
            f"looking for {kinds[0].name.lower()} {name} in the BTF of {self.source}",
            "there is none",
            "clang keeps only the types that the object uses.",
        )

    def _plain(self, type_id: int) -> tuple[int, _Type]:
        """The type behind typedefs and qualifiers."""
        for _ in range(_MAX_QUALIFIERS):
            record = self._record(type_id)
            if record.kind not in _QUALIFIERS:
                return type_id, record
            type_id = record.size
        raise BpfError(f"reading type {type_id} of {self.source}", "its typedefs go round in a circle")

    # ---- layouts ---------------------------------------------------------------------------------------

    def _build(self, type_id: int) -> Layout:
        plain_id, record = self._plain(type_id)
        if plain_id != type_id:
            return self.layout(plain_id)
        name = self._string(record.name_offset) or "(anonymous)"
        match record.kind:
            case _Kind.INT:
                encoding = _INT.unpack_from(self._types, record.body)[0] >> 24
                return IntLayout(
                    name, record.size, signed=bool(encoding & _INT_SIGNED), boolean=bool(encoding & _INT_BOOL)
                )
            case _Kind.ENUM | _Kind.ENUM64:
                return IntLayout(f"enum {name}", record.size, signed=record.flag)
            case _Kind.PTR:
                return IntLayout("pointer", _POINTER_SIZE)
            case _Kind.ARRAY:
                return self._array(record)
            case _Kind.STRUCT | _Kind.UNION:
                keyword = _Kind(record.kind).name.lower()
                return StructLayout(f"{keyword} {name}", record.size, dict(self._members(record, f"{keyword} {name}")))
            case _Kind.DATASEC:
                members = {n: Member(offset, layout) for n, (offset, layout) in self._section_variables(record)}
                return StructLayout(f"section {name}", record.size, members)
            case _:
                kind = _Kind(record.kind).name if record.kind in set(_Kind) else f"kind {record.kind}"
                raise BpfError(
                    f"reading type {name} of {self.source}", f"a {kind} has no layout that Python could pack"
                )

    def _array(self, record: _Type) -> Layout:
        element_id, _, length = _ARRAY.unpack_from(self._types, record.body)
        element = self.layout(element_id)
        name = f"{element.name}[{length}]"
        if isinstance(element, IntLayout) and element.size == 1 and not element.boolean:
            return BytesLayout(name, length)
        return ArrayLayout(name, element.size * length, element, length)

    def _members(self, record: _Type, owner: str, base: int = 0) -> Iterator[tuple[str, Member]]:
        """Members with offsets in bytes; those of anonymous structs and unions are pulled up."""
        for index in range(record.entries):
            name_offset, type_id, bits = _MEMBER.unpack_from(self._types, record.body + index * _MEMBER.size)
            name = self._string(name_offset)
            if (record.flag and bits >> 24) or bits % 8:
                raise BpfError(
                    f"reading {owner} of {self.source}",
                    f"its member {name!r} is a bitfield",
                    "Use whole integers and masks.",
                )
            offset = base + (bits & 0xFFFFFF if record.flag else bits) // 8
            plain = self._plain(type_id)[1]
            if not name and plain.kind in (_Kind.STRUCT, _Kind.UNION):
                yield from self._members(plain, owner, offset)
            else:
                yield name, Member(offset, self.layout(type_id))

    def _section_variables(self, record: _Type) -> Iterator[tuple[str, tuple[int, Layout]]]:
        for index in range(record.entries):
            variable_id, offset, _ = _SECTION_VARIABLE.unpack_from(
                self._types, record.body + index * _SECTION_VARIABLE.size
            )
            variable = self._record(variable_id)
            yield self._string(variable.name_offset), (offset, self.layout(variable.size))

    def _constants(self, record: _Type) -> Iterator[tuple[str, int]]:
        wide = record.kind == _Kind.ENUM64
        entry = struct.Struct("=III" if wide else "=II")
        bits = 64 if wide else 32
        for index in range(record.entries):
            name_offset, value, *high = entry.unpack_from(self._types, record.body + index * entry.size)
            value |= high[0] << 32 if high else 0
            if record.flag and value >> bits - 1:
                value -= 1 << bits
            yield self._string(name_offset), value
