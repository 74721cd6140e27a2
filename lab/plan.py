"""What a run would do, without doing it: the network drawn in text, the work, and about how long it takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lab.bench import groups
from lab.checking import applies
from lab.matrix import label
from lab.scenario import Scenario
from lab.topology import BRIDGE, CLIENT_ADDRESS, FABRIC, INTERFACE, ROUTER_ADDRESS

SETUP_SECONDS = 2.0
CHECK_SECONDS = 1.0
START_SECONDS = 0.5


def draw(scenario: Scenario) -> str:
    """The network: who hangs on the switch, with which address, and what runs there."""
    rows = list(_hosts(scenario))
    names = max(len(name) for name, _, _ in rows)
    addresses = max(len(address) for _, address, _ in rows)
    label = f" {FABRIC}: {BRIDGE}, mtu {scenario.topology.link.mtu}"
    lines = []
    for number, (name, address, role) in enumerate(rows):
        joint = "┐" if number == 0 else "┘" if number == len(rows) - 1 else "┤"
        note = label if number == len(rows) // 2 else ""
        cable = f"{name:<{names}}  {address:<{addresses}}  {INTERFACE} ──{joint}"
        lines.append(f"{cable}{note:<{len(label)}}   {role}")
    return "\n".join(lines)


def _hosts(scenario: Scenario) -> Iterator[tuple[str, str, str]]:
    config = scenario.routing.config
    cpus = scenario.topology.cpus
    vips = ", ".join(f"{vip.name} {vip.address}:{vip.port}" for vip in config.vips)
    yield "client", str(CLIENT_ADDRESS), f"clients and load{_on(cpus.client)}"
    yield "router", str(ROUTER_ADDRESS), f"answers for {vips}{_on(cpus.router)}"
    for cluster in config.clusters:
        for backend in cluster.backends:
            port = scenario.servers[cluster.name].port
            yield backend.name, str(backend.address), f"serves {cluster.name} on port {port}{_on(cpus.servers)}"


def _on(cpus: tuple[int, ...]) -> str:
    return f", on CPU {', '.join(map(str, cpus))}" if cpus else ""


def steps(cells: Sequence[Scenario]) -> Iterator[str]:
    """The work in order, a line each."""
    first = cells[0]
    if len(cells) > 1:
        yield f"{len(cells)} cells on {len(groups(cells))} networks: {'; '.join(label(cell.cell) for cell in cells)}"
    for name in first.contenders:
        yield f"check {name}: {sum(applies(check, name) for check in first.checks)} checks"
    if not first.plan.timing:
        yield "no timing"
        return
    for name, measure in first.measure.items():
        subjects = ", ".join(measure.subjects(first.contenders))
        yield f"measure {name} ({measure.layer}, {measure.quantity.unit}): {_rounds(first)} rounds of {subjects}"
    yield f"judge {sum(target.applies_to(cell.params) for cell in cells for target in cell.targets)} targets"


def _rounds(scenario: Scenario) -> str:
    plan = scenario.plan
    more = plan.max_rounds is not None and plan.max_rounds > plan.rounds
    return f"{plan.rounds} to {plan.max_rounds}" if more else f"{plan.rounds}"


def seconds(cells: Sequence[Scenario]) -> float:
    """About how long a run takes, if no target needs more than the plan's least rounds."""
    total = 0.0
    for group in groups(cells):
        scenario = group[0].scenario
        checks = [applies(check, name) for name in scenario.contenders for check in scenario.checks]
        total += SETUP_SECONDS + START_SECONDS * len(scenario.contenders) + CHECK_SECONDS * sum(checks)
    first = cells[0]
    if first.plan.timing:
        starts = START_SECONDS * len(first.contenders) * len(groups(cells))
        samples = sum(
            measure.seconds(cell.plan.warmup) * len(measure.subjects(cell.contenders))
            for cell in cells
            for measure in cell.measure.values()
        )
        total += min((starts + samples) * first.plan.rounds, first.plan.max_time)
    return total
