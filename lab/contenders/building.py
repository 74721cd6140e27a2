"""Tools for contenders that bring an XDP program of their own."""

from __future__ import annotations

import platform
import socket
import subprocess
import tempfile
from contextlib import ExitStack
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING

from pyroute2 import IPRoute

from lab.errors import LabError
from rauta.bpf import Program, XdpAttachment, attach_xdp
from rauta.tables import be32

if TYPE_CHECKING:
    from lab.topology import Host

__all__ = ["attach", "be32", "compiled", "own_address"]

COMPILE_SECONDS = 60.0
LOOPBACK = 1
"""index of lo, the first interface of any namespace"""


def compiled(source: Path, stack: ExitStack) -> Path:
    """A BPF program in C, compiled for as long as the stack lasts.

    Raises:
        LabError: with what the compiler said.
    """
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rauta-lab-")))
    target = folder / source.with_suffix(".o").name
    architecture = {"x86_64": "x86", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    argv = ["clang-19", "-O2", "-g", "-Wall", "-Werror", "-target", "bpf", f"-D__TARGET_ARCH_{architecture}"]
    argv += [f"-I/usr/include/{platform.machine()}-linux-gnu", "-c", str(source), "-o", str(target)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False)
    if done.returncode:
        raise LabError(f"compiling {source}", done.stderr.strip())
    return target


def attach(host: Host, program: Program, stack: ExitStack) -> None:
    """Attach an XDP program natively to a host's interface, until the stack is undone."""
    with host.entered():
        attachment = attach_xdp(socket.if_nametoindex(host.interface), program, mode="native")
    stack.callback(_detach, host, attachment)


def own_address(host: Host, address: IPv4Address, stack: ExitStack) -> None:
    """Make an address a host's own, on its loopback, until the stack is undone."""
    _change(host, "add", address)
    stack.callback(_change, host, "del", address)


def _change(host: Host, command: str, address: IPv4Address) -> None:
    with host.entered(), IPRoute() as netlink:
        netlink.addr(command, index=LOOPBACK, address=str(address), prefixlen=32)


def _detach(host: Host, attachment: XdpAttachment) -> None:
    with host.entered():
        attachment.detach()
