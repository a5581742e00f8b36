"""A message of version 2.0: several jobs in one, each with an outcome of its own.

    {"message_version": "2.0", "job_id": "scan-17", "files": [{"source": {...}, "destination": {...}}, ...],
     "priority": ..., "options": {...}, "metadata": {...}}

What stands beside `files` counts for each of them; of options and metadata, a file may name its own beside these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etl.errors import InvalidMessage
from etl.models import document
from etl.models.field import LABEL_LIMIT
from etl.models.message import PROBLEMS_SHOWN, FileTransferJob, Text

FILES_LIMIT = 1000  # jobs of one message: all of them are written in one transaction
FIELDS = ("message_version", "job_id", "files", "priority", "options", "metadata")
FIELDS_OF_FILE = ("job_id", "source", "destination", "priority", "options", "metadata")
VERSION = "2.0"


def read(text: Text, name: str) -> FileTransferJob | tuple[FileTransferJob, ...]:
    """Return the job of a message, or the jobs of one that holds several. Raises InvalidMessage and nothing else.

    `name` is what such a message is called if it has no `job_id`; its jobs are called `NAME.1`, `NAME.2` ...
    """
    try:
        return FileTransferJob.from_json(text)
    except InvalidMessage:
        if not is_bundle(text):
            raise
    return of(document.parse(text), name)


def is_bundle(text: Text) -> bool:
    """Is this a message of version 2.0? It may be an invalid one."""
    raw = text.encode("utf-8", "replace") if isinstance(text, str) else bytes(text or b"")
    if VERSION.encode() not in document.unpacked(raw, strict=False):
        return False
    try:
        return document.parse(raw).get("message_version") == VERSION
    except InvalidMessage:
        return False


def of(data: Mapping[str, Any], name: str) -> tuple[FileTransferJob, ...]:
    """Return all jobs of a message of version 2.0.

    What is wrong with any of them is one error, so that none is begun before all are right. Raises InvalidMessage.
    """
    files = data.get("files")
    problems = [f"{field[:100]}: is unknown in a message of version {VERSION}" for field in data if field not in FIELDS]
    given = data.get("job_id")
    job_id = given if isinstance(given, str) and given else name
    if given is not None and job_id is name:
        problems.append("job_id: must be a string")
    if not isinstance(files, list) or not files:
        problems.append(f"files: must be a list of at least one job in a message of version {VERSION}")
        files = []
    elif len(files) > FILES_LIMIT:
        problems.append(f"files: has {len(files)} entries, more than {FILES_LIMIT}")
        files = []
    jobs: list[FileTransferJob] = []
    ids: set[str] = set()
    left_bytes = int(document.MESSAGE.size_bytes)
    for number, entry in enumerate(files, 1):
        if len(problems) >= PROBLEMS_SHOWN:
            break
        try:
            job = FileTransferJob.from_dict(_entry(data, entry))
        except InvalidMessage as error:
            problems.append(f"files[{number}]: {error}")
            continue
        own_id = job.job_id or f"{job_id[: LABEL_LIMIT - 5]}.{number}"
        if own_id in ids:
            problems.append(f"files[{number}].job_id: appears twice")
        ids.add(own_id)
        jobs.append(job.with_id(own_id))
        left_bytes -= len(jobs[-1].to_json())
        if left_bytes < 0:
            problems.append(f"files: what counts for each of them makes more than {document.MESSAGE.size_bytes} bytes")
            break
    if problems:
        raise InvalidMessage(
            document.printable("; ".join(problems[:PROBLEMS_SHOWN])), job_id=job_id if job_id is not name else None
        )
    return tuple(jobs)


def _entry(data: Mapping[str, Any], entry: object) -> dict[str, Any]:
    """Return the message of one file. Raises InvalidMessage."""
    if not isinstance(entry, dict):
        raise InvalidMessage("must be an object")
    if unknown := [field for field in entry if field not in FIELDS_OF_FILE]:
        raise InvalidMessage("; ".join(f"{field[:100]}: is unknown" for field in unknown[:PROBLEMS_SHOWN]))
    message = {name: data[name] for name in ("priority", "options", "metadata") if data.get(name) is not None}
    for name, value in entry.items():
        common = message.get(name)
        both = isinstance(common, dict) and isinstance(value, dict) and name in ("options", "metadata")
        if value is not None:
            message[name] = {**common, **value} if both else value  # type: ignore[dict-item]  # both are objects
    return message
