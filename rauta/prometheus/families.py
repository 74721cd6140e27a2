"""Every metric of RAUTA's, and the reference of them in docs/PROMETHEUS_METRICS.md.

    python -m rauta.prometheus.families > docs/PROMETHEUS_METRICS.md

Labels are names of the configuration or words of this list, and never anything of a client's. So there are as many
series as the configuration has VIPs, routes and backends; `Family.series` says how many of each.
"""

from __future__ import annotations

from rauta.prometheus.text import Family

__all__ = ["AGENT", "BOTH", "ROUTER", "reference"]

# ---- the router's families --------------------------------------------------------------------------------

PACKETS = Family(
    "rauta_packets_total",
    "counter",
    "Packets that the router has seen, by its verdict on them, what that did to them, and the VIP that they were for"
    " (none: not for a VIP, or not to be told).",
    ("verdict", "action", "vip"),
    "(VIPs + 1) × 68 verdicts",
)
REQUESTS = Family(
    "rauta_requests_total",
    "counter",
    "Requests that went to a backend, by the route that they matched.",
    ("vip", "route", "cluster"),
    "routes",
)
ROUTE_INFO = Family(
    "rauta_route_info",
    "gauge",
    "1 for each configured route: what the label `route` stands for. Without host or method: any.",
    ("vip", "route", "host", "match", "path", "method", "cluster"),
    "routes",
)
BACKEND_REQUESTS = Family(
    "rauta_backend_requests_total",
    "counter",
    "Requests that went to a backend, by the backend; one that moved its connection counts for the new one.",
    ("backend",),
    "backends",
)
REFUSED = Family(
    "rauta_refused_requests_total",
    "counter",
    "Packets with requests that the router answered itself, with an error or a reset, by reason; repetitions count.",
    ("vip", "reason"),
    "VIPs × reasons (16)",
)
FALLBACK = Family(
    "rauta_fallback_connections_total",
    "counter",
    "Connections that the fallback got, by the reason why they are not routed here.",
    ("vip", "reason"),
    "VIPs × reasons (11)",
)
PROCESSING = Family(
    "rauta_packet_processing_seconds",
    "histogram",
    "How long the program took, of a sample of all packets (one in 1,024), by what became of them.",
    ("class",),
    "classes (6) × 22",
)
EVENTS = Family(
    "rauta_event_packets_total",
    "counter",
    "Packets whose turn it was to become events, by what became of that: told, limited (too many for the rate), lost"
    " (no room in the buffer: nobody listens, or too slowly).",
    ("class", "outcome"),
    "classes (6) × 3",
)
FLOWS = Family(
    "rauta_flows",
    "gauge",
    "Entries of the flow table, by state. Of more than 131,072 entries an estimate, from the first 131,072.",
    ("state",),
    "states (6)",
)
FLOW_CAPACITY = Family(
    "rauta_flow_table_capacity", "gauge", "Connections that the flow table has room for: the configuration's `flows`."
)
FLOW_SETS = Family("rauta_flow_sets", "gauge", "Sets of eight entries that the flow table is made of.")
FULL_SETS = Family(
    "rauta_flow_sets_full",
    "gauge",
    "Sets without a free entry: the next new connection in one takes the place of the least recently used.",
)
ROUTES = Family("rauta_routes", "gauge", "Routes that are configured, in all VIPs.")
ROUTE_CAPACITY = Family("rauta_route_capacity", "gauge", "Routes that there is room for without a restart.")
BACKEND_UP = Family(
    "rauta_backend_up",
    "gauge",
    "Whether a backend can be reached and, if it is checked, is healthy: 1 or 0. One that is only drained is up.",
    ("backend",),
    "backends",
)
BACKEND_STATE = Family(
    "rauta_backend_state",
    "gauge",
    "1 for the state that a backend is in, 0 for all others.",
    ("backend", "state"),
    "backends × states (6)",
)
BACKEND_WEIGHT = Family(
    "rauta_backend_weight",
    "gauge",
    "The weight that a backend has in a cluster now: 0 if it is drained, unhealthy or down.",
    ("cluster", "backend"),
    "backends, once for each cluster that they are in",
)
CONFIGURED_WEIGHT = Family(
    "rauta_backend_configured_weight",
    "gauge",
    "The weight that the configuration gives a backend in a cluster.",
    ("cluster", "backend"),
    "backends, once for each cluster that they are in",
)
CHECK_SECONDS = Family(
    "rauta_health_check_last_duration_seconds",
    "gauge",
    "How long a backend's newest health check took.",
    ("backend",),
    "backends that are checked",
)
CHECKS = Family(
    "rauta_health_checks_total", "counter", "Health checks, by what came of them.", ("result",), "results (9)"
)
TRANSITIONS = Family(
    "rauta_health_transitions_total",
    "counter",
    "How often a backend has become healthy or unhealthy.",
    ("backend", "to"),
    "backends that are checked × 2",
)
INTERFACES = Family(
    "rauta_interface_info",
    "gauge",
    "1 for each interface that the router is attached to, and how: native or generic XDP.",
    ("interface", "mode"),
    "interfaces",
)
_RECOVERY_HELP = {
    "segments_lost": "Segments of connections without an entry that the recovery of flows has been told of.",
    "flows_asked": "Lost flows that the backends were asked about.",
    "flows_recovered": "Lost flows that a backend had: their entry is back.",
    "flows_known": "Lost flows whose entry was there by the time of the answer.",
    "flows_denied": "Lost flows that no backend had.",
    "flows_unanswered": "Lost flows about which not all backends answered in time.",
    "answers_refused": "Answers about lost flows that had the wrong sender or seal.",
    "clients_reset": "Clients of lost flows that got a reset.",
}
RECOVERY = {
    name: Family(f"rauta_recovery_{name}_total", "counter", text + " Only with `recovery` in the configuration.")
    for name, text in _RECOVERY_HELP.items()
}

# ---- those of agents --------------------------------------------------------------------------------------

_PER_ROUTE = "routes that this agent has had requests of, and one more"
AGENT_REQUESTS = Family(
    "rauta_agent_requests_total",
    "counter",
    "Requests that have come to this backend, by route (unknown: the router did not say).",
    ("vip", "route", "backend"),
    _PER_ROUTE,
)
AGENT_RESPONSES = Family(
    "rauta_agent_responses_total",
    "counter",
    "Answers that have left this backend, by route and the first digit of their status (unread: it has none that could"
    " be read); interim ones, too.",
    ("vip", "route", "backend", "status"),
    f"6 × ({_PER_ROUTE})",
)
AGENT_FIRST_BYTE = Family(
    "rauta_agent_time_to_first_byte_seconds",
    "histogram",
    "From a request's first packet at this backend to the first byte of its answer, on the wire's side of its kernel.",
    ("vip", "route", "backend"),
    f"23 × ({_PER_ROUTE})",
)
AGENT_PACKETS = Family(
    "rauta_agent_packets_total",
    "counter",
    "Packets that an agent has seen, in either direction, by its verdict on them and what that did to them. A router"
    " that has a fallback tells those of the fallback's agent, as backend `fallback`.",
    ("verdict", "action", "backend"),
    "37 verdicts",
)

# ---- those of both ----------------------------------------------------------------------------------------

GENERATION = Family("rauta_config_generation", "gauge", "How often the configuration was changed under traffic.")
RELOADS = Family(
    "rauta_config_reloads_total",
    "counter",
    "How often the process has loaded its configuration again, by success.",
    ("result",),
    "2",
)
LAST_RELOAD = Family(
    "rauta_config_last_reload_successful",
    "gauge",
    "0 if the newest version of the configuration file was refused, and an older one is in use; else 1.",
)
MAP_MEMORY = Family(
    "rauta_map_memory_bytes", "gauge", "Memory that the kernel holds for a BPF map.", ("map",), "maps (about 30)"
)
BUILD = Family(
    "rauta_build_info",
    "gauge",
    "1, with the part that this is (router or agent), its version, and what it runs on.",
    ("part", "version", "python", "kernel"),
)
STARTED = Family("rauta_start_time_seconds", "gauge", "When this process was started, by the wall clock.")
RESIDENT = Family("process_resident_memory_bytes", "gauge", "Resident memory of this process.")
CPU_SECONDS = Family("process_cpu_seconds_total", "counter", "CPU time of this process, user and system.")

BOTH = (GENERATION, RELOADS, LAST_RELOAD, MAP_MEMORY, BUILD, STARTED, RESIDENT, CPU_SECONDS)
ROUTER = (
    *(PACKETS, REQUESTS, ROUTE_INFO, BACKEND_REQUESTS, REFUSED, FALLBACK, PROCESSING, EVENTS),
    *(FLOWS, FLOW_CAPACITY, FLOW_SETS, FULL_SETS, ROUTES, ROUTE_CAPACITY),
    *(BACKEND_UP, BACKEND_STATE, BACKEND_WEIGHT, CONFIGURED_WEIGHT, CHECK_SECONDS, CHECKS, TRANSITIONS),
    *(INTERFACES, *RECOVERY.values()),
)
AGENT = (AGENT_REQUESTS, AGENT_RESPONSES, AGENT_FIRST_BYTE, AGENT_PACKETS)

_INTRODUCTION = """\
# What RAUTA tells Prometheus

Written by `python -m rauta.prometheus.families`; a test says whether it is current.

    metrics: {listen: "127.0.0.1:9477", agents: "0.0.0.0:9478"}      # in the configuration

A router answers `GET /metrics` where `listen` says, each agent where `agents` says (without it, agents do not); both
answer `GET /healthz` with 200. The text is format 0.0.4. Another address or port takes a restart of the process;
packets go on.

**Names.** Seconds and bytes; `_total` counts up. What the packet path counts goes on when a process is restarted or
upgraded, as connections do; it begins at 0 with `rauta down`, a reboot, or when what it is about is gone from the
configuration and comes back. What the process counts (health checks, reloads, recovery) begins at 0 with each process.
All series of what is configured are there from the beginning, with 0; but those of a route at an agent begin with its
first request there, which `increase()` therefore misses.

**Cardinality.** No label has anything of a client's: no path, host name, address or header that was sent. `route` is
a hash of what the configuration says of a route (VIP, host, path or prefix, method), twelve hexadecimal digits, the
same on every host and after every reload. What it stands for is in `rauta_route_info`, one series for each configured
route:

    rauta_requests_total * on (vip, route) group_left (host, match, path, method) rauta_route_info

A route that is led to another cluster goes on counting, with another `cluster`.

**What it costs.** Reading waits for no packet, and no packet for it. A scrape of a router with 10,000 routes and room
for 131,072 flows takes 12 ms of one CPU (a virtual machine with 2 cores), half of it for counting the flows; between
scrapes nothing is done. An agent's with as many routes takes 18 ms, and 40 more for each thousand routes whose figures
have changed since the scrape before (`pytest -s tests/packets/test_metrics.py -k costs`).

**Histograms** have bounds that double. A time that equals a bound is counted above it. The program's times are those
of a sample: their `_count` is no number of packets (`rauta_packets_total` is). How times to first byte are taken, and
which answers cannot be followed, is said in [observability.md](observability.md).

**OpenTelemetry.** `target_info` has the attributes of OTEL_RESOURCE_ATTRIBUTES, under the names that OpenTelemetry's
specification gives them in Prometheus: `k8s.pod.name` is the label `k8s_pod_name`.

Dashboard: [deploy/grafana/rauta.json](../deploy/grafana/rauta.json). Alerts, with what to do:
[deploy/prometheus/rauta.rules.yml](../deploy/prometheus/rauta.rules.yml).
"""


def reference() -> str:
    """docs/PROMETHEUS_METRICS.md."""
    parts = (("Of routers", ROUTER), ("Of agents", AGENT), ("Of both", BOTH))
    return _INTRODUCTION + "".join(f"\n## {title}\n\n{_table(families)}" for title, families in parts)


def _table(families: tuple[Family, ...]) -> str:
    rows = [("metric", "type", "labels", "series", "meaning"), ("---",) * 5]
    rows += [(f"`{one.name}`", one.kind, _labels(one), one.series, one.help) for one in families]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _labels(family: Family) -> str:
    return ", ".join(f"`{label}`" for label in family.labels) or "–"


if __name__ == "__main__":
    print(reference(), end="")
