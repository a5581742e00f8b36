"""What was learnt of stores, for all sessions of this process: regions, what they keep to, uploads that are not done.

Any thread.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from etl.models.server import ServerConfig
    from etl.transfer.s3.documents import Part


@dataclass
class Store:
    """One bucket of one store. Each field is written whole, by any session: the worst is that it is learnt twice."""

    region: str = ""  # as the store told it
    takes_checksums: bool | None = None  # on PUT: True: answers with them; False: refuses them; None: not known yet
    checks: str | None = None  # the checksum that it checks, empty: none; None: not known yet
    is_tried: bool = False  # were the next four found out?
    keeps_put_conditions: bool = False
    keeps_complete_conditions: bool = False
    keeps_object_sizes: bool = False
    proves_parts: bool = False  # tags them with the MD5 of their content, and completes no others than those named
    sends_ranges: bool = True  # as far as is known
    read_streams: int = 16  # connections that it serves at once for one object, as far as is known
    deletes: bool = True  # what we put there, as far as is known: else a note of an upload would stay


@dataclass
class Upload:
    """An upload in parts: all that another session needs to go on with it, or to abort it."""

    key: str
    upload_id: str
    part_bytes: int  # of each part but the last
    mark: str  # what its object will be marked with
    is_live: bool = True  # a run of this process is busy with it, or has proven it
    parts: list[Part] = field(default_factory=list)
    taken: dict[int, str] = field(default_factory=dict)  # parts that another sender may have written late: our tags
    doubtful: range = range(0)  # numbers of those that this run sends


_lock = threading.Lock()  # guards the two below
_stores: dict[tuple[object, ...], Store] = {}
_uploads: dict[tuple[object, ...], Upload] = {}  # by bucket and partial name


def of(server: ServerConfig) -> Store:
    """Return what is known of a server's bucket."""
    with _lock:
        return _stores.setdefault(_bucket(server), Store())


def begun(server: ServerConfig, partial: str, upload: Upload) -> None:
    """Note an upload under the whole name of its partial file."""
    with _lock:
        _uploads[*_bucket(server), partial] = upload


def upload(server: ServerConfig, partial: str) -> Upload | None:
    """Return the upload of a partial file."""
    with _lock:
        return _uploads.get((*_bucket(server), partial))


def ended(server: ServerConfig, partial: str) -> None:
    """Forget an upload that was completed or aborted."""
    with _lock:
        _uploads.pop((*_bucket(server), partial), None)


def live_ids(server: ServerConfig) -> set[str]:
    """Return the ids of the uploads to a bucket that runs of this process are busy with."""
    with _lock:
        return {one.upload_id for place, one in _uploads.items() if one.is_live and place[:-1] == _bucket(server)}


def forget() -> None:
    """Forget everything, for tests."""
    with _lock:
        _stores.clear()
        _uploads.clear()


def _bucket(server: ServerConfig) -> tuple[object, ...]:
    return tuple(server.options.get(name, "").strip() for name in ("ENDPOINT", "BUCKET", "REGION"))
