"""Each fault of a server alone: noticed, told truly, nothing left of it, and the next attempt succeeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from contract_parts import PATIENT

from etl.config import ServerConfig, TransferSettings
from etl.errors import EtlError, Fate
from etl.models.message import FileTransferJob
from etl.models.task import Origin, Record, Task
from etl.transfer import FTPSTransfer, FTPTransfer, partials, relay
from etl.transfer.ftp import known, pipelining
from servers.certificates import Authority
from servers.fake_tls import FaultyTLS
from servers.faulty import FAULTS, GROWTH, FaultyFTP, Plan

pytestmark = pytest.mark.contract

BRISK = TransferSettings(
    connect_timeout=0.5, login_timeout=0.6, reply_timeout=0.5, stall_timeout=0.4, min_bytes_per_second=500.0
)
CALM = TransferSettings(  # of whatever is not at fault: a busy machine is no fault
    connect_timeout=10.0, login_timeout=20.0, reply_timeout=10.0, stall_timeout=10.0, min_bytes_per_second=1.0
)
CONTENT = bytes(range(256)) * 400
ATTEMPTS = 3

SOURCE = [(verb, fault) for verb in ("welcome", "PASS", "SIZE", "MDTM", "EPSV", "RETR") for fault in FAULTS[verb]]
DESTINATION = [(verb, fault) for verb in ("SIZE", "EPSV", "STOR", "RNFR", "RNTO") for fault in FAULTS[verb]]
# May cost no attempt: asked again in another way at once, or noticed too late to matter.
HARMLESS = {
    "closed_port",
    "slow",
    "bounce",
    "unknown",
    "grow",
    "denied",
    "wrong_size",
    "no_data",
    "nonsense",
    "no_port",
}

# What a fault may be called. Everything may be a broken connection, or a limit that was passed.
ALWAYS = {"CONNECTION_ERROR", "TRANSFER_TIMEOUT"}
TRUTH = {
    "busy": set(),
    "refused": {"AUTHENTICATION_FAILED"},
    "wrong_size": {"SIZE_MISMATCH", "SOURCE_CHANGED"},
    "nonsense": {"IO_ERROR"},
    "unknown": {"IO_ERROR"},
    "no_port": {"IO_ERROR"},
    "truncate": {"SIZE_MISMATCH"},
    "more": {"SIZE_MISMATCH"},
    "grow": {"SOURCE_CHANGED"},
    "half": {"SIZE_MISMATCH"},
    "full": {"STORAGE_FULL"},
    "full_after": {"STORAGE_FULL"},
    "failed": {"IO_ERROR"},
    "denied": {"PERMISSION_DENIED"},
}


@pytest.fixture(params=["", PATIENT, "TLS"], ids=["plain", "patient", "tls"])
def servers(
    request: pytest.FixtureRequest, tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, Plan], FaultyFTP]]:
    """Start faulty servers; they are closed after the test. Patient ones get commands before their last word."""
    made: list[FaultyFTP] = []
    monkeypatch.setattr(pipelining, "FAR_SECONDS", 0.0)
    more = {"welcome": PATIENT, "lingers": 0.05} if request.param == PATIENT else {}

    def start(name: str, plan: Plan) -> FaultyFTP:
        if request.param == "TLS":
            made.append(FaultyTLS(authority.known("127.0.0.1"), tmp_path / name, plan))
        else:
            made.append(FaultyFTP(tmp_path / name, plan, **more))
        return made[-1]

    yield start
    for server in made:
        known.forget()
        server.close()


def attempt(source: FaultyFTP, destination: FaultyFTP, buffer: memoryview, *, warm: bool) -> EtlError | None:
    """Do a job as a lane does, with new sessions; return how it failed, after tidying up."""
    job = {
        "job_id": "j",
        "source": {"hostname": "A", "path": "/in/a"},
        "destination": {"hostname": "B", "path": "/out/b"},
    }
    origin = Origin("jobs", 0, 0)
    task = Task(Record("jobs", 0, 0, None, b"{}"), origin, FileTransferJob.from_dict(job))
    sessions = [session_of("A", source, limits_of(source)), session_of("B", destination, limits_of(destination))]
    try:
        plans = source.plan, destination.plan
        for session, plan in zip(sessions, plans, strict=True):
            plan.is_over = not plan.is_of_login  # the login asks for a port, too
            session.connect()
        for plan in plans:
            plan.is_over = warm  # the first job of a session waits more often than those after it
        for _ in range(2 if warm else 1):
            relay.run(task, *sessions, "t", relay.Limits(buffer, 0, 0), partials.OrphanIndex())
            for plan in plans:
                plan.is_over = False
    except EtlError as error:
        if task.leaves_partial:
            with session_of("B", destination, CALM) as cleaner:
                cleaner.remove(partials.partial_path(task, cleaner.server, "t"))
        return error
    finally:
        for session in sessions:
            session.disconnect()
    return None


def limits_of(server: FaultyFTP) -> TransferSettings:
    """Return brisk limits for what is yet to go wrong, and calm ones for all else."""
    if not server.plan.has_faults or server.happened:
        return CALM
    return BRISK if server.plan.is_of_login else replace(BRISK, login_timeout=CALM.login_timeout)


def session_of(name: str, server: FaultyFTP, limits: TransferSettings) -> FTPTransfer:
    login = (server.host, server.port, server.username, server.password)
    if isinstance(server, FaultyTLS):
        trusted = {"TLS_FINGERPRINT": server.tls.certificate.fingerprint}
        return FTPSTransfer(ServerConfig(name, "ftps", *login, options=trusted), limits)
    return FTPTransfer(ServerConfig(name, "ftp", *login), limits)


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize(
    ("side", "verb", "fault"), [("A", *one) for one in SOURCE] + [("B", *one) for one in DESTINATION]
)
def test_one_fault(servers, buffer, side: str, verb: str, fault: str, warm: bool) -> None:
    """It costs one attempt at most, says what it was, leaves nothing, and leads to no other host."""
    if warm and verb in {"welcome", "PASS"}:
        return
    faulty, well = Plan({verb: (fault,)}, times=1), Plan({})
    source, destination = servers("a", faulty if side == "A" else well), servers("b", faulty if side == "B" else well)
    (source.root / "in").mkdir()
    (source.root / "in" / "a").write_bytes(CONTENT)
    (destination.root / "out").mkdir()
    began, errors = time.monotonic(), []
    while (error := attempt(source, destination, buffer, warm=warm)) is not None:
        errors.append(error)
        assert len(errors) < ATTEMPTS
    assert time.monotonic() - began < 10
    at_fault = source if side == "A" else destination
    assert [what for _, what in at_fault.happened] == [f"{verb} {fault}"]
    assert len(errors) == 1 or (not errors and fault in HARMLESS)
    for error in errors:
        assert error.code in TRUTH.get(fault, set()) | ALWAYS
        assert error.fate in {Fate.RETRY, Fate.OUTAGE} or fault == "denied"
        assert error.server in {None, side}
    expected = CONTENT + (GROWTH if fault == "grow" else b"")
    assert (destination.root / "out" / "b").read_bytes() == expected
    assert [path.name for path in destination.root.rglob("*") if path.is_file()] == ["b"]


@pytest.mark.parametrize("fault", FAULTS["PASV"])
def test_faults_of_the_older_way_to_connect(servers, buffer, fault: str) -> None:
    """PASV may name any host: it is never gone to."""
    plan = Plan({"PASV": (fault,)}, times=1)
    source, destination = servers("a", plan), servers("b", Plan({}))
    source.answers["EPSV"] = "500 What?"
    (source.root / "in").mkdir()
    (source.root / "in" / "a").write_bytes(CONTENT)
    errors = []
    while (error := attempt(source, destination, buffer, warm=False)) is not None:
        errors.append(error)
        assert len(errors) < ATTEMPTS
    assert len(errors) == (fault != "bounce")
    assert (destination.root / "out" / "b").read_bytes() == CONTENT
    assert source.strangers == 0
