"""What can be measured, by layer: a program alone (bpf), frames over links (veth), requests to real servers (http)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Tag

from lab.measure.connect import Connect
from lab.measure.download import Download, FirstSeconds
from lab.measure.frames import Frames
from lab.measure.lookup import Lookup
from lab.measure.open_loop import OpenLoop
from lab.measure.program import Program
from lab.measure.search import Search
from lab.measure.wrk import Wrk

__all__ = [
    "Connect",
    "Download",
    "FirstSeconds",
    "Frames",
    "Lookup",
    "Measure",
    "OpenLoop",
    "Program",
    "Search",
    "Wrk",
]

_TOOLS = ("wrk", "open-loop", "connect", "search", "download", "first-seconds")
_KINDS = ("bpf", "lookup", "veth", *_TOOLS)


def _kind(measure: Any) -> str | None:
    """What says which measure it is: the tool in layer http, else the layer; in layer bpf a look-up is another one."""

    def field(name: str) -> object:
        return measure.get(name) if isinstance(measure, Mapping) else getattr(measure, name, None)

    found = field("tool") if field("layer") == "http" else field("layer")
    if found == "bpf" and field("lookup") is not None:
        return "lookup"
    return found if isinstance(found, str) and found in _KINDS else None


Measure = Annotated[
    Annotated[Program, Tag("bpf")]
    | Annotated[Lookup, Tag("lookup")]
    | Annotated[Frames, Tag("veth")]
    | Annotated[Wrk, Tag("wrk")]
    | Annotated[OpenLoop, Tag("open-loop")]
    | Annotated[Connect, Tag("connect")]
    | Annotated[Search, Tag("search")]
    | Annotated[Download, Tag("download")]
    | Annotated[FirstSeconds, Tag("first-seconds")],
    Discriminator(
        _kind,
        custom_error_type="measure_kind",
        custom_error_message=f"is no known measure: layer bpf or veth, or layer http with tool {', '.join(_TOOLS)}",
    ),
]
"""What is measured: a mapping whose ``layer``, and in layer http whose ``tool``, says how."""
