"""The subjects of the contract suite: each protocol with real files behind it, and what it can and cannot do."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from contract_parts import LONG, POOR, POOR_STORE, Four, Rich, ftps_config, s3_config, sftp_config

from etl.config import ServerConfig, TransferSettings
from etl.transfer import FTPSTransfer, FTPTransfer, LocalTransfer, S3Transfer, SFTPTransfer
from etl.transfer.base import BaseTransfer, Session
from etl.transfer.ftp import known, pipelining
from etl.transfer.s3 import known as s3_known
from etl.transfer.staged import Staged
from servers.certificates import Authority
from servers.fake import FakeFTP
from servers.pyftpd import NoReplaceHandler, PyFTPD, under_tls
from servers.s3 import FakeStore
from servers.sftp import SFTPServer
from servers.zoo import KINDS as ZOO
from servers.zoo import QUICK, place, unfit
from servers.zoo.server import ProFTPDSftp
from servers.zoo.stores import STORES

LIMITS = TransferSettings(connect_timeout=5, login_timeout=10, reply_timeout=10, stall_timeout=10)
BUFFER_BYTES = 256 * 1024


@dataclass
class Subject:
    """One protocol: makes sessions; `root` is where `/` of their paths lies on this disk."""

    root: Path
    open: Callable[[], Session]
    can: set[str] = field(default_factory=set)
    encoding: str = "utf-8"

    def put(self, path: str, content: bytes = b"content") -> Path:
        """Make a file at the server."""
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        return place

    def files(self) -> set[str]:
        """Return the paths of all files at the server."""
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*") if not path.is_dir()}


RICH = {"look", "dispose", "remove", "unchanged", "size", "names", "folders", "partial"}
ALL = RICH | {"time", "abort", "base", "resume"}
OBJECTS = ALL - {"folders", "base", "partial"}  # partial: what is not published yet can be read
KINDS = {
    "local": ALL,
    "ftp": ALL,
    "ftp-active": ALL,
    "ftp-euckr": ALL,
    "ftp-no-replace": ALL,
    "vsftpd": ALL,
    "vsftpd-far": ALL,
    "vsftpd_tls": ALL,
    "vsftpd_tls-far": ALL,
    "vsftpd_tls-1.2": ALL,
    "ftps-pyftpdlib": ALL,
    "sshd": ALL,
    "sshd-one": ALL,
    "asyncssh": ALL,
    "asyncssh-poor": ALL,
    "proftpd-sftp": ALL,
    "s3": OBJECTS,
    "s3-poor": OBJECTS,
    "staged": {"poverty", "folders"},
    "staged-rich": RICH,
    **{f"store-{name}": OBJECTS - {"time"} for name in STORES},
    **{f"zoo-{name}": ALL - kind.lacks for name, kind in ZOO.items() if kind.contract},
}


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark of this suite known."""
    config.addinivalue_line("markers", "needs(*abilities): leaves out the protocols that lack one of them")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what a protocol is not able to do by its nature; nothing that is able is ever left out."""
    left_out = []
    for item in items:
        kind = getattr(item, "callspec", None) and item.callspec.params.get("kind")
        needs = {ability for mark in item.iter_markers("needs") for ability in mark.args}
        if not isinstance(kind, str) or kind not in KINDS:
            continue  # of another suite
        if not needs <= KINDS[kind]:
            left_out.append(item)
        elif kind.startswith("store-"):
            item.add_marker(pytest.mark.zoo)
            item.add_marker(pytest.mark.long)
            if (reason := unfit(kind, item.name)) is not None:
                item.add_marker(pytest.mark.xfail(reason=reason, run=False))
        elif kind.startswith("zoo-"):
            item.add_marker(pytest.mark.zoo)
            if kind.removeprefix("zoo-") not in QUICK:
                item.add_marker(pytest.mark.long)
            if (reason := unfit(kind.removeprefix("zoo-"), item.name)) is not None:
                item.add_marker(pytest.mark.xfail(reason=reason, run=False))
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(params=list(KINDS), scope="session")
def kind(request: pytest.FixtureRequest) -> Iterator[tuple[str, Any]]:
    """Name each subject in turn, with its shared server, which must be up before a test's guard counts processes."""
    name: str = request.param
    if name == "proftpd-sftp":
        with place() as folder, ProFTPDSftp(folder).for_the_session() as server:
            yield name, server
    elif name.startswith("store-"):
        with place() as folder, STORES[name.removeprefix("store-")](folder).for_the_session() as server:
            yield name, server
    elif name.startswith("zoo-"):
        with place() as folder, ZOO[name.removeprefix("zoo-")].make(folder).for_the_session() as server:
            yield name, server
    else:
        shared = next((server for server in ("vsftpd_tls", "vsftpd", "sshd") if name.startswith(server)), None)
        yield name, shared and request.getfixturevalue(shared)


@pytest.fixture
def subject(
    kind: tuple[str, Any], tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Subject]:
    """Give each protocol in turn; every session that a test opened is closed after it."""
    sessions: list[Session] = []
    root = tmp_path / "root"
    root.mkdir()
    name, real = kind
    umask = os.umask(
        0 if name.startswith(("zoo-", "proftpd-")) else 0o022
    )  # what a test makes, a server's own account may change
    server, config = None, None
    make: Callable[[ServerConfig], Session]
    if name == "local":
        config, make = ServerConfig("FILES", "local", base_path=str(root)), _local
    elif name.startswith("staged"):
        wrapped = Rich if name == "staged-rich" else Four
        config, make = ServerConfig("OWN", "own", base_path=str(root)), _staged(wrapped)
    elif name.startswith("vsftpd"):
        monkeypatch.setattr(pipelining, "FAR_SECONDS", 0.0 if name.endswith("-far") else 60.0)
        base = f"/contract-{uuid.uuid4().hex[:8]}"
        root = real.root / base.lstrip("/")
        root.mkdir()
        config, make = _ftp_config(real, base_path=base), _ftp
        if name.startswith("vsftpd_tls"):
            newest = {"TLS_MAX": "1.2"} if name.endswith("1.2") else {}
            config, make = ftps_config(real, authority, base_path=base, **newest), _ftps
    elif name == "ftps-pyftpdlib":
        server = PyFTPD(root, **under_tls(authority.sign("pyftpdlib", "127.0.0.1")))
        config, make = ftps_config(server, authority), _ftps
    elif name.startswith("sshd"):
        root = real.root / f"contract-{uuid.uuid4().hex[:8]}"
        root.mkdir()
        one_at_a_time = {"PIPELINE": "1", "BLOCK": "20000"} if name == "sshd-one" else {}
        config, make = sftp_config(real, base_path=str(root), **one_at_a_time), _sftp
    elif name == "proftpd-sftp":
        base = f"/contract-{uuid.uuid4().hex[:8]}"
        root = real.root / base.lstrip("/")
        root.mkdir(mode=0o777)
        config, make = sftp_config(real, base_path=base, password=real.password), _sftp
    elif name.startswith("store-"):
        base = f"contract-{uuid.uuid4().hex[:8]}"
        root = real.below(base)
        root.mkdir()
        config, make = s3_config(real, base_path=base), _s3
    elif name.startswith("s3"):
        server = FakeStore(root, **(POOR_STORE if name == "s3-poor" else {}))
        config, make = s3_config(server), _s3
    elif name.startswith("asyncssh"):
        server = SFTPServer(root, **(POOR if name == "asyncssh-poor" else {"lowest_handles": True}))
        config, make = sftp_config(server, password=server.password), _sftp
    elif name.startswith("zoo-"):
        resident = ZOO[name.removeprefix("zoo-")]
        base = f"contract-{uuid.uuid4().hex[:8]}"
        root = real.root / base
        root.mkdir(mode=0o777)
        settings = {key.lower(): value for key, value in resident.settings.items()}
        config, make = _ftp_config(real, base_path=f"{real.base_path}/{base}", **settings), _ftp
        if real.ours:
            options = {key: value for key, value in real.ours.items() if key != "TYPE"}
            config, make = replace(config, type=real.ours["TYPE"], options=options), _ftps
    else:
        quirks: dict[str, Any] = {"encoding": "euc-kr"} if name == "ftp-euckr" else {}
        if name == "ftp-no-replace":
            quirks["handler"] = NoReplaceHandler
        server = PyFTPD(root, **quirks)
        config = _ftp_config(server, passive=name != "ftp-active", encoding=quirks.get("encoding"))
        make = _ftp

    def open_one() -> Session:
        session = make(config)
        sessions.append(session)
        session.connect()
        return session

    yield Subject(root, open_one, KINDS[name], config.encoding or "utf-8")
    for session in sessions:
        session.disconnect()
    known.forget()  # the next server may get the port of this one
    s3_known.forget()
    if server is not None:
        server.close()
    os.umask(umask)


def _local(config: ServerConfig) -> Session:
    return LocalTransfer(config, LIMITS)


def _ftp(config: ServerConfig) -> Session:
    return FTPTransfer(config, LIMITS)


def _ftps(config: ServerConfig) -> Session:
    return FTPSTransfer(config, LIMITS)


def _sftp(config: ServerConfig) -> Session:
    return SFTPTransfer(config, LIMITS)


def _s3(config: ServerConfig) -> Session:
    return S3Transfer(config, LIMITS)


def _staged(wrapped: type[BaseTransfer]) -> Callable[[ServerConfig], Session]:
    return lambda config: Staged(wrapped(config, LIMITS), spool_limit_bytes=10 << 30)


def _ftp_config(server: Any, **settings: Any) -> ServerConfig:
    return ServerConfig("FILES", "ftp", server.host, server.port, server.username, server.password, **settings)


@pytest.fixture
def buffer() -> memoryview:
    """A transfer buffer."""
    return memoryview(bytearray(BUFFER_BYTES))


@pytest.fixture
def make_store(tmp_path: Path) -> Iterator[Callable[..., FakeStore]]:
    """Start stores; they end after the test, as do its sessions."""
    stores: list[FakeStore] = []

    def start(**behaviour: Any) -> FakeStore:
        stores.append(FakeStore(tmp_path / f"store{len(stores)}", **behaviour))
        return stores[-1]

    yield start
    s3_known.forget()
    for store in stores:
        store.close()


@pytest.fixture
def enter_store(make_store: Callable[..., FakeStore]) -> Iterator[Callable[..., S3Transfer]]:
    """Open sessions with stores; they are closed after the test."""
    sessions: list[S3Transfer] = []

    def open_one(
        store: FakeStore, limits: TransferSettings = LONG, *, name: str = "FAKE", base: str = "", **settings: str
    ) -> S3Transfer:
        sessions.append(S3Transfer(s3_config(store, name, base, **settings), limits))
        sessions[-1].connect()
        return sessions[-1]

    yield open_one
    for session in sessions:
        session.disconnect()


@pytest.fixture
def fake() -> Iterator[Callable[..., FakeFTP]]:
    """Start fake servers; they are closed after the test, after its sessions."""
    servers: list[FakeFTP] = []

    def start(**behaviour: Any) -> FakeFTP:
        servers.append(FakeFTP(**behaviour))
        return servers[-1]

    yield start
    for server in servers:
        known.forget()
        server.close()


@pytest.fixture
def session(fake: Callable[..., FakeFTP]) -> Iterator[Callable[..., FTPTransfer]]:
    """Open sessions; they are closed after the test."""
    sessions: list[FTPTransfer] = []

    def open_one(
        server: FakeFTP | PyFTPD, limits: TransferSettings = LONG, *, connect: bool = True, **settings: Any
    ) -> FTPTransfer:
        config = ServerConfig("FAKE", "ftp", server.host, server.port, server.username, server.password)
        sessions.append(FTPTransfer(ServerConfig(**{**vars(config), **settings}), limits))
        if connect:
            sessions[-1].connect()
        return sessions[-1]

    yield open_one
    for one in sessions:
        one.disconnect()
