"""The live view: what a router does now, on one screen; what does not fit is left out, and said."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rauta.views import STATES, clean, console, number, styled, table
from rauta.views.tables import weight_of

__all__ = ["Watch", "screen"]

_HEAD, _LEAST = 4, 3
_FIGURES = 38  # columns of the table of backends besides the names
_MOST_DROPS = 5
_ENDLESS = 10_000  # lines, where there is no screen


class Watch:
    """The screen, for as long as the context lasts; the terminal is as it was afterwards.

    Where there is none, one is printed after the other.
    """

    def __init__(self) -> None:
        self._console = console()
        self._live = Live(console=self._console, screen=True, auto_refresh=False)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.__exit__(kind, error, trace)

    def show(self, item: Mapping[str, Any]) -> None:
        """What has been seen last."""
        if self._console.is_terminal:
            self._live.update(screen(item, self._console.width, self._console.height), refresh=True)
        else:
            self._console.print(screen(item, self._console.width, _ENDLESS))


def screen(item: Mapping[str, Any], width: int, height: int) -> Group:
    """Everything, in so many columns and lines."""
    parts: list[Text | Table] = [_head(item)]
    if item["error"]:
        parts.append(styled(f"configuration not loaded: {item['error'].splitlines()[0]}", "bold red"))
    drops = _drops(item["dropped"])
    left = height - _HEAD - len(drops) - len(parts)
    clusters = sorted(item["clusters"], key=lambda one: -one["requests_per_second"])
    shown = clusters[: max(_LEAST, left // 3 - 2)]
    parts += [_clusters(shown), *_more("clusters", len(clusters) - len(shown))]
    backends = sorted(item["backends"], key=_urgency)
    room = max(_LEAST, left - len(shown) - 2 - (len(shown) < len(clusters)))
    shown = backends[: room if len(backends) <= room else room - 1]
    parts += [_backends(shown, width - _FIGURES), *_more("backends", len(backends) - len(shown))]
    return Group(*parts, *drops)


def _head(item: Mapping[str, Any]) -> Text:
    clock = time.strftime("%H:%M:%S", time.localtime(item["time"]))
    p99 = number(item["p99_latency_us"], 2)
    text = Text().append(clean(f"{item['instance']}  {clock}  generation {item['generation']}"), "bold")
    return text.append(
        f"\n{number(item['requests_per_second'])} requests/s  {number(item['packets_per_second'])} packets/s  "
        f"p99 {p99} µs\n"
    )


def _clusters(clusters: Sequence[Mapping[str, Any]]) -> Table:
    shown = table("cluster", "req/s", right=("req/s",), cut=True)
    for one in clusters:
        shown.add_row(styled(one["name"]), number(one["requests_per_second"], 1))
    return shown


def _backends(backends: Sequence[Mapping[str, Any]], room: int) -> Table:
    """`room`: columns for the names, of which the backend's gets more."""
    of = room * 2 // 5
    shown = table("backend", "of", "req/s", "weight", "health", right=("req/s", "weight"), cut=True)
    for one in backends:
        state = styled(one["state"], STATES.get(one["state"], ""))
        rate = number(one["requests_per_second"], 1)
        shown.add_row(_cut(one["name"], room - of), _cut(one["cluster"], of), rate, weight_of(one), state)
    return shown


def _cut(name: str, length: int) -> Text:
    return styled(name if len(name) <= length else f"{name[: length - 1]}…")


def _urgency(backend: Mapping[str, Any]) -> tuple[bool, float]:
    """Those that are not well first, then those that have most to do."""
    return backend["state"] in ("healthy", "unchecked"), -backend["requests_per_second"]


def _drops(dropped: Mapping[str, float]) -> list[Text]:
    most = sorted(dropped.items(), key=lambda one: -one[1])
    if not most:
        return [styled("nothing dropped", "dim")]
    lines = [styled(f"{number(rate, 1):>10}/s {name}", "yellow") for name, rate in most[:_MOST_DROPS]]
    return [*lines, *_more("reasons to drop", len(most) - _MOST_DROPS)]


def _more(what: str, number_left: int) -> list[Text]:
    return [styled(f"and {number_left} more {clean(what)}", "dim")] if number_left > 0 else []
