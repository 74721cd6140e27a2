"""No server delimits or routes otherwise what the router routes: 20,000 heads, a million in the long form.

In the long form (RAUTA_LONG=1, `make fuzz`) heads are drawn anew in each run, and the seed is printed: RAUTA_SEED takes
it again. RAUTA_HEADS says how many.
"""

import os
import secrets
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz import hunting, judging, readers, swift, vectors
from fuzz.heads import RECORDED, WORLDS, Heads, world
from fuzz.hunting import REGRESSIONS, Difference, Hunt
from fuzz.judging import Case
from fuzz.readers import SENT_BODY, Reader, exchange, read_with_h11
from fuzz.reading import read_head
from fuzz.swift import Outcome, SwiftRouter

LONG = bool(os.environ.get("RAUTA_LONG"))
HEADS = int(os.environ.get("RAUTA_HEADS") or (1_000_000 if LONG else 20_000))
SEED = int(os.environ.get("RAUTA_SEED") or (secrets.randbits(32) if LONG else 1))
VALID_SHARE = 0.5  # of the heads, at least: what is invalid is refused soon, and shows little
ROUTED_SHARE = 0.4
REFUSED_SHARE = 0.2  # of the valid heads, at most: most of them are there because they are refused


def report(hunt: Hunt, differences: Sequence[Difference]) -> str:
    """The differences, one of each kind, as small as they can be made, and kept."""
    told = []
    for one in {(one.who, one.how[:16]): one for one in reversed(differences)}.values():
        text = hunting.smallest(one.text, lambda text, one=one: hunt.differs(one.routes, text, one.who))
        small = next(iter(hunt.differences(one.routes, text, one.who)), one)
        told.append(f"{small}\n    kept as {hunting.keep(small)}")
    return f"{len(differences)} differences\n" + "\n".join(told)


@pytest.mark.timeout(0 if LONG else 300)
def test_no_server_reads_a_head_otherwise(hunt: Hunt, capsys: pytest.CaptureFixture[str]) -> None:
    if LONG:
        with capsys.disabled():
            print(f"\n{HEADS:,} heads, RAUTA_SEED={SEED}")
    for number in range(HEADS // swift.ROUND):
        routes = world(number % WORLDS)
        heads = Heads(Random(f"{SEED} {number}"), routes)
        texts = [heads.draw() for _ in range(swift.ROUND)]
        differences = hunt.round(routes, texts, fallback=number % 2 == 1)
        assert not differences, report(hunt, differences)
    tally = hunt.tally
    with capsys.disabled():
        if LONG:
            print(*(f"{what}: {count:,}" for what, count in tally.most_common()), sep="\n")
    assert tally["valid"] >= VALID_SHARE * tally["heads"]
    assert tally["routed"] >= ROUTED_SHARE * tally["heads"]
    assert tally["valid and refused"] <= REFUSED_SHARE * tally["valid"]
    for who in ("nginx", "haproxy", "uvicorn", "h11"):
        assert tally[f"routed and read by {who}"] >= 0.8 * tally["routed"]


def in_rounds(texts: Sequence[bytes]) -> list[Sequence[bytes]]:
    return [texts[start : start + swift.ROUND] for start in range(0, len(texts), swift.ROUND)]


@pytest.mark.parametrize("number", range(0, WORLDS, 4))
def test_nor_one_of_the_classic_vectors_or_of_a_real_client(hunt: Hunt, number: int) -> None:
    for texts in in_rounds((*vectors.HEADS, *RECORDED)):
        differences = hunt.round(world(number), texts)
        assert not differences, report(hunt, differences)


KEPT = sorted(REGRESSIONS.glob("*.http"))


@pytest.mark.parametrize("fallback", [False, True], ids=["refusing", "fallback"])
def test_nor_one_that_was_read_otherwise_once(hunt: Hunt, fallback: bool) -> None:
    texts = [file.read_bytes() for file in KEPT]
    assert texts
    for number in range(WORLDS):
        differences = hunt.round(world(number), texts, fallback=fallback)
        assert not differences, "\n".join(map(str, differences))


@settings(
    max_examples=20_000 if LONG else 150,
    derandomize=not LONG,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(random=st.randoms(use_true_random=False), number=st.integers(0, WORLDS - 1), fallback=st.booleans())
def test_nor_one_that_hypothesis_chooses(
    swift_router: SwiftRouter, random: Random, number: int, fallback: bool
) -> None:
    """Fewer, without the servers; but Hypothesis looks where it found something, and makes that small."""
    routes = world(number)
    differences = Hunt(swift_router, ()).round(routes, [Heads(random, routes).draw()], fallback=fallback)
    assert not differences, "\n".join(map(str, differences))


# ---- would a difference be seen? ------------------------------------------------------------------------


def head(first: str, *fields: str) -> bytes:
    return "\r\n".join([first, "Host: shop.test", *fields, "", ""]).encode()


POST = head("POST /api HTTP/1.1", "Content-Length: 46")
ALL = {"nginx", "haproxy", "uvicorn", "h11"}
BITES = {
    "a longer body": (POST, POST, {"body_length": 47}, ALL),
    "a shorter body": (POST, POST, {"body_length": 45}, ALL),
    "no body": (POST, POST, {"body_length": 0}, ALL),
    "chunks": (head("POST /api HTTP/1.1", "Transfer-Encoding: chunked"), POST, {}, ALL),
    "an upgrade": (
        head("POST /api HTTP/1.1", "Connection: upgrade", "Upgrade: x", "Content-Length: 46"),
        POST,
        {},
        {"uvicorn"},
    ),
    "a tunnel": (head("CONNECT /api HTTP/1.1"), head("GET /api HTTP/1.1"), {}, {"uvicorn", "h11"}),
    "a way up": (head("GET /api/../admin HTTP/1.1"), head("GET /api/x HTTP/1.1"), {}, ALL),
    "another path": (head("GET /api/a%20 HTTP/1.1"), head("GET /api/a%21 HTTP/1.1"), {}, ALL),
    "another host": (head("GET / HTTP/1.1"), head("GET / HTTP/1.1").replace(b"shop", b"stop"), {}, ALL),
    "another method": (head("GET / HTTP/1.1"), head("PUT / HTTP/1.1"), {}, ALL),
}  # fmt: skip


@pytest.mark.parametrize(("text", "understood", "changes", "expected"), BITES.values(), ids=BITES)
@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
def test_a_router_that_understood_something_else_would_be_told(
    servers: tuple[Reader, ...],
    monkeypatch: pytest.MonkeyPatch,
    text: bytes,
    understood: bytes,
    changes: dict[str, int],
    expected: set[str],
    apart: bool,
) -> None:
    """What servers see is compared with what the router would have understood of another head."""
    monkeypatch.setattr(readers, "PATIENCE", 0.3)
    rules = read_head(understood)
    lengths = {"head_length": len(text), "body_length": rules.body_length} | changes
    case = Case(world(0), text, rules, Outcome("routed", cluster="web", **lengths))
    told = set()
    for chunk in (False, True):
        asked = judging.question(case, apart=apart, chunk=chunk)
        heard = {server.name: exchange(server, [asked])[0] for server in servers} | {"h11": read_with_h11(asked)}
        told |= {who for who, what in heard.items() if list(judging.judged_by_server(case, asked, what))}
    assert told >= expected


def test_what_differs_is_made_small() -> None:
    text = b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\nTransfer-Encoding: chunked\r\n\r\n"
    small = hunting.smallest(text, lambda some: b"chunked" in some and some.startswith(b"GET"))
    assert small == b"GETchunked"


def test_a_body_that_is_not_sent_is_still_compared(servers: tuple[Reader, ...]) -> None:
    text = head("PUT /api HTTP/1.1", f"Content-Length: {SENT_BODY * 100}")
    nginx = next(server for server in servers if server.name == "nginx")
    case = Case(world(0), text, read_head(text), Outcome("routed", 0, "web", len(text), SENT_BODY * 100))
    asked = judging.question(case, apart=False, chunk=False)
    assert exchange(nginx, [asked])[0].answers[0].length == SENT_BODY * 100
