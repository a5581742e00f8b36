"""What a store's refusal means: its code decides, and where there is none, its status."""

from __future__ import annotations

import re
import ssl
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from etl.errors import (
    AuthenticationFailed,
    ConnectionLost,
    CopyDamaged,
    EncryptionRefused,
    EtlError,
    FileMissing,
    InvalidPath,
    IOFailure,
    PermissionRefused,
    ServerBusy,
    ServerUnavailable,
    StorageFull,
)
from etl.transfer.ftps import refusals as tls
from etl.transfer.s3 import documents

if TYPE_CHECKING:
    from datetime import datetime

    from etl.models.server import ServerConfig
    from etl.transfer.s3.channel import Answer

_KINDS: dict[type[EtlError], str] = {
    FileMissing: "NoSuchKey NoSuchVersion MethodNotAllowed",
    PermissionRefused: "AccessDenied AllAccessDisabled AccountProblem NotSignedUp InvalidObjectState ObjectLocked",
    AuthenticationFailed: "InvalidAccessKeyId SignatureDoesNotMatch ExpiredToken InvalidToken TokenRefreshRequired"
    " InvalidSecurity AuthorizationHeaderMalformed UnauthorizedAccess",
    ServerBusy: "SlowDown SlowDownRead SlowDownWrite ServiceUnavailable TooManyRequests RequestLimitExceeded"
    " Throttling ThrottlingException XMinioServerNotInitialized",
    StorageFull: "QuotaExceeded XMinioStorageFull XMinioAdminBucketQuotaExceeded InsufficientStorage"
    " InsufficientCapacity NotEnoughSpace",
    InvalidPath: "KeyTooLongError XMinioInvalidObjectName InvalidObjectName",
    ConnectionLost: "RequestTimeout",
    CopyDamaged: "BadDigest InvalidDigest XAmzContentChecksumMismatch XAmzContentSHA256Mismatch",
}
_BY_CODE = {code: kind for kind, codes in _KINDS.items() for code in codes.split()}
_BY_STATUS: dict[int, type[EtlError]] = {
    401: AuthenticationFailed,
    403: PermissionRefused,
    404: FileMissing,
    429: ServerBusy,
    502: ServerBusy,
    503: ServerBusy,
    504: ServerBusy,
    507: StorageFull,
}
_SKEWED, _NO_BUCKET = "RequestTimeTooSkewed", "NoSuchBucket"
_WORD = re.compile(r"[A-Za-z0-9._-]{1,100}")
_MOVED = {301, 307, 308}
_NO_TLS = {"WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}


def code_of(answer: Answer) -> str:
    """Return the store's code for what went wrong, empty where it gives none."""
    root = documents.root_of(answer.content)
    if root is None or root.tag != "Error":
        return ""
    code = documents.text_of(root, "Code")
    return code if _WORD.fullmatch(code) else "UnreadableCode"


def is_refused(answer: Answer) -> bool:
    """Is an answer a refusal? Some say so only in the body of a success."""
    return answer.status >= 300 or bool(code_of(answer))


def region_told(answer: Answer) -> str:
    """Return the region that a store says is the right one, empty where it does not."""
    told = answer.headers.get("x-amz-bucket-region", "")
    root = documents.root_of(answer.content)
    told = told or documents.text_of(root, "Region")
    return told if _WORD.fullmatch(told) else ""


def skew_of(answer: Answer, now: datetime) -> float | None:
    """Return by how many seconds the store's clock is ahead of `now`; None where it does not tell."""
    try:
        return (parsedate_to_datetime(answer.headers["date"]) - now).total_seconds()
    except (KeyError, ValueError, TypeError, OverflowError):
        return None


def refused(server: ServerConfig, what: str, answer: Answer, now: datetime) -> EtlError:
    """Return the error for a refused request; `what`: the key, or the bucket."""
    name, code, where = server.hostname, code_of(answer), f"{server.hostname}:{what}"
    said = documents.text_of(documents.root_of(answer.content), "Message")
    said = "".join([sign if sign.isprintable() else "?" for sign in said])
    text = f"{where}: {answer.status} {code or 'without a code'}{f' ({said[:300]})' if said else ''}"
    if code == _SKEWED:
        skew = skew_of(answer, now)
        apart = "" if skew is None else f" by {abs(skew):.0f} s, ours is {'behind' if skew > 0 else 'ahead'}"
        clocks = f"{name}: the store's clock and this machine's differ too much{apart}: set the clock"
        return AuthenticationFailed(clocks, server=name)
    if code == _NO_BUCKET:
        return ServerUnavailable(f"{name}: there is no such bucket ({name}_BUCKET): {text}", server=name)
    if answer.status in _MOVED or code in {"AuthorizationHeaderMalformed", "PermanentRedirect"}:
        told = region_told(answer)
        hint = f"{name}_REGION={told}" if told else f"{name}_REGION and {name}_ENDPOINT"
        return AuthenticationFailed(f"{name}: the bucket is elsewhere: check {hint}: {text}", server=name)
    kind = _BY_CODE.get(code) or (_BY_STATUS.get(answer.status) if not code or answer.status >= 429 else None)
    return (kind or IOFailure)(text, server=name)


def no_handshake(server: ServerConfig, error: OSError) -> EtlError:
    """Return the error for a connection that was not encrypted. Not for certificates."""
    reason = (getattr(error, "reason", None) or "") if isinstance(error, ssl.SSLError) else ""
    if reason in _NO_TLS:
        what = f"what the store says is no TLS; {server.hostname}_ENDPOINT=http://... may be right ({reason})"
        return EncryptionRefused(f"{server.hostname}: {what}", server=server.hostname)
    return tls.no_handshake(server, error, is_implicit=False)
