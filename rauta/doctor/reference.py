"""The table of docs/doctor.md, made of the checks' docstrings: `python -m rauta.doctor.reference` writes it anew."""

from __future__ import annotations

import sys
from pathlib import Path

import rauta.doctor  # noqa: F401  (fills CHECKS)
from rauta.doctor.findings import Group, checks_of

__all__ = ["tables", "written"]

_BEGIN, _END = "<!-- checks -->", "<!-- /checks -->"
_TITLES: dict[Group, str] = {
    "host": "Every host",
    "interface": "The interfaces of a router, or those named on a backend's host",
    "router": "Routers",
    "agent": "Hosts with an agent: backends, and routers with a fallback",
    "between": "From a router to its backends",
}


def tables() -> str:
    """One table in Markdown for each kind of host."""
    return "\n".join(_table(group, title) for group, title in _TITLES.items())


def _table(group: Group, title: str) -> str:
    rows = [f"| `{check.name}` | {check.meaning.replace('|', chr(92) + '|')} |" for check in checks_of({group})]
    return "\n".join([f"## {title}", "", "| check | what has to be so, and why |", "|---|---|", *rows, ""])


def written(text: str) -> str:
    """A page with the tables in the place of those that it has."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{tables()}{_END}{after}"


if __name__ == "__main__":
    page = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/doctor.md")
    page.write_text(written(page.read_text()))
