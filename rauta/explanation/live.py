"""What a running router does with a request: rauta.explanation.explain by its present weights, with its numbers and its
own tables.

Given a client, the backend is the one that the very Maglev table of the cluster names for its connection; the flow key,
which that takes, stays here. If the client has a connection now, it says where that is, and where this request would
take it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rauta import tables
from rauta.config import Vip
from rauta.contract import NO_BACKEND
from rauta.errors import RautaError
from rauta.explanation.explain import Candidate, Explanation, Found, explain, find_vip, parse_request
from rauta.flows import ShortFlow, short_flows, state_names
from rauta.ids import route_name
from rauta.processes.asked import ClientName
from rauta.processes.flowing import flow_fields
from rauta.router import Router

__all__ = ["explain_live"]

_SHOWN = 20  # routes that do not match


def explain_live(
    router: Router,
    request: str,
    fields: Sequence[str] = (),
    *,
    vip: str | None = None,
    client: ClientName | None = None,
) -> dict[str, Any]:
    """What becomes of a connection's first request. Reads the flow table if there is a client: in a thread, then.

    RautaError if the request is none, or the VIP is not clear, or the client has no port.
    """
    if client is not None and not client[1]:
        advice = "Say which, as in 198.18.0.7:40000."
        raise RautaError("explaining what a client gets", "without a port, no backend can be told", advice)
    parsed = parse_request(request, fields)
    told = explain(router.effective, parsed.segment, vip=find_vip(router.config, parsed, vip))
    return {
        "kind": told.kind,
        "verdict": told.verdict,
        "status": told.status,
        "why": told.why,
        "vip": {
            "id": router.ids.vips[told.vip.name],
            "name": told.vip.name,
            "address": str(told.vip.address),
            "port": told.vip.port,
        },
        "request": dataclasses.asdict(told.head) if told.head is not None else None,
        "notes": list(told.notes),
        "host": told.host,
        "route": _route(router, told.vip, told.route) if told.route is not None else None,
        **_cluster(router, told),
        **_candidates(router, told),
        "client": _client(router, told, client) if client is not None else None,
    }


def _route(router: Router, vip: Vip, found: Found) -> dict[str, Any]:
    route = found.route
    return {
        "id": router.ids.routes[route_name(vip, route)],
        "host": route.host,
        "kind": "exact" if route.exact is not None else "prefix",
        "path": route.path,
        "method": route.method,
        "cluster": route.cluster,
    }


def _cluster(router: Router, told: Explanation) -> dict[str, Any]:
    """The cluster, and the shares of its table that its backends have."""
    if told.cluster is None:
        return {"cluster": None, "backends": []}
    table = router.table(told.cluster)
    slots, numbers = Counter(table), router.ids.backend_indices(router.config)
    backends = [
        {
            "id": numbers[one.name],
            "name": one.name,
            "address": str(one.address),
            "port": one.port,
            "effective_weight": one.weight,
            "share": slots[numbers[one.name]] / len(table),
        }
        for one in told.shares
    ]
    return {"cluster": {"id": router.ids.clusters[told.cluster], "name": told.cluster}, "backends": backends}


def _candidates(router: Router, told: Explanation) -> dict[str, Any]:
    """All routes that match, and the first of those that do not."""
    matching = [one for one in told.candidates if one.outcome != "no match"]
    others = [one for one in told.candidates if one.outcome == "no match"]
    shown = {id(one) for one in (*matching, *others[:_SHOWN])}

    def fields(one: Candidate) -> dict[str, Any]:
        return {**_route(router, told.vip, one.found), "outcome": one.outcome, "why": one.why}

    return {
        "candidates": [fields(one) for one in told.candidates if id(one) in shown],
        "candidates_left_out": len(others[_SHOWN:]),
    }


def _client(router: Router, told: Explanation, client: ClientName) -> dict[str, Any]:
    """What its connection gets, and the one that it has."""
    server = (told.vip.address, told.vip.port)
    slot = tables.flow_slot(router.keys.flow_key, client, server)
    chosen = None
    if told.kind == "route" and told.cluster is not None:
        number = router.table(told.cluster)[slot]
        chosen = None if number == NO_BACKEND else router.names.backends.get(number)
    return {
        "address": str(client[0]),
        "port": client[1],
        "slot": slot,
        "backend": chosen,
        "flow": _flow(router, told, client, chosen),
    }


def _flow(router: Router, told: Explanation, client: ClientName, chosen: str | None) -> dict[str, Any] | None:
    """The client's connection to the VIP, if there is one. `next`: whom this request would go to, as a later one."""
    wanted = (tables.be32(client[0]), tables.be32(told.vip.address), tables.be16(client[1]), tables.be16(told.vip.port))
    found = next((flow for flow in short_flows(router.object) if flow[:4] == wanted), None)
    if found is None:
        return None
    fields = flow_fields(found, router.names, state_names(router.object))
    goes_on = told.kind == "route" and fields["state"] == "open"
    return {**fields, "next": _next(router, told, found, chosen) if goes_on else None}


def _next(router: Router, told: Explanation, flow: ShortFlow, chosen: str | None) -> str | None:
    """bpf/order.h, next_backend(): it stays where it is while its backend serves the route's cluster."""
    at = router.names.backends.get(flow.backend)
    numbers = router.ids.backend_indices(router.config)
    members = {numbers[one.name]: one for one in told.shares if one.weight}
    if flow.backend in members or chosen is None:
        return at
    backends = router.config.backends()
    same_host = at in backends and backends[at].address == backends[chosen].address
    return at if same_host else chosen
