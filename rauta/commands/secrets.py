"""`rauta secrets`: the file of secrets, see rauta.secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(help="The file of secrets that routers and agents share.", no_args_is_help=True)


@app.command()
def new(file: Annotated[Path, typer.Argument(help="Where; nothing may be there yet.")]) -> None:
    """Draw fresh secrets, in a file that is its owner's alone. Copy it to every router and backend host."""
    from rauta.secrets import create

    create(file)
    print(f"{file}: fresh secrets")


@app.callback()
def secrets() -> None:
    """With one command only, it would be left out."""
