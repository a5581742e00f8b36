"""Pages of lists: a cursor says where the next page begins. It is signed, and good for its own query alone."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, Field

from etl.api.problems import Problem

LIMIT, MOST = 50, 200  # items of a page, by default and at most
CURSOR_CHARACTERS = 2000
SCAN_SECONDS = 5.0  # that a page may take: then it is given as far as it was found

T = TypeVar("T")


class Page(BaseModel, Generic[T]):
    """A page of a list, newest first."""

    items: list[T]
    next: str | None = Field(None, description="cursor of the next page; null: there is none")
    as_of: str = Field(description="when this was true")
    searched_until: str | None = Field(None, description="if not complete: how far back it was searched")
    complete: bool = Field(True, description="false: the search took too long; `next` goes on with it")
    stale: bool = Field(False, description="true: Kafka does not answer, so this may be old")


@dataclass
class Found:
    """What a search found: rows, the position after the last one looked at, and whether there may be more."""

    rows: list[Any] = field(default_factory=list)
    after: list[Any] | None = None  # None: there is no more
    complete: bool = True

    @property
    def searched_until(self) -> float | None:
        """How far back it was searched, if not all of it was: positions begin with their time."""
        return None if self.complete or self.after is None else float(self.after[0])


class Cursors:
    """Makes and reads cursors."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def write(self, query: Mapping[str, Any], position: list[Any]) -> str:
        """Return the cursor with which this query goes on after this position."""
        payload = json.dumps([_fingerprint(query), position], separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(self._sign(payload) + payload).decode().rstrip("=")

    def read(self, query: Mapping[str, Any], cursor: str) -> list[Any]:
        """Return the position in a cursor. Raises Problem if it was not made here, or for another query."""
        try:
            if len(cursor) > CURSOR_CHARACTERS:
                raise ValueError(cursor)
            signed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
            signature, payload = signed[:16], signed[16:]
            if not hmac.compare_digest(signature, self._sign(payload)):
                raise ValueError(cursor)
            fingerprint, position = json.loads(payload)
        except (ValueError, binascii.Error):
            raise Problem("bad-cursor", "it was not made by this API") from None
        if fingerprint != _fingerprint(query):
            raise Problem("bad-cursor", "it belongs to a query with other filters")
        return list(position)

    def _sign(self, payload: bytes) -> bytes:
        return hmac.new(self._secret, payload, hashlib.sha256).digest()[:16]


def _fingerprint(query: Mapping[str, Any]) -> str:
    given = {name: value for name, value in query.items() if value not in (None, [], ())}
    return hashlib.sha256(json.dumps(given, sort_keys=True, default=str).encode()).hexdigest()[:16]
