"""An attacker who fills the flow table: by real handshakes and first requests, from as many addresses as he likes.

The table holds 1,024 connections. docs/http.md says what he can take, and what it costs him: nobody's new connection,
and of those that stand only such as say nothing in the time in which he makes as many as the table has room for.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

import pytest

from e2e.bench import HOST, SECONDS, Bench, Conversation, bench, eventually, request
from lab.clients import short
from lab.contenders.rauta import RunningRauta
from lab.process import Process
from lab.servers import content
from lab.wiring import CROWD

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

FILE = Path(__file__).parent / "data" / "crowded.yaml"
FLOWS = 1024
BODY = content(13)


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench("rauta", tmp_path_factory.mktemp("logs"), FILE) as one:
        yield one


@contextmanager
def crowd(crowded: Bench) -> Iterator[Process]:
    """Connections from one address after the other, as fast as one process can make them."""
    address, port = crowded.vip("shop")
    plan = {
        "address": str(address),
        "port": port,
        "host": HOST,
        "path": "/api/x",
        "expected": BODY.decode(),
        "first_port": 2048,
        "ports": 60_000,
        "first_source": str(CROWD.network_address),
        "sources": CROWD.num_addresses,
        "count": 1_000_000,
        "concurrency": 64,
        "post_every": 0,
        "body": 0,
        "seconds": SECONDS,
    }
    (attacker,) = crowded.network.attackers
    process = attacker.start([sys.executable, short.__file__, json.dumps(plan)], name="crowd")
    try:
        yield process
        assert process.poll() is None, process.output()
    finally:
        process.stop()


def entries(crowded: Bench) -> tuple[int, int]:
    """How many the flow table has of the client, and of others."""
    assert isinstance(crowded.running, RunningRauta)
    found = crowded.running.flow_clients()
    return found[crowded.client.address], found.total() - found[crowded.client.address]


def lost(connection: Conversation) -> bool:
    """Whether a connection is told, at its next request, that it has ended; False: it has its answer."""
    try:
        answer = connection.ask("/api/x")
    except ConnectionResetError:
        return True
    assert (answer.status, answer.body) == (200, BODY)
    return False


def test_new_connections_work_whatever_the_table_is_filled_with(crowded: Bench) -> None:
    grown = crowded.growth()
    with crowd(crowded):
        eventually(lambda: entries(crowded)[1] > 0.9 * FLOWS, "the table to be full", seconds=4 * SECONDS)
        asked = 0
        while grown["ROUTED_FIRST"] < 4 * FLOWS or asked < 100:
            with crowded.connected() as connection:
                answer = connection.ask("/api/x")
                assert (answer.status, answer.body) == (200, BODY)
                assert connection.ask("/api/x").body == BODY
            asked += 1
        assert sum(entries(crowded)) <= FLOWS


def test_who_has_lost_his_entry_is_told_so_at_once_and_can_come_again(crowded: Bench) -> None:
    """Connections that say nothing while the table is filled several times over."""
    with ExitStack() as stack:
        idle = [stack.enter_context(crowded.connected()) for _ in range(20)]
        assert not any(map(lost, idle))
        grown = crowded.growth()
        with crowd(crowded):
            eventually(lambda: grown["ROUTED_FIRST"] > 4 * FLOWS, "the crowd to have come", seconds=8 * SECONDS)
        assert entries(crowded)[0] == 0
        grown = crowded.growth()
        assert sum(map(lost, idle)) == grown["TX_RESET_COOKIE"]
        for _ in idle:
            with crowded.connected() as connection:
                assert not lost(connection)


def test_connections_in_use_outlive_a_slow_attacker(crowded: Bench) -> None:
    """He makes more connections than the table holds, but fewer between two of their words than would fill their sets.
    Who says nothing meanwhile is gone, but for those that are lucky.
    """
    address, port = crowded.vip("shop")
    (attacker,) = crowded.network.attackers
    sources = count(int(CROWD.network_address))
    with ExitStack() as stack:
        idle, busy = ([stack.enter_context(crowded.connected()) for _ in range(10)] for _ in range(2))
        assert not any(map(lost, [*idle, *busy]))
        for _ in range(48):
            with attacker.entered(), ExitStack() as crowd:
                for _ in range(32):
                    sock = crowd.enter_context(socket.socket())
                    sock.settimeout(SECONDS)
                    sock.bind((socket.inet_ntoa(next(sources).to_bytes(4, "big")), 0))
                    sock.connect((str(address), port))
                    sock.sendall(request("/api/x", "Connection: close"))
                    assert sock.recv(100).startswith(b"HTTP/1.1 200 ")
            assert not any(map(lost, busy))
        assert len(busy) <= entries(crowded)[0] <= len(busy) + len(idle) // 2
