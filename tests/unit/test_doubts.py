"""Warnings: what is allowed but probably not meant, with its place; and that ordinary files give none."""

from __future__ import annotations

from pathlib import Path

import pytest

from rauta.config import Config
from rauta.files.document import load_document
from rauta.files.doubts import doubts

PLAIN = """\
version: 1
encapsulation: {source: 198.19.0.0/24}
vips:
  - name: shop
    address: 198.18.100.80
    port: 80
    routes:
      - {prefix: /, cluster: web}
clusters:
  - name: web
    health: {http: /health}
    backends:
      - {name: web-1, address: 198.18.0.11, port: 8080}
      - {name: web-2, address: 198.18.0.12, port: 8080}
"""
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "shop.yaml"


def told(file: Path, *changes: tuple[str, str]) -> list[str]:
    """The warnings about a changed plain file, "line: field: problem (advice)" each."""
    text = PLAIN
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    file.write_text(text)
    document = load_document(file)
    return [f"{document.line(doubt.path)}: {doubt}" for doubt in doubts(document.validate(Config))]


def routes(*lines: str) -> tuple[str, str]:
    return "      - {prefix: /, cluster: web}\n", "".join(f"      - {{{line}, cluster: web}}\n" for line in lines)


def test_an_ordinary_file_gives_none(file: Path) -> None:
    assert told(file) == []


@pytest.mark.parametrize("scenario", sorted(Path(__file__).parents[2].glob("scenarios/routing/*.yaml")), ids=str)
def test_nor_do_the_scenarios(scenario: Path) -> None:
    assert list(doubts(load_document(scenario).validate(Config))) == []


@pytest.mark.parametrize(
    "changes",
    [
        [("port: 8080}\n      - {name: web-2", "port: 8080, weight: 0}\n      - {name: web-2")],  # one drained
        [routes("prefix: /api")],  # no prefix /
        [routes("host: shop.test, prefix: /api")],  # and nobody else who has it
        [routes("host: shop.test, prefix: /api", "host: shop.test, prefix: /", "prefix: /")],
        [routes(*(f"prefix: /, method: {method}" for method in METHODS[:-1]), "prefix: /")],
        [routes(*(f"exact: /a, method: {method}" for method in METHODS), "prefix: /a", "exact: /")],
        [("http: /health", "interval: 1s, timeout: 1s")],
        [("version: 1\n", 'version: 1\nmetrics: {listen: "127.0.0.1:9477", agents: "0.0.0.0:9478"}\n')],
        [("version: 1\n", 'version: 1\nmetrics: {listen: "127.0.0.1:9477", agents: "198.18.0.1:9477"}\n')],
        [("port: 80\n", "port: 443\n"), ("version: 1\n", "version: 1\nfallback: {port: 8000}\n")],
        [("198.18.0.12, port: 8080", "198.18.0.12, port: 8080, weight: 7")],
    ],
    ids=str,
)
def test_nor_does_what_may_well_be_meant(file: Path, changes: list[tuple[str, str]]) -> None:
    assert told(file, *changes) == []


DOUBTFUL = [
    (
        [("clusters:\n", "clusters:\n  - {name: old, backends: []}\n")],
        "10: clusters[0].name: no route leads to old (add one, or remove the cluster)",
    ),
    (
        [
            ("web-1, address: 198.18.0.11, port: 8080", "web-1, address: 198.18.0.11, port: 8080, weight: 0"),
            ("198.18.0.12, port: 8080", "198.18.0.12, port: 8080, weight: 0"),
        ],
        "8: vips[0].routes[0].cluster: web has no backend with any weight: every request of the route gets a 503 (give "
        "one of its backends a weight above 0)",
    ),
    (
        [("    routes:\n      - {prefix: /, cluster: web}\n", "    routes: [{prefix: /, cluster: web}]\n"),
         ("vips:\n", "vips:\n  - {name: empty, address: 198.18.100.81, port: 80, no_route: reset, routes: []}\n")],
        "4: vips[0].routes: has no routes: every request gets a reset (add one, or remove the VIP)",
    ),
    (
        [("port: 80\n", "port: 443\n")],
        "6: vips[0].port: is the port of HTTPS, and TLS is reset where there is no fallback (RAUTA routes HTTP/1 "
        "without TLS)",
    ),
    (
        [routes("prefix: /", *(f"prefix: /, method: {method}" for method in METHODS))],
        "8: vips[0].routes[0]: matches nothing: each method has a route of its own for this host and path (remove it, "
        "or one of those)",
    ),
    (
        [routes("prefix: /", "host: shop.test, exact: /health", "host: shop.test, prefix: /api")],
        "9: vips[0].routes[1].host: shop.test has no route for the prefix / of its own, and that of any host does not "
        "count for it (a host that is named has its own routes only; add {host: 'shop.test', prefix: /, cluster: …})",
    ),
    (
        [routes("prefix: /", "host: '*.test', prefix: /", "host: shop.test, prefix: /, method: GET")],
        "10: vips[0].routes[2].host: shop.test has no route for the prefix / of its own, and that of *.test does not "
        "count for it (a host that is named has its own routes only; add {host: 'shop.test', prefix: /, cluster: …})",
    ),
    (
        [routes("host: '*.test', prefix: /", "host: '*.shop.test', prefix: /api")],
        "9: vips[0].routes[1].host: *.shop.test has no route for the prefix / of its own, and that of *.test does not "
        "count for it (a host that is named has its own routes only; add {host: '*.shop.test', prefix: /, cluster: …})",
    ),
    (
        [("198.18.0.12", "198.18.0.11")],
        "14: clusters[0].backends[1].address: 198.18.0.11:8080 is web-1, too, which so gets the share of both (one "
        "name for one server, and a weight)",
    ),
    (
        [("version: 1\n", 'version: 1\nmetrics: {listen: "127.0.0.1:9477", agents: "0.0.0.0:9477"}\n')],
        "2: metrics.agents: port 9477 is also the router's, and only one of them gets it on a host with both (another "
        "port for the agents)",
    ),
    (
        [("version: 1\n", 'version: 1\nfallback: {port: 9477}\nmetrics: {listen: "127.0.0.1:9477"}\n')],
        "3: metrics.listen: port 9477 is that of the VIP shop at the fallback, on the same host (another port)",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), DOUBTFUL, ids=[said[:40] for _, said in DOUBTFUL])
def test_what_is_doubtful_is_said_with_its_line_and_field(
    file: Path, changes: list[tuple[str, str]], said: str
) -> None:
    assert told(file, *changes) == [said]
