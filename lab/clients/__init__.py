"""Real HTTP clients on the client's host: curl, Python's http.client, and one for many short connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from lab.clients import curl, http_client
from lab.clients.answer import Answer, NoAnswer, Request
from lab.topology import Host

__all__ = ["CLIENTS", "Answer", "ClientName", "NoAnswer", "Request"]

ClientName = Literal["curl", "http.client"]

CLIENTS: dict[ClientName, Callable[[Host, Request], Answer]] = {"curl": curl.ask, "http.client": http_client.ask}
"""Each sends one request on a connection of its own, and returns the answer or raises NoAnswer."""
