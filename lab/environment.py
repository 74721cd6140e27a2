"""Where a run took place: everything about the machine and the tools that its numbers may depend on."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
KERNEL_BTF = Path("/sys/kernel/btf/vmlinux")
VERSION_SECONDS = 10.0
SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")

TOOLS: Mapping[str, tuple[str, ...]] = {
    "clang": ("clang-19", "--version"),
    "bpftool": ("bpftool", "version"),
    "nginx": ("nginx", "-v"),
    "haproxy": ("haproxy", "-v"),
    "envoy": (str(Path(sys.executable).parent / "envoy"), "--version"),
    "nft": ("nft", "--version"),
    "wrk": ("wrk", "-v"),
    "curl": ("curl", "--version"),
    "ethtool": ("ethtool", "--version"),
    "tcpdump": ("tcpdump", "--version"),
}
"""each tool, and how it tells its version"""

SYSCTLS = (
    "net/core/netdev_budget",
    "net/core/rmem_max",
    "net/core/wmem_max",
    "net/ipv4/tcp_congestion_control",
    "net/ipv4/tcp_rmem",
    "net/ipv4/tcp_wmem",
    "kernel/timer_migration",
)
"""of the root namespace, from which new namespaces take theirs"""

_VERSION = re.compile(r"\d+(?:\.\d+)+[\w.-]*")


def portable(text: str) -> str:
    """A path inside this repository as seen from its root; any other text as it is. Results are kept and compared."""
    path = Path(text)
    return str(path.relative_to(REPOSITORY)) if path.is_absolute() and path.is_relative_to(REPOSITORY) else text


def collect() -> dict[str, Any]:
    """Everything about this machine, ready for JSON. "unknown" where it cannot be told.

    Fields: kernel, cpu, clock, memory, bpf, mitigations, sysctls, tools, libraries, python, git. What a run adds:
    programs, by contender. lab.comparable says which of them make figures incomparable.
    """
    return {
        "kernel": {"release": platform.release(), "version": platform.version(), "machine": platform.machine()},
        "cpu": {
            "model": _cpuinfo("model name"),
            "online": os.cpu_count(),
            "hypervisor": "yes" if "hypervisor" in _cpuinfo("flags").split() else "no",
            "governor": _read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        },
        "clock": {
            "MHz": _cpuinfo("cpu MHz"),
            "source": _read(Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")),
        },
        "memory": {"total": _memory()},
        "bpf": {
            "jit": sysctl("net/core/bpf_jit_enable"),
            "jit_harden": sysctl("net/core/bpf_jit_harden"),
            "stats": sysctl("kernel/bpf_stats_enabled"),
        },
        "mitigations": _mitigations(),
        "sysctls": {name.replace("/", "."): sysctl(name) for name in SYSCTLS},
        "tools": {name: tool_version(name) or "missing" for name in TOOLS},
        "libraries": {name: metadata.version(name) for name in ("numpy", "scipy", "hdrhistogram", "pyroute2", "scapy")},
        "python": platform.python_version(),
        "git": _revision(),
    }


def extend_path() -> None:
    """Find programs in the system folders too, which the PATH of ordinary users, and of `su`, leaves out."""
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), *SYSTEM_FOLDERS])


@cache
def source_revision(path: str) -> str:
    """The version of a tool of our own: the beginning of the SHA-256 of its source, a path from the root."""
    return hashlib.sha256((REPOSITORY / path).read_bytes()).hexdigest()[:12]


@cache
def tool_version(name: str) -> str | None:
    """The version of one of TOOLS; None when it is not there, "unknown" when it does not say."""
    argv = TOOLS[name]
    if shutil.which(argv[0]) is None:
        return None
    try:
        # wrk -v prints its usage and ends with 1: only the words count.
        said = subprocess.run(argv, capture_output=True, text=True, timeout=VERSION_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    match = _VERSION.search(said.stdout + said.stderr)
    return match[0] if match else "unknown"


def sysctl(name: str) -> str:
    """The root namespace's value of a sysctl, by its path below /proc/sys."""
    return _read(Path("/proc/sys") / name)


def kernel_function_exists(name: str) -> bool:
    """Whether the running kernel's BTF names a function: so kfuncs are probed, not by version numbers."""
    try:
        return b"\0" + name.encode() + b"\0" in KERNEL_BTF.read_bytes()
    except OSError:
        return False


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return "unknown"


def _cpuinfo(field: str) -> str:
    """Of the first CPU."""
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        if line.startswith(field):
            return line.partition(":")[2].strip()
    return "unknown"


def _memory() -> str:
    return next((line.split()[1] + " kB" for line in _read(Path("/proc/meminfo")).splitlines()[:1]), "unknown")


def _mitigations() -> dict[str, str]:
    """Each CPU vulnerability that the kernel knows, and what it does about it."""
    return {path.name: _read(path) for path in sorted(Path("/sys/devices/system/cpu/vulnerabilities").glob("*"))}


def _revision() -> dict[str, Any]:
    """The commit, and whether the working tree differs from it."""

    def git(*arguments: str) -> str | None:
        argv = ["git", "-C", str(REPOSITORY), *arguments]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=VERSION_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain")
    return {"revision": git("rev-parse", "HEAD") or "unknown", "dirty": None if status is None else bool(status)}
