"""The job in its two forms, and its result. The dead letter is in `letter`.

Reading returns a job or raises `InvalidMessage`, which names every wrong field; it raises nothing else.
"""

from __future__ import annotations

import difflib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from etl.errors import InvalidMessage
from etl.models import document, wrapping
from etl.models.field import Action, Expected, Label, Moment, Path, Version, is_label

Text = bytes | bytearray | str | None  # a message as it arrives

# Fields of the flat form (FTP Pooler), and where they belong in the nested one.
FLAT_FIELDS = {
    "task_id": ("job_id",),
    "src_id": ("source", "hostname"),
    "src_path": ("source", "path"),
    "dst_id": ("destination", "hostname"),
    "dst_path": ("destination", "path"),
    "metadata": ("metadata",),
}
NESTED_FIELDS = ("job_id", "source", "destination", "message_version", "priority", "options", "metadata")
# Those that no other message has.
FIELDS_OF_JOBS = frozenset([*FLAT_FIELDS, "job_id", "source", "destination"]) - {"metadata"}

FIELDS_LIMIT = 100  # fields of an object whose names we know
PROBLEMS_SHOWN = 20  # wrong fields named in one error
NAME_SHOWN = 100  # characters of an unknown field's name in an error


class _Shape(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Endpoint(_Shape):
    """A file on a server. The path is normalised, and relative to the server's base folder."""

    hostname: Label
    path: Path

    def __str__(self) -> str:
        return f"{self.hostname}:{self.path}"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read both fields. Raises InvalidMessage."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise _refusal(_problems(error, flat=False, limit=PROBLEMS_SHOWN), error.error_count()) from None

    def to_dict(self) -> dict[str, str]:
        """Return both fields."""
        return {"hostname": self.hostname, "path": self.path}


class TransferOptions(_Shape):
    """How a file is transferred. All options have defaults."""

    overwrite: Literal["replace", "skip", "fail", "newer"] = "replace"
    source_action: Action = "keep"
    verify: Literal["auto", "size", "checksum", "none"] = "auto"
    checksum: Expected | None = None  # of the source's bytes
    checksum_file: Literal["ignore", "use", "require"] = "ignore"  # beside the source
    write_checksum_file: Literal["sha256", "sha512", "sha1", "md5"] | None = None  # beside the destination
    preserve_mtime: bool = True
    timeout_seconds: float | None = Field(default=None, gt=0, le=31_536_000, allow_inf_nan=False)  # for one attempt
    not_before: Moment | None = None
    deadline: Moment | None = None

    @model_validator(mode="after")
    def _times_in_order(self) -> Self:
        if self.deadline is not None and self.not_before is not None and self.deadline <= self.not_before:
            raise ValueError("deadline is not after not_before")
        return self

    @property
    def deletes(self) -> bool:
        """Is the source deleted once its copy is published?"""
        return self.source_action == "delete"

    @property
    def move_to(self) -> str | None:
        """The path on its own server to which the source is moved once its copy is published, or None."""
        return self.source_action["move"] if isinstance(self.source_action, dict) else None

    def to_dict(self) -> dict[str, Any]:
        """Return the options that differ from their defaults."""
        values = {name: getattr(self, name) for name in sorted(self.model_fields_set)}
        values = {name: value for name, value in values.items() if value != type(self).model_fields[name].default}
        return {name: document.iso(value) if isinstance(value, datetime) else value for name, value in values.items()}


class FileTransferJob(_Shape):
    """The job to copy one file. `flat` says in which of the two forms it came; its result has the same form.

    A job that is made here without a `job_id` gets a new one. One that is read from a message keeps None: its record
    names it.
    """

    job_id: Label | None = Field(default_factory=lambda: uuid.uuid4().hex)
    source: Endpoint
    destination: Endpoint
    message_version: Version = "1.0"
    priority: Literal["high", "normal", "low"] = "normal"
    options: TransferOptions = TransferOptions()
    metadata: dict[str, Any] | None = None
    flat: bool = False

    @model_validator(mode="after")
    def _source_survives(self) -> Self:
        # If source and destination are one file, `source_action` would delete or move the copy.
        if self.source.hostname.upper() == self.destination.hostname.upper():
            if self.source.path == self.destination.path:
                raise ValueError("destination: is the source itself")
            if self.options.move_to == self.destination.path:
                raise ValueError("options.source_action: would move the source onto the destination")
            written = self.options.write_checksum_file and f"{self.destination.path}.{self.options.write_checksum_file}"
            if self.source.path == written:
                raise ValueError("options.write_checksum_file: would replace the source")
            if written and self.options.move_to == written:
                raise ValueError("options.source_action: would replace the checksum file")
        if self.options.move_to == self.source.path:
            raise ValueError("options.source_action: would move the source onto itself")
        return self

    @classmethod
    def from_json(cls, text: Text) -> Self:
        """Read a job in either form. Raises InvalidMessage and nothing else."""
        try:
            data = document.parse(text)
        except InvalidMessage as error:
            raw = text.encode("utf-8", "replace") if isinstance(text, str) else bytes(text or b"")
            raise _recognised(error, wrapping.of_bytes(raw)) from None
        return cls._from_checked(data)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read a job in either form. Raises InvalidMessage and nothing else."""
        return cls._from_checked(document.check(data))

    @classmethod
    def _from_checked(cls, data: dict[str, Any]) -> Self:
        try:
            return cls._from_fields(data)
        except InvalidMessage as error:
            raise _recognised(error, wrapping.of_object(data, FIELDS_OF_JOBS)) from None

    @classmethod
    def _from_fields(cls, data: dict[str, Any]) -> Self:
        is_nested = "source" in data or "destination" in data
        flat = not is_nested and any(name in data for name in FLAT_FIELDS if name != "metadata")
        _require_few_fields(data)
        known: Iterable[str] = FLAT_FIELDS if flat else NESTED_FIELDS
        unknown = [name for name in data if name not in known]
        # Texts are made only of the problems that are shown: a suggestion takes longer than all the rest of the job.
        problems = [_unknown(name, known) for name in unknown[:PROBLEMS_SHOWN]]
        given = _nest(data) if flat else data
        # Serialisers write null for what was not set: it means the same as leaving it out.
        fields = {name: given[name] for name in NESTED_FIELDS if given.get(name) is not None}
        if isinstance(fields.get("options"), dict):
            fields["options"] = {
                name: value
                for name, value in fields["options"].items()
                if value is not None or name not in TransferOptions.model_fields
            }
        try:
            job = cls.model_validate({"job_id": None, **fields, "flat": flat})
        except ValidationError as error:
            problems += _problems(error, flat=flat, limit=PROBLEMS_SHOWN - len(problems))
            count = len(unknown) + error.error_count()
            raise _refusal(problems, count, fields.get("job_id")) from None
        if problems:
            raise _refusal(problems, len(unknown), job.job_id)
        return job

    @property
    def ordering_key(self) -> bytes:
        """The key for Kafka: it puts all jobs for a destination file into one partition, within which order is kept."""
        return f"{self.destination.hostname.upper()}:{self.destination.path}".encode()

    @property
    def words(self) -> frozenset[str]:
        """Names and paths that its producer chose, whole and in parts: what a server's reply may repeat."""
        paths = [path for path in (self.source.path, self.destination.path, self.options.move_to) if path]
        parts = [part for path in paths for part in path.split("/") if part]
        return frozenset([self.source.hostname, self.destination.hostname, self.job_id or "", *paths, *parts]) - {""}

    def with_id(self, job_id: str) -> Self:
        """Return a copy of this job with the given id."""
        return self.model_copy(update={"job_id": job_id})

    def to_dict(self) -> dict[str, Any]:
        """Return the job in the form it came in, without missing and default values."""
        result: dict[str, Any] = {}
        if self.flat:
            result = {
                "task_id": self.job_id,
                "src_id": self.source.hostname,
                "src_path": self.source.path,
                "dst_id": self.destination.hostname,
                "dst_path": self.destination.path,
                "metadata": self.metadata,
            }
            return {name: value for name, value in result.items() if value is not None}
        if self.job_id is not None:
            result["job_id"] = self.job_id
        result["source"] = self.source.to_dict()
        result["destination"] = self.destination.to_dict()
        result["message_version"] = self.message_version
        if self.priority != "normal":
            result["priority"] = self.priority
        if options := self.options.to_dict():
            result["options"] = options
        if self.metadata is not None:
            result["metadata"] = self.metadata
        return result

    def to_json(self) -> str:
        """Return the job as one line of JSON in the form it came in."""
        return document.write(self.to_dict())


class TransferResult(BaseModel):
    """How a job ended, as written to `T-results`. An endpoint is None if the message did not name it."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    job_id: str
    status: Literal["SUCCESS", "FAILED"]
    source: Endpoint | None = None
    destination: Endpoint | None = None
    bytes: int | None = None
    duration_seconds: float | None = None
    attempts: int = 1
    verified_by: str | None = None
    checksum: str | None = None
    skipped: bool = False  # the destination was left alone, as `overwrite` asked
    swapped: bool = False  # the server cannot rename over a file, so the name was absent for a moment
    mtime_kept: bool = True  # False: the destination's server did not keep the source's time stamp
    resumed_at: int | None = None  # bytes: an earlier attempt had brought so many, and the copy went on behind them
    checksum_error: str | None = None  # why there is none of a copy that went on
    published_by: str | None = None  # "direct": written under its final name at once
    source_action_done: bool = True  # False: the copy is there, and its source still as well
    source_action_error: str | None = None  # why
    error: str | None = None
    error_code: str | None = None
    started_at: Moment | None = None
    finished_at: Moment | None = None
    worker: str | None = None
    metadata: dict[str, Any] | None = None
    flat: bool = False

    @property
    def succeeded(self) -> bool:
        """Did the file arrive, or was it skipped as asked?"""
        return self.status == "SUCCESS"

    def to_dict(self, flat: bool | None = None) -> dict[str, Any]:
        """Return the result in the flat or the nested form; by default in the form the job came in."""
        flat = self.flat if flat is None else flat
        source, destination = self.source, self.destination
        result: dict[str, Any] = {"task_id" if flat else "job_id": self.job_id, "status": self.status}
        if flat:
            result["src_id"] = source.hostname if source else None
            result["src_path"] = source.path if source else None
            result["dst_id"] = destination.hostname if destination else None
            result["dst_path"] = destination.path if destination else None
        else:
            result["source"] = source.to_dict() if source else None
            result["destination"] = destination.to_dict() if destination else None
        for name in ("bytes", "duration_seconds", "attempts", "verified_by", "skipped"):
            result[name] = getattr(self, name)
        result["started_at"] = document.iso(self.started_at) if self.started_at else None
        result["finished_at"] = document.iso(self.finished_at) if self.finished_at else None
        result["worker"] = self.worker
        result["metadata"] = self.metadata
        optional = {
            "checksum": self.checksum,
            "checksum_error": self.checksum_error,
            "published_by": self.published_by,
            "source_action_error": self.source_action_error,
            "error": self.error,
            "error_code": self.error_code,
        }
        result.update((name, document.printable(value)) for name, value in optional.items() if value is not None)
        for name in ("swapped", "resumed_at"):
            if value := getattr(self, name):
                result[name] = value
        for name in ("mtime_kept", "source_action_done"):
            if not getattr(self, name):
                result[name] = False
        return result

    def to_json(self, flat: bool | None = None) -> str:
        """Return the result as one line of JSON, in the form that `to_dict` would choose."""
        return document.write(self.to_dict(flat))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read a result in either form. Raises InvalidMessage."""
        checked = document.check(data)
        flat = "task_id" in checked
        fields = {**checked, **_nest(checked)} if flat else dict(checked)
        for side in ("source", "destination"):
            if isinstance(fields.get(side), dict) and not any(fields[side].values()):
                fields[side] = None
        try:
            return cls.model_validate({**fields, "flat": flat})
        except ValidationError as error:
            raise _refusal(_problems(error, flat=flat, limit=PROBLEMS_SHOWN), error.error_count()) from None

    @classmethod
    def from_json(cls, text: Text) -> Self:
        """Read a result in either form. Raises InvalidMessage."""
        return cls.from_dict(document.parse(text, document.OURS))


def servers_of(text: Text) -> tuple[str, str] | None:
    """Return the names of source and destination of a job, of which nothing else is looked at; None: it is not one."""
    try:
        data = document.parse(text)
        ends = [_nest(data)[side] if "src_id" in data else data[side] for side in ("source", "destination")]
        source, destination = (end["hostname"] for end in ends)
    except (InvalidMessage, KeyError, TypeError):
        return None
    return (source, destination) if isinstance(source, str) and isinstance(destination, str) else None


def _require_few_fields(data: dict[str, Any]) -> None:
    """Raise InvalidMessage if an object whose fields we know has so many that most must be unknown."""
    for name in ("message", "source", "destination", "options"):
        value = data if name == "message" else data.get(name)
        if isinstance(value, dict) and len(value) > FIELDS_LIMIT:
            raise InvalidMessage(f"{name}: has more than {FIELDS_LIMIT} fields")


def _nest(data: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {"source": {}, "destination": {}}
    for name, location in FLAT_FIELDS.items():
        if name in data:
            if len(location) == 1:
                nested[location[0]] = data[name]
            else:
                nested[location[0]][location[1]] = data[name]
    return nested


def _problems(error: ValidationError, *, flat: bool, limit: int) -> list[str]:
    flat_names = {location: name for name, location in FLAT_FIELDS.items()} if flat else {}
    problems = []
    for fault in error.errors(include_url=False)[:limit]:
        location = tuple(str(part) for part in fault["loc"])
        name = flat_names.get(location, ".".join(location))
        kind = fault["type"]
        if kind == "missing":
            problems.append(f"{name}: is missing")
        elif kind == "extra_forbidden":
            model = TransferOptions if location[0] == "options" else Endpoint
            problems.append(_unknown(name, model.model_fields))
        elif kind == "value_error":
            reason = str(fault["ctx"]["error"])
            problems.append(f"{name}: {reason}" if name else reason)
        elif kind in ("model_type", "dict_type"):
            problems.append(f"{name}: must be an object")
        else:
            problems.append(f"{name}: {fault['msg'].replace('Input should be', 'must be')}")
    return problems


def _unknown(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.rpartition(".")[2][:NAME_SHOWN], list(known), n=1)
    return f"{name[:NAME_SHOWN]}: is unknown" + (f" (did you mean {near[0]}?)" if near else "")


def _recognised(error: InvalidMessage, look: str | None) -> InvalidMessage:
    """Return an error with what the message looks like, if that is known."""
    if look is None:
        return error
    return InvalidMessage(document.printable(f"{error}; the message {look}"), job_id=error.job_id)


def _refusal(shown: Sequence[str], count: int, job_id: object = None) -> InvalidMessage:
    """Return one error that lists the problems, short enough for any log and topic; with the job's id if valid.

    `count` is how many problems there are in all.
    """
    rest = [f"and {count - len(shown)} more"] if count > len(shown) else []
    named = job_id if isinstance(job_id, str) and is_label(job_id) else None
    return InvalidMessage(document.printable("; ".join([*shown, *rest])), job_id=named)
