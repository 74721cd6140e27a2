"""GRO off where XDP runs in generic mode.

There XDP comes after software GRO, and XDP_TX does not cut what GRO has merged: a merged packet would leave larger than
the link's MTU (net/core/dev.c, do_xdp_generic).
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from rauta.errors import RautaError
from rauta.network import ethtool

__all__ = ["gro_off", "has_gro", "set_gro"]


@contextmanager
def gro_off(interface: str) -> Iterator[None]:
    """Turns generic receive offload off for as long as the context lasts, then back as it was.

    Works on the namespace that the calling thread was in at the start, wherever it is at the end. RautaError if
    refused.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        before = _gro(control, interface, ethtool.GET_GRO)
        _gro(control, interface, ethtool.SET_GRO, 0)
        try:
            yield
        finally:
            _gro(control, interface, ethtool.SET_GRO, before)


def has_gro(interface: str) -> bool:
    """Whether generic receive offload is on, in the calling thread's network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        return bool(_gro(control, interface, ethtool.GET_GRO))


def set_gro(interface: str, *, on: bool) -> None:
    """Turns generic receive offload on or off. RautaError if refused."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        _gro(control, interface, ethtool.SET_GRO, int(on))


def _gro(control: socket.socket, interface: str, command: int, value: int = 0) -> int:
    """Reads or sets it; the value that it has afterwards."""
    try:
        return ethtool.setting(control, interface, command, value)
    except OSError as error:
        advice = "Generic XDP needs GRO off: run as root, or try `ethtool -K` by hand."
        raise RautaError(f"switching GRO of {interface}", str(error.strerror), advice) from error
