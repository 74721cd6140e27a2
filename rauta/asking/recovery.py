"""Flows that lost their entry get it back: evicted, of another router's, or gone with a program that was replaced.

    with Router.load(config, keys) as router:           whose configuration has a section `recovery`
        router.attach("eth0")
        with Recovery(router):                          in the network namespace of the router's interfaces
            ...

The router's program drops a segment whose connection it does not know, and puts it into a ring buffer, at a bounded
rate. A thread of this module asks every agent that serves the VIP (UDP; the agent answers in BPF). If one has the
connection, a program of the router's checks the answer's seal and writes the entry, and the client's retransmission is
forwarded. If none has it, the client gets a reset: when, is said in rauta.asking.questions. docs/recovery.md is the
essay.

Keys and locks stay in BPF: this module can neither forge a question nor write an entry by itself.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
import time
from dataclasses import dataclass
from ipaddress import IPv4Address
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rauta import tables
from rauta.asking.asks import Calls
from rauta.asking.questions import Lost, Question, Questions
from rauta.bpf import RingBuffer
from rauta.errors import RautaError
from rauta.segments import RST, segment
from rauta.tables import Holder

if TYPE_CHECKING:
    from rauta.router import Router

__all__ = ["Recovery", "reset_packet"]

logger = logging.getLogger(__name__)

_COUNTERS = (
    *("segments_lost", "flows_asked", "flows_recovered", "flows_known", "flows_denied", "flows_unanswered"),
    *("answers_refused", "clients_reset"),
)
_LARGEST_ANSWER = 2048
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h; Python has no name for it
_ANSWERS_BYTES = 4 << 20  # that may wait: some thousand answers
_ANSWERS_AT_ONCE = 256  # of one socket, before others get their turn


def reset_packet(lost: Lost) -> bytes:
    """The IPv4 packet, in the VIP's name, that ends a connection: its number is what the segment acknowledges.

    RFC 9293, 3.10.7.1.
    """
    return segment(lost.connection, lost.ack, 0, RST)


@dataclass(frozen=True)
class _Line:
    """The way to one agent: through which socket, and what every call about it begins with (`struct ask_call`)."""

    sock: socket.socket
    opening: bytes


class Recovery:
    """Asks about the flows that a router does not know. Close it before the router.

    As a context manager it runs in a thread of its own. Its sockets, and that thread, are in the network namespace that
    the entering thread is in: that of the router's interfaces, from where the backends and the clients are reached.
    """

    def __init__(self, router: Router) -> None:
        """RautaError if the router's configuration has no section `recovery`."""
        config = router.config
        if config.recovery is None:
            raise RautaError(
                "recovering lost flows", "the configuration does not ask for it", "Add a section: `recovery: {}`."
            )
        self._port = config.recovery.port
        self._router = router
        self._calls = Calls(router.object)
        self._map, self._vips = router.object.maps["lost"], router.object.maps["vips"]
        self._counters = dict.fromkeys(_COUNTERS, 0)
        self._sockets: dict[str, socket.socket] = {}
        self._lines: dict[Holder, _Line] = {}
        self._doubtful: set[Holder] = set()  # who has been silent: the way there may have changed
        self._undo = contextlib.ExitStack()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.open()
        self._thread = threading.Thread(target=self.run, name="recovery", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def reconfigure(self) -> None:
        """Asks whom the router's configuration names now, from any thread."""
        self._questions.set_agents(tables.holders(self._router.config, self._router.ids))

    def open(self) -> None:
        """Makes what `run` needs; segments that were lost before are left alone."""
        self._questions = Questions(
            tables.holders(self._router.config, self._router.ids), elsewhere=self._with_fallback()
        )
        with contextlib.ExitStack() as undo:
            self._selector = undo.enter_context(selectors.DefaultSelector())
            self._ring = undo.enter_context(RingBuffer(self._map))
            self._raw = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW))
            self._raw.setblocking(False)
            self._alarm, bell = socket.socketpair()
            undo.enter_context(self._alarm)
            self._bell = undo.enter_context(bell)
            self._selector.register(self._ring, selectors.EVENT_READ, self._on_lost)
            self._selector.register(bell, selectors.EVENT_READ, None)
            self._ring.read()
            undo.callback(self._close_sockets)
            self._undo = undo.pop_all()

    def run(self) -> None:
        """Asks and listens until `stop`, in the calling thread, between `open` and `close`."""
        while True:
            for key, _ in self._selector.select(self._patience()):
                if key.data is None:
                    return
                key.data(key.fileobj)
            self._expire()

    def stop(self) -> None:
        """Has `run` return, from any thread."""
        with contextlib.suppress(OSError):
            self._alarm.send(b"\0")

    def close(self) -> None:
        """Stops and waits for the thread, if there is one; safe to repeat."""
        if self._thread is not None:
            self.stop()
            self._thread.join()
            self._thread = None
        self._undo.close()

    def counters(self) -> dict[str, int]:
        """What has happened so far.

        `segments_lost` came out of the ring buffer; `flows_asked` are questions, each put to all agents of a VIP, which
        ended as `flows_recovered`, `flows_known` (there was an entry by then), `flows_denied` (by all agents) or
        `flows_unanswered`. `answers_refused` had the wrong sender or seal. `clients_reset` got a reset.
        """
        return dict(self._counters)

    def _with_fallback(self) -> set[tuple[int, int]]:
        """The VIPs some of whose connections the fallback has. It is not asked."""
        return {(key["address"], key["port"]) for key, vip in self._vips.items() if vip["fallback"]}

    # ---- questions -------------------------------------------------------------------------------------

    def _on_lost(self, ring: RingBuffer) -> None:
        for record in ring.read():
            self._counters["segments_lost"] += 1
            question = self._questions.ask(self._calls.lost(record), time.monotonic())
            if question is not None:
                self._counters["flows_asked"] += 1
                self._put(question)
                for sock in list(self._sockets.values()):  # answers come at once: before there are too many of them
                    self._on_answers(sock)

    def _put(self, question: Question[Holder]) -> None:
        """To all who may have the connection. Whom it does not reach is silent."""
        payload = self._calls.question(question, self._router.keys.cookies.epoch)
        for holder in question.waiting:
            try:
                line = self._line(holder)
                line.sock.sendto(self._calls.sealed(line.opening, payload), (str(holder.address), self._port))
            except OSError as error:
                logger.debug("asking %s: %s", holder.address, error)

    def _line(self, holder: Holder) -> _Line:
        """The way to an agent, found once: which of the host's own addresses the question comes from is sealed."""
        line = self._lines.get(holder)
        if line is None or holder in self._doubtful:
            own = self._own_address(holder.address)
            sock = self._socket(own)
            between = {
                "client": tables.be32(IPv4Address(own)),
                "server": tables.be32(holder.address),
                "client_port": tables.be16(sock.getsockname()[1]),
                "server_port": tables.be16(self._port),
            }
            line = self._lines[holder] = _Line(sock, self._calls.opening(between, holder.index))
            self._doubtful.discard(holder)
        return line

    def _own_address(self, address: IPv4Address) -> str:
        """The address from which the kernel's routes lead to another."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as scout:
            scout.connect((str(address), self._port))
            return str(scout.getsockname()[0])

    def _socket(self, own: str) -> socket.socket:
        """The socket that sends from one of the host's own addresses."""
        sock = self._sockets.get(own)
        if sock is None:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            try:
                sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ANSWERS_BYTES)
                sock.bind((own, 0))
            except OSError:
                sock.close()
                raise
            self._sockets[own] = sock
            self._selector.register(sock, selectors.EVENT_READ, self._on_answers)
        return sock

    def _close_sockets(self) -> None:
        self._lines.clear()
        while self._sockets:
            self._sockets.popitem()[1].close()

    # ---- answers ---------------------------------------------------------------------------------------

    def _on_answers(self, sock: socket.socket) -> None:
        for _ in range(_ANSWERS_AT_ONCE):
            try:
                answer, (address, port) = sock.recvfrom(_LARGEST_ANSWER)
            except OSError:  # nothing more, or an error that came back for an earlier question
                return
            question = self._question(answer)
            if question is not None:
                self._take(question, answer, (address, port), sock)

    def _question(self, answer: bytes) -> Question[Holder] | None:
        """Which open question a datagram claims to answer. Late answers have none any more."""
        if len(answer) != self._calls.size:
            return None
        nonce, connection = self._calls.said(answer)
        question = self._questions.find(nonce)
        return question if question is not None and question.lost.connection == connection else None

    def _take(self, question: Question[Holder], answer: bytes, sender: tuple[str, int], sock: socket.socket) -> None:
        """An answer counts once, from one who was asked, on the way on which he was."""
        holder = next((one for one in question.waiting if (str(one.address), self._port) == sender), None)
        line = self._lines.get(holder) if holder is not None else None
        if holder is None or line is None or line.sock is not sock:
            self._counters["answers_refused"] += 1
            return
        outcome = self._calls.taken(line.opening, answer)
        if outcome == "ANSWER_REFUSED":
            self._counters["answers_refused"] += 1
        elif outcome == "ANSWER_NOT_MINE":
            self._denied(question, holder)
        else:
            self._questions.close(question, found=True)
            self._counters["flows_recovered" if outcome == "ANSWER_RECOVERED" else "flows_known"] += 1

    def _denied(self, question: Question[Holder], holder: Holder) -> None:
        resets = self._questions.deny(question, holder, time.monotonic())
        self._counters["flows_denied"] += not question.waiting
        if resets:
            self._reset(question.lost)

    def _reset(self, lost: Lost) -> None:
        packet = reset_packet(lost)
        try:
            self._raw.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))
        except OSError as error:
            logger.debug("resetting %s: %s", socket.inet_ntoa(packet[16:20]), error)
        else:
            self._counters["clients_reset"] += 1

    # ---- time ------------------------------------------------------------------------------------------

    def _patience(self) -> float | None:
        """Seconds until a question expires; None: none is open."""
        deadline = self._questions.deadline()
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    def _expire(self) -> None:
        for question in self._questions.expire(time.monotonic()):
            self._counters["flows_unanswered"] += 1
            self._doubtful |= question.waiting
