"""Which servers and settings the zoo holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from servers.zoo.encrypted import ApacheTLS, FtpSrvTLS, ProFTPDTLS, PureFTPdTLS, PyFTPDlibTLS, VsftpdTLS
from servers.zoo.server import (
    Aioftp,
    Apache,
    FtpSrv,
    Inetutils,
    OpenSSH,
    ProFTPD,
    ProFTPDSftp,
    PureFTPd,
    PyFTPDlib,
    Resident,
    Twisted,
    Vsftpd,
)

Server = Resident | Vsftpd | OpenSSH


@dataclass(frozen=True)
class Kind:
    """One server in one setting: how it is made, and which settings of the product go with it."""

    name: str
    title: str  # the server, with its release where it is pinned
    setting: str  # what is not as it comes; empty: nothing
    make: Callable[[Path], Server]
    settings: Mapping[str, str] = field(default_factory=dict)  # {NAME}_ and these
    keeps_files: bool = False  # nobody may delete there: partial files may stay, if they are named
    contract: bool = True  # does the suite of all protocols make sense there? It takes 4 sessions, dot files, RNTO
    lacks: frozenset[str] = frozenset()  # abilities that the suite asks for
    slow: str = ""  # why it may have less than a quarter of vsftpd's speed


TIMELESS = frozenset({"time"})  # no MFMT
DISORDERLY = "answers what is sent together in an order of its own, so that it gets its commands one by one: slow"
HANDSHAKES = "every file costs a TLS handshake, and this machine pays for both ends"
DOTLESS = {"PARTIAL_PATTERN": "etl-{id}.part"}

KINDS = {
    kind.name: kind
    for kind in (
        Kind("vsftpd", "vsftpd", "`mdtm_write`, `utf8_filesystem`", Vsftpd),
        Kind(
            "vsftpd-careful",
            "vsftpd",
            "`max_per_ip=3`, `delete_failed_uploads`, `lock_upload_files`, `hide_ids`",
            lambda folder: Vsftpd(
                folder, max_per_ip="3", delete_failed_uploads="YES", lock_upload_files="YES", hide_ids="YES"
            ),
            contract=False,
        ),
        Kind(
            "vsftpd-local",
            "vsftpd",
            "`use_localtime`, a clock nine hours ahead of UTC",
            lambda folder: Vsftpd(folder, use_localtime="YES"),
            {"TIME_ZONE": "+09:00"},
            contract=False,
        ),
        Kind("proftpd", "ProFTPD", "", ProFTPD),
        Kind(
            "proftpd-upstream",
            "ProFTPD",
            "`AllowOverwrite off`, `HiddenStores on`, `DeleteAbortedStores on`, `MaxClientsPerHost 4`",
            lambda folder: ProFTPD(
                folder, "AllowOverwrite off", "HiddenStores on", "DeleteAbortedStores on", "MaxClientsPerHost 4"
            ),
        ),
        Kind(
            "proftpd-factless",
            "ProFTPD",
            "`FactsAdvertise off`, `MFMT` and `MFF` denied",
            lambda folder: ProFTPD(folder, "FactsAdvertise off", "<Limit MFMT MFF SITE_UTIME>\nDenyAll\n</Limit>"),
            lacks=TIMELESS,
        ),
        Kind(
            "proftpd-dotless",
            "ProFTPD",
            r"`HideFiles ^\..*`, `IgnoreHidden on`",
            lambda folder: ProFTPD(
                folder, "<Directory />\nHideFiles ^\\..*\n<Limit ALL>\nIgnoreHidden on\n</Limit>\n</Directory>"
            ),
            DOTLESS,
            contract=False,
        ),
        Kind("pure-ftpd", "Pure-FTPd", "", PureFTPd),
        Kind("pure-ftpd-dotless", "Pure-FTPd", "`-x`", lambda folder: PureFTPd(folder, "-x"), DOTLESS, contract=False),
        Kind(
            "pure-ftpd-nameless",
            "Pure-FTPd",
            "`-G` (no renaming)",
            lambda folder: PureFTPd(folder, "-G"),
            {"PUBLISH": "direct"},
            contract=False,
        ),
        Kind(
            "pure-ftpd-keeping",
            "Pure-FTPd",
            "`-K` (no deleting)",
            lambda folder: PureFTPd(folder, "-K"),
            keeps_files=True,
            contract=False,
        ),
        Kind("pure-ftpd-renaming", "Pure-FTPd", "`-r`", lambda folder: PureFTPd(folder, "-r"), contract=False),
        Kind(
            "pure-ftpd-limited",
            "Pure-FTPd",
            "`-C 3 -Z -b`",
            lambda folder: PureFTPd(folder, "-C", "3", "-Z", "-b", "-L", "10000:20"),
            contract=False,
        ),
        Kind("inetutils", "GNU inetutils ftpd", "", Inetutils, lacks=TIMELESS),
        Kind("pyftpdlib", "pyftpdlib", "", PyFTPDlib),
        Kind("aioftp", "aioftp 0.28.3", "", Aioftp, lacks=TIMELESS, slow=DISORDERLY),
        Kind("twisted", "Twisted 26.10.0", "", Twisted, lacks=TIMELESS),
        Kind("apache", "Apache FtpServer 1.2.1", "`max-logins=50`", lambda folder: Apache(folder, "50"), DOTLESS),
        Kind(
            "apache-limited",
            "Apache FtpServer 1.2.1",
            "`max-logins=4`",
            lambda folder: Apache(folder, "4"),
            DOTLESS,
            contract=False,
        ),
        Kind("ftp-srv", "ftp-srv 4.6.3", "", FtpSrv, lacks=TIMELESS, slow=DISORDERLY),
        Kind("tls-vsftpd", "vsftpd", "TLS, `require_ssl_reuse`, `strict_ssl_read_eof`", VsftpdTLS, contract=False),
        Kind("tls-proftpd", "ProFTPD", "mod_tls, `TLSProtocol TLSv1.2`, `TLSRequired on`", ProFTPDTLS),
        Kind("tls-pure-ftpd", "Pure-FTPd", "`-Y 3`", PureFTPdTLS),
        Kind("tls-pyftpdlib", "pyftpdlib", "TLS required", PyFTPDlibTLS, contract=False, slow=HANDSHAKES),
        Kind(
            "tls-apache",
            "Apache FtpServer 1.2.1",
            "TLS",
            lambda folder: ApacheTLS(folder, "50"),
            DOTLESS,
            slow=HANDSHAKES,
        ),
        Kind("tls-ftp-srv", "ftp-srv 4.6.3", "TLS", FtpSrvTLS, lacks=TIMELESS, slow=f"{DISORDERLY}; {HANDSHAKES}"),
        Kind("sftp-openssh", "OpenSSH", "SFTP", OpenSSH, contract=False),
        Kind("sftp-proftpd", "ProFTPD", "SFTP, by mod_sftp", ProFTPDSftp, contract=False),
    )
}
# Those that run with every change; all others only when there is time.
QUICK = ("proftpd", "pure-ftpd", "tls-proftpd", "tls-pure-ftpd")
