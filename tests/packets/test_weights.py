"""Weights that change in a loaded router: who gets new connections, and that those which are there stay where they are.

The router is `rauta.router.Router` itself; which backend a connection must get is the oracle's word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from packets import oracle
from packets.bench import XDP_TX
from packets.frames import ETHERNET_HEADER, Connection, Segment, request
from rauta import tables
from rauta.balancing import Balancer
from rauta.config import Config
from rauta.errors import RautaError
from rauta.ids import Ids
from rauta.keys import CookieKeys, Keys
from rauta.router import Router

KEYS = Keys(
    CookieKeys(oracle.COOKIE_KEYS), route_key=oracle.ROUTE_KEY, flow_key=oracle.FLOW_KEY, agent_secret=bytes(16)
)
ADDRESSES = {f"web-{number}": f"198.18.0.{10 + number}" for number in range(1, 5)} | {"api-1": "198.18.0.21"}
NAMES = {address: name for name, address in ADDRESSES.items()}
WEIGHTS = {"web-1": 1, "web-2": 1, "web-3": 2, "web-4": 0}
CONNECTIONS = [Connection(port=40000 + number) for number in range(100)]


def configuration() -> Config:
    clusters = {"web": WEIGHTS, "api": {"api-1": 1}}
    return Config.model_validate(
        {
            "version": 1,
            "encapsulation": {"source": "198.19.0.0/24"},
            "flows": 8192,
            "vips": [
                {
                    "name": "shop",
                    "address": "198.18.100.80",
                    "port": 80,
                    "routes": [{"prefix": "/", "cluster": "web"}, {"prefix": "/api", "cluster": "api"}],
                }
            ],
            "clusters": [
                {
                    "name": name,
                    "backends": [
                        {"name": one, "address": ADDRESSES[one], "port": 8080, "weight": weight}
                        for one, weight in weights.items()
                    ],
                }
                for name, weights in clusters.items()
            ],
        }
    )


@pytest.fixture(scope="module")
def loaded() -> Iterator[Router]:
    config = configuration()
    with Router.load(config, KEYS) as one:
        indices = Ids().following(config).backend_indices(config)
        one.object.maps["backends"].update_batch(
            (indices[name], tables.backend_entry(backend, bytes(6))) for name, backend in config.backends().items()
        )
        yield one


@pytest.fixture
def router(loaded: Router) -> Router:
    """As if it had just been loaded."""
    loaded.object.maps["flows"].clear()
    loaded.config = configuration()
    Balancer(loaded.object.maps["clusters"], loaded.ids.backend_indices(loaded.config)).fill(
        list(enumerate(loaded.config.clusters))
    )
    return loaded


def sent_to(router: Router, segment: Segment) -> str:
    """The name of the backend that a segment is encapsulated to."""
    done = router.object.programs["rauta_ingress"].test_run(bytes(segment))
    assert done.retval == XDP_TX
    outer = ETHERNET_HEADER + 16
    return NAMES[".".join(map(str, done.data[outer : outer + 4]))]


def opened(router: Router, connections: list[Connection] = CONNECTIONS) -> list[str]:
    """Who gets the first request of each connection."""
    return [sent_to(router, connection.data(request("/"))) for connection in connections]


def named(weights: Mapping[str, int], connections: list[Connection] = CONNECTIONS) -> list[str | None]:
    """Whom the oracle names."""
    table = oracle.maglev_table(weights)
    return [table[oracle.maglev_slot(connection.tuple)] for connection in connections]


def table_ids(router: Router) -> dict[int, int]:
    """The kernel's id of each cluster's table."""
    return dict(router.object.maps["clusters"].items())


LATER = [Connection(port=50000 + number) for number in range(100)]


@pytest.mark.parametrize(
    "changes",
    [{"web-1": 0}, {"web-3": 1}, {"web-4": 3}, {"web-1": 65535}, {"web-1": 0, "web-2": 0, "web-3": 0, "web-4": 1}, {}],
    ids=str,
)
def test_new_connections_go_by_the_new_weights(router: Router, changes: dict[str, int]) -> None:
    assert opened(router) == named(WEIGHTS)
    router.set_weights("web", changes)
    assert opened(router, LATER) == named(WEIGHTS | changes, LATER)
    assert router.config.clusters[0].weights() == WEIGHTS | changes


def test_connections_that_are_there_stay_where_they_are(router: Router) -> None:
    backends, length = opened(router), len(request("/"))
    router.set_weights("web", {"web-1": 0, "web-2": 50, "web-3": 1, "web-4": 9})
    for connection, backend in zip(CONNECTIONS, backends, strict=True):
        assert sent_to(router, connection.data(request("/"))) == backend  # the first request once more
        assert sent_to(router, connection.ack(length, acked=300)) == backend
        assert sent_to(router, connection.later(request("/next"), at=length)) == backend
        assert sent_to(router, connection.fin(length + len(request("/next")))) == backend
    assert "web-1" in backends


def test_but_a_new_connection_on_the_same_port_goes_by_the_new_weights(router: Router) -> None:
    opened(router)
    router.set_weights("web", {"web-1": 0})
    again = [connection.reopened(connection.isn + 100_000) for connection in CONNECTIONS]
    assert opened(router, again) == named(WEIGHTS | {"web-1": 0}, again)


def test_a_cluster_can_be_drained_as_a_whole_and_come_back(router: Router) -> None:
    router.set_weights("web", dict.fromkeys(WEIGHTS, 0))
    before = router.counters()["TX_UNAVAILABLE"]
    router.object.programs["rauta_ingress"].test_run(bytes(CONNECTIONS[0].data(request("/"))))
    assert router.counters()["TX_UNAVAILABLE"] == before + 1
    router.set_weights("web", WEIGHTS)
    assert opened(router, LATER) == named(WEIGHTS, LATER)


def test_the_table_is_a_new_map_and_those_of_other_clusters_are_not_touched(router: Router) -> None:
    before = table_ids(router)
    router.set_weights("web", {"web-1": 7})
    after = table_ids(router)
    assert before.keys() == after.keys() == {0, 1}
    assert (before[0] == after[0], before[1] == after[1]) == (False, True)


def test_many_weights_at_once_move_few_slots_and_few_changes_leave_no_trace(router: Router) -> None:
    """The router's own table, after what `tests/unit/test_maglev.py` proves of tables alone."""
    first = router.table("web")
    router.set_weights("web", {"web-1": 5, "web-2": 1, "web-3": 3, "web-4": 2})
    shares = [(1 / 4, 5 / 11), (1 / 4, 1 / 11), (2 / 4, 3 / 11), (0, 2 / 11)]
    distance = sum(abs(old - new) for old, new in shares) / 2
    moved = sum(was != now for was, now in zip(first, router.table("web"), strict=True))
    assert moved <= (distance + 0.01) * oracle.MAGLEV_SLOTS
    for _ in range(15):
        router.set_weights("web", {})
    names = sorted(ADDRESSES)
    fresh = oracle.maglev_table({"web-1": 5, "web-2": 1, "web-3": 3, "web-4": 2})
    assert [names[index] for index in router.table("web")] == fresh


@pytest.mark.parametrize(
    ("cluster", "weights", "said"),
    [
        ("shop", {}, "there is no such cluster\nThe configuration has: web, api."),
        ("web", {"api-1": 1}, "it has no backend 'api-1'\nIt has: web-1, web-2, web-3, web-4."),
        ("web", {"web-1": 3, "web-2": -1}, "-1 is no weight\nA weight is a whole number, 0 to 65535."),
        ("web", {"web-1": 65536}, "65536 is no weight"),
        ("web", {"web-1": 1.5}, "1.5 is no weight"),
        ("web", {"web-1": True}, "True is no weight"),
    ],
)
def test_what_cannot_be_changes_nothing(router: Router, cluster: str, weights: dict[str, int], said: str) -> None:
    ids = table_ids(router)
    with pytest.raises(RautaError, match=said):
        router.set_weights(cluster, weights)
    assert table_ids(router) == ids
    assert router.config == configuration()


def test_changes_leave_no_descriptor_behind(router: Router) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    router.set_weights("web", {"web-1": 2})
    before = descriptors()
    for weight in range(5):
        router.set_weights("web", {"web-1": weight})
    assert descriptors() == before
