"""RAUTA: the router in its host's namespace, an agent in each backend's, loaded as any user would.

Where the routing file has a fallback, that is on the router's host, too.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel

from lab.contenders import proxy
from lab.contenders.settings import Settings
from lab.interfaces import Frame, Layer
from rauta import fallback, tables
from rauta.agent import Agent
from rauta.asking.recovery import Recovery
from rauta.bpf import Map, Program, ProgramInfo
from rauta.bpf.layout import ArrayLayout, StructLayout
from rauta.fallback import Kind
from rauta.keys import CookieKeys, Keys
from rauta.router import Router

if TYPE_CHECKING:
    from lab.scenario import Scenario
    from lab.topology import Host, Network
    from rauta.config import Config, Vip

NOBODY = b"\x02\x00\x00\x00\x00\x03"
"""a MAC address"""
VERDICTS: Mapping[Frame, str] = {
    "first-request": "ROUTED_FIRST",
    "next-request": "ROUTED_NEXT",
    "syn": "TX_SYN_ACK",
    "later": "FORWARDED",
    "flood": "TX_SYN_ACK",
}


class RautaSettings(Settings):
    """``fallback``: which proxy gets what XDP does not route, if the routing file has a fallback at all."""

    fallback: Kind = "nginx"


@dataclass(frozen=True)
class Rauta:
    """The contender ``rauta``."""

    name: str = "rauta"
    layers: frozenset[Layer] = frozenset({"bpf", "veth", "http"})
    settings: type[BaseModel] = RautaSettings

    def start(self, network: Network, scenario: Scenario, stack: ExitStack) -> RunningRauta:
        """Load the router and the agents. Native XDP: a generic one would be measured as something that it is not."""
        config, keys = scenario.routing.config, Keys.generate()
        settings = RautaSettings.model_validate(scenario.settings.get(self.name, {}))
        stack.enter_context(network.ready_for_xdp())
        agents = {}
        for backend in config.backends():
            agents[backend] = stack.enter_context(Agent.load(config, keys, backend=backend))
            with network.hosts[backend].entered():
                agents[backend].attach(network.hosts[backend].interface)
        routers, recoveries = [], []
        for host in network.routers:
            if config.fallback is not None:
                start_fallback(network, host, stack, config, settings.fallback)
            routers.append(stack.enter_context(Router.load(config, keys)))
            with host.entered():
                routers[-1].attach(*network.interfaces(host), mode="native")
                if config.recovery is not None:
                    recoveries.append(stack.enter_context(Recovery(routers[-1])))
        stack.callback(under_way, scenario)
        return RunningRauta(config, routers, agents, recoveries)

    def load(self, config: Config, stack: ExitStack) -> RautaProgram:
        """A router that no packet from outside can reach; its next hops are nobody's."""
        router = stack.enter_context(Router.load(config, Keys.generate()))
        backends, indices = router.config.backends(), router.ids.backend_indices(router.config)
        router.object.maps["backends"].update_batch(
            (indices[name], tables.backend_entry(backend, NOBODY)) for name, backend in backends.items()
        )
        return RautaProgram(router)


def under_way(scenario: Scenario) -> None:
    """Waits until what clients have sent at their end has reached the backends.

    A socket whose reset finds no router any more stays, and is in the way of whoever uses the client's port next.
    """
    links = (scenario.topology.link, *scenario.topology.links.values())
    time.sleep(4 * max(link.delay for link in links))


def start_fallback(network: Network, host: Host, stack: ExitStack, config: Config, kind: Kind) -> None:
    """The proxy on a router's host, which listens where the router's agent expects it."""
    with host.entered():
        address = fallback.own_address(config, network.interfaces(host)[0])

    def argv(folder: Path) -> list[str]:
        file = folder / f"{kind}.conf"
        fallback.write(file, fallback.configuration(config, kind, address=address, folder=folder))
        return fallback.command(kind, file)

    ports = config.fallback_ports().values()
    proxy.launch(network, host, stack, f"fallback-{kind}", argv, [(address, port) for port in ports])


@dataclass(frozen=True)
class RautaProgram:
    """The router's program by itself."""

    router: Router

    @property
    def program(self) -> Program:
        """The XDP program."""
        return self.router.object.programs["rauta_ingress"]

    @property
    def keys(self) -> CookieKeys:
        """It answers handshakes with these."""
        return self.router.keys.cookies

    def handled(self, frame: Frame) -> int:
        """By the verdict that such frames should get."""
        return self.router.counters()[VERDICTS[frame]]


@dataclass(frozen=True)
class RunningRauta:
    """The routers and their agents, by backend."""

    config: Config
    routers: Sequence[Router]
    agents: Mapping[str, Agent] = field(repr=False)
    recoveries: Sequence[Recovery] = ()
    """one for each router, if the configuration asks for it"""

    def target(self, cluster: str) -> tuple[IPv4Address, int]:
        """The first VIP that has a route to the cluster."""
        vip = self.vip(cluster)
        return vip.address, vip.port

    def vip(self, cluster: str) -> Vip:
        """The first VIP that has a route to the cluster."""
        return next(vip for vip in self.config.vips if any(route.cluster == cluster for route in vip.routes))

    @property
    def router(self) -> Router:
        """The first, if there are several."""
        return self.routers[0]

    @property
    def cookie_keys(self) -> CookieKeys:
        """It answers handshakes with these."""
        return self.router.keys.cookies

    @property
    def flow_key(self) -> int:
        """The key of the hash that chooses backends: an oracle needs it."""
        return self.router.keys.flow_key

    def counters(self) -> Mapping[str, int]:
        """``requests_routed``, the routers' verdicts, the agents' and what was recovered, each summed over them."""
        counters: dict[str, int] = {"requests_routed": sum(router.requests_routed for router in self.routers)}
        at_routers = [router.fallback_agent for router in self.routers if router.fallback_agent is not None]
        parts: list[Router | Agent | Recovery] = [
            *self.routers,
            *self.agents.values(),
            *at_routers,
            *self.recoveries,
        ]
        for part in parts:
            for verdict, number in part.counters().items():
                counters[verdict] = counters.get(verdict, 0) + number
        return counters

    def flow_clients(self) -> Counter[IPv4Address]:
        """Whose connections the routers' flow tables have, and how many of each client."""
        found: Counter[IPv4Address] = Counter()
        for router in self.routers:
            found.update(_clients(router.object.maps["flows"]))
        return found

    def routing_program(self) -> ProgramInfo:
        """The first router's program, which every packet of its clients passes."""
        return self.router.object.programs["rauta_ingress"].info()

    def programs(self) -> Mapping[str, Any]:
        """The router's program, and those of one agent: all agents' are the same."""
        objects = [self.router.object, next(iter(self.agents.values())).object]
        return {name: program.info() for obj in objects for name, program in obj.programs.items() if program.loaded}


def _clients(flows: Map) -> list[IPv4Address]:
    """The client of each entry of a flow table. A table of a million entries is read at once, without decoding it."""
    whole = flows.value_layout
    assert isinstance(whole, StructLayout)
    tags, entries = whole.members["tag"], whole.members["flow"]
    assert isinstance(tags.layout, ArrayLayout)
    assert isinstance(entries.layout, ArrayLayout)
    ways, entry = entries.layout.length, entries.layout.element
    assert isinstance(entry, StructLayout)
    four = entry.members["tuple"]
    assert isinstance(four.layout, StructLayout)
    client = four.offset + four.layout.members["client"].offset
    sets = np.frombuffer(flows.dump(), np.uint8).reshape(-1, whole.size)
    used = sets[:, tags.offset : tags.offset + tags.layout.size].reshape(-1, ways, 4).any(axis=2)
    flow = sets[:, entries.offset : entries.offset + entries.layout.size].reshape(-1, ways, entry.size)
    return [IPv4Address(address.tobytes()) for address in flow[used][:, client : client + 4]]


CONTENDERS = (Rauta(),)
