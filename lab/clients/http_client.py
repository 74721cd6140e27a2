"""Python's http.client, in this process: sockets belong to the namespace in which they were made."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import contextmanager

from lab.clients.answer import Answer, NoAnswer, Request
from lab.topology import Host


class Connection:
    """A connection that may carry several requests. ``port``: the client's own."""

    def __init__(self, host: Host, first: Request) -> None:
        self._connection = http.client.HTTPConnection(str(first.address), first.port, timeout=first.seconds)
        with _explained(first), host.entered():
            self._connection.connect()
        self.port: int = self._connection.sock.getsockname()[1]

    def ask(self, request: Request) -> Answer:
        """One more request. NoAnswer if there is none in time, or the connection has ended."""
        with _explained(request):
            if self._connection.sock is None:
                raise ConnectionError("the server has closed the connection")
            self._connection.request(request.method, request.path, headers={"Host": request.host})
            response = self._connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, headers, response.read())

    def close(self) -> None:
        """End it."""
        self._connection.close()


@contextmanager
def connected(host: Host, first: Request) -> Iterator[Connection]:
    """A connection to where a request is to go, from a host."""
    connection = Connection(host, first)
    try:
        yield connection
    finally:
        connection.close()


def ask(host: Host, request: Request) -> Answer:
    """Send a request from a host, on a connection of its own. NoAnswer if there is none in time."""
    with connected(host, request) as connection:
        return connection.ask(request)


@contextmanager
def _explained(request: Request) -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        reset = isinstance(error, ConnectionResetError) and not isinstance(error, http.client.RemoteDisconnected)
        raise NoAnswer(f"http.client: {request}", repr(error), reset=reset) from error
