"""Every error the product raises: its code, and what becomes of the job that met it.

The consumer asks one question of any error: `error.fate`. A leaf: imports nothing of the package.
"""

from enum import Enum
from typing import ClassVar


class Fate(Enum):
    """What happens to a job after an error."""

    RETRY = "retry"  # may pass: spends an attempt, comes back after a back-off
    OUTAGE = "outage"  # the server is down or takes no more connections: waits, spends no attempt
    DEAD = "dead"  # will not pass: a dead letter now
    ABANDON = "abandon"  # not ours any more: no outcome is written, whoever owns the job repeats it


class EtlError(Exception):
    """Base of all errors of this package; `server` names the server concerned, if one is."""

    code: ClassVar[str] = "UNKNOWN_ERROR"
    fate: ClassVar[Fate] = Fate.DEAD

    def __init__(self, message: str, *, server: str | None = None) -> None:
        super().__init__(message)
        self.server = server

    def __str__(self) -> str:
        # OSError's own __str__ would print errno tuples; the message is always the first argument.
        return str(self.args[0]) if self.args else type(self).__name__


class SettingsError(EtlError, ValueError):
    """Raised when the settings are wrong; the message lists every wrong one. The process exits with 2."""

    code = "INVALID_CONFIG"


class UnknownServer(EtlError, ValueError):
    """Raised when a job names a server that no setting defines."""

    code = "INVALID_CONFIG"


class UnknownType(EtlError, ValueError):
    """Raised when no protocol is registered under a server's type."""

    code = "INVALID_CONFIG"


class InvalidMessage(EtlError, ValueError):
    """Raised when a message is no valid job; the message names the field.

    `job_id`: what the message calls itself, where that can be read all the same.
    """

    code = "INVALID_MESSAGE"

    def __init__(self, message: str, *, server: str | None = None, job_id: str | None = None) -> None:
        super().__init__(message, server=server)
        self.job_id = job_id


class InvalidPath(EtlError, ValueError):
    """Raised when a path cannot exist on its server (control characters, `..` above the base, not encodable)."""

    code = "INVALID_MESSAGE"


class FileMissing(EtlError, FileNotFoundError):
    """Raised when the file, or a folder on its way, is not there."""

    code = "FILE_NOT_FOUND"


class PermissionRefused(EtlError, PermissionError):
    """Raised when the server knows the path and does not let us."""

    code = "PERMISSION_DENIED"


class AlreadyExists(EtlError, FileExistsError):
    """Raised by `overwrite: fail` when another file is at the destination."""

    code = "ALREADY_EXISTS"


class AuthenticationFailed(EtlError, PermissionError):
    """Raised when a login is refused. The password may be on its way: the job waits as for an outage."""

    code = "AUTHENTICATION_FAILED"
    fate = Fate.OUTAGE


class HostKeyRefused(AuthenticationFailed):
    """Raised when a server's key is not known, or not the one that is: the message has its fingerprint."""


class ServerUnavailable(EtlError, ConnectionError):
    """Raised when a server cannot be reached, refuses, or gives no welcome: before any login."""

    code = "CONNECTION_ERROR"
    fate = Fate.OUTAGE


class ServerBusy(ServerUnavailable):
    """Raised when a server says it has too many connections: back-pressure, not a failure."""


class ConnectionLost(EtlError, ConnectionError):
    """Raised when a session breaks after its login."""

    code = "CONNECTION_ERROR"
    fate = Fate.RETRY


class TransferTimeout(EtlError, TimeoutError):
    """Raised when a reply, the data or the whole transfer takes longer than its limit."""

    code = "TRANSFER_TIMEOUT"
    fate = Fate.RETRY


class StorageFull(EtlError, OSError):
    """Raised when the destination has no room (disk or quota)."""

    code = "STORAGE_FULL"
    fate = Fate.RETRY


class SizeMismatch(EtlError):
    """Raised when the bytes read, sent and stored are not the same number."""

    code = "SIZE_MISMATCH"
    fate = Fate.RETRY


class SourceChanged(EtlError):
    """Raised when the source's size or time changed while it was read."""

    code = "SOURCE_CHANGED"
    fate = Fate.RETRY


class DeadlineExceeded(EtlError):
    """Raised when a job's `deadline` has passed."""

    code = "DEADLINE_EXCEEDED"


class IOFailure(EtlError, OSError):
    """Raised for a failure of the server or of a disk that no other class describes."""

    code = "IO_ERROR"
    fate = Fate.RETRY


class NotAFile(IOFailure):
    """Raised when a folder, or something else that is no file, is where a file should be, or the reverse."""

    fate = Fate.DEAD


class OwnershipLost(EtlError):
    """Raised when the job's partition is not ours any more, or the process stops: nothing is reported."""

    fate = Fate.ABANDON


# --- the broker: none of these is ever a job's outcome --------------------------------------------------------


class BrokerUnavailable(EtlError):
    """Raised when Kafka does not answer, or refuses; the message says what was tried."""

    code = "CONNECTION_ERROR"


class BrokerRefused(BrokerUnavailable):
    """Raised when Kafka refuses us for good (no right, or another live member has our name): the process ends."""


class CommitRejected(BrokerUnavailable):
    """Raised when a transaction was surely not committed."""


class Fenced(CommitRejected):
    """Raised when somebody else took our transactional id, or our transaction ran out of time."""


class CommitUnknown(BrokerUnavailable):
    """Raised when the end of a transaction is not known: read back before anything is sent again."""


class MessageTooLarge(BrokerUnavailable):
    """Raised when a topic refuses a message's size; `index` is its place in the transaction, which was aborted."""

    def __init__(self, message: str, *, index: int) -> None:
        super().__init__(message)
        self.index = index


def code_of(error: BaseException) -> str:
    """Return the error code for messages; anything that is no `EtlError` is a bug: `UNKNOWN_ERROR`."""
    return error.code if isinstance(error, EtlError) else EtlError.code


def known_codes() -> list[str]:
    """Return every code that an error can have, those of users' own protocols included."""
    kinds: list[type[EtlError]] = [EtlError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return sorted({kind.code for kind in kinds})


def fate_of(error: BaseException) -> Fate:
    """Return what becomes of a job after `error`; a bug is a dead letter, so one poisonous file stops no line."""
    return error.fate if isinstance(error, EtlError) else Fate.DEAD
