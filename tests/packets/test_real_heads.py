"""Request heads of real clients, recorded (data/heads): nearly all of them stay on the fast path."""

from __future__ import annotations

from pathlib import Path

import pytest

from packets.bench import SHOP_ROUTES, Router
from packets.frames import Connection

HEADS = {file.stem: file.read_bytes() for file in sorted((Path(__file__).parent / "data/heads").glob("*.http"))}
SEGMENT = 1404
"""bytes of a client's first segment: the router's MSS of 1416 less the timestamps"""
CLIENTS = {"curl", "wget", "wrk", "python", "urllib", "requests", "httpx", "aiohttp", "node", "go", "chromium"}

HANDED_OVER = {
    # Upgrades are not requests alone: what follows is something else.
    "chromium-get-websocket": "FALLBACK_UPGRADE",
    "chromium-get-websocket-cookies": "FALLBACK_UPGRADE",
    "curl-get-upgrade-h2c": "FALLBACK_UPGRADE",
    # A cookie of 3,000 bytes: no packet holds this head.
    "curl-get-large-cookie": "FALLBACK_HEAD",
    # Bodies whose end cannot be followed.
    "curl-put-chunked": "FALLBACK_ENCODED",
    "node-post-http-chunked": "FALLBACK_ENCODED",
}
LEGITIMATE = ("FALLBACK_UPGRADE", "FALLBACK_HEAD")
"""reasons that are left out of the share: an upgrade, and what exceeds a packet"""


@pytest.fixture
def router(router: Router) -> Router:
    router.route(*SHOP_ROUTES, fallback=True)
    return router


def test_there_are_enough_of_every_client() -> None:
    assert len(HEADS) >= 100
    assert {name.partition("-")[0] for name in HEADS} == CLIENTS
    assert all(head.endswith(b"\r\n\r\n") and head.count(b"\r\n\r\n") == 1 for head in HEADS.values())


@pytest.mark.parametrize("name", sorted(HEADS.keys() - HANDED_OVER.keys()))
def test_a_real_head_is_routed(router: Router, name: str) -> None:
    router.opens(Connection().data(HEADS[name]), "web")


@pytest.mark.parametrize(("name", "reason"), HANDED_OVER.items(), ids=HANDED_OVER)
def test_the_others_go_to_the_fallback_for_a_reason(router: Router, name: str, reason: str) -> None:
    router.falls_back(Connection().data(HEADS[name][:SEGMENT]), reason, opens=True)


def test_at_least_99_of_100_stay_on_the_fast_path() -> None:
    """Of those that are no upgrade, and that a packet holds; the tests above show which do."""
    counted = {name for name in HEADS if HANDED_OVER.get(name) not in LEGITIMATE}
    assert all(len(HEADS[name]) <= SEGMENT for name in counted)
    assert all(len(HEADS[name]) > SEGMENT for name, reason in HANDED_OVER.items() if reason == "FALLBACK_HEAD")
    assert len(counted - HANDED_OVER.keys()) / len(counted) >= 0.99
