"""nginx (Debian's nginx-light) as a reverse proxy on the router's host."""

from __future__ import annotations

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
from rauta import fallback
from rauta.fallback import nginx

if TYPE_CHECKING:
    from lab.scenario import Scenario
    from lab.topology import Network

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
            fallback.write(file, configuration(scenario, settings, folder))
            return fallback.command("nginx", file)

        return proxy.start(network, scenario, stack, self.name, argv)


def configuration(scenario: Scenario, settings: NginxSettings, folder: Path) -> str:
    """The whole nginx.conf. ``folder``: for its temporary files."""
    config = scenario.routing.config
    options = "backlog=4096 reuseport" if settings.reuseport else "backlog=4096"
    return TEMPLATE.substitute(
        folder=folder,
        workers=settings.workers,
        multi_accept="on" if settings.multi_accept else "off",
        buffering="on" if settings.buffering else "off",
        upstreams=nginx.upstreams(config, settings.keepalive),
        servers="\n".join(
            text for vip in config.vips for text in nginx.servers(config, vip, f"{vip.address}:{vip.port}", options)
        ),
    )


CONTENDERS = (Nginx(),)
