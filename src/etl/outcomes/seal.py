"""The proof that a deferred job was written by this group: a header that only who knows the group's secret can make.

Whoever may write to T-retry could say of a job that its copy was published, or that it is another job. Pure.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from etl.models.task import Record

PROOF = "etl-proof"
_OURS = "etl-"


class Seal:
    """Makes and checks proofs."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode("utf-8", "surrogateescape")

    def sign(
        self, topic: str, key: bytes | None, value: bytes | None, headers: tuple[tuple[str, bytes], ...]
    ) -> tuple[tuple[str, bytes], ...]:
        """Return the headers with the proof behind them."""
        return (*headers, (PROOF, self._proof(topic, key, value, headers)))

    def proves(self, record: Record) -> bool:
        """Did a member of the group write this job, its bytes and all that our headers say?"""
        proof = record.header(PROOF)
        if proof is None:
            return False
        return hmac.compare_digest(proof, self._proof(record.topic, record.key, record.value, record.headers))

    def _proof(self, topic: str, key: bytes | None, value: bytes | None, headers: Iterable[tuple[str, bytes]]) -> bytes:
        # Each part with its length: else two messages could be the same bytes.
        mac = hmac.new(self._secret, digestmod=hashlib.sha256)
        parts = [topic.encode(), b"" if key is None else b"k" + key, b"" if value is None else b"v" + value]
        for name, content in headers:
            if name.startswith(_OURS) and name != PROOF:
                parts += [name.encode("utf-8", "surrogateescape"), content]
        for part in parts:
            mac.update(len(part).to_bytes(8, "big"))
            mac.update(part)
        return mac.hexdigest().encode("ascii")
