"""SipHash-2-4 (Aumasson and Bernstein, 2012) in Python: the seal of what routers and agents say to each other.

The packet path has its own in bpf/siphash.h. This one is for whoever has the keys and no program loaded, such as
`rauta doctor`; it takes some 30 µs for 64 bytes, which is no matter for a question a backend. Python's own hash() is
SipHash as well, but under a key that nobody can choose.
"""

from __future__ import annotations

__all__ = ["siphash"]

_WORD = (1 << 64) - 1
_INITIAL = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)
_FINAL = 0xFF

_State = tuple[int, int, int, int]


def siphash(key: tuple[int, int], data: bytes) -> int:
    """The 64-bit tag of data under a key of two 64-bit halves, (k0, k1)."""
    v0, v1, v2, v3 = (half ^ key[number % 2] for number, half in enumerate(_INITIAL))
    padded = data + bytes(7 - len(data) % 8) + bytes([len(data) & 0xFF])
    for at in range(0, len(padded), 8):
        word = int.from_bytes(padded[at : at + 8], "little")
        v0, v1, v2, v3 = _round(_round((v0, v1, v2, v3 ^ word)))
        v0 ^= word
    state: _State = (v0, v1, v2 ^ _FINAL, v3)
    for _ in range(4):
        state = _round(state)
    return state[0] ^ state[1] ^ state[2] ^ state[3]


def _round(state: _State) -> _State:
    v0, v1, v2, v3 = state
    v0 = v0 + v1 & _WORD
    v1 = _rotated(v1, 13) ^ v0
    v2 = v2 + v3 & _WORD
    v3 = _rotated(v3, 16) ^ v2
    v0 = _rotated(v0, 32) + v3 & _WORD
    v3 = _rotated(v3, 21) ^ v0
    v2 = v2 + v1 & _WORD
    v1 = _rotated(v1, 17) ^ v2
    return v0, v1, _rotated(v2, 32), v3


def _rotated(word: int, bits: int) -> int:
    return (word << bits | word >> 64 - bits) & _WORD
