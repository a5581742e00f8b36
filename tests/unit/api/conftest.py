"""Fixtures of the API's application."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from apiworld import NOW, World
from etl.models.task import Record


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


@pytest.fixture
def filled(world: World) -> World:
    """With jobs in every state, dead letters, and acts."""
    world.take(*(world.job(n) for n in range(20)))
    world.take(*(world.result(n) for n in range(5)), *(world.letter(n) for n in range(5, 12)))
    act = {"at": "2026-03-02T07:00:00Z", "actor": "ann", "action": "replay", "target": "t", "result": "done"}
    world.take(Record("etl-audit", 0, 0, b"w", json.dumps(act).encode(), (), NOW))
    return world
