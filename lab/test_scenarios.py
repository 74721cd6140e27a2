"""Every scenario's smoke profile: `pytest lab/` proves each claim's checks on this machine, without timing.

Nothing is skipped. Where a scenario cannot run, without root say, its test fails with the sentence that names what is
missing.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lab.environment import REPOSITORY
from lab.scenario import all_files

SMOKE_SECONDS = 120
"""a deadline, several times what a smoke profile takes"""


@pytest.mark.parametrize("path", all_files(), ids=lambda path: path.stem)
def test_smoke(path: Path) -> None:
    """Run as anybody would run it, so that the command line and its exit code are part of what is proven."""
    argv = [sys.executable, "-m", "lab", "run", str(path), "--profile", "smoke"]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=SMOKE_SECONDS, check=False)
    assert done.returncode == 0, f"\n{done.stdout}\n{done.stderr}"
    assert "pass" in done.stdout
