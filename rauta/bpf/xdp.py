"""XDP programs on interfaces of the calling thread's network namespace.

Attachments are kernel state: they outlive the process unless they are detached, and the next one can adopt them, or
replace the program without a gap. A program is attached only where there is none, or in the place of the one that the
caller names, and taken off only while it is still ours; somebody else's is never touched.
"""

from __future__ import annotations

import errno
import os
from ctypes import byref, c_uint32
from typing import Literal, Self, TypeAlias

from rauta.bpf import _lib
from rauta.bpf._attachment import Attachment, describe_program, program_id
from rauta.bpf.programs import Program
from rauta.errors import AttachError, BpfError

__all__ = ["XdpAttachment", "XdpMode", "attach_xdp", "attached_xdp_id"]

XdpMode: TypeAlias = Literal["native", "generic", "best-effort"]

UPDATE_IF_NOEXIST, SKB_MODE, DRV_MODE, HW_MODE = 1, 2, 4, 8  # XDP_FLAGS_*
_Mode: TypeAlias = Literal["native", "generic"]
_MODE_FLAGS: dict[_Mode, int] = {"native": DRV_MODE, "generic": SKB_MODE}
_DRIVER_CANNOT = {errno.EOPNOTSUPP, errno.EINVAL, errno.ERANGE}  # why best-effort turns to generic


class XdpAttachment(Attachment):
    """An XDP program on an interface. `mode` is the one in use, never "best-effort"; `program_id` the program there."""

    def __init__(self, ifindex: int, program: Program | int, mode: _Mode) -> None:
        """For `attach_xdp` and `adopt`."""
        super().__init__(ifindex, program)
        self.mode: _Mode = mode

    @classmethod
    def adopt(cls, ifindex: int, program: Program | int) -> Self:
        """The attachment that another process made with this program, given as such or by its id, in whichever mode.

        Nothing changes on the interface. AttachError if it has another program, or none.
        """
        id = program_id(program)
        for mode, flags in _MODE_FLAGS.items():
            if _attached_in(ifindex, flags) == id:
                return cls(ifindex, program, mode)
        present = _foreign_program(ifindex) if attached_xdp_id(ifindex) else "no program"
        tried = f"adopting XDP {describe_program(id)} on interface {ifindex}"
        raise AttachError(tried, f"{present} is attached there", errno=errno.ENOENT)

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


def attach_xdp(ifindex: int, program: Program, mode: XdpMode, *, replace: Program | int | None = None) -> XdpAttachment:
    """Attaches an XDP program where there is none yet.

    With `replace`, a program or its id, it takes that one's place instead, between two packets: none misses both, and
    the mode stays. AttachError if that one is not attached there, or in another mode than asked for.

    "native" runs in the driver, "generic" in the stack on any interface, "best-effort" natively where the driver can
    and generically otherwise. AttachError says what is in the way: a foreign program by its id and name, the driver,
    the MTU.
    """
    if mode not in ("native", "generic", "best-effort"):
        raise ValueError(f"XDP mode {mode!r} is none of native, generic, best-effort")
    if replace is not None:
        return _replace_xdp(ifindex, program, mode, replace)
    if mode != "best-effort":
        return _attach_xdp(ifindex, program, mode)
    try:
        return _attach_xdp(ifindex, program, "native")
    except AttachError as error:
        if error.errno not in _DRIVER_CANNOT:
            raise
    return _attach_xdp(ifindex, program, "generic")


def _replace_xdp(ifindex: int, program: Program, mode: XdpMode, present: Program | int) -> XdpAttachment:
    attachment = XdpAttachment.adopt(ifindex, present)
    try:
        if mode not in ("best-effort", attachment.mode):
            tried = f"replacing XDP {describe_program(attachment.program_id)} on interface {ifindex} ({mode})"
            raise AttachError(tried, f"it is attached in {attachment.mode} mode", "Replacing keeps the mode.")
        attachment.replace(program)
    except BaseException:
        attachment._release()
        raise
    return attachment


def _attach_xdp(ifindex: int, program: Program, mode: _Mode) -> XdpAttachment:
    attachment = XdpAttachment(ifindex, program, mode)
    with _lib.captured_log() as messages:
        result = _lib.libbpf().bpf_xdp_attach(ifindex, program.fd, _MODE_FLAGS[mode] | UPDATE_IF_NOEXIST, None)
    if result < 0:
        attachment._release()
        raise _xdp_error(ifindex, program, mode, -result, messages)
    return attachment


def attached_xdp_id(ifindex: int) -> int | None:
    """The id of the XDP program on an interface, whoever attached it and in whichever mode; None without one."""
    for flags in (0, DRV_MODE, SKB_MODE, HW_MODE):
        if found := _attached_in(ifindex, flags):
            return found
    return None


def _attached_in(ifindex: int, flags: int) -> int:
    """The id of the program in one mode; 0 without one."""
    found = c_uint32()
    result = _lib.libbpf().bpf_xdp_query_id(ifindex, flags, byref(found))
    _lib.check(result, f"looking for an XDP program on interface {ifindex}")
    return found.value


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
