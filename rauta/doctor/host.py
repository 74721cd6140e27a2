"""What every host needs: a kernel that loads RAUTA's programs, and interfaces that carry its packets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from rauta.bpf import smallest_xdp
from rauta.contract import PATH_MTU
from rauta.doctor import places
from rauta.doctor.findings import Said, Subject, check, fine, warning, wrong
from rauta.errors import BpfError, RautaError
from rauta.loading import interface_index
from rauta.network import rtnetlink

__all__ = ["names_in_btf"]

_BTF = Path("/sys/kernel/btf/vmlinux")
_KFUNC = "bpf_sk_assign_tcp_reqsk"
_PIECE = 1 << 20
_NEWER = (
    "Use Linux 6.9 or newer with CONFIG_SYN_COOKIES=y; on Debian 12: "
    "apt install -t bookworm-backports linux-image-amd64"
)


@check("kernel.btf", "host")
def btf(subject: Subject) -> Iterator[Said]:
    """The kernel describes its types (/sys/kernel/btf/vmlinux): without that no program of RAUTA's can be loaded."""
    if _BTF.exists():
        yield fine(os.uname().release, str(_BTF))
    else:
        remedy = "Mount /sys (in a container: from the host), or use a kernel built with CONFIG_DEBUG_INFO_BTF=y."
        yield wrong(os.uname().release, f"no {_BTF}", remedy)


@check("kernel.bpf", "host")
def bpf(subject: Subject) -> Iterator[Said]:
    """This process may load BPF programs: tried with one of two instructions, which is attached nowhere. And the kernel
    makes machine code of them: without its JIT all works, but slowly."""
    try:
        program = smallest_xdp()
    except BpfError as error:
        yield wrong("loading a program", error.happened, error.advice)
        return
    if program.jited_size:
        yield fine("JIT", f"{program.jited_size} bytes of machine code for {program.xlated_size} of BPF")
    else:
        yield warning("JIT", "programs are interpreted", "sysctl -w net.core.bpf_jit_enable=1")


@check("kernel.kfunc", "agent")
def kfunc(subject: Subject) -> Iterator[Said]:
    """The kernel has bpf_sk_assign_tcp_reqsk, by which the agent makes a socket from a first request. No sysctl and no
    module brings it: it takes Linux 6.9 with SYN cookies."""
    if names_in_btf(_BTF, _KFUNC):
        yield fine(os.uname().release, f"{_KFUNC} is there")
    else:
        yield wrong(os.uname().release, f"no {_KFUNC}", _NEWER)


@check("kernel.programs", "host")
def programs(subject: Subject) -> Iterator[Said]:
    """RAUTA's own programs pass this kernel's verifier, with this configuration. Only if asked for (`--deep`): it takes
    a second, and for that time the memory of the tables."""
    from rauta.agent import Agent
    from rauta.keys import Keys
    from rauta.router import Router

    if not subject.deep or subject.config is None:
        return
    name = "router" if subject.backend is None else "agent"
    try:
        if subject.backend is None:
            Router.load(subject.config, Keys.generate()).close()
        else:
            Agent.load(subject.config, Keys.generate(), subject.backend).close()
    except RautaError as error:
        yield wrong(name, f"{error.tried}: {error.happened}", error.advice or _NEWER)
    else:
        yield fine(name, "loads")


@check("interface.up", "interface")
def up(subject: Subject) -> Iterator[Said]:
    """The interface exists in this network namespace, is up, and has a link."""
    for name in subject.interfaces:
        try:
            link = rtnetlink.link(interface_index(name))
        except RautaError as error:
            yield wrong(name, error.happened, f"{error.advice} Enter another namespace with --netns.")
            continue
        if not link.up:
            yield wrong(name, "down", f"ip link set {name} up")
        elif not link.running:
            yield wrong(name, "up, but without a link", "Is its cable plugged in, its other end or lower device up?")
        else:
            yield fine(name, "up")


@check("interface.mtu", "interface")
def mtu(subject: Subject) -> Iterator[Said]:
    """Packets of 1500 bytes pass. The router tells clients to send no more than fits into that with the encapsulation
    (an MSS of 1416), so no other MTU need be set anywhere; but a smaller one drops what clients may send."""
    for link in places.links(subject):
        if link.mtu >= PATH_MTU:
            yield fine(link.name, f"MTU {link.mtu}")
        else:
            yield wrong(link.name, f"MTU {link.mtu}", f"ip link set {link.name} mtu {PATH_MTU}, at its other end too")


def names_in_btf(path: Path, name: str) -> bool:
    """Whether a file of BTF names something. OSError if it cannot be read. It is read a piece at a time: it has 5
    MB."""
    wanted = b"\0" + name.encode() + b"\0"
    behind = b""
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            if wanted in behind + piece:
                return True
            behind = piece[-len(wanted) :]
    return False
