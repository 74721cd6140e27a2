"""`rauta run`: see rauta.processes.daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rauta.processes import footprint

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
    import asyncio

    from rauta.processes.daemon import Daemon, Options
    from rauta.processes.logs import configure

    footprint.show_optional_modules()
    footprint.hold_little()
    configure(log)
    daemon = Daemon(Options(file, name, tuple(interface or ()), mode))
    asyncio.run(daemon.run())
