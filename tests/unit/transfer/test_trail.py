"""The hash that goes back to a place where a copy goes on."""

from __future__ import annotations

import random

import pytest
import xxhash

from etl.transfer import trail
from etl.transfer.trail import Trail

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _small_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trail, "MARK_BYTES", 10)


def test_it_goes_on_from_each_place_it_has_kept_however_the_bytes_come() -> None:
    """And from each place before that, afterwards."""
    content = random.Random(1).randbytes(1000)
    made, at = Trail("v"), 0
    while at < 995:
        made.update(memoryview(content)[at : at + 7])
        at += 7
    for offset in (990, 500, 10):
        assert made.go_back(offset)
        made.update(memoryview(content)[offset:])
        assert made.hexdigest() == xxhash.xxh3_128(content).hexdigest()


@pytest.mark.parametrize("offset", [0, 7, 30, 1010])
def test_a_place_that_was_not_kept_is_not_known(monkeypatch: pytest.MonkeyPatch, offset: int) -> None:
    """Between two places, too long ago, or not reached."""
    monkeypatch.setattr(trail, "_MARKS_KEPT", 10)
    made = Trail("v")
    made.update(memoryview(bytes(1000)))
    assert not made.go_back(offset)
