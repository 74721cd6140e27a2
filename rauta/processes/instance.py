"""What a running router or agent has on its host, under a name of its own: what the next process finds again.

    /run/rauta/NAME/lock            held by the process that runs; says its number
    /run/rauta/NAME/state.json      numbers, who is drained, interfaces: what maps do not say
    /run/rauta/NAME/control.sock    where rautactl asks
    /run/rauta/NAME/secrets.yaml    the secrets, of a router that was not given any
    pins (rauta.upgrade.pins)               maps and programs: connections and counters

A process may be killed at any moment. So what is to be attached is pinned before, beside what was there (`staged`), and
takes that one's place afterwards: whatever is attached is pinned somewhere, and the next process goes on with the maps
of what is (`pinned`).

All of it is root's alone, or that user's who runs it with capabilities, and goes with a reboot, as the maps do. A
process that ends, however it ends, leaves it: the packet path goes on. `rauta down` removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Container, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self, TextIO

from rauta.bpf import BpfError, BpfObject, Map, Program
from rauta.errors import RautaError
from rauta.ids import BackendName, Ids
from rauta.upgrade import pins

__all__ = ["Instance", "State", "instances"]

_RUN = Path("/run/rauta")
_PREPARE = "Run as root, or have root make it for this user: see docs/running.md."
_VERSION = 1
_PAUSE = "rauta_pause"  # begin names of what is attached while maps are copied: those to go on with are earlier ones
_LOCK_TRIES, _LOCK_PAUSE = 5, 0.02  # seconds
Part = Literal["router", "agent", "fallback"]


@dataclass(frozen=True)
class State:
    """What maps do not say. `made_clsact`: clsact came with the agent, and goes with it.

    `gro_off`: the interfaces on which GRO was turned off. `unhealthy`: the backends that were, and of each whether its
    host answered.
    """

    ids: Ids = field(default_factory=Ids)
    drained: frozenset[str] = frozenset()
    namespace: str = ""
    interfaces: tuple[str, ...] = ()
    made_clsact: bool = False
    gro_off: frozenset[str] = frozenset()
    generation: int = 0
    unhealthy: Mapping[BackendName, bool] = field(default_factory=dict)

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
                "unhealthy": [[*name, answers] for name, answers in self.unhealthy.items()],
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
            unhealthy={(name, address): answers for name, address, answers in fields.get("unhealthy", ())},
        )


class Instance:
    """A name, and what belongs to it. RautaError if it is none."""

    def __init__(self, name: str) -> None:
        self.name = pins.checked_instance(name)
        self.folder = _RUN / name
        self.control = self.folder / "control.sock"
        self.secrets = self.folder / "secrets.yaml"

    @contextlib.contextmanager
    def locked(self, tried: str = "starting") -> Iterator[None]:
        """While inside, no other process has this instance. RautaError says which one has it."""
        with self._lock_file(tried) as file:
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield

    def _lock_file(self, tried: str) -> TextIO:
        """The file that the lock is on, open and locked: not one that `remove` has taken away meanwhile."""
        while True:
            self._make_folder()
            file = (self.folder / "lock").open("a+", encoding="ascii")
            try:
                _lock(file)
                if os.fstat(file.fileno()).st_nlink:
                    return file
                file.close()
            except OSError:
                file.seek(0)
                owner = file.read().strip() or "?"
                file.close()
                advice = "End that one first (its connections go on), or use another --name."
                raise RautaError(
                    f"{tried} instance {self.name!r}", f"process {owner} runs it already", advice
                ) from None

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

    @property
    def exists(self) -> bool:
        """Whether it has left anything on this host, running or not."""
        return self.folder.exists() or any(path.exists() for path in pins.existing(self.name))

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

    @contextlib.contextmanager
    def staged(self, part: Part, obj: BpfObject, attached: Container[int]) -> Iterator[None]:
        """Has an object's maps and programs outlive this process; its programs are attached inside.

        With that, what was pinned before is given up; if it fails, what was to come is. `attached`: the ids of programs
        that are attached now. What a killed process has staged and not attached goes at once.
        """
        earlier = self.generations(part)
        for folder in earlier:
            if _number(folder) and not _any_attached(folder, attached):
                shutil.rmtree(folder)
        fresh = pins.folder(self.name) / f"{part}-{1 + max(map(_number, earlier), default=0)}"
        fresh.mkdir(mode=0o700)
        try:
            _pin(obj, fresh)
            yield
        except BaseException:
            shutil.rmtree(fresh)
            raise
        for folder in self.generations(part):
            if folder != fresh:
                shutil.rmtree(folder)
        fresh.rename(fresh.with_name(part))

    def generations(self, part: Part) -> list[Path]:
        """The folders of what is pinned of a part, the newest first, the settled one last."""
        found = [path for path in pins.folder(self.name).iterdir() if path.name.partition("-")[0] == part]
        return sorted(found, key=_number, reverse=True)

    @contextlib.contextmanager
    def pinned(self, part: Part, attached: Container[int]) -> Iterator[Mapping[str, Map]]:
        """The maps to go on with, for as long as the context lasts; none if nothing is pinned.

        They are those of the newest programs that are attached, given all ids of programs that are; else the settled
        ones: those that were staged after them have never run.
        """
        with ExitStack() as stack:
            found: Mapping[str, Map] = {}
            for folder in self.generations(part):
                maps, programs = _opened(folder, stack)
                found = maps
                if any(program.id in attached and not program.name.startswith(_PAUSE) for program in programs):
                    break
            yield found

    def programs(self, name: str, stack: ExitStack) -> list[Program]:
        """All that are pinned under that name, of whichever part and generation, until the stack ends."""
        paths = (path for folder in pins.existing(self.name) for path in sorted(folder.glob(f"*/{name}")))
        return [stack.enter_context(Program.from_pin(path)) for path in paths]

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
            raise RautaError(f"making {self.folder}", str(error.strerror), _PREPARE) from error


def _number(generation: Path) -> int:
    """0 for the settled one."""
    return int(generation.name.partition("-")[2] or 0)


def _lock(file: TextIO) -> None:
    """OSError if a process has it. Who only looks whether one has (`process`) has it for a moment, too."""
    for _ in range(_LOCK_TRIES - 1):
        with contextlib.suppress(OSError):
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(_LOCK_PAUSE)
    return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _pin(obj: BpfObject, folder: Path) -> None:
    for name, one in obj.maps.items():
        if ".rodata" not in name:
            one.pin(folder / name)
    for name, program in obj.programs.items():
        if program.loaded:
            program.pin(folder / name)


def _any_attached(folder: Path, attached: Container[int]) -> bool:
    with ExitStack() as stack:
        _, programs = _opened(folder, stack)
        return any(program.id in attached for program in programs)


def _opened(folder: Path, stack: ExitStack) -> tuple[dict[str, Map], list[Program]]:
    maps, programs = {}, []
    for path in folder.iterdir():
        try:
            maps[path.name] = stack.enter_context(Map.from_pin(path))
        except BpfError:
            programs.append(stack.enter_context(Program.from_pin(path)))
    return maps, programs


def instances() -> list[Instance]:
    """Those that have something on this host."""
    return [Instance(path.name) for path in sorted(_RUN.iterdir())] if _RUN.exists() else []
