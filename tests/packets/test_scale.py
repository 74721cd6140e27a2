"""As much as a router can be configured with: that it loads, in what time, in what memory, and that it routes.

64 VIPs, 1,024 clusters, 4,096 backends, 65,536 routes. The configuration is made as a model: most of the time that a
file of this size would take is the YAML library's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from random import Random
from typing import Any

import pytest

from packets import oracle
from packets.bench import XDP_TX
from packets.frames import ETHERNET_HEADER, Connection, request
from rauta import tables
from rauta.bpf import Map, MapType
from rauta.config import Config, load_config
from rauta.contract import MAX_BACKENDS, MAX_CLUSTERS, MAX_VIPS
from rauta.ids import Ids
from rauta.keys import CookieKeys, Keys
from rauta.router import Router

KEYS = Keys(
    CookieKeys(oracle.COOKIE_KEYS), route_key=oracle.ROUTE_KEY, flow_key=oracle.FLOW_KEY, agent_secret=bytes(16)
)
ROUTES = 65_536
HOSTS = 32  # of a VIP
FIRST_BACKEND, FIRST_VIP = IPv4Address("198.18.0.1"), IPv4Address("198.18.100.1")
SECONDS = 10
TABLE_BYTES = 8 * oracle.MAGLEV_PACKED
MAP_OVERHEAD = 4096  # bytes, at most


@dataclass(frozen=True)
class Scale:
    """Numbers of everything; each VIP has as many clusters and routes as any other, each cluster as many backends."""

    vips: int
    clusters: int
    backends: int
    routes: int

    @property
    def config(self) -> dict[str, Any]:
        """The configuration as a file would say it."""
        return {
            "version": 1,
            "encapsulation": {"source": "198.19.0.0/24"},
            "flows": 8192,
            "vips": [self._vip(number) for number in range(self.vips)],
            "clusters": [
                {"name": f"c{number}", "backends": [self._backend(one) for one in self.members(number)]}
                for number in range(self.clusters)
            ],
        }

    def members(self, cluster: int) -> range:
        """The numbers of a cluster's backends."""
        each = self.backends // self.clusters
        return range(cluster * each, (cluster + 1) * each)

    def cluster(self, vip: int, route: int) -> int:
        """The number of the cluster that a VIP's route leads to."""
        each = self.clusters // self.vips
        return vip * each + route % each

    def weights(self, cluster: int) -> dict[str, int]:
        """Of a cluster's backends."""
        return {f"b{one}": one % 3 + 1 for one in self.members(cluster)}

    def address(self, vip: int) -> str:
        """Four VIPs share an address."""
        return str(FIRST_VIP + vip // 4)

    def port(self, vip: int) -> int:
        """Of a VIP."""
        return 80 + vip % 4

    def _vip(self, number: int) -> dict[str, Any]:
        routes = [self._route(number, route) for route in range(self.routes // self.vips)]
        return {"name": f"v{number}", "address": self.address(number), "port": self.port(number), "routes": routes}

    def _route(self, vip: int, route: int) -> dict[str, Any]:
        kind = "prefix" if route % 2 else "exact"
        target = {"host": f"h{route % HOSTS}.v{vip}.test", kind: path(route)}
        return target | {"cluster": f"c{self.cluster(vip, route)}"}

    def _backend(self, number: int) -> dict[str, Any]:
        return {
            "name": f"b{number}",
            "address": str(FIRST_BACKEND + number),
            "port": 8080,
            "weight": number % 3 + 1,
        }


def path(route: int) -> str:
    return f"/api/v{route // HOSTS}/items"


LARGEST = Scale(MAX_VIPS, MAX_CLUSTERS, MAX_BACKENDS, ROUTES)


def tables_of(router: Router) -> Iterator[int]:
    """The bytes that the kernel says each Maglev table takes (memlock in /proc/PID/fdinfo)."""
    for _, id in router.object.maps["clusters"].items():
        with Map.by_id(id, MapType.ARRAY, "maglev", 4, 8, oracle.MAGLEV_PACKED) as table:
            said = Path(f"/proc/self/fdinfo/{table.fd}").read_text()
        yield int(next(line.split()[1] for line in said.splitlines() if line.startswith("memlock")))


@pytest.fixture(scope="module")
def largest() -> Iterator[tuple[Router, float]]:
    """A router with all of that, and the seconds of this process that checking and loading took."""
    raw = LARGEST.config
    started = time.process_time()
    config = Config.model_validate(raw)
    with Router.load(config, KEYS) as router:
        seconds = time.process_time() - started
        indices = Ids().following(config).backend_indices(config)
        router.object.maps["backends"].update_batch(
            (indices[name], tables.backend_entry(backend, bytes(6))) for name, backend in config.backends().items()
        )
        yield router, seconds


def test_the_largest_configuration_loads_in_seconds(largest: tuple[Router, float]) -> None:
    _, seconds = largest
    assert seconds < SECONDS


def test_each_cluster_has_a_table_of_its_own(largest: tuple[Router, float]) -> None:
    router, _ = largest
    sizes = list(tables_of(router))
    assert len(sizes) == MAX_CLUSTERS
    assert TABLE_BYTES <= min(sizes) <= max(sizes) <= TABLE_BYTES + MAP_OVERHEAD


@pytest.mark.parametrize("seed", range(4))
def test_it_routes(largest: tuple[Router, float], seed: int) -> None:
    """Any of its routes, to the backend that the cluster's table names."""
    router, random = largest[0], Random(seed)
    program = router.object.programs["rauta_ingress"]
    for _ in range(8):
        vip, route = random.randrange(MAX_VIPS), random.randrange(ROUTES // MAX_VIPS)
        connection = Connection(
            port=random.randint(1024, 65535), server=LARGEST.address(vip), server_port=LARGEST.port(vip)
        )
        asked = request(path(route), host=f"h{route % HOSTS}.v{vip}.test")
        done = program.test_run(bytes(connection.data(asked)))
        assert done.retval == XDP_TX
        table = oracle.maglev_table(LARGEST.weights(LARGEST.cluster(vip, route)))
        name = table[oracle.maglev_slot(connection.tuple)]
        assert name is not None
        outer = done.data[ETHERNET_HEADER + 16 : ETHERNET_HEADER + 20]
        assert IPv4Address(outer) == FIRST_BACKEND + int(name.removeprefix("b"))


def test_weights_of_one_cluster_among_many_change(largest: tuple[Router, float]) -> None:
    router, _ = largest
    before = dict(router.object.maps["clusters"].items())
    router.set_weights("c777", {"b3108": 0})
    after = dict(router.object.maps["clusters"].items())
    assert {number for number in after if after[number] != before[number]} == {777}


def test_tables_are_allocated_as_clusters_are_used() -> None:
    for scale in (Scale(1, 1, 2, 1), Scale(1, 3, 6, 3)):
        with Router.load(Config.model_validate(scale.config), KEYS) as router:
            assert len(list(tables_of(router))) == scale.clusters
            assert sum(tables_of(router)) <= scale.clusters * (TABLE_BYTES + MAP_OVERHEAD)


def test_a_file_is_read_as_quickly_as_the_yaml_library_allows(tmp_path: Path) -> None:
    scale = Scale(8, 16, 64, 1024)
    lines = ["version: 1", "encapsulation: {source: 198.19.0.0/24}", "flows: 8192"]
    for section in ("vips", "clusters"):
        lines.append(f"{section}:")
        for one in scale.config[section]:
            lines.append(f"  - {flow(one)}")
    file = tmp_path / "large.yaml"
    file.write_text("\n".join([*lines, ""]))
    started = time.process_time()
    assert load_config(file) == Config.model_validate(scale.config)
    assert time.process_time() - started < SECONDS


def flow(value: Any) -> str:
    """A value in YAML's flow style."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow, value)) + "]"
    return str(value)
