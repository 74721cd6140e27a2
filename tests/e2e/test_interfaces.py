"""A router between networks: a cable of its own to the clients and to each backend, replies over a plain gateway.

    client ── eth0 router eth1 ── web
                     └── eth2 ── api

The kernels forward what is not for the VIP, as on any gateway: the backends' replies come back through the router's
host, and pass its program untouched.
"""

from __future__ import annotations

import http.client
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from lab import state, topology
from lab.process import run
from rauta.agent import Agent
from rauta.bpf import BpfObject, XdpMode, attach_xdp, attached_xdp_id
from rauta.config import Config, load_config
from rauta.errors import AttachError, RautaError
from rauta.keys import Keys
from rauta.network.namespaces import entered
from rauta.router import Router

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

SECONDS = 5.0
VIP = "198.18.100.80"
PORT = 8080
NETWORKS = {"client": "198.18.40", "web": "198.18.41", "api": "198.18.42"}
"""of each cable; the router is .1, the other end .2"""
INTERFACES = {"client": "eth0", "web": "eth1", "api": "eth2"}
"""the router's ends"""
ALL = tuple(INTERFACES.values())
LARGE = b"0123456789abcdef" * 40_000

CONFIGURATION = f"""
version: 1
encapsulation: {{source: 198.19.0.0/24}}
vips:
  - name: shop
    address: {VIP}
    port: 80
    routes: [{{prefix: /, cluster: web}}, {{prefix: /api, cluster: api}}]
clusters:
  - {{name: web, backends: [{{name: web, address: {NETWORKS["web"]}.2, port: {PORT}}}]}}
  - {{name: api, backends: [{{name: api, address: {NETWORKS["api"]}.2, port: {PORT}}}]}}
"""


@dataclass(frozen=True)
class Site:
    """The namespaces, by role, with servers and agents; no router yet."""

    namespaces: dict[str, str]
    config: Config
    keys: Keys

    @contextmanager
    def routed(self, *interfaces: str, mode: XdpMode = "native") -> Iterator[Router]:
        """A router on those interfaces."""
        with Router.load(self.config, self.keys) as router:
            with entered(self.namespaces["router"]):
                router.attach(*interfaces, mode=mode)
            yield router

    def connection(self, role: str = "client") -> closing[http.client.HTTPConnection]:
        """From a host to the VIP."""
        connection = http.client.HTTPConnection(VIP, 80, timeout=SECONDS)
        with entered(self.namespaces[role]):
            connection.connect()
        return closing(connection)

    def program_on(self, interface: str) -> int | None:
        """Which XDP program an interface of the router has."""
        with entered(self.namespaces["router"]):
            return attached_xdp_id(socket.if_nametoindex(interface))


class Handler(BaseHTTPRequestHandler):
    """Says the server's name and how many bytes it was sent; where a path ends in /large, a lot."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """The answer."""
        received = len(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        body = LARGE if self.path.endswith("/large") else f"{self.server.server_name} {received}".encode()  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        """As GET."""
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


class Server(ThreadingHTTPServer):
    """In the namespace of the thread that makes it."""

    daemon_threads = True

    def __init__(self, name: str) -> None:
        super().__init__((f"{NETWORKS[name]}.2", PORT), Handler)
        self.server_name = name


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    file = tmp_path_factory.mktemp("site") / "rauta.yaml"
    file.write_text(CONFIGURATION)
    with ExitStack() as undo:
        started = state.create("e2e")
        undo.callback(started.sweep)
        names = {role: undo.enter_context(topology.spare_namespace(started, role)) for role in ("router", *NETWORKS)}
        one = Site(names, load_config(file), Keys.generate())
        instruments = undo.enter_context(BpfObject.open(topology.INSTRUMENTS))
        instruments.load()
        with entered(names["router"]):
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        for role in NETWORKS:
            _connect(one, role, instruments)
        for role in ("web", "api"):
            _serve(one, role, undo)
        yield one


def _connect(site: Site, role: str, instruments: BpfObject) -> None:
    """A cable from the router. Frames that XDP sends over it arrive only where there is an XDP program, too."""
    network, ours = NETWORKS[role], INTERFACES[role]
    with entered(site.namespaces["router"]):
        _ip(f"link add {ours} type veth peer name eth0 netns {site.namespaces[role]}")
        _ip(f"address add {network}.1/24 dev {ours}")
        _ip(f"link set {ours} up")
        Path(f"/proc/sys/net/ipv4/conf/{ours}/rp_filter").write_text("0")
    with entered(site.namespaces[role]):
        run(["ethtool", "-K", "eth0", "tx", "off"], timeout=SECONDS)  # into XDP: finished checksums only
        _ip(f"address add {network}.2/24 dev eth0")
        _ip("link set eth0 up")
        _ip(f"route add default via {network}.1")
        attach_xdp(socket.if_nametoindex("eth0"), instruments.programs["xdp_pass"], "native")


def _ip(command: str) -> None:
    run(["ip", *command.split()], timeout=SECONDS)


def _serve(site: Site, role: str, undo: ExitStack) -> None:
    agent = undo.enter_context(Agent.load(site.config, site.keys, backend=role))
    with entered(site.namespaces[role]):
        agent.attach("eth0")
        server = undo.enter_context(Server(role))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    undo.callback(thread.join)
    undo.callback(server.shutdown)


def asked(connection: http.client.HTTPConnection, path: str, body: bytes | None = None) -> bytes:
    """What a path is answered with."""
    connection.request("GET" if body is None else "POST", path, body)
    response = connection.getresponse()
    assert response.status == 200
    return response.read()


MODES = pytest.mark.parametrize("mode", ["native", "generic"])


@MODES
@pytest.mark.parametrize(("path", "name"), [("/x", "web"), ("/api/x", "api")])
def test_each_path_reaches_its_cluster_over_its_own_cable(site: Site, mode: XdpMode, path: str, name: str) -> None:
    with site.routed(*ALL, mode=mode) as router, site.connection() as connection:
        for size in (0, 10, len(LARGE), 10):
            assert asked(connection, path, b"b" * size) == f"{name} {size}".encode()
        assert asked(connection, f"{path}/large") == LARGE
        counted = router.counters()
        assert (counted["ROUTED_FIRST"], counted["ROUTED_NEXT"]) == (1, 4)


def test_two_interfaces_are_enough_for_one_backend(site: Site) -> None:
    """Where only one of them has a backend behind it."""
    dump = site.config.model_dump()
    dump["clusters"] = dump["clusters"][:1]
    dump["vips"][0]["routes"] = dump["vips"][0]["routes"][:1]
    with Router.load(Config.model_validate(dump), site.keys) as router:
        with entered(site.namespaces["router"]):
            router.attach("eth0", "eth1")
        with site.connection() as connection:
            assert asked(connection, "/api/x") == b"web 0"
        assert site.program_on("eth2") is None


def test_clients_may_come_in_on_any_of_them(site: Site) -> None:
    with site.routed(*ALL), site.connection("web") as from_web, site.connection("api") as from_api:
        assert asked(from_web, "/api/x") == b"api 0"
        assert asked(from_api, "/x") == b"web 0"


def test_the_routers_own_answers_go_back(site: Site) -> None:
    with site.routed(*ALL) as router, site.connection() as connection:
        connection.request("GET", "//")
        assert connection.getresponse().status == 400
        assert router.counters()["TX_BAD_REQUEST"] == 1


def test_all_are_detached_at_the_end(site: Site) -> None:
    with site.routed(*ALL):
        (one,) = {site.program_on(interface) for interface in ALL}
        assert one is not None
    assert {site.program_on(interface) for interface in ALL} == {None}


# ---- what cannot be attached ----------------------------------------------------------------------------


def test_a_backend_behind_another_interface_is_named(site: Site) -> None:
    said = rf"{NETWORKS['api']}\.2.* leaves through eth2, not through eth0 or eth1"
    with pytest.raises(RautaError, match=said), site.routed("eth0", "eth1"):
        pass
    assert {site.program_on(interface) for interface in ALL} == {None}


def test_a_backend_that_does_not_answer_is_named(site: Site) -> None:
    dump = site.config.model_dump()
    dump["clusters"][0]["backends"][0]["address"] = IPv4Address(f"{NETWORKS['web']}.99")
    config, said = Config.model_validate(dump), rf"{NETWORKS['web']}\.99 on eth1: no answer to ARP"
    with (
        Router.load(config, site.keys) as router,
        entered(site.namespaces["router"]),
        pytest.raises(RautaError, match=said),
    ):
        router.attach(*ALL)


def test_all_or_none(site: Site) -> None:
    """Where one interface is taken, the others are free again, and the router may be attached later."""
    with ExitStack() as undo:
        router, other = (undo.enter_context(Router.load(site.config, site.keys)) for _ in range(2))
        undo.enter_context(entered(site.namespaces["router"]))
        program = other.object.programs["rauta_ingress"]
        with attach_xdp(socket.if_nametoindex("eth2"), program, "native"):
            with pytest.raises(AttachError, match="attached there already"):
                router.attach(*ALL, mode="native")
            assert [site.program_on(interface) for interface in ALL] == [None, None, program.id]
        assert [one.mode for one in router.attach(*ALL, mode="native")] == ["native"] * 3
        with pytest.raises(RautaError, match="attached already"):
            router.attach("eth0")


def test_no_interface_is_refused(site: Site) -> None:
    with Router.load(site.config, site.keys) as router, pytest.raises(RautaError, match="no interface"):
        router.attach()
