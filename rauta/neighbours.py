"""The MAC address that packets to a backend are sent to next.

XDP_TX sends a frame out of the interface that it came in on, with the Ethernet addresses that the program wrote: no
routing, no ARP. So the control plane asks the kernel beforehand, in the calling thread's network namespace: the routing
table for the next hop, the neighbour table for its MAC address. What the kernel has not resolved yet, it resolves for
one empty UDP datagram to that next hop's discard port (RFC 863).
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterable
from ipaddress import IPv4Address

from rauta import rtnetlink
from rauta.errors import RautaError

__all__ = ["next_hops"]

_DEADLINE = 2.0  # seconds; the kernel repeats an ARP request after one (retrans_time_ms, arp(7))
_PAUSE = 0.005  # seconds between two looks at the neighbour table
_DISCARD_PORT = 9
_MAC_BYTES = 6


def next_hops(addresses: Iterable[IPv4Address], interface: int) -> dict[IPv4Address, bytes]:
    """The MAC address, 6 bytes, of the next hop to each address, all reached through the interface of that index.

    RautaError if an address has no route, is this host's own, is reached through another interface, or if a next hop
    does not answer within two seconds; the error names every one that did not.
    """
    hop_of = {address: _next_hop(address, interface) for address in dict.fromkeys(addresses)}
    macs = _resolve(set(hop_of.values()), interface)
    silent = {address: hop for address, hop in hop_of.items() if hop not in macs}
    if silent:
        names = ", ".join(str(a) if a == hop else f"{a} (through {hop})" for a, hop in silent.items())
        raise RautaError(
            f"finding the MAC address of {names} on {socket.if_indextoname(interface)}",
            f"no answer to ARP within {_DEADLINE:g} s",
            "Is the backend up, on this network, and its address right?",
        )
    return {address: macs[hop] for address, hop in hop_of.items()}


def _next_hop(address: IPv4Address, interface: int) -> IPv4Address:
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
    if route.interface != interface:
        through, here = socket.if_indextoname(route.interface), socket.if_indextoname(interface)
        advice = "The router sends packets out of the interface they came in on: backends must be reached through it."
        raise RautaError(tried, f"it leaves through {through}, not through {here}", advice)
    return route.gateway or address


def _resolve(hops: set[IPv4Address], interface: int) -> dict[IPv4Address, bytes]:
    """The MAC addresses of these that are known, or become known within the deadline."""
    macs = _known(hops, interface)
    _provoke(hops - macs.keys())
    deadline = time.monotonic() + _DEADLINE
    while not hops <= macs.keys() and time.monotonic() < deadline:
        time.sleep(_PAUSE)
        macs = _known(hops, interface)
    return macs


def _known(hops: set[IPv4Address], interface: int) -> dict[IPv4Address, bytes]:
    """What the neighbour table holds of these. An interface without Ethernet addresses has none that fit."""
    table = rtnetlink.neighbours(interface)
    return {hop: mac for hop, mac in table.items() if hop in hops and len(mac) == _MAC_BYTES}


def _provoke(hops: set[IPv4Address]) -> None:
    """Has the kernel ask for the MAC addresses of these."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for hop in hops:
            with contextlib.suppress(OSError):  # the neighbour table will say whether it worked
                probe.sendto(b"", (str(hop), _DISCARD_PORT))
