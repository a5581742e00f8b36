"""Every error that the product raises: its code, and what happens to the job that met it (`fate`).

A leaf: imports nothing from the package.
"""

from enum import Enum
from typing import ClassVar


class Fate(Enum):
    """What happens to a job after an error."""

    RETRY = "retry"  # may succeed later: spends an attempt, and runs again after a back-off
    OUTAGE = "outage"  # the server is down or accepts no more connections: waits, and spends no attempt
    DEAD = "dead"  # cannot succeed: becomes a dead letter at once
    ABANDON = "abandon"  # no longer ours: write no outcome, because the partition's new owner repeats the job


class EtlError(Exception):
    """Base of all errors of this package; `server` is the name of the server concerned, if there is one."""

    code: ClassVar[str] = "UNKNOWN_ERROR"
    fate: ClassVar[Fate] = Fate.DEAD
    spends_attempt: ClassVar[bool] = True  # False: it says nothing of the job, which runs again for nothing, some times

    def __init__(self, message: str, *, server: str | None = None) -> None:
        super().__init__(message)
        self.server = server

    def __str__(self) -> str:
        # OSError would print errno tuples; the message is always the first argument.
        return str(self.args[0]) if self.args else type(self).__name__


class SettingsError(EtlError, ValueError):
    """Raised when settings are wrong; the message lists all of them. The process exits with code 2."""

    code = "INVALID_CONFIG"


class UnknownServer(EtlError, ValueError):
    """Raised when a job names a server that the settings do not define."""

    code = "INVALID_CONFIG"


class UnknownType(EtlError, ValueError):
    """Raised when no protocol is registered under a server's type."""

    code = "INVALID_CONFIG"


class InvalidMessage(EtlError, ValueError):
    """Raised when a message is not a valid job; the error names every wrong field.

    `job_id` is the id that the message gives itself, if at least that could be read.
    """

    code = "INVALID_MESSAGE"

    def __init__(self, message: str, *, server: str | None = None, job_id: str | None = None) -> None:
        super().__init__(message, server=server)
        self.job_id = job_id


class InvalidPath(EtlError, ValueError):
    """Raised when a path cannot exist on its server: control characters, `..` above the base, or not encodable."""

    code = "INVALID_MESSAGE"


class Forbidden(EtlError, PermissionError):
    """Raised when the settings do not allow jobs what a job asks for."""

    code = "PERMISSION_DENIED"


class FileMissing(EtlError, FileNotFoundError):
    """Raised when the file, or a folder of its path, does not exist."""

    code = "FILE_NOT_FOUND"


class PermissionRefused(EtlError, PermissionError):
    """Raised when the server denies access to the path. That may pass: the file may be in use."""

    code = "PERMISSION_DENIED"
    fate = Fate.RETRY


class AlreadyExists(EtlError, FileExistsError):
    """Raised when `overwrite` is `fail` and another file is at the destination."""

    code = "ALREADY_EXISTS"


class AuthenticationFailed(EtlError, PermissionError):
    """Raised when a login is refused. The job waits as for an outage, because the password may just be changing."""

    code = "AUTHENTICATION_FAILED"
    fate = Fate.OUTAGE


class HostKeyRefused(AuthenticationFailed):
    """Raised when a server's key is not known, or not the one that is: the message has its fingerprint."""


class CertificateRefused(AuthenticationFailed):
    """Raised when a server's certificate is not trusted: the message has its fingerprint."""


class EncryptionRefused(AuthenticationFailed):
    """Raised when a server and the settings do not agree on how to encrypt; nothing is sent in clear instead."""


class ServerUnavailable(EtlError, ConnectionError):
    """Raised before the login, when a server cannot be reached, refuses the connection, or sends no welcome."""

    code = "CONNECTION_ERROR"
    fate = Fate.OUTAGE


class ServerBusy(ServerUnavailable):
    """Raised when a server reports too many connections: back-pressure, not a failure."""


class ConnectionLost(EtlError, ConnectionError):
    """Raised when a session breaks after its login."""

    code = "CONNECTION_ERROR"
    fate = Fate.RETRY


class SessionFault(ConnectionLost):
    """Raised when a session turns out to be of no use, through no fault of the job.

    It was dead before, has forgotten its login, or its replies are out of step with the commands.
    """

    spends_attempt = False


class PartHeld(SessionFault):
    """Raised when a server does not let a partial file be gone on with, as the upload that was cut still holds it."""


class TransferTimeout(EtlError, TimeoutError):
    """Raised when a reply, the data or the whole transfer takes longer than its limit."""

    code = "TRANSFER_TIMEOUT"
    fate = Fate.RETRY


class StorageFull(EtlError, OSError):
    """Raised when the destination's disk or quota is full."""

    code = "STORAGE_FULL"
    fate = Fate.RETRY


class TooLarge(EtlError, OSError):
    """Raised when a file is larger than `ETL_MAX_FILE_BYTES` allows."""

    code = "STORAGE_FULL"


class SizeMismatch(EtlError):
    """Raised when the numbers of bytes read, sent and stored differ."""

    code = "SIZE_MISMATCH"
    fate = Fate.RETRY


class ChecksumMismatch(EtlError):
    """Raised when the source's bytes are not those that the job, or a checksum file, says: no attempt changes that."""

    code = "CHECKSUM_MISMATCH"


class CopyDamaged(EtlError):
    """Raised when the bytes at the destination are not those that were sent."""

    code = "CHECKSUM_MISMATCH"
    fate = Fate.RETRY


class SourceChanged(EtlError):
    """Raised when the size or time of the source changed while it was read."""

    code = "SOURCE_CHANGED"
    fate = Fate.RETRY


class DeadlineExceeded(EtlError):
    """Raised when a job's `deadline` has passed."""

    code = "DEADLINE_EXCEEDED"


class Cancelled(EtlError):
    """Raised when an operator cancelled the job."""

    code = "CANCELLED"


class OnHold(EtlError):
    """Raised, in place of an outage, for a server that an operator put on hold: its jobs wait."""

    fate = Fate.OUTAGE


class IOFailure(EtlError, OSError):
    """Raised for any other failure of a server or of a disk."""

    code = "IO_ERROR"
    fate = Fate.RETRY


class NotAFile(IOFailure):
    """Raised when a folder, or anything else but an ordinary file, is in the place of a file, or the reverse."""

    fate = Fate.DEAD


class NameNotKept(IOFailure):
    """Raised when a server stores a file under another name than it was given."""

    fate = Fate.DEAD


class OwnershipLost(EtlError):
    """Raised when the job's partition is no longer ours, or the process stops: no outcome is written."""

    fate = Fate.ABANDON


# --- the broker: none of these is ever the outcome of a job ---------------------------------------------------


class BrokerUnavailable(EtlError):
    """Raised when Kafka does not answer, or refuses a request; the message says which."""

    code = "CONNECTION_ERROR"


class BrokerRefused(BrokerUnavailable):
    """Raised when Kafka refuses us for good, because we lack a right or another process uses our name.

    The process ends.
    """


class CommitRejected(BrokerUnavailable):
    """Raised when a transaction is certain not to be committed."""


class Fenced(CommitRejected):
    """Raised when another process took our transactional id, or our transaction timed out."""


class CommitUnknown(BrokerUnavailable):
    """Raised when a transaction may or may not be committed: read back the offsets before sending anything again."""


class MessageRefused(BrokerUnavailable):
    """Raised when the broker refuses a message for what it is; nothing was committed.

    `index` is its position in the transaction. `is_alone`: no other message of the transaction can be the cause.
    """

    def __init__(self, message: str, *, index: int, is_alone: bool = True) -> None:
        super().__init__(message)
        self.index = index
        self.is_alone = is_alone


class MessageTooLarge(MessageRefused):
    """Raised when a topic refuses the size of a message; nothing was committed."""


class TopicRefused(CommitRejected):
    """Raised when a topic accepts no message now, while others do; nothing was committed."""

    def __init__(self, message: str, *, topic: str) -> None:
        super().__init__(message)
        self.topic = topic


def code_of(error: BaseException) -> str:
    """Return the code of an error; anything but an `EtlError` is a bug: `UNKNOWN_ERROR`."""
    return error.code if isinstance(error, EtlError) else EtlError.code


def known_codes() -> list[str]:
    """Return every code that an error can have, including those of users' own protocols."""
    kinds: list[type[EtlError]] = [EtlError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return sorted({kind.code for kind in kinds})


def fate_of(error: BaseException) -> Fate:
    """Return what happens to a job after `error`; a bug is a dead letter, so that one bad file blocks no partition."""
    return error.fate if isinstance(error, EtlError) else Fate.DEAD
