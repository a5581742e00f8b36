"""What SFTP packets hold (version 3, draft-ietf-secsh-filexfer-02): numbers, strings, attributes, answers. Pure."""

from __future__ import annotations

import stat
import struct
from typing import NamedTuple

from etl.errors import IOFailure
from etl.models.task import Facts

VERSION = 3

INIT, VERSION_ANSWER, OPEN, CLOSE, READ, WRITE, LSTAT, FSTAT, SETSTAT = 1, 2, 3, 4, 5, 6, 7, 8, 9
OPENDIR, READDIR, REMOVE, MKDIR, RMDIR, REALPATH, STAT, RENAME = 11, 12, 13, 14, 15, 16, 17, 18
STATUS, HANDLE, DATA, NAME, ATTRS, EXTENDED, EXTENDED_ANSWER = 101, 102, 103, 104, 105, 200, 201

# Flags of OPEN
FOR_READING, FOR_WRITING, CREATE, TRUNCATE = 1, 2, 8, 16

# Codes of STATUS. Those above 8 belong to later versions; servers send them all the same.
OK, END_OF_FILE, NO_SUCH_FILE, PERMISSION_DENIED, FAILURE, UNSUPPORTED = 0, 1, 2, 3, 4, 8

_HAS_SIZE, _HAS_OWNER, _HAS_MODE, _HAS_TIMES = 1, 2, 4, 8
_MOST_SECONDS = (1 << 32) - 1

U32, U64 = struct.Struct(">I"), struct.Struct(">Q")


class MalformedError(IOFailure):
    """Raised for bytes that are no SFTP packet."""


def string(content: bytes) -> bytes:
    """Return a string of the wire."""
    return U32.pack(len(content)) + content


def times(mtime: float) -> bytes | None:
    """Return attributes that set nothing but the times; None for a time that the wire cannot carry."""
    if not 0 <= mtime <= _MOST_SECONDS:
        return None
    seconds = int(mtime)
    return struct.pack(">III", _HAS_TIMES, seconds, seconds)


class Attributes(NamedTuple):
    """What an answer says of a file; None: not told."""

    size_bytes: int | None
    mode: int | None
    mtime: float | None

    @property
    def facts(self) -> Facts:
        """Size and time."""
        return Facts(self.size_bytes, self.mtime)

    @property
    def is_file(self) -> bool:
        """Is it an ordinary file, as far as is told?"""
        return self.mode is None or not stat.S_IFMT(self.mode) or stat.S_ISREG(self.mode)

    @property
    def is_folder(self) -> bool:
        """Is it surely a folder?"""
        return self.mode is not None and stat.S_ISDIR(self.mode)


class Reader:
    """Takes values from the start of a packet's body. Raises MalformedError when there are fewer bytes."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    @property
    def is_at_end(self) -> bool:
        """Is nothing left?"""
        return self._at >= len(self._body)

    def u32(self) -> int:
        """Take a number of four bytes."""
        return int(self._unpack(U32))

    def u64(self) -> int:
        """Take a number of eight bytes."""
        return int(self._unpack(U64))

    def string(self) -> bytes:
        """Take a string."""
        length = self.u32()
        if self._at + length > len(self._body):
            raise MalformedError("a string is longer than its packet")
        self._at += length
        return self._body[self._at - length : self._at]

    def rest(self) -> bytes:
        """Take all that is left."""
        rest, self._at = self._body[self._at :], len(self._body)
        return rest

    def attributes(self) -> Attributes:
        """Take attributes."""
        flags = self.u32()
        size_bytes = self.u64() if flags & _HAS_SIZE else None
        if flags & _HAS_OWNER:
            self.u64()
        mode = self.u32() if flags & _HAS_MODE else None
        mtime = None
        if flags & _HAS_TIMES:
            self.u32()
            mtime = float(self.u32())
        if flags & 1 << 31:
            for _ in range(self.u32()):
                self.string()
                self.string()
        return Attributes(size_bytes, mode, mtime)

    def _unpack(self, form: struct.Struct) -> int:
        try:
            (value,) = form.unpack_from(self._body, self._at)
        except struct.error as error:
            raise MalformedError("a packet ends too early") from error
        self._at += form.size
        return value  # type: ignore[no-any-return]  # a number, by its form


class Answer(NamedTuple):
    """An answer: its kind, and what follows its request's number. Of DATA that went to its place: how many bytes."""

    kind: int
    body: bytes
    placed_bytes: int | None = None

    @property
    def code(self) -> int:
        """The code of a STATUS, OK for all other kinds."""
        return Reader(self.body).u32() if self.kind == STATUS else OK

    @property
    def is_success(self) -> bool:
        """Did the request succeed?"""
        return self.code == OK

    @property
    def text(self) -> str:
        """What a STATUS says, and its code."""
        reader = Reader(self.body)
        code = reader.u32()
        said = b"" if reader.is_at_end else reader.string()  # some send no text (draft versions before 3)
        return f"{said.decode('utf-8', 'replace')[:200].strip() or 'no reason given'} (status {code})"

    def expect(self, kind: int) -> Reader:
        """Return the body of an answer of this kind. Raises MalformedError for another one."""
        if self.kind != kind:
            raise MalformedError(f"answer {self.kind} where {kind} belongs")
        return Reader(self.body)

    @property
    def attributes(self) -> Attributes | None:
        """The attributes, None when it is a refusal."""
        return None if self.kind == STATUS else self.expect(ATTRS).attributes()

    @property
    def handle(self) -> bytes | None:
        """The handle, None when it is a refusal."""
        return None if self.kind == STATUS else self.expect(HANDLE).string()
