"""What the end-to-end tests share: a routed network for each module, and the rule that nobody repeats himself."""

from collections.abc import Iterator

import pytest

from e2e.bench import RETRANSMISSIONS, Bench, bench


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench("rauta", tmp_path_factory.mktemp("logs")) as one:
        yield one


@pytest.fixture
def nothing_is_sent_twice(routed: Bench) -> Iterator[None]:
    """For tests in which the network loses nothing: then the client has nothing to send again."""
    before = routed.client.tcp_counters()
    yield
    after = routed.client.tcp_counters()
    grown = {name: count - before[name] for name, count in after.items() if count != before[name]}
    assert not grown.keys() & set(RETRANSMISSIONS), grown
