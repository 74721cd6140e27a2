"""What can be wrong on a host with an agent: a backend's, or the router's own with a fallback.

The server itself needs nothing: no VIP, no special port, no sysctl. What can hurt is what was set, or is listened on,
by others."""

from __future__ import annotations

from collections.abc import Iterator

from rauta.contract import ROUTER_WINDOW
from rauta.doctor import firewall, places
from rauta.doctor.findings import Said, Subject, check, fine, unknown, warning, wrong
from rauta.doctor.listeners import Listener, listeners
from rauta.doctor.places import Service
from rauta.network import rtnetlink
from rauta.network.rtnetlink import Direction, Filter

__all__: list[str] = []

_OURS = "rauta_agent"
_PRIORITY = _HANDLE = 1  # of the agent's filters, as rauta.bpf.attach_tc chooses them
_DIRECTIONS: tuple[Direction, ...] = ("ingress", "egress")
_OPTIONS = ("tcp_timestamps", "tcp_window_scaling", "tcp_sack")
_LOOSE = "net/netfilter/nf_conntrack_tcp_loose"


@check("agent.address", "agent")
def address(subject: Subject) -> Iterator[Said]:
    """The host has the address that the configuration gives the backend: encapsulated packets go there."""
    wanted = places.agent_address(subject)
    have = dict(rtnetlink.addresses())
    if wanted in have:
        yield fine(str(wanted), f"on {rtnetlink.link(have[wanted]).name}")
    else:
        known = ", ".join(str(one) for one in have) or "none"
        yield wrong(str(wanted), f"this host has {known}", "Is this the right host, namespace (--netns) and --backend?")


@check("agent.syncookies", "agent")
def syncookies(subject: Subject) -> Iterator[Said]:
    """net.ipv4.tcp_syncookies is not 0: the kernel makes no socket from a cookie otherwise, and the agent does not
    start."""
    value = places.sysctl("net/ipv4/tcp_syncookies")
    name = "net.ipv4.tcp_syncookies"
    if value is None:
        yield wrong(name, "there is no such setting", "Use a kernel built with CONFIG_SYN_COOKIES=y.")
    elif value == "0":
        yield wrong(name, value, f"sysctl -w {name}=1")
    else:
        yield fine(name, value)


@check("agent.options", "agent")
def options(subject: Subject) -> Iterator[Said]:
    """TCP's timestamps, window scaling and selective acknowledgements are on. The router offers them to clients, and
    the kernel makes no socket for a connection with an option that is off here: those clients' requests are lost."""
    for setting in _OPTIONS:
        name, value = f"net.ipv4.{setting}", places.sysctl(f"net/ipv4/{setting}")
        if value == "0":
            yield wrong(name, value, f"sysctl -w {name}=1")
        else:
            yield fine(name, str(value))


@check("agent.rfc1337", "agent")
def rfc1337(subject: Subject) -> Iterator[Said]:
    """net.ipv4.tcp_rfc1337 is 0. With 1, sockets in TIME_WAIT ignore the reset by which the agent clears them out of
    the way of a client that uses its port again: such connections are lost for as long as TIME_WAIT lasts, a minute."""
    name, value = "net.ipv4.tcp_rfc1337", places.sysctl("net/ipv4/tcp_rfc1337")
    if value == "1":
        yield wrong(name, value, f"sysctl -w {name}=0")
    else:
        yield fine(name, str(value))


@check("agent.listener", "agent")
def listener(subject: Subject) -> Iterator[Said]:
    """A server listens where the configuration says it does: on the backend's address, or on all, and on that port.
    What listens on 127.0.0.1 only gets nothing."""
    found = _reached(subject)
    for service in places.services(subject):
        place = f"{service.address}:{service.port}"
        if _serving(found, service):
            yield fine(service.vip, f"{place} is listened on")
            continue
        others = sorted({str(one) for one in listeners() if one.port == service.port})
        listen = f"Have it listen on {place}, or on 0.0.0.0:{service.port}."
        if others:
            yield wrong(service.vip, f"only {', '.join(others)} is listened on", listen)
        else:
            yield wrong(service.vip, f"nobody listens on port {service.port}", f"Start the server. {listen}")


@check("agent.mptcp", "agent")
def mptcp(subject: Subject) -> Iterator[Said]:
    """No server there speaks MPTCP: the kernel makes no socket for such a listener from a cookie. Programs in Go, since
    1.24, do unless they are told not to."""
    for service in places.services(subject):
        for one in _serving(_reached(subject), service):
            if one.mptcp:
                remedy = (
                    "Switch it off in the server (Go: GODEBUG=multipathtcp=0, nginx: no `multipath`), or for the whole "
                    "namespace: sysctl -w net.mptcp.enabled=0. Then start the server again."
                )
                yield wrong(service.vip, f"the listener on {one} speaks MPTCP", remedy)
            else:
                yield fine(service.vip, f"the listener on {one} speaks TCP")


@check("agent.window", "agent")
def window(subject: Subject) -> Iterator[Said]:
    """New connections of the server have a receive buffer for what the router's SYN-ACK has promised in its name:
    29,200 bytes, for which the kernel takes twice that (by default it has room for 64 KB). Otherwise the start of a
    large body is dropped, and sent again."""
    needed = 2 * ROUTER_WINDOW
    for service in places.services(subject):
        for one in _serving(_reached(subject), service):
            seen = f"the receive buffer of {one} has {one.receive_buffer} bytes"
            if one.receive_buffer >= needed:
                yield fine(service.vip, seen)
            else:
                remedy = (
                    f"Leave SO_RCVBUF alone in the server, or set {needed // 2} at least; and see that the second "
                    f"number of net.ipv4.tcp_rmem is {needed} at least (the default is 131072). "
                    "Then start the server again."
                )
                yield warning(service.vip, seen, remedy)


@check("agent.way-back", "agent")
def way_back(subject: Subject) -> Iterator[Said]:
    """There is a route to the clients: answers go straight to them. Judged by the default route, or by the client that
    is named with --client."""
    client = subject.client or places.ANY_CLIENT
    who = str(client) if subject.client else "clients"
    remedy = f"ip route add {subject.client or 'default'} via ..."
    try:
        route = rtnetlink.route_to(client)
    except OSError as error:
        say = wrong if subject.client else warning
        yield say(who, f"no route to {who}: {error.strerror}" if subject.client else "no default route", remedy)
        return
    through = rtnetlink.link(route.interface).name if route.interface else "nowhere"
    if route.kind == rtnetlink.UNICAST:
        yield fine(who, f"through {through}")
    else:
        yield wrong(who, "the route leads nowhere", remedy)


@check("agent.reverse-path", "agent")
def reverse_path(subject: Subject) -> Iterator[Said]:
    """Source validation (rp_filter) lets clients' packets in: they come in on the agent's interface, whichever way
    answers leave. Judged as agent.way-back."""
    client = subject.client or places.ANY_CLIENT
    for link in places.agent_links(subject):
        if reason := places.drops_source(link, client):
            settings = f"net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.{link.name}.rp_filter=0"
            say = wrong if subject.client or _has_default() else warning
            yield say(link.name, reason, f"sysctl -w {settings}; or route the clients through {link.name}")
        else:
            yield fine(link.name, f"packets from {client} are let in")


@check("agent.outer-source", "agent")
def outer_source(subject: Subject) -> Iterator[Said]:
    """Packets to `encapsulation.source` are routed to the router: errors about encapsulated packets go there, and path
    MTU discovery depends on them."""
    if subject.backend is None:
        return
    network = subject.known.encapsulation.source
    remedy = f"ip route add {network} via ROUTER, with the router's own address"
    try:
        route = rtnetlink.route_to(network.network_address)
    except OSError as error:
        yield wrong(str(network), str(error.strerror), remedy)
        return
    if route.kind != rtnetlink.UNICAST:
        yield wrong(str(network), "the route does not lead to another host", remedy)
    else:
        seen = f"through {route.gateway}" if route.gateway else "on the link"
        yield fine(str(network), f"{seen}, {rtnetlink.link(route.interface).name}")


@check("agent.firewall", "agent")
def invalid(subject: Subject) -> Iterator[Said]:
    """No firewall rule drops what connection tracking calls invalid (`ct state invalid drop`) while that is strict: the
    host never sees the SYN of a routed connection, so its first packet is invalid unless
    net.netfilter.nf_conntrack_tcp_loose is 1."""
    rules = firewall.dropping_invalid()
    loose = places.sysctl(_LOOSE)
    if rules is None:
        remedy = (
            "If there are rules for `ct state invalid` or `--ctstate INVALID`, see that nf_conntrack_tcp_loose is 1."
        )
        yield unknown("rules", "neither nft nor iptables-save is installed", remedy)
    elif not rules:
        yield fine("rules", "none drops invalid packets")
    for rule in rules or ():
        if loose == "0":
            remedy = "sysctl -w net.netfilter.nf_conntrack_tcp_loose=1, or accept the servers' ports before that rule"
            yield wrong(rule, "it drops invalid packets, and nf_conntrack_tcp_loose is 0", remedy)
        else:
            yield fine(
                rule, "it drops invalid packets; the first ones of connections are none (nf_conntrack_tcp_loose)"
            )


@check("agent.filters", "agent")
def filters(subject: Subject) -> Iterator[Said]:
    """Nobody else has a tc filter at the agent's place (clsact, priority 1): if it is of another kind, or has handle 1,
    the agent cannot be attached. Others with other priorities are none of its business."""
    for link in places.agent_links(subject):
        for direction in _DIRECTIONS:
            where = f"{link.name} {direction}"
            here = rtnetlink.filters(link.index, direction)
            others = dict.fromkeys(f"{one.kind} {one.name}".rstrip() for one in here if _is_in_the_way(one))
            for other in others:
                delete = f"tc filter del dev {link.name} {direction} pref {_PRIORITY}"
                remedy = f"Add it again with another priority, and remove it here: {delete}"
                yield wrong(where, f"a filter of others is there: {other}", remedy)
            if not others:
                yield fine(where, "nobody else is at the agent's priority")


def _is_in_the_way(one: Filter) -> bool:
    if one.priority != _PRIORITY or one.name.startswith(_OURS):
        return False
    return one.kind != "bpf" or one.handle == _HANDLE


def _reached(subject: Subject) -> list[Listener]:
    """The listeners that packets from the agent's interfaces get to: not those that are bound to other ones."""
    own = {link.index for link in places.agent_links(subject)}
    return [one for one in listeners() if not one.interface or one.interface in own]


def _serving(found: list[Listener], service: Service) -> list[Listener]:
    """Those that a connection to a service's address and port can be given to."""
    return [one for one in found if one.port == service.port and one.takes(service.address)]


def _has_default() -> bool:
    try:
        return rtnetlink.route_to(places.ANY_CLIENT).kind == rtnetlink.UNICAST
    except OSError:
        return False
