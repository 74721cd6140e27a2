"""A router that starts again knows who was unhealthy: a restart sends nobody to a server that is known to be dead."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from e2e.bench import Bench, bench, eventually
from lab import scenario
from lab.contenders.service import RunningService

FILE = scenario.FOLDER / "chaos-backends.yaml"
CONNECTIONS = 24
"""to two backends: that all go to the one by chance happens once in 16 million runs"""

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root"),
    pytest.mark.timeout(120),
]


def test_a_restart_heals_nobody(tmp_path: Path) -> None:
    with bench("rauta-run", tmp_path, FILE) as one:
        service = one.running
        assert isinstance(service, RunningService)
        router = service.routers[0]
        one.network.hosts["web-2"].kill("nginx")
        eventually(lambda: len(router.instance.state().unhealthy) == 1, "it to be found out", seconds=20)
        router.kill()
        router.start()
        for _ in range(CONNECTIONS):
            with one.connected() as connection:
                assert connection.ask("/").backend == "web-1"
        assert service.ask("status")["unhealthy"] == ["web-2"]

        router.kill()
        (scratch := one.network.run.scratch / "again").mkdir()
        one.scenario.servers["web"].start(one.network.hosts["web-2"], "web", scratch)
        router.start()
        eventually(lambda: _answered(one) == "web-2", "it to be found well", seconds=20)
        assert service.ask("status")["unhealthy"] == []
        assert not router.instance.state().unhealthy


def _answered(one: Bench) -> str:
    with one.connected() as connection:
        return connection.ask("/").backend
