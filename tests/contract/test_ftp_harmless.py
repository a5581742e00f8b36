"""Nothing is moved, hidden or deleted that nobody asked for: folders in the way, and servers that tell too much."""

from __future__ import annotations

import pytest

from etl.errors import EtlError, IOFailure, NotAFile, PermissionRefused
from etl.transfer.base import Stored
from etl.transfer.ftp import known
from servers.fake import FakeFTP, FakeSession

pytestmark = pytest.mark.contract


def no_replace(its: FakeSession, argument: str) -> str:
    """RNTO of a server that renames over nothing."""
    return "550 Exists." if argument in its.server.files or argument in its.server.folders else its.rnto(argument)


def size_of_all(its: FakeSession, argument: str) -> str:
    """SIZE of a server that tells the size of folders, too."""
    return "213 4096" if argument in its.server.folders else its.size(argument)


def closed(its: FakeSession, argument: str) -> str:
    """CWD of a server whose folder `/d` may not be entered."""
    return "550 Permission denied." if argument == "/d" else its.cwd(argument)


def folder_in_the_way(fake, **more: object) -> FakeFTP:
    """Return a server whose folder has the destination's name."""
    return fake(files={"/.p": b"new", "/d/keep": b"1", "/src": b"2"}, **more)


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("sizes", [True, False])
@pytest.mark.parametrize("features", [("SIZE", "EPSV"), ("SIZE", "EPSV", "MLST")])
def test_a_folder_of_the_destinations_name_is_never_moved_aside(fake, session, features, sizes, is_known) -> None:
    """A folder hidden away with SUCCESS: whatever SIZE says, and whether the server is known to replace nothing."""
    answers = {"RNTO": no_replace, **({"SIZE": size_of_all} if sizes else {})}
    server = folder_in_the_way(fake, answers=answers, features=features)
    ftp = session(server)
    known.of(ftp.server.address).refuses_to_replace = is_known
    with pytest.raises(NotAFile, match="/d is a folder"):
        ftp.publish(Stored("/.p", 3, 3), "/d", None).result()
    with pytest.raises(NotAFile, match="/d is a folder"):
        ftp.dispose("/src", "/d").result()
    assert server.files == {"/.p": b"new", "/d/keep": b"1", "/src": b"2"}
    assert not any(".old" in command for command in server.commands)


@pytest.mark.parametrize("is_known", [True, False])
def test_a_closed_folder_that_passes_for_a_file_is_put_back(fake, session, is_known) -> None:
    """It may not be entered, and the server tells its size: that it was none shows when it cannot be deleted."""
    answers = {"RNTO": no_replace, "SIZE": size_of_all, "CWD": closed}
    server = folder_in_the_way(fake, answers=answers)
    ftp = session(server)
    known.of(ftp.server.address).refuses_to_replace = is_known
    with pytest.raises(EtlError):
        ftp.publish(Stored("/.p", 3, 3), "/d", None).result()
    assert server.files == {"/.p": b"new", "/d/keep": b"1", "/src": b"2"}
    assert "/d" in server.folders


def test_an_old_file_that_may_not_be_deleted_is_put_back(fake, session) -> None:
    """Its DELE is refused after the swap: nothing stays hidden, and the job says why it failed."""
    server = fake(files={"/f": b"old", "/.p": b"new"}, answers={"RNTO": no_replace, "DELE": "550 No deleting here."})
    with pytest.raises(PermissionRefused, match="No deleting here"):
        session(server).publish(Stored("/.p", 3, 3), "/f", None).result()
    assert server.files == {"/f": b"old", "/.p": b"new"}


def test_what_cannot_be_put_back_either_is_named(fake, session) -> None:
    """The error says under which name the old file is."""

    def stubborn(its: FakeSession, argument: str) -> str:
        return "550 No." if its.from_ == "/f" and argument == "/.p" else no_replace(its, argument)

    server = fake(files={"/f": b"old", "/.p": b"new"}, answers={"RNTO": stubborn, "DELE": "550 No."})
    with pytest.raises(IOFailure, match=r"\.p\.old beside it"):
        session(server).publish(Stored("/.p", 3, 3), "/f", None).result()
    assert server.files == {"/f": b"new", "/.p.old": b"old"}


def test_a_folder_is_no_file_though_its_size_is_told(fake, session) -> None:
    """`look` and `overwrite` believe the folder."""
    server = fake(files={"/d/keep": b"1"}, answers={"SIZE": size_of_all})
    with pytest.raises(NotAFile, match="/d is a folder"):
        session(server).look("/d")


def test_a_closed_folder_is_not_taken_for_a_file(fake, session, buffer) -> None:
    """Below it nothing may be read: PERMISSION_DENIED, where SIZE answers for folders, too."""
    answers = {
        "SIZE": lambda its, path: "550 No." if path.startswith("/d/") else size_of_all(its, path),
        "CWD": closed,
        "RETR": "550 No.",
    }
    server = fake(files={"/d/keep": b"1"}, answers=answers)
    with pytest.raises(PermissionRefused, match="/d may not be entered"):
        session(server).read("/d/keep")
