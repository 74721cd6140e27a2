"""Clients that go on and on, and judge each answer: ``steady.py PLAN``, in JSON.

    {"address": "198.18.100.80", "port": 80, "host": "shop.test", "kept": 8, "fresh": 4, "pause": 0.005, "seconds": 5,
     "paths": {"/": {"backends": {"web-1": "web"}, "body": "RAUTA"}}, "records": "/tmp/records"}

``kept`` of them keep a connection for as long as it lasts, ``fresh`` make one for each request; all take turns over the
paths, and wait ``pause`` seconds, more or less, between two requests. A request has failed if its answer is not there,
whole, within ``seconds`` of the request's turn, connecting included; if its status is not 200; if its body is another;
or if who answered is none of the path's backends. None is tried again.

Prints "standing" when each path has been answered once. On SIGTERM the clients end, each after its answer, and a line
of JSON is printed: requests, failures (each with its time and what happened), and the slowest answer. The file of
records then has a row of doubles for each request: when its turn came and when its answer was there, by the monotonic
clock, which all processes of a machine share; and the numbers of path and cluster (-1: it failed). Stands alone: run in
a namespace by lab.chaos.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sys
import time
from array import array
from dataclasses import dataclass, field
from itertools import count
from typing import Any

LIMIT = 1 << 20
TOLD = 1000
"""failures whose details are kept; all are counted"""


class Wrong(Exception):
    """An answer that is not what it should be."""


@dataclass
class Connection:
    """What has been opened, and how often it was asked."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    asked: int = 0

    @property
    def port(self) -> int:
        """The client's own."""
        return int(self.writer.get_extra_info("sockname")[1])

    async def close(self) -> None:
        """Wait until it is."""
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


@dataclass
class Steady:
    """All clients of a plan."""

    plan: dict[str, Any]
    failed: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    records: array[float] = field(default_factory=lambda: array("d"))
    ending: bool = False

    def __post_init__(self) -> None:
        self.paths = list(self.plan["paths"])
        self.clusters = list(self.plan["clusters"])
        self.turn = count()

    async def run(self) -> dict[str, Any]:
        """To the end; returns the report."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._end)
        for path in self.paths:
            await self._request(None, path, keep=False)
        if not self.failed:
            print("standing", flush=True)
            kept, fresh = self.plan["kept"], self.plan["fresh"]
            await asyncio.gather(*(self._client(number < kept) for number in range(kept + fresh)))
        with open(self.plan["records"], "wb") as file:  # noqa: PTH123
            self.records.tofile(file)
        took = [done - began for began, done in zip(self.records[::4], self.records[1::4], strict=True)]
        return {"requests": len(took), "failed": self.failed, "failures": self.failures, "slowest": max(took)}

    def _end(self) -> None:
        self.ending = True

    async def _client(self, keep: bool) -> None:
        connection: Connection | None = None
        pause = self.plan["pause"]
        await asyncio.sleep(pause * random.random())
        while not self.ending:
            connection = await self._request(connection, self.paths[next(self.turn) % len(self.paths)], keep=keep)
            await asyncio.sleep(pause * (0.5 + random.random()))
        if connection is not None:
            await connection.close()

    async def _request(self, connection: Connection | None, path: str, *, keep: bool) -> Connection | None:
        """One request; the connection for the next one, if there is still one."""
        began, cluster = time.monotonic(), -1
        try:
            async with asyncio.timeout(self.plan["seconds"]):
                connection = connection or await self._connected()
                cluster = await self._answered(connection, path, keep)
        except (OSError, TimeoutError, EOFError, ValueError, Wrong) as error:
            self._failed(began, path, connection, error)
            keep = False
        self.records.extend((began, time.monotonic(), self.paths.index(path), cluster))
        if not keep and connection is not None:
            await connection.close()
        return connection if keep else None

    async def _connected(self) -> Connection:
        return Connection(*await asyncio.open_connection(self.plan["address"], self.plan["port"], limit=LIMIT))

    async def _answered(self, connection: Connection, path: str, keep: bool) -> int:
        """The number of the cluster that has answered, rightly."""
        connection.asked += 1
        end = "" if keep else "Connection: close\r\n"
        connection.writer.write(f"GET {path} HTTP/1.1\r\nHost: {self.plan['host']}\r\n{end}\r\n".encode())
        status, *lines = (await connection.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines if line)
        body = await connection.reader.readexactly(int(headers.get("content-length", 0)))
        wanted = self.plan["paths"][path]
        backend = headers.get("x-backend", "")
        if not status.startswith("HTTP/1.1 200 "):
            raise Wrong(f"answered {status} by {backend or 'nobody who says so'}")
        if backend not in wanted["backends"]:
            raise Wrong(f"answered by {backend or 'somebody who does not say'}, which is no backend of this path")
        if body.decode("latin-1") != wanted["body"]:
            raise Wrong(f"another body, of {len(body)} bytes")
        return self.clusters.index(wanted["backends"][backend])

    def _failed(self, began: float, path: str, connection: Connection | None, error: BaseException) -> None:
        self.failed += 1
        if len(self.failures) < TOLD:
            happened = str(error) if isinstance(error, Wrong) else repr(error)
            where = "while connecting"
            if connection is not None:
                where = f"request {connection.asked} from port {connection.port}"
            told = {"began": began, "took": time.monotonic() - began, "path": path, "happened": f"{happened}, {where}"}
            self.failures.append(told)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(Steady(json.loads(sys.argv[1])).run())))
