"""`rauta run` and `rauta agent` as processes: what survives them, what a new file does, what is left in the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.bench import Bench, bench, eventually
from lab.contenders.service import RAUTA, Part, RunningService
from rauta.config import Config
from rauta.errors import RautaError
from rauta.processes.instance import Instance, instances

SECONDS = 15.0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench("rauta-run", tmp_path_factory.mktemp("services")) as one:
        yield one


@pytest.fixture
def running(served: Bench) -> Iterator[RunningService]:
    """With its first configuration again in the end, and all that runs running."""
    one = served.running
    assert isinstance(one, RunningService)
    first = one.config
    yield one
    for part in (*one.routers, *one.agents.values()):
        if part.process is None or part.process.poll() is not None:
            part.start()
    one.reload(first)


def with_routes(config: Config, *routes: dict[str, Any]) -> Config:
    """Other routes at the VIP `shop`."""
    raw = config.model_dump(mode="json", exclude_unset=True)
    raw["vips"][0]["routes"] = list(routes)
    return Config.model_validate(raw)


WEB = {"host": "shop.test", "prefix": "/web", "cluster": "web"}
API = {"host": "shop.test", "prefix": "/api", "cluster": "api"}


def requests_of(running: RunningService, path: str) -> int:
    return next(int(one["requests"]) for one in running.ask("routes") if one["path"] == path)


# ---- what survives ----------------------------------------------------------------------------------------


def test_a_killed_router_is_not_missed_and_the_next_one_goes_on(served: Bench, running: RunningService) -> None:
    with served.connected() as connection:
        assert connection.ask("/web/x").status == 200
        before = running.counters()["requests_routed"]
        running.routers[0].kill()
        assert connection.ask("/web/x").status == 200
        with served.connected() as another:
            assert another.ask("/api/x").status == 200
        running.routers[0].start()
        assert connection.ask("/web/x").status == 200
        assert connection.ask("/api/x").status == 200  # moves
    assert running.counters()["requests_routed"] == before + 4


def test_a_killed_agent_is_not_missed_and_the_next_one_goes_on(served: Bench, running: RunningService) -> None:
    with served.connected() as connection:
        assert connection.ask("/api/x").status == 200
        running.agents["api-1"].kill()
        assert connection.ask("/api/x").status == 200
        running.agents["api-1"].start()
        assert connection.ask("/api/x").status == 200
        with served.connected() as another:
            assert another.ask("/api/x").status == 200


def test_the_next_router_may_have_another_configuration_and_more_flows(served: Bench, running: RunningService) -> None:
    """Counters stay with their routes; connections go on, by the new routes."""
    first = running.config
    with served.connected() as connection:
        assert connection.ask("/web/x").status == 200
        before = requests_of(running, "/web")
        running.routers[0].kill()
        config = with_routes(first, {"host": "shop.test", "prefix": "/new", "cluster": "api"}, WEB, API)
        running.write(config.model_copy(update={"flows": 16384}))
        running.routers[0].start()
        assert running.ask("flows")["capacity"] == 16384
        assert connection.ask("/web/x").status == 200
        assert connection.ask("/new/x").status == 200
        assert requests_of(running, "/web") == before + 1
        assert requests_of(running, "/new") == 1
    running.routers[0].kill()
    running.write(first)
    running.routers[0].start()


def test_who_was_drained_stays_drained(running: RunningService) -> None:
    running.ask("drain", backend="web-1")
    running.routers[0].kill()
    running.routers[0].start()
    assert running.ask("status")["drained"] == ["web-1"]
    weights = {one["name"]: one["effective_weight"] for one in running.ask("backends")}
    assert (weights["web-1"], weights["web-2"]) == (0, 1)
    running.ask("undrain", backend="web-1")


def test_a_second_router_of_that_name_is_told_who_runs(running: RunningService) -> None:
    router = running.routers[0]
    assert router.process is not None
    done = router.host.run(router.argv, timeout=30, check=False)
    assert done.returncode == 2
    assert f"process {router.process.pid} runs it already" in done.stderr


def test_an_orderly_end_leaves_the_packet_path_too(served: Bench, running: RunningService) -> None:
    router = running.routers[0]
    with served.connected() as connection:
        assert connection.ask("/web/x").status == 200
        router.stop()
        assert connection.ask("/web/x").status == 200
        router.start()
        assert connection.ask("/web/x").status == 200


# ---- another file -----------------------------------------------------------------------------------------


def test_a_changed_file_is_loaded_by_itself(served: Bench, running: RunningService) -> None:
    generation = running.ask("status")["generation"]
    with served.connected() as connection:
        assert connection.ask("/web/x").status == 200
        running.write(with_routes(running.config, WEB | {"cluster": "api"}, API))
        eventually(lambda: running.ask("status")["generation"] > generation, "the file to be loaded", SECONDS)
        assert connection.ask("/web/x").backend == "api-1"


def test_and_on_sighup(running: RunningService) -> None:
    router = running.routers[0]
    assert router.process is not None
    generation = running.ask("status")["generation"]
    os.kill(router.process.pid, signal.SIGHUP)
    eventually(lambda: running.ask("status")["generation"] > generation, "the file to be loaded", SECONDS)


def test_a_wrong_file_changes_nothing_and_says_where_it_is_wrong(served: Bench, running: RunningService) -> None:
    good = running.file.read_text()
    raw = json.loads(good)
    raw["vips"][0]["routes"][0]["cluster"] = "nowhere"
    running.file.write_text(json.dumps(raw, indent=1))
    with pytest.raises(RautaError, match=r"vips\[0\].routes\[0\].cluster: no cluster is called 'nowhere'"):
        running.ask("reload")
    status = running.ask("status")
    assert "no cluster is called" in status["error"]
    assert status["reloads"]["failed"] >= 1
    with served.connected() as connection:
        assert connection.ask("/web/x").status == 200
    running.file.write_text(good)
    running.ask("reload")
    assert running.ask("status")["error"] == ""


def test_what_takes_a_restart_is_said(running: RunningService) -> None:
    good = running.file.read_text()
    running.file.write_text(json.dumps(json.loads(good) | {"flows": 65536}))
    with pytest.raises(RautaError, match="flows cannot change while the router runs"):
        running.ask("reload")
    running.file.write_text(good)
    running.ask("reload")


def test_a_backend_comes_and_goes(served: Bench, running: RunningService) -> None:
    """One that is not there yet gets nothing, and keeps nobody from a start or a reload."""
    raw = running.config.model_dump(mode="json", exclude_unset=True)
    raw["clusters"][0]["backends"].append({"name": "web-3", "address": "198.18.0.13", "port": 8080})
    running.write(Config.model_validate(raw))
    running.ask("reload")
    states = {one["name"]: (one["state"], one["effective_weight"]) for one in running.ask("backends")}
    assert states["web-3"] == ("unreached", 0)
    for _ in range(20):
        with served.connected() as connection:
            assert connection.ask("/web/x").status == 200
    running.routers[0].kill()
    running.routers[0].start()
    assert running.ask("status")["unreached"] == ["web-3"]


# ---- the end ----------------------------------------------------------------------------------------------


def test_down_removes_everything_but_not_under_a_process_that_runs(tmp_path: Path) -> None:
    with bench("rauta-run", tmp_path) as one:
        assert isinstance(one.running, RunningService)
        router = one.running.routers[0]
        refused = router.host.run([*RAUTA, "down", "--name", router.instance.name], timeout=30, check=False)
        assert refused.returncode == 2
        assert f"process {router.process.pid if router.process else 0} runs it" in refused.stderr
        for part in (router, *one.running.agents.values()):
            part.kill()
            done = part.host.run([*RAUTA, "down", "--name", part.instance.name], timeout=30)
            assert "everything removed" in done.stdout
            assert part.instance.name not in [instance.name for instance in instances()]
            shown = part.host.run(["ip", "-details", "link", "show", part.host.interface], timeout=10).stdout
            assert "prog/xdp" not in shown or part is not router
            assert "clsact" not in part.host.run(["tc", "qdisc", "show"], timeout=10).stdout
        again = router.host.run([*RAUTA, "down", "--name", router.instance.name], timeout=30)
        assert "nothing is there" in again.stdout


def test_an_agent_serves_another_namespace_by_name_or_process(tmp_path: Path) -> None:
    with bench("rauta-run", tmp_path) as one:
        assert isinstance(one.running, RunningService)
        old = one.running.agents["api-1"]
        inside = old.host.start(["sleep", "600"], name="pod")
        for place in (old.host.namespace, str(inside.pid)):
            old.remove()
            outside = Part(one.network.fabric, old.instance, [*old.argv, "--netns", place])
            outside.start()
            with one.connected() as connection:
                assert connection.ask("/api/x").status == 200
            outside.kill()
            done = subprocess.run(
                [*RAUTA, "down", "--name", old.instance.name], capture_output=True, text=True, timeout=30, check=True
            )
            assert done.stdout.startswith(f"{old.instance.name}: 2 programs taken off")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["run", "-c", "/nowhere.yaml"], "reading /nowhere.yaml"),
        (["run", "-c", "{file}"], "it names no interface"),
        (["run", "-c", "{file}", "-i", "nothing0"], "there is no such interface"),
        (["run", "-c", "{file}", "-i", "lo", "--mode", "fast"], "'fast'"),
        (["run", "-c", "{file}", "-i", "lo", "--name", "../x"], "no name of an instance"),
        (["agent", "-c", "{file}", "-b", "web-1", "-i", "lo"], "names no `secrets`"),
        (["agent", "-c", "{file}", "-b", "web-9", "-i", "lo"], "web-9"),
    ],
)
def test_what_keeps_it_from_starting_is_said_and_nothing_is_left(tmp_path: Path, argv: list[str], said: str) -> None:
    file = tmp_path / "rauta.yaml"
    file.write_text((Path(__file__).parent / "data" / "routing.yaml").read_text())
    words = [word.format(file=file) for word in argv]
    done = subprocess.run([*RAUTA, *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (1, 2), done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    left = [one for one in instances() if one.name in ("router", "agent-web-1", "agent-web-9")]
    for one in left:
        subprocess.run([*RAUTA, "down", "--name", one.name], check=True, timeout=30, capture_output=True)
    assert Instance("router").process() is None


def test_idle_it_costs_nothing(running: RunningService) -> None:
    """Less than a hundredth of a core: what it looks at, it looks at seldom."""
    process = running.routers[0].process
    assert process is not None
    ticks = os.sysconf("SC_CLK_TCK")

    def used() -> float:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / ticks

    time.sleep(1)
    before = used()
    time.sleep(5)
    assert used() - before <= 0.01 * 5 + 0.02
