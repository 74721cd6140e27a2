"""Events of a router: what became of single packets, as they happen.

    router = Router.load(config, keys, observation=Observation(events=EventRates()))
    with EventReader(router) as reader:
        for event in reader.poll(1000):
            print(event)

How many there are is up to `EventRates`; `Router.event_counts` says how many there might have been. Of one client at a
time, `EventReader.following` has all packets told, also those that are no event else:

        with reader.following(IPv4Address("198.18.0.7"), 40000):
            mine = [event for event in reader.poll(1000) if event.followed]
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from types import TracebackType
from typing import Any, Self

from rauta import tables
from rauta.bpf import RingBuffer
from rauta.config import Route
from rauta.errors import RautaError
from rauta.router import Router

__all__ = ["Event", "EventReader"]

_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")
_METHOD = "METHOD_"


@dataclass(frozen=True, slots=True)
class Event:
    """What became of one packet of a client to a VIP.

    `time_ns` is of CLOCK_MONOTONIC, as `time.monotonic_ns`. Of a fragment, ports are 0 and `vip` is "". `route` is the
    one that the request in the packet has found, if there was one; `backend` the name of the one that the packet was to
    go to, if any (the fallback has none); `verdict` says whether it did. `flags`: those of its TCP header; `length`:
    bytes of its payload; `seq`: its sequence number; all 0 if it is no well-formed TCP. `method`: of the request that
    has found a route. `sampled`: it was told by its turn and rate; `followed`: because its client is followed.
    """

    time_ns: int
    client: IPv4Address
    client_port: int
    server: IPv4Address
    server_port: int
    verdict: str
    vip: str
    route: Route | None
    backend: str | None
    cpu: int
    seq: int
    length: int
    flags: int
    method: str | None
    sampled: bool
    followed: bool

    @property
    def flag_names(self) -> str:
        """The flags in words, as the headers of RFC 9293 name them: "SYN ACK"; empty if there are none."""
        return " ".join(name for bit, name in enumerate(_FLAGS) if self.flags >> bit & 1)


class EventReader:
    """The one reader of a router's events, until `close`. RautaError if the router tells none."""

    def __init__(self, router: Router) -> None:
        if router.observation.events is None:
            advice = "Load it with Observation(events=EventRates())."
            raise RautaError("reading events", "this router tells no events", advice)
        btf = router.object.btf
        self._layout = btf.struct("event")
        self._verdicts = {number: name for name, number in btf.enum("verdict").items()}
        self._methods = {number: name.removeprefix(_METHOD) for name, number in btf.enum("method").items() if number}
        self._reasons = btf.enum("event_reason")
        self._follow = router.object.maps["follow"]
        self._router = router
        self._ring = RingBuffer(router.object.maps["events"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """A descriptor that is readable when events are waiting, for `select` and event loops."""
        return self._ring.fileno()

    def poll(self, timeout_ms: int, most: int | None = None) -> list[Event]:
        """Waits for events, at most so long (0: not at all, -1: for ever), and returns all that are there.

        `most`: no more than so many; the others stay there. Those of one CPU are in the order of their packets.
        """
        waiting = select.poll()
        waiting.register(self._ring, select.POLLIN)
        waiting.poll(timeout_ms)
        return [self._event(self._layout.unpack(record)) for record in self._ring.read(most)]

    def skip(self) -> None:
        """Has those that are there now be forgotten."""
        self._ring.read()

    @contextlib.contextmanager
    def following(self, client: IPv4Address, port: int = 0) -> Iterator[None]:
        """While inside, every packet of a client becomes an event; of all his ports if `port` is 0.

        Only one client can be followed: the newest one is.
        """
        entry = {"client": tables.be32(client), "port": tables.be16(port), "enabled": 1}
        self._follow.update(0, entry)
        try:
            yield
        finally:
            self._follow.update(0, {})

    @property
    def follow_lost(self) -> int:
        """Packets of the client who is followed that found the buffer full, so far."""
        return int(self._follow.lookup(0)["lost"])

    def close(self) -> None:
        """Stops reading; safe to repeat. Events go on filling the buffer until it is full."""
        self._ring.close()

    def _event(self, fields: dict[str, Any]) -> Event:
        four, verdict, names = fields["tuple"], fields["verdict"], self._router.names
        return Event(
            time_ns=fields["time"],
            client=tables.address(four["client"]),
            client_port=socket.ntohs(four["client_port"]),
            server=tables.address(four["server"]),
            server_port=socket.ntohs(four["server_port"]),
            verdict=self._verdicts.get(verdict, str(verdict)),
            vip=names.vips.get(fields["vip"], ""),
            route=names.routes.get(fields["route"]),
            backend=names.backends.get(fields["backend"]),
            cpu=fields["cpu"],
            seq=fields["seq"],
            length=fields["length"],
            flags=fields["flags"],
            method=self._methods.get(fields["method"]),
            sampled=bool(fields["reasons"] & self._reasons["EVENT_SAMPLED"]),
            followed=bool(fields["reasons"] & self._reasons["EVENT_FOLLOWED"]),
        )
