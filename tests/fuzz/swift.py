"""The router's program, some 20 us a head: what BPF_PROG_TEST_RUN costs, and little more.

Frames are a made header with the head behind it, and buffers are used again. Which verdict each packet came to is seen
in what came out; that the counters agree is asserted once a round (`checked`).
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import byref
from dataclasses import dataclass, replace
from typing import Any

from packets import oracle
from packets.bench import BACKENDS, CLUSTERS, FLOW_SETS, INDEX, XDP_DROP, XDP_PASS, XDP_TX, Router
from packets.frames import ETHERNET_HEADER, Connection

from rauta.bpf import Program, _lib

ROUND = 256  # heads, each on a connection of its own
CAPACITY = 4096
OUTER = 20
IPIP, ICMP, SHIM = 4, 1, 253
SHIM_LENGTH, SHIM_FIRST = 24, 8
"""bytes of struct shim, and where in an order the new backend's address stands"""
_CLUSTER_OF = {
    oracle.be32(BACKENDS[name].address): cluster for cluster, weights in CLUSTERS.items() for name in weights
}
_CLUSTER_NAMES = {index: name for name, index in INDEX.items()}


@dataclass(frozen=True)
class Outcome:
    """What the router did with a head. `kind`: "routed", "moved", "answered" (with a status), "reset", "too big",
    "dropped", or "passed" up, to the fallback if there is one.

    Of a routed one, and of one that moves its connection, its cluster; of a routed one the length of its head and its
    body, too, as the flow entry has them.
    """

    kind: str
    status: int = 0
    cluster: str = ""
    head_length: int = 0
    body_length: int = 0


@dataclass(frozen=True)
class _Line:
    """A connection of the client, with what is computed once: a frame's headers, and where its flow entry is."""

    connection: Connection
    headers: bytes
    later: bytes
    set_number: int
    tag: int


class SwiftProgram:
    """A loaded program that is run on many frames."""

    def __init__(self, program: Program) -> None:
        """Prepares the buffers."""
        self._run = _lib.libbpf().bpf_prog_test_run_opts
        self._fd = program.fd
        self._in, self._out = ctypes.create_string_buffer(CAPACITY), ctypes.create_string_buffer(CAPACITY)
        self._options = _lib.TestRunOpts(repeat=1)
        self._options.data_in, self._options.data_out = ctypes.addressof(self._in), ctypes.addressof(self._out)
        self._contexts: dict[bytes, ctypes.Array[ctypes.c_char]] = {}

    def run(self, frame: bytes, ctx: bytes = b"") -> tuple[int, bytes]:
        """The return code, and what became of the frame. Contexts are kept, so let there be few of them."""
        assert len(frame) <= CAPACITY
        ctypes.memmove(self._in, frame, len(frame))
        self._options.data_size_in, self._options.data_size_out = len(frame), CAPACITY
        kept = self._contexts.setdefault(ctx, ctypes.create_string_buffer(ctx, len(ctx)))
        self._options.ctx_in, self._options.ctx_size_in = ctypes.addressof(kept) if ctx else 0, len(ctx)
        _lib.check(self._run(self._fd, byref(self._options)), f"running a program on {len(frame)} bytes")
        return self._options.retval, self._out[: self._options.data_size_out]


class SwiftRouter(Router):
    """The router, with `ROUND` connections to send heads on."""

    def __init__(self) -> None:
        """Loads the program, and prepares the connections."""
        super().__init__()
        self._library = _lib.libbpf()
        self.program = SwiftProgram(self.object.programs["rauta_ingress"])
        self._flows = self.object.maps["flows"]
        self._set = ctypes.create_string_buffer(self._flows.value_size)
        self._seen: Counter[str] = Counter()
        self._lines = [_prepared(Connection(port=20000 + number)) for number in range(ROUND)]
        layout: Any = self.object.btf.struct("flow_set")
        self._layout = {name: (member.offset, member.layout) for name, member in layout.members.items()}

    def routes_by(self, routes: tuple[oracle.Route, ...], *, fallback: bool) -> None:
        """Other routes, and no connections."""
        self.forget()
        self.route(*routes, fallback=fallback)

    def forget(self) -> None:
        """No connections any more."""
        self._flows.clear()

    # ---- heads -----------------------------------------------------------------------------------------

    def send(self, number: int, head: bytes) -> Outcome:
        """A head as the first request of connection `number`, which must be new."""
        line = self._lines[number]
        frame = _frame(line.headers, head)
        code, output = self.program.run(frame)
        outcome = self._outcome(frame, code, output)
        if outcome.kind != "routed":
            return outcome
        flow = self._entry(line)
        assert _CLUSTER_NAMES[flow["cluster"]] == outcome.cluster
        assert flow["request_seq"] == line.connection.start
        length = flow["next_request_seq"] - flow["request_seq"] & 0xFFFFFFFF
        return replace(outcome, head_length=flow["head_length"], body_length=length - flow["head_length"])

    def send_next(self, number: int, head: bytes, at: int) -> Outcome:
        """A head as a later request of a connection, `at` bytes behind the first one's first byte."""
        line = self._lines[number]
        headers = bytearray(line.later)
        headers[38:42] = (line.connection.start + at & 0xFFFFFFFF).to_bytes(4, "big")
        frame = _frame(bytes(headers), head)
        return self._outcome(frame, *self.program.run(frame))

    @contextmanager
    def checked(self) -> Iterator[None]:
        """Asserts of all runs inside that each ended in one verdict, and in one that agrees with what came out."""
        before = self.counters()
        self._seen.clear()
        yield
        grown: Counter[str] = Counter()
        for verdict, count in self.grown(before).items():
            grown[_kind_of(verdict)] += count
        assert grown == self._seen

    def _outcome(self, frame: bytes, code: int, output: bytes) -> Outcome:
        outcome = _outcome_of(frame, code, output)
        self._seen[outcome.kind] += 1
        return outcome

    def _entry(self, line: _Line) -> dict[str, Any]:
        number = ctypes.c_uint32(line.set_number)
        _lib.check(self._library.bpf_map_lookup_elem(self._flows.fd, byref(number), self._set), "reading the flows")
        offset, tags = self._layout["tag"]
        way = tags.unpack_from(self._set, offset).index(line.tag)
        offset, ways = self._layout["flow"]
        flow: dict[str, Any] = ways.element.unpack_from(self._set, offset + way * ways.element.size)
        assert flow["tuple"] == line.connection.tuple.key
        return flow


def _prepared(connection: Connection) -> _Line:
    headers, later = (bytes(segment)[:-1] for segment in (connection.data(b"x"), connection.later(b"x", 0)))
    return _Line(connection, headers, later, *oracle.flow_place(connection.tuple, FLOW_SETS))


def _frame(headers: bytes, payload: bytes) -> bytes:
    """Checksums are not right: nothing in the router looks at them, and nothing of this leaves it."""
    length = len(headers) - ETHERNET_HEADER + len(payload)
    return headers[:16] + length.to_bytes(2, "big") + headers[18:] + payload


def _outcome_of(frame: bytes, code: int, output: bytes) -> Outcome:
    if code == XDP_PASS:
        return Outcome("passed")
    if code == XDP_DROP:
        return Outcome("dropped")
    assert code == XDP_TX
    if output[23] == IPIP:
        assert output[ETHERNET_HEADER + OUTER :] == frame[ETHERNET_HEADER:]
        return Outcome("routed", cluster=_CLUSTER_OF[int.from_bytes(output[30:34], "little")])
    if output[23] == SHIM:
        shim = ETHERNET_HEADER + OUTER
        assert output[shim + SHIM_LENGTH :] == frame[ETHERNET_HEADER:]
        target = int.from_bytes(output[shim + SHIM_FIRST : shim + SHIM_FIRST + 4], "little")
        return Outcome("moved", cluster=_CLUSTER_OF[target])
    if output[23] == ICMP:
        return Outcome("too big")
    if output[47] & 0x04:
        return Outcome("reset")
    text = output[34 + (output[46] >> 4) * 4 :]
    assert text.startswith(b"HTTP/1.1 ")
    return Outcome("answered", status=int(text[9:12]))


def _kind_of(verdict: str) -> str:
    """What comes out at a verdict (in these runs: no SYN, no FIN, no probe)."""
    if verdict == "TX_TOO_BIG":
        return "too big"
    if verdict.startswith("TX_"):
        return "reset" if "RESET" in verdict else "answered"
    if verdict in ("ROUTED_MOVED", "FORWARDED_ORDER", "FORWARDED_EARLY"):
        return "moved"
    if verdict.startswith(("ROUTED_", "FORWARDED")):
        return "routed"
    return "dropped" if verdict.startswith("DROP_") else "passed"
