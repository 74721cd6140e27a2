"""`rauta run` and `rauta agent` send spans to the collector that the configuration names, and do without it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from e2e.bench import bench, eventually
from e2e.collector import Collector, collecting
from lab.contenders.service import RunningService
from lab.topology import Host
from rauta.config import Config

PORT = 4318


def collector_on(host: Host, folder: Path, stack: ExitStack) -> Collector:
    """One in a host's namespace: its loopback is nobody else's."""
    folder.mkdir()
    with host.entered():
        return stack.enter_context(collecting(folder, port=PORT))


def restarted(running: RunningService, config: Config) -> None:
    """All processes, with another configuration."""
    running.write(config)
    for part in (*running.agents.values(), *running.routers):
        part.kill()
        part.start()


def test_a_request_is_one_trace_of_two_processes(tmp_path: Path) -> None:
    with bench("rauta-run", tmp_path) as one, ExitStack() as stack:
        running = one.running
        assert isinstance(running, RunningService)
        traces = {"endpoint": f"http://127.0.0.1:{PORT}/v1/traces", "one_in": 1}
        raw = running.config.model_dump(mode="json", exclude_unset=True) | {"traces": traces}
        at_router = collector_on(one.network.routers[0], tmp_path / "router", stack)
        at_agent = collector_on(one.network.hosts["api-1"], tmp_path / "agent", stack)
        restarted(running, Config.model_validate(raw))
        with one.connected() as connection:
            assert connection.ask("/api/x").status == 200
        eventually(lambda: bool(at_router.spans() and at_agent.spans()), "both spans", 15)
        (routed,), (answered,) = at_router.spans(), at_agent.spans()
        assert routed["trace"] == answered["trace"]
        assert answered["parent"] == routed["span"]
        stack.close()  # no collector any more
        with one.connected() as connection:
            assert connection.ask("/api/x").status == 200
        assert running.ask("status")["generation"] == 0
