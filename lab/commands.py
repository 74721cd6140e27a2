"""The commands that read what runs have left: compare, history, export, report-table, keep, claims.

lab.cli registers them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lab import attribution, compare, ledger, noise, results, tables
from lab import history as the_history
from lab.compare import Change, Comparison
from lab.display import Display
from lab.errors import UsageError
from lab.judging import Floors
from lab.kept import Kept, all_kept
from lab.matrix import label
from lab.verdict import Exit

RUN = "A run's path, its id, a part of it, or `last`."
Run = Annotated[str, typer.Argument(metavar="RUN", help=RUN)]


def compare_(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN RUN...", help=f"{RUN} The first is what others are held against.")
    ],
    resolution: Annotated[str, typer.Option(help="The smallest change that matters.")] = "5%",
    everything: Annotated[bool, typer.Option("--all", help="Unchanged and inconclusive metrics, too.")] = False,
    force: Annotated[bool, typer.Option(help="Show figures of unlike environments, without judging them.")] = False,
) -> None:
    """What changed between runs, and in which layer. Runs on unlike machines are refused."""
    if len(runs) < 2:
        raise UsageError("comparing runs", "one run is given", "Name at least two, the earlier first.")
    first, *others = (Kept.find(name) for name in runs)
    share = _share(resolution)
    for other in others:
        found = compare.compare(first, other, resolution=share, floors=_floors(first, other), force=force)
        _show(found, everything)


def _share(text: str) -> float:
    number = text.strip().removesuffix("%")
    try:
        share = float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 < share < 1:
        raise UsageError(f"reading the resolution {text!r}", "it is no share between 0 and 1", "For example: 5%")
    return share


def _floors(first: Kept, second: Kept) -> Floors:
    """What A/A pairs differ by on this machine: by runs of `noise`, and by the two runs' own pairs."""
    own = [noise.floors(run.content["floors"]) for run in (first, second)]
    return {**noise.known(first.environment), **own[0], **own[1]}


def _show(found: Comparison, everything: bool) -> None:
    display = Display()
    if found.environments:
        unlike = "; ".join(map(str, found.environments))
        typer.echo(
            f"lab: warning: {found.first} and {found.second} are not comparable, nothing is judged: {unlike}", err=True
        )
    quiet = (compare.Outcome.UNCHANGED, compare.Outcome.INCONCLUSIVE)
    shown = [one for one in found.changes if everything or one.outcome not in quiet]
    columns = ["metric", "of", "unit", "before", "after", "change", "verdict"]
    typer.echo(f"before: {found.first}\nafter:  {found.second}\n")
    display.rows(columns, [_row(change) for change in shown])
    counts = {outcome: sum(one.outcome is outcome for one in found.changes) for outcome in compare.Outcome}
    typer.echo(", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count))
    for name, reason in found.not_compared.items():
        typer.echo(f"not compared: {name}: {reason}")
    for one in attribution.attribute(found.changes):
        typer.echo(str(one))


def _row(change: Change) -> list[str]:
    where = f" ({label(change.params)})" if change.params else ""
    ends = [tables.interval(one.value, one.low, one.high, change.unit) for one in (change.before, change.after)]
    return [
        change.metric + where,
        change.terms,
        change.unit,
        *(text.removesuffix(change.unit).rstrip() for text in ends),
        _size(change),
        f"{change.outcome}: {change.reason}" if change.reason else str(change.outcome),
    ]


def _size(change: Change) -> str:
    estimate = change.change
    if not change.is_ratio:
        return tables.interval(estimate.value, estimate.low, estimate.high, change.unit)
    low, high = estimate.low, estimate.high
    ends = "" if low is None or high is None else f" [{low - 1:+.1%}, {high - 1:+.1%}]"
    return f"{estimate.value - 1:+.1%}{ends}"


def history(
    metric: Annotated[str, typer.Argument(metavar="METRIC", help="As in targets: keepalive.median, latency.p99.")],
    of: Annotated[str | None, typer.Option(help="Only this contender.")] = None,
    scenario: Annotated[str | None, typer.Option(help="Only runs of this scenario.")] = None,
) -> None:
    """One metric over all kept runs."""
    points = the_history.history(metric, all_kept(), of=of, scenario=scenario)
    rows = [
        [
            one.started,
            one.revision,
            one.scenario + (f" ({label(one.cell)})" if one.cell else ""),
            one.contender,
            tables.interval(one.value, one.low, one.high, one.unit),
            "; ".join(one.verdicts),
        ]
        for one in points
    ]
    Display().rows(["started", "revision", "scenario", "of", "value and 95 % interval", "verdicts"], rows)


def export_(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help=f"{RUN} Or a pattern, such as 'results/*'.")],
    what: Annotated[str, typer.Option(help="samples, or metrics: the figures with their intervals.")] = "samples",
    form: Annotated[str, typer.Option("--format", help="csv or json.")] = "csv",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file, .csv or .json, instead.")] = None,
) -> None:
    """Samples or figures of runs as CSV or JSON."""
    from lab import export  # brings pandas, which takes longer than all other commands need to start

    chosen: Literal["samples", "metrics"] = "samples" if what == "samples" else "metrics"
    if what not in ("samples", "metrics") or form not in ("csv", "json"):
        raise UsageError("exporting", f"{what} as {form} is not known", "samples or metrics, as csv or json")
    if output is not None:
        export.write(output, runs, what=chosen)
    else:
        typer.echo(export.export(runs, what=chosen, form="json" if form == "json" else "csv"), nl=False)


def report_table(run: Run) -> None:
    """A run's contenders side by side over all layers, in Markdown."""
    typer.echo(tables.comparison_table(Kept.find(run)))


def keep(run: Run) -> None:
    """Copy a run to results/reference/, whose runs are committed: claims are judged by the newest of a scenario."""
    typer.echo(results.keep(results.find(run)))


def claims(
    check: Annotated[bool, typer.Option("--check", help="Change nothing; say whether the files are current.")] = False,
) -> None:
    """Write docs/claims.md and README's tables from lab/claims.yaml and the reference runs."""
    if not check:
        for path in ledger.write():
            typer.echo(f"wrote {path}")
        return
    if stale := ledger.stale():
        typer.echo(f"not current: {', '.join(map(str, stale))}; `python -m lab claims` writes them", err=True)
        raise typer.Exit(Exit.FAILED)


COMMANDS: Sequence[Callable[..., Any]] = (compare_, history, export_, report_table, keep, claims)
"""in the order of the help"""
