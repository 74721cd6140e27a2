"""What is noted of the hosts' interfaces is what they are while a contender runs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from e2e.bench import bench
from lab.environment import OFFLOADS, interfaces

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building networks needs root")

ON = {"tx": "on", "tso": "on"}
OFF = {"tx": "off", "tso": "off"}


@pytest.mark.parametrize(
    ("contender", "client", "xdp"),
    [("direct-offloads", ON, "none"), ("direct", OFF, "none"), ("rauta", OFF, "native")],
)
def test_they_are_what_a_contender_has_made_of_them(
    contender: str, client: dict[str, str], xdp: str, tmp_path: Path
) -> None:
    with bench(contender, tmp_path) as one:
        found = interfaces(one.network)
    assert found.keys() == one.network.hosts.keys()
    for name, interface in found.items():
        assert interface["kind"] == "veth"
        assert interface["mtu"] == 1500
        assert interface["queues"] == {"rx": os.cpu_count(), "tx": os.cpu_count()}
        assert interface["offloads"].keys() == OFFLOADS.keys()
        assert interface["xdp"] == (xdp if name == "router" else "none")
        expected = client if name in ("client", "router") else ON
        assert {offload: interface["offloads"][offload] for offload in expected} == expected, name
    assert json.loads(json.dumps(found)) == found


def test_of_a_host_that_is_gone_nothing_is_known(tmp_path: Path) -> None:
    with bench("direct", tmp_path) as one:
        network = one.network
    assert {str(value) for host in interfaces(network).values() for value in host.values()} == {"unknown"}
