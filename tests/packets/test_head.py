"""The header fields: Host decides, Content-Length says where the body ends, and what is ambiguous is refused."""

import pytest

from packets.bench import CLOSED_HOST, Router, entry
from packets.frames import Connection, request
from packets.oracle import Route

ALICE = Connection()
BOB = Connection(port=50001)
API_FOR_HOST = (Route("api", prefix="/", host="shop.test"), Route("web", prefix="/"))


def refused(router: Router, *texts: bytes) -> None:
    """Each as the first request of its own connection."""
    for number, text in enumerate(texts):
        router.answers(Connection(port=52000 + number).data(text), "TX_BAD_REQUEST", "400 Bad Request")


# ---- Host -----------------------------------------------------------------------------------------------

HOST_LINES = [
    "Host: shop.test",
    "Host:shop.test",
    "Host: \t shop.test",
    "Host: shop.test \t ",
    "host: shop.test",
    "HOST: SHOP.TEST",
    "hOsT: sHoP.TeSt",
    "Host: shop.test:80",
    "Host: shop.test:8080",
    "Host:\tShop.Test:80\t",
    "Host: shop.test.",
    "Host: SHOP.TEST. ",
    "Host: shop.test.:80",
]


@pytest.mark.parametrize("line", HOST_LINES)
def test_the_host_is_found_however_it_is_written(router: Router, line: str) -> None:
    router.route(*API_FOR_HOST)
    router.opens(ALICE.data(request("/", line, host=None)), "api")


@pytest.mark.parametrize("line", ["Hosts: shop.test", "Hos: shop.test", "X-Host: shop.test", "Host2: shop.test"])
def test_other_fields_are_no_host(router: Router, line: str) -> None:
    router.route(*API_FOR_HOST)
    router.opens(ALICE.data(request("/", line, host="other.test")), "web")
    refused(router, request("/", line, host=None))


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
def test_a_host_counts_in_both_versions(router: Router, version: str) -> None:
    router.route(*API_FOR_HOST)
    router.opens(ALICE.data(request("/", version=version)), "api")


def test_http_1_1_without_host_is_refused(router: Router) -> None:
    refused(router, request("/", host=None), request("/", "Accept: */*", host=None))


def test_http_1_0_without_host_gets_the_routes_of_any_host(router: Router) -> None:
    router.route(*API_FOR_HOST)
    router.opens(ALICE.data(request("/", host=None, version="HTTP/1.0")), "web")


@pytest.mark.parametrize("second", ["Host: shop.test", "host:shop.test", "HOST: other.test", "Host: "])
@pytest.mark.parametrize("between", [(), ("Accept: */*",)], ids=["side by side", "apart"])
@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
def test_two_hosts_are_refused(router: Router, second: str, between: tuple[str, ...], version: str) -> None:
    refused(router, request("/", *between, second, version=version))


@pytest.mark.parametrize("position", range(24))
def test_the_host_is_found_wherever_it_stands(router: Router, position: int) -> None:
    """The program reads words of eight bytes: the field, its value and the head's end pass over all their seams."""
    router.route(*API_FOR_HOST)
    router.opens(ALICE.data(request("/", "X: " + "x" * position, "Host: shop.test", host=None)), "api")
    router.opens(BOB.data(request("/", "X: " + "x" * position, "Host: shop.test:80", "Y: y", host=None)), "api")


@pytest.mark.parametrize("length", [1, 2, 6, 7, 8, 9, 15, 16, 17, 63, 64, 200, 253])
def test_a_host_of_any_length_is_compared_whole(router: Router, length: int) -> None:
    name = ("ab.cd-ef" * 32)[:length]
    router.route(Route("api", prefix="/", host=name), Route("web", prefix="/"))
    router.opens(ALICE.data(request("/", host=name.upper())), "api")
    router.opens(BOB.data(request("/", host=name[:-1] + "z")), "web")
    router.opens(Connection(port=50002).data(request("/", host=name + "z")), "web")


@pytest.mark.parametrize("length", [1, 6, 7, 8, 9, 14, 15, 16, 17, 63, 200, 253])
@pytest.mark.parametrize("behind", ["", ":80", " "], ids=["end", "port", "space"])
def test_a_final_dot_is_not_part_of_the_host_wherever_it_stands(router: Router, length: int, behind: str) -> None:
    """Servers ignore it (RFC 1034, 3.1: it only says that the name is complete): it must not lead to other routes."""
    name = ("ab.cd-ef" * 32)[:length]
    router.route(Route("api", prefix="/", host=name), Route("web", prefix="/"))
    router.opens(ALICE.data(request("/", host=f"{name}.{behind}")), "api")
    refused(router, request("/", host=f"{name}..{behind}"))


@pytest.mark.parametrize("host", ["", " "], ids=["nothing", "space"])
def test_an_empty_host_gets_the_routes_of_any_host(router: Router, host: str) -> None:
    """It is what a client sends whose URI has no authority (RFC 9112, 3.2)."""
    router.route(*API_FOR_HOST)
    router.opens(ALICE.data(request("/", host=host)), "web")


@pytest.mark.parametrize("behind", ["", ":80", " "], ids=["end", "port", "space"])
def test_a_longer_host_than_routes_can_have_is_refused(router: Router, behind: str) -> None:
    router.opens(ALICE.data(request("/", host="h" * 256 + behind)), "web")
    router.opens(BOB.data(request("/", host="h" * 255 + "." + behind)), "web")
    longer = ["h" * length for length in (257, 258, 263, 264, 265, 300, 1000)]
    refused(router, *(request("/", host=name + behind) for name in (*longer, "h" * 256 + ".")))


LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"


@pytest.mark.parametrize("at", range(9))
def test_a_host_has_letters_digits_dots_and_dashes(router: Router, at: int) -> None:
    for number, letter in enumerate(LETTERS):
        name = "x" * at + letter + "x"
        router.opens(Connection(port=2000 + number).data(request("/", host=name)), "web")


@pytest.mark.parametrize("at", range(9))
def test_and_nothing_else(router: Router, at: int) -> None:
    """What servers drop, decode or read as the end of a name would lead to another server than the route's."""
    others = {*range(256)} - {*LETTERS.encode(), *b":"} - ({*b" \t"} if at == 0 else set())
    refused(router, *(request("/", host="x" * at + chr(byte) + "x") for byte in others))


ODD_HOSTS = [
    ".",
    "..",
    ":",
    ":80",
    ".:80",
    "[::1]",
    "[::1]:80",
    "shop.test:80.",
    "shop.test:80:80",
    "shop.test, x",
    "a b",
]


@pytest.mark.parametrize("host", ODD_HOSTS)
def test_odd_hosts_are_refused(router: Router, host: str) -> None:
    refused(router, request("/", host=host))


# ---- ambiguous fields -----------------------------------------------------------------------------------

AMBIGUOUS_FIELDS = {
    "space before the colon": "Accept : */*",
    "tab before the colon": "Accept\t: */*",
    "space before Host's colon": "Host : shop.test",
    "continued line": "Accept: a\r\n b",
    "continued line with a tab": "Accept: a\r\n\tb",
    "continued line that looks like a field": "Accept: a\r\n Content-Length: 5",
    "bare LF": "Accept: a\nX: b",
    "bare LF that hides a field": "Accept: a\nContent-Length: 5",
    "bare CR": "Accept: a\rX: b",
    "bare CR at the end": "Accept: a\r",
    "NUL in a value": "Accept: a\0b",
    "NUL in a name": "Acc\0ept: a",
    "control byte in a value": "Accept: a\x01b",
    "escape": "Accept: \x1b[2J",
    "delete": "Accept: \x7f",
    "vertical tab": "Accept:\x0ba",
    "control byte before a name": "\x0bContent-Length: 5",
    "no colon": "Accept",
    "no name": ": value",
}


@pytest.mark.parametrize("line", AMBIGUOUS_FIELDS.values(), ids=AMBIGUOUS_FIELDS)
@pytest.mark.parametrize("behind", [(), ("X: y",)], ids=["last", "in between"])
def test_ambiguous_fields_are_refused(router: Router, line: str, behind: tuple[str, ...]) -> None:
    refused(router, request("/", line, *behind))


@pytest.mark.parametrize("line", [" Host: shop.test", "\tHost: shop.test", " x"])
def test_so_is_white_space_in_front_of_the_first_field(router: Router, line: str) -> None:
    refused(router, request("/", line, host=None))


@pytest.mark.parametrize("trap", ["\0", "\n", "\r", "\x1f", "\x7f", "\r\n ", "\n\n", "\n\r\n"])
@pytest.mark.parametrize("offset", range(16))
def test_wherever_they_stand(router: Router, trap: str, offset: int) -> None:
    refused(router, request("/", "X: " + "x" * offset + trap + "y"))


@pytest.mark.parametrize(
    "line", ["Accept: a\tb", "Accept: caf\xe9 \x80\xff", "Accept:", "X-1_a!#$%&'*+.^`|~: b", "X: a:b:c"]
)
def test_unusual_fields_are_routed(router: Router, line: str) -> None:
    router.opens(ALICE.data(request("/", line)), "web")


# ---- Content-Length -------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", ["0", "1", "5", "0000000000000005", "1000000", "2147480000"])
@pytest.mark.parametrize("name", ["Content-Length", "content-length", "CONTENT-LENGTH"])
def test_the_body_belongs_to_the_request(router: Router, name: str, length: str) -> None:
    segment = ALICE.data(request("/", f"{name}: {length}", method="POST"))
    router.opens(segment, "web")
    assert router.flow(ALICE) == entry(segment, "web", router.backend_of("web", ALICE), body=int(length))


def test_white_space_around_the_number_is_none_of_it(router: Router) -> None:
    segment = ALICE.data(request("/", "Content-Length:\t 7 \t"))
    router.opens(segment, "web")
    assert router.flow(ALICE) == entry(segment, "web", router.backend_of("web", ALICE), body=7)


@pytest.mark.parametrize("present", [0, 1, 4, 5])
def test_a_body_may_start_in_the_same_segment(router: Router, present: int) -> None:
    head = request("/", "Content-Length: 5", method="POST")
    segment = ALICE.data(head + b"GET /"[:present])
    router.opens(segment, "web")
    assert router.flow(ALICE) == entry(segment, "web", router.backend_of("web", ALICE), head=head, body=5)


@pytest.mark.parametrize("name", ["Host", "Content-Length"])
@pytest.mark.parametrize("white", [" ", "\t"], ids=["space", "tab"])
def test_there_is_a_limit_to_the_white_space_around_what_counts(router: Router, name: str, white: str) -> None:
    host = "x.test" if name == "Content-Length" else None
    router.opens(ALICE.data(request("/", f"{name}:{white * 16}5{white * 16}", host=host)), "web")
    refused(router, *(request("/", line, host=host) for line in (f"{name}:{white * 17}5", f"{name}: 5{white * 17}")))


def test_there_is_a_limit_to_the_digits_of_a_length(router: Router) -> None:
    segment = ALICE.data(request("/", "Content-Length: " + "5".rjust(64, "0")))
    router.opens(segment, "web")
    assert router.flow(ALICE) == entry(segment, "web", router.backend_of("web", ALICE), body=5)
    refused(router, request("/", "Content-Length: " + "5".rjust(65, "0")))


BAD_LENGTHS = ["", " ", "-1", "+5", "5x", "x5", "0x5", "5,5", "5, 5", "5 5", "5.0", "\xb2", "five"]


@pytest.mark.parametrize("length", BAD_LENGTHS)
def test_a_length_that_is_no_number_is_refused(router: Router, length: str) -> None:
    refused(router, request("/", f"Content-Length: {length}", method="POST"))


@pytest.mark.parametrize("second", ["Content-Length: 5", "content-length: 6", "CONTENT-LENGTH:5"])
def test_two_lengths_are_refused(router: Router, second: str) -> None:
    first = "Content-Length: 5"
    refused(
        router, request("/", first, second, method="POST"), request("/", first, "Accept: */*", second, method="POST")
    )


TOO_LARGE = ["2147483647", "2147483648", "4294967295", "4294967296", "4294967301", "18446744073709551621", "9" * 40]


@pytest.mark.parametrize("length", TOO_LARGE)
def test_a_length_that_sequence_numbers_cannot_compare_is_too_large(router: Router, length: str) -> None:
    """2^31 - 1 is one of them, since the head comes on top; so is what is 5 in 32 or 64 bits."""
    segment = ALICE.data(request("/", f"Content-Length: {length}", method="POST"))
    router.answers(segment, "TX_BODY_TOO_LARGE", "413 Content Too Large")


@pytest.mark.parametrize("line", ["Content-Lengthy: 5", "X-Content-Length: 5", "Content_Length: 5", "Content-Lengt: 5"])
def test_other_fields_are_no_length(router: Router, line: str) -> None:
    segment = ALICE.data(request("/", line))
    router.opens(segment, "web")
    assert router.flow(ALICE) == entry(segment, "web", router.backend_of("web", ALICE))


# ---- Transfer-Encoding ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", ["Transfer-Encoding: chunked", "transfer-encoding:gzip", "TRANSFER-ENCODING: identity"]
)
def test_a_body_whose_end_cannot_be_followed_needs_a_length(router: Router, line: str) -> None:
    segment = ALICE.data(request("/", line, method="POST"))
    router.answers(segment, "TX_LENGTH_REQUIRED", "411 Length Required")


@pytest.mark.parametrize("behind", [b"5\r\nhello\r\n0\r\n\r\n", b"0\r\n\r\nGET /api HTTP/1.1\r\n\r\n"])
def test_also_when_the_body_is_there(router: Router, behind: bytes) -> None:
    segment = ALICE.data(request("/", "Transfer-Encoding: chunked", method="POST") + behind)
    router.answers(segment, "TX_LENGTH_REQUIRED", "411 Length Required")


def test_both_length_and_encoding_are_refused(router: Router) -> None:
    lines = ("Content-Length: 5", "Transfer-Encoding: chunked")
    refused(router, request("/", *lines, method="POST"), request("/", *reversed(lines), method="POST"))


@pytest.mark.parametrize("line", ["Transfer-Encodings: chunked", "X-Transfer-Encoding: chunked", "TE: trailers"])
def test_other_fields_are_no_encoding(router: Router, line: str) -> None:
    router.opens(ALICE.data(request("/", line)), "web")


# ---- one head, one packet -------------------------------------------------------------------------------

HEAD = request("/", "Accept: */*", "Content-Length: 0")


@pytest.mark.parametrize("missing", [1, 2, 3, 4, 5, 12, 20, 40, len(HEAD) - len("GET / ")])
def test_a_head_that_does_not_end_in_its_packet_is_too_large(router: Router, missing: int) -> None:
    segment = ALICE.data(HEAD[:-missing])
    router.answers(segment, "TX_HEAD_TOO_LARGE", "431 Request Header Fields Too Large")


@pytest.mark.parametrize("length", range(1380, 1389))
def test_the_largest_head_is_routed_and_one_byte_less_of_it_is_too_large(router: Router, length: int) -> None:
    """1388 bytes are what an MSS of 1416 leaves beside the timestamps and 16 more bytes of options."""
    head = request("/", "X: " + "x" * (length - len(request("/", "X: "))))
    assert len(head) == length
    router.opens(ALICE.data(head), "web")
    router.answers(BOB.data(head[:-1]), "TX_HEAD_TOO_LARGE", "431 Request Header Fields Too Large")


@pytest.mark.parametrize("count", [10, 50, 100])
def test_many_short_fields_are_read(router: Router, count: int) -> None:
    router.route(*API_FOR_HOST)
    router.opens(ALICE.data(request("/", *["a:b"] * count, "Host: shop.test", host=None)), "api")


@pytest.mark.parametrize("count", [128, 129, 260])
def test_more_fields_than_can_be_read_are_too_large(router: Router, count: int) -> None:
    router.opens(BOB.data(request("/", *["a:b"] * 126)), "web")
    segment = ALICE.data(request("/", *["a:b"] * (count - 1)))
    router.answers(segment, "TX_HEAD_TOO_LARGE", "431 Request Header Fields Too Large")


def test_a_longer_name_of_a_field_than_can_be_read_is_refused(router: Router) -> None:
    router.opens(ALICE.data(request("/", "n" * 256 + ": x")), "web")
    refused(router, request("/", "n" * 257 + ": x"), request("/", "n" * 264 + ": x"))


def test_the_shortest_head_is_read(router: Router) -> None:
    segment = ALICE.data(b"GET / HTTP/1.0\r\n\r\n")
    router.opens(segment, "web")
    assert router.flow(ALICE) == entry(segment, "web", router.backend_of("web", ALICE))


def test_options_of_any_length_lie_in_front_of_the_head(router: Router) -> None:
    router.route(*API_FOR_HOST)
    for words in range(11):
        router.opens(Connection(port=50000 + words).data(HEAD, options=b"\1" * 4 * words), "api")


def test_bytes_behind_the_packet_are_no_part_of_the_head(router: Router) -> None:
    """Ethernet padding that would complete a head."""
    segment = ALICE.data(b"GET / HTTP/1.0\r\n\r", padding=b"\n")
    router.answers(segment, "TX_HEAD_TOO_LARGE", "431 Request Header Fields Too Large")


# ---- the next request in the same segment ---------------------------------------------------------------


@pytest.mark.parametrize("behind", [b"\r\n", b"G", b"GET /api HTTP/1.1\r\nHost: shop.test\r\n\r\n"])
@pytest.mark.parametrize("body", [0, 3])
def test_bytes_behind_the_first_request_reset_the_connection(router: Router, behind: bytes, body: int) -> None:
    head = request("/", f"Content-Length: {body}") if body else request("/")
    router.resets(ALICE.data(head + b"x" * body + behind), "TX_RESET_PIPELINED")
    assert router.flows() == 0


def test_the_host_that_only_a_body_names_does_not_count(router: Router) -> None:
    body = f"\r\nHost: {CLOSED_HOST}\r\n\r\n".encode()
    segment = ALICE.data(request("/", f"Content-Length: {len(body)}") + body)
    router.opens(segment, "web")
