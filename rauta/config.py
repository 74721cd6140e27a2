"""The configuration file: VIPs, their routes, and the clusters of backends that they lead to.

    version: 1
    encapsulation: {source: 198.19.0.0/24}     # outer source addresses, one a flow; must route back to the router
    flows: 131072                              # size of the flow table
    recovery: {port: 21057, rate: 1000}        # may be left out: ask the backends about flows that are not in it
    fallback: {port: 8000}                     # optional: the proxy on the router's host, see docs/fallback.md
    vips:
      - name: shop
        address: 198.18.100.80
        port: 80
        no_route: 404                          # or: reset; or: fallback
        routes:
          - {prefix: /api, cluster: api}                                   # exactly one of prefix and exact
          - {host: shop.test, exact: /health, method: GET, cluster: web}   # host and method may be left out
    clusters:
      - name: web
        backends:
          - {name: web-1, address: 198.18.0.11, port: 8080, weight: 1}     # weight 0: drained

The models are frozen. What one field may hold is said here, what fields must agree on in rauta.references.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, model_validator

from rauta import paths, references
from rauta.contract import MAX_CLUSTERS, MAX_VIPS
from rauta.document import load_document
from rauta.mistakes import together

__all__ = [
    "MAX_WEIGHT",
    "Backend",
    "Cluster",
    "Config",
    "Encapsulation",
    "Fallback",
    "Recovery",
    "Route",
    "Vip",
    "load_config",
]

MAX_WEIGHT = 65535


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", text):
        allowed = "1 to 63 letters, digits, '.', '_' and '-', a letter or digit first"
        raise ValueError(f"{text!r} is no name (allowed: {allowed})")
    return text


def _unicast(address: IPv4Address) -> IPv4Address:
    this_network = address.packed[0] == 0  # 0.0.0.0/8 (RFC 1122, 3.2.1.3), and what a plain number would become
    if this_network or address.is_multicast or address.is_loopback or address.is_reserved:
        raise ValueError(f"{str(address)!r} is no address to send a packet to (allowed: a unicast IPv4 address)")
    return address


def _sources(network: IPv4Network) -> IPv4Network:
    _unicast(network.network_address)
    if network.prefixlen < 8:
        raise ValueError(f"{str(network)!r} is too wide (allowed: a prefix of 8 to 32 bits)")
    return network


Name = Annotated[str, AfterValidator(_name)]
Address = Annotated[IPv4Address, AfterValidator(_unicast)]
Port = Annotated[int, Field(strict=True, ge=1, le=65535)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Route(_Model):
    """One route of a VIP: which requests (host, path, method) go to which cluster. None means any host, any method.

    CONNECT is never routed (docs/http.md).
    """

    host: Annotated[str, AfterValidator(paths.host_name)] | None = None
    exact: Annotated[str, AfterValidator(paths.exact_path)] | None = None
    prefix: Annotated[str, AfterValidator(paths.prefix)] | None = None
    method: Literal["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"] | None = None
    cluster: Name

    @property
    def path(self) -> str:
        """What `exact` or `prefix` says, whichever there is."""
        return self.exact or self.prefix or ""


class Vip(_Model):
    """A virtual address and port, what is routed there, and what a request gets that no route names."""

    name: Name
    address: Address
    port: Port
    no_route: Literal[404, "reset", "fallback"] = 404
    routes: tuple[Route, ...]


class Backend(_Model):
    """A server: the address that encapsulated packets go to, the port that it listens on, its weight in the cluster."""

    name: Name
    address: Address
    port: Port
    weight: Annotated[int, Field(strict=True, ge=0, le=MAX_WEIGHT)] = 1


class Cluster(_Model):
    """Backends that can serve the same requests."""

    name: Name
    backends: tuple[Backend, ...]

    def weights(self) -> dict[str, int]:
        """The weight of each backend by name."""
        return {backend.name: backend.weight for backend in self.backends}


class Encapsulation(_Model):
    """The IPv4 prefix from which each flow's outer source address is taken."""

    source: Annotated[IPv4Network, AfterValidator(_sources)]


class Recovery(_Model):
    """Flows that lost their entry are asked about (docs/recovery.md).

    `port`: the UDP port at which agents are asked. `rate`: about how many segments a second, at most, on each router.
    """

    port: Port = 21057
    rate: Annotated[int, Field(strict=True, ge=1, le=100_000)] = 1000


class Fallback(_Model):
    """A proxy on the router's own host, for what XDP does not route: it listens on a port of its own for each VIP.

    The first VIP's is `port`, the next one's the number after it: two VIPs never share a port, or a client that uses
    one of its ports for both would meet itself.
    """

    port: Port


class Config(_Model):
    """A whole configuration, checked: every name it uses is defined, and nothing in it contradicts anything else."""

    version: Literal[1]
    encapsulation: Encapsulation
    flows: Annotated[int, Field(strict=True, ge=1024, le=1 << 24)] = 131072
    recovery: Recovery | None = None
    fallback: Fallback | None = None
    vips: Annotated[tuple[Vip, ...], Field(max_length=MAX_VIPS)]
    clusters: Annotated[tuple[Cluster, ...], Field(max_length=MAX_CLUSTERS)]

    @model_validator(mode="wrap")
    @classmethod
    def _check_references(cls, data: Any, handler: ModelWrapValidatorHandler[Config]) -> Config:
        return together(handler, data, references.mistakes(data))

    def backends(self) -> dict[str, Backend]:
        """Every backend by name, in the order of names; one in several clusters once, with the first one's weight."""
        found: dict[str, Backend] = {}
        for cluster in self.clusters:
            for backend in cluster.backends:
                found.setdefault(backend.name, backend)
        return dict(sorted(found.items()))

    def fallback_ports(self) -> dict[str, int]:
        """The port that each VIP has at the fallback, by the VIP's name; empty if there is no fallback."""
        if self.fallback is None:
            return {}
        return {vip.name: self.fallback.port + number for number, vip in enumerate(self.vips)}


def load_config(path: str | Path) -> Config:
    """Reads a configuration file. RautaError if there is none; DocumentError with every mistake, its line and field."""
    return load_document(path).validate(Config)
