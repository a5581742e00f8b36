"""Checksums as jobs and results name them. Knows no file and no way to make one."""

from __future__ import annotations

from typing import NamedTuple

# Algorithms by the names that messages use, with the number of hexadecimal digits of their values.
DIGITS = {"sha256": 64, "sha512": 128, "sha1": 40, "md5": 32, "crc32": 8, "xxh3-128": 32}
OWN = "xxh3-128"  # ours where nobody asks for another: the fastest one, which no server and no common tool knows
WRITABLE = ("sha256", "sha512", "sha1", "md5")  # those of checksum files

_HEXADECIMAL = frozenset("0123456789abcdef")


class Checksum(NamedTuple):
    """What the bytes of a file come to: `value` in lower-case hexadecimal digits."""

    algorithm: str
    value: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.value}"

    @classmethod
    def read(cls, algorithm: str, value: str) -> Checksum:
        """Read both parts, in any case, the name also with dashes (SHA-256). Raises ValueError."""
        name = algorithm.strip().lower().replace("_", "-")
        name = name if name in DIGITS else name.replace("-", "")
        if name not in DIGITS:
            raise ValueError(f"algorithm: {algorithm[:20]!a} is not supported (known: {', '.join(DIGITS)})")
        digits = value.strip().lower()
        if len(digits) != DIGITS[name] or not _HEXADECIMAL.issuperset(digits):
            raise ValueError(f"value: is not the {DIGITS[name]} hexadecimal digits of {name}")
        return cls(name, digits)

    @classmethod
    def parse(cls, text: str) -> Checksum:
        """Read what `str` wrote. Raises ValueError."""
        algorithm, _, value = text.partition(":")
        return cls.read(algorithm, value)
