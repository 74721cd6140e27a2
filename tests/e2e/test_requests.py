"""Requests of many kinds that real servers answer, through the router."""

from __future__ import annotations

import os
import re
import socket

import pytest

from e2e.bench import SECONDS, Bench, Conversation
from lab.clients import CLIENTS, ClientName
from lab.servers import content

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root"),
    pytest.mark.usefixtures("nothing_is_sent_twice"),
]

BODY = content(13)
LONG = content(5_000_000)
SMALL_MSS = 600


def test_a_thousand_requests_on_one_connection(routed: Bench) -> None:
    grown = routed.growth()
    with routed.connected() as connection:
        answers = [connection.ask(f"/api/{number}") for number in range(1000)]
    assert {(answer.status, answer.body, answer.backend) for answer in answers} == {(200, BODY, "api-1")}
    expected = {"TX_SYN_ACK": 1, "ROUTED_FIRST": 1, "ROUTED_NEXT": 999, "AGENT_OPENED": 1, "AGENT_CLEARING": 0}
    assert {name: grown[name] for name in expected} == expected, grown


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("size", [1, 1_300, 5_000, 100_000, 2_000_000])
def test_a_body_arrives_whole(routed: Bench, method: str, size: int) -> None:
    """Within the head's segment, in a few, and in more than a window of them."""
    with routed.connected() as connection:
        for _ in range(2):
            answer = connection.ask("/api/x", method=method, body=content(size))
            assert (answer.status, answer.headers["x-received"], answer.body) == (200, str(size), BODY)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("method", ["DELETE", "OPTIONS", "PATCH"])
def test_other_methods_are_routed_too(routed: Bench, client: ClientName, method: str) -> None:
    grown = routed.growth()
    answer = CLIENTS[client](routed.client, routed.to("shop", "/api/x", method=method))
    assert answer.backend == "api-1"
    assert grown["requests_routed"] == 1, grown


def mss_towards(routed: Bench, backend: str, connection: Conversation) -> int:
    """How much a backend's socket puts into a segment of that connection, in bytes."""
    shown = routed.network.hosts[backend].run(["ss", "-tinH", "dport", "=", str(connection.port)], timeout=SECONDS)
    found = re.search(r"\bmss:(\d+)", shown.stdout)
    assert found, shown.stdout
    return int(found[1])


def test_a_client_may_want_small_segments(routed: Bench) -> None:
    """The cookie remembers a size that is no larger than what the client's SYN allows."""
    with routed.connected(options=[(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SMALL_MSS)]) as connection:
        assert connection.ask("/api/x", method="POST", body=LONG).headers["x-received"] == str(len(LONG))
        assert connection.ask("/api/download").body == LONG
        assert 500 < mss_towards(routed, "api-1", connection) <= SMALL_MSS


def test_others_get_large_ones(routed: Bench) -> None:
    """All that fits into a packet to the client: replies are not encapsulated."""
    with routed.connected() as connection:
        assert connection.ask("/api/x").body == BODY
        assert mss_towards(routed, "api-1", connection) == 1460 - 12  # timestamps
