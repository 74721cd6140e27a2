"""Many short connections from few ports, see ``lab.clients.short``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from lab.checks.base import CheckBase, request_to, server_of
from lab.clients import short
from lab.interfaces import CheckResult, Context
from lab.topology import Host
from lab.units import Size

FIRST_PORT = 20_000
CONCURRENCY = 32
CONNECTION_SECONDS = 5.0
SECONDS_A_CONNECTION = 0.005
"""a generous estimate, for the deadline of the whole"""
START_SECONDS = 10.0


class Reuse(CheckBase):
    """That many short connections over a narrow range of ports, which the server closes first, are all answered.

    ``timestamps``: the client's net.ipv4.tcp_timestamps (0: none, 1: with a random offset for each pair of addresses,
    2: without). ``posts``: the share that are POSTs, with ``body`` bytes in several segments.
    """

    reuse: Annotated[int, Field(ge=1, le=1_000_000)]
    ports: Annotated[int, Field(ge=CONCURRENCY * 2, le=40_000)]
    timestamps: Literal[0, 1, 2] = 1
    path: Annotated[str, Field(pattern="^/")] = "/"
    cluster: str
    posts: Annotated[str, Field(pattern="^[0-9]+%$")] = "0%"
    body: Size = 5000

    @property
    def title(self) -> str:
        """How many, from how many ports."""
        return f"{self.reuse:,} connections from {self.ports:,} ports, timestamps {self.timestamps}"

    def run(self, context: Context) -> CheckResult:
        """Start the load generator and read what it says."""
        request, client = request_to(context, self.cluster, self.path), context.network.client
        share = int(self.posts.removesuffix("%"))
        plan = {
            "address": str(request.address),
            "port": request.port,
            "host": request.host,
            "path": request.path,
            "expected": server_of(context, self.cluster).body.decode(),
            "first_port": FIRST_PORT,
            "ports": self.ports,
            "count": self.reuse,
            "concurrency": CONCURRENCY,
            "post_every": round(100 / share) if share else 0,
            "body": self.body,
            "seconds": CONNECTION_SECONDS,
        }
        with _sysctl(client, "net.ipv4.tcp_timestamps", str(self.timestamps)):
            timeout = START_SECONDS + self.reuse * SECONDS_A_CONNECTION
            done = client.run([sys.executable, str(Path(short.__file__)), json.dumps(plan)], timeout=timeout)
        report = json.loads(done.stdout)
        context.requests.sent += self.reuse
        rate = f"{self.reuse / done.seconds:,.0f}/s"
        if report["answered"] == self.reuse:
            least, most = report["uses"]
            return self.passed(f"all answered, each port {least} to {most} times, {rate}")
        reasons = ", ".join(f"{count}: {reason}" for reason, count in report["reasons"].items())
        return self.failed(f"{report['answered']:,} answered ({reasons}), {rate}")


@contextmanager
def _sysctl(host: Host, name: str, value: str) -> Iterator[None]:
    before = host.sysctl(name, value)
    try:
        yield
    finally:
        host.sysctl(name, before)
