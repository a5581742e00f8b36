"""What needs somebody, and what does not; servers and backlog as all processes together see them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from etl.cli import status
from etl.models.control import Acknowledge, Hold
from etl.models.status import (
    Fault,
    Parked,
    PartitionStatus,
    ServerStatus,
    ServerTotals,
    Snapshot,
    TotalsStatus,
    TransferStatus,
    Window,
)
from etl.status.fleet import Process
from etl.status.summary import Summary, summarise
from etl.status.unheld import Unheld

pytestmark = pytest.mark.unit

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def process(name: str = "h/0", age: float = 0.0, **fields: Any) -> Process:
    given: dict[str, Any] = {"kind": "consumer", "group": "g", "topic": "t", "incarnation": "a", "seq": 1}
    given |= {"at": ago(age), "started_at": ago(3600), "interval_seconds": 2.0, "state": "running"}
    snapshot = Snapshot(id=name, **(given | fields))
    return Process(snapshot.key, snapshot, age, spoken=True)


def down(seconds: float, code: str = "CONNECTION_ERROR", **fields: Any) -> ServerStatus:
    return ServerStatus(name="A", breaker="open", since=ago(seconds), error=Fault(code=code, text="no"), **fields)


def kinds(summary: Summary) -> list[str]:
    return [need.kind for need in summary.needs]


def test_all_is_well() -> None:
    """In one sentence, with what was done."""
    totals = TotalsStatus(jobs={"done": 3}, servers={"B": ServerTotals(bytes_out=1_500_000)})
    summary = summarise([process(totals=totals), process("h/1", state="stopped", age=9000.0)], NOW)
    assert (summary.is_well, summary.needs) == (True, [])
    assert status.sentence(summary).startswith("All is well: 3 files (1.5 MB) since ")


@pytest.mark.parametrize(
    ("processes", "wanted"),
    [
        ([], ["no-consumer"]),
        ([process(state="stopped", age=60.0)], ["no-consumer"]),
        ([process(age=60.0)], ["no-consumer", "process-silent"]),
        ([process(), process("h/1", age=60.0)], ["process-silent"]),
        ([process(servers=(down(60),))], []),
        ([process(servers=(down(601),))], ["server-down"]),
        ([process(servers=(down(1, "AUTHENTICATION_FAILED"),))], ["login-refused"]),
        ([process(settings_hash="a"), process("h/1", settings_hash="b")], ["settings-differ"]),
        ([process(partitions=(PartitionStatus(topic="t", partition=0, oldest_at=ago(901)),))], ["backlog-old"]),
        ([process(partitions=(PartitionStatus(topic="t", partition=0, oldest_at=ago(899)),))], []),
        (
            [process(servers=(down(60),), partitions=(PartitionStatus(topic="t", partition=0, oldest_at=ago(9000)),))],
            [],
        ),
    ],
)
def test_what_needs_somebody(processes: list[Process], wanted: list[str]) -> None:
    """A server that is down for a minute does not, and explains a backlog that is old."""
    assert kinds(summarise(processes, NOW)) == wanted


def test_the_parts_of_a_bandwidth_limit_are_added_up() -> None:
    """What all processes together may move; a server without a limit has none."""
    half = ServerStatus(name="A", bandwidth_limit=5e6)
    summary = summarise([process(servers=(half, ServerStatus(name="B"))), process("h/1", servers=(half,))], NOW)
    assert {one.name: one.status.bandwidth_limit for one in summary.servers} == {"A": 1e7, "B": None}


def test_a_transfer_that_stands_still_and_dead_letters_need_somebody() -> None:
    """Cancelled jobs do not."""
    still = TransferStatus(
        place="t-0-1", source="A:/a", destination="B:/b", phase="streaming", began_at=ago(90), stalled_seconds=31.0
    )
    summary = summarise([process(transfers=(still,))], NOW, dead_letters={"FILE_NOT_FOUND": 2, "CANCELLED": 5})
    assert kinds(summary) == ["transfer-stalled", "dead-letters"]
    assert summary.needs[1].jobs == 2
    assert kinds(summarise([process()], NOW, dead_letters={"CANCELLED": 5})) == []


def test_a_hold_is_told_and_needs_nobody() -> None:
    """With its jobs, whoever set it, and why."""
    hold = Hold(what="server", name="A", author="eve@host", at=ago(60), reason="repair")
    held = ServerStatus(name="A", waiting=8, deferred=4, held_by="x")
    summary = summarise([process(servers=(held,))], NOW, [hold])
    (need,) = summary.needs
    assert (need.kind, need.subject, need.jobs, need.detail) == ("on-hold", "server A", 12, "eve@host: repair")
    assert summary.is_well
    assert "etl release server A" in status.words(need, NOW)


def test_servers_and_topics_are_added_up_over_processes() -> None:
    """The worst breaker counts, and its error; each job counts at two servers."""
    one = process(
        servers=(
            ServerStatus(name="A", jobs_per_second=4.0, waiting=1, lanes=2),
            ServerStatus(name="B", jobs_per_second=4.0),
        ),
        window=Window(jobs=10, behind=90),
        parked=Parked(jobs=7),
        partitions=(PartitionStatus(topic="t", partition=0, oldest_at=ago(5)),),
    )
    other = process("h/1", servers=(down(60, waiting=2, jobs_per_second=2.0),), window=Window(jobs=20, behind=80))
    summary = summarise([one, other, process("h/2", age=99.0, window=Window(jobs=1000))], NOW)
    worst, good = summary.servers
    assert (worst.name, worst.status.breaker, worst.status.waiting, worst.processes) == ("A", "open", 3, 2)
    assert worst.status.error is not None
    assert (good.name, good.status.breaker) == ("B", "closed")
    (topic,) = summary.topics
    assert (topic.unfinished, topic.parked, topic.processes, topic.jobs_per_second) == (200, 7, 2, 5.0)
    assert (topic.clear_seconds, topic.oldest_at) == (40.0, ago(5))


def test_a_server_is_down_since_the_first_process_found_it_so() -> None:
    """One that has met the outage just now does not make it a new one, that needs nobody yet."""
    for first, second in ((20, 4000), (4000, 20)):
        found = [process("h/0", servers=(down(first),)), process("h/1", servers=(down(second),))]
        (server,) = summarise(found, NOW).servers
        assert server.status.since == ago(4000)
        assert kinds(summarise(found, NOW)) == ["server-down"]


def test_jobs_that_nobody_holds_are_counted_and_told() -> None:
    """Without any consumer, too: they are what somebody should know first."""
    unheld = {("t", "g"): Unheld(70, ago(60))}
    summary = summarise([], NOW, unheld=unheld)
    assert [(need.kind, need.jobs) for need in summary.needs] == [("no-consumer", 70)]
    assert "70 jobs wait, none lost" in status.words(summary.needs[0], NOW)
    (topic,) = summary.topics
    assert (topic.unfinished, topic.oldest_at, topic.processes, topic.clear_seconds) == (70, ago(60), 0, None)
    (topic,) = summarise([process(window=Window(jobs=3))], NOW, unheld=unheld).topics
    assert (topic.unfinished, topic.processes) == (73, 1)


def test_strangers_text_is_never_printed_raw() -> None:
    """Names, paths and errors come from whoever may write the topics."""
    evil = "\x1b[2J\u202egnp.exe"
    shown = status.to_dict(summarise([process(evil, servers=(down(700).model_copy(update={"name": evil}),))], NOW))
    printed = status.terminal.json_line(shown)
    assert not set(evil) & set("\x1b\u202e") & set(printed)
    console = status.terminal.console()
    with console.capture() as captured:
        console.print(status._whole(summarise([process(evil)], NOW)))
    assert "\x1b" not in captured.get()
    assert "\u202e" not in captured.get()


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (172_800, "2 d"), (-5, "0 s")]
)
def test_lengths_of_time_are_told_in_their_largest_unit(seconds: float, shown: str) -> None:
    assert status._age(seconds) == shown


def test_what_somebody_sees_to_is_told_and_needs_nobody() -> None:
    """The command shows what was acknowledged on the page: who, why, until when; and all is well but for that."""
    known = Acknowledge(
        author="ann", at=ago(60), reason="disk ordered", need="server-down", name="A", since=ago(700), until=ago(-3600)
    )
    summary = summarise([process(servers=(down(700),))], NOW, known=[known])
    (need,) = summary.needs
    assert (summary.is_well, summary.urgent, summary.known, need.is_urgent) == (True, 0, 1, False)
    assert status.words(need, NOW).startswith("A is down for 12 min")
    assert "ann sees to it until" in status.words(need, NOW)
    assert status.words(need, NOW).endswith(": disk ordered")
    assert status.sentence(summary).endswith("somebody sees to 1 thing.")
    assert status.to_dict(summary)["needs"][0]["known"]["author"] == "ann"
    over = known.model_copy(update={"until": ago(1)})
    assert not summarise([process(servers=(down(700),))], NOW, known=[over]).is_well
