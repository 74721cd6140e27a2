"""Ring buffers and syscall programs of rauta.bpf, against the running kernel. Needs root and clang."""

from __future__ import annotations

import select
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rauta.bpf import BpfError, BpfObject, Map, MapType, RingBuffer

PACKET = bytes(64)
RECORD_BYTES = 16
"""of a record of four bytes, with the kernel's header"""


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


def tell(sample: BpfObject, word: int) -> int:
    """Has the program put a number into the ring buffer; not 0 if there was no room."""
    return sample.programs["tell"].test_run(struct.pack("=I", word) + PACKET).retval


def readable(ring: RingBuffer) -> bool:
    return bool(select.select([ring], [], [], 0)[0])


# ---- ring buffers ----------------------------------------------------------------------------------------


def test_records_come_out_as_they_went_in(sample: BpfObject) -> None:
    with RingBuffer(sample.maps["events"]) as ring:
        assert ring.read() == []
        for number in range(5):
            tell(sample, number)
        assert ring.read() == [struct.pack("=I", number) for number in range(5)]
        assert ring.read() == []


def test_it_can_be_waited_for(sample: BpfObject) -> None:
    with RingBuffer(sample.maps["events"]) as ring:
        assert not readable(ring)
        tell(sample, 7)
        assert select.select([ring], [], [], 5)[0] == [ring]
        assert ring.read() == [struct.pack("=I", 7)]
        assert not readable(ring)


def test_no_more_are_read_than_asked_for(sample: BpfObject) -> None:
    """The others stay, and it stays readable."""
    with RingBuffer(sample.maps["events"]) as ring:
        for number in range(5):
            tell(sample, number)
        assert ring.read(2) == [struct.pack("=I", number) for number in (0, 1)]
        assert readable(ring)
        assert ring.read(3) == [struct.pack("=I", number) for number in (2, 3, 4)]
        assert not readable(ring)
        assert ring.read(1) == []


def test_what_came_before_the_reader_is_kept_until_it_is_full(sample: BpfObject) -> None:
    room = sample.maps["events"].max_entries // RECORD_BYTES - 1
    refused = [tell(sample, number) for number in range(room + 3)]
    assert refused == [0] * room + [1] * 3
    with RingBuffer(sample.maps["events"]) as ring:
        assert len(ring.read()) == room
        assert tell(sample, 0) == 0
        assert len(ring.read()) == 1


def test_the_ring_outlives_its_object(opened: BpfObject) -> None:
    opened.load()
    tell(opened, 9)
    with RingBuffer(opened.maps["events"]) as ring:
        opened.close()
        assert ring.read() == [struct.pack("=I", 9)]


def test_a_closed_one_is_closed(sample: BpfObject) -> None:
    ring = RingBuffer(sample.maps["events"])
    ring.close()
    ring.close()
    for use in (ring.read, ring.fileno):
        with pytest.raises(BpfError, match="reading ring buffer 'events': it is closed"):
            use()


def test_other_maps_are_no_ring_buffers(sample: BpfObject) -> None:
    with pytest.raises(BpfError, match="reading ring buffer 'numbers': Invalid argument") as refused:
        RingBuffer(sample.maps["numbers"])
    assert "type RINGBUF" in str(refused.value)


def test_nor_is_one_that_is_not_loaded(opened: BpfObject) -> None:
    with pytest.raises(BpfError, match="using map 'events': it has no descriptor"):
        RingBuffer(opened.maps["events"])


# ---- syscall programs ------------------------------------------------------------------------------------


def test_a_syscall_program_is_called_with_its_context(sample: BpfObject) -> None:
    assert sample.programs["swap"].call(struct.pack("=II", 30, 12)) == (42, struct.pack("=II", 12, 30))


def test_a_context_that_is_too_small_is_refused(sample: BpfObject) -> None:
    with pytest.raises(BpfError, match="calling program 'swap' with 4 bytes: Invalid argument"):
        sample.programs["swap"].call(bytes(4))


def test_programs_know_whether_they_are_loaded(opened: BpfObject) -> None:
    opened.programs["swap"].set_autoload(False)
    assert not opened.programs["tell"].loaded
    opened.load()
    assert opened.programs["tell"].loaded
    assert not opened.programs["swap"].loaded
    opened.close()
    assert not opened.programs["tell"].loaded
