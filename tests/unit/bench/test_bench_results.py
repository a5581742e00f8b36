"""The benchmark times outcomes as they come, not as fast as they can be read."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[3] / "bench"))  # programs, no package

from ours import Results
from world import OutOfTimeError, World

from etl.models.task import Record

pytestmark = pytest.mark.unit

SUCCESS = b'{"status": "SUCCESS"}'


class Topic:
    """A topic of outcomes as a reader sees it: each time it was read to its end, there is more."""

    def __init__(self, arriving, value=SUCCESS):
        self._arriving = list(arriving)  # how many more there are each time that the end is asked for
        self._value = value
        self._end = 0

    def ends(self):
        if self._arriving:
            self._end += self._arriving.pop(0)
        return {0: self._end}

    def scan(self, until, start):
        return (self._record(offset) for offset in range(start[0], until[0]))

    def follow(self, start):
        yield None
        offset = start[0]
        while True:
            yield self._record(offset)
            offset += 1

    def _record(self, offset):
        return Record("results", 0, offset, str(offset).encode(), self._value.replace(b"}", b", %d}" % offset))


def results(tmp_path, topic, limit=60.0):
    return Results(World(tmp_path, time.monotonic() + limit), topic)


def test_outcomes_committed_while_jobs_were_sent_are_passed_over(tmp_path):
    """All that waited is counted and none of it timed, nor what came while it was read, but for a few."""
    found = results(tmp_path, Topic([40, 8000, 900, 100, 5000]))
    assert found.catch_up(750) == 8000 + 900 + 100
    assert next(found).endswith(b" 9040}")


def test_without_catching_up_no_outcome_is_left_out(tmp_path):
    """Reading begins with the first outcome after it was made, and none is read twice."""
    found = results(tmp_path, Topic([40, 3]))
    assert [next(found)[-4:], next(found)[-4:]] == [b" 40}", b" 41}"]


def test_catching_up_looks_at_every_outcome(tmp_path):
    """A job that failed while others were sent ends the benchmark, as any other."""
    with pytest.raises(RuntimeError, match="a job failed"):
        results(tmp_path, Topic([0, 10], b'{"status": "FAILED"}')).catch_up(5)


def test_catching_up_ends_with_the_time(tmp_path):
    """A reader that is slower than the consumer does not read for ever."""
    found = results(tmp_path, Topic([0, *[10] * 100]), limit=0.0)
    with pytest.raises(OutOfTimeError):
        found.catch_up(5)
