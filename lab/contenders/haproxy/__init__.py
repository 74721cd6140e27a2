"""HAProxy as a reverse proxy on the router's host."""

from __future__ import annotations

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
from rauta import fallback
from rauta.fallback import haproxy

if TYPE_CHECKING:
    from lab.scenario import Scenario
    from lab.topology import Network

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
            fallback.write(file, configuration(scenario, settings))
            return fallback.command("haproxy", file)

        return proxy.start(network, scenario, stack, self.name, argv)


def configuration(scenario: Scenario, settings: HaproxySettings) -> str:
    """The whole haproxy.cfg."""
    config = scenario.routing.config
    return TEMPLATE.substitute(
        threads=settings.threads,
        connections=haproxy.connections(),
        reuse=settings.reuse,
        splice="\n    option splice-auto" if settings.splice else "",
        frontends="\n\n".join(
            haproxy.frontend(config, vip, f"{vip.address}:{vip.port} backlog 4096") for vip in config.vips
        ),
        backends=haproxy.backends(config, f"pool-max-conn {settings.pool} pool-purge-delay 60s"),
        refusals=haproxy.REFUSALS,
    )


CONTENDERS = (Haproxy(),)
