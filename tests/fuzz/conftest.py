"""The router and the servers, started once a session."""

from collections.abc import Iterator

import pytest
from packets.bench import Agent, throwaway_namespace
from packets.frames import LOCAL, LOCAL_PORT, SECOND_LOCAL_PORT, SECOND_VIP, SECOND_VIP_PORT, VIP, VIP_PORT

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


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    """In a namespace without sockets."""
    with throwaway_namespace():
        services = {(VIP, VIP_PORT): (LOCAL, LOCAL_PORT), (SECOND_VIP, SECOND_VIP_PORT): (LOCAL, SECOND_LOCAL_PORT)}
        loaded = Agent("198.19.0.0", "255.255.255.0", services)
        with loaded.object:
            yield loaded
