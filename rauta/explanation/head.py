"""The head of an HTTP/1 request, read as the routers read it (bpf/http.h, bpf/fields.h): to say what they make of one.

    head = read_head(b"GET /api/x?y HTTP/1.1\\r\\nHost: Shop.test:80\\r\\n\\r\\n")
    head.path, head.host                       # "/api/x", "shop.test"

No packet goes through here. It is the packet path written a second time, in order, limit by limit, so that `rauta
explain` can say without root and without a router not only that a request is refused, but with which answer and why.
tests/packets/test_explain.py runs the same heads through the compiled program and compares the verdicts.

A head is read from the data of one packet. Behind its end the routers see zero bytes, where every scanner stops: what
ends there is "too large", since the rest of it would be in the next packet.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from rauta.contract import MAX_HOST, MAX_PATH

__all__ = ["Head", "Refused", "read_head"]

_MAX_NAME = 256
_MAX_LINES = 128  # the empty one included
_MAX_AUTHORITY = MAX_HOST + 8  # as far as the routers look for the end of a target's host
_MAX_VALUE_STEPS = 256  # of 8 bytes, or up to a tab
_MAX_BODY = 0x7FFFFFFF - 2048  # so that head and body stay below 2^31
_WORD = 8

_METHOD = re.compile(rb"(GET|PUT|POST|HEAD|PATCH|TRACE|DELETE|OPTIONS|CONNECT) ")
_PATH_END = re.compile(rb"[\0- ?]")
_QUERY_END = re.compile(rb"[\0- #\x7f-\xff]")
_AUTHORITY_END = re.compile(rb"[\0- /]")
_NAME_END = re.compile(rb"[\0- :\x7f-\xff]")
_CONTROL = re.compile(rb"[\0-\x1f\x7f]")
_PADDING = re.compile(rb"[ \t]{0,16}")
_HOST = re.compile(rb"[A-Za-z0-9._-]{0,%d}" % MAX_HOST)
_PORT = re.compile(rb":[0-9]{0,5}")
_DIGITS = re.compile(rb"[0-9]{0,64}")
_FORBIDDEN = re.compile(rb"[#\\\x7f-\xff]")
_DOTS = re.compile(rb"\.\.?(?:;|%3[Bb]|$)")
_ESCAPE = re.compile(rb"%(.{0,2})", re.DOTALL)
_HEX = re.compile(rb"[0-9A-Fa-f]{2}")
_UNRESERVED = re.compile(rb"[A-Za-z0-9._~-]")  # RFC 3986, 2.3
_RESERVED = re.compile(rb"[!$&'()*+,;:=@]")  # RFC 3986, 3.3: may stand in a path as they are
_SPELLED_OTHERWISE = re.compile(rb"[^A-Za-z0-9._~!$&'()*+,;:=@/%-]")


@dataclass(frozen=True, slots=True)
class Head:
    """A head that may be routed.

    `path` is without the query, or "*"; `host` what routes compare: lower case, no port, no final dot, "" if there is
    none. `authority` says that the target was in absolute form. Lengths are bytes; the head's includes the empty line.
    """

    method: str
    target: str
    path: str
    host: str
    authority: bool
    version: str
    length: int
    body_length: int


class Refused(Exception):
    """A head that is not routed: the verdict, by its name in bpf/contract.h, and why in words."""

    def __init__(self, verdict: str, why: str) -> None:
        super().__init__(verdict, why)
        self.verdict = verdict
        self.why = why


def read_head(text: bytes, *, strict: bool = False) -> Head:
    """The request that `text`, the data of one packet, starts with; or raises Refused.

    `strict`: the VIP takes one spelling of each path only (rauta.files.paths.has_other_spellings).
    """
    return _Reader(text).read(strict)


@dataclass(slots=True)
class _Fields:
    """What the lines below the request line say, of what routing needs to know."""

    hosts: int = 0
    host: bytes = b""  # the name
    host_text: bytes = b""  # with dot and port
    lengths: int = 0
    body_length: int = 0
    encoded: bool = False
    upgrade: bool = False
    wrong: list[str] = field(default_factory=list)  # why `hosts` or `lengths` say 2 where there is one line


class _Reader:
    def __init__(self, text: bytes) -> None:
        self._length = len(text)
        self._text = text + bytes(16)
        self._fields = _Fields()

    def read(self, strict: bool) -> Head:
        method = _METHOD.match(self._text)
        if not method:
            raise Refused("TX_RESET_NOT_HTTP", "it does not start with an HTTP/1 method and a space")
        if method[1] == b"CONNECT":
            raise Refused("TX_NOT_IMPLEMENTED", "CONNECT: what follows would be no requests")
        target = method.end()
        start = self._path_start(method[1], target)
        path, at = self._path(start, strict) if self._text[start : start + 1] == b"/" else (b"*", start + 1)
        if self._text[at : at + 1] == b"?":
            at = self._found(_QUERY_END, at)
        version = self._version(at)
        end = self._lines(at + len(" HTTP/1.1\r\n"))
        authority = self._text[target + len("http://") : start] if path != b"*" else b""
        self._check(version, authority)
        fields = self._fields
        if self._length > end + fields.body_length:
            raise Refused("TX_RESET_PIPELINED", "bytes of a second request follow in the same packet")
        return Head(
            method[1].decode(),
            self._text[target:at].decode("latin-1"),
            path.decode(),
            fields.host.lower().decode(),
            bool(authority),
            version.decode(),
            end,
            fields.body_length,
        )

    def _found(self, end: re.Pattern[bytes], at: int, limit: int | None = None) -> int:
        """Where the first byte of those is, from `at`; or where looking stops, `limit` bytes on."""
        match = end.search(self._text, at, len(self._text) if limit is None else at + limit)
        return match.start() if match else at + (limit or 0)

    def _broken(self, at: int, why: str) -> Refused:
        """Why reading stopped at `at`: the packet ended there, or the text is wrong."""
        if at + 2 > self._length:
            return Refused("TX_HEAD_TOO_LARGE", "the head does not end in its first packet")
        return Refused("TX_BAD_REQUEST", why)

    # ---- request line --------------------------------------------------------------------------------------

    def _path_start(self, method: bytes, at: int) -> int:
        """Where the path starts, or the '*' of OPTIONS is."""
        if self._text[at : at + 1] == b"/" or (method == b"OPTIONS" and self._text[at : at + 2] == b"* "):
            return at
        wrong = self._broken(at + 1, "the target is neither a path, nor http:// with a host and a path, nor OPTIONS' *")
        if self._text[at : at + 7] != b"http://":
            raise wrong
        start = self._found(_AUTHORITY_END, at + 7, _MAX_AUTHORITY)
        if start == at + 7 or self._text[start : start + 1] != b"/":
            raise wrong
        return start

    def _path(self, start: int, strict: bool) -> tuple[bytes, int]:
        end = self._found(_PATH_END, start + 1)
        path = self._text[start:end]
        if len(path) > MAX_PATH:
            raise Refused("TX_URI_TOO_LONG", f"the path has more than {MAX_PATH} bytes")
        why = _wrong_bytes(path) or _wrong_segments(path) or _wrong_spelling(path, strict)
        if why:
            raise Refused("TX_BAD_REQUEST", f"the path {why}")
        return path, end

    def _version(self, at: int) -> bytes:
        if self._text[at : at + 1] != b" ":
            if at >= self._length:
                raise self._broken(self._length, "")
            raise Refused("TX_BAD_REQUEST", f"the target holds {self._text[at : at + 1].decode('latin-1')!r}")
        if at + 11 > self._length:
            raise self._broken(self._length, "")
        version = self._text[at + 1 : at + 9]
        if version not in (b"HTTP/1.0", b"HTTP/1.1"):
            raise Refused("TX_BAD_REQUEST", "what follows the target is neither HTTP/1.1 nor HTTP/1.0")
        if self._text[at + 9 : at + 11] != b"\r\n":
            raise Refused("TX_BAD_REQUEST", "the request line does not end in CRLF behind the version")
        return version

    # ---- fields --------------------------------------------------------------------------------------------

    def _lines(self, at: int) -> int:
        """Reads all lines from there; where the head ends."""
        for _ in range(_MAX_LINES):
            if self._text[at : at + 2] == b"\r\n":
                return at + 2
            if self._text[at : at + 5].lower() == b"host:":
                end, name = self._host(self._padded(at + 5)), b"Host"
            else:
                colon = self._found(_NAME_END, at, _MAX_NAME)
                name = self._text[at:colon]
                if not name or self._text[colon : colon + 1] != b":":
                    raise self._broken(colon, f"the line {self._line(at)} is no field: a name, a colon, a value")
                end = self._field(name.lower(), colon)
            if self._text[end : end + 2] != b"\r\n":
                raise self._broken(end, f"the value of {name.decode()} holds what is not allowed there")
            at = end + 2
        raise Refused("TX_HEAD_TOO_LARGE", f"the head has more than {_MAX_LINES - 1} fields")

    def _line(self, at: int) -> str:
        text = self._text[at : min(at + 32, self._length)].partition(b"\r\n")[0]
        return repr(text.decode("latin-1"))

    def _padded(self, at: int) -> int:
        match = _PADDING.match(self._text, at)
        return match.end() if match else at

    def _host(self, at: int) -> int:
        fields, match = self._fields, _HOST.match(self._text, at)
        fields.hosts += 1
        name = match[0] if match else b""
        end = at + len(name)
        if name.endswith(b"."):
            name = name[:-1]
            if not name or name.endswith(b"."):
                fields.wrong.append("the Host is only a dot, or ends in two")
        port = _PORT.match(self._text, end) if name else None
        end = port.end() if port else end
        fields.host, fields.host_text = name, self._text[at:end]
        return self._padded(end)

    def _field(self, name: bytes, colon: int) -> int:
        value = self._padded(colon + 1)
        if name == b"content-length":
            return self._content_length(value)
        self._fields.encoded |= name == b"transfer-encoding"
        self._fields.upgrade |= name == b"upgrade"
        return self._value_end(value)

    def _content_length(self, at: int) -> int:
        fields, match = self._fields, _DIGITS.match(self._text, at)
        digits = match[0] if match else b""
        fields.lengths += 1
        if not digits:
            fields.wrong.append("the Content-Length is no number")
        fields.body_length = int(digits or b"0")
        return self._padded(at + len(digits))

    def _value_end(self, at: int) -> int:
        """The first control character but tab."""
        for _ in range(_MAX_VALUE_STEPS):
            found = _CONTROL.search(self._text, at, at + _WORD)
            if not found:
                at += _WORD
            elif found[0] != b"\t":
                return found.start()
            else:
                at = found.end()
        return at

    def _check(self, version: bytes, authority: bytes) -> None:
        """What the lines say together, in the order in which the routers ask."""
        fields = self._fields
        if fields.hosts > 1:
            raise Refused("TX_BAD_REQUEST", "it has two Hosts")
        if not fields.hosts and version == b"HTTP/1.1":
            raise Refused("TX_BAD_REQUEST", "it has no Host, as HTTP/1.1 must")
        if fields.wrong:
            raise Refused("TX_BAD_REQUEST", fields.wrong[0])
        if fields.lengths > 1:
            raise Refused("TX_BAD_REQUEST", "it has two Content-Lengths")
        if fields.lengths and fields.encoded:
            raise Refused("TX_BAD_REQUEST", "it has both Content-Length and Transfer-Encoding")
        if authority and authority.lower() != fields.host_text.lower():
            raise Refused("TX_BAD_REQUEST", "the target names another host than the Host line")
        if fields.encoded:
            raise Refused("TX_LENGTH_REQUIRED", "Transfer-Encoding: where the next request starts cannot be known")
        if fields.upgrade:
            raise Refused("TX_NOT_IMPLEMENTED", "Upgrade: what follows might be no requests")
        if fields.body_length > _MAX_BODY:
            raise Refused("TX_BODY_TOO_LARGE", "the body is longer than sequence numbers can be compared over")


# ---- spelling of paths ------------------------------------------------------------------------------------


def _wrong_bytes(path: bytes) -> str:
    found = _FORBIDDEN.search(path)
    return f"holds {found[0].decode('latin-1')!r}" if found else ""


def _wrong_segments(path: bytes) -> str:
    segments = path[1:].split(b"/")
    if b"" in segments[:-1]:
        return "has an empty segment"
    dots = next((segment for segment in segments if _DOTS.match(segment)), None)
    return f"has the segment {dots.decode()!r}" if dots is not None else ""


def _wrong_spelling(path: bytes, strict: bool) -> str:
    """What servers may decode to another path than is compared; if `strict`, all but the one spelling."""
    for escape in _ESCAPE.finditer(path):
        said = escape[0].decode()
        byte = bytes.fromhex(escape[1].decode()) if _HEX.fullmatch(escape[1]) else b""
        if not byte or byte < b" " or byte in b"/\\\x7f":
            return f"holds {said!r}, which servers disagree on"
        if _UNRESERVED.match(byte):
            return f"holds {said!r}, another spelling of {byte.decode()!r}"
        if strict and (_RESERVED.match(byte) or said != said.upper()):
            return f"holds {said!r}, another spelling than the VIP's routes have"
    other = _SPELLED_OTHERWISE.search(path) if strict else None
    return f"holds {other[0].decode()!r}, which routes of this VIP spell as an escape" if other else ""
