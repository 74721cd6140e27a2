"""Counters of BPF maps, added up over CPUs: many at a time, as bytes, without unpacking one by one."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import chain
from operator import add

from rauta.bpf import Map

__all__ = ["all_totals", "totals", "words"]

_ENTRIES = 16384  # read by one system call


def words(values: bytes) -> array[int]:
    """The 64-bit counters that bytes are made of."""
    found = array("Q")
    found.frombytes(values)
    return found


def totals(value: bytes, width: int) -> list[int]:
    """A per-CPU value of `width` counters, as `Map.lookup_raw` gives it: each counter's sum over all CPUs."""
    cpus = words(value)
    return _added(cpus[start : start + width] for start in range(0, len(cpus), width))


def all_totals(counts: Map) -> list[int]:
    """The sums over all CPUs of a per-CPU array of one counter each, by index."""
    cpus_of = (
        (words(values), len(values) // (8 * count)) for _, values, count in counts.raw_batches(_ENTRIES) if count
    )
    return list(chain.from_iterable(_added(cpus[cpu::number] for cpu in range(number)) for cpus, number in cpus_of))


def _added(columns: Iterable[Sequence[int]]) -> list[int]:
    first, *others = columns
    total: Iterable[int] = first
    for column in others:
        total = map(add, total, column)
    return list(total)
