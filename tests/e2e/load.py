"""What the tests of load generators send their requests to: one server that counts, and some that misbehave."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from string import Template
from typing import Any

from e2e.bench import eventually
from lab.measure.open_loop import TOOL
from lab.process import Process
from lab.topology import Host

PORT, ODD_PORT, CLOSED_PORT = 9090, 9092, 9099
LARGE = 5_000_000
PATIENCE = 30.0
"""seconds for a generator to end; each says itself how long it takes"""

Target = tuple[IPv4Address, int]


class At:
    """A contender that takes all requests at one place."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def target(self, _cluster: str) -> Target:
        """That place."""
        return self._target

    def counters(self) -> dict[str, int]:
        """None."""
        return {}

    def programs(self) -> dict[str, Any]:
        """None."""
        return {}


_CONFIGURATION = Template("""\
daemon off;
user root;
worker_processes 1;
worker_rlimit_nofile 19000;
pid $scratch/nginx.pid;
error_log stderr crit;
events { worker_connections 18000; }
http {
    log_format counted '$$request_method $$status $$connection $$request_length $$bytes_sent $$msec';
    client_max_body_size 64m;
    client_body_temp_path $scratch/bodies;
    proxy_temp_path $scratch/proxied;
    fastcgi_temp_path $scratch/fastcgi;
    uwsgi_temp_path $scratch/uwsgi;
    scgi_temp_path $scratch/scgi;
    root $scratch/files;
    keepalive_requests 1000000000;
    server {
        listen $port backlog=4096;
        access_log $scratch/access.log counted;
        location / {
            if ($$request_method = POST) { rewrite ^ /received last; }
            return 200 "Hello, world!";
        }
        location /ten { keepalive_requests 10; return 200 "Hello, world!"; }
        location /error { return 500 "Sorry."; }
        location = /large { }
        location = /received { internal; proxy_pass http://unix:$scratch/received.sock; }
    }
    server {
        listen unix:$scratch/received.sock;
        access_log off;
        location / { return 200 "Received."; }
    }
}
""")


@dataclass(frozen=True)
class Logged:
    """A request as the server saw it. ``received``, ``sent``: bytes with heads; ``time``: seconds, to the ms."""

    method: str
    status: int
    connection: int
    received: int
    sent: int
    time: float


@dataclass(frozen=True)
class Counting:
    """nginx, which logs every request that it has answered."""

    host: Host
    process: Process
    log: Path

    @property
    def target(self) -> Target:
        """Where it listens."""
        return self.host.address, PORT

    @property
    def worker(self) -> int:
        """The process that serves."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        # It listens before it has made its workers.
        eventually(lambda: bool(children.read_text().split()), "the server to have its worker")
        return int(children.read_text().split()[0])

    def logged(self) -> list[Logged]:
        """All requests so far."""
        rows = map(str.split, self.log.read_text().splitlines())
        return [Logged(method, *map(int, numbers), float(time)) for method, *numbers, time in rows]

    @contextmanager
    def frozen(self, after: float, seconds: float) -> Iterator[None]:
        """Once within, the worker is stopped for some seconds, in the midst of whatever goes on."""
        worker = self.worker
        timers = [
            threading.Timer(after, os.kill, (worker, signal.SIGSTOP)),
            threading.Timer(after + seconds, os.kill, (worker, signal.SIGCONT)),
        ]
        for timer in timers:
            timer.start()
        try:
            yield
        finally:
            for timer in timers:
                timer.cancel()
                timer.join()
            os.kill(worker, signal.SIGCONT)


@contextmanager
def counting(host: Host, scratch: Path) -> Iterator[Counting]:
    """A server on PORT of a host, with a log of its own."""
    (scratch / "files").mkdir(parents=True)
    (scratch / "files" / "large").write_bytes(bytes(LARGE))
    configuration, log = scratch / "nginx.conf", scratch / "access.log"
    configuration.write_text(_CONFIGURATION.substitute(scratch=scratch, port=PORT))
    argv = ["nginx", "-p", str(scratch), "-c", str(configuration), "-e", "stderr"]
    process = host.start(argv, name="counting", ready=lambda: _accepts(host))
    try:
        yield Counting(host, process, log)
    finally:
        process.stop()


def _accepts(host: Host) -> bool:
    with suppress(OSError), socket.create_connection((str(host.address), PORT), timeout=1):
        return True
    return False


Conduct = Callable[[socket.socket], None]
"""what a server does on a connection, from its beginning; returning closes it"""


@contextmanager
def odd(host: Host, conduct: Conduct) -> Iterator[Target]:
    """A server on ODD_PORT of a host that behaves so on each connection, each in a thread of its own."""
    with host.entered():
        listener = socket.create_server((str(host.address), ODD_PORT), backlog=256)
    threads: list[threading.Thread] = []
    connections: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            conduct(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connections.append(listener.accept()[0])
                threads.append(threading.Thread(target=serve, args=(connections[-1],)))
                threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield host.address, ODD_PORT
    finally:
        for one in (listener, *connections):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        acceptor.join()
        listener.close()
        for thread in threads:
            thread.join()


def read_request(connection: socket.socket) -> bytes:
    """A request without a body; OSError when the client is gone."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        more = connection.recv(4096)
        if not more:
            raise ConnectionError("the client has hung up")
        data += more
    return data


def always(*pieces: bytes, pause: float = 0.0) -> Conduct:
    """Answers each request with these pieces, a pause before each."""
    gone = threading.Event()

    def conduct(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            read_request(connection)
            for piece in pieces:
                gone.wait(pause)
                connection.sendall(piece)

    return conduct


def generate(client: Host, target: Target, *flags: str, **options: object) -> dict[str, Any]:
    """What the open-loop generator reports."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    done = client.run([str(TOOL), *words, *flags, str(target[0]), str(target[1])], timeout=PATIENCE)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def wrong(report: dict[str, Any]) -> dict[str, int]:
    """The errors of a report, without those that did not happen."""
    return {kind: count for kind, count in report["errors"].items() if count}


def wait_for_log(server: Counting, count: int) -> None:
    """nginx logs a request after it has answered it."""
    eventually(lambda: len(server.logged()) >= count, f"{count} requests in the server's log")
