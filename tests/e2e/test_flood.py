"""The lab's SYN flood is what it says it is, and ends where it should; and what it is good for: clients, and a transfer
in whose name 100,000 segments are spoofed meanwhile, do not notice.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from e2e.bench import SECONDS, Bench, Conversation, bench, eventually, request
from e2e.wire import Packet, capture, segment, send
from lab.background import Cpu, Metered, SynFlood
from lab.checks import flood as checks
from lab.errors import LabError
from lab.flood import Flood, flooding, replay
from lab.interfaces import CheckResult
from lab.measure.connect import Connect, ConnectInstrument
from lab.measure.replay import on_one_cpu
from lab.servers import content
from lab.topology import INSTRUMENTS, Host
from rauta.bpf import BpfObject, attach_xdp, xdp_context

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

FILE = Path(__file__).parent / "data" / "crowded.yaml"
RATE = 200_000
"""SYNs a second: enough for a test, on a machine that does other things as well"""
BODY, DOWNLOAD = content(13), content(5_000_000)


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench("rauta", tmp_path_factory.mktemp("logs"), FILE) as one:
        yield one


@contextmanager
def flooded(crowded: Bench) -> Iterator[Flood]:
    with flooding(crowded.network, crowded.running, "api", RATE) as flood:
        yield flood


def received(host: Host) -> int:
    """Frames that a host has got."""
    with host.entered():
        line = next(line for line in Path("/proc/thread-self/net/dev").read_text().splitlines() if "eth0" in line)
    return int(line.split()[2])


# ---- the flood itself -----------------------------------------------------------------------------------


def test_all_of_it_comes_to_the_router_by_the_switch_and_no_answer_gets_further(crowded: Bench) -> None:
    (attacker,), (api,) = crowded.network.attackers, crowded.network.servers("api")
    before, grown = {host: received(host) for host in (attacker, api)}, crowded.growth()
    with flooded(crowded) as flood:
        eventually(lambda: grown["TX_SYN_ACK"] > RATE // 2, "the flood to be answered")
        with crowded.connected() as connection:
            assert connection.ask("/api/x").body == BODY
        assert flood.strangers([crowded.client]) == 0
        flood.stop()
        eventually(lambda: flood.ended == grown["TX_SYN_ACK"] - 1, "the last answer to be off the wire")
        assert flood.entered == flood.sent
    assert flood.sent is not None
    assert grown["TX_SYN_ACK"] - 1 <= flood.sent
    for host in (attacker, api):
        assert received(host) - before[host] < 100, "the client's, and what kernels say by themselves"


def test_a_flood_that_ends_early_is_noticed(crowded: Bench) -> None:
    def kill() -> None:
        with flooded(crowded) as flood:
            os.kill(flood.process.pid, signal.SIGKILL)
            eventually(lambda: flood.process.poll() is not None, "it to end")

    with pytest.raises(LabError, match="ended early"):
        kill()


def test_it_ends_by_itself(crowded: Bench) -> None:
    def wait_for_it() -> None:
        with flooding(crowded.network, crowded.running, "api", RATE, seconds=0.01) as flood:
            eventually(lambda: flood.process.poll() is not None, "it to end")

    with pytest.raises(LabError, match="ended early"):
        wait_for_it()


def test_nothing_of_it_stays(crowded: Bench) -> None:
    (attacker,) = crowded.network.attackers
    with capture(attacker) as wire:
        address = attacker.address, 7
        send(attacker, segment(address, crowded.vip("shop"), "S", seq=1))
        eventually(lambda: bool(wire.received()), "the answer, by the switch, as ever")


# ---- as a load ------------------------------------------------------------------------------------------


def test_a_sample_says_what_the_flood_did_meanwhile(crowded: Bench) -> None:
    model = Connect(layer="http", tool="connect", path="/api/x", cluster="api", rate=300, connections=16, duration="1s")
    load = SynFlood(syn_flood=RATE, cluster="api")
    grown, watch = crowded.growth(), Metered(_Watch(), [])
    with load.running(crowded.network, crowded.running, crowded.scenario) as standing:
        watch.loads = [standing]
        sample = ConnectInstrument(model, crowded.network.clients, 0.0).sample("rauta", crowded.running, watch)
    assert sample.valid, sample.reason
    assert sample.histogram is not None
    assert (sample.quantities["failed"], sample.histogram.count, sample.requests) == (0, 300, 300)
    assert sample.quantities["program"] > 0
    assert set(watch.figures) == set(load.quantities)
    assert 0.1 * RATE < watch.figures["syns"] < 1.2 * RATE, "never faster, whatever it has to make up for"
    assert watch.figures["syns"] < grown["TX_SYN_ACK"]
    assert 0 < watch.figures["load"] < 1.1
    assert 0 <= watch.figures["syn-loss"] < 1


def test_a_load_of_cpu_time_takes_no_more_than_its_share(crowded: Bench) -> None:
    load = Cpu(cpu="20%")
    with load.running(crowded.network, crowded.running, crowded.scenario) as standing:
        watch = Metered(_Watch(), [standing])
        with watch:
            eventually(lambda: standing.read()["cpu"] > 0.1, "it to take some")
    assert 0 < watch.figures["load"] < 0.3


class _Watch:
    """Watches nothing."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


# ---- the checks -----------------------------------------------------------------------------------------


def checked(crowded: Bench, check: Any) -> CheckResult:
    result: CheckResult = check.run(crowded.context())
    return result


FLOODED = checks.SynFlood(syn_flood=RATE, cluster="api", path="/api/x", rate=200, duration="500ms")
CONSTANT = checks.MemoryConstant(memory_constant="16MB", syns=50_000, rate=RATE, cluster="api")
CLIENTS = checks.FlowsOf(flows_of="clients")


def test_the_checks_pass(crowded: Bench) -> None:
    for check in (FLOODED, CONSTANT, CLIENTS):
        result = checked(crowded, check)
        assert result.passed, result.detail


def test_a_connection_that_fails_is_seen(crowded: Bench) -> None:
    crowded.network.servers("api")[0].stop_all()
    result = checked(crowded, FLOODED)
    crowded.restart_server("api")
    assert not result.passed
    assert "0 of 100 answered" in result.detail


def test_a_half_open_connection_is_seen(crowded: Bench) -> None:
    """On a backend, whose kernel is asked by somebody to whom it cannot answer."""
    (api,), nobody = crowded.network.servers("api"), (crowded.network.attackers[0].address + 5, 4000)
    send(crowded.client, segment(nobody, (api.address, 8080), "S", seq=1))
    result = checked(crowded, CONSTANT)
    assert not result.passed
    assert "api-1" in result.detail


def test_a_strangers_entry_is_seen(crowded: Bench) -> None:
    (attacker,), (address, port) = crowded.network.attackers, crowded.vip("shop")
    with attacker.entered():
        sock = socket.socket()
    with sock:
        sock.connect((str(address), port))
        sock.sendall(request("/api/x"))
        assert sock.recv(100).startswith(b"HTTP/1.1 200 ")
    result = checked(crowded, CLIENTS)
    assert not result.passed
    assert str(attacker.address) in result.detail


# ---- in somebody else's name ----------------------------------------------------------------------------

KINDS = {"S": b"", "R": b"", "RA": b"", "FA": b"", "PA": request("/api/y"), "A": bytes(400)}
TIMES = 5
SPOOFED = 100_000


def test_a_transfer_survives_100_000_spoofed_segments(crowded: Bench) -> None:
    """With its very addresses and ports, from its client's own cable, so that whatever they provoke comes to the
    client: resets, ends, data, requests and SYNs with numbers that are drawn.
    """
    grown = crowded.growth()
    with capture(crowded.client) as wire, crowded.connected() as connection:
        assert connection.ask("/api/x").body == BODY
        last = next(packet for packet in wire.sent() if packet.payload)
        connection.sock.sendall(request("/api/download"))
        with spoofer(crowded, last) as spoof:
            body = read_while(connection, spoof)
        assert body == DOWNLOAD
        assert connection.ask("/api/x").body == BODY, "and the connection is as good as ever"
    each = SPOOFED // len(KINDS)
    assert 0.5 * each < grown["TX_SYN_ACK"] <= each + 1
    assert 0.5 * 3 * each < grown["FORWARDED_CLOSE"] <= 3 * each + 2
    assert 0.5 * 2 * each < grown["DROP_CHANGED"] + grown["DROP_OUT_OF_ORDER"] <= 2 * each
    assert (grown["ROUTED_FIRST"], grown["ROUTED_NEXT"]) == (1, 2), grown


@contextmanager
def spoofer(crowded: Bench, last: Packet) -> Iterator[Future[None]]:
    """A thread that floods the connection which a segment is of; its end is waited for."""
    client, network = crowded.client, crowded.network
    with BpfObject.open(INSTRUMENTS) as instruments:
        instruments.load()
        instruments.maps["under_test"].update(0, instruments.programs["xdp_tx"])
        with network.fabric.entered():
            gate = attach_xdp(
                socket.if_nametoindex(network.port(client)), instruments.programs["xdp_pass"], mode="native"
            )
        with ThreadPoolExecutor(1) as pool:
            yield pool.submit(spoof, instruments, network.router, client, last)
        with network.fabric.entered():
            gate.detach()


def spoof(instruments: BpfObject, router: Host, client: Host, last: Packet) -> None:
    """All kinds in turn."""
    header = bytes.fromhex((router.mac + client.mac).replace(":", "")) + b"\x08\x00"
    with client.entered(), on_one_cpu():
        for salt in range(TIMES):
            for number, (flags, payload) in enumerate(KINDS.items()):
                packet = segment(last.source, last.destination, flags, seq=1, ack="A" in flags, payload=payload)
                value = replay(header + packet, salt=len(KINDS) * salt + number) | {"flows": 1, "ports": 0}
                instruments.maps["replays"].update(0, value | {"frame": header + packet})
                context = xdp_context(len(header + packet), ingress_ifindex=socket.if_nametoindex("eth0"))
                count = SPOOFED // len(KINDS) // TIMES
                instruments.programs["replay"].run_live_frames(header + packet, ctx=context, repeat=count)


def read_while(connection: Conversation, spoof: Future[None]) -> bytes:
    """The answer's body, of which some is left to read until the flood has ended."""
    data = bytearray()
    while b"\r\n\r\n" not in data:
        data += connection.sock.recv(1000)
    head, _, rest = bytes(data).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    body = bytearray(rest)
    while len(body) < len(DOWNLOAD):
        if len(body) > 0.9 * len(DOWNLOAD):
            spoof.result(SECONDS)
        body += connection.sock.recv(1 << 16)
        wait([spoof], 0.01)  # not faster than the flood
    return bytes(body)
