"""The programs, loaded once a session; every test finds them as new."""

import os
import subprocess
from collections.abc import Iterator

import pytest

from packets.bench import Agent, Router, throwaway_namespace
from packets.frames import CLIENT, LOCAL, LOCAL_PORT, SECOND_LOCAL_PORT, SECOND_VIP, SECOND_VIP_PORT, VIP, VIP_PORT
from rauta.bpf import BpfError

ROUTERS, ROUTERS_MASK = "198.19.0.0", "255.255.255.0"


@pytest.fixture(scope="session")
def loaded_router() -> Iterator[Router]:
    loaded = Router()
    with loaded.object:
        yield loaded


@pytest.fixture
def router(loaded_router: Router) -> Router:
    loaded_router.reset()
    return loaded_router


@pytest.fixture(scope="module")
def loaded_agent() -> Iterator[Agent]:
    with throwaway_namespace():
        services = {(VIP, VIP_PORT): (LOCAL, LOCAL_PORT), (SECOND_VIP, SECOND_VIP_PORT): (LOCAL, SECOND_LOCAL_PORT)}
        loaded = Agent(ROUTERS, ROUTERS_MASK, services)
        with loaded.object:
            yield loaded


@pytest.fixture
def agent(loaded_agent: Agent) -> Agent:
    loaded_agent.reset()
    return loaded_agent


@pytest.fixture(scope="module")
def server_address(loaded_agent: Agent) -> None:
    """The agent's namespace has the server's address and the client's: sockets can be made there."""
    for command in (f"address add {LOCAL}/32 dev lo", f"address add {CLIENT}/32 dev lo", "link set lo up"):
        subprocess.run(["ip", *command.split()], check=True)


@pytest.fixture
def device_sums(agent: Agent) -> None:
    """The kernel can test what becomes of the sum that a device has made of a packet (CHECKSUM_COMPLETE)."""
    try:
        agent.object.programs["rauta_agent_ingress"].test_run(bytes(64), checksum_complete=True)
    except BpfError as error:
        pytest.skip(f"this kernel cannot test that: {error}")


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """Each CPU has a rate of its own."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    yield
    os.sched_setaffinity(0, allowed)
