"""The process around the consumer: exit codes, and what signals do. The consumer itself is replaced."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from etl import process
from etl.errors import BrokerRefused, SettingsError

pytestmark = pytest.mark.unit


class Stand:
    """Stands where the consumer would: `start` does what the test says."""

    doing: Callable[[Stand], None] = staticmethod(lambda _self: None)

    def __init__(self, topic: str, group_id: str, bootstrap_servers: str, config: Any) -> None:
        self.arguments = (topic, group_id, bootstrap_servers)
        self.reasons: list[str] = []

    def stop(self, reason: str) -> None:
        self.reasons.append(reason)

    def start(self) -> None:
        type(self).doing(self)


@pytest.fixture(autouse=True)
def stand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Stand]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INBOX_TYPE", "local")
    monkeypatch.setenv("INBOX_BASE_PATH", str(tmp_path))
    monkeypatch.setattr(process, "FileTransferConsumer", Stand)
    monkeypatch.setattr(Stand, "doing", staticmethod(lambda _self: None))
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    thresholds = gc.get_threshold()
    yield Stand
    for number, handler in handlers:
        signal.signal(number, handler)
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def raising(error: BaseException) -> Callable[[Any], None]:
    def start(_self: Any) -> None:
        raise error

    return staticmethod(start)  # type: ignore[return-value]


def test_a_clean_end_is_0(stand: type[Stand], monkeypatch: pytest.MonkeyPatch) -> None:
    """The options of the command line win."""
    seen: list[tuple[str, ...]] = []
    monkeypatch.setattr(stand, "doing", staticmethod(lambda self: seen.append(self.arguments)))
    assert process.run({"ETL_TOPIC": "t", "ETL_GROUP_ID": "g", "ETL_BOOTSTRAP_SERVERS": "h:1"}) == process.EXIT_OK
    assert seen == [("t", "g", "h:1")]


def test_wrong_settings_are_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Found before anything is started, or by the broker's topics."""
    assert process.run({"ETL_WORKERS": "none"}) == process.EXIT_WRONG_SETTINGS
    assert "ETL_WORKERS" in capsys.readouterr().err
    assert process.run(env_file=str(tmp_path / "missing")) == process.EXIT_WRONG_SETTINGS


def test_no_servers_are_2(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Started in another folder than that of its .env it would make dead letters of its share of the jobs."""
    monkeypatch.delenv("INBOX_TYPE")
    (tmp_path / ".env").write_text("TOOL_TPYE=ftp\n")
    assert process.run() == process.EXIT_WRONG_SETTINGS
    said = capsys.readouterr().err
    for part in ("no servers are set", str(tmp_path), "TOOL_TPYE"):
        assert part in said


def test_topics_that_cannot_work_are_2(
    stand: type[Stand], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, no traceback."""
    monkeypatch.setattr(stand, "doing", raising(SettingsError("topic t-retry has 1 partition")))
    assert process.run() == process.EXIT_WRONG_SETTINGS
    captured = capsys.readouterr()
    assert "topic t-retry has 1 partition" in captured.out + captured.err
    assert "Traceback" not in captured.out + captured.err


def test_a_broker_that_refuses_us_is_1(stand: type[Stand], monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong settings are not the reason: a supervisor may start us again."""
    monkeypatch.setattr(stand, "doing", raising(BrokerRefused("no right")))
    assert process.run() == process.EXIT_FAILED


def test_the_first_signal_asks_and_the_second_insists(stand: type[Stand], monkeypatch: pytest.MonkeyPatch) -> None:
    """An echo of the first, from a shell that signals both process and group, is not a second wish."""
    clock = iter([10.0, 10.1, 12.0])
    monkeypatch.setattr(process.time, "monotonic", lambda: next(clock))
    ended: list[int] = []
    monkeypatch.setattr(process.os, "_exit", ended.append)
    told: list[tuple[list[str], list[int]]] = []

    def work(self: Stand) -> None:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
            told.append((list(self.reasons), list(ended)))

    monkeypatch.setattr(stand, "doing", staticmethod(work))
    assert process.run() == process.EXIT_OK
    assert told == [(["SIGTERM"], []), (["SIGTERM"], []), (["SIGTERM"], [process.EXIT_AT_ONCE])]
