"""Another process takes the place of the router's or an agent's, and cannot use its maps: clients notice nothing."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from packets.next_version import next_version
from packets.test_agent_migration import CHANGES

from e2e.bench import FILE, HOST, Bench, bench, eventually, request
from lab.contenders.rauta import RunningRauta
from rauta import loading
from rauta.agent import Agent
from rauta.bpf import BpfObject, attach_xdp
from rauta.router import Router

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

SIZES = (16000, 4096, 4104)
"""of the flow tables of processes that come one after the other; the first has 8,192"""
MOVING, SHORT, WRK_CONNECTIONS = 6, 3, 16
"""clients that ask two backends in turn on one connection, and those that connect for each request"""
PATIENCE = 20.0
BETWEEN = 20
"""requests of each of these between two processes"""
WRK_SECONDS = 100
"""more than it takes"""


@pytest.fixture
def moving(tmp_path: Path) -> Iterator[Bench]:
    """Its own: the router that it starts with is not the one that it ends with."""
    with bench("rauta", tmp_path, FILE.parent / "moves.yaml") as one:
        yield one


def succeed(moving: Bench, present: Router, flows: int) -> Router:
    """What the next process does."""
    config = present.config.model_copy(update={"flows": flows})
    following = Router.load(config, present.keys, ids=present.ids, earlier=present.object.maps)
    host = moving.network.routers[0]
    try:
        with host.entered():
            following.attach(*moving.network.interfaces(host), replace=True, strict=False)
    except BaseException:
        following.close()
        raise
    return following


class Clients:
    """Ask until they are told to stop; whatever goes wrong is raised then. Waiting for an answer has an end."""

    def __init__(self, moving: Bench) -> None:
        self._moving = moving
        self._stop = threading.Event()
        self.asked = [0] * (MOVING + SHORT)

    def start(self, threads: ThreadPoolExecutor) -> list[Future[None]]:
        """One thread each."""
        kinds = [self._move] * MOVING + [self._connect] * SHORT
        return [threads.submit(kind, number) for number, kind in enumerate(kinds)]

    def stop(self) -> None:
        """After the present request."""
        self._stop.set()

    def await_more(self) -> None:
        """Until each of them has had some more answers."""
        wanted = [asked + BETWEEN for asked in self.asked]
        eventually(lambda: all(map(int.__ge__, self.asked, wanted)), "clients to have had their answers", PATIENCE)

    def _move(self, number: int) -> None:
        with self._moving.connected() as connection:
            while not self._stop.is_set():
                for path, backends in (("/web", ("web-1", "web-2")), ("/api", ("api-1",))):
                    answer = connection.ask(path)
                    assert (answer.status, answer.backend in backends) == (200, True)
                    self.asked[number] += 1

    def _connect(self, number: int) -> None:
        while not self._stop.is_set():
            with self._moving.connected() as connection:
                assert connection.ask("/api").backend == "api-1"
            self.asked[number] += 1


@contextmanager
def asking(moving: Bench) -> Iterator[Clients]:
    """Clients, and wrk on connections that stay where they are; both without a failure."""
    address, port = moving.vip("shop")
    command = ["wrk", "-t1", f"-c{WRK_CONNECTIONS}", f"-d{WRK_SECONDS}s", "-H", f"Host: {HOST}"]
    clients = Clients(moving)
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(MOVING + SHORT))
        stack.callback(clients.stop)
        done = clients.start(threads)
        with moving.client.entered():
            argv = [*command, f"http://{address}:{port}/web"]
            wrk = stack.enter_context(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True))
        stack.callback(wrk.kill)
        os.sched_setaffinity(0, range(os.cpu_count() or 1))  # this thread sends nothing, and would wait for its CPU
        yield clients
        clients.await_more()
        wrk.send_signal(signal.SIGINT)  # enough
        said = wrk.communicate(timeout=PATIENCE)[0]
        clients.stop()
        for one in done:
            one.result()
    assert re.search(r"^ +[1-9][0-9]{3,} requests in", said, re.MULTILINE), said
    assert "Socket errors" not in said, said
    assert "Non-2xx" not in said, said


@pytest.mark.timeout(240)
def test_a_router_with_another_flow_table(moving: Bench) -> None:
    """Each connection goes on, each request is answered by whom its route names, with tables growing and shrinking."""
    assert isinstance(moving.running, RunningRauta)
    with ExitStack() as stack:
        present = moving.running.router
        with asking(moving) as clients:
            for flows in SIZES:
                clients.await_more()
                present = stack.enter_context(succeed(moving, present, flows))
        assert present.counters()["DROP_PAUSED"] > 0


def test_a_process_that_was_killed_in_the_pause(moving: Bench) -> None:
    """The next one takes the pause's place, and has everything from the old table."""
    assert isinstance(moving.running, RunningRauta)
    host, present = moving.network.routers[0], moving.running.router
    (interface,) = moving.network.interfaces(host)
    config = present.config.model_copy(update={"flows": SIZES[0]})
    with moving.connected() as connection:
        assert connection.ask("/web").status == 200
        with host.entered(), Router.load(config, present.keys, ids=present.ids, earlier=present.object.maps) as killed:
            pause, index = killed.object.programs["rauta_pause"], socket.if_nametoindex(interface)
            attach_xdp(index, pause, "best-effort", replace=present.object.programs["rauta_ingress"])
        assert connection.sock.send(request("/api"))
        with succeed(moving, present, SIZES[1]) as following:
            assert connection.answer().backend == "api-1"
            counters = following.counters()
        assert (counters["ROUTED_FIRST"], counters["ROUTED_MOVED"]) == (1, 1)


@pytest.mark.timeout(240)
def test_agents_whose_struct_mapping_is_another(moving: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the next version and back again, on three backends: what sockets carry goes over with them."""
    assert isinstance(moving.running, RunningRauta)
    present, router = dict(moving.running.agents), moving.running.router
    made = next_version("agent", CHANGES[:1], tmp_path / "next")
    with ExitStack() as stack:
        with asking(moving) as clients:
            for opened in (lambda _: BpfObject.open(made), loading.open_object):
                monkeypatch.setattr(loading, "open_object", opened)
                for backend in ("web-1", "web-2", "api-1"):
                    clients.await_more()
                    host, earlier = moving.network.hosts[backend], present[backend].object.maps
                    agent = Agent.load(router.config, router.keys, backend, earlier=earlier)
                    present[backend] = stack.enter_context(agent)
                    with host.entered():
                        agent.attach(host.interface, replace=True, made_clsact=True)
        counters = [present[backend].counters() for backend in ("web-1", "web-2", "api-1")]
        assert sum(one["AGENT_DROP_PAUSED"] + one["AGENT_EGRESS_PAUSED"] for one in counters) > 0
