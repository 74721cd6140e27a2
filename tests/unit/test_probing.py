"""Single checks, of real servers on loopback that behave well, badly and not at all."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from rauta.checks.probing import HEAD_BYTES, Outcome, Result, Target, probe
from rauta.config import Backend, Health

Conduct = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
ADDRESS = "127.0.0.2"
PATIENT = 10.0
"""seconds, where no check is meant to take its timeout"""
SHORT = 0.3
"""seconds, where it is"""


def backend(port: int, name: str = "one", address: str = ADDRESS) -> Backend:
    """One on loopback, which a configuration must not have."""
    return Backend.model_construct(name=name, address=IPv4Address(address), port=port, weight=1)


def target(port: int, timeout: float = PATIENT, **health: object) -> Target:
    return Target.of(backend(port), Health.model_validate({"http": "/health", "timeout": f"{timeout}s", **health}))


def checked(conduct: Conduct, timeout: float = PATIENT, **health: object) -> Outcome:
    """What comes of a check of a server that behaves so."""

    async def check() -> Outcome:
        server = await asyncio.start_server(conduct, ADDRESS, 0)
        async with server:
            return await probe(target(server.sockets[0].getsockname()[1], timeout, **health))

    return asyncio.run(check())


def says(*pieces: bytes, pause: float = 0.0, then: float = 0.0) -> Conduct:
    """Reads the request, answers with these pieces, and closes after a while."""

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause)
            await asyncio.sleep(then)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    return conduct


def endless(piece: bytes, pause: float = 0.0) -> Conduct:
    """Never stops; `sent` counts the bytes."""

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(b"HTTP/1.1 200 OK\r\n")
            while True:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause)
        except OSError:
            pass
        finally:
            writer.close()

    return conduct


GOOD = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n\r\n",
    b"HTTP/1.1 200\r\n\r\n",
    b"HTTP/1.1 200 OK\n\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: " + b"x" * (HEAD_BYTES - 100) + b"\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n" + b"body" * 100_000,
]


@pytest.mark.parametrize("answer", GOOD, ids=range(len(GOOD)))
def test_a_good_answer_passes(answer: bytes) -> None:
    outcome = checked(says(answer))
    assert (outcome.result, outcome.error) == (Result.SUCCESS, "")
    assert 0 < outcome.seconds < PATIENT


@pytest.mark.parametrize("answer", GOOD[:-1], ids=range(len(GOOD) - 1))
def test_so_it_does_in_single_bytes(answer: bytes) -> None:
    if len(answer) < 1000:
        assert checked(says(*(bytes([byte]) for byte in answer))).result is Result.SUCCESS


def test_an_answer_counts_as_soon_as_its_head_has_ended() -> None:
    assert checked(says(GOOD[0], then=PATIENT)).seconds < PATIENT / 2


BAD = [
    (b"HTTP/1.1 500 Oops\r\n\r\n", Result.STATUS, "status 500"),
    (b"HTTP/1.1 204 No Content\r\n\r\n", Result.STATUS, "status 204"),
    (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", Result.STATUS, "status 101"),
    (b"", Result.RESET, "closed before"),
    (b"HTTP/1.1 200 OK\r\nContent-Le", Result.RESET, "closed before"),
    (b"HTTP/1.1 100 Continue\r\n\r\n", Result.RESET, "closed before"),
    (b"SSH-2.0-OpenSSH_9.2\r\n", Result.MALFORMED, "no answer of HTTP/1: b'SSH-2.0"),
    (bytes(range(256)), Result.MALFORMED, "no answer of HTTP/1"),
    (b"HTTP/2 200\r\n\r\n", Result.MALFORMED, "no answer of HTTP/1"),
    (b"HTTP/1.1 2000 OK\r\n\r\n", Result.MALFORMED, "no status line"),
    (b"HTTP/1.1 099 OK\r\n\r\n", Result.MALFORMED, "no status line"),
    (b"HTTP/1.1  200 OK\r\n\r\n", Result.MALFORMED, "no status line"),
    (b"HTTP/1.1 200 O\0K\r\n\r\n", Result.MALFORMED, "no status line"),
    (b"HTTP/1.1 100 Continue\r\n\r\nSSH-2.0", Result.MALFORMED, "no answer of HTTP/1"),
    (b"HTTP/1.1 200 OK\r\nX: " + b"x" * HEAD_BYTES, Result.MALFORMED, f"a head of more than {HEAD_BYTES} bytes"),
    (b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, Result.MALFORMED, f"a head of more than {HEAD_BYTES} bytes"),
]


@pytest.mark.parametrize(("answer", "result", "error"), BAD, ids=range(len(BAD)))
def test_a_bad_answer_does_not_pass(answer: bytes, result: Result, error: str) -> None:
    outcome = checked(says(answer))
    assert outcome.result is result
    assert outcome.error.startswith(error)


def test_nonsense_is_seen_at_once_and_not_waited_for() -> None:
    outcome = checked(says(b"\x16\x03\x01", then=PATIENT))
    assert outcome.result is Result.MALFORMED
    assert outcome.seconds < PATIENT / 2


def test_the_statuses_are_those_of_the_configuration() -> None:
    assert checked(says(BAD[1][0]), status=(200, 204)).result is Result.SUCCESS
    assert checked(says(GOOD[0]), status=(204,)).result is Result.STATUS
    assert checked(says(GOOD[4]), status=(103,)).result is Result.SUCCESS


@pytest.mark.parametrize(
    "conduct",
    [says(then=PATIENT), endless(b"x", pause=0.01), says(b"HTTP/1.1 200 OK\r\n", then=PATIENT), says(b"H", then=9)],
    ids=["hung after accept", "slow drip", "half a head", "one byte"],
)
def test_the_timeout_covers_all_of_it(conduct: Conduct) -> None:
    outcome = checked(conduct, SHORT)
    assert (outcome.result, outcome.error) == (Result.TIMEOUT, f"no answer within {SHORT:g} s")
    assert SHORT <= outcome.seconds < SHORT + PATIENT


def test_an_endless_head_ends_after_so_many_bytes() -> None:
    assert checked(endless(b"x" * 1000)).result is Result.MALFORMED


def test_a_server_that_resets_is_there() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()

    outcome = checked(reset)
    assert (outcome.result, outcome.error) == (Result.RESET, os.strerror(errno.ECONNRESET))


def test_what_is_asked() -> None:
    asked = []

    async def conduct(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((writer.get_extra_info("sockname")[1], await reader.readuntil(b"\r\n\r\n")))
        writer.write(GOOD[0])
        writer.close()

    for host in (None, "shop.test"):
        assert checked(conduct, host=host).result is Result.SUCCESS
    (port, bare), (_, named) = asked
    lines = bare.decode().split("\r\n")
    assert lines[:2] == ["GET /health HTTP/1.1", f"Host: {ADDRESS}:{port}"]
    assert lines[2].startswith("User-Agent: rauta-health/")
    assert lines[3:] == ["Connection: close", "", ""]
    assert b"\r\nHost: shop.test\r\n" in named


# ---- connections ----------------------------------------------------------------------------------------


@contextmanager
def listener(backlog: int = 16) -> Iterator[socket.socket]:
    with socket.create_server((ADDRESS, 0), backlog=backlog) as server:
        yield server


def test_without_http_a_connection_will_do() -> None:
    with listener() as server:
        port = server.getsockname()[1]
        assert asyncio.run(probe(target(port, http=None))).result is Result.SUCCESS


def test_where_nobody_listens_the_connection_is_refused() -> None:
    with listener() as server:
        port = server.getsockname()[1]
    for http in (None, "/health"):
        outcome = asyncio.run(probe(target(port, http=http)))
        assert (outcome.result, outcome.error) == (Result.REFUSED, os.strerror(errno.ECONNREFUSED))


def test_a_server_whose_queue_is_full_is_not_taken_for_a_host_that_is_gone() -> None:
    """The kernel drops the SYN then, as if nobody were there."""
    with listener(backlog=0) as server, socket.create_connection(server.getsockname()):
        outcome = asyncio.run(probe(target(server.getsockname()[1], 2 * SHORT)))
        assert (outcome.result, outcome.error) == (Result.TIMEOUT, f"accepts no connection within {2 * SHORT:g} s")


def test_nothing_is_left_of_a_connection() -> None:
    """Neither end has a socket in TIME_WAIT, or in any other state."""

    async def checks() -> int:
        server = await asyncio.start_server(says(GOOD[0], then=PATIENT), ADDRESS, 0)
        async with server:
            port: int = server.sockets[0].getsockname()[1]
            for http in (None, "/health"):
                assert (await probe(target(port, http=http))).result is Result.SUCCESS
            return port

    port = asyncio.run(checks())
    assert [line for line in Path("/proc/net/tcp").read_text().splitlines() if f":{port:04X} " in line] == []


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("http", [None, "/health"], ids=["connecting", "waiting for an answer"])
def test_a_check_that_is_cancelled_leaves_no_socket(http: str | None) -> None:
    async def cancelled() -> None:
        with listener(backlog=0) as server:
            port = server.getsockname()[1]
            before = descriptors()
            first = socket.create_connection(server.getsockname()) if http is None else None
            checking = asyncio.create_task(probe(target(port, 4 * SHORT, http="/")))
            await asyncio.sleep(3 * SHORT)  # beyond the question to the host
            assert not checking.done()
            assert descriptors() > before
            checking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await checking
            if first is not None:
                first.close()
            assert descriptors() == before

    asyncio.run(cancelled())


def test_without_descriptors_nothing_is_said_of_the_backend() -> None:
    async def check() -> Outcome:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket() as next_one:
            number = next_one.fileno()
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
        try:
            return await probe(target(9))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    outcome = asyncio.run(check())
    assert (outcome.result, outcome.error) == (Result.LOCAL, os.strerror(errno.EMFILE))
    assert not outcome.result.counts
