"""Fixtures of the end-to-end tests: the real command, real servers, topics of a test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import stack
from workbench import Command, Desk


@pytest.fixture
def desk(broker: stack.Broker, topic: str) -> Iterator[Desk]:
    """The topics of a test."""
    made = Desk(broker.bootstrap_servers, topic)
    yield made
    made.close()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Start the command: `run("--topic", "t", environment={...})`; whatever still runs at the end is ended."""
    started: list[Command] = []

    def start(*arguments: str, environment: dict[str, str] | None = None) -> Command:
        started.append(Command(tmp_path, *arguments, environment=environment))
        return started[-1]

    yield start
    for command in started:
        command.kill()
