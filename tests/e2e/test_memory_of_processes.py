"""What `rauta run` and `rauta agent` take of a host while they have nothing to do: memory, and processor time.

Real processes with a thousand routes, which are told to load their file again and again, and are asked all that
rautactl and Prometheus ask. Memory is what the kernel says is resident, of the process and all that it has started.
"""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from e2e.bench import FILE, Bench, bench
from lab.contenders.service import Part, RunningService
from rauta.config import Config, Metrics, Route, load_config

MEGABYTE = 10**6
MOST = 50 * MEGABYTE
MOST_GROWTH = 1 * MEGABYTE
ROUTES = 1000
FLOWS = 1 << 19  # the table of them takes more than what is left
RELOADS = 20
IDLE_SECONDS = 5.0
IDLE_SHARE = 0.01  # of a core
IDLE_SWITCHES = 50  # a second
LISTEN = ("127.0.0.1", 9477)


def with_routes(config: Config, generation: int) -> Config:
    """A thousand routes, of which a hundredth is another one in each generation."""
    shop = config.vips[0]
    numbers = [number if number % 100 else number + generation * ROUTES for number in range(ROUTES - len(shop.routes))]
    added = [Route(host=f"host-{n % 50}.test", prefix=f"/{n}", cluster="web") for n in numbers]
    metrics = Metrics(listen=LISTEN) if find_spec("rauta.prometheus.metrics") else None
    vips = (shop.model_copy(update={"routes": (*shop.routes, *added)}), *config.vips[1:])
    return config.model_copy(update={"vips": vips, "metrics": metrics, "flows": FLOWS})


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Bench, RunningService]]:
    folder = tmp_path_factory.mktemp("memory")
    config = with_routes(load_config(FILE.with_name("routing.yaml")), 0)
    (folder / "routing.yaml").write_text(config.model_dump_json(exclude_unset=True))
    (folder / "network.yaml").write_text(FILE.read_text())
    with bench("rauta-run", folder, folder / "network.yaml") as one:
        service = one.running
        assert isinstance(service, RunningService)
        write(service, config)
        for part in (*service.routers, *service.agents.values()):
            part.stop()
            part.start()
        yield one, service


def write(service: RunningService, config: Config) -> None:
    """Puts another configuration into the file as YAML, as people write it; JSON would be read by another reader."""
    service.write(config)
    content = json.loads(service.file.read_text())
    draft = service.file.with_suffix(".draft")
    draft.write_text("".join(f"{field}: {json.dumps(value, indent=1)}\n" for field, value in content.items()))
    draft.replace(service.file)


def processes(part: Part) -> list[int]:
    """The process, and those that it has started, and so on."""
    assert part.process is not None
    found = [part.process.pid]
    for pid in found:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def status(pid: int, field: str) -> int:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1])


def resident(part: Part) -> int:
    """Bytes."""
    return sum(status(pid, "VmRSS") for pid in processes(part)) * 1024


def scrape(part: Part) -> None:
    """What rautactl asks for, and Prometheus, if it is asked for here."""
    if find_spec("rauta.prometheus.metrics"):
        address, port = LISTEN
        with part.host.entered(), urllib.request.urlopen(f"http://{address}:{port}/metrics", timeout=10) as answer:
            assert b"rauta" in answer.read()


def test_memory_is_bounded_and_stays_so(running: tuple[Bench, RunningService]) -> None:
    _, service = running
    (router,) = service.routers
    config, sizes = service.config, [resident(router)]
    for generation in range(1, RELOADS + 1):
        write(service, with_routes(load_config(FILE.with_name("routing.yaml")), generation))
        service.ask("reload")
        assert len(service.ask("routes")) == len([route for vip in config.vips for route in vip.routes])
        for command in ("status", "backends", "flows", "counters"):
            service.ask(command)
        scrape(router)
        sizes.append(resident(router))
    print(f"MB after start and each reload: {[round(size / MEGABYTE, 1) for size in sizes]}")
    assert max(sizes) < MOST
    assert max(sizes[10:]) - sizes[10] < MOST_GROWTH


def test_an_agent_takes_no_more(running: tuple[Bench, RunningService]) -> None:
    _, service = running
    assert max(map(resident, service.agents.values())) < MOST


def busy(part: Part) -> float:
    """Seconds of processor time so far: proc_pid_stat(5), utime and stime."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in processes(part)]
    return sum(int(utime) + int(stime) for *_, utime, stime in (one[:13] for one in fields)) / os.sysconf("SC_CLK_TCK")


def switches(part: Part) -> int:
    """How often any of its threads gave its processor up, or lost it."""
    tasks = [task for pid in processes(part) for task in Path(f"/proc/{pid}/task").iterdir()]
    lines = [line for task in tasks for line in (task / "status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if "voluntary_ctxt_switches" in line)


def test_a_router_without_requests_sleeps(running: tuple[Bench, RunningService]) -> None:
    """Of a few rounds one must be quiet: others use this machine, too."""
    _, service = running
    (router,) = service.routers
    found = []
    for _ in range(4):
        before, slept = busy(router), switches(router)
        time.sleep(IDLE_SECONDS)
        found.append(((busy(router) - before) / IDLE_SECONDS, (switches(router) - slept) / IDLE_SECONDS))
        if found[-1][0] < IDLE_SHARE and found[-1][1] < IDLE_SWITCHES:
            break
    print(f"share of a core, switches a second: {found}")
    assert min(share for share, _ in found) < IDLE_SHARE
    assert min(rate for _, rate in found) < IDLE_SWITCHES


def test_a_large_table_of_flows_is_read_in_parts(running: tuple[Bench, RunningService]) -> None:
    """The peak counts: what was taken once is often kept."""
    one, service = running
    (router,) = service.routers
    assert service.ask("status")["memory"]["maps"] > 2 * (MOST - resident(router))
    with one.connected() as conversation:
        assert conversation.ask("/web").status == 200
        client = str(IPv4Address(conversation.sock.getsockname()[0]))
        (found,) = service.ask("flows", client=client)["flows"]
        assert found["cluster"] == "web"
    assert max(status(pid, "VmHWM") for pid in processes(router)) * 1024 < MOST
