"""libbpf.so.1 as ctypes sees it: prototypes, option structs, error numbers and the library's log.

Only this module knows the C side. Structures follow bpf/bpf.h and bpf/libbpf.h of libbpf 1.1 and linux/bpf.h; libbpf
checks `sz` and treats missing trailing fields as zero, so a newer libbpf takes them too. tests/unit/test_libbpf.py
compares every offset with the installed headers.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import logging
import os
import threading
from collections.abc import Iterator
from ctypes import POINTER, c_bool, c_char, c_char_p, c_int, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p
from typing import Any, ClassVar

from rauta.errors import BpfError

logger = logging.getLogger(__name__)

ENOTSUPP = 524  # the kernel's own "not supported", unknown to libc (include/linux/errno.h)
LOG_MESSAGE_SIZE = 8192  # libbpf's longest messages but for verifier logs, which have their own buffer


class _Options(ctypes.Structure):
    """An options struct: its first field says its size, so that both sides may grow."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(sz=ctypes.sizeof(type(self)), **fields)


class MapCreateOpts(_Options):
    """struct bpf_map_create_opts."""

    _fields_: ClassVar = [
        ("sz", c_size_t),
        ("btf_fd", c_uint32),
        ("btf_key_type_id", c_uint32),
        ("btf_value_type_id", c_uint32),
        ("btf_vmlinux_value_type_id", c_uint32),
        ("inner_map_fd", c_uint32),
        ("map_flags", c_uint32),
        ("map_extra", c_uint64),
        ("numa_node", c_uint32),
        ("map_ifindex", c_uint32),
    ]


class MapBatchOpts(_Options):
    """struct bpf_map_batch_opts."""

    _fields_: ClassVar = [("sz", c_size_t), ("elem_flags", c_uint64), ("flags", c_uint64)]


class TestRunOpts(_Options):
    """struct bpf_test_run_opts."""

    _fields_: ClassVar = [
        ("sz", c_size_t),
        ("data_in", c_void_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_void_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("retval", c_uint32),
        ("repeat", c_int),
        ("duration", c_uint32),
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    ]


class LinkCreateOpts(_Options):
    """struct bpf_link_create_opts, as far as iterators need it."""

    _fields_: ClassVar = [
        ("sz", c_size_t),
        ("flags", c_uint32),
        ("iter_info", c_void_p),
        ("iter_info_len", c_uint32),
    ]


class XdpAttachOpts(_Options):
    """struct bpf_xdp_attach_opts."""

    _fields_: ClassVar = [("sz", c_size_t), ("old_prog_fd", c_int)]


class TcHook(_Options):
    """struct bpf_tc_hook."""

    _fields_: ClassVar = [("sz", c_size_t), ("ifindex", c_int), ("attach_point", c_int), ("parent", c_uint32)]


class TcOpts(_Options):
    """struct bpf_tc_opts."""

    _fields_: ClassVar = [
        ("sz", c_size_t),
        ("prog_fd", c_int),
        ("flags", c_uint32),
        ("prog_id", c_uint32),
        ("handle", c_uint32),
        ("priority", c_uint32),
    ]


class ProgInfo(ctypes.Structure):
    """struct bpf_prog_info (linux/bpf.h), up to verified_insns (Linux 5.16); older kernels leave the tail zero."""

    _fields_: ClassVar = [
        ("type", c_uint32),
        ("id", c_uint32),
        ("tag", c_uint8 * 8),
        ("jited_prog_len", c_uint32),
        ("xlated_prog_len", c_uint32),
        ("jited_prog_insns", c_uint64),
        ("xlated_prog_insns", c_uint64),
        ("load_time", c_uint64),
        ("created_by_uid", c_uint32),
        ("nr_map_ids", c_uint32),
        ("map_ids", c_uint64),
        ("name", c_char * 16),
        ("ifindex", c_uint32),
        ("gpl_compatible_bit", c_uint32),
        ("netns_dev", c_uint64),
        ("netns_ino", c_uint64),
        ("nr_jited_ksyms", c_uint32),
        ("nr_jited_func_lens", c_uint32),
        ("jited_ksyms", c_uint64),
        ("jited_func_lens", c_uint64),
        ("btf_id", c_uint32),
        ("func_info_rec_size", c_uint32),
        ("func_info", c_uint64),
        ("nr_func_info", c_uint32),
        ("nr_line_info", c_uint32),
        ("line_info", c_uint64),
        ("jited_line_info", c_uint64),
        ("nr_jited_line_info", c_uint32),
        ("line_info_rec_size", c_uint32),
        ("jited_line_info_rec_size", c_uint32),
        ("nr_prog_tags", c_uint32),
        ("prog_tags", c_uint64),
        ("run_time_ns", c_uint64),
        ("run_cnt", c_uint64),
        ("recursion_misses", c_uint64),
        ("verified_insns", c_uint32),
        ("attach_btf_obj_id", c_uint32),
    ]


class MapInfo(ctypes.Structure):
    """struct bpf_map_info (linux/bpf.h), up to map_extra (Linux 5.16)."""

    _fields_: ClassVar = [
        ("type", c_uint32),
        ("id", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("map_flags", c_uint32),
        ("name", c_char * 16),
        ("ifindex", c_uint32),
        ("btf_vmlinux_value_type_id", c_uint32),
        ("netns_dev", c_uint64),
        ("netns_ino", c_uint64),
        ("btf_id", c_uint32),
        ("btf_key_type_id", c_uint32),
        ("btf_value_type_id", c_uint32),
        ("reserved_bit", c_uint32),
        ("map_extra", c_uint64),
    ]


class BtfInfo(ctypes.Structure):
    """struct bpf_btf_info (linux/bpf.h), up to kernel_btf (Linux 5.11)."""

    _fields_: ClassVar = [
        ("btf", c_uint64),
        ("btf_size", c_uint32),
        ("id", c_uint32),
        ("name", c_uint64),
        ("name_len", c_uint32),
        ("kernel_btf", c_uint32),
    ]


RING_SAMPLE_FN = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)
_PRINT_FN = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)

_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "libbpf_set_print": (c_void_p, [_PRINT_FN]),
    "libbpf_num_possible_cpus": (c_int, []),
    "btf__raw_data": (c_void_p, [c_void_p, POINTER(c_uint32)]),
    "bpf_object__open": (c_void_p, [c_char_p]),
    "bpf_object__load": (c_int, [c_void_p]),
    "bpf_object__close": (None, [c_void_p]),
    "bpf_object__btf": (c_void_p, [c_void_p]),
    "bpf_object__next_program": (c_void_p, [c_void_p, c_void_p]),
    "bpf_object__next_map": (c_void_p, [c_void_p, c_void_p]),
    "bpf_program__name": (c_char_p, [c_void_p]),
    "bpf_program__autoload": (c_bool, [c_void_p]),
    "bpf_program__set_autoload": (c_int, [c_void_p, c_bool]),
    "bpf_program__fd": (c_int, [c_void_p]),
    "bpf_program__set_log_buf": (c_int, [c_void_p, c_void_p, c_size_t]),
    "bpf_map__name": (c_char_p, [c_void_p]),
    "bpf_map__fd": (c_int, [c_void_p]),
    "bpf_map__type": (c_int, [c_void_p]),
    "bpf_map__key_size": (c_uint32, [c_void_p]),
    "bpf_map__value_size": (c_uint32, [c_void_p]),
    "bpf_map__max_entries": (c_uint32, [c_void_p]),
    "bpf_map__set_max_entries": (c_int, [c_void_p, c_uint32]),
    "bpf_map__btf_key_type_id": (c_uint32, [c_void_p]),
    "bpf_map__btf_value_type_id": (c_uint32, [c_void_p]),
    "bpf_map__is_internal": (c_bool, [c_void_p]),
    "bpf_map__map_flags": (c_uint32, [c_void_p]),
    "bpf_map__reuse_fd": (c_int, [c_void_p, c_int]),
    "bpf_map__initial_value": (c_void_p, [c_void_p, POINTER(c_size_t)]),
    "bpf_map__set_initial_value": (c_int, [c_void_p, c_char_p, c_size_t]),
    "bpf_map_create": (c_int, [c_int, c_char_p, c_uint32, c_uint32, c_uint32, POINTER(MapCreateOpts)]),
    "bpf_map_lookup_elem": (c_int, [c_int, c_void_p, c_void_p]),
    "bpf_map_update_elem": (c_int, [c_int, c_void_p, c_void_p, c_uint64]),
    "bpf_map_delete_elem": (c_int, [c_int, c_void_p]),
    "bpf_map_get_next_key": (c_int, [c_int, c_void_p, c_void_p]),
    "bpf_map_lookup_batch": (
        c_int,
        [c_int, c_void_p, c_void_p, c_void_p, c_void_p, POINTER(c_uint32), POINTER(MapBatchOpts)],
    ),
    "bpf_map_update_batch": (c_int, [c_int, c_void_p, c_void_p, POINTER(c_uint32), POINTER(MapBatchOpts)]),
    "bpf_map_delete_batch": (c_int, [c_int, c_void_p, POINTER(c_uint32), POINTER(MapBatchOpts)]),
    "bpf_obj_pin": (c_int, [c_int, c_char_p]),
    "bpf_obj_get": (c_int, [c_char_p]),
    "bpf_obj_get_info_by_fd": (c_int, [c_int, c_void_p, POINTER(c_uint32)]),
    "bpf_map_get_fd_by_id": (c_int, [c_uint32]),
    "bpf_btf_get_fd_by_id": (c_int, [c_uint32]),
    "bpf_prog_get_fd_by_id": (c_int, [c_uint32]),
    "bpf_prog_load": (c_int, [c_int, c_char_p, c_char_p, c_char_p, c_size_t, c_void_p]),
    "bpf_prog_test_run_opts": (c_int, [c_int, POINTER(TestRunOpts)]),
    "bpf_enable_stats": (c_int, [c_int]),
    "bpf_link_create": (c_int, [c_int, c_int, c_int, POINTER(LinkCreateOpts)]),
    "bpf_iter_create": (c_int, [c_int]),
    "ring_buffer__new": (c_void_p, [c_int, RING_SAMPLE_FN, c_void_p, c_void_p]),
    "ring_buffer__epoll_fd": (c_int, [c_void_p]),
    "ring_buffer__consume": (c_int, [c_void_p]),
    "ring_buffer__free": (None, [c_void_p]),
    "bpf_xdp_attach": (c_int, [c_int, c_int, c_uint32, POINTER(XdpAttachOpts)]),
    "bpf_xdp_detach": (c_int, [c_int, c_uint32, POINTER(XdpAttachOpts)]),
    "bpf_xdp_query_id": (c_int, [c_int, c_int, POINTER(c_uint32)]),
    "bpf_tc_hook_create": (c_int, [POINTER(TcHook)]),
    "bpf_tc_hook_destroy": (c_int, [POINTER(TcHook)]),
    "bpf_tc_attach": (c_int, [POINTER(TcHook), POINTER(TcOpts)]),
    "bpf_tc_detach": (c_int, [POINTER(TcHook), POINTER(TcOpts)]),
    "bpf_tc_query": (c_int, [POINTER(TcHook), POINTER(TcOpts)]),
}


@functools.cache
def libbpf() -> ctypes.CDLL:
    """The library with its prototypes set and its log routed to `captured_log`; BpfError when it is not installed."""
    try:
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as problem:
        raise BpfError(
            "loading libbpf.so.1", str(problem), "Install it: apt-get install libbpf1 (Debian 12, Ubuntu 24.04)."
        ) from problem
    for name, (result, arguments) in _PROTOTYPES.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    library.libbpf_set_print(_print)
    return library


# ---- the library's log -------------------------------------------------------------------------------


class _Log(threading.local):
    """What libbpf says to the calling thread, while somebody listens."""

    messages: list[str] | None = None


_log = _Log()
_vsnprintf = ctypes.CDLL(None).vsnprintf
_vsnprintf.restype = c_int
_vsnprintf.argtypes = [c_char_p, c_size_t, c_char_p, c_void_p]


def _collect(level: int, template: bytes, arguments: int) -> int:
    """libbpf_print_fn_t.

    The va_list reaches us as a pointer on x86-64 and arm64 alike, and goes on to libc untouched.
    """
    if level > 1:  # LIBBPF_DEBUG
        return 0
    buffer = ctypes.create_string_buffer(LOG_MESSAGE_SIZE)
    _vsnprintf(buffer, LOG_MESSAGE_SIZE, template, arguments)
    text = buffer.value.decode(errors="replace").strip().removeprefix("libbpf: ")
    if _log.messages is None:
        logger.debug("libbpf: %s", text)
    else:
        _log.messages.append(text)
    return 0


_print = _PRINT_FN(_collect)  # kept: libbpf holds a pointer to it


@contextlib.contextmanager
def captured_log() -> Iterator[list[str]]:
    """Collects libbpf's warnings of this thread, one string each, instead of letting it write to stderr."""
    outer, _log.messages = _log.messages, []
    try:
        yield _log.messages
    finally:
        _log.messages = outer


def kernel_message(messages: list[str]) -> str:
    """What the kernel said about a netlink request (its extended acknowledgement), or nothing."""
    prefix = "Kernel error message: "
    return "; ".join(text.removeprefix(prefix) for text in messages if text.startswith(prefix))


# ---- error numbers -----------------------------------------------------------------------------------


def describe(number: int) -> str:
    """A positive error number as text: 'No such device (ENODEV)'."""
    if number == ENOTSUPP:
        return "not supported by this kernel (ENOTSUPP)"
    return f"{os.strerror(number)} ({errno.errorcode.get(number, number)})"


def check(result: int, tried: str, advice: str = "") -> int:
    """Passes a non-negative result on; a negative one (libbpf returns -errno) becomes a BpfError."""
    if result < 0:
        raise BpfError(tried, describe(-result), advice, errno=-result)
    return result


# ---- objects -----------------------------------------------------------------------------------------


def open_object(path: str | os.PathLike[str]) -> int:
    """bpf_object__open: the handle of a parsed object file; nothing reaches the kernel. BpfError names the path."""
    library = libbpf()
    with captured_log() as messages:
        handle: int | None = library.bpf_object__open(os.fsencode(path))
        number = ctypes.get_errno()
    if not handle:
        detail = "; ".join([describe(number), *messages[-2:]])
        raise BpfError(
            f"opening BPF object {os.fspath(path)}",
            detail,
            "Is it an ELF file from clang -target bpf -g?",
            errno=number,
        )
    return handle


def object_btf(handle: int) -> bytes:
    """The raw BTF of an open object, with the section offsets that clang leaves to the linker filled in by libbpf."""
    library = libbpf()
    btf = library.bpf_object__btf(handle)
    size = c_uint32()
    data = library.btf__raw_data(btf, ctypes.byref(size)) if btf else None
    return ctypes.string_at(data, size.value) if data else b""


@functools.cache
def possible_cpus() -> int:
    """How many values an entry of a per-CPU map has: the CPUs that could ever be present, not those online."""
    return check(libbpf().libbpf_num_possible_cpus(), "counting the possible CPUs")
