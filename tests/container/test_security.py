"""SASL (SCRAM) and TLS: on the appliance's advertised listener, and by settings of consumers that use it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from containers import World, compose_up, run_once

import stack

pytestmark = [pytest.mark.container, pytest.mark.timeout(900)]

PASSWORD = "Scram-7d21 with a blank"


def _certificates(folder: Path, host: str) -> None:
    """Make an authority and a certificate of its for `host`: ca.pem, server.pem, server.key."""
    for command in (
        ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", "ca.key", "-out", "ca.pem",
         "-subj", "/CN=etl-test-ca"],
        ["req", "-newkey", "rsa:2048", "-nodes", "-keyout", "server.key", "-out", "server.csr", "-subj", f"/CN={host}",
         "-addext", f"subjectAltName=DNS:{host}"],
        ["x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
         "-copy_extensions", "copy", "-out", "server.pem"],
    ):  # fmt: skip
        subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("protocol", ["SASL_SSL", pytest.param("SASL_PLAINTEXT", marks=pytest.mark.long)])
def test_consumers_elsewhere_log_in_to_the_advertised_listener(world: World, tmp_path: Path, protocol: str) -> None:
    """With the right password jobs are done; a wrong one, or none at all, is a clear refusal."""
    network, name = world.network(), world.name("secured")
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    _certificates(secrets, name)
    (secrets / "users").write_text(f"somebody:Else-1\nworker:{PASSWORD}\n")
    (secrets / "password").write_text(f"{PASSWORD}\n")
    for file in secrets.iterdir():
        file.chmod(0o444)
    mounted = ["--network", network, "--volume", f"{secrets}:/run/secrets/etl:ro"]
    broker = world.run(
        "broker",
        name=name,
        options=mounted,
        env={
            "KAFKA_ADVERTISED_HOST": name,
            "KAFKA_ADVERTISED_PROTOCOL": protocol,
            "KAFKA_TLS_CERT_FILE": "/run/secrets/etl/server.pem",
            "KAFKA_TLS_KEY_FILE": "/run/secrets/etl/server.key",
            "KAFKA_USERS_FILE": "/run/secrets/etl/users",
        },
    )
    broker.wait_for("users of the listeners with login: somebody worker", 60)
    login = {
        "ETL_BOOTSTRAP_SERVERS": f"{name}:9094",
        "ETL_KAFKA_SECURITY_PROTOCOL": protocol,
        "ETL_KAFKA_USERNAME": "worker",
        "ETL_KAFKA_PASSWORD_FILE": "/run/secrets/etl/password",
        "ETL_KAFKA_CA_FILE": "/run/secrets/etl/ca.pem",
        "A_TYPE": "local",
        "A_BASE_PATH": "/data",
    }
    consumers = world.run("--topic", "secured", "--group-id", "secured-group", options=mounted, env=login)
    consumers.write("/data/in.txt", "secret")
    consumers.wait_until_consuming(limit=60)
    consumers.exec("etl", "submit", "A:/in.txt", "A:/out.txt", "--wait", "--timeout", "50")
    assert consumers.exec("cat", "/data/out.txt") == "secret"
    assert PASSWORD not in consumers.logs() + broker.logs()

    wrong = {key: value for key, value in login.items() if key != "ETL_KAFKA_PASSWORD_FILE"}
    refused = run_once("submit", "A:/in.txt", "A:/x.txt", "--topic", "secured", options=mounted,
                       env=wrong | {"ETL_KAFKA_PASSWORD": "Wrong-0000"}, limit=60)  # fmt: skip
    assert refused.returncode == 1
    assert f"or the {protocol} login or certificate was refused" in refused.stderr
    assert "Wrong-0000" not in refused.stderr
    plain = {key: value for key, value in wrong.items() if not key.startswith("ETL_KAFKA")}
    nothing = run_once("submit", "A:/in.txt", "A:/x.txt", "--topic", "secured", options=mounted, env=plain, limit=60)
    assert nothing.returncode == 1


def test_a_secured_listener_without_its_files_ends_the_container(image: str) -> None:
    """One sentence that names the setting."""
    done = run_once("broker", env={"KAFKA_ADVERTISED_PROTOCOL": "SASL_SSL"}, limit=60)
    assert done.returncode == 2
    assert "KAFKA_TLS_CERT_FILE" in done.stderr


@pytest.mark.long
def test_the_hardened_stack_works_with_a_login_for_everyone(image: str, tmp_path: Path) -> None:
    """docker-compose.secure.yml over the parallel one: a job is done, and nobody enters without a login."""
    secrets = tmp_path / "secrets"
    (secrets / "broker").mkdir(parents=True)
    (secrets / "consumer").mkdir()
    _certificates(secrets / "broker", "broker")
    (secrets / "broker" / "ca.pem").rename(secrets / "consumer" / "ca.pem")
    (secrets / "broker" / "users").write_text(f"worker:{PASSWORD}\n")
    (secrets / "consumer" / "password").write_text(f"{PASSWORD}\n")
    for file in secrets.rglob("*.*"):
        file.chmod(0o444)
    env_file = tmp_path / "servers.env"
    env_file.write_text("A_TYPE=local\nA_BASE_PATH=/data\nETL_NUM_PARTITIONS=2\n")
    environment = {
        "ENV_FILE": str(env_file), "SECRETS": str(secrets), "KAFKA_ADVERTISED_PORT": str(stack.free_port()),
    }  # fmt: skip
    with compose_up("docker-compose.parallel.yml", "docker-compose.secure.yml", environment=environment) as compose:
        consumer = compose.containers("mem-dft-img")[0]
        consumer.write("/data/in.txt", "secret")
        consumer.exec("etl", "submit", "A:/in.txt", "A:/out.txt", "--wait", "--timeout", "50")
        assert consumer.exec("cat", "/data/out.txt") == "secret"
        assert "WARNING" not in compose("logs", "broker")
        refused = consumer.try_exec("env", "ETL_KAFKA_SECURITY_PROTOCOL=SSL", "etl", "submit", "A:/in.txt", "A:/x.txt")
        assert refused.returncode == 1
