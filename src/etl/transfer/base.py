"""The contract of a protocol: what a user's class must have, what a built-in session adds, and the factory.

Knows settings and errors; knows no protocol, no Kafka, no thread.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, Protocol, Self, TypeVar

from etl.errors import (
    AlreadyExists,
    FileMissing,
    NotAFile,
    PermissionRefused,
    StorageFull,
    UnknownType,
)
from etl.models.server import PROTOCOLS, ProtocolSpec, ServerConfig, TransferSettings
from etl.models.task import Facts
from etl.transfer.proving import Proving

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

# Where a server refuses to rename over a file, the old one waits under the partial file's name with this ending.
ASIDE = ".old"

T_co = TypeVar("T_co", covariant=True)


class Answer(Protocol[T_co]):
    """What may have to be waited for."""

    def result(self) -> T_co:
        """Send what is still corked, read replies in order up to this one, return or raise what it said.

        May block for a reply's time limit. A second call returns (or raises) the same again.
        """
        ...


class Promise(Answer[T_co], Protocol[T_co]):
    """An answer of a session, whose reply was perhaps not read yet."""

    def then(self, tell: Callable[[], None]) -> None:
        """Have `tell` called, by the thread that uses the session, once `result` needs no session any more."""
        ...


class Settled(Generic[T_co]):
    """A promise whose answer is known already."""

    def __init__(self, value: T_co) -> None:
        self._value = value

    def result(self) -> T_co:
        """Return the value."""
        return self._value

    def then(self, tell: Callable[[], None]) -> None:
        """Tell at once."""
        tell()


class Stored:
    """A file written under its partial name: `sent_bytes` by us; what the server says may not have been read yet."""

    def __init__(
        self,
        partial: str,
        sent_bytes: int,
        size_bytes: int | None = None,
        *,
        size: Promise[int | None] | None = None,
        ended: Promise[None] | None = None,
        is_checked: bool = False,
    ) -> None:
        self.partial = partial
        self.is_checked = is_checked  # the server compares the bytes with checksums, else it does not publish them
        self.sent_bytes = sent_bytes
        self._size = size or Settled(size_bytes)
        self._ended = ended

    @property
    def is_ended(self) -> bool:
        """Has the server said that all is stored, as far as `write` waited for that?"""
        return self._ended is None

    def require_stored(self) -> None:
        """Raise what the server said at the end of the upload, if `write` did not wait for that."""
        if self._ended is not None:
            self._ended.result()

    @property
    def size_bytes(self) -> int | None:
        """The size as the server says, None: not told. Waits for its reply; raises when the file is not there."""
        self.require_stored()
        return self._size.result()


@dataclass(frozen=True)
class Published:
    """How a file came under its final name."""

    swapped: bool = False  # the server refuses to rename over a file: the old one was moved aside first
    stamped: bool = False  # the time stamp was kept


class Parcel(Protocol):
    """One file on its way: open at its source, crossing the lane."""

    path: str
    facts: Facts  # as the server told before the first byte
    held: memoryview | None  # the whole file, once `load` was true

    def load(self, limit_bytes: int) -> bool:
        """Take the whole file into memory if it has at most `limit_bytes`; True when it did, and is now complete.

        After True `held` is there, and `readinto` serves from it, also while another thread closes the parcel at its
        session.
        """
        ...

    def readinto(self, buffer: memoryview) -> int:
        """Fill `buffer` from its start; return how many bytes, 0 at the end. Blocks at most a stall limit."""
        ...

    def close(self, *, complete: bool) -> None:
        """End the reading. `complete`: read the final reply and raise if it is no success; else abort.

        Aborted before its end, the session is done for. Idempotent.
        """
        ...


# Errors that say something of a file, and nothing of the session.
ANSWERS = (FileMissing, NotAFile, AlreadyExists, PermissionRefused, StorageFull)


class BaseTransfer(ABC):
    """A session with one server; these four methods are all that a protocol of your own needs.

    Register it with `TransferFactory.register("mytype", MyTransfer)`, or as an entry point in the group
    `etl.transfers`. Methods raise `etl.errors` where they can, else any `OSError`; after any error the session
    is closed and never used again. Not thread-safe: one thread at a time.
    """

    spec: ClassVar[ProtocolSpec] = ProtocolSpec()
    server: ServerConfig
    settings: TransferSettings = TransferSettings()  # of a class that never calls our __init__

    def __init__(self, server: ServerConfig, settings: TransferSettings | None = None) -> None:
        self.server = server
        self.settings = settings or TransferSettings()

    @property
    def config(self) -> ServerConfig:
        """The server, by the name that classes with `__init__(self, config)` use."""
        return self.server

    @config.setter
    def config(self, server: ServerConfig) -> None:
        self.server = server

    @abstractmethod
    def connect(self) -> None:
        """Open the session: reach the server and log in."""

    @abstractmethod
    def disconnect(self) -> None:
        """Close the session; never raises, may be called twice."""

    @abstractmethod
    def download(self, remote_path: str, local_path: str) -> None:
        """Copy a file of the server to a local one. Raises FileNotFoundError when it is not there."""

    @abstractmethod
    def upload(self, local_path: str, remote_path: str) -> None:
        """Copy a local file to the server, making its parent folders. Raises FileNotFoundError without a local file."""

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disconnect()


class Session(Proving, BaseTransfer):
    """What the relay works with: a session that streams. Built-in protocols are these; `Staged` wraps the others.

    Paths are as in the job; the session puts them under the server's `base_path`. Sequence of a job on the source:
    `read` → `Parcel` … `confirm` → (`dispose`); on the destination: (`look`) → `write` → `publish`.
    After an exception the session's state is unknown: it is discarded, never reused, unless it `survives`.
    """

    marks_files = False  # does `look_published` know a file by its mark, whatever has its partial name?
    reads_ahead = True  # may more of a file be read than is asked for yet? Not where each block is paid for

    @abstractmethod
    def abort(self) -> None:
        """Make what blocks in this session fail at once; a name being looked up takes until the connect limit.

        The one method that any thread may call; never raises.
        """

    @abstractmethod
    def ping(self) -> None:
        """Ask for a sign of life, within a reply's limit; raises when there is none."""

    def round_trip_seconds(self) -> float | None:
        """Return how long a round trip to the server takes, as far as known. Does not block, never raises."""
        return None

    def lifetime_seconds(self) -> float:
        """Return how long from now jobs may begin in this session, as far as that depends on what was agreed with it.

        Does not block, never raises.
        """
        return math.inf

    @abstractmethod
    def look(self, path: str) -> Facts | None:
        """Return size and time of a file; None when it, or a folder on its way, is not there.

        Raises NotAFile when something other than a file has the name, PermissionRefused when we may not look.
        """

    @abstractmethod
    def read(self, path: str) -> Parcel:
        """Open a file for reading. Raises FileMissing, PermissionRefused (told apart by asking)."""

    @abstractmethod
    def unchanged(self, parcel: Parcel) -> Promise[bool]:
        """Are size and time of the parcel's file still as before it was read? One that is gone is not changed."""

    def confirm(self, parcel: Parcel) -> Promise[bool]:
        """End the reading of a parcel, all of whose bytes were taken, and ask whether it is `unchanged`.

        What the server says of the transfer is raised here, or by the promise: then the session goes on.
        """
        parcel.close(complete=True)
        return self.unchanged(parcel)

    def require_disposal(self, *, move: bool) -> None:
        """Raise SettingsError when this protocol can never delete (or move) a source. Asked before a file is copied."""

    @abstractmethod
    def dispose(self, path: str, move_to: str | None = None) -> Promise[None]:
        """Delete a file, or move it (parents made, an existing file replaced). A file already gone is success."""

    def require_name(self, path: str) -> None:
        """Raise InvalidPath for a name that the server cannot take. Asked before anything is written."""

    def foresee(self, final: str, mtime: float | None) -> None:  # noqa: ARG002 - for those who need it
        """Say under which name and time stamp the next `write` will be published. Raises as `require_name` does."""
        self.require_name(final)

    @abstractmethod
    def write(self, partial: str, parcel: Parcel, buffer: memoryview) -> Stored:
        """Stream a parcel to a new file through `buffer`, making missing parents; ask the size.

        The bytes are those of the parcel up to the size in its facts: that there are no more, its `close` finds out.

        A folder somebody deleted in between is made again. Raises StorageFull, PermissionRefused, ... and whatever
        the parcel raises; what the server says at the end may be left to `Stored.require_stored`.
        """

    def begin(self, partial: str, parcel: Parcel) -> bool:  # noqa: ARG002 - for those who can
        """Send a file that is held in memory ahead of its `write`, which follows; waits for nothing.

        Asked while the rename of the file before is under way. False: nothing was sent.
        """
        return False

    @abstractmethod
    def publish(self, stored: Stored, final: str, mtime: float | None) -> Promise[Published]:
        """Stamp the partial file with `mtime` (best effort; None: leave it), then rename it to `final`.

        Of an upload that failed at its end nothing is renamed: that is raised.
        """

    def publish_new(self, stored: Stored, final: str, mtime: float | None) -> Promise[Published]:
        """Publish where nothing was just now. Raises IOFailure for what came meanwhile, if the protocol can tell."""
        return self.publish(stored, final, mtime)

    def look_published(self, partial: str, final: str) -> Facts | None:  # noqa: ARG002 - for those who can tell
        """Look at a final name, whose partial file is gone; None also when it is known to be another file."""
        return self.look(final)

    def show(self, stored: Stored) -> None:
        """See to it that a partial file can be seen under its name, until it is published or removed."""

    def sync(self, path: str) -> None:
        """See to it that a published file survives a power cut, where that is ours to do: its source is about to go."""

    @abstractmethod
    def remove(self, path: str) -> bool:
        """Delete a file; False when it was not there."""

    def remove_folder(self, path: str) -> bool:  # noqa: ARG002 - for those who can
        """Remove an empty folder; False when it stays, or was not there."""
        return False

    def remove_leftovers(self, final: str, but: str | None = None) -> None:
        """Remove what earlier runs left of a file, where that has no name of its own; not what is of the path `but`."""

    def traits(self) -> dict[str, str]:
        """Return what the server is like beside its files: topic -> words. For a session that does nothing else."""
        return {}

    @abstractmethod
    def names(self, folder: str, prefix: str = "") -> list[str]:
        """Return the bare names in a folder that begin with `prefix`; empty when it is not there."""

    def survives(self, error: BaseException) -> bool:  # noqa: ARG002 - for those who know better
        """May this session go on after an error that a job met, one of `ANSWERS`?

        Asked when all its parcels are closed; may wait for replies. What is not sure says no.
        """
        return False

    @property
    def is_over(self) -> bool:
        """Is it known to be of no use any more, though its last job went well? Asks nothing; any thread may ask."""
        return False

    def require_base(self) -> None:
        """Raise what keeps us from the base path, unless it is a folder; makes none. For protocols without: nothing."""

    def lacks(self) -> tuple[str, ...]:
        """Return what this protocol cannot do, of `names`, `size` and `remove`: asked before a server is tried out."""
        return ()

    def prepare(self) -> None:
        """Get ready for a `write` that is sure to follow; costs no wait: what there is to send goes with the next."""

    def push(self) -> None:
        """Send what is corked; wait for nothing."""

    def flush(self) -> None:
        """Send what is corked, read every reply that is due."""

    def adopt(self, server: ServerConfig) -> None:
        """Serve jobs of another name with the same address: its base path, encoding and partial names from now on."""
        self.server = server


class TransferFactory:
    """Makes the session of a server by its type."""

    _classes: ClassVar[dict[str, type[BaseTransfer]]] = {}

    @classmethod
    def register(cls, name: str, transfer: type[BaseTransfer]) -> None:
        """Make `transfer` the protocol of servers whose TYPE is `name`; its `spec` becomes known to the settings."""
        if not (isinstance(transfer, type) and issubclass(transfer, BaseTransfer)):
            raise TypeError(f"{transfer!r} is no subclass of BaseTransfer")
        cls._classes[name.lower()] = transfer
        PROTOCOLS[name.lower()] = transfer.spec

    @classmethod
    def create(cls, server: ServerConfig, settings: TransferSettings | None = None) -> BaseTransfer:
        """Return a new, unconnected transfer for `server`. Raises UnknownType (a ValueError)."""
        try:
            transfer = cls._classes[server.type.lower()]
        except KeyError:
            known = ", ".join(sorted(cls._classes))
            raise UnknownType(
                f"server {server.hostname}: unknown type {server.type!r} (known: {known})", server=server.hostname
            ) from None
        if _takes_settings(transfer):
            return transfer(server, settings)
        made = transfer(server)
        made.server = server
        made.settings = settings or TransferSettings()
        return made


def _takes_settings(transfer: type[BaseTransfer]) -> bool:
    """Does a class take the settings as second argument? One that knows the server alone gets them afterwards."""
    _, *others = inspect.signature(transfer).parameters.values()
    return any(one.name == "settings" or one.kind is one.VAR_POSITIONAL for one in others) or (
        bool(others) and others[0].kind is others[0].POSITIONAL_OR_KEYWORD and others[0].default is others[0].empty
    )
