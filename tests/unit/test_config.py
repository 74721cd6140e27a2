"""Configuration files: what is taken, and that every mistake is reported at once with its line, field and remedy."""

from __future__ import annotations

import json
import re
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from rauta import config as config_module
from rauta.config import Config, load_config
from rauta.errors import RautaError
from rauta.files import references
from rauta.files.document import DocumentError, load_document

SHOP = """\
version: 1
encapsulation: {source: 198.19.0.0/24}
flows: 4096
vips:
  - name: shop
    address: 198.18.100.80
    port: 80
    no_route: reset
    routes:
      - {prefix: /api/, cluster: api}
      - {host: Shop.TEST, exact: /health, method: GET, cluster: web}
      - {prefix: /, cluster: web}
clusters:
  - name: web
    backends:
      - {name: web-1, address: 198.18.0.11, port: 8080, weight: 3}
      - {name: web-2, address: 198.18.0.12, port: 8080, weight: 0}
  - name: api
    backends:
      - {name: api-1, address: 198.18.0.21, port: 8080}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a test writes its configuration."""
    return tmp_path / "shop.yaml"


def mistakes(file: Path, text: str) -> list[str]:
    """What loading a configuration complains about, one "line: field: problem (allowed: ...)" each."""
    file.write_text(text)
    with pytest.raises(DocumentError) as caught:
        load_config(file)
    told = str(caught.value).splitlines()[1:]
    assert all(line.startswith(f"{file}:") for line in told)
    return [line.removeprefix(f"{file}:") for line in told]


def changed(*changes: tuple[str, str]) -> str:
    """The shop with some of its text replaced."""
    text = SHOP
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    return text


# ---- what is taken --------------------------------------------------------------------------------------


def test_a_whole_configuration_is_read(file: Path) -> None:
    file.write_text(SHOP)
    config = load_config(file)
    assert config.encapsulation.source == IPv4Network("198.19.0.0/24")
    assert config.flows == 4096
    (vip,) = config.vips
    assert (vip.name, vip.address, vip.port, vip.no_route) == ("shop", IPv4Address("198.18.100.80"), 80, "reset")
    assert [(r.host, r.exact, r.prefix, r.method, r.cluster) for r in vip.routes] == [
        (None, None, "/api", None, "api"),
        ("shop.test", "/health", None, "GET", "web"),
        (None, None, "/", None, "web"),
    ]
    assert {name: backend.weight for name, backend in config.backends().items()} == {"api-1": 1, "web-1": 3, "web-2": 0}


def test_what_may_be_left_out_has_its_default(file: Path) -> None:
    file.write_text(changed(("flows: 4096\n", ""), ("    no_route: reset\n", "")))
    config = load_config(file)
    assert (config.flows, config.vips[0].no_route) == (131072, 404)


def test_flows_are_recovered_only_if_the_file_says_so(file: Path) -> None:
    file.write_text(SHOP)
    assert load_config(file).recovery is None
    for text, port, rate in (("{}", 21057, 1000), ("{port: 9}", 9, 1000), ("{rate: 100000}", 21057, 100_000)):
        file.write_text(changed(("flows: 4096\n", f"flows: 4096\nrecovery: {text}\n")))
        recovery = load_config(file).recovery
        assert recovery is not None
        assert (recovery.port, recovery.rate) == (port, rate)


def test_models_are_frozen_and_can_be_made_from_each_other(file: Path) -> None:
    file.write_text(SHOP)
    config = load_config(file)
    with pytest.raises(ValidationError, match="frozen"):
        config.flows = 1  # type: ignore[misc]
    assert Config(**dict(config)) == config


@pytest.mark.parametrize("path", ["/", "/a/", "/a.b/c..d/...", "/%20%C3%A4", "/~x-_!$&'()*+,;=:@", "/" + "a" * 255])
def test_paths_that_can_match_are_taken_as_they_are(file: Path, path: str) -> None:
    file.write_text(changed(("exact: /health", f"exact: {path!r}" if "'" not in path else f'exact: "{path}"')))
    assert load_config(file).vips[0].routes[1].exact == path


# ---- one mistake at a time ------------------------------------------------------------------------------

ONE_MISTAKE = [
    # what is changed, what is said
    ("version: 1", "version: 2", "1: version: 2 is not one of the values (allowed: 1)"),
    (
        "flows: 4096",
        "flow: 4096",
        "3: flow: unknown field, did you mean 'flows'? (allowed: version, encapsulation, flows",
    ),
    ("flows: 4096", "flows: many", "3: flows: 'many' is not a whole number (allowed: 1024 to 16777216)"),
    ("198.19.0.0/24", "198.19.0.1/24", "2: encapsulation.source: '198.19.0.1/24' is not an IPv4 prefix (allowed: an "),
    (
        "198.19.0.0/24",
        "198.0.0.0/7",
        "2: encapsulation.source: '198.0.0.0/7' is too wide (allowed: a prefix of 8 to 32",
    ),
    ("198.19.0.0/24", "198.18.0.0/24", "16: clusters[0].backends[0].address: 198.18.0.11 is in encapsulation.source"),
    ("port: 80\n", "port: 0\n", "7: vips[0].port: 0 is out of range (allowed: 1 to 65535)"),
    ("port: 80\n", "port: '80'\n", "7: vips[0].port: '80' is not a whole number (allowed: 1 to 65535)"),
    ("port: 80\n", "port: true\n", "7: vips[0].port: True is not a whole number (allowed: 1 to 65535)"),
    ("    port: 80\n", "", "5: vips[0].port: is missing"),
    ("198.18.100.80", "'2001:db8::1'", "6: vips[0].address: '2001:db8::1' is not an IPv4 address (allowed: an IPv4"),
    (
        "198.18.100.80",
        "224.0.0.1",
        "6: vips[0].address: '224.0.0.1' is no address to send a packet to (allowed: a unicast",
    ),
    ("198.18.100.80", "17", "6: vips[0].address: '0.0.0.17' is no address to send a packet to (allowed: a unicast"),
    ("198.18.100.80", "198.18.0.11", "16: clusters[0].backends[0].address: 198.18.0.11 is also a VIP (allowed: the "),
    (
        "no_route: reset",
        "no_route: 403",
        "8: vips[0].no_route: 403 is not one of the values (allowed: 404, 'reset' or 'fallback')",
    ),
    (
        "name: shop",
        "name: a shop",
        "5: vips[0].name: 'a shop' is no name (allowed: 1 to 63 letters, digits, '.', '_' and '-'",
    ),
    (
        "method: GET",
        "method: get",
        "11: vips[0].routes[1].method: 'get' is not one of the values (allowed: 'GET', 'HEAD'",
    ),
    ("cluster: api", "cluster: apis", "10: vips[0].routes[0].cluster: no cluster is called 'apis' (allowed: web, api)"),
    ("exact: /health, ", "", "11: vips[0].routes[1]: has neither `exact` nor `prefix` (allowed: exactly one of them)"),
    (
        "prefix: /,",
        "prefix: /, exact: /,",
        "12: vips[0].routes[2]: has both `exact` and `prefix` (allowed: exactly one",
    ),
    ("prefix: /,", "prefix: /api,", "12: vips[0].routes[2]: names the same requests as vips[0].routes[0] (allowed: "),
    ("flows: 4096", "recovery: {rate: 0}", "3: recovery.rate: 0 is out of range (allowed: 1 to 100000)"),
    ("flows: 4096", "recovery: {port: 70000}", "3: recovery.port: 70000 is out of range (allowed: 1 to 65535)"),
    ("weight: 3", "weight: -1", "16: clusters[0].backends[0].weight: -1 is out of range (allowed: 0 to 65535)"),
    (
        "weight: 3",
        "wait: 3",
        "16: clusters[0].backends[0].wait: unknown field, did you mean 'weight'? (allowed: name, ",
    ),
    ("name: web-2", "name: web-1", "17: clusters[0].backends[1].name: 'web-1' is taken by clusters[0].backends[0]"),
    (
        "name: api-1",
        "name: web-1",
        "20: clusters[1].backends[0].name: 'web-1' has another address or port in clusters[0]",
    ),
    (
        "name: api\n",
        "name: web\n",
        "18: clusters[1].name: 'web' is taken by clusters[0] (allowed: a name of its own for",
    ),
    (
        "198.18.0.21, port: 8080",
        "198.18.0.11, port: 9",
        "11: vips[0].routes[1].cluster: 198.18.0.11 is reached on port",
    ),
]


HEALTH = [
    ("{http: /health, interval: 1s, timeout: 1s}", None),
    ("{interval: 1s}", None),
    ("{timeout: 2s}", None),
    (
        "{interval: 300ms, timeout: 0.5s}",
        "15: clusters[0].health.timeout: 0.5 s is longer than the interval, 0.3 s (allowed: at most 0.3s)",
    ),
    ("{timeout: 2001ms}", "15: clusters[0].health.timeout: 2.001 s is longer than the interval, 2 s (allowed: at most"),
    ("{interval: 500ms}", None),
    ("{interval: 2}", "15: clusters[0].health.interval: 2 is not a duration (allowed: a number with "),
    (
        "{http: /, host: '*.test'}",
        "15: clusters[0].health.host: '*.test' names no single host (allowed: a name without",
    ),
]


@pytest.mark.parametrize(("health", "said"), HEALTH, ids=[health for health, _ in HEALTH])
def test_a_check_is_over_when_the_next_one_is_due_and_names_one_host(file: Path, health: str, said: str | None) -> None:
    text = changed(("  - name: web\n", f"  - name: web\n    health: {health}\n"))
    if said is None:
        file.write_text(text)
        config = load_config(file)
        assert config.clusters[0].health is not None
        assert Config(**dict(config)) == config
    else:
        (told,) = mistakes(file, text)
        assert told.startswith(said)


def test_more_routes_than_can_be_numbered_are_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number would run out of its bits, and the next route count as, and lead to, another one's."""
    monkeypatch.setattr(references, "MAX_ROUTES", 3)
    file.write_text(SHOP)
    assert len(load_config(file).vips[0].routes) == 3
    monkeypatch.setattr(references, "MAX_ROUTES", 2)
    assert "4: vips: have 3 routes (allowed: at most 2 in all VIPs)" in mistakes(file, SHOP)


@pytest.mark.parametrize(("old", "new", "said"), ONE_MISTAKE, ids=[f"{new.strip()}" for _, new, _ in ONE_MISTAKE])
def test_a_mistake_has_its_line_field_and_remedy(file: Path, old: str, new: str, said: str) -> None:
    assert any(line.startswith(said) for line in mistakes(file, changed((old, new))))


PATHS = [
    ("api", "'api' does not start with '/'"),
    ("//", "an empty segment"),
    ("/a//b", "an empty segment"),
    ("/a/./b", "the segment '.'"),
    ("/a/..", "the segment '..'"),
    ("/a?b", "holds '?' (allowed: letters, digits and -._~!$&'()*+,;=:@/; the query is no part of a path)"),
    ("/a#b", "holds '#'"),
    ("/a\\b", "holds '\\\\'"),
    ("/a b", "holds ' '"),
    ("/ä", "holds 'ä' (allowed: letters, digits and -._~!$&'()*+,;=:@/; percent-encode anything else)"),
    ("/%", "holds '%' (allowed: '%' followed by two hex digits)"),
    ("/%4", "holds '%4' (allowed"),
    ("/%4g", "holds '%4g' (allowed"),
    ("/%%41", "holds '%%4' (allowed"),
    ("/%41", "holds '%41' (allowed: the plain character 'A')"),
    ("/%40", "holds '%40' (allowed: the plain character '@')"),
    ("/%c3", "holds '%c3' (allowed: capital hex digits, '%C3')"),
    ("/..;x", "has the segment '..;x'"),
    ("/%7e", "holds '%7e' (allowed: the plain character '~')"),
    ("/%2e%2E", "holds '%2e' (allowed: the plain character '.')"),
    ("/%2F", "holds '%2F', an encoded slash, backslash or control character"),
    ("/%5c", "holds '%5c', an encoded slash"),
    ("/%00", "holds '%00', an encoded slash"),
    ("/%7f", "holds '%7f', an encoded slash"),
    ("/" + "a" * 256, "is 257 bytes long (allowed: at most 256)"),
]


@pytest.mark.parametrize("kind", ["exact", "prefix"])
@pytest.mark.parametrize(("path", "said"), PATHS, ids=[path[:12] for path, _ in PATHS])
def test_paths_that_could_never_match_are_refused(file: Path, kind: str, path: str, said: str) -> None:
    (told,) = mistakes(file, changed(("exact: /health", f"{kind}: '{path}'")))
    assert told.startswith(f"11: vips[0].routes[1].{kind}: ")
    assert said in told


def test_prefixes_have_at_most_30_segments(file: Path) -> None:
    file.write_text(changed(("exact: /health", "prefix: " + "/s" * 30)))
    load_config(file)
    (told,) = mistakes(file, changed(("exact: /health", "prefix: " + "/s" * 31)))
    assert told == "11: vips[0].routes[1].prefix: has 31 segments (allowed: at most 30)"


HOSTS = [
    ("shop.test:80", "names a port"),
    ("*", "has a wildcard"),
    ("*shop.test", "has a wildcard"),
    ("www.*.test", "has a wildcard"),
    ("*.*.test", "has a wildcard"),
    ("*.", "because of ''"),
    ("*.shop.test.", "because of ''"),
    ("*.-shop", "because of '-shop'"),
    ("*" + ".a" * 31, "has 31 labels behind its wildcard (allowed: at most 30)"),
    ("*." + "a." * 126 + "a", "labels behind its wildcard"),
    ("shop..test", "because of ''"),
    ("shop.test.", "because of ''"),
    ("-shop.test", "because of '-shop'"),
    ("sh op", "because of 'sh op'"),
    ("a" * 64, "because of 'aaa"),
    ("a." * 127, "is 254 bytes long (allowed: at most 253)"),
]


@pytest.mark.parametrize(("host", "said"), HOSTS, ids=[host[:14] for host, _ in HOSTS])
def test_host_names_are_exact_and_have_no_port(file: Path, host: str, said: str) -> None:
    (told,) = mistakes(file, changed(("Shop.TEST", f"'{host}'")))
    assert told.startswith("11: vips[0].routes[1].host: ")
    assert said in told


# ---- between fields -------------------------------------------------------------------------------------

SECOND_VIP = """\
  - name: admin
    address: 198.18.100.80
    port: 81
    routes:
      - {prefix: /admin, cluster: web}
      - {prefix: /, cluster: web}
clusters:
"""


def test_two_vips_cannot_share_an_address_and_port(file: Path) -> None:
    second = SECOND_VIP.replace("port: 81", "port: 80").replace("cluster: web", "cluster: other")
    told = mistakes(file, changed(("clusters:\n", second)))
    said = "15: vips[1].port: 198.18.100.80:80 is taken by vips[0] (allowed: one VIP for an address and port)"
    assert said in told


def test_two_vips_cannot_lead_to_the_same_local_port(file: Path) -> None:
    (told,) = mistakes(file, changed(("clusters:\n", SECOND_VIP)))
    assert told == (
        "17: vips[1].routes[0].cluster: 198.18.0.11:8080 is already reached through vips[0] "
        "(allowed: on each backend, a port of its own for each VIP)"
    )


def test_a_backend_may_be_in_two_clusters_of_one_vip(file: Path) -> None:
    same = "{name: web-1, address: 198.18.0.11, port: 8080, weight: 9}"
    file.write_text(changed(("{name: api-1, address: 198.18.0.21, port: 8080}", same)))
    assert list(load_config(file).backends()) == ["web-1", "web-2"]


def test_all_mistakes_are_reported_at_once_in_the_order_of_the_file(file: Path) -> None:
    text = changed(
        ("version: 1", "version: 3"),
        ("port: 80\n", "port: 70000\n"),
        ("cluster: api}", "cluster: apis, colour: red}"),
        ("prefix: /,", "prefix: /x y,"),
        ("name: web-2", "name: web-1"),
        ("198.18.0.21", "198.18.0.321"),
    )
    told = [re.sub(r": [^:]*$", "", line.split(" (allowed")[0]) for line in mistakes(file, text)]
    assert told == [
        "1: version",
        "7: vips[0].port",
        "10: vips[0].routes[0].colour",
        "10: vips[0].routes[0].cluster",
        "12: vips[0].routes[2].prefix",
        "17: clusters[0].backends[1].name",
        "20: clusters[1].backends[0].address",
    ]


def test_contradictions_are_found_without_a_file_too() -> None:
    route = {"prefix": "/", "cluster": "web"}
    vip = {"name": "shop", "address": "198.18.100.80", "port": 80, "routes": [route]}
    source = {"source": "198.19.0.0/24"}
    with pytest.raises(ValidationError, match="no cluster is called 'web'"):
        Config.model_validate({"version": 1, "encapsulation": source, "vips": [vip], "clusters": []})


# ---- what is around the routes --------------------------------------------------------------------------

AROUND = """\
capacity: {routes: 4096, hosts: 1024}
interfaces: [eth0, eth1]
mode: native
secrets: {file: /etc/rauta/secrets.yaml, rotate: 12h}
metrics: {listen: "127.0.0.1:9477", agents: "0.0.0.0:9478"}
traces: {endpoint: "http://127.0.0.1:4318/v1/traces", one_in: 500}
"""
WHOLE = SHOP.replace("flows: 4096\n", AROUND).replace(
    "  - name: web\n",
    "  - name: web\n    health: {http: /health, host: Shop.test, status: [200, 204], interval: 500ms}\n",
)


def test_what_is_around_the_routes_is_read(file: Path) -> None:
    file.write_text(WHOLE)
    config = load_config(file)
    assert (config.capacity.routes, config.capacity.hosts) == (4096, 1024)
    assert (config.interfaces, config.mode) == (("eth0", "eth1"), "native")
    assert config.secrets is not None
    assert (config.secrets.file, config.secrets.rotate) == (Path("/etc/rauta/secrets.yaml"), 43200)
    assert config.metrics is not None
    assert (config.metrics.listen, config.metrics.agents) == (("127.0.0.1", 9477), ("0.0.0.0", 9478))
    assert config.traces is not None
    assert (config.traces.endpoint, config.traces.one_in) == ("http://127.0.0.1:4318/v1/traces", 500)
    health = config.clusters[0].health
    assert health is not None
    assert (health.http, health.host, health.status, health.interval) == ("/health", "shop.test", (200, 204), 0.5)
    assert (health.timeout, health.rise, health.fall, health.jitter, health.all_fail) == (0.25, 2, 3, 0.1, "keep")
    assert config.clusters[1].health is None


def test_nothing_of_it_needs_to_be_there(file: Path) -> None:
    file.write_text(SHOP)
    config = load_config(file)
    assert (config.capacity.routes, config.capacity.hosts, config.interfaces) == (None, None, ())
    assert (config.mode, config.secrets, config.metrics, config.traces) == ("best-effort", None, None, None)


def test_what_a_model_has_by_default_is_no_contradiction(file: Path) -> None:
    """Health without `http` has a status nevertheless, which nobody has said."""
    file.write_text(SHOP.replace("  - name: web\n", "  - name: web\n    health: {}\n"))
    config = load_config(file)
    assert Config(**dict(config)) == config
    assert list(references.mistakes(config.model_dump())) == []
    assert list(references.mistakes(config.model_dump(mode="json"))) == []


def test_an_http_check_whose_path_was_forgotten_is_a_mistake(file: Path) -> None:
    (told,) = mistakes(file, WHOLE.replace("http: /health", "http: ").replace(", status: [200, 204]", ""))
    assert told.startswith("20: clusters[0].health.host: is for HTTP checks, and there is no `http`")


AROUND_MISTAKES = [
    ("routes: 4096", "routes: 0", "3: capacity.routes: 0 is out of range (allowed: 1 to 4194303)"),
    (
        "routes: 4096",
        "routes: 2",
        "3: capacity.routes: 2 is less than the file has (allowed: at least 3, or leave it out)",
    ),
    ("hosts: 1024", "hosts: many", "3: capacity.hosts: 'many' is not a whole number (allowed: 1 to 4194303)"),
    (
        "hosts: 1024",
        "host: 1024",
        "3: capacity.host: unknown field, did you mean 'hosts'? (allowed: routes, hosts)",
    ),
    (
        "[eth0, eth1]",
        "[eth0, a name]",
        "4: interfaces[1]: 'a name' is no interface's name (allowed: 1 to 15 characters, no space, '/' or ':')",
    ),
    (
        "[eth0, eth1]",
        "[eth0, eth0]",
        "4: interfaces[1]: 'eth0' is taken by interfaces[0] (allowed: each interface once)",
    ),
    ("[eth0, eth1]", "eth0", "4: interfaces: 'eth0' is not a list"),
    (
        "mode: native",
        "mode: offload",
        "5: mode: 'offload' is not one of the values (allowed: 'native', 'generic' or 'best-effort')",
    ),
    ("file: /etc/rauta/secrets.yaml, ", "", "6: secrets.file: is missing"),
    (
        "rotate: 12h",
        "rotate: 12",
        "6: secrets.rotate: 12 is not a duration (allowed: a number with ns, us, ms, s, m, h)",
    ),
    ("rotate: 12h", "rotate: 1s", "6: secrets.rotate: '1s' is out of range (allowed: 2 to 2592000)"),
    (
        '"127.0.0.1:9477"',
        "9477",
        "7: metrics.listen: 9477 is no place to listen (allowed: an IPv4 address and a port, such as 127.0.0.1:9477)",
    ),
    (
        '"0.0.0.0:9478"',
        '"0.0.0.0:94780"',
        "7: metrics.agents: '0.0.0.0:94780' is no place to listen (allowed: an IPv4 address and a port, such as "
        "127.0.0.1:9477)",
    ),
    ('listen: "127.0.0.1:9477", ', "", "7: metrics.listen: is missing"),
    (
        "http://127.0.0.1:4318/v1/traces",
        "127.0.0.1:4318",
        "8: traces.endpoint: '127.0.0.1:4318' does not fit (allowed: text that matches ^https?://[^/]+/)",
    ),
    ("one_in: 500", "one_in: 0", "8: traces.one_in: 0 is out of range (allowed: 1 to 1048576)"),
    (
        "http: /health, host",
        "http: health, host",
        "20: clusters[0].health.http: 'health' does not start with '/' (allowed: a path such as /api)",
    ),
    (
        "http: /health, host: Shop.test, status: [200, 204]",
        "host: Shop.test",
        "20: clusters[0].health.host: is for HTTP checks, and there is no `http` (allowed: with `http: /path`; without "
        "it, a check is a TCP connection)",
    ),
    (
        "http: /health, host: Shop.test, status: [200, 204]",
        "status: [200]",
        "20: clusters[0].health.status: is for HTTP checks, and there is no `http` (allowed: with `http: /path`; "
        "without it, a check is a TCP connection)",
    ),
    (
        "[200, 204]",
        "[]",
        "20: clusters[0].health.status: names no status, so that every check fails (allowed: at least one, such as "
        "[200])",
    ),
    ("[200, 204]", "[200, 600]", "20: clusters[0].health.status[1]: 600 is out of range (allowed: 100 to 599)"),
    (
        "host: Shop.test, status",
        "host: 'shop.test:80', status",
        "20: clusters[0].health.host: 'shop.test:80' names a port (allowed: the name alone; the VIP's port is the "
        "port)",
    ),
    (
        "interval: 500ms",
        "interval: 10ms",
        "20: clusters[0].health.interval: '10ms' is out of range (allowed: 0.05 to 3600)",
    ),
    ("interval: 500ms", "timeout: 2m", "20: clusters[0].health.timeout: '2m' is out of range (allowed: 0.01 to 60)"),
    ("interval: 500ms", "rise: 0", "20: clusters[0].health.rise: 0 is out of range (allowed: 1 to 100)"),
    ("interval: 500ms", "fall: x", "20: clusters[0].health.fall: 'x' is not a whole number (allowed: 1 to 100)"),
    ("interval: 500ms", "jitter: 60%", "20: clusters[0].health.jitter: '60%' is out of range (allowed: at most 0.5)"),
    (
        "interval: 500ms",
        "all_fail: drop",
        "20: clusters[0].health.all_fail: 'drop' is not one of the values (allowed: 'keep' or 'refuse')",
    ),
]


@pytest.mark.parametrize(
    ("old", "new", "said"), AROUND_MISTAKES, ids=[f"{n}: {new}" for n, (_, new, _) in enumerate(AROUND_MISTAKES)]
)
def test_a_mistake_around_the_routes_has_its_line_field_and_remedy(file: Path, old: str, new: str, said: str) -> None:
    assert old in WHOLE
    assert mistakes(file, WHOLE.replace(old, new, 1)) == [said]


def test_hosts_are_counted_once_in_a_vip_and_only_if_routes_name_one(file: Path) -> None:
    routes = SHOP.replace("{prefix: /, ", "{host: shop.test, prefix: /, ").replace(
        "flows: 4096", "capacity: {hosts: 1}"
    )
    file.write_text(routes)
    assert load_config(file).capacity.hosts == 1
    (told,) = mistakes(file, routes.replace("host: shop.test", "host: '*.shop.test'"))
    assert told == "3: capacity.hosts: 1 is less than the file has (allowed: at least 2, or leave it out)"


def test_the_example_at_the_top_of_the_module_is_a_configuration(file: Path) -> None:
    file.write_text((config_module.__doc__ or "").split("\n\n")[1])
    config = load_config(file)
    assert config.clusters[0].backends[0].name == "web-1"
    assert all(getattr(config, name) is not None for name in Config.model_fields)  # it shows all there is


# ---- the fallback ---------------------------------------------------------------------------------------

FALLBACK = ("flows: 4096\n", "flows: 4096\nfallback: {port: 8000}\n")


def test_each_vip_has_a_port_of_its_own_at_the_fallback(file: Path) -> None:
    second = SECOND_VIP.replace("cluster: web", "cluster: api").replace("{prefix: /admin, cluster: api}", "")
    second = second.replace("      - \n", "").replace("port: 81\n", "port: 81\n    no_route: fallback\n")
    separate = ("      - {prefix: /api/, cluster: api}\n", "")
    file.write_text(changed(FALLBACK, separate, ("clusters:\n", second)))
    config = load_config(file)
    assert config.fallback is not None
    assert config.fallback.port == 8000
    assert config.fallback_ports() == {"shop": 8000, "admin": 8001}
    assert [vip.no_route for vip in config.vips] == ["reset", "fallback"]


def test_without_a_fallback_there_are_no_ports(file: Path) -> None:
    file.write_text(SHOP)
    config = load_config(file)
    assert config.fallback is None
    assert config.fallback_ports() == {}


def test_what_no_route_names_cannot_go_to_a_fallback_that_is_not_there(file: Path) -> None:
    told = mistakes(file, changed(("no_route: reset", "no_route: fallback")))
    assert told == [
        "8: vips[0].no_route: there is no `fallback` (allowed: 404 or reset; or add `fallback: {port: 8000}`)"
    ]


FALLBACKS = [
    ("{port: 0}", "4: fallback.port: 0 is out of range (allowed: 1 to 65535)"),
    ("{}", "4: fallback.port: is missing"),
    ("8000", "4: fallback: 8000 is not a mapping of fields"),
    ("{port: 8000, proxy: nginx}", "4: fallback.proxy: unknown field (allowed: port)"),
]


@pytest.mark.parametrize(("fallback", "said"), FALLBACKS, ids=[fallback for fallback, _ in FALLBACKS])
def test_a_mistake_in_the_fallback_is_told(file: Path, fallback: str, said: str) -> None:
    assert mistakes(file, changed(("flows: 4096\n", f"flows: 4096\nfallback: {fallback}\n"))) == [said]


def test_every_vip_finds_a_port_at_the_fallback(file: Path) -> None:
    vips = SECOND_VIP.replace("cluster: web", "cluster: web2") + "  - {name: web2, backends: []}\n"
    last = ("flows: 4096\n", "flows: 4096\nfallback: {port: 65535}\n")
    file.write_text(changed(last))
    load_config(file)
    told = mistakes(file, changed(last, ("clusters:\n", vips)))
    assert told == ["4: fallback.port: VIP number 2 would have port 65536 (allowed: at most 65534 with 2 VIPs)"]


def test_the_fallback_takes_the_place_of_one_backend() -> None:
    backends = [
        {"name": f"x{n}", "address": f"198.18.{8 + n // 250}.{1 + n % 250}", "port": 1, "weight": 1}
        for n in range(4096)
    ]
    fields = {"version": 1, "encapsulation": {"source": "198.19.0.0/24"}, "vips": []}
    fields["clusters"] = [{"name": "many", "backends": backends}]
    Config.model_validate(fields)
    with pytest.raises(ValidationError, match="is the backend number 4096") as caught:
        Config.model_validate(fields | {"fallback": {"port": 8000}})
    (error,) = caught.value.errors()
    assert error["ctx"] == {"allowed": "at most 4095 in all clusters, one less with a fallback"}


# ---- files ----------------------------------------------------------------------------------------------

BROKEN = [
    ("a: 1\nb: 2\na: 3\n", '3: not YAML: found duplicate key "a"', "each key once in a mapping"),
    ("a:\n\t- 1\n", "2: not YAML: found character '\\t'", "spaces, no tabs, for indentation"),
    ("a: b: c\n", "1: not YAML: mapping values are not allowed here", "one `key: value` a line"),
    ("a: [1,\n\nb: 2", "3: not YAML: ", "brackets and quotes closed"),
    ("a: *b\n", "1: not YAML: found undefined alias 'b'", "an alias whose anchor comes before it"),
    ("a: 1\nb: 2001-99-99\n", "2: not YAML: month must be in 1..12", "YAML 1.2"),
    ("a: 1\n---\nb: 1\n", "2: not YAML: but found another document", "YAML 1.2"),
    ("- a\n- b\n", "1: the file is no mapping of fields", "`field: value` lines"),
    ("", "1: the file is no mapping of fields", "`field: value` lines"),
]


@pytest.mark.parametrize(("text", "said", "remedy"), BROKEN, ids=[repr(text) for text, _, _ in BROKEN])
def test_what_is_not_yaml_has_a_line_and_a_remedy(file: Path, text: str, said: str, remedy: str) -> None:
    (told,) = mistakes(file, text)
    assert told.startswith(said)
    assert remedy in told


def test_bytes_that_are_not_utf8_have_a_line(file: Path) -> None:
    file.write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(DocumentError, match=r"shop\.yaml:2: a byte that is not UTF-8"):
        load_document(file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RautaError, match=r"nowhere\.yaml: No such file or directory"):
        load_config(tmp_path / "nowhere.yaml")


# ---- documents of other models: what scenarios need -----------------------------------------------------


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Get(Strict):
    get: str
    status: Annotated[int, Field(ge=100, le=599)] = 200


class Download(Strict):
    download: str


class Pair(Strict):
    kind: Literal["pair"]
    link: Annotated[str, Field(pattern="^[a-z]+$")] = "veth"


class Star(Strict):
    kind: Literal["star"]
    hosts: dict[str, Annotated[int, Field(gt=0)]] = {}


def kind_of_check(value: Any) -> str | None:
    return next((name for name in ("get", "download") if isinstance(value, dict) and name in value), None)


class Scenario(Strict):
    checks: list[
        Annotated[Annotated[Get, Tag("get")] | Annotated[Download, Tag("download")], Discriminator(kind_of_check)]
    ]
    topology: Pair | Star = Field(discriminator="kind")


def explained(file: Path, text: str) -> list[str]:
    file.write_text(text)
    with pytest.raises(DocumentError) as caught:
        load_document(file).validate(Scenario)
    return [f"{line}: {mistake}" for line, mistake in caught.value.mistakes]


def test_members_of_unions_are_explained_by_their_own_fields(file: Path) -> None:
    text = """\
checks:
  - {get: /, status: 700}
  - get: /
    stats: 200
  - {download: 3}
  - {put: /}
topology: {kind: star, hosts: {web: 0}}
"""
    assert explained(file, text) == [
        "2: checks[0].status: 700 is out of range (allowed: 100 to 599)",
        "4: checks[1].stats: unknown field, did you mean 'status'? (allowed: get, status)",
        "5: checks[2].download: 3 is not text",
        "6: checks[3]: does not say which kind it is (allowed: get, download)",
        "7: topology.hosts.web: 0 is out of range (allowed: more than 0)",
    ]


def test_an_unknown_kind_is_told_the_kinds(file: Path) -> None:
    (told,) = explained(file, "checks: []\ntopology:\n  kind: ring\n")
    assert told == "2: topology: 'ring' is not one of the kinds (allowed: 'pair', 'star')"


def test_text_that_does_not_fit_a_pattern_is_shown_the_pattern(file: Path) -> None:
    (told,) = explained(file, "checks: []\ntopology: {kind: pair, link: V}\n")
    assert told == "2: topology.link: 'V' does not fit (allowed: text that matches ^[a-z]+$)"


def test_lines_are_known_of_every_place_and_of_what_came_by_an_alias(file: Path) -> None:
    file.write_text("a: &x\n  b: 1\nc:\n  - d\n  - <<: *x\n    e: 2\n")
    document = load_document(file)
    assert document.data == {"a": {"b": 1}, "c": ["d", {"b": 1, "e": 2}]}
    lines = {path: document.line(path) for path in [("a",), ("a", "b"), ("c", 1), ("c", 1, "e"), ("c", 1, "b"), ("z",)]}
    assert list(lines.values()) == [1, 2, 5, 6, 5, 1]


# ---- as JSON --------------------------------------------------------------------------------------------


def as_json(file: Path) -> dict[str, Any]:
    file.write_text(SHOP)
    raw: dict[str, Any] = load_config(file).model_dump(mode="json", exclude_unset=True)
    return raw


def test_json_says_the_same(file: Path) -> None:
    raw = as_json(file)
    before = load_config(file)
    file.write_text(json.dumps(raw))
    assert load_config(file) == before


def test_a_mistake_in_json_has_its_line_too(file: Path) -> None:
    raw = as_json(file)
    raw["flows"] = 1
    file.write_text(json.dumps(raw, indent=1))
    lines = file.read_text().splitlines()
    line = 1 + next(number for number, text in enumerate(lines) if '"flows": 1' in text)
    with pytest.raises(DocumentError) as caught:
        load_config(file)
    assert [(number, mistake.field) for number, mistake in caught.value.mistakes] == [(line, "flows")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"version": 1, "version": 1}', "found duplicate key"),
        ('{"version": 1', "not YAML"),
        ('["version"]', "the file is no mapping"),
        ('{"version": NaN}', "version: "),
    ],
)
def test_what_is_no_json_is_read_as_yaml(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    with pytest.raises(DocumentError, match=said):
        load_config(file)
