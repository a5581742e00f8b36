"""Errors: each knows its code and what becomes of the job that met it."""

from __future__ import annotations

import inspect

import pytest

from etl import errors
from etl.errors import EtlError, Fate

pytestmark = pytest.mark.unit

# DESIGN section 5; the rest of its list belongs to features to come.
CODES = {
    "INVALID_MESSAGE": {"InvalidMessage", "InvalidPath"},
    "INVALID_CONFIG": {"SettingsError", "UnknownServer", "UnknownType"},
    "FILE_NOT_FOUND": {"FileMissing"},
    "PERMISSION_DENIED": {"PermissionRefused", "Forbidden"},
    "ALREADY_EXISTS": {"AlreadyExists"},
    "AUTHENTICATION_FAILED": {"AuthenticationFailed", "CertificateRefused", "EncryptionRefused", "HostKeyRefused"},
    "TRANSFER_TIMEOUT": {"TransferTimeout"},
    "STORAGE_FULL": {"StorageFull", "TooLarge"},
    "SIZE_MISMATCH": {"SizeMismatch"},
    "SOURCE_CHANGED": {"SourceChanged"},
    "DEADLINE_EXCEEDED": {"DeadlineExceeded"},
    "IO_ERROR": {"IOFailure", "NotAFile", "NameNotKept"},
}
FATES = {
    Fate.OUTAGE: {
        "OnHold",
        "AuthenticationFailed",
        "CertificateRefused",
        "EncryptionRefused",
        "HostKeyRefused",
        "ServerUnavailable",
        "ServerBusy",
    },
    Fate.RETRY: {
        "PermissionRefused",
        "SessionFault",
        "PartHeld",
        "ConnectionLost",
        "TransferTimeout",
        "StorageFull",
        "SizeMismatch",
        "CopyDamaged",
        "SourceChanged",
        "IOFailure",
    },
    Fate.ABANDON: {"OwnershipLost"},
}
KINDS = {name: kind for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, EtlError)}


@pytest.mark.parametrize("code", CODES)
def test_codes_are_those_that_users_read(code: str) -> None:
    """A code names a kind of failure, in dead letters and results."""
    assert {name for name, kind in KINDS.items() if kind.code == code} == CODES[code]


@pytest.mark.parametrize("name", KINDS)
def test_each_error_knows_the_fate_of_its_job(name: str) -> None:
    """What may pass is retried, what is down is waited for, the rest is dead at once."""
    expected = next((fate for fate, names in FATES.items() if name in names), Fate.DEAD)
    assert KINDS[name].fate is expected


def test_an_error_says_its_message_and_its_server() -> None:
    """Also those that are OSErrors, whose own text would be a tuple."""
    error = errors.FileMissing("SRC:/a: no such file", server="SRC")
    assert (str(error), error.server) == ("SRC:/a: no such file", "SRC")
    assert isinstance(error, FileNotFoundError)
    assert str(errors.StorageFull("full")) == "full"
    assert str(EtlError.__new__(EtlError)) == "EtlError"
    assert errors.MessageTooLarge("large", index=3).index == 3


def test_a_bug_is_a_dead_letter() -> None:
    """One poisonous file stops no line."""
    assert errors.code_of(ZeroDivisionError()) == "UNKNOWN_ERROR"
    assert errors.fate_of(ZeroDivisionError()) is Fate.DEAD
    assert errors.code_of(errors.IOFailure("x")) == "IO_ERROR"
    assert errors.fate_of(errors.ServerBusy("x")) is Fate.OUTAGE


def test_errors_are_what_python_calls_them() -> None:
    """Users' code may catch the built-in classes."""
    for kind, builtin in (
        (errors.PermissionRefused, PermissionError),
        (errors.AlreadyExists, FileExistsError),
        (errors.ConnectionLost, ConnectionError),
        (errors.TransferTimeout, TimeoutError),
        (errors.UnknownServer, ValueError),
        (errors.UnknownType, ValueError),
        (errors.InvalidMessage, ValueError),
    ):
        assert issubclass(kind, builtin)
