"""The handshake: every SYN gets a cookie SYN-ACK, nothing is remembered, little is said before the first request."""

import random
import struct
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest

from packets import oracle
from packets.bench import RESETTING_PORT, RESETTING_VIP, Router
from packets.frames import CLIENT_CLOCK, ECHOED_CLOCK, Connection, acknowledgement_of, request, timestamps
from packets.oracle import SynOptions

ALICE = Connection()
PLAIN = Connection(options=SynOptions(mss=1460))
OFFERS = [
    SynOptions(mss, wscale, sack, tsval)
    for mss, wscale, sack, tsval in product([None, 1460], [None, 7], [False, True], [None, CLIENT_CLOCK])
]
OTHERS = [ALICE, PLAIN, Connection(options=SynOptions(wscale=0)), Connection(options=SynOptions(tsval=CLIENT_CLOCK))]


def offered(connection: Connection) -> str:
    """A name for what a connection's SYN offers."""
    options = connection.options
    named = {"mss": options.mss, "wscale": options.wscale, "sack": options.sack, "timestamps": options.tsval}
    return "+".join(name for name, value in named.items() if value not in (None, False)) or "nothing"


# ---- SYN ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("connection", [Connection(options=offer) for offer in OFFERS], ids=offered)
def test_a_syn_is_answered_by_what_it_offers(router: Router, connection: Connection) -> None:
    router.greets(connection.syn())
    assert router.flows() == 0


@pytest.mark.parametrize(
    "mss", [0, 1, 535, 536, 537, 1219, 1220, 1221, 1399, 1400, 1416, 1459, 1460, 1461, 8960, 65535]
)
def test_the_cookie_keeps_the_largest_mss_that_the_client_allows(router: Router, mss: int) -> None:
    router.greets(Connection(options=SynOptions(mss=mss)).syn())


@pytest.mark.parametrize("wscale", [0, 1, 13, 14, 15, 16, 255])
def test_the_cookie_keeps_the_window_scale(router: Router, wscale: int) -> None:
    router.greets(Connection(options=SynOptions(wscale=wscale)).syn())


ODD_OPTIONS = {
    "end of list first": "00 02 04 05 b4 00 00 00",
    "end of list in between": "02 04 05 b4 00 03 03 07",
    "no-operations only": "01 01 01 01 01 01 01 01",
    "another order": "03 03 07 08 0a 01 02 03 04 00 00 00 00 04 02 02 04 05 b4 01",
    "kind without length at the end": "02 04 05 b4 01 01 01 03",
    "length 0": "02 04 05 b4 03 00 07 01",
    "length 1": "02 04 05 b4 03 01 07 01",
    "longer than what is left": "02 04 05 b4 04 02 01 01 08 0a 01 02 03 04 00 00",
    "MSS of a wrong length": "02 03 05 01 03 03 07 01",
    "MSS that is too long": "02 06 05 b4 05 b4 01 01",
    "window scale of a wrong length": "03 04 07 01 02 04 05 b4",
    "SACK-permitted of a wrong length": "04 03 00 01 02 04 05 b4",
    "timestamps of a wrong length": "08 09 01 02 03 04 00 00 00 01 01 01",
    "unknown kinds": "fe 06 01 02 03 04 22 02 02 04 05 b4 1c 04 00 00",
    "MSS twice": "02 04 05 b4 02 04 02 18",
    "MSS of 0 after a good one": "02 04 05 b4 02 04 00 00",
    "window scale twice": "03 03 07 01 03 03 02 01",
    "timestamps twice": "08 0a 00 00 00 01 00 00 00 00 08 0a 00 00 00 02 00 00 00 00",
    "Fast Open cookie": "02 04 05 b4 22 0a 01 02 03 04 05 06 07 08 01 01",
    "forty bytes, the last option exactly at the end": "01" * 30 + "08 0a 0a 0b 0c 0d 00 00 00 00",
    "forty bytes, the last option one too long": "01" * 31 + "08 0a 0a 0b 0c 0d 00 00 00",
}


@pytest.mark.parametrize("options", ODD_OPTIONS.values(), ids=ODD_OPTIONS)
def test_odd_options_are_read_as_linux_reads_them(router: Router, options: str) -> None:
    router.greets(ALICE.syn(options=bytes.fromhex(options)))


@pytest.mark.parametrize("seed", range(24))
def test_random_options_are_read_as_linux_reads_them(router: Router, seed: int) -> None:
    rng = random.Random(seed)
    connection = Connection(port=rng.randint(1024, 65535), isn=rng.getrandbits(32))
    router.greets(connection.syn(options=random_options(rng)))


def random_options(rng: random.Random) -> bytes:
    """Up to 40 bytes of options in any order, now and then with a length that is wrong."""
    makers: list[Callable[[], bytes]] = [
        lambda: b"\1",
        lambda: struct.pack(">BBH", 2, 4, rng.choice([0, 400, 1300, 1460, 9000])),
        lambda: bytes([3, 3, rng.randint(0, 20)]),
        lambda: b"\4\2",
        lambda: struct.pack(">BBII", 8, 10, rng.getrandbits(32), 0),
        lambda: bytes([rng.choice([2, 3, 4, 8, 34, 254]), rng.randint(0, 12), *rng.randbytes(rng.randint(0, 4))]),
    ]
    raw = b"".join(rng.choice(makers)() for _ in range(rng.randint(1, 9)))[: rng.randint(4, 40)]
    return raw.ljust(-(-len(raw) // 4) * 4, rng.choice([b"\0", b"\1"]))


def test_data_in_a_syn_is_not_acknowledged(router: Router) -> None:
    router.greets(ALICE.syn(payload=request("/")))


@pytest.mark.parametrize("flags", ["SE", "SC", "SEC"])
def test_ecn_is_not_offered(router: Router, flags: str) -> None:
    router.greets(ALICE.syn(flags=flags))


def test_padding_and_type_of_service_of_a_syn_are_not_returned(router: Router) -> None:
    router.greets(replace(ALICE.syn(options=b""), padding=bytes(6), ip={"tos": 0xB9, "ttl": 1}))


def test_the_frame_grows_for_options_that_the_syn_had_packed_tighter(router: Router) -> None:
    bare = bytes.fromhex("04 02 03 03 07 08 0a 00 00 00 01 00 00 00 00 00")
    router.greets(ALICE.syn(options=bare))


def test_the_last_sequence_number_is_acknowledged_by_zero(router: Router) -> None:
    router.greets(Connection(isn=0xFFFFFFFF).syn())


@pytest.mark.parametrize("sent", [0, 0x80000000, 0xFFFFFFFF])
def test_any_client_clock_is_echoed(router: Router, sent: int) -> None:
    router.greets(Connection(options=SynOptions(tsval=sent)).syn())


def test_each_vip_answers_in_its_own_name(router: Router) -> None:
    router.greets(Connection(server=RESETTING_VIP, server_port=RESETTING_PORT).syn())


def test_new_cookies_use_the_key_of_the_current_epoch(router: Router) -> None:
    router.set_cookie_keys(oracle.COOKIE_KEYS, epoch=1)
    router.greets(ALICE.syn(), epoch=1)


@pytest.mark.parametrize("port", random.Random(1).sample(range(1, 65536), 6))
def test_each_tuple_has_its_own_cookie(router: Router, port: int) -> None:
    router.greets(Connection(port=port, client=f"10.{port % 256}.{port // 256}.9").syn())


# ---- the third packet -----------------------------------------------------------------------------------


@pytest.mark.parametrize("connection", OTHERS, ids=offered)
def test_the_acknowledgement_of_the_handshake_is_dropped(router: Router, connection: Connection) -> None:
    router.drops(connection.ack(), "DROP_HANDSHAKE_ACK")
    assert router.flows() == 0


def test_so_is_one_that_is_padded(router: Router) -> None:
    router.drops(PLAIN.ack(padding=bytes(6)), "DROP_HANDSHAKE_ACK")


@pytest.mark.parametrize("change", [{"at": 1}, {"at": -2}, {"acked": 1}, {"acked": -1}])
def test_an_acknowledgement_beside_the_cookie_is_dropped_as_unknown(router: Router, change: dict[str, int]) -> None:
    router.drops(ALICE.ack(**change), "DROP_NO_FLOW")


# ---- keepalive probes and FIN before the first request --------------------------------------------------


@pytest.mark.parametrize("connection", OTHERS, ids=offered)
@pytest.mark.parametrize("payload", [b"", b"\0", b"G"], ids=["empty", "one byte", "one letter"])
def test_a_keepalive_probe_is_acknowledged(router: Router, connection: Connection, payload: bytes) -> None:
    probe = connection.data(payload, at=-1, flags="A")
    router.sends(probe, "TX_KEEPALIVE", acknowledgement_of(probe))
    assert router.flows() == 0


def test_a_probe_without_timestamps_gets_none(router: Router) -> None:
    probe = ALICE.ack(at=-1, options=b"")
    router.sends(probe, "TX_KEEPALIVE", acknowledgement_of(probe))


def test_a_probe_with_other_options_gets_only_its_timestamps(router: Router) -> None:
    sack = bytes.fromhex("01 01 05 0a 00 00 00 01 00 00 00 02")
    probe = ALICE.ack(at=-1, options=timestamps(7, 8) + sack)
    router.sends(probe, "TX_KEEPALIVE", acknowledgement_of(probe))


def test_a_padded_probe_gets_a_frame_without_padding(router: Router) -> None:
    probe = PLAIN.data(b"\0", at=-1, flags="A", padding=bytes(5))
    router.sends(probe, "TX_KEEPALIVE", acknowledgement_of(probe))


def test_a_probe_at_the_end_of_the_number_space(router: Router) -> None:
    probe = Connection(isn=0xFFFFFFFF).ack(at=-1)
    router.sends(probe, "TX_KEEPALIVE", acknowledgement_of(probe))


def test_a_probe_with_a_wrong_cookie_is_dropped(router: Router) -> None:
    router.drops(ALICE.ack(at=-1, acked=1 << 8), "DROP_NO_FLOW")
    router.drops(ALICE.data(b"\0", at=-1, acked=1 << 8), "DROP_NO_FLOW")


def test_two_bytes_are_no_probe(router: Router) -> None:
    router.drops(ALICE.data(b"\0\0", at=-1), "DROP_NO_FLOW")


@pytest.mark.parametrize("connection", OTHERS, ids=offered)
def test_a_fin_before_the_first_request_closes(router: Router, connection: Connection) -> None:
    fin = connection.fin()
    router.sends(fin, "TX_CLOSE", acknowledgement_of(fin, "FA"))
    assert router.flows() == 0


@pytest.mark.parametrize("change", [{"at": 1}, {"at": -1}, {"acked": 1 << 8}, {"acked": 1}])
def test_any_other_fin_is_dropped(router: Router, change: dict[str, int]) -> None:
    router.drops(ALICE.fin(at=change.get("at", 0), ack=ALICE.cookie + 1 + change.get("acked", 0)), "DROP_NO_FLOW")


@pytest.mark.parametrize("flags", ["R", "RA"])
def test_a_reset_before_the_first_request_is_dropped(router: Router, flags: str) -> None:
    router.drops(ALICE.rst(flags=flags), "DROP_NO_FLOW")


def test_the_echo_is_the_other_way_round() -> None:
    """What the cases above rely on: TSval and TSecr swap places."""
    assert oracle.parse_timestamps(ALICE.ack().options) == (CLIENT_CLOCK + 1, ECHOED_CLOCK)
    assert acknowledgement_of(ALICE.ack(at=-1))[-12:] == timestamps(ECHOED_CLOCK, CLIENT_CLOCK + 1)
