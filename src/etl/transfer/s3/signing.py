"""Signatures of requests, version 4, and how names are written in them. Pure: the time is handed in.

Source: AWS, "Signature Version 4 for API requests"; checked against its published test vectors.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from urllib.parse import quote

ALGORITHM = "AWS4-HMAC-SHA256"
UNSIGNED = "UNSIGNED-PAYLOAD"

Query = Iterable[tuple[str, str]]

_BLANKS = re.compile(r" +")


@dataclass(frozen=True)
class Credentials:
    """Whose requests are signed."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str = field(default="", repr=False)


def quoted(text: str, safe: str = "") -> str:
    """Return a text as it stands in a path (`safe` is `/`) or a query: all but letters, digits, `-._~` as %XX."""
    return quote(text, safe=safe + "-._~")


def query_string(query: Query) -> str:
    """Return the parameters as they are sent and signed: in their order of sorting."""
    return "&".join(f"{name}={value}" for name, value in sorted((quoted(n), quoted(v)) for n, v in query))


def canonical(method: str, path: str, query: str, headers: Mapping[str, str], payload: str) -> tuple[str, str]:
    """Return a request in the form that is signed, and the names of the headers in it.

    `path` and `query` are as they are sent: nothing is normalised, as keys may hold `//` and `.`. `headers`: those to
    be signed, by name in lower case. `payload`: the SHA-256 of the body in hexadecimal digits, or what stands for it.
    """
    names = sorted(headers)
    lines = [f"{name}:{_BLANKS.sub(' ', headers[name].strip())}" for name in names]
    signed = ";".join(names)
    return "\n".join([method, path, query, *lines, "", signed, payload]), signed


def authorization(
    credentials: Credentials, region: str, service: str, moment: datetime, request: tuple[str, str]
) -> str:
    """Return the header that signs a request, which `canonical` has brought into its form."""
    text, signed = request
    stamp, day = stamp_of(moment), f"{moment:%Y%m%d}"
    scope = f"{day}/{region}/{service}/aws4_request"
    to_sign = "\n".join([ALGORITHM, stamp, scope, hashlib.sha256(text.encode()).hexdigest()])
    key = _key(credentials.secret_key, day, region, service)
    signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
    return f"{ALGORITHM} Credential={credentials.access_key}/{scope}, SignedHeaders={signed}, Signature={signature}"


def stamp_of(moment: datetime) -> str:
    """Return a moment (UTC) as requests have it."""
    return f"{moment:%Y%m%dT%H%M%SZ}"


@lru_cache(maxsize=64)  # it is the same all day
def _key(secret: str, day: str, region: str, service: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (day, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
