"""The two compose files as they ship: scaled, with a consumer killed in the middle; everything arrives once."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from containers import ENVIRONMENT, REPOSITORY, Compose, Container, compose_up, docker, eventually

import stack

pytestmark = [pytest.mark.container, pytest.mark.timeout(1500)]

TOPICS = ("mem-dft-img", "fdry-dft-img", "mem-cdsem-img", "fdry-cdsem-img")
FILES = 60  # per topic
# The same program: a command of its own before, a plugin of Docker's since version 2.
DOCKER_COMPOSE = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]


def test_the_test_stack_moves_files_between_real_ftp_servers_through_kills_and_scaling(
    image: str, ftp_image: str
) -> None:
    """A consumer container is killed in the middle, one more comes, one goes: everything is there, reported once."""
    count = 240
    with compose_up(
        "docker-compose.test.yml", scale={"consumer": 2}, environment={"FTP_RATE": "local_max_rate=100000"}
    ) as compose:
        source, destination = compose.containers("source")[0], compose.containers("destination")[0]
        source.exec("bash", "-c", f"cd /home/ftp-files && for i in $(seq {count}); do head -c 100000 /dev/urandom "
                    ">f$i.bin; done && chmod 644 *.bin", limit=60)  # fmt: skip
        first, second = compose.containers("consumer")
        jobs = "".join(
            _job(f"SRC_FTP_SERVER1:/f{i}.bin", f"DST_FTP_SERVER1:/in/{i % 7}/f{i}.bin") for i in range(1, count + 1)
        )
        docker("exec", "-i", first.name, "etl", "submit", "--file", "-", stdin=jobs)
        eventually(lambda: _arrived(destination) > count // 8, 60, "the first files")
        second.kill()
        assert _arrived(destination) < count, "the kill came too late to show anything"
        compose("up", "--detach", "--no-recreate", "--scale", "consumer=3")
        eventually(lambda: _arrived(destination) > count // 2, 60, "half of the files")
        compose("up", "--detach", "--no-recreate", "--scale", "consumer=1")
        eventually(lambda: _arrived(destination) == count, 120, f"{count} files at the destination")
        survivor = compose.containers("consumer")[0]
        _assert_reported_once(survivor, "test-jobs-results", count)
        sums = [_sums(source, "."), _sums(destination, "in")]
        assert sums[0] == sums[1]
        assert destination.exec("bash", "-c", "find /home/ftp-files -name '*part*' | wc -l").strip() == "0"


def test_the_container_etl_test_is_there_after_up(image: str, ftp_image: str) -> None:
    """`docker-compose -f docker-compose.test.yml up -d`, then `docker exec etl-test …`, as people type it."""
    compose = Compose("docker-compose.test.yml")
    name = compose.environment["ETL_TEST_NAME"]
    command = [*DOCKER_COMPOSE, "--project-name", compose.project, "-f", "docker-compose.test.yml", "up", "-d"]
    try:
        subprocess.run(
            command, cwd=REPOSITORY, env=ENVIRONMENT | compose.environment, stdin=subprocess.DEVNULL,
            capture_output=True, timeout=240, check=True,
        )  # fmt: skip
        appliance = Container(name)
        appliance.wait_healthy()
        appliance.wait_until_consuming()
        topics = appliance.exec("/opt/kafka/bin/kafka-topics.sh", "--bootstrap-server", "localhost:9092", "--list")
        assert "test-jobs-results" in topics.split()
        for process in ("kafka", "etl-consumer:consumer_00", "etl-consumer:consumer_01"):
            assert re.search(rf"^{process} +RUNNING", appliance.exec("supervisorctl", "status"), re.MULTILINE)
        compose.containers("source")[0].exec("sh", "-c", "echo hello >/home/ftp-files/hello.txt")
        appliance.exec("etl", "submit", "SRC_FTP_SERVER1:/hello.txt", "DST_FTP_SERVER1:/in/hello.txt", "--wait",
                       "--timeout", "60")  # fmt: skip
    finally:
        compose.down()


@pytest.mark.long
def test_four_topics_on_one_broker_scale_each_for_itself(image: str, tmp_path: Path) -> None:
    """docker-compose.parallel.yml: `--scale` on each service, a kill, one up and one down."""
    shared = tmp_path / "shared"
    for topic in TOPICS:
        (shared / topic / "in").mkdir(parents=True)
        for i in range(FILES):
            (shared / topic / "in" / f"{i}.bin").write_bytes(f"{topic} {i}\n".encode() * 1000)
    docker("run", "--rm", "--volume", f"{shared}:/shared", "--user", "0", "--entrypoint", "chown", image, "-R",
           "10001:0", "/shared")  # fmt: skip
    env_file = tmp_path / "servers.env"
    env_file.write_text(
        "IMAGES_TYPE=local\nIMAGES_BASE_PATH=/shared\nARCHIVE_TYPE=local\nARCHIVE_BASE_PATH=/shared\n"
        "ETL_NUM_PARTITIONS=2\nETL_WORKERS=2\n"
    )
    override = tmp_path / "shared.yml"
    override.write_text(
        "services:\n" + "".join(f"  {t}:\n    volumes: ['{shared}:/shared']\n    user: '10001:0'\n" for t in TOPICS)
    )
    port = str(stack.free_port())
    with compose_up(
        "docker-compose.parallel.yml", str(override), scale={"mem-dft-img": 2},
        environment={"ENV_FILE": str(env_file), "KAFKA_ADVERTISED_PORT": port},
    ) as compose:  # fmt: skip
        for topic in TOPICS:
            _submit(compose, topic, range(FILES // 2))
        compose.containers("mem-dft-img")[1].kill()
        compose("up", "--detach", "--no-recreate", "--scale", "fdry-dft-img=3", "--scale", "mem-dft-img=1")
        for topic in TOPICS:
            _submit(compose, topic, range(FILES // 2, FILES))
        eventually(
            lambda: all(len(list((shared / t / "out").glob("*.bin"))) == FILES for t in TOPICS), 150, "all files"
        )
        for topic in TOPICS:
            _assert_reported_once(compose.containers(topic)[0], f"{topic}-results", FILES)
        eventually(
            lambda: "idle: the group has more processes" in compose("logs", "fdry-dft-img"), 90,
            "the third process on two partitions saying so",
        )  # fmt: skip
        log = compose("logs", "fdry-dft-img")
        assert log.count("idle: the group has more processes") == 1


@pytest.mark.parametrize("kills", [1, pytest.param(5, marks=pytest.mark.long)])
def test_one_of_three_brokers_is_lost_and_nothing_with_it(image: str, ftp_image: str, kills: int) -> None:
    """Replication 3, two in sync: the leader of a partition of the jobs is killed in the middle of the run."""
    count = 120 * kills
    names = ("broker", "kafka2", "kafka3")
    with compose_up(
        "docker-compose.test.yml", "tests/container/cluster.yml", scale={"consumer": 2},
        environment={"FTP_RATE": "local_max_rate=100000", "ETL_CONSUMER_COUNT": "1"},
    ) as compose:  # fmt: skip
        source, destination = compose.containers("source")[0], compose.containers("destination")[0]
        source.exec("bash", "-c", f"cd /home/ftp-files && for i in $(seq {count}); do head -c 100000 /dev/urandom "
                    ">f$i.bin; done && chmod 644 *.bin", limit=60)  # fmt: skip
        consumer = compose.containers("consumer")[0]
        brokers = ["--bootstrap-server", ",".join(f"{name}:9095" for name in names)]
        describe = ["kafka-topics.sh", "--describe", "--topic", "test-jobs", *brokers]
        assert "ReplicationFactor: 3" in consumer.exec(*describe)
        for kill in range(kills):
            leader = int(consumer.exec(*describe).partition("Leader: ")[2].split()[0])
            jobs = "".join(
                _job(f"SRC_FTP_SERVER1:/f{i}.bin", f"DST_FTP_SERVER1:/in/f{i}.bin")
                for i in range(kill * 120 + 1, kill * 120 + 121)
            )
            docker("exec", "-i", consumer.name, "etl", "submit", "--file", "-", stdin=jobs)
            eventually(lambda done=kill * 120: _arrived(destination) > done + 5, 90, "the first files")
            compose("kill", names[leader - 1])
            assert _arrived(destination) < (kill + 1) * 120, "the kill came too late to show anything"
            eventually(lambda done=kill: _arrived(destination) == (done + 1) * 120, 150, "all files")
            if kill + 1 < kills:
                compose("up", "--detach", "--no-recreate", "--wait", "--wait-timeout", "120", names[leader - 1])
        results = ["--bootstrap-server", ",".join(f"{name}:9095" for name in names if name != names[leader - 1])]
        _assert_reported_once(consumer, "test-jobs-results", count, *results)
        assert _sums(source, ".") == _sums(destination, "in")


def _submit(compose: Compose, topic: str, numbers: range) -> None:
    lines = "".join(_job(f"IMAGES:/{topic}/in/{i}.bin", f"ARCHIVE:/{topic}/out/{i}.bin") for i in numbers)
    docker("exec", "-i", compose.containers(topic)[0].name, "etl", "submit", "--file", "-", stdin=lines)


def _job(source: str, destination: str) -> str:
    ends = [dict(zip(("hostname", "path"), end.split(":", 1), strict=True)) for end in (source, destination)]
    return json.dumps({"source": ends[0], "destination": ends[1]}) + "\n"


def _arrived(destination: Container) -> int:
    listed = destination.exec("bash", "-c", "find /home/ftp-files/in -name '*.bin' 2>/dev/null | wc -l", check=False)
    return int(listed or 0)


def _sums(server: Container, folder: str) -> list[str]:
    command = f"cd /home/ftp-files && sha256sum $(find {folder} -type f -name '*.bin')"
    return sorted(server.exec("bash", "-c", command).split()[::2])


def _assert_reported_once(container: Container, topic: str, count: int, *options: str) -> None:
    """Wait for the results; exactly one of each destination.

    A member that is killed while the group is being shared out anew holds that up for a minute and a half: Kafka waits
    for it as long as the rebalance may take (60 s), and for its session and its open transaction.
    """
    deadline = time.monotonic() + 150
    while True:
        printed = container.exec(
            "kafka-console-consumer.sh", "--topic", topic, "--from-beginning", "--timeout-ms", "5000",
            "--isolation-level", "read_committed", *options, check=False,
        )  # fmt: skip
        results = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
        if len(results) >= count or time.monotonic() > deadline:
            break
    assert {result["status"] for result in results} == {"SUCCESS"}
    paths = [result["destination"]["path"] for result in results]
    assert len(paths) == len(set(paths)) == count
