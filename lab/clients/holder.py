"""Opens connections and keeps them: ``holder.py ADDRESS PORT PATH COUNT RATE``.

Each asks for PATH. With RATE 0 the answer is read whole and the connection then stays silent; otherwise RATE bytes a
second are read of it. Prints "standing" when all have had (the beginning of) an answer, and on SIGTERM how many have
ended meanwhile, as JSON: ``{"held": 1000, "lost": 0}``. Stands alone: run in a namespace by lab.background.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys

AT_ONCE = 200
"""connections that are being opened at the same time"""
TURNS = 10
"""a second, in which a slow reader reads"""


class Holder:
    """Keeps connections, and counts those that end."""

    def __init__(self, address: str, port: int, path: str, rate: int) -> None:
        self.address, self.port, self.rate = address, port, rate
        self.request = f"GET {path} HTTP/1.1\r\nHost: shop.test\r\n\r\n".encode()
        self.lost = 0
        self.gate = asyncio.Semaphore(AT_ONCE)
        self.tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """One connection, and its first answer."""
        async with self.gate:
            limit = max(4096, self.rate // TURNS) if self.rate else 1 << 20
            reader, writer = await asyncio.open_connection(self.address, self.port, limit=limit)
            writer.write(self.request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            if not head.startswith("http/1.1 200"):
                raise ConnectionError(f"answered {head.splitlines()[0]}")
            length = int(head.partition("content-length:")[2].split()[0])
            if not self.rate:
                await reader.readexactly(length)
            self.tasks.append(asyncio.create_task(self.hold(reader, writer, length)))

    async def hold(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: int) -> None:
        """Until it ends. A slow reader that has read everything asks again."""
        try:
            while True:
                if not self.rate:
                    if not await reader.read(1):
                        break
                    continue
                data = await reader.read(max(1, self.rate // TURNS))
                if not data:
                    break
                left -= len(data)
                if left <= 0:
                    writer.write(self.request)
                    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                    left = int(head.partition("content-length:")[2].split()[0])
                await asyncio.sleep(1 / TURNS)
        except (OSError, asyncio.IncompleteReadError):
            pass
        self.lost += 1


async def main() -> None:
    """Open, say so, hold, and report."""
    address, port, path, count, rate = sys.argv[1:]
    holder = Holder(address, int(port), path, int(rate))
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await asyncio.gather(*(holder.open() for _ in range(int(count))))
    print("standing", flush=True)
    await ended.wait()
    print(json.dumps({"held": int(count), "lost": holder.lost}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
