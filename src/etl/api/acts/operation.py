"""An operation: dead letters to be replayed or discarded, a set that was fixed when it was asked for.

Its record in `etl-marks` (key `operation/ID`) is written anew in the transaction of each step, so that it never tells
more or less than was done. The set is beside it (`set/ID`); what operators ask of it later, too (`stop/ID`, `go/ID`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from etl.topics.letters import Place

Kind = Literal["replay", "discard"]
State = Literal["running", "canary", "stopped", "done"]

CANARY = 5  # letters that go first
MOST_LETTERS = 200_000  # of one operation


class Operation(BaseModel):
    """What an operation is to do, and how far it is."""

    id: str
    kind: Kind
    state: State = Field(description="canary: the first ones are replayed, and their results are waited for")
    filter: dict[str, Any]
    reason: str
    by: str
    at: str
    request: str = Field(description="hash of what was asked: the same key with something else is refused")
    total: int
    next: int = Field(0, description="letters of the set that were looked at, in their order")
    done: int = 0
    failed: int = Field(0, description="refused by Kafka, such as for their size")
    skipped: int = Field(0, description="settled by somebody else meanwhile, or gone")
    canary: int = 0
    canary_jobs: list[str] = Field([], description="places of the jobs that went first")
    per_second: float | None = None
    ended_at: str | None = None
    remark: str | None = Field(None, description="why it stopped or waits")

    @property
    def is_over(self) -> bool:
        """Is nothing left to be done?"""
        return self.state in ("stopped", "done")


def pack(places: Iterable[Place]) -> str:
    """Return a set of places as text: for each partition the first offset, then the distances."""
    packed: dict[str, list[int]] = {}
    last: dict[str, int] = {}
    for partition, offset in sorted(places):
        key = str(partition)
        packed.setdefault(key, []).append(offset - last.get(key, 0))
        last[key] = offset
    return json.dumps(packed, separators=(",", ":"))


def unpack(text: str) -> list[Place]:
    """Return the places of such a text, in their order."""
    found: Mapping[str, list[int]] = json.loads(text)
    places = []
    for partition, distances in found.items():
        offset = 0
        for distance in distances:
            offset += distance
            places.append((int(partition), offset))
    return sorted(places)
