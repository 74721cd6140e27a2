"""The arguments of a command that has come over the control socket: each is read with its type and its bounds.

    asked = Asked("flows", fields, "client", "limit")           RautaError if there are others
    asked.whole("limit", default=50, least=0, most=1000)

What is wrong is a RautaError that names the argument: whoever writes to the socket gets it as an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address
from typing import Any

from rauta.errors import RautaError

__all__ = ["Asked", "ClientName", "parse_client"]

ClientName = tuple[IPv4Address, int]
"""A client's address and port; the port is 0 if all are meant."""

_LONGEST = 4096  # characters
_MOST_TEXTS = 128
_MAX_PORT = 65535


class Asked:
    """The arguments of one command."""

    def __init__(self, command: str, fields: Mapping[str, Any], *names: str) -> None:
        """RautaError if there is an argument that is none of these names."""
        self._tried = f"reading the arguments of {command!r}"
        self._fields = fields
        if unknown := sorted(fields.keys() - set(names)):
            known = f"It takes: {', '.join(names)}." if names else "It takes none."
            raise RautaError(self._tried, f"it has no argument {unknown[0][:80]!r}", known)

    def text(self, name: str, default: str | None = None) -> str | None:
        """A text of at most 4,096 characters that can be written as bytes; what `surrogateescape` makes counts."""
        value = self._fields.get(name)
        if value is None:
            return default
        if not _is_text(value):
            raise self._wrong(name, f"a text of at most {_LONGEST} characters")
        return str(value)

    def needed(self, name: str, advice: str) -> str:
        """The same of one that must be there."""
        value = self.text(name)
        if not value:
            raise RautaError(self._tried, f"{name} is missing", advice)
        return value

    def texts(self, name: str) -> list[str]:
        """A list of texts; empty if there is none."""
        value = self._fields.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or len(value) > _MOST_TEXTS or not all(map(_is_text, value)):
            raise self._wrong(name, f"a list of at most {_MOST_TEXTS} texts")
        return value

    def whole(self, name: str, *, default: int, least: int, most: int) -> int:
        """A whole number within bounds."""
        value = self._fields.get(name)
        if value is None:
            return default
        if type(value) is not int or not least <= value <= most:
            raise self._wrong(name, f"a whole number, {least} to {most}")
        return value

    def number(self, name: str, *, default: float, least: float, most: float) -> float:
        """A number within bounds."""
        value = self._fields.get(name)
        if value is None:
            return default
        if type(value) not in (int, float) or not least <= value <= most:
            raise self._wrong(name, f"a number, {least} to {most}")
        return float(value)

    def client(self, name: str = "client") -> ClientName | None:
        """An address with or without a port; None if there is none."""
        value = self.text(name)
        return None if value is None else parse_client(value)

    def _wrong(self, name: str, wanted: str) -> RautaError:
        return RautaError(self._tried, f"{name} is wrong", f"It is {wanted}.")


def parse_client(text: str) -> ClientName:
    """What "198.18.0.7" or "198.18.0.7:40000" names. RautaError if it is neither."""
    address, colon, port = text.partition(":")
    try:
        found = IPv4Address(address)
    except ValueError:
        raise _no_client(text) from None
    if not colon:
        return found, 0
    if not (port.isascii() and port.isdecimal() and len(port) <= len(str(_MAX_PORT)) and 0 < int(port) <= _MAX_PORT):
        raise _no_client(text)
    return found, int(port)


def _no_client(text: str) -> RautaError:
    return RautaError(
        f"looking for the client {text[:80]!r}",
        "that is no IPv4 address, with or without a port",
        "Say 198.18.0.7, or 198.18.0.7:40000.",
    )


def _is_text(value: object) -> bool:
    if not isinstance(value, str) or len(value) > _LONGEST:
        return False
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True
