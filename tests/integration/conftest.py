"""Fixtures of the integration tests: topics of a test's own, short waits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import stack
from apiwork import Api
from etl.broker import Admin
from workbench import Desk, folder, login


@pytest.fixture
def make_desk(broker: stack.Broker, topic: str) -> Iterator[Callable[..., Desk]]:
    """Make the topics of a test: `make_desk(partitions=1, configs={...})`."""
    made: list[Desk] = []

    def make(**named: object) -> Desk:
        made.append(Desk(broker.bootstrap_servers, topic, **named))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for desk in made:
        desk.close()


@pytest.fixture
def desk(make_desk: Callable[..., Desk]) -> Desk:
    """The topics of a test, with two partitions for jobs."""
    return make_desk()


@pytest.fixture
def short_tiers(monkeypatch: pytest.MonkeyPatch) -> tuple[float, ...]:
    """Waits in T-retry of seconds, as long as those of the product are minutes."""
    tiers = (1.0, 2.0, 30.0, 3600.0)
    monkeypatch.setattr("etl.retry.tiers.TIERS", tiers)
    return tiers


@pytest.fixture(scope="session")
def ftpd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.Ftpd]:
    """A pyftpdlib server that tests share; each works in a folder of its own."""
    server = stack.Ftpd(tmp_path_factory.mktemp("ftpd"), {"ftp-user": "Ftpd-secret"})
    try:
        yield server.start()
    finally:
        server.kill()


class Places:
    """Three servers for a test: SRC (vsftpd), DST (pyftpdlib), HERE (a local folder), each with an empty base."""

    def __init__(self, roots: dict[str, Path], settings: dict[str, str]) -> None:
        self.roots, self.settings = roots, settings

    def path(self, place: str) -> Path:
        """Return where `SRC:/in/a` lies on this disk."""
        name, _, path = place.partition(":")
        return self.roots[name] / path.lstrip("/")

    def put(self, place: str, content: bytes = b"content", mtime: float | None = None) -> Path:
        """Make a file."""
        path = self.path(place)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        if mtime is not None:
            os.utime(path, (mtime, mtime))
        return path

    def get(self, place: str) -> bytes | None:
        """Return a file's content; None when it is not there."""
        path = self.path(place)
        return path.read_bytes() if path.exists() else None

    def files(self, name: str) -> set[str]:
        """Return the paths of all files of a server, hidden ones too."""
        return {f"/{path.relative_to(self.roots[name])}" for path in self.roots[name].rglob("*") if path.is_file()}


@pytest.fixture
def places(vsftpd: stack.Vsftpd, ftpd: stack.Ftpd, tmp_path: Path, topic: str) -> Places:
    """Three servers with a base folder of this test."""
    roots = {"SRC": vsftpd.root / topic, "DST": ftpd.root / topic, "HERE": tmp_path / "here"}
    for root in roots.values():
        root.mkdir()
    settings = login("SRC", vsftpd, BASE_PATH=f"/{topic}") | login("DST", ftpd, BASE_PATH=f"/{topic}")
    return Places(roots, settings | folder("HERE", roots["HERE"]))


# --- the API ---


@pytest.fixture
def api_topics(broker: stack.Broker, topic: str) -> str:
    """The topics of a test, as a consumer would have made them."""
    admin = Admin(broker.bootstrap_servers)
    for name in (topic, f"{topic}-results", f"{topic}-dlq", f"{topic}-retry"):
        admin.create(name, 2, {"message.timestamp.type": "LogAppendTime"})
    return topic


@pytest.fixture
def make_api(broker: stack.Broker, api_topics: str, tmp_path: Path) -> Iterator[Callable[..., Api]]:
    """Start the API: `make_api(ETL_API_TOKENS_FILE="")`, `make_api(program=SHORT_LIMITS)`."""
    made: list[Api] = []

    def make(**settings: Any) -> Api:
        folder = tmp_path / f"api{len(made)}"
        folder.mkdir()
        made.append(
            Api(folder, settings.pop("ETL_BOOTSTRAP_SERVERS", broker.bootstrap_servers), api_topics, **settings)
        )
        return made[-1].start()

    yield make
    for api in made:
        api.close()


@pytest.fixture
def api(make_api: Callable[..., Api]) -> Api:
    return make_api().wait_ready()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let connections of Kafka's client pass that were under way while it closed: it leaves them to the collector.

    A consumer here has half a dozen clients; which test the collector comes in is chance. Contract and unit tests look
    after our own sockets.
    """
    message = "ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(message))
