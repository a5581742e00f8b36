"""The shapes of answers that several resources share. What processes say of themselves is passed on as it is."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Open(BaseModel):
    """A shape with more fields than those named here."""

    model_config = ConfigDict(extra="allow")


class View(BaseModel):
    """When an answer was true."""

    as_of: str
    stale: bool = Field(description="true: Kafka does not answer, so this may be old")


class File(BaseModel):
    """A file on a server."""

    server: str | None
    path: str | None


class Job(BaseModel):
    """A job. Its identity is its place; several jobs may have the same id."""

    place: str = Field(description="TOPIC/PARTITION/OFFSET")
    job_id: str | None
    state: str = Field(description="queued, waiting, running, done, failed or discarded")
    at: str = Field(description="when it was submitted, as far as that is known")
    source: File
    destination: File
    priority: str | None
    replays: int
    code: str | None
    error: str | None
    bytes: int | None
    attempts: int | None
    started_at: str | None
    finished_at: str | None
    duration_seconds: float | None
    worker: str | None
    not_before: str | None = Field(description="if it waits: until when")
    waits: int = Field(description="how often it was set aside")
    letter: str | None = Field(description="PARTITION:OFFSET of its dead letter")
    group: str | None = Field(description="place of the message of several jobs that it was in")
    transfer: dict[str, Any] | None = Field(None, description="if it is running: what its process says")


class Letter(BaseModel):
    """A dead letter in a list."""

    place: str = Field(description="PARTITION:OFFSET")
    at: str
    code: str
    error: str | None
    job_id: str | None
    job: str | None = Field(description="place of the job, TOPIC/PARTITION/OFFSET")
    source: File
    destination: File
    replays: int
    can_replay: bool = Field(description="false: the message was too large to be kept")
    state: str = Field(description="waiting, replayed or discarded")
    settled_at: str | None


class Event(BaseModel):
    """One step in the story of a job."""

    at: str | None
    what: str = Field(
        description="submitted, attempt, waiting, running, done, failed, dead-letter, replayed, discarded"
    )
    detail: str | None = None
    who: str | None = None
    place: str | None = None
