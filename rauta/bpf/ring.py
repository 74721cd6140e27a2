"""BPF ring buffers: what programs put into a map of type RINGBUF, in the order in which they did.

    with RingBuffer(obj.maps["lost"]) as ring:
        select.select([ring], [], [])
        for record in ring.read():
            layout.unpack(record)

The consumer is libbpf's (tools/lib/bpf/ringbuf.c); one at a time for each map.
"""

from __future__ import annotations

import ctypes
import errno
import weakref
from types import TracebackType
from typing import Self

from rauta.bpf import _lib
from rauta.bpf.maps import Map
from rauta.errors import BpfError

__all__ = ["RingBuffer"]

_ENOUGH = -errno.ECANCELED


class RingBuffer:
    """The reading end of a ring buffer, until `close`; closing the map's object does not end it."""

    def __init__(self, ring: Map) -> None:
        """BpfError when the map is of another type, or the kernel refuses."""
        library = _lib.libbpf()
        self.name = ring.name
        self._records: list[bytes] = []
        self._most: int | None = None
        self._callback = _lib.RING_SAMPLE_FN(self._take)  # kept: libbpf holds a pointer to it
        with _lib.captured_log():
            handle: int | None = library.ring_buffer__new(ring.fd, self._callback, None, None)
            number = ctypes.get_errno()
        if not handle:
            advice = "Only maps of type RINGBUF can be read so." if number == errno.EINVAL else ""
            raise BpfError(f"reading ring buffer '{ring.name}'", _lib.describe(number), advice, errno=number)
        self._handle: int | None = handle
        self._finalizer = weakref.finalize(self, library.ring_buffer__free, handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """A descriptor that is readable when there are records: for select and selectors."""
        return int(_lib.libbpf().ring_buffer__epoll_fd(self._opened()))

    def read(self, most: int | None = None) -> list[bytes]:
        """The records that are there now, oldest first; it does not wait.

        `most`: no more than so many, 1 or more; the others stay there.
        """
        self._most = most
        result = _lib.libbpf().ring_buffer__consume(self._opened())
        records, self._records = self._records, []
        if result != _ENOUGH:
            _lib.check(result, f"reading ring buffer '{self.name}'")
        return records

    def close(self) -> None:
        """Stops reading; safe to repeat."""
        self._finalizer()
        self._handle = None

    def _take(self, _context: int | None, data: int, size: int) -> int:
        self._records.append(ctypes.string_at(data, size))
        return _ENOUGH if len(self._records) == self._most else 0  # a record counts as read also if libbpf is to stop

    def _opened(self) -> int:
        if self._handle is None:
            raise BpfError(f"reading ring buffer '{self.name}'", "it is closed", "Open it again.")
        return self._handle
