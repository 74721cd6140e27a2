"""What brings requests from clients to clusters: the router, and what it is compared with.

A contender is a module with a class that has a ``name`` and ``start``; see ``lab.interfaces.Contender``.
"""

from __future__ import annotations

from lab.contenders.direct import Direct
from lab.contenders.rauta import Rauta
from lab.interfaces import Contender

__all__ = ["NAMES", "find"]

_ALL: dict[str, Contender] = {contender.name: contender for contender in (Direct(), Rauta())}

NAMES = tuple(_ALL)


def find(name: str) -> Contender:
    """The contender of that name, or that a label such as ``direct#2`` stands for. KeyError if there is none."""
    return _ALL[name.partition("#")[0]]
