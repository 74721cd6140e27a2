"""A run: networks → servers → for each contender its checks → rounds of measurement → verdicts.

This module knows the order of things and undoes them; what each step does is said in lab.bench, lab.checking,
lab.rounds and lab.judging. Everything is undone at the end, in reverse, however it comes about; see lab.signals and
lab.state.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from lab import bench as benches_
from lab import checking, contenders, doctor, environment, judging, noise, results, rounds, signals, state
from lab.bench import Bench
from lab.errors import UsageError
from lab.monitor import Monitor
from lab.process import raise_open_files_limit
from lab.results import CheckRecord, Record
from lab.scenario import Scenario
from lab.signals import Interrupted, interruptible, noted
from lab.state import Run
from lab.topology import Network
from lab.verdict import Exit, exit_code
from rauta.errors import RautaError


class Reporter(Protocol):
    """Who is told how a run goes."""

    def stage(self, what: str, steps: int) -> AbstractContextManager[Callable[[str], None]]:
        """A stage of some steps; what it yields is called with each step's name as it begins."""

    def check(self, check: CheckRecord) -> None:
        """A check is done."""


@dataclass(frozen=True)
class Options:
    """What the command line wants besides the scenario itself."""

    seed: int | None = None
    """None: the scenario's"""
    only: tuple[str, ...] = ()
    """names of measures, or words in the titles of checks; empty: everything"""
    keep: bool = False
    """leave the network up at the end, until a signal"""
    pcap: bool = False
    """keep the packets of every check, not only of those that fail"""
    resume: str | None = None
    """id of an interrupted run to go on with"""
    kind: str = "run"
    """or noise: see lab.noise"""


# ---- the whole ----------------------------------------------------------------------------------------


def execute(
    cells: Sequence[Scenario], options: Options, report: Reporter, held: Callable[[Network], None]
) -> dict[str, Any]:
    """Run a scenario and keep its result.

    Args:
        cells: what to do: the cells of a scenario's matrix.
        options: how.
        report: is told about progress.
        held: is called once the networks are being kept at the end (``options.keep``).

    Returns:
        the content of ``run.json``; "exit_code" in it is the run's.

    Raises:
        EnvironmentLacks, UsageError: before anything was created.
    """
    for cell in cells:
        doctor.preflight(cell)
    raise_open_files_limit()
    cells = [_restricted(cell, options.only) for cell in cells]
    record = _record(cells, options)
    code = Exit.USAGE
    try:
        # A resumed run gets a new name: what it left when it was killed may still have the old one.
        name = None if options.resume else results.name_in(record.id)
        with _undone(cells[0].name, record, name) as (run, stack):
            benches = _built(cells, run, record, stack, report)
            _check_all(benches, record, options, report)
            if cells[0].plan.timing:
                _time(benches, cells, record, stack, report)
            outcomes = judging.conclude(cells, record, _floors(cells, record))
            record.floors = noise.pairs(cells, record)
            code = exit_code((check.passed for check in record.checks), outcomes)
            if options.keep:
                record.save(code)
                _hold(benches[0].network, held)
    except Interrupted as signalled:
        code, record.error = Exit.INTERRUPTED, f"interrupted by {signalled}"
    except RautaError as error:
        code, record.error = Exit.USAGE, str(error)
    except BaseException as error:
        record.error = repr(error)
        record.save(Exit.USAGE)
        raise
    return record.save(code)


def hold(scenario: Scenario, run_name: str, held: Callable[[Network], None]) -> None:
    """Build a scenario's network, start its servers and contenders, and keep all that until a signal comes.

    Raises:
        EnvironmentLacks: before anything was created.
        RautaError: something did not start. It is undone.
    """
    doctor.preflight(scenario)
    raise_open_files_limit()
    record = _record([scenario], Options(), run_name)
    with suppress(Interrupted), _undone(scenario.name, record, run_name) as (run, stack):
        (bench,) = _built([scenario], run, record, stack, Silent())
        for name in scenario.contenders:
            stack.enter_context(bench.running(name))
        _hold(bench.network, held)


def _record(cells: Sequence[Scenario], options: Options, run_name: str | None = None) -> Record:
    """An empty record, or with ``--resume`` one with what an earlier run had found."""
    first = cells[0]
    record = Record(
        id=options.resume or results.new_id(first.name, run_name or state.new_name()),
        scenario={
            "name": first.name,
            "file": environment.portable(str(first.file)),
            "profile": first.profile,
            "resolved": [cell.model_dump(mode="json") for cell in cells],
        },
        cells=[dict(cell.cell) for cell in cells],
        seed=first.plan.seed if options.seed is None else options.seed,
        command=_command(),
        environment=environment.collect(),
        kind=options.kind,
        planned=first.plan.rounds,
    )
    if options.resume:
        record.restore()
    return record


@contextmanager
def _undone(scenario: str, record: Record, name: str | None = None) -> Iterator[tuple[Run, ExitStack]]:
    """A run's mark on the machine, and a stack for what goes on in it; both undone at the end, whatever happens."""
    record.logs.mkdir(parents=True, exist_ok=True)
    with noted(), ExitStack() as undo:
        run = state.create(scenario, name)
        undo.callback(run.sweep)
        with interruptible():
            yield run, undo


def _built(cells: Sequence[Scenario], run: Run, record: Record, stack: ExitStack, report: Reporter) -> list[Bench]:
    """All networks, with their servers."""
    groups = benches_.groups(cells)
    servers = sum(sum(group[0].scenario.topology.hosts.values()) for group in groups)
    built = []
    with report.stage("servers", servers) as step:
        for number, group in enumerate(groups):
            bench = stack.enter_context(benches_.built(group, run, record.logs, number))
            for host in benches_.start_servers(bench, run.scratch):
                step(host)
            built.append(bench)
    return built


def _hold(network: Network, held: Callable[[Network], None]) -> None:
    """Keep the network until a signal comes."""
    network.run.mark_held()
    held(network)
    signals.wait()


class Silent:
    """A reporter for runs that report nothing."""

    @contextmanager
    def stage(self, what: str, steps: int) -> Iterator[Callable[[str], None]]:
        """Nobody hears of the steps."""
        yield lambda _: None

    def check(self, check: CheckRecord) -> None:
        """Nobody hears of it."""


def _command() -> list[str]:
    """How to do the same again, from the repository's root."""
    return ["python", "-m", "lab", *map(environment.portable, sys.argv[1:])]


def _restricted(scenario: Scenario, only: Sequence[str]) -> Scenario:
    """Without the measures and checks that ``--only`` leaves out. Measures alone never do without the checks."""
    if not only:
        return scenario
    needed = {name for one in only if one in scenario.measure for name in scenario.measure[one].depends_on}
    measures = {name: measure for name, measure in scenario.measure.items() if name in {*only, *needed}}
    words = [word for word in only if word not in measures]
    checks = tuple(check for check in scenario.checks if any(word in check.title for word in words))
    if unknown := [word for word in words if not any(word in check.title for check in scenario.checks)]:
        titles = "; ".join(check.title for check in scenario.checks)
        advice = f"Measures: {', '.join(scenario.measure)}. Checks: {titles}."
        raise UsageError(f"choosing {unknown[0]!r}", "it is neither a measure nor in the title of a check", advice)
    found = scenario.model_copy(update={"measure": measures, "checks": checks if words else scenario.checks})
    found.routing._config = scenario.routing.config
    return found


# ---- steps --------------------------------------------------------------------------------------------


def _check_all(benches: Sequence[Bench], record: Record, options: Options, report: Reporter) -> None:
    """Every contender's checks on every bench; those that pass all of theirs are healthy there."""
    programs = record.environment.setdefault("programs", {})
    interfaces = record.environment.setdefault("interfaces", {})
    steps = sum(
        checking.applies(check, name)
        for bench in benches
        for name in bench.scenario.contenders
        for check in bench.scenario.checks
    )
    with report.stage("checks", steps) as step:
        for bench in benches:
            for name in bench.scenario.contenders:
                if "http" not in contenders.find(name).layers:
                    bench.healthy.append(name)
                    continue
                with bench.running(name) as running:
                    programs[name] = benches_.programs(running)
                    interfaces[_at(name, bench)] = environment.interfaces(bench.network)
                    checks = checking.check(
                        bench,
                        name,
                        running,
                        seed=record.seed,
                        pcaps=record.folder / "pcaps",
                        always_capture=options.pcap,
                        told=step,
                    )
                for check in checks:
                    report.check(check)
                record.checks += checks
                if all(check.passed for check in checks):
                    bench.healthy.append(name)


def _at(contender: str, bench: Bench) -> str:
    return f"{contender} at {bench.label}" if bench.label else contender


def _time(
    benches: Sequence[Bench], cells: Sequence[Scenario], record: Record, stack: ExitStack, report: Reporter
) -> None:
    """All rounds, as long as verdicts need them."""
    first = cells[0]
    floors = _floors(cells, record)
    hosts = [host for bench in benches for host in bench.network.watched]
    fabrics = [host for bench in benches for host in (bench.network.fabric, *bench.network.attackers)]
    steps = first.plan.rounds * sum(len(job.measures) for job in rounds.jobs(benches))
    with report.stage("rounds", steps) as step, Monitor(hosts, fabrics).watching() as monitor:
        timing = rounds.Timing(first.plan, first.valid, record.seed, monitor, record)
        rounds.open_instruments(benches, timing, stack, step)
        try:
            rounds.take(benches, timing, lambda: judging.enough(cells, record, floors), step)
        finally:
            record.save_series(monitor.series())


def _floors(cells: Sequence[Scenario], record: Record) -> judging.Floors:
    """Those of A/A pairs within this run, else those of the last run of ``noise`` on a comparable machine."""
    return {**noise.known(record.environment), **noise.floors(noise.pairs(cells, record))}
