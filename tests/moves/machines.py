"""The programs as machines: a state and a packet give the next state and what is sent. Every step is run once.

The router runs by BPF_PROG_TEST_RUN; its state is the entry of the flow table, which is put there before each run.

An agent is attached to the interface of a network namespace of its own, with the kernel's own sockets and a server; a
socket can be put into no state but by what leads there. So a state is known by all that can be seen of it (maps, the
socket's mapping, the socket's numbers, what the server has read), and is reached again by the shortest way that led
to it. That this leads to the same state is checked each time.
"""

from __future__ import annotations

import fcntl
import re
import socket
import struct
import subprocess
import termios
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from packets import oracle
from packets.bench import FLOW_SETS, XDP_DROP, XDP_TX, Agent, Router, throwaway_namespace
from packets.frames import BACKEND_MAC, CLIENT, CLIENT_MAC, LOCAL_PORT, VIP, VIP_PORT, Connection
from packets.sockets import SO_TCP, TCP_REPAIR

from moves.wire import ACK, CLOCK, TRIP, Packet, packet_of, tcp_of
from rauta.bpf import attach_tc

ROUTERS, ROUTERS_MASK = "198.19.0.0", "255.255.255.0"
ATTEMPTS = 20  # to reach a state again: the machine is shared, and the kernel's timers run
FLOW_MOVING = 6
FRESH = 0.05  # s: sooner than any of the kernel's timers that sends something

Outputs = tuple[Packet, ...]


@dataclass(frozen=True)
class Step:
    """What becomes of a state by an event."""

    state: int
    sent: Outputs = ()
    executed: tuple[str, ...] = ()


def frozen(value: Any) -> Any:
    """A dictionary of a map's value as something that can be compared and hashed."""
    if isinstance(value, dict):
        return tuple((name, frozen(one)) for name, one in value.items())
    return tuple(map(frozen, value)) if isinstance(value, list) else value


class Machine(ABC):
    """States by number, and the steps between them that have been run."""

    def __init__(self) -> None:
        self.numbers: dict[Any, int] = {}
        self.states: list[Any] = []
        self.steps: dict[tuple[int, Any], Step] = {}

    def number(self, state: Any) -> int:
        """The state's number, a new one if it is new."""
        if state not in self.numbers:
            self.numbers[state] = len(self.states)
            self.states.append(state)
        return self.numbers[state]

    def step(self, state: int, event: Any) -> Step:
        """Run, or remembered."""
        done = self.steps.get((state, event))
        if done is None:
            done = self.steps[state, event] = self.run(state, event)
        return done

    @abstractmethod
    def run(self, state: int, event: Any) -> Step:
        """Run for the first time."""


class RouterMachine(Machine):
    """Its states: which of its route tables it has, and the entry of the flow table, or None.

    Events are packets, and "change": the next route table. How often an order was repeated is no part of the state.
    """

    def __init__(
        self,
        router: Router,
        connection: Connection,
        addresses: dict[str, str],
        tables: Sequence[Sequence[oracle.Route]],
    ) -> None:
        super().__init__()
        self.router, self.connection, self.addresses, self.tables = router, connection, addresses, tables
        self.place, self.tag = oracle.flow_place(connection.tuple, FLOW_SETS)
        self.start = self.number((0, None))
        self.table = -1
        router.object.maps["flows"].clear()
        self.empty = router.object.maps["flows"].lookup(self.place)

    def run(self, state: int, event: Packet | str) -> Step:
        """One packet, or the next table."""
        table, entry = self.states[state]
        if isinstance(event, str):
            return Step(self.number((table + 1, entry)))
        if table != self.table:
            self.router.route(*self.tables[table])
            self.table = table
        value = dict(self.empty)
        if entry is not None:
            value["tag"] = [self.tag, *self.empty["tag"][1:]]
            flow = dict(entry)
            value["flow"] = [flow | {"tuple": dict(flow["tuple"])}, *self.empty["flow"][1:]]
        self.router.object.maps["flows"].update(self.place, value)
        done = self.router.object.programs["rauta_ingress"].test_run(event.frame())
        assert done.retval in (XDP_DROP, XDP_TX), (done.retval, str(event))
        sent = (packet_of(done.data, self.addresses),) if done.retval == XDP_TX else ()
        return Step(self.number((table, self.read())), sent)

    def events(self, state: int) -> list[str]:
        """What the router can do by itself."""
        return ["change"] if self.states[state][0] + 1 < len(self.tables) else []

    def read(self) -> Any:
        """The entry as it is now."""
        value = self.router.object.maps["flows"].lookup(self.place)
        for flow, tag in zip(value["flow"], value["tag"], strict=True):
            if tag:
                return frozen(flow | {"answer": 0} if flow["state"] == FLOW_MOVING else flow)
        return None


# ---- the server ------------------------------------------------------------------------------------------

_HEAD = re.compile(rb"(GET|POST|HEAD) /(\w+)/(\d+) HTTP/1\.1\r\n((?:[^\r\n]+\r\n)*)\r\n")
_LENGTH = re.compile(rb"Content-Length: (\d+)\r\n")


class Kind(Enum):
    """Of a request, by what its answer looks like."""

    PLAIN = 0
    HEAD = 1
    EXPECTING = 2  # "100 Continue" before the answer


@dataclass
class Served:
    """A connection at the server: what it has read, and which answers it owes. Of the first of them `parts` are out."""

    sock: socket.socket
    read: bytes = b""
    owed: list[tuple[int, Kind]] = field(default_factory=list)  # to which requests
    parts: int = 0
    ended: bool = False

    def take(self) -> tuple[str, ...]:
        """Reads all that is there. What is executed by it: requests, and what is none."""
        try:
            data = self.sock.recv(1 << 16)
        except ConnectionResetError:
            return ()
        self.ended = self.ended or not data
        self.read += data
        executed = []
        while self.read:
            head = _HEAD.match(self.read)
            if head is None:
                executed.append(f"nonsense {self.read!r}")
                self.read = b""
                break
            length = _LENGTH.search(head[4])
            end = head.end() + (int(length[1]) if length else 0)
            if len(self.read) < end:
                break
            executed.append(f"{head[2].decode()} {int(head[3])}")
            kind = Kind.EXPECTING if b"100-continue" in head[4] else Kind.HEAD if head[1] == b"HEAD" else Kind.PLAIN
            self.owed.append((int(head[3]), kind))
            self.read = self.read[end:]
        return tuple(executed)


def answer_of(number: int, backend: str, kind: Kind) -> tuple[bytes, bytes]:
    """What the server says to a request, in two parts: head and body, or an interim answer and the answer."""
    body = b"%d%s!" % (number, backend.encode())
    head = b"HTTP/1.1 200 %s\r\nContent-Length: %d\r\n\r\n" % (backend.encode(), len(body))
    if kind is Kind.EXPECTING:
        return b"HTTP/1.1 100 Continue\r\n\r\n", head + body
    return head, b"" if kind is Kind.HEAD else body


class AgentMachine(Machine):
    """Events are packets, and what the server does.

    "read": it reads all that is there, and closes at the end; "answer": it answers the oldest request, or says the rest
    of that answer, which the kernel may keep until the first part is acknowledged (RFC 896); "rush": the rest, at once;
    "part": the answer's head alone.
    """

    def __init__(self, name: str, address: str, peers: dict[str, str], connection: Connection) -> None:
        """An agent in a namespace of its own. `peers`: all backends' names by address."""
        super().__init__()
        self.name, self.address, self.addresses = name, address, peers
        self.tuple = oracle.Tuple(CLIENT, connection.port, address, LOCAL_PORT)
        self.served: list[Served] = []
        self.replays = self.repeated = 0
        with throwaway_namespace():
            self._build()
        self.ways: list[tuple[Any, ...]] = []
        self.blank_sets = bytes(len(self.agent.object.maps["consumed"].read_array()))
        self._forget()
        self.now = self.start = self._note(self._seen(), ())

    def close(self) -> None:
        """Ends it; its namespace goes with the sockets."""
        self._forget()
        self.listener.close()
        self.wire.close()
        self.agent.object.close()

    def _build(self) -> None:
        Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
        Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
        neighbours = {CLIENT: CLIENT_MAC} | {other: BACKEND_MAC for other in self.addresses if other != self.address}
        commands = [
            "link set lo up",
            f"link add eth0 address {BACKEND_MAC} type veth peer name wire address 02:00:00:00:01:99",
            "link set wire up arp off",
            f"address add {self.address}/32 dev eth0",
            "link set eth0 up",
            "route add default dev eth0",
            *(f"neigh replace {ip} lladdr {mac} dev eth0 nud permanent" for ip, mac in neighbours.items()),
        ]
        subprocess.run(["ip", "-batch", "-"], input="\n".join(commands).encode(), check=True)
        self.agent = Agent(ROUTERS, ROUTERS_MASK, {(VIP, VIP_PORT): (self.address, LOCAL_PORT)})
        index = socket.if_nametoindex("eth0")
        programs = self.agent.object.programs
        self.attached = [attach_tc(index, programs[f"rauta_agent_{way}"], way) for way in ("egress", "ingress")]
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind((self.address, LOCAL_PORT))
        self.listener.listen()
        self.listener.setblocking(False)
        self.wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.wire.bind(("wire", 0))
        self.wire.setblocking(False)

    # ---- states ------------------------------------------------------------------------------------------

    def run(self, state: int, event: Any) -> Step:
        """One event, in that state; which is reached anew if it is not the present one of just now."""
        if self.now != state or time.monotonic() - self.reached > FRESH:
            self._reach(state)
        executed = self._happen(event)
        seen = self._seen()
        sent = self._sent()
        self.now = self._note(seen, (*self.ways[state], event))
        return Step(self.now, sent, executed)

    def _note(self, seen: Any, way: tuple[Any, ...]) -> int:
        number = self.number(seen)
        if number == len(self.ways):
            self.ways.append(way)
        return number

    def _reach(self, state: int) -> None:
        for _ in range(ATTEMPTS):
            self.replays += 1
            self._forget()
            for event in self.ways[state]:
                self._happen(event)
            if self._seen() == self.states[state]:
                self._sent()
                return
            self.repeated += 1
        raise AssertionError(f"state {state} of {self.name} is not reached again: {self.ways[state]}")

    def _forget(self) -> None:
        """As when it was new."""
        self.now = -1
        for one in self.served:
            self._vanish(one.sock)
        self.served.clear()
        while (sock := self._accepted()) is not None:
            self._vanish(sock)
        self.agent.object.maps["mappings"].delete(self.tuple.key)
        self.agent.object.maps["consumed"].write_array(self.blank_sets)
        self._sent(parsed=False)
        self.reached = time.monotonic()

    @staticmethod
    def _vanish(sock: socket.socket) -> None:
        """Without a word."""
        if _info(sock)[0] != CLOSED:
            sock.setsockopt(SO_TCP, TCP_REPAIR, 1)
        sock.close()

    def _accepted(self) -> socket.socket | None:
        try:
            return self.listener.accept()[0]
        except BlockingIOError:
            return None

    # ---- events ------------------------------------------------------------------------------------------

    def _happen(self, event: Any) -> tuple[str, ...]:
        executed: tuple[str, ...] = ()
        if isinstance(event, Packet):
            before = self._count()
            self.wire.send(event.frame())
            deadline = time.monotonic() + 1
            while self._count() == before:
                assert time.monotonic() < deadline, f"{event} has not been seen by {self.name}"
        else:
            executed = self._serve(self.served[0], event)
        while (sock := self._accepted()) is not None:
            sock.setblocking(False)
            self.served.append(Served(sock))
        for one in list(self.served):
            if _info(one.sock)[0] == CLOSED:
                one.sock.close()
                self.served.remove(one)
        return executed

    def _count(self) -> Any:
        return self.agent.object.maps["verdicts"].dump()

    def _serve(self, one: Served, event: str) -> tuple[str, ...]:
        executed: tuple[str, ...] = ()
        if event == "read":
            executed = one.take()
        else:
            if event == "rush":
                one.sock.setsockopt(SO_TCP, socket.TCP_NODELAY, 1)
            parts = answer_of(one.owed[0][0], self.name, one.owed[0][1])
            one.sock.send(parts[0] if event == "part" else b"".join(parts[one.parts :]))
            if event == "part":
                one.parts = 1
            else:
                one.parts = 0
                one.owed.pop(0)
                one.sock.setsockopt(SO_TCP, socket.TCP_NODELAY, 0)
        if one.ended and not one.owed:
            one.sock.shutdown(socket.SHUT_WR)
        return executed

    def events(self, state: int, *, parts: bool) -> list[str]:
        """What the server can do next."""
        seen = self.states[state]
        if not seen.served:
            return []
        one = seen.served[0]
        events = ["read"] if one.unread or (one.state == CLOSE_WAIT and not one.ended) else []
        if one.owed:
            events.append("answer")
            if parts and one.owed[0][1] is not Kind.HEAD:
                events.append("rush" if one.part else "part")
        return events

    # ---- what is seen ------------------------------------------------------------------------------------

    def _seen(self) -> Seen:
        mappings, kept = self.agent.object.maps["mappings"], self.agent.object.maps["connections"]
        served = []
        for one in self.served:
            info = _info(one.sock)
            served.append(
                SeenSocket(
                    state=info[0],
                    acked=info[1],
                    received=info[2],
                    said=info[3],
                    disordered=info[4] > 0,
                    unread=_unread(one.sock),
                    unacknowledged=_unacknowledged(one.sock),
                    mapping=_mapping(kept.lookup(one.sock.fileno())),
                    read=one.read,
                    owed=tuple(one.owed),
                    part=one.parts,
                    ended=one.ended,
                )
            )
        return Seen(_mapping(mappings.lookup(self.tuple.key)), tuple(self.agent.consumed()), tuple(served))

    def _sent(self, *, parsed: bool = True) -> Outputs:
        sent: list[Packet] = []
        while True:
            try:
                frame = self.wire.recv(1 << 16)
            except BlockingIOError:
                return tuple(sent)
            if parsed:
                packet = packet_of(frame, self.addresses)
                if packet.to == "client":
                    _, _, flags, payload = tcp_of(packet.data)
                    if flags & ~8 == ACK and not payload:
                        continue
                sent.append(packet)


CLOSED, CLOSE_WAIT, LAST_ACK = 7, 8, 9  # include/net/tcp_states.h


@dataclass(frozen=True)
class SeenSocket:
    """A socket, its mapping, and its server."""

    state: int
    acked: int
    received: int
    said: int
    disordered: bool  # something has come before its turn: the end, or a body, of which there is but one of each
    unread: bytes
    unacknowledged: int
    mapping: Any
    read: bytes
    owed: tuple[tuple[int, Kind], ...]
    part: int
    ended: bool


@dataclass(frozen=True)
class Seen:
    """All of an agent."""

    mapping: Any
    consumed: tuple[int, ...]
    served: tuple[SeenSocket, ...]


def _mapping(value: dict[str, Any] | None) -> Any:
    if value is None:
        return None
    if value["state"] == oracle.MAPPING_MOVED:
        value |= {"age": TRIP, "clock": CLOCK if value["clock"] else 0}
    return frozen(value | {"asked_at": 0})  # for figures: nothing is decided by it


def _unread(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1 << 16, socket.MSG_PEEK)
    except (BlockingIOError, ConnectionResetError):
        return b""


def _unacknowledged(sock: socket.socket) -> int:
    """Bytes that the server has written, also those that the kernel has not sent yet."""
    queued: int = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]
    return queued


def _info(sock: socket.socket) -> tuple[int, int, int, int, int]:
    """State; bytes acknowledged, received, said; segments out of order. include/uapi/linux/tcp.h"""
    info = sock.getsockopt(SO_TCP, socket.TCP_INFO, 232)
    acked, received = struct.unpack_from("=QQ", info, 120)
    sent, again = struct.unpack_from("=QQ", info, 200)
    return info[0], acked, received, sent - again, struct.unpack_from("=I", info, 224)[0]
