"""What agents count of real traffic, by route: nginx answers, curl asks, and the router says which route it was."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from string import Template

import pytest

from e2e.bench import SECONDS, Bench
from lab.contenders.rauta import RunningRauta
from lab.topology import Host
from rauta.agent import Agent, AgentRoute
from rauta.latency import FIRST_BYTE_BOUNDS
from rauta.observation import Observation
from rauta.router import Router

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root"),
    pytest.mark.usefixtures("nothing_is_sent_twice"),
]

PORT = 8080
CLUSTERS = ("web", "api")
CONFIGURATION = Template("""\
daemon off;
user root;
worker_processes 1;
pid $scratch/nginx.pid;
error_log stderr warn;
events { }
http {
    access_log off;
    limit_req_zone $$host zone=slow:64k rate=20r/m;
    root $scratch;
    server {
        listen $port;
        location ~ /ok$$ { return 200 "fine"; }
        location ~ /missing$$ { return 404 "no"; }
        location ~ /broken$$ { return 500 "oh"; }
        location ~ /slow$$ { limit_req zone=slow burst=9; rewrite ^ /body break; }
    }
}
""")
"""of `slow`, the second request and each after that waits for its turn: three seconds"""


@pytest.fixture(scope="module")
def labelling(routed: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    """Another router in the place of the network's, which labels; and servers that answer in several ways."""
    assert isinstance(routed.running, RunningRauta)
    old, host = routed.running.router, routed.network.routers[0]
    for server in (server for cluster in CLUSTERS for server in routed.network.servers(cluster)):
        serve(server, tmp_path_factory.mktemp(server.name))
    old.close()
    with Router.load(old.config, old.keys, observation=Observation(labels=True)) as router:
        with host.entered():
            router.attach(*routed.network.interfaces(host), mode="native")
        yield router


def serve(host: Host, scratch: Path) -> None:
    """nginx in the place of the one that is there."""
    (scratch / "body").write_text("slow")
    file = scratch / "nginx.conf"
    file.write_text(CONFIGURATION.substitute(scratch=scratch, port=PORT))
    host.stop_all()
    argv = ["nginx", "-p", str(scratch), "-c", str(file), "-e", "stderr"]
    host.start(argv, name="nginx", ready=lambda: accepts(host))


def accepts(host: Host) -> bool:
    try:
        socket.create_connection((str(host.address), PORT), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture
def agents(routed: Bench) -> dict[str, Agent]:
    assert isinstance(routed.running, RunningRauta)
    return dict(routed.running.agents)


def curl(routed: Bench, *paths: str) -> list[int]:
    """The statuses of these requests of one curl, which goes on with its connection wherever it can: here always."""
    address, port = routed.vip("shop")
    done = routed.client.run(
        [
            *(
                "curl",
                "--silent",
                "--show-error",
                "--http1.1",
                "--write-out",
                "%{stderr}%{http_code} %{num_connects}\n",
            ),
            *("--connect-to", f"::{address}:{port}", *(f"http://shop.test{path}" for path in paths)),
        ],
        timeout=4 * SECONDS,
    )
    said = [line.split() for line in done.stderr.splitlines()]
    assert [connects for _, connects in said] == ["1"] + ["0"] * (len(paths) - 1)
    return [int(status) for status, _ in said]


Counts = Counter[tuple[str, str]]
"""by a route's path, and what is counted there"""


def counts(agent: Agent) -> Counts:
    found: Counts = Counter()
    for one in agent.requests_by_route():
        path = one.route.path if one.route else ""
        found[path, "requests"] += one.requests
        found[path, "times"] += one.ttfb.count
        found.update({(path, name): count for name, count in one.statuses.items()})
    return +found


def total(agents: dict[str, Agent]) -> Counts:
    found: Counts = Counter()
    for agent in agents.values():
        found += counts(agent)
    return found


@contextmanager
def grows(agents: dict[str, Agent], expected: dict[tuple[str, str], int]) -> Iterator[None]:
    """By just that, over all agents."""
    before = total(agents)
    yield
    assert total(agents) - before == Counter(expected)


def agree(router: Router, agents: dict[str, Agent]) -> None:
    """Router and agents on how many requests each backend and each route got."""
    at_agents = {name: sum(one.requests for one in agent.requests_by_route()) for name, agent in agents.items()}
    assert at_agents == router.requests_by_backend()
    assert sum(at_agents.values()) == router.requests_routed
    by_route: Counter[tuple[str, str]] = Counter()
    for agent in agents.values():
        by_route.update({(one.vip, one.route.path): one.requests for one in agent.requests_by_route() if one.route})
    assert by_route == {(one.vip, one.route.path): one.requests for one in router.requests_by_route()}


def test_a_request_is_counted_with_its_status(routed: Bench, labelling: Router, agents: dict[str, Agent]) -> None:
    expected = {
        ("/api", name): count for name, count in {"requests": 5, "times": 5, "2xx": 3, "4xx": 1, "5xx": 1}.items()
    }
    with grows(agents, expected):
        answered = curl(routed, "/api/ok", "/api/ok", "/api/missing", "/api/broken", "/api/ok")
    assert answered == [200, 200, 404, 500, 200]
    agree(labelling, agents)


def test_one_that_moves_is_the_new_backends(routed: Bench, labelling: Router, agents: dict[str, Agent]) -> None:
    """One connection, there and back."""
    moved, at_api = labelling.counters()["ROUTED_MOVED"], labelling.requests_by_backend()["api-1"]
    expected = {("/api", name): count for name, count in {"requests": 2, "times": 2, "2xx": 1, "5xx": 1}.items()}
    expected |= {("/web", name): count for name, count in {"requests": 3, "times": 3, "2xx": 2, "4xx": 1}.items()}
    with grows(agents, expected):
        answered = curl(routed, "/web/ok", "/api/ok", "/web/missing", "/api/broken", "/web/ok")
    assert answered == [200, 200, 404, 500, 200]
    assert labelling.counters()["ROUTED_MOVED"] == moved + 4
    assert labelling.requests_by_backend()["api-1"] == at_api + 2
    agree(labelling, agents)


def test_what_is_answered_late_is_in_its_bucket(routed: Bench, labelling: Router, agents: dict[str, Agent]) -> None:
    """The second answer's first byte comes after three seconds, and so is between 2.0 and 4.1 s."""
    before = of_path(agents["api-1"], "/api").ttfb
    assert curl(routed, "/api/slow", "/api/slow") == [200, 200]
    after = of_path(agents["api-1"], "/api").ttfb
    grown = [now - old for now, old in zip(after.counts, before.counts, strict=True)]
    late = next(bucket for bucket, bound in enumerate(FIRST_BYTE_BOUNDS) if bound > 3)
    assert (grown[late], sum(grown)) == (1, 2)
    assert 2 < after.sum - before.sum < 5
    agree(labelling, agents)


def of_path(agent: Agent, path: str) -> AgentRoute:
    return next(one for one in agent.requests_by_route() if one.route and one.route.path == path)


def test_without_labels_the_route_is_not_known(routed: Bench, labelling: Router, agents: dict[str, Agent]) -> None:
    """Another router in between, with the same keys; its own requests are for no route at the agents."""
    host = routed.network.routers[0]
    labelling.close()
    with Router.load(labelling.config, labelling.keys) as router:
        with host.entered():
            router.attach(*routed.network.interfaces(host), mode="native")
        expected = {("", name): count for name, count in {"requests": 3, "times": 3, "2xx": 2, "4xx": 1}.items()}
        with grows(agents, expected):
            assert curl(routed, "/api/ok", "/web/ok", "/web/missing") == [200, 200, 404]
        assert sum(router.requests_by_backend().values()) == router.requests_routed == 3
