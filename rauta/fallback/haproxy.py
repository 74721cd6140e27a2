"""Configurations for HAProxy (2.6 or newer) that route as RAUTA does, and the whole one of a fallback.

HAProxy compares and sends on what the client wrote. A fallback must not send on what another server may read
differently: it refuses with 400 what servers disagree on, and normalises what they would (see rauta.fallback.nginx,
which does the same), before it looks for a route.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from importlib import resources
from ipaddress import IPv4Address
from itertools import islice
from string import Template

from rauta.config import Cluster, Config, Route, Vip
from rauta.fallback.routes import by_host, cluster_names, vip_names
from rauta.files.paths import has_other_spellings

__all__ = ["REFUSALS", "backends", "configuration", "frontend"]

_TEMPLATE = Template((resources.files("rauta.fallback") / "haproxy.cfg.in").read_text())
_REFUSE = {404: "refuse-404", "reset": "refuse-reset", "fallback": "refuse-404"}
_MAX_WEIGHT = 256
_WORDS = 50  # of one condition: a line has at most 64
_SPARE_FILES = 200
_MOST_CONNECTIONS = 500_000
_FILES = 2  # that a connection takes: its own, and the one to the backend

REFUSALS = """\
backend refuse-404
    http-request return status 404

backend refuse-reset
    http-request reject"""
"""The backends that `frontend` sends to what no route names."""

_GUARDS = r"""    acl has-host req.fhdr_cnt(host) gt 0
    acl good-host req.fhdr(host) -m reg '^([A-Za-z0-9_-][A-Za-z0-9._-]*(:[0-9]+)?)?$'
    acl has-length req.fhdr_cnt(content-length) gt 0
    acl good-length req.fhdr(content-length) -m reg '^[0-9]{1,18}$'
    acl has-encoding req.fhdr_cnt(transfer-encoding) gt 0
    acl good-encoding req.fhdr(transfer-encoding) -i -m str chunked
    acl absolute url -m reg '^[A-Za-z][A-Za-z0-9+.-]*://'
    acl bad-path path -m reg '%(2[Ff]|5[Cc]|[01][0-9A-Fa-f]|7[Ff])|\\|%([^0-9A-Fa-f]|.[^0-9A-Fa-f]|.?$)'
    acl bad-path path -m reg '/(\.|%2[Ee]){1,2}(;|%3[Bb])'
    acl other-path path -m reg '/(/|\.\.?(/|$))|%(2[DdEe]|3[0-9]|[46][1-9A-Fa-f]|[57][0-9Aa]|5[Ff]|7[Ee])'
    http-request deny status 400 unless { req.ver 1.0 1.1 2.0 }
    http-request deny status 400 unless { method -m reg '^[A-Z_-]+$' }
    http-request deny status 405 if METH_CONNECT
    http-request deny status 400 if has-host !good-host
    http-request deny status 400 if { req.fhdr_cnt(host) gt 1 } or { req.fhdr(host) -m sub .. }
    http-request deny status 400 if has-length !good-length
    http-request deny status 501 if has-encoding !good-encoding
    http-request deny status 400 if { req.fhdr_cnt(transfer-encoding) gt 1 }
    http-request set-uri %[pathq] if absolute
    http-request deny status 400 unless { path -m beg / }
    http-request deny status 400 if bad-path or { url -m reg '#|[^!-~]' }
    http-request normalize-uri percent-decode-unreserved strict if other-path
    http-request normalize-uri path-merge-slashes if other-path
    http-request normalize-uri path-strip-dot if other-path
    http-request normalize-uri path-strip-dotdot full if other-path
    http-request del-header Upgrade unless { req.fhdr(upgrade) -i -m str websocket }
    http-request del-header HTTP2-Settings"""


_ONE_SPELLING = (
    "    http-request deny status 400 if { path -m reg "
    r"""'%(.[a-f]|[a-f].|2[14679ABCabc]|28|29|3[ABDabd]|40)|["<>^`{|}]|\[|\]' }"""
)


def configuration(config: Config, address: IPv4Address, user: str, group: str) -> str:
    """The haproxy.cfg of a fallback that listens on an address, on the port of each VIP."""
    ports = config.fallback_ports()
    return _TEMPLATE.substitute(
        user=user,
        group=group,
        connections=connections(),
        frontends="\n\n".join(
            frontend(config, vip, f"{address}:{ports[vip.name]} backlog 4096", _guards(vip), _host(vip))
            for vip in config.vips
        ),
        backends=backends(config),
        refusals=REFUSALS,
    )


def _guards(vip: Vip) -> str:
    """HAProxy compares bytes: where a route can be spelled otherwise, requests must spell theirs as routes do."""
    strict = any(has_other_spellings(route.path) for route in vip.routes)
    return f"{_GUARDS}\n{_ONE_SPELLING}" if strict else _GUARDS


def _host(vip: Vip) -> str:
    """HTTP/1.0 may come without a Host, but is sent on as HTTP/1.1: the client has asked the VIP."""
    return f"    http-request set-header Host {vip.address}:{vip.port} if !has-host"


# ---- what any HAProxy needs that is to route as RAUTA does ----------------------------------------------


def connections() -> int:
    """How many it may have at a time: it refuses to start where it may not open as many files."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if files == resource.RLIM_INFINITY:
        return _MOST_CONNECTIONS
    return min(max(files // _FILES - _SPARE_FILES, 1), _MOST_CONNECTIONS)


def frontend(config: Config, vip: Vip, bind: str, before: str = "", after: str = "") -> str:
    """A VIP. `bind`: where it listens, with options; `before` and `after`: rules around the look at the host."""
    parts = [f"frontend {vip_names(config)[vip.name]}", f"    bind {bind}", before, *_hosts(vip), after]
    return "\n".join(filter(None, [*parts, *_choices(config, vip)]))


def _hosts(vip: Vip) -> Iterator[str]:
    """Which of the VIP's hosts a request is for, in txn.named: what comes later counts.

    So wildcards come first, the longest of them last, and then the exact names.
    """
    named = [host for host in by_host(vip) if host is not None]
    if named:
        yield "    http-request set-var(txn.host) req.fhdr(host),field(1,:),rtrim(.),lower"
    for host in sorted((host for host in named if host.startswith("*")), key=len):
        ends = host[1:].replace(".", r"\.")
        yield f"    http-request set-var(txn.named) str({host}) if {{ var(txn.host) -m reg '^.+{ends}$' }}"
    exact = (host for host in named if not host.startswith("*"))
    while some := list(islice(exact, _WORDS)):
        yield f"    http-request set-var(txn.named) var(txn.host) if {{ var(txn.host) -m str {' '.join(some)} }}"


def _choices(config: Config, vip: Vip) -> Iterator[str]:
    """Routes in the order in which they are tried: the first that matches counts."""
    hosts, names = by_host(vip), cluster_names(config)
    others = "!{ var(txn.named) -m found }" if len(hosts) > 1 else ""
    for host, routes in hosts.items():
        where = f"{{ var(txn.named) -m str {host} }}" if host else others
        for route in routes.routes:
            condition = " ".join(filter(None, (where, _method(route), _path(route))))
            yield f"    use_backend {names[route.cluster]}" + (f" if {condition}" if condition else "")
    yield f"    default_backend {_REFUSE[vip.no_route]}"


def _method(route: Route) -> str:
    return f"{{ method {route.method} }}" if route.method else ""


def _path(route: Route) -> str:
    if route.exact is not None:
        return f"{{ path -m str {_quoted(route.exact)} }}"
    prefix = route.path.rstrip("/")
    return f"{{ path,concat(/) -m beg {_quoted(prefix + '/')} }}" if prefix else ""


def backends(config: Config, options: str = "") -> str:
    """The clusters. `options`: of each server."""
    names = cluster_names(config)
    return "\n\n".join(_backend(cluster, names[cluster.name], options) for cluster in config.clusters)


def _backend(cluster: Cluster, name: str, options: str) -> str:
    lines = [f"backend {name}", "    balance roundrobin"]
    weights = _weights(cluster)
    lines += [
        f"    server {one.name} {one.address}:{one.port} weight {weights[one.name]} {options}".rstrip()
        for one in cluster.backends
    ]
    return "\n".join(lines)


def _weights(cluster: Cluster) -> dict[str, int]:
    """By backend, in the same proportions within what HAProxy knows; none that has some loses it all."""
    most = max([_MAX_WEIGHT, *(one.weight for one in cluster.backends)])
    return {one.name: one.weight and max(1, one.weight * _MAX_WEIGHT // most) for one in cluster.backends}


def _quoted(text: str) -> str:
    """As one word of HAProxy's configuration."""
    return "'" + text.replace("'", r"'\''") + "'"
