"""RAUTA as operators run it: `rauta run` in the router's namespace, `rauta agent` in each backend's, as processes.

What `rauta` is to programs that load it, this is to the command line: processes that can be killed, configurations that
are files, and figures that are asked for.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from lab.contenders.rauta import start_fallback, under_way
from lab.contenders.settings import Settings
from lab.interfaces import Layer
from lab.process import Process, wait_until
from rauta import secrets
from rauta.bpf import Map
from rauta.config import Config
from rauta.errors import RautaError
from rauta.fallback import Kind
from rauta.processes import control
from rauta.processes.instance import Instance
from rauta.processes.takedown import take_down
from rauta.upgrade import pins

if TYPE_CHECKING:
    from lab.scenario import Scenario
    from lab.topology import Host, Network
    from rauta.config import Vip

RAUTA = (sys.executable, "-m", "rauta")
START_SECONDS = 30.0


class ServiceSettings(Settings):
    """``fallback``: which proxy gets what XDP does not route, if the routing file has a fallback at all.

    ``rotate``: how often cookie keys change, as a duration.
    """

    fallback: Kind = "nginx"
    rotate: str = "24h"


@dataclass
class Part:
    """One process of RAUTA, on a host, that can be killed and started again. ``argv`` starts it."""

    host: Host
    instance: Instance
    argv: Sequence[str]
    process: Process | None = None

    def start(self) -> None:
        """And wait until it has taken the packets over."""
        self.launch()
        assert self.process is not None
        self.process.wait_ready(self._runs, START_SECONDS)

    def launch(self) -> None:
        """And do not wait."""
        self.process = self.host.start(self.argv, name=self.instance.name)

    def _runs(self) -> bool:
        assert self.process is not None
        return '"started"' in self.process.output()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone: packets go on."""
        assert self.process is not None
        self.process.kill()

    def cookie_keys(self) -> bytes:
        """Those that its programs see, as they lie in the map that it has pinned."""
        part = "agent" if "agent" in self.argv else "router"
        with Map.from_pin(pins.folder(self.instance.name) / part / "cookie_keys") as found:
            return found.lookup_raw(0) or b""

    def stop(self) -> None:
        """SIGTERM; packets go on."""
        if self.process is not None:
            self.process.stop()

    def remove(self) -> None:
        """Ends it, and takes all that it has left away, in its host's namespace."""
        self.stop()
        with self.host.entered():
            take_down(self.instance.name)


@dataclass(frozen=True)
class Service:
    """The contender ``rauta-run``."""

    name: str = "rauta-run"
    layers: frozenset[Layer] = frozenset({"http"})
    settings: type[BaseModel] = ServiceSettings

    def start(self, network: Network, scenario: Scenario, stack: ExitStack) -> RunningService:
        """Native XDP: a generic one would be measured as something that it is not."""
        settings = ServiceSettings.model_validate(scenario.settings.get(self.name, {}))
        config = scenario.routing.config
        folder = network.run.scratch / "rauta"
        folder.mkdir()
        secrets.create(folder / "secrets.yaml")
        running = RunningService(folder / "rauta.yaml", config, settings.rotate)
        running.write(config)
        stack.enter_context(network.ready_for_xdp())
        for backend in config.backends():
            host = network.hosts[backend]
            argv = [*RAUTA, "agent", "-c", str(running.file), "-b", backend, "-i", host.interface]
            running.agents[backend] = self._started(network, host, argv, stack)
        for host in network.routers:
            if config.fallback is not None:
                start_fallback(network, host, stack, config, settings.fallback)
            interfaces = [word for one in network.interfaces(host) for word in ("-i", one)]
            argv = [*RAUTA, "run", "-c", str(running.file), *interfaces, "--mode", "native"]
            running.routers.append(self._started(network, host, argv, stack))
        stack.callback(under_way, scenario)
        return running

    def _started(self, network: Network, host: Host, argv: list[str], stack: ExitStack) -> Part:
        instance = Instance(f"{network.run.name}-{host.name}")
        part = Part(host, instance, [*argv, "--name", instance.name, "--log", "json"])
        stack.callback(part.remove)
        part.start()
        return part


@dataclass
class RunningService:
    """The processes, and the file that they all read."""

    file: Path
    config: Config
    rotate: str
    routers: list[Part] = field(default_factory=list)
    agents: dict[str, Part] = field(default_factory=dict)

    def write(self, config: Config) -> None:
        """Puts another configuration into the file, in one step."""
        content = config.model_dump(mode="json", exclude_unset=True)
        content["secrets"] = {"file": str(self.file.with_name("secrets.yaml")), "rotate": self.rotate}
        draft = self.file.with_suffix(".new")
        draft.write_text(json.dumps(content), encoding="utf-8")
        draft.replace(self.file)
        self.config = config

    def ask(self, command: str, router: int = 0, **arguments: Any) -> Any:
        """What a router's process answers to a command of rautactl. RautaError as there."""
        return control.ask(self.routers[router].instance.control, command, **arguments)

    def reload(self, config: Config) -> int:
        """Has the agents and then the routers go on with another configuration; the first router's new generation."""
        self.write(config)
        for agent in self.agents.values():
            _signal_and_wait(agent)
        generations = [int(self.ask("reload", number)["generation"]) for number in range(len(self.routers))]
        return generations[0]

    def target(self, cluster: str) -> tuple[IPv4Address, int]:
        """The first VIP that has a route to the cluster."""
        vip = self.vip(cluster)
        return vip.address, vip.port

    def vip(self, cluster: str) -> Vip:
        """The first VIP that has a route to the cluster."""
        return next(vip for vip in self.config.vips if any(route.cluster == cluster for route in vip.routes))

    def counters(self) -> Mapping[str, int]:
        """``requests_routed``, and the routers' verdicts, summed over them. Of one that does not run: nothing new."""
        summed: dict[str, int] = {}
        for number in range(len(self.routers)):
            for name, value in self.ask("counters", number).items():
                summed[name] = summed.get(name, 0) + value
        return summed

    def programs(self) -> Mapping[str, Any]:
        """None that are this process's own."""
        return {}


def _signal_and_wait(part: Part) -> None:
    """SIGHUP, and wait until it has said what came of it."""
    assert part.process is not None
    said = _loads(part.process)
    os.kill(part.process.pid, signal.SIGHUP)
    process = part.process
    wait_until(lambda: _loads(process) > said, seconds=START_SECONDS, what=f"{part.instance.name} to load its file")
    if "not loaded" in process.output().splitlines()[-1]:
        raise RautaError(f"reloading {part.instance.name}", process.output()[-1000:])


def _loads(process: Process) -> int:
    return sum("configuration loaded" in line or "not loaded" in line for line in process.output().splitlines())


CONTENDERS = (Service(),)
