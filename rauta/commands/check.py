"""`rauta check`: every mistake of configuration files, and what is doubtful in those that have none."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from rauta.cli import ExitCode
from rauta.config import Config
from rauta.files.document import Document, DocumentError, load_document
from rauta.files.doubts import Doubt, doubts
from rauta.files.mistakes import Mistake

__all__ = ["check", "summary"]

Files = Annotated[list[str], typer.Argument(metavar="FILE...", help="Configurations.", show_default=False)]
Strict = Annotated[bool, typer.Option("--strict", help="Let warnings count as mistakes.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object for all files.")]


@dataclass(frozen=True)
class _Report:
    """What there is to say of one file; `config` is None if it has mistakes."""

    file: str
    config: Config | None
    mistakes: list[tuple[int, Mistake]]
    warnings: list[tuple[int, Doubt]]


def check(files: Files, strict: Strict = False, as_json: AsJson = False) -> None:
    """Read configurations and report every mistake and warning, with its line and field."""
    reports = [_examined(file) for file in files]
    if as_json:
        typer.echo(json.dumps({"files": [_as_json(report) for report in reports]}, indent=2))
    else:
        for report in reports:
            _show(report)
    if any(report.mistakes or (strict and report.warnings) for report in reports):
        raise typer.Exit(ExitCode.FAILED)


def _examined(file: str) -> _Report:
    try:
        document: Document = load_document(file)
        config = document.validate(Config)
    except DocumentError as error:
        return _Report(file, None, error.mistakes, [])
    found = [(document.line(doubt.path), doubt) for doubt in doubts(config)]
    return _Report(file, config, [], sorted(found, key=lambda pair: pair[0]))


def summary(config: Config) -> dict[str, int]:
    """How much of everything a configuration has. `drained`: backends without weight in every cluster they are in."""
    backends = config.backends()
    weighed = {one.name for cluster in config.clusters for one in cluster.backends if one.weight}
    return {
        "vips": len(config.vips),
        "routes": sum(len(vip.routes) for vip in config.vips),
        "hosts": sum(len({route.host for route in vip.routes} - {None}) for vip in config.vips),
        "clusters": len(config.clusters),
        "backends": len(backends),
        "drained": len(backends.keys() - weighed),
    }


def _show(report: _Report) -> None:
    """Mistakes go to standard error, as compilers' do: file, line, what. The rest is what was asked for."""
    for line, mistake in report.mistakes:
        typer.echo(f"{report.file}:{line}: {mistake}", err=True)
    for line, doubt in report.warnings:
        typer.echo(f"{report.file}:{line}: warning: {doubt}", err=True)
    if report.config is None:
        typer.echo(f"{report.file}: {_counted(len(report.mistakes), 'mistake')}", err=True)
        return
    counts = summary(report.config)
    drained = counts.pop("drained")
    parts = [_counted(count, what.removesuffix("s")) for what, count in counts.items()]
    parts[-1] += f" ({drained} drained)" if drained else ""
    warned = f", {_counted(len(report.warnings), 'warning')}" if report.warnings else ""
    typer.echo(f"{report.file}: no mistakes{warned}: {', '.join(parts)}")


def _counted(count: int, what: str) -> str:
    what = "VIP" if what == "vip" else what
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _as_json(report: _Report) -> dict[str, Any]:
    return {
        "file": report.file,
        "valid": report.config is not None,
        "mistakes": [
            {"line": line, "field": one.field, "problem": one.problem, "allowed": one.allowed}
            for line, one in report.mistakes
        ],
        "warnings": [
            {"line": line, "field": one.field, "problem": one.problem, "advice": one.advice}
            for line, one in report.warnings
        ],
        "summary": summary(report.config) if report.config is not None else None,
    }
