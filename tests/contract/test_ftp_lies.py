"""Servers that say they stored what they did not: shown by what the sockets know, whatever the words are."""

from __future__ import annotations

import select
import socket
import struct
import time
from functools import partial
from typing import Any

import pytest
from contract_parts import LONG, Bytes, a_task, moved

from etl.config import ServerConfig
from etl.errors import ConnectionLost
from etl.transfer import FTPTransfer, LocalTransfer, receipts
from servers.fake import FakeSession

pytestmark = pytest.mark.contract

CONTENT = b"new content"
OLD = b"old content"  # as long


def lie(its: FakeSession, _: str, *, hangs_up: bool = True) -> None:
    """Say 226, close with every byte unread, and hang up."""
    its.reply("150 Go on.")
    sock = its.data()
    select.select([sock], [], [], 5)
    its.reply("226 Done.")
    sock.close()
    if hangs_up:
        its.drop()


def test_a_226_before_the_bytes_were_taken_is_no_upload(fake, session, buffer: memoryview) -> None:
    """The server's system resets a connection that is closed with bytes unread."""
    ftp = session(fake(answers={"STOR": partial(lie, hangs_up=False)}))
    with pytest.raises(ConnectionLost, match="ended the transfer before the file"):
        ftp.write("/.p", Bytes(CONTENT), buffer)


@pytest.mark.parametrize("welcome", ["220 Fake.", "220 (vsFTPd 3.0.3)"], ids=["in order", "overtaken"])
def test_another_file_of_that_size_does_not_prove_it(
    fake, session, buffer: memoryview, tmp_path: Any, welcome: str
) -> None:
    """It is there under the final name, and the next session finds it: the file is sent again, and is there then."""
    (tmp_path / "a").write_bytes(CONTENT)
    source = LocalTransfer(ServerConfig("A", "local", base_path=str(tmp_path)))
    server = fake(files={"/out/b": OLD}, answers={"STOR": lie}, welcome=welcome)
    task = a_task()
    with pytest.raises(ConnectionLost):
        moved(task, source, session(server, publish="direct"), buffer)
    assert task.unpublished is None
    del server.answers["STOR"]
    assert moved(task, source, session(server, publish="direct"), buffer).verified_by == receipts.SIZE
    assert server.files["/out/b"] == CONTENT


def test_a_server_that_resets_what_it_has_read_is_no_liar(fake, session, buffer: memoryview) -> None:
    """Some close no connection in any other way: the size of a file that only we write tells."""

    def reset(its: FakeSession, argument: str) -> str:
        its.reply("150 Go on.")
        sock, received = its.data(), b""
        while piece := sock.recv(65536):
            received += piece
        its.server.files[argument] = received
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        return "226 Done."

    stored = session(fake(answers={"STOR": reset})).write("/.p", Bytes(CONTENT), buffer)
    assert stored.size_bytes == len(CONTENT)


def test_a_server_that_leaves_its_end_open_is_waited_for_twice(fake, session, buffer: memoryview) -> None:
    """An upload is one all the same; and no later one takes longer."""
    kept = []

    def keep(its: FakeSession, argument: str) -> str:
        its.reply("150 Go on.")
        sock, received = its.data(), b""
        kept.append(sock)
        while piece := sock.recv(65536):
            received += piece
        its.server.files[argument] = received
        return "226 Done."

    ftp: FTPTransfer = session(fake(answers={"STOR": keep}), LONG)
    took = []
    for _ in range(4):
        began = time.monotonic()
        assert ftp.write("/.p", Bytes(CONTENT), buffer).size_bytes == len(CONTENT)
        took.append(time.monotonic() - began)
    assert max(took[2:]) < min(took[:2])
