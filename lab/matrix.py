"""A scenario's parameters: a list of values makes a matrix, and each combination of values is a *cell*."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from rauta.files.mistakes import Location, Mistake

_PARAMETER = re.compile(r"\$\{([^}]*)\}")


def combinations(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The values of every cell, the last parameter varying fastest; one cell without parameters if there are none."""
    choices = [value if isinstance(value, list) else [value] for value in params.values()]
    return [dict(zip(params, values, strict=True)) for values in itertools.product(*choices)]


def varying(params: Mapping[str, Any]) -> list[str]:
    """Names of the parameters that have more than one value."""
    return [name for name, value in params.items() if isinstance(value, list) and len(value) > 1]


def label(cell: Mapping[str, Any]) -> str:
    """A cell in words: "routes 65,536, connections 32"; empty for the only one."""
    return ", ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in cell.items()
    )


def filled_in(data: dict[str, Any], values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Mistake]]:
    """The data with every ``${name}`` replaced by its value, and as mistakes the names that have none.

    ``params`` become those of this cell, ``profiles`` are left alone.
    """
    mistakes: list[Mistake] = []

    def fill(node: Any, path: Location) -> Any:
        if isinstance(node, Mapping):
            return {key: fill(value, (*path, key)) for key, value in node.items()}
        if isinstance(node, list):
            return [fill(item, (*path, index)) for index, item in enumerate(node)]
        if not isinstance(node, str):
            return node
        for name in _unknown(node, values):
            mistakes.append(
                Mistake(path, f"no parameter is called {name!r}", ", ".join(values) or "define it under `params`")
            )
        whole = _PARAMETER.fullmatch(node)
        if whole and whole[1] in values:
            return values[whole[1]]  # keeps its type
        return _PARAMETER.sub(lambda match: str(values.get(match[1], match[0])), node)

    untouched: dict[str, Any] = {"params": dict(values)} if "params" in data else {}
    untouched |= {"profiles": data["profiles"]} if "profiles" in data else {}
    return {
        **fill({key: value for key, value in data.items() if key not in ("params", "profiles")}, ()),
        **untouched,
    }, mistakes


def _unknown(text: str, values: Mapping[str, Any]) -> Iterator[str]:
    return (name for name in _PARAMETER.findall(text) if name not in values)
