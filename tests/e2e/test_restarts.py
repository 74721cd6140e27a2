"""A process of RAUTA is killed at any step of its start, and started again: connections go on, nothing is left over.

The steps are those after which something is in the kernel or on disk that was not there before (dying.py kills there).
RAUTA_LONG=1 takes all of them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from e2e import dying
from e2e.bench import Bench, Conversation, bench, eventually
from lab.chaos import Asked, asking, leading
from lab.contenders.service import RAUTA, Part, RunningService
from lab.links import PROGRAM as LINK
from lab.topology import INSTRUMENTS, spare_namespace
from rauta.bpf import BpfObject, Program, attach_tc, attach_xdp, attached_tc_id, attached_xdp_id, has_clsact
from rauta.errors import RautaError
from rauta.network.offloads import has_gro, set_gro
from rauta.processes.control import ask
from rauta.processes.instance import Instance
from rauta.processes.takedown import take_down
from rauta.upgrade import pins

FILE = Path(__file__).parent / "data" / "restarts.yaml"
LEFT_TO_THE_PROXY = ("a: b",) * 180
ROUTER_STEPS = [
    ("rauta.processes.instance:Instance.save", 1),
    ("rauta.bpf.maps:Map.pin", 1),
    ("rauta.bpf.maps:Map.pin", 9),
    ("rauta.router:Router.attach", 1),
    ("rauta.agent:Agent.attach", 1),
    ("rauta.bpf.tc:TcAttachment.__init__", -1),
    ("rauta.agent:Agent._attach_one", -1),
    ("rauta.agent:Agent.attach", -1),
    ("rauta.router:Router.attach", -1),
    ("shutil:rmtree", 1),
    ("shutil:rmtree", -1),
    ("pathlib:Path.rename", 1),
    ("pathlib:Path.rename", -1),
    ("rauta.processes.control:serve", 1),
]
AGENT_STEPS = [
    ("rauta.processes.instance:Instance.save", -1),
    ("rauta.bpf.maps:Map.pin", 3),
    ("rauta.agent:Agent.attach", 1),
    ("rauta.agent:Agent._attach_one", -1),
    ("rauta.agent:Agent.attach", -1),
    ("shutil:rmtree", -1),
    ("pathlib:Path.rename", -1),
]


def some_of(steps: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Where the most has changed and the least is settled; all steps with RAUTA_LONG."""
    return steps if os.environ.get("RAUTA_LONG") else [step for step in steps if step in TELLING]


def named(step: tuple[str, int]) -> str:
    """A step as part of a test's name."""
    return f"{step[0].partition(':')[2]}{step[1]:+}"


TELLING = [
    ("rauta.bpf.maps:Map.pin", 9),
    ("rauta.agent:Agent._attach_one", -1),
    ("rauta.router:Router.attach", -1),
    ("shutil:rmtree", -1),
]

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root"),
    pytest.mark.timeout(180),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench("rauta-run", tmp_path_factory.mktemp("logs"), FILE) as one:
        yield one


def running(one: Bench) -> RunningService:
    assert isinstance(one.running, RunningService)
    return one.running


def dies(part: Part, step: tuple[str, int], *more: str) -> None:
    """Starts a process that is killed at a step."""
    argv = [RAUTA[0], dying.__file__, step[0], str(step[1]), *part.argv[len(RAUTA) :], *more]
    doomed = replace(part, argv=argv)
    doomed.launch()
    process = doomed.process
    assert process is not None
    eventually(lambda: process.poll() is not None, f"the death at {step}", seconds=30)
    assert process.poll() == -9, process.output()


def attached(part: Part) -> dict[str, int]:
    """The ids of programs on the host's interface, by where."""
    with part.host.entered():
        index = socket.if_nametoindex(part.host.interface)
        found = {"xdp": attached_xdp_id(index)}
        found |= {side: attached_tc_id(index, side) for side in ("ingress", "egress")}
        found |= {"clsact": int(has_clsact(index))}
    return {where: id for where, id in found.items() if id}


def pinned(part: Part) -> dict[str, set[int]]:
    """The ids of the programs that are pinned, by folder."""
    found: dict[str, set[int]] = {}
    for path in pins.folder(part.instance.name).glob("*/rauta_*"):
        with Program.from_pin(path) as program:
            found.setdefault(path.parent.name, set()).add(program.id)
    return found


@contextmanager
def conversations(one: Bench) -> Iterator[list[Conversation]]:
    """Connections to both clusters, and one that the proxy has."""
    with one.connected() as web, one.connected() as api, one.connected() as proxied:
        assert web.ask("/").backend == "web-1"
        assert api.ask("/api/x").backend == "api-1"
        assert proxied.ask("/", *LEFT_TO_THE_PROXY).backend == "web-1"
        yield [web, api, proxied]


def all_go_on(some: list[Conversation]) -> None:
    web, api, proxied = some
    assert web.ask("/").backend == "web-1"
    assert api.ask("/api/x").backend == "api-1"
    assert web.ask("/api/y").backend == "api-1"
    assert web.ask("/").backend == "web-1"
    assert proxied.ask("/").backend == "web-1"


def serves(one: Bench) -> None:
    """New connections, of each kind."""
    with conversations(one) as some:
        all_go_on(some)


def settled(part: Part, *folders: str) -> None:
    """Exactly what is attached is pinned."""
    found = pinned(part)
    assert set(found) == set(folders)
    there = attached(part)
    assert {id for where, id in there.items() if where != "clsact"} <= set().union(*found.values())


@pytest.mark.parametrize("step", some_of(ROUTER_STEPS), ids=named)
def test_a_router_killed_while_it_starts(served: Bench, step: tuple[str, int]) -> None:
    router = running(served).routers[0]
    with conversations(served) as some:
        router.kill()
        dies(router, step)
        all_go_on(some)
        serves(served)
        router.start()
        all_go_on(some)
    serves(served)
    settled(router, "router", "fallback")


@pytest.mark.parametrize("step", some_of(AGENT_STEPS), ids=named)
def test_an_agent_killed_while_it_starts(served: Bench, step: tuple[str, int]) -> None:
    agent = running(served).agents["web-1"]
    with conversations(served) as some:
        agent.kill()
        dies(agent, step)
        all_go_on(some)
        serves(served)
        agent.start()
        all_go_on(some)
    serves(served)
    settled(agent, "agent")


@pytest.mark.parametrize("step", some_of(ROUTER_STEPS), ids=named)
def test_down_after_a_killed_restart_leaves_nothing(served: Bench, step: tuple[str, int]) -> None:
    router = running(served).routers[0]
    router.kill()
    dies(router, step)
    with router.host.entered():
        take_down(router.instance.name)
    assert not attached(router)
    assert not router.instance.exists
    router.start()
    serves(served)
    settled(router, "router", "fallback")


@pytest.mark.parametrize("step", [step for step in some_of(ROUTER_STEPS) if step[0] != "shutil:rmtree"], ids=named)
def test_down_after_a_killed_first_start_leaves_nothing(served: Bench, step: tuple[str, int]) -> None:
    router = running(served).routers[0]
    router.kill()
    with router.host.entered():
        take_down(router.instance.name)
    assert not attached(router)
    dies(router, step)
    with router.host.entered():
        take_down(router.instance.name)
    assert not attached(router)
    assert not router.instance.exists
    router.start()
    serves(served)
    settled(router, "router", "fallback")


# ---- starts that fail -----------------------------------------------------------------------------------


def fails(part: Part, *more: str) -> str:
    """What a process says that cannot start."""
    other = replace(part, argv=[*part.argv, *more])
    other.launch()
    process = other.process
    assert process is not None
    eventually(lambda: process.poll() is not None, "it to fail", seconds=30)
    assert process.poll() == 2, process.output()
    return process.output()


@contextmanager
def spare_interface(part: Part, name: str = "spare") -> Iterator[int]:
    """One more interface of the host; its index."""
    part.host.run(["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}-p"], timeout=10)
    try:
        for one in (name, f"{name}-p"):
            part.host.run(["ip", "link", "set", one, "up"], timeout=10)
        with part.host.entered():
            yield socket.if_nametoindex(name)
    finally:
        part.host.run(["ip", "link", "del", name], timeout=10)


def test_a_start_that_fails_half_way_puts_everything_back(served: Bench) -> None:
    """The fallback's agent and the first interface's program have been replaced when the second interface refuses."""
    router = running(served).routers[0]
    before = attached(router)
    with conversations(served) as some, spare_interface(router) as index, BpfObject.open(INSTRUMENTS) as foreign:
        foreign.load()
        with router.host.entered():
            foreigner = attach_xdp(index, foreign.programs["xdp_pass"], mode="native")
        router.kill()
        assert "attached there already" in fails(router, "-i", "spare")
        assert attached(router) == before
        settled(router, "router", "fallback")
        all_go_on(some)
        serves(served)
        with router.host.entered():
            foreigner.detach()
        router.start()
        all_go_on(some)


def test_a_restart_in_another_mode_fails_and_changes_nothing(served: Bench) -> None:
    router = running(served).routers[0]
    before = attached(router)
    with conversations(served) as some:
        router.kill()
        assert "Replacing keeps the mode" in fails(router, "--mode", "generic")
        assert attached(router) == before
        all_go_on(some)
        router.start()


def test_an_agent_whose_second_interface_refuses_puts_the_first_back(served: Bench) -> None:
    agent = running(served).agents["web-1"]
    before = attached(agent)
    with conversations(served) as some, spare_interface(agent) as index, BpfObject.open(LINK) as foreign:
        foreign.load()
        with agent.host.entered():
            foreigner = attach_tc(index, foreign.programs["link_to_host"], "ingress")
        agent.kill()
        assert "attached there already" in fails(agent, "-i", "spare")
        assert attached(agent) == before
        all_go_on(some)
        with agent.host.entered():
            foreigner.detach()
        agent.start()
        all_go_on(some)


# ---- restarts with something changed --------------------------------------------------------------------


def test_an_interface_that_is_no_longer_named_is_given_up(served: Bench) -> None:
    router = running(served).routers[0]
    with conversations(served) as some, spare_interface(router) as index:
        both = replace(router, argv=[*router.argv, "-i", "spare"])
        router.kill()
        both.start()
        with router.host.entered():
            assert attached_xdp_id(index)
            assert attached_tc_id(index, "ingress")
        both.kill()
        router.start()
        with router.host.entered():
            assert not attached_xdp_id(index)
            assert not attached_tc_id(index, "ingress")
            assert not attached_tc_id(index, "egress")
        assert router.instance.state().interfaces == (router.host.interface,)
        all_go_on(some)


def test_a_router_starts_with_the_routes_that_are_in_its_file_by_then(served: Bench) -> None:
    service = running(served)
    before = service.config
    with served.connected() as connection:
        assert connection.ask("/").backend == "web-1"
        service.routers[0].kill()
        service.write(leading(before, "/", "api"))
        service.routers[0].start()
        assert connection.ask("/").backend == "api-1"
        service.reload(before)
        assert connection.ask("/").backend == "web-1"


@pytest.mark.parametrize(
    "step",
    [("rauta.router:Router.apply", 1), ("rauta.routing:_Writer.settle", 1), ("rauta.routing:Routing.apply", -1)],
    ids=named,
)
def test_a_router_killed_while_it_loads_a_configuration(served: Bench, step: tuple[str, int]) -> None:
    """Routes and the order of clusters change: numbers that connections carry must not be given to others."""
    service = running(served)
    router, before = service.routers[0], service.config
    changed = leading(before, "/", "api").model_copy(update={"clusters": before.clusters[::-1]})
    with conversations(served) as some:
        router.kill()
        doomed = replace(router, argv=[RAUTA[0], dying.__file__, step[0], str(step[1]), *router.argv[len(RAUTA) :]])
        doomed.start()
        all_go_on(some)
        service.write(changed)
        with pytest.raises(RautaError, match="hung up"):
            service.ask("reload")
        web, api, proxied = some
        assert web.ask("/").backend in {"web-1", "api-1"}
        assert api.ask("/api/x").backend == "api-1"
        assert proxied.ask("/").backend in {"web-1", "api-1"}
        router.start()
        assert web.ask("/").backend == "api-1"
        assert api.ask("/api/x").backend == "api-1"
        service.reload(before)
        assert web.ask("/").backend == "web-1"
    serves(served)


def test_no_request_fails_while_routers_start_with_larger_and_smaller_flow_tables(served: Bench) -> None:
    """Then the table is copied, while the program that is still attached goes on writing to the old one."""
    service, vip = running(served), served.vip("shop")
    before, sizes = service.config, (65536, 8192, 16384, 8192)
    paths = {"/": ("web",), "/api/x": ("api",)}
    with asking(served.network, served.scenario, vip, paths, Asked(24, 2, 0, 0.002, 5)) as clients:
        for flows in sizes:
            service.routers[0].kill()
            service.write(before.model_copy(update={"flows": flows}))
            service.routers[0].start()
        clients.end()
    assert clients.report["failed"] == 0, clients.report["failures"][:3]
    assert clients.report["requests"] > 500
    service.write(before)


def test_a_router_that_starts_while_its_interface_is_down_serves_as_soon_as_it_is_up(served: Bench) -> None:
    """It cannot ask for anybody's MAC address, but an earlier router could."""
    router = running(served).routers[0]
    with conversations(served) as some:
        router.kill()
        router.host.run(["ip", "link", "set", router.host.interface, "down"], timeout=10)
        try:
            router.start()
        finally:
            router.host.run(["ip", "link", "set", router.host.interface, "up"], timeout=10)
        assert running(served).ask("status")["unreached"] == []
        all_go_on(some)
        serves(served)


@pytest.mark.parametrize("taken_down", [False, True], ids=["started-again", "taken-down"])
def test_a_router_killed_while_it_copies_its_flow_table(served: Bench, taken_down: bool) -> None:
    """Nothing is let through then, and what is to be gone on with is the earlier router's table."""
    service, before = running(served), running(served).config
    router = service.routers[0]
    with conversations(served) as some:
        router.kill()
        service.write(before.model_copy(update={"flows": 65536}))
        dies(router, ("rauta.router:Router._bring_over", 1))
        assert router.instance.exists
        if taken_down:
            with router.host.entered():
                take_down(router.instance.name)
            assert not attached(router)
        service.write(before)
        router.start()
        if not taken_down:
            all_go_on(some)
    serves(served)
    settled(router, "router", "fallback")


# ---- what is left ---------------------------------------------------------------------------------------


def test_down_needs_no_state(served: Bench) -> None:
    """What a start that finds a damaged one advises must work."""
    router = running(served).routers[0]
    router.kill()
    (router.instance.folder / "state.json").write_text("{")
    assert "rauta down" in fails(router)
    with router.host.entered():
        assert take_down(router.instance.name).startswith("3 programs taken off eth0")
    assert set(attached(router)) <= {"clsact"}
    router.start()
    serves(served)


def test_down_of_an_agent_whose_namespace_is_gone(served: Bench) -> None:
    """As of a pod that was deleted."""
    run, agent = served.network.run, running(served).agents["web-1"]
    name = f"{run.name}-pod"
    with spare_namespace(run, "pod") as namespace:
        host = replace(agent.host, namespace=namespace)
        host.run(["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "peer"], timeout=10)
        argv = [*agent.argv[: agent.argv.index("--name")], "--name", name, "--netns", namespace, "--log", "json"]
        pod = Part(agent.host, Instance(name), argv)
        pod.start()
        pod.kill()
    assert take_down(name) == "0 programs taken off no interface, everything removed"
    assert not Instance(name).exists


def test_down_and_a_second_process_are_refused_while_one_runs(served: Bench) -> None:
    router = running(served).routers[0]
    assert router.process is not None
    assert f"process {router.process.pid} runs it already" in fails(router)
    with pytest.raises(RautaError, match="runs it already"):
        take_down(router.instance.name)
    serves(served)


# ---- several things at once -----------------------------------------------------------------------------


def test_backends_that_are_drained_at_once_are_all_drained(served: Bench) -> None:
    """While configurations are loaded, too, which write to the same state."""
    service = running(served)
    control = service.routers[0].instance.control
    with ThreadPoolExecutor(5) as pool:
        for number in range(10):
            command = "undrain" if number % 2 else "drain"
            commands = [
                (command, {"backend": "web-1"}),
                ("reload", {}),
                (command, {"backend": "api-1"}),
                ("reload", {}),
            ]
            list(pool.map(lambda one: ask(control, one[0], **one[1]), commands))
            wanted = [] if number % 2 else ["api-1", "web-1"]
            assert ask(control, "status")["drained"] == wanted
            assert sorted(service.routers[0].instance.state().drained) == wanted
    serves(served)


# ---- other ways of running ------------------------------------------------------------------------------


def test_generic_mode_survives_its_interface_and_kills(served: Bench) -> None:
    """GRO, which generic XDP must not have, is off for as long as the router is there, and on again after it."""
    native = running(served).routers[0]
    generic = replace(native, argv=[*native.argv[:-2], "--mode", "generic", *native.argv[-2:]])
    native.kill()
    with native.host.entered():
        take_down(native.instance.name)
        set_gro(native.host.interface, on=True)
    try:
        generic.start()
        for state in ("down", "up"):
            generic.host.run(["ip", "link", "set", generic.host.interface, state], timeout=10)
        serves(served)
        generic.kill()
        dies(generic, ("rauta.router:Router.attach", -1))
        generic.start()
        serves(served)
        with generic.host.entered():
            assert not has_gro(generic.host.interface)
    finally:
        generic.remove()
    with generic.host.entered():
        assert has_gro(generic.host.interface)
        set_gro(generic.host.interface, on=False)
    native.start()
    serves(served)
