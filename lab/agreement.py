"""What the fields of a scenario must agree on: with each other, and with the routing file.

Each rule is a function whose parameters name the sections it compares. Sections that are mistyped are left out, and
the rules that need them with them; so one misspelt word in ``topology`` does not hide an unknown cluster in
``checks``.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from lab import contenders as known_contenders
from lab.background import SynFlood
from lab.samples import CPU_QUANTITIES, QUANTILES, STATISTICS, Quantity
from lab.topology import ATTACKER, FABRIC
from lab.wiring import ATTACKER_ADDRESS, CLIENT_ADDRESS, OTHERS, ROUTER_ADDRESS, SUBNET, SWITCHES
from rauta.config import Config
from rauta.files.mistakes import Location, Mistake, explain
from rauta.units import SECONDS

if TYPE_CHECKING:
    from lab.background import Background, Load
    from lab.checks import Check
    from lab.measure import Measure
    from lab.scenario import Link, Profile, Scenario, Target, Topology
    from lab.servers import Server

SINGLE = ("client", "router")
MOST = 100
"""clients, and routers"""
RESERVED = {*SINGLE, ATTACKER, FABRIC, "lo", *(name for switches in SWITCHES.values() for name in switches)}


def mistakes(model: type[BaseModel], data: Mapping[str, Any], config: Config | None) -> list[Mistake]:
    """All contradictions in a scenario's data, whatever else is wrong with it.

    Args:
        model: the Scenario model.
        data: the file's content, parameters filled in.
        config: the routing file's content; None if it could not be read.
    """
    sections = dict(_valid_sections(model, data))
    if config is not None:
        sections["config"] = config
    found: list[Mistake] = []
    for rule in RULES:
        needed = inspect.signature(rule).parameters
        if all(name in sections for name in needed):
            found += rule(**{name: sections[name] for name in needed})
    return found


def mistakes_across(cells: Sequence[Scenario], params: Mapping[str, Any]) -> Iterator[Mistake]:
    """Cells that targets name and that the matrix does not have. (Cells with mistakes of their own are not here.)

    Args:
        cells: those that are to run.
        params: those of the file, whatever the command line has chosen from them: what it left out is not measured.
    """
    choices = {name: [cell.params.get(name) for cell in cells] for cell in cells[:1] for name in cell.params}
    for name, value in params.items():
        choices.setdefault(name, []).extend(value if isinstance(value, list) else [value])
    for where, wanted in _cells_wanted(cells[0]) if cells else ():
        for param, value in wanted.items():
            if value not in choices.get(param, ()):
                known = ", ".join(sorted({str(choice) for choice in choices.get(param, choices)}))
                allowed = known or "define it under `params`"
                yield Mistake((*where, param), f"no cell has the value {value!r}", allowed)


def _cells_wanted(scenario: Scenario) -> Iterator[tuple[Location, Mapping[str, Any]]]:
    """Each place that names cells, and the values of theirs that it names."""
    for index, target in enumerate(scenario.targets):
        yield ("targets", index, "at"), target.at
        yield ("targets", index, "against"), target.against or {}
        yield ("targets", index, "above"), target.above or {}
    for index, load in enumerate(scenario.background):
        yield ("background", index, "at"), load.at


def _valid_sections(model: type[BaseModel], data: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        if name not in data:
            if not field.is_required():
                yield name, field.get_default(call_default_factory=True)
            continue
        annotation: Any = field.annotation
        try:
            yield name, TypeAdapter(annotation).validate_python(data[name])
        except ValidationError:
            continue


# ---- the network ----------------------------------------------------------------------------------------


def _host_counts(topology: Topology, config: Config) -> Iterator[Mistake]:
    expected = dict.fromkeys(SINGLE, 1) | {cluster.name: len(cluster.backends) for cluster in config.clusters}
    for role, count in topology.hosts.items():
        where: Location = ("topology", "hosts", role)
        if role == ATTACKER:
            yield from _attackers(where, count, topology.kind)
        elif role not in expected:
            yield Mistake(where, "is neither client, router nor a cluster of the routing file", ", ".join(expected))
        elif role not in SINGLE and count != expected[role]:
            source = f"the routing file has {expected[role]} in cluster {role!r}"
            yield Mistake(where, f"{count} hosts, but {source}", str(expected[role]))
        elif role in SINGLE and count > MOST:
            yield Mistake(where, f"{count} hosts, but there is room for {MOST}", f"1 to {MOST}")
    if topology.hosts.get("router", 1) > topology.hosts.get("client", 1):
        problem = "more routers than clients: each client goes through one of them"
        yield Mistake(("topology", "hosts", "router"), problem, f"1 to {topology.hosts.get('client', 1)}")
    for role in expected.keys() - topology.hosts.keys():
        yield Mistake(("topology", "hosts"), f"{role!r} is missing", f"{role}: {expected[role]}")


def _attackers(where: Location, count: int, kind: str) -> Iterator[Mistake]:
    if count != 1:
        yield Mistake(where, f"{count} attackers, but one has all the addresses that they could need", "1")
    if kind != "one-armed":
        yield Mistake(where, f"an attacker cannot be reached in a {kind} network", "kind: one-armed")


def _links(topology: Topology, config: Config) -> Iterator[Mistake]:
    roles = [*SINGLE, *(cluster.name for cluster in config.clusters)]
    for role in topology.links.keys() - set(roles):
        yield Mistake(("topology", "links", role), "is neither client, router nor a cluster", ", ".join(roles))
    places: dict[tuple[str, ...], Link] = {("link",): topology.link}
    places |= {("links", role): link for role, link in topology.links.items()}
    for where, link in places.items():
        if link.reorder and not link.delay:
            problem = "a frame can only overtake one that is held"
            yield Mistake(("topology", *where, "reorder"), problem, "a delay beside it")


def _without_switch(topology: Topology, measure: dict[str, Measure]) -> Iterator[Mistake]:
    """What cannot be where every cable goes straight to the router."""
    if topology.kind != "direct":
        return
    if topology.hosts.get("router", 1) > 1:
        yield Mistake(("topology", "hosts", "router"), "every cable goes to one router", "1")
    if topology.link.conditions or topology.links:
        yield Mistake(("topology", "link"), "conditions are made on a switch, and there is none", "one- or two-armed")
    for name, one in measure.items():
        if one.layer == "veth":
            yield Mistake(("measure", name, "layer"), "frames are counted behind a switch", "bpf, http")


def _host_names(config: Config) -> Iterator[Mistake]:
    seen: dict[str, str] = {}
    for cluster in config.clusters:
        for backend in cluster.backends:
            if backend.name in RESERVED:
                problem = f"the routing file has a backend called {backend.name!r}"
                yield Mistake(("routing", "file"), problem, f"any name but {', '.join(sorted(RESERVED))}")
            if (other := seen.setdefault(backend.name, cluster.name)) != cluster.name:
                problem = f"backend {backend.name!r} is in the clusters {other!r} and {cluster.name!r}"
                yield Mistake(("routing", "file"), problem, "one cluster for each host of the lab")


def _addresses(config: Config) -> Iterator[Mistake]:
    where: Location = ("routing", "file")
    taken = {CLIENT_ADDRESS: "the client", ROUTER_ADDRESS: "the router", ATTACKER_ADDRESS: "the attacker"}
    for cluster in config.clusters:
        for backend in cluster.backends:
            if backend.address not in SUBNET:
                yield Mistake(where, f"backend {backend.name!r} has the address {backend.address}", f"one in {SUBNET}")
            if any(backend.address in network for network in OTHERS.values()):
                problem = f"backend {backend.name!r} has the address {backend.address}, which clients and routers use"
                yield Mistake(where, problem, f"one outside {' and '.join(map(str, OTHERS.values()))}")
            owner = taken.setdefault(backend.address, f"backend {backend.name!r}")
            if owner != f"backend {backend.name!r}":
                yield Mistake(where, f"backend {backend.name!r} has the address of {owner}", "a different one")
    for vip in config.vips:
        if vip.address in taken:
            yield Mistake(where, f"VIP {vip.name!r} has the address of {taken[vip.address]}", "one that no host has")


def _servers(servers: dict[str, Server], config: Config) -> Iterator[Mistake]:
    clusters = {cluster.name: cluster for cluster in config.clusters}
    for name, server in servers.items():
        if name not in clusters:
            yield _unknown_cluster(("servers", name), name, clusters)
            continue
        for backend in clusters[name].backends:
            if backend.port != server.port:
                problem = f"port {server.port}, but the routing file sends requests to {backend.name} on {backend.port}"
                yield Mistake(("servers", name), problem, f"port: {backend.port}")
                break
    for name in clusters.keys() - servers.keys():
        yield Mistake(("servers",), f"cluster {name!r} has no server", f"{name}: {{nginx: {{...}}}}")


# ---- what is done with it -------------------------------------------------------------------------------


def _contenders(contenders: tuple[str, ...], profiles: dict[str, Profile]) -> Iterator[Mistake]:
    twins = [name for name in contenders if _is_twin(name, contenders)]
    yield from _contender_list(("contenders",), contenders, (*known_contenders.NAMES, *twins))
    for name, profile in profiles.items():
        if profile.contenders is not None:
            yield from _contender_list(("profiles", name, "contenders"), profile.contenders, contenders)


def _is_twin(name: str, contenders: Iterable[str]) -> bool:
    """Whether it is another one of the list once more, for an A/A pair: ``direct#2`` beside ``direct``."""
    original, _, number = name.partition("#")
    return number.isdigit() and original in contenders


def _contender_list(where: Location, names: Iterable[str], allowed: Iterable[str]) -> Iterator[Mistake]:
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name not in allowed:
            yield Mistake((*where, index), f"no contender is called {name!r}", ", ".join(allowed))
        elif name in seen:
            yield Mistake((*where, index), f"{name!r} is there twice", "each contender once")
        seen.add(name)


def _settings(settings: dict[str, dict[str, Any]]) -> Iterator[Mistake]:
    for name, fields in settings.items():
        if name not in known_contenders.NAMES:
            allowed = ", ".join(known_contenders.NAMES)
            yield Mistake(("settings", name), f"no contender is called {name!r}", allowed)
            continue
        model = known_contenders.find(name).settings
        try:
            model.model_validate(fields)
        except ValidationError as error:
            for mistake in explain(model, fields, error):
                yield dataclasses.replace(mistake, path=("settings", name, *mistake.path))


def _profile_params(params: dict[str, Any], profiles: dict[str, Profile]) -> Iterator[Mistake]:
    for name, profile in profiles.items():
        for param in profile.params.keys() - params.keys():
            allowed = ", ".join(params) or "none, the scenario has no `params`"
            yield Mistake(("profiles", name, "params", param), f"no parameter is called {param!r}", allowed)


def _checks(checks: tuple[Check, ...], contenders: tuple[str, ...], config: Config) -> Iterator[Mistake]:
    for index, check in enumerate(checks):
        yield from _names_of(("checks", index), check, contenders, config)


def _measures(measure: dict[str, Measure], contenders: tuple[str, ...], config: Config) -> Iterator[Mistake]:
    for name, one in measure.items():
        yield from _names_of(("measure", name), one, contenders, config)


def _background(
    background: tuple[Background, ...],
    topology: Topology,
    contenders: tuple[str, ...],
    config: Config,
    params: dict[str, Any],
) -> Iterator[Mistake]:
    for index, load in enumerate(background):
        where: Location = ("background", index)
        yield from _names_of(where, load, contenders, config)
        for name in load.at.keys() - params.keys():
            allowed = ", ".join(params) or "none, the scenario has no `params`"
            yield Mistake((*where, "at", name), f"no parameter is called {name!r}", allowed)
        if isinstance(load, SynFlood):
            yield from _flood((*where, "syn_flood"), topology, contenders)


def _flood(where: Location, topology: Topology, contenders: tuple[str, ...]) -> Iterator[Mistake]:
    if ATTACKER not in topology.hosts:
        yield Mistake(where, "there is no attacker to send it", "topology.hosts: {attacker: 1, ...}")
    if others := [name for name in contenders if name.partition("#")[0] != "rauta"]:
        yield Mistake(where, f"{others[0]} does not count the SYNs that it answers", "contenders: [rauta]")


def _names_of(where: Location, what: BaseModel, contenders: Iterable[str], config: Config) -> Iterator[Mistake]:
    """The cluster and the contender that a check or a measure may name."""
    clusters = [cluster.name for cluster in config.clusters]
    cluster, only = getattr(what, "cluster", None), getattr(what, "only", None)
    if isinstance(cluster, str) and cluster not in clusters:
        yield _unknown_cluster((*where, "cluster"), cluster, clusters)
    if isinstance(only, str) and only not in contenders:
        yield Mistake((*where, "only"), f"no contender is called {only!r}", ", ".join(contenders))


def _unknown_cluster(where: Location, name: str, clusters: Iterable[str]) -> Mistake:
    return Mistake(where, f"no cluster of the routing file is called {name!r}", ", ".join(clusters))


# ---- targets --------------------------------------------------------------------------------------------


def _targets(
    targets: tuple[Target, ...],
    measure: dict[str, Measure],
    contenders: tuple[str, ...],
    background: tuple[Background, ...],
) -> Iterator[Mistake]:
    for index, target in enumerate(targets):
        where: Location = ("targets", index)
        yield from _bounds(where, target)
        loads = [load for load in background if load.at.items() <= target.at.items()]
        if not _is_measured(target, measure, loads):
            allowed = ", ".join(_metrics(measure, loads))
            yield Mistake(
                (*where, "metric"), f"no measure makes {target.metric!r}", allowed or "define it under `measure`"
            )
            continue
        yield from _terms(where, target, measure[target.measure], loads, contenders)


def _metrics(measure: Mapping[str, Measure], loads: Sequence[Load]) -> Iterator[str]:
    """What targets can name; quantities are shown once, with the median."""
    for name, one in measure.items():
        yield from (f"{name}.{statistic}" for statistic in _statistics(one))
        yield from (f"{name}.{quantity}.median" for quantity in quantities(one, loads))


def _statistics(measure: Measure) -> tuple[str, ...]:
    return tuple(name for name in STATISTICS if name not in QUANTILES or measure.has_histogram)


def quantities(measure: Measure, background: Sequence[Load] = ()) -> Mapping[str, Quantity]:
    """What samples say, and what can be judged, besides the measure's own quantity: what its instrument says, the
    machine's CPU time, and what goes on in the background while a contender runs.
    """
    found = {**measure.quantities, **(CPU_QUANTITIES if measure.layer == "http" else {})}
    for load in background if measure.needs_contender else ():
        found |= load.quantities
    return found


def _is_measured(target: Target, measure: Mapping[str, Measure], loads: Sequence[Load]) -> bool:
    one = measure.get(target.measure)
    if one is None or target.statistic not in _statistics(one):
        return False
    return not target.quantity or (target.quantity in quantities(one, loads) and target.statistic not in QUANTILES)


def _bounds(where: Location, target: Target) -> Iterator[Mistake]:
    if target.min is None and target.max is None:
        yield Mistake(where, "has no bound", "min, max or both")
    terms = [name for name in ("ratio_to", "over", "against", "above") if getattr(target, name) is not None]
    if len(terms) > 1:
        yield Mistake((*where, terms[1]), f"compared twice, there is {terms[0]} already", " or ".join(terms))


def _terms(
    where: Location, target: Target, measure: Measure, loads: Sequence[Load], contenders: tuple[str, ...]
) -> Iterator[Mistake]:
    subjects = measure.subjects([name for name in contenders if name.partition("#")[0] in known_contenders.NAMES])
    for name in ("of", "ratio_to", "over"):
        subject = getattr(target, name)
        if subject is not None and subject not in subjects:
            problem = f"{target.measure!r} is not measured for {subject!r}"
            yield Mistake((*where, name), problem, ", ".join(subjects))
    described = quantities(measure, loads)[target.quantity] if target.quantity else measure.quantity
    unit = "" if target.is_ratio else described.unit
    for name in ("min", "max"):
        bound = getattr(target, name)
        if bound is not None and (bound.unit in SECONDS) != (unit in SECONDS):
            problem = f"{bound} cannot bound {'a ratio' if target.is_ratio else f'a measure in {unit}'}"
            yield Mistake(
                (*where, name), problem, "a plain number" if unit not in SECONDS else f"a duration such as 200{unit}"
            )


Rule = Callable[..., Iterator[Mistake]]
RULES: tuple[Rule, ...] = (
    _host_counts,
    _links,
    _without_switch,
    _host_names,
    _addresses,
    _servers,
    _contenders,
    _settings,
    _profile_params,
    _checks,
    _measures,
    _background,
    _targets,
)
