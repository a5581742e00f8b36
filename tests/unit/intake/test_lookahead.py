"""Looking ahead: whose jobs stand behind one that waits for room."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping

import pytest
import structlog.testing

from etl.config import ConfigLoader
from etl.errors import BrokerUnavailable
from etl.intake import lookahead
from etl.intake.lookahead import LookAhead
from etl.models import header
from etl.models.message import servers_of
from etl.models.task import Record
from etl.models.wire import Partition
from scene import ENVIRONMENT

pytestmark = pytest.mark.unit

P0, P1, RETRY = Partition("jobs", 0), Partition("jobs", 1), Partition("jobs-retry", 5)
CONFIG = ConfigLoader(environ=ENVIRONMENT)
DONE = {(P0, 10)}  # by an earlier owner


def message(source: str, destination: str) -> bytes:
    ends = {"source": {"hostname": source, "path": "/a"}, "destination": {"hostname": destination, "path": "/b"}}
    return json.dumps(ends).encode()


class FakeReader:
    """Gives what a test puts into it."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.starts: list[Mapping[Partition, int]] = []
        self.fails = False
        self.closed = 0

    def read(self, starts: Mapping[Partition, int]) -> list[Record]:
        if self.fails:
            raise BrokerUnavailable("away")
        self.starts.append(starts)
        records, self.records = self.records, []
        return records

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def reader() -> FakeReader:
    return FakeReader()


@pytest.fixture
def used() -> dict[str, float]:
    """What clocks show: the time, and how long this process had the processor."""
    return {"seconds": 0.0, "cpu": 0.0}


@pytest.fixture
def ahead(reader: FakeReader, used: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> Iterator[LookAhead]:
    monkeypatch.setattr(lookahead, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(lookahead, "BROKER_PAUSE_SECONDS", 0.001)
    made = LookAhead(
        lambda _most: reader,  # type: ignore[arg-type,return-value]
        "jobs-retry",
        "group",
        CONFIG,
        lambda *at: at in DONE,
        has_room=lambda pair: pair == ("B", "A"),
        clock=lambda: used["seconds"],
        cpu=lambda: used["cpu"],
    )
    yield made
    made.stop(5.0)


def test_it_knows_whose_jobs_stand_behind_which_offset(ahead: LookAhead, reader: FakeReader) -> None:
    """By the names that the settings have; of those who passed, it forgets them."""
    ahead.watch({P0: 3})
    reader.records = [
        Record(*P0, 4, None, message("a", "b")),
        Record(*P0, 5, None, message("B", "A")),
        Record(*P0, 6, None, message("A", "B")),
        Record(*P0, 7, None, message("A", "GONE")),
        Record(*P0, 8, None, b"nonsense"),
        Record(*P0, 9, None, None),
        Record(*P0, 10, None, message("B", "A")),
    ]
    ahead.look(reader)  # type: ignore[arg-type]
    assert ahead.behind(P0, 3) == [("A", "B"), ("B", "A")]
    assert ahead.behind(P0, 5) == [("A", "B")]
    assert ahead.behind(P0, 6) == []
    assert ahead.behind(P1, 0) == []


def test_each_record_is_read_once(ahead: LookAhead, reader: FakeReader) -> None:
    """Also if the partition went on meanwhile, or stood nowhere for a while."""
    ahead.watch({P0: 3, P1: 10})
    reader.records = [Record(*P0, offset, None, message("A", "B")) for offset in (4, 6, 7)]
    ahead.look(reader)  # type: ignore[arg-type]
    ahead.watch({})
    ahead.watch({P0: 5, P1: 20})
    ahead.look(reader)  # type: ignore[arg-type]
    assert reader.starts == [{P0: 4, P1: 11}, {P0: 8, P1: 21}]


def test_it_reads_rarely_while_transfers_need_the_processor_and_it_finds_nobody_who_matters(
    ahead: LookAhead, reader: FakeReader, used: dict[str, float]
) -> None:
    """Nobody who matters: only jobs of pairs for which there is no room either, or none at all."""

    def pause(*pairs: str, cpu: float) -> float:
        used["seconds"] += 1.0
        used["cpu"] += cpu
        ahead.watch({P0: 3})
        reader.records = [Record(*P0, 4 + place, None, message(*pair)) for place, pair in enumerate(pairs)]
        ahead.look(reader)  # type: ignore[arg-type]
        return ahead.pause_seconds()

    seldom, often = lookahead.BUSY_PAUSE_SECONDS, lookahead.PAUSE_SECONDS
    assert pause("AB", "AB", cpu=0.6) == seldom
    assert pause("AB", "AB", cpu=0.4) == often  # nothing is taken from transfers
    assert pause("AB", "BA", cpu=0.6) == often  # somebody whose jobs could run
    assert pause(cpu=0.6) == seldom


def test_a_partition_that_was_taken_away_is_forgotten(ahead: LookAhead, reader: FakeReader) -> None:
    ahead.watch({P0: 3})
    reader.records = [Record(*P0, 4, None, message("A", "B"))]
    ahead.look(reader)  # type: ignore[arg-type]
    ahead.forget([P0, P1])
    assert ahead.behind(P0, 0) == []
    reader.records = [Record(*P0, 5, None, message("A", "B"))]  # was on its way
    ahead.look(reader)  # type: ignore[arg-type]
    assert ahead.behind(P0, 0) == []


def test_deferred_jobs_of_other_groups_do_not_count(ahead: LookAhead, reader: FakeReader) -> None:
    ahead.watch({RETRY: 0})
    value = message("A", "B")
    reader.records = [Record(*RETRY, 1, None, value, ((header.GROUP, b"another"),)), Record(*RETRY, 2, None, value)]
    ahead.look(reader)  # type: ignore[arg-type]
    assert ahead.behind(RETRY, 0) == []
    reader.records = [Record(*RETRY, 3, None, value, ((header.GROUP, b"group"),))]
    ahead.look(reader)  # type: ignore[arg-type]
    assert ahead.behind(RETRY, 0) == [("A", "B")]


def wait_for(happened: Callable[[], object]) -> None:
    pause = threading.Event()
    for _ in range(5000):
        if happened():
            return
        pause.wait(0.001)
    raise AssertionError("it did not happen")


def test_it_reads_only_while_a_partition_stands_and_connects_again(ahead: LookAhead, reader: FakeReader) -> None:
    """A broker that is away costs nothing but that jobs wait where they are."""
    ahead.start()
    reader.fails = True
    ahead.watch({P0: 3})
    wait_for(lambda: reader.closed >= 2)
    reader.fails = False
    wait_for(lambda: len(reader.starts) >= 3)
    ahead.watch({})
    ahead.stop(5.0)
    assert not any(thread.name == "look-ahead" for thread in threading.enumerate())


def test_a_bug_does_not_end_it(ahead: LookAhead, reader: FakeReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "read", lambda _starts: 1 / 0)
    with structlog.testing.capture_logs() as lines:
        ahead.start()
        ahead.watch({P0: 3})
        wait_for(lambda: len(lines) >= 2)
        monkeypatch.undo()
        ahead.stop(5.0)
    assert lines[0]["event"] == "could not look ahead"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (b'{"source": {"hostname": "A", "path": 1}, "destination": {"hostname": "B"}, "typo": 1}', ("A", "B")),
        (b'{"task_id": "1", "src_id": "A", "src_path": "/a", "dst_id": "B", "dst_path": "/b"}', ("A", "B")),
        (b'{"src_id": "A"}', None),
        (b'{"source": {"hostname": 1}, "destination": {"hostname": "B"}}', None),
        (b'{"source": "A", "destination": "B"}', None),
        (b'{"source": [], "destination": {}}', None),
        (b"[" * 100_000, None),
        (b"[]", None),
        (b"", None),
        (None, None),
    ],
)
def test_the_servers_of_a_job_are_read_without_the_rest(text: bytes | None, names: object) -> None:
    assert servers_of(text) == names
