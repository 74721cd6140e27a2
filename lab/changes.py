"""What the command line changes in a scenario before it is read: ``--profile`` and ``--set``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from lab.errors import UsageError


def with_profile(path: Path, data: dict[str, Any], name: str) -> dict[str, Any]:
    """A scenario's data with one of its profiles applied.

    Raises:
        UsageError: it has no such profile; ``path`` names the file.
    """
    profiles = data.get("profiles")
    known = profiles if isinstance(profiles, Mapping) else {}
    if name not in known:
        allowed = f"Its profiles are: {', '.join(known)}." if known else "It has none."
        raise UsageError(f"applying the profile {name!r} to {path}", "it has no such profile", allowed)
    changes = known[name] if isinstance(known[name], Mapping) else {}
    plan = {key: changes[key] for key in ("rounds", "max_rounds", "timing", "warmup", "max_time") if key in changes}
    merged = {**data, "plan": {**mapping_or_empty(data.get("plan")), **plan}}
    if "params" in changes:
        merged["params"] = {**mapping_or_empty(data.get("params")), **mapping_or_empty(changes["params"])}
    return merged


def mapping_or_empty(value: object) -> dict[str, Any]:
    """A mapping's content; nothing of what is none, which validation will report."""
    return dict(value) if isinstance(value, Mapping) else {}


def with_override(data: Any, override: str) -> Any:
    """The data with one ``dotted.path=value`` applied.

    Raises:
        UsageError: it is none, or leads nowhere.
    """
    path, equals, text = override.partition("=")
    tried = f"applying --set {override}"
    if not equals or not path:
        raise UsageError(tried, "it is not of the form path=value", "For example: --set plan.rounds=3")
    try:
        value = YAML(typ="safe").load(text)
    except YAMLError as error:
        raise UsageError(tried, "the value is not YAML", str(error)) from None
    return _put(data, path.split("."), value, tried)


def _put(node: Any, path: Sequence[str], value: Any, tried: str) -> Any:
    """A copy of ``node`` with the value at a path; missing mappings on the way are made."""
    if not path:
        return value
    step, rest = path[0], path[1:]
    if isinstance(node, list):
        if not step.isdigit() or int(step) >= len(node):
            raise UsageError(tried, f"{step!r} is no index of a list of {len(node)}", "Indices count from 0.")
        return [_put(item, rest, value, tried) if number == int(step) else item for number, item in enumerate(node)]
    if node is not None and not isinstance(node, dict):
        raise UsageError(tried, f"there is nothing below {node!r} that {step!r} could name", "")
    before = node or {}
    return {**before, step: _put(before.get(step), rest, value, tried)}
