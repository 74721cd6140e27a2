"""The refusal rule: figures are compared only if what they depend on besides the code was the same.

Numbers of two runs may be put side by side if kernel, CPU, hypervisor, BPF settings, mitigations, offloads and the
measuring tools were the same; the revision may differ, since that is usually the question. Within them, two metrics of
one name are the same only if their *identity* is: quantity, unit, direction, layer, instrument and its version, the
measure's settings but its duration, contender and its settings, parameters, and the network and servers around them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lab.errors import NotComparable

if TYPE_CHECKING:
    from lab.results import Described

DECISIVE = ("kernel.release", "kernel.machine", "cpu", "bpf", "mitigations", "tools", "sysctls", "python")
"""fields of the environment, dotted; of a mapping every field in it"""
SAME_RUN = (*DECISIVE, "git.revision")
"""what must not differ within one run, either, when it is resumed"""
SURROUNDINGS = ("topology", "servers", "routing", "background")
"""fields of a scenario that all its metrics depend on"""
REPEATED = ("duration",)
"""fields of a measure that say how long it is taken; what is measured is the same"""


@dataclass(frozen=True)
class Difference:
    """A field that differs, and how."""

    field: str
    first: object
    second: object

    def __str__(self) -> str:
        return f"{self.field} differs ({self.first} and {self.second})"


def differences(
    first: Mapping[str, Any], second: Mapping[str, Any], fields: Sequence[str] = DECISIVE
) -> list[Difference]:
    """Which of some fields of two environments differ, in the order of ``fields``, and then the interfaces.

    These were noted for each contender and host; only those count that both runs had. Another topology makes other
    metrics, see ``identity``.
    """
    found = [one for field in fields for one in differing(field, _at(first, field), _at(second, field))]
    return [*found, *_interfaces(first.get("interfaces", {}), second.get("interfaces", {}))]


def _interfaces(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Difference]:
    for contender in (name for name in first if name in second):
        for host in (name for name in first[contender] if name in second[contender]):
            field = f"interfaces.{contender}.{host}"
            yield from differing(field, first[contender][host], second[contender][host])


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


def identity(cell: Mapping[str, Any], measure: str, contender: str, described: Described) -> dict[str, Any]:
    """What makes the figures of a measure of a contender the same metric in two runs, ready for ``differing``.

    Args:
        cell: all fields of the scenario in that cell of its matrix.
        measure: its name there.
        contender: or reference.
        described: the measure, as results describe it.
    """
    settings = {name: value for name, value in cell["measure"][measure].items() if name not in REPEATED}
    return {
        "layer": described.layer,
        "instrument": described.instrument,
        "measure": settings,
        "contender": cell.get("settings", {}).get(contender.partition("#")[0], {}),
        **{field: cell.get(field) for field in SURROUNDINGS},
        "params": cell.get("params", {}),
    }


def _at(environment: Mapping[str, Any], field: str) -> Any:
    node: Any = environment
    for step in field.split("."):
        node = node.get(step) if isinstance(node, Mapping) else None
    return node


def differing(field: str, first: object, second: object) -> Iterator[Difference]:
    """Where two values differ, those of mappings field by field. ``field``: what the whole is called."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for name in sorted({*first, *second}):
            yield from differing(f"{field}.{name}".lstrip("."), first.get(name), second.get(name))
    elif first != second:
        yield Difference(field, first, second)
