"""Request heads from a source of random choices: a grammar of valid ones, the classic vectors, and changes to both.

    heads = Heads(random.Random(7), routes)
    text = heads.draw()

The source may be Hypothesis's (`st.randoms()`), which then makes small what fails. Hosts and paths are mostly those of
the routes, or differ from them by a little: what matches nothing tells little about matching.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from packets.oracle import METHODS, Route

CRLF = b"\r\n"
CLUSTERS = ("web", "api", "skewed")
WORLDS = 16  # sets of routes
LONGEST = 2500  # bytes of a head: no packet holds more, and BPF_PROG_TEST_RUN takes little more

SEGMENTS = ("api", "v1", "v2", "admin", "a", "users", "longer-than-eight", "eight-by", "%20", "x.y", "A")
NAMES = ("shop.test", "admin.test", "a.test", "x", "longer-name-of-a-host.shop.test", "eight.by")


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
            routes.append(Route(random.choice(CLUSTERS), exact=path + random.choice(("", "/")) or "/", host=where, method=method))
    unique = {(route.host, route.kind, route.path, route.method): route for route in routes}
    return tuple(unique.values())


# ---- the classic vectors --------------------------------------------------------------------------------

_LINE = b"GET /api HTTP/1.1"
_HOST = b"Host: shop.test"


def _with(*fields: bytes, line: bytes = b"POST /api HTTP/1.1", host: bytes = _HOST) -> bytes:
    return CRLF.join([line, host, *fields, b"", b""])


LENGTHS = (
    b"5", b"0", b"+5", b"-5", b"-0", b"5 ", b" 5", b"\t5", b"5\t", b"5 5", b"5,5", b"5, 5", b"5,", b",5", b"05", b"0x5", b"5.0", b"5e0",
    b"5;", b"\"5\"", b"'5'", b"5\x0b", b"\x0b5", b"5\x00", b"", b" ", b"\xb2", b"1_0", b"00000000000000000000000000000005",
    b"18446744073709551621", b"4294967301", b"2147483647", b"65536", b"9" * 30, b"\xef\xbc\x95",
)  # fmt: skip
ENCODINGS = (
    b"Transfer-Encoding: chunked", b"Transfer-Encoding : chunked", b"Transfer-Encoding:chunked", b"Transfer-Encoding:\tchunked",
    b"Transfer-Encoding: xchunked", b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding: identity, chunked",
    b"Transfer-Encoding: identity", b"Transfer-Encoding: CHUNKED", b"transfer-encoding: chunked", b"TRANSFER-ENCODING: chunked",
    b"Transfer-Encoding: \x0bchunked", b"Transfer-Encoding: chunked\x0b", b"Transfer-Encoding: \"chunked\"", b"X: y\rTransfer-Encoding: chunked",
    b"X: y\nTransfer-Encoding: chunked", b"Transfer-Encoding:\r\n chunked", b"Transfer-Encoding\r\n : chunked", b" Transfer-Encoding: chunked",
    b"\tTransfer-Encoding: chunked", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", b"Transfer-Encoding", b"Transfer-Encoding:",
    b"Transfer_Encoding: chunked", b"Transfer-Encoding: ", b"Transfer Encoding: chunked", b"Transfer-Encoding\x00: chunked",
    b"Transfer-\x00Encoding: chunked", b"Transfer-Encoding: chunked;q=1", b"Transfer-Encoding: c\r\n\thunked", b"Foo: bar\r\n\rTransfer-Encoding: chunked",
    b"TE: chunked", b"Transfer-Encoding\xa0: chunked", b"\xffTransfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked",
)  # fmt: skip
HOSTS = (
    b"", b" ", b".", b"..", b":80", b"shop.test", b"SHOP.TEST", b"shop.test.", b"shop.test..", b"shop.test:80", b"shop.test:", b"shop.test:0x50",
    b"shop.test:99999", b"shop.test:999999", b"shop.test:80:80", b"shop.test:-1", b"shop.test:80@admin.test", b"admin.test@shop.test", b"shop.test@admin.test",
    b"shop.test/admin", b"shop.test?x", b"shop.test#x", b"shop.test\\admin", b"http://shop.test", b"shop.test, admin.test", b"shop.test admin.test",
    b"shop.test\tadmin.test", b"[::1]", b"[::1]:80", b"%73hop.test", b"shop%2etest", b"sh\xc3\xb6p.test", b"xn--shp-sna.test", b"shop_test", b"-", b"_", b"*",
    b"*.shop.test", b".shop.test", b"a..shop.test", b"eu.shop.test", b"x.eu.shop.test", b"1.2.3.4", b"0x7f.1", b"shop.test\x00", b"shop.test\x00.admin.test",
    b"shop.test\xff", b"shop.test;x", b"(shop.test)", b"shop.test:80 ", b"unix:/tmp/x", b"localhost",
)  # fmt: skip
TARGETS = (
    b"/", b"*", b"", b"?", b"/?", b"/?/api", b"//", b"//api", b"///", b"/api//", b"/api/.", b"/api/..", b"/api/./x", b"/api/../admin", b"/..", b"/.",
    b"/...", b"/.x", b"/x/..y", b"/%2e%2e/admin", b"/api/%2e%2e/admin", b"/api%2fadmin", b"/%61pi", b"/api%00", b"/api%0a", b"/api%0d%0aX:", b"/api%", b"/api%2",
    b"/api%zz", b"/api%u0061", b"/api;x", b"/api;/admin", b"/api;jsessionid=1/..", b"/api/;/..;/", b"/api/..;/admin", b"/api\\..\\admin", b"\\api", b"/api#x", b"/#/api",
    b"/api?x#y", b"/api?/../admin", b"/api?x=http://a/", b"/api%3fx", b"/api%23x", b"/api%3Bx", b"/api%25%32%65", b"/api%252e", b"/API", b"/apiary",
    b"/api/v2/users", b"/api\xff", b"/api\xc3\xa9", b"/api%c3%a9", b"/api%ff", b"/api%C0%AE", b"/api\x7f", b"/api\x01", b"/api\t", b"/api x", b"/a%20b", b"/~x", b"/a:b",
    b"http://shop.test/api", b"http://admin.test/api", b"HTTP://SHOP.TEST/api", b"https://shop.test/api", b"http://shop.test", b"http://shop.test?x", b"http:///api",
    b"http://shop.test:80/api", b"http://shop.test:/api", b"http://shop.test./api", b"http://u@shop.test/api", b"http://u:p@shop.test/api", b"http://shop.test\\api",
    b"http://shop.test@admin.test/api", b"http://shop.test#/api", b"http://shop.test//api", b"http://shop.test/../api", b"http:/api", b"http:api", b"http://[::1]/api",
    b"http://shop.test/api?x=/..", b"ftp://shop.test/api", b"shop.test:80", b"shop.test/api", b"/http://shop.test/api", b"/api?\xff", b"/api?\\", b"/api?%", b"/api?\"",
    b"http://*.shop.test/", b"http://.shop.test/", b"http://shop.test /api", b"http://shop.test/api%2e", b"http://shop.test:080/", b"http://shop.test:8080/api",
)  # fmt: skip
LINES = (
    b"GET /api", b"GET  /api HTTP/1.1", b"GET /api  HTTP/1.1", b"GET\t/api\tHTTP/1.1", b"GET /api HTTP/1.1 ", b" GET /api HTTP/1.1", b"get /api HTTP/1.1",
    b"Get /api HTTP/1.1", b"GET /api HTTP/1.2", b"GET /api HTTP/1.00", b"GET /api HTTP/1.10", b"GET /api HTTP/01.1", b"GET /api HTTP/2.0", b"GET /api HTTP/0.9",
    b"GET /api http/1.1", b"GET /api HTTP/1", b"GET /api HTTP/", b"GET /api HTTP /1.1", b"GET /api\x0bHTTP/1.1", b"GETT /api HTTP/1.1", b"PRI * HTTP/2.0",
    b"OPTIONS * HTTP/1.1", b"OPTIONS * HTTP/1.0", b"GET * HTTP/1.1", b"CONNECT shop.test:80 HTTP/1.1", b"CONNECT /api HTTP/1.1", b"PROPFIND /api HTTP/1.1",
    b"GET /api HTTP/1.1\r", b"\r\nGET /api HTTP/1.1", b"\nGET /api HTTP/1.1", b"\r\n\r\nGET /api HTTP/1.1", b"GET /api HTTP/1.1\n", b"GET\x00 /api HTTP/1.1",
    b"GET /api\x00 HTTP/1.1", b"GET /api HTTP/1.1\x00", b"SOURCE /api ICE/1.0", b"GET /api RTSP/1.0", b"HELP", b"\x16\x03\x01\x02\x00\x01\x00\x01", b"QUERY /api HTTP/1.1",
    b"HTTP/1.1 200 OK", b"GET /api HTTP/1.1 HTTP/1.1", b"GET /api HTTP/1.1,HTTP/1.1", b"POST /api HTTP/1.0", b"HEAD /api HTTP/1.0", b"TRACE /api HTTP/1.1", b"M-SEARCH * HTTP/1.1",
)  # fmt: skip
CONNECTIONS = (
    b"Connection: close", b"Connection: keep-alive", b"Connection: Keep-Alive, close", b"Connection: close, keep-alive", b"Connection: upgrade\r\nUpgrade: websocket",
    b"Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__", b"Upgrade: h2c", b"Connection: upgrade", b"Connection: Upgrade\r\nUpgrade: foo/1",
    b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", b"Proxy-Connection: keep-alive",
    b"Connection: Content-Length", b"Connection: Transfer-Encoding", b"Connection: Host", b"Expect: 100-continue", b"Expect: 100-Continue", b"Expect: x", b"Expect:",
    b"Keep-Alive: timeout=5, max=1", b"Upgrade: \r\nConnection: ", b"Connection: ,close", b"Connection: clos\xff", b"Connection:\tclose",
)  # fmt: skip
FIELDS = (
    b"Accept : x", b"Accept\t: x", b"Accept: a\r\n b", b"Accept: a\r\n\tContent-Length: 5", b"Accept: a\nContent-Length: 5", b"Accept: a\rContent-Length: 5", b"Accept",
    b":", b": x", b"Acc\x00ept: x", b"Accept: \x00", b"Accept: \x01", b"Accept: \x7f", b"Accept: \xff\x80", b"Acc\xffept: x", b"Acc(ept): x", b"Accept: a\tb", b"\x0bAccept: x",
    b"Host2: x", b"XHost: admin.test", b"X-Forwarded-Host: admin.test", b"X-Original-URL: /admin", b"X-Rewrite-URL: /admin", b"X-HTTP-Method-Override: DELETE",
    b"Content-Length : 5", b"Content_Length: 5", b"Content-Length\x00: 5", b"Content-Length\xa0: 5", b"Content-Lengthx: 5", b"xContent-Length: 5", b"Content-Length=5",
    b"Content-Encoding: chunked", b"Trailer: Content-Length", b"Host : admin.test", b"Host\t: admin.test", b" Host: admin.test", b"Host", b"Host:", b"Host: admin.test",
    b"host: admin.test", b"HOST:shop.test", b"\xc4\xb0ost: x", b"Ho\xc5\xbft: x", b"Content-Length: 5\r\nContent-Length: 5", b"Content-Length: 5\r\nContent-Length: 6",
    b"Content-Length: 5\r\nContent-length: 5", b"Content-Length: 5\nContent-Length: 6", b"A" * 64 + b": x", b"A" * 255 + b": x", b"A" * 300 + b": x", b"X: " + b"y" * 900,
    b"Authority: admin.test", b":authority: admin.test", b"Cookie: a=b; c=d", b"Range: bytes=0-5", b"A:", b"A: ", b"A:b:c", b"{}: x", b"\"a\": b",
)  # fmt: skip
BROWSER = (
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0", b"Accept: text/html,application/xhtml+xml,*/*;q=0.8",
    b"Accept-Language: en-US,en;q=0.5", b"Accept-Encoding: gzip, deflate, br", b"Connection: keep-alive", b"Upgrade-Insecure-Requests: 1", b"DNT: 1",
    b"Cache-Control: no-cache", b"Pragma: no-cache", b"If-None-Match: \"0\"", b"Referer: http://shop.test/a?b", b"Origin: http://shop.test", b"Cookie: session=0123456789abcdef",
    b"Sec-Fetch-Mode: navigate", b"Content-Type: application/x-www-form-urlencoded", b"X-Requested-With: XMLHttpRequest", b"Authorization: Basic YTpi",
)  # fmt: skip
SEEDS = (
    [_with(b"Content-Length: " + length) for length in LENGTHS]
    + [_with(encoding) for encoding in ENCODINGS]
    + [_with(b"Content-Length: 5", encoding) for encoding in ENCODINGS]
    + [_with(encoding, b"Content-Length: 5") for encoding in ENCODINGS]
    + [_with(b"Host: " + host, host=b"Accept: */*") for host in HOSTS]
    + [_with(line=b"GET " + target + b" HTTP/1.1") for target in TARGETS]
    + [_with(line=line) for line in LINES]
    + [_with(line=_LINE, host=field) for field in FIELDS]
    + [_with(field) for field in FIELDS]
    + [_with(connection) for connection in CONNECTIONS]
    + [_with(connection, b"Content-Length: 43") for connection in CONNECTIONS]
    + [_with(connection, line=b"GET /api HTTP/1.0") for connection in CONNECTIONS]
    + [_with().replace(CRLF, end) for end in (b"\n", b"\r", b"\n\r", b"\r\r\n", b"\r\n\x00")]
    + [b"GET /api\r\n", b"GET /api\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", _with() + b"\r\n", _with() + _with(), _with(b"Content-Length: 3") + b"GET"]
)  # fmt: skip

_SPECIAL = (b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b",", b";", b"/", b"?", b"#", b"%", b".", b"..", b"//", b"\\", b"@", b"\x7f", b"\x80", b"\xff", b"\x0b", b"\x0c",
            b"\x1f", b"%2e", b"%2f", b"0", b"1", b"-", b"+", b"_", b"[", b"]", b"\r\n ", b"\r\n\t", b"\r\n\r\n", b"Host:", b"Content-Length: 5")  # fmt: skip


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
        base = self._random.choice(SEEDS) if kind < 0.85 else self._plain()
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
            fields.append(b"X-Fill: " + b"f" * self._random.randrange(24))  # what follows passes over all seams of 8 bytes
        if chance() < (0.6 if method in (b"POST", b"PUT", b"PATCH") else 0.1):
            fields.append(b"Content-Length:" + self._white() + b"%d" % choose((0, 1, 5, 43, 43, 200, 3000, self._random.randrange(3000))))
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
        return CRLF.join([b" ".join((method, target, version)), *fields, b"", b""])

    def _white(self) -> bytes:
        """nginx refuses tabs here: too many of them would keep it out of the hunt."""
        return b" " if self._random.random() < 0.8 else self._random.choice((b"", b"", b"   ", b"  ", b"\t", b" \t "))

    def _cased(self, text: bytes) -> bytes:
        return text if self._random.random() < 0.6 else self._random.choice((text.lower(), text.upper(), text.swapcase()))

    def _host(self) -> bytes:
        name = self._random.choice(self._hosts).replace("*", self._random.choice(("x", "eu", "a.b", "eu.x", "longer-label")))
        name += self._random.choice(("",) * 6 + (":80", ":8080", ".", ".:80", ":", "x", "-1"))
        return self._cased(name.encode())

    def _target(self) -> bytes:
        chance, choose = self._random.random, self._random.choice
        path = choose(self._paths)
        if chance() < 0.5:
            path = path.removesuffix("/")
            path += "".join(f"/{choose((*SEGMENTS, 'y', 'index.html', '%C3%A9', '...', '~me', 'a:b@c', '(x)', 'p;q=1'))}" for _ in range(choose((1, 1, 2, 3, 12))))
        path += choose(("", "", "", "", "x", "-v2") if path.endswith("/") else ("", "", "", "", "/", "x", "-v2"))
        query = choose(("", "", "", "?", "?a=b", "?a=b&c=%2e%2e/", "?/api//x", "?x=a?b", "?" + "q" * self._random.randrange(40)))
        path = path if path.startswith("/") else "/" + path
        if chance() < 0.02:
            return f"http://{choose(self._hosts).replace('*', 'x')}{path}{query}".encode()
        return (path + query).encode()

    # ---- the others ------------------------------------------------------------------------------------

    def _combined(self) -> bytes:
        """Of parts that are each a vector, or plain."""
        choose, chance = self._random.choice, self._random.random
        line = choose(LINES) if chance() < 0.15 else choose((b"GET ", b"POST ", b"OPTIONS ")) + (choose(TARGETS) if chance() < 0.6 else self._target()) + choose(
            (b" HTTP/1.1", b" HTTP/1.1", b" HTTP/1.0"))
        fields = [b"Host: " + (choose(HOSTS) if chance() < 0.4 else self._host())]
        parts: list[Callable[[], bytes]] = [
            lambda: choose(FIELDS), lambda: choose(ENCODINGS), lambda: b"Content-Length: " + choose(LENGTHS), lambda: choose(CONNECTIONS), lambda: choose(BROWSER),
        ]  # fmt: skip
        fields += [choose(parts)() for _ in range(self._random.randrange(4))]
        self._random.shuffle(fields)
        return CRLF.join([line, *fields, b"", b""])

    def _changed(self, text: bytes) -> bytes:
        """One change: of a few bytes, or of whole lines."""
        changes = (self._insert, self._insert, self._replace, self._delete, self._flip, self._repeat_line, self._drop_line, self._swap_lines, self._cut, self._stretch, self._end_line)
        return self._random.choice(changes)(text)

    def _place(self, text: bytes) -> int:
        return self._random.randrange(len(text) + 1)

    def _insert(self, text: bytes) -> bytes:
        at = self._place(text)
        return text[:at] + self._random.choice(_SPECIAL) + text[at:]

    def _replace(self, text: bytes) -> bytes:
        at = self._place(text)
        return text[:at] + self._random.choice(_SPECIAL) + text[at + 1 :]

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
        return CRLF.join(lines[: at + 1]) + self._random.choice((b"\n", b"\r", b"\r\r\n", b"\n\n", b"\0\r\n", b" \r\n", b"\r\n ")) + CRLF.join(lines[at + 1 :])
