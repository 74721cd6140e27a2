"""What the agent knows of connections goes over to the next one's maps, where struct mapping is another one.

User space has no way to go through what sockets carry (BPF_MAP_TYPE_SK_STORAGE), and they may be of any process and
network namespace. An iterator has (bpf_iter, Linux 5.9): a program of the new agent (bpf/carry.h) meets each socket
with storage in the old map, and makes it storage in the new one. Which byte of the new struct is which of the old one
is compiled into it. Another one does so with the map `mappings`, in a sixth of the time that user space would take.
"""

from __future__ import annotations

from rauta.bpf import BpfObject, Map
from rauta.errors import RautaError
from rauta.upgrade.conversion import Integer, conversion

__all__ = ["CARRIED", "carry", "prepare"]

CARRIED = {"connections": "rauta_carry", "mappings": "rauta_carry_map"}
"""maps with a struct mapping, and the programs that bring it over"""
_CONSTANT = "carried_from"
_ADVICE = (
    "Its connections cannot go over. Drain the backend, wait until it has none, take the old agent off (`rauta down`), "
    "and start this one."
)


def prepare(obj: BpfObject, name: str, old: Map) -> None:
    """Before the object is loaded: has its program bring over what an earlier map of that name has.

    RautaError if there is no way that is right for every value: an integer became narrower, or changes its sign.
    """
    new = obj.maps[name]
    tried = f"migrating {old!r}"
    convert = conversion(old.value_layout, new.value_layout, old.value_size, new.value_size, tried)
    capacity = len(obj.rodata[_CONSTANT])
    if max(old.value_size, new.value_size) > capacity:
        raise RautaError(tried, f"more than {capacity} bytes are not carried", _ADVICE)
    sources = [0] * capacity
    for old_at, new_at, length in (*convert.ranges, *(_widened(one, tried) for one in convert.integers)):
        sources[new_at : new_at + length] = range(old_at + 1, old_at + 1 + length)
    obj.rodata[_CONSTANT] = sources
    obj.programs[CARRIED[name]].set_autoload(True)


def carry(obj: BpfObject, name: str, old: Map) -> int:
    """Brings over, or brings up to date, what is in the old map of that name; returns how many entries it has.

    RautaError if the kernel had no memory for one of them.
    """
    said = obj.programs[CARRIED[name]].iterate(old.fd)
    if lost := said.count(b"!"):
        happened = f"{lost} of {len(said)} entries got no room in the new one"
        raise RautaError(f"migrating {old!r}", happened, "Free some memory, and try again.")
    return len(said)


def _widened(one: Integer, tried: str) -> tuple[int, int, int]:
    """Unsigned, and in little-endian order: the rest of it is zero."""
    if one.new.size < one.old.size or one.old.signed or one.new.signed:
        raise RautaError(tried, f"{one.path}: {one.old.name} became {one.new.name}", _ADVICE)
    return one.old_at, one.new_at, one.old.size
