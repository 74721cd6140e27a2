"""Cookie keys that change every two seconds under load, on hosts whose clocks differ: no client notices.

The router and each agent go by clocks of their own (rauta.secrets); one of them is ahead by as much as a half of what
is allowed. What a clock too far off looks like is the last test.

RAUTA_LONG=1 has them change for fifteen seconds each time instead of seven.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from e2e.bench import HOST, Bench, bench
from lab.contenders.rauta import RunningRauta
from rauta.keys import Keys
from rauta.secrets import Rotation, Schedule, Target, create, load_schedule

FILE = Path(__file__).parent / "data" / "moves.yaml"
PERIOD = 2.0
AHEAD = PERIOD / 4
"""seconds: half of what clocks may differ by"""
LOAD_SECONDS = 15 if os.environ.get("RAUTA_LONG") else 7
GRACE = 20.0
REFUSED = ("TX_RESET_COOKIE", "TX_RESET_UNMOVED", "AGENT_DROP_COOKIE", "AGENT_DROP_ORDER", "DROP_NOTICE_FORGED")
# For a connection to each thread.
MOVES = """\
local turn = 0
function request()
  turn = turn + 1
  return wrk.format("GET", turn % 2 == 1 and "/web" or "/api/x")
end
"""

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root"),
    pytest.mark.timeout(120),
]


@pytest.fixture(scope="module")
def schedule(tmp_path_factory: pytest.TempPathFactory) -> Schedule:
    file = tmp_path_factory.mktemp("secrets") / "secrets.yaml"
    create(file)
    return load_schedule(file, PERIOD)


@pytest.fixture(scope="module")
def rotated(tmp_path_factory: pytest.TempPathFactory, schedule: Schedule) -> Iterator[Bench]:
    """A network whose secrets are the file's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Keys, "generate", lambda: schedule.keys_at(time.time()))
        with bench("rauta", tmp_path_factory.mktemp("logs"), FILE) as one:
            yield one


def running(rotated: Bench) -> RunningRauta:
    assert isinstance(rotated.running, RunningRauta)
    return rotated.running


def host(clock: Callable[[], float], schedule: Schedule, target: Target, done: threading.Event) -> int:
    """A host's loop, until `done`: how many steps it made."""
    rotation, steps = Rotation(schedule, [target], clock), 0
    while True:
        seconds, steps = rotation.step(), steps + 1
        if done.wait(seconds):
            return steps


@contextmanager
def rotating(rotated: Bench, schedule: Schedule, ahead: Mapping[str, float]) -> Iterator[None]:
    """The router (`router`) and all agents (by backend) follow their clocks; `ahead` says whose differ."""
    targets: dict[str, Target] = {"router": running(rotated).router, **running(rotated).agents}
    assert ahead.keys() <= targets.keys()
    done = threading.Event()
    with ThreadPoolExecutor(len(targets)) as pool, ExitStack() as stack:
        stack.callback(done.set)
        loops = []
        began = time.monotonic()
        for name, target in targets.items():
            off = ahead.get(name, 0.0)
            loops.append(pool.submit(host, lambda off=off: time.time() + off, schedule, target, done))
        yield
        done.set()
        halves = (time.monotonic() - began) / (PERIOD / 2)
        for loop in loops:
            assert loop.result() >= halves - 1


def wrk(rotated: Bench, tmp_path: Path, path: str, *more: str, script: str = "") -> int:
    """How many requests were answered; none may have failed."""
    address, port = rotated.vip("shop")
    argv = ["wrk", "-t2", "-c8", f"-d{LOAD_SECONDS}s", "-H", f"Host: {HOST}", *more]
    if script:
        file = tmp_path / "script.lua"
        file.write_text(script)
        argv += ["-s", str(file)]
    said = rotated.client.run([*argv, f"http://{address}:{port}{path}"], timeout=LOAD_SECONDS + GRACE).stdout
    assert not re.search("Socket errors|Non-2xx", said), said
    return int(re.findall(r"(\d+) requests in", said)[0])


@pytest.mark.parametrize("ahead", ["router", "web-1"])
def test_no_request_fails_under_rotation(rotated: Bench, schedule: Schedule, tmp_path: Path, ahead: str) -> None:
    """Connections that are kept, one for each request, and connections that move at each request, all at once."""
    grown = rotated.growth()
    with rotating(rotated, schedule, {ahead: AHEAD}), ThreadPoolExecutor(3) as pool:
        loads = [
            pool.submit(wrk, rotated, tmp_path, "/web"),
            pool.submit(wrk, rotated, tmp_path, "/api/x", "-H", "Connection: close"),
            pool.submit(wrk, rotated, tmp_path, "/web", "-t8", script=MOVES),
        ]
        kept, opened, moved = (load.result() for load in loads)
    print(f"{kept} requests on kept connections, {opened} on one each, {moved} with moves; {grown}")
    assert not {name: grown[name] for name in REFUSED if grown[name]}, grown
    assert grown["ROUTED_FIRST"] >= opened > 100
    assert grown["ROUTED_MOVED"] > 0.9 * moved > 100
    assert kept > 100


def test_who_says_nothing_for_a_while_is_served_after_a_change(rotated: Bench, schedule: Schedule) -> None:
    """The handshake in one period, the first request in another; and a later one after ten."""
    grown = rotated.growth()
    with rotating(rotated, schedule, {"router": AHEAD}), ExitStack() as stack:
        early = stack.enter_context(rotated.connected())
        assert early.ask("/web").status == 200
        ends = time.monotonic() + 4 * PERIOD
        while time.monotonic() < ends:
            with rotated.connected() as late:
                time.sleep(PERIOD / 2 - AHEAD - 0.25)
                assert late.ask("/api/x").status == 200
        assert early.ask("/api/x").status == 200
    assert not {name: grown[name] for name in REFUSED if grown[name]}, grown


def test_a_clock_too_far_off_shows_in_the_agents_counter(rotated: Bench, schedule: Schedule) -> None:
    """The router takes its own cookies, and the agents none of them: requests are dropped there, and come again."""
    agents, router = running(rotated).agents, running(rotated).router
    now = time.time()
    router.set_keys(schedule.keys_at(now))
    for agent in agents.values():
        agent.set_keys(schedule.keys_at(now + 2 * PERIOD))
    grown = rotated.growth()
    with rotated.connected() as refused:
        refused.sock.settimeout(1.0)
        with pytest.raises(TimeoutError):
            refused.ask("/api/x")
        assert grown["AGENT_DROP_COOKIE"] >= 2, grown
        assert (grown["ROUTED_FIRST"], grown["AGENT_OPENED"]) == (1, 0), grown
        agents["api-1"].set_keys(schedule.keys_at(now))
        refused.sock.settimeout(5.0)
        assert refused.answer().status == 200
