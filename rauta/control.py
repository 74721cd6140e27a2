"""How rautactl and a running router talk: JSON, a line each way, over a Unix socket that is root's alone.

    {"command": "drain", "backend": "web-1"}    →  {"ok": {...}}
                                                or {"error": {"tried": ..., "happened": ..., "advice": ...}}

A command that goes on says so by {"ok": null, "stream": true}; then come lines {"item": ...} until either side hangs
up. Who asks does not wait for longer than a router takes; who does not read what it asked for is hung up on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from rauta.errors import RautaError

__all__ = ["Handler", "ask", "serve", "stream"]

Handler: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[Any]]
"""Answers a command's arguments with what JSON can say, or with an async iterator of such."""

_LONGEST = 1 << 16
_PATIENCE = 60.0
_UNREAD = 1 << 20


async def serve(path: Path, commands: Mapping[str, Handler]) -> asyncio.Server:
    """Listens at a path, in the place of what a killed process has left there. The caller closes the server."""
    path.unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        return await asyncio.start_unix_server(_Conversations(commands), path, limit=_LONGEST)
    finally:
        os.umask(before)


class _Conversations:
    """Who asks, one command each."""

    def __init__(self, commands: Mapping[str, Handler]) -> None:
        self._commands = commands

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(high=_UNREAD)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.TimeoutError):
                await self._answer(reader, writer)
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await asyncio.wait_for(reader.readline(), _PATIENCE)
        try:
            result = await self._done(line)
        except RautaError as error:
            told = {"tried": error.tried, "happened": error.happened, "advice": error.advice}
            await _say(writer, {"error": told})
            return
        if isinstance(result, AsyncIterator):
            await self._stream(result, reader, writer)
        else:
            await _say(writer, {"ok": result})

    async def _done(self, line: bytes) -> Any:
        try:
            asked = json.loads(line)
            command = asked.pop("command")
        except (ValueError, KeyError, AttributeError) as error:
            raise RautaError("reading a command", "it is no JSON mapping with a `command`") from error
        if command not in self._commands:
            known = ", ".join(self._commands)
            raise RautaError(f"doing {command!r}", "this router does not know that", f"It knows: {known}.")
        return await self._commands[command](asked)

    async def _stream(
        self, items: AsyncIterator[Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        gone = asyncio.ensure_future(reader.read(1))  # who asks says nothing more, until it hangs up
        try:
            await _say(writer, {"ok": None, "stream": True})
            while True:
                item = asyncio.ensure_future(anext(items))
                await asyncio.wait({item, gone}, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    item.cancel()
                    return
                await asyncio.wait_for(_say(writer, {"item": item.result()}), _PATIENCE)
        except StopAsyncIteration:
            return
        finally:
            gone.cancel()
            await items.aclose()  # type: ignore[attr-defined]


async def _say(writer: asyncio.StreamWriter, message: Mapping[str, Any]) -> None:
    writer.write(json.dumps(message).encode() + b"\n")
    await writer.drain()


# ---- who asks -------------------------------------------------------------------------------------------


def ask(path: Path, command: str, **arguments: Any) -> Any:
    """What the router that listens there answers. RautaError is the router's, or says that none listens."""
    with contextlib.closing(_lines(path, command, arguments)) as lines:
        return next(lines)["ok"]


def stream(path: Path, command: str, **arguments: Any) -> Generator[Any, None, None]:
    """The items that come, until the caller closes the iterator or the router ends. RautaError as `ask`."""
    with contextlib.closing(_lines(path, command, arguments)) as lines:
        next(lines)
        for line in lines:
            yield line["item"]


def _lines(path: Path, command: str, arguments: Mapping[str, Any]) -> Generator[dict[str, Any], None, None]:
    tried = f"asking the router at {path}"
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise RautaError(
                tried, "no router listens there", "Is it running? `rauta run -c FILE` starts it."
            ) from error
        except PermissionError as error:
            raise RautaError(tried, "the socket is root's alone", "Run as root.") from error
        sock.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
        with sock.makefile("rb") as file:
            for line in file:
                said = json.loads(line)
                if "error" in said:
                    raise RautaError(said["error"]["tried"], said["error"]["happened"], said["error"]["advice"])
                yield said
    raise RautaError(tried, "it has hung up", "Its log says why.")
