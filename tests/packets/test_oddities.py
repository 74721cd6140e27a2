"""TCP as it is rarely spoken, byte for byte: what has no place elsewhere. End to end: tests/e2e/test_oddities.py."""

from __future__ import annotations

import pytest

from packets.bench import Router
from packets.frames import Connection, request
from packets.oracle import SynOptions

ALICE = Connection()
BODY = bytes(range(256)) * 10
HEAD = request("/", f"Content-Length: {len(BODY)}", method="POST")
CUTS = range(0, len(BODY), 1000)


def test_what_overtakes_a_first_request_is_dropped_and_then_has_its_place(router: Router) -> None:
    pieces = [ALICE.data(BODY[at : at + 1000], at=len(HEAD) + at, flags="A") for at in CUTS]
    for piece in reversed(pieces):
        router.drops(piece, "DROP_NO_FLOW")
    assert router.flows() == 0
    router.opens(ALICE.data(HEAD), "web")
    for piece in reversed(pieces):
        router.forwards(piece, "FORWARDED", router.backend_of("web", ALICE))


@pytest.mark.parametrize("method", ["GET ", "DELETE "])
def test_but_for_a_piece_that_starts_like_a_request(router: Router, method: str) -> None:
    """Nothing tells it from the first request of a connection whose cookie is too old."""
    router.resets(ALICE.data(f"{method}whatever".encode(), at=len(HEAD)), "TX_RESET_COOKIE")
    router.opens(ALICE.data(HEAD), "web")


def test_the_second_half_of_a_head_waits_for_the_first(router: Router) -> None:
    head = request("/")
    router.drops(ALICE.data(head[10:], at=10), "DROP_NO_FLOW")
    router.answers(ALICE.data(head[:10]), "TX_HEAD_TOO_LARGE", "431 Request Header Fields Too Large")


@pytest.mark.parametrize(
    ("start", "end"), [(0, 1000), (0, 1), (1, 1000), (999, 1001), (500, 1400), (len(BODY) - 1, len(BODY))]
)
def test_pieces_of_a_body_may_overlap_in_any_way(router: Router, start: int, end: int) -> None:
    router.opens(ALICE.data(HEAD + BODY[:700]), "web")
    piece = ALICE.data(BODY[start:end], at=len(HEAD) + start)
    router.forwards(piece, "FORWARDED", router.backend_of("web", ALICE))


@pytest.mark.parametrize("flags", ["PAU", "AU", "FPAU", "RAU"])
@pytest.mark.parametrize("pointer", [0, 1, 5, 0xFFFF])
def test_urgent_segments_are_dropped_before_and_after_the_first_request(
    router: Router, flags: str, pointer: int
) -> None:
    router.drops(ALICE.data(HEAD, flags=flags, tcp={"urgptr": pointer}), "DROP_FLAGS")
    assert router.flows() == 0
    router.opens(ALICE.data(HEAD), "web")
    router.drops(ALICE.data(BODY[:9], at=len(HEAD), flags=flags, tcp={"urgptr": pointer}), "DROP_FLAGS")


@pytest.mark.parametrize("length", [4, 8, 40])
@pytest.mark.parametrize("kind", ["SYN", "request", "body", "end"])
def test_no_segment_with_ip_options_gets_further(router: Router, kind: str, length: int) -> None:
    router.opens(ALICE.data(HEAD), "web")
    before = router.flow(ALICE)
    segments = {
        "SYN": ALICE.syn(),
        "request": ALICE.data(HEAD),
        "body": ALICE.data(BODY[:100], at=len(HEAD)),
        "end": ALICE.fin(len(HEAD)),
    }
    frame = with_ip_options(bytes(segments[kind]), length)
    router.drops(frame, "DROP_IP_OPTIONS")
    assert router.flow(ALICE) == before


def with_ip_options(frame: bytes, length: int) -> bytes:
    """The frame with that many bytes of no-operation options (RFC 791, 3.1) in its IPv4 header."""
    packet = bytearray(frame[14:34] + b"\x01" * length + frame[34:])
    packet[0] += length // 4
    packet[2:4] = (int.from_bytes(packet[2:4], "big") + length).to_bytes(2, "big")
    return frame[:14] + bytes(packet)


@pytest.mark.parametrize("mss", [None, 0, 1, 535])
def test_less_than_the_smallest_segment_counts_as_that(router: Router, mss: int | None) -> None:
    """A cookie can say no less than 536, and the kernel refuses less for a socket."""
    client = Connection(options=SynOptions(mss=mss))
    router.greets(client.syn())
    router.opens(client.data(request("/")), "web")
    assert client.cookie >> 1 & 3 == 0
