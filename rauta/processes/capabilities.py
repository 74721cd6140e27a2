"""What the calling thread may do (capabilities(7)), so that what is missing has a name before anything is tried.

Not the user decides but these: a root in a container may have none of them, and a user of its own all that it takes.
"""

from __future__ import annotations

from pathlib import Path

from rauta.errors import RautaError

__all__ = ["held", "require"]

_NUMBERS = {  # linux/capability.h
    "CAP_NET_ADMIN": 12,
    "CAP_NET_RAW": 13,
    "CAP_SYS_ADMIN": 21,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}
_IMPLIED = {"CAP_PERFMON", "CAP_BPF"}  # by CAP_SYS_ADMIN, of which they were a part before Linux 5.8


def held() -> frozenset[str]:
    """Which of those that RAUTA knows are effective."""
    lines = Path("/proc/thread-self/status").read_text(encoding="ascii").splitlines()
    bits = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    found = {name for name, number in _NUMBERS.items() if bits >> number & 1}
    return frozenset(found | _IMPLIED if "CAP_SYS_ADMIN" in found else found)


def require(tried: str, *names: str) -> None:
    """RautaError that says which of these are missing, if any is."""
    missing = [name for name in names if name not in held()]
    if missing:
        happened = f"this process does not have {' and '.join(missing)}"
        raise RautaError(tried, happened, f"Run as root, or give it {', '.join(names)} (docs/running.md).")
