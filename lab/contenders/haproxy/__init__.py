"""HAProxy as a reverse proxy on the router's host."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, Field

from lab.contenders import proxy
from lab.contenders.proxy import RunningProxy
from lab.contenders.settings import Settings
from lab.interfaces import Layer

if TYPE_CHECKING:
    from lab.scenario import Scenario
    from lab.topology import Network
    from rauta.config import Cluster, Route, Vip

SPARE_FILES = 200
TEMPLATE = Template((Path(__file__).parent / "haproxy.cfg.in").read_text())


class HaproxySettings(Settings):
    """``reuse``: its http-reuse. Defaults: docs/performance.md."""

    threads: Annotated[int, Field(ge=1, le=64)] = 1
    reuse: Literal["never", "safe", "aggressive", "always"] = "always"
    pool: Annotated[int, Field(ge=0, le=10_000)] = 256
    splice: bool = False


@dataclass(frozen=True)
class Haproxy:
    """The contender ``haproxy``."""

    name: str = "haproxy"
    layers: frozenset[Layer] = frozenset({"http"})
    settings: type[BaseModel] = HaproxySettings

    def start(self, network: Network, scenario: Scenario, stack: ExitStack) -> RunningProxy:
        """One HAProxy with all VIPs."""
        settings = HaproxySettings.model_validate(scenario.settings.get(self.name, {}))

        def argv(folder: Path) -> list[str]:
            file = folder / "haproxy.cfg"
            file.write_text(configuration(scenario, settings))
            return ["haproxy", "-db", "-f", str(file)]

        return proxy.start(network, scenario, stack, self.name, argv)


def configuration(scenario: Scenario, settings: HaproxySettings) -> str:
    """The whole haproxy.cfg."""
    config = scenario.routing.config
    return TEMPLATE.substitute(
        threads=settings.threads,
        connections=_connections(),
        reuse=settings.reuse,
        splice="\n    option splice-auto" if settings.splice else "",
        frontends="\n".join(_frontend(vip) for vip in config.vips),
        backends="\n".join(_backend(cluster, settings) for cluster in config.clusters),
    )


def _connections() -> int:
    """How many it may have at a time: each takes two files, and it refuses to start where it may not open as many."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1] // 2 - SPARE_FILES


def _frontend(vip: Vip) -> str:
    lines = [f"frontend {vip.name}", f"    bind {vip.address}:{vip.port} backlog 4096", *_rules(vip)]
    return "\n".join(lines)


def _rules(vip: Vip) -> Iterator[str]:
    """Routes in the order in which they are tried: the first that matches counts."""
    hosts = proxy.by_host(vip)
    named = [host for host in hosts if host is not None]
    yield "    http-request set-var(txn.host) req.hdr(host),field(1,:),lower"
    if named:
        yield from _selected(named)
    for host, routes in hosts.items():
        where = f"{{ var(txn.named) -m str {host} }}" if host else "!{ var(txn.named) -m found }" if named else ""
        for route in routes:
            condition = " ".join(filter(None, (where, _method(route), _path(route))))
            yield f"    use_backend {route.cluster}" + (f" if {condition}" if condition else "")
    refuse = "return status 404" if vip.no_route == 404 else "silent-drop"
    yield f"    default_backend refuse-{'404' if 'return' in refuse else 'reset'}"


def _selected(named: Sequence[str]) -> Iterator[str]:
    """Which of the named hosts a request is for: what comes later counts, so wildcards first, the longest last."""
    wildcards = sorted((host for host in named if host.startswith("*")), key=len)
    for host in wildcards:
        yield f"    http-request set-var(txn.named) str({host}) if {{ var(txn.host) -m end {host[1:]} }}"
    exact = " ".join(host for host in named if host not in wildcards)
    if exact:
        yield f"    http-request set-var(txn.named) var(txn.host) if {{ var(txn.host) -m str {exact} }}"


def _method(route: Route) -> str:
    return f"{{ method {route.method} }}" if route.method else ""


def _path(route: Route) -> str:
    if route.exact is not None:
        return f"{{ path -m str {route.exact} }}"
    prefix = route.path.rstrip("/")
    return f"{{ path,concat(/) -m beg {prefix}/ }}" if prefix else ""


def _backend(cluster: Cluster, settings: HaproxySettings) -> str:
    lines = [f"backend {cluster.name}", "    balance roundrobin"]
    options = f"pool-max-conn {settings.pool} pool-purge-delay 60s"
    lines += [
        f"    server {one.name} {one.address}:{one.port} weight {min(one.weight, 256)} {options}"
        for one in cluster.backends
    ]
    return "\n".join(lines)


CONTENDERS = (Haproxy(),)
