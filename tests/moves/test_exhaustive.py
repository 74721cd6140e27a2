"""A connection that moves, whatever the network does: docs/handover.md, "Exhaustive check".

RAUTA_LONG=1 python -m pytest tests/moves -s        also what takes minutes; -s shows the figures
"""

import os
from collections.abc import Iterator

import pytest
from packets.bench import BACKENDS, Router
from packets.frames import Connection
from packets.oracle import Route

from moves.explore import Explored, explore
from moves.machines import AgentMachine, RouterMachine
from moves.model import Model, Scenario
from moves.scenarios import CI, LONG

NAMES = {"A": "web-1", "B": "api-1"}
TABLES = (
    (Route("web", prefix="/a"), Route("api", prefix="/b")),
    (Route("web", prefix="/a"), Route("web", prefix="/b")),
)
LIMIT = 2_000_000  # states of a scenario: so much memory there is
LONGER = bool(os.environ.get("RAUTA_LONG"))
SCENARIOS = CI + (LONG if LONGER else ())


@pytest.fixture(scope="module")
def total() -> Iterator[Explored]:
    """Counts up over all scenarios; printed at the end."""
    total = Explored(f"{len(SCENARIOS)} scenarios")
    yield total
    print(f"\n{total}")


@pytest.fixture(scope="module")
def machines(total: Explored) -> Iterator[tuple[Connection, RouterMachine, dict[str, AgentMachine]]]:
    """The programs, loaded; the agents are attached, each in a namespace of its own."""
    router = Router()
    addresses = {BACKENDS[backend].address: name for name, backend in NAMES.items()}
    connection = next(
        one for one in map(Connection, range(40000, 41000)) if router.backend_of("web", one) == NAMES["A"]
    )
    agents = {name: AgentMachine(name, address, addresses, connection) for address, name in addresses.items()}
    with router.object:
        machine = RouterMachine(router, connection, addresses, TABLES)
        yield connection, machine, agents
    total.runs = sum(len(one.steps) for one in (machine, *agents.values()))
    for agent in agents.values():
        agent.close()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_nothing_that_the_network_does_breaks_a_move(
    machines: tuple[Connection, RouterMachine, dict[str, AgentMachine]], total: Explored, scenario: Scenario
) -> None:
    found = explore(Model(scenario, *machines), LIMIT)
    print(f"\n{found}")
    total.add(found)
    assert not found.violations, "\n".join(found.violations)
    assert found.complete


PLAIN = ("a b", "a b, and the routes change", "a b a", "a, POST b")[: None if LONGER else 1]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", PLAIN)
def test_what_is_left_out_leads_nowhere_else(
    machines: tuple[Connection, RouterMachine, dict[str, AgentMachine]], name: str
) -> None:
    """Without the reduction there are more states, but they differ by what is under way alone."""
    scenario = next(one for one in SCENARIOS if one.name == name)
    plain, reduced = (explore(Model(scenario, *machines, reduced=one), LIMIT) for one in (False, True))
    print(f"\nwithout reduction: {plain}")
    assert plain.complete
    assert not plain.violations
    assert plain.reached == reduced.reached
