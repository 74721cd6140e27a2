"""What must be true. A check is a mapping; which one it is, its first key says: ``{keepalive: 1000, path: /, ...}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Tag

from lab.checks.base import CheckBase
from lab.checks.chaos import Chaos
from lab.checks.flood import FlowsOf, MemoryConstant, SynFlood
from lab.checks.requests import Alternate, Connections, Download, Get, Keepalive, Refused
from lab.checks.reuse import Reuse
from lab.checks.state import ClientAddressSeen, Equal, NoListenerOn, TcpRetransmits

__all__ = ["Check"]

_MODELS: dict[str, type[CheckBase]] = {
    "get": Get,
    "connections": Connections,
    "keepalive": Keepalive,
    "alternate": Alternate,
    "download": Download,
    "refused": Refused,
    "reuse": Reuse,
    "no_listener_on": NoListenerOn,
    "client_address_seen": ClientAddressSeen,
    "equal": Equal,
    "tcp_retransmits": TcpRetransmits,
    "syn_flood": SynFlood,
    "flows_of": FlowsOf,
    "memory_constant": MemoryConstant,
    "chaos": Chaos,
}


def _kind(check: Any) -> str | None:
    """The key that names the check, in a file's mapping or in a model."""
    if isinstance(check, Mapping):
        return next((name for name in _MODELS if name in check), None)
    return next((name for name, model in _MODELS.items() if isinstance(check, model)), None)


Check = Annotated[
    Annotated[Get, Tag("get")]
    | Annotated[Connections, Tag("connections")]
    | Annotated[Keepalive, Tag("keepalive")]
    | Annotated[Alternate, Tag("alternate")]
    | Annotated[Download, Tag("download")]
    | Annotated[Refused, Tag("refused")]
    | Annotated[Reuse, Tag("reuse")]
    | Annotated[NoListenerOn, Tag("no_listener_on")]
    | Annotated[ClientAddressSeen, Tag("client_address_seen")]
    | Annotated[Equal, Tag("equal")]
    | Annotated[TcpRetransmits, Tag("tcp_retransmits")]
    | Annotated[SynFlood, Tag("syn_flood")]
    | Annotated[FlowsOf, Tag("flows_of")]
    | Annotated[MemoryConstant, Tag("memory_constant")]
    | Annotated[Chaos, Tag("chaos")],
    Discriminator(
        _kind,
        custom_error_type="check_kind",
        custom_error_message="is no check that the lab knows; its first key must be one of " + ", ".join(_MODELS),
    ),
]
