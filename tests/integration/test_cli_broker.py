"""The commands against a real broker: what is sent is matched with its result, and a replay happens once."""

import json
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from etl.broker import Admin, Reader, TransactionalProducer, Writer
from etl.cli import main
from etl.models import DLQMessage, FileTransferJob, TransferResult, header
from etl.models.task import Record
from etl.models.wire import Message
from stack import Broker, Vsftpd, free_port

pytestmark = pytest.mark.integration

JOB = {"source": {"hostname": "SRC", "path": "/a"}, "destination": {"hostname": "DST", "path": "/b"}}


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broker: Broker, topic: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ETL_BOOTSTRAP_SERVERS", broker.bootstrap_servers)
    monkeypatch.setenv("ETL_TOPIC", topic)
    admin = Admin(broker.bootstrap_servers)
    for name in (topic, f"{topic}-results", f"{topic}-dlq"):
        admin.create(name, 3, {})


def etl(*arguments: str, given: str | None = None) -> Result:
    return CliRunner().invoke(main, arguments, input=given, catch_exceptions=False)


def records(broker: Broker, topic: str) -> list[Record]:
    with Reader(broker.bootstrap_servers, topic) as reader:
        return list(reader.scan())


def bury(broker: Broker, topic: str, count: int, first: int = 0) -> None:
    """Write dead letters as a consumer does: in transactions, so that there are gaps in the offsets."""
    producer = TransactionalProducer(broker.bootstrap_servers, f"test-{topic}-{first}")
    for number in range(first, first + count):
        original = json.dumps({**JOB, "job_id": f"j{number}"}).encode()
        letter = DLQMessage.from_record(Record(topic, 0, number, None, original), "no such file", f"j{number}")
        producer.transact([Message(f"{topic}-dlq", b"k%d" % number, letter.to_json().encode())])
    producer.close()


@pytest.fixture
def worker(broker: Broker, topic: str) -> Iterator[Callable[[Callable[[Record], TransferResult]], None]]:
    """Answer every job as a consumer would: with a result that says where the job was."""
    stop = threading.Event()
    threads: list[threading.Thread] = []

    def start(answer: Callable[[Record], TransferResult]) -> None:
        def work() -> None:
            with Reader(broker.bootstrap_servers, topic) as reader, Writer(broker.bootstrap_servers) as writer:
                for record in reader.follow({}):
                    if stop.is_set():
                        return
                    if record is not None:
                        result = answer(record)
                        place = f"{record.topic}-{record.partition}-{record.offset}".encode()
                        headers = [(header.ORIGIN, place)]
                        writer.send(f"{topic}-results", result.job_id.encode(), result.to_json().encode(), headers)

        threads.append(threading.Thread(target=work, name="worker"))
        threads[-1].start()

    yield start
    stop.set()
    for thread in threads:
        thread.join(10)


def _answer(record: Record) -> TransferResult:
    try:
        job = FileTransferJob.from_json(record.value)
    except ValueError as error:
        return TransferResult(
            job_id=f"{record.topic}-{record.partition}-{record.offset}",
            status="FAILED",
            error=str(error),
            error_code="INVALID_MESSAGE",
        )
    name = job.job_id or f"{record.topic}-{record.partition}-{record.offset}"
    return TransferResult(job_id=name, status="SUCCESS", source=job.source, destination=job.destination, bytes=1000)


def test_submitted_jobs_wait_for_their_own_results(
    worker: Callable[..., None], topic: str, tmp_path: Path, broker: Broker
) -> None:
    """Claim: ids given, missing, twice the same and no job at all: each message gets its own result."""
    worker(_answer)
    lines = [{**JOB, "job_id": f"j{n % 40}", "destination": {"hostname": "DST", "path": f"/{n}"}} for n in range(50)]
    text = "\n".join([*map(json.dumps, lines), json.dumps(JOB), "", "broken", '{"job_id": "x"}'])
    (tmp_path / "jobs").write_text(text)
    result = etl("submit", "--file", "jobs", "--no-check", "--wait", "--timeout", "60")
    assert result.exit_code == 1
    assert "53 jobs: 51 done, 2 failed; 51.0 KB in" in result.stdout
    assert result.stderr.count("INVALID_MESSAGE") == 2
    assert len(records(broker, topic)) == 53

    result = etl("submit", "SRC:/a", "DST:/b", "--wait", "--timeout", "60", "--json")
    assert result.exit_code == 0
    assert TransferResult.from_json(result.stdout).status == "SUCCESS"


def test_jobs_of_one_destination_share_a_partition(broker: Broker, topic: str) -> None:
    """Claim: the key is the destination, so that their order holds."""
    text = "\n".join(json.dumps({**JOB, "source": {"hostname": "SRC", "path": f"/{n}"}}) for n in range(20))
    result = etl("submit", "-", given=text)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"20 jobs sent to {topic}\n"
    found = records(broker, topic)
    assert {record.key for record in found} == {b"DST:/b"}
    assert len({record.partition for record in found}) == 1
    jobs = [FileTransferJob.from_json(record.value) for record in found]
    assert [job.source.path for job in jobs] == [f"/{n}" for n in range(20)]
    assert len({job.job_id for job in jobs}) == 20


def test_one_job_is_sent_in_no_time(broker: Broker, topic: str) -> None:
    """Of its two clients none pauses: the library's pause before it asks for a topic's metadata is 0.1 s."""
    took = []
    for _ in range(6):
        began = time.monotonic()
        assert etl("submit", "SRC:/a", "DST:/b").exit_code == 0
        took.append(time.monotonic() - began)
    assert min(took) < 0.15, took


def test_a_command_imports_no_other(tmp_path: Path) -> None:
    """They take longer to import than a job takes to be sent."""
    script = "import sys, etl.cli; etl.cli.main.get_command(None, 'submit'); print(*sys.modules, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    imported = set(done.stdout.split())
    assert "etl.cli.submit" in imported
    assert not {"etl.cli.dlq", "etl.cli.servers", "etl.sessions", "etl.dispatch", "etl.consumer"} & imported


def test_no_result_in_time_is_a_failure() -> None:
    """Claim: --timeout ends the wait, says how many are missing, and the exit code is 1."""
    result = etl("submit", "SRC:/a", "DST:/b", "--wait", "--timeout", "1.5")
    assert result.exit_code == 1
    assert "no result within 1.5 s: 1 job" in result.stderr


def test_a_topic_that_is_not_there_is_said_at_once(broker: Broker) -> None:
    """Claim: a typo is one sentence, soon."""
    started = time.monotonic()
    result = etl("submit", "SRC:/a", "DST:/b", "--topic", "typo")
    said = "does not exist; a consumer creates it when it starts\n"
    assert (result.exit_code, result.stderr) == (1, f"topic typo {said}")
    assert etl("dlq", "list", "--topic", "typo").stderr == f"topic typo-dlq {said}"
    assert time.monotonic() - started < 8


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command as its own process."""
    command = [sys.executable, "-c", "from etl.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, cwd=folder)


def test_a_broker_that_is_down_is_one_sentence(tmp_path: Path) -> None:
    """Claim: no traceback and no log of every try."""
    done = run("dlq", "list", "--bootstrap-servers", f"127.0.0.1:{free_port()}", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("broker 127.0.0.1:")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_dead_letters_are_replayed_once(broker: Broker, topic: str) -> None:
    """Claim: the originals go back byte for byte with their count; a second run finds nothing; list hides them."""
    bury(broker, topic, 5)
    assert "5 dead letters" in etl("dlq", "list").stdout
    assert "to:        DST:/b\n" in etl("dlq", "show", "j3").stdout

    dry = etl("dlq", "replay", "--dry-run", "--job-id", "j3")
    assert "j3" in dry.stdout
    assert records(broker, topic) == []

    assert f"1 dead letter replayed to {topic}" in etl("dlq", "replay", "--job-id", "j3").stdout
    (back,) = records(broker, topic)
    assert back.value == json.dumps({**JOB, "job_id": "j3"}).encode()
    assert back.key == b"DST:/b"
    assert (back.header(header.JOB_ID), back.header(header.REPLAYS)) == (b"j3", b"1")

    assert f"4 dead letters replayed to {topic}" in etl("dlq", "replay", "--all").stdout
    assert f"nothing to replay in {topic}-dlq\n0 dead letters" in etl("dlq", "replay", "--all").stdout
    assert len(records(broker, topic)) == 5
    assert f"0 dead letters in {topic}-dlq (5 already replayed" in etl("dlq", "list").stdout
    assert etl("dlq", "list", "--replayed").stdout.count("replayed; no such file") == 5
    bury(broker, topic, 1, first=5)
    assert json.loads(etl("dlq", "list", "--json").stdout)["job_id"] == "j5"


def test_replays_at_once_send_each_dead_letter_once(broker: Broker, topic: str, tmp_path: Path) -> None:
    """Claim: by how many at once the command runs, each goes back once; who lost says so or found nothing."""
    bury(broker, topic, 30)
    for _ in range(2):
        with ThreadPoolExecutor(4) as threads:
            runs = [threads.submit(run, "dlq", "replay", "--all", "--yes", folder=tmp_path) for _ in range(4)]
        for done in (started.result() for started in runs):
            assert done.returncode in (0, 1), done.stderr
            assert not done.returncode or "another replay started" in done.stderr
    etl("dlq", "replay", "--all")
    sent = Counter(FileTransferJob.from_json(record.value).job_id for record in records(broker, topic))
    assert sent == {f"j{number}": 1 for number in range(30)}


def test_a_marker_behind_an_open_transaction_is_seen(broker: Broker, topic: str) -> None:
    """Claim: a consumer's transaction that is still open in front of a marker does not hide it from a replay."""
    bury(broker, topic, 1)
    place = next(f"{r.partition}:{r.offset}" for r in records(broker, f"{topic}-dlq"))
    partition = int(place.partition(":")[0])
    hanging = TransactionalProducer(broker.bootstrap_servers, f"hanging-{topic}")
    hanging.open()
    producer = hanging._producer
    assert producer is not None
    producer.begin_transaction()
    letter = DLQMessage.from_record(Record(topic, 0, 99, None, b"{}"), "late", "late")
    producer.send(f"{topic}-dlq", value=letter.to_json().encode(), partition=partition).get(timeout=10)
    marked = TransactionalProducer(broker.bootstrap_servers, f"marked-{topic}")
    value = json.dumps({"replayed": {"partition": partition, "offset": int(place.partition(":")[2])}}).encode()
    marked.transact([Message(f"{topic}-dlq", None, value, ((header.MARKER, header.REPLAYED),), partition=partition)])
    marked.close()
    release = threading.Timer(2.0, producer.commit_transaction)
    release.start()
    result = etl("dlq", "replay", "--all")
    release.join()
    hanging.close()
    assert "1 dead letter replayed" in result.stdout  # the late one, and not the marked one
    (back,) = records(broker, topic)
    assert back.value == b"{}"


def test_a_rival_fences_a_replay_that_waits(broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claim: while one asks its user, another run may do the work; the first then sends nothing."""
    bury(broker, topic, 3)
    monkeypatch.setattr("etl.cli.dlq._asks", lambda: True)

    def rival(*_: object, **__: object) -> bool:
        monkeypatch.setattr("etl.cli.dlq._asks", lambda: False)
        assert "3 dead letters replayed" in etl("dlq", "replay", "--all").stdout
        return True

    monkeypatch.setattr("click.confirm", rival)
    result = etl("dlq", "replay", "--all")
    assert result.exit_code == 1
    assert "another replay started and took over; this one replayed 0" in result.stderr
    assert len(records(broker, topic)) == 3


def test_a_real_server_is_checked(vsftpd: Vsftpd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claim: reach, login, list and a probe file, which is gone afterwards; a wrong password fails at the login."""
    folder = vsftpd.root / uuid.uuid4().hex
    folder.mkdir()
    shutil.chown(folder, vsftpd.root.stat().st_uid, vsftpd.root.stat().st_gid)
    folder.chmod(0o777)
    for name, password in (("GOOD", vsftpd.password), ("BAD", "wrong-" + vsftpd.password)):
        values = {"TYPE": "ftp", "HOST": vsftpd.host, "PORT": str(vsftpd.port), "USER": vsftpd.username}
        values |= {"PASS": password, "BASE_PATH": f"/{folder.name}"}
        for key, value in values.items():
            monkeypatch.setenv(f"{name}_{key}", value)
    result = etl("servers", "check", "GOOD", "--write", "--json")
    assert result.exit_code == 0, result.output
    assert set(json.loads(result.stdout)["ms"]) == {"login", "list", "write"}
    assert list(folder.iterdir()) == []
    if vsftpd.username != "anonymous":  # which takes any password
        result = etl("servers", "check")
        assert result.exit_code == 1
        assert "AUTHENTICATION_FAILED" in result.stdout
        assert vsftpd.password not in result.output


def test_a_base_path_that_is_not_there_is_no_empty_folder(vsftpd: Vsftpd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claim: the list step fails and names server and path; --write does not make the folder."""
    base = f"/{uuid.uuid4().hex}"
    values = {"TYPE": "ftp", "HOST": vsftpd.host, "PORT": str(vsftpd.port), "USER": vsftpd.username}
    for key, value in (values | {"PASS": vsftpd.password, "BASE_PATH": base}).items():
        monkeypatch.setenv(f"GOOD_{key}", value)
    result = etl("servers", "check", "--write", "--json")
    assert result.exit_code == 1
    trial = json.loads(result.stdout)
    assert (trial["ok"], trial["failed"], set(trial["ms"])) == (False, "list", {"login"})
    assert trial["error"] == f"GOOD: the base path {base} is no folder"
    assert not Path(vsftpd.root, base.lstrip("/")).exists()


def test_a_purge_deletes_the_oldest_of_each_partition(broker: Broker, topic: str) -> None:
    """Those that it named in its dry run; what is kept can still be replayed, once."""
    bury(broker, topic, 12)
    before = {json.loads(record.value or b"")["job_id"] for record in records(broker, f"{topic}-dlq")}
    dry = etl("dlq", "purge", "--keep", "5", "--dry-run")
    assert len(records(broker, f"{topic}-dlq")) == len(before) == 12
    done = etl("dlq", "purge", "--keep", "5", "--yes")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == dry.stdout.splitlines()[-1].replace("would be deleted", "deleted")
    after = {json.loads(record.value or b"")["job_id"] for record in records(broker, f"{topic}-dlq")}
    assert {"j7", "j8", "j9", "j10", "j11"} <= after
    assert after < before
    assert etl("dlq", "purge", "--older-than", "1h", "--yes").exit_code == 0
    assert len(records(broker, f"{topic}-dlq")) == len(after)
    assert etl("dlq", "replay", "--all", "--yes").exit_code == 0
    assert len(records(broker, topic)) == len(after)
