"""The oracle itself: reference vectors, and that rauta.tables writes into the maps what the oracle expects there."""

import pytest

from packets import oracle
from packets.bench import BACKENDS, CLUSTERS, INDEX, Router
from packets.frames import VIP, VIP_PORT
from packets.oracle import Route, SynOptions, Tuple, Vip
from rauta import tables
from rauta.bpf import BpfObject
from rauta.config import Config
from rauta.ids import Ids
from rauta.maglev import Builder

K0, K1 = 0x0706050403020100, 0x0F0E0D0C0B0A0908

CONFIGURED = (
    Vip(
        VIP,
        VIP_PORT,
        (
            Route("api", prefix="/api"),
            Route("web", prefix="/"),
            Route("web", prefix="/eight678/b"),
            Route("web", exact="/health", host="shop.test", method="GET"),
            Route("api", exact="/health", host="shop.test"),
            Route("api", exact="/health", host="shop.test", method="POST"),
            Route("web", prefix="/dir", host="a-rather-long.name.test"),
            Route("api", exact="/dir/", host="a-rather-long.name.test"),
            Route("api", exact="/", host="a-rather-long.name.test"),
        ),
    ),
    Vip("198.18.100.81", 8000, (Route("skewed", exact="/open"),), oracle.NO_ROUTE_RESET),
)


@pytest.mark.parametrize(
    ("length", "digest"),
    [
        (0, "310e0edd47db6f72"),
        (1, "fd67dc93c539f874"),
        (7, "37d1018bf50002ab"),
        (8, "6224939a79f5f593"),
        (15, "e545be4961ca29a1"),  # the example of the paper's appendix A
        (16, "db9bc2577fcc2a3f"),
        (17, "9447be2cf5e99a69"),  # as long as what a cookie hashes
        (63, "724506eb4c328a95"),
    ],
)
def test_siphash_gives_the_vectors_of_its_authors(length: int, digest: str) -> None:
    assert oracle.siphash24(K0, K1, bytes(range(length))).to_bytes(8, "little").hex() == digest


@pytest.mark.parametrize(
    ("options", "epoch", "byte"),
    [
        (SynOptions(), 0, 0xF0),
        (SynOptions(mss=1460, wscale=7, sack=True), 0, 0x7E),
        (SynOptions(mss=1459, wscale=0), 1, 0x05),
        (SynOptions(mss=535, wscale=200), 0, 0xE0),
        (SynOptions(mss=1220, sack=True), 1, 0xFB),
    ],
)
def test_the_low_byte_of_a_cookie_keeps_the_options(options: SynOptions, epoch: int, byte: int) -> None:
    assert oracle.cookie_options(options, epoch) == byte


def test_options_are_read_up_to_a_malformed_length() -> None:
    assert oracle.parse_syn_options(bytes.fromhex("02 04 05 b4 01 03 01 07")) == SynOptions(mss=1460)


def test_the_hash_of_a_prefix_is_a_step_in_the_hash_of_a_path() -> None:
    expected = oracle.mix(oracle.ROUTE_KEY, int.from_bytes(b"abc/", "little"))
    assert oracle.path_hash(b"/abc") == expected
    expected = oracle.mix(expected, int.from_bytes(b"abcdefgh", "little"))
    assert oracle.path_hash(b"/abc/abcdefgh") == oracle.mix(expected, ord("/"))


def test_the_outer_source_stays_in_its_network() -> None:
    sources = {oracle.outer_source(Tuple("198.18.0.1", p, VIP, 80), "198.19.4.0", "255.255.252.0") for p in range(999)}
    assert {source.rsplit(".", 1)[0] for source in sources} == {"198.19.4", "198.19.5", "198.19.6", "198.19.7"}


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_a_maglev_table_gives_each_backend_its_share(cluster: str) -> None:
    table, weights = oracle.maglev_table(CLUSTERS[cluster]), CLUSTERS[cluster]
    for name, weight in weights.items():
        share = 65537 * weight / (sum(weights.values()) or 1)
        assert abs(table.count(name) - share) <= 1


# ---- rauta.tables ---------------------------------------------------------------------------------------


@pytest.fixture
def config() -> Config:
    def fields(route: Route) -> dict[str, str]:
        named = {"prefix": route.prefix, "exact": route.exact, "host": route.host, "method": route.method}
        return {"cluster": route.cluster} | {name: value for name, value in named.items() if value is not None}

    return Config.model_validate(
        {
            "version": 1,
            "encapsulation": {"source": "198.19.0.0/24"},
            "vips": [
                {
                    "name": f"vip-{number}",
                    "address": vip.address,
                    "port": vip.port,
                    "no_route": "reset" if vip.no_route == oracle.NO_ROUTE_RESET else 404,
                    "routes": [fields(route) for route in vip.routes],
                }
                for number, vip in enumerate(CONFIGURED)
            ],
            "clusters": [
                {
                    "name": name,
                    "backends": [
                        {"name": backend, "address": BACKENDS[backend].address, "port": 8080, "weight": weight}
                        for backend, weight in weights.items()
                    ],
                }
                for name, weights in CLUSTERS.items()
            ],
        }
    )


def packed(obj: BpfObject, name: str, entries: list[oracle.Entry]) -> set[tuple[bytes, bytes]]:
    """Entries as the bytes that the map gets."""
    bpf_map = obj.maps[name]
    assert bpf_map.key_layout is not None
    assert bpf_map.value_layout is not None
    return {(bpf_map.key_layout.pack(key), bpf_map.value_layout.pack(value)) for key, value in entries}


@pytest.mark.parametrize("name", ["vips", "hosts", "paths"])
def test_rauta_writes_the_same_routes(router: Router, config: Config, name: str) -> None:
    written = getattr(tables.router_tables(config, oracle.ROUTE_KEY), name)
    expected = oracle.route_tables(CONFIGURED, INDEX)[name]
    assert packed(router.object, name, written) == packed(router.object, name, expected)


def test_rauta_writes_the_same_maglev_tables(config: Config) -> None:
    indices = {name: index for index, name in enumerate(sorted(BACKENDS))}
    for cluster in config.clusters:
        entries = oracle.maglev_entries(oracle.maglev_table(CLUSTERS[cluster.name]), indices)
        with Builder() as builder:
            written = builder.build(cluster.weights(), Ids().following(config).backend_indices(config))
        assert tables.maglev_values(written) == b"".join(values for _, values in entries)


def test_rauta_writes_the_same_backends(router: Router, config: Config) -> None:
    backend = BACKENDS["web-2"]
    written = tables.backend_entry(config.backends()["web-2"], oracle.mac(backend.mac), interface=7, source=b"router")
    expected = {"address": oracle.be32(backend.address), "next_hop": oracle.mac(backend.mac)}
    expected |= {"interface": 7, "source": b"router"}
    layout = router.object.btf.struct("backend")
    assert layout.pack(written) == layout.pack(expected)


def test_rauta_writes_the_same_services(config: Config) -> None:
    """Of the host of web-2: only the first VIP leads to its cluster."""
    local = oracle.vip_key(BACKENDS["web-2"].address, 8080)
    assert tables.services(config, "web-2") == [(oracle.vip_key(VIP, VIP_PORT), local)]
