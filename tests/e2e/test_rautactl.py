"""rautactl as a process, against `rauta run` as a process: what is answered, how streams end, and who may ask.

What is sent by whoever can open the socket is in tests/e2e/test_control_socket.py.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from e2e.bench import HOST, Bench, bench, eventually
from rauta.bpf import Map
from rauta.loading import is_router_verdict
from rauta.processes.instance import Instance
from rauta.upgrade import pins

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root"),
    pytest.mark.usefixtures("may_repeat"),
]

RAUTACTL = (sys.executable, "-c", "from rauta.ctl import main; main()")
SECONDS = 30.0
"""for whatever a test waits for: a Python process starts in 0.3 of them"""
NOBODY = 65534


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench("rauta-run", tmp_path_factory.mktemp("logs")) as one:
        yield one


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Bench]:
    """For tests that kill the router."""
    with bench("rauta-run", tmp_path) as one:
        yield one


def instance_of(shop: Bench) -> Instance:
    part = shop.running.routers[0]
    assert isinstance(part.instance, Instance)
    return part.instance


def rautactl(shop: Bench, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs it, and asserts its exit code, and that it never shows a traceback."""
    argv = [*RAUTACTL, *arguments, "--name", instance_of(shop).name]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def told(shop: Bench, *arguments: str, code: int = 0) -> Any:
    """Its answer as JSON."""
    return json.loads(rautactl(shop, *arguments, "--json", code=code).stdout)


class Streaming:
    """A rautactl that goes on, whose lines are read as they come."""

    def __init__(self, shop: Bench, *arguments: str) -> None:
        argv = [*RAUTACTL, *arguments, "--name", instance_of(shop).name]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._read = b""

    def items(self, count: int) -> list[Any]:
        """So many lines, of JSON."""
        assert self.process.stdout is not None
        end = time.monotonic() + SECONDS
        while self._read.count(b"\n") < count:
            ready = select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))[0]
            data = os.read(self.process.stdout.fileno(), 1 << 16) if ready else b""
            assert data, (self._read, self.process.poll())
            self._read += data
        *lines, rest = self._read.split(b"\n", count)
        self._read = rest
        return [json.loads(line) for line in lines]

    def waiting(self) -> list[Any]:
        """The lines that have been read already."""
        return self.items(self._read.count(b"\n"))

    def end(self, number: signal.Signals | None, code: int) -> str:
        """By a signal, or by itself; what it has said on stderr."""
        if number is not None:
            self.process.send_signal(number)
        _, stderr = self.process.communicate(timeout=SECONDS)
        assert self.process.returncode == code, stderr
        assert b"Traceback" not in stderr
        return stderr.decode()


@contextmanager
def streaming(shop: Bench, *arguments: str) -> Iterator[Streaming]:
    one = Streaming(shop, *arguments, "--json")
    try:
        yield one
    finally:
        one.process.kill()
        one.process.communicate()


def follow_map(shop: Bench) -> dict[str, int]:
    """What the packet path has been told to follow."""
    with closing(Map.from_pin(pins.folder(instance_of(shop).name) / "router" / "follow")) as one:
        entry: dict[str, int] = one.lookup(0)
        return entry


@contextmanager
def followed(shop: Bench, *arguments: str) -> Iterator[Streaming]:
    """From the moment on when it follows."""
    with streaming(shop, "follow", *arguments) as one:
        eventually(lambda: bool(follow_map(shop)["enabled"]), "it to follow", SECONDS)
        yield one


# ---- what there is ----------------------------------------------------------------------------------------


def test_status(shop: Bench) -> None:
    status = told(shop, "status")
    assert status["instance"] == instance_of(shop).name
    assert status["interfaces"] == [{"name": "eth0", "mode": "native"}]
    assert [vip["name"] for vip in status["vips"]] == ["shop", "strict"]
    assert (status["clusters"], status["backends"], status["error"]) == (3, 4, "")
    assert (status["drained"], status["unhealthy"], status["unreached"]) == ([], [], [])
    text = rautactl(shop, "status").stdout
    assert "interfaces     eth0 (native)" in text
    assert "shop 198.18.100.80:80, strict 198.18.100.81:80" in text


def test_routes_and_how_many_requests_they_have_had(shop: Bench) -> None:
    before = {route["id"]: route["requests"] for route in told(shop, "routes")}
    with shop.connected() as connection:
        for path in ("/web", "/web/x", "/api"):
            assert connection.ask(path).status == 200
    after = told(shop, "routes")
    grown = {(route["vip"], route["path"]): route["requests"] - before[route["id"]] for route in after}
    assert grown == {("shop", "/api"): 1, ("shop", "/web"): 2, ("strict", "/api"): 0}


def test_routes_can_be_filtered(shop: Bench) -> None:
    with shop.connected() as connection:
        connection.ask("/web")
        connection.ask("/api")
    assert {route["vip"] for route in told(shop, "routes", "--vip", "strict")} == {"strict"}
    assert [route["path"] for route in told(shop, "routes", "--cluster", "web")] == ["/web"]
    assert [route["cluster"] for route in told(shop, "routes", "--unused")] == ["quiet"]
    said = rautactl(shop, "routes", "--vip", "none", code=2).stderr
    assert said == "rautactl: looking for VIP 'none': there is none of that name\nThere are: shop, strict.\n"


def test_backends_with_weight_health_flows_and_rate(shop: Bench) -> None:
    with shop.connected() as connection:
        backend = connection.ask("/web").backend
        before = {one["name"]: one for one in told(shop, "backends")}
        process = shop.client.start(
            [sys.executable, "-c", LOAD, *map(str, shop.vip("shop"))], name="load"
        )  # asks for 3 seconds
        try:
            eventually(lambda: rate_of(shop, "api-1") > 0, "a rate", SECONDS)
        finally:
            process.stop()
        after = {one["name"]: one for one in told(shop, "backends", "--cluster", "web")}
    assert set(after) == {"web-1", "web-2"}
    one = before[backend]
    assert (one["cluster"], one["state"], one["weight"], one["effective_weight"]) == ("web", "unchecked", 1, 1)
    assert one["flows"] >= 1


LOAD = """
import http.client, sys, time
end = time.monotonic() + 20
connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]))
while time.monotonic() < end:
    connection.request("GET", "/api", headers={"Host": "shop.test"})
    connection.getresponse().read()
    time.sleep(0.01)
"""


def rate_of(shop: Bench, backend: str) -> float:
    (rate,) = (one["requests_per_second"] for one in shop.running.ask("backends") if one["name"] == backend)
    return float(rate)


def test_flows_of_a_client_of_a_backend_in_a_state(shop: Bench) -> None:
    with shop.connected() as connection:
        backend = connection.ask("/web").backend
        client = f"{shop.client.address}:{connection.port}"
        (flow,) = told(shop, "flows", "--client", client)["flows"]
        assert flow == {
            "client": client, "vip": "198.18.100.80:80", "state": "open", "backend": backend, "cluster": "web",
        }  # fmt: skip
        by_backend = told(shop, "flows", "--backend", backend, "--state", "open")["flows"]
        assert flow in by_backend
        assert {one["backend"] for one in by_backend} == {backend}
        assert told(shop, "flows", "--client", client, "--state", "closing")["flows"] == []
        assert told(shop, "flows", "--client", "198.18.0.77")["matching"] == 0
        assert client in rautactl(shop, "flows", "--client", client).stdout
    eventually(lambda: told(shop, "flows", "--client", client, "--state", "live")["matching"] == 0, "its end")


def test_flows_are_limited_and_counted_all_the_same(shop: Bench) -> None:
    for _ in range(4):
        with shop.connected() as connection:
            connection.ask("/web")
    answer = told(shop, "flows", "--limit", "2")
    assert len(answer["flows"]) == 2
    assert answer["matching"] == sum(answer["states"].values()) >= 4
    assert f"and {answer['matching'] - 2} more" in rautactl(shop, "flows", "--limit", "2").stdout


def test_the_clients_that_have_most(shop: Bench) -> None:
    with shop.connected() as connection:
        connection.ask("/web")
        answer = told(shop, "flows", "--top", "3")
    assert answer["flows"] == []
    assert answer["top"] == [{"client": str(shop.client.address), "flows": answer["matching"]}]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["flows", "--client", "somebody"], "that is no IPv4 address, with or without a port"),
        (["flows", "--state", "odd"], "there is no such state"),
        (["flows", "--backend", "odd"], "there is none of that name"),
        (["events", "--verdict", "odd"], "there is none that begins so"),
        (["drain", "odd"], "there is none of that name"),
        (["explain", "GET "], "it names no path"),
        (["explain", "/web", "--vip", "shop", "--client", "198.18.0.1"], "without a port, no backend can be told"),
    ],
    ids=str,
)
def test_what_cannot_be_is_said(shop: Bench, arguments: list[str], said: str) -> None:
    assert said in rautactl(shop, *arguments, code=2).stderr


def test_metrics(shop: Bench) -> None:
    before = told(shop, "metrics")
    with shop.connected() as connection:
        connection.ask("/web")
    after = told(shop, "metrics")
    assert after["packets_routed"] == before["packets_routed"] + 1
    assert after["packets_dropped"] > before["packets_dropped"]  # the handshake's acknowledgement
    assert after["packets_processed"] >= before["packets_processed"] + 4
    assert 0 < after["avg_latency_us"] < 1e6
    assert 0 < after["p99_latency_us"] < 1e6
    assert "packets_routed" in rautactl(shop, "metrics").stdout


def test_counters_add_up_to_the_metrics(shop: Bench) -> None:
    counters, metrics = told(shop, "counters"), told(shop, "metrics")
    verdicts = {name: packets for name, packets in counters.items() if name.isupper() and is_router_verdict(name)}
    assert sum(verdicts.values()) == metrics["packets_processed"]


# ---- explain ----------------------------------------------------------------------------------------------


def explained(shop: Bench, path: str, *arguments: str) -> Any:
    return told(shop, "explain", f"GET http://{HOST}{path}", "--vip", "shop", *arguments)


def test_it_names_the_very_backend_that_a_client_gets(shop: Bench) -> None:
    ports = range(51000, 51008)
    named = {}
    for port in ports:
        answer = explained(shop, "/web", "--client", f"{shop.client.address}:{port}")
        assert (answer["kind"], answer["cluster"]["name"], answer["client"]["flow"]) == ("route", "web", None)
        named[port] = answer["client"]["backend"]
    got = {}
    for port in ports:
        with shop.connected(port=port) as connection:
            got[port] = connection.ask("/web").backend
    assert named == got
    assert len(set(got.values())) == 2


def test_it_says_where_a_client_is_and_where_its_next_request_goes(shop: Bench) -> None:
    with shop.connected() as connection:
        backend = connection.ask("/web").backend
        client = f"{shop.client.address}:{connection.port}"
        stays, moves = (explained(shop, path, "--client", client)["client"]["flow"] for path in ("/web", "/api"))
        assert (stays["backend"], stays["next"]) == (backend, backend)
        assert (moves["backend"], moves["next"]) == (backend, "api-1")
        said = rautactl(shop, "explain", f"GET http://{HOST}/api", "--vip", "shop", "--client", client).stdout
        assert f"{client} has a connection: open, at {backend}" in said
        assert "this one moves it to api-1" in said
        assert connection.ask("/api").backend == "api-1"


def test_it_goes_by_the_weights_of_now(shop: Bench) -> None:
    assert {one["name"]: round(one["share"], 1) for one in explained(shop, "/web")["backends"]} == {
        "web-1": 0.5,
        "web-2": 0.5,
    }
    told(shop, "drain", "web-2")
    try:
        answer = explained(shop, "/web", "--client", f"{shop.client.address}:51100")
        assert {one["name"]: one["share"] for one in answer["backends"]} == {"web-1": 1.0, "web-2": 0.0}
        assert answer["client"]["backend"] == "web-1"
    finally:
        told(shop, "undrain", "web-2")


def test_it_says_what_is_refused(shop: Bench) -> None:
    answer = told(shop, "explain", "GET /nowhere", "-H", "Host: shop.test", "--vip", "shop")
    assert (answer["kind"], answer["status"], answer["route"]) == ("answer", 404, None)
    assert {one["outcome"] for one in answer["candidates"]} == {"no match"}
    assert answer["request"]["host"] == "shop.test"


def test_no_key_is_told(shop: Bench) -> None:
    answer = explained(shop, "/web", "--client", f"{shop.client.address}:51101")
    assert set(answer["client"]) == {"address", "port", "slot", "backend", "flow"}


# ---- what is done -----------------------------------------------------------------------------------------


def test_drain_waits_until_nobody_is_left(shop: Bench) -> None:
    with shop.connected() as connection:
        backend = connection.ask("/web").backend
        answer = told(shop, "drain", backend, "--wait", "0.5", code=1)
        assert answer["drained"] == [backend]
        assert answer["flows"] >= 1
        (state,) = (one["state"] for one in shop.running.ask("backends", cluster="web") if one["name"] == backend)
        assert state == "drained"
        other = connection.ask("/web").backend
        assert other != backend
    done = rautactl(shop, "drain", backend, "--wait", "20")
    assert done.stdout == f"{backend} is drained; connections left: 0\n"
    assert told(shop, "undrain", backend) == {"drained": []}


def test_reload(shop: Bench) -> None:
    before = told(shop, "status")["generation"]
    assert told(shop, "reload") == {"generation": before + 1}


# ---- events -----------------------------------------------------------------------------------------------


def test_events_come_as_they_happen_and_end_with_ctrl_c(shop: Bench) -> None:
    with streaming(shop, "events", "--verdict", "routed_first") as events:
        with asked_until_heard(shop, events) as event:
            assert event["client"].startswith(f"{shop.client.address}:")
            assert (event["method"], event["cluster"], event["vip"]) == ("GET", "web", "shop")
            assert event["backend"] in ("web-1", "web-2")
            assert abs(event["time"] - time.time()) < SECONDS
        assert events.end(signal.SIGINT, 130) == ""


@contextmanager
def asked_until_heard(shop: Bench, events: Streaming) -> Iterator[Any]:
    """The first event, of a request that is made again and again: nobody says when a stream has begun."""
    end = time.monotonic() + SECONDS
    assert events.process.stdout is not None
    while not select.select([events.process.stdout], [], [], 0.2)[0]:
        assert time.monotonic() < end
        with shop.connected() as connection:
            connection.ask("/web")
    (event,) = events.items(1)
    yield event


def test_events_of_one_client(shop: Bench) -> None:
    port = 52000
    with streaming(shop, "events", "--client", f"{shop.client.address}:{port}") as mine:
        with streaming(shop, "events") as all_events, asked_until_heard(shop, all_events):
            pass
        with shop.connected(port=port) as connection:
            connection.ask("/web")
            connection.ask("/web")
        heard = mine.items(2)
    assert [event["verdict"] for event in heard] == ["ROUTED_FIRST", "ROUTED_NEXT"]
    assert {event["client"] for event in heard} == {f"{shop.client.address}:{port}"}


def test_head_ends_it_without_another_event(shop: Bench) -> None:
    """`rautactl events | head -1`: at once, not when the next event comes; and quietly."""
    one = Streaming(shop, "events", "--json")
    with asked_until_heard(shop, one):
        pass
    assert one.process.stdout is not None
    one.process.stdout.close()
    assert one.process.wait(SECONDS) == 0
    assert one.process.stderr is not None
    assert one.process.stderr.read() == b""
    one.process.stderr.close()


def test_streams_end_when_the_router_does(fresh: Bench) -> None:
    with streaming(fresh, "watch", "--interval", "0.1") as watch, followed(fresh, "198.18.0.1") as follow:
        watch.items(1)
        fresh.running.routers[0].stop()
        for one in (watch, follow):
            assert one.end(None, 0) == "rautactl: the router has ended\n"
        assert "Traceback" not in fresh.running.routers[0].process.output()
    said = rautactl(fresh, "status", code=2).stderr
    assert "no router listens there\nIs it running? `rauta run -c FILE` starts it." in said


# ---- follow -----------------------------------------------------------------------------------------------


def test_all_packets_of_a_client(shop: Bench) -> None:
    """The handshake, acknowledgements and the end, too."""
    port = 53000
    with followed(shop, f"{shop.client.address}:{port}") as follow:
        with shop.connected() as other:
            other.ask("/web")
        with shop.connected(port=port) as connection:
            backend = connection.ask("/web").backend
            connection.ask("/api")
        heard = follow.items(6)
        while heard[-1]["verdict"] != "FORWARDED_CLOSE":
            heard += follow.items(1)
    assert {event["client"] for event in heard} == {f"{shop.client.address}:{port}"}
    verdicts = [event["verdict"] for event in heard]
    assert verdicts[:3] == ["TX_SYN_ACK", "DROP_HANDSHAKE_ACK", "ROUTED_FIRST"]
    assert "FORWARDED" in verdicts
    assert "ROUTED_MOVED" in verdicts
    assert [event["flags"] for event in heard[:3]] == ["SYN", "ACK", "PSH ACK"]
    first = heard[2]
    length = len(f"GET /web HTTP/1.1\r\nHost: {HOST}\r\n\r\n")
    assert (first["method"], first["length"], first["route"]) == ("GET", length, f"{HOST} /web")
    assert first["backend"] == backend
    assert first["seq"] == heard[0]["seq"] + 1 & 0xFFFFFFFF


def test_of_more_packets_than_can_be_told_those_missing_are_counted(shop: Bench) -> None:
    """To the last one: what is told and what is lost are all packets of the client."""
    with followed(shop, str(shop.client.address)) as follow:
        before = shop.running.ask("metrics")["packets_processed"]
        address, port = shop.vip("shop")
        wrk = shop.client.start(
            ["wrk", "-t1", "-c16", "-d2s", "-H", f"Host: {HOST}", f"http://{address}:{port}/web"], name="wrk"
        )
        eventually(lambda: wrk.poll() is not None, "wrk to end", SECONDS)
        events, lost = 0, 0
        while events + lost < shop.running.ask("metrics")["packets_processed"] - before:
            for item in follow.items(1) + follow.waiting():
                events, lost = (events, lost + item["lost"]) if "lost" in item else (events + 1, lost)
        assert events + lost == shop.running.ask("metrics")["packets_processed"] - before > 1000
        assert events > 1000


def test_what_is_printed(shop: Bench) -> None:
    port = 53001
    one = Streaming(shop, "follow", f"{shop.client.address}:{port}")
    eventually(lambda: bool(follow_map(shop)["enabled"]), "it to follow", SECONDS)
    with shop.connected(port=port) as connection:
        backend = connection.ask("/web").backend
    assert one.process.stdout is not None
    lines = [one.process.stdout.readline().decode() for _ in range(3)]
    one.end(signal.SIGINT, 130)
    assert lines[0].endswith(f"{port} → 198.18.100.80:80  SYN → TX_SYN_ACK\n")
    assert lines[2].rstrip().endswith(f"GET 38 bytes → ROUTED_FIRST web {HOST} /web → {backend}")


def test_only_one_follows_and_he_is_named(shop: Bench) -> None:
    with followed(shop, "198.18.0.9"):
        said = rautactl(shop, "follow", "198.18.0.1", code=2).stderr
        assert said == (
            "rautactl: following 198.18.0.1: 198.18.0.9 is followed already, and only one client can be at a time\n"
            "End that `rautactl follow` first.\n"
        )


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)]
)
def test_whoever_follows_and_is_gone_follows_no_longer(shop: Bench, number: signal.Signals, code: int) -> None:
    with followed(shop, str(shop.client.address)) as follow:
        assert follow_map(shop)["client"] == int.from_bytes(IPv4Address(shop.client.address).packed, "little")
        follow.end(number, code)
        eventually(lambda: not follow_map(shop)["enabled"], "the packet path to follow nobody", SECONDS)
    with followed(shop, str(shop.client.address)):
        pass


def test_a_router_that_starts_again_follows_nobody(fresh: Bench) -> None:
    router = fresh.running.routers[0]
    with followed(fresh, str(fresh.client.address)) as follow:
        router.kill()
        follow.end(None, 0)
        assert follow_map(fresh)["enabled"]  # packets go on as they did; nobody reads what they tell
        with fresh.connected() as connection:
            assert connection.ask("/web").status == 200
        router.start()
        assert not follow_map(fresh)["enabled"]


# ---- watch ------------------------------------------------------------------------------------------------


def test_watch_says_what_is_going_on(shop: Bench) -> None:
    process = shop.client.start([sys.executable, "-c", LOAD, *map(str, shop.vip("shop"))], name="load")
    try:
        with streaming(shop, "watch", "--interval", "0.3") as watch:
            seen = next(item for _ in range(100) for item in watch.items(1) if item["requests_per_second"] > 0)
            watch.end(signal.SIGINT, 130)
    finally:
        process.stop()
    clusters = {one["name"]: one["requests_per_second"] for one in seen["clusters"]}
    backends = {one["name"]: one["requests_per_second"] for one in seen["backends"]}
    assert clusters["api"] == pytest.approx(backends["api-1"], rel=0.5)
    assert clusters["api"] > 0
    assert (clusters["quiet"], backends["quiet-1"]) == (0, 0)
    assert {one["state"] for one in seen["backends"]} == {"unchecked"}
    assert seen["seconds"] == pytest.approx(0.3, abs=5)


def test_watch_on_a_terminal_leaves_it_as_it_was(shop: Bench) -> None:
    """80 columns, 24 lines: the other screen is taken, and given back."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    argv = [*RAUTACTL, "watch", "--interval", "0.2", "--name", instance_of(shop).name]
    environment = {**os.environ, "TERM": "xterm"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    try:
        shown = read_until(master, b"quiet-1")
        assert b"\x1b[?1049h" in shown
        process.send_signal(signal.SIGINT)
        shown += read_until(master, b"\x1b[?1049l")
        assert process.wait(SECONDS) == 130
    finally:
        process.kill()
        process.wait()
        os.close(master)
    assert b"Traceback" not in shown
    assert b"requests/s" in shown


def read_until(descriptor: int, wanted: bytes) -> bytes:
    """What comes, until that is in it."""
    data, end = b"", time.monotonic() + SECONDS
    while wanted not in data:
        assert select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0], data
        data += os.read(descriptor, 1 << 16)
    return data


# ---- which router, and who may ask ------------------------------------------------------------------------


def with_instances(folder: Path, instances: Sequence[Path], *argv: str) -> subprocess.CompletedProcess[str]:
    """In a mount namespace in which there are no others: tests of other people may run at the same time."""
    script = "".join(
        f"mkdir -m 700 {folder / one.name} && mount --bind {one} {folder / one.name} && " for one in instances
    )
    script += f'mount --rbind {folder} /run/rauta && exec "$@"'
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *argv],
        capture_output=True, text=True, check=False, timeout=SECONDS,
    )  # fmt: skip


def test_the_only_one_that_runs_needs_no_name(shop: Bench, tmp_path: Path) -> None:
    """Agents, and what ended routers have left, do not count."""
    ended = tmp_path / "ended"
    ended.mkdir()
    (tmp_path / "run").mkdir()
    agent = next(iter(shop.running.agents.values())).instance.folder
    folders = [instance_of(shop).folder, agent, ended]
    done = with_instances(tmp_path / "run", folders, *RAUTACTL, "status", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["instance"] == instance_of(shop).name


def test_of_several_one_has_to_be_named(shop: Bench, tmp_path: Path) -> None:
    (tmp_path / "twin").mkdir()
    (tmp_path / "run").mkdir()
    os.link(instance_of(shop).control, tmp_path / "twin/control.sock") if same_device(shop, tmp_path) else (
        tmp_path / "twin/control.sock"
    ).symlink_to(instance_of(shop).control)
    here = instance_of(shop).folder
    done = with_instances(tmp_path / "run", [here, tmp_path / "twin"], *RAUTACTL, "status")
    assert done.returncode == 2
    assert done.stderr.startswith("rautactl: looking for a running router: 2 run here\nSay which with --name: ")
    assert here.name in done.stderr
    assert "twin" in done.stderr


def same_device(shop: Bench, folder: Path) -> bool:
    return instance_of(shop).folder.stat().st_dev == folder.stat().st_dev


def test_where_none_runs_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    done = with_instances(tmp_path / "run", [], *RAUTACTL, "status")
    assert (done.returncode, done.stderr) == (
        2,
        "rautactl: looking for a running router: none runs on this host\n`rauta run -c FILE` starts one.\n",
    )


def test_the_socket_is_roots_alone(shop: Bench) -> None:
    instance = instance_of(shop)
    assert instance.control.stat().st_mode & 0o777 == 0o600
    assert instance.folder.stat().st_mode & 0o777 == 0o700
    assert instance.folder.parent.stat().st_mode & 0o777 == 0o700
    assert {one.stat().st_uid for one in (instance.control, instance.folder, instance.folder.parent)} == {0}


@pytest.mark.parametrize("named", [True, False])
def test_nobody_else_can_ask(shop: Bench, named: bool) -> None:
    """By the kernel's word: another user's process does not get in."""
    name = instance_of(shop).name
    script = (
        "import os, sys\n"
        "import rauta.views.tables\n"  # Python's own files may be root's
        "from rauta.ctl import main\n"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        f"main({['status', '--name', name] if named else ['status']!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.endswith("Run as root.\n")
    assert "Traceback" not in done.stderr


# ---- usage ------------------------------------------------------------------------------------------------


def test_help_names_every_command() -> None:
    done = subprocess.run([*RAUTACTL, "--help"], capture_output=True, text=True, check=True, timeout=SECONDS)
    wanted = ("status", "routes", "backends", "flows", "metrics", "counters", "drain", "undrain", "watch", "events")
    assert [
        name for name in (*wanted, "follow", "doctor", "explain", "reload") if f"\n  {name} " not in done.stdout
    ] == []


@pytest.mark.parametrize("arguments", [["nonsense"], ["flows", "--limit", "many"], ["follow"]], ids=str)
def test_usage_is_exit_code_2(arguments: list[str]) -> None:
    done = subprocess.run([*RAUTACTL, *arguments], capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode == 2
    assert "Usage: rautactl" in done.stderr
