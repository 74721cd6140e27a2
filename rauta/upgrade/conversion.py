"""From one layout of a struct to another, member by member: what becomes of bytes when an upgrade changes a struct.

What a member is, its name says: members of that name take its value, those that the new layout has not are dropped,
and new ones are zero. Arrays are cut, or end in zeros. An integer may become wider or narrower, as long as its value
fits. A member that became something else altogether (a struct, say, of an integer) counts as dropped and new.

The layouts come from BTF, the old one's from the kernel's copy (Map.from_pin), so no version has to know its
predecessors. They are compiled into a list of byte ranges once: a range a struct where nothing changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from rauta.bpf.layout import ArrayLayout, BytesLayout, IntLayout, Layout, StructLayout, same_layout
from rauta.errors import RautaError

__all__ = ["Conversion", "Integer", "conversion"]


@dataclass(frozen=True)
class Integer:
    """An integer that became another one."""

    old: IntLayout
    old_at: int
    new: IntLayout
    new_at: int
    path: str


@dataclass(frozen=True)
class Conversion:
    """How the bytes of one layout become those of another: ranges (from, to, length), and integers of other sizes."""

    old_size: int
    new_size: int
    ranges: tuple[tuple[int, int, int], ...]
    integers: tuple[Integer, ...] = ()
    tried: str = field(default="", compare=False)

    def padded(self) -> Conversion:
        """For values side by side that the kernel pads to 8 bytes."""
        unchanged = self.unchanged
        old_size, new_size = (size + 7 & ~7 for size in (self.old_size, self.new_size))
        ranges = ((0, 0, old_size),) if unchanged else self.ranges
        return Conversion(old_size, new_size, ranges, self.integers, self.tried)

    def column(self, data: bytes, count: int) -> bytes:
        """The first `count` of keys or values side by side."""
        if self.unchanged:
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
    def unchanged(self) -> bool:
        """Whether the bytes stay as they are."""
        return self.ranges == ((0, 0, self.old_size),) and self.old_size == self.new_size


def conversion(old: Layout | None, new: Layout | None, old_size: int, new_size: int, tried: str) -> Conversion:
    """Between two layouts; without them, between as many bytes."""
    if old is None or new is None:
        if old_size != new_size:
            happened = f"{old_size} bytes became {new_size}, and no BTF says what they are"
            raise RautaError(tried, happened, "Fill the new map afresh.")
        return Conversion(old_size, new_size, ((0, 0, old_size),))
    steps = list(_steps(old, new, 0, 0, new.name))
    integers = tuple(step for step in steps if isinstance(step, Integer))
    ranges = _merged(step for step in steps if not isinstance(step, Integer))
    return Conversion(old_size, new_size, ranges, integers, tried)


def _steps(old: Layout, new: Layout, old_at: int, new_at: int, path: str) -> Iterator[tuple[int, int, int] | Integer]:
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
        yield Integer(old, old_at, new, new_at, path)


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
