"""Where an instance's maps and programs are pinned: what survives the process is found again here.

    /sys/fs/bpf/rauta/INSTANCE      if a bpffs is mounted at /sys/fs/bpf, as systemd does everywhere
    /run/rauta/INSTANCE/bpf         otherwise: a bpffs of its own, which `remove` unmounts

A mount belongs to a mount namespace, and with the last process of a namespace of its own (`ip netns exec`, systemd's
PrivateMounts=) the pins in it are gone: run the daemon in the host's, and enter network namespaces with
rauta.network.namespaces.

Where the second one is mounted already, it is used in any case: that is how root prepares it for another user, who may
not enter /sys/fs/bpf (mount option uid=, Linux 6.8).

In a bpffs only the kernel's own files have dots in their names; those of instances are written %2e there. All folders
are root's alone, or that user's. One process at a time sets up or removes an instance; the daemon's lock on it sees to
that.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rauta.errors import RautaError

__all__ = ["checked_instance", "existing", "folder", "instance_folder", "remove"]

_SHARED = Path("/sys/fs/bpf")
_RUN = Path("/run/rauta")
_INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

_BPF_FS_MAGIC = 0xCAFE4A11  # linux/magic.h
_STATFS_SIZE = 256  # more than struct statfs has; its first member is a long, f_type
_NOSUID, _NODEV, _NOEXEC = 2, 4, 8  # MS_*
_NOFOLLOW, _DETACH = 8, 2  # UMOUNT_NOFOLLOW, MNT_DETACH

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.statfs.argtypes = [ctypes.c_char_p, ctypes.c_void_p]


def checked_instance(instance: str) -> str:
    """The name as it is; RautaError unless it is 1 to 63 letters, digits, dots, dashes and underscores.

    The first one is a letter or a digit, so no name leads out of the folders.
    """
    if not _INSTANCE.fullmatch(instance):
        advice = "Use letters, digits, '.', '-' and '_', at most 63, and a letter or a digit first."
        raise RautaError(f"naming an instance {instance!r}", "this is no name of an instance", advice)
    return instance


def folder(instance: str) -> Path:
    """The folder for the instance's pins; it is made, and a bpffs mounted, if need be. RautaError if it may not be."""
    name = checked_instance(instance)
    if _is_bpffs(_SHARED) and not _is_bpffs(_own(name)):
        found = _shared(name)
        _private(found.parent)
    else:
        _private(_RUN)
        _private(_RUN / name)
        found = _own(name)
    _private(found)
    if not _is_bpffs(found):
        _mount(found)
    return found


def existing(instance: str) -> list[Path]:
    """The folders for the instance's pins that there are already, whoever made them."""
    name = checked_instance(instance)
    return [path for path in (_shared(name), _own(name)) if _is_bpffs(path)]


def remove(instance: str) -> None:
    """Takes away every pin of the instance, and the folders that are empty then, wherever they are; safe to repeat.

    What is attached stays attached; maps and programs that nothing else holds are gone.
    """
    name = checked_instance(instance)
    if _is_bpffs(_SHARED):
        _empty(_shared(name))
        _remove_folders(_shared(name), _SHARED / "rauta")
    own = _own(name)
    while _is_bpffs(own):
        _empty(own)
        if _libc.umount2(os.fsencode(own), _NOFOLLOW | _DETACH) != 0:
            raise RautaError(f"unmounting {own}", os.strerror(ctypes.get_errno()), "It takes CAP_SYS_ADMIN.")
    _remove_folders(own, own.parent, _RUN)


@contextmanager
def instance_folder(instance: str) -> Iterator[Path]:
    """The folder for as long as the context lasts; then the instance is removed."""
    try:
        yield folder(instance)
    finally:
        remove(instance)


def _shared(name: str) -> Path:
    return _SHARED / "rauta" / name.replace(".", "%2e")


def _own(name: str) -> Path:
    return _RUN / name / "bpf"


def _is_bpffs(path: Path) -> bool:
    """Whether a path lies in a bpffs (statfs(2)); False if there is no such path."""
    answer = ctypes.create_string_buffer(_STATFS_SIZE)
    if _libc.statfs(os.fsencode(path), answer) != 0:
        return False
    return ctypes.c_ulong.from_buffer(answer).value == _BPF_FS_MAGIC


def _private(path: Path) -> None:
    """Makes a folder that is this user's alone; RautaError if there is something else in its place."""
    tried = f"making the folder {path}"
    try:
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        found = path.lstat()
    except OSError as error:
        advice = "Run as root, or have root prepare the folders for this user: see docs/running.md."
        raise RautaError(tried, error.strerror or str(error), advice) from error
    own = found.st_uid in (0, os.geteuid())
    if not stat.S_ISDIR(found.st_mode) or not own or stat.S_IMODE(found.st_mode) & 0o022:
        advice = "It must be a folder of root's or of this user's that nobody else can write to. See whose it is."
        raise RautaError(tried, "something else is there", advice)
    if found.st_uid == os.geteuid():
        path.chmod(0o700)


def _mount(path: Path) -> None:
    if _libc.mount(b"bpf", os.fsencode(path), b"bpf", _NOSUID | _NODEV | _NOEXEC, b"mode=0700") != 0:
        reason = os.strerror(ctypes.get_errno())
        raise RautaError(
            f"mounting a bpffs at {path}", reason, "It takes root, and a kernel with CONFIG_BPF_SYSCALL=y."
        )


def _empty(path: Path) -> None:
    """Takes everything out but the kernel's own files: maps.debug and progs.debug (kernel/bpf/preload)."""
    for entry in path.iterdir() if path.exists() else ():
        if "." in entry.name:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _remove_folders(*paths: Path) -> None:
    """Innermost first; those that hold anything else stay."""
    for path in paths:
        with suppress(OSError):
            path.rmdir()
