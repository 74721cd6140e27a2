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
        """The state of an agent."""
        return self.a if backend == "A" else self.b


class Model:
    """A scenario and the machines that it runs on."""

    def __init__(
        self, scenario: Scenario, connection: Connection, router: RouterMachine, agents: dict[str, AgentMachine]
    ) -> None:
        self.scenario, self.connection, self.router, self.agents = scenario, connection, router, agents
        self.packets: list[Packet] = []
        self.bits: dict[Packet, int] = {}
        self.resets = 0
        self.answered: set[tuple[int, int, int, int, frozenset[int]]] = set()

    # ---- steps -------------------------------------------------------------------------------------------

    def first(self) -> State:
        """The handshake is over, and the first request under way."""
        blank = State(self.router.start, self.agents["A"].start, self.agents["B"].start, 0, frozenset(), 0)
        sent = [*self.scenario.says(self.connection, -1, 0)]
        if self.scenario.syn:
            sent.append(Packet("router", self.connection.syn().packet))
        return self.with_sent(blank, tuple(sent))

    def with_sent(self, state: State, sent: tuple[Packet, ...]) -> State:
        """More is under way."""
        network = state.network
        for packet in sent:
            bit = self.bits.get(packet)
            if bit is None:
                self.check_sent(packet)
                bit = self.bits[packet] = 1 << len(self.packets)
                self.packets.append(packet)
            network |= bit
        return State(state.router, state.a, state.b, state.heard, state.executed, network)

    def events(self, state: State) -> Iterator[tuple[str, str | Packet]]:
        """Who can do, or get, what."""
        for name, agent in self.agents.items():
            for event in agent.events(state.at(name), parts=self.scenario.parts):
                yield name, event
        network, number = state.network, 0
        while network:
            skipped = (network & -network).bit_length() - 1
            number += skipped
            yield self.packets[number].to, self.packets[number]
            network >>= skipped + 1
            number += 1

    def after(self, state: State, who: str, event: str | Packet) -> State:
        """One step. Violation if it must not be."""
        if who == "client":
            assert isinstance(event, Packet)
            return self.heard(state, event)
        if who == "router":
            done = self.router.step(state.router, event)
            moved = State(done.state, state.a, state.b, state.heard, state.executed, state.network)
            return self.with_sent(moved, done.sent) if done.sent else moved
        done = self.agents[who].step(state.at(who), event)
        a, b = (done.state, state.b) if who == "A" else (state.a, done.state)
        executed = self.executed(state, who, done) if done.executed else state.executed
        moved = State(state.router, a, b, state.heard, executed, state.network)
        if done.state != state.at(who):
            self.check_sockets(moved)
        return self.with_sent(moved, done.sent) if done.sent else moved

    def heard(self, state: State, packet: Packet) -> State:
        """The client gets a packet."""
        seq, _, flags, payload = tcp_of(packet.data)
        if flags & (RST | SYN):
            return state
        start = seq - self.connection.cookie - 1 & 0xFFFFFFFF
        end = start + len(payload)
        if not start <= state.heard < end:
            return state
        moved = State(state.router, state.a, state.b, end, state.executed, state.network)
        return self.with_sent(moved, tuple(self.scenario.says(self.connection, state.heard, end)))

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

    def check_sent(self, packet: Packet) -> None:
        """The client hears nothing but the answers, each from whom it is: no reset, and no end that it has not asked
        for."""
        if packet.to != "client":
            return
        seq, ack, flags, payload = tcp_of(packet.data)
        if flags & SYN:
            return
        if flags & RST:
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
        state = self.served(state)
        queue = [*self.said_again(state), *self.scenario.requests(self.connection, state.heard, state.heard // ANSWER)]
        while queue:
            packet = queue.pop(0)
            before = state.network
            state = self.after(State(*key_of(state), 0), packet.to, packet)
            queue += [one for one in self.packets if self.bits[one] & state.network]
            state = self.served(State(*key_of(state), before))
            queue += self.said_again(state) if packet.to in self.agents else []
        return State(*key_of(state), 0)

    def served(self, state: State) -> State:
        """The servers have done all that they can."""
        for name, agent in self.agents.items():
            while events := agent.events(state.at(name), parts=False):
                state = self.after(state, name, events[0])
        return state

    def said_again(self, state: State) -> Iterator[Packet]:
        """What the servers have said, and nobody has acknowledged, as long as their sockets live."""
        for name, one in self.sockets(state):
            mapping = one.mapping or self.agents[name].states[state.at(name)].mapping
            start = dict(mapping)["cookie"] - self.connection.cookie + one.acked & 0xFFFFFFFF
            end = dict(mapping)["cookie"] - self.connection.cookie + one.said & 0xFFFFFFFF
            if start < end and end > state.heard:
                again = self.connection.data(self.scenario.answers[start:end], 0, 0)
                yield Packet("client", reversed_packet(again.packet, self.connection.cookie + 1 + start))

    def check_end(self, state: State) -> None:
        """Of the connection is left one socket at most, and that where its last request went."""
        state = self.served(state)
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
