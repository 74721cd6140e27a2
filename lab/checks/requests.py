"""Checks that send requests and look at the answers."""

from __future__ import annotations

import time
from collections import Counter
from typing import Annotated, Literal

from pydantic import Field

from lab import oracle
from lab.checks.base import CheckBase, request_to, request_to_vip, server_of, wrong_with
from lab.clients import CLIENTS, ClientName, NoAnswer, http_client
from lab.clients.answer import SECONDS, Request
from lab.interfaces import CheckResult, Context
from lab.units import Size
from rauta.units import Duration

Url = Annotated[str, Field(pattern="^http://")]
Path = Annotated[str, Field(pattern="^/")]
Clients = Annotated[tuple[ClientName, ...], Field(min_length=1)]


class Get(CheckBase):
    """A GET by each client is answered by the right cluster, intact. ``vip``: to that one, if there are several."""

    get: Url
    cluster: str
    clients: Clients = ("curl",)
    vip: str | None = None

    @property
    def title(self) -> str:
        """URL and cluster."""
        return f"GET {self.get} → {self.cluster}"

    def run(self, context: Context) -> CheckResult:
        """Ask with each client."""
        backends = []
        for name in self.clients:
            answer = CLIENTS[name](context.network.client, self._request(context))
            context.requests.sent += 1
            if wrong := wrong_with(answer, context, self.cluster, server_of(context, self.cluster).body):
                return self.failed(f"{name}: {wrong}")
            backends.append(f"{name}: {answer.backend}")
        return self.passed(", ".join(backends))

    def _request(self, context: Context) -> Request:
        if self.vip is not None:
            return request_to_vip(context, self.vip, self.get, seconds=SECONDS)
        address, port = context.running.target(self.cluster)
        return Request(address, port, self.get)


class Connections(CheckBase):
    """That many connections, one after the other, each land on the backend that an independent Maglev names."""

    connections: Annotated[int, Field(ge=1, le=20_000)]
    path: Path = "/"
    cluster: str
    backend: Literal["maglev-oracle"]
    only: Literal["rauta"] = "rauta"

    @property
    def title(self) -> str:
        """How many, and where to."""
        return f"{self.connections} connections to {self.cluster} as Maglev says"

    def run(self, context: Context) -> CheckResult:
        """Every connection has a port of its own, and so a 4-tuple."""
        backends = context.scenario.routing.config.backends()
        table = oracle.table({name: backends[name].weight for name in context.network.clusters[self.cluster]})
        request, client = request_to(context, self.cluster, self.path), context.network.client
        flow_key: int = context.running.flow_key  # type: ignore[attr-defined]  # only RunningRauta has one
        seen: Counter[str] = Counter()
        ports = set()
        for _ in range(self.connections):
            with http_client.connected(client, request) as connection:
                answer = connection.ask(request)
            context.requests.sent += 1
            slot = oracle.slot(flow_key, client.address, connection.port, request.address, request.port)
            if answer.backend != table[slot]:
                return self.failed(f"port {connection.port}: {answer.backend}, but Maglev says {table[slot]}")
            seen[answer.backend] += 1
            ports.add(connection.port)
        if len(ports) != self.connections:
            return self.failed(f"only {len(ports)} different ports")
        return self.passed(", ".join(f"{name}: {count}" for name, count in sorted(seen.items())))


class Keepalive(CheckBase):
    """That many requests, one after the other on one connection, are answered intact by one and the same backend."""

    keepalive: Annotated[int, Field(ge=1, le=1_000_000)]
    path: Path = "/"
    cluster: str

    @property
    def title(self) -> str:
        """How many, and where to."""
        return f"{self.keepalive} requests on one connection → {self.cluster}"

    def run(self, context: Context) -> CheckResult:
        """Stops at the first that is wrong."""
        request, body = request_to(context, self.cluster, self.path), server_of(context, self.cluster).body
        backends = set()
        with http_client.connected(context.network.client, request) as connection:
            for number in range(1, self.keepalive + 1):
                answer = connection.ask(request)
                context.requests.sent += 1
                backends.add(answer.backend)
                if wrong := wrong_with(answer, context, self.cluster, body):
                    return self.failed(f"request {number}: {wrong}")
        if len(backends) > 1:
            return self.failed(f"answered by {' and '.join(sorted(backends))}")
        return self.passed(f"all by {', '.join(backends)}")


class Alternate(CheckBase):
    """That many requests on one connection, for several paths by turns: each is answered by its own cluster."""

    alternate: Annotated[int, Field(ge=2, le=1_000_000)]
    paths: Annotated[dict[Path, str], Field(min_length=2)]
    """each path, and the cluster that its route names"""

    @property
    def title(self) -> str:
        """How many, and where to."""
        return f"{self.alternate} requests on one connection, by turns → {', '.join(self.paths.values())}"

    def run(self, context: Context) -> CheckResult:
        """Stops at the first that is wrong."""
        turns = [(cluster, request_to(context, cluster, path)) for path, cluster in self.paths.items()]
        seen: Counter[str] = Counter()
        with http_client.connected(context.network.client, turns[0][1]) as connection:
            for number in range(self.alternate):
                cluster, request = turns[number % len(turns)]
                answer = connection.ask(request)
                context.requests.sent += 1
                if wrong := wrong_with(answer, context, cluster, server_of(context, cluster).body):
                    return self.failed(f"request {number + 1}: {wrong}")
                seen[answer.backend] += 1
        return self.passed(", ".join(f"{name}: {count}" for name, count in sorted(seen.items())))


class Download(CheckBase):
    """A large answer arrives intact."""

    download: Path
    cluster: str
    size: Size

    @property
    def title(self) -> str:
        """How much, and from where."""
        return f"download of {self.size:,} bytes from {self.cluster}"

    def run(self, context: Context) -> CheckResult:
        """Byte for byte what the servers have."""
        expected = server_of(context, self.cluster).download
        if len(expected) != self.size:
            return self.failed(f"the servers of {self.cluster} serve {len(expected)} bytes; set their `download`")
        answer = CLIENTS["curl"](context.network.client, request_to(context, self.cluster, self.download))
        context.requests.sent += 1
        wrong = wrong_with(answer, context, self.cluster, expected)
        return self.failed(wrong) if wrong else self.passed(f"intact, from {answer.backend}")


class Refused(CheckBase):
    """What no route names gets the VIP's configured answer, in time, from each client; no backend sees it."""

    refused: Url
    vip: str
    answer: Literal[404, "reset"]
    method: Annotated[str, Field(pattern="^[A-Z]+$")] = "GET"
    within: Duration = 1.0
    clients: Clients = ("curl", "http.client")
    only: Literal["rauta"] = "rauta"

    @property
    def title(self) -> str:
        """Request and answer."""
        return f"{self.method} {self.refused} at {self.vip} → {self.answer}"

    def run(self, context: Context) -> CheckResult:
        """Ask with each client."""
        request = request_to_vip(context, self.vip, self.refused, method=self.method, seconds=self.within)
        for name in self.clients:
            started = time.monotonic()
            try:
                answer = CLIENTS[name](context.network.client, request)
                got: int | str = f"{answer.status} by {answer.backend}" if answer.backend else answer.status
            except NoAnswer as error:
                got = "reset" if error.reset else str(error)
            if got != self.answer:
                return self.failed(f"{name}: {got}, not {self.answer}")
            if (seconds := time.monotonic() - started) > self.within:
                return self.failed(f"{name}: {self.answer} only after {seconds:.2f} s")
        return self.passed(", ".join(self.clients))
