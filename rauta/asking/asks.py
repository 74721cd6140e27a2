"""What routers and agents say to each other about lost flows, as bytes: `struct ask` of bpf/contract.h.

The router's own programs (bpf/recover.h) seal the questions and take the answers. They hold the key, and write the flow
entry under its set's lock; here is how they are called.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rauta.asking.questions import Connection, Lost, Question
from rauta.bpf import BpfObject
from rauta.bpf.layout import StructLayout
from rauta.config import Config
from rauta.contract import ASK_VERSION

__all__ = ["LOST_BURST", "Calls", "prepare"]

LOST_BURST = 100  # segments that are asked about at once, after a quiet time
_PROGRAMS = ("rauta_seal_ask", "rauta_take_answer")


def prepare(ingress: BpfObject, config: Config) -> None:
    """Sets the router's object up, before it is loaded, to say which flows it does not know; or not to."""
    wanted = config.recovery is not None
    for name in _PROGRAMS:
        ingress.programs[name].set_autoload(wanted)
    if config.recovery is not None:
        ingress.rodata["lost_rate"] = config.recovery.rate
        ingress.rodata["lost_burst"] = LOST_BURST


class Calls:
    """The router's programs that seal questions and take answers, and the layouts of both.

    `opening` names an agent: what each call about it begins with.
    """

    def __init__(self, ingress: BpfObject) -> None:
        call = ingress.btf.struct("ask_call")
        ask = ingress.btf.struct("ask")
        if not isinstance(call, StructLayout) or not isinstance(ask, StructLayout):
            raise TypeError("struct ask_call and struct ask are no structs")
        self._call, self._ask = call, ask
        self._offset = call.members["ask"].offset
        self._kinds = ingress.btf.enum("ask_kind")
        self._lost = ingress.btf.struct("lost_segment")
        self._seal, self._take = (ingress.programs[name] for name in _PROGRAMS)
        self._outcomes = {number: name for name, number in ingress.btf.enum("answer_taken").items()}

    @property
    def size(self) -> int:
        """Of a question, and of an answer; bytes."""
        return self._ask.size

    def opening(self, between: Mapping[str, int], backend: int) -> bytes:
        """What calls about one agent begin with."""
        return self._call.pack({"between": between, "backend": backend})[: self._offset]

    def lost(self, record: bytes) -> Lost:
        """What the router's program has put into its ring buffer."""
        fields = self._lost.unpack(record)
        return Lost(connection_of(fields["tuple"]), fields["seq"], fields["ack"])

    def question(self, question: Question[Any], epoch: int) -> bytes:
        """A question without its seal."""
        client, server, client_port, server_port = question.lost.connection
        four = {"client": client, "server": server, "client_port": client_port, "server_port": server_port}
        fields = {"version": ASK_VERSION, "kind": self._kinds["ASK_WHOSE"], "epoch": epoch, "nonce": question.nonce}
        return self._ask.pack(fields | {"tuple": four, "seq": question.lost.seq, "ack": question.lost.ack})

    def sealed(self, opening: bytes, question: bytes) -> bytes:
        """The question as that agent is to get it."""
        _, context = self._seal.call(opening + question)
        return context[self._offset : self._offset + self.size]

    def taken(self, opening: bytes, answer: bytes) -> str:
        """What has become of an answer: a name of `enum answer_taken`."""
        return self._outcomes[self._take.test_run(opening + answer).retval]

    def said(self, answer: bytes) -> tuple[int, Connection]:
        """Which question it claims to answer, about which connection: not to be believed yet."""
        fields = self._ask.unpack(answer)
        return fields["nonce"], connection_of(fields["tuple"])


def connection_of(four: Mapping[str, int]) -> Connection:
    """`struct tuple`, read."""
    return four["client"], four["server"], four["client_port"], four["server_port"]
