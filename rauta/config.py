"""The configuration file: VIPs, their routes, and the clusters of backends that they lead to.

    version: 1
    encapsulation: {source: 198.19.0.0/24}     # outer source addresses, one a flow; must route back to the router
    flows: 131072                              # size of the flow table
    recovery: {port: 21057, rate: 1000}        # may be left out: ask the backends about flows that are not in it
    fallback: {port: 8000}                     # optional: the proxy on the router's host, see docs/fallback.md
    capacity: {routes: 4096, hosts: 1024}      # may be left out: what the tables have room for, see docs/running.md
    interfaces: [eth0]                         # optional; or on the command line, or RAUTA_INTERFACE
    mode: best-effort                          # or: native; or: generic; or RAUTA_XDP_MODE
    secrets: {file: /etc/rauta/secrets.yaml, rotate: 24h}
    metrics: {listen: "127.0.0.1:9477", agents: "0.0.0.0:9478"}
    traces: {endpoint: "http://127.0.0.1:4318/v1/traces", one_in: 1000}
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
        health: {http: /health, interval: 2s, timeout: 1s, rise: 2, fall: 3}   # without `http`: a TCP connection
        backends:
          - {name: web-1, address: 198.18.0.11, port: 8080, weight: 1}     # weight 0: drained
      - name: api
        backends:
          - {name: api-1, address: 198.18.0.21, port: 8080}

The models are frozen. What one field may hold is said here, what fields must agree on in rauta.files.references.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)

from rauta.contract import MAX_CLUSTERS, MAX_ROUTES, MAX_VIPS
from rauta.files import paths, references
from rauta.files.document import load_document
from rauta.files.mistakes import together
from rauta.units import Duration, Share

__all__ = [
    "MAX_WEIGHT",
    "Backend",
    "Capacity",
    "Cluster",
    "Config",
    "Encapsulation",
    "Fallback",
    "Health",
    "Metrics",
    "Recovery",
    "Route",
    "Secrets",
    "Traces",
    "Vip",
    "load_config",
]

MAX_WEIGHT = 65535


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", text):
        allowed = "1 to 63 letters, digits, '.', '_' and '-', a letter or digit first"
        raise ValueError(f"{text!r} is no name (allowed: {allowed})")
    return text


def _interface(text: str) -> str:
    if not re.fullmatch(r"[^\s/:]{1,15}", text) or text in (".", ".."):  # net/core/dev.c, dev_valid_name
        raise ValueError(f"{text!r} is no interface's name (allowed: 1 to 15 characters, no space, '/' or ':')")
    return text


def _listener(value: object) -> object:
    if isinstance(value, tuple):  # of another model
        return value
    address, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    try:
        if 1 <= int(port) <= 65535 and port.isdecimal():
            return str(IPv4Address(address)), int(port)
    except ValueError:
        pass
    raise ValueError(f"{value!r} is no place to listen (allowed: an IPv4 address and a port, such as 127.0.0.1:9477)")


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
Listener = Annotated[
    tuple[str, int],
    BeforeValidator(_listener),
    PlainSerializer(lambda listener: f"{listener[0]}:{listener[1]}", str),
    WithJsonSchema({"type": "string", "pattern": "^[0-9.]+:[0-9]+$", "examples": ["127.0.0.1:9477"]}),
]
"""An address and a port, written as `127.0.0.1:9477`."""


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


class Health(_Model):
    """How a cluster's backends are checked, each on the address and port that it serves on (docs/health.md).

    A check is a TCP connection or, with `http`, a GET of that path that is answered with `status`, within `timeout`
    (without it, half the interval, and a second at most).
    Checks of one backend begin `interval` apart, give or take the share `jitter` of it. It is unhealthy after `fall`
    failures on end, healthy again after `rise` successes. `all_fail`: what a cluster does that has no healthy backend:
    `keep` them all, as if they were, or `refuse` requests with 503.
    """

    http: Annotated[str, AfterValidator(paths.exact_path)] | None = None
    host: Annotated[str, AfterValidator(paths.host_name)] | None = None
    status: tuple[Annotated[int, Field(strict=True, ge=100, le=599)], ...] = (200,)
    interval: Annotated[Duration, Field(ge=0.05, le=3600)] = references.HEALTH_INTERVAL
    timeout: Annotated[Duration, Field(ge=0.01, le=60)] = references.HEALTH_INTERVAL / 2
    rise: Annotated[int, Field(strict=True, ge=1, le=100)] = 2
    fall: Annotated[int, Field(strict=True, ge=1, le=100)] = 3
    jitter: Annotated[Share, Field(le=0.5)] = 0.1
    all_fail: Literal["keep", "refuse"] = "keep"

    @model_validator(mode="before")
    @classmethod
    def _give_time(cls, data: Any) -> Any:
        """So that failures are noticed within `fall` intervals."""
        interval = references.seconds(data.get("interval")) if isinstance(data, Mapping) else None
        if interval is None or data.get("timeout") is not None:
            return data
        return {**data, "timeout": f"{min(1.0, max(0.01, interval / 2))}s"}


class Cluster(_Model):
    """Backends that can serve the same requests."""

    name: Name
    health: Health | None = None
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


class Capacity(_Model):
    """What a router's tables have room for: more than the file has, so that a reload finds place in them.

    None: twice what the file has when the router starts, and at least 1024 of each.
    """

    routes: Annotated[int, Field(strict=True, ge=1, le=MAX_ROUTES)] | None = None
    hosts: Annotated[int, Field(strict=True, ge=1, le=MAX_ROUTES)] | None = None


class Secrets(_Model):
    """Where the secrets of the installation are (rauta.secrets), and how often new cookie keys come into use."""

    file: Path
    rotate: Annotated[Duration, Field(ge=2, le=30 * 24 * 3600)] = 24 * 3600.0


class Metrics(_Model):
    """Where Prometheus finds the router's figures, and where those of each agent: an address and a port."""

    listen: Listener
    agents: Listener | None = None


class Traces(_Model):
    """Where spans go (OTLP over HTTP), and of how many requests, on the average, one is traced."""

    endpoint: Annotated[str, Field(pattern="^https?://[^/]+/")]
    one_in: Annotated[int, Field(strict=True, ge=1, le=1 << 20)] = 1000


class Config(_Model):
    """A whole configuration, checked: every name it uses is defined, and nothing in it contradicts anything else."""

    version: Literal[1]
    encapsulation: Encapsulation
    flows: Annotated[int, Field(strict=True, ge=1024, le=1 << 24)] = 131072
    recovery: Recovery | None = None
    fallback: Fallback | None = None
    capacity: Capacity = Capacity()
    interfaces: tuple[Annotated[str, AfterValidator(_interface)], ...] = ()
    mode: Literal["native", "generic", "best-effort"] = "best-effort"
    secrets: Secrets | None = None
    metrics: Metrics | None = None
    traces: Traces | None = None
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
