"""What a route may say about paths and host names.

A path that the packet path refuses to compare (bpf/http.h answers 400, because servers may normalise it differently)
could never match, so it is refused here already. Each function returns the form in which the routers compare: host
names in lower case, prefixes without a trailing slash. ValueError says what is wrong and what is allowed.
"""

from __future__ import annotations

import re

from rauta.contract import MAX_PATH, MAX_PREFIX_DEPTH, MAX_WILDCARD_LABELS

__all__ = ["WILDCARD", "exact_path", "has_other_spellings", "host_name", "prefix", "segments"]

WILDCARD = "*."
"""how a host begins that stands for many"""
_MAX_HOST = 253  # RFC 1035, 2.3.4, as text without the root's dot
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_UNRESERVED = re.compile(rb"[A-Za-z0-9._~-]")  # RFC 3986, 2.3
_RESERVED = re.compile(rb"[!$&'()*+,;=:@]")  # RFC 3986, 3.3: may stand in a path as they are
_ONE_SPELLING = re.compile(r"[A-Za-z0-9._~/-]*")
_REFUSED_CHARACTERS = re.compile(r"[^A-Za-z0-9._~!$&'()*+,;=:@/%-]")


def exact_path(path: str) -> str:
    """A path to compare as a whole, unchanged: "/health", "/dir/"."""
    _check_characters(path)
    last = path.rfind("/")
    _check_segments(path.split("/")[1:-1] if last == len(path) - 1 else path.split("/")[1:])
    return path


def prefix(path: str) -> str:
    """A prefix of whole segments, without a trailing slash: "/api/" becomes "/api"; only "/" itself keeps its own."""
    _check_characters(path)
    bare = path.removesuffix("/")
    segments = bare.split("/")[1:]
    _check_segments(segments)
    if len(segments) > MAX_PREFIX_DEPTH:
        raise ValueError(f"has {len(segments)} segments (allowed: at most {MAX_PREFIX_DEPTH})")
    return bare or "/"


def segments(path: str) -> list[str]:
    """The segments of a path: "a" and "b" of "/a/b", "a" and "" of "/a/", "" of "/", none of the empty text."""
    return path.split("/")[1:]


def has_other_spellings(path: str) -> bool:
    """Whether a server may take another path for this one: "/@a" and "/%40a", "/%C3%A9" and "/%c3%a9".

    Where a VIP has such a route, the router compares only requests that spell every path as routes must.
    """
    return not _ONE_SPELLING.fullmatch(path)


def host_name(host: str) -> str:
    """A host name in lower case, without a port: "Shop.test" becomes "shop.test". Or "*." and the end of names."""
    name = host.lower()
    if ":" in name:
        raise ValueError(f"{host!r} names a port (allowed: the name alone; the VIP's port is the port)")
    labels = name.removeprefix(WILDCARD).split(".")
    if "*" in name.removeprefix(WILDCARD):
        allowed = "'*.' at the start, for any labels there; leave `host` out to match any"
        raise ValueError(f"{host!r} has a wildcard (allowed: {allowed})")
    if name.startswith(WILDCARD) and len(labels) > MAX_WILDCARD_LABELS:
        raise ValueError(f"has {len(labels)} labels behind its wildcard (allowed: at most {MAX_WILDCARD_LABELS})")
    if len(name) > _MAX_HOST:
        raise ValueError(f"is {len(name)} bytes long (allowed: at most {_MAX_HOST})")
    for label in labels:
        if not _LABEL.fullmatch(label):
            raise ValueError(
                f"{host!r} is no host name because of {label!r} (allowed: labels of 1 to 63 letters, digits, '-' "
                "and '_', not starting or ending with '-', with single dots between them)"
            )
    return name


def _check_characters(path: str) -> None:
    if not path.startswith("/"):
        raise ValueError(f"{path!r} does not start with '/' (allowed: a path such as /api)")
    if len(path.encode()) > MAX_PATH:
        raise ValueError(f"is {len(path.encode())} bytes long (allowed: at most {MAX_PATH})")
    refused = _REFUSED_CHARACTERS.search(path)
    if refused:
        hint = "the query is no part of a path" if refused[0] == "?" else "percent-encode anything else"
        raise ValueError(f"holds {refused[0]!r} (allowed: letters, digits and -._~!$&'()*+,;=:@/; {hint})")
    _check_escapes(path)


def _check_escapes(path: str) -> None:
    """A '%' starts two hex digits, and what they encode cannot be written, or mistaken for, anything else."""
    for escape in re.finditer(r"%(.{0,2})", path):
        if not re.fullmatch(r"[0-9A-Fa-f]{2}", escape[1]):
            raise ValueError(f"holds {escape[0]!r} (allowed: '%' followed by two hex digits)")
        byte = bytes.fromhex(escape[1])
        if _UNRESERVED.fullmatch(byte) or _RESERVED.fullmatch(byte):
            raise ValueError(f"holds {escape[0]!r} (allowed: the plain character {byte.decode()!r})")
        if byte in b"/\\" or byte < b" " or byte == b"\x7f":
            raise ValueError(
                f"holds {escape[0]!r}, an encoded slash, backslash or control character: servers disagree on what it "
                "means (allowed: any other encoded byte)"
            )
        if escape[1] != escape[1].upper():
            raise ValueError(f"holds {escape[0]!r} (allowed: capital hex digits, '%{escape[1].upper()}')")


def _check_segments(segments: list[str]) -> None:
    for segment in segments:
        if segment.partition(";")[0] in (".", "..") or not segment:
            what = f"the segment {segment!r}" if segment else "an empty segment"
            raise ValueError(f"has {what}: servers disagree on what it means (allowed: any other segment)")
