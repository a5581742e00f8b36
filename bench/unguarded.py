"""The consumer without its guards against what strangers send: what they cost is measured by taking them out.

Only for files and jobs of our own. Each guard is replaced by the plain code that would stand there without it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "src")]

import lz4.frame

import etl.broker.records
import etl.intake.admission
import etl.main
import etl.models.document
import etl.models.message
import etl.transfer.ftp.link
import etl.transfer.local
from etl.models.task import Record


def _nothing(*_: object) -> None:
    """Look at nothing."""


def _parse(document: Any, _bounds: object = None) -> Any:
    # As strict as ever: that names do not appear twice is what JSON is read for, and no guard.
    return etl.models.document._DECODER.decode(bytes(document).decode())  # noqa: SLF001 - that reader, without its limits


def _unpacked(value: bytes, *, strict: bool = True) -> bytes:  # noqa: ARG001 - as it is called
    return value


def _unpack(_compression: int, packed: bytes) -> bytes:
    return bytes(lz4.frame.decompress(packed))  # with which the benchmark's producer packs


def _open_beneath(root: str, path: str, flags: int) -> int:
    return os.open(f"{root}/{path}", flags | os.O_CLOEXEC)


def _open_folder(root: str, path: str = ".") -> int:
    return _open_beneath(root, path, os.O_PATH | os.O_DIRECTORY)


PLAIN: tuple[tuple[object, str, object], ...] = (
    (etl.broker.records, "unpack", _unpack),
    (etl.intake.admission, "require_few_headers", lambda _record: ()),
    (etl.models.document, "unpacked", _unpacked),
    (etl.models.document, "parse", _parse),
    (etl.models.message, "_require_few_fields", _nothing),
    (Record, "weight_bytes", property(lambda record: len(record.value or b""))),
    (etl.transfer.ftp.link, "refuse_misread", _nothing),
    (etl.transfer.local, "refuse_unusable", _nothing),
    (etl.transfer.local, "open_beneath", _open_beneath),
    (etl.transfer.local, "open_folder", _open_folder),
)


def take_out() -> None:
    """Replace every guard. Raises AttributeError for one that is not there any more."""
    for place, name, plain in PLAIN:
        getattr(place, name)
        setattr(place, name, plain)


if __name__ == "__main__":
    take_out()
    etl.main.main()
