"""Through which interface, and to which MAC address, packets to a backend are sent next.

XDP sends a frame with the Ethernet addresses that the program wrote, out of the interface that it came in on or one
that the program names: no routing, no ARP. So the control plane asks the kernel beforehand, in the calling thread's
network namespace: the routing table for the next hop, the neighbour table for its MAC address. What the kernel has not
resolved yet, it resolves for one empty UDP datagram to that next hop's discard port (RFC 863).
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address

from rauta.errors import RautaError
from rauta.network import rtnetlink

__all__ = ["NextHop", "hardware_address", "look_up", "next_hops", "own_address"]

_DEADLINE = 2.0  # seconds; the kernel repeats an ARP request after one (retrans_time_ms, arp(7))
_PAUSE, _LONGEST_PAUSE = 0.005, 0.1  # seconds between two looks at the neighbour table: twice as long each time
_DISCARD_PORT = 9
_MAC_BYTES = 6
_SIOCGIFADDR, _SIOCGIFHWADDR = 0x8915, 0x8927  # netdevice(7); linux/sockios.h
_IFREQ = struct.Struct("16sH14x8x")  # struct ifreq: name, then struct sockaddr: family, address


@dataclass(frozen=True, slots=True)
class NextHop:
    """Where packets to an address go next: to `mac`, 6 bytes, through the interface of index `interface`."""

    mac: bytes
    interface: int


@dataclass(frozen=True, slots=True)
class _Hop:
    """A next hop whose MAC address is still to be found."""

    address: IPv4Address
    interface: int


def next_hops(
    addresses: Iterable[IPv4Address], interfaces: Collection[int], *, strict: bool = True
) -> dict[IPv4Address, NextHop]:
    """The next hop to each address, all reached through one of the interfaces with these indices.

    RautaError if an address has no route, is this host's own, is reached through another interface, or if a next hop
    does not answer within two seconds; the error names every one that did not. Unless `strict` is False: then such
    addresses are left out.
    """
    hop_of = {}
    for address in dict.fromkeys(addresses):
        try:
            hop_of[address] = _next_hop(address, interfaces)
        except RautaError:
            if strict:
                raise
    macs = _resolve(set(hop_of.values()))
    silent = {address: hop for address, hop in hop_of.items() if hop not in macs}
    if silent and strict:
        raise _no_answer(silent)
    return {address: NextHop(macs[hop], hop.interface) for address, hop in hop_of.items() if hop in macs}


def look_up(addresses: Iterable[IPv4Address], interfaces: Collection[int]) -> dict[IPv4Address, NextHop | RautaError]:
    """The next hop to each address, or what is wrong with the way there: see `next_hops`. It takes no longer."""
    found: dict[IPv4Address, NextHop | RautaError] = {}
    hop_of: dict[IPv4Address, _Hop] = {}
    for address in dict.fromkeys(addresses):
        try:
            hop_of[address] = _next_hop(address, interfaces)
        except RautaError as error:
            found[address] = error
    macs = _resolve(set(hop_of.values()))
    for address, hop in hop_of.items():
        found[address] = NextHop(macs[hop], hop.interface) if hop in macs else _no_answer({address: hop})
    return found


def hardware_address(interface: int) -> bytes:
    """The MAC address, 6 bytes, of the interface of that index. RautaError if there is no such interface."""
    try:
        return _asked(_SIOCGIFHWADDR, interface)[18 : 18 + _MAC_BYTES]
    except OSError as error:
        advice = "Is it still in this network namespace?"
        raise RautaError(f"reading the MAC address of interface {interface}", str(error.strerror), advice) from error


def own_address(interface: int, towards: Iterable[IPv4Address]) -> IPv4Address:
    """This host's own address: the first one of the interface of that index.

    If that has none, the one from which the kernel sends to the first of the addresses `towards`. RautaError if there
    is neither.
    """
    try:
        return IPv4Address(_asked(_SIOCGIFADDR, interface)[20:24])
    except OSError as error:
        for address in towards:
            with contextlib.suppress(OSError):
                if source := rtnetlink.route_to(address).source:
                    return source
        tried = f"looking for this host's own address on {socket.if_indextoname(interface)}"
        raise RautaError(tried, str(error.strerror), "Give it one: ip address add ...") from error


def _asked(request: int, interface: int) -> bytes:
    """What a request of netdevice(7) says of an interface."""
    name = socket.if_indextoname(interface)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        return fcntl.ioctl(control, request, _IFREQ.pack(name.encode(), 0))


def _next_hop(address: IPv4Address, interfaces: Collection[int]) -> _Hop:
    """The gateway to an address, or the address itself where it is on the link."""
    tried = f"looking for the route to {address}"
    try:
        route = rtnetlink.route_to(address)
    except OSError as error:
        raise RautaError(tried, str(error.strerror), f"Add one: ip route add {address} ...") from error
    if route.kind != rtnetlink.UNICAST:
        raise RautaError(
            tried, "it does not lead to another host", "Run the backend in a host or namespace of its own."
        )
    if route.interface not in interfaces:
        through = socket.if_indextoname(route.interface)
        here = " or ".join(socket.if_indextoname(interface) for interface in interfaces)
        advice = (
            f"Attach the router to {through}, too: packets to backends leave through interfaces that it is attached to."
        )
        raise RautaError(tried, f"it leaves through {through}, not through {here}", advice)
    return _Hop(route.gateway or address, route.interface)


def _no_answer(silent: Mapping[IPv4Address, _Hop]) -> RautaError:
    names = ", ".join(_named(address, hop) for address, hop in silent.items())
    return RautaError(
        f"finding the MAC address of {names}",
        f"no answer to ARP within {_DEADLINE:g} s",
        "Is the backend up, on this network, and its address right?",
    )


def _named(address: IPv4Address, hop: _Hop) -> str:
    through = "" if address == hop.address else f" (through {hop.address})"
    return f"{address}{through} on {socket.if_indextoname(hop.interface)}"


def _resolve(hops: set[_Hop]) -> dict[_Hop, bytes]:
    """The MAC addresses of these that are known, or become known within the deadline."""
    macs = _known(hops)
    _provoke(hops - macs.keys())
    deadline, pause = time.monotonic() + _DEADLINE, _PAUSE
    while not hops <= macs.keys() and time.monotonic() < deadline:
        time.sleep(pause)
        macs, pause = _known(hops), min(2 * pause, _LONGEST_PAUSE)
    return macs


def _known(hops: set[_Hop]) -> dict[_Hop, bytes]:
    """What the neighbour tables hold of these. An interface without Ethernet addresses has none that fit."""
    tables = {interface: rtnetlink.neighbours(interface) for interface in {hop.interface for hop in hops}}
    found = {hop: tables[hop.interface].get(hop.address, b"") for hop in hops}
    return {hop: mac for hop, mac in found.items() if len(mac) == _MAC_BYTES}


def _provoke(hops: set[_Hop]) -> None:
    """Has the kernel ask for the MAC addresses of these."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for hop in hops:
            with contextlib.suppress(OSError):  # the neighbour table will say whether it worked
                probe.sendto(b"", (str(hop.address), _DISCARD_PORT))
