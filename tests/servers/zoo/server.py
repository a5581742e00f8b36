"""A server of the zoo as a process: `host`, `port`, `root`, `username`, `password`, and whose its files are."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Self

import psutil
import pytest

import stack

ZOO = stack.BUILD / "zoo"
DEBIAN = ZOO / "root"
HERE = Path(__file__).parent
NOBODY = 65534  # whose account the servers of root give: to root itself nothing is forbidden
Process = subprocess.Popen[bytes]
TIME_ZONE = "KST-9"  # not UTC: a server that tells local times shows it


@contextlib.contextmanager
def place() -> Iterator[Path]:
    """Give a server a folder that other users can enter, and remove it after it has ended."""
    folder = Path(tempfile.mkdtemp(prefix="etl-zoo-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


class Resident(stack.Server):
    """One server. Subclasses say what it needs (`needs`), and how it is started (`command`).

    Args:
        folder: where its root, configuration and log go; other users must be able to enter it.
        options: what a kind changes of the usual settings.
    """

    host = "127.0.0.1"
    username = "zoo"
    password = "Zoo-4711"
    needs: Path  # what tests/fetch-zoo.sh brings
    owner = os.geteuid()  # of the files in `root`, as which the server works
    base_path = ""  # of the product's settings
    ours: Mapping[str, str] = {}  # more of them, that only the server knows
    leaves = ""  # a pattern of what the server itself leaves when it dies

    def __init__(self, folder: Path, *options: str) -> None:
        super().__init__()
        if not self.needs.exists():
            raise stack.MissingInfrastructureError(f"no {self.needs}; run: tests/fetch-zoo.sh")
        self.folder = folder
        self.root = folder / "root"
        self.root.mkdir(parents=True, exist_ok=True)
        os.chown(self.root, self.owner, -1)
        self.log = folder / "server.log"
        self.port = stack.free_port()
        self.options = options

    def command(self) -> list[str]:
        """Return the program and its arguments; writes its configuration."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Return what it needs there."""
        return {}

    def start(self) -> Self:
        """Start it, again after a kill too: same port, same files. Returns when it listens."""
        environment = {"TZ": TIME_ZONE, "LANG": "C.UTF-8", "COVERAGE_PROCESS_CONFIG": "", **self.environment()}
        self._launch(self.command(), environment, lambda process: stack.listens(process, self.port))
        return self

    def kill(self) -> None:
        """End it at once with all its sessions: some lead a process group of their own, and would go on."""
        if self.running:
            self.freeze()  # else it might make one more meanwhile
            for session in psutil.Process(self.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    session.kill()
        super().kill()

    def write(self, name: str, text: str) -> Path:
        """Write a file of its configuration."""
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o600)
        return path


class Guest(Resident):
    """A server that works as whoever starts it: as root without the rights by which nothing is forbidden to root."""

    def command(self) -> list[str]:
        """Return the program behind `setpriv`, where there are rights to drop."""
        return ["setpriv", "--bounding-set=-all", *self.program()] if os.geteuid() == 0 else self.program()

    def program(self) -> list[str]:
        """Return the program and its arguments."""
        raise NotImplementedError


class Daemon(Resident):
    """A server of Debian that is started by root, and works as the account that logs in."""

    owner = NOBODY

    def __init__(self, folder: Path, *options: str) -> None:
        if os.geteuid() != 0:
            pytest.skip(f"{type(self).__name__} is started by root")
        super().__init__(folder, *options)

    def environment(self) -> dict[str, str]:
        """Name the folders of the libraries that this machine may lack."""
        libraries = sorted({str(library.parent) for library in DEBIAN.rglob("lib*.so.*")})
        return {"LD_LIBRARY_PATH": os.pathsep.join(libraries)}


class Vsftpd(stack.Vsftpd):
    """Debian's vsftpd, which the other tests have, too; but its account is no root."""

    base_path = ""
    ours: Mapping[str, str] = {}
    leaves = ""

    def __init__(self, folder: Path, **settings: str) -> None:
        super().__init__(folder, {"guest_username": "bin", **settings})  # a home that is there is all it must have
        self.owner = pwd.getpwnam("bin").pw_uid if os.geteuid() == 0 else os.geteuid()
        os.chown(self.root, self.owner, -1)

    def _launch(self, command: list[str], environment: Mapping[str, str], ready: Callable[[Process], object]) -> None:
        super()._launch(command, {"TZ": TIME_ZONE, **environment}, ready)


class OpenSSH(stack.Sshd):
    """Debian's sshd, which the other tests have, too; but its account is no root."""

    owner = NOBODY
    leaves = ""

    def __init__(self, folder: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("an sshd with an account of its own is started by root")
        super().__init__(folder, {"LogLevel": "ERROR"})
        self.base_path = str(self.root)
        os.chown(self.root, self.owner, -1)

    @property
    def ours(self) -> dict[str, str]:
        """The product's settings."""
        return {"TYPE": "sftp", "HOST_KEY": self.fingerprint}

    def _launch(self, command: list[str], environment: Mapping[str, str], ready: Callable[[Process], object]) -> None:
        super()._launch(command, {"TZ": TIME_ZONE, **environment}, ready)


class ProFTPD(Daemon):
    """ProFTPD with Debian's configuration; `options` are lines of it."""

    needs = DEBIAN / "usr/sbin/proftpd"
    leaves = ".in.*."  # HiddenStores

    def command(self) -> list[str]:
        """Return the program and its arguments; writes its configuration."""
        users = f"{self.username}:{stack.hashed(self.password)}:{self.owner}:{self.owner}:zoo:{self.root}:/bin/sh\n"
        usual = {
            "ServerType": "standalone",
            "UseIPv6": "off",
            "DefaultServer": "on",
            "ShowSymlinks": "on",
            "TimeoutNoTransfer": "600",
            "TimeoutStalled": "600",
            "TimeoutIdle": "1200",
            "DisplayChdir": ".message true",
            "ListOptions": '"-l"',
            "DenyFilter": r"\*.*/",
            "MaxInstances": "30",
            "User": "nobody",
            "Group": "nogroup",
            "Umask": "022 022",
            "AllowOverwrite": "on",
            "DefaultRoot": "~",
            "RequireValidShell": "off",
            "WtmpLog": "off",
            "TransferLog": "none",
            "SystemLog": str(self.log),
            "DefaultAddress": self.host,
            "Port": str(self.port),
            "PidFile": str(self.folder / "pid"),
            "ScoreboardFile": str(self.folder / "scoreboard"),
            "DelayTable": str(self.folder / "delay"),
            "AuthOrder": "mod_auth_file.c",
            "AuthUserFile": str(self.write("users", users)),
            "AuthGroupFile": str(self.write("groups", f"{self.username}:x:{self.owner}:\n")),
        }
        changed = {option.split()[0] for option in self.options}
        lines = [f"{name} {value}" for name, value in usual.items() if name not in changed]
        configuration = self.write("proftpd.conf", "\n".join([*lines, *self.options, ""]))
        return [str(self.needs), "-n", "-q", "-c", str(configuration)]


class ProFTPDSftp(ProFTPD):
    """ProFTPD as an SFTP server, by its module mod_sftp."""

    needs = DEBIAN / "usr/lib/proftpd/mod_sftp.so"

    def command(self) -> list[str]:
        """Return the program and its arguments; makes the host key."""
        self.host_key = self.folder / "host"
        if not self.host_key.exists():
            make = ["ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-m", "PEM", "-N", "", "-f", str(self.host_key)]
            subprocess.run(make, check=True, stdin=subprocess.DEVNULL)
        lines = {
            "ModulePath": str(self.needs.parent),
            "LoadModule": "mod_sftp.c",
            "SFTPEngine": "on",
            "DenyFilter": "^$",  # Debian's lets no * stand before a slash
            "SFTPHostKey": str(self.host_key),
            "SFTPAuthMethods": "password",
            "SFTPLog": str(self.folder / "sftp.log"),
        }
        self.options = tuple(f"{name} {value}" for name, value in lines.items())
        return [str(ProFTPD.needs), *super().command()[1:]]

    @property
    def ours(self) -> dict[str, str]:  # type: ignore[override]  # known once it has started
        """The product's settings."""
        return {"TYPE": "sftp", "HOST_KEY": self.fingerprint}

    @property
    def fingerprint(self) -> str:
        """The fingerprint of its host key."""
        show = ["ssh-keygen", "-l", "-f", str(self.host_key)]
        return subprocess.run(show, check=True, capture_output=True, text=True).stdout.split()[1]


class PureFTPd(Daemon):
    """Pure-FTPd with virtual users; `options` are its command line's."""

    needs = DEBIAN / "usr/sbin/pure-ftpd"
    leaves = ".pureftpd-upload.*"

    def command(self) -> list[str]:
        """Return the program and its arguments; makes its list of users."""
        users = self.write(
            "users",
            f"{self.username}:{stack.hashed(self.password)}:{self.owner}:{self.owner}::{self.root}/./::::::::::::\n",
        )
        listed = self.folder / "users.pdb"
        subprocess.run(
            [str(DEBIAN / "usr/bin/pure-pw"), "mkdb", str(listed), "-f", str(users)],
            env={**os.environ, **self.environment()},
            check=True,
            capture_output=True,
        )
        return [
            *(str(self.needs), "-S", f"{self.host},{self.port}", "-l", f"puredb:{listed}", "-E", "-u", "1000"),
            *("-O", f"clf:{self.folder / 'transfers'}", "-g", str(self.folder / "pid")),
            *self.options,
        ]


class Inetutils(Daemon):
    """GNU inetutils' ftpd behind an inetd, with accounts that only its own mount namespace knows."""

    needs = DEBIAN / "usr/sbin/ftpd"

    def __init__(self, folder: Path, *options: str) -> None:
        super().__init__(folder, *options)
        self.base_path = str(self.root)  # it knows no root but the machine's

    def command(self) -> list[str]:
        """Return the program and its arguments; writes what stands in for the machine's accounts."""
        accounts = self.folder / "etc"
        (accounts / "pam.d").mkdir(parents=True, exist_ok=True)
        passwd = f"root:x:0:0::/root:/bin/sh\n{self.username}:x:{self.owner}:{self.owner}:zoo:{self.root}:/bin/sh\n"
        (accounts / "passwd").write_text(passwd)
        (accounts / "group").write_text(f"root:x:0:\n{self.username}:x:{self.owner}:\n")
        (accounts / "shadow").write_text(f"{self.username}:{stack.hashed(self.password)}:19000:0:99999:7:::\n")
        (accounts / "shadow").chmod(0o600)
        (accounts / "pam.d" / "ftp").write_text(
            "auth required pam_unix.so\naccount required pam_permit.so\nsession required pam_permit.so\n"
        )
        names = ("passwd", "group", "shadow", "pam.d")
        mounts = " && ".join(f'mount --bind "$1/{name}" /etc/{name}' for name in names)
        return [
            *("unshare", "--mount", "sh", "-c", f'{mounts} && shift && exec "$@"', "sh", str(accounts)),
            *(sys.executable, str(HERE / "inetd.py"), str(self.port), str(self.needs)),
        ]


class PyFTPDlib(Guest):
    """pyftpdlib as its own command starts it."""

    needs = Path(sys.executable)

    def program(self) -> list[str]:
        """Return the program and its arguments."""
        return [
            *(sys.executable, "-W", "ignore", "-m", "pyftpdlib", "-i", self.host, "-p", str(self.port), "-w"),
            *("-d", str(self.root), "-u", self.username, "-P", self.password),
        ]


class Python(Guest):
    """A server of PyPI."""

    def environment(self) -> dict[str, str]:
        """Name the folder of its packages."""
        return {"PYTHONPATH": str(ZOO / "python"), "PYTHONDONTWRITEBYTECODE": "1"}


class Aioftp(Python):
    """aioftp as its own command starts it."""

    needs = ZOO / "python" / "aioftp"

    def program(self) -> list[str]:
        """Return the program and its arguments."""
        return [
            *(sys.executable, "-m", "aioftp", "-q", "--host", self.host, "--port", str(self.port)),
            *("--family", "ipv4", "-d", str(self.root), "--user", self.username, "--pass", self.password),
        ]


class Twisted(Python):
    """Twisted's server."""

    needs = ZOO / "python" / "twisted"

    def program(self) -> list[str]:
        """Return the program and its arguments."""
        main = str(HERE / "twisted_ftpd.py")
        return [sys.executable, main, str(self.port), str(self.root), self.username, self.password]


class Apache(Guest):
    """Apache FtpServer as its own command starts it; the option is the number of logins that it takes."""

    needs = ZOO / "java" / ".made-by"

    def program(self) -> list[str]:
        """Return the program and its arguments; writes its configuration."""
        user = f"ftpserver.user.{self.username}"
        users = self.write(
            "users.properties",
            f"{user}.userpassword={self.password}\n{user}.homedirectory={self.root}\n"
            f"{user}.writepermission=true\n{user}.enableflag=true\n",
        )
        (most,) = self.options
        space = "http://mina.apache.org/ftpserver"
        configuration = self.write(
            "ftpd.xml",
            f'<server xmlns="{space}/spring/v1" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"\n'
            f'    xsi:schemaLocation="{space}/spring/v1 {space}/ftpserver-1.0.xsd" id="server" max-logins="{most}">\n'
            f'<listeners><nio-listener name="default" port="{self.port}" local-address="{self.host}"/></listeners>\n'
            f'<file-user-manager file="{users}" encrypt-passwords="clear"/>\n</server>\n',
        )
        command = [str(stack.KAFKA_BIN / "kafka-run.sh"), "--print-java"]
        java = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        return [
            *(java, "-Xmx256m", "-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"),
            *("-cp", str(ZOO / "java" / "*"), "org.apache.ftpserver.main.CommandLine", f"file:{configuration}"),
        ]


class FtpSrv(Guest):
    """ftp-srv as its own command starts it."""

    needs = ZOO / "node" / "node_modules" / "ftp-srv"

    def program(self) -> list[str]:
        """Return the program and its arguments."""
        return [
            *("node", str(self.needs / "bin" / "index.js"), f"ftp://{self.host}:{self.port}", "--root", str(self.root)),
            *("--username", self.username, "--password", self.password),
            *("--pasv-url", self.host, "--pasv-min", "30001", "--pasv-max", "32000"),
        ]
