"""nginx, one to a host, as Debian ships it (nginx-light).

Whatever the path, the answer is a body of the configured size; a path that ends in /download is answered with the
download. Every answer names its host in ``X-Backend``. The body of a POST or PUT is read to its end first (by proxying
to a Unix socket of the same nginx, which buffers requests), and its length comes back in ``X-Received``.

A path that begins with /health is answered with 503 for as long as the host has a file of that name (``sick_file``): it
is not well, says so, and goes on serving.

It listens on a second port, the first plus one, with the same content. Contender `direct` uses that one, so that
sockets which one contender leaves in TIME_WAIT never meet the other's.
"""

from __future__ import annotations

import socket
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from lab.errors import LabError
from lab.units import Size

if TYPE_CHECKING:
    from lab.topology import Host

INLINE_LIMIT = 1024
"""bytes of a body that are answered from the configuration; a longer one is a file"""
CONNECT_SECONDS = 1.0
LOG = "requests.log"
SETUP_SECONDS = 10.0

_PATTERN = b"RAUTA routes HTTP in XDP. "

_CONFIGURATION = Template("""\
daemon off;
user root;
worker_processes 1;
worker_rlimit_nofile 65536;
pid $scratch/nginx.pid;
error_log stderr warn;
events { worker_connections 16384; }
http {
    access_log off;
    default_type text/plain;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    send_timeout 1h;
    client_max_body_size 64m;
    client_body_temp_path $scratch/bodies;
    proxy_temp_path $scratch/proxied;
    fastcgi_temp_path $scratch/fastcgi;
    uwsgi_temp_path $scratch/uwsgi;
    scgi_temp_path $scratch/scgi;
    root $scratch/files;
    add_header X-Backend $name always;
    log_format requests '$$remote_port $$request_method $$request_uri';
    server {
        access_log $log;
        listen $port backlog=4096;
        listen $direct_port backlog=4096;
        location / {
            if ($$request_method ~ ^(POST|PUT)$$) { rewrite ^ /received last; }
            $answer
        }
        location /health {
            if (-f $sick) { return 503; }
            $answer
        }
        location ~ /download$$ { rewrite ^ /download break; }
        location = /received { internal; proxy_pass http://unix:$scratch/received.sock; }
    }
    server {
        listen unix:$scratch/received.sock;
        location / { add_header X-Received $$http_content_length; $answer }
    }
}
""")


class Nginx(BaseModel):
    """``port``: where it listens; also on the next one. ``body``, ``download``: how much it answers.

    ``log``: whether it keeps a log of the requests that it has executed (``LOG`` in its folder): client's port, method,
    target. ``congestion``: the congestion control of its host, such as cubic or bbr; none: the kernel's own choice.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    port: Annotated[int, Field(ge=1, le=65534)]
    body: Size = 13
    download: Size | None = None
    log: bool = False
    congestion: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,15}$")] | None = None


class Server(BaseModel):
    """What each host of a cluster runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    nginx: Nginx

    @property
    def port(self) -> int:
        """Where requests go that come through a router."""
        return self.nginx.port

    @property
    def direct_port(self) -> int:
        """Where requests go that come straight from the client."""
        return self.nginx.port + 1

    @property
    def body(self) -> bytes:
        """What it answers."""
        return content(self.nginx.body)

    @property
    def download(self) -> bytes:
        """What it answers to a path that ends in /download; empty if nothing in particular."""
        return content(self.nginx.download or 0)

    def start(self, host: Host, cluster: str, scratch: Path) -> None:
        """Start nginx on a host and return when it accepts connections. ``scratch``: a folder of this host's own."""
        if self.nginx.congestion is not None:
            set_congestion(host, self.nginx.congestion)
        files = scratch / "files"
        files.mkdir()
        (files / "body").write_bytes(self.body)
        if self.nginx.download is not None:
            (files / "download").write_bytes(self.download)
        configuration = scratch / "nginx.conf"
        configuration.write_text(self._configuration(host.name, scratch, sick_file(host, scratch.parent)))
        argv = ["nginx", "-p", str(scratch), "-c", str(configuration), "-e", "stderr"]
        host.start(argv, name="nginx", ready=lambda: _accepts(str(host.address), self.port, self.direct_port))

    def _configuration(self, name: str, scratch: Path, sick: Path) -> str:
        inline = self.nginx.body <= INLINE_LIMIT
        return _CONFIGURATION.substitute(
            scratch=scratch,
            name=name,
            sick=sick,
            port=self.port,
            direct_port=self.direct_port,
            log=f"{scratch / LOG} requests" if self.nginx.log else "off",
            answer=f'return 200 "{self.body.decode()}";' if inline else "rewrite ^ /body break;",
        )


def content(size: int) -> bytes:
    """What every server answers with: ``size`` bytes that anybody can compute."""
    return (_PATTERN * (size // len(_PATTERN) + 1))[:size]


def sick_file(host: Host, scratch: Path) -> Path:
    """While it is there, the host's server says that it is not well. ``scratch``: the run's folder of that name."""
    return scratch / f"{host.namespace}.sick"


def set_congestion(host: Host, name: str) -> None:
    """By its routes (ip-route(8), congctl): a namespace may not choose what the machine restricts as its default."""
    known = host.sysctl("net.ipv4.tcp_available_congestion_control")
    if name not in known.split():
        tried, advice = f"setting the congestion control of {host.name}", f"Others may be modules: modprobe tcp_{name}"
        raise LabError(tried, f"there is no {name!r} here, but {known}", advice)
    for route in host.run(["ip", "-4", "route"], timeout=SETUP_SECONDS).stdout.splitlines():
        host.run(["ip", "route", "change", *route.split(), "congctl", name], timeout=SETUP_SECONDS)


def _accepts(address: str, *ports: int) -> bool:
    for port in ports:
        try:
            socket.create_connection((address, port), timeout=CONNECT_SECONDS).close()
        except OSError:
            return False
    return True
