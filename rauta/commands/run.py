"""`rauta run`: see rauta.daemon."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["run"]


def run(
    file: Annotated[Path, typer.Option("--config", "-c", help="The configuration file.")],
    interface: Annotated[
        list[str] | None,
        typer.Option("--interface", "-i", envvar="RAUTA_INTERFACE", help="Instead of the file's; may be repeated."),
    ] = None,
    mode: Annotated[
        str, typer.Option(envvar="RAUTA_XDP_MODE", help="native, generic or best-effort, instead of the file's.")
    ] = "",
    name: Annotated[str, typer.Option(help="The name of this instance: one for each router of a host.")] = "router",
    log: Annotated[str, typer.Option(help="text or json.")] = "text",
) -> None:
    """Route, until SIGTERM. SIGHUP, or a change of the file, loads it again.

    Packets go on when the process ends, however it ends; the next one takes over. `rauta down` takes all of it away.
    """
    from rauta.daemon import Daemon, Options
    from rauta.logs import configure
    from rauta.memory import share_one_arena

    share_one_arena()
    configure(log)
    daemon = Daemon(Options(file, name, tuple(interface or ()), mode))
    asyncio.run(daemon.run())
