"""What operators tell the consumers through `etl-control`, and the record of each act in `etl-audit`.

`etl-control` is compacted. The key of an order says what it is about, so a later one replaces it, and an empty record
takes it back:

    hold/server/NAME  hold/topic/NAME  hold/group/NAME     Hold: its jobs wait
    cancel/TOPIC-PARTITION-OFFSET                          Cancel: of the job that was first delivered there
    drain/KIND/GROUP/TOPIC/INSTANCE/SLOT                   Drain: of one life of one process
    try/NAME                                               TryNow: a server that is down
    known/KIND/NAME                                        Acknowledge: of something that needs somebody; for readers

Values are JSON, with times in ISO 8601. Readers ignore fields that they do not know.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from etl.errors import InvalidMessage
from etl.models import document
from etl.models.field import Label, Moment

BOUNDS = document.Bounds(64_000, 1_000, 4)
REASON_CHARACTERS = 500
KNOWN_FOR = timedelta(days=30)  # at most: what nobody has mended by then needs somebody

Reason = Annotated[str, Field(max_length=REASON_CHARACTERS)]
Target = Literal["server", "topic", "group"]


class _Order(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    v: Literal[1] = 1
    author: Label
    at: Moment
    reason: Reason = ""

    def to_json(self) -> bytes:
        """Return the value of the record."""
        return self.model_dump_json(exclude_none=True).encode()


class Hold(_Order):
    """Jobs of a server, a topic or a group wait until `until`, or until the hold is released."""

    kind: Literal["hold"] = "hold"
    what: Target
    name: Label  # of a server in upper case
    until: Moment | None = None

    @property
    def key(self) -> str:
        """The key of its record."""
        return f"hold/{self.what}/{self.name}"


class Cancel(_Order):
    """A job ends as a dead letter with the code CANCELLED, unless it is done already."""

    kind: Literal["cancel"] = "cancel"
    place: Label  # where it was first delivered: TOPIC-PARTITION-OFFSET
    job_id: Label | None = None

    @property
    def key(self) -> str:
        """The key of its record."""
        return f"cancel/{self.place}"


class Drain(_Order):
    """A process finishes what runs, takes nothing more and leaves; its next life does not."""

    kind: Literal["drain"] = "drain"
    process: Label  # the key of its status
    incarnation: Label

    @property
    def key(self) -> str:
        """The key of its record."""
        return f"drain/{self.process}"


class TryNow(_Order):
    """A server that is down is tried at once. Processes that start later do not act on it."""

    kind: Literal["try"] = "try"
    server: Label

    @property
    def key(self) -> str:
        """The key of its record."""
        return f"try/{self.server}"


class Acknowledge(_Order):
    """Somebody sees to a need (`etl.status.summary`), which is shown as known until `until`, or until it grows."""

    kind: Literal["acknowledge"] = "acknowledge"
    need: Label  # its kind
    name: Label
    jobs: int = 0  # that it touched then
    since: Moment | None = None  # when it had begun then
    until: Moment | None = None

    @property
    def key(self) -> str:
        """The key of its record."""
        return f"known/{self.need}/{self.name}"

    def counts(self, now: datetime) -> bool:
        """Is it in force? None lasts for ever."""
        return now - self.at < KNOWN_FOR and (self.until is None or now < self.until)


Order = Hold | Cancel | Drain | TryNow | Acknowledge
AnyOrder = TypeVar("AnyOrder", Hold, Cancel, Drain, TryNow, Acknowledge)
_ORDER: TypeAdapter[Order] = TypeAdapter(Annotated[Order, Field(discriminator="kind")])


def read_order(key: str, value: bytes | None) -> Order:
    """Read an order. Raises InvalidMessage, also if it is about something else than its key says."""
    try:
        order = _ORDER.validate_python(document.parse(value, BOUNDS))
    except ValidationError as error:
        raise _refusal(error) from None
    if order.key != key:
        raise InvalidMessage("key: belongs to another order")
    return order


def new_order(kind: type[AnyOrder], author: str, reason: str, **fields: Any) -> AnyOrder:
    """Return an order given now. Raises InvalidMessage, which names the field."""
    try:
        return kind(author=author, at=datetime.now(UTC), reason=reason, **fields)
    except ValidationError as error:
        raise _refusal(error) from None


def _refusal(error: ValidationError) -> InvalidMessage:
    fault = error.errors(include_url=False, include_input=False)[0]
    return InvalidMessage(f"{'.'.join(map(str, fault['loc']))[:100]}: {fault['msg'][:200]}")


class AuditRecord(BaseModel):
    """One act, also a refused one. `previous` chains the records of one writer: a gap shows."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    at: Moment
    writer: str
    actor: str
    via: str  # token, jwt, cert, session or cli
    address: str | None = None
    request_id: str | None = None
    action: str  # such as hold, release, cancel, drain, try-now, replay, discard, purge
    target: str | None = None
    filter: dict[str, Any] | None = None
    reason: str | None = None
    dry_run: bool = False
    result: str = "done"
    count: int | None = None
    operation: str | None = None
    previous: str = ""

    def to_json(self) -> bytes:
        """Return the value of the record."""
        return document.write(self.model_dump(mode="json", exclude_none=True)).encode("utf-8", "backslashreplace")

    @classmethod
    def from_json(cls, text: bytes | None) -> Self:
        """Read a record. Raises InvalidMessage."""
        try:
            return cls.model_validate(document.parse(text))
        except ValidationError as error:
            raise InvalidMessage(f"message: is no record of the audit ({error.error_count()} faults)") from None
