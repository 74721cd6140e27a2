"""`rauta down`: see rauta.processes.takedown."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["down"]


def down(
    name: Annotated[str, typer.Option(help="Which instance.")] = "router",
    everything: Annotated[bool, typer.Option("--all", help="All instances on this host.")] = False,
) -> None:
    """Take a router or an agent, whose process has ended, off its interfaces, and remove everything that it left."""
    from rauta.processes.instance import instances
    from rauta.processes.takedown import take_down

    for one in [instance.name for instance in instances()] if everything else [name]:
        print(f"{one}: {take_down(one)}")
