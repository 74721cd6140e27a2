"""`rauta agent`: an agent as a process (rauta.processes.service says what that means for packets), on a backend's host.

It reads the routers' own configuration file: which VIPs lead to this host, and on which ports. With another network
namespace, by its name or by a process in it, the agent serves a pod or container while its process stays outside.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rauta import tables
from rauta.agent import Agent
from rauta.config import Config, load_config
from rauta.errors import RautaError
from rauta.network import namespaces
from rauta.processes import takedown
from rauta.processes.service import Service
from rauta.secrets import Rotation

__all__ = ["AgentDaemon", "Options"]


@dataclass(frozen=True)
class Options:
    """What the command line says. `namespace`: a name, the number of a process, or nothing: the caller's own."""

    file: Path
    backend: str
    interfaces: tuple[str, ...]
    namespace: str
    instance: str


class AgentDaemon(Service):
    """An agent that runs. `agent` is its packet path."""

    def __init__(self, options: Options) -> None:
        """RautaError if the name of the instance is none."""
        super().__init__(options.file, options.instance)
        self.options = options
        self.agent: Agent

    def start(self, stack: AsyncExitStack) -> None:
        """RautaError or a subclass says what stands in the way."""
        config = self._load()
        schedule = self.schedule(config)
        namespace = f"/proc/{self.options.namespace}/ns/net" if self.options.namespace.isdecimal() else ""
        namespace = namespace or self.options.namespace
        takedown.leave_other_namespace(self.instance, self.state, namespace)
        self.save(namespace=namespace)
        before = self.state
        interfaces = {*before.interfaces, *self.options.interfaces}
        with self._entered():
            attached = takedown.attached_ids(interfaces)
        with self.instance.pinned("agent", attached) as maps:
            self.agent = Agent.load(
                config,
                schedule.keys_at(time.time()),
                self.options.backend,
                traces_one_in=0 if config.traces is None else config.traces.one_in,
                by_route=config.metrics is not None,  # as routers label
                earlier=maps,
            )
            stack.callback(self.agent.leave)
            with self._entered(), self.instance.staged("agent", self.agent.object, attached):
                self.save(interfaces=tuple(interfaces))
                self._attach()
                takedown.take_off(self.instance, before, interfaces - {*self.options.interfaces})
        self.save(interfaces=self.options.interfaces)
        self.rotation = Rotation(schedule, (self.agent,))

    def _attach(self) -> None:
        """To all interfaces or, if that fails, to none: then what was attached there is so again."""
        self.save(made_clsact=takedown.makes_clsact(self.state, self.options.interfaces))
        try:
            self.agent.take_over(*self.options.interfaces, made_clsact=self.state.made_clsact)
            for interface in self.options.interfaces:
                self.agent.attach(interface, replace=True, made_clsact=self.state.made_clsact)
        except BaseException:
            self.agent.go_back()
            raise
        self.agent.stay()

    @contextlib.contextmanager
    def _entered(self) -> Iterator[None]:
        with namespaces.entered(self.state.namespace) if self.state.namespace else contextlib.nullcontext():
            yield

    async def serve(self, stack: AsyncExitStack) -> None:
        """For Prometheus and a collector of traces."""
        self.trace(self.agent, self.agent.config, "rauta-agent", stack)
        metrics = self.agent.config.metrics
        if metrics is not None and metrics.agents is not None:
            from rauta.prometheus.metrics import serve_agent

            stack.push_async_callback(await serve_agent(self, *metrics.agents))

    def jobs(self) -> Iterable[Callable[[], Awaitable[None]]]:
        """Nothing but what every service does."""
        return ()

    def reconfigure(self) -> None:
        """Goes on with what the file says now. RautaError: then nothing has changed."""
        config = self._load()
        schedule = self.schedule(config)
        self.agent.reconfigure(config)
        self.rotation.schedule = schedule

    def reconfigured(self) -> None:
        """Nothing else follows it."""

    def about(self) -> dict[str, Any]:
        """In a few words."""
        options = self.options
        where = {"namespace": self.state.namespace} if self.state.namespace else {}
        return {
            "instance": self.instance.name,
            "backend": options.backend,
            "interfaces": list(options.interfaces),
            "generation": self.state.generation,
            **where,
        }

    def _load(self) -> Config:
        if not self.options.interfaces:
            advice = "Name one: --interface eth0, or RAUTA_INTERFACE=eth0."
            raise RautaError(f"starting with {self.file}", "no interface is named", advice)
        config = load_config(self.file)
        tables.services(config, self.options.backend)  # which says if there is no such backend
        return config
