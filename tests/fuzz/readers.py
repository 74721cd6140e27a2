"""Who reads request heads besides the router: nginx, HAProxy and uvicorn as real servers, and h11 as a library.

Each server says in its answer's head what it was asked (`Seen`), and listens on a Unix socket: no network is touched,
and its parser cannot tell. `exchange` gives it a request as the router understood it, in pieces, and behind that a
marker: what the server makes of the two shows where it takes the first one to end.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from string import Template

import h11

from lab.process import Process

PATIENCE = 5.0  # seconds for an answer; all but a server that waits for more answers in milliseconds
SIOCOUTQ = 0x5411  # bytes that the other end has not read yet (unix(7))
BUFFER = 65536  # HAProxy's: a request that is longer with its body it does not wait for
SENT_BODY = 100_000  # bytes of a body that are sent; a socket's buffer holds them, and none is that long otherwise

_NGINX = Template("""\
daemon off;
master_process off;
user root;
pid $folder/nginx.pid;
error_log stderr alert;
events { worker_connections 1000; }
http {
    access_log off;
    client_max_body_size 0;
    keepalive_requests 1000000;
    client_body_temp_path $folder/1;
    proxy_temp_path $folder/2;
    fastcgi_temp_path $folder/3;
    uwsgi_temp_path $folder/4;
    scgi_temp_path $folder/5;
    server {
        listen unix:$socket backlog=1024;
        add_header X-Method $$request_method always;
        add_header X-Target $$request_uri always;
        add_header X-Path $$uri always;
        add_header X-Host $$host always;
        add_header X-Length $$content_length always;
        return 200 "";
    }
}
""")
_HAPROXY = Template("""\
global
    maxconn 1000
    nbthread 1
    tune.bufsize $buffer
defaults
    mode http
    timeout client 20s
    timeout http-request 20s
    option http-buffer-request
frontend reader
    bind unix@$socket backlog 1024
    http-request return status 200 $fields
""")
_HAPROXY_FIELDS = "hdr X-Method %[method] hdr X-Target %[url] hdr X-Host %[req.hdr(host)] hdr X-Length %[req.body_len]"


@dataclass(frozen=True)
class Seen:
    """One answer: its status, and, if the server got so far, what the request said. `path` is decoded."""

    status: int
    method: str = ""
    target: bytes = b""
    path: bytes | None = None
    host: bytes = b""
    length: int = 0


@dataclass(frozen=True)
class Heard:
    """What a server answered on one connection, and whether it closed it or still waited for more."""

    answers: tuple[Seen, ...]
    closed: bool


@dataclass(frozen=True)
class Question:
    """A request, in pieces, and a later one, by whose target (`marker`) it is to be known.

    Without a marker it is a head alone, with more body than anybody would send: only what is said of it counts.
    """

    pieces: tuple[bytes, ...]
    marker: bytes = b""

    @property
    def later(self) -> bytes:
        """The later request, the connection's last one."""
        return b"GET " + self.marker + b" HTTP/1.1\r\nHost: marker.test\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True)
class Reader:
    """A server on a Unix socket. `longest`: up to how many bytes of body it says how many there were."""

    name: str
    socket: str
    longest: int


@contextmanager
def all_readers(folder: Path) -> Iterator[tuple[Reader, ...]]:
    """All three servers, ready, until the context ends."""
    with ExitStack() as stack:
        yield tuple(
            stack.enter_context(_running(name, start(folder), folder, longest))
            for name, start, longest in (
                ("nginx", _nginx, 1 << 31),  # answers before it has read the body
                ("haproxy", _haproxy, BUFFER // 2),
                ("uvicorn", _uvicorn, SENT_BODY),
            )
        )


@contextmanager
def _running(name: str, argv: Sequence[str], folder: Path, longest: int) -> Iterator[Reader]:
    reader = Reader(name, str(folder / f"{name}.sock"), longest)
    process = Process(argv, name=name, log=folder / f"{name}.log")
    try:
        process.wait_ready(lambda: _accepts(reader))
        yield reader
    finally:
        process.stop()


def _accepts(reader: Reader) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(reader.socket)
        except OSError:
            return False
        return True


def _nginx(folder: Path) -> list[str]:
    file = folder / "nginx.conf"
    file.write_text(_NGINX.substitute(folder=folder, socket=folder / "nginx.sock"))
    return ["nginx", "-p", str(folder), "-c", str(file), "-e", "stderr"]


def _haproxy(folder: Path) -> list[str]:
    file = folder / "haproxy.cfg"
    file.write_text(_HAPROXY.substitute(buffer=BUFFER, fields=_HAPROXY_FIELDS, socket=folder / "haproxy.sock"))
    return ["haproxy", "-db", "-f", str(file)]


def _uvicorn(folder: Path) -> list[str]:
    options = ["--http", "httptools", "--lifespan", "off", "--log-level", "critical", "--no-access-log"]
    where = ["--app-dir", str(Path(__file__).parent), "--uds", str(folder / "uvicorn.sock")]
    return [sys.executable, "-m", "uvicorn", "echo:app", *where, *options, "--no-date-header", "--no-server-header"]


# ---- asking the servers ---------------------------------------------------------------------------------


def exchange(reader: Reader, questions: Sequence[Question]) -> list[Heard]:
    """Asks each on a connection of its own, all at a time; what came back of each.

    The later request follows once there is an answer to the first, as the router wants it of clients.
    """
    conversations = [_Conversation(reader, question) for question in questions]
    try:
        for number in range(max((len(question.pieces) for question in questions), default=0)):
            for conversation in conversations:
                conversation.send_piece(number)
        for conversation in conversations:
            conversation.hear_first()
            conversation.send_later()
        for conversation in conversations:
            conversation.hear_rest()
        return [conversation.heard for conversation in conversations]
    finally:
        for conversation in conversations:
            conversation.close()


class _Conversation:
    """A connection to a server, and what was heard on it so far."""

    def __init__(self, reader: Reader, question: Question) -> None:
        self._question = question
        self._text, self._closed, self._waits = b"", False, False
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE)
        self._socket.connect(reader.socket)

    @property
    def heard(self) -> Heard:
        return Heard(_answers(self._text), self._closed)

    def send_piece(self, number: int) -> None:
        """Once the server has taken what came before: so that it reads this by itself, as a segment of its own."""
        if number >= len(self._question.pieces):
            return
        unread = bytearray(4)
        while fcntl.ioctl(self._socket, SIOCOUTQ, unread) == 0 and any(unread):
            os.sched_yield()
        self._send(self._question.pieces[number])

    def hear_first(self) -> None:
        while not self._over and not _FINAL.search(self._text):
            self._receive()

    def send_later(self) -> None:
        if self._over:
            return
        if self._question.marker:
            self._send(self._question.later)
        else:
            self._socket.shutdown(socket.SHUT_WR)

    def hear_rest(self) -> None:
        while not self._over:
            self._receive()

    def close(self) -> None:
        self._socket.close()

    def _send(self, piece: bytes) -> None:
        with suppress(OSError):  # the server has answered and closed already
            self._socket.sendall(piece)

    @property
    def _over(self) -> bool:
        return self._closed or self._waits

    def _receive(self) -> None:
        try:
            more = self._socket.recv(BUFFER)
        except TimeoutError:
            self._waits = True
            return
        except ConnectionResetError:  # closed before it had read everything: said after all that it answered
            more = b""
        self._text += more
        self._closed = not more


_FINAL = re.compile(rb"HTTP/1\.[01] [2-5][0-9][0-9].*?\r\n\r\n", re.DOTALL)
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})")


def _answers(text: bytes) -> tuple[Seen, ...]:
    answers = []
    while text:
        head, _, text = text.partition(b"\r\n\r\n")
        line, *rest = head.split(b"\r\n")
        status = _STATUS.match(line)
        assert status, f"an answer that is none: {head!r}"
        if status[1] == b"100":
            continue
        fields = {name.lower(): value for name, _, value in (field.partition(b": ") for field in rest)}
        body = int(fields.get(b"content-length", len(text)))
        text = text[body:] if fields.get(b"x-method") != b"HEAD" else text
        answers.append(_seen(int(status[1]), fields))
    return tuple(answers)


def _seen(status: int, fields: dict[bytes, bytes]) -> Seen:
    return Seen(
        status,
        fields.get(b"x-method", b"").decode("latin-1"),
        fields.get(b"x-target", b""),
        fields.get(b"x-path"),
        fields.get(b"x-host", b""),
        int(fields.get(b"x-length") or 0),
    )


# ---- h11 ------------------------------------------------------------------------------------------------


def read_with_h11(question: Question) -> Heard:
    """What a server made with h11 sees of the same bytes."""
    connection, seen = h11.Connection(h11.SERVER), []
    for piece in question.pieces:
        connection.receive_data(piece)
    later = [question.later]
    try:
        while request := _next_request(connection):
            seen.append(request)
            connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            if connection.our_state is h11.SWITCHED_PROTOCOL:
                break  # a tunnel: what follows is not HTTP
            connection.send(h11.EndOfMessage())
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return Heard(tuple(seen), closed=connection.our_state is h11.MUST_CLOSE)
            connection.start_next_cycle()
            if later:
                connection.receive_data(later.pop())
    except h11.RemoteProtocolError as error:
        return Heard((*seen, Seen(error.error_status_hint)), closed=True)
    return Heard(tuple(seen), closed=False)


def _next_request(connection: h11.Connection) -> Seen | None:
    """None when it waits for more."""
    request, length = None, 0
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            length += len(event.data)
        elif isinstance(event, h11.EndOfMessage) and request:
            hosts = [value for name, value in request.headers if name == b"host"]
            return Seen(200, request.method.decode("latin-1"), request.target, None, b"".join(hosts), length)
        else:
            return None
