"""Whole jobs on servers of the kinds that people report: nothing is lost, nothing is wrong, and no job is given up."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import pytest
from contract_parts import Bytes, a_task, content_of, moved

from etl.errors import (
    EtlError,
    FileMissing,
    InvalidPath,
    IOFailure,
    NameNotKept,
    NotAFile,
    PermissionRefused,
    ServerUnavailable,
)
from etl.models.server import TransferSettings
from etl.transfer import receipts
from etl.transfer.base import Stored
from etl.transfer.ftp import publishing, telnet, wire
from servers.fake import SILENCE, FakeFTP, FakeSession

pytestmark = pytest.mark.contract

QUICK = TransferSettings(connect_timeout=2, login_timeout=10, reply_timeout=1, stall_timeout=10)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have refused renames tried again at once."""
    monkeypatch.setattr(publishing, "_PAUSES", (0.0, 0.0))


def said_by(verb: str, text: str) -> Callable[[FakeSession, str], str | None]:
    """Answer as the plain server does, in other words where it says yes."""

    def answer(its: FakeSession, argument: str) -> str | None:
        plain: str | None = getattr(its, verb.lower())(argument)
        return text.format(plain=plain, code=plain[:3]) if plain is not None and plain < "4" else plain

    return answer


def listed(*lines: bytes) -> Callable[[FakeSession, str], str]:
    """Answer a list."""

    def answer(its: FakeSession, _: str) -> str:
        its.reply("150 Listing.")
        its.send_data(b"".join(line + b"\r\n" for line in lines))
        return "226 Done."

    return answer


def insensitive(verb: str) -> Callable[[FakeSession, str], str | None]:
    """Find a file by its name in whatever letters."""

    def answer(its: FakeSession, argument: str) -> str | None:
        alike = (name for name in its.server.files if name.lower() == argument.lower())
        answered: str | None = getattr(its, verb.lower())(next(alike, argument))
        return answered

    return answer


def forgetful(verb: str) -> Callable[[FakeSession, str], str | None]:
    """List, and go back to text."""

    def answer(its: FakeSession, argument: str) -> str | None:
        its.binary = False  # type: ignore[attr-defined]
        answered: str | None = getattr(its, verb.lower())(argument)
        return answered

    return answer


def type_(its: FakeSession, argument: str) -> str:
    its.binary = argument == "I"  # type: ignore[attr-defined]
    return "200 Ok."


def size_in_binary(its: FakeSession, argument: str) -> str:
    return its.size(argument) if getattr(its, "binary", False) else "550 SIZE not allowed in ASCII mode."


def in_odd_words(verb: str) -> Callable[[FakeSession, str], str | None]:
    """Refuse a file that is not there in words of its own."""

    def answer(its: FakeSession, argument: str) -> str | None:
        plain: str | None = getattr(its, verb.lower())(argument)
        return plain if plain is None or plain < "4" else "553 El archivo no existe o algo peor sucedió"

    return answer


CHANGES = ("CWD", "RNFR", "RNTO", "DELE", "MKD")


def all_of(verbs: tuple[str, ...], text: str) -> dict[str, Any]:
    """Have several commands answered in such words where they work; `{code}` and `{plain}` are the plain server's."""
    return {verb: said_by(verb, text) for verb in verbs}


def mkd(its: FakeSession, path: str) -> str:
    """Make a folder, in codes of its own."""
    return "521 Exists." if path in its.server.folders else its.mkd(path).replace("257", "250")


ODD: dict[str, dict[str, Any]] = {
    "codes without a word": {"answers": all_of((*CHANGES, "TYPE"), "{code}")},
    "200 to whatever worked": {"answers": all_of(("CWD", "RNTO", "DELE", "MKD"), "200 Command okay.")},
    "replies of many lines": {
        "answers": all_of((*CHANGES, "SIZE", "MDTM"), "{code}-Dear user,\r\n  550 is no code here\r\n\r\n{plain}")
    },
    "each line with its code": {"answers": all_of(CHANGES, "{code}-One\r\n{code}-Two\r\n{plain}")},
    "250 in place of 226": {"answers": all_of(("RETR", "STOR", "NLST"), "250 Transfer okay.")},
    "SIZE in binary only, forgotten by lists": {
        "answers": {"TYPE": type_, "SIZE": size_in_binary, "NLST": forgetful("NLST")}
    },
    "one code and odd words for all refusals": {
        "answers": {verb: in_odd_words(verb) for verb in (*CHANGES, "SIZE", "MDTM", "RETR", "STOR")}
    },
    "no SIZE, no MDTM, no MLST, no FEAT": {
        "answers": {"SIZE": "502 No.", "MDTM": "502 No.", "MLST": "502 No.", "FEAT": "500 What?"}
    },
    "MKD says 521 and 250": {"answers": {"MKD": mkd}},
    "PASV alone, with another host in it": {
        "answers": {
            "EPSV": "502 No.",
            "PASV": lambda its, _: "227 =10,0,0,1,{},{}".format(*divmod(its.listen(), 256)),
        }
    },
    "welcome twice, with text before": {"welcome": "Hello there\r\n220-Fake\r\n220 Fake.\r\n220 Once more."},
    "other letters are the same file": {
        "answers": {verb: insensitive(verb) for verb in ("SIZE", "MDTM", "RETR", "DELE", "RNFR")}
    },
}


@pytest.mark.parametrize("kind", ODD)
def test_every_usual_job_works_on_an_odd_server(fake, session, buffer, kind: str) -> None:
    """Into new folders, over a file, from it with its source deleted or moved; a missing file is told."""
    content = {"/a": b"12345"}
    source, odd = session(fake(files=dict(content))), fake(files={"/out/b": b"old"}, **ODD[kind])

    def place(**options: Any) -> receipts.Receipt:
        return moved(a_task(**options), source, session(odd), buffer)

    place()
    assert odd.files == {"/out/b": b"12345"}
    for overwrite in ("skip", "newer"):
        place(overwrite=overwrite)
    session(odd).publish(session(odd).write("/new/deep/.p", Bytes(b"1"), buffer), "/new/deep/f", None).result()
    assert odd.files == {"/out/b": b"12345", "/new/deep/f": b"1"}
    ftp = session(odd)
    assert sorted(ftp.names("/new/deep")) == ["f"]
    assert content_of(ftp, "/new/deep/f", buffer) == b"1"
    ftp.dispose("/new/deep/f", "/done/f").result()
    ftp.dispose("/new/deep/f", "/done/f").result()
    ftp.dispose("/out/b").result()
    ftp.dispose("/out/b").result()
    assert odd.files == {"/done/f": b"1"}
    with pytest.raises(FileMissing):
        ftp.read("/out/b")


# --- lists ------------------------------------------------------------------------------------------------------------

LONG = {
    "Unix": (b"total 2", b"drwxr-xr-x 2 a b 4096 Nov 30 14:54 d", b"-rw-r--r-- 1 a b 1 Jan  1  2020  x y", b"d"),
    "Windows": (b"11-30-26  02:54PM       <DIR>          d", b"11-30-2026  14:54     1 x y"),
    "Unix in Korean": (
        "drwxr-xr-x 2 a b 4096 11월 30 14:54 d".encode(),
        "-rw-r--r-- 1 a b 1 11월 30 14:54 x y".encode(),
    ),
    "EPLF": (b"+m824255902,/,\td", b"+m824255907,r,s10,\tx y"),
    "NetWare": (b"d [R----F--] boss 512 Jan 16 18:53    d", b"- [R----F--] boss 1 Jan 16 18:53    x y"),
}


@pytest.mark.parametrize("form", LONG)
def test_names_come_of_long_lists_where_there_are_no_others(fake, session, form: str) -> None:
    """No MLSD and no NLST: LIST has many forms."""
    ftp = session(fake(answers={"NLST": "502 No.", "LIST": listed(*LONG[form])}))
    assert [name.strip() for name in ftp.names("/")] == ["d", "x y"]


def test_a_file_named_like_an_option_hides_no_others(fake, session) -> None:
    """To ProFTPD `-a` is that file: what a killed attempt left beside it is found all the same."""

    def nlst(its: FakeSession, argument: str) -> str:
        if argument == "-a":
            return listed(b"-a")(its, "")
        return its.nlst("-a" if argument == "-a ." else argument)

    ftp = session(fake(files={"/d/-a": b"", "/d/.etl-1.part": b""}, answers={"NLST": nlst}))
    assert ftp.names("/d", ".etl-") == [".etl-1.part"]
    assert ftp.names("/d") == ["-a", ".etl-1.part"]


def test_a_list_that_is_cut_off_proves_no_absence(fake, session, buffer) -> None:
    """SIZE tells nothing, and of many names only some are listed: the file is asked for by its name."""

    def nlst(its: FakeSession, argument: str) -> str:
        name = f"{its.folder.rstrip('/')}/{argument}"
        return listed(argument.encode())(its, "") if name in its.server.files else listed(b"1", b"2")(its, "")

    odd = fake(files={"/out/1": b""}, answers={"SIZE": "550 No.", "NLST": nlst})
    moved(a_task(), session(fake(files={"/a": b"12345"})), session(odd), buffer)
    assert odd.files["/out/b"] == b"12345"


@pytest.mark.parametrize("features", [("SIZE", "MLST"), ("SIZE",)])
def test_facts_may_be_missing(fake, session, features: tuple[str, ...]) -> None:
    """A list with names and few facts is a list."""
    lines = (b" a", b"Size=1; b c", b"TYPE=cdir;Perm=el; .", b"type=OS.unix=slink:/x; l", b"Type=pdir; ..")
    answers = {
        "MLSD": listed(*lines),
        "FEAT": f"211-\r\n {features[-1]}\r\n211 End",
        "NLST": listed(b"a", b"b c", b"l"),
    }
    assert session(fake(answers=answers)).names("/") == ["a", "b c", "l"]


# --- files, folders, rights -------------------------------------------------------------------------------------------


def tells_little(its: FakeSession, argument: str) -> str:
    return "213 4096" if argument in its.server.folders else its.size(argument)


@pytest.mark.parametrize("mkd", ["550 File exists", "550 EEXIST: file already exists", "521 Taken.", "451 No."])
def test_a_file_in_a_folders_place_is_told_by_a_long_list(fake, session, buffer, mkd: str) -> None:
    """SIZE answers for folders, too: it is no matter of rights, and a dead letter at once."""
    answers = {"SIZE": tells_little, "MKD": mkd, "LIST": listed(b"-rw-r--r-- 1 a b 1 Jan  1  2020 file")}
    ftp = session(fake(files={"/file": b"1"}, answers=answers))
    with pytest.raises(NotAFile, match="/file is a file, not a folder"):
        ftp.write("/file/.p", Bytes(b"2"), buffer)


@pytest.mark.parametrize("code", [450, 451, 550, 553])
@pytest.mark.parametrize("is_known", [True, False])
def test_a_rename_onto_a_folder_says_so_whatever_the_code(fake, session, code: int, is_known: bool) -> None:
    """Pure-FTPd says 451: no attempts are spent on what cannot pass."""

    def rnto(its: FakeSession, argument: str) -> str:
        return f"{code} Is a directory" if argument in its.server.folders else its.rnto(argument)

    odd = fake(files={"/d/keep": b"1", "/.p": b"2"}, answers={"RNTO": rnto})
    ftp = session(odd)
    ftp.link.quirks.refuses_to_replace = is_known
    with pytest.raises(NotAFile, match="/d is a folder"):
        ftp.publish(Stored("/.p", 1, 1), "/d", None).result()
    assert odd.files == {"/d/keep": b"1", "/.p": b"2"}


def test_a_move_is_done_when_its_source_is_gone_also_where_rnfr_says_yes_to_all(fake, session) -> None:
    """Apache's and Twisted's do: what stood in the way is put back."""

    def rnto(its: FakeSession, name: str) -> str:
        if name in its.server.files:
            return "553 Exists."
        return its.rnto(name) if its.from_ else "550 No such file."

    answers = {"RNFR": lambda its, name: its.rnfr(name) and "350 Go on.", "RNTO": rnto}
    odd = fake(files={"/done/f": b"moved before"}, answers=answers)
    for is_known in (False, True):
        ftp = session(odd)
        ftp.link.quirks.refuses_to_replace = is_known
        ftp.dispose("/f", "/done/f").result()
        assert odd.files == {"/done/f": b"moved before"}


@pytest.mark.parametrize(
    "words", ["450 No permission for /f.", "451 EACCES: permission denied", "450 Access is denied."]
)
def test_words_of_rights_count_where_the_code_says_nothing(fake, session, words: str) -> None:
    """A 450 to DELE may pass or not; what it says is told."""
    with pytest.raises(PermissionRefused):
        session(fake(files={"/f": b"1"}, answers={"DELE": words})).dispose("/f").result()


def test_words_of_rights_count_where_nobody_may_look(fake, session) -> None:
    """A closed folder that CWD enters, and that nobody may list: neither missing, nor anything else."""
    answers = {"SIZE": "550 EACCES: permission denied", "RETR": "550 EACCES: permission denied", "NLST": "451 No"}
    with pytest.raises(PermissionRefused, match="EACCES"):
        session(fake(files={"/d/f": b"1"}, answers=answers)).read("/d/f")


# --- transfers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", ["451 File system error.", "550 Permission denied.", "426 Broken off."])
def test_a_last_word_ends_a_download_of_which_nothing_comes(fake, session, buffer, last: str) -> None:
    """150 came, then a refusal, and the data connection stays open: no stall limit is waited for."""
    held: list[Any] = []

    def retr(its: FakeSession, _: str) -> str:
        its.reply("150 Here it comes.")
        held.append(its.data())
        return last

    started = time.monotonic()
    with pytest.raises(EtlError, match=last[:3]):
        content_of(session(fake(files={"/a": b"12345"}, answers={"RETR": retr})), "/a", buffer)
    assert time.monotonic() - started < 5
    for sock in held:
        sock.close()


def test_a_file_of_unknown_size_ends_with_the_226(fake, session, buffer) -> None:
    """Its data connection is left open, and no SIZE says that all is there."""

    def retr(its: FakeSession, argument: str) -> str:
        its.reply("150 Here it comes.")
        its.data().sendall(its.server.files[argument])
        return "226 Done."

    odd = fake(files={"/a": b"12345"}, answers={"RETR": retr, "SIZE": "550 No."})
    assert content_of(session(odd), "/a", buffer) == b"12345"


def test_a_folder_that_is_sent_as_an_empty_file_is_none(fake, session, buffer) -> None:
    """150, 226 and not a byte: an empty file has a size, or may not be entered."""

    def retr(its: FakeSession, argument: str) -> str:
        its.reply("150 Here it comes.")
        its.send_data(its.server.files.get(argument, b""))
        return "226 Done."

    ftp = session(fake(files={"/d/a": b"1", "/empty": b""}, answers={"RETR": retr, "SIZE": "550 No."}))
    assert content_of(ftp, "/empty", buffer) == b""
    with pytest.raises(NotAFile, match="/d is a folder"):
        content_of(ftp, "/d", buffer)


def test_a_list_ends_with_the_226(fake, session) -> None:
    """As files do."""

    def nlst(its: FakeSession, _: str) -> str:
        its.reply("150 Here it comes.")
        its.data().sendall(b"a\r\nb\r\n")
        return "226 Done."

    assert session(fake(answers={"NLST": nlst})).names("/") == ["a", "b"]


def test_the_second_of_two_replies_does_not_wait_for_our_acknowledgement(fake, session, monkeypatch) -> None:
    """A server that leaves Nagle's algorithm on: 40 ms for each rename, were it not for TCP_QUICKACK."""
    times = [seconds_of_renames(fake, session)]
    monkeypatch.setattr(wire, "acknowledge_at_once", lambda _: None)
    times.append(seconds_of_renames(fake, session))
    print(f"30 renames: {times[0] * 1000:.0f} ms, without {times[1] * 1000:.0f} ms")
    assert times[0] < times[1] / 2


def seconds_of_renames(fake: Any, session: Any) -> float:
    odd: FakeFTP = fake(files={"/a": b"1"})
    ftp = session(odd)
    for sock in odd.controls():
        sock.setsockopt(6, 1, 0)  # TCP_NODELAY off
    started = time.monotonic()
    for number in range(30):
        ftp.dispose("/a" if number % 2 == 0 else "/b", "/b" if number % 2 == 0 else "/a").result()
    return time.monotonic() - started


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", ["/trail", "/x", None])
def test_a_misnamed_file_that_was_written_directly_is_taken_away(fake, session, buffer, there: str | None) -> None:
    """Not what had that name before: whose it is nobody knows."""
    bent = {verb: lambda its, name, verb=verb: getattr(its, verb.lower())(name.rstrip()) for verb in ("STOR", "SIZE")}
    odd = fake(files={there: b"1"} if there else {}, answers=bent)
    ftp = session(odd, publish="direct")
    stored = ftp.write("/trail ", Bytes(b"12"), buffer)
    with pytest.raises(NameNotKept, match="another name: 'trail'"):
        ftp.publish(stored, "/trail ", None).result()
    assert ("/trail" in odd.files) == (there == "/trail")


def test_byte_ff_is_tried_before_anything_is_written_and_silence_is_an_answer(fake, session, buffer) -> None:
    """Apache's server gives none: once may be an accident, then such a job is a dead letter at once."""

    def silent(verb: str) -> Callable[[FakeSession, str], Any]:
        return lambda its, name: None if "\udcff" in name else getattr(its, verb.lower())(name)

    source = fake(files={"/a": b"12345"})
    odd = fake(answers={verb: silent(verb) for verb in ("MKD", "SIZE", "RNTO")})
    task = a_task()
    object.__setattr__(task.job.destination, "path", "/out/яb")
    for _ in range(telnet._ACCIDENTS + 1):
        with pytest.raises(EtlError, match="no reply to MKD"):
            moved(task, session(source), session(odd, QUICK, encoding="cp1251"), buffer)
    with pytest.raises(InvalidPath, match="no answer to a name with byte 0xFF"):
        moved(task, session(source), session(odd, QUICK, encoding="cp1251"), buffer)
    assert odd.files == {}
    assert not any(command.startswith("STOR") for command in odd.commands)


def test_other_letters_of_one_name_cost_no_file(fake, session, buffer) -> None:
    """A server that does not tell letters apart: the source is its own destination."""
    verbs = ("SIZE", "MDTM", "RETR", "DELE", "RNFR")
    odd = fake(files={"/out/B": b"12345"}, answers={verb: insensitive(verb) for verb in verbs})
    task = a_task(source_action="delete")
    object.__setattr__(task.job.source, "path", "/out/B")
    with pytest.raises((InvalidPath, IOFailure)):
        moved(task, session(odd), session(odd), buffer)
    assert {name.lower(): content for name, content in odd.files.items()} == {"/out/b": b"12345"}


def test_silence_at_an_unknown_command_is_no_end(fake, session, buffer) -> None:
    """FEAT and EPSV that are never answered, together."""
    odd = fake(files={"/a": b"12345"}, answers={"FEAT": SILENCE, "EPSV": SILENCE})
    settings = TransferSettings(connect_timeout=2, login_timeout=30, reply_timeout=2, stall_timeout=10)
    assert content_of(session(odd, settings), "/a", buffer) == b"12345"


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["STOR", "RNFR", "RNTO"])
@pytest.mark.parametrize("reply", ["553 No.", "451 No.", "452 Full."])
def test_an_error_tells_the_files_name_and_not_its_partial_ones(fake, session, buffer, verb: str, reply: str) -> None:
    """Nobody knows that one, and nobody finds it."""
    odd = fake(files={"/out/x": b""}, answers={verb: reply})
    with pytest.raises(EtlError, match=r"^FAKE:/out/b: "):
        moved(a_task(), session(fake(files={"/a": b"12345"})), session(odd), buffer)


def test_a_login_that_is_greeted_twice_is_one(fake, session) -> None:
    """A second 230 belongs to no command that follows."""
    server = fake(files={"/a": b"1"}, answers={"PASS": "230 In.\r\n230 Welcome, dear user."})
    for _ in range(2):
        assert session(server).look("/a").size_bytes == 1


@pytest.mark.parametrize("verb", ["FEAT", "EPSV"])
def test_who_hangs_up_on_a_command_is_not_sent_it_again(fake, session, buffer, verb: str) -> None:
    """Devices end the session at what they do not know: once may be an accident."""
    server = fake(files={"/a": b"12345"}, answers={verb: lambda its, _: its.drop()})
    for _ in range(2):
        with contextlib.suppress(ServerUnavailable):
            session(server)
    assert content_of(session(server), "/a", buffer) == b"12345"
    before = len(server.commands)
    session(server)
    assert verb not in server.commands[before:]


@pytest.mark.parametrize(
    "reply",
    [
        "250-Listing\r\n Type=file;Size=5;Modify=20260102030405; /a\r\n250 End",
        "250-Type=file;Size=5;Modify=20260102030405; /a\r\n250 End",
        "250 TYPE=file;SIZE=5;MODIFY=20260102030405; /a",
        "250-Start\r\n250-type=file;size=5;modify=20260102030405.123; a\r\n250 End",
    ],
)
def test_the_facts_of_mlst_are_read_wherever_they_stand(fake, session, reply: str) -> None:
    """On a line of their own, or behind the code."""
    answers = {"SIZE": "502 No.", "MDTM": "502 No.", "FEAT": "502 No.", "MLST": reply}
    found = session(fake(files={"/a": b"12345"}, answers=answers)).look("/a")
    assert (found.size_bytes, int(found.mtime)) == (5, 1767323045)


def test_names_may_come_with_a_drives_path(fake, session) -> None:
    """Windows has its own slashes; a name of other servers may hold one."""
    ftp = session(fake(answers={"NLST": listed(b"C:\\in\\a b", b"back\\slash", b"/in/c")}))
    assert ftp.names("/") == ["a b", "back\\slash", "c"]


@pytest.mark.parametrize("words", ["OOPS: vsftpd: refusing to run with writable root", "Internal error."])
def test_a_broken_login_is_no_wrong_password(fake, session, words: str) -> None:
    """The server is out of order, and the jobs wait for it."""
    with pytest.raises(ServerUnavailable):
        session(fake(answers={"PASS": f"500 {words}"}))
