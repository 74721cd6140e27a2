"""What the end-to-end tests share: a routed network for each module, and the rules that nobody repeats himself and
that whoever is told to stop tidies up first.
"""

import signal
from collections.abc import Iterator
from types import FrameType

import pytest

from e2e.bench import Bench, bench


@pytest.fixture(scope="package", autouse=True)
def told_to_stop_means_tidy_up() -> Iterator[None]:
    """SIGTERM and SIGHUP end pytest as Ctrl-C does, so that fixtures still undo their networks."""

    def interrupt(signum: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(signum).name)

    previous = {signum: signal.signal(signum, interrupt) for signum in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for signum, handler in previous.items():
        signal.signal(signum, handler)


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench("rauta", tmp_path_factory.mktemp("logs")) as one:
        yield one


@pytest.fixture
def may_repeat() -> None:
    """For a test in which the network is meant to lose something."""


@pytest.fixture
def nothing_is_sent_twice(routed: Bench, request: pytest.FixtureRequest) -> Iterator[None]:
    """The network loses nothing, so the client has nothing to send again; but in tests that use `may_repeat`.

    Where a program has to wait for a CPU its acknowledgements do, and meanwhile a client probes, which repeats a
    segment (RFC 8985, 7.2). Such a probe is no sign of loss, unless it repairs one.
    """
    before = routed.client.tcp_counters()
    yield
    after = routed.client.tcp_counters()
    grown = {name: count - before[name] for name, count in after.items() if count != before[name]}
    if "may_repeat" not in request.fixturenames:
        assert grown.get("Tcp.RetransSegs", 0) <= grown.get("TcpExt.TCPLossProbes", 0), grown
        assert not grown.keys() & {"TcpExt.TCPSynRetrans", "TcpExt.TCPLossProbeRecovery"}, grown
