"""Each server is learnt: how it opens ports, tells times, lists, replies, and what its CWD, TYPE and PWD are worth."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from contract_parts import LONG, Bytes, a_task, content_of, moved

from etl.errors import (
    EtlError,
    FileMissing,
    InvalidPath,
    IOFailure,
    PermissionRefused,
    SessionFault,
    SettingsError,
)
from etl.models.server import TransferSettings
from etl.models.task import Facts
from etl.transfer import receipts
from etl.transfer.base import Stored
from etl.transfer.ftp import publishing, sockets
from servers.fake import FakeSession

pytestmark = pytest.mark.contract

QUICK = TransferSettings(connect_timeout=2, login_timeout=10, reply_timeout=10, stall_timeout=10)


# --- data connections ----------------------------------------------------------------------------------------------


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


FORMS: dict[str, Callable[[FakeSession, str], str]] = {
    "229": lambda its, _: f"229 Ok (|||{its.listen()}|)",
    "229 without parentheses": lambda its, _: f"229 Entering Extended Passive Mode |||{its.listen()}|",
    "229 two bars": lambda its, _: f"229 Ok (||{its.listen()}|)",
    "229 other delimiter": lambda its, _: f"229 Ok (!!!{its.listen()}!)",
    "229 with protocol": lambda its, _: f"229 Ok (|1|127.0.0.1|{its.listen()}|)",
    "227": lambda its, _: its.pasv(""),
    "227 with blanks": lambda its, _: "227 Ok (127, 0, 0, 1, {}, {})".format(*divmod(its.listen(), 256)),
    "227 without parentheses": lambda its, _: "227 Ok 127,0,0,1,{},{}".format(*divmod(its.listen(), 256)),
}


@pytest.mark.parametrize("verb", ["EPSV", "PASV"])
@pytest.mark.parametrize("form", FORMS)
def test_a_port_is_read_in_whatever_form_it_comes(fake, session, buffer, verb: str, form: str) -> None:
    """227 to EPSV, 229 to PASV, no parentheses, blanks after commas: there is a port in it."""
    answers: dict[str, Any] = {verb: FORMS[form], **({"EPSV": "500 No."} if verb == "PASV" else {})}
    server = fake(files={"/a": b"12345"}, answers=answers)
    ftp = session(server)
    for _ in range(2):
        assert content_of(ftp, "/a", buffer) == b"12345"


@pytest.mark.parametrize("reply", ["229 Ok (|||0|)", "229 Ok.", "425 Not now.", "451 No.", "522 Use (1)", "502 No."])
def test_where_epsv_gives_no_port_pasv_is_asked(fake, session, buffer, reply: str) -> None:
    """In the same attempt, and of the next sessions at once."""
    server = fake(files={"/a": b"12345"}, answers={"EPSV": reply})
    for _ in range(2):
        assert content_of(session(server), "/a", buffer) == b"12345"
    assert sum(command == "EPSV" for command in server.commands) <= 2


def test_a_port_that_epsv_grants_and_nobody_reaches_is_replaced_by_pasv(fake, session, buffer) -> None:
    """Behind a firewall that knows PASV only: no attempt is lost, and it is remembered."""
    server = fake(files={"/a": b"12345"}, answers={"EPSV": lambda _its, _: f"229 Ok (|||{closed_port()}|)"})
    assert content_of(session(server), "/a", buffer) == b"12345"
    before = len(server.commands)
    assert content_of(session(server), "/a", buffer) == b"12345"
    assert "EPSV" not in server.commands[before:]


def test_an_epsv_that_is_never_answered_is_found_at_the_login(fake, session, buffer) -> None:
    """Its silence costs some seconds once, not an attempt: it is asked beside others, and then alone."""
    server = fake(files={"/a": b"12345"}, answers={"EPSV": lambda _its, _: None})
    for _ in range(2):
        assert content_of(session(server), "/a", buffer) == b"12345"
    assert sum(command == "EPSV" for command in server.commands) == 2


def test_epsv_can_be_switched_off(fake, session, buffer) -> None:
    """The setting wins over what could be learnt."""
    server = fake(files={"/a": b"12345"})
    assert content_of(session(server, epsv="off"), "/a", buffer) == b"12345"
    assert "EPSV" not in server.commands


@pytest.mark.parametrize("leaves", [False, True])
def test_a_data_connection_left_open_behind_the_226_ends_there(fake, session, buffer, leaves: bool) -> None:
    """As many bytes as SIZE told, and the last word: done, whether the session ends as well."""
    opened: list[socket.socket] = []

    def retr(its: FakeSession, argument: str) -> None:
        its.reply("150 Here it comes.")
        opened.append(its.data())
        opened[-1].sendall(its.server.files[argument])
        its.reply("226 Done.")
        if leaves:
            its.drop()

    source, destination = fake(files={"/a": b"12345"}, answers={"RETR": retr}), fake()
    started = time.monotonic()
    receipt = moved(a_task(), session(source), session(destination), buffer)
    assert receipt.size_bytes == 5
    assert time.monotonic() - started < 5
    assert destination.files == {"/out/b": b"12345"}


def test_a_dead_address_of_a_host_costs_a_moment_once(fake, session, monkeypatch) -> None:
    """The next one is tried beside it; the one that answered is tried first from then on."""
    server = fake()
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        dead.listen(0)
        fill = [socket.socket() for _ in range(4)]
        for sock in fill:
            sock.setblocking(False)
            sock.connect_ex(dead.getsockname())  # its queue is full: those that follow get no answer
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", dead.getsockname()),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (server.host, server.port)),
        ]
        monkeypatch.setattr(sockets, "_resolve", lambda *_: list(found))
        for limit in (3.0, 0.2):
            started = time.monotonic()
            session(server)
            assert time.monotonic() - started < limit + 1
        for sock in fill:
            sock.close()


# --- times ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "told", "mtime"),
    [
        ("", "20260102030405", 1767323045.0),
        ("+09:00", "20260102120405", 1767323045.0),
        ("-0330", "20260101233405", 1767323045.0),
        ("Europe/Berlin", "20260102040405", 1767323045.0),
        ("Europe/Berlin", "20260702050405", 1782961445.0),  # summer time
    ],
)
def test_times_are_those_of_the_servers_zone(fake, session, zone: str, told: str, mtime: float) -> None:
    """Read and written: a server in local time tells no other time than one in UTC."""
    server = fake(files={"/a": b"1", "/.p": b"2"}, features=("MDTM", "MFMT", "SIZE", "EPSV"))
    server.times["/a"] = told
    ftp = session(server, time_zone=zone)
    assert ftp.look("/a") == Facts(1, mtime)
    assert ftp.publish(Stored("/.p", 1, 1), "/f", mtime).result().stamped
    assert server.times["/f"] == told


# --- where nothing may be renamed -----------------------------------------------------------------------------------


def test_a_file_may_be_written_under_its_own_name_at_once(fake, session, buffer) -> None:
    """PUBLISH=direct, and the result says so; no hidden name is used, nothing renamed or deleted."""
    source = fake(files={"/a": b"12345"})
    destination = fake(files={"/out/b": b"old"}, answers={"RNFR": "500 No.", "DELE": "550 No."})
    task = a_task()
    receipt = moved(task, session(source), session(destination, publish="direct"), buffer)
    assert receipt.verified_by == receipts.SIZE
    assert destination.files == {"/out/b": b"12345"}
    assert task.remarks["published_by"] == "direct"
    assert not any(command.startswith(("RNFR", "DELE")) for command in destination.commands)


def test_a_refused_upload_leaves_the_file_that_has_the_name(fake, session, buffer) -> None:
    """Written directly, what is there is not ours to tidy away."""
    source = fake(files={"/a": b"12345"})
    destination = fake(files={"/out/b": b"old"}, answers={"STOR": "550 In use."})
    task = a_task()
    with pytest.raises(PermissionRefused):
        moved(task, session(source), session(destination, publish="direct"), buffer)
    assert destination.files == {"/out/b": b"old"}
    assert not task.leaves_partial


def test_a_source_is_never_written_over_with_itself(fake, session, buffer) -> None:
    """Directly, that would cut it off: a file of the same content is left as it is, or refused if the source goes."""
    server = fake(files={"/a": b"12345", "/out/b": b"12345"})
    ours = session(server), session(server, publish="direct")
    assert moved(a_task(), *ours, buffer).verified_by == receipts.CONTENT
    with pytest.raises(InvalidPath, match="may be the source"):
        moved(a_task(source_action="delete"), *ours, buffer)
    assert not any(command.startswith("STOR") for command in server.commands)


def test_an_error_names_the_setting_that_helps(fake, session, buffer, monkeypatch) -> None:
    """Dot files are forbidden, or renaming is: the way out stands in the message."""
    monkeypatch.setattr(publishing, "_PAUSES", (0.0, 0.0))
    server = fake(answers={"STOR": "553 Prohibited file name."})
    with pytest.raises(PermissionRefused, match="FAKE_PARTIAL_PATTERN"):
        session(server).write("/.p", Bytes(b"1"), buffer)
    server = fake(files={"/.p": b"1"}, answers={"RNFR": "550 No."})
    with pytest.raises(PermissionRefused, match="FAKE_PUBLISH=direct"):
        session(server).publish(Stored("/.p", 1, 1), "/f", None).result()


# --- lists ----------------------------------------------------------------------------------------------------------


def listed(content: bytes) -> Callable[[FakeSession, str], str]:
    """Answer a listing."""

    def answer(its: FakeSession, _: str) -> str:
        its.reply("150 Listing.")
        its.send_data(content)
        return "226 Done."

    return answer


def test_mlsd_is_tried_where_there_is_no_feat(fake, session) -> None:
    """Aioftp has MLSD, and neither FEAT nor NLST."""
    answers = {"FEAT": "502 No.", "NLST": "502 No.", "MLSD": listed(b"Type=file;Size=1; a b\r\nType=dir; d\r\n")}
    assert session(fake(answers=answers)).names("/") == ["a b", "d"]


def test_an_option_of_nlst_may_be_a_files_name(fake, session) -> None:
    """Where there is such a file, it is all that some servers list."""

    def as_a_name(its: FakeSession, argument: str) -> str:
        return listed(b"-a\r\n")(its, "") if argument == "-a" else its.nlst(argument)

    assert session(fake(files={"/d/-a": b"", "/d/b": b""}, answers={"NLST": as_a_name})).names("/d") == ["-a", "b"]


def test_where_a_list_needs_a_name_it_is_that_of_all(fake, session) -> None:
    """Twisted takes `-a` for a name that is not there, and refuses a list without one."""

    def by_name(its: FakeSession, argument: str) -> str:
        if argument == "-a":
            return listed(b"")(its, "")
        return its.nlst("-a") if argument == "*" else "501 Syntax error: a name is missing."

    assert session(fake(files={"/d/.a": b"", "/d/b": b""}, answers={"NLST": by_name})).names("/d") == [".a", "b"]


def test_a_list_that_is_refused_is_no_empty_folder(fake, session) -> None:
    """Taken for empty, what a predecessor left there would stay, and a file would be missing."""
    with pytest.raises(IOFailure, match="the list is refused"):
        session(fake(files={"/d/a": b""}, answers={"NLST": "550 Permission denied."})).names("/d")
    assert session(fake(answers={"NLST": "502 No."})).names("/") == []


def test_lists_may_be_had_as_text_only(fake, session, buffer) -> None:
    """TYPE A for the list alone; files go on as they are."""
    types: list[str] = []

    def type_(_its: FakeSession, argument: str) -> str:
        types.append(argument)
        return "200 Ok."

    def nlst(its: FakeSession, argument: str) -> str:
        return its.nlst(argument) if types[-1] == "A" else "550 Not in this type."

    server = fake(files={"/d/a": b"1"}, answers={"TYPE": type_, "NLST": nlst})
    ftp = session(server)
    assert ftp.names("/d") == ["a"]
    assert content_of(ftp, "/d/a", buffer) == b"1"
    assert types == ["I", "A", "I"]


# --- what a server forgets, and what it says yes to -------------------------------------------------------------------


def test_type_is_set_before_each_transfer_where_a_server_forgets_it(fake, session, buffer) -> None:
    """Its 150 says ASCII: the bytes would be others. One session is lost, and no attempt."""
    binary = False

    def type_(_its: FakeSession, argument: str) -> str:
        nonlocal binary
        binary = argument == "I"
        return "200 Ok."

    def retr(its: FakeSession, argument: str) -> str:
        nonlocal binary
        is_binary, binary = binary, False
        its.reply(f"150 Opening {'BINARY' if is_binary else 'ASCII'} mode data connection for {argument}.")
        its.send_data(its.server.files[argument])
        return "226 Done."

    server = fake(files={"/a": b"1\n2\n3"}, answers={"TYPE": type_, "RETR": retr})
    ftp = session(server)
    assert content_of(ftp, "/a", buffer) == b"1\n2\n3"
    with pytest.raises(SessionFault, match="forgotten TYPE I"):
        content_of(ftp, "/a", buffer)
    ftp = session(server)
    for _ in range(3):
        assert content_of(ftp, "/a", buffer) == b"1\n2\n3"


def test_where_cwd_says_yes_to_all_folders_are_made_all_the_same(fake, session, buffer) -> None:
    """A refused STOR leads to MKD, and SIZE decides what is a file."""
    server = fake(files={"/a": b"1"}, answers={"CWD": "250 Ok."})
    ftp = session(server)
    assert ftp.write("/new/deep/.p", Bytes(b"xyz"), buffer).size_bytes == 3
    ftp.publish(Stored("/new/deep/.p", 3, 3), "/new/deep/f", None).result()
    assert server.files == {"/a": b"1", "/new/deep/f": b"xyz"}
    server.answers["RETR"] = "550 No."
    with pytest.raises(FileMissing):
        ftp.read("/none")
    with pytest.raises(PermissionRefused):
        ftp.read("/a")


def test_a_server_that_hangs_up_on_a_failed_cwd_is_not_asked_again(fake, session, buffer) -> None:
    """One session is lost to it; then folders are made without asking, and a missing file is missing."""

    def cwd(its: FakeSession, argument: str) -> str | None:
        if argument in its.server.folders:
            return "250 Ok."
        its.drop()
        return None

    server = fake(answers={"CWD": cwd})
    with pytest.raises(EtlError):
        session(server).write("/new/deep/.p", Bytes(b"xyz"), buffer)
    ftp = session(server)
    assert ftp.write("/new/deep/.p", Bytes(b"xyz"), buffer).size_bytes == 3
    server.answers["RETR"] = "550 No."
    with pytest.raises(FileMissing):
        ftp.read("/none")


@pytest.mark.parametrize("pwd", ["257 /home", '257 ""', "550 No.", "502 No.", '257 "C:\\\\Users"', "257 'USER.DATA'"])
def test_where_the_folder_after_login_is_not_known_no_other_is_taken(fake, session, pwd: str) -> None:
    """A relative path would begin at the root, and another file be delivered: it is refused, with the reason."""
    server = fake(files={"/a": b"1"}, answers={"PWD": pwd})
    ftp = session(server)
    assert ftp.look("/a").size_bytes == 1
    with pytest.raises(SettingsError, match="PWD"):
        ftp.look("a")
    assert session(server, base_path="/").look("a").size_bytes == 1


# --- replies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "welcome",
    [
        "Welcome to the machine\r\n\r\n220 Ready.",
        "220Ready.",
        "220-Hello\r\n220",
        "220-Hello\r\n There\r\n",
        "220-Hello\r\n221 There",
        "220 One.\r\n220 Two.",
    ],
)
def test_welcomes_are_read_as_other_clients_read_them(fake, session, welcome: str) -> None:
    """Text before the code, no space behind it, no end, or one with another code."""
    server = fake(files={"/a": b"1"}, welcome=welcome)
    assert session(server, QUICK).look("/a").size_bytes == 1


@pytest.mark.parametrize("verb", ["PASS", "STOR", "FEAT"])
def test_a_reply_without_an_end_is_ended_by_silence(fake, session, buffer, verb: str) -> None:
    """The file is stored, the login done: three seconds later it is understood."""

    def endless(its: FakeSession, argument: str) -> str:
        said = getattr(its, verb.lower())(argument)
        return f"{said[:3]}-{said[4:]}\r\n{said[:3]}-More." if verb != "FEAT" else "211-Features:\r\n SIZE\r\n MFMT"

    server = fake(answers={verb: endless})
    ftp = session(server, LONG)
    assert ftp.write("/.p", Bytes(b"1"), buffer).size_bytes == 1


def test_features_may_carry_the_code_on_each_line(fake, session) -> None:
    """UTF-8 and MFMT are not lost for that."""
    server = fake(
        files={"/.p": b"1"}, features=("MFMT",), answers={"FEAT": "211-Ext:\r\n211-UTF8\r\n211-MFMT\r\n211 End"}
    )
    assert session(server).publish(Stored("/.p", 1, 1), "/f", 1e9).result().stamped
    assert "OPTS UTF8 ON" in server.commands


def test_a_feat_that_is_never_answered_is_not_asked_again(fake, session, monkeypatch) -> None:
    """It is optional, and has a limit of its own."""
    monkeypatch.setattr("etl.transfer.ftp.login._FEAT_SECONDS", 0.5)
    server = fake(files={"/a": b"1"}, answers={"FEAT": lambda _its, _: None})
    assert session(server).look("/a").size_bytes == 1
    before = len(server.commands)
    session(server)
    assert "FEAT" not in server.commands[before:]


# --- names -----------------------------------------------------------------------------------------------------------


class Bare(FakeSession):
    """A server that takes names without a folder only, in the folder that was entered."""

    def serve(self, verb: str, argument: str) -> None:
        if verb in {"SIZE", "MDTM", "RETR", "STOR", "DELE", "RNFR", "RNTO", "MKD"}:
            if "/" in argument:
                self.reply("550 No folders in names.")
                return
            argument = f"{self.folder.rstrip('/')}/{argument}"
        super().serve(verb, argument)


def test_names_without_a_folder_are_found_out_and_remembered(fake, session, buffer) -> None:
    """CWD first, and that is waited for; from the first file on, both as a source and as a destination."""
    server = fake(files={"/in/a": b"12345", "/out/x": b""})
    server.session_type = Bare
    ftp = session(server)
    assert content_of(ftp, "/in/a", buffer) == b"12345"
    before = len(server.commands)
    assert content_of(session(server), "/in/a", buffer) == b"12345"
    assert "RETR /in/a" not in server.commands[before:]
    server = fake(files={"/out/x": b""})
    server.session_type = Bare
    for number in range(2):
        ftp = session(server)
        stored = ftp.write("/out/new/.p", Bytes(b"xyz"), buffer)
        assert stored.size_bytes == 3
        ftp.publish(stored, f"/out/new/b{number}", None).result()
        assert ftp.look(f"/out/new/b{number}").size_bytes == 3
        assert ftp.look("/out/new/none") is None
    assert ftp.remove("/out/new/b0")
    assert server.files == {"/out/x": b"", "/out/new/b1": b"xyz"}


def test_other_servers_are_asked_by_whole_names(fake, session, buffer) -> None:
    """A missing file, and a folder that may not be written, are no reason to believe otherwise."""
    server = fake(files={"/a": b"1"})
    ftp = session(server)
    with pytest.raises(FileMissing):
        ftp.read("/none")
    server.answers["STOR"] = "553 No."
    with pytest.raises(PermissionRefused):
        ftp.write("/.p", Bytes(b"1"), buffer)
    del server.answers["STOR"]
    assert content_of(ftp, "/a", buffer) == b"1"
    before = len(server.commands)
    with pytest.raises(FileMissing):
        ftp.read("/none")
    assert "RETR none" not in server.commands[before:]
