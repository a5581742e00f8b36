"""What a store answers in XML, and what it is sent: errors, listings, uploads."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import unquote_plus
from xml.sax.saxutils import escape

from etl.transfer.s3.channel import LENGTH, MalformedError

LIMIT_BYTES = 8 << 20  # of an answer: a listing has 1000 names of at most 1024 bytes


class Part(NamedTuple):
    """A part of an upload that the store has."""

    number: int
    etag: str
    size_bytes: int = 0
    crc32c: str = ""  # as it was told with the part


def root_of(content: bytes) -> ET.Element | None:
    """Parse an answer; None for none, or for what is no XML. Names of elements are without their name space."""
    try:
        root = ET.fromstring(content.strip())  # noqa: S314 - expat limits what entities grow to, `LIMIT_BYTES` the rest
    except (ET.ParseError, ValueError, LookupError):
        return None
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def text_of(root: ET.Element | None, name: str) -> str:
    """Return the text of an element, empty if there is none."""
    return "" if root is None else (root.findtext(name) or "").strip()


def required(content: bytes, name: str) -> str:
    """Return the text of an element that must be there. Raises MalformedError."""
    found = text_of(root_of(content), name)
    if not found:
        raise MalformedError(f"an answer without {name}: {content[:60]!r}")
    return found


class Listing(NamedTuple):
    """One page of a listing of keys."""

    keys: list[str]
    folders: list[str]  # common prefixes
    next_page: str


def listing_of(content: bytes) -> Listing:
    """Read a page of ListObjectsV2."""
    root = _listed(content, "ListBucketResult")
    keys = [_name(root, entry, "Key") for entry in root.findall("Contents")]
    folders = [_name(root, entry, "Prefix") for entry in root.findall("CommonPrefixes")]
    return Listing(keys, folders, text_of(root, "NextContinuationToken"))


class Begun(NamedTuple):
    """An upload that nobody has completed or aborted yet."""

    key: str
    upload_id: str


def uploads_of(content: bytes) -> tuple[list[Begun], tuple[str, str] | None]:
    """Read a page of ListMultipartUploads; return also where the next page begins, None: it was the last."""
    root = _listed(content, "ListMultipartUploadsResult")
    found = [Begun(_name(root, entry, "Key"), text_of(entry, "UploadId")) for entry in root.findall("Upload")]
    if text_of(root, "IsTruncated") != "true":
        return found, None
    return found, (_name(root, root, "NextKeyMarker"), text_of(root, "NextUploadIdMarker"))


def parts_of(content: bytes) -> tuple[list[Part], str]:
    """Read a page of ListParts; return also behind which number the next page begins, empty: it was the last."""
    root = _listed(content, "ListPartsResult")
    found = []
    for entry in root.findall("Part"):
        number, size = text_of(entry, "PartNumber"), text_of(entry, "Size")
        if not (LENGTH.fullmatch(number) and LENGTH.fullmatch(size)):
            raise MalformedError("a part of an upload has no number or size")
        found.append(Part(int(number), text_of(entry, "ETag"), int(size)))
    return found, text_of(root, "NextPartNumberMarker") if text_of(root, "IsTruncated") == "true" else ""


def completion(parts: Iterable[Part]) -> bytes:
    """Return the list of an upload's parts that completes it."""
    lines = [
        f"<Part><PartNumber>{part.number}</PartNumber><ETag>{escape(part.etag)}</ETag>"
        f"{f'<ChecksumCRC32C>{part.crc32c}</ChecksumCRC32C>' if part.crc32c else ''}</Part>"
        for part in parts
    ]
    return f"<CompleteMultipartUpload>{''.join(lines)}</CompleteMultipartUpload>".encode()


def is_completed(content: bytes) -> bool:
    """Does an answer say that an upload is completed?"""
    root = root_of(content)
    return root is not None and root.tag == "CompleteMultipartUploadResult"


def _listed(content: bytes, kind: str) -> ET.Element:
    root = root_of(content)
    if root is None or root.tag != kind:
        raise MalformedError(f"no {kind}: {content[:60]!r}")
    return root


def _name(root: ET.Element, entry: ET.Element, element: str) -> str:
    """Return a key as it is; a blank within it belongs to it."""
    text = entry.findtext(element) or ""
    return unquote_plus(text) if text_of(root, "EncodingType") == "url" else text
