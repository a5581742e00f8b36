"""Every protocol as source and destination of every other one, with every `overwrite` and `source_action`."""

from __future__ import annotations

import itertools
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from contract_parts import LONG, POOR, POOR_STORE, Rich, ftps_config, s3_config, sftp_config

import stack
from etl.config import ServerConfig
from etl.errors import AlreadyExists
from etl.models.message import Endpoint, FileTransferJob, TransferOptions
from etl.models.task import Origin, Record, Task
from etl.transfer import FTPSTransfer, FTPTransfer, LocalTransfer, S3Transfer, SFTPTransfer, relay
from etl.transfer.base import Session
from etl.transfer.partials import OrphanIndex
from etl.transfer.s3 import known as s3_known
from etl.transfer.staged import Staged
from servers.certificates import Authority
from servers.s3 import FakeStore
from servers.sftp import SFTPServer

pytestmark = pytest.mark.contract

KINDS = ["local", "vsftpd", "vsftpd_tls", "sshd", "asyncssh-poor", "s3", "s3-poor", "own"]
PAIRS = [
    pair
    for pair in itertools.product(KINDS, KINDS)
    if {"vsftpd_tls", "sshd", "asyncssh-poor", "s3", "s3-poor"} & set(pair)
]
OVERWRITES = ["replace", "fail", "skip", "newer"]
ACTIONS: list[Any] = ["keep", "delete", {"move": "/done/moved"}]
OLD, NEW = 1_500_000_000, 1_600_000_000


@dataclass
class Side:
    """One side of a pair: its session, and where its `/` is."""

    session: Session
    root: Path


@pytest.fixture
def open_side(
    tmp_path: Path, vsftpd: stack.Vsftpd, vsftpd_tls: stack.Vsftpd, authority: Authority, sshd: stack.Sshd
) -> Iterator[Callable[[str, str], Side]]:
    """Open a session of a kind under a name."""
    sides: list[Side] = []
    servers: list[SFTPServer | FakeStore] = []

    def start(kind: str, name: str) -> Side:
        roots = {"vsftpd": vsftpd.root, "vsftpd_tls": vsftpd_tls.root}
        root = roots.get(kind, tmp_path) / f"{name}-{uuid.uuid4().hex[:8]}"
        root.mkdir()
        session: Session
        if kind == "vsftpd":
            login = (vsftpd.host, vsftpd.port, vsftpd.username, vsftpd.password)
            session = FTPTransfer(ServerConfig(name, "ftp", *login, base_path=f"/{root.name}"), LONG)
        elif kind == "vsftpd_tls":
            config = ftps_config(vsftpd_tls, authority, base_path=f"/{root.name}")
            session = FTPSTransfer(replace(config, hostname=name), LONG)
        elif kind == "sshd":
            session = SFTPTransfer(replace(sftp_config(sshd, base_path=str(root)), hostname=name), LONG)
        elif kind == "asyncssh-poor":
            servers.append(server := SFTPServer(root, **POOR))
            session = SFTPTransfer(replace(sftp_config(server, password=server.password), hostname=name), LONG)
        elif kind.startswith("s3"):
            servers.append(store := FakeStore(root, **(POOR_STORE if kind == "s3-poor" else {})))
            session = S3Transfer(s3_config(store, name), LONG)
        elif kind == "own":
            session = Staged(Rich(ServerConfig(name, "own", base_path=str(root)), LONG), spool_limit_bytes=1 << 30)
        else:
            session = LocalTransfer(ServerConfig(name, "local", base_path=str(root)), LONG)
        session.connect()
        sides.append(Side(session, root))
        return sides[-1]

    yield start
    for side in sides:
        side.session.disconnect()
    s3_known.forget()
    for server in servers:
        server.close()


@pytest.mark.parametrize(("source", "destination"), PAIRS, ids=str)
def test_any_to_any(open_side: Callable[[str, str], Side], source: str, destination: str) -> None:
    """The right file is at the destination, the source is where its action puts it, and nothing else is left."""
    ours, theirs = open_side(source, "SRC"), open_side(destination, "DST")
    buffer = memoryview(bytearray(1 << 20))
    orphans = OrphanIndex()
    for number, (overwrite, action) in enumerate(itertools.product(OVERWRITES, ACTIONS)):
        for is_there in (False, True):
            content, old = os.urandom(150_000 + number), b"old"
            (ours.root / "in").mkdir(exist_ok=True)
            (ours.root / "in/x").write_bytes(content)
            os.utime(ours.root / "in/x", (NEW, NEW))
            if is_there:
                (theirs.root / "out").mkdir(exist_ok=True)
                (theirs.root / "out/x").write_bytes(old)
                os.utime(theirs.root / "out/x", (OLD, OLD))
            options = TransferOptions(overwrite=overwrite, source_action=action)
            job = FileTransferJob(
                source=Endpoint(hostname="SRC", path="/in/x"),
                destination=Endpoint(hostname="DST", path="/out/x"),
                options=options,
            )
            record = Record("jobs", 0, number, None, b"")
            task = Task(record, Origin("jobs", 0, 2 * number + is_there), job)
            task.orphan_scan_since = time.monotonic()
            limits = relay.Limits(buffer, 1 << 20, 1 << 30)
            is_kept = is_there and overwrite in {"fail", "skip"}
            if is_there and overwrite == "fail":
                with pytest.raises(AlreadyExists):
                    relay.run(task, ours.session, theirs.session, "cafe", limits, orphans)
            else:
                receipt = relay.run(task, ours.session, theirs.session, "cafe", limits, orphans)
                assert receipt.skipped == is_kept
                if not receipt.skipped:
                    relay.finish(task, ours.session, theirs.session, receipt.facts)
            assert (theirs.root / "out/x").read_bytes() == (old if is_kept else content)
            left = {str(path.relative_to(ours.root)) for path in ours.root.rglob("*") if path.is_file()}
            place = "done/moved" if isinstance(action, dict) else "in/x"
            assert left == ({"in/x"} if is_kept else set() if action == "delete" else {place})
            assert {path.name for path in theirs.root.rglob("*") if path.is_file()} == {"x"}
            for side in (ours, theirs):
                for path in side.root.rglob("*"):
                    if path.is_file():
                        path.unlink()
