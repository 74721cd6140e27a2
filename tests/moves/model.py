"""Client, network and backends as one machine: its states, its steps, and what must hold in each of them.

The network is the worst there is: whatever has once been sent to somebody may arrive at any time from then on, any
number of times, or never. So it is a set, which only grows, and no order of arrival, no loss and no duplication is
left out. A retransmission of the client adds nothing to it, unless it acknowledges more than the one before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from moves.machines import ANSWER, AgentMachine, RouterMachine, SeenSocket, Step, answer_of
from moves.wire import ACK, FIN, RST, SYN, Packet, tcp_of
from packets.frames import Connection, request

ROUNDS = 12  # of a fair network's: each repeats all that has no answer yet


class Violation(AssertionError):
    """Something has happened that must not."""


@dataclass(frozen=True)
class Exchange:
    """A request, the backend that its route names, and a body, in a segment of its own or behind the head."""

    backend: str
    body: bytes = b""
    apart: bool = False

    def segments(self, number: int) -> tuple[bytes, ...]:
        """What the client sends."""
        headers = [f"Content-Length: {len(self.body)}"] if self.body else []
        head = request(f"/{self.backend.lower()}/{number}", *headers, method="POST" if self.body else "GET")
        return (head, self.body) if self.apart else (head + self.body,)


@dataclass(frozen=True)
class Scenario:
    """What the client does on its connection."""

    name: str
    exchanges: tuple[Exchange, ...]
    pipelined: bool = False  # the next request is sent when the answer before it has begun, else when it has ended
    parts: bool = False  # the server may send head and body of an answer one after the other
    syn: bool = False  # a duplicate of the SYN is under way, too
    ends: bool = False  # the client closes after the last answer

    @cached_property
    def answers(self) -> bytes:
        """All that the client may ever hear."""
        return b"".join(b"".join(answer_of(k, one.backend)) for k, one in enumerate(self.exchanges))

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where the requests start; and the end."""
        starts = [0]
        for number, one in enumerate(self.exchanges):
            starts.append(starts[-1] + sum(map(len, one.segments(number))))
        return tuple(starts)

    def asked(self, heard: int) -> int:
        """How many requests a client has sent who has heard so many bytes."""
        begun = (heard + ANSWER - 1) // ANSWER if self.pipelined else heard // ANSWER
        return min(begun + 1, len(self.exchanges))

    def requests(self, connection: Connection, heard: int, first: int) -> Iterator[Packet]:
        """The requests from number `first` on that the client has sent, again."""
        for number in range(first, self.asked(heard)):
            at = self.starts[number]
            for payload in self.exchanges[number].segments(number):
                yield Packet("router", connection.data(payload, at, heard).packet)
                at += len(payload)

    def says(self, connection: Connection, before: int, heard: int) -> Iterator[Packet]:
        """What the client sends who had heard `before` bytes (-1: nothing yet, not even asked), and now `heard`."""
        asked = self.asked(before) if before >= 0 else 0
        if before >= 0:
            yield Packet("router", connection.ack(self.starts[asked], heard).packet)
        yield from self.requests(connection, heard, heard // ANSWER)
        if before >= 0 and self.asked(heard) > asked:
            yield Packet("router", connection.ack(self.starts[self.asked(heard)], heard).packet)
        if self.ends and heard == len(self.answers):
            yield Packet("router", connection.fin(self.starts[-1], acked=heard).packet)


@dataclass(frozen=True)
class State:
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
        self, scenario: Scenario, connection: Connection, router: RouterMachine, agents: dict[str, AgentMachine]
    ) -> None:
        self.scenario, self.connection, self.router, self.agents = scenario, connection, router, agents
        self.packets: list[Packet] = []
        self.bits: dict[Packet, int] = {}
        self.masks: dict[str, int] = {}
        self.closures: dict[tuple[int, int, int, int], int] = {}
        self.answered: set[tuple[int, int, int, int, frozenset[int]]] = set()

    # ---- steps -------------------------------------------------------------------------------------------

    def first(self) -> State:
        """The handshake is over, and the first request under way."""
        sent = [*self.scenario.says(self.connection, -1, 0)]
        if self.scenario.syn:
            sent.append(Packet("router", self.connection.syn().packet))
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
        while True:
            key = (state.router, state.a, state.b, network)
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
        for name, agent in self.agents.items():
            for event in agent.events(state.at(name), parts=self.scenario.parts):
                yield name, event
        for who in ("client", "router", *self.agents):
            for packet in self.under_way(state.network, who):
                yield who, packet

    def after(self, state: State, who: str, event: str | Packet) -> State:
        """One step. Violation if it must not be."""
        moved, sent = self.step(state, who, event)
        if moved is state:
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
        end = start + len(payload)
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
            if path == "nonsense":
                raise Violation(f"{who} has read {said}")
            k = int(number)
            if self.scenario.exchanges[k].backend != who:
                raise Violation(f"request {k} is executed by {who}")
            if path.upper() != who:
                raise Violation(f"what {who} executes is no request of the client's: {said}")
            if k in executed:
                raise Violation(f"request {k} is executed twice")
            executed |= {k}
        return executed

    def check_sent(self, state: State, packet: Packet) -> None:
        """The client hears nothing but the answers, each from whom it is: no reset, and no end that it has not asked
        for."""
        seq, ack, flags, payload = tcp_of(packet.data)
        if flags & SYN:
            return
        if flags & RST and not (self.scenario.ends and state.heard == len(self.scenario.answers)):
            raise Violation(f"a reset to the client: {packet}")
        if flags & FIN and not self.scenario.ends:
            raise Violation(f"an end to the client: {packet}")
        start = seq - self.connection.cookie - 1 & 0xFFFFFFFF
        if payload and self.scenario.answers[start : start + len(payload)] != payload:
            raise Violation(f"no answer of that place: {packet}")
        if ack - self.connection.start & 0xFFFFFFFF > self.scenario.starts[-1] + self.scenario.ends:
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
        key = (state.router, state.a, state.b, state.heard, state.executed)
        if key in self.answered:
            return
        passed = [key]
        now = State(*key, 0)
        for _ in range(ROUNDS):
            now = self.fair_round(now)
            key = (now.router, now.a, now.b, now.heard, now.executed)
            if key in self.answered or now.heard == len(self.scenario.answers):
                break
            passed.append(key)
        else:
            raise Violation(f"no answer after {ROUNDS} rounds of a fair network: the client has heard {now.heard} bytes")
        if now.heard == len(self.scenario.answers):
            self.check_end(now)
        self.answered.update(passed)

    def fair_round(self, state: State) -> State:
        """The servers do what they can, all that is not acknowledged is sent again, and all that arrives once."""
        state = self.served(state, queue := [])
        at = self.scenario.starts[self.scenario.asked(state.heard)]
        queue += [Packet("router", self.connection.ack(at, state.heard).packet), *self.said_again(state)]
        queue += self.scenario.requests(self.connection, state.heard, state.heard // ANSWER)
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
            if start < end:
                again = self.connection.data(self.scenario.answers[start:end], 0, 0)
                yield Packet("client", reversed_packet(again.packet, self.connection.cookie + 1 + start))

    def check_end(self, state: State) -> None:
        """Of the connection is left one socket at most, and that where its last request went."""
        last = self.scenario.exchanges[-1].backend
        for name, one in self.sockets(state):
            if name != last:
                raise Violation(f"all is answered, and {name} still has a socket: {one}")


def key_of(state: State) -> tuple[int, int, int, int, frozenset[int]]:
    """Without the network."""
    return state.router, state.a, state.b, state.heard, state.executed


def reversed_packet(packet: bytes, seq: int) -> bytes:
    """The same the other way round, with that number: what a server sends again."""
    ends = packet[16:20] + packet[12:16] + packet[22:24] + packet[20:22]
    return packet[:12] + ends + (seq & 0xFFFFFFFF).to_bytes(4, "big") + packet[28:33] + bytes([ACK]) + packet[34:]
