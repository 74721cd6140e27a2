"""rauta.bpf.RingBuffer against the running kernel. Needs root and clang."""

from __future__ import annotations

import gc
import select
import struct
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rauta.bpf import BpfError, BpfObject, Map, MapType, RingBuffer

XDP_DROP, XDP_PASS = 1, 2
RECORD = 16
"""bytes that a word takes: a header of 8, and 4 rounded up to 8"""


@pytest.fixture
def ring(compiled: Callable[[str], Path]) -> Iterator[BpfObject]:
    try:
        Map.create(MapType.ARRAY, "probe", 4, 4, 1).close()
    except BpfError as error:
        pytest.skip(str(error))
    with BpfObject.open(compiled("ring")) as obj:
        obj.load()
        yield obj


def put(ring: BpfObject, *words: int) -> list[int]:
    return [ring.programs["put"].test_run(struct.pack("=I", word).ljust(14, b"\0")).retval for word in words]


def packed(*words: int) -> list[bytes]:
    return [struct.pack("=I", word) for word in words]


def test_records_come_in_the_order_in_which_they_were_put(ring: BpfObject) -> None:
    records: list[bytes] = []
    with RingBuffer(ring.maps["words"], records.append) as reader:
        assert reader.poll(0) == 0
        put(ring, 1, 2, 3)
        assert reader.poll(0) == 3
        put(ring, 4)
        assert reader.poll(-1) == 1
    assert records == packed(1, 2, 3, 4)


def test_polling_waits_for_the_first_record(ring: BpfObject) -> None:
    records: list[bytes] = []
    with RingBuffer(ring.maps["words"], records.append) as reader:
        assert select.select([reader], [], [], 0)[0] == []
        writer = threading.Timer(0.05, put, (ring, 7))
        writer.start()
        assert reader.poll(10_000) == 1
        writer.join()
        put(ring, 8)
        assert select.select([reader], [], [], 10)[0] == [reader]
    assert records == packed(7)


def test_what_finds_no_room_is_refused_until_somebody_reads(ring: BpfObject) -> None:
    records: list[bytes] = []
    room = ring.maps["words"].max_entries // RECORD
    done = put(ring, *range(room + 8))
    fitted = done.count(XDP_PASS)
    assert done == [XDP_PASS] * fitted + [XDP_DROP] * (room + 8 - fitted)
    assert room - 1 <= fitted <= room
    with RingBuffer(ring.maps["words"], records.append) as reader:
        reader.poll(0)
        assert put(ring, 99) == [XDP_PASS]
        reader.poll(0)
    assert records == packed(*range(fitted), 99)


def test_an_exception_comes_out_of_poll_and_loses_no_other_record(ring: BpfObject) -> None:
    records: list[bytes] = []

    def careful(record: bytes) -> None:
        if record == packed(2)[0]:
            raise LookupError("two")
        records.append(record)

    with RingBuffer(ring.maps["words"], careful) as reader:
        put(ring, 1, 2, 3)
        with pytest.raises(LookupError, match="two"):
            reader.poll(0)
        assert records == packed(1)
        assert reader.poll(0) == 1
    assert records == packed(1, 3)


def test_it_outlives_the_object(ring: BpfObject) -> None:
    records: list[bytes] = []
    with RingBuffer(ring.maps["words"], records.append) as reader:
        put(ring, 1)
        ring.close()
        assert reader.poll(0) == 1
    assert records == packed(1)


def test_it_can_be_closed_twice_and_not_used_then(ring: BpfObject) -> None:
    reader = RingBuffer(ring.maps["words"], print)
    reader.close()
    reader.close()
    with pytest.raises(BpfError, match="reading ring buffer 'words': it is closed"):
        reader.poll(0)
    with pytest.raises(BpfError, match="it is closed"):
        reader.fileno()


def test_one_that_is_dropped_is_freed(ring: BpfObject) -> None:
    reader = RingBuffer(ring.maps["words"], print)
    gone = weakref.ref(reader)
    del reader
    gc.collect()
    assert gone() is None


def test_other_maps_are_refused() -> None:
    with (
        Map.create(MapType.ARRAY, "numbers", 4, 4, 1) as numbers,
        pytest.raises(BpfError, match="reading ring buffer 'numbers': it is a map of type ARRAY"),
    ):
        RingBuffer(numbers, print)
