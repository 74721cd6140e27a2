"""What can be wrong between a router and its backends, as far as packets from the router's host can tell."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from ipaddress import IPv4Address

from rauta import loading
from rauta.asking import pings
from rauta.asking.pings import Pong
from rauta.config import Backend
from rauta.contract import PATH_MTU, SHIM_LIFETIME
from rauta.doctor import probes
from rauta.doctor.findings import Said, Subject, check, fine, unknown, warning, wrong
from rauta.loading import interface_index
from rauta.network import neighbours
from rauta.network.neighbours import NextHop

__all__: list[str] = []

_SMALL = 84  # bytes of a ping as ping(8) sends it
_LEAP_SECONDS = 37  # by which TAI is ahead of UTC since 2017 (IERS Bulletin C)
_CLOSE = 2.0  # seconds
_ANSWERS = "answers of agents"


@check("backend.reachable", "between")
def reachable(subject: Subject) -> Iterator[Said]:
    """The way to each backend leads through one of the router's interfaces, and the next host on it answers ARP: its
    address is in every packet that the program sends."""
    if not subject.interfaces:
        yield unknown("backends", "none of the router's interfaces is named", "Name them: --interface eth0.")
        return
    indices = [interface_index(name) for name in subject.interfaces]
    hops = neighbours.look_up((backend.address for backend in _backends(subject)), indices)
    for backend in _backends(subject):
        hop = hops[backend.address]
        if isinstance(hop, NextHop):
            yield fine(backend.name, f"{backend.address} through {hop.mac.hex(':')}")
        else:
            yield wrong(backend.name, f"{hop.tried}: {hop.happened}", hop.advice)


@check("backend.server", "between")
def server(subject: Subject) -> Iterator[Said]:
    """The server of each backend takes TCP connections from here. (Clients' do not come that way: this says that it
    runs.)"""
    found = probes.connect((backend.address, backend.port) for backend in _backends(subject))
    for backend in _backends(subject):
        place = f"{backend.address}:{backend.port}"
        happened = found[backend.address, backend.port]
        if not happened:
            yield fine(backend.name, f"{place} is open")
        else:
            remedy = (
                f"Start it, and have it listen on {place}; `rauta doctor --backend {backend.name}` there says more."
            )
            yield wrong(backend.name, f"{place}: {happened}", remedy)


@check("backend.path-mtu", "between")
def path_mtu(subject: Subject) -> Iterator[Said]:
    """Packets of 1500 bytes reach each backend in one piece: encapsulated packets are never fragmented. Tried with
    pings of two sizes."""
    addresses = [backend.address for backend in _backends(subject)]
    found = probes.echo(addresses, (_SMALL, PATH_MTU))
    for backend in _backends(subject):
        came_back = found[backend.address]
        if PATH_MTU in came_back:
            yield fine(backend.name, f"a ping of {PATH_MTU} bytes came back")
        elif came_back:
            remedy = f"Raise the MTU to {PATH_MTU} on all links on the way, and on {backend.name}'s own."
            yield wrong(backend.name, f"a small ping came back, one of {PATH_MTU} bytes did not", remedy)
        else:
            yield unknown(backend.name, "no ping came back", "Have the host answer pings, or look at the path by hand.")


@check("backend.agent", "between")
def agent(subject: Subject) -> Iterator[Said]:
    """The agent of each backend runs, is reached over UDP, and has the same keys as the router, of both epochs: it is
    asked, and its answer is sealed (docs/recovery.md). It takes a section `recovery` in the configuration, here and
    there."""
    answers = yield from _asked(subject)
    if answers is None:
        return
    for backend in _backends(subject):
        pongs = answers[backend.address]
        missing = [epoch for epoch in pings.EPOCHS if epoch not in pongs]
        if not missing:
            yield fine(backend.name, f"answers, with the keys of both epochs, after {_milliseconds(pongs.values())}")
        elif pongs:
            remedy = f"Give {backend.name} the router's secrets, and restart its agent: new keys go to agents first."
            yield wrong(backend.name, f"it has another key of epoch {missing[0]}", remedy)
        else:
            yield wrong(backend.name, f"no answer within {pings.SECONDS:g} s", _silence(subject, backend))


@check("backend.clock", "between")
def clock(subject: Subject) -> Iterator[Said]:
    """The clocks of router and backends agree to within a minute, by TAI: an order to hand a connection over is good
    for 60 s. Half of that is a warning. Where NTP is right and the difference is 37 s, one kernel does not know how far
    TAI is ahead."""
    answers = yield from _asked(subject)
    if answers is None:
        return
    for backend in _backends(subject):
        pongs = list(answers[backend.address].values())
        if not pongs:
            yield unknown(backend.name, "no answer from the agent", "See backend.agent.")
            continue
        best = min(pongs, key=lambda pong: pong.accuracy)
        seen = f"{best.ahead:+.3f} s from here, ± {best.accuracy:.3f} s"
        if abs(best.ahead) + best.accuracy >= SHIM_LIFETIME:
            yield wrong(backend.name, seen, _set_clock(best, backend))
        elif abs(best.ahead) >= SHIM_LIFETIME / 2:
            yield warning(backend.name, seen, _set_clock(best, backend))
        else:
            yield fine(backend.name, seen)


def _backends(subject: Subject) -> Iterable[Backend]:
    return subject.known.backends().values()


def _asked(subject: Subject) -> Generator[Said, None, Mapping[IPv4Address, Mapping[int, Pong]] | None]:
    """What all agents answer, by address; None, after a finding that says why, if they cannot be asked."""
    recovery = subject.known.recovery
    if recovery is None:
        yield unknown(
            "agents", "they cannot be asked without `recovery`", "Add it on routers and agents: `recovery: {}`."
        )
        return None
    if subject.keys is None:
        remedy = "Name the secrets' file (`secrets: {file: ...}`), or ask the running router: rautactl doctor"
        yield unknown("agents", "they cannot be asked without the keys", remedy)
        return None
    if _ANSWERS not in subject.memory:
        addresses = [backend.address for backend in _backends(subject)]
        with loading.open_object("ingress") as described:
            subject.memory[_ANSWERS] = pings.ping(addresses, recovery.port, subject.keys, described.btf)
    found: Mapping[IPv4Address, Mapping[int, Pong]] = subject.memory[_ANSWERS]
    return found


def _milliseconds(pongs: Iterable[Pong]) -> str:
    return f"{min(pong.accuracy for pong in pongs) * 2000:.1f} ms"


def _silence(subject: Subject, backend: Backend) -> str:
    port = subject.known.recovery.port if subject.known.recovery else 0
    return (
        f"On {backend.name}: does the agent run (rauta agent), with the same `recovery` and the router's secrets? "
        f"Between: is UDP port {port} let through both ways, without address translation?"
    )


def _set_clock(pong: Pong, backend: Backend) -> str:
    ntp = f"Run an NTP client (chrony) here and on {backend.name}."
    if abs(abs(pong.ahead) - _LEAP_SECONDS) < _CLOSE:
        who = "here" if pong.ahead > 0 else f"on {backend.name}"
        return (
            f"The kernel {who} does not know how far TAI is ahead of UTC: `leapsectz right/UTC` in chrony.conf. {ntp}"
        )
    return ntp
