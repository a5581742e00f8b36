"""The dead letter: a message that failed for good, recoverable to the byte, and the reason.

Knows Kafka's envelope as `Record`, and no Kafka client.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from etl.errors import EtlError, InvalidMessage, code_of
from etl.models import document
from etl.models.task import Attempt

if TYPE_CHECKING:
    from etl.models.message import FileTransferJob
    from etl.models.task import Origin, Record

SHORT_BYTES = 65536  # how much of an original is kept at most if it is too large for the topic

_RAW = "raw"
_BASE64 = "raw_base64"
# The ways in which most programs write JSON. Usually one of them reproduces the bytes of the original.
_STYLES: tuple[dict[str, bool], ...] = (
    {},
    {"spaced": True},
    {"ascii_only": True},
    {"ascii_only": True, "spaced": True},
)


def _attempt(value: object) -> object:
    if isinstance(value, list | tuple):
        return tuple(
            Attempt(**{name: str(item.get(name, "")) for name in ("at", "where", "what")})
            if isinstance(item, dict)
            else item
            for item in value
        )
    return value


class DLQMessage(BaseModel):
    """A message that failed for good.

    `original_message` is the message if that is a JSON object; else `{"raw": text}` or, for bytes that are not UTF-8,
    `{"raw_base64": …}`.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    original_message: dict[str, Any]
    error: str
    timestamp: Annotated[datetime, BeforeValidator(document.read_time)]
    retry_count: int = 0
    error_code: str = EtlError.code
    job_id: str | None = None
    original_topic: str | None = None
    original_partition: int | None = None
    original_offset: int | None = None
    attempts: Annotated[tuple[Attempt, ...], BeforeValidator(_attempt)] = ()
    original_raw: str | None = None  # the exact text, if writing `original_message` would not reproduce it
    original_sha256: str | None = None  # hash of the exact bytes, hexadecimal
    original_bytes_count: int | None = None  # only in the short form
    truncated: bool = False  # only the start of the original was kept, or nothing if it could not be read

    @classmethod
    def from_job(
        cls,
        job: FileTransferJob,
        error: str | BaseException,
        retry_count: int = 0,
        attempts: Sequence[Attempt] = (),
    ) -> Self:
        """Create the dead letter of a job without its record."""
        return cls._make(
            job.to_json().encode("utf-8"),
            error,
            job_id=job.job_id,
            retry_count=retry_count,
            attempts=attempts,
        )

    @classmethod
    def from_record(
        cls,
        record: Record,
        error: str | BaseException,
        job_id: str | None = None,
        attempts: Sequence[Attempt] = (),
        retry_count: int = 0,
        origin: Origin | None = None,
    ) -> Self:
        """Create the dead letter of a record; `origin` is where its job was first delivered, if not there."""
        first = origin or record
        letter = cls._make(
            record.value or b"",
            error,
            job_id=job_id,
            attempts=attempts,
            retry_count=retry_count,
            original_topic=first.topic,
            original_partition=first.partition,
            original_offset=first.offset,
        )
        if record.fault is None or record.value is not None:
            return letter
        unread = {"original_message": {_BASE64: ""}, "original_raw": None, "original_sha256": None, "truncated": True}
        return letter.model_copy(update=unread)

    @classmethod
    def _make(cls, original: bytes, error: str | BaseException, *, attempts: Sequence[Attempt], **fields: Any) -> Self:
        message, raw = _pack(original)
        return cls(
            original_message=message,
            original_raw=raw,
            original_sha256=hashlib.sha256(original).hexdigest(),
            error=document.printable(str(error) or type(error).__name__),
            error_code=code_of(error) if isinstance(error, BaseException) else EtlError.code,
            timestamp=datetime.now(UTC),
            attempts=tuple(attempts),
            **fields,
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read a dead letter. Raises InvalidMessage."""
        try:
            return cls.model_validate(document.check(data, document.OURS.levels))
        except ValidationError as error:
            faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
            raise InvalidMessage(document.printable("; ".join(faults))) from None

    @classmethod
    def from_json(cls, text: bytes | bytearray | str | None) -> Self:
        """Read a dead letter. Raises InvalidMessage."""
        return cls.from_dict(document.parse(text, document.OURS))

    def to_dict(self) -> dict[str, Any]:
        """Return the dead letter as a JSON object; fields that only some dead letters have may be missing."""
        result: dict[str, Any] = {
            "original_message": self.original_message,
            "error": self.error,
            "timestamp": document.iso(self.timestamp),
            "retry_count": self.retry_count,
            "error_code": self.error_code,
            "job_id": self.job_id,
            "original_topic": self.original_topic,
            "original_partition": self.original_partition,
            "original_offset": self.original_offset,
            "attempts": [
                {name: document.printable(getattr(attempt, name)) for name in ("at", "where", "what")}
                for attempt in self.attempts
            ],
        }
        for name in ("original_raw", "original_sha256", "original_bytes_count"):
            if (value := getattr(self, name)) is not None:
                result[name] = value
        if self.truncated:
            result["truncated"] = True
        return result

    def to_json(self) -> str:
        """Return the dead letter as one line of JSON."""
        return document.write(self.to_dict())

    def original_bytes(self) -> bytes | None:
        """Return the message as it was sent, byte for byte, for a replay; None if only its start was kept."""
        if self.truncated:
            return None
        if self.original_raw is not None:
            return self.original_raw.encode("utf-8")
        if (packed := _unpack(self.original_message)) is not None:
            return packed
        candidates = [document.write(self.original_message, **style).encode("utf-8") for style in _STYLES]
        exact = (c for c in candidates if hashlib.sha256(c).hexdigest() == self.original_sha256)
        return next(exact, candidates[0])

    def shortened(self, limit_bytes: int) -> Self:
        """Return the short form: coordinates, SHA-256, and as much of the original's start as fits.

        It has at most `limit_bytes` of JSON, and exceeds that only if not even the coordinates fit.
        """
        original = self.original_bytes()
        start = _unpack(self.original_message) or b"" if original is None else original
        short = self.model_copy(
            update={
                "original_message": {_BASE64: ""},
                "original_raw": None,
                "original_bytes_count": self.original_bytes_count if original is None else len(original),
                "truncated": True,
            }
        )
        if _room(short, limit_bytes) < 0:
            short = short.model_copy(update={"attempts": short.attempts[-1:]})
        if (excess := -_room(short, limit_bytes)) > 0:
            error = short.error.encode("utf-8")[: -excess if excess < len(short.error.encode("utf-8")) else 0]
            short = short.model_copy(update={"attempts": (), "error": error.decode("utf-8", "ignore")})
        kept = start[: min(SHORT_BYTES, max(0, _room(short, limit_bytes)) // 4 * 3)]
        return short.model_copy(update={"original_message": {_BASE64: base64.b64encode(kept).decode("ascii")}})


def _room(letter: DLQMessage, limit_bytes: int) -> int:
    return limit_bytes - len(letter.to_json().encode("utf-8"))


def _pack(original: bytes) -> tuple[dict[str, Any], str | None]:
    """Return `original` as a JSON object, and also as text if writing the object would give other bytes."""
    try:
        text = original.decode("utf-8")
    except UnicodeDecodeError:
        return {_BASE64: base64.b64encode(original).decode("ascii")}, None
    try:
        data = document.parse(original)
    except InvalidMessage:
        return {_RAW: text}, None
    if set(data) in ({_RAW}, {_BASE64}):  # it would look like a message that we wrapped: wrap it
        return {_RAW: text}, None
    if any(document.write(data, **style) == text for style in _STYLES):
        return data, None
    return data, text


def _unpack(message: Mapping[str, Any]) -> bytes | None:
    """Return the bytes of a wrapped original; None if it is not wrapped."""
    if set(message) == {_RAW} and isinstance(message[_RAW], str):
        return str(message[_RAW]).encode("utf-8")
    if set(message) == {_BASE64} and isinstance(message[_BASE64], str):
        try:
            return base64.b64decode(message[_BASE64], validate=True)
        except (binascii.Error, ValueError):
            return None
    return None
