"""The HTTP server of the one page: real sockets on the loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from rauta.errors import RautaError
from rauta.prometheus import scraping

PAGE = b"one 1\n"


async def served(page: Callable[[], Awaitable[bytes]], client: Callable[[int], Awaitable[None]]) -> None:
    """Has a client talk to a server on a free port."""
    with_port = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = with_port.sockets[0].getsockname()[1]
    with_port.close()
    await with_port.wait_closed()
    close = await scraping.serve(page, "127.0.0.1", port)
    try:
        await client(port)
    finally:
        await close()
    with pytest.raises(OSError, match=r"refused|failed"):
        await asyncio.open_connection("127.0.0.1", port)


async def page() -> bytes:
    return PAGE


async def said(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return await reader.read()
    finally:
        writer.close()


def answer(request: bytes, of: Callable[[], Awaitable[bytes]] = page) -> bytes:
    found: list[bytes] = []

    async def client(port: int) -> None:
        found.append(await said(port, request))

    asyncio.run(served(of, client))
    return found[0]


def test_the_page_is_sent_whole() -> None:
    assert answer(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n") == (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: 6\r\n"
        b"Connection: close\r\n\r\none 1\n"
    )


def test_head_gets_its_head() -> None:
    said = answer(b"HEAD /metrics HTTP/1.1\r\n\r\n")
    assert said.endswith(b"\r\n\r\n")
    assert b"Content-Length: 6\r\n" in said


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET /metrics?x=1 HTTP/1.0", b"200"),
        (b"GET /healthz HTTP/1.1", b"200"),
        (b"GET / HTTP/1.1", b"404"),
        (b"GET /metrics/ HTTP/1.1", b"404"),
        (b"POST /metrics HTTP/1.1", b"405"),
        (b"nonsense", b"400"),
        (b"GET /metrics HTTP/2", b"400"),
        (b"", b"400"),
    ],
)
def test_other_requests_get_what_they_should(request_line: bytes, status: bytes) -> None:
    assert answer(request_line + b"\r\n\r\n").split(b" ")[1] == status


def test_a_head_has_its_bounds() -> None:
    assert answer(b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n").split(b" ")[1] == b"431"


def test_who_says_nothing_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scraping, "_HEAD_SECONDS", 0.05)
    assert answer(b"GET /metrics HTTP/1.1\r\n") == b""


def test_a_page_that_cannot_be_made_is_an_error() -> None:
    async def broken() -> bytes:
        raise RautaError("reading", "it is gone")

    assert answer(b"GET /metrics HTTP/1.1\r\n\r\n", broken).split(b" ")[1] == b"500"


def test_one_page_is_made_at_a_time() -> None:
    """All that ask get one."""
    under_way, most = 0, 0

    async def slow() -> bytes:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        return PAGE

    async def clients(port: int) -> None:
        answers = await asyncio.gather(*(said(port, b"GET /metrics HTTP/1.1\r\n\r\n") for _ in range(8)))
        assert all(one.endswith(PAGE) for one in answers)

    asyncio.run(served(slow, clients))
    assert most == 1


def test_there_are_only_so_many_clients() -> None:
    """Those who are too many hear so at once; the others are still served."""

    async def clients(port: int) -> None:
        waiting = [await asyncio.open_connection("127.0.0.1", port) for _ in range(16)]
        await asyncio.sleep(0)
        assert (await said(port, b"")).split(b" ")[1] == b"503"
        for reader, writer in waiting:
            writer.write(b"GET /healthz HTTP/1.1\r\n\r\n")
            assert (await reader.read()).split(b" ")[1] == b"200"
            writer.close()

    asyncio.run(served(page, clients))


def test_an_address_that_is_taken_is_said() -> None:
    async def clients(port: int) -> None:
        with pytest.raises(RautaError, match=f"listening on 127.0.0.1:{port} for Prometheus"):
            await scraping.serve(page, "127.0.0.1", port)

    asyncio.run(served(page, clients))
