"""Proving, before timing: every contender's checks, on every network of the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from lab import contenders
from lab.bench import Bench
from lab.capture import captured
from lab.checks import Check
from lab.interfaces import CheckResult, Context, Requests, Running
from lab.results import CheckRecord
from lab.topology import Network
from rauta.errors import RautaError


def applies(check: Check, contender: str) -> bool:
    """Whether a check is about a contender; ``direct#2`` is direct once more."""
    return check.only in (None, contender.partition("#")[0]) and "http" in contenders.find(contender).layers


def check(
    bench: Bench,
    contender: str,
    running: Running,
    *,
    seed: int,
    pcaps: Path,
    always_capture: bool,
    told: Callable[[str], None],
) -> list[CheckRecord]:
    """Run a contender's checks.

    Args:
        bench: where it runs.
        contender: its name.
        running: itself, started for this.
        seed: for what checks choose.
        pcaps: a folder, which is made when there is something to keep: the packets of a check that failed.
        always_capture: keep those of every check.
        told: is called with each check's title as it begins.
    """
    context = Context(
        network=bench.network,
        scenario=bench.scenario,
        contender=contender,
        running=running,
        seed=seed,
        started_with=_counters(bench.network, contender, running),
        requests=Requests(),
    )
    records = []
    for number, one in enumerate(bench.scenario.checks):
        if not applies(one, contender):
            continue
        told(f"{contender}: {one.title}")
        started = time.monotonic()
        prefix = pcaps / f"{contender}-{number}"
        result = _captured(one, context, prefix) if always_capture else _asked(one, context)
        records.append(CheckRecord(number, contender, one.title, result.passed, result.detail, _since(started)))
        if not result.passed and not always_capture:
            _captured(one, context, prefix)  # once more, for its packets: what it says now does not count
    return records


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)


def _asked(one: Check, context: Context) -> CheckResult:
    try:
        return one.run(context)
    except RautaError as error:
        return CheckResult(one.title, False, str(error))


def _captured(one: Check, context: Context, prefix: Path) -> CheckResult:
    with captured(context.network, prefix):
        return _asked(one, context)


def _counters(network: Network, contender: str, running: Running) -> dict[str, Mapping[str, int]]:
    return {**{name: host.tcp_counters() for name, host in network.hosts.items()}, contender: dict(running.counters())}
