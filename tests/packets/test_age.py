"""The age of a handshake: the router says it to the agent with the first request, and the agent makes it the round trip
that the server's socket begins with; or takes the echo away, so that the socket begins with none.
"""

import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest

from packets import frames, oracle
from packets.bench import BACKENDS, FALLBACK, TC_ACT_SHOT, XDP_PASS, XDP_TX, Agent, Router, clock
from packets.frames import CLIENT, CLIENT_CLOCK, LOCAL, LOCAL_PORT, Connection, Segment, carried, delivered, request
from packets.oracle import AGE_LONG, LONGEST_TRIP_MS, Tuple

ALICE = Connection()
HEAD = request("/")
TICK = 10  # ms: what the program takes for the kernel's, unless the loader knows better
NEAR = 7 * TICK  # ms: what is not older is read from the clock itself
OUTER_ID = slice(frames.ETHERNET_HEADER + 4, frames.ETHERNET_HEADER + 6)


def echoing(ago: int, head: bytes = HEAD) -> Segment:
    """A first request that echoes what the router's clock said so many ms ago."""
    return ALICE.data(head, options=frames.timestamps(CLIENT_CLOCK, clock() - ago & 0xFFFFFFFF))


def age_in(output: bytes) -> int:
    """What the outer header of a first request says."""
    identification = int.from_bytes(output[OUTER_ID], "big")
    assert identification & oracle.OUTER_ID_OPENS
    return identification >> 1 & AGE_LONG


def elapsed(segment: Segment) -> int:
    """How many ms ago the router's clock said what a segment echoes."""
    echoed = oracle.parse_timestamps(segment.options)
    assert echoed is not None
    return clock() - echoed[1] & 0xFFFFFFFF


def sent(router: Router, segment: Segment, verdict: str = "ROUTED_FIRST") -> int:
    """Routes a first request: the age that goes with it. But for that, the frame is what it must be."""
    code, output = router.run("rauta_ingress", segment, verdict)
    age = age_in(output)
    source = oracle.outer_source(ALICE.tuple, *router.outer)
    backend = BACKENDS[router.backend_of("web", ALICE)]
    expected = frames.encapsulated(
        segment, backend, source, ALICE.cookie, opens=True, age=age, new=verdict == "ROUTED_FIRST"
    )
    assert (code, output.hex(" ")) == (XDP_TX, expected.hex(" "))
    return age


# ---- the router says it ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ago", [0, 1, 2, 9, 10, 40, NEAR, 2 * NEAR, 333, 1000, 8_000])
def test_the_age_is_never_less_than_it_is_and_hardly_more(router: Router, ago: int) -> None:
    """Of a near client one millisecond more, since both readings are cut off to whole ones; else up to a tick."""
    segment = echoing(ago)
    least = elapsed(segment)
    age = sent(router, segment)
    most = elapsed(segment)
    assert least < age <= most + 1 + (TICK if most > NEAR else 0)


@pytest.mark.parametrize("ago", [AGE_LONG, 12_000, 40_000, 1 << 31, -1000, -(1 << 30)])
def test_what_is_old_or_was_never_said_is_long_ago(router: Router, ago: int) -> None:
    """Another router's clock, or an echo that the client has made up, may be ahead of this one's."""
    assert sent(router, echoing(ago)) == AGE_LONG


def test_of_two_requests_in_the_same_tick_the_later_has_not_the_age_of_the_earlier(router: Router) -> None:
    """The reading is kept for as long as a tick lasts; the second client's SYN has come since."""
    for _ in range(50):
        router.object.maps["flows"].clear()
        segment = echoing(0)
        least = elapsed(segment)
        assert least < sent(router, segment) <= elapsed(segment) + 1


SILENT = {
    "none": b"",
    "another layout": bytes.fromhex("08 0a 00 00 00 01 00 00 00 01 01 01"),
    "the first half": bytes.fromhex("01 01 08 0a 00 00 00 01"),
    "SACK": bytes.fromhex("01 01 05 0a 00 00 00 01 00 00 00 02"),
}


@pytest.mark.parametrize("options", SILENT.values(), ids=SILENT)
def test_without_timestamps_in_their_usual_place_nothing_is_said(router: Router, options: bytes) -> None:
    assert sent(router, ALICE.data(HEAD, options=options)) == 0


def test_the_request_again_says_its_own_age(router: Router) -> None:
    assert sent(router, echoing(0)) <= TICK
    assert sent(router, echoing(300), "FORWARDED_AGAIN") > 300


def test_the_fallback_is_told_as_well(router: Router) -> None:
    router.route(fallback=True)
    segment = echoing(20, b"\x16\x03\x01 is no HTTP")
    code, output = router.run("rauta_ingress", segment, "FALLBACK_TLS")
    age = age_in(output)
    source = oracle.outer_source(ALICE.tuple, *router.outer)
    mac = frames.CLIENT_MAC
    expected = frames.encapsulated(segment, FALLBACK, source, ALICE.cookie, opens=True, mac=mac, age=age, new=False)
    assert (code, output.hex(" ")) == (XDP_PASS, expected.hex(" "))
    assert 20 < age <= elapsed(segment) + 1 + TICK


# ---- the agent makes something of it --------------------------------------------------------------------


@pytest.fixture
def listener(agent: Agent) -> Iterator[None]:
    """Somebody listens. Test runs are no ingress, so the kernel then refuses the socket; the packet shows the rest."""
    for command in (f"address replace {LOCAL}/32 dev lo", "link set lo up", f"route replace {CLIENT}/32 dev lo"):
        subprocess.run(["ip", *command.split()], check=True)
    with socket.create_server((LOCAL, LOCAL_PORT)):
        yield


def given_to_the_listener(agent: Agent, segment: Segment, age: int) -> str:
    """The packet that the kernel is asked to make a socket of, in hexadecimal."""
    code, output = agent.run("rauta_agent_ingress", carried(segment, opens=True, age=age), "AGENT_DROP_REFUSED")
    assert code == TC_ACT_SHOT
    return output.hex(" ")


@pytest.mark.usefixtures("listener")
@pytest.mark.parametrize("age", [1, 2, 40, LONGEST_TRIP_MS])
def test_what_can_be_a_round_trip_leaves_the_request_as_it_is(agent: Agent, age: int) -> None:
    segment = ALICE.data(HEAD)
    assert given_to_the_listener(agent, segment, age) == delivered(segment).hex(" ")


LAYOUTS = {
    "as usual": "01 01 08 0a {} {}",
    "in front": "08 0a {} {} 01 01",
    "at an odd place": "01 08 0a {} {} 00",
    "behind a SACK": "05 0a 00 00 00 01 00 00 00 02 08 0a {} {} 00 00",
    "the last of two": "08 0a 00 00 00 07 00 00 00 07 08 0a {} {}",
}


def options(layout: str, echo: int) -> bytes:
    """Raw options with timestamps in them."""
    return bytes.fromhex(layout.format(f"{CLIENT_CLOCK:08x}", f"{echo:08x}"))


@pytest.mark.usefixtures("listener")
@pytest.mark.parametrize("echo", [1, 0xFF00_0001, 0x1234_5678, 0xFFFF_FFFF, 0])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_what_cannot_be_one_echoes_nothing_any_more(agent: Agent, layout: str, echo: int) -> None:
    """And its checksum is right, wherever the client has put the option."""
    segment = ALICE.data(HEAD, options=options(layout, echo))
    expected = delivered(replace(segment, options=options(layout, 0)))
    for age in (0, LONGEST_TRIP_MS + 1, AGE_LONG):
        assert given_to_the_listener(agent, segment, age) == expected.hex(" ")


@pytest.mark.usefixtures("listener")
def test_without_timestamps_there_is_nothing_to_take_away(agent: Agent) -> None:
    segment = ALICE.data(HEAD, options=b"")
    assert given_to_the_listener(agent, segment, 0) == delivered(segment).hex(" ")


@pytest.mark.usefixtures("listener")
def test_a_wrong_checksum_stays_wrong(agent: Agent) -> None:
    """Or an echo that was damaged on the way would pass."""
    frame = bytearray(carried(ALICE.data(HEAD), opens=True, age=0))
    frame[-1] ^= 1
    _, output = agent.run("rauta_agent_ingress", bytes(frame), "AGENT_DROP_REFUSED")
    expected = bytearray(delivered(ALICE.data(HEAD, options=frames.timestamps(CLIENT_CLOCK + 1, 0))))
    expected[-1] ^= 1
    assert output == bytes(expected)


@pytest.mark.usefixtures("listener", "device_sums")
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_sum_that_a_device_has_made_stays_right(agent: Agent, layout: str) -> None:
    """CHECKSUM_COMPLETE: the kernel compares it with the packet when the test run is over."""
    segment = ALICE.data(HEAD, options=options(layout, 0x1234_5678))
    program = agent.object.programs["rauta_agent_ingress"]
    output = program.test_run(carried(segment, opens=True, age=0), checksum_complete=True).data
    assert output == delivered(replace(segment, options=options(layout, 0)))


def test_the_age_waits_with_the_request_for_an_old_sockets_end(agent: Agent) -> None:
    """A packet that goes round comes back without its outer header."""
    segment = ALICE.data(HEAD)
    agent.passes("ingress", carried(segment, opens=True, age=77), "AGENT_NO_LISTENER", delivered(segment))
    mapping = agent.mapping(Tuple(CLIENT, ALICE.port, LOCAL, LOCAL_PORT))
    assert mapping is not None
    assert mapping["age"] == 77
