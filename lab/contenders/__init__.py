"""What brings requests from clients to clusters: the router, and what it is compared with.

A contender is a folder (or a module) with a class that has a ``name`` and ``start``; see ``lab.interfaces.Contender``
and docs/contenders.md.
"""

from __future__ import annotations

from lab.contenders.bare import Bare
from lab.contenders.direct import Direct
from lab.contenders.envoy import Envoy
from lab.contenders.haproxy import Haproxy
from lab.contenders.nftables import Nftables
from lab.contenders.nginx import Nginx
from lab.contenders.rauta import Rauta
from lab.interfaces import Contender

__all__ = ["NAMES", "find"]

_CONTENDERS: tuple[Contender, ...] = (
    Direct(),
    Direct("direct-offloads"),
    Rauta(),
    Nginx(),
    Haproxy(),
    Envoy(),
    Nftables(),
    Bare("xdp-tx"),
    Bare("xdp-drop"),
)
_ALL = {contender.name: contender for contender in _CONTENDERS}

NAMES = tuple(_ALL)


def find(name: str) -> Contender:
    """The contender of that name, or that a label such as ``direct#2`` stands for. KeyError if there is none."""
    return _ALL[name.partition("#")[0]]
