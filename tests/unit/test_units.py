"""The systemd units: that systemd takes every line of them, and how much it finds a service with them could do."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from rauta.processes.daemon import Daemon
from rauta.processes.service import Service

FOLDER = Path(__file__).parents[2] / "deploy/systemd"
UNITS = {"rauta.service": Daemon.needs, "rauta-agent@.service": Service.needs}
EXPOSURE = 3.0  # "OK" begins below 5

systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


def settings(unit: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (FOLDER / unit).read_text().splitlines():
        if re.match(r"\w+=", line):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def installed(unit: str, folder: Path) -> Path:
    """A copy whose program there is on this machine."""
    copy = folder / unit.replace("@", "@web-1")
    copy.write_text((FOLDER / unit).read_text().replace("/opt/rauta/bin/rauta", "/bin/true"))
    return copy


def test_these_are_all_units() -> None:
    assert {path.name for path in FOLDER.iterdir()} == UNITS.keys()


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_leaves_exactly_the_capabilities_that_are_needed(unit: str) -> None:
    (line,) = settings(unit)["CapabilityBoundingSet"]
    assert sorted(line.split()) == sorted(UNITS[unit])


@pytest.mark.parametrize("unit", UNITS)
def test_stopping_a_unit_keeps_what_the_next_process_goes_on_with(unit: str) -> None:
    found = settings(unit)
    assert found["RuntimeDirectory"] == ["rauta"]
    assert found["RuntimeDirectoryPreserve"] == ["yes"]
    assert found["RuntimeDirectoryMode"] == ["0700"]
    assert found["ReadWritePaths"] == ["/sys/fs/bpf"]
    assert "ExecStop" not in found
    assert "ExecStopPost" not in found


@systemd
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_takes_every_line(unit: str, tmp_path: Path) -> None:
    argv = ["systemd-analyze", "verify", installed(unit, tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    about = [line for line in done.stderr.splitlines() if "rauta" in line]
    assert (done.returncode, about) == (0, [])


@systemd
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_finds_a_unit_hardly_exposed(unit: str, tmp_path: Path) -> None:
    argv = ["systemd-analyze", "security", "--offline=true", installed(unit, tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    said = re.search(r"Overall exposure level for .*: ([0-9.]+)", done.stdout)
    assert said, done.stdout + done.stderr
    assert float(said[1]) < EXPOSURE
