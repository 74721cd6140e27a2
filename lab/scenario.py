"""The scenario format: one claim, written so that a machine can judge it. ``python -m lab schema`` prints its JSON
Schema.

A file is read in five steps: YAML → the command line's ``--profile`` and ``--set`` applied (lab.changes) →
``${parameters}`` filled in, once for each cell of their matrix (lab.matrix) → the models here → ``lab.agreement``,
which finds the fields that contradict each other or the routing file. Every mistake is reported at once with its line,
its field and what is allowed there.

What a check, a measure or a server may say is defined where it is done: lab/checks, lab/measure, lab/servers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from lab import agreement, changes, matrix
from lab.background import Background
from lab.checks import Check
from lab.errors import UsageError
from lab.links import SHORTEST_DELAY
from lab.measure import Measure
from lab.samples import STATISTICS
from lab.servers import Server
from lab.units import Bitrate, Limit, Quantity
from rauta.config import Config, Route, load_config
from rauta.files.document import Document, DocumentError, load_document
from rauta.files.mistakes import Location, Mistake, explain
from rauta.units import Duration, Share

FOLDER = Path(__file__).parent.parent / "scenarios"


class Model(BaseModel):
    """Frozen, and without fields that nobody has defined."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Scalar = bool | int | float | str
Params = dict[str, Scalar | Annotated[tuple[Scalar, ...], Field(min_length=1)]]
Cpus = tuple[Annotated[int, Field(ge=0)], ...]


def _resolvable(delay: float) -> float:
    if 0 < delay < SHORTEST_DELAY * (1 - 1e-9):
        raise ValueError(f"the delay line resolves {SHORTEST_DELAY * 1e6:g}us (allowed: 0ms, or that much and more)")
    return delay


class Link(Model):
    """A cable, in each direction; see lab.links. ``mtu``: bytes of an IP packet; the router is made for 1500."""

    mtu: Annotated[int, Field(ge=576, le=9000)] = 1500
    rate: Bitrate | None = None
    delay: Annotated[Duration, AfterValidator(_resolvable)] = 0.0
    loss: Share = 0.0
    duplicate: Share = 0.0
    reorder: Share = 0.0

    @property
    def conditions(self) -> bool:
        """Whether there is anything that a cable does not do by itself."""
        return self.rate is not None or any((self.delay, self.loss, self.duplicate, self.reorder))


class Pinning(Model):
    """Numbers of the CPUs on which each role's programs run; none: anywhere. XDP runs on the CPU of whoever sends."""

    client: Cpus = ()
    router: Cpus = ()
    servers: Cpus = ()


class Topology(Model):
    """The network. ``hosts``: how many of each role, clusters by their names in the routing file."""

    kind: Literal["one-armed", "two-armed", "direct"]
    hosts: dict[str, Annotated[int, Field(ge=1, le=200)]]
    link: Link = Link()
    """of every host"""
    links: dict[str, Link] = {}
    """of some, by role, instead"""
    cpus: Pinning = Pinning()

    def link_of(self, role: str) -> Link:
        """The cable of a role's hosts: client, router or a cluster."""
        return self.links.get(role, self.link)


class Routing(Model):
    """The configuration to route with, the very file that ``rauta run -c`` takes; relative to the scenario's folder.

    ``routes``: so many routes in its first VIP; those that the file does not have are made up: the prefixes ``/r/1``,
    ``/r/2`` and so on, to the cluster of the VIP's last route.
    """

    file: str
    routes: Annotated[int, Field(ge=1, le=65_536)] | None = None

    _config: Config = PrivateAttr()

    @property
    def config(self) -> Config:
        """The file's content."""
        return self._config


class Plan(Model):
    """How often and how long. In each round every contender is measured once, in an order drawn from ``seed``."""

    rounds: Annotated[int, Field(ge=1, le=10_000)] = 10
    max_rounds: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """go on up to this many, until the interval of every target is narrow enough; none: just ``rounds``"""
    order: Literal["random"] = "random"
    warmup: Duration = 0.3
    seed: int = 7
    max_time: Duration = 300.0
    timing: bool = True
    """off: only checks"""


class Valid(Model):
    """When a run is to be believed. A sample that was disturbed is taken again; none: no limit."""

    steal: Limit | None = 0.02
    """of all CPU time, taken by the hypervisor"""
    foreign_cpu: Limit | None = 0.05
    """of one CPU, used by processes that have nothing to do with the run"""
    generator_cpu: Limit | None = None
    """of the time of the load generator's busiest thread: beyond it the generator may be what was measured"""
    ci_half_width: Limit | None = None
    """of the intervals of ratios, on each side"""
    n_vs_2n: Limit | None = None
    """how far a rate or a time a packet may change when twice the work is done"""


class Target(Model):
    """What is good enough: bounds for a statistic of a measure, by itself, or compared with another contender's."""

    metric: Annotated[str, Field(examples=["keepalive.median", "latency.p99", "keepalive.cpu.median"])]
    """measure.statistic, or measure.quantity.statistic"""
    of: str = "rauta"
    """the contender that is judged"""
    ratio_to: str | None = None
    """judge the ratio to this contender"""
    over: str | None = None
    """judge the difference to this contender, or to the measure's reference"""
    at: dict[str, Scalar] = {}
    """only in the cells with these values of parameters; empty: in all"""
    against: dict[str, Scalar] | None = None
    """judge the ratio to the same figure in the cell with these values"""
    above: dict[str, Scalar] | None = None
    """judge the difference to it"""
    min: Quantity | None = None
    max: Quantity | None = None
    confidence: Annotated[Share, Field(gt=0.5, lt=1)] = 0.95
    """of the interval that must lie within the bounds"""
    origin: Literal["asked", "ours"] = "ours"

    @property
    def measure(self) -> str:
        """The first part of ``metric``."""
        return self.metric.partition(".")[0]

    @property
    def quantity(self) -> str:
        """The middle part; empty for the measure's own quantity."""
        rest = self.metric.partition(".")[2]
        return "" if rest in STATISTICS else rest.partition(".")[0]

    @property
    def statistic(self) -> str:
        """The last part: of rounds, or a quantile of all latencies."""
        rest = self.metric.partition(".")[2]
        return rest if rest in STATISTICS else rest.partition(".")[2]

    @property
    def is_ratio(self) -> bool:
        """Whether a ratio is judged."""
        return self.ratio_to is not None or self.against is not None

    @property
    def baseline(self) -> dict[str, Scalar] | None:
        """The cell that it is compared with, if it is."""
        return self.above if self.against is None else self.against

    def applies_to(self, params: Mapping[str, Any]) -> bool:
        """Whether it is judged in the cell with these parameters; a baseline is not judged against itself."""
        return _agree(self.at, params) and not (self.baseline is not None and _agree(self.baseline, params))


class Profile(Model):
    """What ``--profile`` changes. None: as the scenario says."""

    rounds: Annotated[int, Field(ge=1, le=10_000)] | None = None
    max_rounds: Annotated[int, Field(ge=1, le=10_000)] | None = None
    timing: bool | None = None
    warmup: Duration | None = None
    max_time: Duration | None = None
    contenders: tuple[str, ...] | None = None
    params: Params = {}


class Scenario(Model):
    """One claim: what is built, what must be true, what is measured, what is good enough."""

    version: Literal[1]
    claim: str
    params: Params = {}
    """values that other fields refer to as ${name}; a list of values makes a matrix"""
    topology: Topology
    servers: dict[str, Server]
    """what each cluster's hosts run"""
    routing: Routing
    contenders: Annotated[tuple[str, ...], Field(min_length=1)]
    settings: dict[str, dict[str, Any]] = {}
    """of contenders, where they differ from their defaults"""
    checks: tuple[Check, ...] = ()
    background: tuple[Background, ...] = ()
    """load that is there while others are measured"""
    measure: dict[Annotated[str, Field(pattern=r"^[a-z0-9-]+$")], Measure] = {}
    plan: Plan = Plan()
    valid: Valid = Valid()
    targets: tuple[Target, ...] = ()
    profiles: dict[str, Profile] = {}

    _file: Path = PrivateAttr()
    _profile: str | None = PrivateAttr(None)
    _cell: dict[str, Scalar] = PrivateAttr(default_factory=dict)

    @property
    def cell(self) -> Mapping[str, Scalar]:
        """Of the matrix of parameters: the values of those that vary."""
        return self._cell

    @property
    def file(self) -> Path:
        """Where it was read from, an absolute path."""
        return self._file

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self._file.stem

    @property
    def profile(self) -> str | None:
        """The profile that was applied."""
        return self._profile

    def with_loads_of_its_own(self) -> Self:
        """Without the background load of other cells."""
        own = tuple(load for load in self.background if _agree(load.at, self.params))
        return self.model_copy(update={"background": own})


def find(name: str | Path) -> Path:
    """The file of a scenario that is given as a path, or as a name in scenarios/.

    Raises:
        UsageError: there is none.
    """
    for path in (Path(name), FOLDER / f"{name}.yaml"):
        if path.is_file():
            return path
    known = ", ".join(path.stem for path in all_files())
    raise UsageError(f"looking for the scenario {name}", "there is no such file", f"In scenarios/ there are: {known}.")


def all_files() -> list[Path]:
    """All scenarios of this repository."""
    return sorted(FOLDER.glob("*.yaml"))


def load(path: str | Path, **choices: Any) -> Scenario:
    """Read a scenario; of a matrix the first cell. See ``load_cells``."""
    return load_cells(path, **choices)[0]


def load_cells(
    path: str | Path,
    *,
    profile: str | None = None,
    overrides: Sequence[str] = (),
    contenders: Sequence[str] = (),
) -> tuple[Scenario, ...]:
    """Read a scenario: all cells of its matrix of parameters.

    Args:
        path: the file.
        profile: the name of one of its profiles, to be applied first.
        overrides: ``dotted.path=value``, the value in YAML; ``plan.rounds=3``, ``params.connections=100``,
            ``params.routes=[1, 1000]``, ``checks.2.size=1MB``.
        contenders: which of the scenario's contenders take part; none: those of the profile, or all.

    Raises:
        DocumentError: with every mistake in the scenario, or in its routing file.
        UsageError: no such profile or contender, or an override that is none.
    """
    document = load_document(path)
    data = document.data
    written = changes.mapping_or_empty(data.get("params"))
    if profile is not None:
        data = changes.with_profile(document.path, data, profile)
    for override in overrides:
        data = changes.with_override(data, override)
    document = dataclasses.replace(document, data=data)
    params = changes.mapping_or_empty(data.get("params"))
    found: dict[Mistake, None] = {}  # each once, in order: most are in every cell
    cells = []
    for values in matrix.combinations(params):
        cell, mistakes = _cell(document, values)
        found |= dict.fromkeys(mistakes)
        if cell is not None:
            cell._cell = {name: values[name] for name in matrix.varying(params)}
            cells.append(cell)
    found |= dict.fromkeys(agreement.mistakes_across(cells, written))
    cells = [cell.with_loads_of_its_own() for cell in cells]
    if found or not cells:
        found = found or {Mistake(("params",), "a list without values", "at least one value"): None}
        raise DocumentError(document.path, [(document.line(mistake.path), mistake) for mistake in found])
    for cell in cells:
        cell._file, cell._profile = Path(path).resolve(), profile
    return tuple(_with_contenders(cell, profile, contenders) for cell in cells)


def _cell(document: Document, values: Mapping[str, Any]) -> tuple[Scenario | None, list[Mistake]]:
    """The scenario with one combination of values; None if there are mistakes."""
    data, mistakes = matrix.filled_in(document.data, values)
    config = _routing_config(document, data)
    scenario: Scenario | None = None
    try:
        scenario = Scenario.model_validate(data)
    except ValidationError as error:
        mistakes += explain(Scenario, data, error)
    mistakes += agreement.mistakes(Scenario, data, config)
    if mistakes or scenario is None or config is None:
        return None, mistakes
    scenario.routing._config = with_routes(config, scenario.routing.routes)
    return scenario, []


def with_routes(config: Config, total: int | None) -> Config:
    """A configuration whose first VIP has so many routes; those made up are ``/r/1``, ``/r/2`` and so on."""
    first, *others = config.vips
    if total is None or total <= len(first.routes):
        return config
    cluster = first.routes[-1].cluster
    more = tuple(Route(prefix=f"/r/{number}", cluster=cluster) for number in range(1, total - len(first.routes) + 1))
    grown = first.model_copy(update={"routes": (*first.routes, *more)})
    return config.model_copy(update={"vips": (grown, *others)})


def _agree(wanted: Mapping[str, Scalar], params: Mapping[str, Any]) -> bool:
    return all(params.get(name) == value for name, value in wanted.items())


def _with_contenders(scenario: Scenario, profile: str | None, wanted: Sequence[str]) -> Scenario:
    """Only those contenders. Targets that need another one stay, and are reported as not measured."""
    for name in wanted:
        if name not in scenario.contenders:
            known = ", ".join(scenario.contenders)
            raise UsageError(f"choosing the contender {name!r}", "the scenario has no such one", f"It has: {known}.")
    chosen = wanted or (profile and scenario.profiles[profile].contenders) or scenario.contenders
    return scenario.model_copy(update={"contenders": tuple(name for name in scenario.contenders if name in chosen)})


def _routing_config(document: Document, data: dict[str, Any]) -> Config | None:
    """The routing file's content; None where the scenario does not name one."""
    routing = data.get("routing")
    name = routing.get("file") if isinstance(routing, Mapping) else None
    if not isinstance(name, str):
        return None
    path = document.path.parent / name
    if not path.is_file():
        where: Location = ("routing", "file")
        mistake = Mistake(
            where, f"there is no file {str(path)!r}", "a configuration file, relative to the scenario's folder"
        )
        raise DocumentError(document.path, [(document.line(where), mistake)])
    return load_config(path)
