"""Request heads from a source of random choices: a grammar of valid ones, the classic vectors, and changes to both.

    heads = Heads(random.Random(7), routes)
    text = heads.draw()

The source may be Hypothesis's (`st.randoms()`), which then makes small what fails. Hosts and paths are mostly those of
the routes, or differ from them by a little: what matches nothing tells little about matching.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random

import packets
from packets.oracle import METHODS, Route

from fuzz.vectors import BROWSER, CONNECTIONS, CRLF, ENCODINGS, FIELDS, HEADS, HOSTS, LENGTHS, LINES, PIECES, TARGETS

CLUSTERS = ("web", "api", "skewed")
RECORDED = tuple(file.read_bytes() for file in sorted(Path(packets.__file__).parent.glob("data/heads/*.http")))
"""what real clients sent"""
WORLDS = 16  # sets of routes
LONGEST = 2500  # bytes of a head: no packet holds more, and BPF_PROG_TEST_RUN takes little more

SEGMENTS = ("api", "v1", "v2", "admin", "a", "users", "longer-than-eight", "eight-by", "%20", "x.y", "A")
NAMES = ("shop.test", "admin.test", "a.test", "x", "longer-name-of-a-host.shop.test", "eight.by")


@cache
def world(number: int) -> tuple[Route, ...]:
    """The routes of one world: a dozen of every kind, the same for the same number."""
    random = Random(number)
    routes = [Route("web", prefix="/"), Route("api", prefix="/api"), Route("drained", prefix="/drained")]
    hosts = [None, *random.sample(NAMES, 3), "*.shop.test", "*.eu.shop.test", "*.test"]
    routes += [Route(random.choice(CLUSTERS), prefix="/", host=host) for host in hosts[1:] if random.random() < 0.8]
    for _ in range(14):
        path = "".join(f"/{random.choice(SEGMENTS)}" for _ in range(random.choice((0, 1, 1, 2, 2, 3, 9))))
        method = random.choice((None, None, None, *METHODS))
        where = random.choice(hosts)
        if random.random() < 0.6:
            routes.append(Route(random.choice(CLUSTERS), prefix=path or "/", host=where, method=method))
        else:
            routes.append(
                Route(random.choice(CLUSTERS), exact=path + random.choice(("", "/")) or "/", host=where, method=method)
            )
    unique = {(route.host, route.kind, route.path, route.method): route for route in routes}
    return tuple(unique.values())


# ---- drawing --------------------------------------------------------------------------------------------


class Heads:
    """An endless supply of heads for one world."""

    def __init__(self, random: Random, routes: Sequence[Route]) -> None:
        """`routes`: which paths and hosts are worth asking for."""
        self._random = random
        self._paths = [route.path.decode() for route in routes] + ["/api"]
        self._hosts = [route.host for route in routes if route.host] + list(NAMES)

    def draw(self) -> bytes:
        """Three of five are valid, and most of these plain."""
        kind = self._random.random()
        if kind < 0.62:
            return self._plain()
        if kind < 0.72:
            return self._combined()
        base = self._random.choice(HEADS if kind < 0.82 else RECORDED) if kind < 0.85 else self._plain()
        for _ in range(self._random.choice((1, 1, 1, 2, 3))):
            base = self._changed(base)
        return base[:LONGEST]

    # ---- valid ones ------------------------------------------------------------------------------------

    def _plain(self) -> bytes:
        """A valid head, as clients write them."""
        choose, chance = self._random.choice, self._random.random
        method = choose(("GET", "GET", "GET", "POST", "POST", "HEAD", "PUT", *METHODS)).encode()
        version = b"HTTP/1.0" if chance() < 0.1 else b"HTTP/1.1"
        fields = [choose(BROWSER) for _ in range(self._random.randrange(6))]
        if chance() < 0.5:
            fields.append(
                b"X-Fill: " + b"f" * self._random.randrange(24)
            )  # what follows passes over all seams of 8 bytes
        length = 0
        if chance() < (0.6 if method in (b"POST", b"PUT", b"PATCH") else 0.1):
            length = choose((0, 1, 5, 43, 43, 200, 3000, self._random.randrange(3000)))
            fields.append(b"Content-Length:" + self._white() + b"%d" % length)
        if chance() < 0.05:
            fields.append(choose(CONNECTIONS))
        host, target = self._host(), self._target()
        if version == b"HTTP/1.1" or chance() < 0.7:
            fields.append(self._cased(b"Host") + b":" + self._white() + host)
            if chance() < 0.05:
                target = b"http://" + self._cased(host) + target
        if method == b"OPTIONS" and chance() < 0.3:
            target = b"*"
        self._random.shuffle(fields)
        head = CRLF.join([b" ".join((method, target, version)), *fields, b"", b""])
        return head + b"b" * self._random.randrange(length + 1) if chance() < 0.1 else head

    def _white(self) -> bytes:
        """nginx refuses tabs here: too many of them would keep it out of the hunt."""
        return b" " if self._random.random() < 0.8 else self._random.choice((b"", b"", b"   ", b"  ", b"\t", b" \t "))

    def _cased(self, text: bytes) -> bytes:
        return (
            text if self._random.random() < 0.6 else self._random.choice((text.lower(), text.upper(), text.swapcase()))
        )

    def _host(self) -> bytes:
        name = self._random.choice(self._hosts).replace(
            "*", self._random.choice(("x", "eu", "a.b", "eu.x", "longer-label"))
        )
        name += self._random.choice(("",) * 6 + (":80", ":8080", ".", ".:80", ":", "x", "-1"))
        return self._cased(name.encode())

    def _target(self) -> bytes:
        chance, choose = self._random.random, self._random.choice
        path = choose(self._paths)
        if chance() < 0.5:
            path = path.removesuffix("/")
            path += "".join(
                f"/{choose((*SEGMENTS, 'y', 'index.html', '%C3%A9', '...', '~me', 'a:b@c', '(x)', 'p;q=1'))}"
                for _ in range(choose((1, 1, 2, 3, 12)))
            )
        path += choose(("", "", "", "", "x", "-v2") if path.endswith("/") else ("", "", "", "", "/", "x", "-v2"))
        query = choose(
            ("", "", "", "?", "?a=b", "?a=b&c=%2e%2e/", "?/api//x", "?x=a?b", "?" + "q" * self._random.randrange(40))
        )
        path = path if path.startswith("/") else "/" + path
        if chance() < 0.02:
            return f"http://{choose(self._hosts).replace('*', 'x')}{path}{query}".encode()
        return (path + query).encode()

    # ---- the others ------------------------------------------------------------------------------------

    def _combined(self) -> bytes:
        """Of parts that are each a vector, or plain."""
        choose, chance = self._random.choice, self._random.random
        method, version = choose((b"GET ", b"POST ", b"OPTIONS ")), choose((b" HTTP/1.1", b" HTTP/1.1", b" HTTP/1.0"))
        target = choose(TARGETS) if chance() < 0.6 else self._target()
        line = choose(LINES) if chance() < 0.15 else method + target + version
        fields = [b"Host: " + (choose(HOSTS) if chance() < 0.4 else self._host())]
        lengths = tuple(b"Content-Length: " + length for length in LENGTHS)
        kinds = (FIELDS, ENCODINGS, lengths, CONNECTIONS, BROWSER)
        fields += [choose(choose(kinds)) for _ in range(self._random.randrange(4))]
        self._random.shuffle(fields)
        return CRLF.join([line, *fields, b"", b""])

    def _changed(self, text: bytes) -> bytes:
        """One change: of a few bytes, or of whole lines."""
        changes = (
            self._insert,
            self._insert,
            self._replace,
            self._delete,
            self._flip,
            self._repeat_line,
            self._drop_line,
            self._swap_lines,
            self._cut,
            self._stretch,
            self._end_line,
        )
        return self._random.choice(changes)(text)

    def _place(self, text: bytes) -> int:
        return self._random.randrange(len(text) + 1)

    def _insert(self, text: bytes) -> bytes:
        at = self._place(text)
        return text[:at] + self._random.choice(PIECES) + text[at:]

    def _replace(self, text: bytes) -> bytes:
        at = self._place(text)
        return text[:at] + self._random.choice(PIECES) + text[at + 1 :]

    def _delete(self, text: bytes) -> bytes:
        at = self._place(text)
        return text[:at] + text[at + self._random.choice((1, 1, 2, 8)) :]

    def _flip(self, text: bytes) -> bytes:
        changed, at = bytearray(text + b" "), self._place(text)
        changed[at] ^= 1 << self._random.randrange(8)
        return bytes(changed)

    def _lines(self, text: bytes) -> tuple[list[bytes], int]:
        lines = text.split(CRLF)
        return lines, self._random.randrange(len(lines))

    def _repeat_line(self, text: bytes) -> bytes:
        lines, at = self._lines(text)
        return CRLF.join([*lines[:at], *lines[at : at + 1] * self._random.choice((2, 2, 3, 130)), *lines[at + 1 :]])

    def _drop_line(self, text: bytes) -> bytes:
        lines, at = self._lines(text)
        return CRLF.join([*lines[:at], *lines[at + 1 :]])

    def _swap_lines(self, text: bytes) -> bytes:
        lines, at = self._lines(text)
        return CRLF.join([*lines[:at], *reversed(lines[at:-2]), *lines[-2:]])

    def _cut(self, text: bytes) -> bytes:
        return text[: self._place(text)]

    def _stretch(self, text: bytes) -> bytes:
        at = self._place(text)
        return text[:at] + text[at : at + 1] * self._random.choice((2, 9, 17, 257, 1200)) + text[at:]

    def _end_line(self, text: bytes) -> bytes:
        """Another end for one of the lines."""
        lines, at = self._lines(text)
        return (
            CRLF.join(lines[: at + 1])
            + self._random.choice((b"\n", b"\r", b"\r\r\n", b"\n\n", b"\0\r\n", b" \r\n", b"\r\n "))
            + CRLF.join(lines[at + 1 :])
        )
