"""The lab's command line: look before, run, poke around in a network, and read what runs have left.

Exit codes: 0 passed; 1 a check or target failed; 2 usage or environment; 3 not valid, inconclusive or not comparable;
130 interrupted.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Annotated, Any, ParamSpec

import typer

from lab import commands, environment, results, scenario, state
from lab import doctor as the_doctor
from lab import noise as the_noise
from lab import plan as the_plan
from lab import run as the_run
from lab import up as the_up
from lab.display import Display
from lab.errors import NotComparable, UsageError
from lab.topology import Network
from lab.verdict import Exit
from rauta.errors import RautaError
from rauta.network.namespaces import entered

app = typer.Typer(
    help=__doc__,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Parameters = ParamSpec("Parameters")

File = Annotated[str, typer.Argument(metavar="FILE", help="A scenario: a file, or its name in scenarios/.")]
Profile = Annotated[str | None, typer.Option(help="One of the scenario's profiles, such as smoke.")]
Set = Annotated[
    list[str], typer.Option("--set", metavar="PATH=VALUE", help="Another value for a field, such as plan.rounds=3.")
]
Contenders = Annotated[list[str], typer.Option("--contender", help="Only this contender; may be repeated.")]
Only = Annotated[list[str], typer.Option(help="Only this measure, or checks with this in their title.")]
Seed = Annotated[int | None, typer.Option(help="For the order of contenders, and for what checks choose.")]
Pcap = Annotated[bool, typer.Option("--pcap", help="Keep the packets of every check, not only of failed ones.")]
Resume = Annotated[str | None, typer.Option(metavar="RUN", help="Go on with an interrupted run.")]
Keep = Annotated[bool, typer.Option("--keep", help="Leave the network up at the end, until Ctrl-C.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print run.json instead of tables.")]
RunName = Annotated[str | None, typer.Option("--run", help="Which network, if several are up.")]


def command(function: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """A command, named as the function; its errors are sentences on standard error and exit code 2."""

    @wraps(function)
    def guarded(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        environment.extend_path()
        try:
            function(*args, **kwargs)
        except RautaError as error:
            typer.echo(f"lab: {error}", err=True)
            code = Exit.NOT_VALID if isinstance(error, NotComparable) else Exit.USAGE
            raise typer.Exit(code) from error
        except KeyboardInterrupt:
            raise typer.Exit(Exit.INTERRUPTED) from None
        except typer.Exit:
            raise
        except Exception as error:  # a mistake of the lab's own; 1, Python's code for it, would say that a check failed
            traceback.print_exc()
            raise typer.Exit(Exit.USAGE) from error

    return app.command(function.__name__.rstrip("_").replace("_", "-"))(guarded)


# ---- before -------------------------------------------------------------------------------------------


@command
def doctor() -> None:
    """What this machine has, what is missing, and what to do about it. Needs no root."""
    findings = the_doctor.examine()
    Display().findings(findings)
    if any(finding.ok is False for finding in findings):
        raise typer.Exit(Exit.USAGE)


@command
def scenarios() -> None:
    """All scenarios and their claims."""
    loaded = [scenario.load(path) for path in scenario.all_files()]
    Display().rows(["scenario", "claim"], [[one.name, one.claim] for one in loaded])


@command
def schema() -> None:
    """The scenario format as JSON Schema."""
    typer.echo(json.dumps(scenario.Scenario.model_json_schema(), indent=2))


@command
def check(file: File, profile: Profile = None, set_: Set = []) -> None:  # noqa: B006 typer wants a list, and copies it
    """Read a scenario and report every mistake, with its line and field."""
    cells = scenario.load_cells(scenario.find(file), profile=profile, overrides=set_)
    typer.echo(f"{cells[0].file}: no mistakes" + (f", {len(cells)} cells" if len(cells) > 1 else ""))


@command
def plan(file: File, profile: Profile = None, set_: Set = []) -> None:  # noqa: B006
    """Draw a scenario's network, and say what a run would do and about how long it would take."""
    cells = scenario.load_cells(scenario.find(file), profile=profile, overrides=set_)
    typer.echo(f"{cells[0].name}: {cells[0].claim}\n\n{the_plan.draw(cells[0])}\n")
    for step in the_plan.steps(cells):
        typer.echo(f"  {step}")
    typer.echo(f"\nabout {the_plan.seconds(cells):.0f} s")


# ---- run ----------------------------------------------------------------------------------------------


@command
def run(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Scenarios: files, or their names in scenarios/.")
    ],
    profile: Profile = None,
    set_: Set = [],  # noqa: B006
    contender: Contenders = [],  # noqa: B006
    only: Only = [],  # noqa: B006
    seed: Seed = None,
    keep: Keep = False,
    pcap: Pcap = False,
    resume: Resume = None,
    as_json: AsJson = False,
) -> None:
    """Prove a scenario correct, then measure and judge it."""
    if resume is not None and len(files) > 1:
        raise UsageError("resuming a run", "several scenarios are given", "Name the one that was interrupted.")
    paths = [scenario.find(file) for file in files]
    chosen = [scenario.load_cells(path, profile=profile, overrides=set_, contenders=contender) for path in paths]
    resumed = results.find(resume).name if resume is not None else None
    options = the_run.Options(seed, tuple(only), keep, pcap, resumed)
    raise typer.Exit(_run(chosen, options, as_json))


@command
def noise(
    file: Annotated[str, typer.Argument(metavar="[FILE]", help="Whose contenders and measures.")] = "noise",
    profile: Profile = None,
    set_: Set = [],  # noqa: B006
    contender: Contenders = [],  # noqa: B006
    only: Only = [],  # noqa: B006
    seed: Seed = None,
    as_json: AsJson = False,
) -> None:
    """Measure this machine's floor: every contender against itself. Later runs are judged with it."""
    cells = scenario.load_cells(scenario.find(file), profile=profile, overrides=set_, contenders=contender)
    twins = tuple(the_noise.with_twins(cell) for cell in cells)
    raise typer.Exit(_run([twins], the_run.Options(seed, tuple(only), kind="noise"), as_json))


def _run(chosen: Sequence[Sequence[scenario.Scenario]], options: the_run.Options, as_json: bool) -> int:
    """Run scenarios one after the other and show what came out: the exit code."""
    display = Display()
    done: list[dict[str, Any]] = []
    for cells in chosen:
        content = the_run.execute(cells, options, display, lambda network: _say_held(display, network))
        done.append(content)
        if not as_json:
            display.result(content)
        if content["exit_code"] == Exit.INTERRUPTED:
            break
    if as_json:
        typer.echo(json.dumps(done[0] if len(chosen) == 1 else done, indent=2))
    return _worst([content["exit_code"] for content in done])


def _worst(codes: list[int]) -> int:
    order = (Exit.INTERRUPTED, Exit.USAGE, Exit.FAILED, Exit.NOT_VALID, Exit.PASSED)
    return next(int(code) for code in order if code in codes)


def _say_held(display: Display, network: Network) -> None:
    hosts = ", ".join(network.hosts)
    display.err.print(f"{network.run.name} is up, with the hosts {hosts}; `python -m lab shell HOST` enters one.")


# ---- poke ---------------------------------------------------------------------------------------------


@command
def up(
    file: File,
    profile: Profile = None,
    set_: Set = [],  # noqa: B006
    contender: Contenders = [],  # noqa: B006
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay until Ctrl-C.")] = False,
    name: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Build a scenario's network with its servers and contenders, and leave it up for `shell`, until `down`."""
    one = scenario.load(scenario.find(file), profile=profile, overrides=set_, contenders=contender)
    display = Display()
    if foreground:
        the_run.hold(one, name or state.new_name(), lambda network: _say_held(display, network))
        return
    the_doctor.preflight(one)
    network = the_up.start(one.file, profile, set_, contender)
    typer.echo(f"{network.name} is up: python -m lab shell HOST, python -m lab down {network.name}")
    display.rows(["host", "namespace"], [[host, network.prefix + host] for host in network.hosts()])


@command
def shell(
    host: Annotated[str, typer.Argument(help="A host of the network, such as client.")],
    words: Annotated[list[str] | None, typer.Argument(metavar="[-- COMMAND...]", help="Instead of a shell.")] = None,
    run_name: RunName = None,
) -> None:
    """A shell, or a command, in a host's network namespace."""
    argv = words or [os.environ.get("SHELL", "/bin/sh")]
    network = the_up.find(run_name)
    namespace = the_up.namespace(network, host)
    with entered(namespace):
        os.environ["PS1"] = f"{host}# "
        try:
            os.execvp(argv[0], argv)
        except OSError as error:
            raise RautaError(f"starting {argv[0]} on {host}", str(error.strerror)) from error


@command
def down(
    run_name: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Which, if several are up.")] = None,
) -> None:
    """End a network that `up` has left."""
    network = the_up.find(run_name)
    the_up.stop(network)
    typer.echo(f"{network.name} is down")


@command
def clean() -> None:
    """Remove what runs have left that were killed. Runs that are still alive are not touched."""
    for name in state.clean():
        typer.echo(f"removed what {name} had left")


# ---- after --------------------------------------------------------------------------------------------


@command
def list_() -> None:
    """All runs that are kept, and the networks that are up."""
    display = Display()
    rows = [
        [kept["id"], kept["scenario"]["profile"] or "", kept["outcome"], f"{kept['duration']:.0f} s"]
        for kept in results.all_runs()
    ]
    display.rows(["run", "profile", "outcome", "duration"], rows)
    for one in state.runs():
        owner = one.owner()
        if owner is not None:
            status = ("up" if owner.held else "in use") if owner.lives else "left by a killed run, `clean` removes it"
            typer.echo(f"network {one.name} ({owner.scenario}): {status}")


@command
def show(name: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, a part of it, or `last`.")]) -> None:
    """A run's checks and verdicts again."""
    Display().result(results.load(name))


for one in commands.COMMANDS:
    command(one)
