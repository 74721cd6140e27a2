"""tc programs on interfaces of the calling thread's network namespace, through the clsact qdisc.

Attachments are kernel state: they outlive the process unless they are detached. Both directions share one clsact. It is
made where there is none, and removed when the last attachment of this process goes, but only if it was made here and
nobody else uses it. The kernel does not know who made it: a process that goes on with the attachments of an earlier one
(`TcAttachment.adopt`, `attach_tc(replace=...)`) must have that in writing from the earlier one (`made_clsact`). No
filter is replaced but one that the caller names, and only our own are removed.
"""

from __future__ import annotations

import errno
import socket
import struct
import threading
from ctypes import byref
from dataclasses import dataclass
from typing import Literal, Self, TypeAlias

from rauta.bpf import _lib
from rauta.bpf._attachment import GONE, Attachment, describe_program, program_id
from rauta.bpf.programs import Program, program_name
from rauta.errors import AttachError

__all__ = ["Direction", "TcAttachment", "attach_tc", "attached_tc_id", "has_clsact"]

Direction: TypeAlias = Literal["ingress", "egress"]

_POINTS: dict[str, int] = {"ingress": 1, "egress": 2}  # enum bpf_tc_attach_point
_REPLACE = 1  # BPF_TC_F_REPLACE
_PARENTS = (0xFFFFFFF2, 0xFFFFFFF3)  # TC_H_CLSACT with TC_H_MIN_INGRESS, TC_H_MIN_EGRESS (linux/pkt_sched.h)

RTM_NEWTFILTER, RTM_GETTFILTER = 44, 46  # linux/rtnetlink.h
NLM_F_REQUEST, NLM_F_DUMP = 0x001, 0x300  # linux/netlink.h
NETLINK_REPLY = 32768  # bytes; the kernel's dumps come in pieces no larger
_NLMSGHDR = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_TCMSG = struct.Struct("=BxxxiIII")  # struct tcmsg: family, interface, handle, parent, info

_QdiscKey: TypeAlias = tuple[tuple[int, int], int]  # network namespace and interface


@dataclass
class _Clsact:
    """The clsact qdisc of one interface, shared by this process's attachments in both directions."""

    made_here: bool
    users: int = 0


_clsacts: dict[_QdiscKey, _Clsact] = {}
_clsacts_lock = threading.RLock()


class TcAttachment(Attachment):
    """A tc program on an interface, in one direction, at one priority and handle."""

    def __init__(self, ifindex: int, program: Program | int, direction: Direction, priority: int, handle: int) -> None:
        """For `attach_tc` and `adopt`."""
        super().__init__(ifindex, program)
        self.direction: Direction = direction
        self.priority = priority
        self.handle = handle
        self._qdisc = (self._namespace, ifindex)

    @classmethod
    def adopt(
        cls,
        ifindex: int,
        program: Program | int,
        direction: Direction,
        priority: int = 1,
        handle: int = 1,
        *,
        made_clsact: bool,
    ) -> Self:
        """The attachment that another process made with this program, given as such or by its id.

        `made_clsact` is what that one's attachment said. Nothing changes on the interface. AttachError if another
        program, or none, has this priority and handle in this direction.
        """
        hook = _hook(ifindex, direction)
        present = _filter_program(hook, priority, handle)
        if present != program_id(program):
            tried = (
                f"adopting tc {describe_program(program_id(program))} on {_where(hook, direction, priority, handle)}"
            )
            raise AttachError(tried, f"{_present(present)} is attached there", errno=errno.ENOENT)
        attachment = cls(ifindex, program, direction, priority, handle)
        _share_clsact(attachment._qdisc, made_here=made_clsact)
        return attachment

    @property
    def made_clsact(self) -> bool:
        """Whether clsact goes with the last attachment on the interface: who adopts this one later has to know."""
        with _clsacts_lock:
            qdisc = _clsacts.get(self._qdisc)
            return qdisc is not None and qdisc.made_here

    def detach(self) -> bool:
        """Takes the program off, as every attachment; see Attachment.detach.

        The last attachment of this process on the interface takes clsact with it, if this process made it and nobody
        else has filters there by then.
        """
        return super().detach()

    def _take_off(self, fd: int) -> int:
        hook = _hook(self.ifindex, self.direction)
        result = -errno.ENOENT
        if _filter_program(hook, self.priority, self.handle) == self.program_id:
            options = _lib.TcOpts(handle=self.handle, priority=self.priority)
            result = _lib.libbpf().bpf_tc_detach(byref(hook), byref(options))
        if result == 0 or result in GONE:
            _leave_clsact(self._qdisc)
        return result


def attach_tc(
    ifindex: int,
    program: Program,
    direction: Direction,
    priority: int = 1,
    handle: int = 1,
    *,
    replace: Program | int | bool = False,
    made_clsact: bool = False,
) -> TcAttachment:
    """Attaches a SCHED_CLS program in direct-action mode, making the clsact qdisc where there is none.

    AttachError when the interface does not exist, or another filter has this priority and handle in this direction.

    With `replace`, it takes that filter's place instead, between two packets: none misses both. The program there must
    be the given one (a Program or its id) or, if True, have this one's name; AttachError otherwise, and if there is
    none. Unlike XDP's, the kernel's replacement does not compare: what somebody else puts there between the look and
    the replacement is lost. `made_clsact` is what the replaced attachment said, if an earlier process made it.
    """
    hook = _hook(ifindex, direction)
    if replace is not False:
        _require_ours(hook, program, replace, direction, priority, handle)
    attachment = TcAttachment(ifindex, program, direction, priority, handle)
    flags = 0 if replace is False else _REPLACE
    options = _lib.TcOpts(prog_fd=program.fd, flags=flags, handle=handle, priority=priority)
    try:
        _join_clsact(attachment._qdisc, made_before=made_clsact and replace is not False)
    except AttachError:
        attachment._release()
        raise
    with _lib.captured_log() as messages:
        result = _lib.libbpf().bpf_tc_attach(byref(hook), byref(options))
    if result < 0:
        attachment._release()
        error = _tc_error(hook, program, direction, priority, handle, -result, messages)
        _leave_clsact(attachment._qdisc)
        raise error
    return attachment


def attached_tc_id(ifindex: int, direction: Direction, priority: int = 1, handle: int = 1) -> int | None:
    """The id of the program that a filter runs; None if there is no filter, or no such interface."""
    return _filter_program(_hook(ifindex, direction), priority, handle) or None


def has_clsact(ifindex: int) -> bool:
    """Whether an interface has the clsact qdisc, whoever made it."""
    hook, options = _hook(ifindex, "ingress"), _lib.TcOpts(handle=1, priority=1)
    with _lib.captured_log():
        result = _lib.libbpf().bpf_tc_query(byref(hook), byref(options))
    return result in (0, -errno.ENOENT)  # no such filter; without clsact, the request is invalid: no such parent


def _hook(ifindex: int, direction: Direction) -> _lib.TcHook:
    if direction not in _POINTS:
        raise ValueError(f"direction {direction!r} is neither ingress nor egress")
    return _lib.TcHook(ifindex=ifindex, attach_point=_POINTS[direction])


def _where(hook: _lib.TcHook, direction: str, priority: int, handle: int) -> str:
    return f"interface {hook.ifindex} ({direction}, priority {priority}, handle {handle})"


def _present(id: int) -> str:
    return describe_program(id) if id else "no program"


def _require_ours(
    hook: _lib.TcHook, program: Program, replace: Program | int, direction: str, priority: int, handle: int
) -> None:
    """AttachError unless the filter runs the program that is to be replaced, or one of the same name."""
    present = _filter_program(hook, priority, handle)
    if replace is True:
        ours = bool(present) and program_name(present) == program.info().name
        wanted = f"a program called {program.info().name}"
    else:
        ours, wanted = present == program_id(replace), describe_program(program_id(replace))
    if not ours:
        tried = f"replacing {wanted} on {_where(hook, direction, priority, handle)}"
        raise AttachError(tried, f"{_present(present)} is attached there", "Nothing was replaced.", errno=errno.EEXIST)


def _tc_error(
    hook: _lib.TcHook, program: Program, direction: str, priority: int, handle: int, number: int, messages: list[str]
) -> AttachError:
    tried = f"attaching tc program '{program.name}' to {_where(hook, direction, priority, handle)}"
    happened, advice = _lib.kernel_message(messages) or _lib.describe(number), ""
    if number == errno.EEXIST:
        present = describe_program(_filter_program(hook, priority, handle))
        happened = f"{present} is attached there already"
        advice = "Nothing was replaced. Use another priority or handle, or remove that filter (tc filter del)."
    return AttachError(tried, happened, advice, errno=number)


def _filter_program(hook: _lib.TcHook, priority: int, handle: int) -> int:
    """The id of the program at a priority and handle, 0 when there is none."""
    options = _lib.TcOpts(handle=handle, priority=priority)
    with _lib.captured_log():
        result = _lib.libbpf().bpf_tc_query(byref(hook), byref(options))
    return options.prog_id if result == 0 else 0


def _join_clsact(key: _QdiscKey, *, made_before: bool) -> None:
    """Makes clsact where there is none, and is one more that uses it."""
    ifindex = key[1]
    hook = _lib.TcHook(ifindex=ifindex, attach_point=_POINTS["ingress"] | _POINTS["egress"])
    with _clsacts_lock, _lib.captured_log() as messages:
        result = _lib.libbpf().bpf_tc_hook_create(byref(hook))
        if result < 0 and result != -errno.EEXIST:
            advice = "There is no such interface in this network namespace." if result == -errno.ENODEV else ""
            happened = _lib.kernel_message(messages) or _lib.describe(-result)
            raise AttachError(f"adding clsact to interface {ifindex}", happened, advice, errno=-result)
        _share_clsact(key, made_here=made_before or result == 0)


def _share_clsact(key: _QdiscKey, *, made_here: bool) -> None:
    with _clsacts_lock:
        qdisc = _clsacts.setdefault(key, _Clsact(made_here=False))
        qdisc.made_here |= made_here
        qdisc.users += 1


def _leave_clsact(key: _QdiscKey) -> None:
    with _clsacts_lock, _lib.captured_log():
        qdisc = _clsacts[key]
        qdisc.users -= 1
        if qdisc.users:
            return
        del _clsacts[key]
        if qdisc.made_here and not _has_filters(key[1]):
            hook = _lib.TcHook(ifindex=key[1], attach_point=_POINTS["ingress"] | _POINTS["egress"])
            _lib.libbpf().bpf_tc_hook_destroy(byref(hook))


def _has_filters(ifindex: int) -> bool:
    """Whether any filter hangs on clsact, asked with RTM_GETTFILTER (rtnetlink(7)): libbpf cannot list."""
    for parent in _PARENTS:
        message = _TCMSG.pack(socket.AF_UNSPEC, ifindex, 0, parent, 0)
        header = _NLMSGHDR.pack(_NLMSGHDR.size + len(message), RTM_GETTFILTER, NLM_F_REQUEST | NLM_F_DUMP, 1, 0)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
            netlink.send(header + message)
            if _NLMSGHDR.unpack_from(netlink.recv(NETLINK_REPLY))[1] == RTM_NEWTFILTER:
                return True
    return False
