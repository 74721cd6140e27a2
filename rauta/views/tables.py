"""Routes, backends, flows, figures, and what the doctor says: tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rauta.views import STATES, age, clean, console, number, size, styled, table

__all__ = ["backends", "counters", "doctor", "flows", "metrics", "routes", "status"]

_STATUSES = {"ok": "green", "warning": "yellow", "error": "bold red", "unknown": "dim"}


def status(answer: Mapping[str, Any]) -> None:
    """The router in a few lines; what is wrong comes first."""
    out, figures, memory = console(), answer["figures"], answer["memory"]
    if answer["error"]:
        out.print(f"the configuration was not loaded, the one before goes on: {clean(answer['error'])}", style="red")
    for name, style in (("unreached", "red"), ("unhealthy", "red"), ("drained", "yellow")):
        if answer[name]:
            out.print(f"{name}: {clean(', '.join(answer[name]))}", style=style)
    interfaces = ", ".join(f"{one['name']} ({one['mode']})" for one in answer["interfaces"])
    lines = {
        "instance": f"{answer['instance']}, for {age(answer['started'])}",
        "configuration": f"{answer['file']}, generation {answer['generation']}",
        "interfaces": interfaces,
        "VIPs": ", ".join(f"{one['name']} {one['address']}:{one['port']}" for one in answer["vips"]),
        "routes": number(sum(one["routes"] for one in answer["vips"])),
        "clusters": number(answer["clusters"]),
        "backends": number(answer["backends"]),
        "requests": number(figures["packets_routed"]),
        "packets": f"{number(figures['packets_processed'])}, of them dropped {number(figures['packets_dropped'])}",
        "program": f"{_micro(figures['avg_latency_us'])} mean, {_micro(figures['p99_latency_us'])} p99",
        "memory": f"{size(memory['process'])} process, {size(memory['maps'])} maps",
    }
    shown = table("", "")
    shown.show_header = False
    for name, text in lines.items():
        shown.add_row(styled(name, "bold"), styled(text))
    out.print(shown)


def _micro(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} µs"


def routes(answer: Sequence[Mapping[str, Any]]) -> None:
    """A line a route, in the order of the configuration."""
    shown = table("id", "vip", "host", "kind", "path", "method", "cluster", "requests", right=("id", "requests"))
    for one in answer:
        words = (one["vip"], one["host"] or "*", one["kind"], one["path"], one["method"] or "*", one["cluster"])
        shown.add_row(str(one["id"]), *map(styled, words), number(one["requests"]))
    console().print(shown)


def backends(answer: Sequence[Mapping[str, Any]]) -> None:
    """A line for each backend of each cluster."""
    right = ("weight", "flows", "requests", "req/s", "since")
    shown = table(
        "cluster", "backend", "address", "weight", "health", "since", "flows", "requests", "req/s", "", right=right
    )
    for one in answer:
        shown.add_row(
            styled(one["cluster"]),
            styled(one["name"]),
            styled(f"{one['address']}:{one['port']}"),
            weight_of(one),
            styled(one["state"], STATES.get(one["state"], "")),
            "-" if one["since"] is None else age(one["since"]),
            number(one["flows"]),
            number(one["requests"]),
            number(one["requests_per_second"], 1),
            styled(one["error"] if one["state"] in ("unhealthy", "down") else "", "dim"),
        )
    console().print(shown)


def weight_of(backend: Mapping[str, Any]) -> str:
    """The weight that it has now, and the configured one if that is another."""
    now, configured = backend["effective_weight"], backend["weight"]
    return str(now) if now == configured else f"{now} of {configured}"


def flows(answer: Mapping[str, Any]) -> None:
    """The flow table by state, and entries or clients."""
    out, states = console(), answer["states"]
    by_state = ", ".join(f"{number(count)} {state}" for state, count in states.items()) or "none"
    out.print(f"{number(sum(states.values()))} of {number(answer['capacity'])} entries: {by_state}")
    if answer["top"]:
        shown = table("client", "flows", right=("flows",))
        for one in answer["top"]:
            shown.add_row(one["client"], number(one["flows"]))
        out.print(shown)
        return
    shown = table("client", "vip", "state", "cluster", "backend")
    for one in answer["flows"]:
        shown.add_row(
            one["client"], one["vip"], one["state"], styled(one["cluster"] or "-"), styled(one["backend"] or "-")
        )
    if answer["flows"]:
        out.print(shown)
    left = answer["matching"] - len(answer["flows"])
    if left:
        out.print(f"and {number(left)} more; --limit shows up to 1,000")


def metrics(answer: Mapping[str, Any]) -> None:
    """A figure a line."""
    shown = table("", "", right=("",))
    shown.show_header = False
    for name, value in answer.items():
        shown.add_row(name, _figure(value))
    console().print(shown)


def _figure(value: float | None) -> str:
    return number(value, 3) if isinstance(value, float) else number(value)


def counters(answer: Mapping[str, int]) -> None:
    """The verdicts that any packet has had."""
    metrics({name: packets for name, packets in answer.items() if packets})


def doctor(answer: Sequence[Mapping[str, Any]]) -> None:
    """What was looked at, and what to do."""
    out = console()
    for one in answer:
        head = styled(f"{one['status']:<8}", _STATUSES.get(one["status"], ""))
        head.append(clean(f"{one['check']}  {one['subject']}  {one['seen']}"), style="")
        out.print(head)
        if one["remedy"]:
            out.print(f"         → {clean(one['remedy'])}", style="bold")
    counts = {status: sum(one["status"] == status for one in answer) for status in _STATUSES}
    out.print(", ".join(f"{count} {status}" for status, count in counts.items() if count))
