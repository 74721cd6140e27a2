"""What the tests of rauta.bpf share: their BPF objects, compiled once a session, and an interface to attach to."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rauta.network.namespaces import entered

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


@pytest.fixture
def veth() -> Iterator[tuple[int, int]]:
    """The interface numbers of a veth pair, inside a network namespace that the test's thread is put into."""
    name = f"rt-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        pair = ["ip", "-n", name, "link", "add", "rt0", "type", "veth", "peer", "name", "rt1"]
        subprocess.run(pair, check=True)
        for end in ("rt0", "rt1"):
            subprocess.run(["ip", "-n", name, "link", "set", end, "addrgenmode", "none", "up"], check=True)
        with entered(name):
            yield socket.if_nametoindex("rt0"), socket.if_nametoindex("rt1")
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)
