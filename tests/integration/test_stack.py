"""The servers that other tests rely on do what those tests assume of them."""

from __future__ import annotations

import contextlib
import ftplib
import io
import socket
from collections.abc import Callable

import pytest

import stack

pytestmark = pytest.mark.integration


def login(server: stack.Ftpd | stack.Vsftpd) -> ftplib.FTP:
    session = ftplib.FTP(encoding="utf-8", timeout=10)
    try:
        session.connect(server.host, server.port)
        session.login(server.username, server.password)
    except BaseException:
        session.close()
        raise
    return session


def test_the_broker_keeps_its_ports_and_its_topics_over_a_kill(
    new_broker: Callable[..., stack.Broker],
) -> None:
    """A broker that was killed comes back under the same address with the same data."""
    broker = new_broker(**{"message.max.bytes": "2000000"})
    broker.command("kafka-topics.sh", "--create", "--topic", "kept", "--partitions", "3")
    address = broker.bootstrap_servers
    broker.kill()
    assert not stack.answers(broker.port)
    broker.start()
    assert broker.bootstrap_servers == address
    described = broker.command("kafka-topics.sh", "--describe", "--topic", "kept")
    assert "PartitionCount: 3" in described
    broker.stop()


def test_a_frozen_broker_accepts_nothing_until_it_is_thawed(broker: stack.Broker) -> None:
    """Freezing stops the whole broker: a request sent meanwhile is answered after the thaw."""
    with socket.create_connection(("127.0.0.1", broker.port), 5) as client:
        client.settimeout(0.3)
        broker.freeze()
        # ApiVersions, version 0, correlation id 7, no client id
        client.sendall(bytes.fromhex("0000000a") + bytes.fromhex("0012 0000 00000007 ffff"))
        with pytest.raises(TimeoutError):
            client.recv(1)
        broker.thaw()
        client.settimeout(10)
        assert client.recv(8)[4:8] == bytes.fromhex("00000007")


def test_no_topic_is_made_by_a_typing_error(broker: stack.Broker, topic: str) -> None:
    """Asking for a topic that does not exist is an error and creates nothing."""
    with pytest.raises(RuntimeError, match="does not exist"):
        broker.command("kafka-topics.sh", "--describe", "--topic", topic)


@pytest.mark.parametrize("kind", ["vsftpd", "pyftpdlib"])
def test_an_ftp_server_takes_a_login_and_files(
    kind: str, vsftpd: stack.Vsftpd, make_ftpd: Callable[..., stack.Ftpd]
) -> None:
    """Upload, rename over an existing file, time stamp and delete all work, and the test sees the file."""
    server = vsftpd if kind == "vsftpd" else make_ftpd()
    session = login(server)
    session.mkd(kind)
    session.storbinary(f"STOR {kind}/.new", io.BytesIO(b"new content"))
    session.storbinary(f"STOR {kind}/한글 a", io.BytesIO(b"old"))
    session.rename(f"{kind}/.new", f"{kind}/한글 a")
    assert (server.root / kind / "한글 a").read_bytes() == b"new content"
    set_time = "MDTM" if kind == "vsftpd" else "MFMT"
    assert session.sendcmd(f"{set_time} 20200102030405 {kind}/한글 a").startswith("213")
    assert session.sendcmd(f"MDTM {kind}/한글 a") == "213 20200102030405"
    session.delete(f"{kind}/한글 a")
    session.rmd(kind)
    session.quit()


def test_ftp_servers_refuse_a_wrong_password_and_too_many_sessions(
    make_vsftpd: Callable[..., stack.Vsftpd], make_ftpd: Callable[..., stack.Ftpd]
) -> None:
    """What a busy server says is there to be tested against."""
    for server in (make_vsftpd(max_clients="1"), make_ftpd(max_connections=1)):
        session = login(server)
        with pytest.raises(ftplib.error_temp, match="421"):
            login(server).close()
        session.quit()
        if server.username != "anonymous":
            stack.wait_until(lambda server=server: _refuses_password(server), 5, "wrong password refused")


def _refuses_password(server: stack.Ftpd | stack.Vsftpd) -> bool:
    with contextlib.closing(ftplib.FTP(timeout=10)) as session:
        try:
            session.connect(server.host, server.port)
            session.login(server.username, "wrong")
        except ftplib.error_temp:
            return False  # the session before has not left yet
        except ftplib.error_perm as refusal:
            return str(refusal).startswith("530")
    raise AssertionError("a wrong password was accepted")


def test_a_shared_server_may_be_restarted_by_a_test(vsftpd: stack.Vsftpd) -> None:
    """The guard against leftovers knows the servers of the whole session, and leaves them alone."""
    before = vsftpd.pid
    vsftpd.kill()
    vsftpd.start()
    assert vsftpd.pid != before


def test_a_killed_server_takes_its_sessions_along(vsftpd: stack.Vsftpd) -> None:
    """A test that takes a server away must not leave it at work."""
    with contextlib.closing(login(vsftpd)) as session:
        vsftpd.kill()
        with pytest.raises((EOFError, OSError)):
            session.pwd()
    vsftpd.start()


def test_a_restarted_server_is_there_for_the_next_test(vsftpd: stack.Vsftpd) -> None:
    """Continues the test before."""
    login(vsftpd).quit()
