"""rauta.bpf against the running kernel: maps, programs, attachments and errors. Needs root, clang and iproute2.

Interfaces are veth pairs in a network namespace of the test's own; nothing else is touched.
"""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rauta.bpf import (
    BPF_EXIST,
    BPF_NOEXIST,
    AttachError,
    BpfError,
    BpfObject,
    LoadError,
    Map,
    MapType,
    _lib,
    attach_tc,
    attach_xdp,
    attached_xdp_id,
    maps,
    run_time_stats,
    skb_context,
    skb_fields,
    xdp_context,
)
from rauta.network.namespaces import entered

PACKET = bytes(range(64))
XDP_DROP, XDP_TX = 1, 3


@pytest.fixture(scope="module", autouse=True)
def bpf_permitted() -> None:
    try:
        Map.create(MapType.ARRAY, "probe", 4, 4, 1).close()
    except BpfError as error:
        pytest.skip(str(error))


@pytest.fixture
def opened(compiled: Callable[[str], Path]) -> Iterator[BpfObject]:
    with BpfObject.open(compiled("sample")) as sample:
        yield sample


@pytest.fixture
def sample(opened: BpfObject) -> BpfObject:
    opened.load()
    return opened


def interface(name: str) -> int:
    shown = subprocess.run(["ip", "-o", "link", "show", name], check=True, capture_output=True, text=True).stdout
    return int(shown.split(":")[0])


def descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def qdiscs(name: str) -> str:
    return subprocess.run(["tc", "qdisc", "show", "dev", name], check=True, capture_output=True, text=True).stdout


def eventually(reached: Callable[[], bool], seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


# ---- maps ------------------------------------------------------------------------------------------------


def test_maps_say_what_they_are(sample: BpfObject) -> None:
    records = sample.maps["records"]
    assert records.name == "records"
    assert records.type is MapType.HASH
    assert (records.key_size, records.value_size, records.max_entries) == (8, 64, 65536)
    assert records.key_layout == sample.btf.struct("pair")
    assert records.value_layout == sample.btf.struct("everything")
    assert sample.maps["tables"].value_layout is None
    assert sample.maps["untyped"].key_layout is None


def test_array_of_integers(sample: BpfObject) -> None:
    numbers = sample.maps["numbers"]
    numbers.update(3, 1 << 40)
    assert numbers.lookup(3) == 1 << 40
    assert numbers.lookup(struct.pack("=I", 3)) == 1 << 40
    assert numbers.lookup(65536) is None
    numbers.update(3, struct.pack("=Q", 5))
    assert numbers.lookup(3) == 5


def test_hash_of_structs(sample: BpfObject) -> None:
    records, key = sample.maps["records"], {"left": 1, "right": 2}
    assert records.lookup(key) is None
    records.update(key, {"port": 80, "text": b"hi"})
    found = records.lookup(key)
    assert (found["port"], found["text"]) == (80, b"hi\0\0\0\0\0")
    assert list(records.keys()) == [key]
    assert list(records.items()) == [(key, found)]
    assert records.delete(key) is True
    assert records.delete(key) is False
    assert list(records.items()) == []


def test_update_flags(sample: BpfObject) -> None:
    recent = sample.maps["recent"]
    with pytest.raises(BpfError, match=r"setting .* in map 'recent': No such file") as missing:
        recent.update({"left": 1}, 1, BPF_EXIST)
    recent.update({"left": 1}, 1, BPF_NOEXIST)
    with pytest.raises(BpfError, match="The key is there already") as present:
        recent.update({"left": 1}, 2, BPF_NOEXIST)
    assert (missing.value.errno, present.value.errno) == (2, 17)
    assert recent.lookup({"left": 1}) == 1


def test_values_that_do_not_fit_name_the_map_and_the_member(sample: BpfObject) -> None:
    with pytest.raises(ValueError, match=r"value of map 'records'\.port: 65536 does not fit"):
        sample.maps["records"].update({"left": 1}, {"port": 65536})
    with pytest.raises(ValueError, match=r"key of map 'records': has no member 'middle'"):
        sample.maps["records"].lookup({"middle": 1})
    with pytest.raises(ValueError, match=r"key of map 'numbers': .* is 4 bytes, not 3"):
        sample.maps["numbers"].lookup(b"abc")


def test_batches_of_a_whole_map_are_quick(sample: BpfObject) -> None:
    numbers, entries = sample.maps["numbers"], [(index, index * index) for index in range(65536)]
    start = time.perf_counter()
    numbers.update_batch(entries)
    assert numbers.items_batch() == entries
    assert time.perf_counter() - start < 2
    numbers.clear()
    assert numbers.lookup_batch() == [(index, 0) for index in range(65536)]


def test_an_array_is_read_and_written_as_bytes(sample: BpfObject) -> None:
    numbers = sample.maps["numbers"]
    values = struct.pack("=65536Q", *range(65536))
    numbers.write_array(values)
    assert (numbers.lookup(0), numbers.lookup(65535)) == (0, 65535)
    assert numbers.read_array() == values
    with pytest.raises(ValueError, match="holds 524288 bytes, not 8"):
        numbers.write_array(bytes(8))


def test_batches_of_a_hash(sample: BpfObject) -> None:
    records = sample.maps["records"]
    entries = [
        ({"left": index, "right": ~index & 0xFFFF}, {"below": -index, "slots": [1, 2, 3]}) for index in range(20000)
    ]
    records.update_batch(entries)
    found = {key["left"]: (key["right"], value["below"], value["slots"]) for key, value in records.items_batch()}
    assert found == {key["left"]: (key["right"], value["below"], value["slots"]) for key, value in entries}
    absent = {"left": 1 << 31}
    assert records.delete_batch([entries[0][0], absent, absent, entries[1][0], entries[0][0]]) == 2
    assert len(records.items_batch()) == 19998
    records.clear()
    assert records.items_batch() == []
    records.clear()


def test_batches_take_mappings_and_nothing(sample: BpfObject) -> None:
    numbers = sample.maps["numbers"]
    numbers.update_batch({1: 10, 2: 20})
    numbers.update_batch([])
    assert (numbers.lookup(1), numbers.lookup(2)) == (10, 20)
    assert sample.maps["records"].delete_batch([]) == 0


def test_a_batch_that_overflows_says_where(sample: BpfObject) -> None:
    untyped = sample.maps["untyped"]
    with pytest.raises(BpfError, match="setting entry 17 of 20 in map 'untyped'") as full:
        untyped.update_batch([(bytes([index] * 6), b"abc") for index in range(20)])
    assert "at most 16 entries" in str(full.value)
    assert len(untyped.items_batch()) == 16


def test_maps_without_types_take_bytes(sample: BpfObject) -> None:
    untyped = sample.maps["untyped"]
    untyped.update(b"sixsix", b"abc")
    assert untyped.lookup(b"sixsix") == b"abc"
    assert untyped.items_batch() == [(b"sixsix", b"abc")]


def test_a_prefix_trie_goes_through_batches_or_around_them(sample: BpfObject) -> None:
    prefixes = sample.maps["prefixes"]
    entries = [({"left": 8, "right": 10}, 1), ({"left": 32, "right": 11}, 2)]
    prefixes.update_batch(entries)
    assert prefixes.lookup({"left": 32, "right": 10}) == 1
    assert sorted(prefixes.items_batch(), key=lambda entry: entry[1]) == entries
    prefixes.clear()
    assert list(prefixes.keys()) == []


def test_reading_makes_room_for_full_buckets(sample: BpfObject, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of a hash is whole buckets: one that is larger than the buffer is asked for again."""
    monkeypatch.setattr(maps, "BATCH_ENTRIES", 1)
    recent = sample.maps["recent"]
    recent.update_batch([({"left": index}, index) for index in range(500)])
    assert sorted(value for _, value in recent.items_batch()) == list(range(500))


def test_maps_of_programs_go_without_batches(sample: BpfObject) -> None:
    one, other = sample.programs["pass"], sample.programs["grow"]
    with Map.create(MapType.PROG_ARRAY, "jumps", 4, 4, 4) as jumps:
        jumps.update_batch([(0, one), (2, other.fd)])
        assert jumps.items_batch() == [(0, one.id), (2, other.id)]
        with pytest.raises(BpfError, match="reading map 'jumps': a map of type PROG_ARRAY has no batches"):
            list(jumps.raw_batches(4))
        assert jumps.delete_batch([0, 1]) == 1
        jumps.clear()
        assert jumps.items_batch() == []


def test_a_whole_array_as_it_lies_in_memory(sample: BpfObject) -> None:
    numbers = sample.maps["numbers"]
    numbers.update(3, 1 << 40)
    raw = numbers.dump()
    assert len(raw) == 8 * numbers.max_entries
    assert raw[24:32] == (1 << 40).to_bytes(8, "little")
    with pytest.raises(TypeError, match="is no array"):
        sample.maps["records"].dump()


@pytest.mark.parametrize("name", ["counters", "recent_counters"])
def test_per_cpu_integers_are_listed_and_summed(sample: BpfObject, name: str) -> None:
    counters, cpus = sample.maps[name], _lib.possible_cpus()
    counters.update(2, list(range(cpus)))
    assert counters.lookup(2) == list(range(cpus))
    assert counters.sum(2) == sum(range(cpus))
    counters.update(2, 7)
    assert counters.lookup(2) == [7] * cpus
    counters.update_batch([(1, 1), (3, list(range(cpus)))])
    assert counters.sum(1) == cpus
    assert dict(counters.items_batch())[3] == list(range(cpus))
    counters.clear()
    assert counters.sum(2) == 0


def test_per_cpu_structs(sample: BpfObject) -> None:
    odd, cpus = sample.maps["odd_counters"], _lib.possible_cpus()
    values = [{"left": cpu, "right": 100 - cpu} for cpu in range(cpus)]
    odd.update(9, values)
    assert odd.lookup(9) == values
    assert odd.items_batch() == [(9, values)]
    odd.update(9, struct.pack("=II", 5, 6))
    assert odd.lookup(9) == [{"left": 5, "right": 6}] * cpus
    with pytest.raises(TypeError, match="one integer per CPU"):
        odd.sum(9)
    with pytest.raises(ValueError, match=f"values for {cpus} possible CPUs"):
        odd.update(9, [{}] * (cpus + 1))


def test_a_map_in_a_map_is_reached_by_programs(sample: BpfObject) -> None:
    tables, pair = sample.maps["tables"], sample.btf.struct("pair")
    assert sample.programs["read_table"].test_run(PACKET).retval == 0
    with Map.create(MapType.ARRAY, "inner_table_with_a_long_name", 4, 8, 8, value_layout=pair) as inner:
        inner.update(0, {"right": 77})
        assert inner.lookup(0) == {"left": 0, "right": 77}
        tables.update(1, inner)
        tables.update(2, inner.fd)
    assert sample.programs["read_table"].test_run(PACKET).retval == 77
    assert tables.lookup(1) == tables.lookup(2) > 0
    assert tables.lookup(0) is None
    assert [index for index, _ in tables.items_batch()] == [1, 2]
    tables.clear()
    assert tables.lookup(1) is None
    with pytest.raises(BpfError, match="using map 'inner_table_with_a_long_name'"):
        inner.lookup(0)


def test_maps_say_what_memory_they_take(sample: BpfObject) -> None:
    assert 8 * 65536 <= sample.maps["numbers"].memory() <= 8 * 65536 + 8192
    with Map.create(MapType.ARRAY, "small", 4, 8, 100) as small:
        assert 8 * 100 <= small.memory() <= 8 * 100 + 8192
        before = small.memory()
        small.update(7, 7)
        assert small.memory() == before


def test_a_map_of_maps_takes_the_memory_of_those_in_it(sample: BpfObject) -> None:
    outer = sample.maps["tables"]
    alone = outer.memory()
    with Map.create(MapType.ARRAY, "inner", 4, 8, 8) as inner:
        outer.update(0, inner)
        taken = inner.memory()
        assert outer.memory() == alone + taken
        outer.update(1, inner)
    assert outer.memory() == alone + taken, "one map, counted once"


def test_an_inner_map_is_opened_by_its_id(sample: BpfObject) -> None:
    with Map.create(MapType.ARRAY, "inner", 4, 8, 8) as inner:
        inner.update(3, b"and back")
        sample.maps["tables"].update(1, inner)
    id = sample.maps["tables"].lookup(1)
    with Map.by_id(id, MapType.ARRAY, "inner", 4, 8, 8) as again:
        assert again.lookup(3) == b"and back"
    sample.maps["tables"].clear()

    def refused() -> str:
        try:
            Map.by_id(id, MapType.ARRAY, "inner", 4, 8, 8).close()
        except BpfError as error:
            return str(error)
        return ""

    assert eventually(lambda: f"opening map {id}, 'inner': No such file" in refused())  # when no program can see it


def test_a_whole_new_inner_table_is_filled_in_one_call() -> None:
    with Map.create(MapType.ARRAY, "table", 4, 8, 16385) as table:
        table.update_batch([(index, struct.pack("=4H", index, 1, 2, 3)) for index in range(16385)])
        assert table.lookup(16384) == struct.pack("=4H", 16384, 1, 2, 3)


def test_map_creation_that_fails_says_what_was_asked_for() -> None:
    with pytest.raises(BpfError, match=r"creating map 'odd' \(ARRAY, 4 entries of 3 \+ 8 bytes\): Invalid argument"):
        Map.create(MapType.ARRAY, "odd", 3, 8, 4)


def test_max_entries_is_set_before_load(opened: BpfObject) -> None:
    records = opened.maps["records"]
    with pytest.raises(BpfError, match="using map 'records'"):
        records.lookup({"left": 1})
    records.set_max_entries(2)
    opened.load()
    records.update_batch([({"left": 1}, {}), ({"left": 2}, {})])
    with pytest.raises(BpfError, match="at most 2 entries"):
        records.update({"left": 3}, {})
    with pytest.raises(BpfError, match="it exists already"):
        records.set_max_entries(3)


# ---- constants -------------------------------------------------------------------------------------------


def test_constants_are_set_before_load_and_seen_by_the_program(opened: BpfObject) -> None:
    assert opened.rodata["answer"] == 42
    assert opened.rodata["constants"] == {"left": 1, "right": 2}
    assert "answer" in opened.rodata
    opened.rodata["answer"] = 1000
    opened.rodata["constants"] = {"right": 200}
    opened.rodata["greeting"] = b"!"
    opened.rodata["paint"] = opened.btf.enum("colour")["BLUE"]
    opened.load()
    expected = 1000 + 200 + ord("!") + 6
    assert opened.programs["read_constants"].test_run(PACKET).retval == expected
    variables = next(m for name, m in opened.maps.items() if name.endswith(".bss"))
    assert variables.lookup(0)["seen"] == expected
    data = next(m for name, m in opened.maps.items() if name.endswith(".data"))
    assert data.lookup(0) == {"tally": 7}


def test_constants_that_cannot_be_set(opened: BpfObject) -> None:
    with pytest.raises(KeyError, match=r"no constant 'question'; there are .*answer"):
        opened.rodata["question"] = 1
    with pytest.raises(ValueError, match=r"constant answer: .*-1 does not fit"):
        opened.rodata["answer"] = -1
    opened.load()
    with pytest.raises(BpfError, match=r"between open\(\) and load\(\)"):
        opened.rodata["answer"] = 1


# ---- programs --------------------------------------------------------------------------------------------


def test_xdp_test_run_returns_the_packet_it_made(sample: BpfObject) -> None:
    run = sample.programs["grow"].test_run(PACKET)
    assert (run.retval, run.data, run.ctx) == (XDP_TX, b"\xee" * 8 + PACKET, b"")


def test_xdp_context_says_where_the_packet_arrived(sample: BpfObject, veth: tuple[int, int]) -> None:
    context = xdp_context(len(PACKET), ingress_ifindex=veth[1])
    assert sample.programs["arrived_on"].test_run(PACKET, ctx=context).retval == veth[1] << 8
    back = sample.programs["pass"].test_run(PACKET, ctx=context, ctx_out_size=24)
    assert back.ctx == context
    with pytest.raises(BpfError, match="running program 'pass' on 64 bytes: Invalid argument"):
        sample.programs["pass"].test_run(PACKET, ctx=xdp_context(len(PACKET) + 1))


def test_tc_test_run_returns_packet_and_mark(sample: BpfObject) -> None:
    context = skb_context(mark=0x52410001, priority=3)
    run = sample.programs["remark"].test_run(PACKET, ctx=context, ctx_out_size=len(context))
    assert (run.retval, run.data) == (0, b"\xaa" + PACKET[1:20])
    after = skb_fields(run.ctx)
    assert (after["mark"], after["priority"]) == (0x52410002, 3)


def test_skb_context_refuses_unknown_fields() -> None:
    with pytest.raises(ValueError, match="struct __sk_buff: has no member 'colour'"):
        skb_context(colour=1)


def test_repeated_runs_are_timed_and_counted(sample: BpfObject) -> None:
    run = sample.programs["count_and_drop"].test_run(PACKET, repeat=1000)
    assert run.retval == XDP_DROP
    assert run.duration_ns > 0
    assert sample.maps["counters"].sum(0) == 1000


def test_live_frames_are_all_counted(sample: BpfObject, veth: tuple[int, int]) -> None:
    sample.programs["count_and_drop"].run_live_frames(PACKET, ctx=xdp_context(64, veth[0]), repeat=1000)
    assert sample.maps["counters"].sum(0) == 1000


def test_live_frames_reach_the_other_end(sample: BpfObject, veth: tuple[int, int]) -> None:
    """XDP_TX on one end of a veth pair arrives at the XDP program of the other."""
    near, far = veth
    counters = sample.maps["counters"]
    with (
        attach_xdp(near, sample.programs["pass"], "native"),
        attach_xdp(far, sample.programs["count_and_drop"], "native"),
    ):
        sample.programs["count_and_bounce"].run_live_frames(
            PACKET, ctx=xdp_context(64, near), repeat=128, batch_size=32
        )
        assert counters.sum(1) == 128
        assert eventually(lambda: counters.sum(0) == 128), f"{counters.sum(0)} of 128 frames arrived"


def test_live_frames_are_for_xdp_only(sample: BpfObject) -> None:
    with pytest.raises(BpfError, match="running program 'accept' on 4 live frames"):
        sample.programs["accept"].run_live_frames(PACKET, ctx=None, repeat=4)


def test_programs_without_a_packet_are_called(sample: BpfObject) -> None:
    assert sample.programs["add"].call(struct.pack("=II", 3, 39))[0] == 42
    assert sample.programs["without_argument"].call() == (7, b"")
    with pytest.raises(BpfError, match=r"calling program 'pass' with 0 bytes: Invalid argument (.|\n)*of type syscall"):
        sample.programs["pass"].call()


def test_program_info_and_run_time_statistics(sample: BpfObject) -> None:
    program = sample.programs["count_and_drop"]
    before = program.info()
    assert (before.name, before.id) == ("count_and_drop", program.id)
    assert (len(before.tag), before.run_cnt) == (16, 0)
    assert before.xlated_size > 0
    assert before.verified_insns > 0
    with run_time_stats():
        program.test_run(PACKET, repeat=10)
    program.test_run(PACKET, repeat=10)
    after = program.info()
    assert after.run_cnt == 10
    assert after.run_time_ns > 0


def test_programs_can_be_left_out(opened: BpfObject) -> None:
    opened.programs["grow"].set_autoload(False)
    opened.load()
    assert opened.programs["pass"].fd >= 0
    with pytest.raises(BpfError, match="using program 'grow': it is not loaded"):
        opened.programs["grow"].test_run(PACKET)
    with pytest.raises(BpfError, match="before load"):
        opened.programs["grow"].set_autoload(True)


# ---- objects ---------------------------------------------------------------------------------------------


def test_closing_gives_every_descriptor_back(compiled: Callable[[str], Path]) -> None:
    before = descriptors()
    sample = BpfObject.open(compiled("sample"))
    sample.load()
    assert descriptors() > before
    sample.close()
    sample.close()
    assert descriptors() == before
    with pytest.raises(BpfError, match="using map 'numbers'"):
        sample.maps["numbers"].lookup(0)
    with pytest.raises(BpfError, match="it is closed"):
        sample.load()


def test_an_object_that_is_dropped_is_closed(compiled: Callable[[str], Path]) -> None:
    before = descriptors()
    numbers = loaded_map(compiled("sample"), "numbers")
    gc.collect()
    numbers.update(1, 1)  # a map in use keeps its object open
    assert numbers.lookup(1) == 1
    del numbers
    gc.collect()
    assert descriptors() == before


def loaded_map(path: Path, name: str) -> Map:
    sample = BpfObject.open(path)
    sample.load()
    return sample.maps[name]


def test_loading_twice_is_refused(sample: BpfObject) -> None:
    with pytest.raises(BpfError, match="loaded already"):
        sample.load()
    sample.maps["numbers"].update(0, 1)  # and does no harm


def test_a_rejected_program_shows_the_verifiers_last_words(
    compiled: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    with BpfObject.open(compiled("rejected")) as rejected, pytest.raises(LoadError) as caught:
        rejected.load()
    error = caught.value
    assert error.program == "reads_too_far"
    assert error.errno == 13
    assert "verifier rejected program 'reads_too_far'" in error.cause
    assert "invalid access to packet" in error.log_tail
    assert error.log_tail.splitlines()[-1].startswith("processed ")
    assert len(error.log_tail.splitlines()) <= 12
    assert error.log_tail.splitlines()[-1] in str(error)
    assert capfd.readouterr().err == ""


def test_a_missing_kernel_function_is_named(compiled: Callable[[str], Path]) -> None:
    with BpfObject.open(compiled("unknown_kfunc")) as unknown, pytest.raises(LoadError) as caught:
        unknown.load()
    assert "the running kernel has no function bpf_rauta_does_not_exist (kfunc)" in str(caught.value)


def test_a_map_that_is_too_large_is_named(compiled: Callable[[str], Path]) -> None:
    with (
        BpfObject.open(compiled("too_large")) as large,
        pytest.raises(LoadError, match="out of memory for map 'gigantic'"),
    ):
        large.load()


def test_without_rights_the_error_says_so(compiled: Callable[[str], Path]) -> None:
    """In a process of its own, which gives up root first."""
    script = (
        "import os, sys; from rauta.bpf import *\n"
        "obj = BpfObject.open(sys.argv[1]); os.setgid(65534); os.setuid(65534)\n"
        "try: obj.load()\n"
        "except LoadError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, compiled("sample")], capture_output=True, text=True, check=True, env=with_rauta()
    )
    assert "loading sample.bpf.o: not permitted: Operation not permitted (EPERM)" in done.stdout
    assert "Run as root" in done.stdout


def test_without_libbpf_the_error_names_the_package() -> None:
    script = (
        "import ctypes, rauta.bpf; from rauta.bpf import BpfError, BpfObject\n"
        "def missing(*names, **options): raise OSError('libbpf.so.1: cannot open shared object file')\n"
        "ctypes.CDLL = missing\n"
        "try: BpfObject.open('any.bpf.o')\n"
        "except BpfError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=with_rauta())
    assert "loading libbpf.so.1: libbpf.so.1: cannot open" in done.stdout
    assert "apt-get install libbpf1" in done.stdout


def with_rauta() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


# ---- XDP attachments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "used"), [("native", "native"), ("generic", "generic"), ("best-effort", "native")])
def test_xdp_is_attached_and_detached(sample: BpfObject, veth: tuple[int, int], asked: Any, used: str) -> None:
    attachment = attach_xdp(veth[0], sample.programs["pass"], asked)
    assert attachment.mode == used
    assert attached_xdp_id(veth[0]) == sample.programs["pass"].id
    assert attachment.detach() is True
    assert attached_xdp_id(veth[0]) is None
    assert attachment.detach() is False


def test_best_effort_falls_back_to_generic(sample: BpfObject, veth: tuple[int, int]) -> None:
    loopback = interface("lo")  # of the test's own namespace; its driver has no native XDP
    with pytest.raises(AttachError, match="driver has no native XDP: use generic or best-effort"):
        attach_xdp(loopback, sample.programs["pass"], "native")
    with attach_xdp(loopback, sample.programs["pass"], "best-effort") as attachment:
        assert attachment.mode == "generic"
        assert attached_xdp_id(loopback) == attachment.program_id
    assert attached_xdp_id(loopback) is None


@pytest.mark.parametrize("mode", ["native", "generic", "best-effort"])
def test_a_foreign_xdp_program_is_never_replaced(sample: BpfObject, veth: tuple[int, int], mode: Any) -> None:
    foreign = sample.programs["pass"]
    with attach_xdp(veth[0], foreign, "native"):
        with pytest.raises(
            AttachError, match=rf"program id {foreign.id} \(pass\) is attached there already"
        ) as refused:
            attach_xdp(veth[0], sample.programs["count_and_drop"], mode)
        assert "Nothing was replaced" in str(refused.value)
        assert attached_xdp_id(veth[0]) == foreign.id


def test_detaching_leaves_a_foreign_program_alone(sample: BpfObject, veth: tuple[int, int]) -> None:
    ours = attach_xdp(veth[0], sample.programs["pass"], "native")
    subprocess.run(["ip", "link", "set", "dev", "rt0", "xdp", "off"], check=True)
    with attach_xdp(veth[0], sample.programs["count_and_drop"], "native") as theirs:
        assert ours.detach() is False
        assert attached_xdp_id(veth[0]) == theirs.program_id


def test_a_program_is_replaced_in_place(sample: BpfObject, veth: tuple[int, int]) -> None:
    successor = sample.programs["count_and_drop"]
    with attach_xdp(veth[0], sample.programs["pass"], "native") as attachment:
        attachment.replace(successor)
        assert attached_xdp_id(veth[0]) == attachment.program_id == successor.id
    assert attached_xdp_id(veth[0]) is None


def test_attachments_can_be_detached_after_the_object_is_closed(
    compiled: Callable[[str], Path], veth: tuple[int, int]
) -> None:
    with BpfObject.open(compiled("sample")) as sample:
        sample.load()
        xdp = attach_xdp(veth[0], sample.programs["pass"], "native")
        tc = attach_tc(veth[0], sample.programs["accept"], "ingress")
    assert attached_xdp_id(veth[0]) == xdp.program_id
    assert (xdp.detach(), tc.detach()) == (True, True)
    assert attached_xdp_id(veth[0]) is None


def test_attachments_outlast_their_interface(sample: BpfObject, veth: tuple[int, int]) -> None:
    xdp = attach_xdp(veth[0], sample.programs["pass"], "native")
    tc = attach_tc(veth[0], sample.programs["accept"], "egress")
    subprocess.run(["ip", "link", "del", "rt0"], check=True)
    assert (xdp.detach(), tc.detach()) == (False, False)


def test_interfaces_that_cannot_take_xdp(sample: BpfObject, veth: tuple[int, int]) -> None:
    with pytest.raises(AttachError, match="no such interface in this network namespace"):
        attach_xdp(9999, sample.programs["pass"], "best-effort")
    subprocess.run(["ip", "link", "set", "dev", "rt1", "mtu", "9000"], check=True)
    with pytest.raises(AttachError, match="MTU is too large"):
        attach_xdp(veth[0], sample.programs["pass"], "native")
    with attach_xdp(veth[0], sample.programs["pass"], "best-effort") as attachment:
        assert attachment.mode == "generic"
    with pytest.raises(ValueError, match="none of native, generic, best-effort"):
        attach_xdp(veth[0], sample.programs["pass"], "offload")  # type: ignore[arg-type]


# ---- tc attachments --------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1])
def test_clsact_stays_until_both_directions_are_gone(sample: BpfObject, veth: tuple[int, int], first: int) -> None:
    accept = sample.programs["accept"]
    attachments = [attach_tc(veth[0], accept, "ingress"), attach_tc(veth[0], accept, "egress")]
    assert "clsact" in qdiscs("rt0")
    assert attachments[first].detach() is True
    assert "clsact" in qdiscs("rt0")
    assert attachments[1 - first].detach() is True
    assert "clsact" not in qdiscs("rt0")
    assert attachments[first].detach() is False


def test_clsact_of_others_stays(sample: BpfObject, veth: tuple[int, int]) -> None:
    subprocess.run(["tc", "qdisc", "add", "dev", "rt0", "clsact"], check=True)
    with attach_tc(veth[0], sample.programs["accept"], "ingress"):
        pass
    assert "clsact" in qdiscs("rt0")


def test_the_tc_program_runs_on_traffic(sample: BpfObject, veth: tuple[int, int]) -> None:
    """Frames passed into one end's stack by a live run go through that end's ingress."""
    remark = sample.programs["remark"]
    with run_time_stats(), attach_tc(veth[0], remark, "ingress"):
        sample.programs["pass"].run_live_frames(PACKET, ctx=xdp_context(64, veth[0]), repeat=10)
        assert eventually(lambda: remark.info().run_cnt >= 10)


def test_clsact_stays_for_filters_that_others_added(sample: BpfObject, veth: tuple[int, int]) -> None:
    hook = _lib.TcHook(ifindex=veth[0], attach_point=2)
    theirs = _lib.TcOpts(prog_fd=sample.programs["remark"].fd, handle=1, priority=7)
    with attach_tc(veth[0], sample.programs["accept"], "ingress"):
        assert _lib.libbpf().bpf_tc_attach(hook, theirs) == 0
    assert "clsact" in qdiscs("rt0")


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """The name of another, empty network namespace."""
    name = f"rt-{os.getpid()}-other"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield name
    subprocess.run(["ip", "netns", "del", name], check=True)


def test_detaching_belongs_into_the_namespace_of_the_attachment(
    sample: BpfObject, elsewhere: str, veth: tuple[int, int]
) -> None:
    with (
        attach_xdp(veth[0], sample.programs["pass"], "native") as xdp,
        attach_tc(veth[0], sample.programs["accept"], "ingress") as tc,
    ):
        with entered(elsewhere):
            for attachment in (xdp, tc):
                with pytest.raises(AttachError, match="it is in another network namespace"):
                    attachment.detach()
        assert attached_xdp_id(veth[0]) == xdp.program_id
    assert attached_xdp_id(veth[0]) is None


def test_a_foreign_tc_filter_is_never_replaced(sample: BpfObject, veth: tuple[int, int]) -> None:
    accept = sample.programs["accept"]
    with attach_tc(veth[0], accept, "ingress"):
        with pytest.raises(AttachError, match=rf"program id {accept.id} \(accept\) is attached there already"):
            attach_tc(veth[0], sample.programs["remark"], "ingress")
        with attach_tc(veth[0], sample.programs["remark"], "ingress", priority=2):
            pass
        assert "clsact" in qdiscs("rt0")
    assert "clsact" not in qdiscs("rt0")


def test_a_filter_that_others_removed_is_not_missed(sample: BpfObject, veth: tuple[int, int]) -> None:
    attachment = attach_tc(veth[0], sample.programs["accept"], "egress")
    subprocess.run(["tc", "filter", "del", "dev", "rt0", "egress"], check=True)
    assert attachment.detach() is False
    assert "clsact" not in qdiscs("rt0")


def test_tc_attachments_that_cannot_be(sample: BpfObject, veth: tuple[int, int]) -> None:
    with pytest.raises(AttachError, match="no such interface"):
        attach_tc(9999, sample.programs["accept"], "ingress")
    with pytest.raises(AttachError, match="attaching tc program 'pass'"):
        attach_tc(veth[0], sample.programs["pass"], "ingress")
    assert "clsact" not in qdiscs("rt0")
    with pytest.raises(ValueError, match="neither ingress nor egress"):
        attach_tc(veth[0], sample.programs["accept"], "sideways")  # type: ignore[arg-type]


# ---- the C side ------------------------------------------------------------------------------------------

STRUCTURES: dict[str, type[ctypes.Structure]] = {
    "bpf_map_create_opts": _lib.MapCreateOpts,
    "bpf_map_batch_opts": _lib.MapBatchOpts,
    "bpf_test_run_opts": _lib.TestRunOpts,
    "bpf_xdp_attach_opts": _lib.XdpAttachOpts,
    "bpf_tc_hook": _lib.TcHook,
    "bpf_tc_opts": _lib.TcOpts,
    "bpf_prog_info": _lib.ProgInfo,
    "bpf_map_info": _lib.MapInfo,
    "bpf_btf_info": _lib.BtfInfo,
}


def fields_of(kind: type[ctypes.Structure]) -> list[tuple[str, Any]]:
    return list(kind.__dict__["_fields_"])


def test_structures_match_the_installed_headers(tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("clang-19")
    if compiler is None or not Path("/usr/include/bpf/libbpf.h").exists():
        pytest.skip("needs a C compiler and libbpf-dev")
    fields = [
        (c_name, field[0])
        for c_name, kind in STRUCTURES.items()
        for field in fields_of(kind)
        if not field[0].endswith("_bit")
    ]
    lines = [f'printf("%zu %zu\\n", offsetof(struct {s}, {f}), sizeof(((struct {s} *)0)->{f}));' for s, f in fields]
    wanted = ("stddef.h", "stdio.h", "linux/bpf.h", "bpf/bpf.h", "bpf/libbpf.h")
    headers = "".join(f"#include <{header}>\n" for header in wanted)
    (tmp_path / "offsets.c").write_text(headers + "int main(void)\n{\n" + "\n".join(lines) + "\n}\n")
    subprocess.run([compiler, "-o", tmp_path / "offsets", tmp_path / "offsets.c"], check=True)
    printed = subprocess.run([tmp_path / "offsets"], check=True, capture_output=True, text=True).stdout
    ours = [(getattr(STRUCTURES[s], f).offset, getattr(STRUCTURES[s], f).size) for s, f in fields]
    assert dict(zip(fields, ours, strict=True)) == dict(
        zip(fields, [tuple(map(int, line.split())) for line in printed.splitlines()], strict=True)
    )


def test_option_structures_say_their_size() -> None:
    for kind in set(STRUCTURES.values()) - {_lib.ProgInfo, _lib.MapInfo, _lib.BtfInfo}:
        assert kind().sz == ctypes.sizeof(kind)
