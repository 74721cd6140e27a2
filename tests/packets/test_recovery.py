"""rauta.asking.recovery with a real router's programs: what agents are sent, which answers count, and what clients get.

The agents are sockets here that say what a test wants; real ones are met in tests/e2e/test_recovery.py. Everything
happens on the loopback of a network namespace of its own.
"""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP

from packets import oracle
from packets.bench import throwaway_namespace
from packets.frames import CLIENT, VIP, Connection, Segment, request
from packets.oracle import ASK_MINE, ASK_NOT_MINE, Ask, Tuple
from rauta import tables
from rauta.asking import asks, questions
from rauta.asking.recovery import Recovery
from rauta.config import Config
from rauta.errors import RautaError
from rauta.ids import Ids
from rauta.keys import CookieKeys, Keys
from rauta.router import Router

OWN, WEB_1, WEB_2, API_1 = "198.18.0.2", "198.18.0.11", "198.18.0.12", "198.18.0.21"
AGENTS = (WEB_1, WEB_2, API_1)
PORT = 21057
SECONDS = 5.0
KEYS = Keys.from_bytes(bytes(range(64)))
ASK_KEYS = KEYS.cookies.ask_keys
HEAD = request("/")
ALICE = Connection(keys=KEYS.cookies.by_epoch)
LOST = ALICE.ack(len(HEAD), acked=5000)


def configuration(**changes: Any) -> Config:
    web = [{"name": f"web-{n}", "address": address, "port": 8080} for n, address in ((1, WEB_1), (2, WEB_2))]
    fields: dict[str, Any] = {
        "version": 1,
        "encapsulation": {"source": "198.19.0.0/24"},
        "flows": 1024,
        "recovery": {"port": PORT},
        "vips": [{"name": "shop", "address": VIP, "port": 80, "routes": [{"prefix": "/", "cluster": "web"}]}],
        "clusters": [{"name": "web", "backends": web}],
    }
    fields["vips"][0]["routes"].append({"prefix": "/api", "cluster": "api"})
    fields["clusters"].append({"name": "api", "backends": [{"name": "api-1", "address": API_1, "port": 8080}]})
    return Config.model_validate(fields | changes)


class World:
    """A router that nobody can reach but test runs, the agents' sockets, and the recovery between them."""

    def __init__(self, router: Router, recovery: Recovery, agents: dict[str, socket.socket]) -> None:
        self.router = router
        self.recovery = recovery
        self.agents = agents

    def lose(self, segment: Segment = LOST) -> str:
        """Has the router drop a segment; the verdict."""
        before = self.router.counters()
        self.router.object.programs["rauta_ingress"].test_run(bytes(segment))
        now = self.router.counters()
        (verdict,) = (name for name, number in now.items() if number > before[name])
        return verdict

    def hear(self, agent: str) -> tuple[Ask, tuple[str, int]]:
        """What an agent is asked, and by whom; it must be sealed, and of the agreed size."""
        data, asker = self.agents[agent].recvfrom(2048)
        ask = parsed(data, Tuple(*asker, agent, PORT))
        assert ask.sealed(ASK_KEYS) == data
        return ask, asker

    def say(self, agent: str, ask: Ask, kind: int, **fields: Any) -> None:
        """An agent answers the router that has asked; `fields` are to differ."""
        answer = replace(ask, kind=kind, **fields)
        self.agents[agent].sendto(answer.sealed(ASK_KEYS), (ask.between.client, ask.between.client_port))

    def deny(self, *agents: str) -> None:
        for agent in agents:
            self.say(agent, self.hear(agent)[0], ASK_NOT_MINE)

    def own(self, agent: str, **fields: Any) -> None:
        numbers = {"isn": ALICE.isn, "cookie": ALICE.cookie, "next": LOST.seq}
        self.say(agent, self.hear(agent)[0], ASK_MINE, **numbers | fields)

    def counts(self, **expected: int) -> None:
        """Waits until the counters are these, and all others 0."""
        eventually(lambda: {name: n for name, n in self.recovery.counters().items() if n} == expected, str(expected))

    def flows(self) -> list[dict[str, Any]]:
        sets = [one for _, one in self.router.object.maps["flows"].items_batch()]
        return [flow for one in sets for tag, flow in zip(one["tag"], one["flow"], strict=True) if tag]

    def hears_nothing(self, agent: str) -> bool:
        self.agents[agent].setblocking(False)
        try:
            return not self.agents[agent].recv(1)
        except BlockingIOError:
            return True
        finally:
            self.agents[agent].settimeout(SECONDS)


def parsed(data: bytes, between: Tuple) -> Ask:
    """A question, by the layout of contract.h."""
    numbers = [int.from_bytes(data[at : at + 4], "little") for at in range(28, 48, 4)]
    ports = int.from_bytes(data[24:26], "big"), int.from_bytes(data[26:28], "big")
    four = Tuple(socket.inet_ntoa(data[16:20]), ports[0], socket.inet_ntoa(data[20:24]), ports[1])
    nonce, names = int.from_bytes(data[8:16], "little"), ("seq", "ack", "isn", "cookie", "next")
    fields = dict(zip(names, numbers, strict=True))
    return Ask(
        four, between=between, nonce=nonce, version=data[0], kind=data[1], epoch=data[2], reserved=data[3:8], **fields
    )


def eventually(reached: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not reached():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


@pytest.fixture(scope="module", autouse=True)
def addresses() -> Iterator[None]:
    with throwaway_namespace():
        for address in (OWN, CLIENT, *AGENTS):
            subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        for address in AGENTS:  # or the kernel would ask from that very address
            subprocess.run(
                ["ip", "route", "replace", "local", address, "dev", "lo", "table", "local", "src", OWN], check=True
            )
        yield


@contextmanager
def loaded(config: Config, keys: Keys = KEYS) -> Iterator[Router]:
    """A router that nobody can reach but test runs, and that knows its backends' addresses."""
    with Router.load(config, keys) as router:
        for name, index in Ids().following(config).backend_indices(config).items():
            backend = config.backends()[name]
            router.object.maps["backends"].update(index, tables.backend_entry(backend, bytes(6)))
        yield router


@contextmanager
def recovering(router: Router) -> Iterator[World]:
    with ExitStack() as stack:
        agents = {agent: stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for agent in AGENTS}
        for agent, sock in agents.items():
            sock.bind((agent, PORT))
            sock.settimeout(SECONDS)
        yield World(router, stack.enter_context(Recovery(router)), agents)


@pytest.fixture(scope="module")
def router() -> Iterator[Router]:
    with loaded(configuration()) as one:
        yield one


@pytest.fixture
def asked(router: Router) -> Iterator[World]:
    router.object.maps["flows"].clear()
    router.object.maps["lost_bucket"].update(0, 0)
    with recovering(router) as one:
        yield one


@pytest.fixture
def wire() -> Iterator[socket.socket]:
    """What the client receives of TCP."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as sock:
        sock.bind((CLIENT, 0))
        sock.settimeout(SECONDS)
        yield sock


# ---- questions ------------------------------------------------------------------------------------------


def test_everybody_who_serves_the_vip_is_asked(asked: World) -> None:
    assert asked.lose() == "DROP_ASKED"
    heard = {agent: asked.hear(agent) for agent in AGENTS}
    assert len({ask.nonce for ask, _ in heard.values()}) == 1
    assert {asker[0] for _, asker in heard.values()} == {OWN}
    for ask, _ in heard.values():
        assert (ask.version, ask.kind, ask.epoch, ask.reserved) == (1, oracle.ASK_WHOSE, 0, bytes(5))
        assert (ask.four, ask.seq, ask.ack) == (ALICE.tuple, LOST.seq, LOST.ack)
        assert (ask.isn, ask.cookie, ask.next) == (0, 0, 0)


def test_what_is_lost_again_meanwhile_is_not_asked_again(asked: World) -> None:
    for _ in range(5):
        assert asked.lose() == "DROP_ASKED"
    asked.counts(segments_lost=5, flows_asked=1)
    for agent in AGENTS:
        asked.hear(agent)
        assert asked.hears_nothing(agent)


def test_the_newer_epochs_key_seals() -> None:
    raw = bytes(range(32))
    keys = replace(KEYS, cookies=CookieKeys.from_bytes(raw, epoch=1))
    with loaded(configuration(), keys) as newer, recovering(newer) as one:
        one.lose()
        assert one.hear(WEB_1)[0].epoch == 1


def test_keys_that_change_are_followed() -> None:
    """Questions are of the epoch in use, and answers to those of the epoch before are taken: they lie half a period
    apart at least."""
    later = KEYS.cookies.with_key(1, (5, 6))
    with loaded(configuration(), KEYS) as router, recovering(router) as one:
        one.lose()
        asked, _ = one.hear(WEB_1)
        router.set_keys(replace(KEYS, cookies=later))
        router.set_keys(replace(KEYS, cookies=replace(later, epoch=1)))
        one.say(WEB_1, asked, ASK_MINE, isn=ALICE.isn, cookie=ALICE.cookie, next=LOST.seq)
        one.counts(segments_lost=1, flows_asked=1, flows_recovered=1)
        one.lose(Connection(port=ALICE.port + 1).ack(len(HEAD), acked=5000))
        data, asker = one.agents[WEB_1].recvfrom(2048)
        again = parsed(data, Tuple(*asker, WEB_1, PORT))
        assert again.epoch == 1
        assert again.sealed(later.ask_keys) == data


def test_without_the_section_nothing_is_asked() -> None:
    with loaded(configuration(recovery=None)) as silent:
        silent.object.programs["rauta_ingress"].test_run(bytes(LOST))
        assert {name for name, number in silent.counters().items() if number} == {"DROP_NO_FLOW"}
        assert not silent.object.programs["rauta_take_answer"].loaded
        with pytest.raises(RautaError, match="the configuration does not ask for it\nAdd a section: `recovery: "):
            Recovery(silent)


# ---- answers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("owner", "index"), [(WEB_1, 1), (WEB_2, 2), (API_1, 0)])
def test_the_flow_goes_to_whom_it_belongs(asked: World, owner: str, index: int) -> None:
    asked.lose()
    asked.own(owner)
    asked.counts(segments_lost=1, flows_asked=1, flows_recovered=1)
    (flow,) = asked.flows()
    assert (flow["backend"], flow["state"], flow["next_request_seq"]) == (index, oracle.FLOW_RECOVERED, LOST.seq)
    assert (flow["isn"], flow["cookie"], flow["tuple"]) == (ALICE.isn, ALICE.cookie, ALICE.tuple.key)
    assert asked.lose() == "FORWARDED"


def test_others_may_deny_it_before_and_after(asked: World) -> None:
    asked.lose()
    asked.deny(API_1)
    asked.own(WEB_2)
    asked.deny(WEB_1)
    asked.counts(segments_lost=1, flows_asked=1, flows_recovered=1)


def test_a_flow_that_has_an_entry_by_then_keeps_it(asked: World) -> None:
    """The client has opened a new connection while the question was on its way."""
    asked.lose()
    newer = ALICE.reopened(ALICE.isn + 10_000_000)
    assert asked.lose(newer.data(HEAD)) == "ROUTED_FIRST"
    asked.own(WEB_1)
    asked.counts(segments_lost=1, flows_asked=1, flows_known=1)
    (flow,) = asked.flows()
    assert (flow["isn"], flow["state"]) == (newer.isn, oracle.FLOW_OPEN)


def other_seal(_asked: World, ask: Ask, owner: socket.socket) -> bytes:
    return replace(ask, kind=ASK_MINE).sealed(KEYS.cookies.by_epoch)


def the_question(_asked: World, ask: Ask, owner: socket.socket) -> bytes:
    return ask.sealed(ASK_KEYS)


def another_agents(_asked: World, ask: Ask, owner: socket.socket) -> bytes:
    """What web-2 has said, from web-1."""
    return replace(ask, kind=ASK_MINE, between=replace(ask.between, server=WEB_2)).sealed(ASK_KEYS)


@pytest.mark.parametrize("forge", [other_seal, the_question, another_agents])
def test_an_answer_with_a_wrong_seal_does_not_count(
    asked: World, forge: Callable[[World, Ask, socket.socket], bytes]
) -> None:
    asked.lose()
    ask, asker = asked.hear(WEB_1)
    asked.agents[WEB_1].sendto(forge(asked, ask, asked.agents[WEB_1]), asker)
    asked.counts(segments_lost=1, flows_asked=1, answers_refused=1)
    assert asked.flows() == []
    asked.say(WEB_1, ask, ASK_MINE, isn=ALICE.isn, cookie=ALICE.cookie, next=LOST.seq)
    asked.counts(segments_lost=1, flows_asked=1, answers_refused=1, flows_recovered=1)


@pytest.mark.parametrize("source", [(WEB_2, 0), (WEB_1, 0), (CLIENT, PORT), (OWN, 0)], ids=str)
def test_only_who_was_asked_may_answer(asked: World, source: tuple[str, int]) -> None:
    """From the address and port at which he was."""
    asked.lose()
    ask, asker = asked.hear(WEB_1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind(source)
        stranger.sendto(replace(ask, kind=ASK_MINE).sealed(ASK_KEYS), asker)
    asked.counts(segments_lost=1, flows_asked=1, answers_refused=1)
    assert asked.flows() == []


def test_what_answers_no_open_question_is_ignored(asked: World) -> None:
    asked.lose()
    ask, asker = asked.hear(WEB_1)
    for answer in (
        replace(ask, kind=ASK_MINE, nonce=ask.nonce ^ 1).sealed(ASK_KEYS),
        replace(ask, kind=ASK_MINE, four=replace(ask.four, client_port=1)).sealed(ASK_KEYS),
        replace(ask, kind=ASK_MINE).sealed(ASK_KEYS)[:-1],
        replace(ask, kind=ASK_MINE).sealed(ASK_KEYS) + b"\0",
        b"",
        bytes(1400),
    ):
        asked.agents[WEB_1].sendto(answer, asker)
    asked.say(WEB_1, ask, ASK_MINE, isn=ALICE.isn, cookie=ALICE.cookie, next=LOST.seq)
    asked.counts(segments_lost=1, flows_asked=1, flows_recovered=1)


def test_an_answer_counts_once(asked: World) -> None:
    """A replay installs nothing when the entry is gone again."""
    asked.lose()
    ask, _ = asked.hear(WEB_1)
    for _ in range(3):
        asked.say(WEB_1, ask, ASK_MINE, isn=ALICE.isn, cookie=ALICE.cookie, next=LOST.seq)
    asked.counts(segments_lost=1, flows_asked=1, flows_recovered=1)
    asked.router.object.maps["flows"].clear()
    asked.say(WEB_1, ask, ASK_MINE, isn=ALICE.isn, cookie=ALICE.cookie, next=LOST.seq)
    asked.lose(Connection(port=1, keys=ALICE.keys).ack(99))
    asked.counts(segments_lost=2, flows_asked=2, flows_recovered=1)
    assert asked.flows() == []


# ---- nobody has it, or nobody says so -------------------------------------------------------------------


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for seconds."""
    monkeypatch.setattr(questions, "RESET_SECONDS", 0.0)
    monkeypatch.setattr(questions, "ANSWER_SECONDS", 0.2)


@pytest.mark.usefixtures("hasty")
def test_a_client_whom_nobody_knows_is_reset(asked: World, wire: socket.socket) -> None:
    for times in (1, 2):
        assert asked.lose() == "DROP_ASKED"
        asked.deny(*AGENTS)
        resets = {"clients_reset": 1} if times == 2 else {}
        asked.counts(segments_lost=times, flows_asked=times, flows_denied=times, **resets)
    packet = wire.recv(2048)
    four = ALICE.tuple
    ip = IP(src=four.server, dst=four.client, flags="DF", ttl=64, id=IP(packet).id)
    tcp = TCP(sport=four.server_port, dport=four.client_port, seq=LOST.ack, ack=0, flags="R", window=0)
    assert packet.hex(" ") == bytes(ip / tcp).hex(" ")
    wire.setblocking(False)
    with pytest.raises(BlockingIOError):
        wire.recv(2048)


@pytest.mark.usefixtures("hasty")
def test_where_one_agent_is_silent_nobody_is(asked: World) -> None:
    for times in (1, 2, 3):
        asked.lose()
        asked.deny(WEB_1, API_1)
        asked.counts(segments_lost=times, flows_asked=times, flows_unanswered=times)
    for _ in range(3):
        asked.hear(WEB_2)


@pytest.mark.usefixtures("hasty")
def test_nor_where_a_fallback_may_have_it(router: Router) -> None:
    """It is not asked; what all backends deny may be its own."""
    vips = router.object.maps["vips"]
    before = vips.lookup(tables.vip_key(IPv4Address(VIP), 80))
    vips.update(tables.vip_key(IPv4Address(VIP), 80), before | {"fallback": 4})
    try:
        with recovering(router) as one:
            for times in (1, 2, 3):
                one.lose()
                one.deny(*AGENTS)
                one.counts(segments_lost=times, flows_asked=times, flows_denied=times)
    finally:
        vips.update(tables.vip_key(IPv4Address(VIP), 80), before)


@pytest.mark.usefixtures("hasty")
def test_nor_where_a_denial_is_forged(asked: World) -> None:
    for times in (1, 2, 3):
        asked.lose()
        asked.deny(WEB_1, API_1)
        ask, asker = asked.hear(WEB_2)
        asked.agents[WEB_2].sendto(replace(ask, kind=ASK_NOT_MINE).sealed(KEYS.cookies.by_epoch), asker)
        asked.counts(segments_lost=times, flows_asked=times, flows_unanswered=times, answers_refused=times)


def test_an_agent_without_a_route_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "ANSWER_SECONDS", 0.2)
    fields = configuration().model_dump(mode="json")
    fields["clusters"][0]["backends"][1]["address"] = "198.18.7.7"
    with loaded(Config.model_validate(fields)) as other, recovering(other) as one:
        one.lose()
        one.deny(WEB_1, API_1)
        one.counts(segments_lost=1, flows_asked=1, flows_unanswered=1)
        one.lose()
        one.own(WEB_1)
        one.counts(segments_lost=2, flows_asked=2, flows_unanswered=1, flows_recovered=1)


# ---- how much ------------------------------------------------------------------------------------------


def test_a_flood_costs_no_more_than_was_stated() -> None:
    """Ten thousand tuples at once, at a rate of 100: a burst, and what becomes due meanwhile."""
    with loaded(configuration(recovery={"rate": 100})) as slow, recovering(slow) as one:
        program, frame, started = slow.object.programs["rauta_ingress"], bytearray(bytes(LOST)), time.monotonic()
        for port in range(1024, 11_024):
            frame[34:36] = port.to_bytes(2, "big")  # its checksum is wrong now, which routers do not look at
            program.test_run(bytes(frame))
        allowed = asks.LOST_BURST + 100 * (time.monotonic() - started) + 1
        grown = {name: number for name, number in slow.counters().items() if number}
        assert grown.keys() == {"DROP_ASKED", "DROP_NO_FLOW"}
        assert sum(grown.values()) == 10_000
        assert asks.LOST_BURST <= grown["DROP_ASKED"] <= allowed
        eventually(lambda: one.recovery.counters()["segments_lost"] == grown["DROP_ASKED"], "all of them to be read")
        assert one.recovery.counters()["flows_asked"] == grown["DROP_ASKED"]
        assert one.flows() == []


# ---- life ----------------------------------------------------------------------------------------------


def descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def test_it_can_be_closed_twice_and_opened_again_and_leaves_nothing(router: Router) -> None:
    before, threads = descriptors(), threading.active_count()
    recovery = Recovery(router)
    recovery.close()
    for _ in range(2):
        with recovery:
            router.object.programs["rauta_ingress"].test_run(bytes(LOST))
            eventually(lambda: recovery.counters()["flows_asked"] % 2 == 1, "a question")
            router.object.programs["rauta_ingress"].test_run(bytes(Connection(port=7, keys=ALICE.keys).ack(99)))
            eventually(lambda: recovery.counters()["flows_asked"] % 2 == 0, "another one")
        recovery.close()
    assert (descriptors(), threading.active_count()) == (before, threads)


def test_it_runs_in_the_callers_thread_until_it_is_stopped(router: Router) -> None:
    recovery = Recovery(router)
    recovery.open()
    recovery.stop()
    recovery.run()
    recovery.close()


def test_what_was_lost_before_is_left_alone(router: Router) -> None:
    router.object.maps["lost_bucket"].update(0, 0)
    router.object.programs["rauta_ingress"].test_run(bytes(LOST))
    with Recovery(router) as recovery:
        router.object.programs["rauta_ingress"].test_run(bytes(Connection(port=7, keys=ALICE.keys).ack(99)))
        eventually(lambda: recovery.counters()["segments_lost"] == 1, "the newer one to be asked about")
        assert recovery.counters()["flows_asked"] == 1
