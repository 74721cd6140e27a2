"""The request line: every method, the paths that can be compared, and what is refused because servers may differ."""

import string

import pytest

from packets import oracle
from packets.bench import Router, entry
from packets.frames import Connection, request
from packets.oracle import Route

ALICE = Connection()


# ---- method ---------------------------------------------------------------------------------------------


ROUTED_METHODS = [method for method in oracle.METHODS if method != "CONNECT"]


@pytest.mark.parametrize("method", ROUTED_METHODS)
def test_every_method_is_routed(router: Router, method: str) -> None:
    router.opens(ALICE.data(request("/", method=method)), "web")


@pytest.mark.parametrize("method", ROUTED_METHODS)
def test_every_method_is_told_from_the_others(router: Router, method: str) -> None:
    router.route(Route("web", prefix="/"), Route("api", prefix="/", method=method))
    for other in ROUTED_METHODS:
        connection = Connection(port=50000 + ROUTED_METHODS.index(other))
        router.opens(connection.data(request("/", method=other)), "api" if other == method else "web")


@pytest.mark.parametrize("method", oracle.METHODS)
@pytest.mark.parametrize("behind", ["", "X", "\t", "\r", "\0", "/", "\x7f", "\xa0"], ids=ascii)
def test_a_method_ends_in_a_space(router: Router, method: str, behind: str) -> None:
    text = f"{method}{behind}/ HTTP/1.1\r\nHost: shop.test\r\n\r\n"
    router.resets(ALICE.data(text.encode("latin-1")), "TX_RESET_NOT_HTTP")


@pytest.mark.parametrize("target", ["/", "/api", "shop.test:80", "*", "http://shop.test/", "/" + "x" * 300])
@pytest.mark.parametrize("fields", [(), ("Content-Length: 5",)], ids=["bare", "length"])
def test_nobody_gets_a_tunnel(router: Router, target: str, fields: tuple[str, ...]) -> None:
    """Servers exist that take what follows for a tunnel's, others for a body, or for further requests."""
    segment = ALICE.data(request(target, *fields, method="CONNECT"))
    router.answers(segment, "TX_NOT_IMPLEMENTED", "501 Not Implemented")


# ---- version --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
def test_both_versions_are_routed(router: Router, version: str) -> None:
    router.opens(ALICE.data(request("/", version=version)), "web")


VERSIONS = [
    "HTTP/1.2",
    "HTTP/2.0",
    "HTTP/0.9",
    "HTTP/11",
    "HTTP/1.1x",
    "HTTP/1.1 ",
    "http/1.1",
    "HTTPS/1.1",
    "HTTP/1,1",
    "",
]


@pytest.mark.parametrize("version", VERSIONS)
def test_other_versions_are_refused(router: Router, version: str) -> None:
    router.answers(ALICE.data(request("/", version=version)), "TX_BAD_REQUEST", "400 Bad Request")


LINES = {
    "no version": b"GET /\r\nHost: shop.test\r\n\r\n",
    "no target": b"GET HTTP/1.1\r\nHost: shop.test\r\n\r\n",
    "nothing": b"GET \r\nHost: shop.test\r\n\r\n",
    "two spaces before the target": b"GET  / HTTP/1.1\r\nHost: shop.test\r\n\r\n",
    "two spaces before the version": b"GET /  HTTP/1.1\r\nHost: shop.test\r\n\r\n",
    "space in the target": b"GET /a b HTTP/1.1\r\nHost: shop.test\r\n\r\n",
    "tab before the version": b"GET /\tHTTP/1.1\r\nHost: shop.test\r\n\r\n",
    "bare LF": b"GET / HTTP/1.1\nHost: shop.test\r\n\r\n",
    "bare CR": b"GET / HTTP/1.1\rHost: shop.test\r\n\r\n",
    "CR twice": b"GET / HTTP/1.1\r\r\nHost: shop.test\r\n\r\n",
}


@pytest.mark.parametrize("text", LINES.values(), ids=LINES)
def test_malformed_lines_are_refused(router: Router, text: bytes) -> None:
    router.answers(ALICE.data(text), "TX_BAD_REQUEST", "400 Bad Request")


# ---- target ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["*", "shop.test:80", "api", "?/api", "%2f", "\\api", "*/", "/*/../x"])
def test_a_target_that_is_no_path_is_refused(router: Router, target: str) -> None:
    router.answers(ALICE.data(request(target)), "TX_BAD_REQUEST", "400 Bad Request")


AMBIGUOUS_PATHS = [
    "//",
    "//api",
    "/api//x",
    "/api//",
    "/.",
    "/..",
    "/./api",
    "/../api",
    "/api/.",
    "/api/..",
    "/api/./x",
    "/api/../x",
    "/%61pi",  # a
    "/..;/api",
    "/api/..;x=1/y",
    "/api/.;/x",
    "/api/..;",
    "/api/..%3b/x",
    "/api/..%3B",
    "/.%3bx",
    "/%7Euser",
    "/%2d",
    "/api/%2e%2e/x",
    "/api%2fx",
    "/api%2Fx",
    "/api%5cx",
    "/api%5Cx",
    "/api%00",
    "/api%0d%0a",
    "/api%1f",
    "/api%7f",
    "/api%",
    "/api%4",
    "/api%4/x",
    "/api%zz",
    "/api%g0",
    "/api%0g",
    "/api%%41",
    "/api\\x",
    "/api#x",
    "/\x80",
    "/\xff",
    "/caf\xe9",
    "/\x7f",
    "/\x01",
    "/a\0b",
]


@pytest.mark.parametrize("target", AMBIGUOUS_PATHS)
def test_a_path_that_servers_may_read_differently_is_refused(router: Router, target: str) -> None:
    router.answers(ALICE.data(request(target)), "TX_BAD_REQUEST", "400 Bad Request")


@pytest.mark.parametrize("offset", range(1, 20))
@pytest.mark.parametrize("trap", ["//x", "/./x", "/../x", "/%41", "%2fx", "\x7f", "\\"])
def test_wherever_it_stands(router: Router, trap: str, offset: int) -> None:
    """The program reads words of eight bytes: no trap may hide at their seams."""
    target = "/" + "a" * offset + trap
    router.answers(ALICE.data(request(target)), "TX_BAD_REQUEST", "400 Bad Request")


REFUSED_ESCAPES = frozenset((string.ascii_letters + string.digits + "-._~/\\").encode()) | {*range(32), 127}


@pytest.mark.parametrize("case", ["{:02x}", "{:02X}"], ids=["lower case", "upper case"])
def test_only_escapes_that_nothing_else_can_stand_for_are_routed(router: Router, case: str) -> None:
    for byte in range(256):
        segment = Connection(port=50000 + byte).data(request("/api/x%" + case.format(byte)))
        if byte in REFUSED_ESCAPES:
            router.answers(segment, "TX_BAD_REQUEST", "400 Bad Request")
        else:
            router.opens(segment, "api")


@pytest.mark.parametrize("first", [True, False])
def test_only_hexadecimal_digits_make_an_escape(router: Router, first: bool) -> None:
    for byte in {*range(0x21, 0x7F)} - {*b"0123456789abcdefABCDEF"}:
        escape = f"%{chr(byte)}0" if first else f"%2{chr(byte)}"
        segment = Connection(port=50000 + byte).data(request(f"/api/x{escape}y"))
        router.answers(segment, "TX_BAD_REQUEST", "400 Bad Request")


CLEAR_PATHS = [
    "/api",
    "/api/",
    "/api/.hidden",
    "/api/..hidden",
    "/api/...",
    "/api/a.",
    "/api/a..",
    "/api/%20",
    "/api/%C3%A9",
    "/api/%c3%a9",
    "/api/%25",
    "/api/%23%3F",
    "/api/~user:@!$&'()*+,;=",
    '/api/"<>^`{|}',
    "/api/[x]",
]


@pytest.mark.parametrize("target", CLEAR_PATHS)
def test_clear_paths_are_routed(router: Router, target: str) -> None:
    router.opens(ALICE.data(request(target)), "api")


# ---- query ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    ["?", "?x", "?/api", "?//", "?/../", "?%41", "?%", "?%zz", "?a=b&c=d?e", "?" + "q" * 1000, "?" + "/.." * 99],
)
def test_the_query_is_no_part_of_the_path(router: Router, query: str) -> None:
    router.opens(ALICE.data(request("/api" + query)), "api")
    router.opens(Connection(port=50001).data(request("/" + query)), "web")


@pytest.mark.parametrize("target", ["/?a b", "/?\x01", "/?\0", "/?a\tb", "/?\x7f"])
def test_spaces_and_control_bytes_in_a_query_are_refused(router: Router, target: str) -> None:
    router.answers(ALICE.data(request(target)), "TX_BAD_REQUEST", "400 Bad Request")


# ---- length ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 15, 16, 17, 63, 64, 65, 253, 254, 255, 256])
def test_a_path_of_any_length_up_to_the_limit_is_compared_whole(router: Router, length: int) -> None:
    path = ("/" + "abcdefghi" * 29)[:length]
    router.route(Route("api", exact=path), Route("web", prefix="/"))
    router.opens(ALICE.data(request(path)), "api")
    router.opens(Connection(port=50001).data(request(path[:-1] + "z" if length > 1 else "/z")), "web")


@pytest.mark.parametrize("length", [257, 258, 264, 300, 1000])
@pytest.mark.parametrize("query", ["", "?x"])
def test_a_longer_path_is_too_long(router: Router, length: int, query: str) -> None:
    router.answers(ALICE.data(request("/".ljust(length, "a") + query)), "TX_URI_TOO_LONG", "414 URI Too Long")


def test_a_long_query_behind_the_longest_path_is_routed(router: Router) -> None:
    router.opens(ALICE.data(request("/".ljust(256, "a") + "?" + "x" * 900)), "web")


@pytest.mark.parametrize("text", ["GET /", "GET /api HTTP/1.1", "GET /api HTTP/1.1\r", "GET ", "POST /?" + "x" * 1300])
def test_a_line_that_does_not_end_is_too_large(router: Router, text: str) -> None:
    router.answers(ALICE.data(text.encode()), "TX_HEAD_TOO_LARGE", "431 Request Header Fields Too Large")


def test_the_entry_says_where_the_request_ends(router: Router) -> None:
    segment = ALICE.data(request("/api/x?y"))
    router.opens(segment, "api")
    assert router.flow(ALICE) == entry(segment, "api", "api-1")


# ---- other forms of targets -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "host"),
    [
        ("http://shop.test/api", "shop.test"),
        ("http://SHOP.test/api/x?y=http://z", "shop.test"),
        ("http://shop.test/api", "Shop.Test"),
        ("http://shop.test:80/api", "shop.test:80"),
        ("http://shop.test./api", "shop.test."),
        (f"http://{'a' * 63}.{'b' * 63}.test/api", f"{'a' * 63}.{'b' * 63}.test"),
    ],
)
def test_an_absolute_target_is_routed_by_its_path(router: Router, target: str, host: str) -> None:
    segment = ALICE.data(request(target, host=host))
    router.opens(segment, "api")
    assert router.flow(ALICE) == entry(segment, "api", "api-1")


@pytest.mark.parametrize("length", range(1, 24))
def test_an_absolute_target_is_compared_with_the_host_to_its_end(router: Router, length: int) -> None:
    name = "abcdefghijklmnopqrstuvwx"[:length]
    router.opens(ALICE.data(request(f"http://{name}/api", host=name)), "api")
    other = name[:-1] + "_"
    answer = ("TX_BAD_REQUEST", "400 Bad Request")
    router.answers(Connection(port=50001).data(request(f"http://{name}/api", host=other)), *answer)
    router.answers(Connection(port=50002).data(request(f"http://{name}/api", host=name + "a")), *answer)
    router.answers(Connection(port=50003).data(request(f"http://{name}a/api", host=name)), *answer)


@pytest.mark.parametrize(
    ("target", "host"),
    [
        ("http://shop.test/", "other.test"),
        ("http://shop.test:80/", "shop.test"),
        ("http://shop.test/", "shop.test:80"),
        ("http://user@shop.test/", "shop.test"),
        ("http://shop.test", "shop.test"),
        ("http://shop.test?x", "shop.test"),
        ("http:///", ""),
        ("http:/shop.test/", "shop.test"),
        ("http://shop.test\\/", "shop.test"),
        ("HTTP://shop.test/", "shop.test"),
        ("https://shop.test/", "shop.test"),
        ("ftp://shop.test/", "shop.test"),
        ("http://shop.test//", "shop.test"),
        ("http://shop.test/../api", "shop.test"),
        ("http://" + "a" * 300 + "/", "a" * 300),
    ],
)
def test_an_absolute_target_that_says_something_else_is_refused(router: Router, target: str, host: str) -> None:
    """Servers differ in whether the target or the Host counts."""
    router.answers(ALICE.data(request(target, host=host)), "TX_BAD_REQUEST", "400 Bad Request")


def test_an_absolute_target_needs_a_host_as_any_other(router: Router) -> None:
    text = b"GET http://shop.test/ HTTP/1.0\r\n\r\n"
    router.answers(ALICE.data(text), "TX_BAD_REQUEST", "400 Bad Request")


def test_an_asterisk_is_for_options_and_the_root(router: Router) -> None:
    """RFC 9112, 3.2.4: it asks about the server as a whole, which is who gets the path "/" and all below it."""
    router.route(Route("web", prefix="/"), Route("api", prefix="/", method="OPTIONS"), Route("web", exact="/"))
    segment = ALICE.data(request("*", method="OPTIONS"))
    router.opens(segment, "api")
    assert router.flow(ALICE) == entry(segment, "api", "api-1")
    router.route(Route("api", exact="/"), Route("api", prefix="/x"))
    router.answers(Connection(port=50001).data(request("*", method="OPTIONS")), "TX_NO_ROUTE", "404 Not Found")


@pytest.mark.parametrize(("target", "method"), [("*", "GET"), ("*x", "OPTIONS"), ("*?x", "OPTIONS"), ("**", "OPTIONS")])
def test_any_other_asterisk_is_refused(router: Router, target: str, method: str) -> None:
    router.answers(ALICE.data(request(target, method=method)), "TX_BAD_REQUEST", "400 Bad Request")


@pytest.mark.parametrize(
    "target", ["/api/x;v=1", "/api/...;", "/api/x..;", "/api/.x;", "/api;x", "/api/;", "/api/a.%3B", "/api/%3B.."]
)
def test_other_parameters_of_segments_are_routed(router: Router, target: str) -> None:
    cluster = "web" if target == "/api;x" else "api"
    router.opens(ALICE.data(request(target)), cluster)
