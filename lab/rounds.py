"""The timing: rounds in which every contender is measured once in every cell, in random order.

Contenders run one at a time: each is started, measured and stopped, in every round again. They could stay up together,
but then `direct`, the yardstick, would pay for the agents' programs on the backends.

A sample that the machine disturbed (somebody else's CPU time, the hypervisor's) or that its generator spoilt is taken
again, a few times; then it is kept with its flags, and what it supports is inconclusive at best.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial

from lab.agreement import quantities
from lab.background import Load, Metered, Standing
from lab.bench import Bench, Cell
from lab.interfaces import Running, Setup
from lab.measure import Measure
from lab.monitor import Monitor
from lab.results import Described, Record, Taken
from lab.samples import Sample
from lab.scenario import Plan, Valid

RETRIES = 3
"""of a disturbed sample"""
PAIRS = 3
"""rounds in which each measure is taken with twice the work, too"""
CALIBRATIONS = 3
"""samples of a measure whose result others depend on"""

Told = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """What is measured in one go: cells' measures of a running contender, or one of something that needs none."""

    bench: Bench
    subject: str
    measures: tuple[tuple[Cell, str], ...]
    needs_contender: bool

    def __str__(self) -> str:
        where = f" at {self.bench.label}" if self.bench.label else ""
        return f"{self.subject}{where}"


@dataclass(frozen=True)
class Timing:
    """What the rounds need to know. ``monitor``: watches while something is timed."""

    plan: Plan
    valid: Valid
    seed: int
    monitor: Monitor
    record: Record


def jobs(benches: Sequence[Bench]) -> list[Job]:
    """A round's work, unordered; without contenders whose checks failed, and without what they are the reference of."""
    found = []
    for bench in benches:
        running: dict[str, list[tuple[Cell, str]]] = {}
        for cell in bench.cells:
            for name, measure in cell.scenario.measure.items():
                subjects = [one for one in measure.subjects(bench.scenario.contenders) if _may(one, bench)]
                for subject in subjects:
                    if measure.needs_contender:
                        running.setdefault(subject, []).append((cell, name))
                    else:
                        found.append(Job(bench, subject, ((cell, name),), False))
        found += [Job(bench, subject, tuple(measures), True) for subject, measures in running.items()]
    return found


def _may(subject: str, bench: Bench) -> bool:
    """A contender whose checks failed is not timed; a reference always is."""
    return subject not in bench.scenario.contenders or subject in bench.healthy


def open_instruments(benches: Sequence[Bench], timing: Timing, stack: ExitStack, told: Told) -> None:
    """Make every measure of every cell ready, first those that others depend on, whose results are found out here."""
    for bench in benches:
        for cell in bench.cells:
            measures = cell.scenario.measure
            needed = {name for measure in measures.values() for name in measure.depends_on}
            for name in (*(n for n in measures if n in needed), *(n for n in measures if n not in needed)):
                known = timing.record.capacities.setdefault(cell.number, {})
                cell.instruments[name] = measures[name].open(Setup(bench.network, cell.scenario, stack, known))
                timing.record.measures[cell.number, name] = described(measures[name], cell.scenario.background)
                if name in needed and name not in known:
                    known[name] = _calibrated(bench, cell, name, timing, told)


def described(measure: Measure, background: Sequence[Load] = ()) -> Described:
    """A measure as results describe it."""
    return Described(measure.layer, measure.instrument, {"": measure.quantity, **quantities(measure, background)})


def _calibrated(bench: Bench, cell: Cell, name: str, timing: Timing, told: Told) -> Mapping[str, float]:
    """A measure's median for each contender, from a few interleaved samples."""
    found: dict[str, list[float]] = {}
    healthy = [one for one in cell.scenario.measure[name].subjects(bench.scenario.contenders) if _may(one, bench)]
    for number in range(CALIBRATIONS):
        for subject in random.Random(f"{timing.seed} calibration {number}").sample(healthy, len(healthy)):
            told(f"calibrating {name}: {subject}")
            with bench.running(subject) as running:
                sample = cell.instruments[name].sample(subject, running, nullcontext())
                found.setdefault(subject, []).append(sample.value)
    return {subject: statistics.median(values) for subject, values in found.items()}


def take(benches: Sequence[Bench], timing: Timing, enough: Callable[[], bool], told: Told) -> None:
    """All rounds that the plan asks for, from where an earlier run stopped; more, up to its maximum, until ``enough``.

    A round that has begun is finished, also beyond the plan's time.
    """
    plan, record = timing.plan, timing.record
    deadline = time.monotonic() + plan.max_time
    work = jobs(benches)
    while record.rounds_done < max(plan.rounds, plan.max_rounds or 0) and time.monotonic() < deadline:
        number = record.rounds_done + 1
        if number > plan.rounds and enough():
            return
        order = random.Random(f"{timing.seed} round {number}").sample(work, len(work))
        for position, job in enumerate(order):
            _do(job, timing, number, position, partial(_told, told, f"round {number}/{plan.rounds}"))
        record.end_round([str(job) for job in order])


def _told(told: Told, where: str, what: str) -> None:
    told(f"{where}, {what}")


def _do(job: Job, timing: Timing, number: int, position: int, told: Told) -> None:
    timing.monitor.attend(job.bench.network.watched)
    with ExitStack() as stack:
        running, loads = None, []
        if job.needs_contender:
            running = stack.enter_context(job.bench.running(job.subject))
            for load in job.bench.scenario.background:
                loads.append(stack.enter_context(load.running(job.bench.network, running, job.bench.scenario)))
        for cell, name in job.measures:
            told(f"{job}: {name}")
            doubled = timing.valid.n_vs_2n is not None and number <= PAIRS
            for scale in (1, 2) if doubled else (1,):
                started = time.time()
                sample = _undisturbed(job, cell, name, running, loads, timing, scale)
                timing.record.add_sample(
                    Taken(cell.number, number, position, job.subject, name, scale, started, sample)
                )


def _undisturbed(
    job: Job,
    cell: Cell,
    name: str,
    running: Running | None,
    loads: Sequence[Standing],
    timing: Timing,
    scale: int,
) -> Sample:
    """One sample, taken again while it is disturbed; the last one if it always was."""
    for sample in _attempts(job, cell, name, running, loads, timing, scale):
        if not sample.flags:
            break
    return sample


def _attempts(
    job: Job,
    cell: Cell,
    name: str,
    running: Running | None,
    loads: Sequence[Standing],
    timing: Timing,
    scale: int,
) -> Iterator[Sample]:
    for attempt in range(1 + RETRIES):
        watch = timing.monitor.watch(f"{job.subject} {name} {cell.label}".strip())
        metered = Metered(watch, loads)
        sample = cell.instruments[name].sample(job.subject, running, metered, scale=scale)
        usage = watch.usage
        found = {**sample.quantities, **metered.figures}
        if sample.requests and cell.scenario.measure[name].layer == "http":
            found |= usage.per_request(sample.requests)
        yield replace(
            sample,
            quantities=found,
            flags=(*sample.flags, *usage.flags(timing.valid), *_generator(sample, timing.valid)),
            details={**sample.details, "attempt": attempt + 1},
        )


def _generator(sample: Sample, valid: Valid) -> Iterator[str]:
    limit = valid.generator_cpu
    if limit is not None and sample.generator is not None and sample.generator >= limit:
        yield f"the generator was busy {sample.generator:.0%} of the time (limit {limit:.0%})"
