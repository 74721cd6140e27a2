"""Ring buffers: records that BPF programs write and one reader takes out, through libbpf.

    with RingBuffer(obj.maps["events"], print) as ring:
        ring.poll(1000)

The kernel's side is described in Documentation/bpf/ringbuf.rst of the Linux sources.
"""

from __future__ import annotations

import ctypes
import errno
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rauta.bpf import _lib
from rauta.bpf.maps import Map, MapType
from rauta.errors import BpfError

__all__ = ["RingBuffer"]


class RingBuffer:
    """Reads a map of type RINGBUF. One reader a map: two would take records from each other.

    It needs the map loaded, and goes on when the object is closed: the kernel keeps what is read.
    """

    def __init__(self, source: Map, callback: Callable[[bytes], object]) -> None:
        """`callback` gets each record, as bytes, in the order in which programs reserved them. BpfError if refused."""
        tried = f"reading ring buffer '{source.name}'"
        if source.type is not MapType.RINGBUF:
            raise BpfError(tried, f"it is a map of type {source.type.name}", "Name one of type RINGBUF.")
        self.name = source.name
        self._callback = callback
        self._failure: BaseException | None = None
        library = _lib.libbpf()
        take = _lib.RING_SAMPLE_FN(_taker(weakref.ref(self)))
        with _lib.captured_log() as messages:
            handle: int | None = library.ring_buffer__new(source.fd, take, None, None)
            number = ctypes.get_errno()
        if not handle:
            raise BpfError(tried, "; ".join([_lib.describe(number), *messages[-1:]]), errno=number)
        self._handle: int | None = handle
        self._finalizer = weakref.finalize(self, _free, handle, take)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """A descriptor that is readable when records are waiting, for `select` and event loops."""
        return int(_lib.libbpf().ring_buffer__epoll_fd(self._opened()))

    def poll(self, timeout_ms: int) -> int:
        """Waits for records, at most so long (0: not at all, -1: for ever), and gives all that are there to `callback`.

        Returns their number; 0 also if a signal came. An exception of `callback` ends it: the record counts as read,
        those behind it stay for the next call. BpfError when the kernel refuses.
        """
        result = _lib.libbpf().ring_buffer__poll(self._opened(), timeout_ms)
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        return 0 if result == -errno.EINTR else _lib.check(result, f"reading ring buffer '{self.name}'")

    def close(self) -> None:
        """Stops reading; safe to repeat."""
        self._finalizer()
        self._handle = None

    def _opened(self) -> int:
        if self._handle is None:
            raise BpfError(f"reading ring buffer '{self.name}'", "it is closed", "Open it anew.")
        return self._handle

    def _take(self, record: bytes) -> int:
        """0, or -1 to stop: an exception cannot pass through libbpf."""
        try:
            self._callback(record)
        except BaseException as failure:
            self._failure = failure
            return -1
        return 0


def _taker(ring: weakref.ref[RingBuffer]) -> Callable[[int | None, int, int], int]:
    """What libbpf calls; it must not keep the RingBuffer alive, which keeps it."""

    def take(_context: int | None, data: int, size: int) -> int:
        reader = ring()
        return reader._take(ctypes.string_at(data, size)) if reader is not None else -1

    return take


def _free(handle: int, _take: object) -> None:
    """`_take` is kept until then: libbpf holds a pointer to it."""
    _lib.libbpf().ring_buffer__free(handle)
