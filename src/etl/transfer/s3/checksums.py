"""Checksums that a store is told with some bytes, and compares them with: how they are made and named."""

from __future__ import annotations

import base64
import hashlib

import crc32c

CRC32C, MD5 = "crc32c", "md5"  # the first costs nothing; the second is what nearly every store knows
CRC32C_HEADER = "x-amz-checksum-crc32c"
_NAMES = {CRC32C: CRC32C_HEADER, MD5: "content-md5"}


def headers_of(algorithm: str, content: bytes | memoryview) -> dict[str, str]:
    """Return the header that tells the checksum of some bytes; without an algorithm none."""
    if not algorithm:
        return {}
    if algorithm == MD5:
        made = hashlib.md5(content, usedforsecurity=False).digest()
    else:
        made = crc32c.crc32c(content).to_bytes(4, "big")
    return {_NAMES[algorithm]: base64.b64encode(made).decode()}


def headers_of_upload(algorithm: str) -> dict[str, str]:
    """Return the header of an upload whose parts will be told with a checksum."""
    return {"x-amz-checksum-algorithm": "CRC32C"} if algorithm == CRC32C else {}
