r"""Configurations for nginx (1.21.1 or newer) that route as RAUTA does, and the whole one of a fallback.

nginx compares decoded, normalised paths and, left alone, sends on what the client wrote. A fallback must not send on
what it did not match: another server may read it differently. So its servers look at the path as it was written first:

* What servers disagree on (an encoded slash, backslash or control character, a backslash, "#") is refused with 400.
* What they normalise (dot segments, empty segments, encoded letters, digits, "-", ".", "_", "~") is sent on normalised:
  as it was matched.
* Everything else is sent on as it came.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from ipaddress import IPv4Address
from itertools import chain
from pathlib import Path
from string import Template
from urllib.parse import unquote_to_bytes

from rauta.config import Cluster, Config, Route, Vip
from rauta.fallback.routes import HostRoutes, by_host, cluster_names, is_drained

__all__ = ["configuration", "servers", "upstreams"]

_TEMPLATE = Template((resources.files("rauta.fallback") / "nginx.conf.in").read_text())
_EXACTLY, _BELOW = "=", "^~"
_KEPT_CONNECTIONS = 64
_DISAGREED = (
    r"^[^?]*(?:%(?:2[Ff]|5[Cc]|[01][0-9A-Fa-f]|7[Ff])|\\"
    r"|/(?:\.|%2[Ee]){1,2}(?:;|%3[Bb]))|#"  # "." or ".." with a parameter, which some servers drop first
)
_NORMALISED = (
    r"^[^?]*(?:/(?:/|\.\.?(?:[/?]|$))"  # an empty segment, "." or ".."
    r"|%(?:2[DdEe]|3[0-9]|[46][1-9A-Fa-f]|[57][0-9Aa]|5[Ff]|7[Ee]))"  # unreserved characters (RFC 3986, 2.3)
)
_HOST = r"^[A-Za-z0-9_-][A-Za-z0-9._-]*(?::[0-9]+)?$"
_HASH_ENTRY = 64  # bytes that an entry of nginx's hash of server names takes beside the name, generously
_HASH_BUCKET = 512  # holds the longest host name
_LEAST_HASH = 1 << 14
_UNAVAILABLE = "return 503;"


def configuration(config: Config, address: IPv4Address, folder: Path, user: str) -> str:
    """The nginx.conf of a fallback that listens on an address, on the port of each VIP.

    `folder` is for its few files; `user`: what its workers run as, in nginx's form ("nobody nogroup").
    """
    ports = config.fallback_ports()
    hosts = sum(len(by_host(vip)) for vip in config.vips)
    return _TEMPLATE.substitute(
        folder=folder,
        user=user,
        hash_bucket=_HASH_BUCKET,
        hash_size=max(hosts * (_HASH_ENTRY + _HASH_BUCKET), _LEAST_HASH),
        disagreed=_quoted(f"~{_DISAGREED}"),
        normalised=_quoted(f"~{_NORMALISED}"),
        host=_quoted(f"~{_HOST}"),
        upstreams=upstreams(config, _KEPT_CONNECTIONS),
        servers="\n".join(
            text
            for vip in config.vips
            for text in servers(config, vip, f"{address}:{ports[vip.name]}", "backlog=4096", _guards(vip))
        ),
    )


def _guards(vip: Vip) -> str:
    """What a server does before it looks for a location; the template's maps say what these variables are."""
    return f"""\
        set $vip {vip.address}:{vip.port};
        if ($refused) {{ return 400; }}
        if ($normalised) {{ rewrite ^ $uri break; }}"""


# ---- what any nginx needs that is to route as RAUTA does ------------------------------------------------


def upstreams(config: Config, keepalive: int) -> str:
    """The clusters. `keepalive`: how many idle connections to each a worker keeps."""
    names = cluster_names(config)
    return "\n".join(_upstream(cluster, names[cluster.name], keepalive) for cluster in config.clusters)


def _upstream(cluster: Cluster, name: str, keepalive: int) -> str:
    """nginx wants a server in each: a cluster without any that may be used has one that is down."""
    lines = [
        f"server {one.address}:{one.port} weight={one.weight} max_fails=0;" for one in cluster.backends if one.weight
    ]
    lines = [*(lines or ["server 127.0.0.1 down;"]), f"keepalive {keepalive};"]
    return "\n".join([f"    upstream {name} {{", *(f"        {line}" for line in lines), "    }"])


def servers(config: Config, vip: Vip, listen: str, options: str = "", guards: str = "") -> Iterator[str]:
    """A server for each host name of a VIP, the one for any other first: it is the default.

    `options`: of the listening socket; `guards`: what comes before the locations.
    """
    answers = _Answers.of(config, vip)
    for host, routes in by_host(vip).items():
        lines = [f"listen {listen} default_server {options};" if host is None else f"listen {listen};"]
        lines += [f'server_name "{host or ""}";']
        own = "\n".join(f"        {line}" for line in lines)
        locations = "\n".join(f"        {line}" for line in _locations(vip, routes, answers))
        yield "\n".join(filter(None, ("    server {", own, guards, locations, "    }")))


def _locations(vip: Vip, routes: HostRoutes, answers: _Answers) -> Iterator[str]:
    """One for each path that routes name, one for what is below each prefix; the last for the rest."""
    seen: dict[tuple[str, bytes], str] = {}
    for kind, path in chain.from_iterable(map(_places, routes.routes)):
        seen[(kind, unquote_to_bytes(path))] = path
    for (kind, decoded), path in sorted(seen.items(), key=_nginx_order):
        chosen = routes.choices(path) if kind == _EXACTLY else routes.choices(path.removesuffix("/"), below=True)
        yield f"location {kind} {_quoted(_text(decoded))} {{ {answers.words(chosen)} }}"
    yield f"location / {{ {answers.words(routes.choices('/', below=True))} }}"


def _nginx_order(place: tuple[tuple[str, bytes], str]) -> tuple[bytes, bool]:
    """In which nginx sorts locations, by insertion: in any other order 65,536 routes take it minutes."""
    (kind, decoded), _ = place
    return decoded.replace(b"/", b"\0"), kind == _BELOW


def _places(route: Route) -> Iterator[tuple[str, str]]:
    """What a route takes apart from the last location: places by kind and path.

    Beside a location that ends in a slash there is one without it: nginx would redirect requests for that.
    """
    if route.path != "/" or route.exact is not None:
        yield _EXACTLY, route.path
    if route.path == "/":
        return
    if route.exact is None:
        yield _BELOW, f"{route.path}/"
    elif route.path.endswith("/"):
        yield _EXACTLY, route.path.removesuffix("/")


@dataclass(frozen=True)
class _Answers:
    """What a VIP's locations may do."""

    names: Mapping[str, str]
    """of the clusters, here"""
    drained: frozenset[str]
    """those without a backend that may be used"""
    refuse: str
    """what no route names"""

    @classmethod
    def of(cls, config: Config, vip: Vip) -> _Answers:
        drained = frozenset(cluster.name for cluster in config.clusters if is_drained(config, cluster.name))
        return cls(cluster_names(config), drained, "return 444;" if vip.no_route == "reset" else "return 404;")

    def words(self, choices: Iterable[tuple[str | None, str]]) -> str:
        """What happens at a location, by method."""
        by_method = dict(choices)
        default = by_method.pop(None, None)
        if not by_method:
            return self._go(default)
        words = [f"set $cluster {self.names[default]};" if default else "set $cluster '';"]
        words += [
            f"if ($request_method = {method}) {{ set $cluster {self.names[cluster]}; }}"
            for method, cluster in by_method.items()
        ]
        if default is None:
            words.append(f"if ($cluster = '') {{ {self.refuse} }}")
        for cluster in dict.fromkeys(filter(None, (*by_method.values(), default))):
            if cluster in self.drained:
                words.append(f"if ($cluster = {self.names[cluster]}) {{ {_UNAVAILABLE} }}")
        return " ".join([*words, "proxy_pass http://$cluster;"])

    def _go(self, cluster: str | None) -> str:
        """Whatever the method."""
        if cluster is None:
            return self.refuse
        return _UNAVAILABLE if cluster in self.drained else f"proxy_pass http://{self.names[cluster]};"


def _text(raw: bytes) -> str:
    """Bytes as text that becomes the same bytes again when the configuration is written."""
    return raw.decode(errors="surrogateescape")


def _quoted(text: str) -> str:
    """As a word of nginx's configuration."""
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'
