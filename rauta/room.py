"""How many routes and host names a router or an agent has room for, from its start on."""

from __future__ import annotations

from dataclasses import dataclass

from rauta.config import Config

__all__ = ["Room", "capacity"]

_LEAST_ROOM = 1024  # routes and hosts, if the configuration does not say


@dataclass(frozen=True)
class Room:
    """How many routes and host names there may be at a time; a router's maps hold two sets while they change."""

    routes: int
    hosts: int


def capacity(config: Config) -> Room:
    """How many routes and host names whoever starts with this configuration has room for."""
    routes = sum(len(vip.routes) for vip in config.vips)
    hosts = sum(len({route.host for route in vip.routes}) for vip in config.vips)
    return Room(
        routes=config.capacity.routes or max(_LEAST_ROOM, 2 * routes),
        hosts=config.capacity.hosts or max(_LEAST_ROOM, 2 * hosts),
    )
