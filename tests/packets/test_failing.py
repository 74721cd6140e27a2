"""Whom the router's user space probes when a backend is down."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator

import pytest

from packets.bench import BACKENDS, Router, throwaway_namespace
from packets.frames import CLIENT, Connection
from packets.oracle import FLOW_MOVING
from rauta import failing

FLOW_OPEN, FLOW_ANSWERED = 1, 3
REACHED, ELSEWHERE = Connection(), Connection(client="198.18.99.1", port=40_001)


@pytest.fixture(autouse=True)
def reachable() -> Iterator[None]:
    """A namespace from which there is a way to one client, and to nobody else."""
    with throwaway_namespace():
        for words in ("link set lo up", f"route add local {CLIENT}/32 dev lo"):
            subprocess.run(["ip", *words.split()], check=True)
        yield


def known(router: Router, connection: Connection, backend: str = "web-1", state: int = FLOW_OPEN) -> None:
    router.put_flow(
        connection, backend=BACKENDS[backend].index, state=state, next_request_seq=1_000, request_ack=0x8000_0001
    )


def test_a_client_that_cannot_be_reached_does_not_keep_others_from_their_probe(router: Router) -> None:
    known(router, ELSEWHERE)
    known(router, REACHED)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as heard:
        heard.settimeout(1)
        assert failing.probe(router.object, BACKENDS["web-1"].index) == 1
        packet = heard.recv(100)
    assert socket.inet_ntoa(packet[16:20]) == CLIENT
    assert packet[20:24] == REACHED.server_port.to_bytes(2, "big") + REACHED.port.to_bytes(2, "big")
    assert (packet[24:28], packet[28:32], packet[33]) == (b"\x80\0\0\0", (1_000).to_bytes(4, "big"), 0x10)


@pytest.mark.parametrize("other", [{"backend": "web-2"}, {"state": FLOW_ANSWERED}, {"state": FLOW_MOVING}], ids=str)
def test_only_who_has_a_request_at_the_backend_is_probed(router: Router, other: dict[str, int]) -> None:
    known(router, REACHED, **other)  # type: ignore[arg-type]
    assert list(failing.connections_of(router.object, BACKENDS["web-1"].index)) == []
