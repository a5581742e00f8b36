"""A producer's own headers, which wait and travel with its job. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etl.errors import InvalidMessage
from etl.models import document

if TYPE_CHECKING:
    from etl.models.task import Record

FOREIGN_LIMIT, FOREIGN_LIMIT_BYTES = 100, 64 << 10  # of one record

Headers = tuple[tuple[str, bytes], ...]


def select_foreign(record: Record) -> Headers:
    """Return the producer's own headers, which belong to the message; none if they are too many or too large."""
    try:
        return require_few_headers(record)
    except InvalidMessage:
        return ()


def require_room_for_copies(foreign: Headers, copies: int) -> None:
    """Raise InvalidMessage if each job of a message would carry its headers, and that makes too much of them."""
    size_bytes = sum([len(name) + len(content) for name, content in foreign]) * copies
    if size_bytes > document.MESSAGE.size_bytes:
        raise InvalidMessage(
            f"message: its headers, with each of its {copies} jobs, make {size_bytes} bytes, more than "
            f"{document.MESSAGE.size_bytes}"
        )


def require_few_headers(record: Record) -> Headers:
    """Return the producer's own headers of a record. Raises InvalidMessage if they are too many or too large."""
    if not record.headers:
        return ()
    foreign = tuple([pair for pair in record.headers if not pair[0].startswith("etl-")])
    if len(foreign) > FOREIGN_LIMIT:
        raise InvalidMessage(f"message: has {len(foreign)} headers, more than {FOREIGN_LIMIT}: they are left out")
    size_bytes = sum([len(name) + len(content) for name, content in foreign])
    if size_bytes > FOREIGN_LIMIT_BYTES:
        raise InvalidMessage(
            f"message: has headers of {size_bytes} bytes, more than {FOREIGN_LIMIT_BYTES}: they are left out"
        )
    return foreign
