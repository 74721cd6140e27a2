"""Many short connections from one address: a program of its own, run on the client's host.

    python short.py '{"address": "198.18.100.80", "port": 80, "host": "shop.test", "path": "/", "count": 1000, ...}'

Each connection carries one request with ``Connection: close``; the server answers and closes first, then the client
closes too, so that its port is free at once. With ``sources``, each comes from the next of so many addresses of the
client's, from ``first_source`` on. Ports are taken in turn: the kernel, left to choose, would hardly use half
of a narrow range. Every ``post_every``-th request is a POST, whose answer must say how much arrived. One thread and
epoll: many at a time, each with a deadline. Prints a line of JSON: answered, failed, reasons, and how often the least
and the most used port was.
"""

from __future__ import annotations

import errno
import json
import select
import socket
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from itertools import cycle
from typing import Any

POLL_SECONDS = 0.2
RECEIVE_BYTES = 65536


@dataclass
class Exchange:
    """A connection on its way."""

    sock: socket.socket
    unsent: memoryview
    port: int
    posted: int
    deadline: float
    received: bytearray = field(default_factory=bytearray)


class Load:
    """All connections of a run."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.expected = plan["expected"].encode()
        self.started = 0
        self.answered = 0
        self.reasons: Counter[str] = Counter()
        self.epoll = select.epoll()
        self.open: dict[int, Exchange] = {}
        self.free = deque(range(plan["first_port"], plan["first_port"] + plan["ports"]))
        self.sources = cycle(_addresses(plan["first_source"], plan["sources"]) if "sources" in plan else [""])
        self.used: Counter[int] = Counter()
        head = "{} {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{}\r\n"
        get = head.format("GET", plan["path"], plan["host"], "")
        post = head.format("POST", plan["path"], plan["host"], f"Content-Length: {plan['body']}\r\n")
        self.get = get.encode()
        self.post = post.encode() + b"x" * plan["body"]

    def run(self) -> dict[str, Any]:
        """Everything, to the last answer or deadline."""
        while self.open or self.started < self.plan["count"]:
            while len(self.open) < self.plan["concurrency"] and self.started < self.plan["count"]:
                self._begin()
            for descriptor, _ in self.epoll.poll(POLL_SECONDS):
                self._go_on(self.open[descriptor])
            self._expire()
        uses = [self.used[port] for port in self.free]
        failed = sum(self.reasons.values())
        return {
            "answered": self.answered,
            "failed": failed,
            "reasons": dict(self.reasons),
            "uses": [min(uses), max(uses)],
        }

    def _begin(self) -> None:
        self.started += 1
        every = self.plan["post_every"]
        posts = bool(every) and self.started % every == 0
        data, posted = (self.post, self.plan["body"]) if posts else (self.get, 0)
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        port = self.free.popleft()
        self.used[port] += 1
        exchange = Exchange(sock, memoryview(data), port, posted, time.monotonic() + self.plan["seconds"])
        self.open[sock.fileno()] = exchange
        self.epoll.register(sock, select.EPOLLOUT)
        try:
            sock.bind((next(self.sources), port))
            sock.connect((self.plan["address"], self.plan["port"]))
        except BlockingIOError:  # it goes on in the background
            return
        except OSError as error:
            self._end(exchange, f"connect: {errno.errorcode.get(error.errno or 0, 'error')}")

    def _go_on(self, exchange: Exchange) -> None:
        try:
            if exchange.unsent:
                exchange.unsent = exchange.unsent[exchange.sock.send(exchange.unsent) :]
                if not exchange.unsent:
                    self.epoll.modify(exchange.sock, select.EPOLLIN)
                return
            data = exchange.sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(
                exchange, f"{errno.errorcode.get(error.errno or 0, 'error')} after {len(exchange.received)} bytes"
            )
            return
        exchange.received += data
        if not data:
            self._end(exchange, self._judged(bytes(exchange.received), exchange.posted))

    def _judged(self, answer: bytes, posted: int) -> str:
        """What is wrong with the answer to a request with a body of that size; empty if nothing."""
        head, _, body = answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            return f"answer: {head[:30].decode('latin-1')!r}"
        if posted and f"\r\nX-Received: {posted}\r\n".encode() not in head + b"\r\n":
            return f"a body of {posted} bytes did not arrive whole"
        return "" if body == self.expected else f"{len(body)} bytes of another body"

    def _expire(self) -> None:
        now = time.monotonic()
        for exchange in [exchange for exchange in self.open.values() if exchange.deadline < now]:
            self._end(exchange, "no answer in time")

    def _end(self, exchange: Exchange, reason: str) -> None:
        del self.open[exchange.sock.fileno()]
        self.epoll.unregister(exchange.sock)
        exchange.sock.close()
        self.free.append(exchange.port)
        if reason:
            self.reasons[reason] += 1
        else:
            self.answered += 1


def _addresses(first: str, count: int) -> list[str]:
    return [str(IPv4Address(first) + number) for number in range(count)]


if __name__ == "__main__":
    print(json.dumps(Load(json.loads(sys.argv[1])).run()))
