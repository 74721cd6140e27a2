"""Tables for people, on standard output, and progress, on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from lab.doctor import Finding
from lab.matrix import label
from lab.results import CheckRecord
from rauta.units import SECONDS

COLOURS = {
    "pass": "green",
    "fail": "bold red",
    "inconclusive": "yellow",
    "not resolvable": "yellow",
    "not valid": "yellow",
    "not measured": "dim",
}
PIPED_WIDTH = 132
"""columns of tables that go to a file or a pipe"""


class Display:
    """Shows how a run goes; implements run.Reporter."""

    def __init__(self) -> None:
        self.out = Console(highlight=False)
        self.err = Console(stderr=True, highlight=False)
        if not self.out.is_terminal:
            self.out.width = PIPED_WIDTH

    @contextmanager
    def stage(self, what: str, steps: int) -> Iterator[Callable[[str], None]]:
        """A progress bar while a stage lasts. Where nobody watches, a line instead."""
        columns = (
            SpinnerColumn(),
            TextColumn(f"{what:<8}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
        )
        if not self.err.is_terminal:
            self.err.print(f"{what} ...")
        with Progress(*columns, console=self.err, transient=True, disable=not self.err.is_terminal) as progress:
            task = progress.add_task("", total=steps, completed=-1)
            yield lambda text: progress.update(task, advance=1, description=text)

    def check(self, check: CheckRecord) -> None:
        """Only what failed is worth a line of its own before the table."""
        if not check.passed:
            self.err.print(
                f"[bold red]failed[/] {escape(check.contender)}: {escape(check.name)}: {escape(check.detail)}"
            )

    def result(self, run: Mapping[str, Any]) -> None:
        """A run's checks and verdicts, from the content of ``run.json``."""
        scenario = run["scenario"]
        profile = f", profile {scenario['profile']}" if scenario["profile"] else ""
        claim = escape(scenario["resolved"][0]["claim"])
        self.out.print(f"\n[bold]{escape(scenario['name'])}[/]{profile}: {claim}", soft_wrap=True)
        if run["checks"]:
            self.out.print(_checks(run["checks"]))
        timing = scenario["resolved"][0]["plan"]["timing"]
        if not timing and run["verdicts"]:
            self.out.print(f"Timing is off: {len(run['verdicts'])} targets are not measured.")
        if timing:
            self._timing(run)
        if run["error"]:
            self.out.print(escape(run["error"]), soft_wrap=True)
        colour = {"passed": "green", "failed": "bold red"}.get(run["outcome"], "yellow")
        self.out.print(
            f"[{colour}]{run['outcome']}[/] in {run['duration']:.0f} s, seed {run['seed']}; kept as {run['id']}"
        )

    def _timing(self, run: Mapping[str, Any]) -> None:
        if run["metrics"]:
            self.out.print()
            self.out.print(_metrics(run))
        if run["floors"]:
            self.out.print()
            self.out.print(_floors(run))
        if run["verdicts"]:
            self.out.print()
            self.out.print(_verdicts(run))
        validity = run["validity"]
        if validity["state"] != "VALID":
            more = f" (and {len(validity['reasons']) - 3} more)" if len(validity["reasons"]) > 3 else ""
            reasons = "; ".join(validity["reasons"][:3])
            self.out.print(f"[yellow]{validity['state']}[/]: {escape(reasons)}{more}", soft_wrap=True)

    def findings(self, findings: Sequence[Finding]) -> None:
        """The doctor's table."""
        table = Table("capability", "", "found", "what to do", box=None, pad_edge=False)
        for finding in findings:
            mark = {True: "[green]yes[/]", False: "[bold red]no[/]", None: "[yellow]?[/]"}[finding.ok]
            table.add_row(
                escape(finding.name), mark, escape(finding.found), escape(finding.remedy if not finding.ok else "")
            )
        self.out.print(table)

    def rows(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A plain table."""
        table = Table(*columns, box=None, pad_edge=False)
        for row in rows:
            table.add_row(*map(escape, row))
        self.out.print(table)


def _checks(checks: Sequence[Mapping[str, Any]]) -> Table:
    """One row a check and network, one column a contender."""
    contenders = list(dict.fromkeys(check["contender"] for check in checks))
    table = Table("check", *contenders, box=None, pad_edge=False)
    for cell, number, name in dict.fromkeys((label(check["cell"]), check["number"], check["name"]) for check in checks):
        found = {
            check["contender"]: check for check in checks if (label(check["cell"]), check["number"]) == (cell, number)
        }
        title = f"{name} ({cell})" if cell else name
        table.add_row(escape(title), *(_outcome(found.get(contender)) for contender in contenders))
    return table


def _outcome(check: Mapping[str, Any] | None) -> str:
    if check is None:
        return "[dim]–[/]"
    word = "pass" if check["passed"] else "fail"
    return f"[{COLOURS[word]}]{word}[/] [dim]{escape(_short(check['detail']))}[/]".rstrip()


def _short(text: str, limit: int = 60) -> str:
    line = text.splitlines()[0] if text else ""
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _metrics(run: Mapping[str, Any]) -> Table:
    """One row a measure and cell, one column a contender: medians with their 95 % intervals."""
    contenders = list(dict.fromkeys(metric["contender"] for metric in run["metrics"]))
    table = Table("metric", "", *contenders, box=None, pad_edge=False)
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for metric in run["metrics"]:
        if metric["quantity"].startswith("cpu-"):
            continue  # in run.json; here the machine's whole CPU time will do
        name = ".".join(filter(None, (metric["measure"], metric["quantity"])))
        row = rows.setdefault((name, metric["unit"], label(metric["cell"])), {})
        row[metric["contender"]] = _with_interval(metric["median"], metric["low"], metric["high"])
        for quantile, found in metric.get("quantiles", {}).items():
            row = rows.setdefault((f"{name} {quantile}", metric["unit"], label(metric["cell"])), {})
            row[metric["contender"]] = _with_interval(found["value"], found["low"], found["high"])
    for (name, unit, cell), row in rows.items():
        title = f"{name} ({cell})" if cell else name
        table.add_row(escape(title), unit, *(escape(row.get(contender, "–")) for contender in contenders))
    return table


def _with_interval(value: float, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return rounded(value)
    return f"{rounded(value)} [{rounded(low)}, {rounded(high)}]"


def _floors(run: Mapping[str, Any]) -> Table:
    """A/A pairs: what differs from nothing although nothing differs."""
    table = Table("A/A pair", "metric", "", "of the two", "95 % interval", "floor", box=None, pad_edge=False)
    for pair in run["floors"]:
        sign, unit = ("÷", "") if pair["terms"] == "ratio" else ("−", pair["unit"])
        interval = f"{figure(pair['low'], unit)} .. {figure(pair['high'], unit)}"
        floor = figure(pair["floor"], unit) if unit else f"{pair['floor']:.1%}"
        metric = f"{pair['metric']} ({label(pair['cell'])})" if pair["cell"] else pair["metric"]
        table.add_row(escape(pair["contender"]), escape(metric), sign, figure(pair["value"], unit), interval, floor)
    return table


def _verdicts(run: Mapping[str, Any]) -> Table:
    columns = ("target", "of", "measured", "interval", "rounds", "figures", "bound", "", "verdict")
    table = Table(*columns, box=None, pad_edge=False)
    for verdict in run["verdicts"]:
        unit = verdict["unit"]
        known = verdict["low"] is not None
        interval = f"{figure(verdict['low'], unit)} .. {figure(verdict['high'], unit)}" if known else ""
        colour = COLOURS[verdict["outcome"]]
        reason = f" {escape(verdict['reason'])}" if verdict["reason"] else ""
        cell = f" ({label(verdict['cell'])})" if verdict["cell"] else ""
        table.add_row(
            escape(verdict["metric"] + cell),
            escape(verdict["terms"]),
            figure(verdict["measured"], unit),
            interval,
            str(verdict["rounds"] or ""),
            _figures(verdict),
            bounds(verdict),
            verdict["origin"],
            f"[{colour}]{verdict['outcome']}[/]{reason}",
        )
    return table


def _figures(verdict: Mapping[str, Any]) -> str:
    """What was compared, in the measure's unit: "67,912 and 88,920 requests/s"."""
    if verdict["own"] is None:
        return ""
    return f"{rounded(verdict['own'])} and {rounded(verdict['baseline'])} {verdict['figures_unit']}"


def bounds(verdict: Mapping[str, Any]) -> str:
    """A target's bounds as text: "≥ 0.75", "≤ 200 ns", or both."""
    unit = verdict["unit"]
    parts = []
    if verdict["minimum"] is not None:
        parts.append(f"≥ {figure(verdict['minimum'], unit)}")
    if verdict["maximum"] is not None:
        parts.append(f"≤ {figure(verdict['maximum'], unit)}")
    return " and ".join(parts)


def figure(value: float | None, unit: str) -> str:
    """A number with the precision that it deserves, with a time's unit; a ratio has three digits after the point."""
    if value is None:
        return ""
    if not unit:
        return f"{value:.3f}".rstrip("0").rstrip(".")
    return f"{rounded(value)} {unit}" if unit in SECONDS else rounded(value)


def rounded(value: float) -> str:
    """A number with three digits, or all that stand before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
