"""New connections at a fixed rate: how long each takes to be established, and whether any fails.

The open-loop generator (lab/tools/open_loop.c), with a connection for each request. The value is the time from the
system calls that open a connection until it is established, of those that were; ``answer`` the time from when the
request was due to the end of its answer. Failures are counted, of whatever kind, and make no sample invalid: this
measure is taken where connections are in danger. For the same reason it is not flagged when the generator is late: in a
network of namespaces it shares the CPUs with what is loaded. How late it was is said.

``sent-again`` is how many SYNs the clients' kernels have repeated (TcpExt.TCPSynRetrans): the first repetition comes
after a second, so a lost SYN is a slow connection and no failure. ``program`` is what a packet costs the program that
answers handshakes, by the kernel's run-time statistics, over all packets that come meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from lab.environment import source_revision
from lab.histogram import Histogram
from lab.interfaces import AnswersSyns, Instrument, Running, Setup, Watch
from lab.measure.load import Load, on_all, shares, target, widen_ports
from lab.measure.open_loop import SOURCE, generate, total_errors
from lab.measure.wrk import answering
from lab.samples import Better, Quantity, Sample
from lab.units import PerSecond
from rauta.bpf import run_time_stats

if TYPE_CHECKING:
    from lab.topology import Host

SENT_AGAIN = "TcpExt.TCPSynRetrans"
TIMEOUT = 5.0
"""seconds until a connection or its answer is given up: a SYN is sent again after 1 and 3"""


class Connect(Load):
    """``rate``: connections a second, of all clients together; ``connections``: at most so many at a time."""

    layer: Literal["http"]
    tool: Literal["connect"]
    rate: PerSecond
    unit: Literal["us"] = "us"

    @property
    def quantity(self) -> Quantity:
        """The median time until a connection is established."""
        return Quantity(self.unit, Better.LOWER)

    @property
    def quantities(self) -> Mapping[str, Quantity]:
        """What a sample says besides."""
        return {
            "failed": Quantity("connections", Better.LOWER),
            "sent-again": Quantity("SYNs", Better.LOWER),
            "answer": Quantity("us", Better.LOWER),
            "late": Quantity("us", Better.LOWER),
            "rate": Quantity("requests/s", Better.NEITHER),
            "program": Quantity("ns/packet", Better.LOWER),
        }

    @property
    def has_histogram(self) -> bool:
        """All connections' times."""
        return True

    @property
    def instrument(self) -> str:
        """The generator, by its source."""
        return f"open_loop {source_revision(SOURCE)}"

    @property
    def depends_on(self) -> Sequence[str]:
        """Nothing."""
        return ()

    def subjects(self, contenders: Sequence[str]) -> Sequence[str]:
        """All that answer requests."""
        return answering(contenders)

    def open(self, setup: Setup) -> Instrument:
        """Widens the clients' range of ports."""
        widen_ports(setup.network.clients, setup.stack)
        return ConnectInstrument(self, setup.network.clients, setup.scenario.plan.warmup)


@dataclass(frozen=True)
class ConnectInstrument:
    """The generator, ready."""

    model: Connect
    clients: Sequence[Host]
    warmup: float

    def sample(self, subject: str, running: Running | None, watch: Watch, *, scale: int = 1) -> Sample:
        """See lab.interfaces.Instrument."""
        to = target(running, subject, self.model.cluster)
        program = _ProgramTime(running)
        before = self._sent_again()
        with watch, program.taken():
            reports = on_all(self.clients, partial(self._run, to, scale))
        return _judged(reports, self._sent_again() - before, program.found)

    def _sent_again(self) -> int:
        return sum(client.tcp_counters()[SENT_AGAIN] for client in self.clients)

    def _run(self, to: tuple[Any, int], scale: int, number: int, client: Host) -> dict[str, Any]:
        model = self.model
        return generate(
            client,
            to,
            scale * model.duration,
            rate=model.rate / len(self.clients),
            connections=shares(model.connections, len(self.clients))[number],
            warmup=self.warmup,
            drain=TIMEOUT,
            timeout=TIMEOUT,
            seed=1 + number,
            host=model.host,
            path=model.path,
        )


@dataclass
class _ProgramTime:
    """What packets cost the program of a contender that has one: ``found``, afterwards."""

    running: object
    found: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Over all packets meanwhile."""
        if not isinstance(self.running, AnswersSyns):
            yield
            return
        with run_time_stats():
            before = self.running.routing_program()
            yield
            after = self.running.routing_program()
        if packets := after.run_cnt - before.run_cnt:
            self.found["program"] = (after.run_time_ns - before.run_time_ns) / packets


def _judged(reports: Sequence[Mapping[str, Any]], sent_again: int, program: Mapping[str, float]) -> Sample:
    """One sample of all clients. It is not valid if nobody got through at all."""
    times = Histogram.merged(Histogram(dict(one["connecting"])) for one in reports)
    answers = Histogram.merged(Histogram(dict(one["histogram"])) for one in reports)
    errors = total_errors(reports)
    answered = sum(one["answered"] for one in reports)
    return Sample(
        times.quantile(0.5) / 1e3,
        valid=bool(answered),
        reason="" if answered else f"no connection was answered: {errors}",
        quantities={
            "failed": sum(errors.values()),
            "sent-again": sent_again,
            "answer": answers.quantile(0.5) / 1e3,
            "late": max(one["late"]["p50"] for one in reports) / 1e3,
            "rate": answered / max(one["seconds"] for one in reports),
            **program,
        },
        histogram=times,
        requests=sum(one["requests"] for one in reports) or None,
        generator=max(max(one["busy"], one["cpu"]) for one in reports),
        details={
            "intended": sum(one["intended"] for one in reports),
            "answered": answered,
            "answer p99 us": answers.quantile(0.99) / 1e3,
            **{f"failed: {kind}": count for kind, count in errors.items()},
        },
    )
