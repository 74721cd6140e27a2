"""Events for several listeners at once: a router's ring buffer has one reader.

It is read only while somebody listens; before that it fills up, and what no longer fits is counted, not kept. A
listener that does not keep up loses the oldest, and is told how many.

One listener at a time may follow a client: then the packet path tells every packet of that client, which only he gets
to hear, besides those that everybody does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from typing import TypeAlias

from rauta.errors import RautaError
from rauta.events import Event, EventReader

__all__ = ["Listener", "Told", "Wanted"]

_QUEUE = 1024  # events that a listener may be behind
_AT_ONCE = 128  # events that are read, or handed out, before other work has its turn

Wanted: TypeAlias = Callable[[Event], bool]


class Listener(asyncio.Queue[Event]):
    """A queue of those events that somebody wants. `lost`: how many of them had to go, for want of room."""

    def __init__(self, wanted: Wanted) -> None:
        super().__init__(_QUEUE)
        self._wanted = wanted
        self.lost = 0

    def offer(self, event: Event) -> None:
        """Takes it, if it is wanted."""
        if not self._wanted(event):
            return
        if self.full():
            self.get_nowait()
            self.lost += 1
        self.put_nowait(event)

    async def some(self, seconds: float) -> list[Event]:
        """What there is, 128 at most; if there is nothing, what comes within so many seconds."""
        if self.empty():
            with contextlib.suppress(TimeoutError):
                return [await asyncio.wait_for(self.get(), seconds)]
            return []
        return [self.get_nowait() for _ in range(min(self.qsize(), _AT_ONCE))]


def _is_for_everybody(event: Event) -> bool:
    return event.sampled


class Told:
    """Who listens to a router's events."""

    def __init__(self, reader: EventReader) -> None:
        self._reader = reader
        self._listeners: set[Listener] = set()
        self._followed: str | None = None

    @contextlib.contextmanager
    def subscribed(self, wanted: Wanted = _is_for_everybody) -> Iterator[Listener]:
        """A queue that gets every event that is wanted from now on, for as long as the context lasts."""
        listener = Listener(wanted)
        if not self._listeners:
            self._reader.skip()  # what nobody wanted to hear
            asyncio.get_running_loop().add_reader(self._reader.fileno(), self._read)
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)
            if not self._listeners:
                asyncio.get_running_loop().remove_reader(self._reader.fileno())

    @contextlib.contextmanager
    def following(self, client: IPv4Address, port: int = 0) -> Iterator[Listener]:
        """The same with every packet of a client, of all his ports if `port` is 0.

        RautaError if somebody follows a client already.
        """
        name = f"{client}:{port}" if port else str(client)
        if self._followed is not None:
            happened = f"{self._followed} is followed already, and only one client can be at a time"
            raise RautaError(f"following {name}", happened, "End that `rautactl follow` first.")
        self._followed = name
        try:
            with self._reader.following(client, port), self.subscribed(lambda event: event.followed) as listener:
                yield listener
        finally:
            self._followed = None

    @property
    def follow_lost(self) -> int:
        """Packets of the client who is followed for which the ring buffer had no room, so far."""
        return self._reader.follow_lost

    def _read(self) -> None:
        for event in self._reader.poll(0, _AT_ONCE):
            for listener in self._listeners:
                listener.offer(event)
