"""BPF programs: what the kernel knows about them, and running them on packets without a network.

BPF_PROG_TEST_RUN is described in Documentation/bpf/bpf_prog_run.rst of the Linux sources.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import struct
import weakref
from collections.abc import Iterator
from ctypes import byref, c_uint32
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from rauta.bpf import _lib, _pinned
from rauta.bpf.btf import Btf
from rauta.bpf.layout import Layout
from rauta.errors import BpfError

__all__ = [
    "Program",
    "ProgramInfo",
    "TestRun",
    "program_info",
    "program_name",
    "run_time_stats",
    "skb_context",
    "skb_fields",
    "smallest_xdp",
    "xdp_context",
]

LIVE_FRAMES = 1 << 1  # BPF_F_TEST_XDP_LIVE_FRAMES
CHECKSUM_COMPLETE = 1 << 2  # BPF_F_TEST_SKB_CHECKSUM_COMPLETE
STATS_RUN_TIME = 0  # BPF_STATS_RUN_TIME
TRACE_ITER = 28  # BPF_TRACE_ITER, an attach type
PIECE = 65536  # bytes read at a time of what an iterator writes
ROOM_TO_GROW = 65536  # bytes a program may add to the packet it is tested with: no IPv4 packet is longer

XDP = 6  # BPF_PROG_TYPE_XDP
_PASS = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 2, 0x95, 0, 0, 0)  # r0 = XDP_PASS; exit

_XDP_MD = struct.Struct("=6I")  # struct xdp_md (linux/bpf.h), stable since Linux 5.8


@dataclass(frozen=True)
class ProgramInfo:
    """What the kernel knows about a loaded program (struct bpf_prog_info)."""

    id: int
    name: str
    tag: str
    """SHA-1 of the instructions, truncated, 16 hexadecimal digits."""
    xlated_size: int
    """Bytes of BPF instructions after the verifier."""
    jited_size: int
    """Bytes of machine code; 0 without JIT."""
    verified_insns: int
    """Instructions that the verifier walked through; its limit is 1,000,000."""
    run_time_ns: int
    """Nanoseconds spent in the program while `run_time_stats` was on."""
    run_cnt: int
    """Runs counted while `run_time_stats` was on."""


@dataclass(frozen=True)
class TestRun:
    """Outcome of a test run: the program's return value, packet and context afterwards, average nanoseconds per run."""

    __test__ = False  # no test class, whatever pytest thinks of the name

    retval: int
    data: bytes
    ctx: bytes
    duration_ns: int


class Program:
    """One program: of a BpfObject, or opened by its pin.

    Everything but `name` and `set_autoload` needs the object loaded.
    """

    def __init__(self, name: str, owner: object, handle: int | None) -> None:
        """For this package. `owner` keeps the object behind the libbpf `handle` alive."""
        self.name = name
        self._owner = owner
        self._handle = handle
        self._fd = -1
        self._finalizer: weakref.finalize[..., Any] | None = None

    @classmethod
    def from_pin(cls, path: str | os.PathLike[str]) -> Self:
        """The program that is pinned there. `name` is the kernel's, which has 15 characters at most.

        The caller closes it. BpfError if there is no program.
        """
        return cls._of(_pinned.opened(path, "program"))

    @classmethod
    def from_id(cls, id: int) -> Self:
        """Likewise the program of that id, for as long as it is open at least. BpfError if there is none any more."""
        return cls._of(_lib.check(_lib.libbpf().bpf_prog_get_fd_by_id(id), f"opening program {id}"))

    @classmethod
    def _of(cls, fd: int) -> Self:
        found = cls(program_info(fd).name, None, None)
        found._fd = fd
        found._finalizer = weakref.finalize(found, os.close, fd)
        return found

    def __repr__(self) -> str:
        return f"<Program {self.name!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def fd(self) -> int:
        """The file descriptor; BpfError unless the program is loaded."""
        if self._fd < 0:
            raise BpfError(
                f"using program '{self.name}'",
                "it is not loaded",
                "Load the object first; programs with autoload off are left out.",
            )
        return self._fd

    @property
    def loaded(self) -> bool:
        """Whether it is in the kernel; a program with autoload off never is."""
        return self._fd >= 0

    @property
    def id(self) -> int:
        """The number that the kernel and bpftool know the program by."""
        return self.info().id

    def pin(self, path: str | os.PathLike[str], *, replace: bool = False) -> None:
        """Has the program outlive its object and this process, as Map.pin does for maps."""
        _pinned.pin(self.fd, path, f"program '{self.name}'", replace=replace)

    def close(self) -> None:
        """Gives up a program opened by `from_pin`. Programs of an object are closed with it: nothing happens."""
        if self._finalizer is not None:
            self._finalizer()
            self._fd = -1

    def info(self) -> ProgramInfo:
        """Sizes, tag and run-time counters, read now."""
        return program_info(self.fd)

    def set_autoload(self, autoload: bool) -> None:
        """Whether load() loads this program; only before load()."""
        if self._handle is None:
            raise BpfError(
                f"setting autoload of program '{self.name}'", "the object is loaded or closed", "Call it before load()."
            )
        _lib.check(
            _lib.libbpf().bpf_program__set_autoload(self._handle, autoload),
            f"setting autoload of program '{self.name}'",
        )

    def test_run(
        self,
        data: bytes,
        *,
        ctx: bytes | None = None,
        repeat: int = 1,
        ctx_out_size: int = 0,
        checksum_complete: bool = False,
    ) -> TestRun:
        """Runs the program on a packet, at least 14 bytes from the Ethernet header on, and returns what it made of it.

        `ctx` comes from `xdp_context` or `skb_context`; `ctx_out_size` asks for that many bytes of it back (for tc, the
        size of `skb_context()`). With `repeat`, the packet is *not* restored between runs. With `checksum_complete`, a
        tc program gets the packet as from a device that has summed it up, and must keep that sum right (a newer kernel
        than the rest). BpfError when the kernel refuses, or finds the sum wrong.
        """
        data_out = ctypes.create_string_buffer(len(data) + ROOM_TO_GROW)
        ctx_out = ctypes.create_string_buffer(ctx_out_size) if ctx_out_size else None
        options = self._options(data, ctx, repeat)
        options.data_out, options.data_size_out = ctypes.addressof(data_out), len(data_out)
        options.flags = CHECKSUM_COMPLETE if checksum_complete else 0
        if ctx_out is not None:
            options.ctx_out, options.ctx_size_out = ctypes.addressof(ctx_out), ctx_out_size
        self._run(options, f"running program '{self.name}' on {len(data)} bytes")
        context = ctx_out.raw[: options.ctx_size_out] if ctx_out is not None else b""
        return TestRun(options.retval, ctypes.string_at(data_out, options.data_size_out), context, options.duration)

    def run_live_frames(self, data: bytes, *, ctx: bytes | None, repeat: int, batch_size: int = 64) -> TestRun:
        """Runs an XDP program on `repeat` frames that are really passed on, sent or redirected (Linux 5.18).

        They arrive on the `ingress_ifindex` of `ctx`, a device of the calling thread's network namespace; without
        `ctx`, on its loopback. `batch_size` is at most 256. Neither packet nor context comes back. Frames are recycled:
        their pointers are restored for the next run, the bytes that the program changed are not.
        """
        options = self._options(data, ctx, repeat)
        options.flags, options.batch_size = LIVE_FRAMES, batch_size
        self._run(options, f"running program '{self.name}' on {repeat} live frames of {len(data)} bytes")
        return TestRun(options.retval, b"", b"", options.duration)

    def call(self, argument: bytes = b"") -> tuple[int, bytes]:
        """Calls a syscall program (Linux 5.14) with its argument: what it returns, and the argument as it leaves it.

        It may take its time: softirqs, and with them packets, are served meanwhile. BpfError when the kernel refuses,
        for instance because the program reads beyond the argument.
        """
        context = ctypes.create_string_buffer(argument, len(argument))
        options = _lib.TestRunOpts()
        if argument:
            options.ctx_in, options.ctx_size_in = ctypes.addressof(context), len(argument)
        _lib.check(
            _lib.libbpf().bpf_prog_test_run_opts(self.fd, byref(options)),
            f"calling program '{self.name}' with {len(argument)} bytes",
            "Only programs of type syscall can be called.",
        )
        return options.retval, context.raw

    def iterate(self, map_fd: int) -> bytes:
        """Runs an iterator over the elements of a map, by its descriptor (Linux 5.9); returns what it has written.

        Elements that come or go meanwhile may be among them or not. BpfError when the kernel refuses, for instance
        because the program reads beyond the map's values.
        """
        tried = f"running program '{self.name}' over map {map_fd}"
        about = struct.pack("=I", map_fd)  # union bpf_iter_link_info
        buffer = ctypes.create_string_buffer(about, len(about))
        options = _lib.LinkCreateOpts(iter_info=ctypes.addressof(buffer), iter_info_len=len(about))
        library = _lib.libbpf()
        link = _lib.check(library.bpf_link_create(self.fd, 0, TRACE_ITER, byref(options)), tried)
        try:
            reader = _lib.check(library.bpf_iter_create(link), tried)
        finally:
            os.close(link)
        with open(reader, "rb", buffering=0) as file:  # noqa: PTH123 - of a descriptor
            try:
                return b"".join(iter(lambda: file.read(PIECE), b""))
            except OSError as error:
                raise BpfError(tried, error.strerror or str(error), errno=error.errno or 0) from error

    def _options(self, data: bytes, ctx: bytes | None, repeat: int) -> _lib.TestRunOpts:
        options = _lib.TestRunOpts(data_size_in=len(data), repeat=repeat)
        options.keep = (
            ctypes.create_string_buffer(data, len(data)),
            ctypes.create_string_buffer(ctx or b"", len(ctx or b"")),
        )
        options.data_in = ctypes.addressof(options.keep[0])
        if ctx:
            options.ctx_in, options.ctx_size_in = ctypes.addressof(options.keep[1]), len(ctx)
        return options

    def _run(self, options: _lib.TestRunOpts, tried: str) -> None:
        advice = "Is the packet at least 14 bytes, does the context fit it, is its interface in this network namespace?"
        _lib.check(_lib.libbpf().bpf_prog_test_run_opts(self.fd, byref(options)), tried, advice)


def program_info(fd: int) -> ProgramInfo:
    """What the kernel knows about the program behind a descriptor; BpfError when it is none."""
    info = _lib.ProgInfo()
    size = c_uint32(ctypes.sizeof(info))
    _lib.check(
        _lib.libbpf().bpf_obj_get_info_by_fd(fd, byref(info), byref(size)),
        f"reading about the program behind descriptor {fd}",
    )
    return ProgramInfo(
        id=info.id,
        name=info.name.decode(errors="replace"),
        tag=bytes(info.tag).hex(),
        xlated_size=info.xlated_prog_len,
        jited_size=info.jited_prog_len,
        verified_insns=info.verified_insns,
        run_time_ns=info.run_time_ns,
        run_cnt=info.run_cnt,
    )


def program_name(program_id: int) -> str:
    """The name of the program with that id, up to 15 characters; empty if there is none any more. It takes root."""
    fd = _lib.libbpf().bpf_prog_get_fd_by_id(program_id)
    if fd < 0:
        return ""
    try:
        return program_info(fd).name
    finally:
        os.close(fd)


def smallest_xdp() -> ProgramInfo:
    """Loads an XDP program that passes every packet, attaches it nowhere, and lets it go: what the kernel made of it.

    BpfError if it refuses.
    """
    with _lib.captured_log():
        result = _lib.libbpf().bpf_prog_load(XDP, b"smallest", b"GPL", _PASS, len(_PASS) // 8, None)
    fd = _lib.check(
        result, "loading the smallest XDP program", "Run as root, with a kernel that has CONFIG_BPF_SYSCALL=y."
    )
    try:
        return program_info(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def run_time_stats() -> Iterator[None]:
    """While it lasts, the kernel times and counts every run of every BPF program: ProgramInfo.run_time_ns, .run_cnt."""
    fd = _lib.check(
        _lib.libbpf().bpf_enable_stats(STATS_RUN_TIME),
        "switching BPF run-time statistics on",
        "It needs root (Linux 5.8).",
    )
    try:
        yield
    finally:
        os.close(fd)


def xdp_context(data_len: int, ingress_ifindex: int = 0, rx_queue_index: int = 0) -> bytes:
    """struct xdp_md for a test run on `data_len` bytes that arrive on an interface and receive queue.

    The kernel wants data_end to be the packet's length, no more.
    """
    return _XDP_MD.pack(0, data_len, 0, ingress_ifindex, rx_queue_index, 0)


def skb_context(**fields: Any) -> bytes:
    """struct __sk_buff for a test run of a tc program, as the running kernel lays it out.

    Fields left out are zero; the kernel takes mark, priority, ifindex, ingress_ifindex, cb, tstamp, wire_len, gso_segs,
    gso_size and hwtstamp, and refuses the run (EINVAL) when any other one is set. ValueError for an unknown name.
    """
    return _skb_layout().pack(fields)


def skb_fields(ctx: bytes) -> dict[str, Any]:
    """The fields of a struct __sk_buff by name, for instance of TestRun.ctx."""
    fields: dict[str, Any] = _skb_layout().unpack(ctx)
    return fields


@functools.cache
def _skb_layout() -> Layout:
    return Btf.from_kernel().struct("__sk_buff")
