"""rauta.upgrade.migration on maps of every kind: bpf/visits.bpf.c before an upgrade and after it. Needs root and clang.

The router's own maps, with its programs, are in tests/packets/test_migration.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rauta.bpf import BpfError, BpfObject, Map, _lib
from rauta.errors import RautaError
from rauta.upgrade import migration, pins
from rauta.upgrade.migration import migrate

CPUS = _lib.possible_cpus()
ZERO_PLACE = {"floor": 0, "street": 0, "number": 0, "kind": 0}


@pytest.fixture
def old(compiled: Callable[[str], Path]) -> Iterator[BpfObject]:
    with BpfObject.open(compiled("visits")) as before:
        before.load()
        yield before


@pytest.fixture
def new(compiled: Callable[[str], Path]) -> Iterator[BpfObject]:
    with BpfObject.open(compiled("visits_after")) as after:
        after.load()
        yield after


def place(number: int) -> dict[str, int]:
    return {"street": number * 65537, "number": number & 0xFFFF, "kind": 7}


def visit(number: int) -> dict[str, Any]:
    """Nothing in it is zero, and each is another."""
    return {
        "name": b"abcdefgh",
        "note": number.to_bytes(4, "big"),
        "seconds": 0xFFFFFFFF - number,
        "change": -(number % 128) - 1,
        "dropped": 0xDDDDDDDD,
        "place": place(number + 1),
        "steps": [number, 2, 3, 4, 5],
        "longer": [6, number],
        "stops": [place(number + 2)],
        "what": 0xEEEEEEEEEEEEEEEE,
    }


def visit_after(number: int) -> dict[str, Any]:
    """What becomes of `visit`, written out member by member."""
    return {
        "place": {"floor": 0} | place(number + 1),
        "seconds": 0xFFFFFFFF - number,
        "added": 0,
        "change": -(number % 128) - 1,
        "name": b"abcd",
        "note": number.to_bytes(4, "big") + bytes(4),
        "steps": [number, 2, 3],
        "longer": [6, number, 0, 0],
        "stops": [{"floor": 0} | place(number + 2), ZERO_PLACE],
        "what": ZERO_PLACE,
    }


def by_street(entries: list[tuple[Any, Any]]) -> dict[int, Any]:
    found = {key["street"]: (key, value) for key, value in entries}
    assert len(found) == len(entries)
    return found


@pytest.mark.parametrize("name", ["hash", "recent"])
@pytest.mark.parametrize("batch", [1, 10_000, migration.BATCH_BYTES])
def test_hashes(old: BpfObject, new: BpfObject, name: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, "BATCH_BYTES", batch)
    old.maps[name].update_batch([(place(n), visit(n)) for n in range(1, 2001)])
    assert migrate(old.maps[name], new.maps[name]) == 2000
    expected = {place(n)["street"]: ({"floor": 0} | place(n), visit_after(n)) for n in range(1, 2001)}
    assert by_street(new.maps[name].items_batch()) == expected


def test_arrays(old: BpfObject, new: BpfObject) -> None:
    old.maps["array"].update_batch([(n, visit(n)) for n in range(5000)])
    assert migrate(old.maps["array"], new.maps["array"]) == 5000
    assert new.maps["array"].items_batch() == [(n, visit_after(n)) for n in range(5000)]


@pytest.mark.parametrize("name", ["cpu_hash", "cpu_recent"])
def test_per_cpu_hashes(old: BpfObject, new: BpfObject, name: str) -> None:
    old.maps[name].update_batch([(place(n), [visit(n + cpu) for cpu in range(CPUS)]) for n in range(1, 31)])
    assert migrate(old.maps[name], new.maps[name]) == 30
    expected = {
        place(n)["street"]: ({"floor": 0} | place(n), [visit_after(n + cpu) for cpu in range(CPUS)])
        for n in range(1, 31)
    }
    assert by_street(new.maps[name].items_batch()) == expected


def test_per_cpu_arrays(old: BpfObject, new: BpfObject) -> None:
    old.maps["cpu_array"].update_batch([(n, [visit(n + cpu) for cpu in range(CPUS)]) for n in range(50)])
    old.maps["cpu_odd"].update_batch([(n, [n + 100 * cpu for cpu in range(CPUS)]) for n in range(50)])
    assert migrate(old.maps["cpu_array"], new.maps["cpu_array"]) == 50
    assert migrate(old.maps["cpu_odd"], new.maps["cpu_odd"]) == 50
    found = new.maps["cpu_array"].items_batch()
    assert found == [(n, [visit_after(n + cpu) for cpu in range(CPUS)]) for n in range(50)]
    assert new.maps["cpu_odd"].items_batch() == [(n, [n + 100 * cpu for cpu in range(CPUS)]) for n in range(50)]


@pytest.mark.parametrize("entries", [1, 49, 200])
def test_arrays_of_other_sizes(
    compiled: Callable[[str], Path], old: BpfObject, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "BATCH_BYTES", 1000)  # some ten entries
    old.maps["cpu_array"].update_batch([(n, visit(n)) for n in range(50)])
    with BpfObject.open(compiled("visits_after")) as other:
        other.maps["cpu_array"].set_max_entries(entries)
        other.load()
        assert migrate(old.maps["cpu_array"], other.maps["cpu_array"]) == min(entries, 50)
        found = other.maps["cpu_array"].items_batch()
    assert found[:50] == [(n, [visit_after(n)] * CPUS) for n in range(min(entries, 50))]
    assert all(value == [value[0]] * CPUS and value[0]["name"] == bytes(4) for _, value in found[50:])


def test_same_layouts(old: BpfObject, new: BpfObject) -> None:
    entries = [({"one": n, "two": 1}, {"one": 2, "two": n}) for n in range(50_000)]
    old.maps["same"].update_batch(entries)
    assert migrate(old.maps["same"], new.maps["same"]) == 50_000
    assert sorted(new.maps["same"].items_batch(), key=lambda entry: entry[0]["one"]) == entries


def test_nothing(old: BpfObject, new: BpfObject) -> None:
    assert migrate(old.maps["hash"], new.maps["hash"]) == 0
    assert new.maps["hash"].items_batch() == []


def test_from_the_pin_of_a_version_that_is_gone(compiled: Callable[[str], Path], new: BpfObject) -> None:
    with pins.instance_folder("test-migration") as folder:
        with BpfObject.open(compiled("visits")) as before:
            before.load()
            before.maps["hash"].update(place(3), visit(3))
            before.maps["hash"].pin(folder / "hash")
        with Map.from_pin(folder / "hash") as kept:
            assert migrate(kept, new.maps["hash"]) == 1
    assert new.maps["hash"].lookup(place(3)) == visit_after(3)


def test_values_that_do_not_fit_any_more_are_named(old: BpfObject, new: BpfObject) -> None:
    old.maps["hash"].update(place(1), visit(1) | {"change": 128})
    with pytest.raises(RautaError, match=r"struct visit\.change: 128 does not fit (signed char|__s8)"):
        migrate(old.maps["hash"], new.maps["hash"])
    old.maps["array"].update(17, visit(1) | {"steps": [1, 65536, 0, 0, 0]})
    with pytest.raises(RautaError, match=r"struct visit\.steps\[1\]: 65536 does not fit"):
        migrate(old.maps["array"], new.maps["array"])


def test_ways_that_there_are_not(old: BpfObject, new: BpfObject) -> None:
    with pytest.raises(RautaError, match="from HASH to LRU_HASH there is no way"):
        migrate(old.maps["hash"], new.maps["recent"])
    with pytest.raises(RautaError, match="from RINGBUF to RINGBUF there is no way"):
        migrate(old.maps["events"], new.maps["events"])
    with pytest.raises(RautaError, match="3 bytes became 4, and no BTF says what they are"):
        migrate(old.maps["untyped"], new.maps["untyped"])


def test_a_new_map_that_is_too_small(compiled: Callable[[str], Path], old: BpfObject) -> None:
    old.maps["hash"].update_batch([(place(n), visit(n)) for n in range(1, 11)])
    with BpfObject.open(compiled("visits_after")) as other:
        other.maps["hash"].set_max_entries(9)
        other.load()
        with pytest.raises(BpfError, match=r"setting entry 10 of 10 in map 'hash'(.|\n)*at most 9 entries"):
            migrate(old.maps["hash"], other.maps["hash"])
