"""The doctor's findings: each condition is made true, is seen, goes away by the remedy; and some are seen to hurt.

Remedies that are commands are run as they stand. What needs no router and no server has a namespace of its own with a
pair of veth interfaces in it, the rest a whole network.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
import typer
from packets.bench import throwaway_namespace
from packets.oracle import ASK_PING, ASK_PONG, Ask, Tuple
from typer.testing import CliRunner

from e2e.bench import Bench, bench, eventually
from lab.contenders.rauta import RunningRauta
from lab.topology import INSTRUMENTS, Host
from rauta.agent import Agent
from rauta.bpf import BpfObject, attach_tc, attach_xdp
from rauta.config import Config
from rauta.doctor import Finding, examine
from rauta.doctor.command import command
from rauta.errors import AttachError, RautaError
from rauta.keys import CookieKeys, Keys

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

FILE = Path(__file__).parent / "data" / "recovery.yaml"
IPPROTO_MPTCP = 262
LINK = INSTRUMENTS.with_name("link.bpf.o")
U32 = "tc filter add dev near ingress protocol ip pref {} u32 match u32 0 0 flowid 1:1"
PATIENCE = 0.7
"""seconds in which an answer that does not come would have"""
NOBODY = IPv4Address("198.18.0.99")
DOCUMENT: dict[str, Any] = {
    "version": 1,
    "encapsulation": {"source": "198.19.0.0/24"},
    "recovery": {},
    "vips": [
        {
            "name": "shop",
            "address": "198.18.100.80",
            "port": 80,
            "routes": [{"prefix": "/", "cluster": "web"}],
        }
    ],
    "clusters": [{"name": "web", "backends": [{"name": "web-1", "address": "198.18.0.11", "port": 8080}]}],
}


def configuration(**fields: Any) -> Config:
    return Config.model_validate(DOCUMENT | fields)


def sh(line: str) -> None:
    done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, (line, done.stderr)


def of(findings: list[Finding], check: str, subject: str = "") -> Finding:
    """The one finding of a check, about that subject."""
    (found,) = [one for one in findings if one.check == check and (not subject or one.subject == subject)]
    assert (one_line(found.remedy) == "") == (found.status == "ok"), found
    return found


def one_line(text: str) -> str:
    assert "\n" not in text
    return text


# ---- interfaces, of a router without a network ----------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[None]:
    """A namespace with `near`, the router's interface, and `far`, both up."""
    with throwaway_namespace():
        sh("ip link set lo up; ip link add near type veth peer name far; ip link set near up; ip link set far up")
        sh("ethtool -K far tx off; ip address add 198.18.0.2/24 dev near")
        yield


def seen(check: str, subject: str = "", config: Config | None = None, **fields: Any) -> Finding:
    """By the doctor of a router without backends, which are not there; or of one's host."""
    config = config or configuration()
    if "backend" not in fields:
        clusters = tuple(cluster.model_copy(update={"backends": ()}) for cluster in config.clusters)
        config = config.model_copy(update={"clusters": clusters})
    return of(examine(config, **{"interfaces": ["near"]} | fields), check, subject)


@contextmanager
def passing(interface: str, mode: str = "native") -> Iterator[None]:
    """A program of somebody's."""
    with BpfObject.open(INSTRUMENTS) as instruments:
        instruments.load()
        where = socket.if_nametoindex(interface)
        with attach_xdp(where, instruments.programs["xdp_pass"], mode):  # type: ignore[arg-type]
            yield


@pytest.mark.usefixtures("pair")
class TestInterfaces:
    def test_an_interface_that_is_not_there(self) -> None:
        found = of(examine(None, interfaces=["nowhere"]), "interface.up")
        assert (found.status, found.subject) == ("error", "nowhere")
        assert "near" in found.remedy
        assert "--netns" in found.remedy

    def test_one_that_is_down(self) -> None:
        sh("ip link set near down")
        found = seen("interface.up")
        assert (found.status, found.seen) == ("error", "down")
        sh(found.remedy)
        eventually(lambda: seen("interface.up").status == "ok", "the link")

    def test_one_whose_other_end_is_down(self) -> None:
        sh("ip link set far down")
        found = seen("interface.up")
        assert (found.status, found.seen) == ("error", "up, but without a link")
        sh("ip link set far up")
        eventually(lambda: seen("interface.up").status == "ok", "the link")

    def test_a_small_mtu(self) -> None:
        sh("ip link set near mtu 1400")
        found = seen("interface.mtu")
        assert (found.status, found.seen) == ("error", "MTU 1400")
        sh(found.remedy.partition(",")[0])
        assert seen("interface.mtu").status == "ok"

    def test_a_foreign_program(self) -> None:
        assert seen("xdp.foreign").seen == "no program"
        with passing("near"):
            found = seen("xdp.foreign")
            assert found.status == "error"
            assert "(xdp_pass), native" in found.seen
            sh(found.remedy.partition(": ")[2])
            assert seen("xdp.foreign").status == "ok"

    def test_a_peer_without_a_program(self) -> None:
        found = seen("xdp.peer")
        assert (found.status, found.seen) == ("error", "no native XDP on its other end, far")
        with passing("far", "generic"):
            assert seen("xdp.peer").status == "error"
        with passing("far"):
            assert seen("xdp.peer").status == "ok"
        generic = examine(configuration(mode="generic", clusters=[], vips=[]), interfaces=["near"])
        assert [one for one in generic if one.check == "xdp.peer"] == []

    def test_a_peer_that_leaves_checksums_to_others(self) -> None:
        assert seen("xdp.senders").status == "ok"
        sh("ethtool -K far tx on")
        found = seen("xdp.senders")
        assert (found.status, found.seen) == ("error", "far leaves checksums to others")
        sh(found.remedy)
        assert seen("xdp.senders").status == "ok"

    def test_gro_in_generic_mode(self) -> None:
        sh("ethtool -K near gro on")
        with passing("near", "generic"):
            found = seen("xdp.gro")
            assert found.status == "error"
            sh(found.remedy)
            assert seen("xdp.gro").status == "ok"

    def test_a_driver_without_native_xdp(self) -> None:
        """The loopback has none."""
        for mode, status in (("native", "error"), ("best-effort", "warning"), ("generic", "ok")):
            assert seen("xdp.driver", config=configuration(mode=mode), interfaces=["lo"]).status == status
        assert seen("xdp.driver").status == "ok"

    def test_no_interface_is_named(self) -> None:
        assert seen("xdp.named", interfaces=[]).status == "unknown"
        assert seen("xdp.named", config=configuration(interfaces=["near"]), interfaces=[]).status == "ok"

    def test_a_vip_on_an_interface(self) -> None:
        sh("ip address add 198.18.100.80/32 dev lo")
        found = seen("vip.address")
        assert (found.status, found.seen) == ("warning", "lo has 198.18.100.80")
        with socket.create_server(("198.18.100.80", 80)):
            assert seen("vip.listener").status == "warning"
        assert seen("vip.listener").status == "ok"
        sh(found.remedy.partition(";")[0])
        assert seen("vip.address").status == "ok"

    def test_source_validation_where_the_router_forwards(self) -> None:
        sh("sysctl -w net.ipv4.conf.near.rp_filter=1")
        assert seen("vip.reverse-path").seen == "this host forwards nothing"
        sh("sysctl -w net.ipv4.ip_forward=1; sysctl -w net.ipv4.conf.near.rp_filter=1")
        found = seen("vip.reverse-path")
        assert found.status == "warning"
        sh(found.remedy.partition(": ")[2])
        assert seen("vip.reverse-path").status == "ok"

    def test_somebody_has_an_address_of_the_outer_sources(self) -> None:
        assert seen("encapsulation.source").status == "ok"
        found = seen("encapsulation.source", config=configuration(encapsulation={"source": "198.18.0.0/29"}))
        assert found.status == "error"
        assert "198.18.0.2 (near)" in found.seen

    def test_a_fallback_that_does_not_listen(self) -> None:
        config = configuration(fallback={"port": 8000})
        found = seen("agent.listener", config=config)
        assert (found.status, found.seen) == ("error", "nobody listens on port 8000")
        assert "198.18.0.2:8000" in found.remedy
        with socket.create_server(("198.18.0.2", 8000)):
            assert seen("agent.listener", config=config).status == "ok"

    def test_a_filter_of_another_kind_at_the_agents_place(self) -> None:
        sh(f"tc qdisc add dev near clsact; {U32.format(1)}")
        found = seen("agent.filters", "near ingress", backend="web-1")
        assert (found.status, found.seen) == ("error", "a filter of others is there: u32")
        assert seen("agent.filters", "near egress", backend="web-1").status == "ok"
        with Agent.load(configuration(), Keys.generate(), "web-1") as agent, pytest.raises(AttachError):
            agent.attach("near")
        sh(U32.format(2))
        sh(found.remedy.rpartition(": ")[2])
        assert seen("agent.filters", "near ingress", backend="web-1").status == "ok"
        with Agent.load(configuration(), Keys.generate(), "web-1") as agent:
            agent.attach("near")
            assert seen("agent.filters", "near ingress", backend="web-1").status == "ok"

    @pytest.mark.parametrize(("handle", "status"), [(1, "error"), (2, "ok")])
    def test_another_program_there(self, handle: int, status: str) -> None:
        with BpfObject.open(LINK) as link, Agent.load(configuration(), Keys.generate(), "web-1") as agent:
            link.load()
            program = link.programs["link_to_host"]
            with attach_tc(socket.if_nametoindex("near"), program, "egress", handle=handle):
                found = seen("agent.filters", "near egress", backend="web-1")
                assert found.status == status
                if status == "ok":
                    agent.attach("near")
                else:
                    assert program.name[:15] in found.seen
                    with pytest.raises(AttachError):
                        agent.attach("near")

    def test_the_wrong_host(self) -> None:
        found = seen("agent.address", backend="web-1")
        assert (found.status, found.seen) == ("error", "this host has 127.0.0.1, 198.18.0.2")
        sh("ip address add 198.18.0.11/24 dev near")
        assert seen("agent.address", backend="web-1").status == "ok"
        with pytest.raises(RautaError, match="no backend is called 'web-9'"):
            examine(configuration(), backend="web-9")

    def test_there_is_no_way_back(self) -> None:
        found = seen("agent.way-back", backend="web-1")
        assert (found.status, found.seen) == ("warning", "no default route")
        client = IPv4Address("203.0.113.7")
        assert seen("agent.way-back", backend="web-1", client=client).status == "error"
        sh(f"ip route add {client} via 198.18.0.1")
        assert seen("agent.way-back", backend="web-1", client=client).status == "ok"
        sh(found.remedy.replace("...", "198.18.0.1"))
        assert seen("agent.way-back", backend="web-1").status == "ok"

    def test_errors_about_encapsulated_packets_have_no_way(self) -> None:
        found = seen("agent.outer-source", backend="web-1")
        assert found.status == "error"
        sh(found.remedy.partition(",")[0].replace("ROUTER", "198.18.0.1"))
        assert seen("agent.outer-source", backend="web-1").status == "ok"

    def test_without_recovery_or_keys_agents_cannot_be_asked(self) -> None:
        for config in (configuration(), configuration(recovery=None)):
            found = seen("backend.agent", config=config)
            assert found.status == "unknown"
        assert "recovery: {}" in found.remedy


def test_the_kernels_findings() -> None:
    """True of any machine that the tests run on."""
    found = examine(None)
    assert {one.check for one in found} == {"kernel.btf", "kernel.bpf"}
    assert {one.status for one in found} == {"ok"}


# ---- a whole network -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench("rauta", tmp_path_factory.mktemp("logs"), FILE) as one:
        yield one


@pytest.fixture
def api(routed: Bench) -> Host:
    """The host of the only backend of /api."""
    return routed.network.hosts["api-1"]


@pytest.fixture
def keys(routed: Bench) -> CookieKeys:
    assert isinstance(routed.running, RunningRauta)
    return routed.running.cookie_keys


def at_api(routed: Bench, check: str, subject: str = "") -> Finding:
    """By the doctor of api-1."""
    with routed.network.hosts["api-1"].entered():
        found = examine(routed.scenario.routing.config, backend="api-1", client=routed.client.address)
    return of(found, check, subject)


def at_router(
    routed: Bench, keys: CookieKeys | None, check: str, subject: str, config: Config | None = None
) -> Finding:
    """By the doctor of the first router."""
    with routed.network.router.entered():
        found = examine(config or routed.scenario.routing.config, keys=keys, interfaces=["eth0"])
    return of(found, check, subject)


def works(routed: Bench) -> bool:
    """Whether a request to api-1 is answered."""
    with routed.connected() as connection:
        connection.sock.settimeout(PATIENCE)
        try:
            return connection.ask("/api/x").status == 200
        except (TimeoutError, ConnectionError):
            return False


@contextmanager
def instead_of_the_server(routed: Bench, api: Host) -> Iterator[None]:
    """Nobody listens on api-1."""
    api.stop_all()
    try:
        yield
    finally:
        routed.restart_server("api")


def listening(
    host: Host, address: str, *, protocol: int = 0, family: int = socket.AF_INET, buffer: int = 0
) -> socket.socket:
    """A server that accepts, and says nothing."""
    with host.entered():
        sock = socket.socket(family, socket.SOCK_STREAM, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    if buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.bind((address, 8080))
    sock.listen()
    sock.settimeout(PATIENCE)
    return sock


def test_where_all_is_well_nothing_is_wrong(routed: Bench, keys: CookieKeys) -> None:
    """And the only thing that cannot be told is who sends into the router's veth interface, from its own host."""
    config = routed.scenario.routing.config
    assert works(routed)
    with routed.network.router.entered():
        at_the_router = examine(config, keys=keys, interfaces=["eth0"], deep=True)
    assert [one.check for one in at_the_router if one.status != "ok"] == ["xdp.senders"]
    assert "RAUTA's" in of(at_the_router, "xdp.foreign").seen
    assert of(at_the_router, "kernel.programs").seen == "loads"
    for name in config.backends():
        with routed.network.hosts[name].entered():
            found = examine(config, backend=name, client=routed.client.address, deep=True)
        assert [one for one in found if one.status != "ok"] == []
        assert {"agent.mptcp", "kernel.kfunc", "agent.window", "interface.mtu"} <= {one.check for one in found}
    assert works(routed)


SYSCTLS = {
    "net.ipv4.tcp_syncookies": ("agent.syncookies", "0"),
    "net.ipv4.tcp_timestamps": ("agent.options", "0"),
    "net.ipv4.tcp_window_scaling": ("agent.options", "0"),
    "net.ipv4.tcp_sack": ("agent.options", "0"),
}


@pytest.mark.parametrize("name", SYSCTLS)
def test_a_setting_without_which_no_socket_is_made(routed: Bench, api: Host, name: str) -> None:
    check, value = SYSCTLS[name]
    api.sysctl(name, value)
    found = at_api(routed, check, name)
    assert (found.status, found.seen) == ("error", value)
    assert not works(routed)
    with api.entered():
        sh(found.remedy)
    assert at_api(routed, check, name).status == "ok"
    assert works(routed)


def test_a_setting_that_keeps_old_sockets(routed: Bench, api: Host) -> None:
    api.sysctl("net.ipv4.tcp_rfc1337", "1")
    found = at_api(routed, "agent.rfc1337")
    assert found.status == "error"
    with api.entered():
        sh(found.remedy)
    assert at_api(routed, "agent.rfc1337").status == "ok"


def test_nobody_listens(routed: Bench, api: Host, keys: CookieKeys) -> None:
    with instead_of_the_server(routed, api):
        found = at_api(routed, "agent.listener")
        assert (found.status, found.seen) == ("error", "nobody listens on port 8080")
        assert "198.18.0.21:8080" in found.remedy
        from_here = at_router(routed, keys, "backend.server", "api-1")
        assert (from_here.status, from_here.seen) == ("error", "198.18.0.21:8080: Connection refused")
        assert at_router(routed, keys, "backend.agent", "api-1").status == "ok"
    assert at_api(routed, "agent.listener").status == "ok"
    assert at_router(routed, keys, "backend.server", "api-1").status == "ok"


@pytest.mark.parametrize("address", ["127.0.0.1", "198.18.0.99"])
def test_a_server_that_listens_elsewhere(routed: Bench, api: Host, address: str) -> None:
    with instead_of_the_server(routed, api), api.entered():
        sh("ip address add 198.18.0.99/32 dev lo")
        with listening(api, address):
            found = at_api(routed, "agent.listener")
            assert (found.status, found.seen) == ("error", f"only {address}:8080 is listened on")
            assert not works(routed)
        assert "0.0.0.0:8080" in found.remedy
        with listening(api, "0.0.0.0"):
            assert at_api(routed, "agent.listener").status == "ok"
        sh("ip address del 198.18.0.99/32 dev lo")


def test_a_server_that_is_bound_to_another_interface(routed: Bench, api: Host) -> None:
    with instead_of_the_server(routed, api), listening(api, "0.0.0.0") as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        found = at_api(routed, "agent.listener")
        assert (found.status, found.seen) == ("error", "only 0.0.0.0%lo:8080 is listened on")
        assert not works(routed)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        assert at_api(routed, "agent.listener").status == "ok"


def test_one_that_speaks_mptcp(routed: Bench, api: Host) -> None:
    with instead_of_the_server(routed, api):
        with listening(api, "0.0.0.0", protocol=IPPROTO_MPTCP):
            found = at_api(routed, "agent.mptcp")
            assert (found.status, found.seen) == ("error", "the listener on 0.0.0.0:8080 speaks MPTCP")
            grown = routed.growth()
            assert not works(routed)
            assert grown["AGENT_DROP_MPTCP"] >= 1
        with api.entered():
            setting = re.search(r"sysctl -w \S+=0", found.remedy)
            assert setting is not None
            sh(setting[0])
            with pytest.raises(OSError, match="not available"):
                listening(api, "0.0.0.0", protocol=IPPROTO_MPTCP)
            sh("sysctl -w net.mptcp.enabled=1")
        with listening(api, "0.0.0.0"):
            assert at_api(routed, "agent.mptcp").status == "ok"


def test_one_of_ipv6_that_takes_ipv4_as_well_is_fine(routed: Bench, api: Host) -> None:
    with instead_of_the_server(routed, api), listening(api, "::", family=socket.AF_INET6) as server:
        assert at_api(routed, "agent.listener").status == "ok"
        assert at_api(routed, "agent.mptcp").seen == "the listener on [::]:8080 speaks TCP"
        assert not works(routed)  # it says nothing
        accepted, _ = server.accept()
        with accepted:
            assert accepted.recv(100).startswith(b"GET /api/x")


def test_one_with_a_small_receive_buffer(routed: Bench, api: Host) -> None:
    with instead_of_the_server(routed, api):
        with listening(api, "0.0.0.0", buffer=8192):
            found = at_api(routed, "agent.window")
            assert (found.status, found.seen) == ("warning", "the receive buffer of 0.0.0.0:8080 has 16384 bytes")
        (least,) = re.findall(r"set (\d+) at least", found.remedy)
        with listening(api, "0.0.0.0", buffer=int(least)):
            assert at_api(routed, "agent.window").status == "ok"


def test_source_validation_at_the_agent(routed: Bench, api: Host) -> None:
    with api.entered():
        sh("sysctl -w net.ipv4.conf.eth0.rp_filter=1")
        assert at_api(routed, "agent.reverse-path").status == "ok"
        sh("ip link add other type veth peer name another; ip link set other up; ip link set another up")
        sh(f"ip route add {routed.client.address}/32 dev other")
        found = at_api(routed, "agent.reverse-path")
        assert found.status == "error"
        assert found.seen == f"rp_filter is 1, and the route to {routed.client.address} leaves through other"
        sh(found.remedy.partition(";")[0])
        assert at_api(routed, "agent.reverse-path").status == "ok"
        sh("ip link del other")
    assert works(routed)


RULES = {
    "a rule": "add rule inet doctor input ct state invalid drop",
    "a set": "add rule inet doctor input ct state { invalid, untracked } counter reject",
    "a map": "add rule inet doctor input ct state vmap { established : accept, invalid : drop }",
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_firewall_that_drops_what_is_invalid(routed: Bench, api: Host, rule: str) -> None:
    with api.entered():
        sh("nft add table inet doctor; nft 'add chain inet doctor input { type filter hook input priority 0; }'")
        try:
            sh(f"nft '{rule}'")
            assert at_api(routed, "agent.firewall").status == "ok"
            assert works(routed)
            sh("sysctl -w net.netfilter.nf_conntrack_tcp_loose=0")
            found = at_api(routed, "agent.firewall")
            assert (found.status, found.subject) == ("error", "nft inet doctor input")
            assert not works(routed)
            sh(found.remedy.partition(",")[0])
            assert at_api(routed, "agent.firewall").status == "ok"
            assert works(routed)
        finally:
            sh("nft delete table inet doctor")
    assert at_api(routed, "agent.firewall").seen == "none drops invalid packets"


# ---- between router and backends -----------------------------------------------------------------------


def with_another(routed: Bench, address: IPv4Address) -> Config:
    """The configuration, and one more backend of `web`."""
    config = routed.scenario.routing.config
    web, *others = config.clusters
    another = web.backends[0].model_copy(update={"name": "web-9", "address": address})
    clusters = (web.model_copy(update={"backends": (*web.backends, another)}), *others)
    return config.model_copy(update={"clusters": clusters})


def test_a_host_that_is_not_there(routed: Bench, keys: CookieKeys) -> None:
    config = with_another(routed, NOBODY)
    with routed.network.router.entered():
        found = examine(config, keys=keys, interfaces=["eth0"])
    assert of(found, "backend.reachable", "web-9").status == "error"
    assert "no answer to ARP" in of(found, "backend.reachable", "web-9").seen
    assert of(found, "backend.server", "web-9").status == "error"
    assert of(found, "backend.agent", "web-9").status == "error"
    for check in ("backend.path-mtu", "backend.clock"):
        assert of(found, check, "web-9").status == "unknown"
    for check in ("backend.reachable", "backend.server", "backend.path-mtu", "backend.agent", "backend.clock"):
        assert of(found, check, "web-1").status == "ok"
    with routed.network.hosts["web-2"].entered():
        sh(f"ip address add {NOBODY}/32 dev eth0")
        try:
            with routed.network.router.entered():
                found = examine(config, keys=keys, interfaces=["eth0"])
            for check in ("backend.reachable", "backend.server", "backend.path-mtu"):
                assert of(found, check, "web-9").status == "ok"
        finally:
            sh(f"ip address del {NOBODY}/32 dev eth0")


def test_a_backend_behind_another_interface(routed: Bench, keys: CookieKeys) -> None:
    config = with_another(routed, IPv4Address("198.18.7.7"))
    with routed.network.router.entered():
        sh("ip link add other type veth peer name another; ip link set other up; ip route add 198.18.7.7 dev other")
        found = at_router(routed, keys, "backend.reachable", "web-9", config)
        sh("ip link del other")
    assert found.status == "error"
    assert "leaves through other, not through eth0" in found.seen
    assert "other" in found.remedy


def test_a_path_for_small_packets_only(routed: Bench, api: Host, keys: CookieKeys) -> None:
    port = routed.network.port(api)
    with routed.network.fabric.entered():
        sh(f"ip link set {port} mtu 1400")
    try:
        found = at_router(routed, keys, "backend.path-mtu", "api-1")
        assert (found.status, found.seen) == ("error", "a small ping came back, one of 1500 bytes did not")
        assert at_router(routed, keys, "backend.path-mtu", "web-1").status == "ok"
    finally:
        with routed.network.fabric.entered():
            sh(f"ip link set {port} mtu 1500")
    assert at_router(routed, keys, "backend.path-mtu", "api-1").status == "ok"


def test_an_agent_with_other_keys(routed: Bench, keys: CookieKeys) -> None:
    first, second = keys.by_epoch
    half = replace(keys, by_epoch=(first, (second[0] ^ 1, second[1])))
    found = at_router(routed, half, "backend.agent", "api-1")
    assert (found.status, found.seen) == ("error", "it has another key of epoch 1")
    assert at_router(routed, half, "backend.clock", "api-1").status == "ok"
    found = at_router(routed, CookieKeys.generate(), "backend.agent", "api-1")
    assert (found.status, found.seen) == ("error", "no answer within 1 s")
    for cause in ("rauta agent", "recovery", "secrets", "UDP port 21057"):
        assert cause in found.remedy
    found = at_router(routed, keys, "backend.agent", "api-1")
    assert (found.status, found.seen.partition(", after")[0]) == ("ok", "answers, with the keys of both epochs")


def test_a_firewall_in_front_of_an_agent(routed: Bench, keys: CookieKeys) -> None:
    with routed.network.router.entered():
        sh("nft add table ip doctor; nft 'add chain ip doctor input { type filter hook input priority 0; }'")
        try:
            sh("nft add rule ip doctor input udp sport 21057 ip saddr 198.18.0.21 drop")
            assert at_router(routed, keys, "backend.agent", "api-1").status == "error"
            assert at_router(routed, keys, "backend.agent", "web-1").status == "ok"
        finally:
            sh("nft delete table ip doctor")
    assert at_router(routed, keys, "backend.agent", "api-1").status == "ok"


def test_the_clock_of_the_same_machine_is_right(routed: Bench, keys: CookieKeys) -> None:
    found = at_router(routed, keys, "backend.clock", "api-1")
    ahead, accuracy = map(float, re.findall(r"[-+]?\d+\.\d+", found.seen))
    assert found.status == "ok"
    assert abs(ahead) <= accuracy + 0.001  # both are rounded


CLOCKS = {
    "an hour ahead": (3600.0, "error", "NTP client"),
    "two minutes behind": (-120.0, "error", "NTP client"),
    "TAI unknown here": (37.0, "warning", "The kernel here"),
    "TAI unknown there": (-37.0, "warning", "The kernel on web-9"),
    "not much": (5.0, "ok", ""),
}


@pytest.mark.parametrize(("ahead", "status", "remedy"), CLOCKS.values(), ids=CLOCKS)
def test_a_clock_that_is_wrong(routed: Bench, keys: CookieKeys, ahead: float, status: str, remedy: str) -> None:
    """All namespaces of a machine have one clock: so a program answers in an agent's place."""
    config = with_another(routed, NOBODY)
    with ExitStack() as undo:
        undo.enter_context(routed.network.hosts["web-2"].entered())
        sh(f"ip address add {NOBODY}/32 dev eth0")
        undo.callback(sh, f"ip address del {NOBODY}/32 dev eth0")
        server = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        server.bind((str(NOBODY), 21057))
        thread = threading.Thread(target=tell_wrong_time, args=(server, keys, ahead))
        thread.start()
        undo.callback(thread.join)
        undo.callback(stop, server)
        found = at_router(routed, keys, "backend.clock", "web-9", config)
    assert (found.status, float(found.seen.split()[0])) == (status, pytest.approx(ahead, abs=1))
    assert remedy in found.remedy


def tell_wrong_time(server: socket.socket, keys: CookieKeys, ahead: float) -> None:
    """Answers pings until an empty datagram comes."""
    while True:
        data, asker = server.recvfrom(2048)
        if not data:
            return
        between = Tuple(asker[0], asker[1], str(NOBODY), 21057)
        nobody = Tuple("0.0.0.0", 0, "0.0.0.0", 0)
        ping = Ask(nobody, 0, 0, between, struct.unpack_from("<Q", data, 8)[0], ASK_PING, epoch=data[2])
        assert ping.sealed(keys.ask_keys) == data
        now = time.clock_gettime(time.CLOCK_TAI) + ahead
        pong = replace(ping, kind=ASK_PONG, isn=int(now), cookie=int(now % 1 * 1e9))
        server.sendto(pong.sealed(keys.ask_keys), asker)


def stop(server: socket.socket) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"", server.getsockname())


# ---- the command ---------------------------------------------------------------------------------------


@pytest.fixture
def said(routed: Bench, keys: CookieKeys, tmp_path: Path) -> Any:
    """What `rauta doctor` prints, and its exit status."""
    app = typer.Typer()
    app.command()(command(lambda _config: keys))
    routing = FILE.parent / "recovery-routing.yaml"

    def run(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["-c", str(routing), *arguments])
        return done.exit_code, done.output

    return run


def test_the_command(routed: Bench, api: Host, said: Any) -> None:
    there = ("--backend", "api-1", "--netns", api.namespace, "--client", str(routed.client.address))
    code, text = said(*there, "--json")
    found = json.loads(text)
    assert code == 0
    assert {one["status"] for one in found} == {"ok"}
    assert set(found[0]) == {"check", "subject", "status", "seen", "remedy"}
    api.sysctl("net.ipv4.tcp_sack", "0")
    code, text = said(*there)
    api.sysctl("net.ipv4.tcp_sack", "1")
    assert code == 1
    assert "→ sysctl -w net.ipv4.tcp_sack=1" in text
    assert re.search(r"\d+ ok, 1 error$", text.strip())


def test_the_command_at_the_router(routed: Bench, said: Any) -> None:
    """What cannot be told is no error."""
    code, text = said("--netns", routed.network.router.namespace, "--interface", "eth0")
    assert code == 0
    assert "xdp.senders" in text
    assert re.search(r"\d+ ok, 1 unknown$", text.strip())


@pytest.mark.parametrize(
    "arguments", [("--backend", "web-9"), ("--client", "me"), ("--netns", "nowhere")], ids=lambda one: one[0]
)
def test_what_the_command_cannot_do(said: Any, arguments: tuple[str, str]) -> None:
    code, text = said(*arguments)
    assert code == 2
    assert arguments[1] in text
