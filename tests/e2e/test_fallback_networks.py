"""The fallback wherever the router stands, and when its proxy does not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from e2e.bench import Bench, bench, eventually, request
from lab.contenders import rauta as contender
from rauta.agent import Agent
from rauta.config import Config
from rauta.errors import RautaError
from rauta.keys import Keys
from rauta.router import Router

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

FILE = Path(__file__).parent / "data" / "fallback.yaml"
CHUNKED = request("/api/x", "Transfer-Encoding: chunked", method="POST") + b"5\r\nhello\r\n0\r\n\r\n"
LONG = request("/web/x", *["Cookie: " + "c" * 1000] * 5)


def works(one: Bench) -> None:
    """Both ways in turn, on connections of their own and on one of the fallback's."""
    for _ in range(3):
        with one.connected() as connection:
            connection.sock.sendall(CHUNKED)
            assert connection.answer("POST").headers["x-received"] == "5"
            connection.sock.sendall(LONG)
            assert connection.answer().backend.startswith("web")
        with one.connected() as connection:
            assert connection.ask("/api/download").status == 200


@pytest.mark.parametrize("kind", ["two-armed", "direct"])
def test_it_works_in_every_kind_of_network(tmp_path: Path, kind: str) -> None:
    """With several interfaces, the first one's address; where that has none, the one that the kernel sends from."""
    with bench("rauta", tmp_path, FILE, f"topology.kind={kind}") as one:
        grown, before = one.growth(), one.retransmissions()
        works(one)
        assert (grown["FALLBACK_ENCODED"], grown["ROUTED_FIRST"], grown["AGENT_DROP_UNOPENED"]) == (3, 3, 0), grown
        assert one.retransmissions() == before


@pytest.fixture(scope="module")
def unrouted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A network ready for XDP, without a router."""
    with bench("direct", tmp_path_factory.mktemp("logs"), FILE, "contenders=[direct, rauta]") as one:
        yield one


@pytest.fixture
def routable(unrouted: Bench) -> Iterator[tuple[Bench, Router, ExitStack]]:
    """And with agents on the backends, and a router that is attached nowhere yet."""
    config, keys = unrouted.scenario.routing.config, Keys.generate()
    with ExitStack() as undo:
        for backend in config.backends():
            agent = undo.enter_context(Agent.load(config, keys, backend=backend))
            with unrouted.network.hosts[backend].entered():
                agent.attach("eth0")
        yield unrouted, undo.enter_context(Router.load(config, keys)), undo


def test_it_works_in_generic_mode(routable: tuple[Bench, Router, ExitStack]) -> None:
    """What the agent sends round meets the router's program again there: it is not for a VIP any more."""
    one, router, undo = routable
    contender.start_fallback(one.network, one.network.router, undo, router.config, "nginx")
    with one.network.router.entered():
        (attachment,) = router.attach("eth0", mode="generic")
    assert attachment.mode == "generic"
    works(one)
    counters = router.counters()
    assert (counters["FALLBACK_ENCODED"], counters["ROUTED_FIRST"]) == (3, 3)


def test_without_its_proxy_connections_are_refused(routable: tuple[Bench, Router, ExitStack]) -> None:
    """At once, in the VIP's name; everything else goes on."""
    one, router, _ = routable
    with one.network.router.entered():
        router.attach("eth0")
    with one.connected() as connection:
        connection.sock.sendall(CHUNKED)
        with pytest.raises(ConnectionResetError):
            connection.sock.recv(1)
    assert router.fallback_agent is not None
    assert router.fallback_agent.counters()["AGENT_NO_LISTENER"] == 1
    with one.connected() as connection:
        assert connection.ask("/api/x").backend == "api-1"


def test_a_firewall_can_keep_everybody_else_out(routable: tuple[Bench, Router, ExitStack]) -> None:
    """Connections that came through XDP have no SYN on their way to the proxy's ports."""
    one, router, undo = routable
    host = one.network.router
    contender.start_fallback(one.network, host, undo, router.config, "nginx")
    undo.callback(host.run, ["nft", "delete", "table", "ip", "guard"], timeout=5)
    rule = "tcp dport 8000-8063 tcp flags & (syn|ack) == syn reject with tcp reset"
    host.run(["nft", f"table ip guard {{ chain in {{ type filter hook input priority 0; {rule}; }}; }}"], timeout=5)
    with host.entered():
        router.attach("eth0")
    works(one)
    with pytest.raises(ConnectionRefusedError), one.connected((host.address, 8000)):
        pass


def test_it_is_gone_with_the_router(routable: tuple[Bench, Router, ExitStack]) -> None:
    one, router, _ = routable

    def programs() -> str:
        return one.network.router.run(["tc", "filter", "show", "dev", "eth0", "ingress"], timeout=5).stdout

    assert router.fallback_agent is None
    assert router.fast_path_share is None
    with one.network.router.entered():
        router.attach("eth0")
    assert "rauta_agent_ing" in programs()
    router.close()
    assert router.fallback_agent is None
    eventually(lambda: "rauta_agent_ing" not in programs(), "the agent to be gone")


def test_an_address_that_has_another_part_is_told(routable: tuple[Bench, Router, ExitStack]) -> None:
    """Nothing is left attached then."""
    one, _, _ = routable
    dump = one.scenario.routing.config.model_dump()
    dump["encapsulation"] = {"source": "198.18.0.0/29"}  # the router's own address is in it
    with Router.load(Config.model_validate(dump), Keys.generate()) as router:
        with (
            one.network.router.entered(),
            pytest.raises(RautaError, match=r"the router's address 198\.18\.0\.2 is in encapsulation\.source"),
        ):
            router.attach("eth0")
        assert router.fallback_agent is None
