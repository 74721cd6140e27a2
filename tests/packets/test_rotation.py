"""Cookie keys that change in loaded programs, packet by packet.

Router and agent are those of rauta.router and rauta.agent, with the keys of a schedule (rauta.secrets); what each
cookie must be is the oracle's word.
"""

from __future__ import annotations

import multiprocessing
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest

from packets import bench, frames, oracle
from packets.bench import XDP_TX
from packets.frames import CLIENT, LOCAL, LOCAL_PORT, VIP, Connection, Segment, carried, delivered, request
from packets.oracle import MAPPING_CLEARING, MAPPING_OPEN, MAPPING_OPENING, Tuple
from packets.sockets import established, listening, waiting
from rauta import tables
from rauta.agent import Agent
from rauta.config import Config
from rauta.errors import RautaError
from rauta.ids import Ids
from rauta.keys import CookieKeys, Keys
from rauta.keyslots import KeySlots
from rauta.router import Router
from rauta.secrets import Rotation, Schedule, create, load_schedule

PERIOD = 10.0
START = 1_000_000.0
"""when an even period begins"""
HEAD = request("/")
WEB_1, API_1 = "198.18.0.11", "198.18.0.21"


def configuration() -> Config:
    clusters = {"web": WEB_1, "api": API_1}
    return Config.model_validate(
        {
            "version": 1,
            "encapsulation": {"source": "198.19.0.0/24"},
            "flows": 8192,
            "vips": [
                {
                    "name": "shop",
                    "address": VIP,
                    "port": 80,
                    "routes": [{"prefix": "/", "cluster": "web"}, {"prefix": "/api", "cluster": "api"}],
                }
            ],
            "clusters": [
                {"name": name, "backends": [{"name": f"{name}-1", "address": address, "port": 8080}]}
                for name, address in clusters.items()
            ],
        }
    )


@pytest.fixture(scope="module")
def schedule(tmp_path_factory: pytest.TempPathFactory) -> Schedule:
    file = tmp_path_factory.mktemp("secrets") / "secrets.yaml"
    create(file)
    return load_schedule(file, PERIOD)


@contextmanager
def loaded(keys: Keys) -> Iterator[Router]:
    config = configuration()
    with Router.load(config, keys) as one:
        indices = Ids().following(config).backend_indices(config)
        one.object.maps["backends"].update_batch(
            (indices[name], tables.backend_entry(backend, bytes(6))) for name, backend in config.backends().items()
        )
        yield one


@pytest.fixture(scope="module")
def loaded_router(schedule: Schedule) -> Iterator[Router]:
    with loaded(schedule.keys_at(START)) as one:
        yield one


@pytest.fixture
def router(loaded_router: Router, schedule: Schedule) -> Router:
    loaded_router.object.maps["flows"].clear()
    loaded_router.set_keys(schedule.keys_at(START))
    return loaded_router


@dataclass
class Clock:
    """Stands still unless it is set."""

    now: float = START

    def __call__(self) -> float:
        return self.now


def ran(router: Router, frame: Segment) -> tuple[str, bytes]:
    """The verdict on a frame, and what became of it."""
    before = router.counters()
    done = router.object.programs["rauta_ingress"].test_run(bytes(frame))
    now = router.counters()
    (verdict,) = (name for name, number in now.items() if number > before[name])
    return verdict, done.data


def cookie_in(syn_ack: bytes) -> int:
    return int.from_bytes(syn_ack[frames.ETHERNET_HEADER + 24 :][:4], "big")


def greeted(router: Router, connection: Connection) -> Connection:
    """The connection once the router has answered its SYN: with the epoch and the cookie that it chose."""
    verdict, answer = ran(router, connection.syn())
    assert verdict == "TX_SYN_ACK"
    cookie = cookie_in(answer)
    keys = router.keys.cookies
    made = replace(connection, epoch=cookie & 1, keys=keys.by_epoch)
    assert made.epoch == keys.epoch
    assert made.cookie == cookie
    return made


# ---- by the schedule ------------------------------------------------------------------------------------


def test_cookies_of_a_handshake_are_good_for_half_a_period_whenever_that_was(
    router: Router, schedule: Schedule
) -> None:
    """Handshakes at every quarter of four periods; each first request comes half a period later, less a moment."""
    clock = Clock()
    rotation = Rotation(schedule, [router], clock)
    made = [START + PERIOD / 4 * number - early for number in range(1, 16) for early in (0.001, 0.0)]
    said = [moment + PERIOD / 2 - 0.0001 for moment in made]
    connections: dict[int, Connection] = {}
    for moment, number in sorted((moment, number % len(made)) for number, moment in enumerate(made + said)):
        clock.now = moment
        rotation.step()
        if number in connections:
            assert ran(router, connections[number].data(HEAD))[0] == "ROUTED_FIRST"
        else:
            connections[number] = greeted(router, Connection(port=20000 + number))
    assert router.keys == schedule.keys_at(said[-1])


def test_an_idle_clients_probe_is_answered_after_a_change(router: Router, schedule: Schedule) -> None:
    router.set_keys(schedule.keys_at(START + PERIOD - 1))
    idle = greeted(router, Connection())
    probe = idle.data(b"", -1)
    for later in (START + PERIOD, START + 1.5 * PERIOD - 1):
        router.set_keys(schedule.keys_at(later))
        assert ran(router, probe)[0] == "TX_KEEPALIVE"
        assert ran(router, idle.ack(0))[0] == "DROP_HANDSHAKE_ACK"
    router.set_keys(schedule.keys_at(START + 1.5 * PERIOD))
    assert ran(router, probe)[0] == "DROP_NO_FLOW"
    assert ran(router, idle.data(HEAD))[0] == "TX_RESET_COOKIE"


def test_an_open_connection_outlives_its_cookies_key(router: Router, schedule: Schedule) -> None:
    """Whatever comes of it, the first request again included, goes where it went; so does a move."""
    one = greeted(router, Connection())
    assert ran(router, one.data(HEAD))[0] == "ROUTED_FIRST"
    router.set_keys(schedule.keys_at(START + 20 * PERIOD))
    assert ran(router, one.data(HEAD))[0] == "FORWARDED_AGAIN"
    assert ran(router, one.ack(len(HEAD), acked=100))[0] == "FORWARDED"
    assert ran(router, one.data(HEAD, len(HEAD), acked=100))[0] == "ROUTED_NEXT"
    assert ran(router, one.data(request("/api"), 2 * len(HEAD), acked=200))[0] == "ROUTED_MOVED"
    assert ran(router, one.fin(2 * len(HEAD) + len(request("/api")), acked=200))[0] == "FORWARDED_MOVING"


@pytest.mark.parametrize("ended", [False, True], ids=["open", "closing"])
def test_a_stale_first_request_is_reset_also_where_an_older_connection_has_an_entry(
    router: Router, schedule: Schedule, ended: bool
) -> None:
    """The client has used its port again, and said nothing until the key was gone. The older one goes on as it was."""
    old = greeted(router, Connection())
    assert ran(router, old.data(HEAD))[0] == "ROUTED_FIRST"
    if ended:
        assert ran(router, old.fin(len(HEAD)))[0] == "FORWARDED_CLOSE"
    newer = greeted(router, Connection(isn=old.isn + 5_000_000))
    router.set_keys(schedule.keys_at(START + 2 * PERIOD))
    verdict, answer = ran(router, newer.data(HEAD))
    assert (verdict, answer) == ("TX_RESET_COOKIE", frames.reset_of(newer.data(HEAD)))
    assert ran(router, newer.data(b"no request"))[0] == "DROP_OUT_OF_ORDER"
    assert ran(router, old.data(HEAD))[0] == "FORWARDED_AGAIN"


@pytest.mark.parametrize("moment", [0.0, PERIOD / 2, PERIOD, 1.5 * PERIOD])
def test_orders_are_sealed_with_the_epochs_key(router: Router, schedule: Schedule, moment: float) -> None:
    """A connection that opened before the change moves after it."""
    one = greeted(router, Connection())
    assert ran(router, one.data(HEAD))[0] == "ROUTED_FIRST"
    keys = schedule.keys_at(START + moment).cookies
    router.set_keys(schedule.keys_at(START + moment))
    asks = one.data(request("/api"), len(HEAD), acked=100)
    verdict, order = ran(router, asks)
    assert verdict == "ROUTED_MOVED"
    outer = order[frames.ETHERNET_HEADER :]
    said = oracle.Shim(
        kind=oracle.SHIM_MOVE,
        four=one.tuple,
        seq=asks.seq,
        ack=asks.ack,
        source=socket.inet_ntoa(outer[12:16]),
        destination=WEB_1,
        first=oracle.be32(API_1),
        second=one.cookie,
        time=int.from_bytes(order[frames.SHIM + 4 : frames.SHIM + 6], "little"),
        flags=keys.epoch,
    )
    assert order[frames.SHIM :][:24].hex(" ") == said.sealed(keys.ask_keys).hex(" ")


def test_keys_of_another_installation_are_refused(router: Router, schedule: Schedule, tmp_path: Path) -> None:
    create(tmp_path / "other.yaml")
    before = router.keys
    with pytest.raises(RautaError, match=r"another installation's.*\nKeep `hash`"):
        router.set_keys(load_schedule(tmp_path / "other.yaml", PERIOD).keys_at(START))
    assert router.keys == before
    with Agent.load(configuration(), before, backend="web-1") as agent, pytest.raises(RautaError, match="the agent"):
        agent.set_keys(replace(before, agent_secret=bytes(16)))


def test_the_route_key_in_use_stays(router: Router, schedule: Schedule) -> None:
    """It may have been drawn again, and then is not the schedule's."""
    router.set_keys(schedule.keys_at(START + PERIOD).with_fresh_route_key())
    assert router.keys == schedule.keys_at(START + PERIOD)
    assert ran(router, greeted(router, Connection()).data(request("/api")))[0] == "ROUTED_FIRST"


def test_an_agents_maps_follow(schedule: Schedule) -> None:
    with Agent.load(configuration(), schedule.keys_at(START), backend="web-1") as agent:
        for moment in (PERIOD / 2, PERIOD, 5.5 * PERIOD, 8 * PERIOD, 0.0):
            keys = schedule.keys_at(START + moment)
            agent.set_keys(keys)
            assert agent.keys == keys
            assert agent.object.maps["cookie_keys"].lookup(0) == tables.cookie_keys_entry(keys.cookies) | {
                "reserved": 0
            }
            assert agent.object.maps["ask_keys"].lookup(0) == tables.ask_keys_entry(keys.cookies)


# ---- while packets come ---------------------------------------------------------------------------------


FORK = multiprocessing.get_context("fork")


@contextmanager
def rotating(router: Router, keys: Sequence[Keys]) -> Iterator[None]:
    """Meanwhile another process, on another CPU, gives the router one set of keys after the other, thousands of times.

    At the end the router has again those that it has now.
    """
    begun, done = FORK.Event(), FORK.Event()
    now = router.keys

    def rotate() -> None:
        while not done.is_set():
            for one in keys:
                router.set_keys(one)
            begun.set()
        router.set_keys(now)

    process = FORK.Process(target=rotate)
    process.start()
    try:
        assert begun.wait(10)
        yield
    finally:
        done.set()
        process.join()
    assert process.exitcode == 0


def made_with(connection: Connection, keys: Sequence[Keys]) -> set[int]:
    """The cookies that a connection may get."""
    used = [one.cookies for one in keys]
    return {replace(connection, epoch=one.epoch, keys=one.by_epoch).cookie for one in used}


@pytest.mark.parametrize("far", [False, True], ids=["by the schedule", "far jumps"])
def test_no_cookie_is_made_with_half_a_key(router: Router, schedule: Schedule, far: bool) -> None:
    """Four keys come and go as they do by the schedule; then sets that have none in common, as after a long sleep."""
    periods = (100, 203, 306, 512) if far else (0, 0.5, 1, 1.5)
    keys = [schedule.keys_at(START + PERIOD * number) for number in periods]
    epochs = [one.cookies.epoch for one in keys]
    detours = [
        replace(one, cookies=replace(one.cookies, epoch=1 - epoch))
        for one, epoch, before in zip(keys, epochs, [epochs[-1], *epochs], strict=False)
        if far and epoch == before
    ]
    syn, program = bytes(Connection().syn()), router.object.programs["rauta_ingress"]
    with rotating(router, keys):
        seen: set[int] = set()
        deadline = time.monotonic() + 20
        while len(seen) < 2 and time.monotonic() < deadline:  # on a busy machine the other one may not get its turn
            seen.update(cookie_in(program.test_run(syn).data) for _ in range(20_000))
    assert seen <= made_with(Connection(), [router.keys, *keys, *detours])
    assert len(seen) > 1


def test_no_write_changes_the_key_in_use(router: Router, schedule: Schedule, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes into the maps, in its order; by the schedule it is one write for each change."""
    write, written = KeySlots._write, [router.keys.cookies]

    def noted(slots: KeySlots, cookies: CookieKeys) -> None:
        written.append(cookies)
        write(slots, cookies)

    monkeypatch.setattr(KeySlots, "_write", noted)
    for half in (1, 2, 3, 4):
        router.set_keys(schedule.keys_at(START + PERIOD / 2 * half))
        assert len(written) == 1 + half
    for half in (4, 4, 9, 16, 105, 3, 0):
        router.set_keys(schedule.keys_at(START + PERIOD / 2 * half))
        assert written[-1] == schedule.keys_at(START + PERIOD / 2 * half).cookies
    for before, after in pairwise(written):
        if before.epoch == after.epoch:
            assert before.by_epoch[before.epoch] == after.by_epoch[before.epoch]
            assert before != after
        else:
            assert before.by_epoch == after.by_epoch


def test_cookies_of_the_key_in_use_are_taken_while_others_change(router: Router, schedule: Schedule) -> None:
    """Period n's, from one half before it to one half after."""
    before, after = schedule.keys_at(START), schedule.keys_at(START + PERIOD / 2)
    used = replace(Connection(), epoch=before.cookies.epoch, keys=before.cookies.by_epoch)
    end, program = bytes(used.fin()), router.object.programs["rauta_ingress"]  # answered from the cookie alone
    with rotating(router, [before, after]):
        answers = {program.test_run(end).retval for _ in range(20_000)}
    assert answers == {XDP_TX}


# ---- the agent: a first request again, after its key's end ----------------------------------------------

ALICE = Connection()
LOCAL_TUPLE = Tuple(CLIENT, ALICE.port, LOCAL, LOCAL_PORT)
FIRST = ALICE.data(HEAD)
AGAIN = carried(FIRST, opens=True)


@pytest.fixture
def rotated(agent: bench.Agent) -> Iterator[bench.Agent]:
    """An agent that does not know the keys of these cookies any more."""
    fresh = CookieKeys.generate()
    entry = agent.object.maps["cookie_keys"].lookup(0)
    agent.object.maps["cookie_keys"].update(0, tables.cookie_keys_entry(fresh))
    yield agent
    agent.object.maps["cookie_keys"].update(0, entry)


@pytest.mark.usefixtures("server_address")
class TestExpired:
    """Its cookie is worth nothing, but for the connection that it has opened."""

    def test_it_opens_nothing(self, rotated: bench.Agent) -> None:
        with listening():
            rotated.drops("ingress", AGAIN, "AGENT_DROP_COOKIE")
        rotated.drops("ingress", AGAIN, "AGENT_DROP_COOKIE")
        assert rotated.mapping(LOCAL_TUPLE) is None

    def test_the_connections_own_socket_gets_it(self, rotated: bench.Agent) -> None:
        rotated.put_mapping(LOCAL_TUPLE, ALICE)
        with established(ALICE):
            rotated.passes("ingress", AGAIN, "AGENT_OPENED_ALREADY", delivered(FIRST))

    def test_also_if_the_map_has_forgotten_it(self, rotated: bench.Agent) -> None:
        with established(ALICE):
            rotated.passes("ingress", AGAIN, "AGENT_OPENED_ALREADY", delivered(FIRST))

    @pytest.mark.parametrize(
        "numbers", [{"isn": ALICE.isn + 1}, {"cookie": ALICE.cookie ^ 1 << 8}], ids=["isn", "cookie"]
    )
    def test_another_connections_does_not(self, rotated: bench.Agent, numbers: dict[str, int]) -> None:
        rotated.put_mapping(LOCAL_TUPLE, ALICE, **numbers)
        with established(ALICE, expected=ALICE.start + 77):
            rotated.drops("ingress", AGAIN, "AGENT_DROP_COOKIE")

    def test_nor_a_direct_ones(self, rotated: bench.Agent) -> None:
        with established(ALICE, expected=ALICE.start + 77):
            rotated.drops("ingress", AGAIN, "AGENT_DROP_COOKIE")

    @pytest.mark.parametrize("state", [MAPPING_OPENING, MAPPING_CLEARING])
    def test_one_that_was_about_to_open_may(self, rotated: bench.Agent, state: int) -> None:
        """A full accept queue drops without a word. (In a test run the kernel makes no socket, and refuses.)"""
        rotated.put_mapping(LOCAL_TUPLE, ALICE, state)
        with listening():
            rotated.drops("ingress", AGAIN, "AGENT_DROP_REFUSED")

    @pytest.mark.parametrize("state", [MAPPING_OPEN, oracle.MAPPING_MOVED])
    def test_one_that_is_over_stays_so(self, rotated: bench.Agent, state: int) -> None:
        """Although nothing is remembered of it but its mapping."""
        rotated.put_mapping(LOCAL_TUPLE, ALICE, state)
        with listening():
            rotated.drops("ingress", AGAIN, "AGENT_DROP_COOKIE")
        with waiting(ALICE):
            rotated.drops("ingress", AGAIN, "AGENT_DROP_COOKIE")
