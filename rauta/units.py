"""Durations and shares as people write them in files: `300ms`, `5m`, `10%`. Types for pydantic models."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

__all__ = ["SECONDS", "Duration", "Share", "split"]

SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
"""how long the units of durations are"""

_QUANTITY = re.compile(r"\s*(-?[0-9][0-9_]*(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def split(value: object) -> tuple[float, str]:
    """A number and its unit, which may be none. ValueError if it is neither a number nor the text of one."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value), ""
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not a number with a unit")
    return float(match[1]), match[2]


def _parse_duration(value: object) -> float:
    number, unit = split(value)
    if unit not in SECONDS or number < 0:
        raise ValueError(f"{value!r} is not a duration (allowed: a number with {', '.join(SECONDS)})")
    return number * SECONDS[unit]


def _written(seconds: float) -> str:
    """As it can be read again."""
    return f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"


def _parse_share(value: object) -> float:
    text = value.strip() if isinstance(value, str) else value
    number, unit = split(text.removesuffix("%") if isinstance(text, str) else text)
    share = number / 100 if isinstance(text, str) and text.endswith("%") else number
    if unit or not 0 <= share <= 1:
        raise ValueError(f"{value!r} is not a share (allowed: 0% to 100%, or 0 to 1)")
    return share


Duration = Annotated[
    float,
    BeforeValidator(_parse_duration),
    PlainSerializer(_written, str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?(ns|us|ms|s|m|h)$", "examples": ["300ms"]}),
]
"""Seconds, written as `300ms` or `5m`."""

Share = Annotated[
    float, BeforeValidator(_parse_share), WithJsonSchema({"type": ["string", "number"], "examples": ["1%"]})
]
"""0 to 1, written as `5%` or `0.05`."""
