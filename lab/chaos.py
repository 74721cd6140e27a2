"""What is done to a contender while clients use it, and what of their requests then may fail: nothing, mostly.

A *blow* is one such thing: a process that is killed and started again, a configuration that is loaded, an interface
that goes down. A check strikes again and again at moments drawn from its seed. What of a blow cannot but cost requests
is its window, from when to when; whatever fails outside of all windows has failed.

Times are seconds of the monotonic clock, which clients in other processes share.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from lab.clients import steady
from lab.errors import LabError
from lab.process import Process, wait_until
from lab.servers import sick_file

if TYPE_CHECKING:
    from ipaddress import IPv4Address

    from lab.contenders.service import Part, RunningService
    from lab.scenario import Scenario
    from lab.topology import Host, Network
    from rauta.config import Config

Window: TypeAlias = tuple[float, float]
"""from when to when"""

STEADY, WRK_REPORT = Path(steady.__file__), Path(__file__).parent / "measure" / "wrk_report.lua"
PATIENCE_SECONDS = 30.0
"""for what takes a second or two on a machine that has nothing else to do"""
GONE_SECONDS = 0.5
"""at most, for which a killed process is not there"""
UNBORN_SECONDS = 2.0
"""after which, at most, a process that is not to get on its feet is killed: about when it has"""
ROW = 4
"""doubles in a record: began, ended, path, cluster"""


# ---- blows ----------------------------------------------------------------------------------------------


class Blow(ABC):
    """Something that is done again and again."""

    @abstractmethod
    def strike(self, rng: random.Random) -> Window | None:
        """Do it, and return when it is over; with its window, if it has one."""


@dataclass
class Kill(Blow):
    """One of the processes gets SIGKILL, and is started again.

    Every other time it is killed once more while it starts, at whichever point that is.
    """

    parts: Sequence[Part]
    struck: int = 0

    def strike(self, rng: random.Random) -> None:
        """At random: which one, how long it is gone, and when it is killed a second time."""
        part, self.struck = rng.choice(self.parts), self.struck + 1
        part.kill()
        time.sleep(rng.uniform(0, GONE_SECONDS))
        if self.struck % 2 == 0:
            part.launch()
            time.sleep(rng.uniform(0, UNBORN_SECONDS))
            part.kill()
        part.start()


@dataclass
class Reload(Blow):
    """A route leads to the next of some clusters. ``loaded``: each one, when that was said, and when it was done."""

    running: RunningService
    path: str
    clusters: Sequence[str]
    loaded: list[tuple[str, Window]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._next = cycle((*self.clusters[1:], self.clusters[0]))
        self.loaded.append((self.clusters[0], (0.0, 0.0)))

    def strike(self, rng: random.Random) -> None:
        """To all agents, then to the routers."""
        cluster, began = next(self._next), time.monotonic()
        self.running.reload(leading(self.running.config, self.path, cluster))
        self.loaded.append((cluster, (began, time.monotonic())))

    def allowed(self, began: float, ended: float) -> set[str]:
        """The clusters that may have answered a request: that of the newest configuration whose loading was done when
        the request was sent, and those of all that came after it until it was answered."""
        first = max(number for number, (_, (_, done)) in enumerate(self.loaded) if done <= began)
        return {cluster for cluster, (begun, _) in self.loaded[first:] if begun <= ended}


def leading(config: Config, path: str, cluster: str) -> Config:
    """A configuration whose routes for a path lead to a cluster. LabError if it has none."""
    vips = []
    for vip in config.vips:
        routes = (route.model_copy(update={"cluster": cluster} if route.path == path else {}) for route in vip.routes)
        vips.append(vip.model_copy(update={"routes": tuple(routes)}))
    if not any(route.path == path for vip in vips for route in vip.routes):
        raise LabError(f"changing the route {path}", "the routing file has none for that path")
    return config.model_copy(update={"vips": tuple(vips)})


@dataclass
class Rotate(Blow):
    """Time passes until every process has other cookie keys than before."""

    parts: Sequence[Part]

    def strike(self, rng: random.Random) -> None:
        """Look at what its programs see."""
        before = [part.cookie_keys() for part in self.parts]
        for part, keys in zip(self.parts, before, strict=True):
            self._wait(part, keys)

    def _wait(self, part: Part, keys: bytes) -> None:
        what = f"{part.instance.name} to have other keys"
        wait_until(lambda: part.cookie_keys() != keys, seconds=PATIENCE_SECONDS, what=what)


@dataclass
class Flap(Blow):
    """A server says that it is not well, and some time after the router has taken it out, that it is."""

    running: RunningService
    host: Host
    scratch: Path

    def strike(self, rng: random.Random) -> Window | None:
        """Wait each time until the router believes it."""
        sick = sick_file(self.host, self.scratch)
        sick.touch()
        try:
            self.wait(healthy=False)
            time.sleep(rng.uniform(0, 1))
        finally:
            sick.unlink()
        self.wait(healthy=True)
        return None

    def wait(self, *, healthy: bool) -> None:
        """Until the router takes the backend for that."""
        name = self.host.name
        wait_until(
            lambda: (name not in self.running.ask("status")["unhealthy"]) == healthy,
            seconds=PATIENCE_SECONDS,
            what=f"the router to take {name} for {'healthy' if healthy else 'unhealthy'}",
        )


@dataclass
class KillServer(Flap):
    """A server's processes get SIGKILL, and some time after the router has noticed, it is started again.

    Window: ``within`` from the kill, in which it is found out.
    """

    scenario: Scenario
    cluster: str
    within: float
    struck: int = 0

    def strike(self, rng: random.Random) -> Window:
        """Whoever it was answering gets no answer, nor whoever asks until the router knows."""
        self.struck += 1
        began = time.monotonic()
        self.host.kill("nginx")
        self.wait(healthy=False)
        time.sleep(rng.uniform(0, 1))
        folder = self.scratch / f"{self.host.namespace}-{self.struck}"
        folder.mkdir()
        self.scenario.servers[self.cluster].start(self.host, self.cluster, folder)
        self.wait(healthy=True)
        return began, began + self.within


@dataclass
class LinkDown(Blow):
    """The router's interface goes down, and up again after a while. Window: until ``within`` after it is up."""

    host: Host
    seconds: float
    within: float

    def strike(self, rng: random.Random) -> Window:
        """Nobody helps it then."""
        began = time.monotonic()
        self._set("down")
        time.sleep(self.seconds)
        self._set("up")
        ended = time.monotonic() + self.within
        time.sleep(self.within)
        return began, ended

    def _set(self, state: str) -> None:
        self.host.run(["ip", "link", "set", self.host.interface, state], timeout=PATIENCE_SECONDS)


# ---- load -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """How clients ask: ``steady.py`` says what these are. ``wrk``: connections of a wrk besides, to the first path."""

    kept: int
    fresh: int
    wrk: int
    pause: float
    seconds: float


@dataclass
class Clients:
    """Clients that are asking. After ``end``: what became of it."""

    host: Host
    scratch: Path
    plan: Mapping[str, Any]
    wrk: int
    report: Mapping[str, Any] = field(default_factory=dict)
    wrk_report: Mapping[str, Any] = field(default_factory=dict)

    def start(self) -> None:
        """Return when they are all asking. LabError if a path is not answered even before anything is done."""
        plan = {**self.plan, "records": str(self._file)}
        self._steady = self.host.start([sys.executable, str(STEADY), json.dumps(plan)], name="steady")
        wait_until(lambda: _stands(self._steady), seconds=PATIENCE_SECONDS, what="the first answers")
        self._wrk = self.host.start(self._wrk_argv(), name="wrk") if self.wrk else None

    @property
    def _file(self) -> Path:
        return self.scratch / "steady.records"

    def _wrk_argv(self) -> list[str]:
        address, port, path = self.plan["address"], self.plan["port"], next(iter(self.plan["paths"]))
        patience = f"--timeout={self.plan['seconds']:g}s"
        url = f"http://{address}:{port}{path}"
        return [
            "wrk",
            "-t1",
            f"-c{self.wrk}",
            "-d1h",
            patience,
            "-s",
            str(WRK_REPORT),
            "-H",
            f"Host: {self.plan['host']}",
            url,
        ]

    def end(self) -> None:
        """Let them have their last answers."""
        if self._wrk is not None:
            self.wrk_report = _ended(self._wrk, signal.SIGINT)
        self.report = _ended(self._steady, signal.SIGTERM)

    def kill(self) -> None:
        """However things went."""
        for process in (self._wrk, self._steady):
            if process is not None:
                process.stop(0)

    @cached_property
    def records(self) -> list[tuple[float, float, str, str]]:
        """Of each request that has ended: when its turn came, when it was answered, its path, and its cluster: empty if
        it has failed."""
        rows, paths, clusters = array("d"), list(self.plan["paths"]), (*self.plan["clusters"], "")
        with self._file.open("rb") as file:
            rows.frombytes(file.read())
        columns = (rows[column::ROW] for column in range(ROW))
        return [
            (began, ended, paths[int(path)], clusters[int(cluster)])
            for began, ended, path, cluster in zip(*columns, strict=True)
        ]


def _stands(process: Process) -> bool:
    if process.poll() is not None:
        raise LabError("asking before anything is done", process.output()[-1000:])
    return "standing" in process.output()


def _ended(process: Process, number: signal.Signals) -> Mapping[str, Any]:
    """The line of JSON that a load ends with."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, number)
    wait_until(lambda: process.poll() is not None, seconds=PATIENCE_SECONDS, what=f"{process.name} to end")
    said = [line for line in process.output().splitlines() if line.startswith("{")]
    if not said:
        raise LabError(f"waiting for what {process.name} has to say", process.output()[-1000:])
    found: Mapping[str, Any] = json.loads(said[-1])
    return found


@contextmanager
def asking(
    network: Network, scenario: Scenario, to: tuple[IPv4Address, int], paths: Mapping[str, Sequence[str]], asked: Asked
) -> Iterator[Clients]:
    """Clients ask for these paths, each of which some clusters may answer, until `end` or the end of the context."""
    clusters = list(dict.fromkeys(cluster for some in paths.values() for cluster in some))
    plan = {
        "address": str(to[0]),
        "port": to[1],
        "host": "shop.test",
        "kept": asked.kept,
        "fresh": asked.fresh,
        "pause": asked.pause,
        "seconds": asked.seconds,
        "clusters": clusters,
        "paths": {path: _wanted(network, scenario, some) for path, some in paths.items()},
    }
    clients = Clients(network.client, network.run.scratch, plan, asked.wrk)
    clients.start()
    try:
        yield clients
    finally:
        clients.kill()


def _wanted(network: Network, scenario: Scenario, clusters: Sequence[str]) -> Mapping[str, Any]:
    backends = {backend: cluster for cluster in clusters for backend in network.clusters[cluster]}
    return {"backends": backends, "body": scenario.servers[clusters[0]].body.decode()}
