"""Pins of maps and programs in a bpffs, and what the kernel says of a map that somebody else made.

A pin keeps its map or program alive without a process. Behind one, there may be anything: what it is, its sizes and
its types come from the kernel, which keeps the BTF that a map was made with (Documentation/bpf/btf.rst, section 3).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from ctypes import byref, c_uint32
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rauta.bpf import _lib
from rauta.bpf.btf import Btf
from rauta.bpf.layout import Layout
from rauta.errors import BpfError

_SUCCESSOR = "-new"  # behind a pin's name, while it is being replaced
_ADVICE = {
    errno.EPERM: "Only root can pin, only in a bpffs (rauta.upgrade.pins gives one), and names there have no dots.",
    errno.ENOENT: "Is there such a folder?",
}


@dataclass(frozen=True)
class MapInfo:
    """What the kernel knows about a map (struct bpf_map_info). `name` has at most 15 characters; sizes are bytes."""

    id: int
    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    key_layout: Layout | None
    value_layout: Layout | None


def pin(fd: int, path: str | os.PathLike[str], what: str, *, replace: bool) -> None:
    """Pins what is behind a descriptor. With `replace`, in the place of another pin, which is there until then."""
    target = Path(path)
    place = target.with_name(target.name + _SUCCESSOR) if replace else target
    tried = f"pinning {what} at {target}"
    if replace:
        with contextlib.suppress(FileNotFoundError):  # of somebody who was killed between the two steps
            place.unlink()
    result = _lib.libbpf().bpf_obj_pin(fd, os.fsencode(place))
    _lib.check(result, tried, _ADVICE.get(-result, ""))
    if replace:
        place.replace(target)


def opened(path: str | os.PathLike[str], kind: str) -> int:
    """A descriptor of the map or program (`kind`) that is pinned there; BpfError if it is something else."""
    tried = f"opening the {kind} pinned at {os.fspath(path)}"
    fd = _lib.check(_lib.libbpf().bpf_obj_get(os.fsencode(path)), tried)
    found = Path(f"/proc/self/fd/{fd}").readlink().name
    if found != f"anon_inode:bpf-{'prog' if kind == 'program' else kind}":
        os.close(fd)
        raise BpfError(tried, f"it is no {kind}, but {found.removeprefix('anon_inode:')}")
    return fd


def map_info(fd: int) -> MapInfo:
    """What the kernel knows about the map behind a descriptor, its types among it, as far as it was made with BTF."""
    info = _lib.MapInfo()
    _information(fd, info, f"reading about the map behind descriptor {fd}")
    name = info.name.decode(errors="replace")
    types = _btf(info.btf_id, name) if info.btf_id else None
    return MapInfo(
        id=info.id,
        name=name,
        type=info.type,
        key_size=info.key_size,
        value_size=info.value_size,
        max_entries=info.max_entries,
        flags=info.map_flags,
        key_layout=types.layout(info.btf_key_type_id) if types and info.btf_key_type_id else None,
        value_layout=types.layout(info.btf_value_type_id) if types and info.btf_value_type_id else None,
    )


def _btf(btf_id: int, name: str) -> Btf:
    """The kernel's copy of the types of the object that a map was made by."""
    tried = f"reading the types of map '{name}'"
    fd = _lib.check(_lib.libbpf().bpf_btf_get_fd_by_id(btf_id), tried)
    try:
        size = _lib.BtfInfo()
        _information(fd, size, tried)
        raw = ctypes.create_string_buffer(size.btf_size)
        _information(fd, _lib.BtfInfo(btf=ctypes.addressof(raw), btf_size=len(raw)), tried)
    finally:
        os.close(fd)
    return Btf(raw.raw, f"map '{name}'")


def _information(fd: int, info: Any, tried: str) -> None:
    size = c_uint32(ctypes.sizeof(info))
    _lib.check(_lib.libbpf().bpf_obj_get_info_by_fd(fd, byref(info), byref(size)), tried)
