"""XDP programs on interfaces of the calling thread's network namespace.

Attachments are kernel state: they outlive the process unless they are detached. A program is attached only where there
is none, and taken off only while it is still ours; somebody else's is never touched.
"""

from __future__ import annotations

import errno
import os
from ctypes import byref, c_uint32
from typing import Literal, TypeAlias

from rauta.bpf import _lib
from rauta.bpf._attachment import Attachment, describe_program
from rauta.bpf.programs import Program
from rauta.errors import AttachError, BpfError

__all__ = ["XdpAttachment", "XdpMode", "attach_xdp", "attached_xdp_id"]

XdpMode: TypeAlias = Literal["native", "generic", "best-effort"]

UPDATE_IF_NOEXIST, SKB_MODE, DRV_MODE, HW_MODE = 1, 2, 4, 8  # XDP_FLAGS_*
_MODE_FLAGS: dict[str, int] = {"native": DRV_MODE, "generic": SKB_MODE}
_DRIVER_CANNOT = {errno.EOPNOTSUPP, errno.EINVAL, errno.ERANGE}  # why best-effort turns to generic


class XdpAttachment(Attachment):
    """An XDP program on an interface. `mode` is the one in use, never "best-effort"; `program_id` the program there."""

    def __init__(self, ifindex: int, program: Program, mode: Literal["native", "generic"]) -> None:
        """For `attach_xdp`."""
        super().__init__(ifindex, program)
        self.mode: Literal["native", "generic"] = mode

    def replace(self, program: Program) -> None:
        """Puts another program in this one's place without a gap; AttachError when this one is no longer there."""
        if self._fd is None:
            raise AttachError(
                f"replacing XDP program {self.program_id} on interface {self.ifindex}", "it is detached already"
            )
        successor = os.dup(program.fd)
        options = _lib.XdpAttachOpts(old_prog_fd=self._fd)
        with _lib.captured_log() as messages:
            result = _lib.libbpf().bpf_xdp_attach(self.ifindex, successor, _MODE_FLAGS[self.mode], byref(options))
        if result < 0:
            os.close(successor)
            raise _xdp_error(self.ifindex, program, self.mode, -result, messages)
        os.close(self._fd)
        self._fd, self.program_id = successor, program.id

    def _take_off(self, fd: int) -> int:
        options = _lib.XdpAttachOpts(old_prog_fd=fd)
        return int(_lib.libbpf().bpf_xdp_detach(self.ifindex, _MODE_FLAGS[self.mode], byref(options)))


def attach_xdp(ifindex: int, program: Program, mode: XdpMode) -> XdpAttachment:
    """Attaches an XDP program where there is none yet.

    "native" runs in the driver, "generic" in the stack on any interface, "best-effort" natively where the driver can
    and generically otherwise. AttachError says what is in the way: a foreign program by its id and name, the driver,
    the MTU.
    """
    if mode not in ("native", "generic", "best-effort"):
        raise ValueError(f"XDP mode {mode!r} is none of native, generic, best-effort")
    if mode != "best-effort":
        return _attach_xdp(ifindex, program, mode)
    try:
        return _attach_xdp(ifindex, program, "native")
    except AttachError as error:
        if error.errno not in _DRIVER_CANNOT:
            raise
    return _attach_xdp(ifindex, program, "generic")


def _attach_xdp(ifindex: int, program: Program, mode: Literal["native", "generic"]) -> XdpAttachment:
    attachment = XdpAttachment(ifindex, program, mode)
    with _lib.captured_log() as messages:
        result = _lib.libbpf().bpf_xdp_attach(ifindex, program.fd, _MODE_FLAGS[mode] | UPDATE_IF_NOEXIST, None)
    if result < 0:
        attachment._release()
        raise _xdp_error(ifindex, program, mode, -result, messages)
    return attachment


def attached_xdp_id(ifindex: int) -> int | None:
    """The id of the XDP program on an interface, whoever attached it and in whichever mode; None without one."""
    found = c_uint32()
    for flags in (0, DRV_MODE, SKB_MODE, HW_MODE):
        result = _lib.libbpf().bpf_xdp_query_id(ifindex, flags, byref(found))
        _lib.check(result, f"looking for an XDP program on interface {ifindex}")
        if found.value:
            return found.value
    return None


def _xdp_error(ifindex: int, program: Program, mode: str, number: int, messages: list[str]) -> AttachError:
    tried = f"attaching XDP program '{program.name}' to interface {ifindex} ({mode})"
    said = _lib.kernel_message(messages)
    happened = f"{_lib.describe(number)}: {said}" if said else _lib.describe(number)
    if number in (errno.EBUSY, errno.EEXIST):
        happened = f"{_foreign_program(ifindex)} is attached there already: {happened}"
    return AttachError(tried, happened, _xdp_advice(number, said, mode), errno=number)


def _xdp_advice(number: int, said: str, mode: str) -> str:
    if number in (errno.EBUSY, errno.EEXIST):
        return "Nothing was replaced. Detach it first, if it is yours to detach (ip link set dev NAME xdp off)."
    if number == errno.ENODEV:
        return "There is no such interface in this network namespace."
    if number == errno.EPERM:
        return "Run as root, or with CAP_BPF and CAP_NET_ADMIN."
    if number == errno.ERANGE or "mtu" in said.lower():
        return "The MTU is too large for the driver's XDP: lower it, or use generic."
    if number in _DRIVER_CANNOT and mode == "native":
        return "The driver has no native XDP: use generic or best-effort."
    return ""


def _foreign_program(ifindex: int) -> str:
    try:
        return describe_program(attached_xdp_id(ifindex))
    except BpfError:
        return "another program"
