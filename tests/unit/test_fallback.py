"""The configurations that are written for proxies: the order of routes, names and words that mean nothing else.

(What real proxies make of them is tests/e2e/test_fallback_routes.py.)
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from rauta import fallback
from rauta.config import Config
from rauta.errors import RautaError
from rauta.fallback.routes import HostRoutes, by_host, cluster_names, is_drained

ADDRESS = IPv4Address("198.18.0.2")
FOLDER = Path("/run/fallback")


def configuration(*routes: dict[str, Any], **changes: Any) -> Config:
    """One VIP with these routes, and what else is needed."""
    names = {route["cluster"] for route in routes} | {"web"}
    clusters = [{"name": name, "backends": [backend(f"{name}-1", n)]} for n, name in enumerate(sorted(names), start=11)]
    vip = {"name": "shop", "address": "198.18.100.80", "port": 80, "routes": list(routes)}
    fields = {"version": 1, "encapsulation": {"source": "198.19.0.0/24"}, "fallback": {"port": 8000}}
    return Config.model_validate(fields | {"vips": [vip], "clusters": clusters} | changes)


def backend(name: str, last_byte: int, weight: int = 1) -> dict[str, Any]:
    return {"name": name, "address": f"198.18.0.{last_byte}", "port": 8080, "weight": weight}


def written(config: Config, kind: fallback.Kind) -> str:
    return fallback.configuration(config, kind, address=ADDRESS, folder=FOLDER)


def lines(text: str, start: str) -> list[str]:
    """Those that begin so, without white space around them."""
    return [line.strip() for line in text.splitlines() if line.strip().startswith(start)]


# ---- routes ---------------------------------------------------------------------------------------------

ROUTES = [
    {"prefix": "/", "cluster": "web"},
    {"prefix": "/a", "method": "GET", "cluster": "api"},
    {"prefix": "/a/b", "method": "POST", "cluster": "old"},
    {"exact": "/a/b", "method": "GET", "cluster": "exact"},
    {"exact": "/a/b/", "cluster": "slash"},
]


@pytest.mark.parametrize(
    ("path", "below", "expected"),
    [
        ("/", False, [(None, "web")]),
        ("/", True, [(None, "web")]),
        ("/a", False, [("GET", "api"), (None, "web")]),
        ("/a", True, [("GET", "api"), (None, "web")]),
        ("/ab", False, [(None, "web")]),
        ("/a/b", False, [("GET", "exact"), ("POST", "old"), (None, "web")]),
        ("/a/b", True, [("POST", "old"), ("GET", "api"), (None, "web")]),
        ("/a/b/", False, [(None, "slash")]),
        ("/a/b/c", False, [("POST", "old"), ("GET", "api"), (None, "web")]),
    ],
)
def test_routes_are_chosen_from_in_the_routers_order(path: str, below: bool, expected: list[Any]) -> None:
    config = configuration(*ROUTES)
    assert by_host(config.vips[0])[None].choices(path, below=below) == expected


def test_a_path_without_a_route_for_every_method_may_have_none() -> None:
    config = configuration({"prefix": "/a", "method": "GET", "cluster": "api"})
    routes = by_host(config.vips[0])[None]
    assert routes.choices("/a/b") == [("GET", "api")]
    assert routes.choices("/b") == []


def test_hosts_have_only_their_own_routes_and_those_for_any_come_first() -> None:
    config = configuration({"host": "a.test", "prefix": "/", "cluster": "api"})
    hosts = by_host(config.vips[0])
    assert list(hosts) == [None, "a.test"]
    assert hosts[None] == HostRoutes.of([])


def test_many_routes_do_not_take_long() -> None:
    """Each is compared with those of its own path, not with all others."""
    config = configuration(*({"prefix": f"/r/{number}", "cluster": "api"} for number in range(20_000)))
    assert len(lines(written(config, "nginx"), "location")) == 2 * 20_000 + 1
    assert len(lines(written(config, "haproxy"), "use_backend")) == 20_000


def test_clusters_whose_names_differ_in_case_only_are_two() -> None:
    config = configuration({"prefix": "/a", "cluster": "API"}, {"prefix": "/b", "cluster": "api"})
    names = [name.lower() for name in cluster_names(config).values()]
    assert len(set(names)) == len(names) == 3


def test_a_cluster_is_drained_without_any_weight() -> None:
    clusters = [
        {"name": "web", "backends": [backend("a", 1, 0), backend("b", 2)]},
        {"name": "old", "backends": [backend("c", 3, 0)]},
        {"name": "none", "backends": []},
    ]
    config = configuration(clusters=clusters)
    assert [is_drained(config, cluster.name) for cluster in config.clusters] == [False, True, True]
    for kind in fallback.KINDS:
        assert written(config, kind)


# ---- both -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", fallback.KINDS)
def test_each_vip_has_its_port(kind: fallback.Kind) -> None:
    vip = {"name": "shop", "address": "198.18.100.80", "port": 80, "routes": []}
    text = written(configuration(vips=[vip, vip | {"name": "other", "port": 81}]), kind)
    assert set(re.findall(r"198\.18\.0\.2:(\d+)", text)) == {"8000", "8001"}


@pytest.mark.parametrize("kind", fallback.KINDS)
def test_without_a_fallback_there_is_nothing_to_write(kind: fallback.Kind) -> None:
    with pytest.raises(RautaError, match="the router's has no `fallback`\nAdd `fallback"):
        written(configuration(fallback=None), kind)


@pytest.mark.parametrize("kind", fallback.KINDS)
def test_no_setting_of_the_template_is_left_open(kind: fallback.Kind) -> None:
    assert "$$" not in written(configuration(*ROUTES), kind)
    assert fallback.command(kind, FOLDER / "file")[-2 if kind == "nginx" else -1] in ("-e", str(FOLDER / "file"))


# ---- nginx ----------------------------------------------------------------------------------------------


def test_nginx_has_a_place_for_each_path() -> None:
    text = written(configuration({"prefix": "/a", "cluster": "web"}, {"exact": "/b/", "cluster": "web"}), "nginx")
    places = [line.split(" {")[0] for line in lines(text, "location")]
    assert places == ['location = "/a"', 'location ^~ "/a/"', 'location = "/b"', 'location = "/b/"', "location /"]


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/q%22uote", r'"/q\"uote"'),
        ("/a%20b", '"/a b"'),
        ("/a%22b", r'"/a\"b"'),
        ("/a%25b", '"/a%b"'),
        ("/caf%C3%A9", '"/café"'),
        ("/%E9", '"/\udce9"'),
        ("/%7B$x%7D;'", '"/{$x};\'"'),
    ],
)
def test_nginx_compares_decoded_paths(path: str, place: str, tmp_path: Path) -> None:
    text = written(configuration({"exact": path, "cluster": "web"}), "nginx")
    assert lines(text, "location")[0].startswith(f"location = {place} {{")
    fallback.write(tmp_path / "conf", text)
    assert (tmp_path / "conf").read_bytes().decode(errors="surrogateescape") == text


def test_nginx_chooses_by_method_the_best_last() -> None:
    text = written(configuration(*ROUTES), "nginx")
    (place,) = lines(text, 'location = "/a/b" ')
    words = re.findall(r"set \$cluster (\S+);|\$request_method = (\w+)\)", place)
    names = cluster_names(configuration(*ROUTES))
    assert [cluster or method for cluster, method in words] == [
        names["web"],
        "GET",
        names["exact"],
        "POST",
        names["old"],
    ]


def test_nginx_closes_where_the_vip_resets() -> None:
    for no_route, answer in ((404, "return 404;"), ("reset", "return 444;"), ("fallback", "return 404;")):
        vip = {"name": "shop", "address": "198.18.100.80", "port": 80, "no_route": no_route, "routes": []}
        assert lines(written(configuration(vips=[vip]), "nginx"), "location / ") == [f"location / {{ {answer} }}"]


# ---- HAProxy --------------------------------------------------------------------------------------------


def test_haproxy_tries_routes_in_order() -> None:
    names = cluster_names(configuration(*ROUTES))
    used = [line.split()[1] for line in lines(written(configuration(*ROUTES), "haproxy"), "use_backend")]
    assert used == [names[cluster] for cluster in ("slash", "exact", "old", "api", "web")]


@pytest.mark.parametrize(("path", "word"), [("/it's", r"'/it'\''s'"), ("/a b".replace(" ", "%20"), "'/a%20b'")])
def test_haproxy_gets_paths_as_words(path: str, word: str) -> None:
    (line,) = lines(written(configuration({"exact": path, "cluster": "web"}), "haproxy"), "use_backend")
    assert line.endswith(f"if {{ path -m str {word} }}")


def test_haproxy_takes_so_many_words_a_line() -> None:
    routes = ({"host": f"h{number}.test", "prefix": "/", "cluster": "web"} for number in range(500))
    text = written(configuration(*routes), "haproxy")
    assert max(len(line.split()) for line in text.splitlines()) <= 64
    assert all(f" h{number}.test" in text for number in range(500))


def test_haproxy_looks_for_the_longest_wildcard_last_and_then_for_names() -> None:
    routes = (
        {"host": host, "prefix": "/", "cluster": "web"} for host in ("a.b.test", "*.b.test", "*.a.b.test", "*.test")
    )
    set_by = lines(written(configuration(*routes), "haproxy"), "http-request set-var(txn.named)")
    assert [re.findall(r"str\((.*?)\)", line) for line in set_by] == [["*.test"], ["*.b.test"], ["*.a.b.test"], []]


def test_haproxy_knows_weights_up_to_256() -> None:
    config = configuration(clusters=[{"name": "web", "backends": [backend(*one) for one in WEIGHTS]}])
    servers = lines(written(config, "haproxy"), "server ")
    assert [int(line.split("weight ")[1]) for line in servers] == [256, 128, 1, 0]


WEIGHTS = [("a", 1, 65534), ("b", 2, 32767), ("c", 3, 1), ("d", 4, 0)]
