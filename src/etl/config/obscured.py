"""Passwords that rclone has obscured: AES-CTR with a key that rclone publishes. Hides them from a glance, no more."""

from __future__ import annotations

import base64
import binascii

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

_KEY = bytes.fromhex("9c935b48730a554d6bfd7c63c886a92bd390198eb8128afbf4de162b8b95f638")  # rclone: fs/config/obscure
_BLOCK_BYTES = 16


def reveal(text: str) -> str:
    """Return what `rclone obscure` was given. Raises ValueError for a text that it did not write."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise ValueError("is not obscured") from None
    if len(raw) < _BLOCK_BYTES:
        raise ValueError("is not obscured")
    stream = Cipher(AES(_KEY), CTR(raw[:_BLOCK_BYTES])).decryptor()
    try:
        return (stream.update(raw[_BLOCK_BYTES:]) + stream.finalize()).decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("is not obscured") from None
