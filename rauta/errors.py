"""The errors a user can meet. `str(error)` says what was tried, what happened and, where known, what to do."""

from __future__ import annotations

__all__ = ["AttachError", "BpfError", "LoadError", "RautaError"]


class RautaError(Exception):
    """Base of every error that RAUTA raises on purpose.

    `tried` is the attempt ("attaching 'ingress' to eth1"), `happened` the outcome, `advice` what the user can do.
    """

    def __init__(self, tried: str, happened: str = "", advice: str = "") -> None:
        super().__init__(tried, happened, advice)
        self.tried = tried
        self.happened = happened
        self.advice = advice

    def __str__(self) -> str:
        head = f"{self.tried}: {self.happened}" if self.happened else self.tried
        return f"{head}\n{self.advice}" if self.advice else head


class BpfError(RautaError):
    """The kernel or libbpf refused something. `errno` is its positive error number, 0 where there is none."""

    def __init__(self, tried: str, happened: str = "", advice: str = "", *, errno: int = 0) -> None:
        super().__init__(tried, happened, advice)
        self.errno = errno


class LoadError(BpfError):
    """An object was not loaded.

    `cause` is the likely reason in one sentence, `program` the program at fault (None when it is the object as a
    whole), `log_tail` the last lines of the verifier's log, or of libbpf's when the verifier was never asked.
    """

    def __init__(
        self,
        tried: str,
        cause: str = "",
        advice: str = "",
        *,
        program: str | None = None,
        log_tail: str = "",
        errno: int = 0,
    ) -> None:
        super().__init__(tried, cause, advice, errno=errno)
        self.cause = cause
        self.program = program
        self.log_tail = log_tail

    def __str__(self) -> str:
        head = super().__str__()
        if not self.log_tail:
            return head
        return head + "\n" + "\n".join(f"    {line}" for line in self.log_tail.splitlines())


class AttachError(BpfError):
    """A program was not attached to an interface, or not taken off it."""
