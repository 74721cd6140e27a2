"""The agent: bpf/agent.bpf.c with a backend's services in its maps, on the backend's own interface.

    with Agent.load(load_config("shop.yaml"), keys, backend="web-1") as agent:
        agent.attach("eth0")

The router's own host has the same agent, for the fallback: rauta.router loads and attaches it.

Everything is in the maps before the programs are attached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from types import MappingProxyType
from typing import Self, TypeAlias

from rauta import keyslots, loading, tables
from rauta.bpf import (
    BpfObject,
    Direction,
    GracePeriod,
    Map,
    Program,
    TcAttachment,
    attach_tc,
    attached_tc_id,
    program_name,
)
from rauta.config import Config
from rauta.errors import RautaError
from rauta.figures import AgentRoute, RouteFigures
from rauta.keys import Keys
from rauta.tracing.sampling import Sampling
from rauta.upgrade.migration import Migration, adopt

__all__ = ["Agent", "AgentRoute"]

_SYNCOOKIES = Path("/proc/sys/net/ipv4/tcp_syncookies")


_FRAME = ("encapsulation", "recovery", "metrics", "traces")
"""what a running agent cannot change"""

_CARRIED = ("mappings", "connections", "consumed", "verdicts", "figures")
"""the maps that hold what packets have left there; all others say what the configuration does"""
_NAME_LENGTH = 15  # of what the kernel knows a program by: BPF_OBJ_NAME_LEN
_OF_CONNECTIONS = {"mappings", "connections"}
_PAUSES: dict[Direction, str] = {"egress": "rauta_pause_out", "ingress": "rauta_pause_in"}

Services: TypeAlias = Callable[[Config], list[tables.Entry]]
"""The entries of the map `services` for a host, of any configuration."""


class Agent(loading.Loaded):
    """A loaded agent, made by `load`. `keys` are those in its maps.

    `config` and `backend` are what it was loaded with ("" at a fallback), `sampling` which requests it traces;
    `figures` is what it counts by route.
    """

    def __init__(
        self, obj: BpfObject, config: Config, services: Services, keys: Keys, backend: str, *, by_route: bool = True
    ) -> None:
        """For `load`. `services`: what a configuration says for this host."""
        super().__init__(obj)
        self._slots = keyslots.KeySlots(obj, keys)
        self.config = config
        self.backend = backend
        self.sampling = Sampling()
        self._services = services
        self.made_clsact = False
        self._back = ExitStack()
        self.figures = RouteFigures(obj.maps, config, by_route=by_route)

        self._migration: Migration | None = None

    @classmethod
    def load(
        cls,
        config: Config,
        keys: Keys,
        backend: str,
        *,
        traces_one_in: int = 0,
        traces_rate: int = 100,
        by_route: bool = True,
        earlier: Mapping[str, Map] = MappingProxyType({}),
    ) -> Self:
        """Loads the programs and fills their maps for the host of the backend of that name: all VIPs that lead to it.

        Of `keys` it uses the cookie keys and the agents' secret. One request in `traces_one_in` is told to a
        `TraceReader`, and at most `traces_rate` a second on each CPU; 0 for none. `Observation` says the same for a
        router, and both are to agree. `by_route` is for `requests_by_route`: without, it has no counts by route, and
        takes no memory for them. `earlier` are the maps of an agent that this one is to take the place of, see
        `attach`: connections and counters go on; they stay open until then. RautaError if there is no such backend;
        RautaError or LoadError say what the machine lacks (the agent needs Linux 6.9), or what the verifier said.
        """
        address = config.backends()[backend].address if backend in config.backends() else None
        services = partial(_services_of, backend, address)
        return cls._load(
            config, keys, services, address, earlier, backend, (traces_one_in, traces_rate), by_route=by_route
        )

    @classmethod
    def load_fallback(
        cls, config: Config, keys: Keys, address: IPv4Address, *, earlier: Mapping[str, Map] = MappingProxyType({})
    ) -> Self:
        """Likewise for the router's own host, where a fallback listens on that address: all VIPs, nothing by route.

        RautaError if the configuration has no fallback, or uses that address for something else.
        """
        services = partial(tables.fallback_services, address=address)
        return cls._load(config, keys, services, None, earlier, "", (0, 1), by_route=False)

    @classmethod
    def _load(
        cls,
        config: Config,
        keys: Keys,
        services: Services,
        asked_at: IPv4Address | None,
        earlier: Mapping[str, Map],
        backend: str,
        traces: tuple[int, int],
        *,
        by_route: bool,
    ) -> Self:
        entries = services(config)
        agent = cls(loading.open_object("agent"), config, services, keys, backend, by_route=by_route)
        try:
            routers = config.encapsulation.source
            agent.object.rodata["routers_prefix"] = tables.be32(routers.network_address)
            agent.object.rodata["routers_mask"] = tables.be32(routers.netmask)
            agent.object.rodata["consumed_key"] = keys.consumed_key
            agent.object.rodata["digest_keys"] = keys.first_keys
            if config.recovery is not None and asked_at is not None:
                agent.object.rodata["ask_address"] = tables.be32(asked_at)
                agent.object.rodata["ask_port"] = tables.be16(config.recovery.port)
            agent.sampling = Sampling.prepare(agent.object, keys, *traces)
            agent.figures.size(config)
            left = adopt(agent.object, _CARRIED, earlier)
            for name in _PAUSES.values():
                agent.object.programs[name].set_autoload(not left.keys().isdisjoint(_OF_CONNECTIONS))
            agent.object.load()
            if (counted := left.pop("figures", None)) is not None:
                agent.figures.take_over(counted)
            if left:
                agent._migration = Migration(agent.object, left)
                agent._migration.copy()
            agent.figures.follow(config)
            if (served := earlier.get("services")) is not None:  # who does not lead here any more may have connections
                agent.object.maps["services"].update_batch(served.items_batch())
            agent._slots.fill()
            agent._serve(entries)
        except BaseException:
            agent.close()
            raise
        return agent

    @property
    def keys(self) -> Keys:
        """Its secrets, as they are in its maps."""
        return self._slots.keys

    def set_keys(self, keys: Keys) -> None:
        """Gives it other cookie keys while packets flow: see `rauta.keyslots`. The agents' secret stays.

        RautaError if `keys` have another one, which would take what it remembers of connections from it; BpfError if
        the kernel refuses. Then it may be called again.
        """
        if keys.agent_secret != self.keys.agent_secret:
            raise keyslots.other_installation("the agent")
        self._slots.exchange(keys.cookies)

    def reconfigure(self, config: Config) -> None:
        """Goes on with another configuration, while packets flow.

        A VIP that does not lead here any more keeps its place, for connections that it has here, until another one
        needs it. Routes are counted on under their names, those that are gone no more. RautaError if the configuration
        has no such backend any more, has more routes than there is room for, or needs another agent: then nothing has
        changed.
        """
        changed = [
            name
            for name in ("encapsulation", "recovery", "metrics", "traces")
            if getattr(config, name) != getattr(self.config, name)
        ]
        if changed:
            raise RautaError(
                "changing an agent's configuration",
                f"{', '.join(changed)} cannot change while it runs",
                "Restart the agent: it takes its connections over.",
            )
        services = self._services(config)
        self.figures.require_room(config)
        self.figures.follow(config)
        self._serve(services)
        self.config = config

    def _serve(self, services: Sequence[tables.Entry]) -> None:
        """Writes what is new or different; what has changed hands is not used again under a program's eyes."""
        there = {_vip(key): (key, value) for key, value in self.object.maps["services"].items_batch()}
        wanted = {_vip(key): (key, value) for key, value in services}
        new = [entry for vip, entry in wanted.items() if vip not in there]
        with GracePeriod() as grace:
            if len(there) + len(new) > self.object.maps["services"].max_entries:
                self.object.maps["services"].delete_batch(key for vip, (key, _) in there.items() if vip not in wanted)
                grace.wait()
            self.object.maps["services"].update_batch(new)
            for vip in wanted.keys() & there.keys():
                key, value = wanted[vip]
                if there[vip][1] != there[vip][1] | value:
                    self.object.maps["services"].update(key, value)
                    grace.wait()

    def attach(
        self, interface: str, *, replace: bool = False, made_clsact: bool = False
    ) -> tuple[TcAttachment, TcAttachment]:
        """Attaches to both directions of an interface of the calling thread's network namespace: (ingress, egress).

        `replace`: an agent's programs that are attached there give way, without a packet in between that sees none;
        `made_clsact` is then what its attachments said. An earlier agent on several interfaces gives way by `take_over`
        first, if this one is to go on with its connections.

        Egress comes first and goes last, so that no reply leaves with the local address. RautaError if there is no such
        interface or if tcp_syncookies is off in this namespace; AttachError if the kernel refuses.
        """
        _require_syncookies(interface)
        index = loading.interface_index(interface)
        if replace:
            self.take_over(interface, made_clsact=made_clsact)
        egress = self._attach_one(index, "egress", "rauta_agent_egress", replace, made_clsact)
        ingress = self._attach_one(index, "ingress", "rauta_agent_ingress", replace, made_clsact)
        self.made_clsact |= ingress.made_clsact
        return ingress, egress

    def take_over(self, *interfaces: str, made_clsact: bool = False) -> None:
        """Brings over what the earlier agent's programs have written since `load`, once they are off all interfaces.

        Nothing happens where their maps are used as they are. Else, until `attach(replace=True)` on each of the
        interfaces, what is of connections is dropped there, and comes again (docs/upgrades.md).
        """
        if self._migration is None:
            return
        self._migration.catch_up()
        paused = [name for name in _PAUSES.values() if self.object.programs[name].loaded]
        for index in map(loading.interface_index, interfaces if paused else ()):
            for direction, name in _PAUSES.items():
                if attached_tc_id(index, direction):
                    self._attach_one(index, direction, name, True, made_clsact)
        with GracePeriod() as grace:
            grace.wait()
        self._migration.copy()
        self._migration = None

    def go_back(self) -> None:
        """Undoes what `attach` has done, for a start that fails: programs whose place was taken come back.

        In the network namespace of the interfaces.
        """
        self._back.close()

    def stay(self) -> None:
        """There is no going back: the programs whose place was taken are given up."""
        self._back.pop_all()

    def leave(self) -> None:
        """Ends with this process, but leaves everything as it is: packets go on. Safe to repeat."""
        self._undo.pop_all()
        self.object.close()

    def _attach_one(
        self, index: int, direction: Direction, name: str, replace: bool, made_clsact: bool
    ) -> TcAttachment:
        program = self.object.programs[name]
        present = attached_tc_id(index, direction) if replace else None
        named = (name[:_NAME_LENGTH] for name in (f"rauta_agent_{direction}", _PAUSES[direction]))
        ours = present if present and program_name(present) in named else False
        earlier = Program.from_id(ours) if ours else None
        attachment = attach_tc(index, program, direction, replace=ours, made_clsact=made_clsact)
        if earlier is None:
            self._back.callback(attachment.detach)
        else:
            self._back.callback(attach_tc, index, earlier, direction, replace=program, made_clsact=made_clsact)
        self._undo_here(attachment.detach)
        return attachment

    def requests_by_route(self) -> list[AgentRoute]:
        """What has come and was answered, by route in the order of the configuration; last, what no route is known of.

        A router tells routes only if it is loaded with `Observation(labels=True)`. Where its configuration is another,
        requests by routes that are not in this one are of no known route; none is counted for another route.
        """
        return self.figures.read()

    def _vips(self) -> int:
        return 0

    def _counts(self, verdict: str) -> bool:
        return loading.is_agent_verdict(verdict)


def _services_of(backend: str, address: IPv4Address | None, config: Config) -> list[tables.Entry]:
    """RautaError if the backend is not where it was."""
    services = tables.services(config, backend)
    if config.backends()[backend].address != address:
        raise RautaError(
            f"changing the configuration of the agent of {backend!r}",
            f"its address is no longer {address}",
            "Start an agent for the new one.",
        )
    return services


def _vip(key: Mapping[str, int]) -> tuple[int, int]:
    return key["address"], key["port"]


def _require_syncookies(interface: str) -> None:
    """Without them the kernel makes no socket from a cookie (net/core/filter.c, bpf_sk_assign_tcp_reqsk)."""
    tried = f"attaching the agent to {interface}"
    if not _SYNCOOKIES.exists():
        raise RautaError(tried, f"{_SYNCOOKIES} is missing", "Use a kernel built with CONFIG_SYN_COOKIES=y.")
    if _SYNCOOKIES.read_text().strip() == "0":
        advice = "Set it to 1 there: sysctl -w net.ipv4.tcp_syncookies=1"
        raise RautaError(tried, "net.ipv4.tcp_syncookies is 0 in this network namespace", advice)
