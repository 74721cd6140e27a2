"""The network of a scenario: one namespace a host, all of it gone when the context ends.

One kind so far, one-armed, as load balancers stand in data centres: everybody hangs on one switch, the router too.

    client  198.18.0.1 ── eth0 ┐
    router  198.18.0.2 ── eth0 ┤ fabric: a Linux bridge in a namespace of its own
    web-1   198.18.0.11 ─ eth0 ┤
    web-2   198.18.0.12 ─ eth0 ┘

There may be several clients and routers (client-1, client-2, ...). Cables can have the faults of real ones: lab.links.
Nobody owns a VIP's address: clients reach it by a /32 route over the routers, whose XDP program answers for it; with
several a connection stays with one of them by a hash of its addresses and ports, as behind ECMP.
Backends and clients route the outer addresses of encapsulated packets over the router, so that ICMP about them gets
there.

What veth needs for XDP, and why (kernel drivers/net/veth.c):

* Frames that the router's program sends with XDP_TX reach the bridge only if the peer, the bridge's port, has an XDP
  program too. A bare XDP_PASS is there. Otherwise they lie in the port's ring until something else wakes it.
* A sender's unfinished checksum or unsegmented TCP cannot leave a host on a program's way out: transmit checksum
  offload, and with it segmentation offload, is off on whoever sends into the router. Backends answer the client
  directly and keep theirs.

Both only while a contender with XDP runs (``Network.ready_for_xdp``), and while ``direct`` does, which is to be
compared with one like for like. The others get the offloads that Linux has by default.

Every host knows everybody's MAC address from the start: no first packet waits for ARP. IPv6 is off: no stray packet of
neighbour discovery gets into a counter.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyroute2 import IPRoute, NetlinkError

from lab import namespaces, process
from lab.errors import LabError
from lab.links import Cable, Faults, conditioned
from lab.state import Run, creating_namespaces, remove_with_inhabitants
from rauta.bpf import BpfObject, XdpAttachment, attach_xdp
from rauta.namespaces import entered

if TYPE_CHECKING:
    from lab.scenario import Scenario, Topology
    from rauta.config import Config

INTERFACE = "eth0"
BRIDGE = "switch"
FABRIC = "fabric"
SUBNET = IPv4Network("198.18.0.0/16")
CLIENT_ADDRESS = IPv4Address("198.18.0.1")
ROUTER_ADDRESS = IPv4Address("198.18.0.2")
OTHERS = {"client": IPv4Network("198.18.200.0/24"), "router": IPv4Network("198.18.201.0/24")}
"""addresses of the second and further ones"""
MAX_INTERFACE_NAME = 15
INSTRUMENTS = Path(__file__).parent / "objects" / "instruments.bpf.o"
SETUP_SECONDS = 10.0


@dataclass(frozen=True)
class Host:
    """A machine of the network: a namespace with one interface."""

    name: str
    role: str
    """client, router, or the cluster that it serves"""
    namespace: str
    address: IPv4Address
    logs: Path
    cpus: tuple[int, ...] = ()
    """where its programs run; empty: anywhere"""
    interface: str = INTERFACE
    _processes: list[process.Process] = field(default_factory=list, repr=False, compare=False)

    @property
    def mac(self) -> str:
        """A locally administered MAC address, made from the IPv4 address so that captures are easy to read."""
        return "02:00:" + ":".join(f"{byte:02x}" for byte in self.address.packed)

    def entered(self) -> AbstractContextManager[None]:
        """Move the calling thread into the host's network namespace, and back."""
        return entered(self.namespace)

    def start(
        self,
        argv: Sequence[str],
        *,
        name: str,
        cpus: Sequence[int] | None = None,
        ready: Callable[[], bool] | None = None,
    ) -> process.Process:
        """Start a program on the host in the background; it ends with the network at the latest.

        Args:
            argv: program and arguments.
            name: for messages and the log's file name.
            cpus: CPUs it may use; None for the host's.
            ready: polled, in the host's namespace, until it holds.

        Raises:
            CommandError: it could not be started, or ended before it was ready.
            NotReady: it did not become ready in time.
        """
        with self.entered():
            started = process.Process(
                argv, name=name, log=self.logs / f"{self.name}-{name}.log", cpus=self.cpus if cpus is None else cpus
            )
            self._processes.append(started)
            if ready is not None:
                started.wait_ready(ready)
        return started

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        cpus: Sequence[int] | None = None,
        check: bool = True,
        input: str | bytes | None = None,
    ) -> process.Completed:
        """Run a program on the host to its end; see ``lab.process.run``."""
        with self.entered():
            return process.run(
                argv,
                timeout=timeout,
                cpus=self.cpus if cpus is None else cpus,
                check=check,
                input=input,
                log=self.logs / f"{self.name}-commands.jsonl",
            )

    def sysctl(self, name: str, value: str | None = None) -> str:
        """Read, or first write, a sysctl of the host's namespace, such as ``net.ipv4.tcp_timestamps``.

        Returns:
            the value before writing.
        """
        path = Path("/proc/sys") / name.replace(".", "/")
        with self.entered():
            before = path.read_text().strip()
            if value is not None:
                path.write_text(value)
        return before

    def tcp_counters(self) -> dict[str, int]:
        """The namespace's counters (/proc/net/snmp and netstat), by names such as ``TcpExt.TCPSynRetrans``."""
        counters: dict[str, int] = {}
        with self.entered():
            for file in ("snmp", "netstat"):
                # /proc/net would be that of the process's first thread, wherever this one is.
                lines = Path(f"/proc/thread-self/net/{file}").read_text().splitlines()
                for names, values in zip(lines[::2], lines[1::2], strict=True):
                    group, *columns = names.split()
                    counters |= {
                        f"{group}{column}".replace(":", "."): int(value)
                        for column, value in zip(columns, values.split()[1:], strict=True)
                    }
        return counters

    def stop_all(self) -> None:
        """End everything that was started here."""
        while self._processes:
            self._processes.pop().stop()


class Network:
    """The hosts of a scenario while they exist."""

    def __init__(
        self,
        run: Run,
        fabric: Host,
        hosts: Iterable[Host],
        clusters: Mapping[str, Sequence[str]],
        faults: Mapping[str, Faults],
        conditioned: bool,
    ) -> None:
        """``faults``: of the cables that have some, by host; ``conditioned``: whether any cable is not ideal."""
        self.run = run
        self.faults = faults
        self.conditioned = conditioned
        self.fabric = fabric
        self.hosts: Mapping[str, Host] = {host.name: host for host in hosts}
        self._clusters = clusters

    @property
    def client(self) -> Host:
        """The first of the hosts from which requests come; checks send theirs from there."""
        return self.clients[0]

    @property
    def clients(self) -> list[Host]:
        """All hosts from which requests come."""
        return self._of_role("client")

    @property
    def router(self) -> Host:
        """The first of the hosts through which routed requests go."""
        return self.routers[0]

    @property
    def routers(self) -> list[Host]:
        """All hosts through which routed requests go."""
        return self._of_role("router")

    def _of_role(self, role: str) -> list[Host]:
        return [host for name, host in self.hosts.items() if name == role or name.startswith(f"{role}-")]

    @property
    def clusters(self) -> Mapping[str, Sequence[str]]:
        """Names of the backends of each cluster, in the order of the routing file."""
        return self._clusters

    def port(self, host: Host) -> str:
        """The name of the switch's port towards a host, an interface of the fabric."""
        return _port(host)

    @contextmanager
    def ready_for_xdp(self) -> Iterator[None]:
        """What XDP on the router's interface needs of the others, while it is there; see the top of this module."""
        with ExitStack() as undo:
            if not self.conditioned:  # then they are off anyway
                for host in (*self.clients, *self.routers):
                    undo.enter_context(_checksums_finished(host))
            instruments = undo.enter_context(BpfObject.open(INSTRUMENTS))
            instruments.load()
            for host in self.routers:
                with self.fabric.entered():
                    index = socket.if_nametoindex(self.port(host))
                    attachment = attach_xdp(index, instruments.programs["xdp_pass"], mode="native")
                undo.callback(_detach, self.fabric, attachment)
            yield

    def servers(self, cluster: str) -> list[Host]:
        """The hosts of a cluster's backends, in the order of the routing file."""
        return [self.hosts[name] for name in self._clusters[cluster]]


@contextmanager
def build(scenario: Scenario, run: Run, logs: Path, cell: int = 0) -> Iterator[Network]:
    """Build the network that a scenario names.

    Args:
        scenario: says which hosts, and how they are connected.
        run: under whose name.
        logs: an existing folder for the logs of all programs.
        cell: number of the network among those of the run, from 0; nothing of it may exist yet.
    """
    config = scenario.routing.config
    prefix = f"{run.prefix}{cell}-" if cell else run.prefix
    logs = logs / f"network-{cell}" if cell else logs
    logs.mkdir(exist_ok=True)
    hosts = _hosts(scenario, config, prefix, logs)
    clusters = {cluster.name: [backend.name for backend in cluster.backends] for cluster in config.clusters}
    fabric = Host(FABRIC, FABRIC, prefix + FABRIC, IPv4Address(0), logs)
    with ExitStack() as undo:
        for host in (fabric, *hosts):
            undo.callback(remove_with_inhabitants, host.namespace)
            with creating_namespaces():
                namespaces.create(host.namespace)
            undo.callback(host.stop_all)
            host.sysctl("net.ipv6.conf.all.disable_ipv6", "1")
        try:
            cables = _connect(fabric, hosts, scenario.topology)
            for host in hosts:
                _configure(host, hosts, config)
        except NetlinkError as error:
            advice = "`python -m lab doctor` shows what this kernel lacks."
            raise LabError(f"building the network of {scenario.name}", str(error), advice) from error
        faults = undo.enter_context(conditioned(fabric, hosts, cables))
        yield Network(run, fabric, hosts, clusters, faults, any(cable.link.conditions for cable in cables))


@contextmanager
def spare_namespace(run: Run, name: str) -> Iterator[str]:
    """A namespace of the run's that is connected to nothing, for instruments that need a place of their own."""
    namespace = f"{run.prefix}{name}-{secrets.token_hex(2)}"
    with creating_namespaces():
        namespaces.create(namespace)
    try:
        yield namespace
    finally:
        remove_with_inhabitants(namespace)


def planned_hosts(scenario: Scenario) -> list[Host]:
    """The hosts that a scenario's network would have; none of them exists."""
    return _hosts(scenario, scenario.routing.config, "", Path())


def _hosts(scenario: Scenario, config: Config, prefix: str, logs: Path) -> list[Host]:
    counts, cpus = scenario.topology.hosts, scenario.topology.cpus

    def host(name: str, role: str, address: IPv4Address, cpus: Sequence[int]) -> Host:
        return Host(name, role, prefix + name, address, logs, tuple(cpus))

    found = []
    for role, first, where in (("client", CLIENT_ADDRESS, cpus.client), ("router", ROUTER_ADDRESS, cpus.router)):
        for number in range(counts[role]):
            name = role if counts[role] == 1 else f"{role}-{number + 1}"
            address = OTHERS[role].network_address + number + 1 if number else first
            found.append(host(name, role, address, where))
    for cluster in config.clusters:
        found += [host(one.name, cluster.name, one.address, cpus.servers) for one in cluster.backends]
    return found


def _port(host: Host) -> str:
    """The name of the switch's port towards a host."""
    return host.name if len(host.name) <= MAX_INTERFACE_NAME else f"p{host.address}"


def _connect(fabric: Host, hosts: Sequence[Host], topology: Topology) -> list[Cable]:
    """A switch, and a cable from it to every host; in two halves where frames are to be held on the way."""
    cables = []
    with fabric.entered(), IPRoute() as netlink:
        for name in Path("/proc/sys/net/bridge").glob("bridge-nf-call-*"):
            name.write_text("0")  # where br_netfilter is loaded: a switch is no firewall
        netlink.link("add", ifname=BRIDGE, kind="bridge", br_stp_state=0, mtu=topology.link.mtu)
        switch = _index(netlink, BRIDGE)
        netlink.link("set", index=switch, state="up")
        for number, host in enumerate(hosts):
            link, port = topology.link_of(host.role), _port(host)
            _pair(netlink, port, {"ifname": host.interface, "net_ns_fd": host.namespace}, link.mtu)
            joint = f"joint{number}" if link.delay else None
            if joint is not None:
                _pair(netlink, joint, {"ifname": f"{joint}-l"}, link.mtu)
                netlink.link("set", index=_index(netlink, f"{joint}-l"), state="up")
            netlink.link("set", index=_index(netlink, joint or port), master=switch)
            cables.append(Cable(host, link, port, joint))
    return cables


def _pair(netlink: IPRoute, name: str, peer: Mapping[str, Any], mtu: int) -> None:
    netlink.link("add", ifname=name, kind="veth", mtu=mtu, peer={**peer, "mtu": mtu})
    netlink.link("set", index=_index(netlink, name), state="up")


def _configure(host: Host, hosts: Sequence[Host], config: Config) -> None:
    """Addresses, routes and neighbours of one host."""
    routers = [str(one.address) for one in hosts if one.role == "router"]
    with host.entered(), IPRoute() as netlink:
        netlink.link("set", index=_index(netlink, "lo"), state="up")
        index = _index(netlink, host.interface)
        netlink.link("set", index=index, address=host.mac, state="up")
        netlink.addr("add", index=index, address=str(host.address), prefixlen=SUBNET.prefixlen)
        for other in hosts:
            if other is not host:
                netlink.neigh("add", dst=str(other.address), lladdr=other.mac, ifindex=index, state="permanent")
        if host.role == "router":
            return
        netlink.route("add", dst=str(config.encapsulation.source), gateway=routers[0], oif=index)
        for vip in sorted({vip.address for vip in config.vips}) if host.role == "client" else ():
            ways: dict[str, Any] = {"gateway": routers[0], "oif": index}
            if len(routers) > 1:
                ways = {"multipath": [{"gateway": router, "oif": index} for router in routers]}
            netlink.route("add", dst=f"{vip}/32", **ways)
    if host.role == "client":
        host.sysctl("net.ipv4.fib_multipath_hash_policy", "1")  # a connection stays on its way


def _index(netlink: IPRoute, name: str) -> int:
    return int(netlink.link_lookup(ifname=name)[0])


@contextmanager
def _checksums_finished(host: Host) -> Iterator[None]:
    """Transmit checksum offload, and with it segmentation offload, off on a host's interface."""
    host.run(["ethtool", "-K", host.interface, "tx", "off"], timeout=SETUP_SECONDS)
    try:
        yield
    finally:
        host.run(["ethtool", "-K", host.interface, "tx", "on", "tso", "on"], timeout=SETUP_SECONDS)


def _detach(host: Host, attachment: XdpAttachment) -> None:
    with host.entered():
        attachment.detach()
