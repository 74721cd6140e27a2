"""What the router, the rules, and each server made of one head, and what of it may not differ."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from packets.bench import CLUSTERS
from packets.oracle import Route

from fuzz import reading
from fuzz.readers import SENT_BODY, Heard, Question, Seen
from fuzz.reading import Refused, Request
from fuzz.swift import Outcome

LAST_CHUNK = b"0\r\n\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: smuggled.test\r\n\r\n"


@dataclass(frozen=True)
class Case:
    """A head on its way through the router: what the rules say of it, and what the router did."""

    routes: tuple[Route, ...]
    text: bytes
    rules: Request | Refused
    outcome: Outcome

    @property
    def routed(self) -> bool:
        """Whether a backend gets it."""
        return self.outcome.kind == "routed"


def judged_by_rules(case: Case) -> Iterator[str]:
    """How the router differs from docs/http.md, in words. It may refuse what it likes."""
    rules, outcome = case.rules, case.outcome
    if not case.routed:
        return
    if isinstance(rules, Refused):
        yield f"routed to {outcome.cluster}, but by the rules refused: {rules}"
        return
    cluster = reading.find_cluster(case.routes, rules.method, rules.host, rules.path)
    if cluster != outcome.cluster:
        yield f"routed to {outcome.cluster}, by the rules to {cluster}"
    if (rules.head_length, rules.body_length) != (outcome.head_length, outcome.body_length):
        understood = f"{outcome.head_length} + {outcome.body_length} bytes"
        yield f"took the request for {understood}, by the rules it has {rules.head_length} + {rules.body_length}"


def judged_by_next(case: Case, following: str, before: Outcome, behind: Outcome, exactly: Outcome) -> Iterator[str]:
    """How later requests to `following`'s routes fared, in words: one byte too early, one too late, in their place."""
    for where, outcome in (("early", before), ("late", behind)):
        if outcome.kind in ("routed", "moved"):
            yield f"takes a later request for one that comes a byte too {where}"
    kind = "routed" if case.outcome.cluster == following else "moved" if any(CLUSTERS[following].values()) else "reset"
    if exactly.kind != kind or (kind != "reset" and exactly.cluster != following):
        yield f"is in {case.outcome.cluster}, and a later request to {following} was {exactly.kind} {exactly.cluster}"


# ---- against servers ------------------------------------------------------------------------------------


def question(case: Case, *, apart: bool, chunk: bool) -> Question:
    """The request as the router understood it, its body full of other requests.

    `apart`: the body in a segment of its own; what servers do with it may depend on whether they have seen it when
    they read the head. `chunk`: it begins with a last chunk, for those that take it for chunks.
    """
    end, length = case.outcome.head_length, case.outcome.body_length
    head, body = case.text[:end], case.text[end:]
    if length > SENT_BODY:
        return Question((head,))
    body += LAST_CHUNK if chunk else b""
    body = (body + SMUGGLED * (length // len(SMUGGLED) + 1))[:length]
    pieces = (head, body) if apart else (head + body,)
    return Question(tuple(filter(None, pieces)), b"/marker-" + secrets.token_hex(8).encode())


def judged_by_server(case: Case, asked: Question, heard: Heard) -> Iterator[str]:
    """How a server differs from the router, in words.

    It may refuse the request, and it may close the connection after it. Else it must see two requests, the second one
    being the marker.
    """
    first, *rest = heard.answers or (None,)
    if not heard.closed:
        yield "waits for more than the request" if first is None else "took the later request for something else"
    if first is None:
        return
    if first.status < 400:
        yield from _different(case, first)
    for number, seen in enumerate(rest):
        if number or seen.target != asked.marker or seen.host != b"marker.test" or seen.method != "GET":
            yield f"saw something else behind the request: {seen}"


def _different(case: Case, seen: Seen) -> Iterator[str]:
    rules = case.rules
    if isinstance(rules, Refused):
        return  # said already
    if seen.method != rules.method or seen.target not in _ways_to_say(rules):
        yield f"saw {seen.method} {seen.target!r}"
    if seen.path is not None and seen.path != unquote_to_bytes(rules.path):
        yield f"took the path for {seen.path!r}"
    host = _name(seen.host)
    if host != rules.host:
        yield f"took the host for {seen.host!r}"
    if seen.length != rules.body_length:
        yield f"took the body for {seen.length} bytes, the router for {rules.body_length}"
    cluster = reading.find_cluster(case.routes, seen.method, host, rules.path)
    if cluster != case.outcome.cluster:
        yield f"is in {case.outcome.cluster}, but what it saw belongs to {cluster}"


def _ways_to_say(rules: Request) -> set[bytes]:
    """How servers report a target: as it came, without the scheme's own port, or its path and query alone; some leave
    out an empty query.
    """
    authority = rules.target.removesuffix(rules.origin)
    bare = re.sub(rb":(80)?$", b"", authority)
    return {rules.target, bare + rules.origin, rules.origin, rules.origin.removesuffix(b"?")}


def _name(host: bytes) -> str:
    """The name in a Host as a server reports it; llhttp with the white space behind it."""
    return host.rstrip(b" \t").partition(b":")[0].decode("latin-1").lower().removesuffix(".")
