"""A consumer whose guards against what strangers send can be taken out while it runs, and put back: what do they cost?

Only for files and jobs of our own. Each guard is replaced by the plain code that would stand there without it.
SIGUSR1 takes them out, SIGUSR2 puts them back; a line on standard output says when that is done.
"""

# The plain calls themselves are what is compared.
# ruff: noqa: PTH103, PTH105, PTH116, PTH120

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "src")]

import lz4.frame

import etl.broker.records
import etl.config.loader
import etl.intake.admission
import etl.main
import etl.models.document
import etl.models.message
import etl.transfer.ftp.link
import etl.transfer.local
import etl.transfer.relay
from etl.models.task import Facts, Record
from etl.transfer.base import Parcel, Promise, Published, Settled, Stored
from etl.transfer.local import LocalTransfer
from etl.transfer.room import Room

_WRITING = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC


def _nothing(*_: object) -> None:
    """Look at nothing."""


def _parse(document: Any, _bounds: object = None) -> Any:
    # As strict as ever: that names do not appear twice is what JSON is read for, and no guard.
    return etl.models.document._DECODER.decode(bytes(document).decode())  # noqa: SLF001 - that reader, without its limits


def _unpacked(value: bytes, *, strict: bool = True) -> bytes:  # noqa: ARG001 - as it is called
    return value


def _unpack(_compression: int, packed: bytes) -> bytes:
    return bytes(lz4.frame.decompress(packed))  # with which the benchmark's producer packs


def _open_beneath(root: str, path: str, flags: int, mode: int = 0) -> int:
    return os.open(f"{root}/{path}", flags | os.O_CLOEXEC, mode)


def _whole_name(session: LocalTransfer, path: str) -> str:
    return f"{session.server.base_path}{path}"


class _Plain(LocalTransfer):
    """Files by their names alone, as `open`, `os.stat` and `os.replace` take them; checked before, as ever, by text."""

    def look(self, path: str) -> Facts | None:
        with self._translated(path):
            try:
                return self._facts(path, os.stat(_whole_name(self, path)))
            except (FileNotFoundError, NotADirectoryError):
                self.connect()
                return None

    def unchanged(self, parcel: Parcel) -> Promise[bool]:
        return Settled(self.look(parcel.path) in {None, parcel.facts})

    def publish(self, stored: Stored, final: str, mtime: float | None) -> Promise[Published]:
        with self._translated(final):
            partial = _whole_name(self, stored.partial)
            if mtime is not None:
                os.utime(partial, (mtime, mtime))
            os.replace(partial, _whole_name(self, final))
        return Settled(Published(stamped=mtime is not None))

    def _create(self, path: str) -> tuple[int, bool]:
        for _ in range(2):
            try:
                return os.open(_whole_name(self, path), _WRITING, 0o666), True
            except FileNotFoundError:
                os.makedirs(os.path.dirname(_whole_name(self, path)), exist_ok=True)
        raise AssertionError(path)


PLAIN: tuple[tuple[Any, str, object], ...] = (
    (etl.broker.records, "unpack", _unpack),
    (etl.config.loader.ConfigLoader, "require_allowed", _nothing),
    (etl.intake.admission, "require_few_headers", lambda _record: ()),
    (etl.models.document, "unpacked", _unpacked),
    (etl.models.document, "parse", _parse),
    (etl.models.message, "_require_few_fields", _nothing),
    (Record, "weight_bytes", property(lambda record: len(record.value or b""))),
    (etl.transfer.ftp.link, "refuse_misread", _nothing),
    (etl.transfer.local, "refuse_unusable", _nothing),
    (etl.transfer.local, "open_beneath", _open_beneath),
    (etl.transfer.relay, "require_size", _nothing),
    (etl.transfer.relay, "bounded", lambda parcel, _limit_bytes: parcel),
    (Room, "require", _nothing),
    *((LocalTransfer, name, getattr(_Plain, name)) for name in ("look", "unchanged", "publish", "_create")),
)
GUARDED = tuple((place, name, vars(place)[name]) for place, name, _ in PLAIN)  # KeyError: it is not there any more


def put(parts: tuple[tuple[Any, str, object], ...], what: str) -> None:
    """Have these parts serve, and say so."""
    for place, name, part in parts:
        setattr(place, name, part)
    print(what, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, lambda *_: put(PLAIN, "guards are out"))
    signal.signal(signal.SIGUSR2, lambda *_: put(GUARDED, "guards are in"))
    etl.main.main()
