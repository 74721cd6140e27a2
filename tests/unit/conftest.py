"""What the tests of rauta.bpf share: their BPF objects, compiled once a session."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent / "bpf"


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`compiled("sample")` is the path of bpf/sample.bpf.c as an object file; skips where there is no clang."""
    clang = shutil.which("clang-19") or shutil.which("clang")
    folder = tmp_path_factory.mktemp("objects")

    def compile_once(name: str) -> Path:
        if clang is None:
            pytest.skip("needs clang")
        target = folder / f"{name}.bpf.o"
        if not target.exists():
            headers = f"/usr/include/{sysconfig.get_config_var('MULTIARCH')}"
            source = SOURCES / f"{name}.bpf.c"
            subprocess.run(
                [clang, "-O2", "-g", "-Wall", "-Werror", "-target", "bpf", "-I", headers, "-c", source, "-o", target],
                check=True,
            )
        return target

    return compile_once
