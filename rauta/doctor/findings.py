"""What the doctor says, and who says it: a check is a function that looks at one thing and yields what it has seen.

    @check("agent.syncookies", "agent")
    def syncookies(subject: Subject) -> Iterator[Said]:
        ...
        yield wrong("net.ipv4.tcp_syncookies", "0", "sysctl -w net.ipv4.tcp_syncookies=1")

Its docstring is the documentation: docs/doctor.md is made of them. It says what has to be so, and what happens if it is
not; the remedy, which often names an interface or an address, is with the finding. A check that cannot look says so:
what the kernel refuses is a finding of its own, and no error of the doctor's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from rauta.config import Config
from rauta.errors import RautaError
from rauta.keys import CookieKeys

__all__ = [
    "CHECKS",
    "Check",
    "Finding",
    "Group",
    "Said",
    "Status",
    "Subject",
    "check",
    "checks_of",
    "fine",
    "unknown",
    "warning",
    "wrong",
]

Status: TypeAlias = Literal["ok", "warning", "error", "unknown"]
Group: TypeAlias = Literal["host", "interface", "router", "agent", "between"]
"""Where a check belongs: any host; a router's interfaces; a router; a host with an agent; between router and
backends."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    `check`: which one, an id that stays what it is, such as "kernel.kfunc". `subject`: of what. `seen`: what was there.
    `remedy`: what to do; empty if it is ok.
    """

    check: str
    subject: str
    status: Status
    seen: str
    remedy: str = ""


@dataclass(frozen=True)
class Subject:
    """What is examined.

    `config` and `keys` may be unknown; `interfaces` are those of the router, or of the agent if `backend` says whose
    host this is; `client` is the address of some client, by which the way back is judged; `deep` has RAUTA's own
    programs loaded, which takes a second. `memory` is for what several checks need, and takes time to find.
    """

    config: Config | None = None
    keys: CookieKeys | None = None
    interfaces: tuple[str, ...] = ()
    backend: str | None = None
    client: IPv4Address | None = None
    deep: bool = False
    memory: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def known(self) -> Config:
        """The configuration, for checks that are only made where there is one."""
        assert self.config is not None
        return self.config


class Said(NamedTuple):
    """A finding without the check's name."""

    subject: str
    status: Status
    seen: str
    remedy: str


Probe: TypeAlias = Callable[[Subject], Iterator[Said]]


@dataclass(frozen=True)
class Check:
    """A check: `meaning` is its function's docstring."""

    name: str
    group: Group
    meaning: str
    probe: Probe

    def findings(self, subject: Subject) -> Iterator[Finding]:
        """What it sees; what it may not look at is unknown."""
        try:
            for said in self.probe(subject):
                yield Finding(self.name, said.subject, said.status, said.seen, said.remedy)
        except PermissionError as error:
            yield Finding(self.name, "", "unknown", str(error.strerror), "Run as root.")
        except OSError as error:
            yield Finding(self.name, "", "unknown", str(error), "Look at it by hand.")
        except RautaError as error:
            happened = f"{error.tried}: {error.happened}" if error.happened else error.tried
            yield Finding(self.name, "", "unknown", happened, error.advice or "Look at it by hand.")


CHECKS: dict[str, Check] = {}
"""All checks by name; `checks_of` has the order in which they are made."""


def checks_of(groups: Collection[Group]) -> list[Check]:
    """The checks of these groups: what others depend on comes first."""
    return [one for group in get_args(Group) for one in CHECKS.values() if one.group == group and group in groups]


def check(name: str, group: Group) -> Callable[[Probe], Probe]:
    """Makes a function a check."""

    def register(probe: Probe) -> Probe:
        meaning = " ".join((probe.__doc__ or "").split())
        assert meaning, name
        assert name not in CHECKS, name
        CHECKS[name] = Check(name, group, meaning, probe)
        return probe

    return register


def fine(subject: str, seen: str) -> Said:
    """It is as it should be."""
    return Said(subject, "ok", seen, "")


def warning(subject: str, seen: str, remedy: str) -> Said:
    """It works, but not as well as it could, or not always."""
    return Said(subject, "warning", seen, remedy)


def wrong(subject: str, seen: str, remedy: str) -> Said:
    """It will not work."""
    return Said(subject, "error", seen, remedy)


def unknown(subject: str, seen: str, remedy: str) -> Said:
    """It cannot be told from here."""
    return Said(subject, "unknown", seen, remedy)
