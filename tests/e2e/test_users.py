"""KAFKA_USERS_FILE: who may log in to the broker's listeners, and what each may do there (kafka/bin/kafka-users.py)."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import UserScramCredentialUpsertion
from kafka.errors import GroupAuthorizationFailedError, TopicAuthorizationFailedError

import stack
from workbench import Command, Desk, folder

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

PASSWORD = 'Scram:7d21 with a blank, a \\ and 한글"'
APPLIED = "users of the listeners with login: "
USERS = f"""# who may do what
produce {{topic}} camera:{PASSWORD}
submit {{topic}} operator:{PASSWORD}
consume {{topic}} worker:{PASSWORD}
everywhere:{PASSWORD}
admin chief:{PASSWORD}
"""


class Secured(stack.Broker):
    """A broker with NETWORK and EXTERNAL on loopback, both with a login, and its file of users."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.network, self.external = stack.free_port(), stack.free_port()
        self.users = folder / "users"
        super().__init__(
            folder,
            environment={
                "KAFKA_NETWORK_HOST": "127.0.0.1",
                "KAFKA_NETWORK_PORT": str(self.network),
                "KAFKA_ADVERTISED_HOST": "127.0.0.1",
                "KAFKA_ADVERTISED_PORT": str(self.external),
                "KAFKA_BIND_ADDRESS": "127.0.0.1",
                "KAFKA_ADVERTISED_PROTOCOL": "SASL_PLAINTEXT",
                "KAFKA_USERS_FILE": str(self.users),
                **environment,
            },
        )

    def start_with(self, users: str) -> None:
        """Start it with this file, and wait until its users are the broker's."""
        self.users.write_text(users, encoding="utf-8")
        before = self.log.read_text().count(APPLIED)
        self.start()
        stack.wait_until(lambda: self.log.read_text().count(APPLIED) > before, 60, "the users")


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Secured]:
    broker = Secured(tmp_path / "secured")
    yield broker
    broker.kill()
    stack.remove_tree(broker.folder)


def as_user(name: str, port: int, password: str = PASSWORD) -> dict[str, Any]:
    return {
        "bootstrap_servers": f"127.0.0.1:{port}",
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": name,
        "sasl_plain_password": password,
    }


@contextlib.contextmanager
def admin(name: str, port: int, password: str = PASSWORD) -> Iterator[KafkaAdminClient]:
    client = KafkaAdminClient(**as_user(name, port, password))
    try:
        yield client
    finally:
        client.close()


def is_refused(name: str, port: int, password: str) -> bool:
    """Tell whether this login is refused. In a process of its own: a client that cannot log in leaves a thread."""
    script = "import sys, kafka; kafka.KafkaAdminClient(**eval(sys.argv[1]), bootstrap_timeout_ms=4000)"
    command = [sys.executable, "-c", script, repr(as_user(name, port, password))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode == 1 and "Unable to bootstrap" in done.stderr


def write(name: str, port: int, topic: str) -> None:
    producer = KafkaProducer(**as_user(name, port), max_block_ms=10_000)
    try:
        producer.send(topic, b"{}").get(timeout=20)
    finally:
        producer.close(timeout=5)


def read(name: str, port: int, topic: str) -> None:
    consumer = KafkaConsumer(**as_user(name, port), group_id=None)
    try:
        consumer.assign([TopicPartition(topic, 0)])
        consumer.seek(TopicPartition(topic, 0), 0)
        consumer.poll(timeout_ms=3000)
    finally:
        consumer.close()


def test_each_user_may_do_what_the_file_says_and_the_rest_is_refused(
    secured: Secured, topic: str, run: Callable[..., Command], tmp_path: Path
) -> None:
    """Both listeners ask for a login; a producer writes jobs only; a consumer works; nobody makes users."""
    secured.start_with(USERS.format(topic=topic))
    desk = Desk(secured.bootstrap_servers, topic)
    try:
        for port in (secured.network, secured.external):
            assert is_refused("camera", port, "wrong")
            write("camera", port, topic)
        for forbidden in (f"{topic}-retry", f"{topic}-results", f"{topic}-dlq"):
            for name in ("camera", "operator"):
                with pytest.raises(TopicAuthorizationFailedError):
                    write(name, secured.network, forbidden)
        with pytest.raises(TopicAuthorizationFailedError):
            read("camera", secured.network, topic)
        read("operator", secured.network, f"{topic}-results")
        for name in ("camera", "operator", "worker", "everywhere"):
            with admin(name, secured.network) as client:
                told = client.alter_user_scram_credentials([UserScramCredentialUpsertion("eve", "SCRAM-SHA-512", "x")])
                assert told["eve"], "refused"
                with pytest.raises(TopicAuthorizationFailedError):
                    client.delete_topics([topic])
        with admin("camera", secured.network) as client, pytest.raises(GroupAuthorizationFailedError):
            client.list_group_offsets({desk.group: [TopicPartition(topic, 0)]})

        here = folder("HERE", tmp_path / "here")
        (tmp_path / "here" / "a").write_bytes(b"content")
        login = {
            "ETL_BOOTSTRAP_SERVERS": f"127.0.0.1:{secured.network}",
            "ETL_KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
            "ETL_KAFKA_PASSWORD": PASSWORD,
        }
        worker = run(environment=desk.settings(here, login, {"ETL_KAFKA_USERNAME": "worker", "ETL_LOG_FORMAT": "json"}))
        for number, name in enumerate(("operator", "everywhere", "chief")):
            sent = run(
                "submit", "HERE:/a", f"HERE:/b{number}", "--wait", "--timeout", "40",
                environment=desk.settings(here, login, {"ETL_KAFKA_USERNAME": name}),
            )  # fmt: skip
            assert sent.wait(60) == 0, sent.output + worker.output
            assert (tmp_path / "here" / f"b{number}").read_bytes() == b"content"
        assert worker.stop() == 0
        refused = [line for line in worker.output.splitlines() if "AuthorizationFailed" in line]
        assert refused == []
        # The producers' {} are no jobs.
        errors = {event["event"] for event in worker.events() if event["level"] == "error"}
        assert errors == {"invalid message dead-lettered"}
        # It tells its state, and reads the orders of operators, but gives none.
        silent = {"status not published", "orders not read: holds and cancellations do not count"}
        assert not silent & {event["event"] for event in worker.events()}
        read("worker", secured.network, "etl-status")
        for name in ("worker", "operator", "camera"):
            for forbidden in ("etl-control", "etl-audit"):
                with pytest.raises(TopicAuthorizationFailedError):
                    write(name, secured.network, forbidden)
        held = run("hold", "group", desk.group, environment=desk.settings(here, login, {"ETL_KAFKA_USERNAME": "chief"}))
        assert held.wait(60) == 0, held.output
    finally:
        desk.close()
    assert PASSWORD not in secured.log.read_text()


def test_what_the_file_does_not_name_is_gone_after_the_next_start(secured: Secured, topic: str) -> None:
    """Users and rules that somebody made beside it, and those who were taken out of the file."""
    secured.start_with(f"anna:one\nproduce {topic} bert:two, three\n")
    with admin("anna", secured.network, "one") as client:
        assert client.alter_user_scram_credentials([UserScramCredentialUpsertion("eve", "SCRAM-SHA-512", "x")])["eve"]
    for name, mechanism in (("mallory", "SCRAM-SHA-256"), ("mallory", "SCRAM-SHA-512"), ("bert", "SCRAM-SHA-256")):
        secured.command(
            "kafka-configs.sh", "--alter", "--entity-type", "users", "--entity-name", name,
            "--add-config", f"{mechanism}=[password=x]",
        )  # fmt: skip
    listed = secured.command("kafka-configs.sh", "--describe", "--entity-type", "users")
    assert {name for name in ("anna", "bert", "mallory", "eve") if f"'{name}'" in listed} == {"anna", "bert", "mallory"}
    secured.kill()
    secured.start_with(f"produce {topic} bert:four\n")
    listed = secured.command("kafka-configs.sh", "--describe", "--entity-type", "users")
    assert {name for name in ("anna", "bert", "mallory", "eve") if f"'{name}'" in listed} == {"bert"}
    assert "SCRAM-SHA-256" not in listed
    with admin("bert", secured.external, "four"):
        pass
    assert is_refused("bert", secured.external, "two, three")


def test_a_listener_without_login_beyond_this_host_is_warned_of(tmp_path: Path) -> None:
    """By the name it is advertised under; not where it is this host alone, and not where there is a login."""
    names = {"KAFKA_NETWORK_HOST": "127.0.0.1", "KAFKA_NETWORK_PORT": str(stack.free_port())}
    names |= {"KAFKA_ADVERTISED_HOST": "fab-gateway", "KAFKA_ADVERTISED_PORT": str(stack.free_port())}
    broker = stack.Broker(tmp_path / "open", environment=names | {"KAFKA_BIND_ADDRESS": "127.0.0.1"})
    try:
        broker.start()
    finally:
        broker.kill()
    log = broker.log.read_text()
    assert log.count("WARNING") == 1
    assert "WARNING: fab-gateway is advertised beyond this host" in log
    secured = Secured(tmp_path / "secured", KAFKA_ADVERTISED_HOST="fab-gateway")
    try:
        secured.start_with("anna:one\n")
    finally:
        secured.kill()
    assert "WARNING" not in secured.log.read_text()


@pytest.fixture
def certificate(secured: Secured, tmp_path: Path) -> Path:
    """Encrypt EXTERNAL with a certificate of its own, for 127.0.0.1 alone, and start; `anna` logs in."""
    certificates = tmp_path / "certificates"
    certificates.mkdir(mode=0o700)
    key, certificate = certificates / "server.key", certificates / "server.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key, "-out", certificate,
         "-subj", "/CN=broker", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    runs = tmp_path / "run"
    runs.mkdir(mode=0o700)
    secured.environment |= {
        "KAFKA_ADVERTISED_PROTOCOL": "SASL_SSL",
        "KAFKA_TLS_CERT_FILE": str(certificate),
        "KAFKA_TLS_KEY_FILE": str(key),
        "APPLIANCE_RUN_DIR": str(runs),
    }
    secured.start_with(f"admin anna:{PASSWORD}\n")
    return certificate


def encrypted(secured: Secured, certificate: Path, topic: str, **others: str) -> dict[str, str]:
    """Return a client's settings; `others` replace some, empty ones are left out."""
    login = {
        "ETL_TOPIC": topic,
        "ETL_BOOTSTRAP_SERVERS": f"127.0.0.1:{secured.external}",
        "ETL_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "ETL_KAFKA_USERNAME": "anna",
        "ETL_KAFKA_PASSWORD": PASSWORD,
        "ETL_KAFKA_CA_FILE": str(certificate),
    } | others
    return {name: value for name, value in login.items() if value} | folder("HERE", certificate.parent / "here")


def test_the_private_key_is_written_nowhere(
    secured: Secured, certificate: Path, tmp_path: Path, run: Callable[..., Command], topic: str
) -> None:
    """Kafka reads it where it is; clients that know the authority log in."""
    secured.command("kafka-topics.sh", "--create", "--topic", topic, "--partitions", "1")
    sent = run("submit", "HERE:/a", "HERE:/b", environment=encrypted(secured, certificate, topic))
    assert sent.wait(60) == 0, sent.output
    secret = certificate.with_suffix(".key").read_bytes().splitlines()[1]
    places = (secured.folder, tmp_path / "run")
    kept = [path for place in places for path in place.rglob("*") if path.is_file()]
    assert len(kept) > 10
    assert [path for path in kept if secret in path.read_bytes()] == []


def test_a_broker_that_is_not_surely_the_right_one_gets_no_password(
    secured: Secured, certificate: Path, tmp_path: Path, run: Callable[..., Command], topic: str
) -> None:
    """Nobody knows its authority, it has another name, or it refuses the login: no job is sent, no password told.

    Not to check the name is not to check nothing. Nor is TLS older than 1.2 spoken.
    """
    secured.command("kafka-topics.sh", "--create", "--topic", topic, "--partitions", "1")
    by_name = {"ETL_BOOTSTRAP_SERVERS": f"localhost:{secured.external}"}
    no_authority = {"ETL_KAFKA_CA_FILE": ""}
    no_name = {"ETL_KAFKA_CHECK_HOSTNAME": "false"}
    wrong = [no_authority, by_name, no_name | no_authority, {"ETL_KAFKA_PASSWORD": f"{PASSWORD}!"}]
    right = [{}, no_name | by_name]
    tried = [
        (run("submit", "HERE:/a", "HERE:/b", environment=encrypted(secured, certificate, topic, **others)), others)
        for others in (*wrong, *right)
    ]
    for command, others in tried:
        ended = command.wait(120)
        assert (ended == 0) == (others in right), (others, command.output)
        assert PASSWORD not in command.output
        assert ended == 0 or "SASL_SSL" in command.output, (others, command.output)
    with contextlib.closing(KafkaConsumer(bootstrap_servers=secured.bootstrap_servers)) as reader:
        (sent,) = reader.end_offsets([TopicPartition(topic, 0)]).values()
    assert sent == len(right)
    spoken = {version: greet(secured.external, version) for version in ("-tls1_1", "-tls1_2", "-tls1_3")}
    assert spoken == {"-tls1_1": False, "-tls1_2": True, "-tls1_3": True}


def greet(port: int, version: str) -> bool:
    """Does a listener speak this version of TLS, with whatever ciphers?"""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", version, "-cipher", "DEFAULT:@SECLEVEL=0"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode == 0 and "Cipher is (NONE)" not in done.stdout


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("hunter2", "is not [ROLE [TOPICS]] NAME:PASSWORD"),
        ("anna:", "is not [ROLE [TOPICS]] NAME:PASSWORD"),
        ("produce anna:hunter2", "produce needs the topics"),
        ("submit anna:hunter2", "submit needs the topics"),
        ("write t anna:hunter2", "the role is none of produce, submit, consume, admin"),
        ("admin t anna:hunter2", "takes no topics"),
        ("produce t,a*b anna:hunter2", "a topic has characters"),
        ("ANONYMOUS:hunter2", "does not log in"),
        ("bert:hunter2", "bert is there twice"),
    ],
)
def test_a_wrong_line_ends_it_before_anything_runs_and_is_not_repeated(tmp_path: Path, line: str, says: str) -> None:
    """Exit code 2 with the number of the line; no password in what is said."""
    users = tmp_path / "users"
    users.write_text(f"bert:x\n{line}\n")
    done = check([str(users), "--check"])
    assert done.returncode == 2
    assert f"{users}, line 2: " in done.stderr
    assert says in done.stderr
    assert "hunter2" not in done.stderr


def check(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(stack.KAFKA_BIN / "kafka-users.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
