"""What keeps a daemon small: modules that it does not need are not loaded, and what it has used once is given back.

Most of what a Python process holds are modules, and most of those come along for features that nobody asked for:
asyncio imports OpenSSL in case somebody serves TLS (6 MB), hashlib OpenSSL's hashes besides the interpreter's own
(3 MB), structlog the terminal colours of rich (4 MB). All of these are optional: whoever imports them goes on without.
So they look absent while a daemon's modules are imported, and only then: what is imported later finds them, such as
what sends spans by HTTPS.

A configuration with a thousand routes leaves some ten thousand objects that are garbage once it is loaded. The C
library keeps what was freed for later, in a heap for each thread, and raises the size from which it returns memory at
once with every large block that is freed. A daemon that loads a file once a day does not profit from any of that.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import sys
from importlib.util import find_spec

__all__ = ["give_back", "hide_optional_modules", "hold_little", "show_optional_modules"]

_OPTIONAL = ("ssl", "rich", "colorama", "better_exceptions", "twisted", "greenlet")
_OPENSSL_HASHES = "_hashlib"
_OWN_HASHES = ("_md5", "_sha1", "_blake2", "_sha3")  # an interpreter built without them needs OpenSSL's

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h, M_*
_BLOCK = 128 * 1024  # bytes; glibc's own limit at first, for blocks of their own and for what is returned


def hide_optional_modules() -> None:
    """What is imported from now on is imported without its optional parts. What is there already stays."""
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # they would be looked for in all that is installed
    for name in _dispensable():
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # None: as if there were no such module


def show_optional_modules() -> None:
    """From now on they can be imported again."""
    for name in (*_OPTIONAL, _OPENSSL_HASHES):
        if name in sys.modules and sys.modules[name] is None:
            del sys.modules[name]


def _dispensable() -> tuple[str, ...]:
    own = all(find_spec(name) is not None for name in _OWN_HASHES)
    return (*_OPTIONAL, _OPENSSL_HASHES) if own else _OPTIONAL


def hold_little() -> None:
    """From now on freed memory goes back to the kernel soon, and all threads share a heap. With glibc only."""
    with_glibc = getattr(_libc(), "mallopt", None)
    if with_glibc is not None:
        for setting, value in ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, _BLOCK), (_TRIM_THRESHOLD, _BLOCK)):
            with_glibc(setting, value)


def give_back() -> None:
    """Frees what is garbage, and returns what is free to the kernel. Takes some 20 ms."""
    gc.collect()
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
