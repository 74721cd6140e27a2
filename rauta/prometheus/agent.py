"""An agent's figures as Prometheus reads them: see rauta.prometheus.metrics.

Of a route there are two dozen series and more, so only of those that the agent has had requests of; and what has not
changed since the scrape before is not written again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rauta.agent import Agent
from rauta.bpf.layout import StructLayout
from rauta.contract import VERDICT_AGENT_AGAIN, VERDICT_AGENT_DROP, VERDICT_AGENT_EGRESS, VERDICT_AGENT_OUT
from rauta.figures import STATUSES
from rauta.fingerprints import UNKNOWN, fingerprints, route_label
from rauta.ids import route_name
from rauta.latency import FIRST_BYTE_BOUNDS, Histogram
from rauta.loading import is_agent_verdict
from rauta.prometheus import families
from rauta.prometheus.counting import totals

if TYPE_CHECKING:
    from rauta.config import Config
    from rauta.ids import RouteName
    from rauta.processes.agentd import AgentDaemon
    from rauta.prometheus.metrics import CommonPart
    from rauta.prometheus.text import Labels

__all__ = ["AgentPage", "Routes", "packets"]

_WORD = 8  # bytes
_NS = 1e-9
_EGRESS_LOST = {"AGENT_EGRESS_DROP", "AGENT_EGRESS_MUTED"}
_UNKNOWN = ("unknown", "unknown")
"""VIP and route of what the router has not said"""


class AgentPage:
    """Makes the page of an agent that runs; by one thread at a time."""

    def __init__(self, daemon: AgentDaemon, common: CommonPart) -> None:
        self._daemon = daemon
        self._common = common
        self._routes = Routes(daemon.options.backend, daemon.agent)

    def render(self) -> bytes:
        """The page, as it is sent."""
        agent, backend = self._daemon.agent, self._daemon.options.backend
        return "".join(
            (self._routes.text(agent), packets(agent, backend), self._common.text(self._daemon, agent))
        ).encode()


class Routes:
    """The families of what agents count by route; of each route's series, what they said last."""

    def __init__(self, backend: str, agent: Agent) -> None:
        self._backend = backend
        layout = agent.object.btf.struct("route_figures")
        if not isinstance(layout, StructLayout):
            raise TypeError("struct route_figures is no struct")
        self._width = layout.size // _WORD
        self._at = {name: member.offset // _WORD for name, member in layout.members.items()}
        self._config: Config | None = None
        self._labels: dict[int, Labels] = {0: (*_UNKNOWN, backend)}
        self._written: dict[Labels, tuple[bytes, tuple[str, str, str]]] = {}

    def text(self, agent: Agent) -> str:
        """All of an agent's."""
        before, self._written = self._written, {}
        for labels, value in self._found(agent):
            known = before.get(labels)
            same = known is not None and known[0] == value
            self._written[labels] = known if known is not None and same else (value, self._series(labels, value))
        parts = list(zip(*(series for _, series in self._written.values()), strict=True)) or [(), (), ()]
        heads = (families.AGENT_REQUESTS.head, families.AGENT_RESPONSES.head, families.AGENT_FIRST_BYTE.head)
        return "".join(head + "".join(series) for head, series in zip(heads, parts, strict=True))

    def _found(self, agent: Agent) -> Iterator[tuple[Labels, bytes]]:
        """What there is anything of; and what is of no known route, in any case."""
        if self._config is not agent.config:
            self._config = agent.config
            names = (route_name(vip, route) for vip in agent.config.vips for route in vip.routes)
            self._labels = {one: (*_named(name), self._backend) for name, one in fingerprints(names).items()}
            self._labels[UNKNOWN] = *_UNKNOWN, self._backend
        found = dict(agent.figures.raw())
        found.setdefault(UNKNOWN, bytes(_WORD * self._width))
        return ((self._labels[one], value) for one, value in found.items() if one in self._labels)

    def _series(self, labels: Labels, value: bytes) -> tuple[str, str, str]:
        counts = totals(value, self._width)
        requests, statuses, first = (self._at[name] for name in ("requests", "statuses", "bucket"))
        begin = families.AGENT_REQUESTS.begin(labels)
        answers = "".join(
            f"{families.AGENT_RESPONSES.begin((*labels, status))} {counts[statuses + number]}\n"
            for number, status in enumerate(STATUSES)
        )
        buckets = tuple(counts[first : first + len(FIRST_BYTE_BOUNDS)])
        times = Histogram(buckets, counts[self._at["sum"]] * _NS, FIRST_BYTE_BOUNDS)
        return f"{begin} {counts[requests]}\n", answers, families.AGENT_FIRST_BYTE.histogram(labels, times)


def _named(name: RouteName) -> tuple[str, str]:
    return name[0], route_label(name)


def packets(agent: Agent, backend: str) -> str:
    """What has become of packets at an agent."""
    counted = agent.counters()
    numbers = {name: number for name, number in agent.object.btf.enum("verdict").items() if is_agent_verdict(name)}
    return families.AGENT_PACKETS.text(
        {(name.lower(), _action(name, numbers[name]), backend): count for name, count in counted.items()}
    )


def _action(name: str, number: int) -> str:
    """By the ranges of contract.h."""
    if number >= VERDICT_AGENT_EGRESS:
        return "dropped" if name in _EGRESS_LOST else "sent"
    if number >= VERDICT_AGENT_OUT:
        return "returned"
    if number >= VERDICT_AGENT_AGAIN:
        return "repeated"
    return "dropped" if number >= VERDICT_AGENT_DROP else "delivered"
