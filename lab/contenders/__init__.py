"""What brings requests from clients to clusters: the router, and what it is compared with.

A contender is a folder (or a module) here that has ``CONTENDERS``, instances of classes that do what
``lab.interfaces.Contender`` says; to be here is enough to be found. docs/contenders.md shows how to add one.
"""

from __future__ import annotations

import importlib
import pkgutil

from lab.interfaces import Contender

__all__ = ["NAMES", "find"]


def _found() -> dict[str, Contender]:
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return {one.name: one for module in modules for one in getattr(module, "CONTENDERS", ())}


_ALL = _found()

NAMES = tuple(sorted(_ALL))


def find(name: str) -> Contender:
    """The contender of that name, or that a label such as ``direct#2`` stands for. KeyError if there is none."""
    return _ALL[name.partition("#")[0]]
