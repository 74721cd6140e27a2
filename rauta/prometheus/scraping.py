"""An HTTP server for one page: GET /metrics, and /healthz, which says that the process answers.

Everything is bounded: the size of a request's head and the time for it, how many clients there are at once, how long
one may take to read. The page is made in a thread, by one client at a time; further ones wait for theirs. Each answer
ends its connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from rauta.errors import RautaError
from rauta.prometheus.text import CONTENT_TYPE

__all__ = ["serve"]

logger = logging.getLogger(__name__)

Page = Callable[[], Awaitable[bytes]]

_HEAD_BYTES = 8192
_HEAD_SECONDS = 5.0
_READ_SECONDS = 10.0  # Prometheus' own patience with a scrape, unless it is told otherwise
_CLIENTS = 16
_PLAIN = "text/plain; charset=utf-8"


async def serve(page: Page, address: str, port: int) -> Callable[[], Awaitable[None]]:
    """Serves a page at an address until what is returned is called. RautaError if it cannot listen there."""
    server = _Server(page)
    try:
        listening = await asyncio.start_server(server.client, address, port, limit=_HEAD_BYTES)
    except OSError as error:
        advice = "Give `metrics` another address or port in the configuration."
        raise RautaError(f"listening on {address}:{port} for Prometheus", str(error.strerror), advice) from error

    async def close() -> None:
        listening.close()
        for task in tuple(server.tasks):
            task.cancel()
        await asyncio.gather(*server.tasks, return_exceptions=True)
        await listening.wait_closed()

    return close


class _Server:
    def __init__(self, page: Page) -> None:
        self._page = page
        self._turn = asyncio.Lock()
        self.tasks: set[asyncio.Task[None]] = set()

    async def client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            with contextlib.suppress(OSError, EOFError, TimeoutError):
                await self._answer(reader, writer)
        finally:
            self.tasks.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self.tasks) > _CLIENTS:
            answer = _answer(HTTPStatus.SERVICE_UNAVAILABLE)
        else:
            try:
                async with asyncio.timeout(_HEAD_SECONDS):
                    head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.LimitOverrunError:
                answer = _answer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            else:
                answer = await self._answer_to(head)
        writer.write(answer)
        async with asyncio.timeout(_READ_SECONDS):
            await writer.drain()

    async def _answer_to(self, head: bytes) -> bytes:
        words = head.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _answer(HTTPStatus.BAD_REQUEST)
        method, path = words[0], words[1].partition(b"?")[0]
        if path not in (b"/metrics", b"/healthz"):
            return _answer(HTTPStatus.NOT_FOUND)
        if method not in (b"GET", b"HEAD"):
            return _answer(HTTPStatus.METHOD_NOT_ALLOWED, "Allow: GET, HEAD\r\n")
        answer = _answer(HTTPStatus.OK) if path == b"/healthz" else await self._metrics()
        return answer if method == b"GET" else answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"

    async def _metrics(self) -> bytes:
        try:
            async with self._turn:
                return _answer(HTTPStatus.OK, body=await self._page(), type=CONTENT_TYPE)
        except RautaError as error:
            logger.error("no figures for Prometheus: %s", error)
            return _answer(HTTPStatus.INTERNAL_SERVER_ERROR)


def _answer(status: HTTPStatus, fields: str = "", *, body: bytes = b"", type: str = _PLAIN) -> bytes:
    body = body or f"{status.phrase}\n".encode()
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {type}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}{fields}Connection: close\r\n\r\n".encode() + body
