"""The agent is asked whose a connection is: byte for byte what it answers, and when it says nothing.

Sockets are real ones, made established by TCP_REPAIR (tcp(7)), or left in TIME_WAIT by a real connection.
"""

import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.packet import Raw

from packets import oracle
from packets.bench import Agent, throwaway_namespace
from packets.conftest import ROUTERS, ROUTERS_MASK
from packets.frames import (
    BACKEND_MAC,
    CLIENT,
    LOCAL,
    LOCAL_PORT,
    ROUTER_MAC,
    SECOND_LOCAL_PORT,
    SECOND_VIP,
    SECOND_VIP_PORT,
    VIP,
    VIP_PORT,
    Connection,
    ethernet,
)
from packets.oracle import MAPPING_CLEARING, MAPPING_OPEN, MAPPING_OPENING, Ask, Tuple
from packets.sockets import SO_TCP, TCP_QUEUE_SEQ, TCP_RECV_QUEUE, TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_SEND_QUEUE

ALICE = Connection()
LOCAL_TUPLE = Tuple(CLIENT, ALICE.port, LOCAL, LOCAL_PORT)
ROUTER, ROUTER_PORT, ASK_PORT = "198.18.0.2", 45678, 21057
BETWEEN = Tuple(ROUTER, ROUTER_PORT, LOCAL, ASK_PORT)
TC_ACT_REDIRECT = 7

RECEIVED, SENT = 0x2233_4455, 0x6677_8899
"""the number that the socket waits for, and the one that it sends next"""
ASK = Ask(ALICE.tuple, RECEIVED, SENT, BETWEEN)
NOT_MINE = replace(ASK, kind=oracle.ASK_NOT_MINE)


def mine(ask: Ask = ASK, received: int = RECEIVED) -> Ask:
    """The answer by whom it belongs to."""
    return replace(ask, kind=oracle.ASK_MINE, isn=ALICE.isn, cookie=ALICE.cookie, next=received)


@pytest.fixture(scope="module")
def loaded() -> Iterator[Agent]:
    with throwaway_namespace():
        for command in (f"address add {LOCAL}/32 dev lo", f"address add {CLIENT}/32 dev lo", "link set lo up"):
            subprocess.run(["ip", *command.split()], check=True)
        services = {(VIP, VIP_PORT): (LOCAL, LOCAL_PORT), (SECOND_VIP, SECOND_VIP_PORT): (LOCAL, SECOND_LOCAL_PORT)}
        constants = {"ask_address": oracle.be32(LOCAL), "ask_port": oracle.be16(ASK_PORT)}
        agent = Agent(ROUTERS, ROUTERS_MASK, services, **constants)
        with agent.object:
            agent.object.maps["ask_keys"].update(0, {"key": [list(key) for key in oracle.ASK_KEYS]})
            yield agent


@pytest.fixture
def asked(loaded: Agent) -> Agent:
    loaded.object.maps["mappings"].clear()
    return loaded


def datagram(payload: Ask | bytes, between: Tuple = BETWEEN, *, back: bool = False, **fields: Any) -> bytes:
    """The frame of a question, or of an answer (`back`); `fields` are to differ in its headers."""
    ends = {"src": between.client, "dst": between.server, "sport": between.client_port, "dport": between.server_port}
    ends |= {"id": 0x1234, "flags": "DF", "ttl": 61}
    source, destination = ROUTER_MAC, BACKEND_MAC
    if back:
        ends |= {"src": ends["dst"], "dst": ends["src"], "sport": ends["dport"], "dport": ends["sport"], "ttl": 64}
        source, destination = destination, source
    ends |= fields
    udp = UDP(**{name: ends.pop(name) for name in ("sport", "dport", "len", "chksum") if name in ends})
    return ethernet(source, destination, bytes(IP(**ends) / udp / Raw(bytes(payload))))


def answers(agent: Agent, ask: Ask, answer: Ask, **fields: Any) -> None:
    """Straight back, as that answer, in a datagram of the same size."""
    code, output = agent.run("rauta_agent_ingress", datagram(ask, ask.between, **fields), "AGENT_ASK_ANSWERED")
    expected = datagram(answer, ask.between, back=True, **fields)
    assert (code, output.hex(" ")) == (TC_ACT_REDIRECT, expected.hex(" "))
    assert len(output) == len(datagram(ask))


def is_silent(agent: Agent, frame: bytes) -> None:
    agent.drops("ingress", frame, "AGENT_DROP_ASK")


@contextmanager
def established(
    local: Tuple = LOCAL_TUPLE, received: int = RECEIVED, sent: int = SENT, mss: int = 536
) -> Iterator[socket.socket]:
    """A socket on a local tuple that stands at these numbers. Until it closes, it is under repair: without a word."""
    with socket.socket() as sock:
        sock.setsockopt(SO_TCP, TCP_REPAIR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(SO_TCP, socket.TCP_MAXSEG, mss)
        sock.bind((local.server, local.server_port))
        for queue, number in ((TCP_RECV_QUEUE, received), (TCP_SEND_QUEUE, sent)):
            sock.setsockopt(SO_TCP, TCP_REPAIR_QUEUE, queue)
            sock.setsockopt(SO_TCP, TCP_QUEUE_SEQ, number.to_bytes(4, "little"))
        sock.connect((local.client, local.client_port))
        yield sock


def carry(agent: Agent, sock: socket.socket, connection: Connection = ALICE, **fields: int) -> None:
    """The socket itself says which connection it is, as from its second segment on."""
    value = {"vip": oracle.be32(connection.server), "vip_port": oracle.be16(connection.server_port)}
    value |= {"state": MAPPING_OPEN, "isn": connection.isn, "cookie": connection.cookie} | fields
    agent.object.maps["connections"].update(sock.fileno(), value)


# ---- mine -----------------------------------------------------------------------------------------------


def test_a_socket_that_carries_its_connection_is_found(asked: Agent) -> None:
    with established() as sock:
        carry(asked, sock)
        answers(asked, ASK, mine())


@pytest.mark.parametrize("state", [MAPPING_OPEN, MAPPING_OPENING])
def test_so_is_one_that_only_the_map_knows(asked: Agent, state: int) -> None:
    """It has sent one segment, or none yet."""
    asked.put_mapping(LOCAL_TUPLE, ALICE, state)
    with established():
        answers(asked, ASK, mine())


@pytest.mark.parametrize("state", [MAPPING_OPEN, MAPPING_OPENING])
def test_the_socket_knows_better_than_the_map(asked: Agent, state: int) -> None:
    asked.put_mapping(LOCAL_TUPLE, ALICE.reopened(ALICE.isn + 999), state)
    with established() as sock:
        carry(asked, sock)
        answers(asked, ASK, mine())


def test_each_epochs_key_is_understood(asked: Agent) -> None:
    ask = replace(ASK, epoch=1)
    with established() as sock:
        carry(asked, sock)
        answers(asked, ask, mine(ask))


NUMBERS = {
    "as far ahead as a window": {"seq": RECEIVED + (1 << 23)},
    "as far back": {"seq": RECEIVED - (1 << 23)},
    "nothing acknowledged that is under way": {"ack": SENT - (1 << 30)},
    "a probe": {"seq": RECEIVED - 1},
}
REACH = pytest.mark.parametrize("start", [0x2233_4455, 0, 0xFFFF_FFFF, 0x7FFF_FFFF, 1 << 23], ids=hex)


@REACH
@pytest.mark.parametrize("numbers", NUMBERS.values(), ids=NUMBERS)
def test_its_client_may_be_anywhere_in_the_window(asked: Agent, numbers: dict[str, int], start: int) -> None:
    """Also where numbers wrap."""
    moved = {name: number - (RECEIVED if name == "seq" else SENT) + start for name, number in numbers.items()}
    ask = replace(ASK, **{"seq": start, "ack": start} | moved)
    with established(received=start, sent=start) as sock:
        carry(asked, sock)
        answers(asked, ask, mine(ask, start))


OTHERS = {
    "beyond the window": {"seq": RECEIVED + (1 << 23) + 1},
    "before it": {"seq": RECEIVED - (1 << 23) - 1},
    "acknowledges what was not sent": {"ack": SENT + 1},
    "acknowledges what was long ago": {"ack": SENT - (1 << 30) - 1},
}


@pytest.mark.parametrize("numbers", OTHERS.values(), ids=OTHERS)
def test_with_other_numbers_it_is_another_connection(asked: Agent, numbers: dict[str, int]) -> None:
    """An old socket of the agent's, perhaps, whose client has used its port again, for another backend."""
    with established() as sock:
        carry(asked, sock)
        ask = replace(ASK, **numbers)
        answers(asked, ask, replace(ask, kind=oracle.ASK_NOT_MINE))


def test_each_vip_has_its_own_sockets(asked: Agent) -> None:
    second = replace(ALICE, server=SECOND_VIP, server_port=SECOND_VIP_PORT)
    ask = replace(ASK, four=second.tuple)
    with established(replace(LOCAL_TUPLE, server_port=SECOND_LOCAL_PORT)) as sock:
        carry(asked, sock, second)
        answers(asked, ask, replace(mine(ask), cookie=second.cookie))
        answers(asked, ASK, NOT_MINE)


# ---- TIME_WAIT ------------------------------------------------------------------------------------------


def numbers_of(sock: socket.socket) -> tuple[int, int]:
    """Where a socket stands: received, sent."""
    sock.setsockopt(SO_TCP, TCP_REPAIR, 1)
    found = []
    for queue in (TCP_RECV_QUEUE, TCP_SEND_QUEUE):
        sock.setsockopt(SO_TCP, TCP_REPAIR_QUEUE, queue)
        found.append(sock.getsockopt(SO_TCP, TCP_QUEUE_SEQ) & 0xFFFFFFFF)
    sock.setsockopt(SO_TCP, TCP_REPAIR, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # which the end of the repair has taken away
    return found[0], found[1]


@pytest.fixture(scope="module")
def waiting(loaded: Agent) -> tuple[Tuple, int, int]:
    """A socket of the server's in TIME_WAIT: its tuple, where it stands."""
    with socket.create_server((LOCAL, LOCAL_PORT)) as listener:
        client = socket.create_connection((LOCAL, LOCAL_PORT), source_address=(CLIENT, 0))
        with client:
            port = client.getsockname()[1]
            server, _ = listener.accept()
            received, sent = numbers_of(server)
            server.close()
            assert client.recv(1) == b""
    return Tuple(CLIENT, port, LOCAL, LOCAL_PORT), received + 1 & 0xFFFFFFFF, sent + 1 & 0xFFFFFFFF


def test_a_connection_in_time_wait_is_found_by_the_map(asked: Agent, waiting: tuple[Tuple, int, int]) -> None:
    """Its client may have to be told once more that its end has arrived."""
    local, received, sent = waiting
    connection = Connection(port=local.client_port)
    ask = Ask(connection.tuple, received - 1, sent, BETWEEN)
    answer = replace(
        ask, kind=oracle.ASK_MINE, isn=connection.isn, cookie=connection.cookie, next=received & 0xFFFFFFFF
    )
    answers(asked, ask, replace(ask, kind=oracle.ASK_NOT_MINE))
    asked.put_mapping(local, connection)
    answers(asked, ask, answer)
    for numbers in ({"seq": received + (1 << 24)}, {"ack": sent + 1}):
        other = replace(ask, **numbers)
        answers(asked, other, replace(other, kind=oracle.ASK_NOT_MINE))


@pytest.mark.parametrize("state", [MAPPING_OPENING, MAPPING_CLEARING])
def test_while_it_is_being_cleared_nobody_can_tell(asked: Agent, waiting: tuple[Tuple, int, int], state: int) -> None:
    local, received, sent = waiting
    connection = Connection(port=local.client_port)
    asked.put_mapping(local, connection, state)
    is_silent(asked, datagram(Ask(connection.tuple, received, sent, BETWEEN)))


# ---- not mine -------------------------------------------------------------------------------------------


def test_without_a_socket_it_is_not(asked: Agent) -> None:
    answers(asked, ASK, NOT_MINE)


def test_what_the_map_remembers_alone_is_no_connection(asked: Agent) -> None:
    asked.put_mapping(LOCAL_TUPLE, ALICE)
    answers(asked, ASK, NOT_MINE)
    with socket.create_server((LOCAL, LOCAL_PORT)):
        answers(asked, ASK, NOT_MINE)


def test_a_listener_alone_is_none(asked: Agent) -> None:
    with socket.create_server((LOCAL, LOCAL_PORT)):
        answers(asked, ASK, NOT_MINE)


def test_a_direct_connection_is_none(asked: Agent) -> None:
    with established():
        answers(asked, ASK, NOT_MINE)


@pytest.mark.parametrize("vip", [(VIP, 81), ("198.18.100.99", VIP_PORT), (LOCAL, LOCAL_PORT)], ids=str)
def test_a_vip_that_is_not_served_has_none(asked: Agent, vip: tuple[str, int]) -> None:
    ask = replace(ASK, four=replace(ALICE.tuple, server=vip[0], server_port=vip[1]))
    with established() as sock:
        carry(asked, sock)
        answers(asked, ask, replace(ask, kind=oracle.ASK_NOT_MINE))


@pytest.mark.parametrize("other", [{"server": SECOND_VIP}, {"server_port": SECOND_VIP_PORT}], ids=str)
def test_another_vips_socket_is_another_connection(asked: Agent, other: dict[str, Any]) -> None:
    with established() as sock:
        carry(asked, sock, replace(ALICE, **other))
        answers(asked, ASK, NOT_MINE)


# ---- nobody can tell ------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [MAPPING_OPENING, MAPPING_CLEARING])
@pytest.mark.parametrize("listens", [False, True])
def test_while_a_connection_is_opening_it_says_nothing(asked: Agent, state: int, listens: bool) -> None:
    """Its client's second segment may have come by another router than the first: a "no" could have it reset."""
    asked.put_mapping(LOCAL_TUPLE, ALICE, state)
    if not listens:
        is_silent(asked, datagram(ASK))
        return
    with socket.create_server((LOCAL, LOCAL_PORT)):
        is_silent(asked, datagram(ASK))


@pytest.mark.parametrize("carries", [False, True])
def test_nor_while_an_old_socket_is_being_cleared(asked: Agent, carries: bool) -> None:
    asked.put_mapping(LOCAL_TUPLE, ALICE.reopened(ALICE.isn + 999), MAPPING_CLEARING)
    with established() as sock:
        if carries:
            carry(asked, sock)
        is_silent(asked, datagram(ASK))


# ---- the time -------------------------------------------------------------------------------------------

NOBODY = Tuple("0.0.0.0", 0, "0.0.0.0", 0)
PING = Ask(NOBODY, 0, 0, BETWEEN, kind=oracle.ASK_PING)


@pytest.mark.parametrize("ping", [PING, replace(PING, epoch=1), replace(ASK, kind=oracle.ASK_PING)], ids=str)
def test_a_ping_is_answered_with_the_time_and_nothing_else(asked: Agent, ping: Ask) -> None:
    """By the clock that does not jump at leap seconds, which orders go by; whatever else the ping holds stays."""
    before = time.clock_gettime_ns(time.CLOCK_TAI)
    code, output = asked.run("rauta_agent_ingress", datagram(ping), "AGENT_ASK_ANSWERED")
    after = time.clock_gettime_ns(time.CLOCK_TAI)
    seconds, nanoseconds = struct.unpack_from("<II", output, 42 + 36)
    pong = replace(ping, kind=oracle.ASK_PONG, isn=seconds, cookie=nanoseconds)
    assert (code, output.hex(" ")) == (TC_ACT_REDIRECT, datagram(pong, back=True).hex(" "))
    assert nanoseconds < 1_000_000_000
    assert before <= seconds * 1_000_000_000 + nanoseconds <= after


def test_a_connection_makes_no_difference_to_it(asked: Agent) -> None:
    asked.put_mapping(LOCAL_TUPLE, ALICE, MAPPING_CLEARING)
    with established() as sock:
        carry(asked, sock)
        _, output = asked.run("rauta_agent_ingress", datagram(replace(ASK, kind=oracle.ASK_PING)), "AGENT_ASK_ANSWERED")
    assert output[43] == oracle.ASK_PONG


# ---- by nobody who may ask ------------------------------------------------------------------------------

FORGED: dict[str, bytes] = {
    "no tag": bytes(ASK)[:-8] + bytes(8),
    "the cookie's key": ASK.sealed(oracle.COOKIE_KEYS),
    "the other epoch's key": ASK.sealed(oracle.ASK_KEYS[::-1]),
    "another version": bytes(replace(ASK, version=2)),
    "no version": bytes(replace(ASK, version=0)),
    "an answer": bytes(mine()),
    "a denial": bytes(NOT_MINE),
    "a pong": bytes(replace(ASK, kind=oracle.ASK_PONG)),
    "another kind": bytes(replace(ASK, kind=6)),
    "a ping with no tag": bytes(replace(ASK, kind=oracle.ASK_PING))[:-8] + bytes(8),
    "a ping under a question's tag": bytes([1, oracle.ASK_PING]) + bytes(ASK)[2:],
    "no kind": bytes(replace(ASK, kind=0)),
    "truncated": bytes(ASK)[:-1],
    "empty": b"",
    "one byte more": bytes(ASK) + b"\0",
    "a word more": bytes(ASK) + bytes(8),
    "twice": bytes(ASK) * 2,
}


@pytest.mark.parametrize("payload", FORGED.values(), ids=FORGED)
def test_a_forged_question_is_dropped(asked: Agent, payload: bytes) -> None:
    with established() as sock:
        carry(asked, sock)
        is_silent(asked, datagram(payload))


@pytest.mark.parametrize("at", range(len(bytes(ASK))))
def test_so_is_one_with_any_byte_changed(asked: Agent, at: int) -> None:
    forged = bytearray(bytes(ASK))
    forged[at] ^= 0x08
    with established() as sock:
        carry(asked, sock)
        is_silent(asked, datagram(bytes(forged)))


ELSEWHERE = {
    "from another address": replace(BETWEEN, client="198.18.0.66"),
    "from another port": replace(BETWEEN, client_port=53),
}


@pytest.mark.parametrize("between", ELSEWHERE.values(), ids=ELSEWHERE)
def test_what_a_router_asked_is_answered_to_no_other(asked: Agent, between: Tuple) -> None:
    """Who has listened, and repeats it, does not get the answer; nor does whoever he names as the sender."""
    with established() as sock:
        carry(asked, sock)
        is_silent(asked, datagram(ASK, between))


def test_asked_again_it_says_what_is_true_by_then(asked: Agent) -> None:
    """A replay changes nothing here."""
    with established() as sock:
        carry(asked, sock)
        for _ in range(3):
            answers(asked, ASK, mine())
    answers(asked, ASK, NOT_MINE)


LENGTHS: dict[str, dict[str, Any]] = {
    "UDP length too small": {"len": 63},
    "UDP length too large": {"len": 65},
}


@pytest.mark.parametrize("fields", LENGTHS.values(), ids=LENGTHS)
def test_lengths_must_agree(asked: Agent, fields: dict[str, Any]) -> None:
    is_silent(asked, datagram(ASK, **fields))


@pytest.mark.parametrize("length", [0, 20, 28, 83, 85, 1500, 65535])
def test_so_must_the_packets(asked: Agent, length: int) -> None:
    frame = datagram(ASK)
    is_silent(asked, frame[:16] + length.to_bytes(2, "big") + frame[18:])


def test_a_frame_that_ends_within_the_question_is_dropped(asked: Agent) -> None:
    for length in range(42, len(datagram(ASK))):
        is_silent(asked, datagram(ASK)[:length])


# ---- none of its business -------------------------------------------------------------------------------

OTHER_DATAGRAMS: dict[str, bytes] = {
    "another port": datagram(ASK, replace(BETWEEN, server_port=ASK_PORT + 1)),
    "from that port": datagram(ASK, replace(BETWEEN, client_port=ASK_PORT, server_port=9)),
    "another address": datagram(ASK, replace(BETWEEN, server="198.18.0.12")),
    "the VIP": datagram(ASK, replace(BETWEEN, server=VIP)),
    "the first fragment": datagram(ASK, flags="MF"),
    "a later fragment": datagram(ASK, frag=1),
    "IP options": datagram(ASK, options=b"\1" * 4),
    "TCP": ethernet(
        ROUTER_MAC, BACKEND_MAC, bytes(IP(src=ROUTER, dst=LOCAL, proto=6) / UDP(dport=ASK_PORT) / bytes(60))
    ),
}


@pytest.mark.parametrize("frame", OTHER_DATAGRAMS.values(), ids=OTHER_DATAGRAMS)
def test_any_other_datagram_passes(asked: Agent, frame: bytes) -> None:
    asked.passes("ingress", frame, "AGENT_PASS", frame)


def test_where_nothing_is_configured_so_does_a_question(agent: Agent) -> None:
    agent.passes("ingress", datagram(ASK), "AGENT_PASS", datagram(ASK))


# ---- the wire -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"id": 0}, {"tos": 0x13}, {"flags": 0}, {"id": 0xFFFF, "flags": 0}], ids=str)
def test_the_answers_headers_are_the_questions(asked: Agent, fields: dict[str, Any]) -> None:
    answers(asked, ASK, NOT_MINE, **fields)


def test_its_time_to_live_is_new(asked: Agent) -> None:
    for ttl in (1, 63, 64, 65, 255):
        code, output = asked.run("rauta_agent_ingress", datagram(ASK, ttl=ttl), "AGENT_ASK_ANSWERED")
        assert (code, output.hex(" ")) == (TC_ACT_REDIRECT, datagram(NOT_MINE, back=True).hex(" "))


def test_checksums_are_right_whatever_is_said(asked: Agent) -> None:
    """They are corrected, not computed: carries and borrows show with many values."""
    for number in range(200):
        ask = replace(ASK, nonce=number * 0x9E37_79B9_7F4A_7C15 & (1 << 64) - 1)
        answers(asked, ask, replace(ask, kind=oracle.ASK_NOT_MINE))


def test_a_question_without_a_checksum_is_answered_without(asked: Agent) -> None:
    answers(asked, ASK, NOT_MINE, chksum=0)


@pytest.fixture
def with_device_sums(asked: Agent) -> Callable[[bytes], bytes]:
    def run(frame: bytes) -> bytes:
        return asked.object.programs["rauta_agent_ingress"].test_run(frame, checksum_complete=True).data

    return run


def test_the_sum_that_a_device_has_made_stays_right(with_device_sums: Callable[[bytes], bytes]) -> None:
    """Or the kernel blames the device for what the agent has written."""
    assert with_device_sums(datagram(ASK)) == datagram(NOT_MINE, back=True)
