"""One `docker run` is a working appliance: commands, listeners, tools, logs, health, restarts of its processes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import containers
import pytest
from containers import Container, World, run_once
from kafka import KafkaConsumer

import stack

pytestmark = [pytest.mark.container, pytest.mark.timeout(1500)]

SERVERS = "A_TYPE=local\nA_BASE_PATH=/data/a\nB_TYPE=local\nB_BASE_PATH='/data/b'\n"
POLL_LIMIT = 8  # seconds; a user's container has 60


class Appliance(Container):
    """The appliance that these tests share: `--env-file`, a published port, a network."""

    port: int
    network: str
    env_file: Path

    def submit(self, name: str, content: str = "content") -> None:
        """Send one job from within and wait for its result."""
        self.write(f"/data/a/{name}", content)
        self.exec("etl", "submit", f"A:/{name}", f"B:/{name}", "--wait", "--timeout", "50")
        assert self.exec("cat", f"/data/b/{name}") == content


@pytest.fixture(scope="module")
def appliance(shared_world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    env_file = tmp_path_factory.mktemp("env") / ".env"
    env_file.write_text(SERVERS)
    port = stack.free_port()
    network = shared_world.network()
    options = ["--env-file", str(env_file), "--publish", f"127.0.0.1:{port}:9094", "--network", network]
    env = {"KAFKA_ADVERTISED_PORT": str(port), "APPLIANCE_POLL_LIMIT_SECONDS": str(POLL_LIMIT)}
    name = shared_world.name("c")
    started = shared_world.run("-v", options=options, env=env | {"KAFKA_NETWORK_HOST": name}, name=name)
    made = Appliance(started.name)
    made.port, made.network, made.env_file = port, network, env_file
    made.wait_healthy()
    made.exec("mkdir", "-p", "/data/a", "/data/b")
    made.wait_until_consuming()
    return made


def test_an_env_file_is_all_that_a_working_appliance_needs(appliance: Appliance) -> None:
    """`docker run --env-file .env IMAGE`, then `docker exec C etl submit … --wait`."""
    appliance.submit("first.txt")


def test_the_engine_finds_the_container_healthy(appliance: Appliance) -> None:
    """HEALTHCHECK turns from starting to healthy."""
    stack.wait_until(lambda: appliance.state()["Health"]["Status"] == "healthy", 40, "healthy")


def test_a_client_on_the_host_reaches_the_broker_through_the_published_port(appliance: Appliance) -> None:
    """It is told an address that works from there."""
    appliance.submit("seen-from-host.txt")
    client = KafkaConsumer(
        "file-transfer-jobs-results",
        bootstrap_servers=f"127.0.0.1:{appliance.port}",
        auto_offset_reset="earliest",
        consumer_timeout_ms=10_000,
        group_id=None,
    )
    try:
        assert any(b"seen-from-host.txt" in record.value for record in client)
    finally:
        client.close()


def test_another_container_reaches_the_broker_by_its_name_in_the_network(appliance: Appliance) -> None:
    """KAFKA_NETWORK_HOST=C, and `docker run --network N IMAGE submit … --bootstrap-servers C:9095`."""
    appliance.write("/data/a/from-beside.txt", "beside")
    done = run_once(
        "submit", "A:/from-beside.txt", "B:/from-beside.txt", "--wait", "--timeout", "50",
        "--bootstrap-servers", f"{appliance.name}:9095",
        options=["--network", appliance.network, "--env-file", str(appliance.env_file)],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert appliance.exec("cat", "/data/b/from-beside.txt") == "beside"


def test_the_tools_of_kafka_need_no_bootstrap_server_and_accept_one(appliance: Appliance) -> None:
    """`docker exec C kafka-consumer-groups.sh --describe --group G` and its like."""
    appliance.submit("for-the-tools.txt")
    group = appliance.exec("kafka-consumer-groups.sh", "--describe", "--group", "etl-worker-group")
    assert "file-transfer-jobs" in group
    assert "file-transfer-jobs-dlq" in appliance.exec("kafka-topics.sh", "--list")
    assert "file-transfer-jobs" in appliance.exec("kafka-topics.sh", "--list", "--bootstrap-server", "127.0.0.1:9092")
    read = appliance.exec(
        "kafka-console-consumer.sh", "--topic", "file-transfer-jobs", "--from-beginning", "--timeout-ms", "8000",
        "--max-messages", "1",
    )  # fmt: skip
    assert '"source"' in read


def test_the_tools_of_kafka_are_where_people_look_for_them(appliance: Appliance) -> None:
    """`docker exec C /opt/kafka/bin/kafka-topics.sh --bootstrap-server localhost:9092 …`."""
    folder, localhost = "/opt/kafka/bin", ["--bootstrap-server", "localhost:9092"]
    appliance.exec(f"{folder}/kafka-topics.sh", *localhost, "--create", "--topic", "by-hand", "--partitions", "1")
    assert "by-hand" in appliance.exec(f"{folder}/kafka-topics.sh", *localhost, "--list").split()
    assert "etl-worker-group" in appliance.exec(f"{folder}/kafka-consumer-groups.sh", *localhost, "--list").split()
    docker = ["exec", "-i", appliance.name, f"{folder}/kafka-console-producer.sh", *localhost, "--topic", "by-hand"]
    containers.docker(*docker, stdin="a line\n")
    read = appliance.exec(f"{folder}/kafka-console-consumer.sh", *localhost, "--topic", "by-hand", "--from-beginning",
                          "--max-messages", "1", "--timeout-ms", "15000")  # fmt: skip
    assert read == "a line\n"


def test_supervisorctl_needs_no_options(appliance: Appliance) -> None:
    """`docker exec C supervisorctl status`, `… restart etl-consumer`: all its processes, and nobody else's."""
    states = dict(line.split()[:2] for line in appliance.exec("supervisorctl", "status").splitlines())
    consumers = {"etl-consumer:consumer_00", "etl-consumer:consumer_01"}
    assert states == dict.fromkeys({"kafka", "watch", "etl-api:api", *consumers}, "RUNNING")
    named = appliance.exec("supervisorctl", "status", "etl-consumer")
    assert {line.split()[0] for line in named.splitlines()} == consumers
    before, java = appliance.consumers(), _java(appliance)
    said = appliance.exec("supervisorctl", "restart", "etl-consumer")
    assert said.count(": stopped") == said.count(": started") == 2
    after = appliance.consumers()
    assert len(after) == 2
    assert not set(before.values()) & set(after.values())
    assert _java(appliance) == java
    appliance.submit("after-the-restart.txt")


def test_the_log_of_a_start_holds_nothing_of_every_start(appliance: Appliance) -> None:
    """No word of sockets without a login, of interfaces and of processes that stayed up."""
    own = [line for line in appliance.logs().splitlines() if " supervisord " in line]
    assert own
    assert not [line for line in own if re.search(r"authentication|RPC|success|started with pid|CRIT", line)]


def _java(appliance: Appliance) -> int:
    return next(pid for _user, pid, command in appliance.processes() if "kafka.Kafka" in command)


def test_a_first_word_that_is_a_commands_name_is_the_command(appliance: Appliance) -> None:
    """`docker run IMAGE servers check`, `config check`, `--version`."""
    env = ["--env-file", str(appliance.env_file), "--volumes-from", appliance.name]
    checked = run_once("servers", "check", "A", options=env)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "A" in checked.stdout
    assert run_once("config", "check", options=env).returncode == 0
    assert re.search(r"\d+\.\d+", run_once("--version").stdout)


def test_verbose_is_verbose(appliance: Appliance) -> None:
    """`docker run IMAGE -v`: this one was started so."""
    assert re.search(r"\bDEBUG +consumer_0", appliance.logs())


def test_the_image_is_small_and_what_built_it_stays_behind(image: str, base_image: str) -> None:
    """Under 300 MB over its base; no Maven, compiler, pip or cache; labelled."""
    sizes = [int(containers.docker("image", "inspect", "-f", "{{.Size}}", name).stdout) for name in (image, base_image)]
    assert sizes[0] - sizes[1] < 300e6
    labels = containers.docker("image", "inspect", "-f", "{{json .Config.Labels}}", image).stdout
    for label in ("title", "version", "licenses"):
        assert f"org.opencontainers.image.{label}" in labels
    script = (
        "command -v mvn gcc javac jlink pip || true; ls /opt/etl/.venv/bin | grep pip || true; ls -A /root/.m2 || true"
    )
    found = run_once("-c", script, options=["--entrypoint", "bash", "--user", "0"])
    assert found.stdout == ""


def test_nothing_in_the_image_makes_another_user_of_one(image: str) -> None:
    """No setuid, no setgid program, those of the base image included."""
    found = run_once("-c", "find / -xdev -type f -perm /6000", options=["--entrypoint", "bash", "--user", "0"])
    assert (found.returncode, found.stdout) == (0, "")


def test_the_image_tells_what_it_is_made_of(image: str) -> None:
    """A CycloneDX document that names every jar and every Python package that is in it."""
    script = (
        "import json, pathlib, re\n"
        "from importlib.metadata import distributions\n"
        "told = json.load(open('/opt/etl/sbom.cdx.json'))['components']\n"
        "jars = {f'{c[\"name\"]}-{c[\"version\"]}.jar' for c in told if c['purl'].startswith('pkg:maven/')}\n"
        "wheels = {c['name'] for c in told if c['purl'].startswith('pkg:pypi/')}\n"
        "here = {re.sub('[._-]+', '-', d.name).lower() for d in distributions()} - {'etl-file-sync'}\n"
        "print(jars == {path.name for path in pathlib.Path('/opt/kafka/libs').glob('*.jar')}, wheels == here)\n"
    )
    found = run_once("-c", script, options=["--entrypoint", "/opt/etl/.venv/bin/python"])
    assert found.stdout == "True True\n", found.stderr


def test_no_process_is_roots(appliance: Appliance) -> None:
    """Not the first, not Java, not the consumers."""
    processes = appliance.processes()
    assert len(processes) >= 5
    assert {user for user, _pid, _command in processes} == {"10001"}


def test_each_line_of_the_one_log_says_which_process_wrote_it(appliance: Appliance) -> None:
    """Broker, consumers, the API, supervisord and the listener share standard output."""
    lines = containers.docker("logs", appliance.name).stdout.splitlines()
    said = re.compile(r"\b(kafka|consumer_\d\d|api|supervisord|watch)\b")
    assert [line for line in lines if not said.search(line)] == []
    assert {found[1] for line in lines if (found := said.search(line))} >= {"kafka", "consumer_00", "consumer_01"}


def test_a_consumer_that_dies_is_started_again(appliance: Appliance) -> None:
    """Killed from outside; the other one goes on meanwhile."""
    killed = appliance.consumers()[0]
    appliance.signal(killed, "KILL")
    stack.wait_until(lambda: appliance.consumers().get(0, killed) != killed, 30, "a new consumer_00")
    appliance.submit("after-the-death.txt")


def test_a_consumer_that_hangs_is_killed_and_started_again(appliance: Appliance) -> None:
    """A stopped process is one that never polls again."""
    hung = appliance.consumers()[1]
    appliance.signal(hung, "STOP")
    stack.wait_until(lambda: appliance.consumers().get(1, hung) != hung, POLL_LIMIT + 40, "a new consumer_01")
    assert "consumer_01 has not polled for" in appliance.logs()
    appliance.submit("after-the-hang.txt")
    appliance.wait_healthy()


def test_a_health_check_notices_a_broker_that_does_not_answer(appliance: Appliance) -> None:
    """A frozen broker takes connections and says nothing."""
    java = _java(appliance)
    appliance.signal(java, "STOP")
    try:
        done = appliance.try_exec("/opt/etl/.venv/bin/python", "/opt/etl/docker/health.py")
        assert done.returncode == 1
        assert "broker" in done.stdout
    finally:
        appliance.signal(java, "CONT")
    appliance.wait_healthy()
