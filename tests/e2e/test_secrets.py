"""No password in any log, topic, error or process list: distinctive ones are looked for everywhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from kafka import KafkaConsumer, TopicPartition

import stack
from servers.fake import FakeFTP, FakeSession
from workbench import Command, Desk, folder, job, login

pytestmark = pytest.mark.e2e

WRONG = 'Wrong-pass"\\ 한글 %41/ü?'
ECHOED = "Echoed-back-4711"
IN_A_FILE = "From-a-mounted-file-0815"


def everything_in(bootstrap_servers: str, topic: str) -> bytes:
    """Return all records of the topics of a test, values, keys and headers, also uncommitted ones."""
    reader = KafkaConsumer(bootstrap_servers=bootstrap_servers, group_id=None, auto_offset_reset="earliest")
    try:
        names = [name for name in reader.topics() if name.startswith(topic)]
        assert len(names) >= 4
        tps = [TopicPartition(name, number) for name in names for number in reader.partitions_for_topic(name)]
        reader.assign(tps)
        reader.seek_to_beginning()
        ends = reader.end_offsets(tps)
        found = b""
        deadline = time.monotonic() + 30
        while any(reader.position(tp) < ends[tp] for tp in tps):
            assert time.monotonic() < deadline
            for records in reader.poll(timeout_ms=200).values():
                found += b"\n".join(repr((r.key, r.headers)).encode() + (r.value or b"") for r in records)
        return found
    finally:
        reader.close()


@pytest.mark.parametrize("log_format", [pytest.param("text", marks=pytest.mark.long), "json"])
def test_no_password_is_anywhere(
    log_format: str, desk: Desk, run: Callable[..., Command], make_ftpd: Callable[..., stack.Ftpd], tmp_path: Path
) -> None:
    """Logins that work, that are refused, and one whose server repeats the password in its answer."""

    def repeat(_session: FakeSession, argument: str) -> str:
        return f"530 The password {argument} is wrong."

    good, refusing = make_ftpd({"user": "Right-pass-$HOME"}), make_ftpd({"user": "Another-Right-pass"})
    (good.root / "a").write_bytes(b"content")
    (tmp_path / "secret").write_text(IN_A_FILE + "\n")
    (tmp_path / "here").mkdir()
    with FakeFTP(answers={"PASS": repeat}) as echo:
        settings = desk.settings(
            login("GOOD", good),
            login("REFUSED", refusing, PASS=WRONG),
            login("ECHO", echo, PASS=ECHOED),
            login("FILE", refusing),
            folder("HERE", tmp_path / "here"),
            {"ETL_OUTAGE_PATIENCE_HOURS": "0.0003", "ETL_LOG_FORMAT": log_format, "ETL_LOG_LEVEL": "DEBUG"},
        )
        del settings["FILE_PASS"]
        settings["FILE_PASS_FILE"] = str(tmp_path / "secret")
        (tmp_path / "servers.env").write_text(
            "LATER_TYPE=ftp\nLATER_HOST=h\nLATER_USER=u\nLATER_PASS=In-the-env-file\n"
        )
        secrets = ["Right-pass-$HOME", WRONG, ECHOED, IN_A_FILE, "In-the-env-file"]
        command = run("-v", "--env-file", "servers.env", environment=settings)
        desk.do(
            job("GOOD:/a", "HERE:/a"),
            job("REFUSED:/a", "HERE:/b"),
            job("ECHO:/a", "HERE:/c"),
            job("FILE:/a", "HERE:/d"),
            limit=40,
        )
        processes = " ".join(" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))
        assert command.stop() == 0
    codes = sorted(str(result.get("error_code")) for result in desk.results())
    assert codes == ["AUTHENTICATION_FAILED"] * 3 + ["None"]
    wrong = run(environment=settings | {"GOOD_PORT": "none", "ECHO_TIPE": "x"})
    assert wrong.wait() == 2
    checked = run("config", "check", environment=settings)
    assert checked.wait() == 0
    places = {
        "log": command.output,
        "topics": everything_in(desk.bootstrap_servers, desk.topic).decode("utf-8", "replace"),
        "processes": processes,
        "wrong settings": wrong.output,
        "config check": checked.output,
    }
    for place, text in places.items():
        for secret in secrets:
            forms = {secret, secret.encode("unicode_escape").decode(), repr(secret)[1:-1]}
            assert not any(form in text for form in forms), f"{secret} is in {place}"
