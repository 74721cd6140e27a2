"""`rautactl`: what a router that runs does, and what an operator has it do, over its control socket (docs/rautactl.md).

Exit codes are those of `rauta`: 0 all is well; 1 what was waited or looked for is not so; 2 usage or environment; 130
interrupted. A stream ends, with 0, when the router does, or when nobody reads it any more.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from importlib import metadata
from typing import Annotated, Any

import typer

from rauta.cli import ExitCode
from rauta.errors import RautaError
from rauta.processes import control
from rauta.processes.instance import Instance, instances

__all__ = ["main"]

Name = Annotated[
    str, typer.Option("--name", metavar="INSTANCE", help="Which router; by default the only one that runs here.")
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs: a document, or an object a line.")]
Backend = Annotated[str, typer.Argument(metavar="NAME", help="A backend.", show_default=False)]

_WAIT_SECONDS = 0.5  # between two looks at a backend that is to be empty

app = typer.Typer(
    name="rautactl",
    help="Ask a running router what it does, and have it drain backends or load its configuration again.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits. `arguments`: instead of those of the process."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        app(list(sys.argv[1:] if arguments is None else arguments), prog_name="rautactl")
    except RautaError as error:
        print(f"rautactl: {error}", file=sys.stderr)
        sys.exit(ExitCode.USAGE)
    except BrokenPipeError:  # `rautactl events | head -1`: all is well
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.OK)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except Exception:
        traceback.print_exc()
        sys.exit(ExitCode.USAGE)


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rautactl {metadata.version('rauta')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", callback=_say_version, is_eager=True)
    ] = False,
) -> None:
    """What is said before a command; its own callback has done it."""


# ---- the router --------------------------------------------------------------------------------------------


def _instance(name: str) -> Instance:
    """The one of that name, or the only router that runs. RautaError if that is not one."""
    if name:
        return Instance(name)
    tried = "looking for a running router"
    try:
        running = [one for one in instances() if control.answers(one.control)]
    except PermissionError as error:
        raise RautaError(tried, "what runs is root's alone to see", "Run as root.") from error
    if len(running) == 1:
        return running[0]
    if not running:
        raise RautaError(tried, "none runs on this host", "`rauta run -c FILE` starts one.")
    names = ", ".join(one.name for one in running)
    raise RautaError(tried, f"{len(running)} run here", f"Say which with --name: {names}.")


def _ask(name: str, command: str, **arguments: Any) -> Any:
    given = {key: value for key, value in arguments.items() if value is not None}
    return control.ask(_instance(name).control, command, **given)


def _show(answer: Any, as_json: bool, view: Callable[[Any], None]) -> None:
    if as_json:
        print(json.dumps(answer, indent=2))
    else:
        view(answer)


def _items(name: str, command: str, **arguments: Any) -> Iterator[Any]:
    """What comes, until the router ends, which is said."""
    given = {key: value for key, value in arguments.items() if value is not None}
    path = _instance(name).control
    with closing(control.stream(path, command, reader=sys.stdout.fileno(), **given)) as items:
        yield from items
    print("rautactl: the router has ended", file=sys.stderr)


def _print_items(items: Iterable[Any], as_json: bool, view: Callable[[Any], None]) -> None:
    """Each one at once, whoever reads."""
    for item in items:
        if as_json:
            print(json.dumps(item))
        else:
            view(item)
        sys.stdout.flush()


# ---- what there is -----------------------------------------------------------------------------------------


@app.command()
def status(name: Name = "", as_json: AsJson = False) -> None:
    """The router in a few figures, and what is wrong with it."""
    from rauta.views import tables

    _show(_ask(name, "status"), as_json, tables.status)


@app.command()
def routes(
    vip: Annotated[str | None, typer.Option(metavar="VIP", help="Only those of this VIP.")] = None,
    cluster: Annotated[str | None, typer.Option(metavar="CLUSTER", help="Only those to this cluster.")] = None,
    unused: Annotated[bool, typer.Option("--unused", help="Only those that have had no request.")] = False,
    name: Name = "",
    as_json: AsJson = False,
) -> None:
    """Each route, and how many requests it has had."""
    from rauta.views import tables

    answer = _ask(name, "routes", vip=vip, cluster=cluster, unused=int(unused))
    _show(answer, as_json, tables.routes)


@app.command()
def backends(
    cluster: Annotated[str | None, typer.Option(metavar="CLUSTER", help="Only those of this cluster.")] = None,
    name: Name = "",
    as_json: AsJson = False,
) -> None:
    """Each backend: weight, health, connections, and requests a second (which are measured for a second)."""
    from rauta.views import tables

    _show(_ask(name, "backends", cluster=cluster), as_json, tables.backends)


@app.command()
def flows(
    client: Annotated[str | None, typer.Option(metavar="A[:PORT]", help="Only those of this client.")] = None,
    backend: Annotated[str | None, typer.Option(metavar="NAME", help="Only those that this backend has.")] = None,
    state: Annotated[
        str | None,
        typer.Option(
            metavar="STATE", help="Only these: open, closing, answered, recovered, fallback, moving; or live."
        ),
    ] = None,
    top: Annotated[
        int, typer.Option(min=0, max=1000, help="Instead: the clients that have most, so many of them.")
    ] = 0,
    limit: Annotated[int, typer.Option(min=0, max=1000, help="So many entries at most.")] = 50,
    name: Name = "",
    as_json: AsJson = False,
) -> None:
    """The table of connections: how many by state, and whose they are."""
    from rauta.views import tables

    asked = {"client": client, "backend": backend, "state": state, "top": top, "limit": 0 if top else limit}
    _show(_ask(name, "flows", **asked), as_json, tables.flows)


@app.command()
def metrics(name: Name = "", as_json: AsJson = False) -> None:
    """The most important figures since the router was first started."""
    from rauta.views import tables

    _show(_ask(name, "metrics"), as_json, tables.metrics)


@app.command()
def counters(name: Name = "", as_json: AsJson = False) -> None:
    """What became of packets: how many have had each verdict."""
    from rauta.views import tables

    _show(_ask(name, "counters"), as_json, tables.counters)


@app.command()
def explain(
    request: Annotated[
        str,
        typer.Argument(
            metavar="REQUEST",
            help="'GET http://shop.test/path', or 'GET /path' with a Host in -H.",
            show_default=False,
        ),
    ],
    header: Annotated[list[str], typer.Option("-H", "--header", metavar="'NAME: VALUE'", help="May be repeated.")] = [],  # noqa: B006 typer wants a list, and copies it
    vip: Annotated[
        str | None,
        typer.Option("--vip", metavar="VIP", help="Whom it is sent to: a name, an address, or address:port."),
    ] = None,
    client: Annotated[
        str | None, typer.Option(metavar="A:PORT", help="Who asks: then the very backend is named.")
    ] = None,
    name: Name = "",
    as_json: AsJson = False,
) -> None:
    """Which route a request takes now, to which backends, and why; or what it gets instead."""
    from rauta.views import explaining

    answer = _ask(name, "explain", request=request, headers=header, vip=vip, client=client)
    _show(answer, as_json, lambda told: explaining.explain(request, told))


@app.command()
def doctor(name: Name = "", as_json: AsJson = False) -> None:
    """What is wrong with the router's host, and on the way to the backends. Exit code 1 if anything is."""
    from rauta.views import tables

    found = _ask(name, "doctor")
    _show(found, as_json, tables.doctor)
    if any(one["status"] == "error" for one in found):
        raise typer.Exit(ExitCode.FAILED)


# ---- what is done ------------------------------------------------------------------------------------------


@app.command()
def drain(
    backend: Backend,
    wait: Annotated[
        float | None,
        typer.Option(min=0, metavar="SECONDS", help="Wait until it has no connections; exit code 1 if it still has."),
    ] = None,
    name: Name = "",
    as_json: AsJson = False,
) -> None:
    """Send nothing new to a backend; its connections move to others at their next request."""
    answer = _ask(name, "drain", backend=backend)
    if wait is not None:
        answer["flows"] = _wait_until_empty(name, backend, wait)
    left = answer.get("flows")
    said = f"{backend} is drained" + ("" if left is None else f"; connections left: {left}")
    _show(answer, as_json, lambda _: print(said))
    if left:
        raise typer.Exit(ExitCode.FAILED)


def _wait_until_empty(name: str, backend: str, seconds: float) -> int:
    """How many connections are left when there are none, or the time is up."""
    end = time.monotonic() + seconds
    while True:
        left = int(_ask(name, "flows", backend=backend, state="live", limit=0)["matching"])
        remaining = end - time.monotonic()
        if not left or remaining <= 0:
            return left
        time.sleep(min(_WAIT_SECONDS, remaining))


@app.command()
def undrain(backend: Backend, name: Name = "", as_json: AsJson = False) -> None:
    """Send new connections to a backend again."""
    answer = _ask(name, "undrain", backend=backend)
    _show(answer, as_json, lambda _: print(f"{backend} is not drained"))


@app.command()
def reload(name: Name = "", as_json: AsJson = False) -> None:
    """Load the configuration file again. If there is anything wrong with it, the old one goes on."""
    answer = _ask(name, "reload")
    _show(answer, as_json, lambda told: print(f"loaded, generation {told['generation']}"))


# ---- what goes on ------------------------------------------------------------------------------------------


@app.command()
def watch(
    interval: Annotated[float, typer.Option(min=0.1, max=3600, metavar="SECONDS", help="Between two looks.")] = 1.0,
    name: Name = "",
    as_json: AsJson = False,
) -> None:
    """Look on: requests a second by cluster and backend, health, drops, and how long the program takes."""
    from rauta.views.watching import Watch

    items = _items(name, "watch", interval=interval)
    if as_json:
        _print_items(items, True, print)
        return
    first = next(items, None)  # before the screen is taken: errors are said on the ordinary one
    with Watch() if first is not None else nullcontext() as screen:
        if screen is not None and first is not None:
            screen.show(first)
            _print_items(items, False, screen.show)


@app.command()
def events(
    verdict: Annotated[
        str | None, typer.Option(metavar="V", help="Only this verdict, or those that begin so: DROP, ROUTED.")
    ] = None,
    client: Annotated[str | None, typer.Option(metavar="A[:PORT]", help="Only those of this client.")] = None,
    name: Name = "",
    as_json: AsJson = False,
) -> None:
    """What becomes of packets, as they come: requests, drops, answers, a sample where there are many."""
    from rauta.views.lines import Lines

    _print_items(_items(name, "events", verdict=verdict, client=client), as_json, Lines().show)


@app.command()
def follow(
    client: Annotated[str, typer.Argument(metavar="A[:PORT]", help="A client.", show_default=False)],
    name: Name = "",
    as_json: AsJson = False,
) -> None:
    """All packets of one client, and what the router decides about each."""
    from rauta.views.lines import Lines

    _print_items(_items(name, "follow", client=client), as_json, Lines(followed=True).show)
