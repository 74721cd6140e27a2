"""All states that a model can come to, breadth first."""

from __future__ import annotations

from dataclasses import dataclass, field

from moves.model import Model, State, Violation, key_of
from moves.wire import Packet


@dataclass
class Explored:
    """What has been looked at, and what was found wrong: the way there, step by step."""

    name: str
    states: int = 0
    transitions: int = 0
    fair: int = 0  # states from which the network was fair; those that differ by what is under way are one
    packets: int = 0  # that are different
    runs: int = 0  # of the programs; only the sum of all scenarios is known
    complete: bool = True
    reached: set[tuple[int, int, int, int, frozenset[int]]] = field(default_factory=set)  # states without the network
    violations: list[str] = field(default_factory=list)

    def add(self, other: Explored) -> None:
        """Counts another scenario in."""
        self.states += other.states
        self.transitions += other.transitions
        self.fair += other.fair
        self.packets += other.packets

    def __str__(self) -> str:
        runs = f", {self.runs:,} runs of the programs" if self.runs else ""
        return (
            f"{self.name}: {self.states:,} states, {self.transitions:,} transitions, {self.packets:,} packets, "
            f"{self.fair:,} states from which all is answered{runs}"
        )


def explore(model: Model, limit: int | None = None) -> Explored:
    """Every state, or the first `limit`; ends with the first violation."""
    found = Explored(model.scenario.name)
    first = model.first()
    parents: dict[State, tuple[State, str, str | Packet] | None] = {first: None}
    layer = [first]
    while layer and found.complete and not found.violations:
        following: list[State] = []
        for state in layer:
            try:
                model.check_answered(state)
            except Violation as violation:
                found.violations.append(f"{violation}\n{way_to(state, parents)}")
                break
            for who, event in model.events(state):
                found.transitions += 1
                try:
                    reached = model.after(state, who, event)
                except AssertionError as violation:
                    found.violations.append(f"{violation!r}\n{way_to(state, parents)}\n  {who}: {event}")
                    break
                if reached not in parents:
                    parents[reached] = (state, who, event)
                    following.append(reached)
            if found.violations:
                break
            if limit is not None and len(parents) >= limit:
                found.complete = False
                break
        layer = following
    found.reached = {key_of(state) for state in parents}
    found.states, found.packets, found.fair = len(parents), len(model.packets), len(model.answered)
    return found


def way_to(state: State, parents: dict[State, tuple[State, str, str | Packet] | None]) -> str:
    """The steps that have led to a state."""
    steps: list[str] = []
    step = parents[state]
    while step is not None:
        before, who, event = step
        steps.append(f"  {who}: {event}")
        step = parents[before]
    return "\n".join(reversed(steps))
