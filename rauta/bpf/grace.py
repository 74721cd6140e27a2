"""Waiting until no program uses any more what a map held a moment ago.

Elements of a hash map are used again as soon as they are replaced or deleted, while a program on another CPU may still
be reading them (kernel/bpf/hashtab.c). Who changes a map that packets are routed by must know when they have let go.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rauta.bpf.maps import Map, MapType

__all__ = ["GracePeriod"]

_SIZES = (MapType.ARRAY, "grace_inner", 4, 8, 1)


class GracePeriod:
    """Call `wait`: when it returns, programs that were running have ended. `close` it afterwards.

    Updating a map of maps from user space waits for exactly that (kernel/bpf/syscall.c, maybe_wait_bpf_programs). Takes
    some milliseconds.
    """

    def __init__(self) -> None:
        self._inner = Map.create(*_SIZES)
        try:
            self._outer = Map.create(MapType.ARRAY_OF_MAPS, "grace", 4, 4, 1, inner=self._inner)
        except BaseException:
            self._inner.close()
            raise

    def wait(self) -> None:
        """Returns when every program that was running at the call has ended."""
        self._outer.update(0, self._inner)

    def close(self) -> None:
        """Safe to repeat."""
        self._outer.close()
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
