"""What attachments of every kind share."""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

from rauta.bpf import _lib
from rauta.bpf.programs import Program, program_name
from rauta.errors import AttachError

GONE = {-errno.ENODEV, -errno.ENOENT, -errno.EEXIST}  # the interface or the program went, or it is another's place now


def network_namespace() -> tuple[int, int]:
    """Device and inode of the calling thread's network namespace: interface numbers repeat between namespaces."""
    namespace = Path("/proc/thread-self/ns/net").stat()
    return namespace.st_dev, namespace.st_ino


class Attachment(ABC):
    """A program on an interface, until `detach`; as a context manager, for as long as the context lasts.

    It holds a descriptor of the program, so that detaching works after the object is closed. `program` may be an id,
    too: that of what an earlier process attached.
    """

    def __init__(self, ifindex: int, program: Program | int) -> None:
        self.ifindex = ifindex
        self.program_id = program_id(program)
        self._namespace = network_namespace()
        self._fd: int | None = _descriptor(program)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def detach(self) -> bool:
        """Takes the program off, in the network namespace that it was attached in.

        False when it was no longer there: detached already, removed or replaced by others, or the interface gone.
        AttachError in another namespace, or when the kernel refuses.
        """
        if self._fd is None:
            return False
        tried = f"detaching program {self.program_id} from interface {self.ifindex}"
        if network_namespace() != self._namespace:
            raise AttachError(tried, "it is in another network namespace", "Enter the one that it was attached in.")
        with _lib.captured_log() as messages:
            result = self._take_off(self._fd)
        if result < 0 and result not in GONE:
            raise AttachError(tried, _lib.kernel_message(messages) or _lib.describe(-result), errno=-result)
        self._release()
        return result == 0

    @abstractmethod
    def _take_off(self, fd: int) -> int:
        """Removes the program of this descriptor, and no other: 0 or a negative error number."""

    def _release(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def program_id(program: Program | int) -> int:
    """The id of a program, if it is not one already."""
    return program if isinstance(program, int) else program.id


def _descriptor(program: Program | int) -> int:
    """A descriptor of its own."""
    if not isinstance(program, int):
        return os.dup(program.fd)
    fd: int = _lib.libbpf().bpf_prog_get_fd_by_id(program)
    if fd < 0:
        raise AttachError(f"opening program {program}", _lib.describe(-fd), "It is not loaded any more.", errno=-fd)
    return fd


def describe_program(program_id: int | None) -> str:
    """'program id 12 (name)'; the name is missing when the program is gone by now."""
    if not program_id:
        return "another program"
    name = program_name(program_id)
    return f"program id {program_id} ({name})" if name else f"program id {program_id}"
