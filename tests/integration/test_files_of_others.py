"""A consumer that knows nothing but FTP Pooler's two files."""

from __future__ import annotations

from pathlib import Path

import pytest

import stack
from workbench import Command, Desk

pytestmark = pytest.mark.integration

PASSWORD = "Secret-of-the-file"


def test_a_consumer_started_from_connections_ini_and_config_yaml_alone(
    desk: Desk, make_ftpd: object, tmp_path: Path, broker: stack.Broker
) -> None:
    """It takes FTP Pooler's messages from its topic, answers in its form and topics, and never shows a password."""
    server = make_ftpd()  # type: ignore[operator]
    folder = tmp_path / "local"
    folder.mkdir()
    (server.root / "a.txt").write_bytes(b"content")
    config, connections = tmp_path / "config.yaml", tmp_path / "connections.ini"
    config.write_text(
        f"""
kafka:
  bootstrap_servers: ["{desk.bootstrap_servers}"]
  consumer_group: {desk.group}
  input_topic: {desk.topic}
  result_topic: {desk.results_topic}
  fail_topic: {desk.results_topic}
pool:
  max_sessions_per_pod: 4
  max_sessions_per_connection: 2
metrics:
  port: 0
logging:
  level: DEBUG
"""
    )
    connections.write_text(
        f"""
[remote-server-a]
type = ftp
host = {server.host}
port = {server.port}
user = {server.username}
pass = {server.password}

[wrong]
type = ftp
host = {server.host}
port = {server.port}
user = nobody
pass = {PASSWORD}

[local]
type = local
base_path = {folder}
"""
    )
    message = {"task_id": "t-1", "src_id": "remote-server-a", "src_path": "/a.txt", "dst_id": "local", "metadata": {}}
    desk.send({**message, "dst_path": "/b.txt"}, {**message, "task_id": "t-2", "src_path": "/none", "dst_path": "/c"})
    desk.send({**message, "task_id": "t-3", "src_id": "wrong", "dst_path": "/d"})
    environment = {"FTP_POOLER_CONFIG": str(config), "FTP_POOLER_CONNECTIONS": str(connections)}
    with Command(tmp_path, environment=environment) as consumer:
        assert desk.outcome("t-1", 60)["status"] == "SUCCESS"
        assert desk.outcome("t-2", 60)["error_code"] == "FILE_NOT_FOUND"
        desk.wait(lambda: "530 Authentication failed" in consumer.output, 60, "refused login")
        # A result can be read a moment before its line is written.
        desk.wait(lambda: '"event": "job done"' in consumer.output, 10, "a line in JSON, as in FTP Pooler")
        output = consumer.output
    assert (folder / "b.txt").read_bytes() == b"content"
    assert desk.outcome("t-1")["src_id"] == "remote-server-a"
    assert server.password not in output
    assert PASSWORD not in output


def test_an_unknown_name_stops_the_start_with_exit_code_2(tmp_path: Path) -> None:
    """And is named by file, section and name; `etl config check` says the same, and shows no password."""
    connections = tmp_path / "connections.ini"
    connections.write_text(f"[a]\ntype = ftp\nhost = h\npass = {PASSWORD}\npasive = true\n")
    for arguments in ((), ("config", "check")):
        with Command(tmp_path, *arguments, environment={"ETL_CONNECTIONS": str(connections)}) as command:
            assert command.wait() == 2
        assert f"A_PASIVE ({connections} [a] pasive): unknown property" in " ".join(command.output.split())
        assert PASSWORD not in command.output
    connections.write_text(f"[a]\ntype = ftp\nhost = h\npass = {PASSWORD}\n")
    with Command(tmp_path, "config", "check", environment={"ETL_CONNECTIONS": str(connections)}) as command:
        assert command.wait() == 0
    assert PASSWORD not in command.output
