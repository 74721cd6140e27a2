"""Counters of BPF maps, added up over CPUs: many at a time, as bytes, without unpacking one by one."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from operator import add

from rauta.bpf import Map

__all__ = ["first_totals", "totals", "words"]

_ENTRIES = 16384  # read by one system call, at most
_WORD = 8  # bytes of a counter


def words(values: bytes) -> array[int]:
    """The 64-bit counters that bytes are made of."""
    found = array("Q")
    found.frombytes(values)
    return found


def totals(value: bytes, width: int) -> list[int]:
    """A per-CPU value of `width` counters, as `Map.lookup_raw` gives it: each counter's sum over all CPUs."""
    cpus = words(value)
    return _added(cpus[start : start + width] for start in range(0, len(cpus), width))


def first_totals(counts: Map, number: int) -> list[int]:
    """The sums over all CPUs of a per-CPU array of one counter each: of the first `number` of them, or some more."""
    found: list[int] = []
    for _, values, count in counts.raw_batches(min(number, _ENTRIES)):
        cpus_of, cpus = words(values), len(values) // (_WORD * count) if count else 1
        found += _added(cpus_of[cpu::cpus] for cpu in range(cpus))
        if len(found) >= number:
            break
    return found


def _added(columns: Iterable[Sequence[int]]) -> list[int]:
    first, *others = columns
    total: Iterable[int] = first
    for column in others:
        total = map(add, total, column)
    return list(total)
