"""The refusal rule: figures are compared only if what they depend on besides the code was the same.

Numbers of two runs may be put side by side if kernel, CPU, hypervisor, BPF settings, mitigations, offloads and the
measuring tools were the same; the revision may differ, since that is usually the question. Within them, two metrics are
the same only if their *identity* is: measure, quantity, unit, direction, layer, instrument, contender and parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lab.errors import NotComparable

DECISIVE = ("kernel.release", "kernel.machine", "cpu", "bpf", "mitigations", "tools", "sysctls", "python")
"""fields of the environment, dotted; of a mapping every field in it"""
IDENTITY = ("measure", "quantity", "unit", "better", "layer", "instrument", "contender", "cell")
"""fields of an entry of ``metrics`` in run.json that make it the same metric"""


@dataclass(frozen=True)
class Difference:
    """A field that differs, and how."""

    field: str
    first: object
    second: object

    def __str__(self) -> str:
        return f"{self.field} differs ({self.first} and {self.second})"


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """Which decisive fields of two environments differ, in the order of DECISIVE."""
    return [found for field in DECISIVE for found in _differing(field, _at(first, field), _at(second, field))]


def refuse(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """Make sure that two runs may be compared.

    Args:
        first: the content of run.json.
        second: likewise.

    Raises:
        NotComparable: naming every field that differs.
    """
    found = differences(first["environment"], second["environment"])
    if found:
        tried = f"comparing {first['id']} with {second['id']}"
        advice = "Run both on the same machine, or look at each by itself with `python -m lab show`."
        raise NotComparable(tried, "; ".join(map(str, found)), advice)


def identity(metric: Mapping[str, Any]) -> tuple[object, ...]:
    """What makes an entry of ``metrics`` the same metric in two runs."""
    return tuple(str(metric[field]) for field in IDENTITY)


def _at(environment: Mapping[str, Any], field: str) -> Any:
    node: Any = environment
    for step in field.split("."):
        node = node.get(step) if isinstance(node, Mapping) else None
    return node


def _differing(field: str, first: object, second: object) -> Iterator[Difference]:
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for name in sorted({*first, *second}):
            yield from _differing(f"{field}.{name}", first.get(name), second.get(name))
    elif first != second:
        yield Difference(field, first, second)
