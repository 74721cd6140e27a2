"""Checks that look at what the machines say about themselves."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated

from pydantic import Field

from lab.checks.base import CheckBase, request_to, server_of, wrong_with
from lab.clients import http_client
from lab.errors import NotReady, UsageError
from lab.interfaces import CheckResult, Context
from lab.process import wait_until
from lab.topology import Host

ESTABLISHED, LISTEN = "01", "0A"
"""states in /proc/net/tcp (include/net/tcp_states.h)"""
RETRANSMISSION = "01"
"""which timer runs (net/ipv4/tcp_ipv4.c, get_tcp4_sock): something was sent, and is not acknowledged"""
SETTLE_SECONDS = 5.0
"""enough for a few retransmissions: the first comes after 0.2 s, that of a SYN after 1 s"""
TELLING = ("Tcp.RetransSegs", "TcpExt.TCPSynRetrans")
RELATED = (
    "TcpExt.TCPTimeouts",
    "TcpExt.TCPLossProbes",
    "TcpExt.TCPSpuriousRTOs",
    "Tcp.EstabResets",
    "Tcp.AttemptFails",
)


@dataclass(frozen=True)
class Socket:
    """A line of /proc/net/tcp: addresses are (IPv4 address, or None for IPv6, and port). ``timer``: which one runs."""

    local: tuple[IPv4Address | None, int]
    remote: tuple[IPv4Address | None, int]
    state: str
    timer: str = "00"


def sockets(host: Host) -> list[Socket]:
    """The TCP sockets of a host's namespace."""
    with host.entered():
        texts = [Path(f"/proc/thread-self/net/{name}") for name in ("tcp", "tcp6")]
        lines = [line for path in texts if path.exists() for line in path.read_text().splitlines()[1:]]
    return [Socket(_end(fields[1]), _end(fields[2]), fields[3], fields[5][:2]) for fields in map(str.split, lines)]


def _end(text: str) -> tuple[IPv4Address | None, int]:
    address, port = text.split(":")
    known = len(address) == 8
    return IPv4Address(socket.htonl(int(address, 16))) if known else None, int(port, 16)


class NoListenerOn(CheckBase):
    """Nothing listens on that host, or on any host of that role: no proxy behind our back."""

    no_listener_on: str

    @property
    def title(self) -> str:
        """Where."""
        return f"nothing listens on {self.no_listener_on}"

    def run(self, context: Context) -> CheckResult:
        """Look."""
        hosts = context.network.hosts
        meant = [host for name, host in hosts.items() if self.no_listener_on in (name, host.role)]
        if not meant:
            known = ", ".join(hosts)
            raise UsageError(
                f"looking for listeners on {self.no_listener_on!r}", "no such host", f"There are: {known}."
            )
        ports = [one.local[1] for host in meant for one in sockets(host) if one.state == LISTEN]
        return self.failed(f"listening on ports {ports}") if ports else self.passed("no TCP listener")


class ClientAddressSeen(CheckBase):
    """The socket of a backend of that cluster shows the client's own address and port."""

    client_address_seen: str

    @property
    def title(self) -> str:
        """Where."""
        return f"backends of {self.client_address_seen} see the client's own address"

    def run(self, context: Context) -> CheckResult:
        """Look at the socket of a connection that is open."""
        cluster = self.client_address_seen
        request, client = request_to(context, cluster, "/api/x"), context.network.client
        with http_client.connected(client, request) as connection:
            answer = connection.ask(request)
            context.requests.sent += 1
            if wrong := wrong_with(answer, context, cluster, server_of(context, cluster).body):
                return self.failed(wrong)
            backend = context.network.hosts[answer.backend]
            found = list(_accepted(backend, client.address, connection.port))
        if not found:
            return self.failed(f"no socket on {backend.name} is connected to {client.address}:{connection.port}")
        return self.passed(f"{found[0].remote[0]}:{found[0].remote[1]} on {backend.name}")


def _accepted(host: Host, address: IPv4Address, port: int) -> Iterator[Socket]:
    return (one for one in sockets(host) if one.state == ESTABLISHED and one.remote == (address, port))


class Equal(CheckBase):
    """Two numbers, counted in different places, are the same.

    ``rauta.NAME`` is a counter's growth since the checks began, ``client.requests`` how many requests the checks have
    sent that must have reached a backend.
    """

    equal: Annotated[tuple[str, str], Field(examples=[["rauta.requests_routed", "client.requests"]])]

    @property
    def title(self) -> str:
        """The two."""
        return f"{self.equal[0]} = {self.equal[1]}"

    def run(self, context: Context) -> CheckResult:
        """Read both."""
        left, right = (_number(name, context) for name in self.equal)
        return self.passed(f"{left:,}") if left == right else self.failed(f"{left:,} and {right:,}")


def _number(name: str, context: Context) -> int:
    if name == "client.requests":
        return context.requests.sent
    contender, _, counter = name.partition(".")
    counters = context.running.counters()
    own = context.contender.partition("#")[0]  # a twin's numbers go by the contender's name
    if contender != own or counter not in counters:
        known = ", ".join(f"{own}.{known}" for known in counters)
        raise UsageError(f"reading {name!r}", "there is no such number", f"There are: client.requests, {known}.")
    return counters[counter] - context.started_with[context.contender].get(counter, 0)


class TcpRetransmits(CheckBase):
    """The client's kernel has sent no more than so many segments twice since the checks began, SYNs included."""

    tcp_retransmits: Annotated[int, Field(ge=0)]

    @property
    def title(self) -> str:
        """The bound."""
        return f"at most {self.tcp_retransmits} segments sent twice" if self.tcp_retransmits else "nothing sent twice"

    def run(self, context: Context) -> CheckResult:
        """Compare with the counters from before the first check, once all that was sent is acknowledged."""
        client = context.network.client
        with suppress(NotReady):  # what is never acknowledged is sent again, and so gets into the counters
            wait_until(lambda: _all_acknowledged(client), seconds=SETTLE_SECONDS, what="the client's acknowledgements")
        before, after = context.started_with[client.name], client.tcp_counters()
        grown = {name: after.get(name, 0) - before.get(name, 0) for name in (*TELLING, *RELATED)}
        seen = ", ".join(f"{name}: {grown[name]}" for name in TELLING)
        if max(grown[name] for name in TELLING) <= self.tcp_retransmits:
            return self.passed(seen)
        others = ", ".join(f"{name}: {grown[name]}" for name in RELATED if grown[name])
        return self.failed(f"{seen} ({others})" if others else seen)


def _all_acknowledged(host: Host) -> bool:
    """Whether no connection waits for an acknowledgement: neither of data, nor of the FIN that was its last word."""
    return all(one.timer != RETRANSMISSION for one in sockets(host))
