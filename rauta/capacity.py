"""How many routes and host names there is room for: maps are made when programs are loaded, and do not grow."""

from __future__ import annotations

from dataclasses import dataclass

from rauta.config import Config
from rauta.errors import RautaError

__all__ = ["Room", "capacity", "require_room", "route_count"]

_LEAST_ROOM = 1024  # routes and hosts, if the configuration does not say


@dataclass(frozen=True)
class Room:
    """How many routes and host names there may be at a time; a router has room for two sets of them while they change.

    An agent needs none for host names.
    """

    routes: int
    hosts: int


def capacity(config: Config) -> Room:
    """How many routes and host names a router or agent that is started with this configuration has room for."""
    return Room(
        routes=config.capacity.routes or max(_LEAST_ROOM, 2 * route_count(config)),
        hosts=config.capacity.hosts or max(_LEAST_ROOM, 2 * _host_count(config)),
    )


def route_count(config: Config) -> int:
    """How many there are, over all VIPs."""
    return sum(len(vip.routes) for vip in config.vips)


def require_room(config: Config, who: str, *, routes: int, hosts: int | None = None) -> None:
    """RautaError if a configuration has more than `who`, "router" or "agent", was started with room for.

    `hosts`: None if they take no room there.
    """
    for name, wanted, there in (("routes", route_count(config), routes), ("hosts", _host_count(config), hosts)):
        if there is not None and wanted > there:
            raise RautaError(
                "changing the configuration",
                f"it has {wanted} {name}, and the {who} was started with room for {there}",
                f"Set capacity.{name} to {wanted} or more, and restart it.",
            )


def _host_count(config: Config) -> int:
    return sum(len({route.host for route in vip.routes}) for vip in config.vips)
