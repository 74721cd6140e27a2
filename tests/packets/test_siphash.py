"""SipHash-2-4 in Python: the paper's own vector, and agreement with the tests' oracle at every length."""

import random

import pytest

from packets.oracle import siphash24
from rauta.siphash import siphash


def test_the_papers_vector() -> None:
    """Appendix A: key 00 01 ... 0f, message 00 01 ... 0e."""
    assert siphash((0x0706050403020100, 0x0F0E0D0C0B0A0908), bytes(range(15))) == 0xA129CA6149BE45E5


@pytest.mark.parametrize("length", [*range(18), 63, 64, 65, 255, 256, 1000])
def test_any_length(length: int) -> None:
    chance = random.Random(length)
    for _ in range(5):
        key = chance.getrandbits(64), chance.getrandbits(64)
        data = chance.randbytes(length)
        assert siphash(key, data) == siphash24(*key, data)
