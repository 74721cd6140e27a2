"""Ways round the routes, tried on the fallback's real proxies with real nginx servers behind them.

What is asserted of each: whatever has reached a backend, that backend's own reading of it (host, decoded and normalised
path, method) is a request for which a route names that backend. And nothing reaches one that nobody has asked for:
requests hidden in bodies, in headers, behind upgrades.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from e2e.proxied import Seen, Site, configuration, replies, site
from rauta import fallback

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

ROUTES = [
    {"host": "shop.test", "prefix": "/public", "cluster": "public"},
    {"host": "shop.test", "prefix": "/public/secret", "cluster": "secret"},
    {"host": "shop.test", "prefix": "/read", "method": "GET", "cluster": "public"},
    {"host": "shop.test", "prefix": "/read", "method": "POST", "cluster": "secret"},
    {"host": "admin.test", "prefix": "/", "cluster": "admin"},
    {"host": "*.wild.test", "prefix": "/", "cluster": "wild"},
    {"prefix": "/any", "cluster": "any"},
]
CONFIG = configuration(
    [{"name": "shop", "routes": ROUTES}],
    {"public": 11, "secret": 12, "admin": 13, "wild": 14, "any": 15},
)
CLUSTER_OF = {str(one.backends[0].address): one.name for one in CONFIG.clusters}
HIDDEN = "GET /hidden HTTP/1.1\r\nHost: admin.test\r\n\r\n"
"""a request that would get somewhere"""


@pytest.fixture(scope="module", params=fallback.KINDS)
def proxy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(request.param, CONFIG, tmp_path_factory.mktemp("proxied")) as one:
        yield one


def named(host: str, path: str, method: str) -> str:
    """The cluster that the routes above name, written out; empty for none."""
    if host == "shop.test":
        for prefix, cluster in (("/public/secret", "secret"), ("/public", "public")):
            if path == prefix or path.startswith(prefix + "/"):
                return cluster
        if path == "/read" or path.startswith("/read/"):
            return {"GET": "public", "POST": "secret"}.get(method, "")
        return ""
    if host == "admin.test":
        return "admin"
    if host.endswith(".wild.test") and host != ".wild.test":
        return "wild"
    return "any" if path == "/any" or path.startswith("/any/") else ""


def astray(seen: list[Seen]) -> list[Seen]:
    """Requests at backends that no route names for them."""
    return [one for one in seen if named(one.host.lower(), one.uri, one.method) != CLUSTER_OF[one.address]]


def text(*lines: str, body: str = "", method: str = "GET", target: str = "/public", host: str = "shop.test") -> bytes:
    """A request as it goes over the wire, with a Host in front unless the lines have one."""
    first = [f"{method} {target} HTTP/1.1"]
    if not any(line.lower().startswith("host") for line in lines):
        first.append(f"Host: {host}")
    return ("\r\n".join([*first, *lines, "", ""]) + body).encode("latin-1")


# ---- paths ----------------------------------------------------------------------------------------------

PATHS = [
    "/public/../admin",
    "/public/..",
    "/public/../",
    "/public/.",
    "/public/./secret",
    "/public//secret",
    "//public/secret",
    "/public/x/../secret/y",
    "/public/x//../secret",
    "/public/x//..//secret",
    "/public/%2e%2e/read",
    "/public/%2E%2E/read",
    "/public/.%2e/read",
    "/public/%2e/secret",
    "/public/x/%2e%2e/secret",
    "/public/%73ecret",
    "/%70ublic/secret",
    "/public%2fsecret",
    "/public%2Fsecret",
    "/public/x%2f..%2fsecret",
    "/public/..%2fsecret",
    "/public%5csecret",
    "/public\\secret",
    "/public/..\\read",
    "/public/x\\..\\secret",
    "/public/%252e%252e/read",
    "/public/%25%32%65%25%32%65/read",
    "/public/secret%00",
    "/public/secret%0d%0aX:%20y",
    "/public/%0a../secret",
    "/public/secret%3fx",
    "/public%3f/../secret",
    "/public/x?/../secret",
    "/public/x?/../../admin",
    "/public/x#/../secret",
    "/public#/secret",
    "/public/x%23/../secret",
    "/public/..;/read",
    "/public/;/secret",
    "/public;/secret",
    "/..",
    "/../public/secret",
    "/../../../../public/secret",
    "/public/secret/../../public/secret",
    "/./public/secret",
    "/public/%c0%ae%c0%ae/read",
    "/public/\xc0\xae\xc0\xae/read",
    "/public/caf\xe9",
    "/PUBLIC/secret",
    "/public/SECRET",
    "/publicsecret",
    "/public/secretx",
    "/public/%",
    "/public/%2",
    "/public/%zz",
    "/public/%u002e",
    "public/secret",
    "public",
    "*",
    "?x",
    "/public secret",
    "/public\tsecret",
    "/public\x0bsecret",
    "/public\0/secret",
    "http://shop.test/public/../read",
    "http://shop.test/public/%2e%2e/read",
    "http://shop.test//public//secret",
    "http://shop.test",
    "http://shop.test?x=/public",
    "http://shop.test#/public",
    "http://admin.test/x",
    "http://admin.test:80/x",
    "http://admin.test@shop.test/public",
    "http://shop.test@admin.test/public",
    "http://shop.test\\@admin.test/public",
    "http:///public",
    "https://shop.test/public",
    "HTTP://SHOP.TEST/public",
    "ftp://shop.test/public",
    "shop.test:80",
    "//shop.test/public",
    "//admin.test/public",
]


@pytest.mark.parametrize("target", PATHS)
def test_a_path_leads_where_its_reader_is_named(proxy: Site, target: str) -> None:
    for method in ("GET", "POST"):
        answers = proxy.ask(text("Content-Length: 0", method=method, target=target))
        assert len(answers) <= 1
    assert astray(proxy.seen()) == []


@pytest.mark.parametrize(
    ("target", "sent"),
    [
        ("/public/x/../y", "/public/y"),
        ("/public//y", "/public/y"),
        ("/public/./y", "/public/y"),
        ("/public/%79", "/public/y"),
        ("/public/%2e%2e/public/a%3Fb/./c?d=/../e", "/public/a%3Fb/c?d=/../e"),
        ("/public/%41%20b", "/public/A%20b"),
        # Nothing there to normalise: as it came, to the letter.
        (
            "/public/a%3ab%2Bc+d%26e%3D;f=g,h%c3%a9?i=%2F&j=//%2e",
            "/public/a%3ab%2Bc+d%26e%3D;f=g,h%c3%a9?i=%2F&j=//%2e",
        ),
        ("/public/?", "/public/?"),
        ("/public/...", "/public/..."),
        ("/public/.hidden/..x/y..", "/public/.hidden/..x/y.."),
        ("http://shop.test/public/y?z", "/public/y?z"),
        ("http://shop.test/public/x/../y", "/public/y"),
    ],
)
def test_what_is_sent_on_is_what_was_matched(proxy: Site, target: str, sent: str) -> None:
    proxy.ask(text(target=target))
    assert [one.request for one in proxy.seen()] == [f"GET {sent} HTTP/1.1"]


REFUSED = [
    "/public%2fx",
    "/public/%5Cx",
    "/public\\x",
    "/public/%00",
    "/public/%0d%0a",
    "/public/%1f",
    "/public/%7F",
    "/a#b",
]


@pytest.mark.parametrize("target", REFUSED)
def test_what_servers_disagree_on_is_refused(proxy: Site, target: str) -> None:
    (answer,) = proxy.ask(text(target=target))
    assert answer.status == 400
    assert proxy.seen() == []


# ---- hosts ----------------------------------------------------------------------------------------------

HOSTS = [
    ["Host: shop.test", "Host: admin.test"],
    ["Host: admin.test", "Host: shop.test"],
    ["Host: shop.test", "Host: shop.test"],
    ["Host: shop.test", "host: admin.test"],
    ["Host: shop.test, admin.test"],
    ["Host: shop.test,admin.test"],
    ["Host: shop.test admin.test"],
    ["Host: admin.test:80@shop.test"],
    ["Host: shop.test:80@admin.test"],
    ["Host: shop.test#admin.test"],
    ["Host: shop.test/admin.test"],
    ["Host: shop.test:admin.test"],
    ["Host: shop.test:80:80"],
    ["Host: shop%2etest"],
    ["Host: .shop.test"],
    ["Host: shop.test."],
    ["Host: shop.test.."],
    ["Host: .wild.test"],
    ["Host: x.wild.test."],
    ["Host: x..wild.test"],
    ["Host: [::1]"],
    ["Host: [shop.test]"],
    ["Host:"],
    ["Host: "],
    ["Host : admin.test"],
    ["Host: shop.test", "Host : admin.test"],
    ["Host: shop.test", " Host: admin.test"],
    ["Host: shop.test", "X: y", "\tHost: admin.test"],
    ["Host: shop.test", "X-Host: admin.test", "X-Forwarded-Host: admin.test"],
    ["Host\0: admin.test", "Host: shop.test"],
    ["Host: shop.test\0admin.test"],
    ["Host: shop.test\radmin.test"],
    ["Host: shop.test\nHost: admin.test"],
    ["Host: shop.test", "X: y\nHost: admin.test"],
    ["Host: shop.test", "X: y\rHost: admin.test"],
    ["Host: \x0bshop.test"],
    ["Host: shop.test\x0b"],
    ["HOST: SHOP.TEST"],
    ["Host:shop.test\t"],
]


@pytest.mark.parametrize("lines", HOSTS, ids=lambda lines: "|".join(lines).encode("unicode_escape").decode())
@pytest.mark.parametrize("target", ["/public", "/any", "http://shop.test/public", "http://admin.test/x"])
def test_a_host_selects_the_routes_of_who_reads_it(proxy: Site, lines: list[str], target: str) -> None:
    proxy.ask(text(*lines, target=target))
    assert astray(proxy.seen()) == []


def test_the_backend_gets_the_host_that_selected_it(proxy: Site) -> None:
    """With its port, which is part of what the client asked for; of an absolute target, what that says."""
    for line in ("Shop.test:8080", "shop.test.", "x.wild.test"):
        proxy.ask(text(f"Host: {line}"))
    assert [one.host_line for one in proxy.seen()] == ["Shop.test:8080", "shop.test.", "x.wild.test"]
    proxy.ask(text("Host: admin.test:8080", target="http://admin.test:8080/x"))
    assert [(one.host_line, one.request) for one in proxy.seen()] == [("admin.test:8080", "GET /x HTTP/1.1")]


# ---- methods --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["get", "Get", "post", "GET\0", "PO ST", " POST", "G ET", "TRACE", "CONNECT", "FOO"])
def test_a_method_is_what_it_says(proxy: Site, method: str) -> None:
    proxy.ask(text(method=method, target="/read/x"))
    proxy.ask(text("X-HTTP-Method-Override: POST", target="/read/x"))
    seen = proxy.seen()
    assert astray(seen) == []
    assert {one.method for one in seen} == {"GET"}


# ---- bodies ---------------------------------------------------------------------------------------------

CHUNKED = f"{len(HIDDEN):x}\r\n{HIDDEN}\r\n0\r\n\r\n"
BODIES = {
    "length, then chunks": (["Content-Length: 4", "Transfer-Encoding: chunked"], f"0\r\n\r\n{HIDDEN}"),
    "chunks, then length": (["Transfer-Encoding: chunked", f"Content-Length: {len(HIDDEN)}"], f"0\r\n\r\n{HIDDEN}"),
    "two lengths": (["Content-Length: 0", f"Content-Length: {len(HIDDEN)}"], HIDDEN),
    "two lengths, the other way": ([f"Content-Length: {len(HIDDEN)}", "Content-Length: 0"], HIDDEN),
    "a list of lengths": ([f"Content-Length: 0, {len(HIDDEN)}"], HIDDEN),
    "a signed length": ([f"Content-Length: +{len(HIDDEN)}"], HIDDEN),
    "a length with a space": (["Content-Length: 0 5"], HIDDEN),
    "a length in hex": ([f"Content-Length: {len(HIDDEN):#x}"], HIDDEN),
    "an empty length": (["Content-Length:"], HIDDEN),
    "a length that is 0 in 64 bits": (["Content-Length: 18446744073709551616"], HIDDEN),
    "a length that is 0 in 32 bits": (["Content-Length: 4294967296"], HIDDEN),
    "a negative length in 64 bits": (["Content-Length: 9223372036854775808"], HIDDEN),
    "a space before the colon": ([f"Content-Length : {len(HIDDEN)}"], HIDDEN),
    "a folded length": (["Content-Length:", f" {len(HIDDEN)}"], HIDDEN),
    "a folded encoding": (["Transfer-Encoding:", " chunked"], CHUNKED),
    "an encoding that is none": (["Transfer-Encoding: xchunked"], CHUNKED),
    "an encoding in quotes": (['Transfer-Encoding: "chunked"'], CHUNKED),
    "an encoding with a tab": (["Transfer-Encoding:\tchunked"], CHUNKED),
    "an encoding with a vertical tab": (["Transfer-Encoding:\x0bchunked"], CHUNKED),
    "an encoding with a comma": (["Transfer-Encoding: chunked,"], CHUNKED),
    "chunked and identity": (["Transfer-Encoding: chunked, identity"], CHUNKED),
    "identity and chunked": (["Transfer-Encoding: identity, chunked"], CHUNKED),
    "chunked twice": (["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], CHUNKED),
    "chunked, then identity": (["Transfer-Encoding: chunked", "Transfer-Encoding: identity"], CHUNKED),
    "gzip and chunked": (["Transfer-Encoding: gzip, chunked"], CHUNKED),
    "an underscore": (["Transfer_Encoding: chunked"], CHUNKED),
    "a NUL in the name": (["Transfer-Encoding\0: chunked"], CHUNKED),
    "behind a bare LF": (["X: y\nTransfer-Encoding: chunked"], CHUNKED),
    "behind a bare CR": (["X: y\rTransfer-Encoding: chunked"], CHUNKED),
    "named in Connection": (["Connection: Content-Length", f"Content-Length: {len(HIDDEN)}"], HIDDEN),
    "encoding named in Connection": (["Connection: Transfer-Encoding", "Transfer-Encoding: chunked"], CHUNKED),
    "a chunk extension": (["Transfer-Encoding: chunked"], f"0;x=y\r\n\r\n{HIDDEN}"),
    "a chunk extension with a line end": (["Transfer-Encoding: chunked"], f"1;a\nx\r\n0\r\n\r\n{HIDDEN}"),
    "a chunk size too large": (["Transfer-Encoding: chunked"], f"ffffffffffffffff1\r\nx\r\n0\r\n\r\n{HIDDEN}"),
    "a chunk size that wraps": (["Transfer-Encoding: chunked"], f"100000000\r\n{HIDDEN}"),
    "a chunk size with 0x": (["Transfer-Encoding: chunked"], f"0x1\r\nx\r\n0\r\n\r\n{HIDDEN}"),
    "a signed chunk size": (["Transfer-Encoding: chunked"], f"+1\r\nx\r\n0\r\n\r\n{HIDDEN}"),
    "a chunk longer than it says": (["Transfer-Encoding: chunked"], f"1\r\nxGET /\r\n0\r\n\r\n{HIDDEN}"),
    "chunks with bare LF": (["Transfer-Encoding: chunked"], f"1\nx\n0\n\n{HIDDEN}"),
    "trailers": (["Transfer-Encoding: chunked", "Trailer: Host"], f"0\r\nHost: admin.test\r\n\r\n{HIDDEN}"),
    "trailers that look like a request": (["Transfer-Encoding: chunked"], f"0\r\n{HIDDEN}"),
}


@pytest.mark.parametrize(("lines", "body"), BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("target", ["/public", "/nowhere"])
def test_what_a_body_hides_is_a_request_for_both_or_for_none(
    proxy: Site, lines: list[str], body: str, target: str
) -> None:
    """Where the proxy takes the rest for a request, it routes it: then the client sees an answer for each."""
    answers = proxy.ask(text(*lines, body=body, method="POST", target=target))
    seen = proxy.seen()
    assert astray(seen) == []
    assert len(seen) <= max(len(answers), 1)
    framed = [one for one in seen if one.method == "POST"]
    assert all(not (one.length and one.encoding) for one in framed)


@pytest.mark.parametrize(
    "version", ["HTTP/1.0", "HTTP/0.9", "HTTP/1.2", "HTTP/2.0", "HTTP/3", "http/1.1", "HTTP/1.1x", ""]
)
def test_other_versions_hide_nothing_either(proxy: Site, version: str) -> None:
    head = f"POST /public {version}".rstrip() + "\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n"
    answers = replies(_named(proxy.raw((head + f"0\r\n\r\n{HIDDEN}").encode())))
    seen = proxy.seen()
    assert astray(seen) == []
    assert len(seen) <= max(len(answers), 0)


def _named(stream: bytes) -> bytes:
    """HTTP/0.9's answers have no head: nobody may get one of a backend's."""
    assert not stream.startswith(b"198.18.")
    return stream if stream.startswith(b"HTTP/") else b""


# ---- upgrades -------------------------------------------------------------------------------------------

H2C = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA"]
UPGRADES = {
    "h2c": H2C,
    "h2c, all in one": ["Connection: upgrade", "Upgrade: h2c,websocket"],
    "WebSocket and h2c": ["Connection: Upgrade", "Upgrade: websocket, h2c"],
    "two upgrades": ["Connection: Upgrade", "Upgrade: websocket", "Upgrade: h2c"],
    "TLS": ["Connection: Upgrade", "Upgrade: TLS/1.2"],
    "not named in Connection": ["Upgrade: h2c"],
}


@pytest.mark.parametrize("lines", UPGRADES.values(), ids=UPGRADES)
def test_only_websockets_are_offered_to_backends(proxy: Site, lines: list[str]) -> None:
    proxy.ask(text(*lines))
    seen = proxy.seen()
    assert astray(seen) == []
    assert {one.upgrade.lower() for one in seen} <= {"", "websocket"}


def test_a_websocket_that_the_backend_refuses_hides_nothing(proxy: Site) -> None:
    """nginx answers 200: what follows are requests again, and routed."""
    upgrade = text(
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    )
    answers = proxy.ask(upgrade + text(target="/nowhere") + text(target="/public/secret"))
    seen = proxy.seen()
    assert astray(seen) == []
    assert [one.upgrade for one in seen][:1] == ["websocket"]
    assert [one.address for one in seen] == [answer.backend for answer in answers if answer.backend]


# ---- HTTP/2 ---------------------------------------------------------------------------------------------

HEADERS_FRAME, SETTINGS_FRAME, DATA_FRAME, END_STREAM, END_HEADERS = 1, 4, 0, 1, 4
GET_PUBLIC = {":method": "GET", ":scheme": "http", ":authority": "shop.test", ":path": "/public"}


def h2_frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """RFC 9113, 4.1."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def h2_fields(fields: list[tuple[str, str]]) -> bytes:
    """Literals without indexing, new names, no Huffman code (RFC 7541, 6.2.2)."""

    def literal(text: str) -> bytes:
        assert len(text) < 127  # the length is one byte
        return bytes([len(text)]) + text.encode("latin-1")

    return b"".join(b"\0" + literal(name) + literal(value) for name, value in fields)


def h2_request(fields: list[tuple[str, str]], body: bytes = b"") -> bytes:
    """A whole connection with one request."""
    data = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + h2_frame(SETTINGS_FRAME, 0, 0, b"")
    ends = END_HEADERS | (0 if body else END_STREAM)
    data += h2_frame(HEADERS_FRAME, ends, 1, h2_fields(fields))
    return data + (h2_frame(DATA_FRAME, END_STREAM, 1, body) if body else b"")


H2_ATTACKS: dict[str, list[tuple[str, str]]] = {
    "a path with a line end": [(":path", "/public HTTP/1.1\r\nHost: admin.test\r\n\r\n")],
    "a path with a space": [(":path", "/public/x /secret")],
    "a path with a tab": [(":path", "/public\t/secret")],
    "a path without a slash": [(":path", "public")],
    "an absolute path": [(":path", "http://admin.test/x")],
    "an authority in the path": [(":path", "//admin.test/public")],
    "dot segments": [(":path", "/public/../read")],
    "hidden dot segments": [(":path", "/public/x/%2e%2e/secret")],
    "an encoded slash": [(":path", "/public%2fsecret")],
    "a fragment": [(":path", "/public#/secret")],
    "no path": [(":path", "")],
    "a method with a line end": [(":method", "GET /secret HTTP/1.1\r\nX: y")],
    "a small method": [(":method", "get"), (":path", "/read")],
    "CONNECT": [(":method", "CONNECT")],
    "another scheme": [(":scheme", "http://admin.test/?")],
    "another host": [("host", "admin.test")],
    "an authority with a line end": [(":authority", "shop.test\r\nX: y")],
    "an authority with a user": [(":authority", "admin.test@shop.test")],
    "two authorities": [(":authority", "shop.test"), (":authority", "admin.test")],
    "two paths": [(":path", "/public"), (":path", "/secret")],
    "an encoding": [("transfer-encoding", "chunked")],
    "a connection field": [("connection", "upgrade"), ("upgrade", "websocket")],
    "a field with a line end": [("x", "y\r\nHost: admin.test")],
    "a name with a line end": [("x: y\r\nhost", "admin.test")],
    "a name in capitals": [("Host", "admin.test")],
    "a name with a colon": [("host:x", "admin.test")],
    "a length that is none": [("content-length", "+5")],
    "a length of another body": [("content-length", "0")],
}


@pytest.mark.parametrize("changes", H2_ATTACKS.values(), ids=H2_ATTACKS)
@pytest.mark.parametrize("body", [b"", HIDDEN.encode()], ids=["bare", "body"])
def test_http2_leads_nowhere_else(proxy: Site, changes: list[tuple[str, str]], body: bytes) -> None:
    """HAProxy understands it, and sends it on as HTTP/1.1; nginx refuses it."""
    named_twice = {name for name, _ in changes}
    fields = [(name, value) for name, value in GET_PUBLIC.items() if name not in named_twice]
    pseudo = [one for one in (*fields, *changes) if one[0].startswith(":")]
    proxy.raw(h2_request([*pseudo, *(one for one in changes if not one[0].startswith(":"))], body))
    seen = proxy.seen()
    assert astray(seen) == []
    assert len(seen) <= 1


def test_http2_as_it_should_be_is_routed_by_haproxy(proxy: Site) -> None:
    proxy.raw(h2_request([*GET_PUBLIC.items()]))
    proxy.raw(h2_request([*(GET_PUBLIC | {":path": "/public/secret/x/../y"}).items()]))
    seen = [(one.address, one.request) for one in proxy.seen()]
    if proxy.kind == "haproxy":
        assert seen == [("198.18.0.11", "GET /public HTTP/1.1"), ("198.18.0.12", "GET /public/secret/y HTTP/1.1")]
    else:
        assert seen == []


# ---- the client's address -------------------------------------------------------------------------------


def test_the_last_address_is_the_clients_whatever_it_says_itself(proxy: Site) -> None:
    for lines in ([], ["X-Forwarded-For: 203.0.113.9"], ["X-Forwarded-For: a, b", "x-forwarded-for: c"]):
        proxy.ask(text(*lines))
    said = [one.forwarded.replace(" ", "").split(",") for one in proxy.seen()]
    assert [one[-1] for one in said] == ["198.18.0.1"] * 3
    assert said[0] == ["198.18.0.1"]
    assert said[1] == ["203.0.113.9", "198.18.0.1"]


# ---- anything -------------------------------------------------------------------------------------------

ASCII_TARGETS = r"/x /y /x.y /public /public /secret /secret /read /any /.. /. // / %2e %2e%2e %2f %00 %41 ? # \ ; % *"
TARGETS = [*ASCII_TARGETS.split(), "", "", "", "\xe9", " ", "http://shop.test", "http://admin.test"]
LINES = [
    *(
        "Host: shop.test",
        "Host: shop.test",
        "Host: admin.test",
        "Host: x.wild.test",
        "Host:",
        "host : shop.test",
        " folded",
        "X: y",
    ),
    *(
        "Content-Length: 5",
        "Content-Length: 0",
        "Content-Length: 38",
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: x",
    ),
    *(
        "Connection: close",
        "Connection: keep-alive, X",
        "Upgrade: websocket",
        "Connection: upgrade",
        "Expect: 100-continue",
    ),
]
BODY = ["", "hello", "0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n", HIDDEN, "0\r\n\r\n" + HIDDEN]
NOISE = ["\r\n", "\n", "\r", "\0", "\t", " ", ":", "\x7f", "\xff", "\x0b"]


def made_up(chance: random.Random) -> bytes:
    """A request, or nearly one."""
    target = chance.choice(["/public", "/any", ""]) + "".join(chance.choices(TARGETS, k=chance.randrange(1, 4)))
    lines = [f"{chance.choice(['GET', 'POST', 'get'])} {target} HTTP/1.{chance.choice('0111')}"]
    lines += chance.choice([["Host: shop.test"], ["Host: shop.test"], ["Host: other.test"], []]) + chance.sample(
        LINES, chance.randrange(3)
    )
    made = "\r\n".join([*lines, "", ""]) + chance.choice(BODY)
    if chance.random() < 0.2:
        at = chance.randrange(len(made))
        made = made[:at] + chance.choice(NOISE) + made[at + chance.randrange(2) :]
    return made.encode("latin-1")


def test_whatever_is_sent_nothing_goes_astray(proxy: Site) -> None:
    """Requests put together at random out of what attacks are made of, one to three on a connection."""
    chance = random.Random(7)
    for _ in range(1500):
        proxy.raw(b"".join(made_up(chance) for _ in range(chance.randrange(1, 4))))
    seen = proxy.seen()
    assert astray(seen) == []
    assert {CLUSTER_OF[one.address] for one in seen} == {*CLUSTER_OF.values()}  # or else it has not tried much
    assert len(seen) > 100


def test_the_proxy_still_lives(proxy: Site) -> None:
    assert proxy.process.poll() is None
    (answer,) = proxy.ask(text())
    assert answer.backend == "198.18.0.11"
