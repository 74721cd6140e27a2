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

from rauta import keyslots, loading, tables
from rauta.bpf import BpfObject, TcAttachment, attach_tc
from rauta.config import Config
from rauta.errors import RautaError
from rauta.keys import Keys

__all__ = ["Agent"]

_SYNCOOKIES = Path("/proc/sys/net/ipv4/tcp_syncookies")


class Agent(loading.Loaded):
    """A loaded agent, made by `load`. `keys` are those in its maps."""

    def __init__(self, obj: BpfObject, keys: Keys) -> None:
        """For `load`."""
        super().__init__(obj)
        self._slots = keyslots.KeySlots(obj, keys)

    @classmethod
    def load(cls, config: Config, keys: Keys, backend: str) -> Self:
        """Loads the programs and fills their maps for the host of the backend of that name: all VIPs that lead to it.

        Of `keys` it uses the cookie keys and the agents' secret. RautaError if there is no such backend; RautaError or
        LoadError say what the machine lacks (the agent needs Linux 6.9), or what the verifier said.
        """
        services = tables.services(config, backend)
        return cls._load(config, keys, services, asked_at=config.backends()[backend].address)

    @classmethod
    def load_fallback(cls, config: Config, keys: Keys, address: IPv4Address) -> Self:
        """Likewise for the router's own host, where a fallback listens on that address: all VIPs.

        RautaError if the configuration has no fallback, or uses that address for something else.
        """
        return cls._load(config, keys, tables.fallback_services(config, address))

    @classmethod
    def _load(
        cls, config: Config, keys: Keys, services: Sequence[tables.Entry], asked_at: IPv4Address | None = None
    ) -> Self:
        agent = cls(loading.open_object("agent"), keys)
        try:
            routers = config.encapsulation.source
            agent.object.rodata["routers_prefix"] = tables.be32(routers.network_address)
            agent.object.rodata["routers_mask"] = tables.be32(routers.netmask)
            agent.object.rodata["consumed_key"] = keys.consumed_key
            agent.object.rodata["digest_keys"] = keys.first_keys
            if config.recovery is not None and asked_at is not None:
                agent.object.rodata["ask_address"] = tables.be32(asked_at)
                agent.object.rodata["ask_port"] = tables.be16(config.recovery.port)
            agent.object.load()
            agent._slots.fill()
            agent.object.maps["services"].update_batch(services)
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
