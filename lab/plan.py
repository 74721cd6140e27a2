"""What a run would do, without doing it: the network drawn in text, the work, and about how long it takes."""

from __future__ import annotations

from collections.abc import Iterator

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


def steps(scenario: Scenario) -> Iterator[str]:
    """The work in order, a line each."""
    for name in scenario.contenders:
        count = sum(check.only in (None, name) for check in scenario.checks)
        yield f"check {name}: {count} checks"
    if not scenario.plan.timing:
        yield "no timing"
        return
    for name, measure in scenario.measure.items():
        subjects = ", ".join(measure.subjects(scenario.contenders))
        yield f"measure {name} ({measure.layer}, {measure.unit}): {scenario.plan.rounds} rounds of {subjects}"
    yield f"judge {len(scenario.targets)} targets"


def seconds(scenario: Scenario) -> float:
    """About how long a run takes."""
    total = SETUP_SECONDS
    for name in scenario.contenders:
        total += START_SECONDS + CHECK_SECONDS * sum(check.only in (None, name) for check in scenario.checks)
    if scenario.plan.timing:
        a_round = START_SECONDS * len(scenario.contenders) + sum(
            measure.seconds(scenario.plan.warmup) * len(measure.subjects(scenario.contenders))
            for measure in scenario.measure.values()
        )
        total += min(a_round * scenario.plan.rounds, scenario.plan.max_time)
    return total
