"""`rauta explain`: what a router with this configuration would do with one request, and why."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rauta.config import Config
from rauta.explanation import explain as explaining
from rauta.explanation.explain import Candidate, Explanation, Found, Share
from rauta.files.document import Document, load_document
from rauta.files.mistakes import Mistake

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["explain"]

File = Annotated[str, typer.Argument(metavar="FILE", help="A configuration.", show_default=False)]
Asked = Annotated[
    str,
    typer.Argument(
        metavar="REQUEST", help="'GET http://shop.test/path', or 'GET /path' with a Host in -H.", show_default=False
    ),
]
Fields = Annotated[list[str], typer.Option("-H", "--header", metavar="'NAME: VALUE'", help="May be repeated.")]
Named = Annotated[
    str | None, typer.Option("--vip", metavar="VIP", help="Whom it is sent to: a name, an address, or address:port.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]

_SHOWN = 20  # routes in the text; --json has all
_CALLED = {"route": "route", "answer": "answer", "reset": "reset", "fallback": "the fallback"}
_COLOURS = {"taken": "green", "behind": "yellow", "no match": "dim"}


def explain(
    file: File,
    request: Asked,
    header: Fields = [],  # noqa: B006 typer wants a list, and copies it
    vip: Named = None,
    as_json: AsJson = False,
) -> None:
    """Say which route a request takes, to which backends, and why; or what it gets instead."""
    document = load_document(file)
    config = document.validate(Config)
    parsed = explaining.parse_request(request, header)
    told = explaining.explain(config, parsed.segment, vip=explaining.find_vip(config, parsed, vip))
    if as_json:
        typer.echo(json.dumps(_as_json(document, told), indent=2))
    else:
        _show(document, request, told)


# ---- as text ----------------------------------------------------------------------------------------------


def _show(document: Document, request: str, told: Explanation) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{request} → {_decision(document, told)}", markup=False, style="bold")
    console.print(f"  VIP: {told.vip.name} ({told.vip.address}:{told.vip.port})", markup=False)
    if told.head is None:
        return
    whose = f"those of {told.host}" if told.host is not None else "those for any host"
    console.print(f"  host: {told.head.host or 'none'}; the routes that count are {whose}", markup=False)
    console.print(f"  path: {told.head.path}", markup=False)
    for note in told.notes:
        console.print(f"  {note}", markup=False)
    _show_candidates(console, document, told.candidates)


def _decision(document: Document, told: Explanation) -> str:
    if told.kind == "route" and told.route is not None:
        shares = ", ".join(f"{one.name} {100 * one.share:.0f} %" for one in told.shares if one.weight)
        return f"route {_place(document, told.route)} ({told.why}) → cluster {told.cluster} → {shares}"
    what = f"{told.status}" if told.status is not None else _CALLED[told.kind]
    return f"{what} ({told.verdict}): {told.why}"


def _place(document: Document, found: Found) -> str:
    return f"{Mistake(found.path, '').field} in line {document.line(found.path)}"


def _show_candidates(console: Console, document: Document, candidates: Sequence[Candidate]) -> None:
    console.print("  routes, as they are looked for:")
    shown = list(_most_telling(candidates))
    for one in shown:
        text = f"    {one.outcome:<8}  {_place(document, one.found)}: {one.why}"
        console.print(text, markup=False, style=_COLOURS[one.outcome])
    if len(shown) < len(candidates):
        console.print(f"    and {len(candidates) - len(shown)} more that do not match; --json has them", markup=False)


def _most_telling(candidates: Sequence[Candidate]) -> Iterator[Candidate]:
    """All that match, and the first of the others."""
    left = _SHOWN
    for one in candidates:
        if one.outcome != "no match":
            yield one
        elif left:
            left -= 1
            yield one


# ---- as JSON ----------------------------------------------------------------------------------------------


def _as_json(document: Document, told: Explanation) -> dict[str, Any]:
    return {
        "kind": told.kind,
        "verdict": told.verdict,
        "status": told.status,
        "why": told.why,
        "vip": {"name": told.vip.name, "address": str(told.vip.address), "port": told.vip.port},
        "request": dataclasses.asdict(told.head) if told.head is not None else None,
        "notes": list(told.notes),
        "host": told.host,
        "route": _found(document, told.route) if told.route is not None else None,
        "cluster": told.cluster,
        "backends": [_share(share) for share in told.shares],
        "candidates": [
            {**_found(document, one.found), "outcome": one.outcome, "why": one.why} for one in told.candidates
        ],
    }


def _found(document: Document, found: Found) -> dict[str, Any]:
    said = found.route.model_dump(exclude_none=True)
    return {
        "number": found.number,
        "field": Mistake(found.path, "").field,
        "line": document.line(found.path),
        "route": said,
    }


def _share(share: Share) -> dict[str, Any]:
    return dataclasses.asdict(share) | {"address": str(share.address)}
