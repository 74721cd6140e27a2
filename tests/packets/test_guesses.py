"""Cookies against somebody who does not see the router's answers: what a guess is worth, and a stale or borrowed one.

The arithmetic (docs/http.md, "Handshake and state"): of the 32 bits that a request must acknowledge, the low 8 say
which options the client offered and which of the two keys to check with. All 256 values of them are as good, so the
guesser picks one, and has the 24 bits of the hash to guess, under one key. N guesses are right N / 2^24 times. Counted
with the bit that names the key it is 25 bits and two live keys: 2 * N / 2^25, the same.

Packet by packet that would take days. lab/bpf/guess.bpf.c has the router's own cookie_check() in a loop; that the
router's verdict is what cookie_check() says is tested with packets.

RAUTA_LONG=1 guesses half a billion times instead of sixteen million.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pytest

from lab.environment import REPOSITORY
from packets import oracle
from packets.bench import Router
from packets.frames import Connection, Segment, request
from rauta.bpf import BpfObject

OBJECT = REPOSITORY / "lab" / "objects" / "guess.bpf.o"
LONG = bool(os.environ.get("RAUTA_LONG"))
HASH_BITS = 24
GUESSES = 1 << (29 if LONG else 24)
GUESSES_IN_A_RUN = 1 << 20
ALICE = Connection()
HEAD = request("/")
KEYS = {
    name: (0x1111111111111111 * (2 * number + 1), 0x0101010101010101 * (number + 3))
    for number, name in enumerate("abcd")
}


@dataclass
class Guesser:
    """The check in a loop."""

    object: BpfObject

    def guess(self, count: int, **guessing: Any) -> dict[str, Any]:
        """So many guesses, a multiple of GUESSES_IN_A_RUN; what `struct guessing` says afterwards."""
        guessings = self.object.maps["guessings"]
        guessings.update(0, guessing | {"count": GUESSES_IN_A_RUN})
        for _ in range(count // GUESSES_IN_A_RUN):
            self.object.programs["guess_cookies"].call()
        found: dict[str, Any] = guessings.lookup(0)
        return found


@pytest.fixture(scope="module")
def guesser() -> Iterator[Guesser]:
    with BpfObject.open(OBJECT) as opened:
        opened.load()
        opened.maps["cookie_keys"].update(0, {"key": [list(key) for key in oracle.COOKIE_KEYS], "epoch": 0})
        yield Guesser(opened)


def with_cookie(connection: Connection, cookie: int) -> Segment:
    """The connection's first request, as if the router's SYN-ACK had had that number."""
    return replace(connection.data(HEAD), ack=cookie + 1 & 0xFFFFFFFF)


# ---- what a guess is worth ------------------------------------------------------------------------------


@pytest.mark.parametrize("option_byte", [0x5A, 0xF7], ids=["the current key", "the other key"])
def test_of_all_hashes_with_the_same_options_just_one_is_right(
    guesser: Guesser, router: Router, option_byte: int
) -> None:
    """Whichever option bits somebody writes, and whichever key they name: no more than one of 2^24, and no less."""
    said = guesser.guess(
        1 << HASH_BITS, tuple=ALICE.tuple.key, isn=ALICE.isn, first=option_byte, step=1 << 32 - HASH_BITS
    )
    assert said["first"] == option_byte  # all the way round
    assert said["accepted"] == 1
    assert said["cookie"] == oracle.cookie(ALICE.tuple, ALICE.isn, option_byte)
    router.opens(with_cookie(ALICE, said["cookie"]), "web")
    router.reset()
    for bit in range(32 - HASH_BITS, 32):
        router.resets(with_cookie(ALICE, said["cookie"] ^ 1 << bit), "TX_RESET_COOKIE")


def test_random_guesses_are_right_as_often_as_24_bits_allow(guesser: Guesser, router: Router) -> None:
    """By anybody, for any connection. Six standard deviations of the Poisson distribution: wrong once in 10^8 runs."""
    said = guesser.guess(GUESSES, tuple=ALICE.tuple.key, random=1, state=Random(GUESSES).getrandbits(64))
    expected = GUESSES / 2**HASH_BITS
    assert abs(said["accepted"] - expected) <= 6 * expected**0.5 + 4
    assert not LONG or said["accepted"] > 0
    if said["accepted"]:
        guessed = connection_of(said["for_tuple"], said["for_isn"])
        router.opens(with_cookie(guessed, said["cookie"]), "web")


def test_so_the_router_says_to_each_of_them(router: Router) -> None:
    random = Random(24)
    for _ in range(150):
        connection = Connection(port=random.randint(1, 65535), isn=random.getrandbits(32))
        router.resets(with_cookie(connection, random.getrandbits(32)), "TX_RESET_COOKIE")
    assert router.flows() == 0


def connection_of(four: dict[str, int], isn: int) -> Connection:
    """The connection behind a `struct tuple`."""
    client_port = int.from_bytes(four["client_port"].to_bytes(2, "little"), "big")
    return Connection(client=oracle.address_of(four["client"]), port=client_port, isn=isn)


EPOCHS = {"a": 0, "b": 1, "c": 1, "d": 0}


# ---- right once, or elsewhere ---------------------------------------------------------------------------


def test_an_overwritten_keys_cookies_are_worth_nothing(router: Router) -> None:
    """Each rotation overwrites the key that is not in use and uses it from then on. What it was before is retired."""
    rotations: list[tuple[Sequence[tuple[int, int]], int, dict[str, bool]]] = [
        ((KEYS["a"], KEYS["b"]), 0, {"a": True, "b": True, "c": False, "d": False}),
        ((KEYS["a"], KEYS["c"]), 1, {"a": True, "b": False, "c": True, "d": False}),
        ((KEYS["d"], KEYS["c"]), 0, {"a": False, "b": False, "c": True, "d": True}),
    ]
    for keys, epoch, good in rotations:
        router.set_cookie_keys(keys, epoch)
        for name, accepted in good.items():
            old = Connection(epoch=EPOCHS[name], keys=(KEYS[name], KEYS[name]))
            if accepted:
                router.opens(old.data(HEAD), "web")
                router.object.maps["flows"].clear()
            else:
                router.resets(old.data(HEAD), "TX_RESET_COOKIE")


def test_the_bit_of_the_other_epoch_does_not_bring_a_retired_key_back(router: Router) -> None:
    router.set_cookie_keys((KEYS["a"], KEYS["c"]), 1)
    for epoch in (0, 1):
        retired = Connection(epoch=epoch, keys=(KEYS["b"], KEYS["b"]))
        router.resets(retired.data(HEAD), "TX_RESET_COOKIE")
        router.resets(with_cookie(retired, retired.cookie ^ 1), "TX_RESET_COOKIE")


BORROWERS = {
    "another address": replace(ALICE, client="198.18.0.77"),
    "another port": replace(ALICE, port=ALICE.port + 1),
    "a later connection": ALICE.reopened(ALICE.isn + 64_000),
    "the number after it": ALICE.reopened(ALICE.isn + 1),
}


@pytest.mark.parametrize("borrower", BORROWERS.values(), ids=BORROWERS)
def test_a_cookie_that_was_good_is_good_for_nobody_and_nothing_else(router: Router, borrower: Connection) -> None:
    """Also on a tuple that has a flow, which the attempt does not touch."""
    router.opens(ALICE.data(HEAD), "web")
    before = router.flow(ALICE)
    before_it = router.counters()
    router.object.programs["rauta_ingress"].test_run(bytes(with_cookie(borrower, ALICE.cookie)))
    assert router.grown(before_it).keys() <= {"TX_RESET_COOKIE", "DROP_OUT_OF_ORDER", "TX_RESET_PIPELINED"}
    assert router.flow(ALICE) == before
    assert router.flows() == 1


def test_the_options_in_a_cookie_cannot_be_changed(router: Router) -> None:
    for change in range(1, 256):
        router.resets(with_cookie(ALICE, ALICE.cookie ^ change), "TX_RESET_COOKIE")
    assert router.flows() == 0


def test_a_first_request_that_is_sent_once_more_opens_no_second_flow(router: Router) -> None:
    first = ALICE.data(HEAD)
    router.opens(first, "web")
    backend, made = router.backend_of("web", ALICE), router.flow(ALICE)
    for _ in range(3):
        router.forwards(first, "FORWARDED_AGAIN", backend, opens=True)
    assert (router.flows(), router.flow(ALICE)) == (1, made)
