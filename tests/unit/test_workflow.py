"""The public CI: that it runs what README.md says, and nothing that only one place on the network has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
FILE = ROOT / ".github/workflows/ci.yml"


@pytest.fixture(scope="module")
def workflow() -> dict[str, Any]:
    return dict(YAML(typ="safe").load(FILE.read_text()))


def test_it_runs_both_commands_as_root(workflow: dict[str, Any]) -> None:
    job = workflow["jobs"]["kernel"]
    commands = job["strategy"]["matrix"]["command"]
    readme = (ROOT / "README.md").read_text()
    assert commands == ["make demo", "make test"]
    assert all(f"    {command} " in readme for command in commands)
    assert "sudo --preserve-env=CI ${{ matrix.command }}" in [step.get("run") for step in job["steps"]]


def test_every_step_is_an_action_of_one_version_or_a_command(workflow: dict[str, Any]) -> None:
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert steps
    for step in steps:
        assert ("uses" in step) != ("run" in step)
        assert "uses" not in step or re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])


def test_jobs_end_and_may_only_read(workflow: dict[str, Any]) -> None:
    assert workflow["permissions"] == {"contents": "read"}
    assert all(0 < job["timeout-minutes"] <= 90 for job in workflow["jobs"].values())
    assert not re.search(r"https?://|\w+\.(io|org|com)\b", FILE.read_text())
