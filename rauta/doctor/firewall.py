"""Rules that drop what connection tracking calls invalid: nftables' own, and those of iptables.

A backend never sees the SYN of a connection that the router has answered, so to its connection tracking the first
packet is one in mid-connection. Rules are read with nft(8) and iptables-save(8), where these are installed: what they
print is made to be read by programs, the kernel's encoding is not."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

from rauta.errors import RautaError

__all__ = ["dropping_invalid", "in_iptables", "in_nftables"]

_SECONDS = 10.0
_STATE = {"ct": {"key": "state"}}
_INVALID = "invalid"
_ENDS = {"drop", "reject"}


def dropping_invalid() -> list[str] | None:
    """The rules, each as one would look for it, that drop invalid packets in this network namespace.

    None if neither program is there to ask. RautaError if one of them refuses.
    """
    found: list[str] = []
    if nft := shutil.which("nft"):
        found += in_nftables(json.loads(_output(nft, "-j", "list", "ruleset") or "{}"))
    saves = [path for name in ("iptables-save", "iptables-legacy-save") if (path := shutil.which(name))]
    for save in saves:
        found += in_iptables(_output(save))
    return list(dict.fromkeys(found)) if nft or saves else None


def in_nftables(ruleset: Mapping[str, Any]) -> Iterator[str]:
    """In what `nft -j list ruleset` prints: the family, table and chain of each such rule (libnftables-json(5))."""
    for entry in ruleset.get("nftables", ()):
        rule = entry.get("rule")
        if rule and _drops(rule["expr"]):
            yield f"nft {rule['family']} {rule['table']} {rule['chain']}"


def in_iptables(saved: str) -> Iterator[str]:
    """In what iptables-save prints."""
    for line in saved.splitlines():
        states = re.search(r"^-A .*(?<!! )--(?:ct)?state (\S+) .*-j (?:DROP|REJECT)", line)
        if states and "INVALID" in states[1].split(","):
            yield f"iptables {line}"


def _drops(statements: list[Any]) -> bool:
    """Whether a rule's statements come to an end for packets that are invalid."""
    named = [one for one in statements if isinstance(one, dict)]
    for number, statement in enumerate(named):
        match, table = statement.get("match"), statement.get("vmap")
        if match and match["left"] == _STATE and match["op"] in ("==", "in") and _names_invalid(match["right"]):
            return any(_ENDS & later.keys() for later in named[number:])
        if table and table["key"] == _STATE and isinstance(table["data"], dict):
            return any(_names_invalid(key) and _ENDS & end.keys() for key, end in table["data"].get("set", ()))
    return False


def _names_invalid(value: Any) -> bool:
    if isinstance(value, dict):
        return _names_invalid(value.get("set", []))
    return value == _INVALID or (isinstance(value, list) and any(map(_names_invalid, value)))


def _output(*argv: str) -> str:
    tried = " ".join(argv)
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RautaError(tried, str(error), "Look at the rules by hand.") from error
    if done.returncode:
        raise RautaError(tried, done.stderr.strip() or f"exit status {done.returncode}", "Run as root.")
    return done.stdout
