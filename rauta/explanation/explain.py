"""What a router does with one request, and why: the decision of bpf/route.h, told step by step.

    config = load_config("shop.yaml")
    request = parse_request("GET http://shop.test/api/x?y")
    explanation = explain(config, request.segment, vip=find_vip(config, request))
    explanation.verdict                        # "ROUTED_FIRST"
    explanation.route.number                   # 0: the file's first route

It is about a connection's first request. Later ones are read and routed alike, but what is refused there ends in a
reset (docs/http.md). Which of a cluster's backends a connection gets depends on its addresses and ports and on the flow
key, which no configuration file holds: given a `Client` that has it, the backend is named, else only the shares are.

The decision is made here a second time, from the configuration and not from the maps. Rejected: loading the program and
asking it (BPF_PROG_TEST_RUN), which is right by definition, but takes root and a kernel, and says no word about why.
That both agree on verdict and route is what tests/packets/test_explain.py is for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import AddressValueError, IPv4Address
from typing import Literal

from rauta.config import Cluster, Config, Route, Vip
from rauta.contract import ROUTER_MSS
from rauta.errors import RautaError
from rauta.explanation.head import Head, Refused, read_head
from rauta.files import paths

__all__ = [
    "Candidate",
    "Client",
    "Explanation",
    "Found",
    "Request",
    "Share",
    "answer_to",
    "explain",
    "find_vip",
    "parse_request",
]

_ANSWERS = {
    "TX_NO_ROUTE": 404,
    "TX_BAD_REQUEST": 400,
    "TX_LENGTH_REQUIRED": 411,
    "TX_HEAD_TOO_LARGE": 431,
    "TX_URI_TOO_LONG": 414,
    "TX_BODY_TOO_LARGE": 413,
    "TX_UNAVAILABLE": 503,
    "TX_NOT_IMPLEMENTED": 501,
}
_FALLBACKS = {  # bpf/fallback.h, fallback_for()
    "TX_BAD_REQUEST": "FALLBACK_AMBIGUOUS",
    "TX_LENGTH_REQUIRED": "FALLBACK_ENCODED",
    "TX_HEAD_TOO_LARGE": "FALLBACK_HEAD",
    "TX_URI_TOO_LONG": "FALLBACK_PATH",
    "TX_BODY_TOO_LARGE": "FALLBACK_BODY",
    "TX_NOT_IMPLEMENTED": "FALLBACK_UPGRADE",
    "TX_RESET_PIPELINED": "FALLBACK_PIPELINED",
}
_NO_ROUTE = {404: "TX_NO_ROUTE", "reset": "TX_RESET_NO_ROUTE", "fallback": "FALLBACK_NO_ROUTE"}
_SHORTEST_METHOD = 8  # bytes: fewer may be the beginning of any method


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks: address and port, and the router's flow key, without which the backend is not known."""

    address: IPv4Address
    port: int
    flow_key: int


@dataclass(frozen=True, slots=True)
class Found:
    """A route and its place: `number` counts over all VIPs, as routers do; `vip` and `index` are those of the file."""

    route: Route
    number: int
    vip: int
    index: int

    @property
    def path(self) -> tuple[str, int, str, int]:
        """Where it stands in the file."""
        return "vips", self.vip, "routes", self.index


@dataclass(frozen=True, slots=True)
class Candidate:
    """A route of the VIP, whether the request takes it, would have if none came before it, or not; and why."""

    found: Found
    outcome: Literal["taken", "behind", "no match"]
    why: str


@dataclass(frozen=True, slots=True)
class Share:
    """A backend of the chosen cluster. `share` of its connections, 0 to 1: of the Maglev table, to within a slot."""

    name: str
    address: IPv4Address
    port: int
    weight: int
    share: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """What becomes of a request.

    `verdict` is what the router counts (bpf/contract.h), `status` that of its HTTP answer, if it gives one, `why` says
    it in words. `head` is None if the request is refused. `notes`: what was not compared as it was written. `host`: the
    host whose routes count, as they name it, None for those of any host. `candidates`: all routes of the VIP in the
    order in which they are looked for. `backend`: by name, if a `Client` was given.
    """

    vip: Vip
    verdict: str
    status: int | None
    why: str
    head: Head | None = None
    notes: tuple[str, ...] = ()
    host: str | None = None
    candidates: tuple[Candidate, ...] = ()
    route: Found | None = None
    cluster: str | None = None
    shares: tuple[Share, ...] = ()
    backend: str | None = None

    @property
    def kind(self) -> Literal["route", "answer", "reset", "fallback"]:
        """What happens, in a word."""
        if self.verdict == "ROUTED_FIRST":
            return "route"
        if self.verdict.startswith("FALLBACK_"):
            return "fallback"
        return "reset" if self.status is None else "answer"


def answer_to(verdict: str) -> int | None:
    """The status of the router's own answer, by the verdict that it is counted under; None if there is none."""
    return _ANSWERS.get(verdict)


# ---- the request ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """A request as a client sends it: `segment` is the data of its first packet.

    `host` and `port`: what the URL names, or the Host; "" and None if there is neither.
    """

    segment: bytes
    host: str = ""
    port: int | None = None


def parse_request(text: str, fields: Sequence[str] = ()) -> Request:
    """The request that a client makes of "METHOD URL" or "METHOD PATH", with "HTTP/1.0" behind it if need be.

    `fields` are lines "Name: value". A URL is sent as clients do, as a path and a Host; with a Host among the `fields`
    as it is, in absolute form. RautaError if it is no HTTP that could be asked for.
    """
    words = text.split(" ")
    version = words.pop() if len(words) > 1 and words[-1].startswith("HTTP/") else "HTTP/1.1"
    method = words.pop(0) if len(words) > 1 else "GET"
    target = " ".join(words)
    if not target or target.startswith("https:"):
        happened = "it names no path" if not target else "over TLS, a router sees no request"
        raise RautaError(f"reading the request {text!r}", happened, "Say 'GET http://shop.test/path', or 'GET /path'.")
    lines = list(fields)
    url = re.match(r"http://([^/?#]*)(.*)", target)
    if url and not any(line.lower().startswith("host:") for line in fields):
        lines.insert(0, f"Host: {url[1]}")
        target = url[2] if url[2].startswith("/") else f"/{url[2]}"
    head = "".join(f"{line}\r\n" for line in (f"{method} {target} {version}", *lines))
    host, _, port = (url[1] if url else _host_line(fields)).partition(":")
    named = int(port) if port.isdecimal() else 80
    return Request(f"{head}\r\n".encode("utf-8", "surrogateescape")[:ROUTER_MSS], host, named if host else None)


def _host_line(fields: Sequence[str]) -> str:
    """What the first Host among lines says; empty if there is none."""
    values = [value.strip() for name, _, value in (line.partition(":") for line in fields) if name.lower() == "host"]
    return values[0] if values else ""


def find_vip(config: Config, request: Request, named: str | None = None) -> Vip:
    """Whom a request goes to: the VIP of that name, address, or address and port; else the one that the URL's address
    is of; else the only one there is, or the only one with the URL's port. RautaError if that is not one.
    """
    if named is not None:
        found = [vip for vip in config.vips if named in (vip.name, str(vip.address), f"{vip.address}:{vip.port}")]
        return _only(config, found, f"looking for the VIP {named!r}")
    of_address = [vip for vip in config.vips if request.host and _address(request.host) == vip.address]
    of_port = [vip for vip in of_address or config.vips if vip.port == request.port]
    found = of_port if len(config.vips) > 1 and request.port is not None else list(config.vips)
    return _only(config, found, "choosing the VIP that the request goes to")


def _address(text: str) -> IPv4Address | None:
    try:
        return IPv4Address(text)
    except AddressValueError:
        return None


def _only(config: Config, found: Sequence[Vip], tried: str) -> Vip:
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{vip.name} ({vip.address}:{vip.port})" for vip in found or config.vips) or "none"
    happened = f"{len(found)} would do" if found else "there is none such"
    raise RautaError(tried, happened, f"Name one with --vip, of: {known}.")


# ---- the decision -----------------------------------------------------------------------------------------


def explain(config: Config, segment: bytes, *, vip: Vip, client: Client | None = None) -> Explanation:
    """What the router does with a connection's first request, `segment` being all data of its first packet.

    `client` takes root: the backend's name comes from the cluster's Maglev table (rauta.maglev), as of a router that
    starts now.
    """
    try:
        head = read_head(segment, strict=any(paths.has_other_spellings(route.path) for route in vip.routes))
    except Refused as refused:
        return _refused(config, vip, segment, refused)
    host = _selected_host(vip, head.host)
    candidates = _candidates(config, vip, head, host)
    verdict = _NO_ROUTE[vip.no_route]
    told = Explanation(vip, verdict, answer_to(verdict), f"no route of {vip.name} names it")
    told = replace(told, head=head, notes=_notes(head), host=host, candidates=candidates)
    taken = next((candidate.found for candidate in candidates if candidate.outcome == "taken"), None)
    if taken is None:
        return told
    cluster = next(cluster for cluster in config.clusters if cluster.name == taken.route.cluster)
    told = replace(told, route=taken, cluster=cluster.name, shares=_shares(cluster))
    if not any(share.weight for share in told.shares):
        why = f"no backend of {cluster.name} has any weight"
        return replace(told, verdict="TX_UNAVAILABLE", status=answer_to("TX_UNAVAILABLE"), why=why)
    backend = _backend(cluster, vip, client) if client else None
    return replace(told, verdict="ROUTED_FIRST", status=None, why=_matches_what(taken.route), backend=backend)


def _refused(config: Config, vip: Vip, segment: bytes, refused: Refused) -> Explanation:
    verdict = refused.verdict
    if config.fallback is not None:
        verdict = _FALLBACKS.get(verdict) or _start(segment)
    return Explanation(vip, verdict, answer_to(verdict), refused.why)


def _start(segment: bytes) -> str:
    """What the fallback is said to get that starts with no method: bpf/fallback.h, name_start()."""
    if segment.startswith(b"\x16\x03"):
        return "FALLBACK_TLS"
    if segment.startswith(b"PRI * HT"):
        return "FALLBACK_HTTP2"
    return "FALLBACK_HEAD" if len(segment) < _SHORTEST_METHOD else "FALLBACK_NOT_HTTP"


def _notes(head: Head) -> tuple[str, ...]:
    _, question, query = head.target.partition("?")
    notes = [f"the query {question + query!r} is not compared"] if question else []
    if head.authority:
        notes.append("the target is in absolute form, and names the same host as the Host line")
    if head.path == "*":
        notes.append("'*' takes the route for the prefix /, and no exact path")
    return tuple(notes)


def _selected_host(vip: Vip, host: str) -> str | None:
    """The host whose routes are the only ones to count: the very name, or the longest wildcard; None for any host."""
    names = {route.host for route in vip.routes if route.host is not None}
    if host in names:
        return host
    wildcards = [name for name in names if name.startswith(paths.WILDCARD) and _ends_in(host, name)]
    return max(wildcards, key=len, default=None)


def _ends_in(host: str, wildcard: str) -> bool:
    suffix = wildcard.removeprefix("*")
    return host.endswith(suffix) and len(host) > len(suffix)


def _candidates(config: Config, vip: Vip, head: Head, host: str | None) -> tuple[Candidate, ...]:
    """The VIP's routes, in the order in which they are looked for."""
    place = next(place for place, one in enumerate(config.vips) if one.name == vip.name)
    first = sum(len(one.routes) for one in config.vips[:place])
    routes = [Found(route, first + index, place, index) for index, route in enumerate(vip.routes)]
    candidates = []
    taken = False
    for found in sorted(routes, key=_precedence):
        why = _mismatch(found.route, head, host)
        if why:
            candidates.append(Candidate(found, "no match", why))
        elif taken:
            candidates.append(Candidate(found, "behind", f"{_matches_what(found.route)}, but comes later"))
        else:
            candidates.append(Candidate(found, "taken", _matches_what(found.route)))
            taken = True
    return tuple(candidates)


def _precedence(found: Found) -> tuple[object, ...]:
    """Sorts routes as they are looked for: host, path, method; what is equal in these in the file's order."""
    route = found.route
    kind = 2 if route.host is None else int(route.host.startswith(paths.WILDCARD))
    host = route.host or ""
    return kind, -host.count("."), host, route.exact is None, -len(route.path), route.path, route.method is None


def _mismatch(route: Route, head: Head, host: str | None) -> str:
    """Why a request does not take a route; empty if it could."""
    if route.host != host:
        return _other_host(route.host, head.host, host)
    if route.exact is not None and route.exact != head.path:
        return f"the path is not {route.exact}"
    if route.prefix is not None and not _is_below(head.path, route.prefix):
        return f"the path is not {route.prefix} or below"
    return f"the method is not {route.method}" if route.method not in (None, head.method) else ""


def _other_host(wanted: str | None, host: str, selected: str | None) -> str:
    if wanted is None:
        return f"{selected} has routes of its own, and no others count for it"
    if wanted.startswith(paths.WILDCARD) and _ends_in(host, wanted):
        return f"{selected} fits the host better, and only its routes count"
    return f"the host is not {wanted}"


def _is_below(path: str, prefix: str) -> bool:
    return prefix == "/" or path == prefix or path.startswith(f"{prefix}/")


def _matches_what(route: Route) -> str:
    parts = [f"host {route.host}" if route.host else "", f"exact {route.exact}" if route.exact else ""]
    parts += [f"prefix {route.prefix}" if route.prefix else "", f"method {route.method}" if route.method else ""]
    return ", ".join(filter(None, parts))


# ---- backends ---------------------------------------------------------------------------------------------


def _shares(cluster: Cluster) -> tuple[Share, ...]:
    total = sum(backend.weight for backend in cluster.backends)
    return tuple(
        Share(one.name, one.address, one.port, one.weight, one.weight / total if total else 0.0)
        for one in cluster.backends
    )


def _backend(cluster: Cluster, vip: Vip, client: Client) -> str:
    from rauta import maglev, tables  # libbpf's half of the house, which nothing else here needs

    slot = tables.flow_slot(client.flow_key, (client.address, client.port), (vip.address, vip.port))
    weights = cluster.weights()
    return sorted(weights)[maglev.build_table(weights)[slot]]
