"""What comes in the first seconds of some downloads at once: a program of its own, run on the client's host.

    python first_seconds.py '{"address": "198.18.100.80", "port": 80, "host": "shop.test", "path": "/",
                              "connections": 4, "seconds": 2, "mark": 1000000}'

Every connection's time begins with its SYN. When it is over, the connection is reset: what is still under way would
reach into the next sample. Prints a line of JSON: for each download the ``bytes`` that came in time, when as many as
``mark`` were there (seconds, null: never) and what went wrong; and the share of a CPU that this program took.
"""

from __future__ import annotations

import json
import selectors
import socket
import struct
import sys
import time
from dataclasses import dataclass
from typing import Any

READ_BYTES = 1 << 18
ABORT = struct.pack("ii", 1, 0)
OK = b"HTTP/1.1 200 "


@dataclass
class Download:
    """One connection. ``bytes``: of the answer, its head included."""

    sock: socket.socket
    began: float
    asked: bool = False
    bytes: int = 0
    mark: float | None = None
    error: str = ""


class Downloads:
    """All of them."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.selector = selectors.DefaultSelector()
        self.buffer = bytearray(READ_BYTES)
        request = "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        self.request = request.format(**plan).encode()

    def run(self) -> dict[str, Any]:
        """Until the last one's time is over."""
        wall, cpu = time.monotonic(), time.process_time()
        downloads = [self._begin() for _ in range(self.plan["connections"])]
        under_way = list(downloads)
        while under_way:
            next_end = under_way[0].began + self.plan["seconds"]
            for key, _ in self.selector.select(max(0.0, next_end - time.monotonic())):
                self._go_on(key.data)
            if time.monotonic() >= next_end:
                self._end(under_way.pop(0))
        said = [{"bytes": one.bytes, "mark": one.mark, "error": one.error} for one in downloads]
        return {"downloads": said, "cpu": (time.process_time() - cpu) / (time.monotonic() - wall)}

    def _begin(self) -> Download:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        download = Download(sock, time.monotonic())
        sock.connect_ex((self.plan["address"], self.plan["port"]))
        self.selector.register(sock, selectors.EVENT_WRITE, download)
        return download

    def _go_on(self, download: Download) -> None:
        try:
            if not download.asked:
                download.asked = download.sock.send(self.request) == len(self.request)
                self.selector.modify(download.sock, selectors.EVENT_READ, download)
                return
            got = download.sock.recv_into(self.buffer)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(download, str(error))
            return
        now = time.monotonic() - download.began
        if got == 0:
            self._fail(download, f"the server closed after {download.bytes} bytes and {now:.2f} s")
            return
        if download.bytes == 0 and not self.buffer.startswith(OK):
            download.error = bytes(self.buffer[: min(got, 40)]).decode("latin-1")
        if now <= self.plan["seconds"]:
            download.bytes += got
        if download.mark is None and download.bytes >= self.plan["mark"]:
            download.mark = now

    def _fail(self, download: Download, error: str) -> None:
        download.error = error
        self.selector.unregister(download.sock)

    def _end(self, download: Download) -> None:
        if not download.error:
            self.selector.unregister(download.sock)
        download.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
        download.sock.close()


if __name__ == "__main__":
    print(json.dumps(Downloads(json.loads(sys.argv[1])).run()))
