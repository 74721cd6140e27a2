"""`rauta down`: what a router or an agent has left is taken off its interfaces, and removed.

The programs are those that it has pinned, of whichever generation (rauta.processes.instance), on whichever interface of
its network namespace; what others have attached is not touched. So it needs nothing but the pins to find them, and
works when the state is damaged, or the interfaces or the whole namespace are gone.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack

from rauta.bpf import Direction, Program, TcAttachment, XdpAttachment, attached_tc_id, attached_xdp_id, has_clsact
from rauta.errors import AttachError, BpfError, RautaError
from rauta.network import namespaces, offloads
from rauta.processes.instance import Instance, State

__all__ = ["attached_ids", "leave_other_namespace", "makes_clsact", "restore_gro", "take_down", "take_off"]

_PROGRAMS = {
    "rauta_ingress": "xdp",
    "rauta_pause": "xdp",
    "rauta_agent_ingress": "ingress",
    "rauta_pause_in": "ingress",
    "rauta_agent_egress": "egress",
    "rauta_pause_out": "egress",
}
"""and where they are attached; ingress before egress, so that no reply leaves untranslated"""
_SIDES: tuple[Direction, Direction] = ("ingress", "egress")


def take_down(name: str) -> str:
    """Detaches and removes; returns what was done, in words. RautaError while its process runs."""
    instance = Instance(name)
    if not instance.exists:
        return "nothing is there"
    with instance.locked("taking down"):
        try:
            state = instance.state()
        except RautaError:  # damaged, or of another version
            state = State()
        detached = _all_taken_off(instance, state)
        instance.remove()
    places = ", ".join(sorted(set(detached))) or "no interface"
    return f"{len(detached)} programs taken off {places}, everything removed"


def leave_other_namespace(instance: Instance, state: State, namespace: str) -> None:
    """If an instance that has been attached in a network namespace is to be in another one: takes it off there."""
    with contextlib.suppress(FileNotFoundError):  # gone
        if not namespaces.path(state.namespace).samefile(namespaces.path(namespace)):
            _all_taken_off(instance, state)


def _all_taken_off(instance: Instance, state: State) -> list[str]:
    with ExitStack() as stack:
        if state.namespace:
            try:
                stack.enter_context(namespaces.entered(state.namespace))
            except RautaError as error:
                if isinstance(error.__cause__, FileNotFoundError):  # gone, and all its interfaces with it
                    return []
                raise
        detached = take_off(instance, state, (name for _, name in socket.if_nameindex()))
        restore_gro(state.gro_off)
    return detached


def take_off(instance: Instance, state: State, interfaces: Iterable[str]) -> list[str]:
    """Takes the instance's programs off interfaces of the calling thread's namespace; the interface of each one."""
    interfaces = list(interfaces)
    detached = []
    with ExitStack() as stack:
        for name, place in _PROGRAMS.items():
            for program in instance.programs(name, stack):
                detached += [one for one in interfaces if _taken_off(one, program, place, state)]
    return detached


def restore_gro(interfaces: Iterable[str]) -> None:
    """Turns GRO on again where it was turned off; not on interfaces that are gone."""
    for interface in interfaces:
        with contextlib.suppress(OSError):
            offloads.set_gro(interface, on=True)


def attached_ids(interfaces: Iterable[str]) -> frozenset[int]:
    """The ids of all programs, anybody's, on interfaces of the calling thread's namespace; of those that there are."""
    return frozenset(id for name in interfaces for id in _ids_on(name))


def makes_clsact(state: State, interfaces: Iterable[str]) -> bool:
    """Whether clsact goes with the agent, if it is attached now: it has come with it, or is about to."""
    return state.made_clsact or not any(has_clsact(socket.if_nametoindex(name)) for name in interfaces)


def _ids_on(interface: str) -> Iterator[int]:
    with contextlib.suppress(OSError, BpfError):  # there is no such interface
        index = socket.if_nametoindex(interface)
        found = (attached_xdp_id(index), *(attached_tc_id(index, side) for side in _SIDES))
        yield from (id for id in found if id)


def _taken_off(interface: str, program: Program, place: str, state: State) -> bool:
    """False if it is not there."""
    try:
        index = socket.if_nametoindex(interface)
        if place == "xdp":
            return XdpAttachment.adopt(index, program).detach()
        side: Direction = "ingress" if place == "ingress" else "egress"
        return TcAttachment.adopt(index, program, side, made_clsact=state.made_clsact).detach()
    except (OSError, AttachError):
        return False
