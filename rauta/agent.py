"""The agent: bpf/agent.bpf.c with a backend's services in its maps, on the backend's own interface.

    with Agent.load(load_config("shop.yaml"), keys, backend="web-1") as agent:
        agent.attach("eth0")

The router's own host has the same agent, for the fallback: rauta.router loads and attaches it.

Everything is in the maps before the programs are attached.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import Self

from rauta import loading, tables
from rauta.bpf import BpfObject, TcAttachment, attach_tc
from rauta.config import Config
from rauta.errors import RautaError
from rauta.keys import Keys
from rauta.sampling import Sampling

__all__ = ["Agent"]

_SYNCOOKIES = Path("/proc/sys/net/ipv4/tcp_syncookies")


class Agent(loading.Loaded):
    """A loaded agent, made by `load`.

    `config` and `backend` are what it was loaded with ("" at a fallback), `sampling` which requests it traces.
    """

    def __init__(self, obj: BpfObject, config: Config, backend: str) -> None:
        """For `load`."""
        super().__init__(obj)
        self.config = config
        self.backend = backend
        self.sampling = Sampling()

    @classmethod
    def load(cls, config: Config, keys: Keys, backend: str, *, traces_one_in: int = 0, traces_rate: int = 100) -> Self:
        """Loads the programs and fills their maps for the host of the backend of that name: all VIPs that lead to it.

        Of `keys` only the cookie keys are used. One request in `traces_one_in` is told to a `TraceReader`, and at most
        `traces_rate` a second on each CPU; 0 for none. `Observation` says the same for a router, and both are to agree.

        RautaError if there is no such backend; RautaError or LoadError say what the machine lacks (the agent needs
        Linux 6.9), or what the verifier said.
        """
        services = tables.services(config, backend)
        asked_at = config.backends()[backend].address
        return cls._load(config, keys, services, backend, asked_at=asked_at, traces=(traces_one_in, traces_rate))

    @classmethod
    def load_fallback(cls, config: Config, keys: Keys, address: IPv4Address) -> Self:
        """Likewise for the router's own host, where a fallback listens on that address: all VIPs.

        RautaError if the configuration has no fallback, or uses that address for something else.
        """
        return cls._load(config, keys, tables.fallback_services(config, address), "")

    @classmethod
    def _load(
        cls,
        config: Config,
        keys: Keys,
        services: Sequence[tables.Entry],
        backend: str,
        *,
        asked_at: IPv4Address | None = None,
        traces: tuple[int, int] = (0, 1),
    ) -> Self:
        agent = cls(loading.open_object("agent"), config, backend)
        try:
            routers = config.encapsulation.source
            agent.object.rodata["routers_prefix"] = tables.be32(routers.network_address)
            agent.object.rodata["routers_mask"] = tables.be32(routers.netmask)
            agent.object.rodata["consumed_key"] = keys.cookies.consumed_key
            agent.object.rodata["digest_keys"] = keys.cookies.first_keys
            if config.recovery is not None and asked_at is not None:
                agent.object.rodata["ask_address"] = tables.be32(asked_at)
                agent.object.rodata["ask_port"] = tables.be16(config.recovery.port)
            agent.sampling = Sampling.prepare(agent.object, keys.cookies, *traces)
            agent.object.load()
            agent.object.maps["cookie_keys"].update(0, tables.cookie_keys_entry(keys.cookies))
            agent.object.maps["ask_keys"].update(0, tables.ask_keys_entry(keys.cookies))
            agent.object.maps["services"].update_batch(services)
        except BaseException:
            agent.close()
            raise
        return agent

    def attach(self, interface: str) -> tuple[TcAttachment, TcAttachment]:
        """Attaches to both directions of an interface of the calling thread's network namespace: (ingress, egress).

        Egress comes first and goes last, so that no reply leaves with the local address. RautaError if there is no such
        interface or if tcp_syncookies is off in this namespace; AttachError if the kernel refuses.
        """
        _require_syncookies(interface)
        index = loading.interface_index(interface)
        egress = attach_tc(index, self.object.programs["rauta_agent_egress"], "egress")
        self._undo_here(egress.detach)
        ingress = attach_tc(index, self.object.programs["rauta_agent_ingress"], "ingress")
        self._undo_here(ingress.detach)
        return ingress, egress

    def _vips(self) -> int:
        return 0

    def _counts(self, verdict: str) -> bool:
        return loading.is_agent_verdict(verdict)


def _require_syncookies(interface: str) -> None:
    """Without them the kernel makes no socket from a cookie (net/core/filter.c, bpf_sk_assign_tcp_reqsk)."""
    tried = f"attaching the agent to {interface}"
    if not _SYNCOOKIES.exists():
        raise RautaError(tried, f"{_SYNCOOKIES} is missing", "Use a kernel built with CONFIG_SYN_COOKIES=y.")
    if _SYNCOOKIES.read_text().strip() == "0":
        advice = "Set it to 1 there: sysctl -w net.ipv4.tcp_syncookies=1"
        raise RautaError(tried, "net.ipv4.tcp_syncookies is 0 in this network namespace", advice)
