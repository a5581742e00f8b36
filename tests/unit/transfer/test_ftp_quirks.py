"""What is known of a server holds for all its sessions, and for ten minutes where it may have been an accident."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from etl.config import ServerConfig
from etl.transfer.ftp import known
from etl.transfer.ftp.pipelining import NO_PIPELINING_SECONDS, Pipelining

pytestmark = pytest.mark.unit

SERVER = ServerConfig("FAKE", "ftp", "far.example", 21, "user")
SAME = ServerConfig("OTHER", "ftp", "FAR.example", 21, "user")


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    """Know nothing, before and afterwards."""
    known.forget()
    yield
    known.forget()


def a_while_later(seconds: float) -> None:
    """Let time pass: what is known of the server lies so much further back."""
    record = known.of(SERVER.address)
    record.no_pipelining_until -= seconds
    record.no_early_until -= seconds


def far(server: ServerConfig = SERVER) -> Pipelining:
    """Make the pipelining of a session with a patient server that is far away."""
    pipelining = Pipelining(server)
    pipelining.meet(b"220 (vsFTPd 3.0.3)", 1.0)
    return pipelining


def test_a_server_that_is_confused_again_is_logged_again() -> None:
    """Once, however many sessions find it out; and once more when its ten minutes are over."""
    with structlog.testing.capture_logs() as said:
        for _ in range(2):
            for pipelining in [Pipelining(SERVER), Pipelining(SAME), Pipelining(SERVER)]:
                pipelining.failed(transfers=True)
                assert pipelining.is_one_by_one
            a_while_later(NO_PIPELINING_SECONDS - 1)
            assert Pipelining(SERVER).is_one_by_one
            a_while_later(1)
            assert not Pipelining(SERVER).is_one_by_one
    assert [line["event"] for line in said] == ["pipelining disabled"] * 2


def test_a_server_that_answers_many_questions_is_not_confused_by_falling_silent_at_some() -> None:
    """In active mode no transfer shares a write: there, and only there, questions alone say that it reads them all."""
    Pipelining(SERVER).worked(transfers=False)
    pipelining = Pipelining(SERVER)
    pipelining.failed(transfers=False)
    assert not pipelining.is_one_by_one
    pipelining.failed(transfers=True)
    assert pipelining.is_one_by_one
    known.forget()
    Pipelining(SERVER).worked(transfers=True)
    pipelining = Pipelining(SERVER)
    for transfers in (False, True):
        pipelining.failed(transfers=transfers)
        assert not pipelining.is_one_by_one


def test_ten_minutes_without_early_commands_end_for_open_sessions_too() -> None:
    """A session that stays open need not be opened anew for it."""
    pipelining, other = far(), far(SAME)
    assert pipelining.may_overtake
    pipelining.failed_to_overtake()
    a_while_later(NO_PIPELINING_SECONDS - 1)
    assert not pipelining.may_overtake
    assert not other.may_overtake
    a_while_later(1)
    assert pipelining.may_overtake
    assert other.may_overtake
    other.overtook()
    pipelining.failed_to_overtake()
    assert other.may_overtake
