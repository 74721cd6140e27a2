"""How a C type lies in memory, and the way between its bytes and Python values.

    C                               Python
    integer, enum, bool, pointer    int (bool for bool)
    struct, union                   dict by member name; members left out are zero
    array                           list, all elements
    array of 1-byte integers        bytes; fewer than the array holds are padded with zeros

Byte order is the host's; __be16 and __be32 members are ordinary integers here, so convert first. What does not fit
raises ValueError with the path of the member ("struct flow.backend: 70000 does not fit ..."). Layouts come from BTF
(rauta.bpf.btf).
"""

from __future__ import annotations

import struct
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

__all__ = [
    "ArrayLayout",
    "BytesLayout",
    "IntLayout",
    "Layout",
    "Member",
    "StructLayout",
    "Value",
    "describe_difference",
    "same_layout",
]

Value: TypeAlias = int | bytes | Sequence[Any] | Mapping[str, Any]
"""What a layout packs. What it unpacks is typed Any: its shape is only known at run time."""

Buffer: TypeAlias = bytes | bytearray | memoryview

_BYTE_ORDER: Literal["little", "big"] = sys.byteorder
_CODES = {1: "b", 2: "h", 4: "i", 8: "q"}


class Misfit(ValueError):
    """A value that its type cannot hold. `where` grows from the innermost member outwards."""

    def __init__(self, problem: str, where: str = "") -> None:
        super().__init__(f"{where}: {problem}" if where else problem)
        self.problem = problem
        self.where = where

    def within(self, outer: str) -> Misfit:
        """The same, seen from the type around."""
        return Misfit(self.problem, outer + self.where)


@dataclass(frozen=True)
class Layout(ABC):
    """A C type: `name` as C writes it, `size` in bytes."""

    name: str
    size: int

    def pack(self, value: Value) -> bytes:
        """The `size` bytes of a value; ValueError names the member that does not fit."""
        buffer = bytearray(self.size)
        try:
            self.pack_into(buffer, 0, value)
        except Misfit as misfit:
            raise misfit.within(self.name) from None
        return bytes(buffer)

    def unpack(self, data: Buffer) -> Any:
        """The value of exactly `size` bytes; ValueError for any other number."""
        if len(data) != self.size:
            raise Misfit(f"is {self.size} bytes, not {len(data)}", self.name)
        return self.unpack_from(data, 0)

    @abstractmethod
    def pack_into(self, buffer: bytearray, offset: int, value: Value) -> None:
        """Writes a value at an offset of a zeroed buffer."""

    @abstractmethod
    def unpack_from(self, data: Buffer, offset: int) -> Any:
        """Reads the value at an offset."""


@dataclass(frozen=True)
class IntLayout(Layout):
    """An integer of 1, 2, 4, 8 or 16 bytes, an enum, a bool, or a pointer's address."""

    signed: bool = False
    boolean: bool = False
    codec: struct.Struct | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        code = _CODES.get(self.size)
        codec = struct.Struct("=" + (code if self.signed else code.upper())) if code else None
        object.__setattr__(self, "codec", codec)

    @property
    def range(self) -> tuple[int, int]:
        """The least and the greatest value."""
        if self.boolean:
            return 0, 1
        bits = 8 * self.size
        return (-(1 << bits - 1), (1 << bits - 1) - 1) if self.signed else (0, (1 << bits) - 1)

    def pack_into(self, buffer: bytearray, offset: int, value: Value) -> None:
        """An integer within `range`, whatever its width."""
        if self.codec is not None and not self.boolean:
            try:
                self.codec.pack_into(buffer, offset, value)
            except struct.error:
                raise self._misfit(value) from None
            return
        low, high = self.range
        if not isinstance(value, int) or not low <= value <= high:
            raise self._misfit(value)
        buffer[offset : offset + self.size] = int(value).to_bytes(self.size, _BYTE_ORDER, signed=self.signed)

    def unpack_from(self, data: Buffer, offset: int) -> Any:
        """An integer, or a bool."""
        if self.codec is None:
            return int.from_bytes(data[offset : offset + self.size], _BYTE_ORDER, signed=self.signed)
        value = self.codec.unpack_from(data, offset)[0]
        return bool(value) if self.boolean else value

    def _misfit(self, value: object) -> Misfit:
        if not isinstance(value, int):
            return Misfit(f"{value!r} is not an integer")
        low, high = self.range
        return Misfit(f"{value} does not fit {self.name} ({low} to {high})")


@dataclass(frozen=True)
class BytesLayout(Layout):
    """An array of char, __u8 or __s8."""

    def pack_into(self, buffer: bytearray, offset: int, value: Value) -> None:
        """Bytes, or a list of integers from 0 to 255; no more than the array holds."""
        try:
            data = bytes(value) if isinstance(value, (bytes, bytearray, memoryview, list, tuple)) else None
        except (TypeError, ValueError):
            data = None
        if data is None:
            raise Misfit(f"{value!r} is not bytes")
        if len(data) > self.size:
            raise Misfit(f"{len(data)} bytes do not fit {self.name}")
        buffer[offset : offset + len(data)] = data

    def unpack_from(self, data: Buffer, offset: int) -> Any:
        """All bytes of the array, trailing zeros too."""
        return bytes(data[offset : offset + self.size])


@dataclass(frozen=True)
class ArrayLayout(Layout):
    """An array of `length` elements of anything else."""

    element: Layout
    length: int
    codec: struct.Struct | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        of_integers = isinstance(self.element, IntLayout) and not self.element.boolean and self.element.codec
        codec = struct.Struct(f"={self.length}{of_integers.format[1:]}") if of_integers else None
        object.__setattr__(self, "codec", codec)

    def pack_into(self, buffer: bytearray, offset: int, value: Value) -> None:
        """A list or tuple of exactly `length` elements."""
        if not isinstance(value, (list, tuple)) or len(value) != self.length:
            raise Misfit(f"{value!r} is not a list of {self.length} elements")
        for index, item in enumerate(value):
            try:
                self.element.pack_into(buffer, offset + index * self.element.size, item)
            except Misfit as misfit:
                raise misfit.within(f"[{index}]") from None

    def unpack_from(self, data: Buffer, offset: int) -> Any:
        """A list of all elements."""
        if self.codec is not None:
            return list(self.codec.unpack_from(data, offset))
        element = self.element
        return [element.unpack_from(data, offset + index * element.size) for index in range(self.length)]


@dataclass(frozen=True)
class Member:
    """A member of a struct or union: its offset in bytes from the start, and its type."""

    offset: int
    layout: Layout


@dataclass(frozen=True)
class StructLayout(Layout):
    """A struct or union. Members of anonymous structs and unions inside count as its own."""

    members: Mapping[str, Member]
    overlapping: bool = field(init=False, repr=False, compare=False)
    codec: struct.Struct | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ends = end = 0
        overlapping = False
        for member in sorted(self.members.values(), key=lambda member: member.offset):
            overlapping |= member.offset < ends
            end = member.offset + member.layout.size
            ends = max(ends, end)
        object.__setattr__(self, "overlapping", overlapping)
        object.__setattr__(self, "codec", None if overlapping else _flat_codec(self.members.values()))

    def pack_into(self, buffer: bytearray, offset: int, value: Value) -> None:
        """A mapping of member names; several members of a union must say the same bytes."""
        if not isinstance(value, Mapping):
            raise Misfit(f"{value!r} is not a dict of its members")
        for name, item in value.items():
            member = self.members.get(name)
            if member is None:
                raise Misfit(f"has no member {name!r}; its members are {', '.join(self.members)}")
            try:
                member.layout.pack_into(buffer, offset + member.offset, item)
            except Misfit as misfit:
                raise misfit.within(f".{name}") from None
        if self.overlapping and len(value) > 1:
            self._refuse_contradiction(buffer, offset, value)

    def _refuse_contradiction(self, buffer: bytearray, offset: int, value: Mapping[str, Any]) -> None:
        """Members of a union share their bytes: two may be given only if they say the same."""
        for name, item in value.items():
            member = self.members[name]
            if member.layout.unpack_from(buffer, offset + member.offset) != member.layout.unpack(
                member.layout.pack(item)
            ):
                raise Misfit("contradicts another member of the same union", f".{name}")

    def unpack_from(self, data: Buffer, offset: int) -> Any:
        """A dict of every member."""
        if self.codec is not None:
            return dict(zip(self.members, self.codec.unpack_from(data, offset), strict=True))
        return {name: member.layout.unpack_from(data, offset + member.offset) for name, member in self.members.items()}


def _flat_codec(members: Sequence[Member] | Any) -> struct.Struct | None:
    """One codec for a struct of plain integers: maps with many entries are read several times faster."""
    template, position = "=", 0
    for member in members:
        layout = member.layout
        if not isinstance(layout, IntLayout) or layout.boolean or layout.codec is None or member.offset < position:
            return None
        template += f"{member.offset - position}x{layout.codec.format[1:]}"
        position = member.offset + layout.size
    return struct.Struct(template)


# ---- two layouts -----------------------------------------------------------------------------------------


def same_layout(old: Layout, new: Layout) -> bool:
    """Whether the bytes of one mean the same under the other.

    The members of structs have the same names, offsets and types; the types' own names do not matter.
    """
    return not describe_difference(old, new)


def describe_difference(old: Layout, new: Layout) -> str:
    """What became of the first member in memory that differs, by its path; empty if `same_layout`.

    For instance "struct flow.backend: offset 38 became 40".
    """
    return _difference(old, new, new.name)


def _difference(old: Layout, new: Layout, path: str) -> str:
    if type(old) is not type(new):
        return f"{path}: {old.name} became {new.name}"
    if isinstance(old, StructLayout) and isinstance(new, StructLayout):
        return _difference_of_members(old, new, path) or _difference_of_sizes(old, new, path)
    if isinstance(old, ArrayLayout) and isinstance(new, ArrayLayout):
        inner = _difference(old.element, new.element, f"{path}[]")
        return inner or (f"{path}: {old.length} elements became {new.length}" if old.length != new.length else "")
    if isinstance(old, IntLayout) and isinstance(new, IntLayout):
        signs = (old.signed, old.boolean), (new.signed, new.boolean)
        if old.size == new.size and signs[0] != signs[1]:
            return f"{path}: {old.name} became {new.name}"
    return _difference_of_sizes(old, new, path)


def _difference_of_members(old: StructLayout, new: StructLayout, path: str) -> str:
    for name, member in sorted(old.members.items(), key=lambda item: item[1].offset):
        there = new.members.get(name)
        if there is None:
            return f"{path}.{name}: is gone"
        if there.offset != member.offset:
            return f"{path}.{name}: offset {member.offset} became {there.offset}"
        if difference := _difference(member.layout, there.layout, f"{path}.{name}"):
            return difference
    added = next((name for name in new.members if name not in old.members), None)
    return f"{path}.{added}: is new" if added is not None else ""


def _difference_of_sizes(old: Layout, new: Layout, path: str) -> str:
    return f"{path}: {old.size} bytes became {new.size}" if old.size != new.size else ""
