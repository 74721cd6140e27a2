"""A server that signs what it answers: with its name, and with a digest of the request as it has read it. It writes the
number of every request that it executes to a log, so that what was executed twice, by whomever, is seen there.

    python signing.py NAME ADDRESS PORT LOG

A request's path is /ROUTE/.../NUMBER, and its query says what the answer is to be like:

    size=N      bytes of the body; the body is the digest, again and again
    status=N    204 and 304 have no body
    chunked=N   a body of N chunks, without a Content-Length, a moment between any two of them
    pause=N     milliseconds before the answer
    halt=N      milliseconds in the midst of its body
    idle=N      the server closes the connection if nothing comes for so many milliseconds after the answer
    refuse=1    417 at once to whoever expects 100; the body is read, and nothing executed

The same module has the client's side of it: what a request has to be answered with.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

if TYPE_CHECKING:
    from lab.topology import Host, Network

PORT = 8080
PAUSE = 0.05
BODILESS = (204, 304)


# ---- both sides -----------------------------------------------------------------------------------------


def digest(method: str, target: str, body: bytes) -> str:
    """Of a request."""
    return hashlib.sha256(f"{method} {target}\n".encode() + body).hexdigest()


def signed(name: str, size: int) -> bytes:
    """The body of an answer: ``size`` bytes of a digest."""
    return (name.encode() * (size // len(name) + 1))[:size]


# ---- the server -----------------------------------------------------------------------------------------


class Signer(StreamRequestHandler):
    """One connection. A move ends it as a reset does."""

    disable_nagle_algorithm = True
    rbufsize = 1 << 16
    name = ""
    log = -1

    def handle(self) -> None:
        """Requests until there are no more."""
        with suppress(OSError):
            while self._one():
                pass

    def _one(self) -> bool:
        head = self._head()
        if not head:
            return False
        method, target, _ = head[0].split(" ")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        wanted = dict(parse_qsl(urlsplit(target).query))
        if "expect" in fields and "refuse" in wanted:
            self._answer(method, digest(method, target, b""), {**wanted, "status": "417"})
            return len(self.rfile.read(int(fields["content-length"]))) > 0
        if "expect" in fields:
            self.request.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        length = int(fields.get("content-length", 0))
        body = self.rfile.read(length)
        if len(body) < length:
            return False
        os.write(self.log, f"{method} {urlsplit(target).path}\n".encode())
        time.sleep(int(wanted.get("pause", 0)) / 1000)
        self._answer(method, digest(method, target, body), wanted)
        self.request.settimeout(int(wanted["idle"]) / 1000 if "idle" in wanted else None)
        return fields.get("connection", "").lower() != "close"

    def _head(self) -> list[str]:
        lines: list[str] = []
        while line := self.rfile.readline().decode("latin-1"):
            if line == "\r\n":
                return lines
            lines.append(line)
        return []

    def _answer(self, method: str, proof: str, wanted: Mapping[str, str]) -> None:
        status, chunks = int(wanted.get("status", 200)), int(wanted.get("chunked", 0))
        body = signed(proof, int(wanted.get("size", 0)))
        lines = [f"HTTP/1.1 {status} Signed", f"X-Backend: {self.name}", f"X-Digest: {proof}"]
        if chunks:
            self._in_chunks(lines, body, chunks)
            return
        if status not in BODILESS:
            lines.append(f"Content-Length: {len(body)}")
        said = "\r\n".join([*lines, "", ""]).encode() + (b"" if method == "HEAD" or status in BODILESS else body)
        if halt := int(wanted.get("halt", 0)):
            first, said = said[: -(len(body) // 2)], said[-(len(body) // 2) :]
            self.request.sendall(first)
            time.sleep(halt / 1000)
        self.request.sendall(said)

    def _in_chunks(self, lines: Sequence[str], body: bytes, chunks: int) -> None:
        self.request.sendall("\r\n".join([*lines, "Transfer-Encoding: chunked", "", ""]).encode())
        step = max(1, len(body) // chunks)
        for start in range(0, len(body), step):
            time.sleep(PAUSE)
            piece = body[start : start + step]
            self.request.sendall(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        self.request.sendall(b"0\r\n\r\n")


class Listener(ThreadingTCPServer):
    """Where it listens."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 4096

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that ends in the midst of something is not this server's business."""


def main(arguments: Sequence[str]) -> None:
    """Serve for ever."""
    name, address, port, log = arguments
    Signer.name, Signer.log = name, os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    threading.stack_size(1 << 18)
    Listener((address, int(port)), Signer).serve_forever()


# ---- for the tests --------------------------------------------------------------------------------------


def executed(logs: Path) -> list[str]:
    """Method and path of everything that all servers with their logs in a folder have executed."""
    return [line for log in sorted(logs.glob("*.executed")) for line in log.read_text().splitlines()]


@contextmanager
def signing(network: Network, clusters: Sequence[str], logs: Path) -> Iterator[None]:
    """Such servers on the hosts of these clusters, instead of whatever was there."""
    hosts = [host for cluster in clusters for host in network.servers(cluster)]
    for host in hosts:
        host.stop_all()
    started = [_start(host, logs) for host in hosts]
    try:
        yield
    finally:
        for process in started:
            process.stop()


def _start(host: Host, logs: Path) -> Any:
    log = logs / f"{host.name}.executed"
    argv = [sys.executable, __file__, host.name, str(host.address), str(PORT), str(log)]
    return host.start(argv, name="signing", ready=lambda: _accepts(host))


def _accepts(host: Host) -> bool:
    try:
        socket.create_connection((str(host.address), PORT), timeout=1).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
