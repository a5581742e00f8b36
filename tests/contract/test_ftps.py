"""TLS: who is trusted, what is refused, what is never said in clear, and how connections end."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from contract_parts import LONG, PATIENT, Bytes, a_task, content_of, ftps_config, moved

import stack
from etl.config import ServerConfig, TransferSettings
from etl.errors import (
    AuthenticationFailed,
    CertificateRefused,
    ConnectionLost,
    EncryptionRefused,
    EtlError,
    IOFailure,
    ServerUnavailable,
    SessionFault,
    SettingsError,
    SizeMismatch,
    TransferTimeout,
)
from etl.transfer import FTPSTransfer
from etl.transfer.ftp import known, pipelining
from servers.certificates import Authority, Certificate
from servers.fake_tls import FakeTLS, Polite, Rude, TLSSession
from servers.zoo import place
from servers.zoo.encrypted import ProFTPDTLS

pytestmark = pytest.mark.contract

VERSIONS = ["1.2", "1.3"]
CONTENT = bytes(range(256)) * 400


@pytest.fixture(scope="session")
def certificate(authority: Authority) -> Certificate:
    """A good one of this machine."""
    return authority.sign("good", "127.0.0.1", "localhost")


@pytest.fixture
def serve(certificate: Certificate) -> Iterator[Callable[..., FakeTLS]]:
    """Start fake servers; they are closed after the test, after its sessions."""
    servers: list[FakeTLS] = []

    def start(of: Certificate = certificate, **behaviour: Any) -> FakeTLS:
        servers.append(FakeTLS(of, **behaviour))
        return servers[-1]

    yield start
    known.forget()
    for server in servers:
        server.close()


@pytest.fixture
def session(authority: Authority, serve: object) -> Iterator[Callable[..., FTPSTransfer]]:
    """Open sessions; they are closed after the test."""
    sessions: list[FTPSTransfer] = []

    def open_one(server: Any, limits: TransferSettings = LONG, *, connect: bool = True, **options: str) -> FTPSTransfer:
        config = ftps_config(server, authority)
        given = {**config.options, **options}
        config = replace(config, options={name: value for name, value in given.items() if value})
        sessions.append(FTPSTransfer(config, limits))
        if connect:
            sessions[-1].connect()
        return sessions[-1]

    yield open_one
    for one in sessions:
        one.disconnect()


def put(session: FTPSTransfer, path: str, content: bytes, buffer: memoryview) -> int | None:
    """Write a file; return its size as the server tells it."""
    stored = session.write(path, Bytes(content), buffer)
    stored.require_stored()
    return stored.size_bytes


class Unready(TLSSession):
    """Agrees to TLS before it is ready: what comes at once is taken for a command, and answered in clear."""

    def auth(self, _: str) -> None:
        """Answer, and look."""
        self.sock.sendall(b"234 Go on.\r\n")
        if select.select([self.sock], [], [], 0.05)[0]:
            self.reply("500 What?")
            self.drop()
        else:
            self.encrypt()


def test_a_server_that_is_not_ready_when_it_agrees_is_given_a_moment(
    serve, session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is met once more, and by all sessions a little later from then on: no outage, nothing in clear."""
    monkeypatch.setattr(FakeTLS, "session_type", Unready)
    server = serve(files={"/a": b"1"})
    assert session(server).look("/a").size_bytes == 1
    assert server.sessions == 2
    assert session(server).look("/a").size_bytes == 1
    assert server.sessions == 3
    assert not any("PASS" in line for line in server.commands[: server.commands.index("AUTH TLS", 1)])


# --- whom to trust --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("expired", "has expired"),
        ("other name", "another host's"),
        ("other authority", "signed by nobody who is trusted"),
        ("self-signed", "signed by nobody who is trusted"),
    ],
)
def test_a_certificate_that_is_not_trusted_is_named_with_its_fingerprint(
    serve, session, authority: Authority, tmp_path: Path, version: str, fault: str, said: str
) -> None:
    """No password is sent; with the fingerprint that was told the server is trusted, and no other one."""
    if fault == "expired":
        shown = authority.sign("expired", "127.0.0.1", ends=timedelta(days=-1))
    elif fault == "other name":
        shown = authority.sign("elsewhere", "ftp.example.com", "10.1.2.3")
    elif fault == "other authority":
        shown = Authority(tmp_path, "Other CA").sign("theirs", "127.0.0.1")
    else:
        shown = authority.sign("own", "127.0.0.1", self_signed=True)
    server = serve(shown, version=version, files={"/a": CONTENT})
    with pytest.raises(CertificateRefused, match=said) as refused:
        session(server)
    assert shown.fingerprint in str(refused.value)
    assert "FILES_TLS_FINGERPRINT" in str(refused.value)
    assert not [line for line in server.commands if line.startswith(("USER", "PASS"))]
    pinned = session(server, TLS_FINGERPRINT=shown.fingerprint, TLS_CA_FILE="")
    assert content_of(pinned, "/a", memoryview(bytearray(5000))) == CONTENT
    lower = session(server, TLS_FINGERPRINT=f"{'AB' * 32} {shown.fingerprint.replace(':', '').lower()}", TLS_CA_FILE="")
    assert lower.traits()["fingerprint"] == shown.fingerprint


def test_another_certificate_than_the_pinned_one_is_refused(serve, session, certificate: Certificate) -> None:
    """Even one that an authority has signed: its fingerprint is told."""
    server = serve()
    with pytest.raises(CertificateRefused, match=certificate.fingerprint):
        session(server, TLS_FINGERPRINT="AB" * 32, TLS_CA_FILE="")
    assert not [line for line in server.commands if line.startswith(("USER", "PASS"))]


def test_the_name_to_expect_may_be_another_one(serve, session, authority: Authority) -> None:
    """TLS_NAME is what the certificate is held to, in place of HOST."""
    server = serve(authority.sign("elsewhere", "ftp.example.com"), files={"/a": b"a"})
    named = session(server, TLS_NAME="ftp.example.com")
    assert content_of(named, "/a", memoryview(bytearray(10))) == b"a"


def test_checking_can_be_turned_off(serve, session, tmp_path: Path) -> None:
    """TLS_VERIFY=false takes any certificate, and `servers check` says so."""
    server = serve(Authority(tmp_path, "Other CA").sign("theirs", "ftp.example.com"), files={"/a": b"a"})
    unchecked = session(server, TLS_VERIFY="false", TLS_CA_FILE="")
    assert content_of(unchecked, "/a", memoryview(bytearray(10))) == b"a"
    assert unchecked.traits()["certificate"] == "not checked"


def test_what_was_agreed_on_is_told(serve, session, certificate: Certificate) -> None:
    """Version, cipher, whose certificate, by whom, until when, its fingerprint."""
    told = session(serve(version="1.3")).traits()
    assert told["TLS"].startswith("TLSv1.3, TLS_")
    assert told["certificate"].startswith("good, by Test CA, valid until ")
    assert told["fingerprint"] == certificate.fingerprint


@pytest.mark.parametrize("version", VERSIONS)
def test_a_data_connection_with_another_certificate_is_refused(
    serve, session, authority: Authority, buffer: memoryview, version: str
) -> None:
    """Though it is as good as the first one: somebody may have taken the connection."""
    server = serve(version=version, files={"/a": CONTENT})
    server.tls.data = server.tls.context(authority.sign("second", "127.0.0.1"))
    opened = session(server)
    with pytest.raises(CertificateRefused, match="another certificate than its control connection"):
        content_of(opened, "/a", buffer)
    with pytest.raises(CertificateRefused, match="another certificate than its control connection"):
        put(session(server), "/b", CONTENT, buffer)
    assert not server.files.get("/b")


def test_a_data_connection_for_another_name_is_refused(
    serve, session, authority: Authority, buffer: memoryview
) -> None:
    """Data connections are checked by the name of the control connection, too."""
    server = serve(files={"/a": CONTENT})
    server.tls.data = server.tls.context(authority.sign("elsewhere", "ftp.example.com"))
    with pytest.raises(CertificateRefused):
        content_of(session(server), "/a", buffer)


# --- never in clear -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reply", ["500 What?", "502 No TLS here.", "530 Please login.", "200 Fine.", "334 More."])
def test_without_tls_nobody_logs_in(serve, session, reply: str) -> None:
    """A refused AUTH is an error that says what may be set, and no password follows."""
    server = serve(answers={"AUTH": reply})
    with pytest.raises(EncryptionRefused, match="refuses to encrypt"):
        session(server)
    assert server.commands[:2] in (["AUTH TLS"], ["AUTH TLS", "QUIT"])


def test_a_server_that_has_no_tls_now_is_tried_again(serve, session) -> None:
    """A 4xx to AUTH is no matter of settings."""
    with pytest.raises(ServerUnavailable, match="431 Try later"):
        session(serve(answers={"AUTH": "431 Try later."}))


def test_files_are_not_sent_in_clear_where_they_should_be_encrypted(serve, session) -> None:
    """A refused PROT P ends the login."""
    with pytest.raises(EncryptionRefused, match="PROT P: 536 No"):
        session(serve(answers={"PROT": "536 No."}))


def test_files_in_clear_are_a_setting(serve, session, buffer: memoryview) -> None:
    """TLS_DATA=false says PROT C; the login is encrypted all the same."""
    server = serve(files={"/a": CONTENT})
    opened = session(server, TLS_DATA="false")
    assert content_of(opened, "/a", buffer) == CONTENT
    assert "PROT C" in server.commands
    assert server.tls.resumed == []
    with pytest.raises(EncryptionRefused, match="PROT C: 534"):
        session(serve(answers={"PROT": lambda _, level: "200 Ok." if level == "P" else "534 No."}), TLS_DATA="false")


@pytest.mark.parametrize("behind", [b"331 Go on.\r\n", b"530 No.\r\n", b"230 Wel", b"3"])
def test_what_was_said_in_clear_is_no_answer_to_what_is_encrypted(serve, session, behind: bytes) -> None:
    """Whoever puts replies behind the one to AUTH gets no password."""
    server = serve()
    server.tls.behind_auth = behind
    with pytest.raises((SessionFault, ServerUnavailable, EncryptionRefused)):
        session(server)
    assert not [line for line in server.commands if line.startswith(("USER", "PASS"))]


def test_a_second_greeting_is_no_answer_either(serve, session, buffer: memoryview) -> None:
    """Some servers give two: what was said in clear is dropped, and the password goes to who has the certificate."""
    server = serve(files={"/a": CONTENT}, answers={"PASS": "530 Login incorrect."})
    server.tls.behind_auth = b"230 Welcome.\r\n"
    with pytest.raises(AuthenticationFailed):
        session(server)
    del server.answers["PASS"]
    assert content_of(session(server), "/a", buffer) == CONTENT


def test_the_password_is_told_nowhere(serve, session) -> None:
    """Not on the wire, and not in the error for a refused login."""
    server = serve(answers={"PASS": lambda _, word: f"530 {word} is wrong."})
    with pytest.raises(AuthenticationFailed) as refused:
        session(server)
    assert server.password not in str(refused.value)


# --- two ways to begin ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_tls_may_begin_with_the_first_byte(serve, session, buffer: memoryview, version: str) -> None:
    """TLS=implicit: no AUTH is sent, data connections are encrypted as well."""
    server = serve(version=version, is_implicit=True, files={"/a": CONTENT})
    opened = session(server, TLS="implicit")
    assert content_of(opened, "/a", buffer) == CONTENT
    assert "AUTH TLS" not in server.commands
    assert "PROT P" in server.commands


def test_a_mode_mixed_up_is_named(serve, session) -> None:
    """Either way the error names the other mode."""
    with pytest.raises(EncryptionRefused, match="FILES_TLS=explicit may be right"):
        session(serve(), TLS="implicit")
    brisk = replace(LONG, login_timeout=0.5)
    with pytest.raises(ServerUnavailable, match="set FILES_TLS=implicit"):
        session(serve(is_implicit=True), brisk)


@pytest.mark.parametrize("mode", ["explicit", "implicit"])
def test_a_mode_mixed_up_is_named_with_vsftpd(make_vsftpd, session, certificate: Certificate, mode: str) -> None:
    """The same with a real server."""
    settings = stack.STRICT_TLS | {"rsa_cert_file": str(certificate.pem)}
    server = make_vsftpd(**settings, implicit_ssl="NO" if mode == "implicit" else "YES")
    other = {"explicit": "implicit", "implicit": "explicit"}[mode]
    with pytest.raises((EncryptionRefused, ServerUnavailable), match=f"FILES_TLS={other}"):
        session(server, replace(LONG, login_timeout=1.0), TLS=mode)
    right = session(server, TLS=other)
    assert put(right, "/a", CONTENT, memoryview(bytearray(1000))) == len(CONTENT)


# --- versions, ciphers, certificates of ours ------------------------------------------------------------------


def test_no_common_version_is_named(serve, session) -> None:
    """In both directions; an old server is reached once it is allowed."""
    with pytest.raises(EncryptionRefused, match="TLS_MIN"):
        session(serve(version="1.3"), TLS_MAX="1.2")
    old = serve(version="1.1", files={"/a": b"a"})
    with pytest.raises(EncryptionRefused, match=r"TLS_MIN=1\.0"):
        session(old)
    opened = session(old, TLS_MIN="1.0")
    assert opened.traits()["TLS"].startswith("TLSv1.1,")
    assert content_of(opened, "/a", memoryview(bytearray(10))) == b"a"


def test_no_common_cipher_is_named(serve, session) -> None:
    """A handshake that the server fails without a reason."""
    server = serve(version="1.2")
    server.tls.control.set_ciphers("ECDHE-RSA-AES256-GCM-SHA384")
    with pytest.raises(EncryptionRefused, match="TLS_CIPHERS"):
        session(server, TLS_CIPHERS="ECDHE-RSA-AES128-GCM-SHA256")
    assert session(server, TLS_CIPHERS="HIGH").traits()["TLS"] == "TLSv1.2, ECDHE-RSA-AES256-GCM-SHA384"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_server_may_ask_for_our_certificate(
    serve, session, authority: Authority, buffer: memoryview, tmp_path: Path, version: str
) -> None:
    """Without one, or with one it does not know, the error names the setting; with TLS 1.3 that comes late."""
    server = serve(version=version, files={"/a": CONTENT})
    for context in (server.tls.control, server.tls.data):
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(authority.ca)
    with pytest.raises(EncryptionRefused, match=r"asks for a certificate.*TLS_CERT_FILE"):
        session(server)
    stranger = Authority(tmp_path, "Other CA").sign("stranger")
    with pytest.raises(EncryptionRefused, match="refuses our certificate, TLS_CERT_FILE"):
        session(server, TLS_CERT_FILE=str(stranger.pem))
    opened = session(server, TLS_CERT_FILE=str(authority.sign("ours").pem))
    assert content_of(opened, "/a", buffer) == CONTENT


def test_a_certificate_that_is_renewed_is_read_again(serve, session, authority: Authority, tmp_path: Path) -> None:
    """A session that is opened after the files changed uses the new ones; nobody restarts."""
    server = serve(files={"/a": b"a"})
    server.tls.control.verify_mode = ssl.CERT_REQUIRED
    server.tls.control.load_verify_locations(authority.ca)
    ours = tmp_path / "ours.pem"
    ours.write_bytes(Authority(tmp_path, "Other CA").sign("stranger").pem.read_bytes())
    with pytest.raises(EncryptionRefused):
        session(server, TLS_CERT_FILE=str(ours))
    ours.write_bytes(authority.sign("ours").pem.read_bytes())
    assert session(server, TLS_CERT_FILE=str(ours)).look("/a") is not None


# --- one TLS session for all connections of a login -----------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_every_data_connection_takes_up_the_session(serve, session, buffer: memoryview, version: str) -> None:
    """In both directions, and in listings; each login has a session of its own."""
    server = serve(version=version, files={"/a": CONTENT})
    for _ in range(2):
        opened = session(server)
        for number in range(3):
            assert content_of(opened, "/a", buffer) == CONTENT
            assert put(opened, f"/{number}", CONTENT, buffer) == len(CONTENT)
            assert "a" in opened.names("/")
    assert server.tls.resumed == [True] * 18


def refuse_new_sessions(session: TLSSession, argument: str) -> str:
    """Behave as servers do that demand it: they say so once the handshake is done."""
    session.reply("150 Here it comes.")
    with session.data():
        pass
    if session.tls.resumed[-1]:
        return "226 Done."
    return "522 SSL connection failed; session reuse required: see require_ssl_reuse option in vsftpd.conf man page"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("verb", ["RETR", "STOR"])
def test_a_server_that_demands_a_session_it_does_not_accept_is_named(
    serve, session, buffer: memoryview, version: str, verb: str
) -> None:
    """One login more may help; then it is a matter of settings, and no attempt of a job."""
    server = serve(version=version, files={"/a": CONTENT}, answers={verb: refuse_new_sessions})
    server.tls.data = server.tls.context(server.tls.certificate)  # knows no session of the other one

    def move() -> None:
        opened = session(server)
        if verb == "RETR":
            content_of(opened, "/a", buffer)
        else:
            put(opened, "/b", CONTENT, buffer)

    with pytest.raises(SessionFault, match="522"):
        move()
    with pytest.raises(EncryptionRefused, match=r"take up the TLS session.*FILES_TLS_MAX=1\.2"):
        move()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("refusal", ["425 Unable to build data connection: Operation not permitted", ""])
@pytest.mark.parametrize("begins", ["150 Yes.", ""])
def test_a_session_that_has_aged_costs_no_attempt(
    serve, session, buffer: memoryview, version: str, refusal: str, begins: str
) -> None:
    """Refused because it is not taken up any more, the session is of no use; where that is no matter all goes on."""
    server = serve(version=version, files={"/a": CONTENT})
    opened = session(server)
    assert content_of(opened, "/a", buffer) == CONTENT
    server.tls.data = server.tls.context(server.tls.certificate)
    if refusal:

        def refuse(session: TLSSession, _: str) -> str:
            if begins:
                session.reply(begins)
            session.data().close()
            return refusal

        server.answers["RETR"] = refuse
        with pytest.raises(SessionFault, match="not accepted any more: 425"):
            content_of(opened, "/a", buffer)
        del server.answers["RETR"]
        opened = session(server)
    assert content_of(opened, "/a", buffer) == CONTENT
    assert put(opened, "/b", CONTENT, buffer) == len(CONTENT)


def test_a_session_lives_as_long_as_its_ticket(serve, session) -> None:
    """Jobs begin in the first four fifths of it; without a ticket of TLS 1.3 there is nothing to be outlived."""
    hours = session(serve(version="1.2")).lifetime_seconds() / 3600
    assert 0.7 * 2 < hours < 0.8 * 2 + 0.1  # two hours, by default of OpenSSL
    assert session(serve(version="1.2"), TLS_DATA="false").lifetime_seconds() == float("inf")
    bare = serve(version="1.3")
    bare.tls.control.num_tickets = 0
    assert session(bare).lifetime_seconds() == float("inf")


@pytest.fixture
def forgetful() -> Iterator[ProFTPDTLS]:
    """A ProFTPD whose sessions of TLS live for 5 seconds, not for half an hour."""
    with place() as folder:
        server = ProFTPDTLS(folder, "TLSSessionCache internal: 5", "TLSSessionTickets on")
        server.start()
        yield server
        server.kill()
        known.forget()


def test_a_session_ends_before_proftpd_forgets_it(forgetful: ProFTPDTLS, buffer: memoryview) -> None:
    """The pool is told how long it lives; whoever goes on all the same loses a session, and no attempt."""
    (forgetful.root / "a").write_bytes(CONTENT)
    options = {"TLS_CA_FILE": forgetful.ours["TLS_CA_FILE"]}
    config = ServerConfig("FILES", "ftps", forgetful.host, forgetful.port, "zoo", forgetful.password, options=options)
    with FTPSTransfer(config, LONG) as opened:
        assert 0 < opened.lifetime_seconds() <= 4
        assert content_of(opened, "/a", buffer) == CONTENT
        stack.wait_until(lambda: not opened.lifetime_seconds(), 10, "its life is over")
        assert content_of(opened, "/a", buffer) == CONTENT  # a fifth of it was left for jobs that run
        born = time.monotonic()
        stack.wait_until(lambda: time.monotonic() - born > 2, 10, "the server has forgotten it")
        with pytest.raises(SessionFault, match="has aged"):
            content_of(opened, "/a", buffer)
    with FTPSTransfer(config, LONG) as opened:
        assert content_of(opened, "/a", buffer) == CONTENT


def test_a_request_to_renegotiate_costs_no_short_download(buffer: memoryview) -> None:
    """ProFTPD asks for it in the midst of a file; nobody renegotiates, and the files arrive in the same session."""
    content = CONTENT * 10
    with place() as folder:
        server = ProFTPDTLS(folder, "TLSRenegotiate data 64 required on")
        server.start()
        try:
            (server.root / "a").write_bytes(content)
            options = {"TLS_CA_FILE": server.ours["TLS_CA_FILE"]}
            config = ServerConfig("FILES", "ftps", server.host, server.port, "zoo", server.password, options=options)
            with FTPSTransfer(config, LONG) as opened:
                assert [content_of(opened, "/a", buffer) == content for _ in range(2)] == [True, True]
            assert "requesting TLS renegotiation on data channel" in (folder / "tls.log").read_text()
        finally:
            server.kill()
            known.forget()


# --- ends -----------------------------------------------------------------------------------------------------


def cut_off(length: int) -> Callable[[TLSSession, str], str]:
    """Send so many bytes, end the connection without a word, and say all the same that all is well."""

    def answer(session: TLSSession, argument: str) -> str:
        content = session.server.files.get(argument, b"a\r\nb\r\n")
        session.reply("150 Here it comes.")
        session.tls.data.sslsocket_class = Rude
        with session.data() as sock:
            sock.sendall(content[:length])
        return "226 Done."

    return answer


def test_a_file_that_is_cut_off_is_no_file(serve, session, buffer: memoryview) -> None:
    """Anybody on the way can end a connection: that alone proves nothing. The size does, as it came encrypted."""
    server, copy = serve(files={"/a": CONTENT}, answers={"RETR": cut_off(1000)}), serve()
    with pytest.raises(SizeMismatch):
        moved(a_task(), session(server), session(copy), buffer)
    assert copy.files == {}
    whole = serve(files={"/a": CONTENT}, answers={"RETR": cut_off(len(CONTENT))})
    assert content_of(session(whole), "/a", buffer) == CONTENT


def test_a_file_of_unknown_size_must_be_ended(serve, session, buffer: memoryview) -> None:
    """Without SIZE nothing else tells whether it is whole."""
    server = serve(files={"/a": CONTENT}, answers={"SIZE": "500 What?", "RETR": cut_off(1000)})
    with pytest.raises(ConnectionLost, match="TLS was not ended"):
        content_of(session(server), "/a", buffer)
    del server.answers["RETR"]
    server.tls.data.sslsocket_class = Polite
    assert content_of(session(server), "/a", buffer) == CONTENT


def test_a_listing_that_is_cut_off_is_none(serve, session) -> None:
    """What it would not show is not known to be missing."""
    server = serve(files={"/a": CONTENT}, answers={"NLST": cut_off(3)})
    with pytest.raises(IOFailure, match="TLS was not ended"):
        session(server).names("/")


def test_nothing_at_all_is_no_empty_file_of_unknown_size(serve, session, buffer: memoryview) -> None:
    """A handshake, the bare end, and a word that all is well: whoever stands between could have made that end."""
    server = serve(files={"/a": CONTENT}, answers={"SIZE": "500 What?", "RETR": cut_off(0)})
    server.tls.data = server.tls.context(server.tls.certificate)  # no session is taken up: its first word is waited for
    with pytest.raises(ConnectionLost, match="TLS was not ended"):
        content_of(session(server), "/a", buffer)


def test_a_server_that_crashes_behind_downloads_is_told_of(serve, session, buffer: memoryview) -> None:
    """ProFTPD does with TLS 1.3: the second time in a row the log says what to set."""

    def die(session: TLSSession, argument: str) -> None:
        session.reply("150 Here it comes.")
        session.send_data(CONTENT)
        session.drop()

    server = serve(version="1.3", files={"/a": CONTENT}, answers={"RETR": die})
    with structlog.testing.capture_logs() as lines:
        for _ in range(2):
            opened = session(server)
            with pytest.raises(ConnectionLost):
                content_of(opened, "/a", buffer)
            opened.disconnect()
    assert [line["hint"] for line in lines if "behind downloads" in line["event"]] == ["FILES_TLS_MAX=1.2"]


@pytest.mark.parametrize("is_reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("verb", ["RETR", "NLST"])
def test_an_empty_file_may_come_without_a_handshake(
    serve, session, buffer: memoryview, verb: str, is_reset: bool
) -> None:
    """Some servers begin none where there is nothing to send: their word says so, and that came encrypted."""

    def answer(session: TLSSession, _: str) -> str:
        session.reply("150 Here it comes.")
        with session.plain_data() as sock:
            sock.recv(65536, socket.MSG_PEEK if is_reset else 0)  # a close with bytes unread is a reset
        return "226 Done."

    server = serve(files={"/a": b""}, answers={verb: answer})
    opened = session(server)
    assert content_of(opened, "/a", buffer) == b""
    assert opened.names("/") == ([] if verb == "NLST" else ["a"])
    assert put(opened, "/b", CONTENT, buffer) == len(CONTENT)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("size_bytes", [0, 1, 100_000, 3_000_000])
def test_an_upload_is_ended_by_a_word_and_nobody_waits_for_its_answer(
    serve, session, buffer: memoryview, version: str, size_bytes: int
) -> None:
    """Servers that demand the word have it; those that never give theirs keep nobody waiting."""
    server = serve(version=version)
    server.tls.data.sslsocket_class = Rude
    content = bytes(size_bytes)
    opened = session(server)
    began = time.monotonic()
    assert put(opened, "/a", content, buffer) == size_bytes
    assert time.monotonic() - began < LONG.stall_timeout
    assert server.files["/a"] == content
    assert server.tls.ends == ["said"]
    assert content_of(opened, "/a", buffer) == content


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("welcome", "is_early"), [(PATIENT, True), ("220 Fake.", False)])
def test_a_server_that_waits_for_our_end_of_a_download_has_it_before_its_own(
    serve, session, buffer: memoryview, monkeypatch: pytest.MonkeyPatch, *, version: str, welcome: str, is_early: bool
) -> None:
    """Vsftpd would wait for a round trip else; others may take it for a download that is broken off."""
    monkeypatch.setattr(pipelining, "FAR_SECONDS", 0.0)
    said: list[bool] = []

    def answer(session: TLSSession, argument: str) -> str:
        session.reply("150 Here it comes.")
        with session.data() as sock:
            sock.settimeout(10 if is_early else 0.2)
            try:
                said.append(not sock.recv(1))
            except TimeoutError:
                said.append(False)
            sock.settimeout(10)
            sock.sendall(session.server.files[argument])
        return "226 Done."

    server = serve(version=version, welcome=welcome, files={"/a": CONTENT}, answers={"RETR": answer})
    server.tls.data.sslsocket_class = Polite
    assert content_of(session(server), "/a", buffer) == CONTENT
    assert said == [is_early]


@pytest.mark.parametrize("size_bytes", [0, 5])
def test_a_data_connection_does_not_end_before_its_upload_begins(
    serve, session, buffer: memoryview, size_bytes: int
) -> None:
    """ftp-srv takes one that has ended by then, without a byte, for none: 425, and no empty file was ever stored."""

    def answer(session: TLSSession, argument: str) -> str:
        with session.data() as sock:
            sock.settimeout(0.3)
            try:
                if not sock.recv(1):
                    return "425 No connection established"
            except TimeoutError:
                assert not size_bytes
            sock.settimeout(10)
            session.reply("150 Go on.")
            while sock.recv(65536):
                pass
        session.server.files[argument] = bytes(size_bytes)
        return "226 Done."

    server = serve(answers={"STOR": answer})
    assert put(session(server), "/a", bytes(size_bytes), buffer) == size_bytes
    assert len([line for line in server.commands if line.startswith("STOR")]) == 1


@pytest.mark.parametrize("when", ["control", "data"])
def test_a_handshake_that_never_comes_has_a_limit(serve, session, buffer: memoryview, when: str) -> None:
    """A server that falls silent in it keeps a lane for a limit, and names the setting."""
    silent = threading.Event()

    def fall_silent(session: TLSSession, _: str) -> None:
        session.reply("234 Go on." if when == "control" else "150 Here it comes.")
        silent.wait(10)

    server = serve(files={"/a": CONTENT}, answers={"AUTH" if when == "control" else "RETR": fall_silent})
    brisk = TransferSettings(connect_timeout=0.4, login_timeout=0.4, reply_timeout=0.4, stall_timeout=0.4)
    began = time.monotonic()
    try:
        if when == "control":
            with pytest.raises(ServerUnavailable, match="no TLS handshake"):
                session(server, brisk)
        else:
            opened = session(server, brisk)
            with pytest.raises((TransferTimeout, ConnectionLost)):
                content_of(opened, "/a", buffer)
    finally:
        silent.set()
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("when", ["control", "data", "bytes"])
def test_a_session_can_be_aborted_at_any_moment(serve, session, buffer: memoryview, when: str) -> None:
    """Also in the middle of a handshake: whoever waits is told at once."""
    reached, go_on = threading.Event(), threading.Event()

    def stay(session: TLSSession, _: str) -> None:
        session.reply("234 Go on." if when == "control" else "150 Here it comes.")
        if when == "bytes":
            session.data().sendall(b"some")
        reached.set()
        go_on.wait(10)

    server = serve(files={"/a": CONTENT}, answers={"AUTH" if when == "control" else "RETR": stay})
    opened = session(server, connect=False)

    def cut() -> None:
        reached.wait(10)
        time.sleep(0.05)
        opened.abort()

    thread = threading.Thread(target=cut)
    thread.start()
    began = time.monotonic()
    with pytest.raises(EtlError, match="aborted"):
        opened.connect()
        content_of(opened, "/a", buffer)
    assert time.monotonic() - began < 3
    go_on.set()
    thread.join()


# --- settings -------------------------------------------------------------------------------------------------


def test_settings_that_are_wrong_are_named(serve, session) -> None:
    """Also to those who open a session without the loader."""
    with pytest.raises(SettingsError, match="FILES_TLS_MIN"), contextlib.closing(serve()) as server:
        session(server, TLS_MIN="2.0")
