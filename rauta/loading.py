"""What the router and the agent have in common: a compiled object becomes programs and maps, and everything is undone.

What the machine lacks is said before anything is created.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Self

from rauta.bpf import BpfObject
from rauta.errors import RautaError
from rauta.network import namespaces
from rauta.processes import capabilities

__all__ = ["Loaded", "MemoryUse", "interface_index", "is_agent_verdict", "is_router_verdict", "open_object"]

_KERNEL_BTF = Path("/sys/kernel/btf/vmlinux")
_CAPABILITIES = ("CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON")  # PERFMON: programs compare and add to pointers
_AGENT = "AGENT_"  # verdicts of the agent start so, the router's do not
_VERDICT_COUNT = "VERDICT_COUNT"


@dataclass(frozen=True)
class MemoryUse:
    """Bytes that the kernel holds, by map; the tables of all clusters are with the map `clusters`."""

    maps: Mapping[str, int]

    @property
    def total(self) -> int:
        """Of all maps together, in bytes."""
        return sum(self.maps.values())


class Loaded(ABC):
    """A BPF object in the kernel, and what is attached of it; both end with `close`, or with the context.

    `object` gives instruments the programs and maps themselves.
    """

    def __init__(self, obj: BpfObject) -> None:
        """Takes the object over, loaded or not."""
        self.object = obj
        self._undo = ExitStack()
        self._undo.callback(obj.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Detaches and unloads, from whichever thread and network namespace; safe to repeat."""
        self._undo.close()

    def counters(self) -> dict[str, int]:
        """How many packets left the programs by each verdict, over all VIPs and CPUs, by the names of contract.h."""
        rows = [self._counted(vip) for vip in range(self._vips() + 1)]
        return {name: sum(row[name] for row in rows) for name in rows[0]}

    def memory(self) -> MemoryUse:
        """What the maps take. They are made whole when the object is loaded: no packet changes it."""
        return MemoryUse({name: one.memory() for name, one in self.object.maps.items()})

    def _counted(self, vip: int) -> dict[str, int]:
        """The same of the VIP with that id alone; 0 for what no VIP is charged with."""
        per_cpu = self.object.maps["verdicts"].lookup(vip)
        packets = [sum(cpus) for cpus in zip(*(counts["packets"] for counts in per_cpu), strict=True)]
        verdicts = self.object.btf.enum("verdict")
        return {name: packets[number] for name, number in verdicts.items() if self._counts(name)}

    @abstractmethod
    def _vips(self) -> int:
        """How many VIPs the programs count for; their ids start at 1."""

    @abstractmethod
    def _counts(self, verdict: str) -> bool:
        """Whether this object's programs can come to a verdict; both objects have a counter for each."""

    def _undo_here(self, undo: Callable[[], object]) -> None:
        """Has `close` call `undo`, with its thread in the network namespace that the calling thread is in now."""
        here = self._undo.enter_context(namespaces.current())

        def back() -> None:
            with namespaces.entered(here):
                undo()

        self._undo.callback(back)


def is_router_verdict(name: str) -> bool:
    """Whether a constant of `enum verdict` is a verdict of the router."""
    return name != _VERDICT_COUNT and not name.startswith(_AGENT)


def is_agent_verdict(name: str) -> bool:
    """Whether a constant of `enum verdict` is a verdict of the agent."""
    return name.startswith(_AGENT)


def open_object(name: str) -> BpfObject:
    """Opens rauta/objects/NAME.bpf.o. RautaError without capabilities, kernel BTF, or the file."""
    tried = f"loading {name}.bpf.o"
    capabilities.require(tried, *_CAPABILITIES)
    if not _KERNEL_BTF.exists():
        advice = "Use a kernel built with CONFIG_DEBUG_INFO_BTF=y, and mount /sys."
        raise RautaError(tried, f"this kernel does not describe its types ({_KERNEL_BTF} is missing)", advice)
    with resources.as_file(resources.files("rauta") / "objects" / f"{name}.bpf.o") as path:
        if not path.exists():
            raise RautaError(tried, f"{path} is missing", "Compile the programs: make bpf")
        return BpfObject.open(path)


def interface_index(interface: str) -> int:
    """The index of an interface in the calling thread's network namespace. RautaError names those that there are."""
    try:
        return socket.if_nametoindex(interface)
    except OSError as error:
        present = ", ".join(name for _, name in socket.if_nameindex())
        happened = "there is no such interface in this network namespace"
        raise RautaError(f"attaching to {interface}", happened, f"There are: {present}.") from error
