"""The header `traceparent`, by which a request says which trace it is part of (W3C Trace Context, level 1).

Whatever is not exactly as the recommendation has it is no parent: the request is then traced as if it said nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Parent", "of_head", "parse"]

_NAME = b"traceparent"
_FORM = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_SAMPLED = 0x01
_VERSION = b"00"
_NO_VERSION = b"ff"


@dataclass(frozen=True, slots=True)
class Parent:
    """The trace that a request is part of, the span that it comes from, and whether that one is recorded."""

    trace_id: int
    span_id: int
    sampled: bool


def parse(value: bytes) -> Parent | None:
    """What a header's value says; None if it is invalid.

    Of a version that is not known yet, what it has in common with version 00 counts (section 4.3 there).
    """
    found = _FORM.fullmatch(value)
    if found is None:
        return None
    version, trace, span, flags, more = found.groups()
    if version == _NO_VERSION or (version == _VERSION and more is not None):
        return None
    parent = Parent(int(trace, 16), int(span, 16), bool(int(flags, 16) & _SAMPLED))
    return parent if parent.trace_id and parent.span_id else None


def of_head(head: bytes) -> Parent | None:
    """What the head of a request says, whatever follows it; None if it says nothing, or has more than one such line."""
    lines = head.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    named = (line.partition(b":") for line in lines)
    values = [value.strip(b" \t") for name, _, value in named if name.lower() == _NAME]
    return parse(values[0]) if len(values) == 1 else None
