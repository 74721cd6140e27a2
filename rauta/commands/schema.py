"""`rauta schema`: the configuration's format, for editors and other programs, and for people."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from rauta.files.schema import json_schema, reference

__all__ = ["schema"]

AsText = Annotated[bool, typer.Option("--reference", help="Print the tables of docs/configuration.md instead.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the JSON Schema, as without it.")]


def schema(as_text: AsText = False, as_json: AsJson = False) -> None:
    """The configuration's format as JSON Schema."""
    typer.echo(reference() if as_text and not as_json else json.dumps(json_schema(), indent=2), nl=True)
