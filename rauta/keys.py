"""The secrets of a RAUTA installation: who knows them can forge cookies or aim at a backend's hash slots.

Cookie keys are shared by all routers and agents; the two hash keys belong to routers only (routers that must agree on a
backend share the flow key). No key ever appears in a repr, so that none lands in a log or a traceback.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field, replace

from rauta.contract import DIGEST_KEYS
from rauta.errors import RautaError

__all__ = ["CookieKeys", "Keys"]

_COOKIE_KEY_BYTES = 16
_COOKIE_BYTES = 2 * _COOKIE_KEY_BYTES
_HASH_KEY_BYTES = 8
_DIGEST_LABEL = b"rauta head digest"
_CONSUMED_LABEL = b"rauta consumed connections"
_FIRST_LABEL = b"rauta first data"
_ASK_LABEL = b"rauta ask"
_TRACE_LABEL = b"rauta traces"
_TRACE_BYTES = 24

SipHashKey = tuple[int, int]


@dataclass(frozen=True, slots=True)
class CookieKeys:
    """The two live SipHash-2-4 keys of the SYN cookies, and which of them new cookies use.

    `by_epoch[e]` is (k0, k1), each a 64-bit integer: the little-endian halves of 16 key bytes, as in the SipHash paper.
    """

    by_epoch: tuple[SipHashKey, SipHashKey] = field(repr=False)
    epoch: int = 0

    def __post_init__(self) -> None:
        if self.epoch not in (0, 1):
            raise RautaError(
                "choosing the cookie key", f"there is no epoch {self.epoch}", "Two keys are live: 0 and 1."
            )

    @property
    def consumed_key(self) -> SipHashKey:
        """The key of the fingerprints of connections that have had their socket: SHAKE-256 of both keys."""
        raw = b"".join(k.to_bytes(8, "little") for key in self.by_epoch for k in key)
        derived = hashlib.shake_256(_CONSUMED_LABEL + raw).digest(_COOKIE_KEY_BYTES)
        return int.from_bytes(derived[:8], "little"), int.from_bytes(derived[8:], "little")

    @property
    def first_keys(self) -> list[int]:
        """The keys of the digests of connections' first data, 64 bits each: SHAKE-256 of both keys."""
        raw = b"".join(k.to_bytes(8, "little") for key in self.by_epoch for k in key)
        return _digest_keys(_FIRST_LABEL + raw)

    @property
    def trace_secret(self) -> bytes:
        """Which requests are traced, and by which ids (rauta.sampling): 24 bytes, SHAKE-256 of both keys."""
        raw = b"".join(k.to_bytes(8, "little") for key in self.by_epoch for k in key)
        return hashlib.shake_256(_TRACE_LABEL + raw).digest(_TRACE_BYTES)

    @property
    def ask_keys(self) -> tuple[SipHashKey, SipHashKey]:
        """The keys of what routers ask agents (docs/recovery.md), by epoch: each is SHAKE-256 of a cookie key.

        No tag under them is ever a cookie, and whoever rotates the cookie keys rotates these.
        """
        first, second = (_derived_key(_ASK_LABEL, key) for key in self.by_epoch)
        return first, second

    @classmethod
    def generate(cls) -> CookieKeys:
        """Two fresh random keys."""
        return cls.from_bytes(secrets.token_bytes(_COOKIE_BYTES))

    @classmethod
    def from_bytes(cls, raw: bytes, epoch: int = 0) -> CookieKeys:
        """Keys from 32 bytes: epoch 0's k0, k1, epoch 1's k0, k1, each little-endian. RautaError on another length."""
        _require_length("cookie keys", raw, _COOKIE_BYTES)
        k = [int.from_bytes(raw[i : i + 8], "little") for i in range(0, _COOKIE_BYTES, 8)]
        return cls(by_epoch=((k[0], k[1]), (k[2], k[3])), epoch=epoch)


@dataclass(frozen=True, slots=True)
class Keys:
    """All secrets of a router. An agent reads only `cookies`."""

    cookies: CookieKeys = field(repr=False)
    route_key: int = field(repr=False)  # 64 bits: of the hashes of host names and paths
    flow_key: int = field(repr=False)  # 64 bits: of the hash of a connection's tuple

    @classmethod
    def generate(cls) -> Keys:
        """Fresh random keys."""
        return cls.from_bytes(secrets.token_bytes(_COOKIE_BYTES + 2 * _HASH_KEY_BYTES))

    @classmethod
    def from_bytes(cls, raw: bytes) -> Keys:
        """Keys from 48 bytes: 32 of cookie keys (see `CookieKeys.from_bytes`), route_key, flow_key; all little-endian.

        RautaError on another length.
        """
        _require_length("keys", raw, _COOKIE_BYTES + 2 * _HASH_KEY_BYTES)
        return cls(
            cookies=CookieKeys.from_bytes(raw[:_COOKIE_BYTES]),
            route_key=int.from_bytes(raw[_COOKIE_BYTES : _COOKIE_BYTES + _HASH_KEY_BYTES], "little"),
            flow_key=int.from_bytes(raw[_COOKIE_BYTES + _HASH_KEY_BYTES :], "little"),
        )

    @property
    def digest_keys(self) -> list[int]:
        """The keys of the digests of request heads, 64 bits each: SHAKE-256 of the flow key."""
        return _digest_keys(_DIGEST_LABEL + self.flow_key.to_bytes(_HASH_KEY_BYTES, "little"))

    def with_fresh_route_key(self) -> Keys:
        """The same keys but for the route key: used when two configured names or paths collide under the old one."""
        return replace(self, route_key=int.from_bytes(secrets.token_bytes(_HASH_KEY_BYTES), "little"))


def _digest_keys(seed: bytes) -> list[int]:
    raw = hashlib.shake_256(seed).digest(8 * DIGEST_KEYS)
    return [int.from_bytes(raw[at : at + 8], "little") for at in range(0, len(raw), 8)]


def _derived_key(label: bytes, key: SipHashKey) -> SipHashKey:
    raw = b"".join(half.to_bytes(_HASH_KEY_BYTES, "little") for half in key)
    made = hashlib.shake_256(label + raw).digest(_COOKIE_KEY_BYTES)
    return int.from_bytes(made[:_HASH_KEY_BYTES], "little"), int.from_bytes(made[_HASH_KEY_BYTES:], "little")


def _require_length(what: str, raw: bytes, length: int) -> None:
    if len(raw) != length:
        raise RautaError(f"reading {what}", f"{len(raw)} bytes were given", f"Give exactly {length} bytes.")
