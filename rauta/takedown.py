"""`rauta down`: what a router or an agent has left is taken off its interfaces, and removed.

The programs are the ones that it pinned; what others have attached in the meantime is not touched.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import product

from rauta import namespaces, offloads, pins
from rauta.bpf import Direction, Program, TcAttachment, XdpAttachment
from rauta.errors import AttachError, RautaError
from rauta.instance import Instance, State

__all__ = ["take_down"]

_PARTS = ("router", "fallback", "agent")
_ATTACHED = {"rauta_ingress": "xdp", "rauta_agent_egress": "egress", "rauta_agent_ingress": "ingress"}


def take_down(name: str) -> str:
    """Detaches and removes; returns what was done, in words. RautaError while its process runs."""
    instance = Instance(name)
    if (process := instance.process()) is not None:
        raise RautaError(
            f"taking {name!r} down", f"process {process} runs it", "End that one first; its connections end with this."
        )
    if not instance.folder.exists():
        return "nothing is there"
    state, detached = instance.state(), 0
    with _in_namespace(state), ExitStack() as stack:
        for program, direction in _programs(instance, stack):
            detached += sum(_taken_off(interface, program, direction, state) for interface in state.interfaces)
        for interface in state.gro_off:
            with contextlib.suppress(OSError):
                offloads.set_gro(interface, on=True)
    instance.remove()
    return f"{detached} programs taken off {', '.join(state.interfaces) or 'no interface'}, everything removed"


@contextlib.contextmanager
def _in_namespace(state: State) -> Iterator[None]:
    with namespaces.entered(state.namespace) if state.namespace else contextlib.nullcontext():
        yield


def _programs(instance: Instance, stack: ExitStack) -> Iterator[tuple[Program, str]]:
    """Those that may be attached; ingress before egress, so that no reply leaves untranslated."""
    names = ("rauta_ingress", "rauta_agent_ingress", "rauta_agent_egress")
    for folder, part, name in product(pins.existing(instance.name), _PARTS, names):
        path = folder / part / name
        if path.exists():
            yield stack.enter_context(Program.from_pin(path)), _ATTACHED[name]


def _taken_off(interface: str, program: Program, direction: str, state: State) -> bool:
    """False if it is not there."""
    try:
        index = socket.if_nametoindex(interface)
        if direction == "xdp":
            return XdpAttachment.adopt(index, program).detach()
        side: Direction = "ingress" if direction == "ingress" else "egress"
        return TcAttachment.adopt(index, program, side, made_clsact=state.made_clsact).detach()
    except (OSError, AttachError):
        return False
