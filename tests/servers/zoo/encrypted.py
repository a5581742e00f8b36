"""Servers of the zoo that encrypt, each with an authority and a certificate of its own, and as strict as it can be."""

from __future__ import annotations

from pathlib import Path

import stack
from servers.certificates import Authority, Certificate
from servers.zoo.server import DEBIAN, HERE, ZOO, Apache, FtpSrv, ProFTPD, PureFTPd, PyFTPDlib, Vsftpd

KEYSTORE_PASSWORD = "Key-4711"


class Encrypts:
    """What such a server has: `authority`, `certificate`, and the product's settings that go with it."""

    folder: Path
    host: str

    def prepare(self) -> Certificate:
        """Make the certificate, once."""
        if not hasattr(self, "certificate"):
            self.authority = Authority(self.folder / "authority")
            self.certificate = self.authority.sign("server", self.host)
        return self.certificate

    @property
    def ours(self) -> dict[str, str]:
        """The product's settings."""
        self.prepare()
        return {"TYPE": "ftps", "TLS_CA_FILE": str(self.authority.ca)}


class VsftpdTLS(Encrypts, Vsftpd):
    """vsftpd, which demands that sessions are taken up, and that connections are ended with a word."""

    def __init__(self, folder: Path, **settings: str) -> None:
        super().__init__(folder, **stack.STRICT_TLS, **settings)
        self.settings["rsa_cert_file"] = str(self.prepare().pem)


class ProFTPDTLS(Encrypts, ProFTPD):
    """ProFTPD with mod_tls; it demands that sessions are taken up, unless told otherwise."""

    needs = DEBIAN / "usr/lib/proftpd/mod_tls.so"

    def command(self) -> list[str]:
        """Return the program and its arguments."""
        pem = self.prepare().pem
        lines = {
            "ModulePath": str(self.needs.parent),
            "LoadModule": "mod_tls.c",
            "TLSEngine": "on",
            "TLSProtocol": "TLSv1.2",
            "TLSRSACertificateFile": str(pem),
            "TLSRSACertificateKeyFile": str(pem),
            "TLSRequired": "on",
            "TLSLog": str(self.folder / "tls.log"),
        }
        own = {option.split()[0] for option in self.options}
        kept = self.options
        self.options = (*(f"{name} {value}" for name, value in lines.items() if name not in own), *kept)
        try:
            return [str(ProFTPD.needs), *super().command()[1:]]
        finally:
            self.options = kept


class PureFTPdTLS(Encrypts, PureFTPd):
    """Pure-FTPd that takes nothing in clear."""

    def command(self) -> list[str]:
        """Return the program and its arguments."""
        return [*super().command(), "-Y", "3", "-2", str(self.prepare().pem)]


class ApacheTLS(Encrypts, Apache):
    """Apache FtpServer."""

    def program(self) -> list[str]:
        """Return the program and its arguments; writes its configuration."""
        command = super().program()
        store = self.prepare().as_pkcs12(KEYSTORE_PASSWORD)
        configuration = self.folder / "ftpd.xml"
        plain = f'local-address="{self.host}"/>'
        secure = (
            f'local-address="{self.host}" implicit-ssl="false"><ssl>'
            f'<keystore file="{store}" password="{KEYSTORE_PASSWORD}"/></ssl></nio-listener>'
        )
        text = configuration.read_text()
        assert plain in text
        configuration.write_text(text.replace(plain, secure))
        return command


class PyFTPDlibTLS(Encrypts, PyFTPDlib):
    """pyftpdlib that takes nothing in clear."""

    def program(self) -> list[str]:
        """Return the program and its arguments."""
        pem = str(self.prepare().pem)
        required = ("--tls-control-required", "--tls-data-required")
        return [*super().program(), "--tls", "--certfile", pem, "--keyfile", pem, *required]


class FtpSrvTLS(Encrypts, FtpSrv):
    """ftp-srv, whose own command knows no TLS."""

    def environment(self) -> dict[str, str]:
        """Name the folder of its packages."""
        return {"NODE_PATH": str(ZOO / "node" / "node_modules")}

    def program(self) -> list[str]:
        """Return the program and its arguments."""
        account = (str(self.root), self.username, self.password)
        return ["node", str(HERE / "node" / "ftps.js"), str(self.port), *account, str(self.prepare().pem)]
