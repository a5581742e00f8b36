"""Unit tests wait for nothing: one that sleeps, or whose subject does, fails."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from scene import Scene

SHORT_SECONDS = 0.02  # between two looks at what another thread does


@pytest.fixture(autouse=True)
def _nothing_sleeps() -> Iterator[None]:
    sleep, slept = time.sleep, [0.0]

    def counted(seconds: float) -> None:
        slept.append(seconds)
        sleep(seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", counted)
        yield
    assert max(slept) <= SHORT_SECONDS, "let the test's clock pass, or wait for an event"


@pytest.fixture
def scene() -> Iterator[Scene]:
    """A consumer process without Kafka and servers."""
    made = Scene()
    yield made
    made.pools.close()
