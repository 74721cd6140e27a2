"""Cookies: what proves that a client completed the handshake, and what a packet without that proof gets."""

from dataclasses import replace

import pytest

from packets import oracle
from packets.bench import RESETTING_PORT, RESETTING_VIP, Router
from packets.frames import VIP, VIP_PORT, Connection, request
from packets.oracle import SynOptions

ALICE = Connection()
HEAD = request("/")
FRESH_KEYS = ((0x1111111122222222, 0x3333333344444444), (0x5555555566666666, 0x7777777788888888))


# ---- valid ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("current", [0, 1])
def test_cookies_of_both_epochs_are_good_whichever_is_current(router: Router, epoch: int, current: int) -> None:
    router.set_cookie_keys(oracle.COOKIE_KEYS, current)
    router.opens(Connection(epoch=epoch).data(HEAD), "web")


def test_any_options_in_a_cookie_are_good(router: Router) -> None:
    for option_byte in range(256):
        right = replace(ALICE.data(HEAD), ack=oracle.cookie(ALICE.tuple, ALICE.isn, option_byte) + 1 & 0xFFFFFFFF)
        router.opens(right, "web")
        router.reset()


@pytest.mark.parametrize("isn", [0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF])
def test_cookies_are_good_at_the_edges_of_the_number_space(router: Router, isn: int) -> None:
    router.opens(Connection(isn=isn).data(HEAD), "web")


# ---- wrong, with a request: reset -----------------------------------------------------------------------


@pytest.mark.parametrize("bit", range(32))
def test_a_cookie_with_one_wrong_bit_is_reset(router: Router, bit: int) -> None:
    forged = replace(ALICE.data(HEAD), ack=(ALICE.cookie ^ 1 << bit) + 1 & 0xFFFFFFFF)
    router.resets(forged, "TX_RESET_COOKIE")
    assert router.flows() == 0


OWNERS = {
    "client": Connection(client="198.18.0.9"),
    "client port": Connection(port=ALICE.port + 1),
    "server": Connection(server=RESETTING_VIP, server_port=VIP_PORT),
    "server port": Connection(server=VIP, server_port=RESETTING_PORT),
    "client and server changed over": Connection(client=VIP, server=ALICE.client),
    "initial sequence number": Connection(isn=ALICE.isn + 1),
    "initial sequence number in another byte order": Connection(isn=0x00000010),
    "keys": Connection(keys=FRESH_KEYS),
}


@pytest.mark.parametrize("owner", OWNERS.values(), ids=OWNERS)
def test_somebody_elses_cookie_is_reset(router: Router, owner: Connection) -> None:
    router.resets(replace(ALICE.data(HEAD), ack=owner.cookie + 1 & 0xFFFFFFFF), "TX_RESET_COOKIE")


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_stale_cookie_is_reset(router: Router, epoch: int) -> None:
    """Its key has been replaced; that of the other epoch is still good."""
    keys = list(oracle.COOKIE_KEYS)
    keys[epoch] = FRESH_KEYS[epoch]
    router.set_cookie_keys(keys, epoch)
    router.resets(Connection(epoch=epoch).data(HEAD), "TX_RESET_COOKIE")
    router.opens(Connection(epoch=1 - epoch).data(HEAD), "web")


@pytest.mark.parametrize("at", [1, -1, 1460, -1460])
def test_a_request_beside_the_connections_first_byte_is_reset(router: Router, at: int) -> None:
    router.resets(ALICE.data(HEAD, at=at), "TX_RESET_COOKIE")


@pytest.mark.parametrize("acked", [1, -1, 100_000])
def test_a_request_that_acknowledges_more_than_the_syn_ack_is_reset(router: Router, acked: int) -> None:
    router.resets(ALICE.data(HEAD, acked=acked), "TX_RESET_COOKIE")


@pytest.mark.parametrize("method", oracle.METHODS)
def test_every_method_starts_a_request(router: Router, method: str) -> None:
    router.resets(ALICE.data(f"{method} ".encode(), acked=1), "TX_RESET_COOKIE")


def test_a_bad_cookie_weighs_more_than_a_bad_request(router: Router) -> None:
    router.resets(ALICE.data(b"GET nonsense\r\n\r\n", acked=1), "TX_RESET_COOKIE")


def test_the_reset_is_short_whatever_the_request_was(router: Router) -> None:
    long = request("/", "X-Padding: " + "x" * 1300)
    router.resets(Connection(options=SynOptions()).data(long, acked=1, window=1, padding=bytes(4)), "TX_RESET_COOKIE")
    router.resets(ALICE.data(HEAD, acked=1, flags="FPA", ip={"tos": 0x10}), "TX_RESET_COOKIE")


# ---- wrong, without a request: dropped ------------------------------------------------------------------

NO_REQUESTS = [
    b"",
    b"G",
    b"GET",
    b"GETX / HTTP/1.1\r\n\r\n",
    b"get / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01",
    b"GET\t/",
    b"0" * 1400,
]


@pytest.mark.parametrize("payload", NO_REQUESTS, ids=repr)
def test_data_without_cookie_or_request_is_dropped(router: Router, payload: bytes) -> None:
    router.drops(ALICE.data(payload, acked=1 << 8), "DROP_NO_FLOW")


@pytest.mark.parametrize("at", [100, 1 << 20])
def test_the_rest_of_a_connection_that_nobody_knows_is_dropped(router: Router, at: int) -> None:
    router.drops(ALICE.ack(at, acked=at), "DROP_NO_FLOW")
    router.drops(ALICE.fin(at), "DROP_NO_FLOW")
    router.drops(ALICE.rst(at), "DROP_NO_FLOW")
    router.drops(ALICE.data(b"body", at), "DROP_NO_FLOW")


# ---- right, but no request: reset -----------------------------------------------------------------------


@pytest.mark.parametrize("payload", NO_REQUESTS[1:], ids=repr)
def test_data_with_a_cookie_that_is_no_request_is_reset(router: Router, payload: bytes) -> None:
    router.resets(ALICE.data(payload), "TX_RESET_NOT_HTTP")
    assert router.flows() == 0
