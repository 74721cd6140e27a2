"""Map contents from configurations: hashes by contract.h's definition, entries by hand."""

from __future__ import annotations

import hashlib
import re
from array import array
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from rauta import contract, tables
from rauta.config import Config
from rauta.errors import RautaError
from rauta.ids import Ids
from rauta.keys import CookieKeys, Keys

HEADER = (Path(__file__).parents[2] / "bpf/contract.h").read_text()
KEY = 0x0123456789ABCDEF


def configuration(**changes: Any) -> Config:
    """Two VIPs: one with two hosts' routes and any-host routes to clusters web and api, one with a single route."""
    shop = {
        "name": "shop",
        "address": "198.18.100.80",
        "port": 80,
        "routes": [
            {"prefix": "/api/", "cluster": "api"},
            {"prefix": "/api", "method": "POST", "cluster": "web"},
            {"host": "Shop.test", "exact": "/a/", "method": "GET", "cluster": "web"},
            {"host": "shop.test", "prefix": "/", "cluster": "api"},
            {"host": "shop.test", "prefix": "/a/b", "cluster": "web"},
            {"exact": "/", "cluster": "web"},
        ],
    }
    admin = {
        "name": "admin",
        "address": "198.18.100.80",
        "port": 8443,
        "no_route": "reset",
        "routes": [{"host": "shop.test", "prefix": "/", "cluster": "admin"}],
    }
    clusters = [
        {"name": "web", "backends": [backend("web-2", 12), backend("web-1", 11)]},
        {"name": "api", "backends": [backend("api-1", 21)]},
        {"name": "admin", "backends": [backend("admin-1", 11, port=9000)]},
    ]
    source = {"source": "198.19.0.0/24"}
    fields = {"version": 1, "encapsulation": source, "vips": [shop, admin], "clusters": clusters}
    return Config.model_validate(fields | changes)


def backend(name: str, last_byte: int, port: int = 8080, weight: int = 1) -> dict[str, Any]:
    return {"name": name, "address": f"198.18.0.{last_byte}", "port": port, "weight": weight}


# ---- contract -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in vars(contract) if name.isupper() and name != "SLOTS_PER_ENTRY"])
def test_limits_are_those_of_the_header(name: str) -> None:
    defined = re.search(rf"^#define {name}\s+(\w+)", HEADER, re.MULTILINE)
    assert defined is not None
    assert getattr(contract, name) == int(defined[1], 0)


def test_a_maglev_entry_has_the_slots_of_the_header() -> None:
    declared = re.search(r"struct maglev_slots \{.*?backend\[(\d+)\]", HEADER, re.DOTALL)
    assert declared is not None
    assert int(declared[1]) == contract.SLOTS_PER_ENTRY
    assert (contract.MAGLEV_PACKED - 1) * 4 < contract.MAGLEV_SLOTS <= contract.MAGLEV_PACKED * 4


def test_methods_are_numbered_as_in_the_header() -> None:
    declared = re.search(r"enum method \{(.*?)\}", HEADER, re.DOTALL)
    assert declared is not None
    names = re.findall(r"METHOD_(\w+)", re.sub(r"/\*.*?\*/", "", declared[1], flags=re.DOTALL))
    assert names == [*contract.Method.__members__, "COUNT"]
    assert [method.value for method in contract.Method] == list(range(len(contract.Method)))


def test_other_enumerations_are_those_of_the_header() -> None:
    names = "HOST_EXACT|HOST_WILDCARD|PATH_EXACT|PATH_PREFIX|NO_ROUTE_404|NO_ROUTE_RESET|NO_ROUTE_FALLBACK"
    values = dict(re.findall(rf"\b({names}) = (\d+)", HEADER))
    assert values == {
        "HOST_EXACT": str(contract.HostKind.EXACT.value),
        "HOST_WILDCARD": str(contract.HostKind.WILDCARD.value),
        "PATH_EXACT": str(contract.PathKind.EXACT.value),
        "PATH_PREFIX": str(contract.PathKind.PREFIX.value),
        "NO_ROUTE_404": str(contract.NoRouteAnswer.NOT_FOUND.value),
        "NO_ROUTE_RESET": str(contract.NoRouteAnswer.RESET.value),
        "NO_ROUTE_FALLBACK": str(contract.NoRouteAnswer.FALLBACK.value),
    }


# ---- hashes: expected values come from a C transcript of the comment in contract.h, route_key 0x0123456789abcdef ----


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a", 0x198E886E93C0E7D4), ("shop.test", 0x3D9E62CF7C5DD4C4), ("abcdefgh", 0x42DE9120F17FA7B1)],
)
def test_host_names_are_hashed_in_words(name: str, expected: int) -> None:
    assert tables.words_hash(KEY, name) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", KEY),
        ("/", 0x00644EA93F629589),
        ("/api", 0x9508D03D9690D56F),
        ("/abcdefg", 0x6BDE9121B97FA7B1),
        ("/abcdefgh", 0xF84DCEEEB83B30BD),
        ("/a/", 0x826AA016597AA0C8),
        ("/a/b", 0x016DB5AE365EA85A),
    ],
)
def test_paths_are_hashed_segment_by_segment(path: str, expected: int) -> None:
    assert tables.path_hash(KEY, path) == expected


def test_addresses_and_ports_lie_in_memory_as_on_the_wire() -> None:
    assert tables.be32(IPv4Address("198.18.0.1")).to_bytes(4, "little") == bytes([198, 18, 0, 1])
    assert tables.be16(80).to_bytes(2, "little") == bytes([0, 80])


# ---- routes ---------------------------------------------------------------------------------------------


def by_key(entries: list[tables.Entry]) -> dict[tuple[Any, ...], dict[str, Any]]:
    assert len({tuple(key.values()) for key, _ in entries}) == len(entries)
    return {tuple(key.values()): value for key, value in entries}


def test_vips_name_their_any_host_routes_and_stand_for_their_address() -> None:
    address = int.from_bytes(bytes([198, 18, 100, 80]), "little")
    assert by_key(tables.router_tables(configuration(), KEY).vips) == {
        (address, 0x5000): {
            "id": 1,
            "names": 1,
            "any_host": 1,
            "any_host_shapes": 1 << 31 | 0b10,
            "no_route": 0,
            "wildcards": 0,
            "fallback": 0,
            "strict": 0,
        },
        (address, 0xFB20): {"id": 2, "names": 2, "no_route": 1, "wildcards": 0, "fallback": 0, "strict": 0},
        (address, 0): {},
    }


@pytest.mark.parametrize(
    ("path", "strict"), [("/a-b_c.d~e/F9", 0), ("/@a", 1), ("/%C3%A9", 1), ("/a,b", 1), ("/%20", 1)]
)
def test_a_vip_whose_routes_can_be_spelled_otherwise_says_so(path: str, strict: int) -> None:
    routes = [{"prefix": "/", "cluster": "web"}, {"exact": path, "cluster": "web"}]
    vip = {"name": "shop", "address": "198.18.100.80", "port": 80, "routes": routes}
    (_, value), _ = tables.router_tables(configuration(vips=[vip]), KEY).vips
    assert value["strict"] == strict


def test_vips_say_whether_there_is_a_fallback() -> None:
    vip = {"name": "shop", "address": "198.18.100.80", "port": 80, "no_route": "fallback", "routes": []}
    config = configuration(vips=[vip, vip | {"name": "strict", "port": 81, "no_route": 404}], fallback={"port": 8000})
    shop, strict, address = (value for _, value in tables.router_tables(config, KEY).vips)
    assert (shop["fallback"], shop["no_route"]) == (1, 2)
    assert (strict["fallback"], strict["no_route"]) == (1, 0)
    assert address == {}


def test_hosts_are_numbered_over_all_vips_with_the_depths_of_their_prefixes() -> None:
    hash = 0x3D9E62CF7C5DD4C4
    assert by_key(tables.router_tables(configuration(), KEY).hosts) == {
        (hash, 1, 9, 0): {"id": 2, "shapes": 1 << 31 | 0b101, "name": b"shop.test"},
        (hash, 2, 9, 0): {"id": 3, "shapes": 0b1, "name": b"shop.test"},
    }


def test_wildcards_are_names_with_a_dot_in_front_and_the_vip_knows_their_labels() -> None:
    routes = [{"host": host, "prefix": "/", "cluster": "web"} for host in ("*.Shop.test", "*.test", "shop.test")]
    vip = {"name": "shop", "address": "198.18.100.80", "port": 80, "routes": routes}
    content = tables.router_tables(configuration(vips=[vip]), KEY)
    assert [(key["kind"], key["length"], value["name"]) for key, value in content.hosts] == [
        (1, 10, b".shop.test"),
        (1, 5, b".test"),
        (0, 9, b"shop.test"),
    ]
    assert content.vips[0][1]["wildcards"] == 0b110
    assert content.hosts[0][0]["hash"] == tables.words_hash(KEY, ".shop.test")


def test_paths_lead_to_routes_and_their_clusters_by_method() -> None:
    def route(number: int, cluster: int) -> int:
        return (number + 1) * 1024 + cluster

    web, api, admin = range(3)
    exact, prefix = 0, 1
    anything = [0] * 9
    get, post = contract.Method.GET, contract.Method.POST
    by_method = [route(0, api), *anything]
    by_method[post] = route(1, web)
    got = [0, *anything]
    got[get] = route(2, web)
    assert by_key(tables.router_tables(configuration(), KEY).paths) == {
        (0x9508D03D9690D56F, 1, 4, prefix): {"route": by_method, "path": b"/api"},
        (0x00644EA93F629589, 1, 1, exact): {"route": [route(5, web), *anything], "path": b"/"},
        (0x826AA016597AA0C8, 2, 3, exact): {"route": got, "path": b"/a/"},
        (KEY, 2, 0, prefix): {"route": [route(3, api), *anything], "path": b""},
        (0x016DB5AE365EA85A, 2, 4, prefix): {"route": [route(4, web), *anything], "path": b"/a/b"},
        (KEY, 3, 0, prefix): {"route": [route(6, admin), *anything], "path": b""},
    }


def test_the_last_route_and_the_last_cluster_fit_into_an_entry() -> None:
    """And the first ones are not taken for none."""
    last = contract.MAX_ROUTES << contract.ROUTE_CLUSTER_BITS | contract.MAX_CLUSTERS - 1
    assert tables.path_route(contract.MAX_ROUTES - 1, contract.MAX_CLUSTERS - 1) == last == 2**32 - 1
    assert tables.path_route(0, 0) == 1024


def test_the_deepest_prefix_has_the_last_bit() -> None:
    route = {"prefix": "/x" * contract.MAX_PREFIX_DEPTH, "cluster": "web"}
    vip = {"name": "shop", "address": "198.18.100.80", "port": 80, "routes": [route]}
    (_, value), _ = tables.router_tables(configuration(vips=[vip]), KEY).vips
    assert value["any_host_shapes"] == 1 << 30


def test_a_collision_of_hashes_asks_for_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "path_hash", lambda _key, path: len(path))
    routes = [{"prefix": "/one", "cluster": "web"}, {"prefix": "/two", "cluster": "web"}]
    vip = {"name": "shop", "address": "198.18.100.80", "port": 80, "routes": routes}
    with pytest.raises(tables.HashCollision, match=r"'/one' and '/two' have the same hash\nDraw another route key"):
        tables.router_tables(configuration(vips=[vip]), KEY)


# ---- clusters, backends, agents -------------------------------------------------------------------------


def test_a_backend_is_its_address_and_its_next_hop() -> None:
    entry = tables.backend_entry(configuration().backends()["web-1"], bytes.fromhex("020000000001"))
    way_in = {"source": bytes(6), "interface": 0}
    assert entry == {"address": 0x0B0012C6, "next_hop": b"\x02\0\0\0\0\1", **way_in}


def test_and_the_interface_that_leads_there() -> None:
    web = configuration().backends()["web-1"]
    entry = tables.backend_entry(web, bytes(6), interface=7, source=b"\x02\0\0\0\0\7")
    assert (entry["interface"], entry["source"]) == (7, b"\x02\0\0\0\0\7")


def test_a_maglev_table_is_packed_four_slots_to_a_value() -> None:
    table = array("H", (slot % 4096 for slot in range(contract.MAGLEV_SLOTS)))
    values = tables.maglev_values(table)
    assert len(values) == contract.MAGLEV_PACKED * 8
    slots = [int.from_bytes(values[at : at + 2], "little") for at in range(0, len(values), 2)]
    assert slots == [*table, *[contract.NO_BACKEND] * 3]
    assert tables.maglev_table(values) == table


def test_the_fallback_is_this_very_host() -> None:
    entry = tables.local_backend_entry(IPv4Address("198.18.0.2"))
    assert entry == {"address": 0x020012C6, "interface": contract.BACKEND_LOCAL}


def test_an_agent_serves_each_vip_that_leads_to_its_address() -> None:
    local, vip = 0x0B0012C6, 0x506412C6
    assert tables.services(configuration(), "web-1") == [
        ({"address": vip, "port": 0x5000}, {"address": local, "port": 0x901F}),
        ({"address": vip, "port": 0xFB20}, {"address": local, "port": 0x2823}),
    ]
    assert tables.services(configuration(), "web-1") == tables.services(configuration(), "admin-1")


def test_each_host_that_a_vip_leads_to_is_asked_once() -> None:
    """Also a drained one, which keeps its connections; by the name that comes first in the configuration."""
    clusters = [
        {"name": "web", "backends": [backend("web-2", 12, weight=0), backend("web-1", 11), backend("extra", 12)]},
        {"name": "api", "backends": [backend("api-1", 21), backend("web-1", 11)]},
        {"name": "admin", "backends": [backend("admin-1", 11, port=9000)]},
    ]
    config = configuration(clusters=clusters)
    ids = Ids().following(config)
    holders = tables.holders(config, ids)
    index = {"admin-1": 0, "api-1": 1, "extra": 2, "web-1": 3, "web-2": 4}
    assert ids.backend_indices(config) == index
    vip = 0x506412C6
    assert {key: {(str(one.address), one.index) for one in hosts} for key, hosts in holders.items()} == {
        (vip, 0x5000): {("198.18.0.11", 3), ("198.18.0.12", 4), ("198.18.0.21", 1)},
        (vip, 0xFB20): {("198.18.0.11", 0)},
    }


def test_an_agent_for_an_unknown_backend_is_told_the_known_ones() -> None:
    with pytest.raises(RautaError, match="no backend is called 'web-9'\nThe configuration has: admin-1, api-1, web-1"):
        tables.services(configuration(), "web-9")


def test_the_routers_own_agent_serves_every_vip_at_a_port_of_its_own() -> None:
    router, vip = 0x020012C6, 0x506412C6
    config = configuration(fallback={"port": 8000})
    assert tables.fallback_services(config, IPv4Address("198.18.0.2")) == [
        ({"address": vip, "port": 0x5000}, {"address": router, "port": 0x401F}),
        ({"address": vip, "port": 0xFB20}, {"address": router, "port": 0x411F}),
    ]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("198.18.100.80", "the router's address 198.18.100.80 is the VIP shop"),
        ("198.18.0.21", "198.18.0.21 is the backend api-1"),
        ("198.19.0.7", "198.19.0.7 is in encapsulation.source"),
    ],
)
def test_an_address_that_plays_another_part_cannot_be_the_fallbacks(address: str, said: str) -> None:
    with pytest.raises(RautaError, match=re.escape(said)):
        tables.fallback_services(configuration(fallback={"port": 8000}), IPv4Address(address))


def test_without_a_fallback_the_router_has_no_agent() -> None:
    with pytest.raises(RautaError, match="has no `fallback`"):
        tables.fallback_services(configuration(), IPv4Address("198.18.0.2"))


# ---- keys -----------------------------------------------------------------------------------------------


def test_keys_come_from_bytes_in_little_endian_order() -> None:
    keys = Keys.from_bytes(bytes(range(64)))
    assert keys.cookies.by_epoch == (
        (0x0706050403020100, 0x0F0E0D0C0B0A0908),
        (0x1716151413121110, 0x1F1E1D1C1B1A1918),
    )
    assert (keys.route_key, keys.flow_key) == (0x2726252423222120, 0x2F2E2D2C2B2A2928)
    expected = {"key": [list(key) for key in keys.cookies.by_epoch], "epoch": 0}
    assert tables.cookie_keys_entry(keys.cookies) == expected


def test_what_agents_remember_connections_by_has_a_key_of_its_own() -> None:
    """It comes of the agents' secret alone, which stays when cookie keys rotate."""
    keys = [Keys.from_bytes(raw) for raw in (bytes(64), bytes(63) + b"\1", b"\1" * 48 + bytes(16))]
    assert keys[0].consumed_key == keys[2].consumed_key != keys[1].consumed_key
    assert keys[0].first_keys == keys[2].first_keys != keys[1].first_keys
    assert keys[0].consumed_key == (0x147886086CB0CAE3, 0xDB73346400B1852C)


def test_routers_and_agents_trace_by_a_secret_that_both_work_out() -> None:
    raw = bytes(range(64))
    expected = hashlib.shake_256(b"rauta traces" + raw[48:]).digest(24)
    assert Keys.from_bytes(raw).trace_secret == expected
    assert Keys.from_bytes(bytes(48) + raw[48:]).trace_secret == expected  # cookie keys rotate


def test_asks_have_keys_of_their_own_for_each_epoch() -> None:
    keys = CookieKeys.from_bytes(bytes(range(32)))
    raw = [hashlib.shake_256(b"rauta ask" + bytes(half)).digest(16) for half in (range(16), range(16, 32))]
    expected = [[int.from_bytes(one[:8], "little"), int.from_bytes(one[8:], "little")] for one in raw]
    assert tables.ask_keys_entry(keys) == {"key": expected}
    assert not {number for key in expected for number in key} & {number for key in keys.by_epoch for number in key}


def test_keys_do_not_show_themselves() -> None:
    keys = Keys.from_bytes(bytes([0x41]) * 64)
    for shown in (repr(keys), str(keys), repr(keys.cookies), f"{keys.cookies}"):
        assert not re.search(r"0x41|4702111234474983745|A{3}", shown)


def test_fresh_keys_differ_and_a_fresh_route_key_changes_nothing_else() -> None:
    keys = Keys.generate()
    assert keys != Keys.generate()
    redrawn = keys.with_fresh_route_key()
    assert redrawn.route_key != keys.route_key
    assert replace(redrawn, route_key=keys.route_key) == keys


def test_keys_of_the_wrong_size_and_epochs_that_do_not_exist_are_refused() -> None:
    with pytest.raises(RautaError, match="Give exactly 64 bytes"):
        Keys.from_bytes(bytes(63))
    with pytest.raises(RautaError, match="there is no epoch 2"):
        CookieKeys.from_bytes(bytes(32), epoch=2)
