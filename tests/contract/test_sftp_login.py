"""Logging in by SFTP: passwords, keys, certificates, agents, jump hosts; host keys; and what a refusal is called."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from contract_parts import LONG, Bytes, content_of, sftp_config

import stack
from etl.cli.servers import _try
from etl.config import ServerConfig
from etl.errors import (
    AuthenticationFailed,
    ConnectionLost,
    EtlError,
    HostKeyRefused,
    ServerBusy,
    ServerUnavailable,
    TransferTimeout,
)
from etl.sessions.pool import CONNECTS_AT_ONCE
from etl.transfer import SFTPTransfer
from etl.transfer.sftp import command
from servers.sftp import Mute, SFTPServer

pytestmark = pytest.mark.contract

Opener = Callable[..., SFTPTransfer]


@pytest.fixture
def make_tree(tmp_path: Path) -> Iterator[Callable[[], SFTPServer]]:
    """Start asyncssh's servers; they end after the sessions with them."""
    servers: list[SFTPServer] = []

    def start() -> SFTPServer:
        servers.append(SFTPServer(tmp_path))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def open_one(make_tree: object) -> Iterator[Opener]:
    """Open sessions; they are closed after the test."""
    sessions: list[SFTPTransfer] = []

    def open_(config: ServerConfig, limits=LONG) -> SFTPTransfer:
        sessions.append(SFTPTransfer(config, limits))
        sessions[-1].connect()
        return sessions[-1]

    yield open_
    for session in sessions:
        session.disconnect()


@pytest.fixture
def mute() -> Iterator[Callable[..., Mute]]:
    """Start servers that end each connection at once."""
    servers: list[Mute] = []

    def start(text: bytes = b"") -> Mute:
        servers.append(Mute(text))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def works(session: SFTPTransfer, server: stack.Sshd) -> None:
    """Read a file by a session."""
    (server.root / "works").write_bytes(b"content")
    assert content_of(session, f"{server.root}/works", memoryview(bytearray(100))) == b"content"


# --- who we are ---------------------------------------------------------------------------------------------------


def test_a_password_lets_in(open_one: Opener, sshd: stack.Sshd) -> None:
    """By askpass, as there is no terminal."""
    if os.geteuid() != 0:
        pytest.skip("an sshd with passwords takes root")
    works(open_one(sftp_config(sshd, password=sshd.password)), sshd)


def test_a_password_lets_in_where_it_is_asked_for_as_a_question(
    open_one: Opener, make_tree: Callable[[], SFTPServer]
) -> None:
    """Appliances offer keyboard-interactive alone."""
    server = make_tree()
    config = sftp_config(server, password=server.password, SSH_OPTIONS="PreferredAuthentications=keyboard-interactive")
    open_one(config).ping()
    assert server.passwords == [server.password]


@pytest.mark.parametrize("password", ["a b", "$(id)`id`\\n%s'\"", "-n", "한글 pass", "x" * 200])
def test_any_password_arrives_as_it_is(open_one: Opener, make_tree: Callable[[], SFTPServer], password: str) -> None:
    """No shell on the way takes it for something else."""
    server = make_tree()
    server.password = password
    open_one(sftp_config(server, password=password)).ping()
    assert server.passwords == [password]


def test_a_wrong_password_is_tried_once(open_one: Opener, make_tree: Callable[[], SFTPServer]) -> None:
    """Servers count, and lock accounts."""
    server = make_tree()
    with pytest.raises(AuthenticationFailed, match="refused") as caught:
        open_one(sftp_config(server, password="Wrong-1Secret"))
    assert "Wrong-1Secret" not in str(caught.value)
    assert server.passwords.count("Wrong-1Secret") <= 2  # one for each way that the server offers


def test_a_key_with_a_pass_phrase_lets_in(open_one: Opener, make_sshd: Callable[..., stack.Sshd]) -> None:
    """And without the pass phrase, or with a wrong one, the reason is told."""
    server = make_sshd()
    key = server.new_key("locked", "open sesame $x")
    server.authorized_keys.write_text(key.with_suffix(".pub").read_text())
    locked = {"KEY_FILE": str(key)}
    works(open_one(sftp_config(server, **locked, KEY_PASSPHRASE="open sesame $x")), server)
    for passphrase in ({}, {"KEY_PASSPHRASE": "wrong-phrase"}):
        with pytest.raises(AuthenticationFailed, match="pass phrase of KEY_FILE") as caught:
            open_one(sftp_config(server, **locked, **passphrase))
        assert "wrong-phrase" not in str(caught.value)


def test_a_certificate_lets_in(open_one: Opener, make_sshd: Callable[..., stack.Sshd]) -> None:
    """The server knows the authority alone."""
    authority = Path(make_sshd().new_key("authority"))
    server = make_sshd(TrustedUserCAKeys=str(authority.with_suffix(".pub")))
    key = server.new_key("certified")
    sign = ["ssh-keygen", "-q", "-s", str(authority), "-I", "x", "-n", server.username, str(key.with_suffix(".pub"))]
    subprocess.run(sign, check=True, stderr=subprocess.DEVNULL)
    certificate = key.with_name("certified-cert.pub").rename(key.with_name("elsewhere.pub"))
    with pytest.raises(AuthenticationFailed):
        open_one(sftp_config(server, KEY_FILE=str(key)))
    works(open_one(sftp_config(server, KEY_FILE=str(key), CERT_FILE=str(certificate))), server)


def test_the_keys_of_an_agent_let_in(open_one: Opener, sshd: stack.Sshd, tmp_path_factory) -> None:
    """Only where the settings name one."""
    folder = tmp_path_factory.mktemp("agent")
    path = folder / "socket"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    try:
        stack.wait_until(path.exists, 10, "start of the agent")
        add = ["ssh-add", "-q", str(sshd.key)]
        subprocess.run(add, check=True, env={"SSH_AUTH_SOCK": str(path)}, stderr=subprocess.DEVNULL)
        config = sftp_config(sshd)
        given = {"HOST_KEY": sshd.fingerprint, "AGENT": str(path)}
        works(open_one(replace(config, options=given)), sshd)
    finally:
        agent.terminate()
        agent.wait(10)


def test_a_jump_host_leads_to_the_server(
    open_one: Opener, sshd: stack.Sshd, make_sshd: Callable[..., stack.Sshd]
) -> None:
    """Two of them, each with a host key of its own, all of which are pinned."""
    hops = [make_sshd(), make_sshd()]
    for hop in hops:
        hop.authorized_keys.write_text(sshd.key.with_suffix(".pub").read_text())
    jump = ",".join(f"{hop.username}@{hop.host}:{hop.port}" for hop in hops)
    keys = " ".join([sshd.fingerprint, *(hop.fingerprint for hop in hops)])
    session = open_one(sftp_config(sshd, JUMP=jump, HOST_KEY=keys))
    works(session, sshd)
    assert session.traits()["host key"].endswith(sshd.fingerprint)
    with pytest.raises(HostKeyRefused, match=hops[0].fingerprint.replace("+", r"\+")):
        open_one(sftp_config(sshd, JUMP=jump))


def test_options_of_ssh_win_over_ours(open_one: Opener, sshd: stack.Sshd) -> None:
    """The first value of each counts."""
    session = open_one(sftp_config(sshd, SSH_OPTIONS="Ciphers=aes256-ctr KexAlgorithms=ecdh-sha2-nistp256"))
    assert session.traits()["cipher"] == "aes256-ctr"
    assert session.traits()["key exchange"] == "ecdh-sha2-nistp256"


def test_a_server_with_old_algorithms_alone_needs_a_setting(
    open_one: Opener, make_sshd: Callable[..., stack.Sshd]
) -> None:
    """What is missing is told, and the setting allows it."""
    server = make_sshd(KexAlgorithms="diffie-hellman-group14-sha1", Ciphers="aes128-cbc", MACs="hmac-sha1")
    with pytest.raises(ServerUnavailable, match=r"no matching key exchange method.*FILES_SSH_LEGACY=true"):
        open_one(sftp_config(server))
    works(open_one(sftp_config(server, SSH_LEGACY="true")), server)


# --- who they are -------------------------------------------------------------------------------------------------


def test_a_known_host_is_let_in_by_its_file(open_one: Opener, sshd: stack.Sshd) -> None:
    """As OpenSSH keeps them."""
    config = sftp_config(sshd)
    options = {"KEY_FILE": str(sshd.key), "KNOWN_HOSTS_FILE": str(sshd.known_hosts())}
    works(open_one(replace(config, options=options)), sshd)


@pytest.mark.parametrize("known", ["nothing", "another fingerprint", "another key", "an empty file"])
def test_an_untrusted_host_key_is_an_error_that_shows_it(
    open_one: Opener, make_sshd: Callable[..., stack.Sshd], tmp_path: Path, known: str
) -> None:
    """Whatever is set. It counts as a refused login, so that nobody knocks again and again; no password is sent."""
    server = make_sshd()
    old = server.known_hosts()
    other = server.fingerprint
    server.kill()
    server.host_key = server.new_key("host2")
    server.start()
    (tmp_path / "empty").touch()
    options = {
        "nothing": {},
        "another fingerprint": {"HOST_KEY": other},
        "another key": {"KNOWN_HOSTS_FILE": str(old)},
        "an empty file": {"KNOWN_HOSTS_FILE": str(tmp_path / "empty")},
    }[known]
    config = replace(sftp_config(server, password=server.password), options=options)
    with pytest.raises(HostKeyRefused) as caught:
        open_one(config)
    assert server.fingerprint in str(caught.value)
    assert ("has changed" in str(caught.value)) == (known == "another key")
    assert isinstance(caught.value, AuthenticationFailed)
    assert "Failed password" not in server.log.read_text()
    assert "Accepted" not in server.log.read_text()


# --- servers that are not there, or do not want us ----------------------------------------------------------------


def config_at(port: int, **options: str) -> ServerConfig:
    return ServerConfig("FILES", "sftp", "127.0.0.1", port, "user", "Pass-9Secret", options=options)


def test_a_server_that_is_not_there_is_unavailable(open_one: Opener) -> None:
    """The system's reason is told."""
    with pytest.raises(ServerUnavailable, match="Connection refused") as caught:
        open_one(config_at(stack.free_port()))
    assert not isinstance(caught.value, ServerBusy)


def test_a_host_without_an_address_is_unavailable(open_one: Opener) -> None:
    """Its name is told."""
    with pytest.raises(ServerUnavailable, match="no-such-host"):
        open_one(replace(config_at(22), host="no-such-host.invalid"))


def test_an_end_before_the_banner_is_a_busy_server(open_one: Opener, mute: Callable[..., Mute]) -> None:
    """Sshd drops connections so when too many are not logged in (MaxStartups)."""
    with pytest.raises(ServerBusy, match="before its banner"):
        open_one(config_at(mute().port))


def test_a_server_that_is_no_ssh_is_told(open_one: Opener, mute: Callable[..., Mute]) -> None:
    """FTP greets in another way."""
    with pytest.raises(ServerUnavailable):
        open_one(config_at(mute(b"220 welcome\r\n" * 5000).port))


def test_a_server_that_keeps_silent_is_unavailable_in_time(open_one: Opener, make_sshd) -> None:
    """Connected, and no banner: as far as it came is told."""
    server = make_sshd()
    server.freeze()
    limits = replace(LONG, connect_timeout=0.5, login_timeout=0.5)
    began = time.monotonic()
    with pytest.raises(ServerUnavailable, match=r"ETL_LOGIN_TIMEOUT_SECONDS|timed out"):
        open_one(sftp_config(server), limits)
    assert time.monotonic() - began < 5
    server.thaw()


def test_a_login_without_sftp_is_told(open_one: Opener, make_sshd: Callable[..., stack.Sshd]) -> None:
    """It waits as after a refused login: somebody has to do something."""
    with pytest.raises(AuthenticationFailed, match="may not use SFTP"):
        open_one(sftp_config(make_sshd(Subsystem="nothing /bin/false")))


def test_a_login_that_prints_something_is_told(open_one: Opener, make_sshd: Callable[..., stack.Sshd]) -> None:
    """A classic: `echo` in a start file of the shell."""
    with pytest.raises(AuthenticationFailed, match="Hello"):
        open_one(sftp_config(make_sshd(ForceCommand="echo Hello; sleep 3")))


def test_without_ssh_the_package_is_named(open_one: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """One clear error."""
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(ServerUnavailable, match=r"FILES: the program ssh is not installed.*openssh-client"):
        open_one(config_at(22))


def test_as_many_logins_at_a_time_as_a_server_takes(make_sshd: Callable[..., stack.Sshd]) -> None:
    """Sshd lets ten in at a time; our pools open fewer."""
    assert CONNECTS_AT_ONCE <= 10


# --- the end ------------------------------------------------------------------------------------------------------


def test_a_session_that_the_server_ends_is_lost(open_one: Opener, make_sshd: Callable[..., stack.Sshd]) -> None:
    """And is no session any more."""
    server = make_sshd()
    session = open_one(sftp_config(server))
    server.kill_sessions()
    with pytest.raises(ConnectionLost):
        session.ping()
    with pytest.raises(ConnectionLost):
        session.look("/x")
    assert not session.survives(FileNotFoundError())


def test_a_server_that_stands_still_is_noticed(open_one: Opener, make_sshd: Callable[..., stack.Sshd]) -> None:
    """Within the limit of a reply, or of a stall."""
    server = make_sshd()
    limits = replace(LONG, reply_timeout=0.5, stall_timeout=0.5)
    reading, writing = open_one(sftp_config(server), limits), open_one(sftp_config(server), limits)
    (server.root / "large").write_bytes(bytes(8 << 20))
    buffer = memoryview(bytearray(1 << 20))
    parcel = reading.read(f"{server.root}/large")
    parcel.readinto(buffer)
    for process in psutil.Process(server.pid).children(recursive=True):
        process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(TransferTimeout, match="ETL_STALL_TIMEOUT_SECONDS"):
        while parcel.readinto(buffer):
            pass
    with pytest.raises(TransferTimeout):
        writing.write(f"{server.root}/.part", Bytes(bytes(8 << 20)), buffer)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("when", ["at login", "in a read"])
def test_an_abort_ends_at_once_whatever_blocks(
    open_one: Opener, make_sshd: Callable[..., stack.Sshd], when: str
) -> None:
    """From another thread, with the server frozen."""
    server = make_sshd()
    session = SFTPTransfer(sftp_config(server), LONG)
    try:
        if when == "in a read":
            session.connect()
            for process in psutil.Process(server.pid).children(recursive=True):
                process.send_signal(signal.SIGSTOP)
        else:
            server.freeze()
        threading.Timer(0.3, session.abort).start()
        began = time.monotonic()
        with pytest.raises(EtlError, match="aborted") as caught:
            session.connect() if when == "at login" else session.look("/x")
        assert time.monotonic() - began < 2
        assert caught.value.server == "FILES"
    finally:
        session.disconnect()
        server.thaw()


# --- secrets ------------------------------------------------------------------------------------------------------


def test_secrets_are_in_no_command_and_in_no_other_process(
    open_one: Opener, make_sshd: Callable[..., stack.Sshd], capfd: pytest.CaptureFixture[str]
) -> None:
    """Not in arguments, nor in the environment of an ssh to another server, nor in what is printed."""
    if os.geteuid() != 0:
        pytest.skip("an sshd with passwords takes root")
    first, second = make_sshd(), make_sshd()
    key = second.new_key("locked", "Phrase-4Secret")
    second.authorized_keys.write_text(key.with_suffix(".pub").read_text())
    open_one(sftp_config(first, password=first.password))
    open_one(sftp_config(second, KEY_FILE=str(key), KEY_PASSPHRASE="Phrase-4Secret"))
    secrets = [first.password, "Phrase-4Secret"]
    children = [child for child in psutil.Process().children(recursive=True) if child.name() == "ssh"]
    assert len(children) >= 2
    for child in psutil.process_iter(["cmdline"]):
        assert not any(secret in " ".join(child.info["cmdline"] or ()) for secret in secrets)
    seen = [{secret for secret in secrets if secret in " ".join(child.environ().values())} for child in children]
    assert sorted(map(sorted, seen)) == [["Phrase-4Secret"], [first.password]]
    assert "ETL_SSH_PASSWORD" not in os.environ
    out, err = capfd.readouterr()
    assert not any(secret in out + err for secret in secrets)


def test_askpass_may_be_run(open_one: Opener) -> None:
    """It comes with the package, as a program."""
    assert os.access(command.ASKPASS, os.X_OK)


# --- the check of servers -----------------------------------------------------------------------------------------


def test_a_check_shows_what_the_login_showed(sshd: stack.Sshd, make_tree: Callable[[], SFTPServer]) -> None:
    """Host key, software, cipher, and what is missing, also in JSON."""
    (sshd.root / "checked").mkdir(exist_ok=True)
    trial = _try(sftp_config(sshd, base_path=str(sshd.root / "checked")), LONG, write=True)
    assert trial.failed is None, trial.error
    told = trial.to_dict()
    assert told["found"]["host key"] == f"ssh-ed25519 {sshd.fingerprint}"
    assert told["found"]["server"].startswith("OpenSSH")
    assert (told["fit"], told["settings"], told["left"]) == ("both", {}, [])
    assert "missing" not in told["found"]
    assert list((sshd.root / "checked").iterdir()) == []
    tree = make_tree()
    tree.quirks.hides = (b"posix", b"fsync")
    trial = _try(sftp_config(tree, password=tree.password), LONG, write=True)
    assert trial.to_dict()["found"]["missing"] == "posix-rename@openssh.com, fsync@openssh.com"


def test_a_check_shows_the_host_key_to_pin(sshd: stack.Sshd) -> None:
    """The first thing that a new server needs."""
    trial = _try(replace(sftp_config(sshd), options={"KEY_FILE": str(sshd.key)}), LONG, write=False)
    assert (trial.failed, trial.error_code) == ("login", "AUTHENTICATION_FAILED")
    assert sshd.fingerprint in trial.result


def test_a_check_without_ssh_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """As every session does."""
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    trial = _try(config_at(22), LONG, write=False)
    assert (trial.failed, trial.error_code) == ("reach", "CONNECTION_ERROR")
    assert "openssh-client" in trial.result


def test_a_process_that_is_killed_leaves_no_ssh(sshd: stack.Sshd) -> None:
    """The ssh sees the end of its input."""
    config = sftp_config(sshd)
    program = (
        "import sys, time\n"
        "from etl.config import ServerConfig\n"
        "from etl.transfer import SFTPTransfer\n"
        f"config = ServerConfig('X', 'sftp', {config.host!r}, {config.port}, {config.username!r},"
        f" options={dict(config.options)!r})\n"
        "SFTPTransfer(config).connect()\n"
        "print('connected', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "connected\n"
        (ssh,) = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    stack.wait_until(lambda: not ssh.is_running() or ssh.status() == psutil.STATUS_ZOMBIE, 10, "the end of ssh")


# What sshd 8.0 (Rocky Linux 8) agrees to as it comes, and the requests that its sftp-server does not know yet.
OF_8_0 = {
    "KexAlgorithms": "curve25519-sha256,curve25519-sha256@libssh.org,ecdh-sha2-nistp256,ecdh-sha2-nistp384,"
    "ecdh-sha2-nistp521,diffie-hellman-group-exchange-sha256,diffie-hellman-group16-sha512,"
    "diffie-hellman-group18-sha512,diffie-hellman-group14-sha256,diffie-hellman-group14-sha1",
    "Ciphers": "chacha20-poly1305@openssh.com,aes128-ctr,aes192-ctr,aes256-ctr,aes128-gcm@openssh.com,"
    "aes256-gcm@openssh.com",
    "MACs": "umac-64-etm@openssh.com,umac-128-etm@openssh.com,hmac-sha2-256-etm@openssh.com,"
    "hmac-sha2-512-etm@openssh.com,hmac-sha1-etm@openssh.com,umac-64@openssh.com,umac-128@openssh.com,hmac-sha2-256,"
    "hmac-sha2-512,hmac-sha1",
    "Subsystem": f"sftp {stack.SSHD_ROOT}/usr/lib/openssh/sftp-server "
    "-P limits,expand-path,copy-data,home-directory,users-groups-by-id",
}


@pytest.mark.parametrize(
    "older", [{}, {"Ciphers": "aes128-ctr", "MACs": "hmac-sha1"}, {"Ciphers": "aes256-cbc"}], ids=str
)
def test_a_server_that_knows_no_more_than_openssh_8_0(
    make_sshd: Callable[..., stack.Sshd], open_one: Opener, buffer: memoryview, older: dict[str, str]
) -> None:
    """It tells no limits: blocks are of a size that every server takes. Older ciphers are a setting."""
    server = make_sshd(**OF_8_0 | older)
    config = sftp_config(server, base_path=str(server.root))
    if "cbc" in older.get("Ciphers", ""):
        with pytest.raises(ServerUnavailable, match="no matching cipher"):
            open_one(config)
        config = replace(config, options={**config.options, "SSH_LEGACY": "true"})
    session = open_one(config)
    assert session.traits()["missing"] == "limits@openssh.com"
    assert session.link.read_block == session.link.write_block == 32_768
    for number, size_bytes in enumerate((0, 5, 100_000, 100_001, 100_002, 5_000_000)):
        content = os.urandom(size_bytes)
        session.publish(session.write("/.etl-1.part", Bytes(content), buffer), f"/{number}", 1e9).result()
        assert content_of(session, f"/{number}", buffer) == content
        assert (server.root / str(number)).stat().st_mtime == 1e9
