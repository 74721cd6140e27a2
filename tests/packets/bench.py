"""The compiled programs on the bench: loaded, filled from the oracle, run on one packet at a time.

Each run asserts the return code, every byte of the output, and that exactly one verdict counter grew, by one, and that
of the right VIP. The world they route in is fixed: the VIPs, clusters and backends below. Tests change it through the
bench (`route`, `put_flow`, `retire`), which the fixtures of conftest.py put back.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, SupportsBytes

from packets import frames, oracle
from packets.frames import VIP, VIP_PORT, Backend, Connection, Segment
from packets.oracle import Route, Vip
from rauta import loading
from rauta.bpf import BpfObject, Map, MapType, possible_cpus, skb_context, skb_fields
from rauta.network import namespaces

XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT = 1, 2, 3, 4
TC_PASSES = (0, 0xFFFFFFFF)  # TC_ACT_OK, and TC_ACT_UNSPEC: on to whoever is next
TC_ACT_SHOT = 2
TC_ACT_REDIRECT = 7
FLOW_SETS = 16
TOLD_ROUTES = 512
"""numbers of routes that a labelling router has something to say of"""
CONSUMED_SETS = 4
INGRESS = 1  # what packets come in on: the interface that test runs have by themselves, the loopback

CLUSTERS: dict[str, dict[str, int]] = {
    "web": {"web-1": 1, "web-2": 1},
    "api": {"api-1": 1},
    "skewed": {"tiny": 1, "small": 10, "middle": 50, "large": 300},
    "drained": {"old-1": 0},
}
INDEX = {cluster: index for index, cluster in enumerate(CLUSTERS)}
BACKENDS = {
    name: Backend(index, f"198.18.0.{11 + index}", f"02:00:00:00:01:{index:02x}")
    for index, name in enumerate(name for weights in CLUSTERS.values() for name in weights)
}

FALLBACK = Backend(oracle.FALLBACK_BACKEND, "198.18.0.2", frames.ROUTER_MAC)
"""The router's own host."""

CLOSED_HOST = "closed.test"  # knows nothing but /open
RESETTING_VIP, RESETTING_PORT = "198.18.100.81", 8000
SHOP_ROUTES = (
    Route("web", prefix="/"),
    Route("api", prefix="/api"),
    Route("drained", prefix="/drained"),
    Route("web", exact="/open", host=CLOSED_HOST),
)
RESETTING = Vip(RESETTING_VIP, RESETTING_PORT, (Route("web", exact="/open"),), oracle.NO_ROUTE_RESET)

_CLONE_NEWNET = 0x40000000


class Bench:
    """A loaded object: what both kinds have in common."""

    def __init__(self, obj: BpfObject) -> None:
        """Takes an object that is opened and has its constants; loads it."""
        self.object = obj
        obj.load()
        self.verdicts: dict[str, int] = obj.btf.enum("verdict")
        obj.maps["cookie_keys"].update(0, {"key": [list(key) for key in oracle.COOKIE_KEYS], "epoch": 0})
        obj.maps["ask_keys"].update(0, {"key": [list(key) for key in oracle.ASK_KEYS]})

    def counters(self) -> list[int]:
        """The counters by number, over all VIPs and CPUs."""
        return [sum(one) for one in zip(*(cpu for row in self.rows() for cpu in row), strict=True)]

    def rows(self) -> list[list[list[int]]]:
        """The counters by VIP, CPU and number."""
        rows = sorted(self.object.maps["verdicts"].items_batch())
        return [[cpu["packets"] for cpu in row] for _, row in rows]

    @contextmanager
    def counting(self, verdict: str, vips: Collection[int]) -> Iterator[None]:
        """Asserts that of all counters just this one grows, by one, and that it is one of those VIPs'."""
        before = self.rows()
        yield
        grown = self.grown_by_vip(before)
        assert grown in [{(vip, verdict): 1} for vip in vips]

    def grown(self, before: Sequence[int]) -> dict[str, int]:
        """By how much which counters differ from what they were; a number without a name is its own name."""
        now = self.counters()
        return {self._name(n): now[n] - old for n, old in enumerate(before) if now[n] != old}

    def grown_by_vip(self, before: Sequence[list[list[int]]]) -> dict[tuple[int, str], int]:
        """The same of what `rows` gave, and by the number of the VIP."""
        changed = [
            (vip, map(sum, zip(*old, strict=True)), map(sum, zip(*now, strict=True)))
            for vip, (old, now) in enumerate(zip(before, self.rows(), strict=True))
            if old != now
        ]
        return {
            (vip, self._name(n)): now - old
            for vip, olds, nows in changed
            for n, (old, now) in enumerate(zip(olds, nows, strict=True))
            if old != now
        }

    def _name(self, verdict: int) -> str:
        return next((name for name, number in self.verdicts.items() if number == verdict), str(verdict))

    def counted_for(self, frame: bytes, verdict: str) -> Collection[int]:
        """Whose counter a verdict on a frame may be: the number of a VIP, or 0."""
        return (0,)

    def run(self, program: str, frame: SupportsBytes, verdict: str, ctx: bytes | None = None) -> tuple[int, bytes]:
        """Runs a program once: return code and output. Fails unless it ends in that verdict and no other."""
        with self.counting(verdict, self.counted_for(bytes(frame), verdict)):
            done = self.object.programs[program].test_run(bytes(frame), ctx=ctx)
        return done.retval, done.data


class Router(Bench):
    """`rauta_ingress`, and what its maps hold."""

    def __init__(self, outer_network: str = "198.19.0.0", outer_mask: str = "255.255.255.0", **constants: int) -> None:
        """Loads the program; encapsulated packets come from that network.

        With other `constants` of the object than it has by itself, all its programs are loaded, also those that are
        left out by default.
        """
        self.outer = (outer_network, outer_mask)
        obj = loading.open_object("ingress")
        for name, value in constants.items():
            obj.rodata[name] = value
        for program in obj.programs.values() if constants else ():
            program.set_autoload(True)
        obj.rodata["route_key"], obj.rodata["flow_key"] = oracle.ROUTE_KEY, oracle.FLOW_KEY
        obj.rodata["digest_keys"] = oracle.DIGEST_KEYS
        obj.rodata["encapsulation_prefix"], obj.rodata["encapsulation_mask"] = map(oracle.be32, self.outer)
        obj.rodata["flow_sets"] = FLOW_SETS
        obj.maps["flows"].set_max_entries(FLOW_SETS)
        obj.maps["told_routes"].set_max_entries(TOLD_ROUTES)
        super().__init__(obj)
        self.maglev: dict[str, list[str | None]] = {}
        self._reweighed = set(CLUSTERS)
        self.reset()

    def reset(self) -> None:
        """Puts everything back that a test may have changed."""
        self.object.maps["flows"].clear()
        for backend in BACKENDS.values():
            value = {"address": oracle.be32(backend.address), "next_hop": oracle.mac(backend.mac)}
            self.object.maps["backends"].update(backend.index, value)
        local = {"address": oracle.be32(FALLBACK.address), "interface": oracle.BACKEND_LOCAL}
        self.object.maps["backends"].update(FALLBACK.index, local)
        for cluster in self._reweighed:
            self._weigh(cluster, CLUSTERS[cluster])
        self._reweighed.clear()
        self.set_cookie_keys(oracle.COOKIE_KEYS, 0)
        self.route(*SHOP_ROUTES)
        for number in range(TOLD_ROUTES):
            self.tell(number, fingerprint_of(number))

    # ---- what it routes by -----------------------------------------------------------------------------

    def route(self, *routes: Route, no_route: int = oracle.NO_ROUTE_404, fallback: bool = False) -> None:
        """Gives the VIP other routes, and a fallback if it is to have one."""
        vip = Vip(VIP, VIP_PORT, routes, no_route, fallback)
        tables = oracle.route_tables([vip, RESETTING], INDEX)
        for name, entries in tables.items():
            self.object.maps[name].clear()
            self.object.maps[name].update_batch(entries)

    def tell(self, number: int, fingerprint: int, *, brief: bool = True) -> None:
        """Has the router say that of the route with this number; in orders only if it may."""
        said = {"low": fingerprint & 0xFFFFFFFF, "high": fingerprint >> 32, "brief": int(brief)}
        self.object.maps["told_routes"].update(number, said)

    def set_cookie_keys(self, keys: Sequence[tuple[int, int]], epoch: int) -> None:
        """Gives the router these keys, and the one to use for new cookies."""
        self.object.maps["cookie_keys"].update(0, {"key": [list(key) for key in keys], "epoch": epoch})

    def lead(self, backend: str, interface: int, source_mac: str) -> None:
        """Has the way to a backend lead out of an interface, which has that MAC address."""
        one = BACKENDS[backend]
        value = {
            "address": oracle.be32(one.address),
            "next_hop": oracle.mac(one.mac),
            "source": oracle.mac(source_mac),
            "interface": interface,
        }
        self.object.maps["backends"].update(one.index, value)

    def weigh(self, cluster: str, **weights: int) -> None:
        """Gives the backends of a cluster other weights, by their names with `_` for `-`."""
        self._weigh(cluster, {name.replace("_", "-"): weight for name, weight in weights.items()})
        self._reweighed.add(cluster)

    def _weigh(self, cluster: str, weights: Mapping[str, int]) -> None:
        self.maglev[cluster] = oracle.maglev_table(weights)
        self._put_cluster(INDEX[cluster], self.maglev[cluster])
        members = sum(1 << BACKENDS[name].index for name, weight in weights.items() if weight)
        self.object.maps["members"].update(INDEX[cluster] * oracle.MEMBER_WORDS, members)

    def take_down(self, backend: str) -> None:
        """Has the router know that a backend's host does not answer."""
        one = BACKENDS[backend]
        value = {"address": oracle.be32(one.address), "next_hop": oracle.mac(one.mac), "down": 1}
        self.object.maps["backends"].update(one.index, value)

    def retire(self, backend: str) -> None:
        """Takes a backend out of the configuration."""
        self.object.maps["backends"].update(BACKENDS[backend].index, {"address": 0})

    def backend_of(self, cluster: str, connection: Connection) -> str:
        """Whom Maglev names for a connection."""
        name = self.maglev[cluster][oracle.maglev_slot(connection.tuple)]
        assert name is not None
        return name

    def other_backend(self, cluster: str, connection: Connection) -> str:
        """Another backend of the cluster than the one that Maglev names."""
        return next(name for name in CLUSTERS[cluster] if name != self.backend_of(cluster, connection))

    def _put_cluster(self, index: int, table: Sequence[str | None]) -> None:
        indices = {name: backend.index for name, backend in BACKENDS.items()}
        with Map.create(MapType.ARRAY, "maglev", 4, 8, oracle.MAGLEV_PACKED) as slots:
            slots.update_batch(oracle.maglev_entries(table, indices))
            self.object.maps["clusters"].update(index, slots)

    # ---- flows -----------------------------------------------------------------------------------------

    def flow(self, connection: Connection) -> dict[str, Any] | None:
        """The entry of a connection's tuple, without padding; None if there is none. It may be there only once."""
        number, tag = oracle.flow_place(connection.tuple, FLOW_SETS)
        flow_set = self.object.maps["flows"].lookup(number)
        ways = [
            flow
            for flow, its_tag in zip(flow_set["flow"], flow_set["tag"], strict=True)
            if its_tag == tag and flow["tuple"] == connection.tuple.key
        ]
        assert len(ways) <= 1, f"{len(ways)} entries for one tuple"
        return {name: value for name, value in ways[0].items() if name not in ("tuple", "reserved")} if ways else None

    def put_flow(self, connection: Connection, **fields: Any) -> None:
        """Puts an entry for a connection into the table, in the place of the one that its tuple has, or a free one."""
        number, tag = oracle.flow_place(connection.tuple, FLOW_SETS)
        flow_set = self.object.maps["flows"].lookup(number)
        tuples = [flow["tuple"] for flow in flow_set["flow"]]
        key = connection.tuple.key
        way = tuples.index(key) if key in tuples else flow_set["tag"].index(0)
        flow_set["tag"][way], flow_set["flow"][way] = tag, {"tuple": key} | fields
        self.object.maps["flows"].update(number, flow_set)

    def flows(self) -> int:
        """How many entries the table has."""
        return sum(tag != 0 for _, flow_set in self.object.maps["flows"].items() for tag in flow_set["tag"])

    # ---- runs ------------------------------------------------------------------------------------------

    def counted_for(self, frame: bytes, verdict: str) -> Collection[int]:
        """The VIP that the frame is for; 0 if it is passed, a fragment, or cut short.

        An ICMP error may be dropped before it is known which VIP it is about.
        """
        if verdict.startswith("PASS_") or verdict == "DROP_FRAGMENT":
            return (0,)
        numbers = [value["id"] for key, value in self.object.maps["vips"].items() if key == oracle.named_vip(frame)]
        return (0, *numbers) if verdict == "DROP_ICMP" or not numbers else numbers

    def passes(self, frame: SupportsBytes, verdict: str) -> None:
        """To the kernel, unchanged."""
        assert self.run("rauta_ingress", frame, verdict) == (XDP_PASS, bytes(frame))

    def drops(self, frame: SupportsBytes, verdict: str) -> None:
        """Nowhere; the bytes are as they came."""
        assert self.run("rauta_ingress", frame, verdict) == (XDP_DROP, bytes(frame))

    def sends(self, frame: SupportsBytes, verdict: str, expected: bytes) -> None:
        """Out again, as that frame."""
        code, output = self.run("rauta_ingress", frame, verdict)
        assert (code, output.hex(" ")) == (XDP_TX, expected.hex(" "))

    def forwards(
        self,
        segment: Segment,
        verdict: str,
        backend: str,
        *,
        opens: bool = False,
        cookie: int | None = None,
        beyond: bool = False,
        route: int | None = None,
    ) -> None:
        """To that backend, encapsulated; `opens` if the outer header must say that it opens the connection, `beyond` if
        it must say that the segment lies behind a request that is being moved.

        It says whose segment it is, too: that of the tuple's entry, whose `cookie` may be another than the segment's. A
        label behind it says the fingerprint of the `route` with that number.
        """
        new = verdict == "ROUTED_FIRST"
        starts = verdict in ("ROUTED_NEXT", "FORWARDED_AGAIN")
        expected = self.encapsulated(
            segment, backend, opens=opens, cookie=cookie, new=new, starts=starts, beyond=beyond, route=route
        )
        self.sends(segment, verdict, expected)

    def falls_back(self, segment: Segment, verdict: str, *, opens: bool = False, cookie: int | None = None) -> None:
        """To the fallback: up to the kernel, encapsulated for the router's own host, between the same two machines."""
        code, output = self.run("rauta_ingress", segment, verdict)
        source = oracle.outer_source(segment.connection.tuple, *self.outer)
        cookie = segment.connection.cookie if cookie is None else cookie
        mac = frames.CLIENT_MAC
        expected = frames.encapsulated(segment, FALLBACK, source, cookie, opens=opens, mac=mac, new=False)
        assert (code, output.hex(" ")) == (XDP_PASS, expected.hex(" "))

    def orders(
        self,
        segment: Segment,
        verdict: str,
        mover: str,
        target: str,
        *,
        cookie: int | None = None,
        epoch: int = 0,
        source_mac: str | None = None,
        route: int = 0,
    ) -> None:
        """To the backend `mover`, with the order to hand the connection over to `target`.

        The order calls the connection by a `cookie`, by default that of its handshake. With `source_mac` it leaves by
        another interface, which has that MAC address. `route` is the fingerprint that it says a part of.
        """
        earliest = oracle.shim_time()
        code, output = self.run("rauta_ingress", segment, verdict)
        said = int.from_bytes(output[frames.SHIM + 4 : frames.SHIM + 6], "little")
        assert said in (earliest, oracle.shim_time())
        order = self.order(segment, mover, target, cookie=cookie, epoch=epoch, time=said)
        shim = dataclasses.replace(order, flags=order.flags | oracle.brief_flags(route))
        mac = frames.ROUTER_MAC if source_mac is None else source_mac
        expected = frames.ordered(segment, shim, mac, BACKENDS[mover].mac, route & 0xFFFF)
        assert (code, output.hex(" ")) == (XDP_REDIRECT if source_mac else XDP_TX, expected.hex(" "))

    def adopts(self, segment: Segment, verdict: str, target: str, *, cookie: int | None = None) -> None:
        """To `target`, with the router's own order to go on with the connection: the one that has it is down.

        What it says is what the router knows: the options of the SYN, and the clock that the client echoes.
        """
        code, output = self.run("rauta_ingress", segment, verdict)
        said = int.from_bytes(output[frames.SHIM + 4 : frames.SHIM + 6], "little")
        assert (oracle.shim_time() - said) & 0xFFFF <= 1
        stamps = oracle.parse_timestamps(segment.options)
        known = {"first": stamps[1] if stamps else 0, "options": segment.connection.cookie & 0xFF}
        order = self.order(segment, target, target, cookie=cookie, time=said)
        shim = dataclasses.replace(order, kind=oracle.SHIM_ADOPT, **known)
        expected = frames.ordered(segment, shim, frames.ROUTER_MAC, BACKENDS[target].mac)
        assert (code, output.hex(" ")) == (XDP_TX, expected.hex(" "))

    def order(
        self, segment: Segment, mover: str, target: str, *, cookie: int | None = None, epoch: int = 0, time: int
    ) -> oracle.Shim:
        """What it says."""
        return oracle.Shim(
            kind=oracle.SHIM_MOVE,
            four=segment.connection.tuple,
            seq=segment.seq,
            ack=segment.ack,
            source=oracle.outer_source(segment.connection.tuple, *self.outer),
            destination=BACKENDS[mover].address,
            first=oracle.be32(BACKENDS[target].address),
            second=segment.connection.cookie if cookie is None else cookie,
            time=time,
            flags=epoch | (oracle.SHIM_HEAD if segment.payload.startswith(b"HEAD ") else 0),
        )

    def redirects(self, segment: Segment, verdict: str, backend: str, source_mac: str, *, opens: bool = False) -> None:
        """To that backend, encapsulated, out of another interface, which has that MAC address."""
        code, output = self.run("rauta_ingress", segment, verdict)
        new = verdict == "ROUTED_FIRST"
        starts = verdict == "ROUTED_NEXT"
        expected = self.encapsulated(segment, backend, opens=opens, mac=source_mac, new=new, starts=starts)
        assert (code, output.hex(" ")) == (XDP_REDIRECT, expected.hex(" "))

    def encapsulated(
        self,
        segment: Segment,
        backend: str,
        *,
        opens: bool,
        cookie: int | None = None,
        mac: str = frames.ROUTER_MAC,
        new: bool | None = None,
        starts: bool = False,
        beyond: bool = False,
        route: int | None = None,
    ) -> bytes:
        """The frame for that backend."""
        source = oracle.outer_source(segment.connection.tuple, *self.outer)
        cookie = segment.connection.cookie if cookie is None else cookie
        return frames.encapsulated(
            segment,
            BACKENDS[backend],
            source,
            cookie,
            opens=opens,
            mac=mac,
            new=new,
            starts=starts,
            beyond=beyond,
            route=None if route is None else fingerprint_of(route),
        )

    def greets(self, syn: Segment, epoch: int = 0) -> None:
        """Back to the client, as the cookie SYN-ACK; its timestamp is the router's clock of just now."""
        earliest = clock()
        code, output = self.run("rauta_ingress", syn, "TX_SYN_ACK")
        latest = clock()
        said = oracle.parse_timestamps(output[frames.HEADERS :])
        tsval = earliest if said is None else min(max(said[0], earliest), latest)
        assert (code, output.hex(" ")) == (XDP_TX, frames.syn_ack_to(syn, tsval, epoch).hex(" "))

    def resets(self, segment: Segment, verdict: str) -> None:
        """Back to the client, as a reset."""
        self.sends(segment, verdict, frames.reset_of(segment))

    def answers(self, segment: Segment, verdict: str, status: str) -> None:
        """Back to the client, as an HTTP answer that also closes."""
        self.sends(segment, verdict, frames.answer_to(segment, status))

    def finds_too_big(self, segment: Segment) -> None:
        """Back to the client, as an ICMP error: it has no room for the outer header."""
        self.sends(segment, "TX_TOO_BIG", frames.too_big(segment))

    def opens(self, segment: Segment, cluster: str) -> None:
        """The first request of its connection, to the backend of the cluster that Maglev names."""
        backend, cookie = self.backend_of(cluster, segment.connection), segment.ack - 1 & 0xFFFFFFFF
        self.forwards(segment, "ROUTED_FIRST", backend, opens=True, cookie=cookie)


class Agent(Bench):
    """`rauta_agent_ingress` and `rauta_agent_egress` of one backend, in a network namespace without any socket."""

    def __init__(
        self,
        routers: str,
        mask: str,
        services: Mapping[tuple[str, int], tuple[str, int]],
        *,
        routes: Sequence[int] = (),
        **constants: int,
    ) -> None:
        """Loads the programs. `services`: from VIP and port to local address and port.

        With `constants` of the object, all of them are loaded, also those that are left out by default. It counts by
        `routes` of these fingerprints.
        """
        obj = loading.open_object("agent")
        for name, value in constants.items():
            obj.rodata[name] = value
        for program in obj.programs.values() if constants else ():
            program.set_autoload(True)
        obj.rodata["routers_prefix"], obj.rodata["routers_mask"] = oracle.be32(routers), oracle.be32(mask)
        obj.rodata["consumed_key"], obj.rodata["consumed_sets"] = oracle.CONSUMED_KEY, CONSUMED_SETS
        obj.rodata["digest_keys"] = oracle.DIGEST_KEYS
        obj.maps["consumed"].set_max_entries(CONSUMED_SETS)
        for name in ("figures", "briefs"):
            obj.maps[name].set_max_entries(1 + len(routes))
        super().__init__(obj)
        self.routes = routes
        self.count_from_0()
        self.object.maps["briefs"].update_batch((route & 0x3FFFFF, route) for route in routes)
        for vip, local in services.items():
            self.object.maps["services"].update(oracle.vip_key(*vip), oracle.vip_key(*local))

    def count_from_0(self) -> None:
        """Has it forget what it has counted by route."""
        figures = self.object.maps["figures"]
        figures.update_batch((route, [bytes(figures.value_size)] * possible_cpus()) for route in (0, *self.routes))

    def reset(self) -> None:
        """Has it forget all connections."""
        for name in ("mappings", "consumed"):
            self.object.maps[name].clear()

    def consumed(self) -> list[int]:
        """The fingerprints of the connections that have had their socket, in ascending order."""
        sets = [one for _, one in self.object.maps["consumed"].items()]
        return sorted(fingerprint for one in sets for fingerprint in one["fingerprint"] if fingerprint)

    def consume(self, four: oracle.Tuple, connection: Connection) -> None:
        """Has the agent know that a connection has had its socket."""
        fingerprint = oracle.fingerprint(four, connection.isn, connection.cookie)
        number = oracle.consumed_place(fingerprint, CONSUMED_SETS)
        its_set = self.object.maps["consumed"].lookup(number)
        its_set["fingerprint"][its_set["hand"] % oracle.CONSUMED_WAYS] = fingerprint
        its_set["hand"] += 1
        self.object.maps["consumed"].update(number, its_set)

    def mapping(self, four: oracle.Tuple) -> dict[str, Any] | None:
        """What the map `mappings` holds for a tuple with the local address and port."""
        found: dict[str, Any] | None = self.object.maps["mappings"].lookup(four.key)
        return found

    def put_mapping(
        self, four: oracle.Tuple, connection: Connection, state: int = oracle.MAPPING_OPEN, **fields: int
    ) -> None:
        """Has the agent know that a local tuple is a connection to a VIP; `fields` are to differ from it."""
        vip, port = oracle.be32(connection.server), oracle.be16(connection.server_port)
        value = {"vip": vip, "vip_port": port, "state": state}
        value |= {"isn": connection.isn, "cookie": connection.cookie} | fields
        self.object.maps["mappings"].update(four.key, value)

    def passes(
        self, direction: str, frame: SupportsBytes, verdict: str, expected: SupportsBytes, mark: int = 0
    ) -> None:
        """On to the kernel (`direction` "ingress") or the wire ("egress"), as that frame."""
        ctx = skb_context(mark=mark) if mark else None
        code, output = self.run(f"rauta_agent_{direction}", frame, verdict, ctx)
        assert code in TC_PASSES
        assert output.hex(" ") == bytes(expected).hex(" ")

    def goes_round(
        self, frame: SupportsBytes, verdict: str, expected: SupportsBytes, *, marked: int = 0, mark: int
    ) -> None:
        """Through the same interface's ingress again, as that frame, with that mark (`marked`: with which it came)."""
        program, ctx = self.object.programs["rauta_agent_ingress"], skb_context(mark=marked)
        with self.counting(verdict, (0,)):
            done = program.test_run(bytes(frame), ctx=ctx, ctx_out_size=len(ctx))
        assert (done.retval, done.data.hex(" ")) == (TC_ACT_REDIRECT, bytes(expected).hex(" "))
        assert skb_fields(done.ctx)["mark"] == mark

    def drops(self, direction: str, frame: SupportsBytes, verdict: str, mark: int = 0) -> None:
        """Nowhere. What became of the bytes does not matter."""
        ctx = skb_context(mark=mark) if mark else None
        code, _ = self.run(f"rauta_agent_{direction}", frame, verdict, ctx)
        assert code == TC_ACT_SHOT


def entry(
    segment: Segment, cluster: str, backend: str, *, head: bytes | None = None, body: int = 0, **changes: int
) -> dict[str, int]:
    """The flow entry after a segment with a connection's first request; `head` if it is not the whole payload.

    Of a later request, `body_seq` is to say where the body of the one before it began.
    """
    head = segment.payload if head is None else head
    made = {
        "isn": segment.connection.isn,
        "cookie": segment.connection.cookie,
        "request_seq": segment.seq,
        "next_request_seq": segment.seq + len(head) + body & 0xFFFFFFFF,
        "request_ack": segment.ack,
        "syn_isn": 0,
        "head_length": len(head),
        "backend": BACKENDS[backend].index,
        "cluster": INDEX[cluster],
        "state": oracle.FLOW_OPEN,
        "syn_seen": 0,
        "first": 1,
        "answer": 0,
        "digest": oracle.head_digest(head),
        "body_seq": segment.seq,
        "mover": 0,
        "is_head": int(head.startswith(b"HEAD ")),
        "options": segment.connection.cookie & 0xFF,
    }
    return made | changes


def fingerprint_of(number: int) -> int:
    """What a labelling router says of the route with that number: 48 bits, all different, and so are the lowest 22."""
    return (number + 1) * 0x9E37_79B9_7F4B % (1 << 48)


def clock() -> int:
    """The clock of the router's timestamps: milliseconds, 32 bits."""
    return time.monotonic_ns() // 1_000_000 & 0xFFFFFFFF


@contextmanager
def throwaway_namespace() -> Iterator[None]:
    """Puts the calling thread into a network namespace of its own that is gone afterwards."""
    with namespaces.entered("/proc/thread-self/ns/net"):  # which leads back home in any case
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"unshare(CLONE_NEWNET): {os.strerror(ctypes.get_errno())}")
        yield
