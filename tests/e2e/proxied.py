"""A fallback by itself: the real proxy with the configuration that rauta writes, in front of real nginx backends.

No XDP and no agent: clients connect to the proxy's own ports. Everybody lives in one namespace, whose loopback has all
their addresses. The backends say, and log, what has reached them and how they read it.
"""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from string import Template
from typing import Any

from e2e.bench import eventually
from lab import state, topology
from lab.process import Process, run
from rauta import fallback
from rauta.config import Config
from rauta.network.namespaces import entered

SECONDS = 5.0
ADDRESS = IPv4Address("198.18.0.2")
"""of the proxy"""
CHUNK = 1 << 16

_BACKENDS = Template("""\
daemon off;
user root;
worker_processes 1;
pid $folder/backends.pid;
error_log stderr error;
events { worker_connections 4096; }
http {
    log_format seen escape=json '{"address": "$$server_addr", "request": "$$request", "method": "$$request_method",'
        ' "uri": "$$uri", "host": "$$host", "host_line": "$$http_host", "upgrade": "$$http_upgrade",'
        ' "connection": "$$http_connection", "forwarded": "$$http_x_forwarded_for", "via": "$$http_x_via",'
        ' "length": "$$http_content_length", "encoding": "$$http_transfer_encoding"}';
    access_log $folder/seen.log seen;
    client_body_temp_path $folder/bodies;
    proxy_temp_path $folder/proxied;
    fastcgi_temp_path $folder/fastcgi;
    uwsgi_temp_path $folder/uwsgi;
    scgi_temp_path $folder/scgi;
    large_client_header_buffers 4 64k;
    underscores_in_headers on;
    server_names_hash_bucket_size 512;
$servers
}
""")
_SERVER = """\
    server {{
        listen {address}:{port};
        location / {{ return 200 "$server_addr\\n$request_uri\\n$http_host\\n"; }}
    }}"""


@dataclass(frozen=True)
class Seen:
    """A request as a backend has read it. ``uri``: decoded and normalised."""

    address: str
    request: str
    method: str
    uri: str
    host: str
    host_line: str
    upgrade: str
    connection: str
    forwarded: str
    via: str
    length: str
    encoding: str


@dataclass(frozen=True)
class Reply:
    """An answer; ``backend``: the address of who gave it, empty if nobody behind the proxy did."""

    status: int
    body: bytes

    @property
    def backend(self) -> str:
        """From the body: backends begin with their address."""
        return self.body.split(b"\n")[0].decode() if self.status == 200 else ""


@dataclass
class Site:
    """A proxy and its backends while they run."""

    kind: fallback.Kind
    config: Config
    namespace: str
    log: Path
    process: Process
    _read: int = field(default=0, repr=False)

    def raw(self, data: bytes, vip: str = "shop", *, source: str = "198.18.0.1") -> bytes:
        """All that comes back for these bytes, whose sender then closes his half."""
        with self.connected(vip, source=source) as sock:
            with suppress(OSError):  # it may have ended already: what came back says how
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
            return received(sock)

    def ask(self, data: bytes, vip: str = "shop") -> list[Reply]:
        """The answers to these bytes."""
        return replies(self.raw(data, vip))

    @contextmanager
    def connected(self, vip: str = "shop", *, source: str = "198.18.0.1") -> Iterator[socket.socket]:
        """A connection from a client to the proxy's port for that VIP."""
        with entered(self.namespace):
            sock = socket.socket()
        with sock:
            sock.settimeout(SECONDS)
            sock.bind((source, 0))
            sock.connect((str(ADDRESS), self.config.fallback_ports()[vip]))
            yield sock

    def seen(self) -> list[Seen]:
        """What has reached the backends since the last call, complete: each is asked once more first."""
        marks = set()
        for backend in self.config.backends().values():
            mark = f"/mark-{secrets.token_hex(4)}"
            with entered(self.namespace), socket.create_connection((str(backend.address), backend.port)) as sock:
                sock.sendall(f"GET {mark} HTTP/1.0\r\n\r\n".encode())
                received(sock)
            marks.add(mark)
        eventually(lambda: marks <= {one.uri for one in self._logged()}, "the backends to have logged everything")
        lines = self._logged()
        self._read += len(lines)
        return [one for one in lines if not one.uri.startswith("/mark-")]

    def _logged(self) -> list[Seen]:
        lines = self.log.read_bytes().decode("latin-1").split("\n")[self._read : -1]
        return [Seen(**json.loads(line)) for line in lines]


def received(sock: socket.socket) -> bytes:
    """Everything up to the end; a reset is one, too."""
    parts = []
    try:
        while part := sock.recv(CHUNK):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def replies(stream: bytes) -> list[Reply]:
    """The answers in what came back; interim ones are left out. ValueError if it is no sequence of answers."""
    found = []
    while stream:
        head, separator, rest = stream.partition(b"\r\n\r\n")
        if not separator:
            raise ValueError(f"no answer: {stream[:200]!r}")
        status, *lines = head.split(b"\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        number = int(status.split()[1])
        if 100 <= number < 200:
            stream = rest
            continue
        length = int(fields.get(b"content-length", len(rest)))
        found.append(Reply(number, rest[:length]))
        stream = rest[length:]
    return found


def configuration(vips: Sequence[Mapping[str, Any]], clusters: Mapping[str, str | int]) -> Config:
    """A configuration with a fallback, and a backend for each cluster: its address, or the number that it ends in."""
    made = []
    for name, address in clusters.items():
        one = {"name": f"{name}-1", "address": f"198.18.0.{address}", "port": 8080, "weight": int(name != "drained")}
        made.append({"name": name, "backends": [one]})
    listeners = [{"address": "198.18.100.80", "port": 80 + number} | dict(vip) for number, vip in enumerate(vips)]
    fields = {"version": 1, "encapsulation": {"source": "198.19.0.0/24"}, "fallback": {"port": 8000}}
    return Config.model_validate(fields | {"vips": listeners, "clusters": made})


@contextmanager
def site(kind: fallback.Kind, config: Config, folder: Path) -> Iterator[Site]:
    """The proxy and its backends. ``folder``: an empty one for logs."""
    with ExitStack() as undo:
        started = state.create("e2e")
        undo.callback(started.sweep)
        namespace = undo.enter_context(topology.spare_namespace(started, "proxied"))
        backends = config.backends().values()
        scratch = started.scratch
        with entered(namespace):
            addresses = [f"address add {one}/32 dev lo" for one in {ADDRESS, *(one.address for one in backends)}]
            for command in ("link set lo up", "address add 198.18.0.1/32 dev lo", *addresses):
                run(["ip", *command.split()], timeout=SECONDS)
            servers = "\n".join(_SERVER.format(address=one.address, port=one.port) for one in backends)
            file = scratch / "backends.conf"
            file.write_text(_BACKENDS.substitute(folder=scratch, servers=servers))
            _start(["nginx", "-p", str(scratch), "-c", str(file), "-e", "stderr"], "backends", folder, undo).wait_ready(
                lambda: all(_accepts(one.address, one.port) for one in backends)
            )
            own = scratch / kind
            own.mkdir()
            conf = own / "proxy.conf"
            fallback.write(conf, fallback.configuration(config, kind, address=ADDRESS, folder=own))
            proxy = _start(fallback.command(kind, conf), kind, folder, undo)
            proxy.wait_ready(lambda: all(_accepts(ADDRESS, port) for port in config.fallback_ports().values()))
        yield Site(kind, config, namespace, scratch / "seen.log", proxy)


def _start(argv: list[str], name: str, folder: Path, undo: ExitStack) -> Process:
    process = Process(argv, name=name, log=folder / f"{name}.log")
    undo.callback(process.stop)
    return process


def _accepts(address: IPv4Address, port: int) -> bool:
    try:
        socket.create_connection((str(address), port), timeout=SECONDS).close()
    except OSError:
        return False
    return True
