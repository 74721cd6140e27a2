"""What can be wrong on a router's host: XDP on its interfaces, and the host's own stack in the way of the VIPs.

Facts about veth are from the kernel's drivers/net/veth.c, where each was tried.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

from rauta.bpf import program_name
from rauta.config import Vip
from rauta.doctor import places
from rauta.doctor.drivers import XdpFeature, xdp_features
from rauta.doctor.findings import Said, Subject, check, fine, unknown, warning, wrong
from rauta.doctor.listeners import listeners
from rauta.network import ethtool, rtnetlink
from rauta.network.rtnetlink import Link

__all__: list[str] = []

_OURS = "rauta_ingress"
_VETH = "veth"


@check("xdp.named", "router")
def named(subject: Subject) -> Iterator[Said]:
    """It is known which interfaces the router is on: by the configuration (`interfaces`), or by --interface."""
    if subject.interfaces:
        yield fine("interfaces", ", ".join(subject.interfaces))
    else:
        yield unknown("interfaces", "none is named", "Name them: `interfaces: [eth0]`, or --interface eth0.")


@check("xdp.driver", "router")
def driver(subject: Subject) -> Iterator[Said]:
    """The driver runs XDP programs itself (native mode), and with several interfaces also sends what a program on
    another one redirects to it. In generic mode, which every interface has, they run later, at the cost of more CPU
    time."""
    for link in places.links(subject):
        seen = _driver(link)
        try:
            can = xdp_features(link.index)
        except OSError:
            yield unknown(link.name, f"{seen}: this kernel cannot tell", "`rauta run` says which mode it got.")
            continue
        yield _native(subject, link, seen, can)


def _driver(link: Link) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            return f"driver {ethtool.driver(control, link.name)}"
        except OSError:  # such as the loopback
            return "a driver without a name"


def _native(subject: Subject, link: Link, seen: str, can: XdpFeature) -> Said:
    generic = "Another network card would be faster; or name the mode: `mode: generic`."
    wanted = subject.config.mode if subject.config is not None else "best-effort"
    if wanted == "generic" or link.xdp == "generic":
        return fine(link.name, f"{seen}, XDP in generic mode")
    if not can & XdpFeature.BASIC:
        say = wrong if wanted == "native" else warning
        return say(link.name, f"{seen} has no native XDP", generic)
    if len(subject.interfaces) > 1 and not can & XdpFeature.XMIT and link.kind != _VETH:
        return wrong(link.name, f"{seen} does not send for programs on other interfaces", "Use `mode: generic`.")
    return fine(link.name, f"{seen}, native XDP")


@check("xdp.foreign", "router")
def foreign(subject: Subject) -> Iterator[Said]:
    """No program of somebody else's is on the interface: there is room for one, and RAUTA replaces none."""
    for link in places.links(subject):
        if not link.xdp:
            yield fine(link.name, "no program")
            continue
        name = program_name(link.xdp_program)
        seen = f"program {link.xdp_program} ({name or 'name unknown'}), {link.xdp}"
        if name == _OURS:
            yield fine(link.name, f"{seen}: RAUTA's")
        else:
            yield wrong(link.name, seen, f"If nobody needs it: ip link set dev {link.name} xdp off")


@check("xdp.peer", "router")
def peer(subject: Subject) -> Iterator[Said]:
    """A veth interface with native XDP has a program at its other end, too: what the router sends back lies in that
    end's ring otherwise, until something else wakes it. One that does nothing but XDP_PASS will do."""
    for link in places.links(subject):
        if link.kind != _VETH or _is_generic(subject, link):
            continue
        other = _peer(link)
        if other is None:
            seen = "its other end is in a namespace that cannot be looked into"
            yield unknown(link.name, seen, "See there that an XDP program is on it: ip link show.")
        elif other.xdp in ("native", "offloaded"):
            yield fine(link.name, f"XDP on its other end, {other.name}")
        else:
            remedy = f"Attach a program that returns XDP_PASS to {other.name}, natively; or use `mode: generic`."
            yield wrong(link.name, f"no native XDP on its other end, {other.name}", remedy)


@check("xdp.senders", "router")
def senders(subject: Subject) -> Iterator[Said]:
    """Whoever sends into a veth interface with XDP finishes its checksums itself. Between veth interfaces they are left
    out otherwise, the router's program passes the packets on as they are, and backends drop them."""
    for link in places.links(subject):
        if link.kind != _VETH:
            continue
        remedy = "ethtool -K {} tx off"
        if link.peer_namespace is not None or (other := _peer(link)) is None:
            seen = "it cannot be seen from here what is at its other end"
            yield unknown(link.name, seen, f"On whoever sends into it: {remedy.format('DEV')}")
            continue
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            offloaded = ethtool.setting(control, other.name, ethtool.GET_TX_CHECKSUMS)
        if offloaded:
            yield wrong(link.name, f"{other.name} leaves checksums to others", remedy.format(other.name))
        else:
            yield fine(link.name, f"{other.name} finishes checksums")


@check("xdp.gro", "router")
def gro(subject: Subject) -> Iterator[Said]:
    """In generic mode GRO is off: XDP comes after it there, and XDP_TX does not cut again what it has merged. The
    router sees to that when it starts; somebody may have turned it on since. (The kernel itself sees to LRO.)"""
    for link in places.links(subject):
        if link.xdp != "generic":
            continue
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            merged = ethtool.setting(control, link.name, ethtool.GET_GRO)
        if merged:
            yield wrong(link.name, "GRO is on, and XDP in generic mode", f"ethtool -K {link.name} gro off")
        else:
            yield fine(link.name, "GRO is off")


@check("vip.address", "router")
def vip_address(subject: Subject) -> Iterator[Said]:
    """No interface of this host has a VIP's address: VIPs are routed to the router, not owned by it. The host's own
    stack would answer clients whenever the program is not attached, and drop, as from itself, what backends send
    through here in the VIP's name."""
    have = dict(rtnetlink.addresses())
    for vip in _by_address(subject).values():
        index = have.get(vip.address)
        if index is None:
            yield fine(vip.name, f"{vip.address} is no address of this host")
        else:
            name = socket.if_indextoname(index)
            remedy = f"ip address del {vip.address} dev {name}; the network is to route it here instead."
            yield warning(vip.name, f"{name} has {vip.address}", remedy)


@check("vip.listener", "router")
def vip_listener(subject: Subject) -> Iterator[Said]:
    """No program of this host listens on a VIP: XDP takes the packets before it, so it never gets a connection."""
    taken = {(one.address, one.port): one for one in listeners()}
    for vip in subject.known.vips:
        if (vip.address, vip.port) in taken:
            remedy = "End it; a fallback listens on the host's own address (docs/fallback.md), a server on a backend."
            yield warning(vip.name, f"somebody listens on {vip.address}:{vip.port}", remedy)
        else:
            yield fine(vip.name, f"nobody listens on {vip.address}:{vip.port}")


@check("vip.reverse-path", "router")
def vip_reverse_path(subject: Subject) -> Iterator[Said]:
    """Where this host is the backends' gateway, it forwards what they send in the VIP's name: source validation
    (rp_filter) must not find that such packets come in on the wrong interface."""
    if places.sysctl("net/ipv4/ip_forward") != "1":
        yield fine("rp_filter", "this host forwards nothing")
        return
    for link in places.links(subject):
        for vip in _by_address(subject).values():
            if reason := places.drops_source(link, vip.address):
                remedy = (
                    f"If backends send through {link.name}: sysctl -w net.ipv4.conf.{link.name}.rp_filter=0 "
                    "net.ipv4.conf.all.rp_filter=0"
                )
                yield warning(f"{link.name} {vip.name}", reason, remedy)
            else:
                yield fine(f"{link.name} {vip.name}", f"packets from {vip.address} are forwarded")


@check("encapsulation.source", "router")
def outer_source(subject: Subject) -> Iterator[Said]:
    """This host has no address out of `encapsulation.source`: errors about encapsulated packets are sent there, and its
    own stack would take them. The network routes that prefix to the router."""
    network = subject.known.encapsulation.source
    own = [(address, socket.if_indextoname(index)) for address, index in rtnetlink.addresses()]
    owners = [f"{address} ({name})" for address, name in own if address in network]
    if owners:
        yield wrong(
            str(network), f"this host has {', '.join(owners)}", "Choose a prefix of which nobody has an address."
        )
    else:
        yield fine(str(network), "this host has no address of it")


def _by_address(subject: Subject) -> dict[object, Vip]:
    """The first VIP of each address."""
    found: dict[object, Vip] = {}
    for vip in subject.known.vips:
        found.setdefault(vip.address, vip)
    return found


def _is_generic(subject: Subject, link: Link) -> bool:
    return link.xdp == "generic" or (subject.config is not None and subject.config.mode == "generic")


def _peer(link: Link) -> Link | None:
    """The other end of a veth interface, in whichever namespace; None if the kernel does not let us look."""
    try:
        return rtnetlink.link(link.peer, link.peer_namespace)
    except OSError:
        return None
