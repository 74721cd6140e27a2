"""How rautactl and a running router talk: JSON, a line each way, over a Unix socket that is root's alone.

    {"command": "drain", "backend": "web-1"}    →  {"ok": {...}}
                                                or {"error": {"tried": ..., "happened": ..., "advice": ...}}

A command that goes on says so by {"ok": null, "stream": true}; then come lines {"item": ...} until either side hangs
up. Who asks does not wait for longer than a router takes; who does not read what it asked for is hung up on.

Whoever can open the socket is root, and could do worse; but a mistake of his must not harm the router. So a command is
one line of 64 KiB at most, no more than so many are answered at a time, a long answer is written piece by piece between
which the event loop does its other work, and what goes wrong in a command ends that command and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import select
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from rauta.errors import RautaError

__all__ = ["MOST_AT_ONCE", "Handler", "Items", "Server", "answers", "ask", "serve", "stream"]

Items: TypeAlias = AsyncIterator[Sequence[Any]]
"""What a command that goes on says: some items at a time, of what JSON can say. `aclose` ends it."""

Handler: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[Any]]
"""Answers a command's arguments with what JSON can say, or with `Items`."""

MOST_AT_ONCE = 32
"""commands that a router answers at a time, streams included"""

_LONGEST = 1 << 16
_PATIENCE = 60.0
_UNREAD = 1 << 20
_PIECE = 256  # elements of a list that are written at a time
_CHUNK = 1 << 16

logger = logging.getLogger(__name__)


class Server:
    """What listens, until it is closed."""

    def __init__(self, listening: asyncio.Server, conversations: _Conversations) -> None:
        """For `serve`."""
        self._listening = listening
        self._conversations = conversations

    async def close(self) -> None:
        """Hangs up on everybody, and returns when no command is under way any more."""
        self._listening.close()
        await self._conversations.end()


async def serve(path: Path, commands: Mapping[str, Handler]) -> Server:
    """Listens at a path, in the place of what a killed process has left there. The caller closes the server."""
    path.unlink(missing_ok=True)
    conversations = _Conversations(commands)
    before = os.umask(0o177)
    try:
        return Server(await asyncio.start_unix_server(conversations, path, limit=_LONGEST), conversations)
    finally:
        os.umask(before)


class _Conversations:
    """Who asks, one command each."""

    def __init__(self, commands: Mapping[str, Handler]) -> None:
        self._commands = commands
        self._open: set[asyncio.Task[Any]] = set()

    async def end(self) -> None:
        """Ends them all."""
        for task in self._open:
            task.cancel()
        if self._open:
            await asyncio.wait(self._open)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(high=_UNREAD)
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            with contextlib.suppress(ConnectionError, TimeoutError, asyncio.CancelledError):
                await self._answer(reader, writer)
        finally:
            self._open.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await self._line(reader)
            if not line:  # somebody only wanted to know whether a router listens
                return
            result = await self._done(line)
        except RautaError as error:
            await _say(writer, _told(error))
            return
        if isinstance(result, AsyncIterator):
            await self._stream(result, reader, writer)
        else:
            await _say(writer, {"ok": result})

    async def _line(self, reader: asyncio.StreamReader) -> bytes:
        if len(self._open) > MOST_AT_ONCE:
            advice = "End some of them: who follows, or watches, or reads events?"
            raise RautaError("asking the router", f"it answers {MOST_AT_ONCE} commands already", advice)
        try:
            return await asyncio.wait_for(reader.readline(), _PATIENCE)
        except ValueError as error:  # asyncio's word for it
            raise RautaError("reading a command", f"it is longer than {_LONGEST} bytes") from error

    async def _done(self, line: bytes) -> Any:
        command, asked = _parsed(line)
        if command not in self._commands:
            known = ", ".join(self._commands)
            raise RautaError(f"doing {command!r}", "this router does not know that", f"It knows: {known}.")
        try:
            return await self._commands[command](asked)
        except RautaError:
            raise
        except Exception as error:
            logger.exception("command failed", extra={"command": command})
            happened = f"a mistake of RAUTA's own ({type(error).__name__}: {error})"
            raise RautaError(f"doing {command!r}", happened, "The router's log has more.") from error

    async def _stream(self, items: Items, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gone = asyncio.ensure_future(reader.read(1))  # who asks says nothing more, until it hangs up
        try:
            await _say(writer, {"ok": None, "stream": True})
            while (some := await _next(items, gone)) is not None:
                await _write(writer, _item_lines(some))
        except RautaError as error:
            await _say(writer, _told(error))
        finally:
            gone.cancel()
            await items.aclose()  # type: ignore[attr-defined]


async def _next(items: Items, gone: asyncio.Future[bytes]) -> Sequence[Any] | None:
    """The next items; None if there are no more, or nobody to hear them."""
    coming: asyncio.Future[Any] = asyncio.ensure_future(anext(items, None))
    try:
        both: set[asyncio.Future[Any]] = {coming, gone}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        return coming.result() if coming.done() and not gone.done() else None
    finally:
        if not coming.done():
            coming.cancel()
            await asyncio.wait({coming})
        if not coming.cancelled():
            coming.exception()  # else Python says that nobody has asked


def _parsed(line: bytes) -> tuple[str, dict[str, Any]]:
    """A command and its arguments. RautaError if the line is none."""
    try:
        asked = json.loads(line)
        command = asked.pop("command")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise RautaError("reading a command", "it is no JSON mapping with a `command`") from error
    if not isinstance(command, str):
        raise RautaError("reading a command", "its `command` is no text")
    return command, asked


# ---- what is said ---------------------------------------------------------------------------------------


def _told(error: RautaError) -> dict[str, Any]:
    return {"error": {"tried": error.tried, "happened": error.happened, "advice": error.advice}}


def _line_of(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


async def _say(writer: asyncio.StreamWriter, message: Mapping[str, Any]) -> None:
    await _write(writer, _pieces(message))


async def _write(writer: asyncio.StreamWriter, pieces: Iterator[bytes]) -> None:
    """Piece by piece, and other work in between. TimeoutError if nobody reads them."""
    for piece in pieces:
        writer.write(piece)
        await asyncio.wait_for(writer.drain(), _PATIENCE)
        await asyncio.sleep(0)


def _item_lines(items: Sequence[Any]) -> Iterator[bytes]:
    for start in range(0, len(items), _PIECE):
        yield b"".join(_line_of({"item": item}) for item in items[start : start + _PIECE])


def _pieces(message: Mapping[str, Any]) -> Iterator[bytes]:
    """A message as JSON: a long list is no single step, since nothing else runs while JSON is made."""
    answer = message.get("ok")
    if not isinstance(answer, list) or len(answer) <= _PIECE:
        yield _line_of(message)
        return
    for start in range(0, len(answer), _PIECE):
        part = json.dumps(answer[start : start + _PIECE])[1:-1]
        yield (part if start else f'{{"ok": [{part}').encode()
        yield b", " if start + _PIECE < len(answer) else b"]}\n"


# ---- who asks -------------------------------------------------------------------------------------------


def answers(path: Path) -> bool:
    """Whether a router listens at a path. RautaError if that cannot be seen."""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except PermissionError as error:
            raise _not_root(path) from error
        return True


def ask(path: Path, command: str, **arguments: Any) -> Any:
    """What the router that listens there answers. RautaError is the router's, or says that none listens."""
    with contextlib.closing(_lines(path, command, arguments)) as lines:
        return _first(path, lines)["ok"]


def stream(path: Path, command: str, *, reader: int | None = None, **arguments: Any) -> Generator[Any, None, None]:
    """The items that come, until the caller closes the iterator, or the router ends. RautaError as `ask`.

    `reader`: a descriptor to which the caller writes them; BrokenPipeError as soon as nobody reads it any more, which
    writing would only tell with the next item.
    """
    with contextlib.closing(_lines(path, command, arguments, reader)) as lines:
        _first(path, lines)
        for line in lines:
            yield line["item"]


def _first(path: Path, lines: Iterator[dict[str, Any]]) -> dict[str, Any]:
    for line in lines:
        return line
    raise RautaError(f"asking the router at {path}", "it has hung up", "Its log says why.")


def _lines(
    path: Path, command: str, arguments: Mapping[str, Any], reader: int | None = None
) -> Generator[dict[str, Any], None, None]:
    """What the router says, until it hangs up."""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            tried = f"asking the router at {path}"
            raise RautaError(
                tried, "no router listens there", "Is it running? `rauta run -c FILE` starts it."
            ) from error
        except PermissionError as error:
            raise _not_root(path) from error
        with contextlib.suppress(ConnectionError):  # hung up: what it said before that counts
            sock.sendall(_line_of({"command": command, **arguments}))
        for line in _received(sock, reader):
            said = json.loads(line)
            if "error" in said:
                raise RautaError(said["error"]["tried"], said["error"]["happened"], said["error"]["advice"])
            yield said


def _not_root(path: Path) -> RautaError:
    return RautaError(f"asking the router at {path}", "the socket is root's alone", "Run as root.")


def _received(sock: socket.socket, reader: int | None) -> Iterator[bytes]:
    """Whole lines. BrokenPipeError if nobody reads `reader` any more."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    if reader is not None:
        poll.register(reader, 0)
    begun: list[bytes] = []
    while True:
        ready = dict(poll.poll())
        if reader is not None and ready.get(reader, 0) & (select.POLLERR | select.POLLHUP):
            raise BrokenPipeError
        if sock.fileno() not in ready:
            continue
        try:
            data = sock.recv(_CHUNK)
        except ConnectionError:
            return
        if not data:
            return
        first, *rest = data.split(b"\n")
        begun.append(first)
        for part in rest:
            yield b"".join(begun)
            begun = [part]
