"""Servers with manners of their own: what is sent to them is learnt, and no job is given up for it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import pytest
from contract_parts import Bytes, a_task, moved

from etl.errors import EtlError, NameNotKept, SizeMismatch
from etl.models.server import TransferSettings
from etl.models.task import SCAN_ANEW
from etl.transfer.ftp import asking, control, known, publishing
from servers.fake import SILENCE, FakeSession

pytestmark = pytest.mark.contract

QUICK = TransferSettings(connect_timeout=5, login_timeout=5, reply_timeout=0.3, stall_timeout=5)
FEATURES = ("EPSV", "SIZE", "MDTM", "MFMT", "MLST type*;size*;modify*;")
ATTEMPTS = 5


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less, for what may follow and for files that are late."""
    monkeypatch.setattr(control, "TWIN_SECONDS", 0.2)
    monkeypatch.setattr(publishing, "_PAUSES", (0.0, 0.0))
    monkeypatch.setattr(asking, "_PAUSES", (0.05, 0.1, 0.2))


@pytest.fixture
def attempts(session, buffer) -> Callable[..., list[EtlError]]:
    """Carry jobs out, with new sessions after each error; returns the errors of each."""

    def deliver(source: Any, odd: Any, **options: Any) -> list[EtlError]:
        task, errors = a_task(**options), []
        for _ in range(ATTEMPTS):
            try:
                moved(task, session(source, QUICK), session(odd, QUICK), buffer)
                break
            except EtlError as error:
                errors.append(error)
                task.orphan_scan_since = SCAN_ANEW
        return errors

    return deliver


def hang_up(its: FakeSession, _argument: str) -> None:
    its.drop()


def refusing_to_replace(its: FakeSession, path: str) -> str:
    return "550 It exists." if path in its.server.files else its.rnto(path)


# --- commands at which sessions end -----------------------------------------------------------------------------------

UNWELCOME = {
    "hang-up": hang_up,
    "silence": SILENCE,
    "another dialogue": "150 Here it comes.",
    "503": "503 Bad sequence.",
}


@pytest.mark.parametrize("verb", ["SIZE", "MDTM", "MFMT", "MLST"])
@pytest.mark.parametrize("end", UNWELCOME)
def test_a_command_at_which_sessions_end_is_not_sent_again(fake, attempts, verb: str, end: str) -> None:
    """Size, time and kind of a file are worth no job: after two ends the server does without, and so do we."""
    answers: dict[str, Any] = {verb: UNWELCOME[end], "RNTO": refusing_to_replace}
    source = fake(files={"/a": b"12345"}, features=FEATURES, answers={verb: UNWELCOME[end]})
    odd = fake(files={"/out/b": b"old"}, features=FEATURES, answers=answers)
    errors = attempts(source, odd)
    assert odd.files == {"/out/b": b"12345"}
    assert len([error for error in errors if error.spends_attempt]) < ATTEMPTS - 1
    odd.commands.clear()
    source.commands.clear()
    assert attempts(source, odd) == []
    assert not any(line.startswith(verb) for line in (*odd.commands, *source.commands))


@pytest.mark.parametrize("verb", ["OPTS", "PWD"])
@pytest.mark.parametrize("end", UNWELCOME)
def test_a_login_does_without_what_ends_it(fake, session, verb: str, end: str) -> None:
    """It is met again at once: nothing is at stake, and no server is down for that."""
    odd = fake(files={"/a": b"1"}, answers={verb: UNWELCOME[end]})
    limits = TransferSettings(connect_timeout=5, login_timeout=2, reply_timeout=0.3, stall_timeout=5)
    with contextlib.suppress(EtlError):
        session(odd, limits)
    assert session(odd, limits).look("/a").size_bytes == 1


@pytest.mark.parametrize("end", ["hang-up", "silence", "503"])
def test_a_folder_is_listed_without_mlsd_where_sessions_end_at_it(fake, session, end: str) -> None:
    """What a killed attempt left is found all the same."""
    odd = fake(files={"/d/.etl-1.part": b""}, features=FEATURES, answers={"MLSD": UNWELCOME[end]})
    for _ in range(2):
        with contextlib.suppress(EtlError):
            session(odd, QUICK).names("/d")
    assert session(odd, QUICK).names("/d") == [".etl-1.part"]


@pytest.mark.parametrize("size", ["502 No.", "550 No."])
def test_an_old_file_that_only_a_list_shows_steps_aside(fake, attempts, size: str) -> None:
    """The server renames over none, and tells no sizes: that says nothing of what is there."""
    odd = fake(files={"/out/b": b"old"}, answers={"SIZE": size, "RNTO": refusing_to_replace})
    assert attempts(fake(files={"/a": b"12345"}), odd) == []
    assert odd.files == {"/out/b": b"12345"}


def test_a_restart_is_no_reason_to_withhold_a_command(fake, session) -> None:
    """It ends many sessions at once, each at some command."""
    odd = fake(files={"/a": b"1"}, answers={"SIZE": SILENCE})
    sessions = [session(odd) for _ in range(3)]
    asked = [one.link.ask("SIZE", "/a") for one in sessions]
    for one in sessions:
        one.push()
    odd.hang_up()
    for one in asked:
        with pytest.raises(EtlError):
            one.result()
    odd.answers.clear()
    assert session(odd).look("/a").size_bytes == 1


def test_a_command_that_was_answered_once_is_never_withheld(fake, session) -> None:
    """What happens there later is an accident."""
    odd = fake(files={"/a": b"1"})
    assert session(odd).look("/a").size_bytes == 1
    odd.answers["SIZE"] = hang_up
    for _ in range(3):
        with pytest.raises(EtlError):
            session(odd).look("/a")
    odd.answers.clear()
    assert session(odd).look("/a").size_bytes == 1


def test_a_command_that_is_withheld_is_tried_again_later(fake, session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server may have been mended."""
    odd = fake(files={"/a": b"1"}, answers={"SIZE": hang_up})
    for _ in range(2):
        with pytest.raises(EtlError):
            session(odd).link.ask("SIZE", "/a").result()
    odd.answers.clear()
    ftp = session(odd)
    assert ftp.link.ask("SIZE", "/a").result().code == 502
    known.of(ftp.server.address).withheld_until["SIZE"] = time.monotonic()
    assert ftp.link.ask("SIZE", "/a").result().code == 213


# --- codes that nobody else gives -------------------------------------------------------------------------------------


def in_code(verb: str, usual: str, own: str) -> dict[str, Callable[[FakeSession, str], str]]:
    return {verb: lambda its, argument: getattr(its, verb.lower())(argument).replace(usual, own, 1)}


OWN = {
    "RNFR 250": in_code("RNFR", "350", "250"),
    "SIZE 200": in_code("SIZE", "213", "200"),
    "SIZE 250": in_code("SIZE", "213", "250"),
    "MDTM 250": in_code("MDTM", "213", "250"),
    "MKD 226": in_code("MKD", "257", "226"),
    "PASV 200": in_code("PASV", "227", "200") | {"EPSV": "500 No."},
}


@pytest.mark.parametrize("kind", OWN)
def test_a_code_that_no_other_server_gives_is_learnt(fake, attempts, kind: str) -> None:
    """It costs a session: the command is alone under way then, and nothing follows its answer."""
    source = fake(files={"/a": b"12345"})
    odd = fake(answers=OWN[kind])
    errors = attempts(source, odd)
    assert odd.files == {"/out/b": b"12345"}
    assert not any(error.spends_attempt for error in errors)
    assert attempts(source, odd) == []


def test_a_reply_behind_which_another_comes_is_not_taken_for_such_a_code(fake, session) -> None:
    """The first one is a stray, as much as it looks like an answer."""

    def rnfr(its: FakeSession, path: str) -> str:
        its.reply("250 Of something else.")
        return its.rnfr(path)

    odd = fake(files={"/a": b"1"}, answers={"RNFR": rnfr})
    for _ in range(3):
        with pytest.raises(EtlError, match="answered RNFR with 250"):
            session(odd).link.ask("RNFR", "/a").result()
    assert known.of(session(odd).server.address).own_codes == set()


def test_a_farewell_in_place_of_a_transfer_costs_no_attempt(fake, attempts) -> None:
    """Some serve a number of files in each session, and say so when one more is sent."""
    farewell = {"STOR": lambda its, _: (its.reply("421 Enough."), its.drop())[1]}
    odd = fake(answers=farewell)
    errors = attempts(fake(files={"/a": b"12345"}), odd)
    assert len(errors) == ATTEMPTS
    assert not any(error.spends_attempt for error in errors)


# --- what a server shows late -----------------------------------------------------------------------------------------


def late(looks: int, answer: str) -> dict[str, Callable[[FakeSession, str], str]]:
    """Answer SIZE so, a number of times after each upload, and show no such name."""
    left = {"": 0}

    def stor(its: FakeSession, path: str) -> str:
        left[path] = looks
        return its.stor(path)

    def size(its: FakeSession, path: str) -> str:
        left[path] = left.get(path, 0) - 1
        return answer if left[path] >= 0 else its.size(path)

    def nlst(its: FakeSession, argument: str) -> str:
        return "550 No files found." if max(left.values()) >= 0 else its.nlst(argument)

    return {"STOR": stor, "SIZE": size, "NLST": nlst}


@pytest.mark.parametrize("answer", ["213 0", "213 3", "550 No such file."])
def test_a_file_that_shows_late_is_whole(fake, session, buffer, answer: str) -> None:
    """Some say 226 while they still write, or before whoever lists knows of it."""
    ftp = session(fake(answers=late(2, answer)))
    stored = ftp.write("/out/.p", Bytes(b"12345"), buffer)
    assert stored.size_bytes == 5


def test_a_file_that_stays_short_is_damaged_and_not_waited_for_each_time(fake, session, attempts) -> None:
    """Its attempts are spent; the pauses only once."""
    odd = fake(answers={"SIZE": "213 3"})
    errors = attempts(fake(files={"/a": b"12345"}), odd)
    assert [type(error) for error in errors] == [SizeMismatch] * ATTEMPTS
    assert odd.files == {}
    asked = [line for line in odd.commands if line.startswith("SIZE /out/.etl")]
    assert len(asked) == 1 + len(asking._PAUSES) + 2 * (ATTEMPTS - 1)


# --- names ------------------------------------------------------------------------------------------------------------


def bending(bend: Callable[[str], str]) -> dict[str, Callable[[FakeSession, str], str]]:
    """Take each name for another one."""

    def answer(verb: str) -> Callable[[FakeSession, str], str]:
        return lambda its, path: getattr(its, verb.lower())(bend(path))

    return {verb: answer(verb) for verb in ("SIZE", "MDTM", "RETR", "STOR", "DELE", "RNFR", "RNTO")}


def cut(path: str) -> str:
    folder, _, name = path.rpartition("/")
    return f"{folder}/{name[:64]}"


@pytest.mark.parametrize(("bend", "name"), [(unquote, "a%20b%41.txt"), (cut, "long" * 30 + ".txt")])
def test_a_name_that_a_server_decodes_or_cuts_off_is_found(fake, session, buffer, bend: Any, name: str) -> None:
    """It would be a success under another name, and two long names one file."""
    odd = fake(answers=bending(bend))
    ftp = session(odd)
    stored = ftp.write("/out/.p", Bytes(b"1"), buffer)
    with pytest.raises(NameNotKept):
        ftp.publish(stored, f"/out/{name}", None).result()
    assert odd.files == {}


def test_a_folder_is_listed_once_for_long_and_encoded_names(fake, session, buffer) -> None:
    """What a server keeps once it keeps always."""
    odd = fake()
    ftp = session(odd)
    for name in ("x" * 100, "x" * 90, "a%20b", "c%41d"):
        ftp.publish(ftp.write(f"/out/.{name}", Bytes(b"1"), buffer), f"/out/{name}", None).result()
    assert sorted(odd.files) == sorted(f"/out/{name}" for name in ("x" * 100, "x" * 90, "a%20b", "c%41d"))
    listed = sum(line.startswith(("NLST", "MLSD", "LIST")) for line in odd.commands)
    assert listed == 2 * 2  # before and after, the first of each kind
