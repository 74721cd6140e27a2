"""What a running router or agent has on its host, under a name of its own: what the next process finds again.

    /run/rauta/NAME/lock            held by the process that runs; says its number
    /run/rauta/NAME/state.json      numbers, who is drained, interfaces: what maps do not say
    /run/rauta/NAME/control.sock    where rautactl asks
    /run/rauta/NAME/secrets.yaml    the secrets, of a router that was not given any
    pins (rauta.pins)               maps and programs: connections and counters

All of it is root's alone, and goes with a reboot, as the maps do. A process that ends, however it ends, leaves it: the
packet path goes on. `rauta down` removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from rauta import pins
from rauta.bpf import BpfObject, Map
from rauta.errors import RautaError
from rauta.ids import Ids

__all__ = ["Instance", "State", "instances"]

_RUN = Path("/run/rauta")
_VERSION = 1
Part = Literal["router", "agent", "fallback"]


@dataclass(frozen=True)
class State:
    """What maps do not say. `made_clsact`: clsact came with the agent, and goes with it.

    `gro_off`: the interfaces on which GRO was turned off.
    """

    ids: Ids = field(default_factory=Ids)
    drained: frozenset[str] = frozenset()
    namespace: str = ""
    interfaces: tuple[str, ...] = ()
    made_clsact: bool = False
    gro_off: frozenset[str] = frozenset()
    generation: int = 0

    def to_json(self) -> str:
        """As text."""
        return json.dumps(
            {
                "version": _VERSION,
                "vips": dict(self.ids.vips),
                "clusters": dict(self.ids.clusters),
                "backends": [[*name, number] for name, number in self.ids.backends.items()],
                "routes": [[*name, number] for name, number in self.ids.routes.items()],
                "drained": sorted(self.drained),
                "namespace": self.namespace,
                "interfaces": self.interfaces,
                "made_clsact": self.made_clsact,
                "gro_off": sorted(self.gro_off),
                "generation": self.generation,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """ValueError or KeyError if it is not what `to_json` says."""
        fields = json.loads(text)
        if fields["version"] != _VERSION:
            raise ValueError(f"version {fields['version']}")
        ids = Ids(
            vips=fields["vips"],
            clusters=fields["clusters"],
            backends={(name, address): number for name, address, number in fields["backends"]},
            routes={(vip, host, kind, path, method): n for vip, host, kind, path, method, n in fields["routes"]},
        )
        return cls(
            ids=ids,
            drained=frozenset(fields["drained"]),
            namespace=fields["namespace"],
            interfaces=tuple(fields["interfaces"]),
            made_clsact=fields["made_clsact"],
            gro_off=frozenset(fields["gro_off"]),
            generation=fields["generation"],
        )


class Instance:
    """A name, and what belongs to it. RautaError if it is none."""

    def __init__(self, name: str) -> None:
        self.name = pins.checked_instance(name)
        self.folder = _RUN / name
        self.control = self.folder / "control.sock"
        self.secrets = self.folder / "secrets.yaml"

    @property
    def exists(self) -> bool:
        """Whether there is something of it."""
        return self.folder.exists()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """While inside, no other process has this instance. RautaError says which one has it."""
        self._make_folder()
        with (self.folder / "lock").open("a+", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                owner = file.read().strip() or "?"
                raise RautaError(
                    f"starting instance {self.name!r}",
                    f"process {owner} runs it already",
                    "End that one first (its connections go on), or use another --name.",
                ) from None
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield

    def process(self) -> int | None:
        """The number of the process that runs it, if one does."""
        try:
            with (self.folder / "lock").open(encoding="ascii") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return None
        except OSError:
            with contextlib.suppress(ValueError, OSError):
                return int((self.folder / "lock").read_text(encoding="ascii"))
            return 0
        return None

    # ---- state -----------------------------------------------------------------------------------------

    def state(self) -> State:
        """What was written last; a fresh one if there is none. RautaError if it cannot be read."""
        path = self.folder / "state.json"
        try:
            return State.from_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return State()
        except (ValueError, KeyError, TypeError) as error:
            advice = f"Remove what is there, with its connections: rauta down --name {self.name}"
            raise RautaError(f"reading {path}", f"it is of another version, or damaged ({error})", advice) from error

    def save(self, state: State) -> None:
        """Writes it, as a whole or not at all."""
        self._make_folder()
        path = self.folder / "state.json"
        fresh = path.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_text(state.to_json(), encoding="utf-8")
        fresh.replace(path)

    # ---- pins ------------------------------------------------------------------------------------------

    def pin(self, part: Part, obj: BpfObject) -> None:
        """Has an object's maps and programs outlive this process, in the place of those that were pinned before."""
        folder = pins.folder(self.name) / part
        folder.mkdir(mode=0o700, exist_ok=True)
        for name, one in obj.maps.items():
            if ".rodata" not in name:
                one.pin(folder / name, replace=True)
        for name, program in obj.programs.items():
            if program.loaded:
                program.pin(folder / name, replace=True)

    @contextlib.contextmanager
    def pinned(self, part: Part) -> Iterator[Mapping[str, Map]]:
        """The maps that are pinned, for as long as the context lasts; none if nothing is."""
        with ExitStack() as stack:
            folder = pins.folder(self.name) / part
            found = {}
            for path in folder.iterdir() if folder.exists() else ():
                with contextlib.suppress(RautaError):  # a program
                    found[path.name] = stack.enter_context(Map.from_pin(path))
            yield found

    def remove(self) -> None:
        """Takes all of it away."""
        pins.remove(self.name)
        if self.folder.exists():
            for path in self.folder.iterdir():
                path.unlink()
            self.folder.rmdir()
        with contextlib.suppress(OSError):  # there are others
            _RUN.rmdir()

    def _make_folder(self) -> None:
        try:
            for folder in (_RUN, self.folder):
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise RautaError(f"making {self.folder}", str(error.strerror), "Run as root.") from error


def instances() -> list[Instance]:
    """Those that have something on this host."""
    return [Instance(path.name) for path in sorted(_RUN.iterdir())] if _RUN.exists() else []
