"""The router and the servers, started once a session."""

from collections.abc import Iterator

import pytest

from fuzz.hunting import Hunt
from fuzz.readers import Reader, all_readers
from fuzz.swift import SwiftRouter
from lab.process import raise_open_files_limit


@pytest.fixture(scope="session")
def swift_router() -> Iterator[SwiftRouter]:
    router = SwiftRouter()
    with router.object:
        yield router


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Reader, ...]]:
    raise_open_files_limit()
    with all_readers(tmp_path_factory.mktemp("s")) as readers:  # a short name: that of a socket has 107 bytes
        yield readers


@pytest.fixture
def hunt(swift_router: SwiftRouter, servers: tuple[Reader, ...]) -> Hunt:
    return Hunt(swift_router, servers)
