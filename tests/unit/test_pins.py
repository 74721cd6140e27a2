"""Maps and programs that outlive their process: rauta.upgrade.pins, pins, reuse. Needs root."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rauta import loading
from rauta.bpf import BpfError, BpfObject, Map, MapType, Program, RingBuffer, same_layout
from rauta.errors import RautaError
from rauta.upgrade import pins

PACKET = bytes(range(64))
INSTANCE = f"test-{os.getpid()}.pins"


@pytest.fixture
def folder() -> Iterator[Path]:
    with pins.instance_folder(INSTANCE) as made:
        yield made


@pytest.fixture
def sample(compiled: Callable[[str], Path]) -> Iterator[BpfObject]:
    with BpfObject.open(compiled("sample")) as loaded:
        loaded.load()
        yield loaded


def pinned(folder: Path) -> set[str]:
    """What is there, but for the kernel's own files, which have dots in their names."""
    return {path.name for path in folder.iterdir() if "." not in path.name}


def mounts() -> str:
    return Path("/proc/self/mounts").read_text()


# ---- where pins are --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", ".", "..", "-x", ".x", "a/b", "../x", "a b", "x" * 64, "a\n", "é"])
def test_names_that_are_no_instance(name: str) -> None:
    for use in (pins.folder, pins.remove):
        with pytest.raises(RautaError, match="naming an instance"):
            use(name)


def test_the_folder_is_roots_alone_and_made_once(folder: Path) -> None:
    assert pins.folder(INSTANCE) == folder
    assert folder.stat().st_mode & 0o777 == 0o700
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    assert mounts().count(INSTANCE) <= 1


def test_removing_takes_pins_folders_and_the_mount(sample: BpfObject) -> None:
    folder = pins.folder(INSTANCE)
    sample.maps["numbers"].pin(folder / "numbers")
    (folder / "inner").mkdir()
    sample.maps["records"].pin(folder / "inner" / "records")
    pins.remove(INSTANCE)
    assert not folder.exists()
    assert not folder.parent.exists() or folder.parent.name == "rauta"
    assert INSTANCE not in mounts()
    pins.remove(INSTANCE)


def test_a_folder_that_others_can_write_to_is_refused() -> None:
    inside = Path(f"/run/rauta/{INSTANCE}")
    inside.mkdir(parents=True)
    inside.chmod(0o777)
    try:
        with pytest.raises(RautaError, match="something else is there"):
            pins.folder(INSTANCE)
    finally:
        pins.remove(INSTANCE)
    assert not inside.exists()


def test_a_bpffs_that_is_mounted_already_is_used() -> None:
    """In a mount namespace of its own, with one at /sys/fs/bpf as systemd mounts it."""
    script = f"""
import os, subprocess
from pathlib import Path
from rauta.upgrade import pins
from rauta.bpf import Map, MapType
subprocess.run(["mount", "-t", "bpf", "bpf", "/sys/fs/bpf"], check=True)
folder = pins.folder({INSTANCE!r})
assert folder == Path("/sys/fs/bpf/rauta") / {INSTANCE.replace(".", "%2e")!r}, folder
assert folder.stat().st_mode & 0o777 == folder.parent.stat().st_mode & 0o777 == 0o700
with Map.create(MapType.ARRAY, "one", 4, 4, 1) as one:
    one.pin(folder / "one")
with Map.from_pin(folder / "one") as again:
    assert again.lookup(0) == bytes(4)
pins.remove({INSTANCE!r})
assert [name for name in os.listdir("/sys/fs/bpf") if "." not in name] == [], os.listdir("/sys/fs/bpf")
print("done")
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", script]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.stdout == "done\n", done.stderr
    assert not Path(f"/run/rauta/{INSTANCE}").exists()


# ---- pins of maps ----------------------------------------------------------------------------------------


def test_a_map_outlives_its_object(compiled: Callable[[str], Path], folder: Path) -> None:
    with BpfObject.open(compiled("sample")) as sample:
        sample.maps["records"].set_max_entries(77)
        sample.load()
        sample.maps["records"].update({"left": 1}, {"port": 80, "text": b"hi"})
        sample.maps["records"].pin(folder / "records")
        id, layouts = sample.maps["records"].id, (sample.btf.struct("pair"), sample.btf.struct("everything"))
    with Map.from_pin(folder / "records") as again:
        assert (again.name, again.type, again.id) == ("records", MapType.HASH, id)
        assert (again.key_size, again.value_size, again.max_entries) == (8, 64, 77)
        assert (again.key_layout, again.value_layout) == layouts
        assert again.lookup({"left": 1, "right": 0})["port"] == 80
        assert [(key["left"], value["text"]) for key, value in again.items_batch()] == [(1, b"hi\0\0\0\0\0")]


def test_maps_of_every_kind_say_from_the_pin_what_they_are(sample: BpfObject, folder: Path) -> None:
    for number, (name, own) in enumerate(sample.maps.items()):
        own.pin(folder / f"map-{number}")
        with Map.from_pin(folder / f"map-{number}") as again:
            assert (again.type, again.key_size, again.value_size) == (own.type, own.key_size, own.value_size), name
            assert again.max_entries == own.max_entries, name
            if own.type is not MapType.ARRAY_OF_MAPS:  # libbpf makes those without BTF
                assert (again.key_layout, again.value_layout) == (own.key_layout, own.value_layout), name


def test_pins_are_replaced_only_on_demand(sample: BpfObject, folder: Path) -> None:
    numbers, records = sample.maps["numbers"], sample.maps["records"]
    numbers.pin(folder / "it")
    with pytest.raises(BpfError, match=r"pinning map 'records' at .*/it: File exists"):
        records.pin(folder / "it")
    records.pin(folder / "it-new")  # as somebody leaves it who is killed while replacing
    records.pin(folder / "it", replace=True)
    with Map.from_pin(folder / "it") as again:
        assert again.id == records.id
    assert pinned(folder) == {"it"}
    records.pin(folder / "other", replace=True)
    assert pinned(folder) == {"it", "other"}


def test_pins_that_cannot_be(sample: BpfObject, folder: Path, tmp_path: Path) -> None:
    numbers = sample.maps["numbers"]
    with pytest.raises(BpfError, match="names there have no dots"):
        numbers.pin(folder / "a.b")
    with pytest.raises(BpfError, match="Is there such a folder"):
        numbers.pin(folder / "nowhere" / "it")
    with pytest.raises(BpfError, match="only in a bpffs"):
        numbers.pin(tmp_path / "it")
    with pytest.raises(BpfError, match=r"opening the map pinned at .*/absent: No such file"):
        Map.from_pin(folder / "absent")


def test_a_program_outlives_its_object(compiled: Callable[[str], Path], folder: Path) -> None:
    with BpfObject.open(compiled("sample")) as sample:
        sample.load()
        sample.programs["count_and_drop"].pin(folder / "drop")
        sample.maps["counters"].pin(folder / "counters")
    with Program.from_pin(folder / "drop") as drop, Map.from_pin(folder / "counters") as counters:
        assert drop.name == "count_and_drop"
        assert drop.test_run(PACKET).retval == 1
        assert counters.sum(0) == 1
    with pytest.raises(BpfError, match="using program 'count_and_drop'"):
        drop.info()


def test_a_pin_of_the_other_kind_is_refused(sample: BpfObject, folder: Path) -> None:
    sample.programs["pass"].pin(folder / "program")
    sample.maps["numbers"].pin(folder / "map")
    with pytest.raises(BpfError, match="it is no map, but bpf-prog"):
        Map.from_pin(folder / "program")
    with pytest.raises(BpfError, match="it is no program, but bpf-map"):
        Program.from_pin(folder / "map")


# ---- reuse -----------------------------------------------------------------------------------------------


def test_an_object_is_loaded_with_maps_of_another(compiled: Callable[[str], Path], folder: Path) -> None:
    with BpfObject.open(compiled("sample")) as old:
        old.maps["records"].set_max_entries(9)
        old.load()
        old.maps["records"].update({"left": 1}, {"port": 80})
        old.programs["count_and_drop"].test_run(PACKET)
        old.programs["tell"].test_run(PACKET)
        for name in ("records", "counters", "events"):
            old.maps[name].pin(folder / name)
    with BpfObject.open(compiled("sample")) as new:
        for name in ("records", "counters", "events"):
            with Map.from_pin(folder / name) as kept:
                new.reuse(name, kept)
        assert new.maps["records"].max_entries == 9
        with pytest.raises(BpfError, match="an existing map of 9 entries is reused"):
            new.maps["records"].set_max_entries(10)
        new.load()
        assert new.maps["records"].max_entries == 9
        assert new.maps["records"].lookup({"left": 1})["port"] == 80
        new.programs["count_and_drop"].test_run(PACKET)
        assert new.maps["counters"].sum(0) == 2
        new.programs["tell"].test_run(PACKET)
        with RingBuffer(new.maps["events"]) as ring:
            assert ring.read() == [PACKET[:4], PACKET[:4]]


def test_maps_that_do_not_fit_are_not_reused(compiled: Callable[[str], Path], sample: BpfObject) -> None:
    with BpfObject.open(compiled("sample")) as new:
        for name, other, happened in (
            ("records", "recent", "its type is LRU_HASH, not HASH"),
            ("recent", "recent_counters", "its type is LRU_PERCPU_HASH, not LRU_HASH"),
            ("likewise", "records", "its value is another: union either.small: is gone"),
            ("untyped", "records", r"it has keys and values of 8 \+ 64 bytes, not 6 \+ 3"),
            ("nothing", "records", "it has no such map; there are tables, events, numbers"),
        ):
            with pytest.raises(BpfError, match=happened):
                new.reuse(name, sample.maps[other])
        rodata = next(name for name in new.maps if name.endswith(".rodata"))
        with pytest.raises(BpfError, match="constants are never reused"):
            new.reuse(rodata, sample.maps[rodata])
        with (
            Map.create(MapType.HASH, "flags", 8, 64, 4, flags=1) as unlike,  # BPF_F_NO_PREALLOC
            pytest.raises(BpfError, match="its flags are 0x1, not 0x0"),
        ):
            new.reuse("records", unlike)
        new.reuse("numbers", sample.maps["numbers"])
        new.load()
        with pytest.raises(BpfError, match="it is loaded or closed"):
            new.reuse("numbers", sample.maps["numbers"])
        assert new.maps["numbers"].id == sample.maps["numbers"].id


# ---- all maps of the router and the agent ------------------------------------------------------------------

OBJECTS = ("ingress", "agent")


def pinnable(obj: BpfObject) -> list[str]:
    return [name for name in obj.maps if ".rodata" not in name]


def mark(one: Map) -> bytes:
    """What is written into a map by the test: no zeros, different for each map, of the size of its values."""
    return (one.name.encode() * (1 + one.value_size // len(one.name)))[: one.value_size]


@pytest.mark.parametrize("which", OBJECTS)
def test_every_map_of_the_programs_can_be_reused(which: str, folder: Path) -> None:
    with socket.socket() as owner:
        old = loading.open_object(which)
        with old:
            old.load()
            ids = {}
            for name in pinnable(old):
                write(old.maps[name], owner)
                old.maps[name].pin(folder / name)
                ids[name] = old.maps[name].id
            contents = {name: read(old.maps[name], owner) for name in ids}
        assert len(ids) >= 9
        with loading.open_object(which) as new:
            for name in ids:
                with Map.from_pin(folder / name) as kept:
                    assert kept.value_layout is None or same_layout(kept.value_layout, new.maps[name].value_layout)
                    new.reuse(name, kept)
            new.load()
            assert {name: new.maps[name].id for name in ids} == ids
            assert {name: read(new.maps[name], owner) for name in ids} == contents
            assert sum(content is not None for content in contents.values()) == len(
                [name for name in ids if new.maps[name].type is not MapType.RINGBUF]
            )


def key_of(one: Map, owner: socket.socket) -> bytes:
    if one.type is MapType.SK_STORAGE:
        return struct.pack("=i", owner.fileno())
    if one.type in (MapType.HASH, MapType.LRU_HASH, MapType.PERCPU_HASH):
        return (b"key of " + one.name.encode())[:1] * one.key_size
    return struct.pack("=I", one.max_entries - 1)


def write(one: Map, owner: socket.socket) -> None:
    if one.type is MapType.RINGBUF:
        return
    key = key_of(one, owner)
    if one.type is MapType.ARRAY_OF_MAPS:
        with Map.create(MapType.ARRAY, "inner", 4, 8, 16385) as inner:
            inner.update(16384, b"kept all")
            one.update(key, inner)
        return
    one.update(key, mark(one))


def read(one: Map, owner: socket.socket) -> object:
    """What `write` has left there, None if there is nothing."""
    if one.type is MapType.RINGBUF:
        return None
    found = one.lookup(key_of(one, owner))
    if one.type is MapType.ARRAY_OF_MAPS:
        with Map.by_id(found, MapType.ARRAY, "inner", 4, 8, 16385) as inner:
            return inner.lookup(16384)
    return found
