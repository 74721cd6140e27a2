"""What ethtool(8) asks of an interface: the driver's name, and settings that are a number."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct

__all__ = ["GET_GRO", "GET_TX_CHECKSUMS", "SET_GRO", "driver", "setting"]

GET_TX_CHECKSUMS = 0x16  # linux/ethtool.h
GET_GRO, SET_GRO = 0x2B, 0x2C
_GET_DRIVER = 0x03
_SIOCETHTOOL = 0x8946  # linux/sockios.h
_DRIVER_BYTES = 196  # struct ethtool_drvinfo: a number, then the driver's name in 32 bytes


def setting(control: socket.socket, interface: str, command: int, value: int = 0) -> int:
    """One command with `struct ethtool_value`; the value that it holds afterwards.

    `control` is any socket of the interface's network namespace. OSError as the kernel gives it.
    """
    answer = _asked(control, interface, struct.pack("=II", command, value))
    return int(struct.unpack("=II", answer)[1])


def driver(control: socket.socket, interface: str) -> str:
    """The name of the interface's driver, such as "mlx5_core". OSError as the kernel gives it."""
    answer = _asked(control, interface, struct.pack("=I", _GET_DRIVER).ljust(_DRIVER_BYTES, b"\0"))
    return answer[4:36].rstrip(b"\0").decode(errors="replace")


def _asked(control: socket.socket, interface: str, command: bytes) -> bytes:
    buffer = ctypes.create_string_buffer(command, len(command))
    request = struct.pack("16sP", interface.encode(), ctypes.addressof(buffer)).ljust(40, b"\0")  # struct ifreq
    fcntl.ioctl(control, _SIOCETHTOOL, request)
    return buffer.raw
