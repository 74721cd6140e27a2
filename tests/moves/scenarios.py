"""What is explored: in CI, and what only the long form has time for."""

from __future__ import annotations

from packets.frames import request

from moves.model import Ending, Exchange, Extra, Scenario

A, B = Exchange("A"), Exchange("B")
HEAD_A, HEAD_B = Exchange("A", "HEAD"), Exchange("B", "HEAD")
EVIL = request("/a/7")  # a body that looks like a request
POST_A, POST_B = Exchange("A", "POST", b"a body, apart", apart=True), Exchange("B", "POST", EVIL, apart=True)

_TWO = Scenario("", (A, B))
_SECOND, _THIRD = _TWO.starts[1:]
_HEARD = _TWO.ends[1:]
HOSTILE = (
    Extra(request("/a/8"), _SECOND, _HEARD[0]),  # another request in the place of one that moves
    Extra(request("/b/8"), _SECOND, _HEARD[0] - 1),
    *(
        Extra(request(path), _THIRD, heard) for path in ("/a/9", "/b/9") for heard in _HEARD
    ),  # before its time, and then
    Extra(request("/a/6"), _SECOND + 1, _HEARD[0]),
    Extra(b"", _SECOND, _HEARD[0], "FA"),
    Extra(b"", _THIRD, _HEARD[0], "FA"),
    Extra(b"", _SECOND, _HEARD[0], "RA"),
)

CI = (
    Scenario("a b", (A, B)),
    Scenario("a a b", (A, A, B)),
    Scenario("a b b", (A, B, B)),
    Scenario("a b a", (A, B, A)),
    Scenario("a b a b", (A, B, A, B)),
    Scenario("HEAD a, HEAD b, a", (HEAD_A, HEAD_B, A)),
    Scenario("a b, pipelined, answers in parts", (A, B), pipelined=True, parts=True),
    Scenario("HEAD a, b, pipelined", (HEAD_A, B), pipelined=True, parts=True),
    Scenario("a with 100 Continue, b, pipelined", (Exchange("A", expecting=True), B), pipelined=True, parts=True),
    Scenario("a, POST b", (A, POST_B)),
    Scenario("POST a, b", (POST_A, B)),
    Scenario("a, POST b, a", (A, POST_B, A)),
    Scenario("a b, and the SYN again", (A, B), syn=True),
    Scenario("a b, and the routes change", (A, B), changes=True),
    Scenario("a b, then the end", (A, B), ending=Ending.AFTER),
    Scenario("a b, the end behind the request", (A, B), ending=Ending.BEHIND),
    Scenario("a b, the end with the request", (A, B), ending=Ending.WITH),
    Scenario("a b a, then the end", (A, B, A), ending=Ending.AFTER),
    Scenario("a b, hostile", (A, B), hostile=HOSTILE[:4]),
)

LONG = (
    Scenario("a b a b a b", (A, B, A, B, A, B)),
    Scenario("a a b b a a", (A, A, B, B, A, A)),
    Scenario("a b a, pipelined, answers in parts", (A, B, A), pipelined=True, parts=True),
    Scenario("a, POST b, pipelined", (A, POST_B), pipelined=True, parts=True),
    Scenario("a, POST b, POST a, b", (A, POST_B, Exchange("A", "POST", EVIL, apart=True), B)),
    Scenario("a b a, and the SYN again", (A, B, A), syn=True),
    Scenario("a b a, and the routes change", (A, B, A), changes=True),
    Scenario("a b a, the end behind the request", (A, B, A), ending=Ending.BEHIND),
    Scenario("a b, hostile in all ways", (A, B), hostile=HOSTILE),
)
