"""Cookie keys in the maps of a running program, and how others take their place without any packet noticing.

The map `cookie_keys` is one entry: two keys, and which of them new cookies use. `ask_keys` has the keys of orders and
questions, which are derived from them. Programs read both while they are written, without a lock, so a packet may meet
half a key. It must not be one that somebody uses. Therefore a change goes by steps, each of which writes either the key
that is not in use, or nothing but the epoch (one byte; the same bytes written again are what they were). As long as
keys follow their schedule (rauta.secrets) a change is one such step. After a far jump, of a machine that has slept
perhaps, it is up to four: then packets whose keys are gone by any reckoning are refused, but none gets a cookie of half
a key.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

from rauta import tables
from rauta.bpf import BpfObject
from rauta.errors import RautaError
from rauta.keys import CookieKeys, Keys

__all__ = ["KeySlots", "other_installation", "steps"]

_SETTLE_SECONDS = 0.01  # a program that has read the old epoch is done by then: it runs for microseconds


def steps(before: CookieKeys, after: CookieKeys) -> Iterator[CookieKeys]:
    """What is written, one after the other, to get from `before` to `after`.

    From one to the next there changes either the key of the epoch that is not in use, or only the epoch.
    """
    used, spare = before.epoch, 1 - before.epoch
    now = before.with_key(spare, after.by_epoch[spare])
    if now != before:
        yield now
    if now == after:
        return
    now = replace(now, epoch=spare)
    yield now
    if now.by_epoch[used] != after.by_epoch[used]:
        now = now.with_key(used, after.by_epoch[used])
        yield now
    if now != after:
        yield after


def other_installation(what: str) -> RautaError:
    """The error of keys that are not a later state of the ones in use."""
    return RautaError(
        f"giving {what} other cookie keys",
        "they are another installation's: what must stay while connections live differs, too",
        "Keep `hash` in the file of secrets. To change it, start anew.",
    )


class KeySlots:
    """The two maps of an object, and what is in them. `fill` comes first; `exchange` may be called by any thread."""

    def __init__(self, obj: BpfObject, keys: Keys) -> None:
        """Takes an object that is loaded before `fill` is called."""
        self._object = obj
        self._keys = keys
        self._lock = threading.Lock()

    @property
    def keys(self) -> Keys:
        """The secrets, with the cookie keys that are in the maps."""
        return self._keys

    def fill(self) -> None:
        """Writes all, before any packet comes."""
        self._write(self._keys.cookies)

    def exchange(self, after: CookieKeys) -> None:
        """Puts others in their place; nothing is written if they are there. BpfError if the kernel refuses."""
        with self._lock:
            switched = False
            for now in steps(self._keys.cookies, after):
                if switched:
                    time.sleep(_SETTLE_SECONDS)
                self._write(now)
                switched = now.epoch != self._keys.cookies.epoch
                self._keys = replace(self._keys, cookies=now)

    def _write(self, cookies: CookieKeys) -> None:
        maps = self._object.maps
        maps["ask_keys"].update(0, tables.ask_keys_entry(cookies))
        maps["cookie_keys"].update(0, tables.cookie_keys_entry(cookies))
