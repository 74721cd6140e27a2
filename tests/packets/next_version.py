"""The programs as a later version might have them: compiled with another contract.h."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import pytest

from rauta import loading

SOURCES = Path(loading.__file__).parents[1] / "bpf"


def next_version(name: str, changes: Iterable[tuple[str, str]], folder: Path) -> Path:
    """NAME.bpf.o with texts in contract.h replaced, each of which is there once. Skips the test without clang."""
    clang = shutil.which("clang-19") or shutil.which("clang")
    if clang is None:
        pytest.skip("needs clang")
    shutil.copytree(SOURCES, folder / "bpf")
    contract = folder / "bpf" / "contract.h"
    text = contract.read_text()
    for before, after in changes:
        assert text.count(before) == 1
        text = text.replace(before, after)
    contract.write_text(text)
    headers = f"/usr/include/{sysconfig.get_config_var('MULTIARCH')}"
    flags = ["-O2", "-g", "-target", "bpf", "-mcpu=v3", "-I", headers, "-I", folder / "bpf"]
    made = folder / f"{name}.bpf.o"
    subprocess.run([clang, *flags, "-c", folder / "bpf" / f"{name}.bpf.c", "-o", made], check=True)
    return made
