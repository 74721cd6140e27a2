"""Packets for Wireshark: what every host of a network sent and received, one file a host.

Taken by tcpdump on the hosts themselves. Frames that an XDP program takes or sends back never reach the router's own
capture; the other ends of its cables show them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from lab.process import Process, wait_until
from lab.topology import Network

START_SECONDS = 5.0


@contextmanager
def captured(network: Network, prefix: Path) -> Iterator[None]:
    """Capture while inside.

    Args:
        network: on all of its hosts.
        prefix: of the files; ``-HOST.pcap`` is appended. Its folder is made.

    Raises:
        CommandError, NotReady: tcpdump could not be started.
    """
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        started = []
        for name, host in network.hosts.items():
            argv = ["tcpdump", "-i", "any", "-U", "-Z", "root", "-w", f"{prefix}-{name}.pcap"]
            started.append(host.start(argv, name="tcpdump"))
            stack.callback(started[-1].stop)
        for process in started:
            wait_until(partial(_listens, process), seconds=START_SECONDS, what="tcpdump to listen")
        yield


def _listens(process: Process) -> bool:
    return "listening on" in process.output()
