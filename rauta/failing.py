"""What becomes of the connections of a backend that is down.

Idle ones go on elsewhere at their next request: the router's program sees to that (bpf/order.h). Who waits for an
answer says nothing, and would wait for ever. So user space sends each connection of the backend a probe: a segment
whose place in the stream has long been received. Its client acknowledges what it has got so far (RFC 9293, 3.10.7.4),
and the program resets it if that is no byte of the newest answer. Nothing is reset that has not said so itself.

A client that has got a part of an answer looks like an idle one. So there is a second stage: once a backend is given
up, whoever has not asked again by then is reset as well, when he is probed. An idle client notices that, if at all, as
he does a server's own idle timeout.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from rauta.bpf import BpfObject
from rauta.flows import flows
from rauta.segments import ACK, Connection, segment

__all__ = ["GIVE_UP_SECONDS", "connections_of", "probe"]

_32_BITS = 0xFFFFFFFF
_WAITING = ("FLOW_OPEN", "FLOW_CLOSING")
GIVE_UP_SECONDS = 30.0
"""from a host's failure until it should be given up: what a client that has a part of its answer waits at most"""


def connections_of(ingress: BpfObject, backend: int) -> Iterator[tuple[Connection, int, int]]:
    """The connections that a router has with the backend of that index.

    Yields:
        the connection; the byte that follows its newest request; what its client had acknowledged with that.
    """
    for flow in flows(ingress):
        if flow.backend == backend and flow.state in _WAITING:
            yield flow.connection, flow.fields["next_request_seq"], flow.fields["request_ack"]


def probe(ingress: BpfObject, backend: int) -> int:
    """Probes all connections that a router has with a backend, from the calling thread's network namespace.

    Returns:
        how many could be sent to.
    """
    count = 0
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for connection, following, acknowledged in connections_of(ingress, backend):
            packet = segment(connection, acknowledged - 1 & _32_BITS, following, ACK)
            with contextlib.suppress(OSError):  # no way to this one
                raw.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))
                count += 1
    return count
