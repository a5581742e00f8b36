"""What a session may be able to do beside its files: have its server make checksums of them. Knows nothing else."""

from __future__ import annotations


class Proving:
    """A part of every session; by itself its server makes none."""

    def hashes(self) -> tuple[str, ...]:
        """Return the algorithms by which the server itself makes checksums of its files, best first.

        May ask once in a session whether it does at all.
        """
        return ()

    def prepare_proof(self, size_bytes: int | None) -> bool:  # noqa: ARG002 - for those who can
        """Get ready for the next `write`, which has to be proven before its file is published.

        True: the server checks what it is told of the bytes as they come. Else the file can be read under its partial
        name. Asked after `foresee`, where `hashes` are none.
        """
        return False

    def hash_of(self, path: str, algorithm: str, size_bytes: int) -> str | None:  # noqa: ARG002 - for those who can
        """Have the server make the checksum of a stored file, of so many bytes: lower-case hexadecimal digits.

        None: it does not, after all. May block for as long as a server needs to read the file.
        """
        return None
