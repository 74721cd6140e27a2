"""The scenario format: one claim, written so that a machine can judge it. ``python -m lab schema`` prints its JSON
Schema.

A file is read in five steps: YAML → the command line's ``--set`` and ``--profile`` applied → ``${parameters}`` filled
in → the models here → ``lab.agreement``, which finds the fields that contradict each other or the routing file. Every
mistake is reported at once with its line, its field and what is allowed there.

What a check, a measure or a server may say is defined where it is done: lab/checks, lab/measure, lab/servers.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from lab import agreement
from lab.checks import Check
from lab.errors import UsageError
from lab.measure import Measure
from lab.servers import Server
from lab.units import Duration, Quantity
from rauta.config import Config, load_config
from rauta.document import Document, DocumentError, load_document
from rauta.mistakes import Location, Mistake, explain

FOLDER = Path(__file__).parent.parent / "scenarios"


class Model(BaseModel):
    """Frozen, and without fields that nobody has defined."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Scalar = bool | int | float | str
Cpus = tuple[Annotated[int, Field(ge=0)], ...]


class Link(Model):
    """What connects hosts. ``mtu``: bytes of an IP packet; 1500 is what the router's limits are made for."""

    mtu: Annotated[int, Field(ge=576, le=9000)] = 1500


class Pinning(Model):
    """Numbers of the CPUs on which each role's programs run; none: anywhere. XDP runs on the CPU of whoever sends."""

    client: Cpus = ()
    router: Cpus = ()
    servers: Cpus = ()


class Topology(Model):
    """The network. ``hosts``: how many of each role, clusters by their names in the routing file."""

    kind: Literal["one-armed"]
    hosts: dict[str, Annotated[int, Field(ge=1)]]
    link: Link = Link()
    cpus: Pinning = Pinning()


class Routing(Model):
    """The configuration to route with, the very file that ``rauta run -c`` takes; relative to the scenario's folder."""

    file: str

    _config: Config = PrivateAttr()

    @property
    def config(self) -> Config:
        """The file's content."""
        return self._config


class Plan(Model):
    """How often and how long. In each round every contender is measured once, in an order drawn from ``seed``."""

    rounds: Annotated[int, Field(ge=1, le=10_000)] = 10
    warmup: Duration = 0.3
    seed: int = 7
    max_time: Duration = 300.0
    timing: bool = True
    """off: only checks"""


class Target(Model):
    """What is good enough: bounds for a statistic of a measure, by itself, or compared with another contender's."""

    metric: Annotated[str, Field(examples=["keepalive.median"])]
    """measure.statistic"""
    of: str = "rauta"
    """the contender that is judged"""
    ratio_to: str | None = None
    """judge the ratio to this contender"""
    over: str | None = None
    """judge the difference to this contender, or to the measure's reference"""
    min: Quantity | None = None
    max: Quantity | None = None
    origin: Literal["asked", "ours"] = "ours"

    @property
    def measure(self) -> str:
        """The first part of ``metric``."""
        return self.metric.rpartition(".")[0]

    @property
    def statistic(self) -> str:
        """The second part of ``metric``."""
        return self.metric.rpartition(".")[2]


class Profile(Model):
    """What ``--profile`` changes. None: as the scenario says."""

    rounds: Annotated[int, Field(ge=1, le=10_000)] | None = None
    timing: bool | None = None
    warmup: Duration | None = None
    max_time: Duration | None = None
    contenders: tuple[str, ...] | None = None
    params: dict[str, Scalar] = {}


class Scenario(Model):
    """One claim: what is built, what must be true, what is measured, what is good enough."""

    version: Literal[1]
    claim: str
    params: dict[str, Scalar] = {}
    """values that other fields refer to as ${name}"""
    topology: Topology
    servers: dict[str, Server]
    """what each cluster's hosts run"""
    routing: Routing
    contenders: Annotated[tuple[str, ...], Field(min_length=1)]
    settings: dict[str, dict[str, Any]] = {}
    """of contenders, where they differ from their defaults"""
    checks: tuple[Check, ...] = ()
    measure: dict[Annotated[str, Field(pattern=r"^[a-z0-9-]+$")], Measure] = {}
    plan: Plan = Plan()
    targets: tuple[Target, ...] = ()
    profiles: dict[str, Profile] = {}

    _file: Path = PrivateAttr()
    _profile: str | None = PrivateAttr(None)

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


def load(
    path: str | Path,
    *,
    profile: str | None = None,
    overrides: Sequence[str] = (),
    contenders: Sequence[str] = (),
) -> Scenario:
    """Read a scenario.

    Args:
        path: the file.
        profile: the name of one of its profiles, to be applied first.
        overrides: ``dotted.path=value``, the value in YAML; ``plan.rounds=3``, ``params.connections=100``,
        ``checks.2.size=1MB``. contenders: which of the scenario's contenders take part; none: those of the profile,
        or all.

    Raises:
        DocumentError: with every mistake in the scenario, or in its routing file.
        UsageError: no such profile or contender, or an override that is none.
    """
    document = load_document(path)
    data = document.data
    if profile is not None:
        data = _with_profile(document, data, profile)
    for override in overrides:
        data = _with_override(data, override)
    document = dataclasses.replace(document, data=data)
    data, mistakes = _filled_in(data, data.get("params"))
    config = _routing_config(document, data)
    scenario: Scenario | None = None
    try:
        scenario = Scenario.model_validate(data)
    except ValidationError as error:
        mistakes += explain(Scenario, data, error)
    mistakes += agreement.mistakes(Scenario, data, config)
    if mistakes or scenario is None or config is None:
        raise DocumentError(document.path, [(document.line(mistake.path), mistake) for mistake in mistakes])
    scenario = _with_contenders(scenario, profile, contenders)
    scenario._file, scenario._profile, scenario.routing._config = Path(path).resolve(), profile, config
    return scenario


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


# ---- the command line's wishes ------------------------------------------------------------------------


def _with_profile(document: Document, data: dict[str, Any], name: str) -> dict[str, Any]:
    profiles = data.get("profiles")
    known = profiles if isinstance(profiles, Mapping) else {}
    if name not in known:
        allowed = f"Its profiles are: {', '.join(known)}." if known else "It has none."
        raise UsageError(f"applying the profile {name!r} to {document.path}", "it has no such profile", allowed)
    changes = known[name] if isinstance(known[name], Mapping) else {}
    plan = {key: changes[key] for key in ("rounds", "timing", "warmup", "max_time") if key in changes}
    merged = {**data, "plan": {**_mapping(data.get("plan")), **plan}}
    if "params" in changes:
        merged["params"] = {**_mapping(data.get("params")), **_mapping(changes["params"])}
    return merged


def _mapping(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _with_override(data: Any, override: str) -> Any:
    path, equals, text = override.partition("=")
    tried = f"applying --set {override}"
    if not equals or not path:
        raise UsageError(tried, "it is not of the form path=value", "For example: --set plan.rounds=3")
    try:
        value = YAML(typ="safe").load(text)
    except YAMLError as error:
        raise UsageError(tried, "the value is not YAML", str(error)) from None
    return _put(data, path.split("."), value, tried)


def _put(node: Any, path: Sequence[str], value: Any, tried: str) -> Any:
    """A copy of ``node`` with the value at a path; missing mappings on the way are made."""
    if not path:
        return value
    step, rest = path[0], path[1:]
    if isinstance(node, list):
        if not step.isdigit() or int(step) >= len(node):
            raise UsageError(tried, f"{step!r} is no index of a list of {len(node)}", "Indices count from 0.")
        return [_put(item, rest, value, tried) if number == int(step) else item for number, item in enumerate(node)]
    if node is not None and not isinstance(node, dict):
        raise UsageError(tried, f"there is nothing below {node!r} that {step!r} could name", "")
    before = node or {}
    return {**before, step: _put(before.get(step), rest, value, tried)}


# ---- parameters ---------------------------------------------------------------------------------------

_PARAMETER = re.compile(r"\$\{([^}]*)\}")


def _filled_in(data: dict[str, Any], params: object) -> tuple[dict[str, Any], list[Mistake]]:
    """The data with every ``${name}`` replaced, and the names that no parameter has. Parameters are left alone."""
    values = _mapping(params)
    mistakes: list[Mistake] = []

    def fill(node: Any, path: Location) -> Any:
        if isinstance(node, Mapping):
            return {key: fill(value, (*path, key)) for key, value in node.items()}
        if isinstance(node, list):
            return [fill(item, (*path, index)) for index, item in enumerate(node)]
        if not isinstance(node, str):
            return node
        for name in _unknown(node, values):
            mistakes.append(
                Mistake(path, f"no parameter is called {name!r}", ", ".join(values) or "define it under `params`")
            )
        whole = _PARAMETER.fullmatch(node)
        if whole and whole[1] in values:
            return values[whole[1]]  # keeps its type
        return _PARAMETER.sub(lambda match: str(values.get(match[1], match[0])), node)

    untouched = {key: data[key] for key in ("params", "profiles") if key in data}
    return {**fill({key: value for key, value in data.items() if key not in untouched}, ()), **untouched}, mistakes


def _unknown(text: str, values: Mapping[str, Any]) -> Iterator[str]:
    return (name for name in _PARAMETER.findall(text) if name not in values)
