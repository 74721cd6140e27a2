"""What run.py asks of the rooms that do the work: servers/, contenders/, checks/ and measure/.

Servers, checks and measures are pydantic models, so that a scenario's fields are documented and validated where they
are used; each room exports the union of its models (``Server``, ``Check``, ``Measure``). Contenders are looked up by
name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from pydantic import BaseModel

from lab.samples import Quantity, Sample

if TYPE_CHECKING:
    from lab.scenario import Scenario
    from lab.topology import Host, Network
    from rauta.bpf import Program, ProgramInfo
    from rauta.config import Config
    from rauta.keys import CookieKeys

Layer = Literal["bpf", "veth", "http"]
"""the program alone; frames over real links; requests of real clients to real servers"""
Frame = Literal["first-request", "next-request", "syn", "later", "flood"]
"""what live frames are: a new connection's first request, a further one, a SYN, a packet of a known connection; or a
SYN from anybody, whose address, port and number are drawn"""


class ServerModel(Protocol):
    """How a cluster's hosts serve."""

    @property
    def port(self) -> int:
        """Where contenders send requests; must be what the routing file says."""

    def start(self, host: Host, cluster: str, scratch: Path) -> None:
        """Start it on one host and return when it answers. ``scratch``: an existing folder of this host's own."""


class Running(Protocol):
    """A contender that has been started; its ExitStack ends it."""

    def target(self, cluster: str) -> tuple[IPv4Address, int]:
        """Where a client connects in order to reach a cluster."""

    def counters(self) -> Mapping[str, int]:
        """Its own counters by name, such as ``requests_routed``; empty if it keeps none."""

    def programs(self) -> Mapping[str, Any]:
        """The BPF programs it has loaded, by name: ``rauta.bpf.ProgramInfo``; empty if none."""


@runtime_checkable
class AnswersSyns(Protocol):
    """A running contender whose own program answers handshakes, and keeps a table of connections."""

    def counters(self) -> Mapping[str, int]:
        """With ``TX_SYN_ACK``: the SYNs that it has answered."""

    def flow_clients(self) -> Counter[IPv4Address]:
        """Whose connections its table has, and how many of each client."""

    def routing_program(self) -> ProgramInfo:
        """The program that every packet of its clients passes."""


class ProgramUnderTest(Protocol):
    """An XDP program, loaded and attached to nothing, for the layers bpf and veth."""

    @property
    def program(self) -> Program:
        """What is run on frames."""

    @property
    def keys(self) -> CookieKeys | None:
        """With which it checks the cookies of handshakes; None if it does not."""

    def handled(self, frame: Frame) -> int | None:
        """How many frames of a kind it has handled as intended so far; None if it does not count."""


@runtime_checkable
class HasProgram(Protocol):
    """A contender whose program can be measured by itself."""

    def load(self, config: Config, stack: ExitStack) -> ProgramUnderTest:
        """Load its program, ready to route; everything that must be undone is registered on ``stack``."""


class Contender(Protocol):
    """Something that brings requests from clients to clusters."""

    @property
    def name(self) -> str:
        """As scenarios call it."""

    @property
    def layers(self) -> frozenset[Layer]:
        """Where it can be measured. What cannot do http has no checks either."""

    @property
    def settings(self) -> type[BaseModel]:
        """What a scenario may set for it under ``settings``; the defaults are its best, found by a committed sweep."""

    def start(self, network: Network, scenario: Scenario, stack: ExitStack) -> Running:
        """Start it in the network; everything that must be undone is registered on ``stack``."""


@dataclass
class Requests:
    """How many requests checks have sent, over all of them; each check adds its own."""

    sent: int = 0


@dataclass(frozen=True)
class Context:
    """What a check may look at: one contender, running alone in its network."""

    network: Network
    scenario: Scenario
    contender: str
    running: Running
    seed: int
    started_with: Mapping[str, Mapping[str, int]]
    """TCP counters by host, and under the contender's name its own, from before the first check"""
    requests: Requests = field(default_factory=Requests)


@dataclass(frozen=True)
class CheckResult:
    """``name``: the check in a few words, with its cluster and path. ``detail``: what was seen, or what was wrong."""

    name: str
    passed: bool
    detail: str = ""


class CheckModel(Protocol):
    """Something that must be true."""

    only: str | None
    """the contender that it is about; None: every one"""

    @property
    def title(self) -> str:
        """The check in a few words, with its cluster and path."""

    def run(self, context: Context) -> CheckResult:
        """Find out. What goes wrong in a check's own tools may be raised as RautaError: the check has then failed."""


Watch = AbstractContextManager[Any]
"""around what is timed: while it is entered, the machine is watched"""


class Instrument(Protocol):
    """A measure, ready to be taken many times."""

    def sample(self, subject: str, running: Running | None, watch: Watch, *, scale: int = 1) -> Sample:
        """Measure a contender or reference once. Expected failures make the sample invalid.

        Args:
            subject: whom.
            running: the contender, if the measure needs one.
            watch: entered around what is timed, and around nothing else.
            scale: so many times the usual work: a measurement whose result depends on it is not to be trusted.
        """


@dataclass(frozen=True)
class Setup:
    """What a measure gets to make itself ready with."""

    network: Network
    scenario: Scenario
    """its ``plan`` says how long to warm up, and the seed"""
    stack: ExitStack
    """everything that must be undone is registered here"""
    capacities: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """what was found for the measures named by ``depends_on``: by measure and contender, in the measure's unit"""


class MeasureModel(Protocol):
    """Something that is measured."""

    @property
    def layer(self) -> Layer:
        """Where."""

    @property
    def quantity(self) -> Quantity:
        """Of its samples' value."""

    @property
    def quantities(self) -> Mapping[str, Quantity]:
        """What its samples have besides; a metric is then called measure.quantity.statistic."""

    @property
    def has_histogram(self) -> bool:
        """Whether its samples carry all latencies; a metric may then end in a quantile."""

    @property
    def instrument(self) -> str:
        """What measures, with its version, such as ``wrk 4.1.0``."""

    @property
    def depends_on(self) -> Sequence[str]:
        """Names of measures of the scenario whose results it needs first: a rate can be a share of a capacity."""

    @property
    def needs_contender(self) -> bool:
        """Whether contenders must be running when they are measured."""

    def subjects(self, contenders: Sequence[str]) -> Sequence[str]:
        """What it yields samples of: those of the contenders that it can measure, and its reference if it has one."""

    def seconds(self, warmup: float) -> float:
        """About how long one sample takes."""

    def open(self, setup: Setup) -> Instrument:
        """Make ready what is needed once."""
