"""What this machine can do, and what to do about what it cannot. Needs no root to tell.

Every probe tries the capability itself and never reads a version number for it. ``preflight`` asks those that a
scenario needs before anything is created; ``doctor`` shows all.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyroute2 import IPRoute, NetlinkError

from lab import environment
from lab.errors import EnvironmentLacks
from lab.namespaces import in_new_one

if TYPE_CHECKING:
    from lab.scenario import Scenario

KFUNC = "bpf_sk_assign_tcp_reqsk"
OBJECTS = (
    "rauta/objects/ingress.bpf.o",
    "rauta/objects/agent.bpf.o",
    "lab/objects/instruments.bpf.o",
    "lab/objects/link.bpf.o",
    "lab/objects/flood.bpf.o",
    "lab/objects/lookup.bpf.o",
    "lab/objects/open_loop",
    "lab/objects/delay_line",
)
CONTENDER_TOOLS = {"nginx": "nginx", "haproxy": "haproxy", "envoy": "envoy", "nftables": "nft"}
"""what contenders are made of"""
SETUP = "run `make setup`"


@dataclass(frozen=True)
class Finding:
    """One capability. ``ok``: True here, False missing, None cannot be told without root."""

    name: str
    ok: bool | None
    found: str
    remedy: str = ""
    """a clause that finishes "missing: ...", such as "run `make setup`" """


def examine() -> list[Finding]:
    """All probes, in the order in which they matter."""
    return [
        root(),
        namespaces(),
        kernel_types(),
        assigning_sockets(),
        syncookies(),
        jit(),
        libbpf(),
        *(tool(name) for name in environment.TOOLS),
        util("setpriv"),
        util("taskset"),
        *(compiled(path) for path in OBJECTS),
    ]


def preflight(scenario: Scenario) -> None:
    """Make sure that a scenario can run here.

    Raises:
        EnvironmentLacks: one sentence with everything that is missing, and the remedies. Nothing has been created.
    """
    missing = [finding for finding in _needed(scenario) if finding.ok is False]
    if missing:
        what = "; ".join(f"{finding.name}: {finding.found} ({finding.remedy})" for finding in missing)
        raise EnvironmentLacks(f"{scenario.name} cannot run here: {what}")


def _needed(scenario: Scenario) -> Iterator[Finding]:
    yield root()
    if os.geteuid() != 0:
        return  # what else is missing cannot be told yet
    yield namespaces()
    yield libbpf()
    yield cpus(scenario)
    for name in ("setpriv", "taskset"):
        yield util(name)
    contenders = {name.partition("#")[0] for name in scenario.contenders}
    for name in dict.fromkeys(("ethtool", "nginx", "curl", *(CONTENDER_TOOLS.get(one, "nginx") for one in contenders))):
        yield tool(name)
    if scenario.plan.timing and scenario.measure:
        yield tool("wrk")
    for path in OBJECTS:
        if path.startswith("lab/"):
            yield compiled(path)
    if "rauta" in contenders:
        yield kernel_types()
        yield assigning_sockets()
        yield syncookies()
        yield compiled("rauta/objects/ingress.bpf.o")
        yield compiled("rauta/objects/agent.bpf.o")


# ---- probes -------------------------------------------------------------------------------------------


def root() -> Finding:
    """Whether this process may build networks and load programs."""
    if os.geteuid() == 0:
        return Finding("root", True, "yes")
    return Finding("root", False, "this user may not build namespaces or load BPF programs", "run it with sudo")


def namespaces() -> Finding:
    """Whether a network namespace, a bridge and a veth pair can be made: tried in a thread, with which they vanish."""
    name = "network namespaces"
    if os.geteuid() != 0:
        return Finding(name, None, "only root can try")
    try:
        in_new_one(_try_network)
    except (OSError, NetlinkError) as error:
        remedy = "use a kernel with CONFIG_NET_NS, CONFIG_BRIDGE and CONFIG_VETH, outside containers"
        return Finding(name, False, str(error), remedy)
    return Finding(name, True, "with bridge and veth")


def _try_network() -> None:
    with IPRoute() as netlink:
        netlink.link("add", ifname="probe0", kind="bridge")
        netlink.link("add", ifname="probe1", kind="veth", peer="probe2")


def kernel_types() -> Finding:
    """Whether the kernel describes its types (BTF), which CO-RE needs."""
    if environment.KERNEL_BTF.exists():
        return Finding("kernel BTF", True, str(environment.KERNEL_BTF))
    return Finding("kernel BTF", False, f"no {environment.KERNEL_BTF}", "use a kernel with CONFIG_DEBUG_INFO_BTF")


def assigning_sockets() -> Finding:
    """Whether the kernel can make a socket from a first request packet: the agent's kfunc."""
    release = os.uname().release
    if environment.kernel_function_exists(KFUNC):
        return Finding("backend agent", True, f"{KFUNC} in {release}")
    remedy = "use Linux 6.9 or newer, on Debian 12 `apt install -t bookworm-backports linux-image-amd64`"
    return Finding("backend agent", False, f"no {KFUNC} in {release}", remedy)


def syncookies() -> Finding:
    """Whether the kernel knows SYN cookies; new namespaces have them on."""
    value = environment.sysctl("net/ipv4/tcp_syncookies")
    if value != "unknown":
        return Finding("SYN cookies", True, f"net.ipv4.tcp_syncookies = {value}, and 1 in new namespaces")
    return Finding("SYN cookies", False, "no net.ipv4.tcp_syncookies", "use a kernel with CONFIG_SYN_COOKIES")


def jit() -> Finding:
    """Whether programs become machine code. Without it everything works, slowly."""
    value = environment.sysctl("net/core/bpf_jit_enable")
    if value == "unknown":
        return Finding("BPF JIT", None, "only root may read net.core.bpf_jit_enable")
    if value == "0":
        return Finding("BPF JIT", False, "off: timings mean little", "sysctl -w net.core.bpf_jit_enable=1")
    return Finding("BPF JIT", True, f"net.core.bpf_jit_enable = {value}")


def libbpf() -> Finding:
    """Whether the library that loads programs is there."""
    version = environment.libbpf_version()
    return Finding("libbpf.so.1", True, version) if version else Finding("libbpf.so.1", False, "not found", SETUP)


def tool(name: str) -> Finding:
    """Whether one of the tools that runs depend on is installed."""
    version = environment.tool_version(name)
    return Finding(name, True, version) if version else Finding(name, False, "not installed", SETUP)


def util(name: str) -> Finding:
    """Whether one of util-linux's programs is there."""
    path = shutil.which(name)
    return Finding(name, True, path) if path else Finding(name, False, "not installed", "apt install util-linux")


def compiled(path: str) -> Finding:
    """Whether a program in C has been compiled, and since its source changed."""
    target = environment.REPOSITORY / path
    source = _source(target)
    if not target.exists():
        return Finding(path, False, "not compiled", "run `make bpf`")
    if source.exists() and source.stat().st_mtime > target.stat().st_mtime:
        return Finding(path, False, "older than its source", "run `make bpf`")
    return Finding(path, True, f"{target.stat().st_size:,} bytes")


def _source(target: Path) -> Path:
    if target.suffix != ".o":
        return environment.REPOSITORY / "lab/tools" / f"{target.name}.c"
    folder = environment.REPOSITORY / ("bpf" if target.parts[-3] == "rauta" else "lab/bpf")
    return folder / target.with_suffix(".c").name


def cpus(scenario: Scenario) -> Finding:
    """Whether the CPUs exist to which the scenario pins its programs."""
    here = os.sched_getaffinity(0)
    for role, numbers in scenario.topology.cpus:
        if missing := [number for number in numbers if number not in here]:
            remedy = f"choose from {', '.join(map(str, sorted(here)))} with `--set topology.cpus.{role}=[...]`"
            return Finding(
                "CPUs", False, f"{role} is pinned to CPU {missing[0]}, which this machine does not have", remedy
            )
    return Finding("CPUs", True, f"{len(here)}")
