"""Fixtures of the zoo: a server of each kind, and what is found of it, which becomes docs/servers.md."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import zoo_table

from servers.zoo import KINDS, QUICK, Kind, Server, place

FINDINGS = pytest.StashKey[defaultdict[str, zoo_table.Finding]]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin with no findings."""
    config.stash[FINDINGS] = defaultdict(zoo_table.Finding)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the table, if asked to."""
    if path := os.environ.get("ZOO_TABLE"):
        zoo_table.write(session.config.stash[FINDINGS], Path(path))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let connections of Kafka's client pass that were under way while it closed: it leaves them to the collector."""
    message = "ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(message))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for `kind` once for each; only the quick ones with every change."""
    if "kind" in metafunc.fixturenames:
        marks = {name: () if name in QUICK else (pytest.mark.long,) for name in KINDS}
        kinds = [pytest.param(KINDS[name], marks=marks[name], id=name) for name in KINDS]
        metafunc.parametrize("kind", kinds)


@pytest.fixture
def finding(kind: Kind, request: pytest.FixtureRequest) -> zoo_table.Finding:
    """What is found of this kind."""
    return request.config.stash[FINDINGS][kind.name]


@pytest.fixture
def resident(kind: Kind) -> Iterator[Server]:
    """A server of this kind."""
    yield from _started(kind)


@pytest.fixture
def reference() -> Iterator[Server]:
    """The server that others are compared with."""
    yield from _started(KINDS["vsftpd"])


def _started(kind: Kind) -> Iterator[Server]:
    with place() as folder:
        server = kind.make(folder)
        try:
            yield server.start()
        finally:
            server.kill()
