"""nginx (Debian's nginx-light) as a reverse proxy on the router's host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, Field

from lab.contenders import proxy
from lab.contenders.proxy import RunningProxy
from lab.contenders.settings import Settings
from lab.interfaces import Layer

if TYPE_CHECKING:
    from lab.scenario import Scenario
    from lab.topology import Network
    from rauta.config import Cluster, Route, Vip

TEMPLATE = Template((Path(__file__).parent / "nginx.conf.in").read_text())


class NginxSettings(Settings):
    """``keepalive``: idle connections to each cluster that a worker keeps. Defaults: docs/performance.md."""

    workers: Annotated[int, Field(ge=1, le=256)] = 1
    keepalive: Annotated[int, Field(ge=1, le=10_000)] = 64
    reuseport: bool = True
    multi_accept: bool = False
    buffering: bool = True


@dataclass(frozen=True)
class Nginx:
    """The contender ``nginx``."""

    name: str = "nginx"
    layers: frozenset[Layer] = frozenset({"http"})
    settings: type[BaseModel] = NginxSettings

    def start(self, network: Network, scenario: Scenario, stack: ExitStack) -> RunningProxy:
        """One nginx with all VIPs."""
        settings = NginxSettings.model_validate(scenario.settings.get(self.name, {}))

        def argv(folder: Path) -> list[str]:
            file = folder / "nginx.conf"
            file.write_text(configuration(scenario, settings, folder))
            return ["nginx", "-p", str(folder), "-c", str(file), "-e", "stderr"]

        return proxy.start(network, scenario, stack, self.name, argv)


def configuration(scenario: Scenario, settings: NginxSettings, folder: Path) -> str:
    """The whole nginx.conf. ``folder``: for its temporary files."""
    config = scenario.routing.config
    return TEMPLATE.substitute(
        folder=folder,
        workers=settings.workers,
        multi_accept="on" if settings.multi_accept else "off",
        buffering="on" if settings.buffering else "off",
        upstreams="\n".join(_upstream(cluster, settings) for cluster in config.clusters),
        servers="\n".join(text for vip in config.vips for text in _servers(vip, settings)),
    )


def _upstream(cluster: Cluster, settings: NginxSettings) -> str:
    """A cluster that is drained as a whole has one server that is down: nginx wants one, and says 502."""
    servers = "".join(
        f"        server {one.address}:{one.port} weight={one.weight} max_fails=0;\n"
        for one in cluster.backends
        if one.weight
    )
    servers = servers or f"        server {cluster.backends[0].address} down;\n"
    return f"    upstream {cluster.name} {{\n{servers}        keepalive {settings.keepalive};\n    }}"


def _servers(vip: Vip, settings: NginxSettings) -> Iterator[str]:
    """A server for each host name, the one for any other first: it is the default."""
    reuseport = " reuseport" if settings.reuseport else ""
    for host, routes in proxy.by_host(vip).items():
        listen = f"{vip.address}:{vip.port}" + (f" default_server backlog=4096{reuseport}" if host is None else "")
        refused = "return 404;" if vip.no_route == 404 else "return 444;"
        locations = "\n".join(_locations(routes, refused))
        yield f"    server {{\n        listen {listen};\n        server_name {host or '_'};\n{locations}\n    }}"


def _locations(routes: Sequence[Route], refused: str) -> Iterator[str]:
    """One for each exact path, two for each prefix: for the path itself and what is below it; the last for the rest."""
    seen = set()
    for route in routes:
        path = route.path.rstrip("/") or "/"
        for exactly in (True, False) if route.exact is None and path != "/" else (route.exact is not None,):
            location = f"= {route.path if route.exact else path}" if exactly else f"^~ {path}/" if path != "/" else "/"
            if location not in seen:
                seen.add(location)
                yield f"        location {location} {{ {_choice(routes, path, exactly, refused)} }}"
    if "/" not in seen:
        yield f"        location / {{ {refused} }}"


def _choice(routes: Sequence[Route], path: str, exactly: bool, refused: str) -> str:
    """What happens at a path: the first route that is for it, and for the request's method."""
    words = []
    for route in (one for one in routes if proxy.matches(one, path, exactly)):
        if route.method is None:
            words.append(f"set $cluster {route.cluster};")
            break
        words.append(f"if ($request_method = {route.method}) {{ set $cluster {route.cluster}; }}")
    else:
        words.append(f"set $cluster ''; {refused}" if not words else "")
    if len(words) == 1 and words[0].startswith("set $cluster") and refused not in words[0]:
        return f"proxy_pass http://{words[0].split()[2]}"
    methods = [word for word in words if word.startswith("if")]
    default = words[-1] if not words[-1].startswith("if") else ""
    guard = f"if ($cluster = '') {{ {refused} }}" if not default else ""
    return " ".join(
        filter(None, (default or "set $cluster '';", *reversed(methods), guard, "proxy_pass http://$cluster;"))
    )


CONTENDERS = (Nginx(),)
