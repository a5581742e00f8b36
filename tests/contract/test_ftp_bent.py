"""Names that a server bends, and byte 0xFF in them: no file is ever left under another's name."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from contract_parts import Bytes, content_of, writes_of

from etl.errors import Fate, InvalidPath, NameNotKept
from etl.transfer.base import Stored
from servers.fake import FakeFTP, FakeSession

pytestmark = pytest.mark.contract

BENT: dict[str, tuple[str, Callable[[str], str]]] = {
    "quote": ("/quo'te\"d", lambda name: name.replace('"', "")),
    "trailing blank": ("/trail ", str.rstrip),
    "leading blank": ("/ lead", lambda name: name.replace("/ ", "/_")),
    "trailing dot": ("/dot.", lambda name: name.rstrip(".")),
    "backslash": ("/back\\slash", lambda name: name.replace("\\", "")),
}


@pytest.mark.parametrize("how", BENT)
def test_a_name_that_a_server_bends_is_found_by_its_list(fake, session, how: str) -> None:
    """Asked by the same name it bends that, too. The misnamed file is taken away, the job is dead at once."""
    final, bend = BENT[how]
    answers = {
        "RNTO": lambda its, name: its.rnto(bend(name)),
        "SIZE": lambda its, name: its.size(bend(name)),
    }
    server = fake(files={"/.p": b"new", "/other": b"1"}, answers=answers)
    with pytest.raises(NameNotKept, match="another name") as caught:
        session(server).publish(Stored("/.p", 3, 3), final, None).result()
    assert caught.value.fate is Fate.DEAD
    assert server.files == {"/other": b"1"}


@pytest.mark.parametrize("final", ["/quo'te\"d", "/trail ", "/ lead", "/dot.", "/back\\slash", "/한글", "/plain"])
def test_a_name_that_is_kept_is_right(fake, session, final: str) -> None:
    """Odd as it is; of names beyond ASCII one is looked at per server."""
    server = fake(files={"/.p": b"new", "/.q": b"new"})
    ftp = session(server)
    ftp.publish(Stored("/.p", 3, 3), final, None).result()
    assert server.files == {final: b"new", "/.q": b"new"}
    if not final.isascii():
        again = writes_of(server, lambda: ftp.publish(Stored("/.q", 3, 3), "/글한", None).result())
        assert again == [["RNFR", "RNTO"]]


def telnet(name: str) -> str:
    """Return what a server that follows Telnet takes an argument for."""
    return name.replace("\udcff\udcff", "\udcff")


def strictly(name: str) -> str:
    """Return the same where one alone begins a command, which is dropped."""
    return re.sub("\udcff(.?)", lambda found: "\udcff" if found[1] == "\udcff" else "", name)


@pytest.mark.parametrize("follows", [telnet, strictly, None])
@pytest.mark.parametrize("may_make", [True, False])
def test_byte_ff_in_names_is_written_as_the_server_takes_it(
    fake, session, buffer, follows: Callable[[str], str] | None, may_make: bool
) -> None:
    """Two of them are not taken for one: no other file is read, written over or deleted."""
    one, two = "/\udcff.txt", "/\udcff\udcff.txt"
    server = fake(files={one: b"1", two: b"22"})
    if follows:
        for verb in ("SIZE", "MDTM", "RETR", "STOR", "DELE", "RNFR", "RNTO", "CWD", "MKD", "RMD"):
            server.answers[verb] = lambda its, name, verb=verb: getattr(its, verb.lower())(follows(name))
    if not may_make:
        server.answers["MKD"] = "550 No."
    ftp = session(server, encoding="cp1251")
    assert content_of(ftp, "/яя.txt", buffer) == b"22"
    assert content_of(ftp, "/я.txt", buffer) == b"1"
    ftp.publish(ftp.write("/.p", Bytes(b"333"), buffer), "/яяя.txt", None).result()
    ftp.dispose("/яя.txt").result()
    assert server.files == {one: b"1", "/\udcff\udcff\udcff.txt": b"333"}
    assert server.folders == {"/"}


def test_where_it_cannot_be_found_out_nothing_is_written(fake, session, buffer) -> None:
    """An error before anything is written is better than a file under another's name."""
    server = fake(answers={"MKD": "550 No."})
    with pytest.raises(InvalidPath, match="0xFF"):
        session(server, encoding="cp1251").write("/яя.txt", Bytes(b"1"), buffer)
    assert server.files == {}


def read_as(encoding: str, errors: str = "strict") -> Callable[[str], str]:
    """Bend a name as a server does that takes its bytes for another encoding's."""
    return lambda name: name.encode("utf-8", "surrogateescape").decode(encoding, errors)


def without_ff(name: str) -> str:
    """Bend a name as inetutils does, for which 0xFF begins a command of Telnet: the next byte goes, too."""
    head, _, rest = name.partition("\udcff")
    return head + rest.lstrip("\udcff")[1:] if rest else head


STRANGE: dict[str, tuple[str, str, Callable[[str], str]]] = {
    "mojibake": ("utf-8", "/한글.txt", read_as("latin-1")),
    "mojibake of one letter": ("utf-8", "/é.txt", read_as("latin-1")),
    "replaced": ("latin-1", "/aÿb.bin", read_as("utf-8", "replace")),
    "cut": ("latin-1", "/aÿb.bin", without_ff),
    "nothing alike": ("utf-8", "/한글", lambda name: "/x" if "한" in name else name),
}
VERBS = ("SIZE", "MDTM", "RETR", "STOR", "DELE", "RNFR", "RNTO", "CWD", "MKD", "RMD")


def a_bender(fake: Any, bend: Callable[[str], str], files: dict[str, bytes]) -> FakeFTP:
    """Start a server that bends every name it is sent, and lists what it has."""
    answers = {verb: lambda its, name, verb=verb: getattr(its, verb.lower())(bend(name)) for verb in VERBS}
    return fake(files=files, answers=answers)


@pytest.mark.parametrize("how", STRANGE)
def test_a_name_without_a_letter_in_common_is_found_too(fake, session, how: str) -> None:
    """The misnamed file is taken away, each time: one such name says nothing of the next."""
    encoding, final, bend = STRANGE[how]
    server = a_bender(fake, bend, {"/other": b"1"})
    ftp = session(server, encoding=encoding)
    for _ in range(2):
        server.files["/.p"] = b"new"
        with pytest.raises(NameNotKept, match="another name"):
            ftp.publish(Stored("/.p", 3, 3), final, None).result()
        assert server.files == {"/other": b"1"}


def test_an_odd_name_that_is_kept_says_nothing_of_others(fake, session) -> None:
    """Only a name beyond ASCII shows how those are kept."""
    server = a_bender(fake, read_as("latin-1"), {"/.p": b"new", "/.q": b"new"})
    ftp = session(server)
    ftp.publish(Stored("/.p", 3, 3), "/it's", None).result()
    with pytest.raises(NameNotKept, match="another name"):
        ftp.publish(Stored("/.q", 3, 3), "/한글", None).result()
    assert server.files == {"/it's": b"new"}


@pytest.mark.parametrize("how", STRANGE)
def test_a_source_moved_to_such_a_name_gets_its_own_back(fake, session, how: str) -> None:
    """It is all there is of it: nothing is deleted."""
    encoding, target, bend = STRANGE[how]
    server = a_bender(fake, bend, {"/in/a": b"1", "/other": b"1"})
    with pytest.raises(NameNotKept, match="another name"):
        session(server, encoding=encoding).dispose("/in/a", target).result()
    assert server.files == {"/in/a": b"1", "/other": b"1"}


def test_byte_ff_that_hits_another_file_is_no_success(fake, session) -> None:
    """No name is new then; but the one that was sent is not shown, though the file is there."""
    server = a_bender(fake, without_ff, {"/.p": b"new", "/a.bin": b"old"})
    with pytest.raises(NameNotKept, match="another name"):
        session(server, encoding="latin-1").publish(Stored("/.p", 3, 3), "/aÿb.bin", None).result()


@pytest.mark.parametrize(("encoding", "final"), [("utf-8", "/한글"), ("latin-1", "/aÿb.bin")])
@pytest.mark.parametrize("comes", [0, 1, 2])
def test_a_file_taken_at_once_is_no_bent_one(fake, session, encoding: str, final: str, comes: int) -> None:
    """Whoever waits for it was quicker than the list; what others put there meanwhile is theirs."""

    def rnto(its: FakeSession, name: str) -> str:
        said = its.rnto(name)
        if its.server.files.pop(name, None) is not None:
            its.server.files.update({f"/{number}": b"theirs" for number in range(comes)})
        return said

    server = fake(files={"/.p": b"new", "/other": b"1"}, answers={"RNTO": rnto})
    session(server, encoding=encoding).publish(Stored("/.p", 3, 3), final, None).result()
    assert server.files == {"/other": b"1", **{f"/{number}": b"theirs" for number in range(comes)}}


def test_nothing_comes_between_both_halves_of_a_rename(fake, session) -> None:
    """How byte 0xFF is written is found out before: Twisted answers 503 to all else, and the session is over."""
    server = fake(files={"/.p": b"new"})
    session(server, encoding="latin-1").publish(Stored("/.p", 3, 3), "/aÿb.bin", None).result()
    renames = [command.partition(" ")[0] for command in server.commands]
    assert renames[renames.index("RNFR") + 1] == "RNTO"


def test_a_bent_folder_is_found_too(fake, session) -> None:
    """The file in it has the right name, which says nothing of names beyond ASCII."""
    bent = read_as("latin-1")("/한글")
    server = a_bender(fake, read_as("latin-1"), {f"{bent}/.p": b"new", f"{bent}/other": b"1"})
    with pytest.raises(NameNotKept, match="another name"):
        session(server).publish(Stored("/한글/.p", 3, 3), "/한글/plain", None).result()
    assert server.files == {f"{bent}/other": b"1"}
    server.files["/in"] = b"1"
    with pytest.raises(NameNotKept, match="another name"):
        session(server).dispose("/in", "/한글/plain").result()
    assert server.files == {f"{bent}/other": b"1", "/in": b"1"}


MISREAD = [
    ("cp1251", "/.ят./secret/f"),
    ("latin-1", "/.ÿò./secret/f"),
    ("utf-8", r"/a/..\..\secret\f"),
    ("utf-8", "/\uff0e\uff0e/f"),
]


@pytest.mark.parametrize(("encoding", "path"), MISREAD)
@pytest.mark.parametrize("may_make", [True, False])
def test_no_name_is_sent_that_some_server_reads_as_a_path_above_the_base(
    fake, session, buffer, encoding: str, path: str, may_make: bool
) -> None:
    """Neither to read, nor to write, rename, delete or list, and whether 0xFF could be tried out or not."""
    server = fake(files={"/base/.p": b"new", "/base/a": b"1"}, answers={} if may_make else {"MKD": "550 No."})
    ftp = session(server, encoding=encoding, base_path="/base")
    for attempt in (
        lambda: ftp.look(path),
        lambda: ftp.read(path),
        lambda: ftp.write(path, Bytes(b"1"), buffer),
        lambda: ftp.publish(Stored("/.p", 3, 3), path, None).result(),
        lambda: ftp.dispose("/a", path).result(),
        lambda: ftp.remove(path),
        lambda: ftp.names(path),
    ):
        with pytest.raises(InvalidPath):
            attempt()
    assert not [command for command in server.commands if "secret" in command or "\uff0e" in command]
    assert server.files == {"/base/.p": b"new", "/base/a": b"1"}
