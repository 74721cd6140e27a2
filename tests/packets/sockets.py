"""Real sockets on a connection's tuple at the server, without a server: established, in TIME_WAIT, listening.

TCP_REPAIR (tcp(7), used by CRIU) makes them established without a handshake, and closes them without a word.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

from packets.frames import CLIENT, LOCAL, LOCAL_PORT, Connection

TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ = 19, 20, 21  # include/uapi/linux/tcp.h
TCP_RECV_QUEUE, TCP_SEND_QUEUE = 1, 2
SO_TCP = socket.IPPROTO_TCP
IPPROTO_MPTCP = 262
SECONDS = 5.0


@contextmanager
def established(connection: Connection, *, expected: int | None = None) -> Iterator[None]:
    """A socket that has said and heard nothing yet. It waits for the byte `expected`, by default the first."""
    with socket.socket() as sock:
        sock.setsockopt(SO_TCP, TCP_REPAIR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((LOCAL, LOCAL_PORT))
        received = connection.start if expected is None else expected
        for queue, seq in ((TCP_RECV_QUEUE, received), (TCP_SEND_QUEUE, connection.cookie + 1 & 0xFFFFFFFF)):
            sock.setsockopt(SO_TCP, TCP_REPAIR_QUEUE, queue)
            sock.setsockopt(SO_TCP, TCP_QUEUE_SEQ, _signed(seq))
        sock.connect((CLIENT, connection.port))
        yield


def _signed(number: int) -> int:
    """Socket options are C integers."""
    return number - (1 << 32) if number >> 31 else number


@contextmanager
def waiting(connection: Connection) -> Iterator[int]:
    """A direct connection that the server has closed: in TIME_WAIT. The number that it expects next."""
    with listening() as listener:
        with socket.socket() as client:
            client.settimeout(SECONDS)
            client.bind((CLIENT, connection.port))
            client.connect((LOCAL, LOCAL_PORT))
            with closing(listener.accept()[0]) as accepted:
                accepted.settimeout(SECONDS)
                accepted.shutdown(socket.SHUT_WR)
                assert client.recv(1) == b""
                client.setsockopt(SO_TCP, TCP_REPAIR, 1)
                client.setsockopt(SO_TCP, TCP_REPAIR_QUEUE, TCP_SEND_QUEUE)
                expected = client.getsockopt(SO_TCP, TCP_QUEUE_SEQ) & 0xFFFFFFFF
                client.setsockopt(SO_TCP, TCP_REPAIR, -1)  # off, without a window probe
                client.shutdown(socket.SHUT_WR)
                assert accepted.recv(1) == b""
        yield expected + 1 & 0xFFFFFFFF


@contextmanager
def listening(protocol: int = 0) -> Iterator[socket.socket]:
    """The server's listener, by default with TCP."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOCAL, LOCAL_PORT))
        listener.listen()
        listener.settimeout(SECONDS)
        yield listener
