"""The secrets of a RAUTA installation: who knows them can forge cookies or aim at a backend's hash slots.

Cookie keys are shared by all routers and agents, and change while programs run (rauta.secrets). The others do not: what
programs remember by them would be forgotten. The two hash keys belong to routers (routers that must agree on a backend
share the flow key), the agents' secret to agents. No key ever appears in a repr, so that none lands in a log or a
traceback.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field, replace

from rauta.contract import DIGEST_KEYS
from rauta.errors import RautaError

__all__ = ["COOKIE_KEY_BYTES", "STABLE_BYTES", "CookieKeys", "Keys", "SipHashKey", "siphash_key"]

COOKIE_KEY_BYTES = 16
STABLE_BYTES = 32
"""of what does not rotate: route key, flow key, the agents' secret"""

_COOKIE_BYTES = 2 * COOKIE_KEY_BYTES
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
        return cls((siphash_key(raw[:COOKIE_KEY_BYTES]), siphash_key(raw[COOKIE_KEY_BYTES:])), epoch)

    def with_key(self, epoch: int, key: SipHashKey) -> CookieKeys:
        """The same, but for the key of one epoch."""
        first, second = self.by_epoch
        return replace(self, by_epoch=(first, key) if epoch else (key, second))


@dataclass(frozen=True, slots=True)
class Keys:
    """All secrets of a router, and of an agent: that one reads only `cookies` and what comes of `agent_secret`."""

    cookies: CookieKeys = field(repr=False)
    route_key: int = field(repr=False)  # 64 bits: of the hashes of host names and paths
    flow_key: int = field(repr=False)  # 64 bits: of the hash of a connection's tuple
    agent_secret: bytes = field(repr=False)  # 16 bytes: of what an agent knows connections by

    @classmethod
    def generate(cls) -> Keys:
        """Fresh random keys."""
        return cls.from_bytes(secrets.token_bytes(_COOKIE_BYTES + STABLE_BYTES))

    @classmethod
    def from_bytes(cls, raw: bytes) -> Keys:
        """Keys from 64 bytes: 32 of cookie keys (see `CookieKeys.from_bytes`), and 32 as `of` takes them.

        RautaError on another length.
        """
        _require_length("keys", raw, _COOKIE_BYTES + STABLE_BYTES)
        return cls.of(CookieKeys.from_bytes(raw[:_COOKIE_BYTES]), raw[_COOKIE_BYTES:])

    @classmethod
    def of(cls, cookies: CookieKeys, stable: bytes) -> Keys:
        """Cookie keys, and 32 bytes of what does not rotate: route_key, flow_key (little-endian), agent_secret.

        RautaError on another length.
        """
        _require_length("keys", stable, STABLE_BYTES)
        route_key, flow_key = siphash_key(stable[: 2 * _HASH_KEY_BYTES])
        return cls(cookies, route_key, flow_key, agent_secret=stable[2 * _HASH_KEY_BYTES :])

    @property
    def consumed_key(self) -> SipHashKey:
        """The key of the fingerprints of connections that have had their socket: SHAKE-256 of the agents' secret."""
        return siphash_key(hashlib.shake_256(_CONSUMED_LABEL + self.agent_secret).digest(COOKIE_KEY_BYTES))

    @property
    def first_keys(self) -> list[int]:
        """The keys of the digests of connections' first data, 64 bits each: SHAKE-256 of the agents' secret."""
        return _digest_keys(_FIRST_LABEL + self.agent_secret)

    @property
    def trace_secret(self) -> bytes:
        """Which requests are traced, and by which ids (rauta.tracing): 24 bytes, SHAKE-256 of the agents' secret."""
        return hashlib.shake_256(_TRACE_LABEL + self.agent_secret).digest(_TRACE_BYTES)

    @property
    def digest_keys(self) -> list[int]:
        """The keys of the digests of request heads, 64 bits each: SHAKE-256 of the flow key."""
        return _digest_keys(_DIGEST_LABEL + self.flow_key.to_bytes(_HASH_KEY_BYTES, "little"))

    def with_fresh_route_key(self) -> Keys:
        """The same keys but for the route key: used when two configured names or paths collide under the old one."""
        return replace(self, route_key=int.from_bytes(secrets.token_bytes(_HASH_KEY_BYTES), "little"))


def siphash_key(raw: bytes) -> SipHashKey:
    """16 bytes as two numbers of 64 bits, each little-endian: k0 and k1 of the SipHash paper."""
    return int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little")


def _digest_keys(seed: bytes) -> list[int]:
    raw = hashlib.shake_256(seed).digest(8 * DIGEST_KEYS)
    return [int.from_bytes(raw[at : at + 8], "little") for at in range(0, len(raw), 8)]


def _derived_key(label: bytes, key: SipHashKey) -> SipHashKey:
    raw = b"".join(half.to_bytes(_HASH_KEY_BYTES, "little") for half in key)
    return siphash_key(hashlib.shake_256(label + raw).digest(COOKIE_KEY_BYTES))


def _require_length(what: str, raw: bytes, length: int) -> None:
    if len(raw) != length:
        raise RautaError(f"reading {what}", f"{len(raw)} bytes were given", f"Give exactly {length} bytes.")
