"""What can be measured, by layer: the program alone (bpf), and requests of real clients to real servers (http)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Tag

from lab.measure.open_loop import OpenLoop
from lab.measure.program import Program
from lab.measure.wrk import Wrk

__all__ = ["Measure", "OpenLoop", "Program", "Wrk"]

_KINDS = ("bpf", "wrk", "open-loop")


def _kind(measure: Any) -> str | None:
    """What says which measure it is: the tool in layer http, else the layer."""

    def field(name: str) -> object:
        return measure.get(name) if isinstance(measure, Mapping) else getattr(measure, name, None)

    found = field("tool") if field("layer") == "http" else field("layer")
    return found if isinstance(found, str) and found in _KINDS else None


Measure = Annotated[
    Annotated[Program, Tag("bpf")] | Annotated[Wrk, Tag("wrk")] | Annotated[OpenLoop, Tag("open-loop")],
    Discriminator(
        _kind,
        custom_error_type="measure_kind",
        custom_error_message="is no known measure: layer bpf, or layer http with the tool wrk or open-loop",
    ),
]
"""What is measured: a mapping whose ``layer``, and in layer http whose ``tool``, says how."""
