"""What commonly goes wrong on a router's or a backend's host, and what to do about it.

    for finding in examine(load_config("shop.yaml"), keys=keys, interfaces=["eth0"]):
        print(finding.check, finding.subject, finding.status, finding.seen, finding.remedy)

It is the same whether a router runs or not: `rauta doctor` calls it, and the running daemon for `rautactl doctor`. All
is looked at in the calling thread's network namespace, and nothing is changed there. What a check is about is in its
function's docstring, of which docs/doctor.md is made:

    host      any host: kernel, interfaces          agent      a backend's host, or a fallback's
    router    XDP, VIPs                             between    from the router to its backends

    listeners, firewall, drivers, places, probes    what checks ask the kernel, and other hosts
    findings                                        what a check is, and what it says
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address

from rauta.config import Config
from rauta.doctor import agent, between, host, places, router
from rauta.doctor.findings import CHECKS, Check, Finding, Group, Status, Subject, checks_of
from rauta.errors import RautaError
from rauta.keys import CookieKeys

__all__ = ["CHECKS", "Check", "Finding", "Status", "examine"]

_MODULES = (host, router, agent, between)
"""whose import has filled CHECKS"""


def examine(
    config: Config | None,
    *,
    keys: CookieKeys | None = None,
    interfaces: Iterable[str] = (),
    backend: str | None = None,
    client: IPv4Address | None = None,
    deep: bool = False,
) -> list[Finding]:
    """Makes all checks that belong to this host; it takes a few seconds if hosts do not answer.

    Args:
        config: without it, only the kernel and the interfaces are looked at.
        keys: those of the cookies; without them agents cannot be asked.
        interfaces: of the router, by default those of the configuration; of the agent, by default those that have the
            backend's address.
        backend: its name, on its host. None: this is a router's.
        client: an address by which the way back to clients is judged; by default the default route is.
        deep: RAUTA's own programs are loaded, too.

    RautaError if the configuration has no such backend.
    """
    if config is not None and backend is not None and backend not in config.backends():
        known = ", ".join(config.backends()) or "none"
        raise RautaError("examining a backend's host", f"no backend is called {backend!r}", f"There are: {known}.")
    subject = Subject(config, keys, tuple(interfaces), backend, client, deep)
    subject = replace(subject, interfaces=subject.interfaces or _interfaces(subject))
    usable = replace(subject, interfaces=_present(subject.interfaces))
    return [
        finding
        for check in checks_of(_groups(subject))
        for finding in check.findings(subject if check.name == "interface.up" else usable)
    ]


def _interfaces(subject: Subject) -> tuple[str, ...]:
    """Those that are meant if none is named."""
    if subject.config is None:
        return ()
    if subject.backend is not None:
        return tuple(link.name for link in places.agent_links(subject))
    return subject.config.interfaces


def _present(interfaces: Iterable[str]) -> tuple[str, ...]:
    """Those that exist: that the others do not is one finding, and not one of every check."""
    here = {name for _, name in socket.if_nameindex()}
    return tuple(name for name in interfaces if name in here)


def _groups(subject: Subject) -> set[Group]:
    """What kinds of checks belong to a host."""
    groups: set[Group] = {"host", "interface"}
    if subject.config is None:
        return groups
    if subject.backend is not None:
        groups.add("agent")
        return groups
    groups |= {"router", "between"}
    if subject.config.fallback is not None:
        groups.add("agent")
    return groups
