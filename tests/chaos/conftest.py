"""Fixtures of the chaos tests: consumers, work, topics."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import stack
from chaos.ftp import Server
from chaos.processes import Consumer
from chaos.topics import Topics
from chaos.work import Work, ftp_place, local_place

LONG = os.environ.get("TEST_LONG", "") not in {"", "0"}  # more jobs, more kills


@pytest.fixture(scope="session")
def chaos_broker(broker: stack.Broker) -> stack.Broker:
    """The broker of these tests; those that hurt it have one of their own."""
    return broker


@pytest.fixture
def topics(chaos_broker: stack.Broker, topic: str) -> Iterator[Topics]:
    """Fresh topics, and their reader."""
    with Topics(chaos_broker.bootstrap_servers, topic, f"group-{topic}").create() as made:
        yield made


@pytest.fixture
def work(vsftpd: stack.Vsftpd, make_ftpd: Callable[..., stack.Ftpd], tmp_path: Path, topic: str) -> Work:
    """Three places, each of them source and destination: vsftpd, pyftpdlib, a local folder."""
    return Work(
        [
            ftp_place("OLD", vsftpd, topic),
            ftp_place("NEW", make_ftpd(), MAX_CONNECTIONS="6"),
            local_place("HERE", tmp_path / "here"),
        ]
    )


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[Work, Server, Server]]:
    """Work from one FTP server to another, both of the test's own: the first may hold files back."""
    source, destination = Server(tmp_path / "source"), Server(tmp_path / "destination")
    places = [ftp_place("SRC", source), ftp_place("DST", destination)]
    yield Work(places, pairs=[(places[0], places[1])]), source, destination
    source.close()
    destination.close()


@pytest.fixture
def consumers(topics: Topics, tmp_path: Path) -> Iterator[Callable[..., Consumer]]:
    """Make consumers of the test's topic: `consumers("a", settings, ETL_SLOT="0")`; started by the test."""
    made: list[Consumer] = []

    def make(
        name: str,
        settings: dict[str, str],
        *,
        measured: bool = True,
        program: Sequence[str] = ("-m", "etl.main"),
        **more: str,
    ) -> Consumer:
        common = {
            "ETL_TOPIC": topics.name,
            "ETL_GROUP_ID": topics.group,
            "ETL_BOOTSTRAP_SERVERS": topics.bootstrap_servers,
        }
        measured = measured and not made  # the others run the same code
        made.append(Consumer(name, tmp_path, common | settings | more, measured=measured, program=program))
        return made[-1]

    yield make
    for consumer in made:
        if consumer.running:
            consumer.signal(signal.SIGCONT)
            consumer.kill()


@pytest.hookimpl(tryfirst=True)  # before the marks are looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make test-long` picks the marker `long`: with TEST_LONG the chaos tests are long ones."""
    for item in items:
        if LONG and "chaos" in item.keywords:
            item.add_marker(pytest.mark.long)
