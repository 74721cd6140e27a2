"""Events for several listeners at once: a router's ring buffer has one reader.

It is read only while somebody listens; before that it fills up, and what no longer fits is counted, not kept. A
listener that does not keep up loses the oldest.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from rauta.events import Event, EventReader

__all__ = ["Told"]

_QUEUE = 4096


class Told:
    """Who listens to a router's events."""

    def __init__(self, reader: EventReader) -> None:
        self._reader = reader
        self._listeners: set[asyncio.Queue[Event]] = set()

    @contextlib.contextmanager
    def subscribed(self) -> Iterator[asyncio.Queue[Event]]:
        """A queue that gets every event from now on, for as long as the context lasts."""
        queue: asyncio.Queue[Event] = asyncio.Queue(_QUEUE)
        if not self._listeners:
            self._reader.poll(0)  # what nobody wanted to hear
            asyncio.get_running_loop().add_reader(self._reader.fileno(), self._read)
        self._listeners.add(queue)
        try:
            yield queue
        finally:
            self._listeners.discard(queue)
            if not self._listeners:
                asyncio.get_running_loop().remove_reader(self._reader.fileno())

    def _read(self) -> None:
        for event in self._reader.poll(0):
            for queue in self._listeners:
                if queue.full():
                    queue.get_nowait()
                queue.put_nowait(event)
