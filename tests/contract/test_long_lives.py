"""Sessions that live for hours, in seconds: keys are made anew, tickets age, and no job loses an attempt by it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from contract_parts import sftp_config
from rows import ONE_MIB, Row

import stack
from etl.config import ServerConfig
from etl.transfer.ftp import known
from servers.zoo import place
from servers.zoo.encrypted import ProFTPDTLS

pytestmark = pytest.mark.contract

LIFE = 12.0  # seconds of a stream of jobs: several times each limit below
PAUSE = 4.0  # without any job, longer than some limits
TICKET_SECONDS = 3  # of ProFTPD; as it comes they are 1800
LARGE_BYTES = 5 * ONE_MIB  # streamed, as others cross whole


def proftpd_config(server: ProFTPDTLS) -> ServerConfig:
    """Return the settings for it."""
    given = {key: value for key, value in server.ours.items() if key != "TYPE"}
    return ServerConfig("FAR", "ftps", server.host, server.port, server.username, server.password, options=given)


def sshd_that_rekeys(make_sshd: Callable[..., stack.Sshd]) -> tuple[ServerConfig, Path, Callable[[], int]]:
    """New keys after each 2 seconds or MiB, demanded by both sides in turn."""
    server = make_sshd(RekeyLimit="1M 2", LogLevel="DEBUG1")
    config = sftp_config(server, base_path=str(server.root), SSH_OPTIONS="RekeyLimit=3M")
    return config, server.root, lambda: server.log.read_text(errors="replace").count("SSH2_MSG_NEWKEYS received")


@pytest.fixture(params=["sshd", "proftpd"])
def forgetful(
    request: pytest.FixtureRequest, make_sshd: Callable[..., stack.Sshd]
) -> Iterator[tuple[ServerConfig, Path, Callable[[], int]]]:
    """Settings of a server whose limits are short, where `/` is, and how often something was made anew there."""
    if request.param == "sshd":
        yield sshd_that_rekeys(make_sshd)
        return
    with place() as folder:
        server = ProFTPDTLS(folder, f"TLSSessionCache internal: {TICKET_SECONDS}", "TLSSessionTickets on")
        server.start()
        log = folder / "tls.log"
        yield proftpd_config(server), server.root, lambda: log.read_text(errors="replace").count("TLS-C requested")
        server.kill()
        known.forget()


def test_no_job_pays_for_what_a_long_life_demands(
    forgetful: tuple[ServerConfig, Path, Callable[[], int]], tmp_path: Path
) -> None:
    """Small files and large ones, without a break and after one, to a server and from it."""
    config, root, made_anew = forgetful
    local = ServerConfig("HERE", "local", base_path=str(tmp_path / "here"))
    for way, source, destination, here, there in (
        ("up", local, config, tmp_path / "here", root),
        ("down", config, local, root, tmp_path / "here"),
    ):
        here.mkdir(exist_ok=True)
        row = Row(replace(source, hostname="A"), replace(destination, hostname="B"), 16 * ONE_MIB, 1)
        try:
            contents = stream(row, here)
            assert row.told.errors == {}, way
            for number, content in contents.items():
                assert (there / "out" / str(number)).read_bytes() == content
        finally:
            row.close()
    assert made_anew() > 2  # a lane of its own for each way


def stream(row: Row, folder: Path) -> dict[int, bytes]:
    """Have jobs done one after the other for a whole life; return the files."""
    contents: dict[int, bytes] = {}
    row.lanes.start()
    began, is_rested = time.monotonic(), False
    while (lived := time.monotonic() - began) < LIFE:
        for _ in range(4):
            number = len(contents)
            contents[number] = os.urandom(LARGE_BYTES if number % 8 == 7 else 50_000 + number)
            (folder / str(number)).write_bytes(contents[number])
            row.offer(number)
        row.wait()
        if lived > LIFE / 3 and not is_rested:
            is_rested = True
            stack.wait_until(lambda: time.monotonic() - began > lived + PAUSE, 2 * PAUSE, "nothing happened for long")
    return contents
