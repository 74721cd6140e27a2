"""What rautactl shows: a function a command, from the router's answer (docs/rautactl.md) to lines for people.

rich is imported here, and so only where rautactl is: a router's process has no use for it, and no room.
"""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["STATES", "age", "clean", "console", "number", "size", "styled", "table"]

_WIDE = 500  # columns, where nobody has said how many there are

STATES = {
    "healthy": "green",
    "unchecked": "green",
    "drained": "yellow",
    "unhealthy": "red",
    "down": "bold red",
    "unreached": "bold red",
}
"""The colour of each state of a backend."""

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def console() -> Console:
    """Standard output; a line stays a line where that is a file or a program."""
    one = Console(highlight=False, markup=False)
    return one if sys.stdout.isatty() else Console(highlight=False, markup=False, width=_WIDE)


def table(*columns: str, right: tuple[str, ...] = (), cut: bool = False) -> Table:
    """A table without lines. `right`: columns of numbers; `cut`: what is too long is cut, and not folded."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(
            column,
            justify="right" if column in right else "left",
            no_wrap=cut or column in right,
            overflow="ellipsis" if cut else "fold",
        )
    return made


def clean(text: object) -> str:
    """What may be written to a terminal: whatever would steer it is escaped."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(text))


def styled(text: object, style: str = "") -> Text:
    """A cell."""
    return Text(clean(text), style=style)


def number(value: float | None, digits: int = 0) -> str:
    """With commas; a dash if it is not known."""
    return "-" if value is None else f"{value:,.{digits}f}"


def size(value: float) -> str:
    """Bytes."""
    return f"{value / 1e6:,.1f} MB"


def age(since: float) -> str:
    """How long ago, by the wall clock, in its largest unit."""
    seconds = max(0.0, time.time() - since)
    for length, unit in _UNITS:
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
