"""Constant memory: what the router takes is settled when it is loaded, and no packet changes it.

Many connections go through the program as live frames. What the kernel says it holds is read before and after: for the
router's maps it must be the same to the byte; for the machine's unreclaimable slab and per-CPU memory, and the kernel
memory of this process's cgroup, the same but for what others do meanwhile. So a few rounds are taken, of which one
must be undisturbed; and a program that does take memory shows that this would be seen.

    RAUTA_LONG=1    a million connections a round instead of a hundred thousand
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from lab import state, topology
from lab.measure.replay import Replayer, on_one_cpu
from lab.measure.replay import request as head
from packets.frames import CLIENT, CLIENT_MAC, ROUTER_MAC
from packets.observed import configuration, counted, loaded
from rauta.bpf import BpfObject, _lib, attach_xdp
from rauta.network.namespaces import entered
from rauta.observation import EventRates, Observation
from rauta.router import Router

ROOT = Path(__file__).parents[2]
CONNECTIONS = 1_000_000 if os.environ.get("RAUTA_LONG") == "1" else 100_000
ROUNDS = 3
GROWTH = 8.0
"""bytes a connection: less than any allocation that there is (kmalloc's smallest object), more than noise"""
KIB = 1024


@pytest.fixture
def replayer() -> Iterator[Replayer]:
    """One that sends requests of as many connections; its cable's other end takes what comes out."""
    with ExitStack() as stack:
        run = state.create("memory")
        stack.callback(run.sweep)
        namespace = stack.enter_context(topology.spare_namespace(run, "memory"))
        stack.enter_context(entered(namespace))
        with IPRoute() as netlink:
            netlink.link("add", ifname="near", kind="veth", peer={"ifname": "far"})
            for name in ("near", "far"):
                netlink.link("set", index=socket.if_nametoindex(name), state="up")
        instruments = stack.enter_context(BpfObject.open(topology.INSTRUMENTS))
        instruments.load()
        attach_xdp(socket.if_nametoindex("far"), instruments.programs["xdp_drop"], mode="native")
        stack.enter_context(on_one_cpu())
        vip, macs = configuration().vips[0], (ROUTER_MAC, CLIENT_MAC)
        yield Replayer(instruments, vip, head("GET /", "shop.test"), CLIENT, macs, CONNECTIONS)


def connect(replayer: Replayer) -> None:
    """As many new connections: a SYN each, and a first request."""
    salt = replayer.renew()
    for frame in ("syn", "first-request"):
        assert replayer.send(frame, CONNECTIONS, salt, interface="near").failed == 0


# ---- what the kernel holds ------------------------------------------------------------------------------


def fields(path: Path) -> dict[str, int]:
    """A file of lines "name number" or "name: number kB"."""
    lines = (line.replace(":", " ").split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) * (KIB if words[-1] == "kB" else 1) for words in lines}


def cgroup() -> Mapping[str, int]:
    """The kernel memory that this process's cgroup (version 2 or 1) is charged with; the root is charged with none."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        unified, memory = Path(f"/sys/fs/cgroup{path}"), Path(f"/sys/fs/cgroup/memory{path}")
        if controllers == "" and (unified / "memory.current").exists():
            return {"cgroup": fields(unified / "memory.stat")["kernel"]}
        if controllers == "memory" and path != "/":
            return {"cgroup": int((memory / "memory.kmem.usage_in_bytes").read_text())}
    return {}


def held() -> dict[str, int]:
    """Bytes by where they are counted."""
    machine = fields(Path("/proc/meminfo"))
    return {name: machine[name] for name in ("SUnreclaim", "Percpu")} | dict(cgroup())


def growths(work: Callable[[], None]) -> dict[str, list[float]]:
    """Bytes a connection that have come to be held in each round of work, by where they are counted."""
    grown: dict[str, list[float]] = {name: [] for name in held()}
    for _ in range(ROUNDS):
        before = held()
        work()
        for name, now in held().items():
            grown[name].append((now - before[name]) / CONNECTIONS)
    return grown


# ---- the tests ------------------------------------------------------------------------------------------


def test_no_packet_takes_memory(replayer: Replayer) -> None:
    """Also where everything is timed, and told for as long as there is room."""
    config = configuration().model_copy(update={"flows": 1 << 16})
    with loaded(config, observation=Observation(latency_one_in=1, events=EventRates())) as router:
        replayer.aim(router.object.programs["rauta_ingress"], router.keys.cookies)
        connect(replayer)
        stated = router.memory()
        grown = growths(lambda: connect(replayer))
        assert router.memory() == stated
        sent = CONNECTIONS * (ROUNDS + 1)
        assert counted(router.counters()) == {"TX_SYN_ACK": sent, "ROUTED_FIRST": sent}
        assert router.requests_by_route()[0].requests == sent
    assert all(min(rounds) < GROWTH for rounds in grown.values()), grown


def test_a_program_that_takes_memory_is_seen(replayer: Replayer, tmp_path: Path) -> None:
    clang = shutil.which("clang-19") or pytest.skip("needs clang-19")
    target, source = tmp_path / "leaking.bpf.o", Path(__file__).parent / "bpf/leaking.bpf.c"
    headers = (f"-I/usr/include/{sysconfig.get_config_var('MULTIARCH')}", f"-I{ROOT / 'bpf'}")
    subprocess.run([clang, "-O2", "-g", "-Wall", "-target", "bpf", *headers, "-c", source, "-o", target], check=True)
    with BpfObject.open(target) as leaking:
        leaking.load()
        replayer.aim(leaking.programs["leak"], None)
        before = leaking.maps["connections"].memory()
        grown = growths(lambda: connect(replayer))
        assert leaking.maps["connections"].memory() - before > 64 * CONNECTIONS
    assert all(max(rounds) > GROWTH for name, rounds in grown.items() if name != "Percpu"), grown


def test_what_is_stated_is_what_the_kernel_holds(router_memory: Router) -> None:
    """By the sizes of keys and values, for each kind of map that the router has."""
    maps, memory = router_memory.object.maps, router_memory.memory()
    cpus = _lib.possible_cpus()
    entries = {name: one.max_entries for name, one in maps.items()}
    assert memory.maps.keys() == maps.keys()
    assert memory.total == sum(memory.maps.values())
    least = {
        "flows": entries["flows"] * maps["flows"].value_size,
        "verdicts": entries["verdicts"] * maps["verdicts"].value_size * cpus,
        "route_requests": entries["route_requests"] * 8 * cpus,
        "paths": entries["paths"] * (maps["paths"].key_size + maps["paths"].value_size),
        "events": entries["events"],
        "clusters": len(router_memory.config.clusters) * 16385 * 8,
    }
    for name, expected in least.items():
        assert expected <= memory.maps[name] <= 1.5 * expected + 16384, name


@pytest.fixture
def router_memory() -> Iterator[Router]:
    """A router of the usual size."""
    config = configuration().model_copy(update={"flows": 131_072})
    with loaded(config, observation=Observation(events=EventRates())) as router:
        yield router


def test_more_clusters_take_more_memory_by_their_tables() -> None:
    few, many = configuration(), configuration().model_dump(mode="json")
    many["clusters"] += [{"name": f"more-{number}", "backends": []} for number in range(10)]
    with loaded(few) as small, loaded(few.model_validate(many)) as large:
        grown = large.memory().maps["clusters"] - small.memory().maps["clusters"]
    assert 10 * 16385 * 8 <= grown <= 10 * (16385 * 8 + 4096)
