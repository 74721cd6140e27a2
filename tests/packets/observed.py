"""A router as its users load it, that routes but is attached nowhere, and packets run through it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, SupportsBytes

from packets import oracle
from packets.bench import BACKENDS, CLUSTERS, RESETTING_PORT, RESETTING_VIP
from packets.frames import VIP, VIP_PORT
from rauta import tables
from rauta.config import Config
from rauta.keys import CookieKeys, Keys
from rauta.router import Router

KEYS = Keys(CookieKeys((oracle.COOKIE_KEYS[0], oracle.COOKIE_KEYS[1])), oracle.ROUTE_KEY, oracle.FLOW_KEY, bytes(16))
ROUTES: dict[str, list[dict[str, str]]] = {
    "shop": [
        {"prefix": "/", "cluster": "web"},
        {"prefix": "/api", "cluster": "api"},
        {"prefix": "/api", "method": "POST", "cluster": "web"},
        {"exact": "/open", "cluster": "web", "host": "closed.test"},
    ],
    "strict": [{"exact": "/open", "cluster": "skewed"}, {"prefix": "/drained", "cluster": "drained"}],
}


def configuration(routes: dict[str, list[dict[str, str]]] = ROUTES) -> Config:
    """VIPs `shop` and `strict`, which resets what no route names, in front of the clusters of the bench."""
    shop = {"name": "shop", "address": VIP, "port": VIP_PORT, "routes": routes["shop"]}
    strict = {"name": "strict", "address": RESETTING_VIP, "port": RESETTING_PORT, "routes": routes["strict"]}
    clusters = [
        {"name": cluster, "backends": [member(name, weight) for name, weight in weights.items()]}
        for cluster, weights in CLUSTERS.items()
    ]
    fields = {"version": 1, "encapsulation": {"source": "198.19.0.0/24"}, "flows": 1024, "clusters": clusters}
    return Config.model_validate(fields | {"vips": [shop, strict | {"no_route": "reset"}]})


def member(name: str, weight: int) -> dict[str, Any]:
    """A backend of the bench, as a cluster's."""
    return {"name": name, "address": BACKENDS[name].address, "port": 8080, "weight": weight}


@contextmanager
def loaded(config: Config | None = None, **settings: Any) -> Iterator[Router]:
    """A router that routes but is attached nowhere."""
    with Router.load(config or configuration(), KEYS, **settings) as router:
        indices = router.ids.backend_indices(router.config)
        for name, backend in router.config.backends().items():
            value = tables.backend_entry(backend, oracle.mac(BACKENDS[name].mac))
            router.object.maps["backends"].update(indices[name], value)
        yield router


def run(router: Router, *frames: SupportsBytes) -> None:
    """Each in turn; what becomes of them is counted."""
    for frame in frames:
        router.object.programs["rauta_ingress"].test_run(bytes(frame))


def counted(counters: dict[str, int]) -> dict[str, int]:
    """Without the zeros."""
    return {name: packets for name, packets in counters.items() if packets}
