"""How Prometheus gets a router's and an agent's figures (rauta.prometheus.families says which).

A scrape reads BPF maps, one system call a map, and nothing that packets wait for: the packet path only adds to per-CPU
counters, and they are added up here, in a thread. Names and labels are written once for each configuration, and the
values put in between. Nothing happens between two scrapes.

The process may get another configuration meanwhile. What a scrape says is of one configuration, the old or the new.
"""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rauta.prometheus import families, scraping
from rauta.prometheus.text import Family, Labels, resource_labels

if TYPE_CHECKING:
    from rauta.loading import Loaded
    from rauta.processes.agentd import AgentDaemon
    from rauta.processes.daemon import Daemon
    from rauta.processes.service import Service

__all__ = ["CommonPart", "serve_agent", "serve_router"]


async def serve_router(daemon: Daemon, address: str, port: int) -> Callable[[], Awaitable[None]]:
    """Serves a router's figures until what is returned is called. RautaError if it cannot listen there."""
    from rauta.prometheus.router import Health, RouterPage

    page = RouterPage(daemon, CommonPart("router"))

    async def answer() -> bytes:
        health = Health(daemon.health.states(), daemon.health.counters())  # the event loop's own
        return await asyncio.to_thread(page.render, health)

    return await scraping.serve(answer, address, port)


async def serve_agent(daemon: AgentDaemon, address: str, port: int) -> Callable[[], Awaitable[None]]:
    """Serves an agent's figures until what is returned is called. RautaError if it cannot listen there."""
    from rauta.prometheus.agent import AgentPage

    page = AgentPage(daemon, CommonPart("agent"))
    return await scraping.serve(lambda: asyncio.to_thread(page.render), address, port)


class CommonPart:
    """What a router and an agent say alike: about the process, its configuration, and its memory."""

    def __init__(self, part: str) -> None:
        labels = resource_labels()
        target = Family("target_info", "gauge", "1, with what OpenTelemetry calls the resource.", tuple(labels))
        build = (part, _version(), platform.python_version(), os.uname().release)
        self._constant = families.BUILD.text({build: 1}) + (target.text({tuple(labels.values()): 1}) if labels else "")
        self._memory: tuple[object, str] = (None, "")

    def text(self, service: Service, loaded: Loaded) -> str:
        """The families of a process and its packet path."""
        times = os.times()
        results: dict[Labels, int] = {("success",): service.reloads["ok"], ("failure",): service.reloads["failed"]}
        return "".join(
            (
                self._constant,
                families.GENERATION.one(service.state.generation),
                families.RELOADS.text(results),
                families.LAST_RELOAD.one(int(not service.error)),
                families.STARTED.one(service.started),
                families.RESIDENT.one(_resident()),
                families.CPU_SECONDS.one(times.user + times.system),
                self._maps(service.state.generation, loaded),
            )
        )

    def _maps(self, generation: int, loaded: Loaded) -> str:
        """Maps have their size from the beginning, but for the tables of clusters that are new."""
        if self._memory[0] != generation:
            used: dict[Labels, int] = {(name,): size for name, size in loaded.memory().maps.items()}
            self._memory = generation, families.MAP_MEMORY.text(used)
        return self._memory[1]


def _resident() -> int:
    with Path("/proc/self/statm").open(encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _version() -> str:
    """Of the package, as it was installed; without what `importlib.metadata.version` imports, a reader of e-mails."""
    from importlib import metadata

    try:
        text = metadata.distribution("rauta").read_text("METADATA") or ""
    except metadata.PackageNotFoundError:
        text = ""
    return next((line.removeprefix("Version: ") for line in text.splitlines() if line.startswith("Version: ")), "")
