"""Clusters that are not as they should be: it is told, nothing is lost, and nothing stands still in silence."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.structs import OffsetAndMetadata

import stack
import workbench
from etl.broker import Admin, Reader, TransactionalProducer, network
from etl.config import ConfigLoader
from etl.errors import SettingsError
from etl.models.control import AuditRecord
from etl.models.wire import Message, Partition
from etl.topics import companions
from etl.topics.names import Topics
from workbench import Command, Desk, job

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


class Relay:
    """A TCP relay on a port of its own: its target may change, and it may forget connections without a word."""

    def __init__(self, target: int, forgets_after: float | None = None) -> None:
        self.target = target
        self.forgets_after = forgets_after
        self.forgotten = 0
        self.port = stack.free_port()
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._sockets: list[socket.socket] = [self._listener]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.target), 2)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            self._sockets += [client, server]
            link = {"at": time.monotonic(), "dead": False}
            for origin, target in ((client, server), (server, client)):
                thread = threading.Thread(target=self._pump, args=(origin, target, link), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pump(self, origin: socket.socket, target: socket.socket, link: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            while data := origin.recv(65536):
                now = time.monotonic()
                if self.forgets_after is not None and now - link["at"] > self.forgets_after and not link["dead"]:
                    link["dead"] = True
                    self.forgotten += 1
                link["at"] = now
                if not link["dead"]:
                    target.sendall(data)
        for one in (origin, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(5)


@pytest.fixture
def here(tmp_path: Path) -> dict[str, str]:
    """A folder with forty files, as the server HERE; logs in JSON."""
    folder = tmp_path / "here"
    settings = workbench.folder("HERE", folder) | workbench.SETTINGS | {"ETL_LOG_FORMAT": "json"}
    for number in range(40):
        (folder / f"a{number}").write_bytes(b"content %d" % number)
    return settings


@contextlib.contextmanager
def command(tmp_path: Path, desk: Desk, settings: Mapping[str, str], *program: str, **more: str) -> Iterator[Command]:
    environment = desk.settings(settings, more)
    own = {"program": (sys.executable, *program)} if program else {}
    with Command(tmp_path, environment=environment, **own) as one:  # type: ignore[arg-type]
        yield one


def jobs(start: int, count: int) -> list[dict[str, Any]]:
    return [job(f"HERE:/a{number}", f"HERE:/b{number}", f"job-{number}") for number in range(start, start + count)]


def done(desk: Desk) -> list[str]:
    return sorted(str(result["job_id"]) for result in desk.results())


# --- topics


def test_a_compacted_topic_of_jobs_is_refused_at_the_start(
    make_desk: Callable[..., Desk], broker: stack.Broker, topic: str
) -> None:
    """Of several jobs with one key Kafka would keep the last: the error names topic, setting and command."""
    make_desk(configs={topic: {"cleanup.policy": "compact"}})
    settings = ConfigLoader(environ={"ETL_TOPIC": topic}).settings
    with pytest.raises(SettingsError, match=rf"topic {topic}: cleanup.policy is compact: .*cleanup.policy=delete"):
        companions.ensure(Topics.of(topic, settings), settings, Admin(broker.bootstrap_servers))


def test_doubtful_settings_are_told_by_name(make_desk: Callable[..., Desk], broker: stack.Broker, topic: str) -> None:
    """Whatever can lose, hide or block a job."""
    make_desk(
        configs={
            topic: {"retention.ms": str(3_600_000), "retention.bytes": "1000000"},
            f"{topic}-dlq": {"cleanup.policy": "compact", "message.timestamp.type": "LogAppendTime"},
            f"{topic}-results": {"min.insync.replicas": "2"},
        }
    )
    settings = ConfigLoader(environ={"ETL_TOPIC": topic, "ETL_CONSUMER_COUNT": "3"}).settings
    with structlog.testing.capture_logs() as said:
        companions.ensure(Topics.of(topic, settings), settings, Admin(broker.bootstrap_servers))
    told = {(line["topic"].removeprefix(topic), line["setting"]) for line in said if "setting" in line}
    assert told >= {
        ("", "retention.ms"),
        ("", "retention.bytes"),
        ("", "message.timestamp.type"),
        ("", "partitions"),
        ("-dlq", "cleanup.policy"),
        ("-dlq", "retention.ms"),
        ("-results", "min.insync.replicas"),
        ("-retry", "message.timestamp.type"),
    }


def test_offsets_that_are_forgotten_before_the_jobs_are_told(new_broker: Callable[..., stack.Broker]) -> None:
    """At each start."""
    broker = new_broker(**{"offsets.retention.minutes": "10080"})
    settings = ConfigLoader(environ={"ETL_TOPIC": "jobs"}).settings
    for _start in range(2):
        with structlog.testing.capture_logs() as said:
            companions.ensure(Topics.of("jobs", settings), settings, Admin(broker.bootstrap_servers))
        (told,) = [line for line in said if line["log_level"] == "warning"]
        assert (told["setting"], told["value"]) == ("offsets.retention.minutes", "10080 (7 days)")


def test_jobs_with_an_old_date_are_dated_by_the_broker(broker: stack.Broker, topic: str) -> None:
    """Our own topic does not take the producer's word: retention would delete jobs of 1970 unread."""
    settings = ConfigLoader(environ={"ETL_TOPIC": topic}).settings
    companions.ensure(Topics.of(topic, settings), settings, Admin(broker.bootstrap_servers))
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers)
    for stamp in (0, int((time.time() + 7 * 86400) * 1000)):
        producer.send(topic, b"{}", timestamp_ms=stamp).get(timeout=20)
    producer.close()
    with Reader(broker.bootstrap_servers, topic) as reader:
        times = [record.timestamp for record in reader.scan()]
    assert len(times) == 2
    assert all(abs(moment - time.time()) < 120 for moment in times)


def test_topics_deleted_under_a_running_consumer_are_made_again(
    desk: Desk, tmp_path: Path, here: dict[str, str]
) -> None:
    """Named in an error; outcomes wait for them, and the process goes on by itself."""
    with command(tmp_path, desk, here) as one:
        desk.do(*jobs(0, 3))
        with desk._admin() as admin:
            admin.delete_topics([desk.results_topic, desk.dlq])
        desk.send(*jobs(3, 3), b"no job")
        admin_of = Admin(desk.bootstrap_servers)
        names = {desk.results_topic, desk.dlq}
        event = "topic was gone: created again, what it held is lost"
        stack.wait_until(lambda: names == {line["topic"] for line in one.events(event)}, 60, "topics")
        with Reader(desk.bootstrap_servers, desk.results_topic) as reader:
            wanted = {"job-3", "job-4", "job-5"}

            def are_there() -> bool:
                return {str(json.loads(r.value or b"{}").get("job_id")) for r in reader.scan()} >= wanted

            stack.wait_until(are_there, 60, "results in the new topic")
        assert admin_of.describe([desk.dlq])
        assert one.stop() == 0


# --- messages that the broker refuses


def test_a_letter_that_no_topic_takes_holds_up_nothing(
    make_desk: Callable[..., Desk], tmp_path: Path, here: dict[str, str], topic: str
) -> None:
    """T-dlq takes no message at all: the log has the letter whole, its result and all others come."""
    desk = make_desk(configs={f"{topic}-dlq": {"max.message.bytes": "100"}})
    with command(tmp_path, desk, here) as one:
        desk.send(*jobs(0, 5), b'{"job_id": "bad", "source": 1}', *jobs(5, 5))
        desk.wait(lambda: len(desk.results()) >= 11, 60)
        assert [r["status"] for r in desk.results() if r["job_id"] == "bad"] == ["FAILED"]
        (given_up,) = one.events("message given up: no form of it is accepted")
        assert given_up["level"] == "critical"
        assert json.loads(given_up["value"])["original_message"] == {"job_id": "bad", "source": 1}
        stack.wait_until(lambda: one.events("not well"), 20, "the alarm")
        assert one.stop() == 0
    assert desk.lag() == 0


def test_a_compacted_topic_of_dead_letters_takes_letters_without_a_key(
    make_desk: Callable[..., Desk], tmp_path: Path, here: dict[str, str], topic: str
) -> None:
    """Each letter has a key of its own where its message has none."""
    desk = make_desk(configs={f"{topic}-dlq": {"cleanup.policy": "compact"}})
    with command(tmp_path, desk, here) as one:
        producer = KafkaProducer(bootstrap_servers=desk.bootstrap_servers)
        for value in (b"no job", b"none either"):
            producer.send(topic, value, partition=0).get(timeout=20)
        producer.close()
        desk.do(*jobs(0, 3))
        desk.wait(lambda: len(desk.letters()) == 2, 30)
        assert len({record.key for record in desk.records[desk.dlq]}) == 2
        assert one.stop() == 0


def test_a_message_that_the_broker_refuses_is_singled_out(broker: stack.Broker, topic: str) -> None:
    """A compacted topic refuses a message without a key: the producer names the one, among others."""
    from etl.errors import MessageRefused

    Admin(broker.bootstrap_servers).create(topic, 1, {"cleanup.policy": "compact"})
    producer = TransactionalProducer(broker.bootstrap_servers, f"t-{topic}")
    messages = [Message(topic, b"a", b"1"), Message(topic, None, b"2"), Message(topic, b"c", b"3")]
    with pytest.raises(MessageRefused) as refused:
        producer.transact(messages)
    assert refused.value.index == 1 or not refused.value.is_alone
    producer.transact([messages[0], messages[2]])
    producer.close()


def test_a_partition_that_accepts_nothing_is_left_alone(broker: stack.Broker, topic: str) -> None:
    """Messages whose key would choose it go to another one of the topic."""
    Admin(broker.bootstrap_servers).create(topic, 3, {})
    producer = TransactionalProducer(broker.bootstrap_servers, f"t-{topic}")
    producer._avoided = {Partition(topic, 0): float("inf"), Partition(topic, 2): float("inf")}
    producer.transact([Message(topic, b"%d" % number, b"1") for number in range(10)])
    producer.close()
    with Reader(broker.bootstrap_servers, topic) as reader:
        assert {record.partition for record in reader.scan()} == {1}


def test_a_clock_ahead_of_the_broker_holds_up_nothing(
    make_desk: Callable[..., Desk], tmp_path: Path, here: dict[str, str]
) -> None:
    """Foreign topics refuse times of the future: messages get times that the broker allows, and one line says so."""
    desk = make_desk()
    program = tmp_path / "ahead.py"
    program.write_text(
        "import time\nreal = time.time\ntime.time = lambda: real() + 7200\n"
        "import sys\nfrom etl.cli import main\nsys.exit(main())\n"
    )
    with command(tmp_path, desk, here, str(program)) as one:
        desk.do(*jobs(0, 5), limit=60)
        assert len([line for line in one.events() if str(line["event"]).startswith("clock differs")]) == 1
        assert one.stop() == 0


# --- addresses


def test_a_dead_address_among_others_costs_little_and_is_named_once(
    desk: Desk, tmp_path: Path, here: dict[str, str]
) -> None:
    """Refusing, silent, or without a name: the ones that answer are used."""
    # A server that accepts nothing: once its backlog is full, a connection to it takes for ever.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        silent = f"127.0.0.1:{full.getsockname()[1]}"
        blockers = [socket.socket() for _ in range(4)]
        for blocker in blockers:
            blocker.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                blocker.connect(full.getsockname())
        dead = [f"127.0.0.1:{stack.free_port()}", silent, "no-such-host.invalid:9092"]
        servers = ",".join([*dead, desk.bootstrap_servers])
        started = time.monotonic()
        with command(tmp_path, desk, here, ETL_BOOTSTRAP_SERVERS=servers) as one:
            stack.wait_until(lambda: one.events("partition taken over"), 60, "start")
            took = time.monotonic() - started
            desk.do(*jobs(0, 3))
            named = [e["address"] for e in one.events("broker address does not answer; others are tried")]
            assert one.stop() == 0
        for blocker in blockers:
            blocker.close()
    print(f"started after {took:.1f} s; named {named}")
    assert len(named) == len(set(named))
    assert dead[0] in named
    for _ in range(5):
        with contextlib.suppress(StopIteration), Reader(servers, desk.topic) as reader:
            reader.ends()


def test_a_silent_address_of_a_name_leaves_the_others_their_time(
    broker: stack.Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name may stand for several machines, and one of them be gone."""
    look_up = network._look_up
    with socket.create_server(("127.0.0.2", 0), backlog=0) as full:
        blockers = [socket.socket() for _ in range(4)]
        for blocker in blockers:
            blocker.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                blocker.connect(full.getsockname())
        gone = look_up("127.0.0.2", full.getsockname()[1])
        monkeypatch.setattr(network, "_look_up", lambda host, port: gone + look_up("127.0.0.1", port))
        started = time.monotonic()
        Admin(f"two.example:{broker.port}").describe(["none"])
        assert time.monotonic() - started < 15
        for blocker in blockers:
            blocker.close()


def test_a_broker_that_comes_back_under_another_address_is_found(
    new_broker: Callable[..., stack.Broker], topic: str, tmp_path: Path, here: dict[str, str]
) -> None:
    """Through the address that was given; until then the process is not well."""
    broker = new_broker()
    with Relay(broker.port) as relay:
        environment = here | {"ETL_BOOTSTRAP_SERVERS": f"127.0.0.1:{relay.port}", "ETL_TOPIC": topic}
        with Command(tmp_path, environment=environment) as one:
            stack.wait_until(lambda: one.events("partition taken over"), 60, "start")
            with workbench.Writing(broker.bootstrap_servers) as writing:
                writing.send(topic, jobs(0, 1)[0])
            stack.wait_until((tmp_path / "here" / "b0").exists, 30, "the first job")
            broker.stop()
            stack.wait_until(lambda: one.events("not well"), 60, "word of it")
            broker.port = relay.target = stack.free_port()
            broker.bootstrap_servers = f"127.0.0.1:{broker.port}"
            broker.start()
            back = time.monotonic()
            with workbench.Writing(broker.bootstrap_servers) as writing:
                writing.send(topic, jobs(1, 1)[0])
            stack.wait_until((tmp_path / "here" / "b1").exists, 60, "the second job")
            print(f"back after {time.monotonic() - back:.1f} s")
            stack.wait_until(lambda: one.events("well again"), 30, "word of it")
            stack.wait_until(lambda: len(one.events("job done")) == 2, 30, "the second result")
            assert one.stop() == 0


def test_idle_connections_are_kept_alive(
    tmp_path_factory: pytest.TempPathFactory, topic: str, tmp_path: Path, here: dict[str, str]
) -> None:
    """A proxy that forgets connections after six idle seconds costs no job a delay, and no line a warning."""
    broker = stack.Broker(tmp_path_factory.mktemp("broker"))
    behind = stack.free_port()
    try:
        with Relay(behind, forgets_after=6.0) as relay:
            local = f"LOCAL://127.0.0.1:{broker.port}"
            broker.properties |= {
                "listeners": f"{local},EXTERNAL://127.0.0.1:{behind},CONTROLLER://127.0.0.1:{broker.controller_port}",
                "advertised.listeners": f"{local},EXTERNAL://127.0.0.1:{relay.port}",
            }
            broker.start()
            environment = here | {"ETL_BOOTSTRAP_SERVERS": f"127.0.0.1:{relay.port}", "ETL_TOPIC": topic}
            with Command(tmp_path, environment=environment) as one:
                stack.wait_until(lambda: one.events("partition taken over"), 60, "start")
                with workbench.Writing(broker.bootstrap_servers) as writing:
                    for turn in range(2):
                        writing.send(topic, jobs(turn, 1)[0])
                        sent = time.monotonic()
                        stack.wait_until(lambda turn=turn: len(one.events("job done")) > turn, 30, "the job")
                        took = time.monotonic() - sent
                        print(f"job {turn} took {took:.2f} s")
                        if not turn:
                            idle_until = time.monotonic() + 14
                            stack.wait_until(lambda end=idle_until: time.monotonic() > end, 20, "idle time")
                assert took < 4
                warned = [line for line in one.events() if line["level"] in {"warning", "error"}]
                assert [line for line in warned if line["event"] != "doubtful topic setting"] == []
                assert one.stop() == 0
    finally:
        broker.kill()
        stack.remove_tree(broker.folder)


def test_an_open_transaction_of_another_program_is_named(desk: Desk, tmp_path: Path, here: dict[str, str]) -> None:
    """With its offset; once it has ended the jobs behind it are done."""
    with command(tmp_path, desk, here, workbench.SHORT_LIMITS[1]) as one:
        desk.do(*jobs(0, 1))
        stranger = KafkaProducer(
            bootstrap_servers=desk.bootstrap_servers, transactional_id=f"x-{desk.topic}", transaction_timeout_ms=120_000
        )
        stranger.init_transactions()
        stranger.begin_transaction()
        placed = stranger.send(desk.topic, b"never", partition=0).get(timeout=20)
        desk.send(*jobs(1, 2))
        stack.wait_until(lambda: one.events("not well"), 60, "word of it")
        said = one.events("not well")[0]["problem"]
        assert f"{desk.topic} 0: waiting behind an open transaction at offset {placed.offset}" in said
        stranger.abort_transaction()
        stranger.close()
        desk.wait(lambda: len(desk.results()) == 3, 30)
        assert one.stop() == 0


# --- offsets


def forget(desk: Desk) -> None:
    """Let Kafka forget the group, as it does after days without members."""
    with desk._admin() as admin:
        admin.delete_groups([desk.group])


def test_forgotten_offsets_stop_the_start_with_one_message(desk: Desk, tmp_path: Path, here: dict[str, str]) -> None:
    """Where results show that the group has worked; the setting decides, and nothing is done twice either way."""
    with command(tmp_path, desk, here) as one:
        desk.do(*jobs(0, 5))
        assert one.stop() == 0
    forget(desk)
    desk.send(*jobs(5, 2))
    with command(tmp_path, desk, here) as one:
        assert one.wait(60) == 2
        (said,) = one.events("cannot start")
        assert "ETL_ON_LOST_OFFSETS=oldest" in said["error"]
        assert "5 are shown to be done" in said["error"]
    (tmp_path / "here" / "b0").write_bytes(b"newer")
    with command(tmp_path, desk, here, ETL_ON_LOST_OFFSETS="oldest") as one:
        desk.wait(lambda: len(desk.results()) >= 7, 60)
        stack.wait_until(lambda: desk.lag() == 0, 30, "the rest to be read")
        assert one.events("offsets lost: Kafka has forgotten where this group stood")[0]["shown_done"] == 5
        assert one.stop() == 0
    desk.pump()
    assert done(desk) == sorted(f"job-{number}" for number in range(7))
    assert (tmp_path / "here" / "b0").read_bytes() == b"newer"
    forget(desk)
    desk.send(*jobs(7, 2))
    with command(tmp_path, desk, here, ETL_ON_LOST_OFFSETS="newest") as one:
        stack.wait_until(lambda: len(one.events("partition taken over")) >= 10, 60, "start")
        desk.do(*jobs(9, 1))
        assert one.stop() == 0
    assert "job-7" not in done(desk)


def test_a_message_of_several_jobs_is_not_split_again_when_offsets_are_forgotten(
    desk: Desk, tmp_path: Path, here: dict[str, str]
) -> None:
    """The outcomes of its jobs show that it was; a message that came meanwhile is done."""
    two = [
        {
            "message_version": "2.0",
            "job_id": name,
            "files": [{key: value for key, value in one.items() if key != "job_id"} for one in some],
        }
        for name, some in (("m", jobs(0, 3)), ("n", jobs(3, 2)))
    ]
    with command(tmp_path, desk, here) as one:
        desk.send(two[0])
        desk.wait(lambda: len(desk.results()) == 3, 60, "the first")
        desk.wait(lambda: desk.lag() == 0, 30, "lag 0")
        assert one.stop() == 0
    forget(desk)
    desk.send(two[1])
    with command(tmp_path, desk, here, ETL_ON_LOST_OFFSETS="oldest") as one:
        desk.wait(lambda: len(desk.results()) >= 5, 60, "the second")
        stack.wait_until(lambda: desk.lag() == 0, 30, "the rest to be read")
        assert [said["first"] for said in one.events("message split")] == ["n.1"]
        assert one.stop() == 0
    desk.pump()
    assert done(desk) == ["m.1", "m.2", "m.3", "n.1", "n.2"]


def commit_as_a_tool(desk: Desk, offset: int) -> None:
    tool = KafkaConsumer(bootstrap_servers=desk.bootstrap_servers, group_id=desk.group, enable_auto_commit=False)
    place = TopicPartition(desk.topic, 0)
    tool.assign([place])
    tool.commit({place: OffsetAndMetadata(offset, "", -1)})
    tool.close()


@pytest.mark.parametrize("jump", [20, 2], ids=["forward", "backward"])
def test_jobs_that_another_program_skipped_are_done(
    desk: Desk, tmp_path: Path, here: dict[str, str], jump: int
) -> None:
    """A tool committed in our group's name: told with both places and the number of jobs; each is done once."""
    with command(tmp_path, desk, here) as one:
        desk.do(*jobs(0, 10))
        assert one.stop() == 0
    desk.send(*jobs(10, 10))
    commit_as_a_tool(desk, jump)
    with command(tmp_path, desk, here) as one:
        desk.wait(lambda: len(desk.results()) >= 20, 60)
        stack.wait_until(lambda: desk.lag() == 0, 30, "the rest to be read")
        (said,) = [line for line in one.events() if str(line["event"]).startswith("offset was committed by another")]
        assert said["committed"] == jump
        assert said["jobs_not_shown"] == (10 if jump == 20 else 0)
        assert one.stop() == 0
    desk.pump()
    assert done(desk) == sorted(f"job-{number}" for number in range(20))


def test_an_offset_of_another_program_may_be_accepted(desk: Desk, tmp_path: Path, here: dict[str, str]) -> None:
    """`etl offsets accept`, while the consumers are stopped; `list` says whose it was."""
    with command(tmp_path, desk, here) as one:
        desk.do(*jobs(0, 5))
        assert one.stop() == 0
    desk.send(*jobs(5, 5))
    commit_as_a_tool(desk, 8)

    def offsets(what: str) -> str:
        asked = Command(tmp_path, "offsets", what, environment=desk.settings(here))
        assert asked.wait(60) == 0, asked.output
        return asked.output

    assert "another program" in offsets("list")
    assert f"{desk.topic} 0: goes on at 8" in offsets("accept")
    assert "another program" not in offsets("list")
    with Reader(desk.bootstrap_servers, f"{desk.system_prefix}audit") as reader:
        acts = [AuditRecord.from_json(record.value) for record in reader.scan()]
    (act,) = [act for act in acts if (act.action, act.target) == ("accept-offsets", f"group/{desk.group}")]
    assert (act.result, act.filter, act.count) == ("done", {f"{desk.topic}-0": 8}, 1)
    with command(tmp_path, desk, here) as one:
        desk.wait(lambda: len(desk.results()) >= 7, 60)
        stack.wait_until(lambda: desk.lag() == 0, 30, "the rest to be read")
        assert one.stop() == 0
    desk.pump()
    assert done(desk) == sorted(f"job-{number}" for number in (0, 1, 2, 3, 4, 8, 9))


# --- clocks


@pytest.mark.parametrize("jump", [20 * 365.25 * 86400, -2 * 86400.0], ids=["+20 years", "-2 days"])
def test_a_clock_that_is_set_ends_no_patience_and_prolongs_no_wait(
    make_desk: Callable[..., Desk],
    make_ftpd: Callable[..., stack.Ftpd],
    tmp_path: Path,
    here: dict[str, str],
    jump: float,
) -> None:
    """Jobs of a server that is down wait on; once it is back they are done."""
    desk = make_desk()
    server = make_ftpd(accounts={"user": "password"})
    for number in range(5):
        (server.root / f"a{number}").write_bytes(b"x")
    settings = here | workbench.login("FTP", server) | {"ETL_RETRY_BACKOFF_MAX_SECONDS": "1"}
    server.stop()
    shift = tmp_path / "shift"
    shift.write_text("0")
    program = tmp_path / "jumps.py"
    program.write_text(
        "import pathlib, time\nreal = time.time\n"
        f"shift = pathlib.Path({str(shift)!r})\n"
        "time.time = lambda: real() + float(shift.read_text() or 0)\n"
        "import sys\nfrom etl.cli import main\nsys.exit(main())\n"
    )
    with command(tmp_path, desk, settings, str(program)) as one:
        desk.send(*[job(f"FTP:/a{n}", f"HERE:/c{n}", f"job-{n}") for n in range(5)])
        stack.wait_until(lambda: one.events("server is down"), 30, "the outage")
        shift.write_text(str(jump))
        stack.wait_until(lambda: one.events("system clock was set: waits go on as if it were not"), 30, "word of it")
        end = time.monotonic() + 5
        stack.wait_until(lambda: time.monotonic() > end, 10, "some attempts")
        assert one.events("job failed") == []
        server.start()
        desk.wait(lambda: len(desk.results()) == 5, 60)
        assert {result["status"] for result in desk.results()} == {"SUCCESS"}
        assert one.stop() == 0
