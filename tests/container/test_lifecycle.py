"""How a container starts, stops and comes back: locked down, stopped in mid-transfer, killed, refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from containers import Container, World, run_once

import stack

pytestmark = [pytest.mark.container, pytest.mark.timeout(1500)]

FOLDERS = {"A_TYPE": "local", "A_BASE_PATH": "/data/a", "B_TYPE": "local", "B_BASE_PATH": "/data/b"}
LOCKED_DOWN = [
    "--user", "12345:0", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL",
    "--security-opt", "no-new-privileges", "--memory", "1g",
]  # fmt: skip
STOP_LIMIT = 10.0  # seconds: Docker's own
SLOW_BYTES = 32 * 1024 * 1024
RATE = 1024 * 1024  # of the slow source, bytes/s


@pytest.fixture
def slow_source(world: World, ftp_image: str) -> Iterator[tuple[str, Container]]:
    """A network, and in it a real FTP server whose transfers take a minute."""
    network = world.network()
    server = world.run(
        f"local_max_rate={RATE}",
        image=ftp_image,
        name=world.name("ftp"),
        env={"FTP_USER": "reader", "FTP_PASS": "Slow-51f3"},
        options=["--network", network],
    )
    server.exec("bash", "-c", f"head -c {SLOW_BYTES} /dev/urandom >/home/ftp-files/slow.bin")
    server.exec("bash", "-c", "echo quick >/home/ftp-files/quick.txt; chmod 644 /home/ftp-files/*")
    return network, server


def test_a_locked_down_container_is_stopped_in_mid_transfer_and_killed_and_nothing_is_lost(
    world: World, slow_source: tuple[str, Container], tmp_path: Path
) -> None:
    """Any user id, read-only, no capability, 1 GiB, the password in a file; stopped within Docker's 10 s."""
    network, server = slow_source
    secret = tmp_path / "password"
    secret.write_text("Slow-51f3\n")
    secret.chmod(0o444)
    volume = world.volume()
    appliance = world.run(
        "--topic", "nightly", "--group-id", "nightly-group",
        options=[*LOCKED_DOWN, "--network", network, "--volume", f"{volume}:/data",
                 "--volume", f"{secret}:/run/secrets/slow:ro"],
        env={"SLOW_TYPE": "ftp", "SLOW_HOST": server.name, "SLOW_USER": "reader",
             "SLOW_PASS_FILE": "/run/secrets/slow", "B_TYPE": "local", "B_BASE_PATH": "/data"},
    )  # fmt: skip
    appliance.wait_healthy()
    appliance.wait_until_consuming()
    assert {user for user, _pid, _command in appliance.processes()} == {"12345"}
    java = next(command for _user, _pid, command in appliance.processes() if "kafka.Kafka" in command)
    assert "-Xmx256M" in java, "the heap is sized from the limit of 1 GiB"
    appliance.exec("etl", "submit", "SLOW:/quick.txt", "B:/quick.txt", "--wait", "--timeout", "60")
    topics = appliance.exec("kafka-topics.sh", "--list").split()
    assert {"nightly", "nightly-results"} <= set(topics), "commands know the topic of the command line"

    appliance.exec("etl", "submit", "SLOW:/slow.bin", "B:/slow.bin")
    _wait_for_part(appliance)
    took = appliance.stop()
    state = appliance.state()
    print(f"docker stop with a transfer running: {took:.1f} s")
    assert state["ExitCode"] == 0, "not killed: Docker does that after 10 s" + appliance.logs()[-3000:]
    assert took < STOP_LIMIT + 0.5, "with the time of the command itself"
    assert "transfers reset" in appliance.logs()

    appliance.start()
    _wait_for_part(appliance)  # the job that was reset runs again
    log = appliance.logs().partition("transfers reset")[2]
    assert "ecovering" not in log
    assert "unclean" not in log.lower()

    appliance.kill()
    appliance.start()
    appliance.wait_for("Kafka Server started", count=3)  # how long that takes is the machine's affair
    began = time.monotonic()
    appliance.wait_healthy()
    appliance.exec("etl", "submit", "SLOW:/quick.txt", "B:/again.txt", "--wait", "--timeout", "60")
    print(f"docker kill, docker start, from the broker's start to a job done: {time.monotonic() - began:.1f} s")
    assert time.monotonic() - began < 20.0, appliance.logs()[-6000:]
    stack.wait_until(
        lambda: "slow.bin" in appliance.exec("ls", "/data").split(), 3 * SLOW_BYTES / RATE, "the slow file's arrival"
    )
    sums = [appliance.exec("sha256sum", "/data/slow.bin"), server.exec("sha256sum", "/home/ftp-files/slow.bin")]
    assert len({line.split()[0] for line in sums}) == 1
    assert appliance.exec("sh", "-c", "ls -A /data | grep part || true") == ""
    _assert_reported_once(appliance, "nightly-results", ["quick.txt", "slow.bin", "again.txt"])


def test_a_locked_down_broker_takes_what_is_compressed_with_any_codec(world: World) -> None:
    """Two of them run a library of their own, which Docker's tmpfs for /tmp forbids."""
    broker = world.run("broker", options=LOCKED_DOWN)
    broker.wait_healthy()
    broker.exec("kafka-topics.sh", "--create", "--topic", "packed", "--partitions", "1")
    script = (
        "from kafka import KafkaProducer\n"
        "for codec in (None, 'gzip', 'snappy', 'lz4', 'zstd'):\n"
        "  producer = KafkaProducer(bootstrap_servers='127.0.0.1:9092', compression_type=codec)\n"
        "  print(producer.send('packed', b'x' * 1000).get(timeout=20).offset)\n"
        "  producer.close(timeout=5)\n"
    )
    assert broker.exec("/opt/etl/.venv/bin/python", "-c", script).split() == ["0", "1", "2", "3", "4"]


def test_a_broker_alone_and_consumers_beside_it(world: World) -> None:
    """`IMAGE broker`, and the same image with topic, group and bootstrap servers as words: no broker starts there."""
    network, volume = world.network(), world.volume()
    name = world.name("broker")
    broker = world.run(
        "broker",
        name=name,
        options=["--network", network, "--volume", f"{volume}:/data"],
        env={"KAFKA_NETWORK_HOST": name},
    )
    consumers = world.run(
        "beside", "beside-group", f"{broker.name}:9095",
        options=["--network", network, "--volumes-from", broker.name], env=FOLDERS,
    )  # fmt: skip
    broker.wait_healthy()
    consumers.exec("mkdir", "-p", "/data/a", "/data/b")
    consumers.write("/data/a/x.txt", "beside")
    consumers.wait_until_consuming()
    consumers.wait_healthy()
    assert not [command for _u, _p, command in broker.processes() if "etl.main" in command]
    assert not [command for _u, _p, command in consumers.processes() if "kafka.Kafka" in command]
    consumers.exec("etl", "submit", "A:/x.txt", "B:/x.txt", "--wait", "--timeout", "60")
    assert "beside" in consumers.exec("kafka-topics.sh", "--list").split()
    assert broker.stop() < STOP_LIMIT
    assert broker.state()["ExitCode"] == 0


def test_wrong_settings_end_the_container_at_once_with_one_message() -> None:
    """Exit code 2, before anything is started."""
    done = run_once("--topic", "t", env={"ETL_WROKERS": "4", "A_TYPE": "ftp", "A_HOST": "h"})
    assert done.returncode == 2
    assert "ETL_WROKERS" in done.stderr
    assert "ETL_WORKERS" in done.stderr
    assert "A_USER" in done.stderr
    assert "supervisord" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("echo 99.0 >/data/kafka/version", "newer"),
        ("printf 'version=1\\nnode.id=7\\ncluster.id=x\\n' >/data/kafka/log/meta.properties", "another cluster"),
        ("chmod 500 /data/kafka", "cannot write"),
    ],
)
def test_a_volume_that_is_not_ours_ends_the_container_with_one_sentence(world: World, written: str, says: str) -> None:
    """Of a newer broker, of another cluster's node, or one that may not be written: no endless restarts."""
    volume = world.volume()
    command = f"mkdir -p /data/kafka/log && {written}"
    prepared = run_once("-c", command, options=["--volume", f"{volume}:/data", "--entrypoint", "bash"])
    assert prepared.returncode == 0, prepared.stderr
    done = run_once(options=["--volume", f"{volume}:/data"], env=FOLDERS, limit=60)
    assert done.returncode == 2, done.stdout
    assert says in done.stderr
    assert "supervisord" not in done.stdout + done.stderr


def test_a_second_container_on_a_volume_is_refused_and_the_first_goes_on(world: World) -> None:
    """Two brokers on one folder would ruin it; the second one ends with a sentence."""
    volume = world.volume()
    first = world.run(options=["--volume", f"{volume}:/data"], env=FOLDERS)
    first.wait_healthy()
    second = run_once(options=["--volume", f"{volume}:/data"], env=FOLDERS, limit=60)
    assert second.returncode == 2, second.stdout
    assert "in use by another broker" in second.stderr
    first.wait_until_consuming()
    first.exec("mkdir", "-p", "/data/a", "/data/b")
    first.write("/data/a/x.txt", "alone")
    first.exec("etl", "submit", "A:/x.txt", "B:/x.txt", "--wait", "--timeout", "60")
    first.kill()
    first.start()  # a killed one holds nothing
    first.wait_healthy()


def test_a_read_only_container_without_tmpfs_says_what_it_needs() -> None:
    """One sentence, exit code 2."""
    done = run_once(options=["--read-only"], env=FOLDERS, limit=60)
    assert done.returncode == 2
    assert "needs --tmpfs /tmp" in done.stderr


@pytest.mark.long
def test_a_disk_that_fills_up_costs_no_job_and_says_so(world: World) -> None:
    """The broker waits for room, in one line each time; with room again all goes on by itself."""
    appliance = world.run(options=["--tmpfs", "/data:size=80m,mode=1777"], env=FOLDERS | {"ETL_NUM_PARTITIONS": "2"})
    appliance.wait_healthy()
    appliance.wait_until_consuming()
    appliance.exec("mkdir", "-p", "/data/a")  # not B's: the job waits until it is there
    appliance.write("/data/a/x.txt", "waited")
    appliance.exec("etl", "submit", "A:/x.txt", "B:/x.txt")
    appliance.exec("sh", "-c", "dd if=/dev/zero of=/data/fill bs=1M", check=False)
    (java,) = [pid for _user, pid, command in appliance.processes() if "kafka.Kafka" in command]
    appliance.signal(java, "KILL")
    appliance.wait_for("MB free, fewer than", 60)
    appliance.exec("sh", "-c", "rm /data/fill; mkdir -p /data/b")
    stack.wait_until(lambda: appliance.exec("cat", "/data/b/x.txt", check=False) == "waited", 150, "the file")
    appliance.wait_healthy()
    _assert_reported_once(appliance, "file-transfer-jobs-results", ["x.txt"])


def _wait_for_part(appliance: Container) -> None:
    """Wait until a slow transfer is under way."""
    stack.wait_until(
        lambda: ".part" in appliance.exec("sh", "-c", "ls -A /data", check=False), 60, "a partial file of a transfer"
    )


def _assert_reported_once(appliance: Container, topic: str, names: list[str]) -> None:
    printed = appliance.exec(
        "kafka-console-consumer.sh", "--topic", topic, "--from-beginning", "--timeout-ms", "6000",
        "--isolation-level", "read_committed", check=False,
    )  # fmt: skip
    lines = [line for line in printed.splitlines() if line.startswith("{")]
    for name in names:
        assert sum(f'/{name}"' in line.split('"destination"')[1] for line in lines) == 1, printed
