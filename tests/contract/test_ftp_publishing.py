"""Renames, time stamps and names of FTP; against a server that does as told."""

from __future__ import annotations

import pytest
from contract_parts import writes_of

from etl.errors import (
    ConnectionLost,
    EtlError,
    Fate,
    InvalidPath,
    IOFailure,
    NameNotKept,
    SettingsError,
)
from etl.models.task import Facts
from etl.transfer.base import Stored
from etl.transfer.ftp import known
from servers.fake import FakeSession

pytestmark = pytest.mark.contract

# --- publishing -------------------------------------------------------------------------------------------------


def no_replace(its: FakeSession, argument: str) -> str:
    """RNTO of a server that does not rename over a file."""
    return "550 Exists." if argument in its.server.files else its.rnto(argument)


def test_a_rename_that_refuses_to_replace_swaps_the_files(fake, session) -> None:
    """The old file steps aside in the same write; the server is remembered, the result says so."""
    server = fake(files={"/f": b"old", "/.p": b"new", "/.q": b"newer", "/.r": b"r"}, answers={"RNTO": no_replace})
    ftp = session(server)
    assert ftp.publish(Stored("/.p", 3, 3), "/f", None).result().swapped
    assert server.files == {"/f": b"new", "/.q": b"newer", "/.r": b"r"}
    swapping = writes_of(server, lambda: ftp.publish(Stored("/.q", 5, 5), "/f", None).result())
    assert swapping == [["CWD", "SIZE"], ["RNFR", "RNTO", "RNFR", "RNTO"], ["DELE"]]  # only a file steps aside
    assert server.files == {"/f": b"newer", "/.r": b"r"}
    other = session(server)
    assert not other.publish(Stored("/.r", 1, 1), "/new", None).result().swapped
    assert server.files == {"/f": b"newer", "/new": b"r"}


def test_a_rename_that_was_refused_once_proves_nothing(fake, session) -> None:
    """A server that had some other reason is not taken for one that never replaces: no name is absent for a moment."""

    def once(its: FakeSession, argument: str) -> str:
        its.server.answers.pop("RNTO")
        return "550 Busy."

    server = fake(files={"/f": b"old", "/.p": b"new"}, answers={"RNTO": once})
    assert not session(server).publish(Stored("/.p", 3, 3), "/f", None).result().swapped
    assert server.files == {"/f": b"new"}
    assert not any(".old" in line for line in server.commands)


def test_a_swap_that_fails_puts_the_old_file_back(fake, session) -> None:
    """Ours is refused after the old one stepped aside: the old one returns under its name."""

    def stubborn(its: FakeSession, argument: str) -> str:
        return "550 No." if its.from_ == "/.p" else no_replace(its, argument)

    server = fake(files={"/f": b"old", "/.p": b"new"}, answers={"RNTO": stubborn})
    with pytest.raises(EtlError):
        session(server).publish(Stored("/.p", 3, 3), "/f", None).result()
    assert server.files == {"/f": b"old", "/.p": b"new"}


def test_a_swap_that_crashed_before_is_tidied(fake, session) -> None:
    """What an earlier attempt of this process left under the hidden name does not stand in the way."""
    server = fake(files={"/f": b"old", "/.p": b"new", "/.p.old": b"older"}, answers={"RNTO": no_replace})
    assert session(server).publish(Stored("/.p", 3, 3), "/f", None).result().swapped
    assert server.files == {"/f": b"new"}


def test_a_swap_that_crashed_in_the_middle_is_finished(fake, session) -> None:
    """The final name is absent, the old file aside: ours takes the name."""
    server = fake(files={"/.p": b"new", "/.p.old": b"old"}, answers={"RNTO": no_replace})
    ftp = session(server)
    known.of(ftp.server.address).refuses_to_replace = True
    ftp.publish(Stored("/.p", 3, 3), "/f", None).result()
    assert server.files == {"/f": b"new"}


def test_publishing_makes_a_folder_that_vanished(fake, session) -> None:
    """Also on a server that swaps."""
    for answers in ({}, {"RNTO": no_replace}):
        server = fake(files={"/.p": b"new"}, answers=answers)
        ftp = session(server)
        if answers:
            known.of(ftp.server.address).refuses_to_replace = True
        ftp.publish(Stored("/.p", 3, 3), "/a/b/f", None).result()
        assert server.files == {"/a/b/f": b"new"}


def test_publishing_onto_a_folder_is_refused(fake, session) -> None:
    """A folder is not replaced."""
    server = fake(files={"/.p": b"new", "/d/x": b"1"})
    with pytest.raises(IOFailure, match="is a folder"):
        session(server).publish(Stored("/.p", 3, 3), "/d", None).result()
    assert server.files == {"/.p": b"new", "/d/x": b"1"}


def test_a_vanished_partial_file_may_be_written_again(fake, session) -> None:
    """Its loss is not the job's missing source: another attempt helps."""
    with pytest.raises(IOFailure, match="is gone") as caught:
        session(fake()).publish(Stored("/.p", 3, 3), "/f", None).result()
    assert caught.value.fate is Fate.RETRY


def test_a_name_that_the_server_changes_is_found_out(fake, session) -> None:
    """Pure-FTPd quietly makes ` a` into `_a`."""

    def trimming(its: FakeSession, argument: str) -> str:
        return its.rnto(argument.replace("/ ", "/_"))

    server = fake(files={"/.p": b"new"}, answers={"RNTO": trimming})
    with pytest.raises(NameNotKept, match="another name: '_f'"):
        session(server).publish(Stored("/.p", 3, 3), "/ f", None).result()
    assert server.files == {}


def test_times_are_stamped_by_the_command_that_the_server_has(fake, session) -> None:
    """MFMT where it is offered, else vsftpd's MDTM; before the rename, so that no crash leaves a file unstamped."""
    server = fake(files={"/.p": b"1"}, features=("MFMT",))
    assert session(server).publish(Stored("/.p", 1, 1), "/f", 1_600_000_000.9).result().stamped
    assert server.times == {"/f": "20200913122640"}
    server = fake(files={"/.p": b"1"}, features=("MDTM", "MDTM-SET"))
    assert session(server).publish(Stored("/.p", 1, 1), "/f", 1_600_000_000.9).result().stamped
    assert server.times == {"/f": "20200913122640"}


def test_a_refused_time_stamp_is_remembered_and_harms_nothing(fake, session) -> None:
    """The session stops trying; files are published."""
    server = fake(files={"/.p": b"1", "/.q": b"1"}, features=())
    ftp = session(server)
    assert not ftp.publish(Stored("/.p", 1, 1), "/f", 1e9).result().stamped
    assert writes_of(server, lambda: ftp.publish(Stored("/.q", 1, 1), "/g", 1e9).result()) == [["RNFR", "RNTO"]]
    assert set(server.files) == {"/f", "/g"}


@pytest.mark.parametrize(
    ("reply", "mtime"),
    [
        ("213 20200913122640", 1_600_000_000.0),
        ("213 20200913122640.250", 1_600_000_000.25),
        ("213 191201234567", None),
        ("213 20209913122640", None),
        ("500 What?", None),
    ],
)
def test_times_are_read_as_far_as_they_make_sense(fake, session, reply: str, mtime: float | None) -> None:
    """Fractions are kept, nonsense is an unknown time."""
    server = fake(files={"/a": b"1"}, answers={"MDTM": reply})
    assert session(server).look("/a") == Facts(1, mtime)


# --- names ------------------------------------------------------------------------------------------------------


def test_relative_paths_begin_where_the_login_does(fake, session) -> None:
    """And stay there, whatever folder was entered to ask a question."""
    server = fake(files={'/home/a "b"/x': b"1", '/home/a "b"/-y': b"2"}, answers={"PWD": '257 "/home/a ""b""" is it.'})
    ftp = session(server)
    assert ftp.look("x").size_bytes == 1
    assert ftp.look("none") is None
    assert ftp.look("-y").size_bytes == 1
    assert 'SIZE /home/a "b"/-y' in server.commands
    assert ftp.names(".") == ["-y", "x"]
    based = session(server, base_path="/home")
    assert based.look('/a "b"/x').size_bytes == 1
    relative = session(server, base_path="sub")
    assert relative.look("/x") is None
    assert 'SIZE /home/a "b"/sub/x' in server.commands


def test_a_name_that_the_encoding_cannot_express_is_named(fake, session) -> None:
    """Before anything is sent."""
    ftp = session(fake(), encoding="euc-kr")
    with pytest.raises(InvalidPath, match="euc-kr"):
        ftp.look("/\N{SNOWMAN}\N{PILE OF POO}")


def test_an_encoding_that_is_none_is_a_wrong_setting(fake, session) -> None:
    """Unknown ones, and those that would change what a slash is."""
    for encoding in ("klingon", "utf-16", "base64"):
        with pytest.raises(SettingsError, match="ENCODING"):
            session(fake(), encoding=encoding)


def test_an_encoding_that_is_set_wins_over_the_servers_offer(fake, session) -> None:
    """OPTS UTF8 is not sent to a server whose names are EUC-KR."""
    server = fake()
    ftp = session(server, encoding="euc-kr")
    ftp.look("/한글")
    assert not any(line.startswith("OPTS") for line in server.commands)
    assert any(
        line.encode("utf-8", "surrogateescape") == b"SIZE /" + "한글".encode("euc-kr") for line in server.commands
    )


@pytest.mark.parametrize("encoding", [None, "euc-kr", "cp949"])
def test_names_of_another_encoding_come_back_unharmed(fake, session, encoding: str | None) -> None:
    """Bytes that are no text in the server's encoding are listed and can be used."""
    odd = b"\xff\xfe-\xc7\x80".decode("utf-8", "surrogateescape")
    server = fake(files={f"/d/{odd}": b"1"})
    ftp = session(server, encoding=encoding)
    (name,) = ftp.names("/d")
    assert ftp.remove(f"/d/{name}")
    assert server.files == {}


def test_a_listing_may_give_whole_paths(fake, session) -> None:
    """Some servers list `folder/name`; the bare name is wanted."""

    def nlst(its: FakeSession, _: str) -> str:
        its.reply("150 Listing.")
        its.send_data(b"/d/a\r\nd/b\r\n./c\r\n.\r\n..\r\n\r\n")
        return "226 Done."

    assert session(fake(files={"/d/a": b""}, answers={"NLST": nlst})).names("/d") == ["a", "b", "c"]


def test_a_refused_listing_is_an_empty_folder(fake, session) -> None:
    """Many servers say 550 for a folder without files."""
    assert session(fake(files={"/d/a": b""}, answers={"NLST": "550 No files found."})).names("/d") == []


@pytest.mark.parametrize("code", [421, 425, 426])
def test_a_listing_that_got_no_connection_says_nothing_of_the_folder(fake, session, code: int) -> None:
    """Taken for empty, what a predecessor left there would stay."""
    ftp = session(fake(files={"/d/a": b""}, answers={"NLST": f"{code} Not now."}))
    with pytest.raises(ConnectionLost, match=f"{code} Not now"):
        ftp.names("/d")
