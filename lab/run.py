"""A run: network → servers → for each contender its checks → rounds of measurement → verdicts.

Contenders run one at a time: each is started, checked and stopped, and in every round started, measured and stopped
again. They could stay up together, but then `direct`, the yardstick, would pay for the agents' programs on the
backends.

Everything is undone at the end, in reverse, however it comes about; see lab.signals and lab.state.
"""

from __future__ import annotations

import dataclasses
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from lab import contenders, doctor, environment, results, signals, state, topology
from lab.errors import UsageError
from lab.interfaces import Context, Instrument, Requests, Running, Setup
from lab.process import raise_open_files_limit
from lab.results import CheckRecord, Record
from lab.scenario import Scenario
from lab.signals import Interrupted, interruptible, noted
from lab.topology import Network
from lab.verdict import Exit, Outcome, exit_code, judge
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


@dataclass
class _Bench:
    """A run in progress: what its steps share."""

    scenario: Scenario
    options: Options
    record: Record
    network: Network
    report: Reporter

    @property
    def seed(self) -> int:
        return self.record.seed


# ---- the whole ----------------------------------------------------------------------------------------


def execute(scenario: Scenario, options: Options, report: Reporter, held: Callable[[Network], None]) -> dict[str, Any]:
    """Run a scenario and keep its result.

    Args:
        scenario: what to do.
        options: how.
        report: is told about progress.
        held: is called once the network is being kept at the end (``options.keep``).

    Returns:
        the content of ``run.json``; "exit_code" in it is the run's.

    Raises:
        EnvironmentLacks, UsageError: before anything was created.
    """
    doctor.preflight(scenario)
    raise_open_files_limit()
    scenario = _restricted(scenario, options.only)
    run_name = state.new_name()
    seed = scenario.plan.seed if options.seed is None else options.seed
    record = Record(
        results.new_id(scenario.name, run_name), _described(scenario), seed, _command(), environment.collect()
    )
    code = Exit.USAGE
    try:
        with _undone(scenario, run_name, record) as (network, stack):
            bench = _Bench(scenario, options, record, network, report)
            _start_servers(bench)
            healthy = _check_all(bench)
            if scenario.plan.timing:
                _measure_all(bench, healthy, stack)
            code = _judge_all(bench)
            if options.keep:
                record.save(code)
                _hold(network, held)
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
    record = Record(
        results.new_id(f"up-{scenario.name}", run_name), _described(scenario), scenario.plan.seed, _command(), {}
    )
    with suppress(Interrupted), _undone(scenario, run_name, record) as (network, stack):
        _start_servers(_Bench(scenario, Options(), record, network, _Silent()))
        for name in scenario.contenders:
            contenders.find(name).start(network, scenario, stack)
        _hold(network, held)


@contextmanager
def _undone(scenario: Scenario, run_name: str, record: Record) -> Iterator[tuple[Network, ExitStack]]:
    """The scenario's network, and a stack for what goes on in it; both undone at the end, whatever happens."""
    record.logs.mkdir(parents=True)
    with noted(), ExitStack() as undo:
        run = state.create(scenario.name, run_name)
        undo.callback(run.sweep)
        with interruptible():
            network = undo.enter_context(topology.build(scenario, run, record.logs))
            yield network, undo


def _hold(network: Network, held: Callable[[Network], None]) -> None:
    """Keep the network until a signal comes."""
    network.run.mark_held()
    held(network)
    signals.wait()


class _Silent:
    """A reporter for runs that report nothing."""

    @contextmanager
    def stage(self, what: str, steps: int) -> Iterator[Callable[[str], None]]:
        yield lambda _: None

    def check(self, check: CheckRecord) -> None:
        pass


def _command() -> list[str]:
    """How to do the same again, from the repository's root."""
    return ["python", "-m", "lab", *map(environment.portable, sys.argv[1:])]


def _described(scenario: Scenario) -> dict[str, Any]:
    return {
        "name": scenario.name,
        "file": environment.portable(str(scenario.file)),
        "profile": scenario.profile,
        "resolved": scenario.model_dump(mode="json"),
    }


def _restricted(scenario: Scenario, only: Sequence[str]) -> Scenario:
    """Without the measures and checks that ``--only`` leaves out. Measures alone never do without the checks."""
    if not only:
        return scenario
    measures = {name: measure for name, measure in scenario.measure.items() if name in only}
    words = [word for word in only if word not in measures]
    checks = tuple(check for check in scenario.checks if any(word in check.title for word in words))
    if unknown := [word for word in words if not any(word in check.title for check in scenario.checks)]:
        titles = "; ".join(check.title for check in scenario.checks)
        advice = f"Measures: {', '.join(scenario.measure)}. Checks: {titles}."
        raise UsageError(f"choosing {unknown[0]!r}", "it is neither a measure nor in the title of a check", advice)
    return scenario.model_copy(update={"measure": measures, "checks": checks if words else scenario.checks})


# ---- servers and checks -------------------------------------------------------------------------------


def _start_servers(bench: _Bench) -> None:
    hosts = [(cluster, host) for cluster in bench.scenario.servers for host in bench.network.servers(cluster)]
    with bench.report.stage("servers", len(hosts)) as step:
        for cluster, host in hosts:
            step(host.name)
            scratch = bench.network.run.scratch / host.name
            scratch.mkdir()
            bench.scenario.servers[cluster].start(host, cluster, scratch)


def _check_all(bench: _Bench) -> list[str]:
    """Run every contender's checks.

    Returns:
        the contenders that passed all of theirs.
    """
    scenario = bench.scenario
    healthy = []
    with bench.report.stage("checks", len(scenario.contenders) * len(scenario.checks)) as step:
        for name in scenario.contenders:
            with ExitStack() as stack:
                running = contenders.find(name).start(bench.network, scenario, stack)
                bench.record.environment.setdefault("programs", {})[name] = _programs(running)
                passed = _check(bench, name, running, step)
            if passed:
                healthy.append(name)
    return healthy


def _check(bench: _Bench, contender: str, running: Running, step: Callable[[str], None]) -> bool:
    context = Context(
        network=bench.network,
        scenario=bench.scenario,
        contender=contender,
        running=running,
        seed=bench.seed,
        started_with=_counters(bench.network, contender, running),
        requests=Requests(),
    )
    passed = True
    for number, check in enumerate(bench.scenario.checks):
        step(f"{contender}: {check.title}")
        if check.only not in (None, contender):
            continue
        started = time.monotonic()
        try:
            result = check.run(context)
            outcome, detail = result.passed, result.detail
        except RautaError as error:
            outcome, detail = False, str(error)
        done = CheckRecord(number, contender, check.title, outcome, detail, round(time.monotonic() - started, 3))
        bench.record.checks.append(done)
        bench.report.check(done)
        passed = passed and outcome
    return passed


def _counters(network: Network, contender: str, running: Running) -> dict[str, Mapping[str, int]]:
    return {**{name: host.tcp_counters() for name, host in network.hosts.items()}, contender: dict(running.counters())}


def _programs(running: Running) -> dict[str, Any]:
    return {name: dataclasses.asdict(info) for name, info in running.programs().items()}


# ---- measurement --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """What is measured in one go: some measures of a running contender, or one measure of something that needs none."""

    subject: str
    measures: tuple[str, ...]
    needs_contender: bool


def _jobs(scenario: Scenario, healthy: Sequence[str]) -> list[_Job]:
    """A round's work, unordered; without contenders that failed or were not chosen, and without their references."""
    absent = set(contenders.NAMES) - set(healthy)
    jobs = []
    for name in healthy:
        names = [
            m
            for m, measure in scenario.measure.items()
            if measure.needs_contender and name in measure.subjects(healthy)
        ]
        if names:
            jobs.append(_Job(name, tuple(names), True))
    for name, measure in scenario.measure.items():
        subjects = measure.subjects(scenario.contenders)
        if not measure.needs_contender and not absent & set(subjects):
            jobs += [_Job(subject, (name,), False) for subject in subjects]
    return jobs


def _measure_all(bench: _Bench, healthy: Sequence[str], stack: ExitStack) -> None:
    """All rounds, or as many as begin within the plan's time."""
    plan, record = bench.scenario.plan, bench.record
    jobs = _jobs(bench.scenario, healthy)
    instruments: dict[str, Instrument] = {}
    for name in dict.fromkeys(name for job in jobs for name in job.measures):
        measure = bench.scenario.measure[name]
        instruments[name] = measure.open(Setup(bench.network, bench.scenario, stack))
        record.units[name], record.layers[name], record.samples[name] = measure.unit, measure.layer, {}
    order = random.Random(bench.seed)
    deadline = time.monotonic() + plan.max_time
    with bench.report.stage("rounds", plan.rounds * sum(len(job.measures) for job in jobs)) as step:
        for number in range(1, plan.rounds + 1):
            if time.monotonic() > deadline:
                break
            shuffled = order.sample(jobs, len(jobs))
            record.order.append([f"{job.subject}: {', '.join(job.measures)}" for job in shuffled])
            for job in shuffled:
                _measure(bench, job, instruments, partial(_step, step, f"round {number}/{plan.rounds}"))


def _step(step: Callable[[str], None], where: str, what: str) -> None:
    step(f"{where}, {what}")


def _measure(bench: _Bench, job: _Job, instruments: Mapping[str, Instrument], step: Callable[[str], None]) -> None:
    with ExitStack() as stack:
        running = None
        if job.needs_contender:
            running = contenders.find(job.subject).start(bench.network, bench.scenario, stack)
        for name in job.measures:
            step(f"{job.subject}: {name}")
            sample = instruments[name].sample(job.subject, running, nullcontext())
            bench.record.samples[name].setdefault(job.subject, []).append(sample)


def _judge_all(bench: _Bench) -> Exit:
    """Verdicts for all targets.

    Returns:
        the run's exit code.
    """
    scenario, record = bench.scenario, bench.record
    for target in scenario.targets:
        if target.measure in scenario.measure:
            measure = scenario.measure[target.measure]
            samples = record.samples.get(target.measure, {})
            record.verdicts.append(judge(target, measure.unit, samples, scenario.plan.rounds))
    outcomes: list[Outcome] = [verdict.outcome for verdict in record.verdicts]
    return exit_code((check.passed for check in record.checks), outcomes)
