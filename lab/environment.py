"""Where a run took place: everything about the machine and the tools that its numbers may depend on."""

from __future__ import annotations

import ctypes
import hashlib
import json
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
from typing import TYPE_CHECKING, Any

from pyroute2 import IPRoute, NetlinkError

from rauta.errors import RautaError

if TYPE_CHECKING:
    from lab.topology import Host, Network

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
    "net/core/default_qdisc",
    "net/core/netdev_budget",
    "net/core/netdev_max_backlog",
    "net/core/rmem_max",
    "net/core/somaxconn",
    "net/core/wmem_max",
    "net/ipv4/tcp_congestion_control",
    "net/ipv4/tcp_rmem",
    "net/ipv4/tcp_syncookies",
    "net/ipv4/tcp_timestamps",
    "net/ipv4/tcp_wmem",
    "kernel/timer_migration",
)
"""of the root namespace, from which new namespaces take theirs"""
LIBRARIES = ("hdrhistogram", "numpy", "pandas", "pyarrow", "pyroute2", "scapy", "scipy")
OFFLOADS: Mapping[str, str] = {
    "rx": "rx-checksumming",
    "tx": "tx-checksumming",
    "sg": "scatter-gather",
    "tso": "tx-tcp-segmentation",
    "gso": "generic-segmentation-offload",
    "gro": "generic-receive-offload",
    "lro": "large-receive-offload",
}
"""what decides how large the packets are that the kernel handles: ethtool's short names, and its long ones. Of tso only
the plain one: ethtool calls all of it on as long as any is, and one for ECN stays on where the kernel can use none
"""
XDP_MODES: Mapping[str | None, str] = {
    None: "none",
    "xdp": "native",
    "xdpgeneric": "generic",
    "xdpoffload": "offloaded",
}
"""by pyroute2's names for XDP_ATTACHED_* (include/uapi/linux/if_link.h)"""
ETHTOOL_SECONDS = 5.0

_VERSION = re.compile(r"\d+(?:\.\d+)+[\w.-]*")


def portable(text: str) -> str:
    """A path inside this repository as seen from its root; any other text as it is. Results are kept and compared."""
    path = Path(text)
    return str(path.relative_to(REPOSITORY)) if path.is_absolute() and path.is_relative_to(REPOSITORY) else text


def collect() -> dict[str, Any]:
    """Everything about this machine, ready for JSON. "unknown" where it cannot be told.

    Fields: kernel, cpu, clock, memory, bpf, mitigations, sysctls, tools, libraries, python, git. What a run adds, by
    contender: programs, and interfaces. lab.comparable says which of them make figures incomparable.
    """
    return {
        "kernel": {"release": platform.release(), "version": platform.version(), "machine": platform.machine()},
        "cpu": {
            "model": _cpuinfo("model name"),
            "online": os.cpu_count(),
            "smt": _read(Path("/sys/devices/system/cpu/smt/active")),
            "hypervisor": _hypervisor(),
            "governor": _read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        },
        "clock": {
            "MHz": _cpuinfo("cpu MHz"),
            "source": _read(Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")),
            "tsc": ", ".join(flag for flag in _cpuinfo("flags").split() if "_tsc" in flag) or "unknown",
        },
        "memory": {"total": _memory()},
        "bpf": {
            "jit": sysctl("net/core/bpf_jit_enable"),
            "jit_harden": sysctl("net/core/bpf_jit_harden"),
            "stats": sysctl("kernel/bpf_stats_enabled"),
            "libbpf": libbpf_version() or "missing",
        },
        "mitigations": _mitigations(),
        "sysctls": {name.replace("/", "."): sysctl(name) for name in SYSCTLS},
        "tools": {name: tool_version(name) or "missing" for name in TOOLS},
        "libraries": {name: _library(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "git": _revision(),
    }


def interfaces(network: Network) -> dict[str, dict[str, Any]]:
    """Every host's interface as it is now: kind, mtu, queues, qdisc, how XDP is attached, and which offloads are on.

    Contenders change them (XDP forces some offloads off), so a run notes them for each while it is up.
    """
    return {name: _interface(host) for name, host in network.hosts.items()}


def _interface(host: Host) -> dict[str, Any]:
    try:
        with host.entered(), IPRoute() as netlink:
            (link,) = netlink.link("get", ifname=host.interface)
    except (NetlinkError, RautaError):
        return dict.fromkeys(("kind", "mtu", "queues", "qdisc", "xdp", "offloads"), "unknown")
    return {
        "kind": link.get(("linkinfo", "kind"), "unknown"),
        "mtu": link.get("mtu"),
        "queues": {"rx": link.get("num_rx_queues"), "tx": link.get("num_tx_queues")},
        "qdisc": link.get("qdisc", "unknown"),
        "xdp": XDP_MODES.get(link.get_nested("IFLA_XDP", "IFLA_XDP_ATTACHED"), "unknown"),
        "offloads": _offloads(host),
    }


def _offloads(host: Host) -> dict[str, str]:
    try:
        said = host.run(["ethtool", "--json", "-k", host.interface], timeout=ETHTOOL_SECONDS).stdout
        features = json.loads(said)[0]
        return {name: "on" if features[long]["active"] else "off" for name, long in OFFLOADS.items()}
    except (RautaError, ValueError, KeyError):
        return dict.fromkeys(OFFLOADS, "unknown")


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


@cache
def libbpf_version() -> str | None:
    """The version of the library that loads programs; None when it is not there."""
    try:
        library = ctypes.CDLL("libbpf.so.1")
    except OSError:
        return None
    library.libbpf_version_string.restype = ctypes.c_char_p
    version: bytes = library.libbpf_version_string()
    return version.decode()


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


def _library(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def _cpuinfo(field: str) -> str:
    """Of the first CPU."""
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        if line.startswith(field):
            return line.partition(":")[2].strip()
    return "unknown"


def _hypervisor() -> str:
    flags = _cpuinfo("flags").split()
    return "yes" if "hypervisor" in flags else "unknown" if flags == ["unknown"] else "no"


def _memory() -> str:
    found = re.match(r"MemTotal:\s*(\d+ kB)", _read(Path("/proc/meminfo")))
    return found[1] if found else "unknown"


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
