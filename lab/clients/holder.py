"""Opens connections and keeps them: ``holder.py ADDRESS PORT HOST PATH COUNT RATE``.

Each asks HOST for PATH. With RATE 0 the answer is read whole and the connection then stays silent; otherwise RATE bytes
a second are read of it. Prints "standing" when all have had (the beginning of) an answer, and on SIGTERM how many have
ended meanwhile and what all slow readers have read, in bytes, as JSON: ``{"held": 1000, "lost": 0, "read": 0}``. Stands
alone: run in a namespace by lab.background.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys

AT_ONCE = 200
"""connections that are being opened at the same time"""
TURNS = 10
"""a second, in which a slow reader reads"""
RECEIVE_BYTES = 65_536
"""of a slow reader's socket"""
ESTABLISHED = 1
"""include/net/tcp_states.h"""


class Holder:
    """Keeps connections, and counts those that end."""

    def __init__(self, address: str, port: int, host: str, path: str, rate: int) -> None:
        self.address, self.port, self.rate = address, port, rate
        self.request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        self.read = 0
        self.sockets: list[socket.socket] = []
        self.gate = asyncio.Semaphore(AT_ONCE)
        self.tasks: list[asyncio.Task[None]] = []

    async def connected(self) -> socket.socket:
        """A slow reader's kernel must not read for it: left alone, it takes in megabytes before anybody waits."""
        sock = socket.socket()
        sock.setblocking(False)
        if self.rate:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        await asyncio.get_running_loop().sock_connect(sock, (self.address, self.port))
        return sock

    async def open(self) -> None:
        """One connection, and its first answer."""
        async with self.gate:
            limit = max(4096, self.rate // TURNS) if self.rate else 1 << 20
            reader, writer = await asyncio.open_connection(sock=await self.connected(), limit=limit)
            writer.write(self.request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            if not head.startswith("http/1.1 200"):
                raise ConnectionError(f"answered {head.splitlines()[0]}")
            length = int(head.partition("content-length:")[2].split()[0])
            if not self.rate:
                await reader.readexactly(length)
            self.sockets.append(writer.get_extra_info("socket"))
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
                self.read += len(data)
                left -= len(data)
                if left <= 0:
                    writer.write(self.request)
                    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                    left = int(head.partition("content-length:")[2].split()[0])
                await asyncio.sleep(1 / TURNS)
        except (OSError, asyncio.IncompleteReadError):
            pass
        writer.close()

    @property
    def lost(self) -> int:
        """How many are no longer there: also those that end behind what a slow reader has still to read."""
        return sum(one.fileno() < 0 or not _is_established(one) for one in self.sockets)


def _is_established(one: socket.socket) -> bool:
    return one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == ESTABLISHED


async def main() -> None:
    """Open, say so, hold, and report."""
    address, port, host, path, count, rate = sys.argv[1:]
    holder = Holder(address, int(port), host, path, int(rate))
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await asyncio.gather(*(holder.open() for _ in range(int(count))))
    print("standing", flush=True)
    await ended.wait()
    print(json.dumps({"held": int(count), "lost": holder.lost, "read": holder.read}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
