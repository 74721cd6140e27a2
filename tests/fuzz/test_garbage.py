"""Whatever comes in: each packet ends in exactly one verdict, and what goes out is well-formed."""

import os
import secrets
from collections.abc import Iterator, Sequence
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packets import oracle
from packets.bench import (
    BACKENDS,
    FALLBACK,
    RESETTING_PORT,
    RESETTING_VIP,
    TC_ACT_SHOT,
    TC_PASSES,
    XDP_DROP,
    XDP_PASS,
    XDP_TX,
    Agent,
    Bench,
)
from packets.frames import LOCAL, LOCAL_PORT, SECOND_LOCAL_PORT, SECOND_VIP, SECOND_VIP_PORT, VIP, VIP_PORT
from packets.oracle import MARK_LATER, MARK_MAGIC, MARK_OPENS

from fuzz import garbage
from fuzz.garbage import (
    CONNECTIONS,
    ICMP,
    IPIP,
    RST,
    TCP,
    Frames,
    checksum,
    is_icmp,
    known_as,
    pseudo_header,
    without_tags,
)
from fuzz.heads import world
from fuzz.swift import SHIM, SHIM_FIRST, SHIM_LENGTH, SwiftProgram, SwiftRouter
from rauta.bpf import skb_context

LONG = bool(os.environ.get("RAUTA_LONG"))
FRAMES = 1_000_000 if LONG else 15_000  # of each kind
SEED = int(os.environ.get("RAUTA_SEED") or (secrets.randbits(32) if LONG else 1))
ROUND = 500
TC_ACT_REDIRECT = 7
XDP_VERDICTS = {XDP_PASS: ("PASS_", "FALLBACK_"), XDP_DROP: ("DROP_",), XDP_TX: ("TX_", "ROUTED_", "FORWARDED")}
VIPS = ((VIP, VIP_PORT), (RESETTING_VIP, RESETTING_PORT))
SERVICES = {(VIP, VIP_PORT): (LOCAL, LOCAL_PORT), (SECOND_VIP, SECOND_VIP_PORT): (LOCAL, SECOND_LOCAL_PORT)}
MARKS = [
    b"",
    *(
        skb_context(mark=MARK_MAGIC | mark)
        for mark in (MARK_OPENS | 1, MARK_OPENS | 3, MARK_LATER | 1, MARK_LATER | 3, 0xFF, 0)
    ),
]

long_or_not = settings(
    max_examples=20_000 if LONG else 150,
    derandomize=not LONG,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def rounds(kind: str) -> Iterator[tuple[int, Frames]]:
    """The numbers of the rounds, and a supply of frames for each."""
    for number in range(FRAMES // ROUND):
        yield number, Frames(Random(f"{SEED} {kind} {number}"))


def verdicts(bench: Bench, before: Sequence[int], starts: Sequence[str]) -> int:
    """How many packets since then ended in verdicts whose names start so."""
    return sum(count for name, count in bench.grown(before).items() if name.startswith(tuple(starts)))


# ---- the router -----------------------------------------------------------------------------------------


@pytest.mark.timeout(0 if LONG else 300)
@pytest.mark.parametrize("fallback", [False, True], ids=["refusing", "fallback"])
def test_the_router_survives_anything(swift_router: SwiftRouter, fallback: bool) -> None:
    swift_router.routes_by(world(0), fallback=fallback)
    counted, seen = dict.fromkeys(XDP_VERDICTS, 0), set()
    for number, frames in rounds("router"):
        before, codes = swift_router.counters(), []
        for turn in range(ROUND):
            if turn % 100 == 0:
                swift_router.forget()
            frame = frames.to_router()
            code, output = swift_router.program.run(frame)
            assert sound(frame, code, output), (
                f"RAUTA_SEED={SEED}, round {number}: {code} {output.hex()} of {frame.hex()}"
            )
            codes.append(code)
        for code, starts in XDP_VERDICTS.items():
            assert verdicts(swift_router, before, starts) == codes.count(code)
            counted[code] += codes.count(code)
        assert verdicts(swift_router, before, [""]) == ROUND
        seen |= swift_router.grown(before).keys()
    assert min(counted.values()) > FRAMES / 20, "too few of a kind to show anything"
    assert len(seen) > 30, f"these are too few to show anything: {seen}"


@long_or_not
@given(random=st.randoms(use_true_random=False), fallback=st.booleans())
def test_nor_does_anything_that_hypothesis_chooses_disturb_it(
    swift_router: SwiftRouter, random: Random, fallback: bool
) -> None:
    swift_router.routes_by(world(0), fallback=fallback)
    frames = Frames(random)
    for frame in (frames.to_router(), frames.to_router()):
        before = swift_router.counters()
        code, output = swift_router.program.run(frame)
        assert sound(frame, code, output)
        assert verdicts(swift_router, before, XDP_VERDICTS[code]) == verdicts(swift_router, before, [""]) == 1


def sound(frame: bytes, code: int, output: bytes) -> bool:
    """Whether that may come out of the router."""
    if code == XDP_DROP:
        return True
    if code == XDP_PASS and output == frame:
        return not known_as(frame, VIPS)
    if not known_as(frame, VIPS) and not is_icmp(frame):
        return False
    (bare_in, tags_in), (bare_out, tags_out) = without_tags(frame), without_tags(output)
    packet = bare_out[14:]
    if tags_in != tags_out or not is_packet(packet) or packet[6:8] != b"\x40\0":
        return False
    if packet[9] == IPIP:
        return is_carried(bare_in, bare_out, FALLBACK.address if code == XDP_PASS else None)
    if packet[9] == SHIM:
        return code == XDP_TX and is_order(bare_in, bare_out)
    if packet[9] == ICMP:
        return code == XDP_TX and is_too_big(bare_in, bare_out)
    return code == XDP_TX and is_answer(bare_in, bare_out)


def is_packet(packet: bytes) -> bool:
    """IPv4 without options, as long as it says, with the right checksum."""
    return packet[0] == 0x45 and int.from_bytes(packet[2:4], "big") == len(packet) and checksum(packet[:20]) == 0


def is_carried(frame: bytes, output: bytes, destination: str | None) -> bool:
    """The packet as it was, in an outer header from the router's network to the fallback, or to a backend."""
    packet = frame[14:][: int.from_bytes(frame[16:18], "big")]
    backends = {oracle.be32(backend.address): oracle.mac(backend.mac) for backend in BACKENDS.values()}
    to = int.from_bytes(output[30:34], "little")
    if output[34:] != packet or output[26:29] != bytes([198, 19, 0]) or output[12:14] != b"\x08\0":
        return False
    if destination is not None:
        return to == oracle.be32(destination) and output[:12] == frame[:12]
    return output[:6] == backends.get(to) and output[6:12] == frame[:6] and len(output) - 14 <= 1500


def is_order(frame: bytes, output: bytes) -> bool:
    """The packet as it was, behind a shim with an order, to a backend, about moving to another one."""
    backends = {oracle.be32(backend.address) for backend in BACKENDS.values()}
    to, target = (int.from_bytes(output[at : at + 4], "little") for at in (30, 34 + SHIM_FIRST))
    carried = output[:34] + output[34 + SHIM_LENGTH :]
    return is_carried(frame, carried, None) and len(output) - 14 <= 1500 and {to, target} <= backends and to != target


def is_answer(frame: bytes, output: bytes) -> bool:
    """A TCP segment back to where the packet came from. Resets are not answered, and no answer is long."""
    packet, segment = output[14:], output[34:]
    flags, header = segment[13], (segment[12] >> 4) * 4
    return (
        output[:14] == frame[6:12] + frame[:6] + b"\x08\0"
        and packet[9] == TCP
        and packet[12:20] == frame[30:34] + frame[26:30]
        and segment[:4] == frame[36:38] + frame[34:36]
        and 20 <= header <= len(segment) <= 180
        and checksum(pseudo_header(packet[12:16], packet[16:20], len(segment)) + segment) == 0
        and not frame[47] & RST
        and (not flags & RST or len(segment) == 20)
    )


def is_too_big(frame: bytes, output: bytes) -> bool:
    """ICMP "fragmentation needed" to a client about its packet: an answer to that, or to an error about its outer one.

    The checksum is right, unless that error's was not.
    """
    packet, icmp, about = output[14:], output[34:], output[42:]
    told = frame[14:] if frame[23] == TCP else frame[62:]
    return (
        output[:14] == frame[6:12] + frame[:6] + b"\x08\0"
        and icmp[:2] == b"\x03\x04"
        and about == told[: len(about)]
        and len(about) >= 28
        and packet[12:20] == about[16:20] + about[12:16]
        and len(output) <= len(frame)
        and (checksum(icmp) == 0 or (frame[23] == ICMP and checksum(frame[34:]) != 0))
    )


# ---- the agent ------------------------------------------------------------------------------------------


def remembers(agent: Agent) -> None:
    """Some of the connections, in every state."""
    agent.object.maps["mappings"].clear()
    for number, connection in enumerate(CONNECTIONS[:9]):
        four = oracle.Tuple(connection.client, connection.port, LOCAL, LOCAL_PORT)
        agent.put_mapping(four, connection, state=1 + number % 3)


@pytest.mark.timeout(0 if LONG else 300)
def test_the_agent_survives_anything_that_comes(agent: Agent) -> None:
    program = SwiftProgram(agent.object.programs["rauta_agent_ingress"])
    random = Random(SEED)
    passed = 0
    for number, frames in rounds("agent"):
        remembers(agent)
        before, codes = agent.counters(), []
        for _ in range(ROUND):
            frame = frames.to_backend()
            mark = random.choice(MARKS) if random.random() < 0.1 else b""
            code, output = program.run(frame, mark)
            assert delivered_soundly(frame, code, output), (
                f"RAUTA_SEED={SEED}, round {number}: {code} {output.hex()} of {frame.hex()}"
            )
            codes.append(code)
        dropped = verdicts(agent, before, ["AGENT_DROP"])
        again = verdicts(agent, before, ["AGENT_WAITING"])
        assert (dropped, again) == (codes.count(TC_ACT_SHOT), codes.count(TC_ACT_REDIRECT))
        assert verdicts(agent, before, ["AGENT_"]) == verdicts(agent, before, [""]) == ROUND
        passed += ROUND - dropped - again
    assert FRAMES / 10 < passed < FRAMES * 9 / 10, "too few of a kind to show anything"


def delivered_soundly(frame: bytes, code: int, output: bytes) -> bool:
    """Whether that may become of a frame at the host of a backend."""
    if code == TC_ACT_SHOT or (code in (*TC_PASSES, TC_ACT_REDIRECT) and output == frame):
        return True
    outer, inner = frame[14:34], frame[34:]
    if code not in (*TC_PASSES, TC_ACT_REDIRECT) or output[:14] != frame[:14] or outer[9] != IPIP:
        return False
    vip = (".".join(map(str, inner[16:20])), int.from_bytes(inner[22:24], "big"))
    if vip not in SERVICES:
        return False
    address, port = SERVICES[vip]
    ends = oracle.be32(address).to_bytes(4, "little"), port.to_bytes(2, "big")
    return translated(inner, output[14:], 16, 22, *ends)


@pytest.mark.timeout(0 if LONG else 300)
def test_nor_does_anything_that_leaves_disturb_it(agent: Agent) -> None:
    program = SwiftProgram(agent.object.programs["rauta_agent_egress"])
    changed = 0
    for number, frames in rounds("egress"):
        remembers(agent)
        before = agent.counters()
        for _ in range(ROUND):
            frame = frames.from_backend()
            code, output = program.run(frame)
            ends = oracle.be32(VIP).to_bytes(4, "little"), VIP_PORT.to_bytes(2, "big")
            sound = (
                code == TC_ACT_SHOT
                or output == frame
                or (output[:14] == frame[:14] and translated(frame[14:], output[14:], 12, 20, *ends))
            )
            assert sound, f"RAUTA_SEED={SEED}, round {number}: {code} {output.hex()} of {frame.hex()}"
            changed += output != frame
        assert verdicts(agent, before, ["AGENT_EGRESS"]) == verdicts(agent, before, [""]) == ROUND
    assert changed > FRAMES / 10, "too few of a kind to show anything"


def translated(packet: bytes, output: bytes, address_at: int, port_at: int, address: bytes, port: bytes) -> bool:
    """The packet with another address and port at one end; its checksums are as right, or as wrong, as they were."""
    expected = bytearray(packet)
    expected[address_at : address_at + 4], expected[port_at : port_at + 2] = address, port
    expected[10:12], expected[36:38] = output[10:12], output[36:38]
    return output == bytes(expected) and all(wrong(packet, part) == wrong(output, part) for part in (0, 1))


def wrong(packet: bytes, part: int) -> int:
    """By how much a checksum is off: the IPv4 header's (0), or TCP's over addresses, ports and itself (1)."""
    covered = packet[:20] if part == 0 else packet[12:24] + packet[36:38]
    return (0xFFFF - checksum(covered)) % 0xFFFF


def test_the_supply_has_what_it_should() -> None:
    """Most are for a VIP, and damaged in all ways: there are short ones, long ones, with tags, with options."""
    frames = Frames(Random(5))
    drawn = [frames.to_router() for _ in range(2000)]
    assert 0.5 < sum(known_as(frame, VIPS) for frame in drawn) / len(drawn) < 0.95
    assert min(map(len, drawn)) == garbage.SHORTEST
    assert max(map(len, drawn)) > 1500
    assert sum(bool(without_tags(frame)[1]) for frame in drawn) > 100
