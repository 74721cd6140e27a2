"""Events as they come: a line each."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from rauta.views import clean, console, styled

__all__ = ["Lines"]

_COLOURS = {"DROP": "yellow", "TX": "cyan", "ROUTED": "green", "FORWARDED": "", "FALLBACK": "magenta"}


class Lines:
    """Prints events, each at once. `followed`: the client is known, so his address is not said again."""

    def __init__(self, *, followed: bool = False) -> None:
        self._followed = followed
        self._console: Console = console()

    def show(self, item: Mapping[str, Any]) -> None:
        """An event, or how many were lost."""
        if "lost" in item:
            self._console.print(f"... {item['lost']:,} packets are missing here: there were too many", style="bold red")
            return
        line = styled(f"{_clock(item['time'])}  {self._who(item)}  {_packet(item)} → ")
        line.append(item["verdict"], style=_COLOURS.get(item["verdict"].partition("_")[0], ""))
        line.append(clean(_where(item)))
        self._console.print(line, soft_wrap=True)

    def _who(self, item: Mapping[str, Any]) -> str:
        client = item["client"].rpartition(":")[2] if self._followed else item["client"]
        return f"{client} → {item['server']}"


def _clock(at: float) -> str:
    """The time of day, to the microsecond: packets of one connection are not further apart."""
    return time.strftime("%H:%M:%S", time.localtime(at)) + f"{at % 1:.6f}"[1:]


def _packet(item: Mapping[str, Any]) -> str:
    """What it is: a request by its method, else its flags; and how much data is in it."""
    length = f"{item['length']} bytes" if item["length"] else ""
    return " ".join(word for word in (item["method"] or item["flags"] or "no TCP", length) if word)


def _where(item: Mapping[str, Any]) -> str:
    """The route, and the backend."""
    route = f" {item['cluster']} {item['route']}" if item["route"] else ""
    return f"{route} → {item['backend']}" if item["backend"] else route
