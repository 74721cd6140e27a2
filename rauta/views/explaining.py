"""What the running router does with a request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rauta.views import clean, console

__all__ = ["explain"]

_COLOURS = {"taken": "green", "behind": "yellow", "no match": "dim"}
_CALLED = {"answer": "answer", "reset": "reset", "fallback": "the fallback"}


def explain(request: str, answer: Mapping[str, Any]) -> None:
    """The decision, and how it comes about."""
    out = console()
    out.print(clean(f"{request} → {_decision(answer)}"), style="bold", soft_wrap=True)
    for line in _lines(answer):
        out.print(clean(f"  {line}"), soft_wrap=True)
    if answer["candidates"]:
        out.print("  routes, as they are looked for:")
    for one in answer["candidates"]:
        line = f"    {one['outcome']:<8}  {_route(one)} → {one['cluster']}: {one['why']}"
        out.print(clean(line), style=_COLOURS[one["outcome"]], soft_wrap=True)
    if answer["candidates_left_out"]:
        out.print(f"    and {answer['candidates_left_out']:,} more that do not match")


def _decision(answer: Mapping[str, Any]) -> str:
    if answer["kind"] != "route":
        return f"{answer['status'] or _CALLED[answer['kind']]} ({answer['verdict']}): {answer['why']}"
    told = f"route {_route(answer['route'])} → cluster {answer['cluster']['name']}"
    if answer["client"] is not None:
        return f"{told} → {answer['client']['backend']}"
    shares = ", ".join(f"{one['name']} {100 * one['share']:.0f} %" for one in answer["backends"] if one["share"])
    return f"{told} → {shares or 'nobody'}"


def _route(one: Mapping[str, Any]) -> str:
    method = f"{one['method']} " if one["method"] else ""
    return f"{one['id']} ({method}{one['host'] or '*'} {one['kind']} {one['path']})"


def _lines(answer: Mapping[str, Any]) -> Iterator[str]:
    vip, request = answer["vip"], answer["request"]
    yield f"VIP: {vip['name']} ({vip['address']}:{vip['port']})"
    if request is not None:
        yield f"host: {request['host'] or 'none'}; the routes that count are those of {answer['host'] or 'any host'}"
        yield f"path: {request['path']}"
    yield from answer["notes"]
    if answer["client"] is not None:
        yield from _client(answer["client"])


def _client(client: Mapping[str, Any]) -> Iterator[str]:
    name, flow = f"{client['address']}:{client['port']}", client["flow"]
    if client["backend"] is not None:
        yield f"{name}: slot {client['slot']} of the cluster's table, which is {client['backend']}'s"
    if flow is None:
        yield f"{name} has no connection to this VIP now"
        return
    yield f"{name} has a connection: {flow['state']}, at {flow['backend'] or 'no backend'}"
    if flow["next"] is not None:
        stays = flow["next"] == flow["backend"]
        yield f"as its next request, this one {'stays there' if stays else 'moves it to ' + flow['next']}"
