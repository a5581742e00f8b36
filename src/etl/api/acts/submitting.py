"""Sends jobs once for each Idempotency-Key: jobs and the note of the answer go in one transaction.

One process at a time writes: a second one with the same transactional id fences it. Then the producer is opened anew,
and what was written meanwhile is read first.
"""

from __future__ import annotations

import hashlib
import json
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from etl import broker
from etl.api.problems import Problem
from etl.errors import BrokerUnavailable, CommitUnknown, Fenced, InvalidMessage, MessageRefused, MessageTooLarge
from etl.models import FileTransferJob, bundle, document
from etl.models.wire import Message

if TYPE_CHECKING:
    from etl.api.acts.marks import Marks

MOST_JOBS = 10_000  # of one request
KEY_SECONDS = 24 * 3600.0  # that a key is remembered
TRIES = 3


@dataclass(frozen=True)
class Draft:
    """A job to send."""

    job_id: str
    key: bytes
    value: bytes


def check(lines: Sequence[tuple[str, Any]]) -> list[Draft]:
    """Return the drafts of jobs, each with its pointer. Raises Problem, which lists everything that is wrong."""
    drafts: list[Draft] = []
    faults: list[tuple[str, str]] = []
    for pointer, line in lines:
        try:
            found = _read(line)
        except InvalidMessage as error:
            faults.append((pointer, str(error)))
            continue
        for job in found if isinstance(found, tuple) else (found,):
            # As it came, if it is one job with an id; else written anew.
            is_kept = isinstance(line, bytes) and job is found and job.job_id is not None
            named = job if job.job_id is not None else job.with_id(uuid.uuid4().hex)
            value = line if is_kept else named.to_json().encode()
            drafts.append(Draft(named.job_id or "", job.ordering_key, value))
            if len(drafts) > MOST_JOBS:  # at once: small lines may name very many
                raise Problem("too-large", f"at most {MOST_JOBS} jobs are sent at once")
    if faults:
        raise Problem("invalid", f"{len(faults)} of {len(lines)} jobs are not valid; nothing was sent", errors=faults)
    if not drafts:
        raise Problem("invalid", "there are no jobs in the request")
    return drafts


def _read(line: Any) -> FileTransferJob | tuple[FileTransferJob, ...]:
    """Return the job of a message, or all jobs of one of version 2.0. Raises InvalidMessage."""
    name = uuid.uuid4().hex
    if not isinstance(line, dict):
        return bundle.read(line, name)
    if line.get("message_version") == bundle.VERSION:
        return bundle.of(document.check(line), name)
    return FileTransferJob.from_dict(line)


class Submitter:
    """Sends jobs. Any thread may use it; one at a time sends."""

    def __init__(self, bootstrap_servers: str, topic: str, marks: Marks) -> None:
        self._topic = topic
        self._marks = marks
        self._lock = threading.Lock()  # guards the producer: held while it sends, because it does one thing at a time
        self._running_lock = threading.Lock()  # guards the keys
        self._running: set[str] = set()  # keys of requests under way
        self._producer = broker.TransactionalProducer(bootstrap_servers, f"etl-api-{topic}")
        self._is_sure = False  # are all marks read that were written before the producer was open?

    def submit(self, actor: str, key: str, body: bytes, drafts: Sequence[Draft]) -> tuple[list[dict[str, str]], bool]:
        """Send jobs, or return the answer that the same request got before; the second says which.

        Raises Problem, BrokerUnavailable.
        """
        mark = "idempotency/" + hashlib.sha256(f"{actor}\n{key}".encode()).hexdigest()[:32]
        request = hashlib.sha256(body).hexdigest()
        with self._running_lock:
            if mark in self._running:
                raise Problem("key-in-use")
            self._running.add(mark)
        try:
            with self._lock:
                return self._submit(mark, request, drafts)
        finally:
            with self._running_lock:
                self._running.discard(mark)

    def _submit(self, mark: str, request: str, drafts: Sequence[Draft]) -> tuple[list[dict[str, str]], bool]:
        messages = [Message(self._topic, draft.key, draft.value) for draft in drafts]
        answer: list[dict[str, str]] = []

        def note(places: list[broker.Place]) -> list[Message]:
            answer[:] = [
                {"job_id": draft.job_id, "place": f"{p.topic}/{p.partition}/{offset}"}
                for draft, (p, offset) in zip(drafts, places, strict=True)
            ]
            return [self._marks.message(mark, json.dumps({"request": request, "jobs": answer}))]

        for last in (False,) * (TRIES - 1) + (True,):
            try:
                if not self._is_sure:
                    self._producer.open()
                    self._marks.catch_up()
                    self._is_sure = True
                if (known := self._marks.get(mark)) is not None:
                    kept = json.loads(known)
                    if kept["request"] != request:
                        raise Problem("key-reused")
                    return kept["jobs"], True
                sent = self._producer.transact(messages, note)
                self._marks.wait_for(sent[-1])
            except MessageTooLarge as error:
                raise Problem("too-large", f"Kafka refuses the size of job {error.index + 1}") from None
            except MessageRefused as error:
                raise Problem("invalid", f"Kafka refuses job {error.index + 1}: {error}") from None
            except (Fenced, CommitUnknown):
                self._producer.discard()
                self._is_sure = False
                if last:
                    raise
            except BrokerUnavailable:
                self._producer.discard()
                self._is_sure = False
                raise
            else:
                return answer, False
        raise AssertionError("the last try returns or raises")

    def close(self) -> None:
        """Disconnect."""
        with self._lock:
            self._producer.close()
