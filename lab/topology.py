"""The network of a scenario: one namespace a host, all of it gone when the context ends.

Three kinds, drawn in lab.wiring: one-armed, two-armed, and direct. There may be several clients and routers (client-1,
client-2, ...). Cables can have the faults of real ones: lab.links.

Nobody owns a VIP's address: clients reach it by a /32 route over a router, whose XDP program answers for it; with
several routers the clients take turns. Backends and clients route the outer addresses of encapsulated packets over the
router, so that ICMP about them gets there.

What veth needs for XDP, and why (kernel drivers/net/veth.c):

* Frames that the router's program sends with XDP_TX reach the bridge only if the peer, the bridge's port, has an XDP
  program too. A bare XDP_PASS is there. Otherwise they lie in the port's ring until something else wakes it.
* A sender's unfinished checksum or unsegmented TCP cannot leave a host on a program's way out: transmit checksum
  offload, and with it segmentation offload, is off on whoever sends into the router. Backends answer the client
  directly and keep theirs.

Both only while a contender with XDP runs (``Network.ready_for_xdp``), and while ``direct`` does, which is to be
compared with one like for like. The others get the offloads that Linux has by default.

Every host knows everybody's MAC address from the start, and the switch everybody's port: no first packet waits for ARP,
and none is flooded to hosts that it is not for, whose XDP programs would see it. IPv6 is off: no stray packet of
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

from lab import namespaces, process, wiring
from lab.errors import LabError
from lab.links import Cable, Faults, conditioned
from lab.state import Run, creating_namespaces, remove_with_inhabitants
from lab.wiring import Way, Wire
from rauta.bpf import BpfObject, Program, XdpAttachment, attach_xdp
from rauta.network.namespaces import entered

if TYPE_CHECKING:
    from lab.scenario import Scenario, Topology
    from rauta.config import Config

NTF_MASTER, NUD_NOARP = 0x04, 0x40
"""a static entry of a switch (linux/neighbour.h)"""
INTERFACE = "eth0"
FABRIC = "fabric"
ATTACKER = "attacker"
INSTRUMENTS = Path(__file__).parent / "objects" / "instruments.bpf.o"
SETUP_SECONDS = 10.0


@dataclass(frozen=True)
class Host:
    """A machine of the network: a namespace with one interface."""

    name: str
    role: str
    """client, router, attacker, or the cluster that it serves"""
    namespace: str
    address: IPv4Address
    logs: Path
    cpus: tuple[int, ...] = ()
    """where its programs run; empty: anywhere"""
    interface: str = INTERFACE
    _processes: list[process.Process] = field(default_factory=list, repr=False, compare=False)

    @property
    def mac(self) -> str:
        """Of all its interfaces; no two of them are on one switch."""
        return wiring.mac(self.address)

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

    def kill(self, name: str) -> None:
        """SIGKILL to what was started here under that name, and to all that it has started."""
        for one in [one for one in self._processes if one.name == name]:
            one.kill()
            self._processes.remove(one)

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
        wires: Sequence[Wire],
        faults: Mapping[str, Faults],
        conditioned: bool,
    ) -> None:
        """``faults``: of the cables that have some, by host; ``conditioned``: whether any cable is not ideal."""
        self.run = run
        self._wires = wires
        self.faults = faults
        self.conditioned = conditioned
        self.fabric = fabric
        self.hosts: Mapping[str, Host] = {host.name: host for host in hosts}
        self._clusters = clusters
        self._passing: dict[str, tuple[Host, XdpAttachment, Program]] = {}
        """by router: what is at the far end of its first cable, on whom, and what it was before anybody replaced it"""

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

    @property
    def attackers(self) -> list[Host]:
        """The host that attacks, if the scenario has one."""
        return self._of_role(ATTACKER)

    @property
    def watched(self) -> list[Host]:
        """Those whose work is measured: all but the attacker."""
        return [host for host in self.hosts.values() if host.role != ATTACKER]

    def _of_role(self, role: str) -> list[Host]:
        return [host for name, host in self.hosts.items() if name == role or name.startswith(f"{role}-")]

    @property
    def clusters(self) -> Mapping[str, Sequence[str]]:
        """Names of the backends of each cluster, in the order of the routing file."""
        return self._clusters

    def port(self, host: Host) -> str:
        """The name of the other end of a host's first cable: an interface of the fabric."""
        return next(wire.port for wire in self._wires if wire.host is host)

    def interfaces(self, router: Host) -> list[str]:
        """A router's interfaces; clients are behind the first."""
        own = [wire.interface for wire in self._wires if wire.host is router]
        return own or [wire.port for wire in self._wires]

    def _beyond(self, router: Host) -> list[tuple[Host, str]]:
        """The other ends of a router's cables: on whom, and the interface there."""
        own = [(self.fabric, wire.port) for wire in self._wires if wire.host is router]
        return own or [(wire.host, wire.interface) for wire in self._wires]

    @contextmanager
    def ready_for_xdp(self) -> Iterator[None]:
        """What XDP on the router's interface needs of the others, while it is there; see the top of this module."""
        with ExitStack() as undo:
            if not self.conditioned:  # then they are off anyway
                for host in (*self.clients, *self.attackers):
                    undo.enter_context(_checksums_finished(host, INTERFACE))
                for host in self.routers:
                    for interface in self.interfaces(host):
                        undo.enter_context(_checksums_finished(host, interface))
            instruments = undo.enter_context(BpfObject.open(INSTRUMENTS))
            instruments.load()
            for router in self.routers:
                for host, interface in self._beyond(router):
                    with host.entered():
                        index = socket.if_nametoindex(interface)
                        attachment = attach_xdp(index, instruments.programs["xdp_pass"], mode="native")
                    undo.callback(detach, host, attachment)
                    self._passing.setdefault(router.name, (host, attachment, instruments.programs["xdp_pass"]))
            undo.callback(self._passing.clear)
            yield

    @contextmanager
    def instead_of_passing(self, router: Host, program: Program) -> Iterator[None]:
        """Another program at the far end of a router's first cable, while the network is ready for XDP."""
        host, attachment, passing = self._passing[router.name]
        with host.entered():
            attachment.replace(program)
        try:
            yield
        finally:
            with host.entered():
                attachment.replace(passing)

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
            wires = wiring.wires(scenario.topology.kind, hosts)
            cables = _connect(fabric, hosts, wires, scenario.topology)
            for host in hosts:
                _configure(host, wires, list(wiring.ways(scenario.topology.kind, host, wires, config)))
        except NetlinkError as error:
            advice = "`python -m lab doctor` shows what this kernel lacks."
            raise LabError(f"building the network of {scenario.name}", str(error), advice) from error
        faults = undo.enter_context(conditioned(fabric, cables))
        yield Network(run, fabric, hosts, clusters, wires, faults, any(cable.link.conditions for cable in cables))


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
    for role, where in (("client", cpus.client), ("router", cpus.router), (ATTACKER, ())):
        for number in range(counts.get(role, 0)):
            name = role if counts[role] == 1 else f"{role}-{number + 1}"
            found.append(host(name, role, wiring.addresses(scenario.topology.kind, role, number), where))
    for cluster in config.clusters:
        found += [host(one.name, cluster.name, one.address, cpus.servers) for one in cluster.backends]
    return found


def _connect(fabric: Host, hosts: Sequence[Host], wires: Sequence[Wire], topology: Topology) -> list[Cable]:
    """Switches and cables; a cable is in two halves where frames are to be held on the way."""
    switches = wiring.SWITCHES[topology.kind]
    cables = []
    with fabric.entered(), IPRoute() as netlink:
        for name in Path("/proc/sys/net/bridge").glob("bridge-nf-call-*"):
            name.write_text("0")  # where br_netfilter is loaded: a switch is no firewall
        for switch, network in switches.items():
            netlink.link("add", ifname=switch, kind="bridge", br_stp_state=0, mtu=topology.link.mtu)
            if len(switches) > 1:
                _become_gateway(netlink, switch, network, wires)
            netlink.link("set", index=_index(netlink, switch), state="up")
    if len(switches) > 1:
        fabric.sysctl("net.ipv4.ip_forward", "1")
    for number, wire in enumerate(wires):
        link = topology.link_of(wire.host.role)
        near = fabric if wire.switch else next(host for host in hosts if host.role == "router")
        with near.entered(), IPRoute() as netlink:
            _pair(netlink, wire.port, {"ifname": wire.interface, "net_ns_fd": wire.host.namespace}, link.mtu)
            if wire.switch is None:
                continue
            joint = f"joint{number}" if link.delay else None
            if joint is not None:
                _pair(netlink, joint, {"ifname": f"{joint}-l"}, link.mtu)
                netlink.link("set", index=_index(netlink, f"{joint}-l"), state="up")
            plugged = _index(netlink, joint or wire.port)
            netlink.link("set", index=plugged, master=_index(netlink, wire.switch))
            netlink.fdb("add", ifindex=plugged, lladdr=wire.host.mac, flags=NTF_MASTER, state=NUD_NOARP)
        cables.append(Cable(wire.host, wire.interface, link, wire.port, joint))
    return cables


def _become_gateway(netlink: IPRoute, switch: str, network: IPv4Network, wires: Sequence[Wire]) -> None:
    """An address of its own for the fabric on a switch, and everybody's MAC address there."""
    index, own = _index(netlink, switch), wiring.gateway(network)
    netlink.link("set", index=index, address=wiring.mac(own))
    netlink.addr("add", index=index, address=str(own), prefixlen=network.prefixlen)
    for wire in wires:
        if wire.switch == switch:
            netlink.neigh("add", dst=str(wire.address), lladdr=wire.host.mac, ifindex=index, state="permanent")


def _pair(netlink: IPRoute, name: str, peer: Mapping[str, Any], mtu: int) -> None:
    netlink.link("add", ifname=name, kind="veth", mtu=mtu, peer={**peer, "mtu": mtu})
    netlink.link("set", index=_index(netlink, name), state="up")


def _configure(host: Host, wires: Sequence[Wire], ways: Sequence[Way]) -> None:
    """Addresses, neighbours and routes of one host."""
    own = [wire for wire in wires if wire.host is host]
    with host.entered(), IPRoute() as netlink:
        loopback = _index(netlink, "lo")
        netlink.link("set", index=loopback, state="up")
        for wire in own:
            index = _index(netlink, wire.interface)
            netlink.link("set", index=index, address=host.mac, state="up")
            netlink.addr("add", index=index, address=str(wire.address), prefixlen=wire.network.prefixlen)
            for address, mac in _neighbours(wire, wires):
                netlink.neigh("add", dst=str(address), lladdr=mac, ifindex=index, state="permanent")
        if not own:  # a router whose cables are the others'
            netlink.addr("add", index=loopback, address=str(host.address), prefixlen=32)
            for wire in wires:
                index = _index(netlink, wire.port)
                netlink.link("set", index=index, address=host.mac)
                netlink.neigh("add", dst=str(wire.address), lladdr=wire.host.mac, ifindex=index, state="permanent")
        for way in ways:
            netlink.route("add", **way.fields(_index(netlink, way.interface)))
    if not own:
        host.sysctl("net.ipv4.ip_forward", "1")


def _neighbours(wire: Wire, wires: Sequence[Wire]) -> Iterator[tuple[IPv4Address, str]]:
    """Address and MAC of everybody on the same switch; of the router, where there is none."""
    if wire.switch is None:
        yield wiring.ROUTER_ADDRESS, wiring.mac(wiring.ROUTER_ADDRESS)
        return
    yield wiring.gateway(wire.network), wiring.mac(wiring.gateway(wire.network))
    for other in wires:
        if other.switch == wire.switch and other is not wire:
            yield other.address, other.host.mac


def _index(netlink: IPRoute, name: str) -> int:
    return int(netlink.link_lookup(ifname=name)[0])


@contextmanager
def _checksums_finished(host: Host, interface: str) -> Iterator[None]:
    """Transmit checksum offload, and with it segmentation offload, off on a host's interface."""
    host.run(["ethtool", "-K", interface, "tx", "off"], timeout=SETUP_SECONDS)
    try:
        yield
    finally:
        host.run(["ethtool", "-K", interface, "tx", "on", "tso", "on"], timeout=SETUP_SECONDS)


def detach(host: Host, attachment: XdpAttachment) -> None:
    """Take a program off an interface of a host's."""
    with host.entered():
        attachment.detach()
