"""What `rauta explain` says is what the compiled program does: the same heads through both, verdict, route and backend.

Configurations and heads are those of tests/fuzz: valid ones, the classic vectors, and changes to both. The program runs
in a router as its users load it, which tells of each packet its verdict, its route and its backend (rauta.events).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from random import Random
from typing import Any

import pytest
from fuzz import vectors
from fuzz.heads import RECORDED, WORLDS, Heads, world

from packets import oracle
from packets.bench import CLUSTERS, RESETTING_PORT, RESETTING_VIP
from packets.frames import BACKEND_MAC, CLIENT, ETHERNET_HEADER, VIP, VIP_PORT, Connection, request
from packets.observed import KEYS, member
from packets.oracle import Route
from rauta import tables
from rauta.config import Config
from rauta.contract import FALLBACK_BACKEND
from rauta.events import Event, EventReader
from rauta.explanation.explain import Client, explain
from rauta.observation import EventRates, Observation
from rauta.router import Router

HEADS = 300  # of each world
LONGEST = 1400  # of what fits into a packet that is encapsulated
BACKENDS_ASKED = 20  # Maglev tables that are built
EVERYTHING = Observation(events=EventRates(rate=1_000_000, burst=100_000))
LIMITS = [  # where the reader stops looking, on both sides
    *(request("/", f"Content-Length: {2**31 - 1 - 2048 + beyond}") for beyond in (0, 1)),
    *(request("/", f"Content-Length: {'0' * digits}") for digits in (63, 64, 65)),
    *(request("/", f"Content-Length:{' ' * white}0{' ' * white}") for white in (15, 16, 17)),
    *(request("/", f"Host:{' ' * white}x{' ' * white}", host=None) for white in (15, 16, 17)),
    *(request("/", *["A: b"] * fields) for fields in (125, 126, 127)),
    *(request("/", "N" * length + ": v") for length in (255, 256, 257)),
    *(request("/", "A:" + "\t" * tabs) for tabs in (271, 272, 273, 274)),
    *(request("/", "A:" + "\t" * tabs + "b" * 40) for tabs in (266, 267, 268, 269)),
    *(request("/", host="h" * length + end) for length in (255, 256, 257) for end in ("", ".", ":80")),
    *(request(f"http://{'h' * length}/", host="h" * length) for length in (248, 255, 256, 257, 264)),
    *(request("/x", host=f"x:{'8' * digits}") for digits in (0, 5, 6)),
    *(request("/" + "p" * length + end) for length in (254, 255, 256) for end in ("", "?", "//", "/..")),
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET",
    *(request("/", host=host) for host in (".shop.test", "x.shop.test", "shop.test.", "x.eu.shop.test:80", ".", "..")),
]
KEPT = [text for text in (*vectors.HEADS, *RECORDED, *LIMITS) if 0 < len(text) <= LONGEST]
STRICT = [  # the second VIP: routes with other spellings, whose numbers come behind those of the first
    {"exact": "/@admin", "cluster": "other"},
    {"prefix": "/drained", "cluster": "empty"},
    {"prefix": "/caf%C3%A9", "method": "GET", "cluster": "other"},
]
OTHERS = {
    "other": [{"name": "other-1", "address": "198.18.0.41", "port": 8080}],
    "empty": [{"name": "empty-1", "address": "198.18.0.42", "port": 8080, "weight": 0}],
}
NO_ROUTE: tuple[tuple[Any, Any, bool], ...] = (  # of both VIPs, and whether there is a fallback
    (404, "reset", False),
    ("reset", 404, True),
    ("fallback", "fallback", True),
)


class Pair:
    """A router, its configuration, and connections to send heads on."""

    def __init__(self, router: Router, reader: EventReader) -> None:
        self.router, self.config, self._reader = router, router.config, reader
        self._port = 20000
        self._headers = {  # of a connection's first segment, all but its data
            0: bytes(Connection(port=self._port).data(b"x"))[:-1],
            1: bytes(Connection(port=self._port, server=RESETTING_VIP, server_port=RESETTING_PORT).data(b"x"))[:-1],
        }

    def told(self, head: bytes, vip: int) -> Event:
        """What becomes of a head as a connection's first data. Nothing here looks at the checksums."""
        self.router.object.maps["flows"].clear()
        headers = self._headers[vip]
        length = len(headers) - ETHERNET_HEADER + len(head)
        self.router.object.programs["rauta_ingress"].test_run(
            headers[:16] + length.to_bytes(2, "big") + headers[18:] + head
        )
        (event,) = self._reader.poll(0)
        return event

    def differs(self, head: bytes, vip: int = 0) -> str:
        """How the explanation differs from what the router does; empty if it does not."""
        event, said = self.told(head, vip), explain(self.config, head, vip=self.config.vips[vip])
        route = said.route.route if said.route else None
        place = None if said.route is None else self.config.vips[said.route.vip].routes[said.route.index]
        if (event.verdict, event.vip, event.route) == (said.verdict, said.vip.name, route) and place is route:
            return ""
        return f"{head!r}: {event.verdict} {event.route}, explained as {said.verdict} {route}, {said.why}"

    def backend(self, head: bytes) -> tuple[str | None, str | None]:
        """Whom the router chooses, and whom the explanation names."""
        client = Client(IPv4Address(CLIENT), self._port, oracle.FLOW_KEY)
        said = explain(self.config, head, vip=self.config.vips[0], client=client)
        return self.told(head, 0).backend, said.backend


@contextmanager
def pair(config: Config) -> Iterator[Pair]:
    """A router with this configuration that is attached nowhere."""
    with Router.load(config, KEYS, observation=EVERYTHING) as router:
        backends = router.object.maps["backends"]
        for index, backend in enumerate(config.backends().values()):
            backends.update(index, tables.backend_entry(backend, oracle.mac(BACKEND_MAC)))
        if config.fallback is not None:
            backends.update(FALLBACK_BACKEND, tables.local_backend_entry(IPv4Address("198.18.0.2")))
        with EventReader(router) as reader:
            yield Pair(router, reader)


def configuration(routes: tuple[Route, ...], variant: int = 0) -> Config:
    """These routes at the first VIP, and the strict ones at the second, which has clusters of its own."""
    first, second, fallback = NO_ROUTE[variant % len(NO_ROUTE)]
    named = [fields(route) for route in routes if route.method != "CONNECT"]  # which no configuration can route
    shop = {"name": "shop", "address": VIP, "port": VIP_PORT, "routes": named, "no_route": first}
    strict = {"name": "strict", "address": RESETTING_VIP, "port": RESETTING_PORT, "routes": STRICT, "no_route": second}
    clusters = {name: [member(*one) for one in weights.items()] for name, weights in CLUSTERS.items()} | OTHERS
    whole: dict[str, Any] = {"version": 1, "encapsulation": {"source": "198.19.0.0/24"}, "flows": 1024}
    whole |= {"vips": [shop, strict], "fallback": {"port": 8000} if fallback else None}
    whole["clusters"] = [{"name": name, "backends": backends} for name, backends in clusters.items()]
    return Config.model_validate(whole)


def fields(route: Route) -> dict[str, str]:
    named = {"prefix": route.prefix, "exact": route.exact, "host": route.host, "method": route.method}
    return {"cluster": route.cluster} | {name: value for name, value in named.items() if value is not None}


def strict_targets(random: Random) -> Iterator[bytes]:
    """Requests to the strict VIP, spelled in all ways."""
    pieces = (
        "/@admin",
        "/%40admin",
        "/caf%C3%A9",
        "/caf%c3%a9",
        "/drained",
        "/x",
        "/{id}",
        "/%7Bid%7D",
        "/a;b",
        "/%2B",
    )
    for _ in range(40):
        target = "".join(random.choice(pieces) for _ in range(random.choice((1, 1, 2))))
        yield request(target, method=random.choice(("GET", "PUT")))


@pytest.mark.parametrize("number", range(WORLDS))
def test_the_explanation_is_what_the_program_does(number: int) -> None:
    routes, random = world(number), Random(number)
    heads = Heads(random, routes)
    drawn = [text for text in (heads.draw() for _ in range(HEADS)) if 0 < len(text) <= LONGEST]
    with pair(configuration(routes, number)) as both:
        differences = [both.differs(text) for text in drawn]
        differences += [both.differs(text, vip=1) for text in (*drawn[:60], *strict_targets(random))]
    assert list(filter(None, differences)) == []


@pytest.mark.parametrize("variant", range(len(NO_ROUTE)))
def test_so_it_is_of_the_classic_vectors_and_of_real_clients(variant: int) -> None:
    assert len(KEPT) > 100
    with pair(configuration(world(0), variant)) as both:
        assert list(filter(None, map(both.differs, KEPT))) == []


def test_every_answer_is_among_what_is_compared() -> None:
    """Whether a difference in any of them would be seen: each is explained at least once by these heads."""
    seen: Counter[str] = Counter()
    for number in range(WORLDS):
        heads, config = Heads(Random(number), world(number)), configuration(world(number), number)
        for text in (*KEPT, *(heads.draw()[:LONGEST] for _ in range(HEADS))):
            seen[explain(config, text, vip=config.vips[0]).verdict] += 1
    assert seen.keys() >= {
        "ROUTED_FIRST", "TX_NO_ROUTE", "TX_BAD_REQUEST", "TX_LENGTH_REQUIRED", "TX_HEAD_TOO_LARGE", "TX_URI_TOO_LONG",
        "TX_BODY_TOO_LARGE", "TX_UNAVAILABLE", "TX_NOT_IMPLEMENTED", "TX_RESET_NOT_HTTP", "TX_RESET_PIPELINED",
        "TX_RESET_NO_ROUTE", "FALLBACK_NO_ROUTE", "FALLBACK_AMBIGUOUS", "FALLBACK_ENCODED", "FALLBACK_HEAD",
        "FALLBACK_PATH", "FALLBACK_BODY", "FALLBACK_UPGRADE", "FALLBACK_NOT_HTTP", "FALLBACK_PIPELINED",
        "FALLBACK_TLS", "FALLBACK_HTTP2",
    }  # fmt: skip
    assert seen["ROUTED_FIRST"] > 0.2 * seen.total()


def test_with_the_flow_key_the_very_backend_is_named() -> None:
    with pair(configuration((Route("skewed", prefix="/"), Route("web", prefix="/web")))) as both:
        for number in range(BACKENDS_ASKED):
            both._port = 30000 + number
            both._headers[0] = bytes(Connection(port=both._port).data(b"x"))[:-1]
            chosen, named = both.backend(request("/web" if number % 2 else "/"))
            assert chosen == named is not None
