"""The monitor in a run's network: whose namespace a process is in says whose its CPU time is, and counters are read."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from e2e.bench import SECONDS, Bench, bench, eventually
from lab.monitor import Monitor
from lab.process import Process
from lab.topology import Host

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

BUSY_SECONDS = 0.3
"""of CPU time"""
NOTICED = 0.02
"""seconds of CPU time that other programs of the lab's may take meanwhile"""
LOCAL_EXPERIMENTAL = 0x88B5
"""an EtherType that nobody listens to (IEEE 802)"""
MOST_OF_A_CPU = 0.01
MEASURED_SECONDS = 3.0


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench("direct", tmp_path_factory.mktemp("logs")) as one:
        yield one


def hosts_of(direct: Bench) -> Sequence[Host]:
    return list(direct.network.hosts.values())


def monitor_of(direct: Bench) -> Monitor:
    return Monitor(hosts_of(direct), [direct.network.fabric])


def cpu_seconds(pid: int) -> float:
    return time.clock_gettime(~pid << 3 | 2)


@contextmanager
def hog(host: Host) -> Iterator[int]:
    """The pid of a program on a host that takes what it gets. Not a child of the lab's, which would be ours anyway."""
    shell: Process = host.start(
        ["sh", "-c", '"$@" & echo "pid $!"; wait', "sh", sys.executable, "-S", "-c", "while True: pass"], name="hog"
    )
    try:
        eventually(lambda: shell.output().endswith("\n"), "the hog to be started")
        yield int(shell.output().split()[1])
    finally:
        shell.stop()


def until_used(pid: int, seconds: float) -> None:
    eventually(lambda: cpu_seconds(pid) >= seconds, f"process {pid} to use {seconds} s of CPU time", seconds=60)


# ---- whose CPU time -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "role"), [("client", "client"), ("router", "router"), ("web-2", "servers"), ("api-1", "servers")]
)
def test_what_a_host_does_is_its_roles_and_not_foreign(direct: Bench, name: str, role: str) -> None:
    monitor = monitor_of(direct)
    with hog(direct.network.hosts[name]) as pid, monitor.watch() as watch:
        before = cpu_seconds(pid)
        until_used(pid, before + BUSY_SECONDS)
        assert pid not in monitor.processes().foreign
        used = cpu_seconds(pid) - before
    assert watch.usage.hosts[role] >= used - NOTICED
    others = sum(spent for other, spent in watch.usage.hosts.items() if other not in (role, "client"))
    assert others < NOTICED


def test_what_the_fabric_does_is_nobodys_and_not_foreign(direct: Bench) -> None:
    """A delay line runs there."""
    monitor = monitor_of(direct)
    with hog(direct.network.fabric) as pid:
        with monitor.watch() as watch:
            until_used(pid, cpu_seconds(pid) + BUSY_SECONDS)
            assert pid not in monitor.processes().foreign
        assert pid in Monitor(hosts_of(direct)).processes().foreign, "unless it is somebody else's"
    assert watch.usage.hosts["router"] + watch.usage.hosts["servers"] < NOTICED


def test_other_runs_are_foreign(direct: Bench) -> None:
    with hog(direct.client) as pid:
        assert pid in Monitor([]).processes().foreign


def test_a_generator_that_starts_and_ends_within_a_watch_is_the_clients(direct: Bench) -> None:
    """Through a wrapper that waits for it, as wrk runs."""
    burn = f"import time\nwhile time.process_time() < {BUSY_SECONDS}: pass\nprint(time.process_time())"
    with monitor_of(direct).watch() as watch:
        before = time.process_time()
        done = direct.client.run(["timeout", "60", sys.executable, "-S", "-c", burn], timeout=90)
        own = time.process_time() - before
    assert 0 <= watch.usage.hosts["client"] - own - float(done.stdout) < NOTICED


# ---- counters --------------------------------------------------------------------------------------------------


def total(monitor: Monitor, name: str) -> int:
    return sum(monitor.series()[name])


def test_traffic_shows_in_the_series(direct: Bench) -> None:
    body = 5_000_000
    with monitor_of(direct).watching() as monitor:
        with direct.connected(direct.running.target("api")) as connection:
            assert len(connection.ask("/api/download").body) == body
        eventually(lambda: total(monitor, "rx_bytes") > body, "the download to show")
        assert total(monitor, "rx_packets") > body / 65536
        assert total(monitor, "rx_bytes") < 1.5 * body
        assert total(monitor, "drops") == 0


def test_what_a_host_says_to_itself_does_not(direct: Bench) -> None:
    with monitor_of(direct).watching() as monitor:
        with direct.client.entered():
            sender, receiver = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        with sender, receiver:
            receiver.bind(("127.0.0.1", 0))
            for _ in range(20):
                sender.sendto(bytes(10_000), receiver.getsockname())
                receiver.recv(10_000)
        begun = len(monitor.series()["time"])
        eventually(lambda: len(monitor.series()["time"]) > begun + 1, "another look")
        assert total(monitor, "rx_bytes") < 10_000


def test_what_nobody_takes_shows_as_a_drop(direct: Bench) -> None:
    target = direct.network.hosts["web-1"]
    frame = bytes.fromhex((target.mac + direct.client.mac).replace(":", "")) + LOCAL_EXPERIMENTAL.to_bytes(2, "big")
    with monitor_of(direct).watching() as monitor:
        with direct.client.entered():
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        with sock:
            sock.bind((direct.client.interface, 0))
            for _ in range(7):
                sock.send(frame + bytes(46))
        eventually(lambda: total(monitor, "drops") >= 7, "the drops to show")


def test_what_is_sent_again_shows(direct: Bench) -> None:
    address, port = direct.vip("shop")  # for which no contender answers
    with monitor_of(direct).watching() as monitor:
        with direct.client.entered():
            sock = socket.socket()
        with sock:
            sock.setblocking(False)
            sock.connect_ex((str(address), port))
            eventually(lambda: total(monitor, "retransmits") > 0, "the second SYN to show", seconds=SECONDS)


def test_hosts_that_are_not_in_use_are_not_read_and_lose_nothing(direct: Bench) -> None:
    """As the other networks of a matrix."""
    api = direct.network.hosts["api-1"]
    with monitor_of(direct).watching() as monitor:
        monitor.attend([api])
        begun = len(monitor.series()["time"])
        eventually(lambda: len(monitor.series()["time"]) > begun + 1, "a look at api-1 only")
        with direct.connected(direct.running.target("web")) as connection:
            for _ in range(50):
                connection.ask("/")
        begun = len(monitor.series()["time"])
        eventually(lambda: len(monitor.series()["time"]) > begun + 1, "another look")
        assert total(monitor, "rx_packets") < 10  # a switch that does not know yet where to sends to all
        monitor.attend(hosts_of(direct))
        eventually(lambda: total(monitor, "rx_packets") >= 100, "the conversation with web-1 to show")


# ---- what it costs ----------------------------------------------------------------------------------------------


def test_it_takes_less_than_a_hundredth_of_a_cpu(direct: Bench) -> None:
    """Of however many networks: it reads the counters of the one in use."""
    with monitor_of(direct).watching():
        (thread,) = (one for one in threading.enumerate() if one.name == "monitor")
        assert thread.native_id is not None
        clock = ~thread.native_id << 3 | 6  # of one thread: CPUCLOCK_PERTHREAD_MASK
        started, before = time.monotonic(), time.clock_gettime(clock)
        eventually(lambda: time.monotonic() - started > MEASURED_SECONDS, "time to pass")
        share = (time.clock_gettime(clock) - before) / (time.monotonic() - started)
    assert 0 < share < MOST_OF_A_CPU


def test_it_lets_go_of_the_namespaces(direct: Bench) -> None:
    """A file of /proc/net that is open would keep its namespace alive."""

    def open_files() -> int:
        links = [str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
        return sum("/net/" in link for link in links)

    before = open_files()
    with monitor_of(direct).watching():
        assert open_files() == before + 2 * len(hosts_of(direct))
    assert open_files() == before
