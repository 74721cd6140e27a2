"""`rauta doctor`: the checks of rauta.doctor as a table, or as JSON for programs.

Exit status 0 if nothing is wrong, 1 if anything is; warnings, and what cannot be told, do not count. How the keys are
read is given by whoever registers the command:

    app.command("doctor")(command(read_keys))
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from rauta.config import Config, load_config
from rauta.doctor import examine
from rauta.doctor.findings import Finding, Status
from rauta.errors import RautaError
from rauta.keys import CookieKeys
from rauta.network.namespaces import entered

__all__ = ["command", "failed", "show"]

ReadKeys: TypeAlias = Callable[[Config], CookieKeys | None]
"""The keys of the cookies that a configuration's `secrets` lead to, None if it has none."""

_COLOURS: dict[Status, str] = {"ok": "green", "warning": "yellow", "error": "bold red", "unknown": "dim"}
_WIDTH = 1000
_USAGE = 2


def command(read_keys: ReadKeys) -> Callable[..., None]:
    """The function of the command, for typer."""

    def doctor(
        config: Annotated[
            Path | None,
            typer.Option("--config", "-c", help="The configuration; without it, only the kernel is examined."),
        ] = None,
        interface: Annotated[
            list[str] | None, typer.Option(help="An interface of the router's or the agent's; may be repeated.")
        ] = None,
        backend: Annotated[str | None, typer.Option(help="This is that backend's host, not a router's.")] = None,
        netns: Annotated[str | None, typer.Option(help="A network namespace to look in: a name, or a path.")] = None,
        client: Annotated[str | None, typer.Option(help="Some client's address, to judge the way back by.")] = None,
        deep: Annotated[bool, typer.Option("--deep", help="Load RAUTA's own programs, too.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    ) -> None:
        """Look for what commonly goes wrong on a router's or a backend's host, and say what to do about it."""
        try:
            read = load_config(config) if config is not None else None
            keys = read_keys(read) if read is not None else None
            with entered(netns) if netns is not None else nullcontext():
                found = examine(
                    read, keys=keys, interfaces=interface or (), backend=backend, client=_address(client), deep=deep
                )
        except RautaError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(_USAGE) from error
        typer.echo(json.dumps([dataclasses.asdict(one) for one in found], indent=2)) if as_json else show(found)
        raise typer.Exit(int(failed(found)))

    return doctor


def failed(findings: Iterable[Finding]) -> bool:
    """Whether anything is wrong."""
    return any(one.status == "error" for one in findings)


def show(findings: Iterable[Finding]) -> None:
    """Prints a table, and what it comes to. (Rich is imported here: a daemon has no use for it.)"""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    found = list(findings)
    table = Table("", "check", "of", "seen, and what to do", box=None, pad_edge=False)
    for one in found:
        said = Text(one.seen)
        if one.remedy:
            said.append(f"\n→ {one.remedy}", style="bold")
        table.add_row(Text(one.status, style=_COLOURS[one.status]), Text(one.check), Text(one.subject), said)
    console = Console()
    if not console.is_terminal:  # a file, or a program: nothing is cut into lines that it would have to put together
        console = Console(width=_WIDTH)
    console.print(table)
    counts = {status: sum(one.status == status for one in found) for status in _COLOURS}
    console.print(", ".join(f"{number} {status}" for status, number in counts.items() if number))


def _address(text: str | None) -> IPv4Address | None:
    try:
        return IPv4Address(text) if text is not None else None
    except ValueError as error:
        raise RautaError(f"--client {text}", "that is no IPv4 address") from error
