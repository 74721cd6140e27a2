"""What a run would do, without doing it: the network drawn in text, the work, and about how long it takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lab.bench import groups
from lab.checking import applies
from lab.matrix import label
from lab.scenario import Link, Scenario
from lab.topology import ATTACKER, FABRIC, Host, planned_hosts
from lab.wiring import CROWD, SWITCHES, Wire, wires

SETUP_SECONDS = 2.0
CHECK_SECONDS = 1.0
START_SECONDS = 0.5


def draw(scenario: Scenario) -> str:
    """The network, a block a switch: who hangs on it, with which address, what the cable does, and what runs there."""
    kind, mtu = scenario.topology.kind, scenario.topology.link.mtu
    hosts = planned_hosts(scenario)
    cables = wires(kind, hosts)
    if not SWITCHES[kind]:
        router = next(host for host in hosts if host.role == "router")
        rows = [_row(scenario, one) for one in cables]
        what = _role(scenario, router)[1]
        return f"{_block(rows, f' {router.name} {router.address}, mtu {mtu}')}\n\n{router.name} {what}"
    blocks = []
    for switch in SWITCHES[kind]:
        here = [one for one in cables if one.switch == switch]
        rows = [_row(scenario, one) for one in here]
        blocks.append(_block(rows, f" {FABRIC}: {switch}, mtu {mtu}"))
    return "\n\n".join(blocks)


def _row(scenario: Scenario, wire: Wire) -> tuple[str, str, str, str, str]:
    """Name, address, interface, what the cable does, what runs there."""
    return wire.host.name, str(wire.address), wire.interface, *_role(scenario, wire.host)


def _block(rows: Sequence[tuple[str, str, str, str, str]], label: str) -> str:
    names, addresses, _, cables, _ = (max(len(row[column]) for row in rows) for column in range(5))
    lines = []
    for number, (name, address, interface, cable, role) in enumerate(rows):
        joint = "┐" if number == 0 else "┘" if number == len(rows) - 1 else "┤"
        note = label if number == len(rows) // 2 else ""
        line = f"{name:<{names}}  {address:<{addresses}}  {interface} ─{cable:─<{cables}}─{joint}"
        lines.append(f"{line}{note:<{len(label)}}   {role}")
    return "\n".join(lines)


def _role(scenario: Scenario, host: Host) -> tuple[str, str]:
    """(what its cable does, what runs there)."""
    link = scenario.topology.link_of(host.role)
    if host.role == "client":
        role = "clients and load"
    elif host.role == "router":
        vips = ", ".join(f"{vip.name} {vip.address}:{vip.port}" for vip in scenario.routing.config.vips)
        role = f"answers for {vips}"
    elif host.role == ATTACKER:
        role = f"attacks, from {CROWD}"
    else:
        role = f"serves {host.role} on port {scenario.servers[host.role].port}"
    return _cable(link), role + _on(host.cpus)


def _cable(link: Link) -> str:
    """Its conditions, in the middle of the line: " 5 ms, loss 1% "."""
    words = [f"{link.rate / 1e6:g} Mbit/s"] if link.rate is not None else []
    words += [f"{link.delay * 1e3:g} ms"] if link.delay else []
    words += [f"{name} {getattr(link, name):.3%}" for name in ("loss", "duplicate", "reorder") if getattr(link, name)]
    return f" {', '.join(words)} " if words else ""


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
