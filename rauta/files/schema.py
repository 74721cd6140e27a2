"""The configuration's format as JSON Schema, and as tables for people.

The models of rauta.config say what may stand in a file, and are in the memory of every router; what each field is for
is said here, for those who write one. A test compares the two: no field without a word, and no word without a field.

JSON Schema cannot say all: what fields must agree on with each other (rauta.files.references) is found by `rauta check`
only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from rauta import config
from rauta.config import Config

__all__ = ["FIELDS", "SECTIONS", "json_schema", "reference"]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_EITHER_PATH = [{"required": [kind], "properties": {kind: {"type": "string"}}} for kind in ("exact", "prefix")]

SECTIONS: Mapping[type[BaseModel], str] = {
    config.Config: "the file",
    config.Encapsulation: "encapsulation",
    config.Recovery: "recovery",
    config.Fallback: "fallback",
    config.Capacity: "capacity",
    config.Secrets: "secrets",
    config.Metrics: "metrics",
    config.Traces: "traces",
    config.Vip: "vips[]",
    config.Route: "vips[].routes[]",
    config.Cluster: "clusters[]",
    config.Health: "clusters[].health",
    config.Backend: "clusters[].backends[]",
}
"""The models in the order of the reference, and where they stand in a file."""

FIELDS: Mapping[type[BaseModel], Mapping[str, tuple[str, str]]] = {
    config.Config: {
        "version": ("The format's version.", "1"),
        "encapsulation": ("How packets travel to backends.", "{source: 198.19.0.0/24}"),
        "flows": ("Size of the flow table, in connections: several times as many as you expect.", "131072"),
        "recovery": ("Ask the backends about connections that are not in the flow table.", "{port: 21057}"),
        "fallback": ("A proxy on the router's host, for what XDP does not route.", "{port: 8000}"),
        "capacity": ("What the router's tables have room for.", "{routes: 4096, hosts: 1024}"),
        "interfaces": ("Interfaces that the router attaches to.", "[eth0]"),
        "mode": ("How XDP attaches: in the driver, in the kernel's generic way, or the first that works.", "native"),
        "secrets": ("Where the installation's secrets are.", "{file: /etc/rauta/secrets.yaml}"),
        "metrics": ("Where Prometheus finds figures.", '{listen: "127.0.0.1:9477"}'),
        "traces": ("Where spans of traced requests go.", '{endpoint: "http://127.0.0.1:4318/v1/traces"}'),
        "vips": ("Virtual addresses and ports, and what is routed there; at most 64.", "[…]"),
        "clusters": ("Groups of backends that routes lead to; at most 1024.", "[…]"),
    },
    config.Encapsulation: {
        "source": (
            "IPv4 prefix of 8 to 32 bits of which each connection has an outer source address. It must route back to "
            "the router, and agents take encapsulated packets from nowhere else.",
            "198.19.0.0/24",
        ),
    },
    config.Recovery: {
        "port": ("UDP port at which agents are asked.", "21057"),
        "rate": ("Segments a second that are asked about, at most, on each router.", "1000"),
    },
    config.Fallback: {
        "port": ("Port of the first VIP at the fallback; each further VIP has the next number.", "8000"),
    },
    config.Capacity: {
        "routes": ("Routes that there is room for. Default: twice the file's, at least 1024.", "4096"),
        "hosts": ("Host names that there is room for, counted in each VIP. Default: likewise.", "1024"),
    },
    config.Secrets: {
        "file": ("The file with the secrets, readable for its owner only.", "/etc/rauta/secrets.yaml"),
        "rotate": ("How often new cookie keys come into use: 2s to 720h.", "24h"),
    },
    config.Metrics: {
        "listen": ("Where the router serves its figures: IPv4 address and port.", "127.0.0.1:9477"),
        "agents": ("Where each agent serves its own; without it none does.", "0.0.0.0:9478"),
    },
    config.Traces: {
        "endpoint": ("Where spans are sent, by OTLP over HTTP.", "http://127.0.0.1:4318/v1/traces"),
        "one_in": ("Of how many requests, on the average, one is traced.", "1000"),
    },
    config.Vip: {
        "name": ("Its name in counters and messages.", "shop"),
        "address": ("IPv4 address that clients connect to.", "198.18.100.80"),
        "port": ("TCP port that clients connect to.", "80"),
        "no_route": ("What a request gets that no route names: 404, reset, or fallback.", "reset"),
        "routes": ("Which requests go where. Their order does not matter.", "[{prefix: /, cluster: web}]"),
    },
    config.Route: {
        "host": (
            "Host name without a port, case does not matter, or a wildcard for all names that end so. A name's own "
            "routes are the only ones that count for it. Without it: any host that no other route names.",
            '"*.shop.test"',
        ),
        "exact": ("The whole path. Comes before any prefix.", "/health"),
        "prefix": ("Whole segments that the path starts with; the longest one counts.", "/api"),
        "method": ("GET, HEAD, POST, PUT, DELETE, OPTIONS, TRACE or PATCH. Without it: any.", "GET"),
        "cluster": ("Name of the cluster that serves these requests.", "web"),
    },
    config.Cluster: {
        "name": ("What routes call it.", "web"),
        "health": ("How its backends are checked; without it they are not.", "{http: /health}"),
        "backends": ("The servers.", "[{name: web-1, address: 198.18.0.11, port: 8080}]"),
    },
    config.Health: {
        "http": ("Path of a GET that must be answered. Without it, a check is a TCP connection.", "/health"),
        "host": ("Host of that GET; only with `http`.", "shop.test"),
        "status": ("Statuses that count as healthy, 100 to 599; only with `http`.", "[200, 204]"),
        "interval": ("Time from one check's beginning to the next one's: 50ms to 1h.", "2s"),
        "timeout": (
            "Time within which a check must succeed: 10ms to the interval. Left out, half of that, and 1s at most.",
            "1s",
        ),
        "rise": ("Successes on end after which a backend is healthy again.", "2"),
        "fall": ("Failures on end after which a backend is unhealthy.", "3"),
        "jitter": ("Share of the interval by which checks are early or late at random, up to 50%.", "10%"),
        "all_fail": ("Without a healthy backend, keep them all, or refuse requests with 503.", "refuse"),
    },
    config.Backend: {
        "name": ("Its name, which Maglev hashes: the same server has it in every cluster.", "web-1"),
        "address": ("IPv4 address of its host, where an agent runs.", "198.18.0.11"),
        "port": ("TCP port that the server listens on.", "8080"),
        "weight": ("Share of the cluster's connections, beside the others' weights. 0: drained.", "3"),
    },
}
"""What each field is for, and an example as it would stand in a file."""


_QUANTITIES: Mapping[tuple[type[BaseModel], str], str] = {  # defaults that models hold as numbers, as one writes them
    (config.Secrets, "rotate"): "24h",
    (config.Health, "interval"): "2s",
    (config.Health, "timeout"): "1s",
    (config.Health, "jitter"): "10%",
}


def json_schema() -> dict[str, Any]:
    """JSON Schema, draft 2020-12, of a configuration file."""
    schema = Config.model_json_schema()
    definitions = {"Config": schema, **schema["$defs"]}
    for model, fields in FIELDS.items():
        definition = definitions[model.__name__]
        for name, (text, _) in fields.items():
            definition["properties"][name]["description"] = text
    for (model, name), text in _QUANTITIES.items():
        definitions[model.__name__]["properties"][name]["default"] = text
    definitions["Route"]["oneOf"] = _EITHER_PATH
    return {"$schema": _DIALECT, **schema, "title": "RAUTA's configuration"}


# ---- for people -------------------------------------------------------------------------------------------


def reference() -> str:
    """Every field with its default and an example: Markdown, a table for each section."""
    return "\n".join(line for model in SECTIONS for line in _table(model)).rstrip()


def _table(model: type[BaseModel]) -> Iterator[str]:
    yield from (f"### `{SECTIONS[model]}`" if model is not Config else "### The file", "")
    yield from ("| field | what | default | example |", "|---|---|---|---|")
    for name, (text, example) in FIELDS[model].items():
        yield f"| `{name}` | {text} | {_default(model, name)} | `{example}` |"
    yield ""


def _default(model: type[BaseModel], name: str) -> str:
    field = model.model_fields[name]
    if field.is_required():
        return "must be there"
    if field.default is None or isinstance(field.default, BaseModel):
        return "–"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{_QUANTITIES.get((model, name), value)}`"
