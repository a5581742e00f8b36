"""The commands, with a broker in memory: what they send, print and refuse, and their exit codes."""

import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from etl import broker
from etl.cli import main, terminal
from etl.config import PROTOCOLS, ProtocolSpec
from etl.errors import BrokerUnavailable, CommitRejected, CommitUnknown, Fenced, InvalidMessage
from etl.models import DLQMessage, FileTransferJob, TransferResult, header
from etl.models.control import AuditRecord
from etl.models.task import Attempt, Origin, Record
from etl.models.wire import Message, Partition
from etl.topics import letters
from etl.transfer import BaseTransfer, TransferFactory

pytestmark = pytest.mark.unit

JOB = {"source": {"hostname": "SRC", "path": "/a"}, "destination": {"hostname": "DST", "path": "/b"}}


class Kafka:
    """Topics in memory; `answer` is the consumer: what it says to a job."""

    def __init__(self) -> None:
        names = ("jobs", "jobs-results", "jobs-dlq", "etl-status", "etl-control", "etl-audit")
        self.topics: dict[str, list[Record]] = {name: [] for name in names}
        self.deleted: list[dict[Partition, int]] = []
        self.answer: Callable[[Record], TransferResult | None] = lambda record: None
        self.failure: BrokerUnavailable | None = None
        self.calls: list[str] = []
        self.results_topic = "jobs-results"
        self.with_origin = True

    def append(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
    ) -> Record:
        if topic not in self.topics:
            raise BrokerUnavailable(f"topic {topic} does not exist")
        record = Record(topic, partition or 0, len(self.topics[topic]), key, value, tuple(headers), 0.0)
        self.topics[topic].append(record)
        return record

    def bury(self, original: bytes | None, error: Exception | str = "why", *, replays: int = 0, **fields: Any) -> None:
        changes = {name: fields.pop(name) for name in ("timestamp", "error_code") if name in fields}
        source = Record("jobs", 0, len(self.topics["jobs-dlq"]), None, original)
        letter = DLQMessage.from_record(source, error, **fields).model_copy(update=changes)
        headers = ((header.REPLAYS, str(replays).encode()),) if replays else ()
        self.append("jobs-dlq", b"k", letter.to_json().encode(), (*headers, ("trace", b"t")))


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Kafka:
    kafka = Kafka()

    class Reader:
        def __init__(self, bootstrap_servers: str, topic: str, *, committed: bool = True) -> None:
            if bootstrap_servers == "127.0.0.1:1":
                raise BrokerUnavailable(f"broker {bootstrap_servers} cannot be reached")
            self.topic = topic

        def ends(self) -> dict[int, int]:
            if self.topic not in kafka.topics:
                raise BrokerUnavailable(f"topic {self.topic} does not exist")
            kafka.calls.append(f"ends {self.topic}")
            return {0: len(kafka.topics[self.topic])}

        def scan(self, until: dict[int, int] | None = None) -> Iterator[Record]:
            kafka.calls.append(f"scan {self.topic}")
            yield from list(kafka.topics[self.topic])

        def follow(self, start: dict[int, int]) -> Iterator[Record | None]:
            position = start[0]
            while True:
                found = kafka.topics[self.topic][position:]
                yield from found
                position += len(found)
                if not found:
                    time.sleep(0.01)
                    yield None

        def close(self) -> None:
            pass

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            self.close()

    class Delivery:
        def __init__(self, record: Record) -> None:
            self.record = record

        def result(self, timeout: float = 1.0) -> tuple[int, int]:
            return self.record.partition, self.record.offset

    class Writer(Reader):
        def __init__(self, bootstrap_servers: str) -> None:
            super().__init__(bootstrap_servers, "")

        def send(
            self, topic: str, key: bytes | None, value: bytes, headers: Sequence[tuple[str, bytes]] = ()
        ) -> Delivery:
            if kafka.failure:
                raise kafka.failure
            kafka.calls.append(f"send {topic}")
            record = kafka.append(topic, key, value, headers)
            if result := kafka.answer(record):
                place = f"{topic}-{record.partition}-{record.offset}".encode()
                headers = [(header.ORIGIN, place)] if kafka.with_origin else []
                kafka.append(kafka.results_topic, result.job_id.encode(), result.to_json().encode(), headers)
            return Delivery(record)

        def flush(self, timeout: float = 1.0) -> None:
            pass

    class TransactionalProducer:
        def __init__(self, bootstrap_servers: str, transactional_id: str) -> None:
            kafka.calls.append(f"producer {transactional_id}")

        def open(self) -> None:
            kafka.calls.append("open")

        def transact(self, messages: Sequence[Message]) -> None:
            if kafka.failure:
                raise kafka.failure
            kafka.calls.append(f"transact {len(messages)}")
            for message in messages:
                kafka.append(message.topic, message.key, message.value, message.headers, message.partition)

        def close(self) -> None:
            kafka.calls.append("close")

    class Admin:
        def __init__(self, bootstrap_servers: str) -> None:
            pass

        def describe(self, names: Sequence[str]) -> dict[str, None]:
            return dict.fromkeys(names)

        def delete_before(self, offsets: dict[Partition, int]) -> None:
            kafka.deleted.append(offsets)

    fakes = {"Admin": Admin, "Reader": Reader, "Writer": Writer, "TransactionalProducer": TransactionalProducer}
    for name, fake in fakes.items():
        monkeypatch.setattr(broker, name, fake)
    monkeypatch.chdir(tmp_path)
    for name in ("ETL_TOPIC", "ETL_BOOTSTRAP_SERVERS", "ETL_GROUP_ID"):
        monkeypatch.delenv(name, raising=False)
    return kafka


def etl(*arguments: str, given: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main, arguments, input=given, catch_exceptions=False)


def jobs(*arguments: str, given: str | bytes | None = None) -> Result:
    return etl(*arguments, "--topic", "jobs", given=given)


def succeed(record: Record) -> TransferResult:
    job = FileTransferJob.from_json(record.value)
    return TransferResult(job_id=job.job_id or "?", status="SUCCESS", bytes=2_500_000, source=job.source)


# --- submit ---------------------------------------------------------------------------------------------------


def test_one_job_is_sent_with_an_id_a_key_and_its_options(kafka: Kafka) -> None:
    """Claim: etl submit SRC:/path DST:/path sends one valid job."""
    result = jobs(
        *("submit", "src:/in//a b.tif", "DST:/out:1", "--priority", "high", "--overwrite", "skip"),
        *("--source-action", "move:/done/a"),
    )
    assert result.exit_code == 0, result.output
    (record,) = kafka.topics["jobs"]
    job = FileTransferJob.from_json(record.value)
    assert record.key == b"DST:/out:1"
    assert (str(job.source), job.priority, job.options.overwrite) == ("src:/in/a b.tif", "high", "skip")
    assert job.options.move_to == "/done/a"
    assert result.stdout == f"1 job sent to jobs: {job.job_id}\n"
    assert re.fullmatch("[0-9a-f]{32}", job.job_id or "")


def test_lines_are_sent_as_they_are_and_those_without_an_id_get_one(kafka: Kafka) -> None:
    """Claim: the bytes of a valid line are not touched; an id is added in the form of the line."""
    flat = '{"src_id": "SRC", "src_path": "/a", "dst_id": "dst", "dst_path": "/b"}'
    line = json.dumps({**JOB, "job_id": "mine", "metadata": {"n": 1.10}}, indent=None)
    result = jobs("submit", "--file", "-", "--json", given=f"{line}\n\n{flat}\r\n")
    assert result.exit_code == 0, result.output
    first, second = kafka.topics["jobs"]
    assert first.value == line.encode()
    added = json.loads(second.value or b"")
    assert added.pop("task_id")
    assert added == json.loads(flat)
    assert first.key == second.key == b"DST:/b"
    told = [json.loads(text) for text in result.stdout.splitlines()]
    assert told[0] == {"job_id": "mine", "topic": "jobs", "partition": 0, "offset": 0}


def test_a_line_of_several_files_is_sent_as_a_job_for_each(kafka: Kafka) -> None:
    """Claim: each has an id by which its result is known."""
    files = [{name: JOB[name] for name in ("source", "destination")}] * 2
    result = jobs("submit", "--file", "-", given=json.dumps({"message_version": "2.0", "job_id": "m", "files": files}))
    assert result.exit_code == 0, result.output
    assert [json.loads(record.value or b"")["job_id"] for record in kafka.topics["jobs"]] == ["m.1", "m.2"]


def test_a_bad_line_stops_all_before_anything_is_sent(kafka: Kafka, tmp_path: Path) -> None:
    """Claim: each bad line is named with its number and field, exit code 2, nothing sent."""
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(b"\n".join([json.dumps(JOB).encode(), b'{"source": 1}', b"\x1b[2J", *[b"x"] * 30]))
    result = jobs("submit", "--file", str(path))
    assert result.exit_code == 2
    assert "line 2: source: must be an object; destination: is missing" in result.stderr
    assert "line 3: message: is not JSON" in result.stderr
    assert "and 12 more" in result.stderr
    assert "\x1b" not in result.stderr
    assert kafka.topics["jobs"] == []


def test_unchecked_lines_are_sent_whatever_they_are(kafka: Kafka) -> None:
    """Claim: --no-check changes no byte, and --wait finds the result under the derived id."""

    def answer(record: Record) -> TransferResult:
        return TransferResult(
            job_id=f"jobs-0-{record.offset}", status="FAILED", error="no \x1b job", error_code="INVALID_MESSAGE"
        )

    kafka.answer = answer
    for kafka.with_origin in (True, False):
        result = jobs("submit", "--file", "-", "--no-check", "--wait", given=b"\xff\n{}\n" + json.dumps(JOB).encode())
        assert result.exit_code == 1
        assert "3 jobs: 0 done, 3 failed" in result.stdout
        assert "INVALID_MESSAGE: no \\u001b job" in result.stderr
    assert [record.value for record in kafka.topics["jobs"]][:3] == [b"\xff", b"{}", json.dumps(JOB).encode()]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("SRC:/a",),
        ("SRC", "DST:/b"),
        (":/a", "DST:/b"),
        ("SRC:/a", "DST:/b/"),
        ("SRC:/a", "DST:/b", "--source-action", "burn"),
        ("SRC:/a", "DST:/b", "--no-check"),
        ("SRC:/a", "DST:/b", "--file", "x"),
        ("--file", "x", "--priority", "low"),
        ("--file", "does-not-exist"),
        ("--file", "/"),
        ("-",),
        ("SRC:/a", "DST:/b", "--timeout", "0"),
    ],
)
def test_wrong_usage_is_exit_code_2(kafka: Kafka, arguments: tuple[str, ...]) -> None:
    """Claim: what cannot be meant is refused before anything is sent."""
    result = jobs("submit", *arguments)
    assert result.exit_code == 2, result.output
    assert "Error:" in result.stderr
    assert kafka.calls == []


def test_a_server_that_is_none_here_is_warned_of(kafka: Kafka, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claim: sent all the same, as the consumers may know it; without any server here nothing is said."""
    assert jobs("submit", "SRC:/a", "ARCHIV:/b").stderr == ""
    for name in ("SRC", "ARCHIVE"):
        monkeypatch.setenv(f"{name}_TYPE", "local")
        monkeypatch.setenv(f"{name}_BASE_PATH", "/tmp")
    result = jobs("submit", "SRC:/a", "ARCHIV:/b")
    assert result.exit_code == 0
    assert "warning: unknown server 'ARCHIV' (nearest: ARCHIVE)" in result.stderr
    assert "SRC" not in result.stderr


def test_waiting_starts_before_sending_and_ends_with_a_summary(kafka: Kafka) -> None:
    """Claim: results that come at once are not missed; other people's results are not counted."""
    kafka.append("jobs-results", b"x", b'{"job_id": "j0", "status": "FAILED"}')

    def answer(record: Record) -> TransferResult:
        kafka.append("jobs-results", b"x", b"not a result")
        kafka.append("jobs-results", b"x", b'{"job_id": "j0", "status": "FAILED"}', [(header.ORIGIN, b"jobs-9-9")])
        return succeed(record)

    kafka.answer = answer
    lines = "\n".join(json.dumps({**JOB, "job_id": f"j{n % 2}"}) for n in range(4))
    result = jobs("submit", "-", "--wait", given=lines)
    assert result.exit_code == 0, result.output
    assert kafka.calls.index("ends jobs-results") < kafka.calls.index("send jobs")
    assert "4 jobs: 4 done, 0 failed; 10.0 MB in" in result.stdout


def test_a_failed_job_is_exit_code_1_and_json_stays_json(kafka: Kafka) -> None:
    """Claim: --json prints nothing but results to standard output; failures have a topic of their own if set."""
    kafka.topics["failures"] = []
    kafka.results_topic = "failures"
    kafka.answer = lambda record: succeed(record).model_copy(update={"status": "FAILED", "error_code": "IO_ERROR"})
    Path(".env").write_text("FAIL_TOPIC=failures\n")
    result = jobs("submit", "SRC:/a", "DST:/b", "--wait", "--json")
    assert result.exit_code == 1
    assert [json.loads(line)["error_code"] for line in result.stdout.splitlines()] == ["IO_ERROR"]
    assert "1 job: 0 done, 1 failed" in result.stderr


def test_no_result_in_time_is_exit_code_1(kafka: Kafka) -> None:
    """Claim: --timeout ends the wait, and the jobs without a result are named, twenty of them."""
    kafka.answer = lambda record: succeed(record) if record.offset % 2 else None
    lines = [json.dumps({**JOB, "job_id": f"j{number}"}) for number in range(50)]
    result = jobs("submit", "-", "--wait", "--timeout", "0.5", given="\n".join(lines))
    assert result.exit_code == 1
    assert "no result within 0.5 s: 25 jobs" in result.stderr
    named = [line for line in result.stderr.splitlines() if line.startswith("no result: ")]
    assert named == [f"no result: j{number}" for number in range(0, 40, 2)]
    assert "and 5 more without a result" in result.stderr
    for place in (
        "--describe --group etl-worker-group\n",
        '"job waits" or "job deferred" in the consumers\' logs',
        "etl dlq list --topic jobs\n",
    ):
        assert place in result.stderr
    result = jobs("submit", "SRC:/a", "DST:/b", "--job-id", "lost", "--wait", "--timeout", "0.05", "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no result: lost\n" in result.stderr
    assert "without a result" not in result.stderr


def test_ctrl_c_while_waiting_says_that_the_jobs_were_sent(kafka: Kafka) -> None:
    """Claim: who stops waiting is told that the jobs go on, and sees it in the exit code."""
    kafka.answer = lambda record: succeed(record) if record.offset == 0 else None
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    lines = [json.dumps({**JOB, "job_id": f"j{number}"}) for number in range(3)]
    result = jobs("submit", "-", "--wait", given="\n".join(lines))
    signal.signal(signal.SIGINT, before)
    assert result.exit_code == 130
    assert "no longer waiting: 3 jobs sent, 2 without a result yet" in result.stderr


def test_a_broker_that_fails_while_sending_is_one_sentence(kafka: Kafka) -> None:
    """Claim: it says how many jobs are known to be sent."""
    kafka.failure = BrokerUnavailable("message was not acknowledged")
    result = jobs("submit", "SRC:/a", "DST:/b")
    assert (result.exit_code, result.stderr) == (
        1,
        "message was not acknowledged (at least 0 of 1 jobs were sent)\n",
    )
    result = jobs("submit", "SRC:/a", "DST:/b", "--wait", "--bootstrap-servers", "127.0.0.1:1")
    assert (result.exit_code, result.stderr) == (1, "broker 127.0.0.1:1 cannot be reached\n")


def test_many_failures_are_cut_short(kafka: Kafka) -> None:
    """Claim: twenty failures are named, the rest counted."""
    kafka.answer = lambda record: succeed(record).model_copy(update={"status": "FAILED"})
    result = jobs("submit", "-", "--wait", given="\n".join([json.dumps(JOB)] * 25))
    assert result.stderr.count("failed: ") == 20
    assert "and 5 more failed" in result.stderr


# --- dlq ------------------------------------------------------------------------------------------------------


@pytest.fixture
def dead(kafka: Kafka) -> Kafka:
    now = datetime.now(UTC)
    kafka.bury(json.dumps({**JOB, "job_id": "j0"}).encode(), "no such file", job_id="j0", error_code="FILE_NOT_FOUND")
    kafka.bury(b"\x1b[2J", "message: is not JSON", error_code="INVALID_MESSAGE", timestamp=now - timedelta(hours=3))
    flat = {"task_id": "j2", "src_id": "KR", "src_path": "/입력/a.tif", "dst_id": "DST", "dst_path": "/c"}
    kafka.bury(
        json.dumps(flat).encode(),
        "reset",
        job_id="j2",
        attempts=[Attempt("2026-01-01T00:00:00Z", "w/1", "CONNECTION_ERROR: reset")],
        origin=Origin("jobs", 4, 5),
        replays=2,
        timestamp=now - timedelta(days=2),
    )
    kafka.append("jobs-dlq", None, b"somebody else's")
    return kafka


def places(*arguments: str) -> list[int]:
    result = jobs("dlq", "list", "--json", *arguments)
    assert result.exit_code == 0, result.output
    return [json.loads(line)["offset"] for line in result.stdout.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "offsets"),
    [
        ((), [2, 1, 0]),
        (("--code", "file_not_found"), [0]),
        (("--code", "FILE_NOT_FOUND", "--code", "INVALID_MESSAGE"), [1, 0]),
        (("--server", "kr"), [2]),
        (("--server", "DST"), [2, 0]),
        (("--path", "/입력/*.tif"), [2]),
        (("--path", "/?"), [2, 0]),
        (("--older-than", "2h"), [2, 1]),
        (("--newer-than", "1d"), [1, 0]),
        (("--older-than", "90m", "--newer-than", "1w", "--server", "KR"), [2]),
        (("--job-id", "j2"), [2]),
        (("--job-id", "jobs-0-1"), [1]),
        (("--path", "nothing"), []),
    ],
)
def test_dead_letters_are_chosen(dead: Kafka, arguments: tuple[str, ...], offsets: list[int]) -> None:
    """Claim: code, server, path, age and job choose, and all given must hold; the oldest is first."""
    assert places(*arguments) == offsets


@pytest.mark.parametrize("command", ["list", "replay"])
def test_a_code_that_no_error_has_is_wrong_usage(dead: Kafka, command: str) -> None:
    """Claim: exit code 2 and the known ones, before anything is read or sent."""
    result = jobs("dlq", command, "--code", "FILE_NOT_FOUND", "--code", "file_missing")
    assert result.exit_code == 2
    assert "no error has the code FILE_MISSING (known: ALREADY_EXISTS, AUTHENTICATION_FAILED" in result.stderr
    assert dead.calls == []


def test_the_table_shows_what_and_why_and_nothing_that_moves_the_cursor(dead: Kafka) -> None:
    """Claim: one line each; what is no dead letter is counted, never fatal."""
    result = jobs("dlq", "list")
    assert result.exit_code == 0
    assert re.search(r"0:0 .*FILE_NOT_FOUND +j0 +SRC:/a +DST:/b +no such file", result.stdout)
    assert "KR:/입력/a.tif" in result.stdout
    assert result.stdout.endswith("3 dead letters in jobs-dlq\n")
    assert "1 record skipped, not readable as a dead letter: 0:3" in result.stderr


def test_the_counts_are_of_what_was_asked_for(dead: Kafka) -> None:
    """Claim: with a filter the last line says how many of how many; those sent back are counted by it, too."""
    assert jobs("dlq", "replay", "--job-id", "j2", "--yes").exit_code == 0
    expected = {
        (): "2 dead letters in jobs-dlq (1 already replayed: see --replayed)",
        ("--replayed",): "3 dead letters in jobs-dlq",
        ("--server", "KR"): "0 of 2 dead letters in jobs-dlq (1 already replayed: see --replayed)",
        ("--server", "KR", "--replayed"): "1 of 3 dead letters in jobs-dlq",
        ("--code", "FILE_NOT_FOUND"): "1 of 2 dead letters in jobs-dlq",
    }
    said = {arguments: jobs("dlq", "list", *arguments).stdout.splitlines()[-1] for arguments in expected}
    assert said == expected


def test_one_dead_letter_is_shown_whole(dead: Kafka) -> None:
    """Claim: by id or place; control characters and history readable; what is not there is an error."""
    shown = jobs("dlq", "show", "j2").stdout
    assert "attempt 1: 2026-01-01T00:00:00Z w/1: CONNECTION_ERROR: reset" in shown
    assert "was at:    jobs 4:5" in shown
    assert "replays:   2" in shown
    raw = jobs("dlq", "show", "0:1").stdout
    assert "\x1b" not in raw
    assert json.loads(raw.splitlines()[-1]) == {"raw": "\x1b[2J"}
    assert json.loads(jobs("dlq", "show", "0:0", "--json").stdout)["original_message"]["job_id"] == "j0"
    missing = jobs("dlq", "show", "nobody")
    assert (missing.exit_code, missing.stderr) == (1, "Error: jobs-dlq holds no dead letter nobody\n")


def test_a_replay_sends_originals_and_markers_together(dead: Kafka) -> None:
    """Claim: the producer is opened before anything is read; bytes, id, count and the producer's headers go along."""
    result = jobs("dlq", "replay", "--all", "--yes")
    assert result.exit_code == 0, result.output
    assert dead.calls[:2] == ["producer etl-replay-jobs-dlq", "open"]
    assert dead.calls[-3:] == ["transact 6", "close", "send etl-audit"]
    third, second, first = dead.topics["jobs"]  # the oldest went first
    assert second.value == b"\x1b[2J"
    assert (first.key, second.key, third.key) == (b"DST:/b", None, b"DST:/c")
    assert third.headers == (("trace", b"t"), ("etl-job-id", b"j2"), ("etl-replays", b"3"))
    assert second.header("etl-job-id") == b"jobs-0-1"
    marker = dead.topics["jobs-dlq"][4]
    assert json.loads(marker.value or b"")["replayed"] == {"partition": 0, "offset": 2}
    assert marker.header("etl-marker") == b"replayed"
    assert places() == []
    assert places("--replayed") == [2, 1, 0]
    assert "nothing to replay" in jobs("dlq", "replay", "--all").stdout
    assert len(dead.topics["jobs"]) == 3


def test_a_replay_of_named_ones(dead: Kafka) -> None:
    """Claim: names choose too; what is not there, was sent back or was cut short is said."""
    whole = DLQMessage.from_record(Record("jobs", 0, 9, None, b"x" * 99), "large", "big")
    dead.append("jobs-dlq", None, whole.shortened(2000).to_json().encode())
    result = jobs("dlq", "replay", "0:0", "j2", "nobody", "7:7", "big")
    assert result.exit_code == 0
    assert "2 dead letters replayed to jobs" in result.stdout
    assert "jobs-dlq holds no dead letter 7:7" in result.stderr
    assert "jobs-dlq holds no dead letter nobody" in result.stderr
    assert "0:4 skipped: the message was too large, and only its start was kept" in result.stderr
    again = jobs("dlq", "replay", "0:0")
    assert again.exit_code == 1
    assert "0:0 was already replayed" in again.stderr
    assert "its start in base64" in jobs("dlq", "show", "big").stdout


@pytest.mark.parametrize("arguments", [(), ("--yes",), ("--all", "0:0"), ("--all", "--server", "DST")])
def test_all_are_sent_back_only_when_told_so(dead: Kafka, arguments: tuple[str, ...]) -> None:
    """Claim: a script whose list of ids came out empty replays nothing; to look needs no word."""
    result = jobs("dlq", "replay", *arguments)
    assert result.exit_code == 2
    assert "--all" in result.stderr
    assert dead.calls == []
    assert jobs("dlq", "replay", "--job-id", "", "--yes").stdout.endswith("0 dead letters replayed to jobs\n")
    assert dead.topics["jobs"] == []
    assert "j0" in jobs("dlq", "replay", "--dry-run").stdout


def test_a_dry_run_touches_nothing(dead: Kafka) -> None:
    """Claim: it shows what would go, and opens no producer."""
    result = jobs("dlq", "replay", "--dry-run", "--code", "FILE_NOT_FOUND")
    assert result.exit_code == 0
    assert "j0" in result.stdout
    assert "j2" not in result.stdout
    assert not any(call.startswith(("producer", "transact")) for call in dead.calls)


def test_a_terminal_is_asked(dead: Kafka, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claim: no is no; --yes asks nobody."""
    monkeypatch.setattr("etl.cli.dlq._asks", lambda: True)
    result = jobs("dlq", "replay", "--all", given="n\n")
    assert result.exit_code == 1
    assert "replay 3 dead letters to jobs? [y/N]" in result.stdout
    assert dead.topics["jobs"] == []
    assert jobs("dlq", "replay", "--all", "--yes").exit_code == 0
    assert len(dead.topics["jobs"]) == 3


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (Fenced("x"), "another replay started and took over; this one replayed 0"),
        (CommitUnknown("no reply"), "no reply: 0 replayed, and the next ones perhaps; run the command again"),
        (CommitRejected("refused"), "refused: 0 of 3 replayed"),
    ],
)
def test_a_replay_that_fails_says_what_was_sent(dead: Kafka, failure: BrokerUnavailable, said: str) -> None:
    """Claim: exit code 1, one sentence, and the producer closed."""
    dead.failure = failure
    result = jobs("dlq", "replay", "--all")
    assert result.exit_code == 1
    assert said in result.stderr
    assert dead.calls[-1] == "close"


def test_large_replays_go_in_several_transactions(kafka: Kafka) -> None:
    """Claim: none carries more than a thousand dead letters, or 8 MiB."""
    for number in range(1001):
        kafka.bury(b"%d" % number)
    kafka.bury(b"x" * 9_000_000)
    result = jobs("dlq", "replay", "--all")
    assert result.exit_code == 0
    assert [call for call in kafka.calls if call.startswith("transact")] == [
        "transact 2000",
        "transact 2",
        "transact 2",
    ]


def test_markers_that_are_none_are_ignored(kafka: Kafka) -> None:
    """Claim: a broken note hides nothing, and no forged one ends the command."""
    kafka.bury(b"{}")
    forged = b'{"replayed": {"partition": Infinity, "offset": 0}}', b"[" * 100_000, b'{"replayed": "\xff"}'
    for value in (None, b"x", b"{}", b'{"replayed": 1}', *forged):
        kafka.append("jobs-dlq", None, value, [(header.MARKER, b"replayed")])
    assert places() == [0]


def test_a_job_as_deep_as_a_job_may_be_is_listed_shown_and_replayed(kafka: Kafka) -> None:
    """Claim: its dead letter is one level deeper."""
    deep = json.dumps({**JOB, "job_id": "deep"})[:-1] + ', "metadata": ' + '{"a":' * 62 + "{}" + "}" * 63
    assert FileTransferJob.from_json(deep).job_id == "deep"
    kafka.bury(deep.encode(), job_id="deep")
    assert places() == [0]
    assert json.loads(jobs("dlq", "show", "deep", "--json").stdout)["job_id"] == "deep"
    assert jobs("dlq", "replay", "deep", "--yes").exit_code == 0
    assert [record.value for record in kafka.topics["jobs"]] == [deep.encode()]


forged_values = st.binary(max_size=60) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["replayed", "partition", "offset", "error", "timestamp"]), inner, max_size=4)
    ),
    max_leaves=6,
).map(lambda value: json.dumps(value).encode())


@given(values=st.lists(st.tuples(st.booleans(), forged_values), max_size=4))
def test_no_forged_record_ends_a_look_at_the_dead_letters(values: list[tuple[bool, bytes]]) -> None:
    """Claim: what is neither a note nor a letter is passed over or named."""
    for is_marker, value in values:
        headers = ((header.MARKER, b"replayed"),) if is_marker else ()
        record = Record("jobs-dlq", 0, 0, None, value, headers)
        if is_marker:
            letters.read_marker(record)  # raises nothing
            continue
        with contextlib.suppress(InvalidMessage):
            letter = letters.Letter(record, DLQMessage.from_json(record.value), False)
            assert json.dumps(letter.to_dict())
            assert letter.shown("source") is not None
            assert letters.Filters(older_than=timedelta(days=1)).match(letter) is not None


def a_letter(partition: int, offset: int, timestamp: float = 0.0) -> letters.Letter:
    record = Record("jobs-dlq", partition, offset, None, b"{}", (), timestamp)
    return letters.Letter(record, DLQMessage.from_record(record, "why"), False)


@given(
    places=st.dictionaries(st.tuples(st.integers(0, 2), st.integers(0, 20)), st.integers(0, 10), max_size=15),
    days=st.none() | st.integers(0, 10),
    keep=st.none() | st.integers(0, 6),
)
def test_a_purge_deletes_nothing_that_is_to_stay(
    places: dict[tuple[int, int], int], days: int | None, keep: int | None
) -> None:
    """Claim: only what is old and not among the newest, and nothing behind what stays; all that there is of it."""
    now = time.time()
    found = [a_letter(*place, now - age * 86400 - 5) for place, age in places.items()]
    cuts = letters.choose_cuts(found, None if days is None else timedelta(days=days), keep)
    newest = sorted(found, key=lambda letter: (letter.record.timestamp, letter.place), reverse=True)[: keep or 0]
    stays = {letter.place for letter in newest} | {p for p, age in places.items() if days is not None and age < days}
    gone = {place for place in places if place[1] < cuts.get(place[0], 0)}
    assert not gone & stays
    for partition, offset in set(places) - stays - gone:
        assert any(p == partition and o < offset for p, o in stays)


def acts(kafka: Kafka) -> list[AuditRecord]:
    return [AuditRecord.from_json(record.value) for record in kafka.topics["etl-audit"]]


def test_what_is_discarded_is_settled_and_can_still_be_read(dead: Kafka) -> None:
    """Claim: with its reason; it is not replayed afterwards, and is listed only when asked for."""
    done = jobs("dlq", "discard", "j0", "--reason", "double", "--yes")
    assert done.stdout.splitlines()[-1] == "1 dead letter of jobs-dlq discarded"
    assert json.loads(dead.topics["jobs-dlq"][-1].value or b"")["reason"] == "double"
    again = jobs("dlq", "replay", "j0", "--yes")
    assert again.exit_code == 1
    assert "0:0 was already discarded" in again.stderr
    assert "j0" not in jobs("dlq", "list").stdout
    assert "discarded" in jobs("dlq", "list", "--replayed").stdout
    assert dead.topics["jobs"] == []


@pytest.mark.parametrize(
    "arguments",
    [("--reason", "x", "--yes"), ("j0", "--yes"), ("j0", "--reason", "x"), ("--code", "NONE", "--reason", "x")],
)
def test_discarding_without_a_choice_a_reason_or_an_answer_is_wrong_usage(
    dead: Kafka, arguments: tuple[str, ...]
) -> None:
    """Claim: nothing is settled by accident."""
    count = len(dead.topics["jobs-dlq"])
    assert jobs("dlq", "discard", *arguments).exit_code == 2
    assert len(dead.topics["jobs-dlq"]) == count


def test_each_act_on_dead_letters_is_in_the_audit(dead: Kafka, deleted: list[dict[Partition, int]]) -> None:
    """Claim: who, what, which, why and how many; a dry run is no act, and no password is told."""
    Path(".env").write_text("A_TYPE=ftp\nA_HOST=127.0.0.1\nA_USER=u\nA_PASS=Distinctive-7\n")
    assert jobs("dlq", "discard", "j0", "--reason", "like Distinctive-7", "--yes").exit_code == 0
    assert jobs("dlq", "replay", "--server", "a", "--yes").exit_code == 0
    assert jobs("dlq", "purge", "--keep", "1", "--yes").exit_code == 0
    assert jobs("dlq", "purge", "--keep", "0", "--dry-run").exit_code == 0
    discarded, replayed, purged = acts(dead)
    assert (discarded.action, discarded.target, discarded.count) == ("discard", "jobs-dlq", 1)
    assert (discarded.filter, discarded.reason, discarded.via) == ({"named": ["j0"]}, "like ***", "cli")
    assert "@" in discarded.actor
    assert (replayed.action, replayed.filter) == ("replay", {"servers": ["A"]})
    assert (purged.action, purged.filter) == ("purge", {"named": ["keep 1"]})
    assert not any(b"Distinctive-7" in (record.value or b"") for record in dead.topics["etl-audit"])


@pytest.fixture
def deleted(kafka: Kafka) -> list[dict[Partition, int]]:
    return kafka.deleted


def test_a_purge_says_what_it_deletes(dead: Kafka, deleted: list[dict[Partition, int]]) -> None:
    """Claim: nothing in a dry run; for good only once it is confirmed; how many were never replayed is told."""
    assert jobs("dlq", "replay", "j0", "--yes").exit_code == 0
    dry = jobs("dlq", "purge", "--keep", "1", "--dry-run")
    assert dry.stdout.splitlines()[-1] == (
        "2 dead letters of 3, 1 of them not replayed, would be deleted from jobs-dlq"
    )
    assert deleted == []
    done = jobs("dlq", "purge", "--keep", "1", "--older-than", "1d", "--yes")
    assert done.stdout.splitlines()[-1] == "2 dead letters of 3, 1 of them not replayed, deleted from jobs-dlq"
    assert deleted == [{Partition("jobs-dlq", 0): 2}]
    assert jobs("dlq", "purge", "--keep", "9", "--yes").exit_code == 0
    assert len(deleted) == 1


@pytest.mark.parametrize("arguments", [("--yes",), ("--keep", "-1", "--yes"), ("--keep", "0"), ("--older-than", "x")])
def test_a_purge_of_nobody_knows_what_is_wrong_usage(
    arguments: tuple[str, ...], dead: Kafka, deleted: list[dict[Partition, int]]
) -> None:
    """Claim: all of them only if asked for, and never unconfirmed."""
    assert jobs("dlq", "purge", *arguments).exit_code == 2
    assert deleted == []


@pytest.mark.parametrize("text", ["", "2", "h", "2y", "-2h", "1e3h", "99999999999h"])
def test_an_age_that_is_none_is_wrong_usage(kafka: Kafka, text: str) -> None:
    """Claim: exit code 2, and the option is named."""
    result = jobs("dlq", "list", "--older-than", text)
    assert result.exit_code == 2
    assert "--older-than" in result.stderr
    with pytest.raises(ValueError):
        letters.parse_age(text)


def test_no_password_is_printed(kafka: Kafka) -> None:
    """Claim: a configured password that somebody put into a message is hidden in every form of output."""
    Path(".env").write_text("A_TYPE=ftp\nA_HOST=127.0.0.1\nA_USER=u\nA_PASS=Distinctive-7\n")
    kafka.bury(json.dumps({**JOB, "metadata": {"p": "Distinctive-7"}}).encode(), "login Distinctive-7")
    for command in (("dlq", "list"), ("dlq", "list", "--json"), ("dlq", "show", "0:0"), ("config", "check")):
        result = jobs(*command)
        assert result.exit_code == 0
        assert "Distinctive-7" not in result.output
    assert jobs("dlq", "replay", "--all").exit_code == 0
    assert b"Distinctive-7" in (kafka.topics["jobs"][0].value or b"")


# --- servers, config ------------------------------------------------------------------------------------------


@pytest.fixture
def folder(kafka: Kafka, tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "a").touch()
    Path(".env").write_text(
        f"GOOD_TYPE=local\nGOOD_BASE_PATH={folder}\nGONE_TYPE=local\nGONE_BASE_PATH={tmp_path}/gone\n"
        "DEAF_TYPE=ftp\nDEAF_HOST=127.0.0.1\nDEAF_PORT=1\nDEAF_USER=u\nDEAF_PASS=p\n"
    )
    return folder


def test_servers_are_tried(folder: Path) -> None:
    """Claim: each step with its time or its failure; one that failed makes exit code 1."""
    result = etl("servers", "check")
    assert result.exit_code == 1
    assert re.search(r"GOOD +local .* ok +\d+ +\d+ +ok, 1 name in its folder", result.stdout)
    assert re.search(r"DEAF +ftp +127.0.0.1:1 +failed +- +- +CONNECTION_ERROR: .*refused", result.stdout)
    assert re.search(r"GONE +local .* failed", result.stdout)


def test_a_bandwidth_limit_is_shown(folder: Path) -> None:
    """Claim: by the trial of a server and by the check of all settings; others have no column for it."""
    assert "bytes/s" not in etl("config", "check").stdout
    with Path(".env").open("a") as file:
        file.write("GOOD_BANDWIDTH_LIMIT=08:00-18:00 20m, 1.5G\n")
    assert "at most 08:00-18:00 20M, 1500M bytes/s" in " ".join(etl("servers", "check", "GOOD").stdout.split())
    (told,) = [json.loads(line) for line in etl("servers", "check", "GOOD", "--json").stdout.splitlines()]
    assert told["bandwidth_limit"] == "08:00-18:00 20M, 1500M"
    assert re.search(r"GOOD .* 08:00-18:00 20M, 1500M", etl("config", "check").stdout)


def test_a_probe_is_written_and_removed(folder: Path) -> None:
    """Claim: --write leaves nothing; names choose, in any case; --json is for programs."""
    result = etl("servers", "check", "good", "--write", "--json")
    assert result.exit_code == 0, result.output
    trial = json.loads(result.stdout)
    assert (trial["server"], trial["ok"], trial["names"]) == ("GOOD", True, 1)
    assert set(trial["ms"]) == {"login", "list", "write"}
    assert [path.name for path in folder.iterdir()] == ["a"]


@pytest.mark.parametrize("failing", ["publish", "look"])
def test_a_probe_that_fails_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """Claim: whatever step breaks, the probe is removed through a new session."""

    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(f"etl.transfer.local.LocalTransfer.{failing}", broken)
    result = etl("servers", "check", "GOOD", "--write")
    assert result.exit_code == 1
    assert "UNKNOWN_ERROR: RuntimeError: a bug" in result.stdout
    assert [path.name for path in folder.iterdir()] == ["a"]


def test_a_server_that_lies_about_the_size_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claim: the probe's size is compared."""
    monkeypatch.setattr("etl.transfer.local.LocalTransfer.look", lambda *_: None)
    result = etl("servers", "check", "GOOD", "--write")
    assert "SIZE_MISMATCH" in result.stdout


class FourMethods(BaseTransfer):
    """A protocol of somebody's own: as little as there may be."""

    spec = ProtocolSpec(default_port=1, needs_login=False)
    uploaded: ClassVar[list[str]] = []

    def connect(self) -> None: ...

    def disconnect(self) -> None: ...

    def download(self, remote_path: str, local_path: str) -> None: ...

    def upload(self, local_path: str, remote_path: str) -> None:
        self.uploaded.append(remote_path)


class Removing(FourMethods):
    def names(self, folder: str) -> list[str]:
        return ["a", "b"]

    def remove(self, path: str) -> None:
        self.uploaded.remove(path)


@pytest.mark.parametrize(
    ("kind", "arguments", "said", "unchecked"),
    [
        (FourMethods, (), "ok, connect() succeeded; not checked: list (no names())", ["list"]),
        (FourMethods, ("--write",), "; not checked: list (no names()), write (no remove())", ["list", "write"]),
        (Removing, (), "ok, 2 names in its folder\n", []),
        (Removing, ("--write",), "ok, 2 names in its folder; not checked: size (no size())", ["size"]),
    ],
)
def test_what_a_users_protocol_cannot_show_is_said(
    kafka: Kafka,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[FourMethods],
    arguments: tuple[str, ...],
    said: str,
    unchecked: list[str],
) -> None:
    """Claim: what was not checked is named, and nothing is written that could not be removed."""
    monkeypatch.setitem(TransferFactory._classes, "mine", kind)
    monkeypatch.setitem(PROTOCOLS, "mine", kind.spec)
    Path(".env").write_text("OWN_TYPE=mine\nOWN_HOST=127.0.0.1\n")
    result = etl("servers", "check", *arguments)
    assert result.exit_code == 0, result.output
    assert said in result.stdout
    told = json.loads(etl("servers", "check", "--json", *arguments).stdout)
    assert (told["ok"], told["unchecked"]) == (True, unchecked)
    assert kind.uploaded == []


def test_a_server_that_jobs_may_only_read_is_not_written_to(folder: Path) -> None:
    """Claim: --write tells why it did not."""
    with Path(".env").open("a") as file:
        file.write(f"SHUT_TYPE=local\nSHUT_BASE_PATH={folder}\nSHUT_ACCESS=read\n")
    before = sorted(folder.rglob("*"))
    result = etl("servers", "check", "--write", "SHUT", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["unchecked"] == ["write"]
    assert sorted(folder.rglob("*")) == before
    assert "write (SHUT_ACCESS)" in etl("servers", "check", "--write", "SHUT").stdout


def test_an_unknown_server_is_wrong_usage(folder: Path) -> None:
    """Claim: exit code 2 and the nearest name."""
    result = etl("servers", "check", "GOD")
    assert result.exit_code == 2
    assert "GOOD" in result.stderr


def test_the_settings_are_checked(folder: Path) -> None:
    """Claim: servers with what max_connections makes in total; names of one place share one limit."""
    with Path(".env").open("a") as file:
        file.write(
            "ALSO_TYPE=ftp\nALSO_HOST=127.0.0.1\nALSO_PORT=1\nALSO_USER=u\nALSO_PASS=p\nALSO_MAX_CONNECTIONS=3\n"
            "ALSO_ACCESS=write,read\n"
        )
        file.write("NOTHING_AT_ALL=1\n")
    result = etl("config", "check", "--topic", "t")
    assert result.exit_code == 0
    assert "topic t, group etl-worker-group" in result.stdout
    assert re.search(r"ALSO +ftp +127.0.0.1:1 +u +read,write +3 x 2 = 6", result.stdout)
    assert re.search(r"DEAF .* shared with ALSO", result.stdout)
    assert "at most 38 sessions" in result.stdout
    assert "NOTHING_AT_ALL" in result.stderr


@pytest.mark.parametrize(
    "command", [("config", "check"), ("submit", "A:/a", "B:/b"), ("dlq", "list"), ("servers", "check")]
)
def test_wrong_settings_are_one_message_and_exit_code_2(kafka: Kafka, command: tuple[str, ...]) -> None:
    """Claim: every command says all that is wrong at once, without a traceback."""
    Path("wrong").write_text("A_TYPE=ftp\nA_PORT=99999\nETL_WORKRES=1\n")
    result = etl(*command, "--env-file", "wrong")
    assert result.exit_code == 2
    for name in ("A_HOST", "A_PORT", "ETL_WORKRES"):
        assert name in result.stderr
    assert "Traceback" not in result.output
    assert etl(*command, "--env-file", "not-there").exit_code == 2


@pytest.mark.parametrize("command", [("config", "check"), ("servers", "check"), ("servers", "check", "A")])
def test_no_servers_is_a_wrong_setting(kafka: Kafka, command: tuple[str, ...]) -> None:
    """Claim: an empty set-up tells what to set, and where it looked; a consumer would not start with it."""
    result = etl(*command)
    assert result.exit_code == 2
    for part in ("no servers are set", "NAME_TYPE", str(Path.cwd() / ".env")):
        assert part in result.stderr


def test_sizes_are_readable() -> None:
    """Claim: three digits and a unit; a table on a terminal takes the terminal's width."""
    assert [terminal.size(n) for n in (0, 999, 12_345_678, 1e12)] == ["0 B", "999 B", "12.3 MB", "1.0 TB"]
    assert terminal.console(error=True).file is sys.stderr


@pytest.mark.parametrize(("word", "meant"), [("dql", "dlq"), ("sumbit", "submit"), ("server", "servers")])
def test_a_mistyped_command_is_no_topic(word: str, meant: str) -> None:
    """It would start a consumer and make topics that are kept for ever."""
    told = CliRunner().invoke(main, [word, "list"])
    assert told.exit_code == 2
    assert f"did you mean {meant}?" in told.output


@pytest.mark.parametrize("word", ["topics", "help", "list"])
def test_what_one_tries_first_is_no_topic(word: str) -> None:
    """There is no such command, and the message says which there are."""
    told = CliRunner().invoke(main, [word])
    assert told.exit_code == 2
    assert "the commands are consume, submit, status, jobs, dlq, offsets, servers, config, hold, release" in told.output


@pytest.mark.parametrize("sign", ["\x1b", "\x9b", "\u202e", "\u2067", "\u200b", "\u2028", "\u3164", "\U000e0041"])
def test_what_a_terminal_does_not_show_as_it_is_is_escaped(sign: str) -> None:
    """Claim: signs that turn the direction of a line, and invisible ones, make no name look like another."""
    escape = json.dumps(sign)[1:-1]
    assert terminal.visible(f"/in/한글{sign}gnp.exe") == f"/in/한글{escape}gnp.exe"
    line = terminal.json_line({"path": f"/in/é{sign}x"})
    assert sign not in line
    assert json.loads(line) == {"path": f"/in/é{sign}x"}
