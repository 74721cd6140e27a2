"""Background load: it stands before anything is measured, is what it says it is, and does not end unnoticed."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from e2e.bench import SECONDS, Bench, bench, eventually
from e2e.load import CLOSED_PORT, ODD_PORT, PORT, At, Counting, Target, counting, generate, odd, read_request, wrong
from lab.background import Background, Idle, SlowReaders
from lab.checks.state import ESTABLISHED, sockets
from lab.errors import LabError
from lab.process import raise_open_files_limit
from lab.topology import Host

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

MANY = 10_000
SLOW = 20


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    raise_open_files_limit()
    with bench("direct", tmp_path_factory.mktemp("logs")) as one:
        yield one


@pytest.fixture
def server(direct: Bench, tmp_path: Path) -> Iterator[Counting]:
    with counting(direct.network.hosts["api-1"], tmp_path) as one:
        yield one


def established(host: Host, port: int | None = PORT) -> int:
    """How many connections a server has at a port, or a host at all."""
    return sum(one.state == ESTABLISHED and port in (None, one.local[1]) for one in sockets(host))


def holders(host: Host) -> list[int]:
    """The processes in a host's namespace that hold connections."""
    found = []
    with host.entered():
        here = Path("/proc/thread-self/ns/net").readlink()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "ns/net").readlink() == here and b"holder.py" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def running(direct: Bench, load: Background, target: Target) -> Any:
    """As the lab enters it."""
    return load.running(direct.network, At(target), direct.scenario)


def test_ten_thousand_idle_connections_stand_and_disturb_no_request(direct: Bench, server: Counting) -> None:
    with running(direct, Idle(idle=MANY, cluster="api"), server.target):
        assert established(server.host) == MANY
        assert len(server.logged()) == MANY, "each has had one answer"
        report = generate(direct.client, server.target, rate=500, duration=0.4, connections=4)
        assert (wrong(report), report["answered"]) == ({}, 200)
        assert established(server.host) >= MANY
        assert len(server.logged()) == MANY + 200, "and asks for nothing more"
    assert holders(direct.client) == []
    eventually(lambda: established(server.host) == 0, "the connections to be gone", seconds=4 * SECONDS)


def test_none_is_nothing_at_all(direct: Bench, server: Counting) -> None:
    for load in (Idle(idle=0, cluster="api"), SlowReaders(slow_readers=0, cluster="api")):
        with running(direct, load, (server.host.address, CLOSED_PORT)):
            assert holders(direct.client) == []
    assert server.logged() == []


def test_slow_readers_read_as_slowly_as_they_should(direct: Bench, server: Counting) -> None:
    """They have more coming than they read, all the time: the server never gets rid of its answers."""
    load = SlowReaders(slow_readers=SLOW, rate="100kB", cluster="api", path="/large")
    with running(direct, load, server.target):
        assert established(server.host) == SLOW
        before = time.monotonic()
        eventually(lambda: all(queue > 0 for queue in unsent(server.host)), "the answers to queue up")
        report = generate(direct.client, server.target, rate=500, duration=1, connections=4)
        assert (wrong(report), report["answered"]) == ({}, 500)
        eventually(
            lambda: [queue > 0 for queue in unsent(server.host)] == [True] * SLOW, "all to be kept waiting still"
        )
        seconds = time.monotonic() - before
    assert len([one for one in server.logged() if one.status == 200 and one.sent < 1000]) == 500
    read = [said["read"] for said in reports(direct.client)][-1]
    assert read == pytest.approx(SLOW * 100_000 * seconds, rel=0.5)


def unsent(host: Host) -> list[int]:
    """Bytes that wait in the send queue of each of a server's connections."""
    with host.entered():
        rows = [line.split() for line in Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]]
    return [int(row[4].split(":")[0], 16) for row in rows if row[3] == ESTABLISHED and row[1].endswith(f":{PORT:04X}")]


def reports(host: Host) -> list[dict[str, Any]]:
    """What holders on a host have said when they ended."""
    lines = (host.logs / f"{host.name}-holder.log").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def test_idle_connections_that_the_server_ends_are_noticed(direct: Bench, server: Counting) -> None:
    def end() -> None:
        os.kill(server.worker, signal.SIGKILL)
        eventually(lambda: established(server.host) == 0, "the connections to end")

    with pytest.raises(LabError, match="50 of them ended early"):
        meanwhile(direct, Idle(idle=50, cluster="api"), server.target, end)
    assert holders(direct.client) == []


def test_slow_readers_whose_server_hangs_up_are_noticed_before_they_have_read_up_to_there(direct: Bench) -> None:
    host = direct.network.hosts["api-1"]
    resets = threading.Event()

    def answer(connection: Any) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(30_000))
        resets.wait(SECONDS)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def end() -> None:
        resets.set()
        eventually(lambda: established(direct.client, None) == 0, "the connections to be reset")

    load = SlowReaders(slow_readers=20, rate="1kB", cluster="api")
    with odd(host, answer) as target, pytest.raises(LabError, match="20 of them ended early"):
        meanwhile(direct, load, target, end)


def test_a_holder_that_dies_is_noticed(direct: Bench, server: Counting) -> None:
    with pytest.raises(LabError, match="10 of them ended early"):
        meanwhile(
            direct,
            Idle(idle=10, cluster="api"),
            server.target,
            lambda: os.kill(holders(direct.client)[0], signal.SIGKILL),
        )


def meanwhile(direct: Bench, load: Background, target: Target, do: Callable[[], None]) -> None:
    """Do something while there is background load."""
    with running(direct, load, target):
        do()


def test_an_error_inside_is_not_hidden_by_what_it_did_to_the_connections(direct: Bench, server: Counting) -> None:
    with pytest.raises(KeyError, match="inside"), running(direct, Idle(idle=10, cluster="api"), server.target):
        raise KeyError("inside")
    assert holders(direct.client) == []


@pytest.mark.parametrize(
    ("target_of", "path", "said"),
    [
        (lambda server: (server.host.address, CLOSED_PORT), "/", "Connect call failed"),
        (lambda server: server.target, "/error", "500"),
    ],
    ids=["closed", "error"],
)
def test_what_cannot_stand_says_why(
    direct: Bench, server: Counting, target_of: Callable[[Counting], Target], path: str, said: str
) -> None:
    load = Idle(idle=10, cluster="api", path=path)
    with pytest.raises(LabError, match=said), running(direct, load, target_of(server)):
        pytest.fail("it does not stand")
    assert holders(direct.client) == []


def test_requests_name_the_host_that_is_asked_for(direct: Bench) -> None:
    seen: list[bytes] = []

    def answer(connection: Any) -> None:
        seen.append(read_request(connection))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        connection.recv(1)  # until the client is gone

    load = Idle(idle=3, cluster="api", path="/x", host="other.test")
    with odd(direct.network.hosts["api-1"], answer) as target, running(direct, load, target):
        assert established(direct.network.hosts["api-1"], ODD_PORT) == 3
    assert seen == [b"GET /x HTTP/1.1\r\nHost: other.test\r\n\r\n"] * 3
