"""VLAN tags, one or two: everything happens as without them, and what leaves as it came has them again."""

import pytest

from packets import frames, oracle
from packets.bench import XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX, Router, entry
from packets.frames import Connection, Segment, request

ALICE = Connection()
HEAD = request("/")
ADDRESSES = 12  # bytes in front of a tag

CUSTOMER, OTHER_CUSTOMER, SERVICE = b"\x81\x00\x00\x07", b"\x81\x00\xe0\x08", b"\x88\xa8\x0f\xfe"
TAGS = {
    "one": CUSTOMER,
    "one of a provider's": SERVICE,
    "two": SERVICE + CUSTOMER,
    "two of a kind": CUSTOMER + OTHER_CUSTOMER,
}
tagged_so = pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)


def tagged(frame: bytes, tags: bytes) -> bytes:
    """The frame with tags behind its addresses."""
    return frame[:ADDRESSES] + tags + frame[ADDRESSES:]


def comes_out(router: Router, frame: bytes, verdict: str, code: int, expected: bytes) -> None:
    got, output = router.run("rauta_ingress", frame, verdict)
    assert (got, output.hex(" ")) == (code, expected.hex(" "))


@tagged_so
def test_a_request_is_routed_and_keeps_its_tags(router: Router, tags: bytes) -> None:
    segment, backend = ALICE.data(HEAD), router.backend_of("web", ALICE)
    routed = router.encapsulated(segment, backend, opens=True)
    comes_out(router, tagged(bytes(segment), tags), "ROUTED_FIRST", XDP_TX, tagged(routed, tags))
    assert router.flow(ALICE) == entry(segment, "web", backend)


@tagged_so
@pytest.mark.parametrize("padding", [0, 1, 46])
def test_padding_is_cut_off_behind_tags_too(router: Router, tags: bytes, padding: int) -> None:
    segment = ALICE.data(HEAD, padding=b"p" * padding)
    routed = router.encapsulated(segment, router.backend_of("web", ALICE), opens=True)
    comes_out(router, tagged(bytes(segment), tags), "ROUTED_FIRST", XDP_TX, tagged(routed, tags))


@tagged_so
def test_answers_have_the_tags_of_what_they_answer(router: Router, tags: bytes) -> None:
    bare = Connection(options=oracle.SynOptions(mss=1460))
    syn, bad = bare.syn(), ALICE.data(request("//"))
    comes_out(router, tagged(bytes(syn), tags), "TX_SYN_ACK", XDP_TX, tagged(frames.syn_ack_to(syn, 0), tags))
    answer = frames.answer_to(bad, "400 Bad Request")
    comes_out(router, tagged(bytes(bad), tags), "TX_BAD_REQUEST", XDP_TX, tagged(answer, tags))
    forged = Connection(port=50001).data(HEAD, acked=1)
    comes_out(router, tagged(bytes(forged), tags), "TX_RESET_COOKIE", XDP_TX, tagged(frames.reset_of(forged), tags))


@tagged_so
@pytest.mark.parametrize(
    ("segment", "verdict", "code"),
    [
        (ALICE.ack(), "DROP_HANDSHAKE_ACK", XDP_DROP),
        (ALICE.ack(at=500), "DROP_NO_FLOW", XDP_DROP),
        (ALICE.data(HEAD, ip={"dst": "198.18.100.99"}), "PASS_NOT_VIP", XDP_PASS),
        (ALICE.data(HEAD, ip={"proto": 17}), "PASS_NOT_TCP", XDP_PASS),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_leave_stays_as_it_was(
    router: Router, segment: Segment, verdict: str, code: int, tags: bytes
) -> None:
    frame = tagged(bytes(segment), tags)
    comes_out(router, frame, verdict, code, frame)


def test_another_interface_gets_no_tags(router: Router) -> None:
    """They belong to the network that the packet came from."""
    router.lead("api-1", 77, "02:00:00:00:00:77")
    segment = ALICE.data(request("/api"))
    expected = router.encapsulated(segment, "api-1", opens=True, mac="02:00:00:00:00:77")
    comes_out(router, tagged(bytes(segment), CUSTOMER), "ROUTED_FIRST", XDP_REDIRECT, expected)


@pytest.mark.parametrize(
    "frame",
    [
        tagged(bytes(ALICE.data(HEAD)), 3 * CUSTOMER),
        tagged(bytes(ALICE.data(HEAD)), SERVICE + CUSTOMER + b"\x91\x00\x00\x01"),
        tagged(bytes(ALICE.data(HEAD)), b"\x91\x00\x00\x01"),
        tagged(frames.ethernet(frames.CLIENT_MAC, frames.ROUTER_MAC, bytes(46), 0x0806), CUSTOMER),
    ],
    ids=["three", "a third of another kind", "of another kind", "ARP"],
)
def test_other_tagged_frames_pass(router: Router, frame: bytes) -> None:
    router.passes(frame, "PASS_NOT_IPV4")


@pytest.mark.parametrize("length", [14, 15, 17, 20, 21])
def test_what_ends_inside_a_tag_or_right_behind_it_is_dropped(router: Router, length: int) -> None:
    """Nobody can say what it is for."""
    router.drops(tagged(bytes(ALICE.data(HEAD)), SERVICE + CUSTOMER)[:length], "DROP_NO_ROOM")


@pytest.mark.parametrize("length", [18, 19])
def test_half_a_second_tag_is_no_tag(router: Router, length: int) -> None:
    router.passes(tagged(bytes(ALICE.data(HEAD)), SERVICE + CUSTOMER)[:length], "PASS_NOT_IPV4")
