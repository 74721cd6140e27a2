"""What is being asked about lost connections, and what is concluded: plain bookkeeping, without sockets or a clock.

A question goes to every agent that serves the connection's VIP. Who has the connection ends it; who has not is crossed
off. When all have been, nobody has the connection, and its client could be told so by a reset. Not at once, though: of
a connection whose first request was lost, the second segment is denied by everybody, too, and that one is healthy. Its
client repeats the first segment, and nothing but that, once its timer has run out: after three seconds at the latest
(RFC 6298, 5.7). So a client is reset when it is denied a second time, RESET_SECONDS after the first, and acknowledges
the very same byte: a connection that nobody has hears nothing new.

Everything that is kept is bounded: open questions by the rate at which they come and ANSWER_SECONDS, denials by number.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from rauta.segments import Connection

__all__ = ["Connection", "Lost", "Question", "Questions"]

ANSWER_SECONDS = 1.0  # an agent that has not answered by then is silent
RESET_SECONDS = 3.0  # between the two denials that a reset takes
FORGET_SECONDS = 60.0  # a denial that is older does not count any more
DENIALS = 4096  # that are remembered; the oldest are forgotten
_NONCE_BITS = 64

Agent = TypeVar("Agent", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Lost:
    """A segment whose connection has no flow entry."""

    connection: Connection
    seq: int
    ack: int


@dataclass(slots=True, eq=False)
class Question(Generic[Agent]):
    """Whose is this connection? `waiting` are those who have not answered yet, `deadline` is when they are silent."""

    lost: Lost
    nonce: int
    deadline: float
    waiting: set[Agent] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Denial:
    """Nobody had the connection of a segment with this acknowledgement, for the first time at `since`."""

    ack: int
    since: float


class Questions(Generic[Agent]):
    """The open questions and the denials. `agents` serve a VIP, by its address and port as in `Connection`."""

    def __init__(
        self,
        agents: Mapping[tuple[int, int], Collection[Agent]],
        nonce: Callable[[], int] = lambda: secrets.randbits(_NONCE_BITS),
        elsewhere: Collection[tuple[int, int]] = (),
    ) -> None:
        """`nonce` gives the numbers of questions, which nobody may guess.

        `elsewhere` are VIPs some of whose connections nobody of the agents has: what all deny may be healthy there.
        """
        self._agents = agents
        self._nonce = nonce
        self._elsewhere = elsewhere
        self._open: dict[int, Question[Agent]] = {}
        self._about: dict[Connection, int] = {}
        self._denials: OrderedDict[Connection, _Denial] = OrderedDict()

    def set_agents(self, agents: Mapping[tuple[int, int], Collection[Agent]]) -> None:
        """Who is asked from now on, from any thread."""
        self._agents = agents

    @property
    def remembered(self) -> int:
        """How many denials are remembered."""
        return len(self._denials)

    def ask(self, lost: Lost, now: float) -> Question[Agent] | None:
        """The question to put to all in its `waiting`; None if it is open already, or if nobody serves the VIP."""
        _, server, _, server_port = lost.connection
        agents = self._agents.get((server, server_port))
        if not agents or lost.connection in self._about:
            return None
        nonce = self._nonce()
        while nonce in self._open:
            nonce = self._nonce()
        question = Question(lost, nonce, now + ANSWER_SECONDS, set(agents))
        self._open[nonce] = question
        self._about[lost.connection] = nonce
        return question

    def find(self, nonce: int) -> Question[Agent] | None:
        """The open question of that number."""
        return self._open.get(nonce)

    def close(self, question: Question[Agent], *, found: bool = False) -> None:
        """Ends a question; `found`: its connection is somebody's."""
        connection = question.lost.connection
        if self._open.pop(question.nonce, None) is not None:
            del self._about[connection]
        if found:
            self._denials.pop(connection, None)

    def deny(self, question: Question[Agent], agent: Agent, now: float) -> bool:
        """An agent does not have the connection. True: nobody has, and its client is to be reset."""
        question.waiting.discard(agent)
        if question.waiting or question.nonce not in self._open:
            return False
        self.close(question)
        _, server, _, server_port = question.lost.connection
        return (server, server_port) not in self._elsewhere and self._denied_before(question.lost, now)

    def expire(self, now: float) -> list[Question[Agent]]:
        """Ends the questions that have not been answered in time: these. Questions open in the order of their end."""
        expired = []
        for question in self._open.values():
            if question.deadline > now:
                break
            expired.append(question)
        for question in expired:
            self.close(question)
        return expired

    def deadline(self) -> float | None:
        """When the next question expires."""
        return next((question.deadline for question in self._open.values()), None)

    def _denied_before(self, lost: Lost, now: float) -> bool:
        first = self._denials.pop(lost.connection, None)
        if first is None or first.ack != lost.ack or now - first.since > FORGET_SECONDS:
            first = _Denial(lost.ack, now)
        elif now - first.since >= RESET_SECONDS:
            return True
        self._denials[lost.connection] = first
        if len(self._denials) > DENIALS:
            self._denials.popitem(last=False)
        return False
