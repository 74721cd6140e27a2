"""A request head as docs/http.md says that the router reads it, and whether RFC 9112 calls it valid.

Written from those texts, the obvious way: regular expressions over lines. It shares no code with bpf/ or rauta/.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from packets.oracle import Route

CRLF = b"\r\n"
MAX_PATH = 256
MAX_LINES = 127
MAX_BODY = 2**31 - 1
MAX_WHITE_SPACE = 16
MAX_NAME = 256
MAX_HOST = 256
MAX_DIGITS = 64


@dataclass(frozen=True)
class Request:
    """A head that may be routed. `host` is the name that routes know: lower case, no port, no final dot.

    `target` is all of it, `origin` its path and query, `path` the path alone.
    """

    method: str
    target: bytes
    origin: bytes
    path: bytes
    host: str
    head_length: int
    body_length: int

    @property
    def length(self) -> int:
        """From its first byte to where the next request starts."""
        return self.head_length + self.body_length


class Refused(Exception):
    """The head may not be routed; why."""


# ---- docs/http.md ---------------------------------------------------------------------------------------

# In the path there is neither '#', '?' nor '\', in the query no '#'.
_REQUEST_LINE = re.compile(
    rb"(?:(GET|HEAD|POST|PUT|DELETE|OPTIONS|TRACE|PATCH) "
    rb"(?:http://([^/]+))?((/[!\"$->@-[\]-~]*)(?:\?[!\"$-~]*)?)"
    rb"|(OPTIONS) (\*)) HTTP/1\.([01])"
)
_FIELD = re.compile(rb"([!-9;-~]+):([\t -~\x80-\xff]*)")
_HOST = re.compile(rb"(?:([A-Za-z0-9._-]*[A-Za-z0-9_-])\.?(?::[0-9]{0,5})?)?")
_REFUSED_ESCAPE = re.compile(
    rb"%(?![0-9A-Fa-f]{2})|%(?:[01].|7[Ff]|2[FfDdEe]|5[CcFf]|7[Ee]|3[0-9]|[46][1-9A-Fa-f]|[57][0-9Aa])"
)
_OTHER_SPELLING = re.compile(rb"%(?:.[a-f]|[a-f])|%(?:2[14679ABC]|28|29|3[ABD]|40)|[^A-Za-z0-9._~!$&'()*+,;=:@/%-]")
_DOTS = re.compile(rb"\.\.?(?:;|%3[Bb]|$)")
_PLAIN_PATH = re.compile(rb"[A-Za-z0-9._~/-]*")
_DECIMAL = re.compile(rb"[0-9]+")


def is_strict(paths: Iterable[bytes]) -> bool:
    """Whether a VIP with routes of these paths takes one spelling of each path only."""
    return not all(_PLAIN_PATH.fullmatch(path) for path in paths)


def read_head(text: bytes, *, strict: bool = False) -> Request:
    """The request that `text`, the data of one packet, starts with. Refused when it may not be routed."""
    head, empty_line, rest = text.partition(CRLF * 2)
    if not empty_line:
        raise Refused("does not end")
    first, *lines = head.split(CRLF)
    line = _REQUEST_LINE.fullmatch(first)
    if not line:
        raise Refused("request line")
    method, authority, origin, path = line[1] or line[5], line[2], line[3] or line[6], line[4] or line[6]
    _check_path(path, strict)
    if len(lines) > MAX_LINES:
        raise Refused("too many lines")
    fields = [_read_field(line) for line in lines]
    hosts = [value for name, value in fields if name == b"host"]
    host = _read_host(hosts, needed=line[7] == b"1")
    if authority is not None and [authority.lower()] != [host.lower() for host in hosts]:
        raise Refused("another host in the target")
    if any(name == b"upgrade" for name, _ in fields):
        raise Refused("upgrade")
    request = Request(
        method.decode(),
        first.split(b" ")[1],
        origin,
        path,
        host,
        len(head) + len(empty_line),
        _read_length(fields),
    )
    if request.length > MAX_BODY:
        raise Refused("too large")
    if len(rest) > request.body_length:
        raise Refused("another request behind it")
    return request


def _check_path(path: bytes, strict: bool) -> None:
    segments = path[1:].split(b"/")
    if len(path) > MAX_PATH:
        raise Refused("path too long")
    if any(map(_DOTS.match, segments)) or b"" in segments[:-1]:
        raise Refused("segments that servers resolve")
    if _REFUSED_ESCAPE.search(path):
        raise Refused("escapes that servers resolve")
    if strict and _OTHER_SPELLING.search(path):
        raise Refused("another spelling")


def _read_field(line: bytes) -> tuple[bytes, bytes]:
    field = _FIELD.fullmatch(line)
    if not field:
        raise Refused("field")
    name, value = field[1].lower(), field[2]
    if len(name) > MAX_NAME:
        raise Refused("name too long")
    if name in (b"host", b"content-length"):
        bare = value.strip(b" \t")
        around = value.split(bare, 1) if bare else ()
        if any(len(white) > MAX_WHITE_SPACE for white in around):
            raise Refused("too much white space")
        value = bare
    return name, value


def _read_host(hosts: Sequence[bytes], needed: bool) -> str:
    if len(hosts) > 1 or (needed and not hosts):
        raise Refused("number of hosts")
    if not hosts:
        return ""
    host = _HOST.fullmatch(hosts[0])
    if not host:
        raise Refused("host")
    if len(hosts[0].partition(b":")[0]) > MAX_HOST:
        raise Refused("host too long")
    return (host[1] or b"").decode().lower()


def _read_length(fields: Sequence[tuple[bytes, bytes]]) -> int:
    lengths = [value for name, value in fields if name == b"content-length"]
    if any(name == b"transfer-encoding" for name, _ in fields):
        raise Refused("transfer encoding")
    if not lengths:
        return 0
    if len(lengths) > 1 or not _DECIMAL.fullmatch(lengths[0]) or len(lengths[0]) > MAX_DIGITS:
        raise Refused("length")
    return int(lengths[0])


# ---- routes, as docs/http.md says ------------------------------------------------------------------------


def find_cluster(routes: Sequence[Route], method: str, host: str, path: bytes) -> str | None:
    """The cluster whose route a request takes; None if there is none."""
    selected = _routes_of_host(routes, host)
    matching = [route for route in selected if route.method in (None, method) and _matches(route, path)]
    best = max(
        matching, key=lambda route: (route.prefix is None, len(route.path), route.method is not None), default=None
    )
    return best.cluster if best else None


def _routes_of_host(routes: Sequence[Route], host: str) -> list[Route]:
    """Those for the very name, else those for the longest wildcard that it ends in, else those for any host."""
    names = {route.host for route in routes if route.host}
    wildcards = [name for name in names if name[0] == "*" and host.endswith(name[1:]) and len(host) >= len(name)]
    chosen = host if host in names else max(wildcards, key=len, default=None)
    return [route for route in routes if route.host == chosen]


def _matches(route: Route, path: bytes) -> bool:
    if path == b"*":
        return route.prefix == "/"
    if route.prefix is None:
        return path == route.path
    return path.startswith(route.path + b"/") or path == route.path


# ---- RFC 9112 -------------------------------------------------------------------------------------------

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PCHAR = rb"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
_URI_HOST = rb"(?:(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*|\[[0-9A-Fa-f:.]+\])"
_PATH_AND_QUERY = rb"(?:/%b*)+(?:\?(?:%b|[/?])*)?" % (_PCHAR, _PCHAR)
_VALID_LINE = re.compile(
    rb"(?:(?!CONNECT )%b (?:%b|https?://%b(?::[0-9]*)?(?:%b)?)|OPTIONS \*|CONNECT %b:[0-9]+) HTTP/1\.([01])"
    % (_TOKEN, _PATH_AND_QUERY, _URI_HOST, _PATH_AND_QUERY, _URI_HOST)
)
_VALID_FIELD = re.compile(rb"(%b):([\t -~\x80-\xff]*)" % _TOKEN)
_VALID_HOST = re.compile(rb"%b(?::[0-9]*)?" % _URI_HOST)


def is_valid(text: bytes) -> bool:
    """Whether `text` starts with a complete and valid request head (RFC 9112, 9110 and 3986)."""
    head, empty_line, _ = text.partition(CRLF * 2)
    first, *lines = head.split(CRLF)
    line = _VALID_LINE.fullmatch(first)
    fields = [_VALID_FIELD.fullmatch(line) for line in lines]
    if not empty_line or not line or not all(fields):
        return False
    by_name: dict[bytes, list[bytes]] = {}
    for field in fields:
        assert field
        by_name.setdefault(field[1].lower(), []).append(field[2].strip(b" \t"))
    hosts, lengths = by_name.get(b"host", []), by_name.get(b"content-length", [])
    encodings = by_name.get(b"transfer-encoding", [])
    if len(hosts) > 1 or (line[1] == b"1" and not hosts) or not all(map(_VALID_HOST.fullmatch, hosts)):
        return False
    if len(lengths) > 1 or not all(map(_DECIMAL.fullmatch, lengths)) or (lengths and encodings):
        return False
    return not encodings or (line[1] == b"1" and b",".join(encodings).lower().split(b",")[-1].strip() == b"chunked")
