"""BPF object files: open, set up, load.

    with BpfObject.open("ingress.bpf.o") as obj:
        obj.rodata["table_size"] = 65537
        obj.maps["flows"].set_max_entries(1 << 20)
        obj.load()
        obj.maps["vips"].update(key, value)

Closing the object closes its descriptors. Programs that are attached, and their maps, live on in the kernel.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
import weakref
from collections.abc import Iterator, Mapping, MutableMapping
from ctypes import byref, c_size_t
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from rauta.bpf import _lib, _pinned
from rauta.bpf.btf import KERNEL_BTF, Btf
from rauta.bpf.layout import Value, describe_difference
from rauta.bpf.maps import Map, MapType
from rauta.bpf.programs import Program
from rauta.errors import BpfError, LoadError

__all__ = ["BpfObject", "Rodata"]

VERIFIER_LOG_SIZE = 16 << 20  # bytes of address space, not of memory: pages come as the verifier writes them
LOG_TAIL_LINES = 12

KFUNC_NEEDS = {"bpf_sk_assign_tcp_reqsk": "It needs Linux 6.9 or later with CONFIG_SYN_COOKIES=y."}


class BpfObject:
    """An object file compiled by clang, and what it becomes in the kernel.

    Made by `open`, usable as a context manager.
    """

    def __init__(self, path: str | os.PathLike[str], handle: int) -> None:
        """For `open`."""
        library = _lib.libbpf()
        self.path = Path(path)
        self._handle: int | None = handle
        self._loaded = False
        self._finalizer = weakref.finalize(self, library.bpf_object__close, handle)
        self.btf = Btf(_lib.object_btf(handle), os.fspath(path))
        self._maps = {m.name: m for m in self._opened_maps()}
        self._programs = {p.name: p for p in self._opened_programs()}
        self.maps: Mapping[str, Map] = MappingProxyType(self._maps)
        self.programs: Mapping[str, Program] = MappingProxyType(self._programs)
        self.rodata = Rodata(self.btf, next((m for m in self._maps.values() if m.name.endswith(".rodata")), None))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Parses an object file; the kernel is not asked yet. BpfError when it cannot be read or has no BTF."""
        return cls(path, _lib.open_object(path))

    def __repr__(self) -> str:
        return f"<BpfObject {self.path.name}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def reuse(self, name: str, a_map: Map) -> None:
        """Has `load` take an existing map, with its size and entries, instead of making the object's map of that name.

        `a_map` may be closed afterwards. BpfError after load(), for constants (.rodata: they belong to their program),
        and if it is not what the programs were compiled for: type, flags, or key and value down to each member.
        """
        tried = f"reusing {a_map!r} as map '{name}' of {self.path.name}"
        own = self._maps.get(name)
        if own is None or own._handle is None:
            happened = "it is loaded or closed" if own else f"it has no such map; there are {', '.join(self._maps)}"
            raise BpfError(tried, happened, "Maps are reused between open() and load().")
        if ".rodata" in name:
            raise BpfError(tried, "constants are never reused", "They are settled when their program is loaded.")
        present = _pinned.map_info(a_map.fd)
        if difference := _difference(present, own):
            raise BpfError(
                tried, difference, "Make a new map, and copy what is in the old one (rauta.upgrade.migration)."
            )
        _lib.check(_lib.libbpf().bpf_map__reuse_fd(own._handle, a_map.fd), tried)
        own.max_entries, own._reused = present.max_entries, True

    def load(self) -> None:
        """Creates the maps and loads the programs; LoadError with the verifier's last words when the kernel refuses."""
        if self._handle is None or self._loaded:
            state = "it is loaded already" if self._loaded else "it is closed, or an earlier load() failed"
            raise BpfError(f"loading {self.path.name}", state, "Open it again.")
        library = _lib.libbpf()
        result, messages, verifier_log = self._load_logged(self._handle)
        if result < 0:
            self.close()
            raise _load_error(self.path, -result, messages, verifier_log)
        self._loaded = True
        for a_map in self._maps.values():
            map_handle, a_map._handle = a_map._handle, None
            a_map._fd = library.bpf_map__fd(map_handle)
            a_map.max_entries = library.bpf_map__max_entries(map_handle)
        for program in self._programs.values():
            program_handle, program._handle = program._handle, None
            program._fd = library.bpf_program__fd(program_handle)
        self.rodata._map = None

    def close(self) -> None:
        """Closes every descriptor of the object; safe to repeat. What is attached stays attached."""
        self._finalizer()
        self._handle = self.rodata._map = None
        self._loaded = False
        for a_map in self._maps.values():
            a_map._handle, a_map._fd = None, -1
        for program in self._programs.values():
            program._handle, program._fd = None, -1

    def _load_logged(self, handle: int) -> tuple[int, list[str], str]:
        """The result of bpf_object__load, libbpf's warnings, and the log of the program that the verifier rejected.

        One buffer serves all programs: libbpf stops at the first one that fails, and logs nothing before that. It
        cannot be taken back (EBUSY from here on), and libbpf does not use it again.
        """
        library = _lib.libbpf()
        log = (ctypes.c_char * VERIFIER_LOG_SIZE).from_buffer(mmap.mmap(-1, VERIFIER_LOG_SIZE))
        for program in self._programs.values():
            result = library.bpf_program__set_log_buf(program._handle, log, VERIFIER_LOG_SIZE)
            _lib.check(result, f"preparing the log of '{program.name}'")
        with _lib.captured_log() as messages:
            result = library.bpf_object__load(handle)
        return result, messages, log.value.decode(errors="replace")

    def _opened_maps(self) -> Iterator[Map]:
        library, handle = _lib.libbpf(), None
        while handle := library.bpf_object__next_map(self._handle, handle):
            key_type = library.bpf_map__btf_key_type_id(handle)
            value_type = library.bpf_map__btf_value_type_id(handle)
            yield Map(
                library.bpf_map__name(handle).decode(),
                MapType(library.bpf_map__type(handle)),
                library.bpf_map__key_size(handle),
                library.bpf_map__value_size(handle),
                library.bpf_map__max_entries(handle),
                key_layout=self.btf.layout(key_type) if key_type else None,
                value_layout=self.btf.layout(value_type) if value_type else None,
                owner=self,
                handle=handle,
            )

    def _opened_programs(self) -> Iterator[Program]:
        library, handle = _lib.libbpf(), None
        while handle := library.bpf_object__next_program(self._handle, handle):
            yield Program(library.bpf_program__name(handle).decode(), self, handle)


def _difference(present: _pinned.MapInfo, own: Map) -> str:
    """Why an existing map cannot be an opened object's own; empty if it can. The number of entries may differ."""
    if present.type != own.type:
        return f"its type is {MapType(present.type).name}, not {own.type.name}"
    for role, there, here in (
        ("key", present.key_layout, own.key_layout),
        ("value", present.value_layout, own.value_layout),
    ):
        if there and here and (difference := describe_difference(there, here)):
            return f"its {role} is another: {difference}"
    sizes = (present.key_size, present.value_size), (own.key_size, own.value_size)
    if sizes[0] != sizes[1]:
        return "it has keys and values of {} + {} bytes, not {} + {}".format(*sizes[0], *sizes[1])
    flags = _lib.libbpf().bpf_map__map_flags(own._handle)
    return "" if present.flags == flags else f"its flags are {present.flags:#x}, not {flags:#x}"


class Rodata(MutableMapping[str, Any]):
    """The `const volatile` variables of an object by name.

    They can be set until load(); the verifier takes them as constants.
    """

    def __init__(self, btf: Btf, rodata: Map | None) -> None:
        """For BpfObject."""
        self._map = rodata
        self._variables = btf.variables(".rodata")

    def __getitem__(self, name: str) -> Any:
        offset, layout = self._variables[name]
        return layout.unpack_from(self._image(), offset)

    def __setitem__(self, name: str, value: Value) -> None:
        """KeyError names the constants there are; ValueError when the value does not fit; BpfError after load()."""
        if name not in self._variables:
            raise KeyError(f"no constant {name!r}; there are {', '.join(self._variables) or 'none'}")
        offset, layout = self._variables[name]
        image = bytearray(self._image())
        try:
            image[offset : offset + layout.size] = layout.pack(value)
        except ValueError as problem:
            raise ValueError(f"constant {name}: {problem}") from None
        handle = self._opened()._handle
        _lib.check(
            _lib.libbpf().bpf_map__set_initial_value(handle, bytes(image), len(image)), f"setting constant {name}"
        )

    def __delitem__(self, name: str) -> None:
        raise TypeError("constants can be set, not deleted")

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)

    def _opened(self) -> Map:
        if self._map is None:
            raise BpfError(
                "using the constants of an object", "it is loaded or closed", "Set them between open() and load()."
            )
        return self._map

    def _image(self) -> bytes:
        size = c_size_t()
        start = _lib.libbpf().bpf_map__initial_value(self._opened()._handle, byref(size))
        return ctypes.string_at(start, size.value)


# ---- why a load failed -----------------------------------------------------------------------------------


def _load_error(path: Path, number: int, messages: list[str], verifier_log: str) -> LoadError:
    said = "\n".join(messages)
    failed = re.search(r"prog '([^']+)': (?:BPF program load failed|failed to load)", said)
    program = failed[1] if failed else None
    cause, advice = _cause(number, said, verifier_log, program)
    lines = [line for line in (verifier_log or said).splitlines() if line.strip()]
    return LoadError(
        f"loading {path.name}",
        cause,
        advice,
        program=program,
        log_tail="\n".join(lines[-LOG_TAIL_LINES:]),
        errno=number,
    )


def _cause(number: int, said: str, verifier_log: str, program: str | None) -> tuple[str, str]:
    """The likely cause and what to do, the most telling sign first."""
    if kfunc := re.search(r"extern \(func ksym\) '(\w+)': (not found|func_proto)", said):
        problem = "has no function" if kfunc[2] == "not found" else "has another version of"
        advice = KFUNC_NEEDS.get(kfunc[1], "It needs a newer kernel, or a module that is not loaded.")
        return f"the running kernel {problem} {kfunc[1]} (kfunc)", advice
    if verifier_log.strip():
        return f"the kernel's verifier rejected program '{program}': {_lib.describe(number)}", "Its last lines:"
    if not Path(KERNEL_BTF).exists():
        return f"the kernel offers no type information ({KERNEL_BTF})", "It needs CONFIG_DEBUG_INFO_BTF=y."
    if number == errno.EPERM:
        return f"not permitted: {_lib.describe(number)}", "Run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON."
    a_map = re.search(r"map '([^']+)': failed to create", said)
    at = f" for map '{a_map[1]}'" if a_map else ""
    if number == errno.ENOMEM or (a_map and number == errno.E2BIG):
        return (
            f"out of memory{at}: {_lib.describe(number)}",
            "Lower max_entries, or raise the memory limit of the cgroup.",
        )
    if a_map:
        return (
            f"the kernel refused map '{a_map[1]}': {_lib.describe(number)}",
            "Does this kernel know its type and flags?",
        )
    return _lib.describe(number), "What libbpf said:" if said else ""
