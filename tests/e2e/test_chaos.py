"""The check `chaos` notices what it is there for: requests that fail, and answers of an older generation."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from e2e.bench import bench
from lab import scenario
from lab.checks.chaos import Chaos
from lab.contenders.service import RunningService
from rauta.config import Config

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root"),
    pytest.mark.timeout(120),
]


def result(folder: Path, name: str, fields: Mapping[str, Any]) -> str:
    """What the check says, which must have failed."""
    with bench("rauta-run", folder, scenario.FOLDER / f"{name}.yaml") as one:
        done = Chaos.model_validate({"every": "200ms", **fields}).run(one.context())
    assert not done.passed, done.detail
    return done.detail


def test_requests_that_fail_are_told(tmp_path: Path) -> None:
    """A killed server is not found out within a millisecond."""
    fields = {"chaos": "kill-server", "backend": "web-2", "within": "1ms", "times": 1, "paths": {"/": "web"}}
    assert "requests failed, the first one /: " in result(tmp_path, "chaos-backends", fields)


def test_an_answer_of_an_older_generation_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reloads that are said to be done, and are not."""

    def not_loaded(running: RunningService, config: Config) -> int:
        running.config = config
        return 1

    monkeypatch.setattr(RunningService, "reload", not_loaded)
    fields = {"chaos": "reload", "live": "/live", "times": 2, "paths": {"/live": ("even", "odd")}}
    said = result(tmp_path, "chaos-configuration", fields)
    assert "answers came from an older generation, the first one by even" in said
