"""Fixtures of every test: real servers on free ports, fresh names, a guard against leftovers."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import hypothesis
import psutil
import pytest
import structlog

import stack
from etl import logs
from servers.certificates import Authority

# How long an example takes says nothing of the code on a busy machine; a test has its limit as all others have.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")

STOP_LIMIT = 20.0  # seconds that workers may need to stop their servers
TELLS_CHILDREN = Path("/proc/thread-self/children").exists()  # does the kernel tell the children of a thread?
LEAVE_LIMIT = 3.0  # seconds that a test's threads and processes may need to be gone after its end


def pytest_configure(config: pytest.Config) -> None:
    """End in good order when told to (SIGTERM): fixtures stop their servers. Workers are told first, and waited for."""
    has_workers = bool(config.getoption("numprocesses", None)) and not hasattr(config, "workerinput")

    def stop(_number: int, _frame: object) -> None:
        workers = psutil.Process().children() if has_workers else []
        servers = [server for worker in workers for server in worker.children(recursive=True)]
        for worker in workers:
            worker.terminate()
        psutil.wait_procs(servers, STOP_LIMIT)
        pytest.exit("told to stop by SIGTERM", 143)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long: short files fill the gaps at the end, when several workers share the tests."""
    items.sort(key=lambda item: bool({"unit", "contract"} & item.keywords.keys()))


def pytest_collection_finish() -> None:
    """Take what is there by now out of the collector's way: many tests have it look for what they left."""
    gc.collect()
    gc.freeze()


def _threads() -> set[threading.Thread]:
    return set(threading.enumerate())


def _children() -> set[psutil.Process]:
    """Return all processes below this one, but for the servers of the session and what is below these."""
    lasting = {server.pid for server in stack.Server.lasting if server.running}
    found, parents = set(), [os.getpid()]
    while parents:
        for child in _children_of(parents.pop()):
            if child.pid not in lasting:
                found.add(child)
                parents.append(child.pid)
    return found


def _children_of(pid: int) -> Iterator[psutil.Process]:
    """Yield the children of a process. Each test asks several times, and psutil reads all processes of the machine."""
    if not TELLS_CHILDREN:
        with contextlib.suppress(psutil.NoSuchProcess):
            yield from psutil.Process(pid).children()
        return
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):  # it has ended
            for child in (thread / "children").read_text().split():
                with contextlib.suppress(psutil.NoSuchProcess):
                    yield psutil.Process(int(child))


def _sockets() -> set[str]:
    sockets = set()
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208 - not a folder of files
        try:
            target = os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115 - the link's text is what is asked for
        except OSError:
            continue
        if target.startswith("socket:"):
            sockets.add(target)
    return sockets


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """A test that sets up logging, as every command does, must not decide what the next one hears."""
    root = logging.getLogger()
    level = root.level
    yield
    logs.configure("text", "INFO", (), io.StringIO())  # no secret of a test outlives it
    structlog.reset_defaults()
    for handler in [handler for handler in root.handlers if isinstance(handler, logs._Handler)]:
        root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves a thread, a child process or a socket behind."""
    threads, children, sockets = _threads(), _children(), _sockets()
    yield
    deadline = time.monotonic() + LEAVE_LIMIT
    while True:
        left = [f"thread {thread.name}" for thread in _threads() - threads if thread.is_alive()]
        left += [_describe(child) for child in _children() - children]
        left += sorted(_sockets() - sockets)
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.02)
        gc.collect()  # nobody holds what only waits for the collector
    for child in _children() - children if left else ():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended by itself
            child.kill()
    assert not left, f"left behind: {', '.join(left)}"


def _describe(child: psutil.Process) -> str:
    try:
        return f"process {child.pid} {' '.join(child.cmdline()[:4])}"
    except psutil.Error:
        return f"process {child.pid}"


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.Broker]:
    """The broker that tests share; a test that hurts it uses `new_broker`."""
    folder = tmp_path_factory.mktemp("broker")
    with stack.Broker(folder).for_the_session() as server:
        yield server
    stack.remove_tree(folder)


S = TypeVar("S", bound=stack.Server)
Start = Callable[..., S]


@contextlib.contextmanager
def own_servers(kind: Callable[[Path, dict[str, str]], S], folders: pytest.TempPathFactory) -> Iterator[Start[S]]:
    """Give what starts servers of a test's own with settings by name, each in a folder that goes with it."""
    servers: dict[Path, S] = {}

    def start(**settings: str) -> S:
        folder = folders.mktemp("own")
        servers[folder] = kind(folder, settings)
        return servers[folder].start()

    yield start
    for folder, server in servers.items():
        server.kill()
        stack.remove_tree(folder)


@pytest.fixture
def new_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start[stack.Broker]]:
    """Start brokers of a test's own, to freeze and kill: `new_broker(**{"some.setting": "value"})`."""
    with own_servers(stack.Broker, tmp_path_factory) as start:
        yield start


@pytest.fixture
def topic() -> str:
    """A topic name that nobody used before; the topic itself does not exist yet."""
    return f"jobs-{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def vsftpd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.Vsftpd]:
    """Debian's vsftpd that tests share; each test works in a folder of its own below `root`."""
    stack.sweep_pam_services()
    with stack.Vsftpd(tmp_path_factory.mktemp("vsftpd")).for_the_session() as server:
        yield server


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority that signs the certificates of tests."""
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def vsftpd_tls(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[stack.Vsftpd]:
    """Debian's vsftpd as strict about TLS as it can be, that tests share."""
    certificate = authority.sign("vsftpd", "127.0.0.1", "localhost")
    settings = stack.STRICT_TLS | {"rsa_cert_file": str(certificate.pem)}
    with stack.Vsftpd(tmp_path_factory.mktemp("vsftpd"), settings).for_the_session() as server:
        yield server


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.Sshd]:
    """OpenSSH's sshd that tests share; each test works in a folder of its own below `root`."""
    with stack.Sshd(tmp_path_factory.mktemp("sshd")).for_the_session() as server:
        yield server


@pytest.fixture
def make_sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start[stack.Sshd]]:
    """Start sshds of a test's own: `make_sshd(MaxStartups="1")`."""
    with own_servers(stack.Sshd, tmp_path_factory) as start:
        yield start


@pytest.fixture
def make_vsftpd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start[stack.Vsftpd]]:
    """Start vsftpds of a test's own: `make_vsftpd(max_clients="2")`."""
    with own_servers(stack.Vsftpd, tmp_path_factory) as start:
        yield start


@pytest.fixture
def make_ftpd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., stack.Ftpd]]:
    """Start pyftpdlib servers: `make_ftpd(accounts={"user": "password"}, max_connections=2, root=Path)`."""
    servers: list[stack.Ftpd] = []

    def start(
        accounts: dict[str, str] | None = None, max_connections: int = 512, root: Path | None = None
    ) -> stack.Ftpd:
        accounts = accounts or {"ftp-user": f"Ftp-{uuid.uuid4().hex[:12]}"}
        server = stack.Ftpd(tmp_path_factory.mktemp("ftpd"), accounts, max_connections)
        if root is not None:
            server.root = root
        servers.append(server)
        return server.start()

    yield start
    for server in servers:
        server.kill()
