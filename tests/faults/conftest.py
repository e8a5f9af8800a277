"""One forking process for all tests of a worker, and the runs that nobody disturbed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.server import SMALL, Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("harness"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def shimmed(server: Server) -> Server:
    """The server, where faults at system calls are possible."""
    if server.shim is None:
        pytest.skip("needs Linux and a C compiler, to preload a library that injects faults")
    return server


@pytest.fixture(scope="session")
def small(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run of SMALL."""
    folder = tmp_path_factory.mktemp("small") / "run"
    server.finish(folder, loop=SMALL)
    return folder
