"""Client, network and backends as one machine: its states, its steps, and what must hold in each of them.

The network is the worst there is: whatever has once been sent to somebody may arrive at any time from then on, any
number of times, or never. So it is a set, which only grows, and no order of arrival, no loss and no duplication is
left out. A retransmission of the client adds nothing to it, unless it acknowledges more than the one before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import NamedTuple

from packets.frames import Connection, request

from moves.machines import LAST_ACK, AgentMachine, Kind, RouterMachine, SeenSocket, Step, answer_of
from moves.wire import ACK, FIN, RST, SYN, Packet, plain, tcp_of

ROUNDS = 12  # of a fair network's: each repeats all that has no answer yet


class Violation(AssertionError):
    """Something has happened that must not."""


@dataclass(frozen=True)
class Exchange:
    """A request, the backend that its route names, and a body, in a segment of its own or behind the head."""

    backend: str
    method: str = "GET"
    body: bytes = b""
    apart: bool = False
    expecting: bool = False  # the server says "100 Continue" first

    @property
    def kind(self) -> Kind:
        """What its answer looks like."""
        return Kind.EXPECTING if self.expecting else Kind.HEAD if self.method == "HEAD" else Kind.PLAIN

    def segments(self, number: int) -> tuple[bytes, ...]:
        """What the client sends."""
        headers = [f"Content-Length: {len(self.body)}"] if self.body else []
        headers += ["Expect: 100-continue"] if self.expecting else []
        head = request(f"/{self.backend.lower()}/{number}", *headers, method=self.method)
        return (head, self.body) if self.apart else (head + self.body,)


class Ending(Enum):
    """When the client closes its side."""

    NEVER = 0
    AFTER = 1  # the last answer
    BEHIND = 2  # the last request, in a segment of its own
    WITH = 3  # in the last request's segment


@dataclass(frozen=True)
class Extra:
    """A segment of a hostile client, under way from the beginning: what, where, and how much it acknowledges."""

    payload: bytes
    at: int
    acked: int
    flags: str = "PA"


@dataclass(frozen=True)
class Scenario:
    """What the client does on its connection."""

    name: str
    exchanges: tuple[Exchange, ...]
    pipelined: bool = False  # the next request is sent when the answer before it has begun, else when it has ended
    parts: bool = False  # the server may send head and body of an answer one after the other
    syn: bool = False  # a duplicate of the SYN is under way, too
    ending: Ending = Ending.NEVER
    changes: bool = False  # the routes may change at any time, and then name A for everything
    hostile: tuple[Extra, ...] = ()

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """How much the client has heard after each of the answers; 0 comes first."""
        ends = [0]
        for number, one in enumerate(self.exchanges):
            ends.append(ends[-1] + len(b"".join(answer_of(number, one.backend, one.kind))))
        return tuple(ends)

    @cached_property
    def all(self) -> int:
        """How much the client hears, its end included."""
        return self.ends[-1] + (self.ending is not Ending.NEVER)

    def answers(self, backend: str | None = None) -> bytes:
        """All that the client may ever hear: from whom its requests' routes say, or from one backend alone."""
        return b"".join(
            b"".join(answer_of(number, backend or one.backend, one.kind)) for number, one in enumerate(self.exchanges)
        )

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where the requests start; and the end."""
        starts = [0]
        for number, one in enumerate(self.exchanges):
            starts.append(starts[-1] + sum(map(len, one.segments(number))))
        return tuple(starts)

    def asked(self, heard: int) -> int:
        """How many requests a client has sent who has heard so many bytes; -1 is before all."""
        if heard < 0:
            return 0
        known = (
            sum(end <= heard for end in self.ends) if not self.pipelined else sum(end < heard for end in self.ends) + 1
        )
        return min(known, len(self.exchanges))

    def has_ended(self, heard: int) -> bool:
        """Whether the client has closed its side."""
        if self.ending in (Ending.NEVER, Ending.AFTER):
            return self.ending is Ending.AFTER and heard >= self.ends[-1]
        return self.asked(heard) == len(self.exchanges)

    def place(self, heard: int) -> int:
        """How much the client has sent."""
        return self.starts[self.asked(heard)] + self.has_ended(heard)

    def unanswered(self, connection: Connection, heard: int) -> Iterator[Packet]:
        """All that the client has sent, and that has no answer yet: as at first, and in one segment each."""
        first = sum(end <= heard for end in self.ends[1:])
        for number in range(first, self.asked(heard)):
            last = number + 1 == len(self.exchanges)
            flags = "FPA" if last and self.ending is Ending.WITH else "PA"
            segments = self.exchanges[number].segments(number)
            for split in {segments, (b"".join(segments),) if number else segments}:
                at = self.starts[number]
                for payload in split:
                    at += len(payload)
                    ends = flags if at == self.starts[number + 1] else "PA"
                    yield Packet("router", connection.data(payload, at - len(payload), heard, ends).packet)
        if self.has_ended(heard) and heard < self.all and self.ending is not Ending.WITH:
            yield Packet("router", connection.fin(self.starts[-1], acked=heard).packet)

    def says(self, connection: Connection, before: int, heard: int) -> Iterator[Packet]:
        """What the client sends who had heard `before` bytes (-1: nothing yet, not even asked), and now `heard`."""
        if before >= 0:
            for place in {self.place(before), self.place(heard)}:
                yield Packet("router", connection.ack(place, heard).packet)
        yield from self.unanswered(connection, heard)


class State(NamedTuple):
    """By their numbers: the machines' states. What the client has heard, what was executed, and what is under way."""

    router: int
    a: int
    b: int
    heard: int
    executed: frozenset[int]
    network: int

    def at(self, backend: str) -> int:
        """The state of an agent, or of the router."""
        return self.a if backend == "A" else self.b if backend == "B" else self.router


class Model:
    """A scenario and the machines that it runs on."""

    def __init__(
        self,
        scenario: Scenario,
        connection: Connection,
        router: RouterMachine,
        agents: dict[str, AgentMachine],
        *,
        reduced: bool = True,
    ) -> None:
        """`reduced`: steps that only add to what is under way are done at once; see `closed`."""
        self.reduced = reduced
        self.scenario, self.connection, self.router, self.agents = scenario, connection, router, agents
        self.packets: list[Packet] = []
        self.bits: dict[Packet, int] = {}
        self.masks: dict[str, int] = {}
        self.closures: dict[tuple[int, int, int, int, int], int] = {}
        self.answered: set[tuple[int, int, int, int, frozenset[int]]] = set()

    # ---- steps -------------------------------------------------------------------------------------------

    def first(self) -> State:
        """The handshake is over, and the first request under way."""
        sent = [*self.scenario.says(self.connection, -1, 0)]
        if self.scenario.syn:
            sent.append(Packet("router", self.connection.syn().packet))
        for one in self.scenario.hostile:
            sent.append(Packet("router", self.connection.data(one.payload, one.at, one.acked, one.flags).packet))
        blank = State(self.router.start, self.agents["A"].start, self.agents["B"].start, 0, frozenset(), 0)
        return self.closed(blank, self.bits_of(blank, tuple(sent)))

    def bits_of(self, state: State, sent: tuple[Packet, ...]) -> int:
        """The set of what is sent in that state. Violation if it must not be."""
        bits = 0
        for packet in sent:
            if packet.to == "client":
                self.check_sent(state, packet)
            bit = self.bits.get(packet)
            if bit is None:
                bit = self.bits[packet] = 1 << len(self.packets)
                self.packets.append(packet)
                self.masks[packet.to] = self.masks.get(packet.to, 0) | bit
            bits |= bit
        return bits

    def under_way(self, network: int, to: str) -> Iterator[Packet]:
        """What may arrive there."""
        network &= self.masks.get(to, 0)
        while network:
            yield self.packets[(network & -network).bit_length() - 1]
            network &= network - 1

    def closed(self, state: State, more: int) -> State:
        """With more under way; and with all that whoever gets it sends, if he stays as he is.

        Such a step takes nothing away, and what can happen without it can happen behind it. So it need not be put off.
        """
        network = state.network | more
        while self.reduced:
            key = (state.router, state.a, state.b, state.heard, network)
            grown = self.closures.get(key)
            if grown is None:
                grown = network
                for who in ("router", *self.agents):
                    for packet in self.under_way(network, who):
                        done = self.machine(who).step(state.at(who), packet)
                        if done.state == state.at(who) and done.sent:
                            grown |= self.bits_of(state, done.sent)
                self.closures[key] = grown
            if grown == network:
                break
            network = grown
        return state if network == state.network else State(*key_of(state), network)

    def machine(self, who: str) -> RouterMachine | AgentMachine:
        """The router, or an agent."""
        return self.router if who == "router" else self.agents[who]

    def events(self, state: State) -> Iterator[tuple[str, str | Packet]]:
        """Who can do, or get, what."""
        for change in self.router.events(state.router) if self.scenario.changes else ():
            yield "router", change
        for name, agent in self.agents.items():
            for event in agent.events(state.at(name), parts=self.scenario.parts):
                yield name, event
        for who in ("client", "router", *self.agents):
            for packet in self.under_way(state.network, who):
                yield who, packet

    def after(self, state: State, who: str, event: str | Packet) -> State:
        """One step. Violation if it must not be."""
        moved, sent = self.step(state, who, event)
        if moved is state and self.reduced:
            return state
        return self.closed(moved, self.bits_of(moved, sent))

    def step(self, state: State, who: str, event: str | Packet) -> tuple[State, tuple[Packet, ...]]:
        """The machines' part of one, and what is sent."""
        if who == "client":
            assert isinstance(event, Packet)
            return self.heard(state, event)
        done = self.machine(who).step(state.at(who), event)
        if done.state == state.at(who):
            return state, done.sent
        if who == "router":
            return State(done.state, state.a, state.b, state.heard, state.executed, state.network), done.sent
        a, b = (done.state, state.b) if who == "A" else (state.a, done.state)
        executed = self.executed(state, who, done) if done.executed else state.executed
        moved = State(state.router, a, b, state.heard, executed, state.network)
        self.check_sockets(moved)
        return moved, done.sent

    def heard(self, state: State, packet: Packet) -> tuple[State, tuple[Packet, ...]]:
        """The client gets a packet."""
        seq, _, flags, payload = tcp_of(packet.data)
        start = seq - self.connection.cookie - 1 & 0xFFFFFFFF
        end = start + len(payload) + bool(flags & FIN)
        if flags & (RST | SYN) or not start <= state.heard < end:
            return state, ()
        moved = State(state.router, state.a, state.b, end, state.executed, state.network)
        return moved, tuple(self.scenario.says(self.connection, state.heard, end))

    # ---- what must hold ----------------------------------------------------------------------------------

    def executed(self, state: State, who: str, done: Step) -> frozenset[int]:
        """Requests are executed once, where their routes say, and nothing else is."""
        executed = state.executed
        for said in done.executed:
            path, _, number = said.partition(" ")
            if self.scenario.hostile:
                if path.upper() != who and path != "nonsense":
                    raise Violation(f"{said} is executed by {who}")
                continue
            if path == "nonsense":
                raise Violation(f"{who} has read {said}")
            k = int(number)
            if path.upper() != self.scenario.exchanges[k].backend:
                raise Violation(f"what {who} executes is no request of the client's: {said}")
            if path.upper() != who and not (self.scenario.changes and who == "A"):
                raise Violation(f"request {k} is executed by {who}")
            if k in executed:
                raise Violation(f"request {k} is executed twice")
            executed |= {k}
        return executed

    def check_sent(self, state: State, packet: Packet) -> None:
        """The client hears nothing but the answers, each from whom it is: no reset, and no end that it has not asked
        for."""
        seq, ack, flags, payload = tcp_of(packet.data)
        if flags & SYN or self.scenario.hostile:
            return
        if flags & RST and not (self.scenario.has_ended(state.heard) and state.heard >= self.scenario.ends[-1]):
            raise Violation(f"a reset to the client: {packet}")
        if flags & FIN and not self.scenario.has_ended(state.heard):
            raise Violation(f"an end to the client: {packet}")
        start = seq - self.connection.cookie - 1 & 0xFFFFFFFF
        right = [self.scenario.answers()] + ([self.scenario.answers("A")] if self.scenario.changes else [])
        if payload and payload not in [one[start : start + len(payload)] for one in right]:
            raise Violation(f"no answer of that place: {packet}")
        if not flags & RST and ack - self.connection.start & 0xFFFFFFFF > self.scenario.place(state.heard):
            raise Violation(f"acknowledges what was never sent: {packet}")

    def sockets(self, state: State) -> list[tuple[str, SeenSocket]]:
        """All of the connection."""
        return [(name, one) for name, agent in self.agents.items() for one in agent.states[state.at(name)].served]

    def check_sockets(self, state: State) -> None:
        """Never two."""
        found = self.sockets(state)
        if len(found) > 1:
            raise Violation(f"sockets at {' and '.join(name for name, _ in found)}")

    # ---- a network that has become fair ------------------------------------------------------------------

    def check_answered(self, state: State) -> None:
        """All under way is lost, but from now on nothing is: then the client gets all answers."""
        key = key_of(state)
        if key in self.answered or self.scenario.hostile:
            return
        passed = [key]
        now = State(*key, 0)
        for _ in range(ROUNDS):
            now = self.fair_round(now)
            key = key_of(now)
            if key in self.answered or now.heard == self.scenario.all:
                break
            passed.append(key)
        else:
            raise Violation(
                f"no answer after {ROUNDS} rounds of a fair network: the client has heard {now.heard} bytes"
            )
        if now.heard == self.scenario.all:
            self.check_end(now)
        self.answered.update(passed)

    def fair_round(self, state: State) -> State:
        """The servers do what they can, all that is not acknowledged is sent again, and all that arrives once."""
        state = self.served(state, queue := [])
        acknowledgement = self.connection.ack(self.scenario.place(state.heard), state.heard)
        queue += [Packet("router", acknowledgement.packet), *self.said_again(state)]
        queue += self.scenario.unanswered(self.connection, state.heard)
        while queue:
            packet = queue.pop(0)
            state, sent = self.step(state, packet.to, packet)
            self.bits_of(state, sent)
            queue += sent
            state = self.served(state, queue)
        return state

    def served(self, state: State, queue: list[Packet]) -> State:
        """The servers have done all that they can."""
        for name, agent in self.agents.items():
            while events := agent.events(state.at(name), parts=False):
                state, sent = self.step(state, name, events[0])
                self.bits_of(state, sent)
                queue += sent
        return state

    def said_again(self, state: State) -> Iterator[Packet]:
        """What the servers have said, and nobody has acknowledged, as long as their sockets live."""
        for name, one in self.sockets(state):
            mapping = one.mapping or self.agents[name].states[state.at(name)].mapping
            start = dict(mapping)["cookie"] - self.connection.cookie + one.acked & 0xFFFFFFFF
            end = dict(mapping)["cookie"] - self.connection.cookie + one.said & 0xFFFFFFFF
            if start < end or one.state == LAST_ACK:
                text = (self.scenario.answers("A") if self.scenario.changes else self.scenario.answers())[start:end]
                flags = ACK | (FIN if one.state == LAST_ACK else 0)
                again = self.connection.data(text).packet
                yield Packet("client", reversed_packet(again, self.connection.cookie + 1 + start, flags))

    def check_end(self, state: State) -> None:
        """Of the connection is left one socket at most, and that where its last request went."""
        last = "AB" if self.scenario.changes else self.scenario.exchanges[-1].backend
        for name, one in self.sockets(state):
            if name not in last:
                raise Violation(f"all is answered, and {name} still has a socket: {one}")


def key_of(state: State) -> tuple[int, int, int, int, frozenset[int]]:
    """Without the network."""
    return state.router, state.a, state.b, state.heard, state.executed


def reversed_packet(packet: bytes, seq: int, flags: int) -> bytes:
    """The same the other way round, with that number and those flags: what a server sends again."""
    ends = packet[16:20] + packet[12:16] + packet[22:24] + packet[20:22]
    return plain(
        packet[:12] + ends + (seq & 0xFFFFFFFF).to_bytes(4, "big") + packet[28:33] + bytes([flags]) + packet[34:]
    )
