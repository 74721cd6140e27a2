"""Per-request routing: one connection of a client, whose requests go to the backends that their routes name."""

from __future__ import annotations

import os

import pytest

from e2e.bench import Bench
from lab.servers import content

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root"),
    pytest.mark.usefixtures("nothing_is_sent_twice"),
]

BODY = content(13)
LONG = content(5_000_000)


def test_routes_alternate_on_one_connection(routed: Bench) -> None:
    grown = routed.growth()
    with routed.connected() as connection:
        for number in range(100):
            path, cluster = ("/api/x", "api") if number % 2 else ("/web", "web")
            answer = connection.ask(path)
            assert (answer.status, answer.body) == (200, BODY)
            assert answer.backend in routed.network.clusters[cluster]
    assert (grown["ROUTED_FIRST"], grown["ROUTED_MOVED"], grown["requests_routed"]) == (1, 99, 100), grown
    assert (grown["AGENT_ORDERED"], grown["AGENT_MOVED"], grown["AGENT_ADOPTED"]) == (99, 99, 99), grown
