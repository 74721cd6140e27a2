"""What checks share."""

from __future__ import annotations

from abc import ABC, abstractmethod

from pydantic import BaseModel, ConfigDict

from lab.clients import Answer, Request
from lab.errors import UsageError
from lab.interfaces import CheckResult, Context
from lab.servers import Server

HOST = "shop.test"
"""the Host of requests that say only a path"""


class CheckBase(BaseModel, ABC):
    """A check. ``only``: the contender that it is about; none: every one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    only: str | None = None

    @property
    @abstractmethod
    def title(self) -> str:
        """The check in a few words."""

    @abstractmethod
    def run(self, context: Context) -> CheckResult:
        """Find out."""

    def passed(self, detail: str) -> CheckResult:
        """It is true."""
        return CheckResult(self.title, True, detail)

    def failed(self, detail: str) -> CheckResult:
        """It is not."""
        return CheckResult(self.title, False, detail)


def request_to(context: Context, cluster: str, path: str) -> Request:
    """A GET of a path, to where the contender takes requests for a cluster."""
    address, port = context.running.target(cluster)
    return Request(address, port, f"http://{HOST}{path}")


def request_to_vip(context: Context, vip: str, url: str, *, method: str = "GET", seconds: float) -> Request:
    """A request to a VIP by name. UsageError if the routing file has none of that name."""
    for one in context.scenario.routing.config.vips:
        if one.name == vip:
            return Request(one.address, one.port, url, method, seconds)
    raise UsageError(f"asking the VIP {vip!r}", "the routing file has none of that name", "Name one of its vips.")


def server_of(context: Context, cluster: str) -> Server:
    """What the cluster's hosts run."""
    return context.scenario.servers[cluster]


def wrong_with(answer: Answer, context: Context, cluster: str, body: bytes) -> str:
    """What is not as a backend of the cluster would answer; empty if nothing."""
    if answer.status != 200:
        return f"status {answer.status}, not 200"
    if answer.backend not in context.network.clusters[cluster]:
        return f"answered by {answer.backend or 'somebody who does not say'}, not by a backend of {cluster}"
    if answer.body != body:
        return f"a body of {len(answer.body)} bytes that is not the {len(body)} bytes which were served"
    return ""
