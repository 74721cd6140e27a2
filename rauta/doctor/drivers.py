"""What a driver can do for XDP, asked of the kernel's generic netlink family "netdev" (Linux 6.3).

Asking is free. To attach a program and see would make some drivers start their queues again, and lose packets.
"""

from __future__ import annotations

import enum
import struct
import sys

from rauta.network import netlink

__all__ = ["XdpFeature", "xdp_features"]

_NETLINK_GENERIC = 16  # linux/netlink.h
_HEADER = struct.Struct("=BBH")  # struct genlmsghdr: command, version
_CONTROL, _GET_FAMILY = 16, 3  # GENL_ID_CTRL, CTRL_CMD_GETFAMILY
_FAMILY_ID, _FAMILY_NAME = 1, 2  # CTRL_ATTR_*
_DEV_GET = 1  # NETDEV_CMD_DEV_GET
_INTERFACE, _FEATURES = 1, 3  # NETDEV_A_DEV_*


class XdpFeature(enum.IntFlag):
    """`enum netdev_xdp_act` (linux/netdev.h)."""

    BASIC = 1
    """it runs programs natively, which may drop, pass and send back"""
    REDIRECT = 2
    """and send through other interfaces"""
    XMIT = 4
    """it sends what programs on other interfaces redirect to it"""


def xdp_features(interface: int) -> XdpFeature:
    """Of the interface of that index. OSError, ENOENT where the kernel cannot tell."""
    name = netlink.attribute(_FAMILY_NAME, b"netdev\0")
    family = _values(_CONTROL, _HEADER.pack(_GET_FAMILY, 1, 0) + name)[_FAMILY_ID]
    index = netlink.attribute(_INTERFACE, interface.to_bytes(4, sys.byteorder))
    found = _values(int.from_bytes(family, sys.byteorder), _HEADER.pack(_DEV_GET, 1, 0) + index)
    return XdpFeature(int.from_bytes(found[_FEATURES], sys.byteorder) & sum(XdpFeature))


def _values(family: int, request: bytes) -> dict[int, bytes]:
    message = next(netlink.ask(_NETLINK_GENERIC, family, request))
    return dict(netlink.attributes(message[_HEADER.size :]))
