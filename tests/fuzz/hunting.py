"""Rounds of heads through everybody, and making small what they differ in.

hunt = Hunt(router, servers)
hunt.round(routes, texts)     up to swift.ROUND heads, each on a connection of its own; returns the differences
hunt.tally                    what became of all heads so far
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from packets.frames import request
from packets.oracle import Route

from fuzz import judging, readers, reading
from fuzz.judging import Case
from fuzz.readers import SENT_BODY, Heard, Question, Reader
from fuzz.reading import Refused, Request
from fuzz.swift import SwiftRouter

REGRESSIONS = Path(__file__).parent / "regressions"
NEXT = request("/", host="none.such")  # a later request, of which is known where it belongs


@dataclass(frozen=True)
class Difference:
    """A head that somebody reads differently from the router; `who` and `how` in words."""

    routes: tuple[Route, ...]
    text: bytes
    who: str
    how: str

    def __str__(self) -> str:
        return f"{self.who}: {self.how}\n    {self.text!r}"


class Hunt:
    """The router and those that it is compared with."""

    def __init__(self, router: SwiftRouter, servers: Sequence[Reader]) -> None:
        """Without servers, only the rules and h11 are asked."""
        self._router, self._servers = router, servers
        self.tally: Counter[str] = Counter()

    def round(self, routes: tuple[Route, ...], texts: Sequence[bytes], *, fallback: bool = False) -> list[Difference]:
        """The differences. `fallback`: whether the router has one for what it does not route."""
        self._router.routes_by(routes, fallback=fallback)
        routed, differences = [], []
        with self._router.checked():
            for number, text in enumerate(texts):
                case = self._sent(number, routes, text)
                differences += [Difference(routes, text, "rules", how) for how in self._judged_alone(number, case)]
                routed += [case] if case.routed else []
        differences += self._read_by("h11", SENT_BODY, routed, lambda asked: list(map(readers.read_with_h11, asked)))
        for server in self._servers:
            differences += self._read_by(server.name, server.longest, routed, partial(readers.exchange, server))
        return differences

    def differences(self, routes: tuple[Route, ...], text: bytes, who: str) -> list[Difference]:
        """In which ways one of them reads a single head otherwise."""
        return [difference for difference in self.round(routes, [text] * 4) if difference.who == who]

    def differs(self, routes: tuple[Route, ...], text: bytes, who: str) -> bool:
        """Whether that head still makes the same one differ."""
        return bool(self.differences(routes, text, who))

    def _sent(self, number: int, routes: tuple[Route, ...], text: bytes) -> Case:
        try:
            rules: Request | Refused = reading.read_head(text, strict=reading.is_strict(route.path for route in routes))
        except Refused as refused:
            rules = refused
        case = Case(routes, text, rules, self._router.send(number, text))
        self._count(case)
        return case

    def _judged_alone(self, number: int, case: Case) -> Iterator[str]:
        """By the rules, and by what the router makes of the next request on the connection."""
        yield from judging.judged_by_rules(case)
        if not case.routed:
            return
        length = case.outcome.head_length + case.outcome.body_length
        outcomes = [self._router.send_next(number, NEXT, length + offset) for offset in (-1, 1, 0)]
        following = reading.find_cluster(case.routes, "GET", "none.such", b"/")
        assert following
        yield from judging.judged_by_next(case, following, *outcomes)

    def _count(self, case: Case) -> None:
        valid = reading.is_valid(case.text)
        self.tally["heads"] += 1
        self.tally["valid"] += valid
        self.tally["routed"] += case.routed
        self.tally["valid and refused"] += valid and not case.routed and case.outcome.status not in (404, 503)
        if isinstance(case.rules, Request):
            found = reading.find_cluster(case.routes, case.rules.method, case.rules.host, case.rules.path)
            self.tally["routable"] += found not in (None, "drained")
        if not case.routed:
            self.tally[f"{case.outcome.kind} {case.outcome.status or ''}".strip()] += 1

    def _read_by(
        self, who: str, longest: int, cases: Sequence[Case], ask: Callable[[list[Question]], list[Heard]]
    ) -> Iterator[Difference]:
        cases = [case for case in cases if case.outcome.body_length < longest]
        ways = [{"apart": number % 2 == 1, "chunk": number % 4 > 1} for number in range(len(cases))]
        questions = [judging.question(case, **way) for case, way in zip(cases, ways, strict=True)]
        for case, question, heard in zip(cases, questions, ask(questions), strict=True):
            if heard.answers and heard.answers[0].status < 400:
                self.tally[f"routed and read by {who}"] += 1
            for how in judging.judged_by_server(case, question, heard):
                yield Difference(case.routes, case.text, who, how)


# ---- making it small ------------------------------------------------------------------------------------


def smallest(text: bytes, differs: Callable[[bytes], bool]) -> bytes:
    """`text` with as much left out as possible so that it still differs (A. Zeller, "Simplifying and isolating
    failure-inducing input", 2002): halves first, single bytes last.
    """
    size = len(text) // 2
    while size:
        at, before = 0, text
        while at < len(text):
            shorter = text[:at] + text[at + size :]
            if differs(shorter):
                text = shorter
            else:
                at += size
        size = size // 2 if size > 1 or text == before else 1
    return text


def keep(difference: Difference) -> Path:
    """Writes a head where it will always be tried from now on."""
    file = REGRESSIONS / f"{difference.who}-{hashlib.sha256(difference.text).hexdigest()[:12]}.http"
    file.write_bytes(difference.text)
    return file
