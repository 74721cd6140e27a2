"""What load generators have in common: which requests they send, from all clients of the network at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from lab.errors import LabError
from lab.interfaces import Running
from rauta.units import Duration

if TYPE_CHECKING:
    from ipaddress import IPv4Address

    from lab.topology import Host

Said = TypeVar("Said")

PATIENCE_SECONDS = 10.0
"""beyond its duration, until a generator is given up"""
CLIENT_SYSCTLS = {
    # A client that closes first keeps each port in TIME_WAIT for a minute; a load generator would run out of them.
    "net.ipv4.ip_local_port_range": "1024 65535",
    "net.ipv4.tcp_tw_reuse": "1",
}


class Load(BaseModel):
    """Requests to one cluster. ``close``: a new connection for each. ``host``: the Host header.

    ``alternate``: another path, whose requests alternate with the others; a route may lead elsewhere with it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Annotated[str, Field(pattern="^/")] = "/"
    alternate: Annotated[str, Field(pattern="^/")] | None = None
    host: str = "shop.test"
    cluster: str
    connections: Annotated[int, Field(ge=1, le=60_000)] = 32
    duration: Duration = 1.0
    close: bool = False

    @property
    def needs_contender(self) -> bool:
        """Requests go through one."""
        return True

    def seconds(self, warmup: float) -> float:
        """Warm-up and measurement."""
        return warmup + self.duration


def target(running: Running | None, subject: str, cluster: str) -> tuple[IPv4Address, int]:
    """Where a running contender takes requests for a cluster."""
    if running is None:
        raise LabError(f"sending requests to {subject}", "it is not running", "Name contenders only.")
    return running.target(cluster)


def widen_ports(clients: Sequence[Host], stack: ExitStack) -> None:
    """Let clients use almost all ports, and use them again soon, until the stack is undone."""
    for client in clients:
        for name, value in CLIENT_SYSCTLS.items():
            stack.callback(client.sysctl, name, client.sysctl(name, value))


def shares(total: int, clients: int) -> list[int]:
    """A number of connections divided among clients; each has at least one."""
    return [max(1, total // clients + (number < total % clients)) for number in range(clients)]


def on_all(clients: Sequence[Host], run: Callable[[int, Host], Said]) -> list[Said]:
    """Do the same on every client at the same time: ``run`` is given the client's number and itself."""
    if len(clients) == 1:
        return [run(0, clients[0])]
    with ThreadPoolExecutor(len(clients)) as pool:
        return list(pool.map(run, range(len(clients)), clients))
