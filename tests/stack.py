"""The real servers that tests run against, each a process of its own on free loopback ports.

A broker (`Broker`), Debian's vsftpd (`Vsftpd`) and sshd (`Sshd`), a pyftpdlib server (`Ftpd`). Fixtures in
conftest.py start them; this file knows no fixture and no code of the product.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Self

import psutil

REPOSITORY = Path(__file__).resolve().parent.parent
BUILD = REPOSITORY / "build"
KAFKA_BIN = REPOSITORY / "kafka" / "bin"
KAFKA_LIBS = Path(os.environ.get("KAFKA_LIBS") or BUILD / "kafka" / "libs")
VSFTPD_ROOT = BUILD / "vsftpd" / "root"
SSHD_ROOT = BUILD / "sshd" / "root"
PORTS = [range(first, first + 2000) for first in range(12000, 30000, 2000)]  # of each worker
_given_ports: set[int] = set()
START_LIMIT = 60.0  # seconds; a start takes two or three on an idle machine

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


class MissingInfrastructureError(Exception):
    """Raised when a real server was never fetched; says which command brings it."""


def free_port() -> int:
    """Return a port that nobody listens on, below the range from which outgoing connections are numbered.

    A port of that range could be taken by any client while a killed server is away. Each worker of a run has ports of
    its own: none takes what another has just found free. None is given twice, as it may be wanted later, or again.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % len(PORTS)
    while True:
        if len(_given_ports) == len(PORTS[worker]):
            _given_ports.clear()
        if (port := random.choice(PORTS[worker])) in _given_ports:
            continue
        _given_ports.add(port)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def wait_until(happened: Callable[[], object], limit: float, what: str) -> None:
    """Wait until `happened()` is true; raise TimeoutError naming `what` after `limit` seconds."""
    deadline = time.monotonic() + limit
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {limit:g} s")
        time.sleep(0.02)


def answers(port: int) -> bool:
    """Tell whether somebody listens on this loopback port."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def listens(process: subprocess.Popen[bytes], port: int) -> bool:
    """Tell whether this process listens on the port, without using up one of its connections."""
    try:
        sockets = psutil.Process(process.pid).net_connections("tcp")
    except psutil.NoSuchProcess:
        return False
    return any(found.status == psutil.CONN_LISTEN and found.laddr.port == port for found in sockets)


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Server:
    """One server process: start, freeze, thaw, kill, stop. Subclasses say what runs and when it is ready."""

    log: Path
    lasting: ClassVar[set[Server]] = set()  # those of the whole session: a test may restart them, and leave them so

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    @contextlib.contextmanager
    def for_the_session(self) -> Iterator[Self]:
        """Start it, and end it at the end of the session; a test that restarts it leaves nothing behind."""
        self.lasting.add(self)
        try:
            self.start()
            yield self
        finally:
            self.lasting.discard(self)
            self.kill()

    def start(self) -> Self:
        """Start it. Subclasses say how."""
        raise NotImplementedError

    @property
    def pid(self) -> int:
        """The server's process id."""
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives (a frozen one does)."""
        return self._process is not None and self._process.poll() is None

    def _launch(
        self,
        command: list[str],
        environment: Mapping[str, str],
        ready: Callable[[subprocess.Popen[bytes]], object],
    ) -> None:
        assert not self.running, "already running"
        # Linux counts the thread that started a process as its parent: only the main thread may ask for this.
        main = threading.current_thread() is threading.main_thread()
        with self.log.open("ab") as log:
            self._process = process = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent if main and sys.platform == "linux" else None,  # noqa: PLW1509 - one prctl call, no locks
            )
        try:
            wait_until(lambda: ready(process) or process.poll() is not None, START_LIMIT, f"start of {command[0]}")
        except BaseException:
            self.kill()
            raise
        if process.poll() is not None:
            self._process = None
            raise RuntimeError(f"{command[0]} ended at once:\n{self.log.read_text(errors='replace')[-4000:]}")

    def freeze(self) -> None:
        """Stop it where it stands (SIGSTOP): connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it at once and all its processes (SIGKILL); does nothing to one that is not running."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
            self._process = None

    def stop(self, limit: float = 20.0) -> None:
        """End it in good order (SIGTERM), after `limit` seconds by force; nothing to do if it is down."""
        if self._process is not None:
            if self._process.poll() is None:
                self.thaw()
                self._process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(limit)
            self.kill()


class Broker(Server):
    """The embedded broker as it ships, with a data folder and ports of its own that it keeps over restarts.

    Args:
        folder: where its data and its log go.
        properties: further broker settings, for example {"max.message.bytes": "..."}.
        environment: further settings of kafka-appliance.sh, for example {"KAFKA_NETWORK_HOST": "127.0.0.1"}.
    """

    def __init__(
        self,
        folder: Path,
        properties: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        if not list(KAFKA_LIBS.glob("kafka_2.13-*.jar")):
            raise MissingInfrastructureError(f"no Kafka in {KAFKA_LIBS}; run: make bootstrap")
        self.folder = folder
        self.log = folder / "broker.log"
        self.port = free_port()
        self.controller_port = free_port()
        self.bootstrap_servers = f"127.0.0.1:{self.port}"
        self.properties = dict(properties or {})
        self.environment = dict(environment or {})
        folder.mkdir(parents=True, exist_ok=True)
        self.log.touch()

    def start(self) -> Self:
        """Start it, again after a kill too: same ports, same data. Returns when it serves."""
        extra = self.folder / "extra.properties"
        extra.write_text("".join(f"{name}={value}\n" for name, value in self.properties.items()))
        position = self.log.stat().st_size
        environment = {
            "KAFKA_DATA_DIR": str(self.folder / "data"),
            "KAFKA_PORT": str(self.port),
            "KAFKA_CONTROLLER_PORT": str(self.controller_port),
            "KAFKA_ADVERTISED_HOST": "",
            "KAFKA_NETWORK_HOST": "",
            "KAFKA_EXTRA_PROPERTIES": str(extra),
            "KAFKA_JVM_OPTS": "-XX:TieredStopAtLevel=1",  # a test's broker lives for seconds
            **self.environment,
        }

        def started(_process: subprocess.Popen[bytes]) -> bool:
            with self.log.open("rb") as log:
                log.seek(position)
                return b"Kafka Server started" in log.read()

        self._launch([str(KAFKA_BIN / "kafka-appliance.sh")], environment, started)
        return self

    def command(self, name: str, *arguments: str, limit: float = 60.0) -> str:
        """Run one of kafka/bin's commands against this broker, return what it printed, raise if it failed."""
        done = subprocess.run(
            [str(KAFKA_BIN / name), *arguments],
            env={**os.environ, "ETL_BOOTSTRAP_SERVERS": self.bootstrap_servers},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{name} {' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout


class Ftpd(Server):
    """A pyftpdlib server (docker/ftp_server.py): `host`, `port`, `root`, and its first account."""

    host = "127.0.0.1"

    def __init__(self, folder: Path, accounts: Mapping[str, str], max_connections: int = 512) -> None:
        super().__init__()
        self.folder = folder
        self.root = folder / "root"
        self.root.mkdir(parents=True, exist_ok=True)
        self.log = folder / "ftpd.log"
        self.port = free_port()
        self.accounts = dict(accounts)
        self.username, self.password = next(iter(self.accounts.items()))
        self.max_connections = max_connections

    def start(self) -> Self:
        """Start it, again after a kill too: same port, same files. Returns when it listens."""
        command = [
            sys.executable,
            str(REPOSITORY / "docker" / "ftp_server.py"),
            f"--root={self.root}",
            f"--port={self.port}",
            f"--max-connections={self.max_connections}",
        ]
        environment = {"FTP_SERVER_ACCOUNTS": json.dumps(self.accounts), "COVERAGE_PROCESS_CONFIG": ""}
        self._launch(command, environment, lambda process: listens(process, self.port))
        return self


class Vsftpd(Server):
    """Debian's vsftpd, unpacked and never installed: `host`, `port`, `username`, `password`, `root`.

    As root it has a real login through PAM (a service file of its own in /etc/pam.d while it runs). Others
    get anonymous access with all rights, for which vsftpd needs no privileges.

    Args:
        folder: where its root, configuration and log go.
        settings: further vsftpd.conf settings, for example {"max_clients": "2"}.
    """

    host = "127.0.0.1"

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._binary = VSFTPD_ROOT / "usr" / "sbin" / "vsftpd"
        if not self._binary.exists():
            raise MissingInfrastructureError(f"no vsftpd in {VSFTPD_ROOT}; run: make test-servers")
        self.folder = folder
        self.root = folder / "root"
        self.root.mkdir(parents=True, exist_ok=True)
        self.log = folder / "vsftpd.log"
        self.port = free_port()
        self.settings = dict(settings or {})
        self._as_root = os.geteuid() == 0
        self.username = "vsftpd-user" if self._as_root else "anonymous"
        self.password = f"Vs-{random.getrandbits(48):012x}"
        self._pam_service = Path(f"/etc/pam.d/etl-test-{os.getpid()}-{self.port}")

    def start(self) -> Self:
        """Start it, again after a kill too: same port, same files. Returns when it listens."""
        (self.folder / "empty").mkdir(exist_ok=True)
        settings = {
            "background": "NO",
            "listen": "YES",
            "listen_address": self.host,
            "listen_port": str(self.port),
            "pasv_address": self.host,
            "connect_from_port_20": "NO",
            "pasv_min_port": "32768",  # else it takes any, also one that a server of another test is to come back to
            "pasv_max_port": "60999",
            "write_enable": "YES",
            "mdtm_write": "YES",
            "utf8_filesystem": "YES",
            "force_dot_files": "YES",
            "max_clients": "0",
            "max_login_fails": "10",
            "delay_failed_login": "0",
            "secure_chroot_dir": str(self.folder / "empty"),
            "xferlog_enable": "NO",
            # What a container or an unprivileged user may not do; it protects the host, not the protocol.
            "isolate": "NO",
            "isolate_network": "NO",
            "seccomp_sandbox": "NO",
            **(self._login_settings() if self._as_root else self._anonymous_settings()),
            **self.settings,
        }
        configuration = self.folder / "vsftpd.conf"
        configuration.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        configuration.chmod(0o600)
        command = [str(self._binary), str(configuration)]
        self._launch(command, _libraries(VSFTPD_ROOT), lambda process: listens(process, self.port))
        return self

    def kill(self) -> None:
        """End it at once with all its sessions: each leads a process group of its own, and would go on."""
        if self.running:
            self.freeze()  # else it might make one more meanwhile
            for session in psutil.Process(self.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    session.kill()
        super().kill()
        with contextlib.suppress(FileNotFoundError, PermissionError):
            self._pam_service.unlink()

    def _login_settings(self) -> dict[str, str]:
        accounts = self.folder / "accounts"
        accounts.write_text(f"{self.username}:{hashed(self.password)}\n")
        module = next(VSFTPD_ROOT.rglob("pam_pwdfile.so"))
        self._pam_service.write_text(
            f"auth required {module} pwdfile {accounts}\n"
            "account required pam_permit.so\nsession required pam_permit.so\n"
        )
        return {
            "anonymous_enable": "NO",
            "local_enable": "YES",
            "guest_enable": "YES",
            "guest_username": "root",
            "virtual_use_local_privs": "YES",
            "local_umask": "022",
            "local_root": str(self.root),
            "chroot_local_user": "YES",
            "allow_writeable_chroot": "YES",
            "pam_service_name": self._pam_service.name,
        }

    def _anonymous_settings(self) -> dict[str, str]:
        return {
            "run_as_launching_user": "YES",
            "ftp_username": pwd.getpwuid(os.geteuid()).pw_name,
            "anonymous_enable": "YES",
            "local_enable": "NO",
            "anon_root": str(self.root),
            "anon_upload_enable": "YES",
            "anon_mkdir_write_enable": "YES",
            "anon_other_write_enable": "YES",
            "anon_world_readable_only": "NO",
            "anon_umask": "022",
            "allow_writeable_chroot": "YES",
        }


class Sshd(Server):
    """Debian's sshd with its SFTP server, unpacked and never installed: `host`, `port`, `username`, `root`, and keys.

    As root it runs with an account database of its own (in a mount namespace), so that it has password logins. Others
    get key logins as themselves. Its files are whatever the user may reach: sessions have a base path.

    Args:
        folder: where its keys, configuration and log go; `root` is beside them.
        settings: further sshd_config lines, for example {"MaxStartups": "1"}.
    """

    host = "127.0.0.1"
    owner = 0  # whose account it gives, if it is root's

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._binary = SSHD_ROOT / "usr" / "sbin" / "sshd"
        if not self._binary.exists():
            raise MissingInfrastructureError(f"no sshd in {SSHD_ROOT}; run: make test-servers")
        self.folder = folder
        self.root = folder / "root"
        self.root.mkdir(parents=True, exist_ok=True)
        self.log = folder / "sshd.log"
        self.port = free_port()
        self.settings = dict(settings or {})
        self._as_root = os.geteuid() == 0
        self.username = "sftp-user" if self._as_root else pwd.getpwuid(os.geteuid()).pw_name
        self.password = f"Sf-{random.getrandbits(48):012x}"
        self.key = self.new_key("client")
        self.host_key = self.new_key("host")
        self.authorized_keys = folder / "authorized_keys"
        self.authorized_keys.write_text(self.key.with_suffix(".pub").read_text())

    def new_key(self, name: str, passphrase: str = "") -> Path:
        """Make a pair of keys; return the file of the private one."""
        path = self.folder / name
        path.unlink(missing_ok=True)
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", name, "-f", str(path)],
            check=True,
            stdin=subprocess.DEVNULL,
        )
        return path

    @property
    def fingerprint(self) -> str:
        """The fingerprint of its host key."""
        shown = subprocess.run(
            ["ssh-keygen", "-l", "-f", str(self.host_key)], check=True, capture_output=True, text=True
        )
        return shown.stdout.split()[1]

    def known_hosts(self) -> Path:
        """Write a file of known hosts that has its key."""
        path = self.folder / "known_hosts"
        kind, key = self.host_key.with_suffix(".pub").read_text().split()[:2]
        path.write_text(f"[{self.host}]:{self.port} {kind} {key}\n")
        return path

    def start(self) -> Self:
        """Start it, again after a kill too: same port, same files. Returns when it listens."""
        settings = {
            "ListenAddress": self.host,
            "Port": str(self.port),
            "HostKey": str(self.host_key),
            "AuthorizedKeysFile": str(self.authorized_keys),
            "Subsystem": f"sftp {SSHD_ROOT / 'usr' / 'lib' / 'openssh' / 'sftp-server'}",
            "PidFile": "none",
            "PermitRootLogin": "yes",  # its user has root's number
            "StrictModes": "no",  # the folders above are the tests'
            "UsePAM": "no",
            "MaxStartups": "100",
            "LogLevel": "VERBOSE",
            **self.settings,
        }
        configuration = self.folder / "sshd_config"
        configuration.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        command = [str(self._binary), "-D", "-e", "-f", str(configuration)]
        if self._as_root:
            command = ["unshare", "--mount", "sh", "-euc", self._accounts(), "sh", *command]
        self._launch(command, _libraries(SSHD_ROOT), lambda process: listens(process, self.port))
        return self

    def kill(self) -> None:
        """End it at once with all its sessions: each leads a process group of its own, and would go on."""
        if self.running:
            self.freeze()  # else it might make one more meanwhile
            self.kill_sessions()
        super().kill()

    def kill_sessions(self) -> None:
        """End all its sessions at once; it goes on to listen."""
        for session in psutil.Process(self.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                session.kill()

    def _accounts(self) -> str:
        """Return the script that gives its arguments, a command, accounts that the machine does not have."""
        accounts = {
            "passwd": f"{self.username}:x:{self.owner}:{self.owner}::{self.folder}:/bin/sh\n"
            "sshd:x:74:74::/run/sshd:/usr/sbin/nologin\n",
            "shadow": f"{self.username}:{hashed(self.password)}:19000::::::\n",
        }
        for name, lines in accounts.items():
            (self.folder / name).write_text(Path("/etc", name).read_text() + lines)
        mounts = "".join(f"mount --bind '{self.folder / name}' /etc/{name}; " for name in accounts)
        return f'{mounts}mount -t tmpfs tmpfs /run; mkdir -m 755 /run/sshd; exec "$@"'


STRICT_TLS = {
    "ssl_enable": "YES",
    "force_local_logins_ssl": "YES",
    "force_local_data_ssl": "YES",
    "require_ssl_reuse": "YES",
    "strict_ssl_read_eof": "YES",
    "ssl_ciphers": "HIGH",
}


def _libraries(unpacked: Path) -> dict[str, str]:
    """Return the environment in which an unpacked server finds the libraries that came with it."""
    return {"LD_LIBRARY_PATH": os.pathsep.join(sorted({str(found.parent) for found in unpacked.rglob("lib*.so.*")}))}


def hashed(password: str) -> str:
    """Hash a password as PAM reads it; Python's own module for it is gone since 3.13."""
    library = ctypes.CDLL("libcrypt.so.1")
    library.crypt.restype = ctypes.c_char_p
    hashed: bytes = library.crypt(password.encode(), b"$6$etlfilesync")
    return hashed.decode()


def sweep_pam_services() -> None:
    """Remove the PAM service files of test runs that were killed."""
    for service in Path("/etc/pam.d").glob("etl-test-*"):
        owner = service.name.split("-")[2]
        if not Path("/proc", owner).exists():
            service.unlink(missing_ok=True)


def remove_tree(folder: Path) -> None:
    """Remove a server's folder; a broker's holds tens of megabytes."""
    shutil.rmtree(folder, ignore_errors=True)
