"""The operator's command line, `rauta`.

A new command is one line in COMMANDS: its name, the module that it is in, and the function there, or a typer.Typer with
commands below it. Only the module of the command that is asked for is imported, all of them for the list that --help
prints: `rauta run` stays in memory, and must not pay for what other commands need.

Exit codes: 0 all is well; 1 the file has mistakes, or what was checked is not so; 2 usage or environment; 130
interrupted.
"""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Callable, Sequence
from enum import IntEnum
from importlib import import_module
from typing import Annotated, Any

import typer

from rauta.errors import RautaError
from rauta.processes import footprint

__all__ = ["COMMANDS", "ExitCode", "main"]

COMMANDS = {
    "check": "rauta.commands.check:check",
    "explain": "rauta.commands.explain:explain",
    "schema": "rauta.commands.schema:schema",
    "run": "rauta.commands.run:run",
    "agent": "rauta.commands.agent:agent",
    "down": "rauta.commands.down:down",
    "secrets": "rauta.commands.secrets:app",
    "doctor": "rauta.commands.doctor:doctor",
}
"""Where each command is, "module:function", in the order of --help."""

_DAEMONS = ("run", "agent")


class ExitCode(IntEnum):
    """What the shell is told."""

    OK = 0
    FAILED = 1
    USAGE = 2
    INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits. `arguments`: instead of those of the process."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what cannot be written as it is, such as an argument that is no text
            stream.reconfigure(errors="backslashreplace")
    if words and words[0] in _DAEMONS:
        footprint.hide_optional_modules()
    try:
        _app(words)(words, prog_name="rauta")
    except RautaError as error:
        print(f"rauta: {error}", file=sys.stderr)
        sys.exit(_code(error))
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except Exception:  # a mistake of RAUTA's own; 1, Python's code for it, would say that a check failed
        traceback.print_exc()
        sys.exit(ExitCode.USAGE)
    finally:
        footprint.show_optional_modules()


def _code(error: RautaError) -> ExitCode:
    """A file that was read and is wrong has failed a check; everything else is usage or environment."""
    from rauta.files.document import DocumentError

    return ExitCode.FAILED if isinstance(error, DocumentError) else ExitCode.USAGE


def _app(words: Sequence[str]) -> typer.Typer:
    """The commands that are needed: the one asked for, or all."""
    app = typer.Typer(
        help="HTTP routing in XDP: look at a configuration, and run it.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_options)
    for name in _needed(words):
        found = _imported(COMMANDS[name])
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=name)
        else:
            app.command(name)(found)
    return app


def _needed(words: Sequence[str]) -> Sequence[str]:
    """Which commands these words may be about."""
    if words and (words[0] == "--version" or words[0] in COMMANDS):
        return [words[0]] if words[0] in COMMANDS else []
    return list(COMMANDS)


def _imported(place: str) -> typer.Typer | Callable[..., Any]:
    module, _, attribute = place.partition(":")
    found: typer.Typer | Callable[..., Any] = getattr(import_module(module), attribute)
    return found


def _say_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        typer.echo(f"rauta {metadata.version('rauta')}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", callback=_say_version, is_eager=True)
    ] = False,
) -> None:
    """What is said before a command; its own callback has done it."""
