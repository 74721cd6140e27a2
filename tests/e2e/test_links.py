"""Cables do what they promise: lose, double, delay, reorder and limit as much as was asked, and otherwise nothing."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import pytest
from scipy.stats import binom

from lab import scenario, state, topology
from lab.process import wait_until
from lab.topology import Network

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

FILE = scenario.FOLDER / "no-route.yaml"
SERVER = "polite-1"
PORT = 9000
PATIENCE = 0.5
"""seconds without a datagram after which none is on its way any more"""
STRAY = 2
"""frames that a kernel may send by itself meanwhile; on a busy machine, where the test takes long, one was seen"""
SLACK = 200e-6
"""seconds that a round trip may take longer than the cables say: two wake-ups"""


@contextmanager
def connected(logs: Path, client_link: str) -> Iterator[tuple[Network, socket.socket, socket.socket]]:
    """A network whose client has such a cable, and datagram sockets on the client and on a server."""
    one = scenario.load(FILE, overrides=[f"topology.links={{client: {client_link}}}"])
    run = state.create("links")
    try:
        with topology.build(one, run, logs) as network:
            near, far = _socket(network.client), _socket(network.hosts[SERVER])
            with near, far:
                far.bind((str(network.hosts[SERVER].address), PORT))
                near.connect((str(network.hosts[SERVER].address), PORT))
                yield network, near, far
    finally:
        run.sweep()


def _socket(host: topology.Host) -> socket.socket:
    with host.entered():
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
    one.settimeout(PATIENCE)
    return one


def sent(near: socket.socket, far: socket.socket, count: int, size: int = 100, burst: int = 20) -> list[int]:
    """Send numbered datagrams, some at a time: the numbers that arrived, in their order."""
    arrived: list[int] = []
    far.setblocking(False)

    def drain() -> bool:
        try:
            while True:
                arrived.append(int.from_bytes(far.recv(2000)[:4], "big"))
        except BlockingIOError:
            return True

    for number in range(count):
        near.send(number.to_bytes(4, "big") + bytes(size - 4))
        if number % burst == 0:
            drain()
    last = [time.monotonic(), 0.0]

    def quiet() -> bool:
        before = len(arrived)
        drain()
        if len(arrived) != before:
            last[0] = time.monotonic()
        return time.monotonic() - last[0] > PATIENCE

    wait_until(quiet, seconds=30, what="the last datagram to arrive")
    far.setblocking(True)
    return arrived


def round_trips(near: socket.socket, far: socket.socket, count: int) -> list[float]:
    """Seconds of so many, one after the other."""
    far.settimeout(PATIENCE)
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        near.send(b"?")
        _, address = far.recvfrom(10)
        far.sendto(b"!", address)
        near.recv(10)
        taken.append(time.perf_counter() - began)
    return taken


def test_an_ideal_cable_carries_everything_in_order(tmp_path: Path) -> None:
    with connected(tmp_path, "{}") as (network, near, far):
        assert sent(near, far, 5_000) == list(range(5_000))
        assert not network.conditioned
        assert not network.faults


def test_loss_and_duplicates_are_as_many_as_asked(tmp_path: Path) -> None:
    loss, duplicate, count = 0.05, 0.02, 20_000
    with connected(tmp_path, "{loss: 5%, duplicate: 2%}") as (network, near, far):
        arrived = sent(near, far, count)
        counted = network.faults["client"].counters()
    assert count <= counted["seen"] <= count + STRAY
    for share, seen in ((loss, counted["lost"]), (duplicate * (1 - loss), counted["duplicated"])):
        low, high = binom.interval(0.999, count, share)
        assert low <= seen <= high
    assert len(set(arrived)) == count - counted["lost"]
    assert len(arrived) == len(set(arrived)) + counted["duplicated"]


@pytest.mark.parametrize("milliseconds", [0.2, 1, 10])
def test_a_delay_is_that_long_both_ways_and_keeps_the_order(milliseconds: float, tmp_path: Path) -> None:
    with connected(tmp_path, f"{{delay: {milliseconds}ms}}") as (_, near, far):
        trip = median(round_trips(near, far, 60))
        assert 2e-3 * milliseconds <= trip <= 2e-3 * milliseconds * 1.1 + SLACK
        assert sent(near, far, 2_000) == list(range(2_000))


def test_some_overtake_others_where_asked(tmp_path: Path) -> None:
    count = 4_000
    with connected(tmp_path, "{delay: 2ms, reorder: 5%}") as (_, near, far):
        arrived = sent(near, far, count)
    assert sorted(arrived) == list(range(count))
    highest, overtaken = -1, 0
    for number in arrived:
        overtaken += number < highest
        highest = max(highest, number)
    assert overtaken > 0.02 * count


def test_a_rate_is_kept(tmp_path: Path) -> None:
    rate, size, count = 20e6, 1000, 4_000
    with connected(tmp_path, "{rate: 20mbit}") as (_, near, far):
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 50 * size)  # so that sending waits, and the queue holds it
        began = time.perf_counter()
        arrived = sent(near, far, count, size)
        seconds = time.perf_counter() - began - PATIENCE
    assert len(arrived) == count
    assert count * (size + 42) * 8 / seconds == pytest.approx(rate, rel=0.1)


def test_what_was_made_for_cables_goes_with_them(tmp_path: Path) -> None:
    with connected(tmp_path, "{delay: 1ms, loss: 1%}") as (network, _, _):
        run = network.run
    assert run.namespaces() == []
    assert not run.folder.exists()
