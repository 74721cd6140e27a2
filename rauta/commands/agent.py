"""`rauta agent`: see rauta.processes.agentd."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rauta.processes import footprint

__all__ = ["agent"]


def agent(
    file: Annotated[Path, typer.Option("--config", "-c", help="The configuration file: the routers' own.")],
    backend: Annotated[str, typer.Option("--backend", "-b", help="Which of its backends this host is.")],
    interface: Annotated[
        list[str] | None,
        typer.Option("--interface", "-i", envvar="RAUTA_INTERFACE", help="Where requests come in; may be repeated."),
    ] = None,
    namespace: Annotated[
        str, typer.Option("--netns", help="A network namespace: its name, or the number of a process in it.")
    ] = "",
    name: Annotated[str, typer.Option(help="The name of this instance; agent-BACKEND if left out.")] = "",
    log: Annotated[str, typer.Option(help="text or json.")] = "text",
) -> None:
    """Give this host's servers the connections that routers send, until SIGTERM. SIGHUP loads the file again.

    Packets go on when the process ends, however it ends; the next one takes over. `rauta down` takes all of it away.
    """
    import asyncio

    from rauta.processes.agentd import AgentDaemon, Options
    from rauta.processes.logs import configure

    footprint.show_optional_modules()
    footprint.hold_little()
    configure(log)
    options = Options(file, backend, tuple(interface or ()), namespace, name or f"agent-{backend}")
    asyncio.run(AgentDaemon(options).run())
