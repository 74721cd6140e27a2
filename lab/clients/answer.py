"""What clients are asked to send, and what they got."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from urllib.parse import urlsplit

from lab.errors import LabError

SECONDS = 5.0
"""for a request and its answer, unless something else is said: a hang is an error, never a hang of the lab"""


class NoAnswer(LabError):
    """A request was not answered. ``reset``: the connection was reset."""

    def __init__(self, tried: str, happened: str, *, reset: bool) -> None:
        super().__init__(tried, happened, "")
        self.reset = reset


@dataclass(frozen=True)
class Request:
    """A request, and where to connect for it."""

    address: IPv4Address
    port: int
    url: str
    method: str = "GET"
    seconds: float = SECONDS

    @property
    def host(self) -> str:
        """What the Host header says."""
        return urlsplit(self.url).netloc

    @property
    def path(self) -> str:
        """What the request line says, query included."""
        parts = urlsplit(self.url)
        return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def __str__(self) -> str:
        return f"{self.method} {self.url} from {self.address}:{self.port}"


@dataclass(frozen=True)
class Answer:
    """An answer. ``headers``: by lower-cased name."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def backend(self) -> str:
        """Which host answered; empty if it does not say."""
        return self.headers.get("x-backend", "")
