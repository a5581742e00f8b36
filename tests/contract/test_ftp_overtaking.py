"""Commands sent before the last word on a transfer: to whom, when, and what is made of a last word that is bad."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from contract_parts import PATIENT, SHORT, Bytes, drain

from etl.errors import ConnectionLost, EtlError, SourceChanged, StorageFull
from etl.models.message import FileTransferJob
from etl.models.task import Facts, Origin, Record, Task
from etl.transfer import partials, relay
from etl.transfer.base import Promise
from etl.transfer.ftp import pipelining
from servers.fake import FakeFTP, FakeSession

pytestmark = pytest.mark.contract

FILES = {"/a": b"12345", "/b": b"678"}
LINGER_SECONDS = 2.0  # a command ends it; well below the limit of a reply
SHORT_LINGER_SECONDS = 0.2


@pytest.fixture(autouse=True)
def _far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every server count as far away."""
    monkeypatch.setattr(pipelining, "FAR_SECONDS", 0.0)


@pytest.fixture
def patient(fake: Callable[..., FakeFTP]) -> Callable[..., FakeFTP]:
    """Start servers that wait with their last word until a command has come."""

    def start(**more: Any) -> FakeFTP:
        return fake(**{"files": FILES, "welcome": PATIENT, "lingers": LINGER_SECONDS, **more})

    return start


def confirmed(ftp, path: str, buffer: memoryview) -> Promise[bool]:
    """Read a file to its end, which is seen, and have its source asked."""
    parcel = ftp.read(path)
    assert parcel.load(len(buffer))
    assert drain(parcel, buffer) == FILES[path]
    return ftp.confirm(parcel)


def test_what_follows_a_download_leaves_before_its_last_reply(patient, session, buffer) -> None:
    """The questions about this file and the next file's commands are one write; nobody waits for the 226 alone."""
    server = patient()
    ftp = session(server)
    confirmed(ftp, "/a", buffer)
    ftp.flush()
    before = len(server.writes)
    first = confirmed(ftp, "/a", buffer)
    second = confirmed(ftp, "/b", buffer)
    ftp.flush()
    assert first.result() is second.result() is True
    ahead = ["SIZE", "MDTM"]
    assert server.writes[before:] == [[*ahead, "EPSV", "RETR"], [*ahead, *ahead, "EPSV", "RETR"], ahead]
    assert server.overtaken == 3


def test_what_follows_an_upload_leaves_before_its_last_reply(patient, session, buffer) -> None:
    """The size and the next data connection are asked for once the server has closed this one."""
    server = patient()
    ftp = session(server)
    for name in ("/c", "/d"):
        stored = ftp.write(f"{name}.part", Bytes(b"xyz"), buffer)
        ftp.prepare()
        ftp.push()
        assert stored.size_bytes == 3
        ftp.publish(stored, name, None).result()
    assert server.overtaken == 2
    assert server.writes[-3:] == [["STOR"], ["SIZE", "EPSV"], ["RNFR", "RNTO"]]
    assert {"/c", "/d"} < set(server.files)


@pytest.mark.parametrize("welcome", ["220 Fake.", "220 ProFTPD Server ready."])
def test_others_are_sent_nothing_before_their_last_reply(patient, session, buffer, welcome: str) -> None:
    """Three of four servers answer such commands out of order, or cut the transfer."""
    server = patient(welcome=welcome, lingers=SHORT_LINGER_SECONDS)
    ftp = session(server)
    assert confirmed(ftp, "/a", buffer).result()
    assert ftp.write("/c", Bytes(b"xyz"), buffer).size_bytes == 3
    assert not server.overtaken


def test_who_is_near_is_sent_nothing_before_the_last_reply(patient, session, buffer, monkeypatch) -> None:
    """There is no round trip to be saved."""
    monkeypatch.setattr(pipelining, "FAR_SECONDS", 60.0)
    server = patient(lingers=SHORT_LINGER_SECONDS)
    ftp = session(server)
    assert confirmed(ftp, "/a", buffer).result()
    assert ftp.write("/c", Bytes(b"xyz"), buffer).size_bytes == 3
    assert not server.overtaken


@pytest.mark.parametrize(("code", "kind"), [(426, ConnectionLost), (552, StorageFull), (451, EtlError)])
def test_a_bad_last_reply_to_an_upload_is_found_before_the_rename(
    patient, session, buffer, code: int, kind: type[EtlError]
) -> None:
    """It is told when the size is asked for; the partial file goes, the final name stays as it was."""
    answered = 0

    def stor(its: FakeSession, argument: str) -> str:
        nonlocal answered
        answered += 1
        its.stor(argument)
        return f"{code} Bad."

    server = patient(answers={"STOR": stor})
    ftp = session(server)
    stored = ftp.write("/c.part", Bytes(b"xyz"), buffer)
    ftp.prepare()
    with pytest.raises(kind):
        _ = stored.size_bytes
    with pytest.raises(kind):
        ftp.publish(stored, "/a", None)
    assert server.overtaken == answered == 1
    assert server.files == FILES


def test_a_bad_last_reply_to_a_download_is_an_error(patient, session, buffer) -> None:
    """The file is not taken for a whole one; the session goes on, as its replies are in step."""
    server = patient(answers={"RETR": lambda its, argument: its.retr(argument).replace("226", "451")})
    ftp = session(server)
    promise = confirmed(ftp, "/a", buffer)
    server.answers.clear()
    assert confirmed(ftp, "/b", buffer).result()
    with pytest.raises(EtlError, match="451"):
        promise.result()
    assert server.overtaken == 2


def test_a_file_that_was_cut_short_while_it_was_read_has_changed(patient, session, buffer) -> None:
    """As vsftpd says it: 426, and another size afterwards."""

    def retr(its: FakeSession, argument: str) -> str:
        its.retr(argument)
        its.server.files[argument] = b"1"
        return "426 Failure reading local file."

    server = patient(answers={"RETR": retr})
    ftp = session(server)
    promise = confirmed(ftp, "/a", buffer)
    with pytest.raises(SourceChanged):
        promise.result()


def test_a_refused_upload_is_tried_again_once_its_folder_is_made(patient, session, buffer) -> None:
    """Its data connection ends as an accepted one's does."""
    server = patient()
    ftp = session(server)
    stored = ftp.write("/new/c", Bytes(b"xyz", Facts(3, None)), buffer)
    assert stored.size_bytes == 3
    assert server.files["/new/c"] == b"xyz"


def test_a_server_that_loses_what_comes_early_gets_nothing_early(patient, session, buffer) -> None:
    """Something between us and it may not be as patient: one time limit, then it is known."""

    class Deaf(FakeSession):
        def serve(self, verb: str, argument: str) -> None:
            before = self.server.overtaken
            super().serve(verb, argument)
            if self.server.overtaken > before:
                self.sock.recv(65536)

    server = patient(lingers=SHORT_LINGER_SECONDS)
    server.session_type = Deaf
    ftp = session(server, SHORT)
    with pytest.raises(EtlError):
        confirmed(ftp, "/a", buffer).result()
    ftp = session(server, SHORT)
    for _ in range(2):
        assert confirmed(ftp, "/a", buffer).result()
    assert server.overtaken == 1


def test_what_one_session_found_out_holds_for_those_that_are_open(patient, session, buffer) -> None:
    """Eight sessions do not all fail at it."""
    server = patient(lingers=SHORT_LINGER_SECONDS)
    ftp, other = session(server), session(server)
    ftp.link.control.pipelining.failed_to_overtake()
    assert confirmed(other, "/a", buffer).result()
    assert not server.overtaken


@pytest.mark.parametrize("verify", ["auto", "none"])
def test_a_bad_last_reply_is_found_whatever_is_to_be_compared(patient, session, buffer, verify: str) -> None:
    """Of a job that wants no size compared, too."""
    server = patient(answers={"STOR": lambda its, argument: its.stor(argument).replace("226", "451")})
    job = {"source": {"hostname": "A", "path": "/a"}, "destination": {"hostname": "B", "path": "/c"}}
    job = FileTransferJob.from_dict({**job, "job_id": "j", "options": {"verify": verify}})
    task = Task(Record("jobs", 0, 0, None, b"{}"), Origin("jobs", 0, 0), job)
    with pytest.raises(EtlError, match="451"):
        relay.run(task, session(server), session(server), "t", relay.Limits(buffer, 0, 0), partials.OrphanIndex())
    assert server.files == FILES


def test_a_copy_whose_probe_failed_is_not_taken_for_another_place(patient, session, buffer) -> None:
    """Before a source is deleted an empty file shows whether it is the copy itself: that file must have been stored."""

    def stor(its: FakeSession, argument: str) -> str:
        its.stor(argument)
        its.server.files.pop(argument, None)
        return "451 Quota."

    server = patient()
    server.answers["STOR"] = stor
    job = {"source": {"hostname": "A", "path": "/a"}, "destination": {"hostname": "B", "path": "/a"}}
    options = {"source_action": "delete", "overwrite": "skip"}
    job = FileTransferJob.from_dict({**job, "job_id": "j", "options": options})
    task = Task(Record("jobs", 0, 0, None, b"{}"), Origin("jobs", 0, 0), job)
    with pytest.raises(EtlError, match="451"):
        relay.run(task, session(server), session(server), "t", relay.Limits(buffer, 0, 0), partials.OrphanIndex())


def test_a_server_that_answered_once_is_not_blamed_for_a_silence(patient, session, buffer) -> None:
    """Any server may fall silent."""
    server = patient()
    ftp = session(server, SHORT)
    assert confirmed(ftp, "/a", buffer).result()
    promise = confirmed(ftp, "/a", buffer)
    server.answers["SIZE"] = lambda its, argument: None
    with pytest.raises(EtlError):
        promise.result()
    assert session(server).link.control.pipelining.may_overtake
