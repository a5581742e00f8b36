"""Size, time and type by MLST, where SIZE and MDTM are unknown: overwriting is decided by them."""

from __future__ import annotations

from typing import Any

import pytest
from contract_parts import a_task, content_of, moved

from etl.errors import AlreadyExists, NotAFile
from etl.models.task import Facts
from servers.fake import FakeFTP, FakeSession

pytestmark = pytest.mark.contract

NEWEST = "20300101000000"


def mlst(its: FakeSession, path: str) -> str:
    """Answer as aioftp does."""
    if path in its.server.folders:
        told = "Size=4096;Modify=20260102030405;Type=dir;"
    elif path in its.server.files:
        told = f"Size={len(its.server.files[path])};Modify={its.mdtm(path)[4:]};Type=file;"
    else:
        return "550 No."
    return f"250-start\r\n {told} {path}\r\n250 end"


def a_lister(fake: Any, files: dict[str, bytes], features: str = "502 No.") -> FakeFTP:
    unknown = {"SIZE": "502 No.", "MDTM": "500 No.", "MLST": mlst, "FEAT": features}
    return fake(files=files, answers=unknown)


@pytest.mark.parametrize("features", ["502 No.", "211-Features:\r\n MLST Size*;Modify*;Type*;\r\n211 End"])
def test_size_time_and_type_are_had_by_mlst(fake, session, buffer, features: str) -> None:
    """With FEAT and without; all sessions of the address ask no more than that, once it is known."""
    server = a_lister(fake, {"/in/a": b"12345"}, features)
    ftp = session(server)
    seen = ftp.look("/in/a")
    assert seen == Facts(5, 1767323045.0)
    assert ftp.look("/in/none") is None
    with pytest.raises(NotAFile):
        ftp.look("/in")
    ftp = session(server)
    before = len(server.commands)
    assert ftp.look("/in/a") == seen
    assert server.commands[before:] == ["MLST /in/a"]
    parcel = ftp.read("/in/a")
    assert parcel.facts == seen
    parcel.readinto(buffer)
    parcel.close(complete=True)
    assert ftp.unchanged(parcel).result()
    server.times["/in/a"] = NEWEST
    assert not ftp.unchanged(parcel).result()
    del server.files["/in/a"]
    assert ftp.unchanged(parcel).result()


@pytest.mark.parametrize("overwrite", ["newer", "skip", "fail"])
@pytest.mark.parametrize("is_newer", [True, False])
def test_overwriting_is_decided_by_what_mlst_tells(fake, session, buffer, overwrite: str, is_newer: bool) -> None:
    """Of another size and time on both sides: the newer one stays or comes, and nothing else is said."""
    source, destination = a_lister(fake, {"/a": b"new"}), a_lister(fake, {"/out/b": b"other"})
    (source if is_newer else destination).times["/a" if is_newer else "/out/b"] = NEWEST
    task, ours = a_task(overwrite=overwrite), (session(source), session(destination))
    if overwrite == "fail":
        with pytest.raises(AlreadyExists):
            moved(task, *ours, buffer)
    else:
        assert moved(task, *ours, buffer).skipped is not (overwrite == "newer" and is_newer)
    comes = overwrite == "newer" and is_newer
    assert destination.files == {"/out/b": b"new" if comes else b"other"}


def test_a_source_read_first_is_its_own_file_afterwards(fake, session, buffer) -> None:
    """Its time is known from the first file on: a look at it afterwards finds the same."""
    server = a_lister(fake, {"/a": b"12345"})
    ftp = session(server)
    parcel = ftp.read("/a")
    parcel.readinto(buffer)
    parcel.close(complete=True)
    assert parcel.facts == ftp.look("/a")
    assert content_of(ftp, "/a", buffer) == b"12345"


def test_a_server_without_any_of_them_is_asked_once(fake, session, buffer) -> None:
    """What nobody tells is not known; it is no error."""
    server = a_lister(fake, {"/a": b"1"})
    server.answers["MLST"] = "502 No."
    ftp = session(server)
    assert content_of(ftp, "/a", buffer) == b"1"
    before = len(server.commands)
    assert ftp.read("/a").facts == Facts(None, None)
    assert not any(command.startswith("MLST") for command in server.commands[before:])
